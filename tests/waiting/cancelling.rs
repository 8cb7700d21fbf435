//! Waits that are cancelled, by a `Cancel` or with all of their owner.

use std::time::Instant;

use crate::support::alone::alone;
use crate::support::process::memory;
use crate::support::spaces::{A, B, C, NAME, Room, auto, expect_busy, expect_cancelled, names_in};
use crate::support::waits::LONG;
use crate::ways::{SHORT, in_each_way, long_waits};
use lockspace::{Cancel, Mode, OwnerId, Request, Wait};

#[test]
fn a_wait_that_was_cancelled_before_ends_at_once_and_takes_nothing() {
    let cancel = Cancel::new();
    cancel.clone().cancel();
    for (_, wait) in long_waits().into_iter().chain([("no", Wait::NO)]) {
        for room in Room::both() {
            let request = Request::exclusive(NAME).auto_create();
            if room.dir.is_some() {
                room.space.delete(NAME).unwrap();
            }
            expect_cancelled(room.space.acquire(B, request, wait.clone().unless(&cancel)), NAME);
            assert_eq!(room.space.list(), []);
            if room.dir.is_some() {
                assert!(!room.file().exists(), "it has made a lock file");
                room.space.create(NAME).unwrap();
            }
            room.is_as_new();
        }
    }
}

#[test]
fn a_wait_can_be_cancelled_whoever_holds() {
    in_each_way(|room, _, _| {
        for on_drop in [false, true] {
            let cancel = Cancel::new();
            let wait = Wait::FOREVER.unless(&cancel);
            let started = Instant::now();
            let waiting = room.start(B, Mode::Exclusive, wait).sleeps();
            if on_drop {
                drop(cancel.on_drop());
            } else {
                cancel.cancel();
                assert!(cancel.is_cancelled());
            }
            assert!(expect_cancelled(waiting.join(), NAME) <= started.elapsed());
        }
    });
}

#[test]
fn one_cancel_ends_all_its_waits_and_no_other() {
    for room in Room::both() {
        let lease = room.hold(A, Mode::Exclusive);
        let cancel = Cancel::new();
        let stays = room.start(C, Mode::Exclusive, Wait::FOREVER.unless(&Cancel::new())).sleeps();
        let go: Vec<_> = (10..20)
            .map(|owner| {
                let wait = Wait::FOREVER.unless(&cancel);
                room.start(OwnerId::new(owner), Mode::Exclusive, wait).sleeps()
            })
            .collect();
        cancel.cancel();
        for waiting in go {
            expect_cancelled(waiting.join(), NAME);
        }
        assert!(!stays.is_finished());
        drop(lease);
        drop(stays.join().unwrap());
        room.is_as_new();
    }
}

#[test]
fn release_owner_cancels_that_owners_waits_only() {
    in_each_way(|room, way, mode| {
        let second = OwnerId::new(30);
        let waits = [B, C, second].map(|o| room.start(o, Mode::Exclusive, Wait::FOREVER).sleeps());
        assert_eq!(room.space.release_owner(C).holds, 0);
        let [b, c, d] = waits;
        expect_cancelled(c.join(), NAME);
        assert!(!b.is_finished() && !d.is_finished(), "{way}");
        assert_eq!(room.space.release_owner(B).holds, 0);
        expect_cancelled(b.join(), NAME);
        assert!(!d.is_finished(), "{way}");
        room.space.release_owner(second);
        expect_cancelled(d.join(), NAME);
        // A wait that begins later is not concerned.
        let wait = Wait::within(SHORT);
        assert_eq!(expect_busy(room.space.acquire(B, Request::exclusive(NAME), wait)).held(), mode);
    });
}

#[test]
fn several_that_were_cancelled_before_end_at_once_and_take_nothing() {
    let cancel = Cancel::new();
    cancel.cancel();
    for (_, wait) in long_waits().into_iter().chain([("no", Wait::NO)]) {
        for room in Room::both() {
            let requests = [Request::exclusive(NAME), auto("other")];
            let refused = room.space.acquire_all(B, requests, wait.clone().unless(&cancel));
            expect_cancelled(refused, NAME);
            assert_eq!(room.space.list(), []);
            if room.dir.is_some() {
                assert_eq!(names_in(room.dir()), [NAME], "it has made a lock file");
            }
            room.is_as_new();
        }
    }
}

#[test]
fn an_upgrade_that_was_cancelled_before_ends_at_once_and_keeps_the_shared_hold() {
    let cancel = Cancel::new();
    cancel.cancel();
    for (_, wait) in long_waits().into_iter().chain([("no", Wait::NO)]) {
        for room in Room::both() {
            let mut lease = room.hold(A, Mode::Shared);
            expect_cancelled(lease.upgrade(wait.clone().unless(&cancel)), NAME);
            assert_eq!(lease.mode(), Mode::Shared);
            room.is_held(Mode::Shared);
            lease.verify().unwrap();
            // Nobody is kept out for its sake.
            drop(room.hold(B, Mode::Shared));
        }
    }
}

/// A daemon has one for as long as it lives.
#[test]
fn a_cancel_does_not_grow_with_the_waits_that_are_over() {
    alone(|| {
        let (room, cancel) = (Room::in_memory(), Cancel::new());
        let waits = |many| {
            for _ in 0..many {
                let wait = Wait::within(LONG).unless(&cancel);
                drop(room.space.acquire(A, Request::exclusive(NAME), wait).unwrap());
            }
        };
        waits(1_000);
        let before = memory();
        waits(100_000);
        let grown = memory().saturating_sub(before);
        assert!(grown < 1 << 20, "{grown} bytes");
    });
}
