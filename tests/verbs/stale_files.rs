//! Lock files that come and go under those who hold them or ask for them.

use std::fs;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::support::locks::held_at;
use crate::support::rounds::rounds;
use crate::support::spaces::{A, B, BOTH, granted, is_empty, verbatim};
use lockspace::{
    AcquireError, ByteRange, LockFileError, LockSpace, Naming, Request, VerifyError, Wait,
};

/// Holds `a`, auto-created, while `meanwhile` puts another file there; the other file must stay.
fn release_after(meanwhile: impl Fn(&Path)) {
    let (dir, space) = verbatim();
    let file = dir.path().join("a");
    for mode in BOTH {
        let lease = granted(&space, A, Request::new(mode, "a").auto_create());
        meanwhile(&file);
        assert!(matches!(lease.verify(), Err(VerifyError::Replaced { .. })));
        lease.release().unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_release_does_not_remove_a_file_that_was_renamed_over_the_lock_file() {
    release_after(|file| {
        let new = file.with_extension("new");
        fs::write(&new, "theirs").unwrap();
        fs::rename(&new, file).unwrap();
    });
}

#[test]
fn a_release_does_not_remove_a_file_that_was_made_after_the_lock_file_was_unlinked() {
    release_after(|file| {
        fs::remove_file(file).unwrap();
        fs::write(file, "theirs").unwrap();
    });
}

#[test]
fn a_release_after_the_lock_file_was_unlinked_by_hand_is_no_error() {
    let (dir, space) = verbatim();
    for mode in BOTH {
        let lease = granted(&space, A, Request::new(mode, "a").auto_create());
        fs::remove_file(lease.path()).unwrap();
        lease.release().unwrap();
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn a_release_does_not_remove_a_file_of_which_somebody_else_holds_other_bytes() {
    let (dir, space) = verbatim();
    let other = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let far = ByteRange::new(100, std::num::NonZeroU64::MIN).unwrap();
    for mode in BOTH {
        let ours = granted(&space, A, Request::new(mode, "a").auto_create());
        let theirs = granted(&other, B, Request::new(mode, "a").auto_create().range(far));
        ours.release().unwrap();
        assert_eq!(held_at(theirs.path(), 100), Some(mode));
        theirs.verify().unwrap();
        theirs.release().unwrap();
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn a_file_that_is_deleted_and_made_anew_under_way_is_never_held_twice() {
    const ROUNDS: usize = 300_000;
    const ENOUGH: u64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let spaces = [(); 3].map(|()| LockSpace::open(Naming::verbatim(dir.path())).unwrap());
    let stale = || spaces.iter().map(LockSpace::stale_retries).sum::<u64>();
    let (holders, held, twice) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let hold = |space: &LockSpace, request: fn() -> Request<'static>| {
        for _ in 0..ROUNDS {
            match space.acquire(A, request(), Wait::NO) {
                Ok(lease) => {
                    if holders.fetch_add(1, Ordering::SeqCst) != 0 {
                        twice.store(true, Ordering::SeqCst);
                    }
                    held.fetch_add(1, Ordering::SeqCst);
                    thread::yield_now();
                    holders.fetch_sub(1, Ordering::SeqCst);
                    lease.release().unwrap();
                }
                Err(AcquireError::Busy(_) | AcquireError::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            let seen = stale() >= ENOUGH && held.load(Ordering::SeqCst) >= 1000;
            if seen || twice.load(Ordering::SeqCst) {
                break;
            }
        }
    };
    thread::scope(|scope| {
        let [creating, finding, deleting] = &spaces;
        let first = scope.spawn(|| hold(creating, || Request::exclusive("a").auto_create()));
        let second = scope.spawn(|| hold(finding, || Request::exclusive("a")));
        while !first.is_finished() || !second.is_finished() {
            deleting.create("a").unwrap();
            match deleting.delete("a") {
                Ok(()) | Err(LockFileError::Busy(_)) => {}
                Err(LockFileError::Io(e)) if e.source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert!(!twice.load(Ordering::SeqCst), "two held it exclusively");
    assert!(stale() > 0, "nobody met a file that had lost its name, so nothing was shown");
}

#[test]
fn the_last_two_shared_holders_leave_no_file() {
    let rounds = rounds(3000) as usize;
    let dir = tempfile::tempdir().unwrap();
    let (held, released) = (Barrier::new(2), Barrier::new(3));
    let (arrived, refused, left) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
                for round in 1..=rounds {
                    let lease = space.acquire(A, Request::shared("a").auto_create(), Wait::NO);
                    held.wait();
                    // A barrier wakes one after the other: this lines them up.
                    arrived.fetch_add(1, Ordering::SeqCst);
                    for spins in 0.. {
                        if arrived.load(Ordering::SeqCst) >= 2 * round {
                            break;
                        }
                        if spins > 1000 { thread::yield_now() } else { std::hint::spin_loop() }
                    }
                    // No panic here: the others would wait for ever.
                    if !lease.is_ok_and(|lease| lease.release().is_ok()) {
                        refused.fetch_add(1, Ordering::SeqCst);
                    }
                    released.wait();
                    released.wait();
                }
            });
        }
        for _ in 0..rounds {
            released.wait();
            if fs::remove_file(dir.path().join("a")).is_ok() {
                left.fetch_add(1, Ordering::SeqCst);
            }
            released.wait();
        }
    });
    assert_eq!(refused.into_inner(), 0, "shared holds that were refused, or not released");
    assert_eq!(left.into_inner(), 0, "files that were left");
}

#[test]
fn shared_holders_who_come_and_go_never_refuse_each_other() {
    let rounds = rounds(20_000);
    let dir = tempfile::tempdir().unwrap();
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
                for _ in 0..rounds {
                    match space.acquire(A, Request::shared("a").auto_create(), Wait::NO) {
                        Ok(lease) => lease.release().unwrap(),
                        Err(AcquireError::Busy(_)) => {
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    let refused = refused.into_inner();
    assert_eq!(refused, 0, "shared tries that were refused, though nobody asked for exclusive");
}
