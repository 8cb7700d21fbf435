//! Who waits is granted when the holder goes, whoever that is and however it goes.

use std::fs;

use crate::support::alone::alone;
use crate::support::forked::{Gate, fork};
use crate::support::locks::{Kind, Lock, held, open, set_lock};
use crate::support::process::open_below;
use crate::support::spaces::{A, B, HoldingChild, NAME, Room, space_in};
use crate::support::waits::{LONG, child_watches, start};
use crate::ways::long_waits;
use lockspace::{AcquireError, Mode, Request, Wait};
use tempfile::TempDir;

#[test]
fn a_wait_is_granted_when_another_thread_releases() {
    for (how, wait) in long_waits() {
        for room in Room::both() {
            let lease = room.hold(A, Mode::Exclusive);
            let waiting = room.start(B, Mode::Exclusive, wait.clone()).sleeps();
            assert_eq!(room.owners(), [A], "{how}");
            drop(lease);
            let lease = waiting.join().expect(how);
            assert_eq!((lease.owner(), lease.mode()), (B, Mode::Exclusive));
            lease.verify().unwrap();
            assert_eq!(room.owners(), [B], "{how}");
            drop(lease);
            room.is_as_new();
        }
    }
}

#[test]
fn a_wait_is_granted_when_a_kept_hold_is_released() {
    for room in Room::both() {
        room.hold(A, Mode::Exclusive).keep();
        let waiting = room.start(B, Mode::Shared, Wait::FOREVER).sleeps();
        room.space.release(A, NAME).unwrap();
        drop(waiting.join().unwrap());
        room.hold(A, Mode::Exclusive).keep();
        let waiting = room.start(B, Mode::Shared, Wait::FOREVER).sleeps();
        assert_eq!(room.space.release_owner(A).holds, 1);
        drop(waiting.join().unwrap());
        room.is_as_new();
    }
}

#[test]
fn a_wait_is_granted_when_another_space_of_the_process_releases() {
    for (how, wait) in long_waits() {
        let room = Room::on_disk();
        let other = space_in(room.dir());
        let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
        let waiting = room.start(B, Mode::Exclusive, wait).watches();
        drop(lease);
        waiting.join().expect(how).verify().unwrap();
        room.is_as_new();
    }
}

#[test]
fn a_wait_is_granted_when_another_process_releases() {
    for (how, wait) in long_waits() {
        for mode in [Mode::Exclusive, Mode::Shared] {
            let room = Room::on_disk();
            let holder = HoldingChild::start(room.dir(), Request::exclusive(NAME), drop);
            let waiting = room.start(B, mode, wait.clone()).watches();
            holder.go.open();
            let lease = waiting.join().expect(how);
            lease.verify().unwrap();
            assert_eq!(held(&room.file()), Some(mode), "{how}");
            drop(lease);
            room.is_as_new();
            holder.child.kill();
        }
    }
}

#[test]
fn a_wait_is_granted_when_the_holders_process_is_killed() {
    let room = Room::on_disk();
    let holder = HoldingChild::start(room.dir(), Request::exclusive(NAME), drop);
    let waiting = room.start(B, Mode::Exclusive, Wait::within(LONG)).watches();
    holder.child.kill();
    waiting.join().unwrap().verify().unwrap();
    room.is_as_new();
}

#[test]
fn a_wait_is_granted_when_another_process_unlinks_and_closes() {
    let dir = TempDir::new().unwrap();
    let request = || Request::exclusive(NAME).auto_create();
    let holder = HoldingChild::start(dir.path(), request(), |lease| lease.release().unwrap());
    let space = space_in(dir.path());
    let waiting = start(move || space.acquire(B, request(), Wait::within(LONG))).watches();
    let path = dir.path().join(NAME);
    let before = fs::metadata(&path).unwrap();
    holder.go.open();
    let lease = waiting.join().unwrap();
    lease.verify().expect("it holds the file that has the name now, not the one that had it");
    drop((lease, before));
    assert!(!path.exists(), "the waiter had asked for auto_create: it cleans up");
    assert_eq!(open_below(dir.path()), 0);
}

/// Who does not ask for it gets no new file: what it waited for is gone.
#[test]
fn a_wait_without_auto_create_ends_when_the_file_is_removed() {
    let dir = TempDir::new().unwrap();
    let request = Request::exclusive(NAME).auto_create();
    let holder = HoldingChild::start(dir.path(), request, |lease| lease.release().unwrap());
    let space = space_in(dir.path());
    let waiting = start({
        let space = space.clone();
        move || space.acquire(B, Request::exclusive(NAME), Wait::FOREVER)
    });
    let waiting = waiting.watches();
    holder.go.open();
    let refused = waiting.join();
    assert!(matches!(refused, Err(AcquireError::NotFound { .. })), "{refused:?}");
    assert_eq!((space.list().len(), open_below(dir.path())), (0, 0));
    assert!(!dir.path().join(NAME).exists());
}

/// Two processes share the holder's open file, so its unlock closes nothing, and no event comes.
#[test]
fn a_wait_is_granted_after_an_unlock_that_no_event_tells_of() {
    let room = Room::on_disk();
    let file = open(room.file());
    assert!(set_lock(&file, Kind::Ofd, Lock::Exclusive, 0, 1).unwrap());
    let (go, never) = (Gate::new(), Gate::new());
    let child = fork(|| {
        go.wait();
        set_lock(&file, Kind::Ofd, Lock::No, 0, 0).unwrap();
        never.wait();
    });
    let waiting = room.start(B, Mode::Exclusive, Wait::within(LONG)).watches();
    go.open();
    waiting.join().expect("the poll finds it").verify().unwrap();
    child.kill();
    drop(file);
}

#[test]
fn a_shared_wait_is_granted_when_the_holder_becomes_shared() {
    // Of this space, of another process: there no event tells it.
    for room in Room::both() {
        let mut lease = room.hold(A, Mode::Exclusive);
        let waiting = room.start(B, Mode::Shared, Wait::FOREVER).sleeps();
        lease.downgrade().unwrap();
        let joined = waiting.join().unwrap();
        assert_eq!(room.owners(), [A, B]);
        drop((lease, joined));
        room.is_as_new();
    }
    let room = Room::on_disk();
    let holder = HoldingChild::start(room.dir(), Request::exclusive(NAME), |mut lease| {
        lease.downgrade().unwrap();
        std::mem::forget(lease);
    });
    let waiting = room.start(B, Mode::Shared, Wait::within(LONG)).watches();
    holder.go.open();
    waiting.join().unwrap().verify().unwrap();
    assert_eq!(held(&room.file()), Some(Mode::Shared), "the child's");
    holder.child.kill();
    room.is_as_new();
}

#[test]
fn a_waiting_process_is_granted_when_this_one_releases() {
    alone(|| {
        let room = Room::on_disk();
        let lease = room.hold(A, Mode::Exclusive);
        let child = fork(|| {
            let space = space_in(room.dir());
            space
                .acquire(B, Request::exclusive(NAME), Wait::within(LONG))
                .unwrap()
                .verify()
                .unwrap();
        });
        child_watches(child.pid());
        drop(lease);
        child.join();
        room.is_as_new();
    });
}
