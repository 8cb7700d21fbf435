//! What is left when the last wait is over.

use std::fs;

use crate::support::alone::alone;
use crate::support::forked::{Gate, exit_now, fork};
use crate::support::process::signals;
use crate::support::spaces::{A, B, NAME, Room, auto, space_in};
use crate::support::waits::{child_watches, start};
use crate::ways::only_the_pool_is_left;
use lockspace::{AcquireError, Cancel, Mode, OwnerId, Request, Wait};
use tempfile::TempDir;

#[test]
fn no_watch_descriptor_or_thread_is_left_after_the_last_wait() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        // A watch goes with its file, so this one stays.
        space.create(NAME).unwrap();
        for round in 0..30 {
            let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
            let cancel = Cancel::new();
            let waiting = [2, 3, 4].map(|owner| {
                let (space, wait) = (space.clone(), Wait::FOREVER.unless(&cancel));
                let owner = OwnerId::new(owner);
                start(move || space.acquire(owner, Request::exclusive(NAME), wait).map(drop))
                    .sleeps()
            });
            if round % 2 == 0 {
                cancel.cancel();
            }
            drop(lease);
            for waiting in waiting {
                let _ = waiting.join();
            }
        }
        only_the_pool_is_left(dir.path());
    });
}

#[test]
fn waiting_changes_no_signal_handler_and_no_mask() {
    alone(|| {
        let before = signals();
        assert_eq!(before.len(), 4);
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let lease = other.acquire(A, auto(NAME), Wait::NO).unwrap();
        let waiting = {
            let space = space.clone();
            start(move || {
                let (before, result) = (signals(), space.acquire(B, auto(NAME), Wait::FOREVER));
                assert_eq!(signals(), before);
                result.map(drop)
            })
        };
        let waiting = waiting.sleeps();
        assert_eq!(signals(), before);
        drop(lease);
        waiting.join().unwrap();
        assert_eq!(signals(), before);
    });
}

#[test]
fn a_child_of_a_process_that_waits_can_try_itself() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let lease = other.acquire(A, auto(NAME), Wait::NO).unwrap();
        let waiting = start({
            let space = space.clone();
            move || space.acquire(B, auto(NAME), Wait::FOREVER).map(drop)
        });
        // Its helper is idle soon: the child must not count on it.
        let waiting = waiting.sleeps();
        let ready = Gate::new();
        let child = fork(|| {
            let refused = space.acquire(B, auto(NAME), Wait::FOREVER);
            assert!(matches!(refused, Err(AcquireError::Forked { .. })), "{refused:?}");
            // It does not wait: that is not for the child of a process of many threads.
            let mine = space_in(dir.path());
            assert!(matches!(mine.acquire(A, auto(NAME), Wait::NO), Err(AcquireError::Busy(_))));
            ready.open();
        });
        ready.wait();
        drop(lease);
        waiting.join().unwrap();
        child.join();
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
    });
}

/// Nobody who waits is in the way of who asks elsewhere.
#[test]
fn a_child_that_is_killed_while_it_waits_leaves_nothing() {
    alone(|| {
        let room = Room::on_disk();
        let lease = room.hold(A, Mode::Exclusive);
        let child = fork(|| {
            let space = space_in(room.dir());
            let _ = space.acquire(B, Request::exclusive(NAME), Wait::FOREVER);
            exit_now(1);
        });
        child_watches(child.pid());
        child.kill();
        drop(lease);
        room.is_as_new();
    });
}
