//! Waits where something that they use cannot be had: inotify, system calls.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::alone::alone;
use crate::support::forked::{in_child, refuse_system_calls};
use crate::support::interop::skip_or_fail;
use crate::support::process::{descriptors_of, forbid_inotify, limit_inotify, watches};
use crate::support::spaces::{A, B, NAME, auto, expect_cancelled, hold, space_in};
use crate::support::waits::{LONG, start};
use lockspace::{AcquireError, Cancel, Request, Wait};
use rustix::fs::inotify;
use tempfile::TempDir;

/// Runs `body` in a child that can have no inotify instance. The limit is of a namespace of its own:
/// other programs of the user need theirs.
fn without_inotify(body: impl FnOnce()) {
    alone(|| {
        in_child(|| {
            if let Err(error) = forbid_inotify() {
                return skip_or_fail("a user namespace", &error.to_string());
            }
            assert!(inotify::init(inotify::CreateFlags::CLOEXEC).is_err());
            body();
        });
    });
}

#[test]
fn without_inotify_the_results_are_the_same() {
    without_inotify(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let acquire = |wait| {
            let space = space.clone();
            start(move || space.acquire(B, auto(NAME), wait).map(drop))
        };
        let hold = || other.acquire(A, auto(NAME), Wait::NO).unwrap();
        // Granted, late, cancelled.
        let lease = hold();
        let waiting = acquire(Wait::within(LONG)).sleeps();
        drop(lease);
        waiting.join().unwrap();
        let lease = hold();
        let (started, short) = (Instant::now(), Duration::from_millis(30));
        let refused = space.acquire(B, auto(NAME), Wait::within(short));
        assert!(matches!(refused, Err(AcquireError::Busy(_))) && started.elapsed() >= short);
        let cancel = Cancel::new();
        let waiting = acquire(Wait::FOREVER.unless(&cancel)).sleeps();
        cancel.cancel();
        expect_cancelled(waiting.join(), NAME);
        drop(lease);
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
        assert_eq!(descriptors_of("inotify").len(), 0, "there was one to be had");
    });
}

#[test]
fn who_waits_once_inotify_can_be_had_again_watches() {
    without_inotify(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let acquire = || {
            let space = space.clone();
            start(move || space.acquire(B, auto(NAME), Wait::within(LONG)).map(drop))
        };
        let lease = hold(&other, NAME);
        let waiting = acquire().sleeps_for_others();
        drop(lease);
        waiting.join().unwrap();
        limit_inotify(8).unwrap();
        let lease = hold(&other, NAME);
        let waiting = acquire().watches();
        assert_eq!((watches(), descriptors_of("inotify").len()), (1, 1));
        drop(lease);
        waiting.join().unwrap();
    });
}

/// A wait under a filter of system calls: granted when the holder goes, and asleep until then.
fn granted_without(calls: &[libc::c_long]) {
    in_child(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        space.create(NAME).unwrap();
        let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
        if !refuse_system_calls(calls) {
            return skip_or_fail("seccomp", "the kernel refuses a filter");
        }
        let acquire = move || space.acquire(B, Request::exclusive(NAME), Wait::within(LONG));
        let waiting = start(acquire).sleeps_for_others();
        drop(lease);
        drop(waiting.join().unwrap());
    });
}

#[test]
fn a_wait_does_without_the_calls_that_a_filter_refuses() {
    alone(|| {
        granted_without(&[libc::SYS_inotify_init1]);
        granted_without(&[libc::SYS_inotify_add_watch]);
        granted_without(&[libc::SYS_ppoll]);
    });
}
