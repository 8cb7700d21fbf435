//! A forked child shares every open file, and so every lock, with its parent: it must neither keep
//! a lock alive that its parent gave back, nor give one back that its parent holds.

use std::fs;
use std::num::NonZeroU64;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::forked::{
    self, Forked, Gate, NO_SECCOMP, copy_in_child, fork, is_free_for_others, ran_alone,
    without_system_calls,
};
use crate::support::interop::skip_or_fail;
use lockspace::{
    AcquireError, ByteRange, Lease, LockFileError, LockSpace, Mode, Naming, OwnerId, ReleaseError,
    Request, VerifyError, Wait,
};
use tempfile::TempDir;

const OWNER: OwnerId = OwnerId::new(1);
const OTHER: OwnerId = OwnerId::new(2);
const LONG: Duration = Duration::from_secs(60);

/// In memory where that is possible: the disk is not what is tested.
fn tempdir() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

fn space_in(dir: &Path) -> LockSpace {
    LockSpace::open(Naming::verbatim(dir)).unwrap()
}

fn hold(space: &LockSpace, name: &str) -> Lease {
    space.acquire(OWNER, Request::exclusive(name).auto_create(), Wait::NO).unwrap()
}

/// Fails unless the lock file is there and its lock keeps out another process, and another space
/// of this one.
#[track_caller]
fn assert_held(path: &Path) {
    assert!(path.exists(), "the lock file is gone");
    assert!(!is_free_for_others(path), "another process gets the lock");
    let other = space_in(path.parent().unwrap());
    match other.acquire(OTHER, Request::shared(path.file_name().unwrap()), Wait::NO) {
        Err(AcquireError::Busy(busy)) => assert_eq!(busy.held(), None),
        other => panic!("not refused: {other:?}"),
    }
}

/// 100,000 times acquires and drops, while two threads spawn commands: between its fork and its
/// exec, each command shares the lock.
fn cycles_beside_commands(space: &LockSpace, request: &Request<'_>) {
    let (done, commands) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let spawn = || {
            while !done.load(Ordering::Relaxed) {
                assert!(Command::new("true").status().unwrap().success());
                commands.fetch_add(1, Ordering::Relaxed);
            }
        };
        scope.spawn(spawn);
        scope.spawn(spawn);
        let ghost =
            (0..100_000).find_map(|cycle| match space.acquire(OWNER, request.clone(), Wait::NO) {
                Ok(lease) => {
                    drop(lease);
                    None
                }
                Err(error) => Some(format!("{error}, in cycle {cycle}")),
            });
        done.store(true, Ordering::Relaxed);
        assert_eq!(ghost, None);
    });
    assert!(commands.into_inner() > 0, "no command ran meanwhile");
}

#[test]
fn no_ghost_holds_an_existing_resource_while_commands_are_spawned() {
    let dir = tempdir();
    let space = space_in(dir.path());
    space.create("a").unwrap();
    cycles_beside_commands(&space, &Request::exclusive("a"));
    assert_eq!(space.stale_retries(), 0);
    assert!(dir.path().join("a").exists());
}

#[test]
fn no_ghost_holds_an_auto_created_resource_while_commands_are_spawned() {
    let dir = tempdir();
    let space = space_in(dir.path());
    cycles_beside_commands(&space, &Request::exclusive("a").auto_create());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn no_ghost_holds_an_image_that_is_locked_directly_while_commands_are_spawned() {
    let dir = tempdir();
    let image = dir.path().join("a.raw");
    fs::write(&image, "precious").unwrap();
    let space = LockSpace::open(Naming::direct()).unwrap();
    cycles_beside_commands(&space, &Request::exclusive(&image));
    assert_eq!(fs::read(&image).unwrap(), b"precious");
}

#[test]
fn a_lease_released_while_a_forked_child_lives_is_free_at_once() {
    let dir = tempdir();
    let space = space_in(dir.path());
    space.create("existing").unwrap();
    let existing = space.acquire(OWNER, Request::exclusive("existing"), Wait::NO).unwrap();
    let made = hold(&space, "made");
    let [existing_path, made_path] = [&existing, &made].map(|lease| lease.path().to_owned());

    let gate = Gate::new();
    let child = fork(|| gate.wait());
    existing.release().unwrap();
    made.release().unwrap();
    assert!(is_free_for_others(&existing_path));
    assert!(!made_path.exists());
    // The child has the unlinked file open still; a new one of its name has nothing to do with it.
    for name in ["existing", "made"] {
        hold(&space_in(dir.path()), name).release().unwrap();
    }
    gate.open();
    child.join();
}

/// The removal of a lock file locks nearly all of its bytes. Where the file stays after all, since
/// its name is another's, no byte of it may stay locked.
#[test]
fn what_a_removal_has_locked_is_free_at_once_though_a_forked_child_lives() {
    let dir = tempdir();
    let (path, moved) = (dir.path().join("a"), dir.path().join("moved"));
    let ranges = [ByteRange::FIRST, ByteRange::WHOLE_FILE, last_bytes()];
    for (mode, range) in ranges.into_iter().flat_map(|r| [(Mode::Exclusive, r), (Mode::Shared, r)])
    {
        let space = space_in(dir.path());
        let request = Request::new(mode, "a").auto_create().range(range);
        let lease = space.acquire(OWNER, request, Wait::NO).unwrap();
        let gate = Gate::new();
        let child = fork(|| gate.wait());
        fs::rename(&path, &moved).unwrap();
        lease.release().unwrap();
        let whole = Request::exclusive("moved").range(ByteRange::WHOLE_FILE);
        space.acquire(OTHER, whole, Wait::NO).unwrap().release().unwrap();
        gate.open();
        child.join();
        fs::remove_file(&moved).unwrap();
    }
}

/// To the last byte that an offset can name, which no removal locks.
fn last_bytes() -> ByteRange {
    ByteRange::new(100, NonZeroU64::new(i64::MAX as u64 - 99).unwrap()).unwrap()
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
        ("it exits without destructors", |_, _| forked::exit_now(0)),
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
            assert!(space.release(OWNER, "kept").is_err());
            assert_eq!(space.release_owner(OWNER).holds, 0);
        }),
    ];
    for (ending, end) in endings {
        println!("{ending}"); // shown if this fails
        let dir = tempdir();
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
        space.release(OWNER, "kept").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_killed_child_takes_nothing_from_its_parent() {
    let dir = tempdir();
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
    let dir = tempdir();
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
    let dir = tempdir();
    let space = space_in(dir.path());
    hold(&space, "kept").keep();
    let lease = hold(&space, "leased");
    let parent = std::process::id();
    fork(|| {
        let request = || Request::exclusive("new").auto_create();
        let error = space.acquire(OWNER, request(), Wait::NO).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&parent.to_string()), "{text}");
        assert!(matches!(error, AcquireError::Forked { creator } if creator == parent));
        let error = space.create("new").unwrap_err();
        assert!(matches!(error, LockFileError::Forked { creator } if creator == parent));
        let error = space.delete("leased").unwrap_err();
        assert!(matches!(error, LockFileError::Forked { creator } if creator == parent));
        let error = space.release(OWNER, "kept").unwrap_err();
        assert!(matches!(error, ReleaseError::Forked { creator } if creator == parent));
        let error = space.retake(OWNER, "kept").unwrap_err();
        assert!(matches!(error, ReleaseError::Forked { creator } if creator == parent));
        let released = space.release_owner(OWNER);
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
    let _lease = space.acquire(OWNER, Request::exclusive("a"), Wait::NO).unwrap();
    fork(|| {
        let refused = space.acquire(OWNER, Request::exclusive("b"), Wait::NO);
        assert!(matches!(refused, Err(AcquireError::Forked { .. })));
        assert!(space.list().is_empty());
    })
    .join();
}

/// No `pthread_atfork` handler hears of such a child. It allocates nothing: malloc did not either.
#[test]
fn a_child_made_by_the_bare_system_call_is_refused_too() {
    let dir = tempdir();
    let space = space_in(dir.path());
    let lease = hold(&space, "a");
    let parent = std::process::id();
    forked::clone(|| {
        let refused = space.acquire(OWNER, Request::exclusive("b").auto_create(), Wait::NO);
        assert!(matches!(refused, Err(AcquireError::Forked { creator }) if creator == parent));
        let refused = space.create("b");
        assert!(matches!(refused, Err(LockFileError::Forked { creator }) if creator == parent));
        let refused = space.release(OWNER, "a");
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
    let dir = tempdir();
    let space = space_in(dir.path());
    let lease = hold(&space, "a");
    fork(|| {
        let own = space_in(dir.path());
        match own.acquire(OTHER, Request::shared("a"), Wait::NO) {
            Err(AcquireError::Busy(busy)) => {
                assert_eq!((busy.held(), busy.asked()), (None, Mode::Shared));
                assert!(busy.owners().is_empty());
                assert!(busy.to_string().contains("outside this lock space"), "{busy}");
            }
            other => panic!("not refused: {other:?}"),
        }
        let mine = own.acquire(OTHER, Request::exclusive("b").auto_create(), Wait::NO).unwrap();
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
    let dir = tempdir();
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

fn wait_for_disk(space: &LockSpace, owner: OwnerId) -> Lease {
    space.acquire(owner, Request::exclusive("disk").auto_create(), Wait::within(LONG)).unwrap()
}

/// In children of this process, threads wait for each other and for those of the other children.
fn wait_in_children(dir: &Path, threads: u64) {
    let children = [(); 4].map(|()| {
        fork(|| {
            let space = space_in(dir);
            let wait_again_and_again = |owner| {
                for _ in 0..400 / threads {
                    let lease = wait_for_disk(&space, owner);
                    thread::yield_now();
                    drop(lease);
                    // A try that meets a transition sleeps as well.
                    let request = Request::shared("base").auto_create();
                    drop(space.acquire(owner, request, Wait::NO));
                }
            };
            thread::scope(|scope| {
                for owner in 1..threads {
                    scope.spawn(move || wait_again_and_again(OwnerId::new(owner)));
                }
                wait_again_and_again(OwnerId::new(0));
            });
        })
    });
    children.into_iter().for_each(Forked::join);
}

/// A helper of the parent sleeps when the children are forked, and their threads get its stack.
#[test]
fn children_can_wait_although_a_helper_of_their_parent_sleeps() {
    if ran_alone() {
        return;
    }
    let dir = tempdir();
    let space = space_in(dir.path());
    for _ in 0..30 {
        drop(wait_for_disk(&space, OWNER));
        wait_in_children(dir.path(), 1);
    }
}

/// The same beside threads of the parent that sleep in this crate, each in another way.
#[cfg(feature = "snapshot")]
#[test]
fn children_can_wait_although_threads_of_their_parent_wait() {
    if ran_alone() {
        return;
    }
    let (dir, other) = (tempdir(), tempdir());
    let (frozen, held) = (space_in(other.path()), space_in(other.path()));
    let snapshot = lockspace::snapshot::Snapshot::take([&frozen]).unwrap();
    let lease = wait_for_disk(&held, OTHER);
    let cancel = lockspace::Cancel::new();
    let waiting = [3, 4, 5, 6, 7, 8].map(|owner| {
        let space = if owner % 2 == 0 { frozen.clone() } else { held.clone() };
        let (request, wait) = (Request::exclusive("disk"), Wait::FOREVER.unless(&cancel));
        let acquire = move || space.acquire(OwnerId::new(owner), request, wait).map(drop);
        crate::support::waits::start(acquire).sleeps()
    });
    for _ in 0..10 {
        wait_in_children(dir.path(), 4);
    }
    cancel.cancel();
    drop((lease, snapshot));
    for waiting in waiting {
        let _ = waiting.join();
    }
}

#[test]
fn a_refusal_by_this_space_makes_no_system_call() {
    let check = |body: fn(&LockSpace)| {
        let child = fork(|| {
            // In a process of one thread: the others of this one make calls of their own.
            let dir = tempdir();
            let space = space_in(dir.path());
            let lease = hold(&space, "a");
            let shared = Request::shared("b").auto_create();
            let base = space.acquire(OWNER, shared, Wait::NO).unwrap();
            let busy = |request: Request<'_>| {
                let refused = space.acquire(OTHER, request, Wait::NO);
                assert!(matches!(refused, Err(AcquireError::Busy(_))));
            };
            let many = || {
                for _ in 0..1_000 {
                    busy(Request::exclusive("a"));
                    busy(Request::shared("a"));
                    busy(Request::exclusive("b").auto_create());
                    drop(space.acquire(OTHER, Request::shared("b"), Wait::NO).unwrap());
                    assert_eq!(space.list().len(), 2);
                }
            };
            many(); // now malloc has what it needs
            fs::remove_dir_all(dir.path()).unwrap();
            let _ends_with_the_process = (&lease, &base);
            without_system_calls(|| {
                many();
                body(&space);
            });
        });
        child.join_status()
    };
    let status = check(|_| {});
    if status.exit_status() == Some(NO_SECCOMP) {
        return skip_or_fail("seccomp", "the kernel refuses its strict mode");
    }
    assert_eq!(status.exit_status(), Some(0), "a system call was made: {status:?}");
    // That a call would have been noticed:
    let status = check(|_| drop(fs::metadata("/")));
    assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
}
