//! The watches on files that somebody else holds: one for each wait, kept for the next, and removed.

use std::fs;

use crate::support::alone::alone;
use crate::support::hung_fs::hung_fs;
use crate::support::process::{descriptors_of, helpers, numbers_of_watches, watches};
use crate::support::spaces::{A, B, NAME, auto, expect_cancelled, folder_in_memory, space_in};
use crate::support::waits::{LONG, eventually, start};
use crate::ways::{leaked_space, only_the_pool_is_left, shortly};
use lockspace::{AcquireError, Cancel, Lease, LockSpace, Naming, Request, Wait};
use tempfile::TempDir;

/// A thread waits for what another space holds, and is granted it when that lets go.
fn granted_after_a_watch(space: &LockSpace, other: &LockSpace, name: &'static str) -> Lease {
    let lease = other.acquire(A, Request::exclusive(name), Wait::NO).unwrap();
    let space = space.clone();
    let wait = Wait::within(LONG);
    let waiting = start(move || space.acquire(B, Request::exclusive(name), wait)).watches();
    drop(lease);
    waiting.join().unwrap()
}

#[test]
fn a_helper_removes_the_watch_that_a_wait_has_left() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        space.create(NAME).unwrap();
        let lease = granted_after_a_watch(&space, &other, NAME);
        eventually("the helpers end", || helpers() == 0);
        assert_eq!(watches(), 0);
        lease.verify().unwrap();
        // Also where the lease is gone before that.
        drop(lease);
        drop(granted_after_a_watch(&space, &other, NAME));
        only_the_pool_is_left(dir.path());
    });
}

#[test]
fn the_watch_that_a_wait_has_left_is_removed_although_the_helper_always_has_work() {
    alone(|| {
        let dir = folder_in_memory();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        space.create(NAME).unwrap();
        let lease = granted_after_a_watch(&space, &other, NAME);
        eventually("the watch is removed", || {
            drop(space.acquire(A, auto("other"), Wait::within(LONG)).unwrap());
            watches() == 0
        });
        drop(lease);
    });
}

#[test]
fn who_waits_for_the_same_file_again_has_the_same_watch() {
    alone(|| {
        let dir = folder_in_memory();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        space.create(NAME).unwrap();
        let mut numbers = Vec::new();
        for _ in 0..20 {
            let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
            let waiting = start({
                let space = space.clone();
                move || space.acquire(B, Request::exclusive(NAME), Wait::within(LONG)).map(drop)
            });
            let waiting = waiting.watches();
            numbers.extend(numbers_of_watches());
            drop(lease);
            waiting.join().unwrap();
        }
        // A helper that wakes removes it, which can be once and again, but not each time.
        assert_eq!(numbers.len(), 20);
        assert!(numbers.windows(2).any(|pair| pair[0] == pair[1]), "{numbers:?}");
    });
}

#[test]
fn who_waits_for_a_file_that_has_replaced_another_is_told_of_it() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        // An inode number is given to the next file at once, and the watch of the last one is gone.
        for _ in 0..20 {
            let lease = other.acquire(A, auto(NAME), Wait::NO).unwrap();
            let waiting = start({
                let space = space.clone();
                move || space.acquire(B, auto(NAME), Wait::within(LONG)).map(drop)
            });
            let waiting = waiting.watches();
            assert_eq!(watches(), 1);
            drop(lease);
            waiting.join().unwrap();
        }
    });
}

#[test]
fn the_next_wait_removes_the_watch_that_another_has_left() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        for name in ["first", "second"] {
            space.create(name).unwrap();
        }
        let first = granted_after_a_watch(&space, &other, "first");
        let held = other.acquire(A, Request::exclusive("second"), Wait::NO).unwrap();
        let waiting = start({
            let space = space.clone();
            move || space.acquire(B, Request::exclusive("second"), Wait::within(LONG))
        });
        let waiting = waiting.watches();
        assert_eq!((watches(), descriptors_of("inotify").len()), (1, 1));
        drop(held);
        drop((first, waiting.join().unwrap()));
    });
}

/// How often a helper has gone to sleep; `None` if there is none.
fn naps_of_the_helper() -> Option<u64> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let status =
        tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    let mut helpers = status.filter(|status| status.starts_with("Name:\tlockspace\n"));
    let status = helpers.next()?;
    let naps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Some(naps.unwrap().trim().parse().unwrap())
}

#[test]
fn a_helper_stays_while_somebody_watches_a_file_and_no_longer() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let held = other.acquire(A, auto(NAME), Wait::NO).unwrap();
        let waiting = start({
            let space = space.clone();
            move || space.acquire(B, auto(NAME), Wait::within(2 * LONG))
        });
        let waiting = waiting.watches();
        let mut before = None;
        eventually("a helper has a name", || {
            before = naps_of_the_helper();
            before.is_some()
        });
        let before = before.unwrap();
        eventually("its idle time has ended twice", || {
            naps_of_the_helper().expect("it stays") >= before + 2
        });
        drop(held);
        let lease = waiting.join().unwrap();
        eventually("the helper ends", || helpers() == 0);
        drop(lease);
        only_the_pool_is_left(dir.path());
    });
}

#[test]
fn who_is_woken_by_another_thread_while_it_watches_watches_again() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        space.create(NAME).unwrap();
        let shared = |space: &LockSpace, owner| {
            space.acquire(owner, Request::shared(NAME), Wait::NO).unwrap()
        };
        let (others, mut lease) = (shared(&other, A), shared(&space, B));
        let waiting = start(move || lease.upgrade(Wait::within(LONG)).map(|()| lease));
        let mut waiting = waiting.watches();
        for _ in 0..20 {
            // A second hold of the same owner comes and goes, which may be what it waits for.
            drop(shared(&space, B));
            eventually("it watches again", || watches() == 1);
            waiting = waiting.watches();
        }
        drop(others);
        drop(waiting.join().unwrap());
        assert_eq!((watches(), descriptors_of("eventfd").len()), (0, 0));
    });
}

#[test]
fn a_cancel_wakes_who_watches_by_ending_the_watch() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let _held = other.acquire(A, auto(NAME), Wait::NO).unwrap();
        let mut woken = 0;
        for _ in 0..50 {
            let cancel = Cancel::new();
            let (space, wait) = (space.clone(), Wait::FOREVER.unless(&cancel));
            let waiting = start(move || space.acquire(B, auto(NAME), wait)).watches();
            assert_eq!((watches(), descriptors_of("eventfd").len()), (1, 0));
            cancel.cancel();
            // Unless it was just looking by itself.
            woken += usize::from(watches() == 0);
            expect_cancelled(waiting.join(), NAME);
            assert_eq!((watches(), descriptors_of("inotify").len()), (0, 1));
        }
        assert!(woken > 0, "a cancel does not end the sleep");
    });
}

/// Nobody but a helper removes it, and the only one that was there has got work.
#[test]
fn a_watch_that_a_wait_has_left_is_removed_although_the_helper_hangs() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let [space, other] =
            [(); 2].map(|()| LockSpace::open(Naming::verbatim(dir.path())).unwrap());
        space.create("disk").unwrap();
        let held = other.acquire(A, Request::exclusive("disk"), Wait::NO).unwrap();
        let waiting = start({
            let space = space.clone();
            move || space.acquire(B, Request::exclusive("disk"), Wait::within(LONG))
        });
        let waiting = waiting.watches();
        drop(held);
        let lease = waiting.join().unwrap();
        let path = hung.path().join("a");
        let refused = leaked_space().acquire(A, Request::exclusive(&path), shortly());
        assert!(matches!(refused, Err(AcquireError::Unresponsive { .. })), "{refused:?}");
        eventually("the watch is removed", || watches() == 0);
        drop(lease);
    });
}
