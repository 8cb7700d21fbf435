//! Who would wait for itself is told so at once.

use crate::support::spaces::{A, B, NAME, Room, expect_busy, space_in};
use crate::support::waits::start;
use crate::ways::long_waits;
use lockspace::{AcquireError, LockSpace, Mode, Naming, Request, Wait};

#[test]
fn an_owner_that_would_wait_for_itself_is_told_so_at_once() {
    let deadlock = |room: &Room, mode| {
        for (_, wait) in long_waits() {
            let refused = room.start(A, mode, wait).join();
            let Err(AcquireError::Deadlock { name, .. }) = &refused else { panic!("{refused:?}") };
            assert_eq!(name, NAME);
        }
        // A try does not wait, so it is only busy.
        let refused = expect_busy(room.space.acquire(A, Request::new(mode, NAME), Wait::NO));
        assert_eq!(refused.asked(), mode);
    };
    for room in Room::both() {
        for (holds, asks) in [
            (Mode::Exclusive, Mode::Exclusive),
            (Mode::Exclusive, Mode::Shared),
            (Mode::Shared, Mode::Exclusive),
        ] {
            let lease = room.hold(A, holds);
            deadlock(&room, asks);
            lease.keep();
            deadlock(&room, asks);
            room.space.release(A, NAME).unwrap();
        }
        // Also beside another.
        let others = (room.hold(B, Mode::Shared), room.hold(A, Mode::Shared));
        deadlock(&room, Mode::Exclusive);
        drop(others);
        // It waits already.
        let lease = room.hold(B, Mode::Exclusive);
        let waiting = room.start(A, Mode::Exclusive, Wait::FOREVER).sleeps();
        deadlock(&room, Mode::Exclusive);
        deadlock(&room, Mode::Shared);
        drop(lease);
        drop(waiting.join().unwrap());
        room.is_as_new();
    }
    // It waits already, for somebody outside.
    let room = Room::on_disk();
    let other = space_in(room.dir());
    let lease = other.acquire(B, Request::exclusive(NAME), Wait::NO).unwrap();
    let waiting = room.start(A, Mode::Exclusive, Wait::FOREVER).watches();
    deadlock(&room, Mode::Exclusive);
    drop(lease);
    drop(waiting.join().unwrap());
    room.is_as_new();
}

#[test]
fn several_at_once_that_wait_for_their_own_owner_are_told_so_at_once() {
    for room in Room::both() {
        let lease = room.hold(A, Mode::Exclusive);
        let space = room.space.clone();
        let all = start(move || {
            if !space.list()[0].path.as_os_str().is_empty() {
                space.create("other").unwrap();
            }
            let requests = [Request::exclusive("other"), Request::exclusive(NAME)];
            space.acquire_all(A, requests, Wait::FOREVER).map(drop)
        });
        let refused = all.join();
        let Err(AcquireError::Deadlock { name, .. }) = &refused else { panic!("{refused:?}") };
        assert_eq!(name, NAME);
        assert_eq!(room.owners(), [A]);
        drop(lease);
        room.is_as_new();
    }
}

#[test]
fn several_at_once_that_wait_for_their_own_owner_are_told_so_whatever_else_is_held() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    let own = space.acquire(A, Request::exclusive("own"), Wait::NO).unwrap();
    let other = space.acquire(B, Request::exclusive("other"), Wait::NO).unwrap();
    let all = space.clone();
    let all = start(move || {
        let requests = [Request::exclusive("other"), Request::shared("own")];
        all.acquire_all(A, requests, Wait::FOREVER).map(drop)
    });
    let refused = all.join();
    assert!(
        matches!(&refused, Err(AcquireError::Deadlock { name, .. }) if name == "own"),
        "{refused:?}"
    );
    drop((own, other));
    assert_eq!(space.list(), []);
}
