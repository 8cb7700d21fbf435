//! A forked child shares every open file, and so every lock, with its parent: it must not give one
//! back that its parent holds.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::forked::{Gate, clone, copy_in_child, exit_now, fork};
use crate::support::locks::is_free_for_others;
use crate::support::spaces::{A, B, folder_in_memory, hold, space_in};
use lockspace::{
    AcquireError, Lease, LockFileError, LockSpace, Mode, Naming, OwnerId, ReleaseError, Request,
    VerifyError, Wait,
};

/// Fails unless the lock file is there and its lock keeps out another process, and another space
/// of this one.
#[track_caller]
fn assert_held(path: &Path) {
    assert!(path.exists(), "the lock file is gone");
    assert!(!is_free_for_others(path), "another process gets the lock");
    let other = space_in(path.parent().unwrap());
    match other.acquire(B, Request::shared(path.file_name().unwrap()), Wait::NO) {
        Err(AcquireError::Busy(busy)) => assert_eq!(busy.held(), None),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_end_of_a_forked_child_takes_nothing_from_its_parent() {
    type Ending = fn(&LockSpace, &Lease);
    let endings: [(&str, Ending); 7] = [
        ("it drops the lease", |_, lease| drop(copy_in_child(lease))),
        ("it drops the space", |space, _| drop(copy_in_child(space))),
        ("it drops the lease, then the space", |space, lease| {
            drop(copy_in_child(lease));
            drop(copy_in_child(space));
        }),
        ("it drops the space, then the lease", |space, lease| {
            drop(copy_in_child(space));
            drop(copy_in_child(lease));
        }),
        ("it exits without destructors", |_, _| exit_now(0)),
        ("it unwinds", |space, lease| {
            let both = (copy_in_child(lease), copy_in_child(space));
            let unwound = catch_unwind(AssertUnwindSafe(|| {
                let _both = both;
                resume_unwind(Box::new("as a panic would"))
            }));
            assert!(unwound.is_err());
        }),
        ("it releases, or keeps, all that it can", |space, lease| {
            assert!(copy_in_child(lease).release().is_err());
            copy_in_child(lease).keep();
            assert!(space.release(A, "kept").is_err());
            assert_eq!(space.release_owner(A).holds, 0);
        }),
    ];
    for (ending, end) in endings {
        println!("{ending}"); // shown if this fails
        let dir = folder_in_memory();
        let space = space_in(dir.path());
        hold(&space, "kept").keep();
        let lease = hold(&space, "leased");
        fork(|| end(&space, &lease)).join();

        for name in ["kept", "leased"] {
            assert_held(&dir.path().join(name));
        }
        lease.verify().unwrap();
        assert_eq!(space.list().len(), 2);
        lease.release().unwrap();
        space.release(A, "kept").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_killed_child_takes_nothing_from_its_parent() {
    let dir = folder_in_memory();
    let space = space_in(dir.path());
    let lease = hold(&space, "a");
    let (ready, never) = (Gate::new(), Gate::new());
    let child = fork(|| {
        ready.open();
        never.wait();
    });
    ready.wait();
    child.kill();
    assert_held(lease.path());
    lease.verify().unwrap();
}

/// Or a lock would last as long as some command that its dead holder once started.
#[test]
fn a_command_inherits_no_lock() {
    let dir = folder_in_memory();
    let space = space_in(dir.path());
    let lease = hold(&space, "a");
    let output = Command::new("ls").args(["-l", "/proc/self/fd"]).output().unwrap();
    let (listed, path) = (String::from_utf8(output.stdout).unwrap(), dir.path().to_str().unwrap());
    assert!(listed.contains("/proc/"), "{listed}");
    assert!(!listed.contains(path), "{listed}");
    assert!(Command::new("/nonexistent").status().is_err());
    assert_held(lease.path());
    lease.verify().unwrap();
}

#[test]
fn every_verb_is_refused_in_a_forked_child() {
    let dir = folder_in_memory();
    let space = space_in(dir.path());
    hold(&space, "kept").keep();
    let lease = hold(&space, "leased");
    let parent = std::process::id();
    fork(|| {
        let request = || Request::exclusive("new").auto_create();
        let error = space.acquire(A, request(), Wait::NO).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&parent.to_string()), "{text}");
        assert!(matches!(error, AcquireError::Forked { creator } if creator == parent));
        let error = space.create("new").unwrap_err();
        assert!(matches!(error, LockFileError::Forked { creator } if creator == parent));
        let error = space.delete("leased").unwrap_err();
        assert!(matches!(error, LockFileError::Forked { creator } if creator == parent));
        let error = space.release(A, "kept").unwrap_err();
        assert!(matches!(error, ReleaseError::Forked { creator } if creator == parent));
        let error = space.retake(A, "kept").unwrap_err();
        assert!(matches!(error, ReleaseError::Forked { creator } if creator == parent));
        let released = space.release_owner(A);
        assert_eq!(released.holds, 0);
        assert!(matches!(
            released.leftovers[..],
            [ReleaseError::Forked { creator }] if creator == parent
        ));
        let error = space.holders("leased").unwrap_err();
        assert!(matches!(error, AcquireError::Forked { creator } if creator == parent));
        let error = lease.verify().unwrap_err();
        assert!(matches!(error, VerifyError::Forked { creator } if creator == parent));
        let error = copy_in_child(&lease).release().unwrap_err();
        assert!(matches!(error, ReleaseError::Forked { creator } if creator == parent));
        assert!(space.list().is_empty());
    })
    .join();
    assert!(!dir.path().join("new").exists());
    assert_eq!(space.list().len(), 2);
    assert_held(lease.path());
}

#[test]
fn a_space_in_memory_is_refused_in_a_forked_child_too() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    let _lease = space.acquire(A, Request::exclusive("a"), Wait::NO).unwrap();
    fork(|| {
        let refused = space.acquire(A, Request::exclusive("b"), Wait::NO);
        assert!(matches!(refused, Err(AcquireError::Forked { .. })));
        assert!(space.list().is_empty());
    })
    .join();
}

/// No `pthread_atfork` handler hears of such a child. It allocates nothing: malloc did not either.
#[test]
fn a_child_made_by_the_bare_system_call_is_refused_too() {
    let dir = folder_in_memory();
    let space = space_in(dir.path());
    let lease = hold(&space, "a");
    let parent = std::process::id();
    clone(|| {
        let refused = space.acquire(A, Request::exclusive("b").auto_create(), Wait::NO);
        assert!(matches!(refused, Err(AcquireError::Forked { creator }) if creator == parent));
        let refused = space.create("b");
        assert!(matches!(refused, Err(LockFileError::Forked { creator }) if creator == parent));
        let refused = space.release(A, "a");
        assert!(matches!(refused, Err(ReleaseError::Forked { creator }) if creator == parent));
        let refused = lease.verify();
        assert!(matches!(refused, Err(VerifyError::Forked { creator }) if creator == parent));
        assert!(space.list().is_empty());
        drop(copy_in_child(&lease));
    })
    .join();
    assert!(!dir.path().join("b").exists());
    lease.verify().unwrap();
    assert_held(lease.path());
}

#[test]
fn a_child_opens_a_space_of_its_own_and_is_refused_what_its_parent_holds() {
    let dir = folder_in_memory();
    let space = space_in(dir.path());
    let lease = hold(&space, "a");
    fork(|| {
        let own = space_in(dir.path());
        match own.acquire(B, Request::shared("a"), Wait::NO) {
            Err(AcquireError::Busy(busy)) => {
                assert_eq!((busy.held(), busy.asked()), (None, Mode::Shared));
                assert!(busy.owners().is_empty());
                assert!(busy.to_string().contains("outside this lock space"), "{busy}");
            }
            other => panic!("not refused: {other:?}"),
        }
        let mine = own.acquire(B, Request::exclusive("b").auto_create(), Wait::NO).unwrap();
        mine.verify().unwrap();
        assert_eq!(own.list().len(), 1);
        // A grandchild is as far from this space as this child is from its parent's.
        fork(|| {
            assert!(own.list().is_empty());
            drop(copy_in_child(&mine));
        })
        .join();
        assert_held(mine.path());
        mine.release().unwrap();
    })
    .join();
    assert_held(lease.path());
    assert!(!dir.path().join("b").exists());
}

/// At the fork, another thread may be changing the map, with its mutex locked: no thread of the
/// child will ever unlock it.
#[test]
fn a_child_forked_at_any_moment_can_drop_everything() {
    let dir = folder_in_memory();
    let space = space_in(dir.path());
    let files = LockSpace::open(Naming::in_memory()).unwrap();
    hold(&space, "kept").keep();
    let lease = hold(&space, "leased");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..3_u64 {
            let (space, files, done) = (&space, &files, &done);
            scope.spawn(move || {
                let owner = OwnerId::new(thread);
                let names: Vec<_> = (0..200).map(|n| format!("{thread}-{n}")).collect();
                while !done.load(Ordering::Relaxed) {
                    for name in &names {
                        files.acquire(owner, Request::shared(name), Wait::NO).unwrap().keep();
                        let _ = files.list();
                    }
                    assert_eq!(files.release_owner(owner).holds, names.len());
                    let name = format!("{thread}");
                    let request = Request::exclusive(&name).auto_create();
                    space.acquire(owner, request, Wait::NO).unwrap().keep();
                    space.release(owner, &name).unwrap();
                }
            });
        }
        let rounds = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..1_000 {
                fork(|| {
                    drop(copy_in_child(&lease));
                    drop(copy_in_child(&space));
                    drop(copy_in_child(&files));
                })
                .join();
            }
        }));
        done.store(true, Ordering::Relaxed);
        rounds.unwrap_or_else(|panic| resume_unwind(panic));
    });
    assert_held(lease.path());
    assert_held(&dir.path().join("kept"));
}
