//! Upgrades that wait, and who waits beside them.

use std::fs::{self, File};
use std::time::Duration;

use crate::convert::{shared_by_child, upgrade};
use crate::support::alone::alone;
use crate::support::forked::{Forked, fork};
use crate::support::locks::held;
use crate::support::spaces::{A, B, C, NAME, Room, expect_busy, expect_deadlock, space_in};
use crate::support::waits::{LONG, child_watches};
use lockspace::{AcquireError, Cancel, LockSpace, Mode, Naming, Request, Wait};
use tempfile::TempDir;

#[test]
fn an_upgrade_can_be_cancelled_and_keeps_the_shared_hold() {
    for room in Room::both() {
        for by_owner in [false, true] {
            let cancel = Cancel::new();
            let other = room.hold(B, Mode::Shared);
            let wait = Wait::FOREVER.unless(&cancel);
            let waiting = upgrade(room.hold(A, Mode::Shared), wait).sleeps();
            if by_owner {
                room.space.release_owner(A);
            } else {
                cancel.cancel();
            }
            let (ended, lease) = waiting.join();
            assert!(matches!(ended, Err(AcquireError::Cancelled { .. })), "{ended:?}");
            assert_eq!(lease.mode(), Mode::Shared);
            drop(other);
            room.is_held(Mode::Shared);
            drop(lease);
        }
    }
}

#[test]
fn an_upgrade_waits_until_the_other_holder_leaves() {
    for room in Room::both() {
        for wait in [Wait::within(LONG), Wait::FOREVER, Wait::within(Duration::MAX)] {
            let others = (room.hold(B, Mode::Shared), room.hold(C, Mode::Shared));
            let waiting = upgrade(room.hold(A, Mode::Shared), wait).sleeps();
            drop(others.0);
            assert!(!waiting.is_finished());
            drop(others.1);
            let (upgraded, lease) = waiting.join();
            upgraded.unwrap();
            assert_eq!(lease.mode(), Mode::Exclusive);
            room.is_held(Mode::Exclusive);
            drop(lease);
            assert_eq!(room.space.list(), []);
        }
    }
}

#[test]
fn an_upgrade_waits_for_a_holder_in_another_process() {
    for killed in [false, true] {
        let room = Room::on_disk();
        let (child, go) = shared_by_child(room.dir.as_ref().unwrap().path());
        let waiting = upgrade(room.hold(A, Mode::Shared), Wait::within(LONG)).watches();
        if killed {
            child.kill();
        } else {
            go.open();
            child.join();
        }
        let (upgraded, lease) = waiting.join();
        upgraded.unwrap();
        room.is_held(Mode::Exclusive);
        drop(lease);
    }
}

/// By another name of the same file: that holder does not know of this queue.
#[test]
fn an_upgrade_waits_for_a_holder_by_another_name() {
    let dir = TempDir::new().unwrap();
    let [image, link] = ["image", "link"].map(|name| dir.path().join(name));
    File::create(&image).unwrap();
    fs::hard_link(&image, &link).unwrap();
    let space = LockSpace::open(Naming::direct()).unwrap();
    let request = Request::shared(&image).upgradable();
    let lease = space.acquire(A, request, Wait::NO).unwrap();
    let other = space.acquire(B, Request::shared(&link), Wait::NO).unwrap();
    let waiting = upgrade(lease, Wait::within(Duration::from_secs(20))).sleeps();
    drop(other);
    let (upgraded, lease) = waiting.join();
    upgraded.expect("the other name is free since long");
    assert_eq!(held(&image), Some(Mode::Exclusive));
    drop(lease);
}

#[test]
fn a_waiting_upgrader_goes_before_exclusive_requests_that_queue() {
    for room in Room::both() {
        let other = room.hold(B, Mode::Shared);
        let lease = room.hold(A, Mode::Shared);
        let queued = room.start(C, Mode::Exclusive, Wait::FOREVER).sleeps();
        let waiting = upgrade(lease, Wait::FOREVER).sleeps();
        drop(other);
        let (upgraded, lease) = waiting.join();
        upgraded.unwrap();
        assert!(!queued.is_finished());
        drop(lease);
        drop(queued.join().unwrap());
        assert_eq!(room.space.list(), []);
    }
}

#[test]
fn a_second_upgrader_is_told_at_once_that_both_would_wait_for_ever() {
    for room in Room::both() {
        let mut second = room.hold(B, Mode::Shared);
        let waiting = upgrade(room.hold(A, Mode::Shared), Wait::FOREVER).sleeps();
        expect_deadlock(second.upgrade(Wait::FOREVER), NAME);
        expect_deadlock(second.upgrade(Wait::within(LONG)), NAME);
        assert_eq!(expect_busy(second.upgrade(Wait::NO)).owners(), [A]);
        assert_eq!(second.mode(), Mode::Shared);
        room.is_held(Mode::Shared);
        assert!(!waiting.is_finished());
        drop(second);
        let (upgraded, lease) = waiting.join();
        upgraded.expect("the second has left");
        assert_eq!(lease.mode(), Mode::Exclusive);
    }
}

#[test]
fn an_upgrade_that_waits_for_a_second_hold_of_its_owner_is_a_deadlock() {
    for room in Room::both() {
        let second = room.hold(A, Mode::Shared);
        let mut lease = room.hold(A, Mode::Shared);
        for wait in [Wait::FOREVER, Wait::within(LONG)] {
            expect_deadlock(lease.upgrade(wait), NAME);
        }
        assert_eq!(expect_busy(lease.upgrade(Wait::NO)).owners(), [A]);
        // Kept or leased.
        second.keep();
        expect_deadlock(lease.upgrade(Wait::FOREVER), NAME);
        room.is_held(Mode::Shared);
        room.space.release(A, NAME).unwrap();
        lease.upgrade(Wait::FOREVER).unwrap();
    }
}

#[test]
fn shared_tries_are_refused_while_an_upgrader_waits() {
    for room in Room::both() {
        let other = room.hold(B, Mode::Shared);
        let waiting = upgrade(room.hold(A, Mode::Shared), Wait::FOREVER).sleeps();
        let refused = room.space.acquire(C, Request::shared(NAME), Wait::NO).map(drop);
        let said = "held shared by owner 1 and 1 more, and an exclusive request waits";
        let refused = expect_busy(refused).to_string();
        assert!(refused.contains(said), "{refused}");
        // Who waits is let in when the upgrader is through.
        let queued = room.start(C, Mode::Shared, Wait::FOREVER).sleeps();
        drop(other);
        let (upgraded, mut lease) = waiting.join();
        upgraded.unwrap();
        assert!(!queued.is_finished());
        lease.downgrade().unwrap();
        drop(queued.join().unwrap());
    }
}

#[test]
fn a_downgrade_lets_in_who_waits_to_share() {
    alone(|| {
        for room in Room::both() {
            let mut lease = room.hold(A, Mode::Exclusive);
            let waiting =
                [B, C].map(|owner| room.start(owner, Mode::Shared, Wait::FOREVER).sleeps());
            lease.downgrade().unwrap();
            let joined = waiting.map(|waiting| waiting.join().unwrap());
            assert_eq!(room.space.list()[0].owners.len(), 3);
            drop((lease, joined));
        }
        // And other processes, by their poll.
        let room = Room::on_disk();
        let mut lease = room.hold(A, Mode::Exclusive);
        let children = [B, C].map(|owner| {
            fork(|| {
                let space = space_in(room.dir.as_ref().unwrap().path());
                drop(space.acquire(owner, Request::shared(NAME), Wait::within(LONG)).unwrap());
            })
        });
        children.iter().for_each(|child| child_watches(child.pid()));
        lease.downgrade().unwrap();
        children.into_iter().for_each(Forked::join);
        room.is_held(Mode::Shared);
    });
}
