//! A wait ends at its deadline, and never before.

use std::time::{Duration, Instant};

use crate::support::spaces::{A, B, NAME, Room, expect_busy, expect_cancelled};
use crate::ways::{SHORT, in_each_way};
use lockspace::{AcquireError, Cancel, Mode, Request, Wait};

#[test]
fn a_deadline_is_never_early() {
    in_each_way(|room, way, mode| {
        for until in [false, true] {
            for millis in [1, 7, 20, 60, 130] {
                let time = Duration::from_millis(millis);
                let started = Instant::now();
                let wait = if until { Wait::until(started + time) } else { Wait::within(time) };
                let refused = room.space.acquire(B, Request::exclusive(NAME), wait);
                let elapsed = started.elapsed();
                assert!(elapsed >= time, "{way}: {elapsed:?} of {time:?}");
                // On a busy machine, a helper may not have come to ask the file system by then.
                if mode.is_none() && matches!(refused, Err(AcquireError::Unresponsive { .. })) {
                    continue;
                }
                let refused = expect_busy(refused);
                // What it says may leave out the moment before the call.
                let said = refused.waited();
                assert!(said <= elapsed && said + Duration::from_millis(1) >= time, "{said:?}");
                assert_eq!(refused.held(), mode, "{way}");
                assert_eq!(refused.owners(), if mode.is_some() { &[A][..] } else { &[] });
                assert_eq!((refused.name(), refused.asked()), (NAME.as_ref(), Mode::Exclusive));
                assert!(refused.to_string().contains(", waited "), "{refused}");
            }
        }
    });
}

#[test]
fn a_wait_within_a_time_says_that_it_waited_so_long() {
    in_each_way(|room, way, _| {
        let wait = Wait::within(SHORT);
        let made = Instant::now();
        let refused = expect_busy(room.space.acquire(B, Request::exclusive(NAME), wait));
        assert!(refused.waited() + Duration::from_millis(1) >= SHORT, "{way}");
        assert!(refused.waited() <= made.elapsed() + SHORT, "{way}");
    });
}

#[test]
fn a_deadline_in_the_past_tries_once() {
    for past in [Duration::ZERO, Duration::from_millis(50)] {
        let waits = || {
            let now = Instant::now();
            [Wait::until(now.checked_sub(past).unwrap_or(now)), Wait::within(Duration::ZERO)]
        };
        for room in Room::both() {
            for wait in waits() {
                let lease = room.space.acquire(B, Request::exclusive(NAME), wait);
                let lease = lease.unwrap_or_else(|error| panic!("it is free: {error}"));
                lease.verify().unwrap();
                drop(lease);
                room.is_as_new();
            }
        }
        in_each_way(|room, _, mode| {
            for wait in waits() {
                let refused = expect_busy(room.space.acquire(B, Request::exclusive(NAME), wait));
                assert_eq!(refused.held(), mode);
            }
        });
    }
}

#[test]
fn a_time_that_no_clock_reaches_is_for_ever() {
    in_each_way(|room, _, _| {
        let cancel = Cancel::new();
        let wait = Wait::within(Duration::MAX).unless(&cancel);
        let waiting = room.start(B, Mode::Exclusive, wait).sleeps();
        cancel.cancel();
        expect_cancelled(waiting.join(), NAME);
    });
}

/// Nor at the next look at the file, which comes once in 100 ms: the best of several, as a busy
/// machine can delay any of them.
#[test]
fn a_deadline_is_not_late() {
    const TIME: Duration = Duration::from_millis(30);
    in_each_way(|room, way, _| {
        let took = (0..5).map(|_| {
            let started = Instant::now();
            let refused = room.space.acquire(B, Request::exclusive(NAME), Wait::within(TIME));
            assert!(refused.is_err());
            started.elapsed()
        });
        let took = took.min().unwrap();
        assert!(took < 2 * TIME, "{way}: {took:?} of {TIME:?}");
    });
}
