//! What waiting costs while it lasts: descriptors, watches and processor time.

use std::fs::File;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::alone::alone;
use crate::support::forked::in_child;
use crate::support::process::{cpu_time, descriptors_of, watches};
use crate::support::spaces::{A, B, NAME, Room, auto, expect_busy, is_empty, space_in};
use crate::support::waits::{LONG, Waiting, start};
use crate::ways::{POOL, SHORT, only_the_pool_is_left};
use lockspace::{AcquireError, OwnerId, Request, Wait};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

/// Many threads wait at once, until the other space's holders go.
fn many_wait(names: usize, threads: usize) {
    let dir = TempDir::new().unwrap();
    let (space, other) = (space_in(dir.path()), space_in(dir.path()));
    let names: Vec<_> = (0..names).map(|name| name.to_string()).collect();
    let hold = |name: &String| other.acquire(A, auto(name), Wait::NO).unwrap();
    let holds: Vec<_> = names.iter().map(hold).collect();
    let started: Vec<_> = (0..threads)
        .map(|number| {
            let (space, name) = (space.clone(), names[number % names.len()].clone());
            start(move || {
                let wait = Wait::within(2 * LONG);
                space.acquire(OwnerId::new(10 + number as u64), auto(&name), wait).map(drop)
            })
        })
        .collect();
    let waiting: Vec<_> = started.into_iter().map(Waiting::sleeps).collect();
    // Nobody ends before the holders go, so all of them wait now.
    assert!(!waiting.iter().any(Waiting::is_finished));
    for name in &names {
        expect_busy(space.acquire(A, auto(name), Wait::NO));
    }
    for at_most_one_each in [descriptors_of("inotify").len(), watches()] {
        assert!((1..=POOL).contains(&at_most_one_each), "{at_most_one_each}");
    }
    drop(holds);
    for waiting in waiting {
        waiting.join().unwrap();
    }
    assert!(is_empty(dir.path()), "files are left");
    only_the_pool_is_left(dir.path());
}

#[test]
fn a_thousand_threads_can_wait_for_a_thousand_resources() {
    alone(|| many_wait(1_000, 1_000));
}

#[test]
fn a_thousand_threads_can_wait_for_one_resource() {
    alone(|| many_wait(1, 1_000));
}

#[test]
fn a_process_that_waits_uses_hardly_any_time() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let other = space_in(dir.path());
        let _lease = other.acquire(A, auto(NAME), Wait::NO).unwrap();
        in_child(|| {
            let space = space_in(dir.path());
            let (before, started) = (cpu_time(), Instant::now());
            let refused = space.acquire(B, auto(NAME), Wait::within(Duration::from_millis(1200)));
            assert!(matches!(refused, Err(AcquireError::Busy(_))));
            let (used, wall) = (cpu_time() - before, started.elapsed());
            assert!(used < wall / 20, "{used:?} of {wall:?}");
        });
    });
}

#[test]
fn a_process_that_waits_to_become_exclusive_uses_hardly_any_time() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let other = space_in(dir.path());
        let _lease = other.acquire(A, Request::shared(NAME).auto_create(), Wait::NO).unwrap();
        in_child(|| {
            let space = space_in(dir.path());
            let mut lease = space.acquire(B, Request::shared(NAME), Wait::NO).unwrap();
            let (before, started) = (cpu_time(), Instant::now());
            let refused = lease.upgrade(Wait::within(Duration::from_millis(1200)));
            assert!(matches!(refused, Err(AcquireError::Busy(_))));
            let (used, wall) = (cpu_time() - before, started.elapsed());
            assert!(used < wall / 20, "{used:?} of {wall:?}");
        });
    });
}

#[test]
fn a_storm_of_opens_and_closes_keeps_no_waiter_busy() {
    let room = Room::on_disk();
    let path = room.file();
    let lease = room.space.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
    let other = space_in(room.dir.as_ref().unwrap().path());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let storm = scope.spawn(|| {
            while !over.load(SeqCst) {
                drop(File::open(&path).unwrap());
            }
        });
        let worked = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
        let (began, before) = (Instant::now(), worked());
        let refused = other.acquire(B, Request::exclusive(NAME), Wait::within(5 * SHORT));
        // Of its time, and not of the clock's: whatever else the machine does.
        let (took, worked) = (began.elapsed(), worked() - before);
        over.store(true, SeqCst);
        storm.join().unwrap();
        expect_busy(refused);
        assert!(worked < took / 4, "{worked:?} of {took:?}");
    });
    drop(lease);
}
