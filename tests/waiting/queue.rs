//! Within a space: who is served before whom, and who joins whom.

use std::sync::mpsc;
use std::time::Duration;

use crate::support::spaces::{
    A, B, BOTH, C, NAME, Room, expect_busy, in_memory, space_in, wait_for,
};
use crate::support::waits::{LONG, Waiting, start};
use lockspace::{AcquireError, Mode, OwnerId, Request, Wait};

#[test]
fn threads_are_served_in_the_order_in_which_they_asked() {
    for room in Room::both() {
        let lease = room.hold(A, Mode::Exclusive);
        let (tell, order) = mpsc::channel();
        let waiting: Vec<_> = (10..30)
            .map(|owner| {
                let (space, tell) = (room.space.clone(), tell.clone());
                start(move || {
                    let request = Request::exclusive(NAME);
                    let lease = space.acquire(OwnerId::new(owner), request, Wait::FOREVER).unwrap();
                    tell.send(owner).unwrap();
                    drop(lease);
                })
                .sleeps()
            })
            .collect();
        drop(lease);
        waiting.into_iter().for_each(Waiting::join);
        let order: Vec<_> = order.try_iter().collect();
        assert_eq!(order, (10..30).collect::<Vec<_>>());
        room.is_as_new();
    }
}

/// The first is granted; those who can share with it, as far as nobody exclusive is between.
#[test]
fn shared_waiters_are_let_in_together_up_to_the_next_exclusive_one() {
    for room in Room::both() {
        let lease = room.hold(A, Mode::Exclusive);
        let modes = [Mode::Shared, Mode::Shared, Mode::Exclusive, Mode::Shared];
        let mut number = 10;
        let [s1, s2, exclusive, s3] = modes.map(|mode| {
            number += 1;
            room.start(OwnerId::new(number), mode, Wait::FOREVER).sleeps()
        });
        drop(lease);
        let shared = (s1.join().unwrap(), s2.join().unwrap());
        assert_eq!(room.owners(), [11, 12].map(OwnerId::new));
        assert!(!exclusive.is_finished() && !s3.is_finished());
        drop(shared);
        let exclusive = exclusive.join().unwrap();
        assert!(!s3.is_finished());
        drop(exclusive);
        drop(s3.join().unwrap());
        room.is_as_new();
    }
}

#[test]
fn a_shared_try_is_refused_while_an_exclusive_request_waits() {
    for room in Room::both() {
        let lease = room.hold(A, Mode::Shared);
        let waiting = room.start(B, Mode::Exclusive, Wait::FOREVER).sleeps();
        let refused = expect_busy(room.space.acquire(C, Request::shared(NAME), Wait::NO));
        let said = "held shared by owner 1, and an exclusive request waits; asked for shared";
        assert!(refused.to_string().contains(said), "{refused}");
        assert_eq!((refused.held(), refused.owners()), (Some(Mode::Shared), &[A][..]));
        assert_eq!(refused.waited(), Duration::ZERO);

        // Who holds it already would wait for itself.
        for wait in [Wait::NO, Wait::within(LONG), Wait::FOREVER] {
            drop(room.space.acquire(A, Request::shared(NAME), wait).unwrap());
        }
        drop(lease);
        let exclusive = waiting.join().unwrap();
        let refused = expect_busy(room.space.acquire(C, Request::shared(NAME), Wait::NO));
        assert!(!refused.to_string().contains("waits"), "{refused}");
        drop(exclusive);
        room.is_as_new();
    }
}

/// Each of the stream holds until the next one has come: without a queue, it is never free.
#[test]
fn a_stream_of_shared_holders_does_not_starve_an_exclusive_waiter() {
    for room in Room::both() {
        let request = || Request::shared(NAME);
        let mut lease = room.hold(OwnerId::new(100), Mode::Shared);
        let waiting = room.start(B, Mode::Exclusive, Wait::FOREVER).sleeps();
        let mut handoffs = 0;
        while !waiting.is_finished() && handoffs < 10_000 {
            let next = OwnerId::new(101 + handoffs % 2);
            match room.space.acquire(next, request(), Wait::NO) {
                Ok(next) => lease = next,
                Err(AcquireError::Busy(_)) => break,
                Err(error) => panic!("{error}"),
            }
            handoffs += 1;
        }
        assert!(handoffs < 10_000, "the stream goes on, and the exclusive request waits");
        drop(lease);
        drop(waiting.join().unwrap());
        room.is_as_new();
    }
}

/// One of its shared waits comes to hold while another is behind an exclusive one: that one would
/// wait for the first, as it would if it asked now.
#[test]
fn an_owner_that_comes_to_share_is_followed_by_its_other_waits() {
    for room in Room::both() {
        let lease = room.hold(B, Mode::Exclusive);
        let first = room.start(A, Mode::Shared, Wait::FOREVER).sleeps();
        let exclusive = room.start(C, Mode::Exclusive, Wait::FOREVER).sleeps();
        let second = room.start(A, Mode::Shared, Wait::within(Duration::from_secs(10))).sleeps();
        drop(lease);
        let first = first.join().unwrap();
        let second = second.join().expect("its owner shares it already");
        drop((first, second));
        drop(exclusive.join().unwrap());
        room.is_as_new();
    }
}

/// Promise 3, nothing left: a downgrade in memory lets in at once whom it excludes no more.
#[test]
fn a_downgrade_in_memory_lets_a_shared_wait_in() {
    let space = in_memory();
    let mut first = space.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
    let waiting = wait_for(&space, B, Mode::Shared, NAME, Wait::FOREVER).sleeps();
    first.downgrade().unwrap();
    assert_eq!(waiting.join().unwrap().mode(), Mode::Shared);
}

/// It is the other space that holds it: who waits in front has nothing yet.
#[test]
fn who_is_refused_behind_a_waiter_is_not_told_that_that_one_holds() {
    let room = Room::on_disk();
    let other = space_in(room.dir());
    let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
    let waiting = room.start(B, Mode::Exclusive, Wait::FOREVER).watches();
    for mode in BOTH {
        for wait in [Wait::NO, Wait::within(Duration::from_millis(20))] {
            let refused = room.space.acquire(C, Request::new(mode, NAME), wait);
            let refused = expect_busy(refused);
            assert_eq!(refused.held(), None, "{refused}");
            assert!(refused.owners().is_empty(), "{refused}");
        }
    }
    let holders = room.space.holders(NAME).unwrap();
    assert_eq!(holders.len(), 1, "{holders:?}");
    drop(lease);
    drop(waiting.join().unwrap());
    room.is_as_new();
}
