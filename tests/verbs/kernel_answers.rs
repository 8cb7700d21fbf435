//! What is asked of the kernel for a lock, and what is made of its answers: refusals, errors, leases,
//! rights, and kinds of file.

use std::cell::Cell;
use std::fs;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::alone::alone;
use crate::support::faults::{Call, with_faults};
use crate::support::forked::{Gate, fork};
use crate::support::interop::skip_or_fail;
use crate::support::locks::{Kind, Lock, open, set_lock};
use crate::support::spaces::{A, B, NAME, direct, expect_busy, image, space_in};
use crate::support::waits::{LONG, start};
use lockspace::{
    AcquireError, Busy, ByteRange, Cancel, LockFileError, LockSpace, Mode, Naming, ReleaseError,
    Request, Target, Wait,
};
use tempfile::TempDir;

fn files_in(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

/// The system call that failed, and with what.
#[track_caller]
fn io_error<T>(result: Result<T, AcquireError>) -> (&'static str, Option<i32>) {
    match result.map(drop) {
        Err(AcquireError::Io(error)) => (error.call, error.source.raw_os_error()),
        other => panic!("{other:?}"),
    }
}

/// Runs it where every lock call fails with this error, but not the question who holds a lock.
fn without_locks<T: Send>(errno: libc::c_int, body: impl FnOnce() -> T + Send) -> Option<T> {
    let answer = |call: Call| call.is_fcntl(libc::F_OFD_SETLK).then_some(errno);
    let done = with_faults(&[libc::SYS_fcntl], answer, body);
    if done.is_none() {
        skip_or_fail("seccomp", "the kernel refuses a filter that asks");
    }
    done
}

#[test]
fn who_may_not_lock_is_told_so_and_not_that_somebody_holds() {
    alone(|| {
        const DENIED: (&str, Option<i32>) = ("fcntl", Some(libc::EACCES));
        let dir = TempDir::new().unwrap();
        let (_folder, image) = image();
        let (space, direct) = (space_in(dir.path()), direct());
        space.create(NAME).unwrap();
        without_locks(libc::EACCES, || {
            for mode in [Mode::Exclusive, Mode::Shared] {
                for wait in [Wait::NO, Wait::within(LONG), Wait::FOREVER] {
                    let acquire = |space: &LockSpace, target: Target<'_>| {
                        io_error(space.acquire(A, Request::new(mode, target), wait.clone()))
                    };
                    assert_eq!(acquire(&space, NAME.into()), DENIED);
                    assert_eq!(acquire(&direct, Target::image(&image)), DENIED);
                    let file = open(&image);
                    assert_eq!(acquire(&direct, Target::opened(NAME, &file)), DENIED);
                }
            }
            let all = [Request::shared(NAME), Request::exclusive("other").auto_create()];
            assert_eq!(io_error(space.acquire_all(A, all, Wait::FOREVER)), DENIED);
            let refused = space.delete(NAME).unwrap_err();
            assert!(matches!(refused, LockFileError::Io(_)), "{refused:?}");
        });
        assert!(space.list().is_empty() && direct.list().is_empty());
    });
}

#[test]
fn a_hold_that_may_not_change_its_lock_is_told_so_and_stays() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let space = space_in(dir.path());
        let acquire = |mode| space.acquire(A, Request::new(mode, NAME).auto_create(), Wait::NO);
        let denied = ("fcntl", Some(libc::EACCES));
        let mut lease = acquire(Mode::Shared).unwrap();
        without_locks(libc::EACCES, || {
            assert_eq!(io_error(lease.upgrade(Wait::NO)), denied);
            assert_eq!(io_error(lease.upgrade(Wait::FOREVER)), denied);
            assert_eq!(lease.mode(), Mode::Shared);
        });
        lease.verify().unwrap();
        lease.upgrade(Wait::NO).unwrap();
        without_locks(libc::EACCES, || {
            assert_eq!(io_error(lease.downgrade()), denied);
            assert_eq!(lease.mode(), Mode::Exclusive);
        });
        lease.verify().unwrap();
        // Nobody else holds it: that the file stays is told.
        without_locks(libc::EACCES, move || {
            let left = lease.release().unwrap_err();
            let ReleaseError::Leftover { source, .. } = left else { panic!("{left:?}") };
            assert_eq!((source.call, source.source.raw_os_error()), denied);
        });
        drop(acquire(Mode::Exclusive).unwrap());
        assert_eq!(files_in(dir.path()), 0);
    });
}

/// Every refusal, of which there are so many, is followed by one question, and then another try.
#[test]
fn a_refusal_for_nobodys_lock_is_tried_again() {
    alone(|| {
        for (errno, refusals) in [(libc::EAGAIN, 5), (libc::EACCES, 1)] {
            let dir = TempDir::new().unwrap();
            let (_folder, image) = image();
            let (space, direct) = (space_in(dir.path()), direct());
            space.create(NAME).unwrap();
            let (tries, questions) = (Cell::new(0), Cell::new(0));
            let (begin, next) = mpsc::channel();
            let answer = |call: Call| {
                if next.try_recv().is_ok() {
                    tries.set(0);
                    questions.set(0);
                }
                questions.set(questions.get() + u32::from(call.is_fcntl(libc::F_OFD_GETLK)));
                tries.set(tries.get() + u32::from(call.is_fcntl(libc::F_OFD_SETLK)));
                let refused = call.is_fcntl(libc::F_OFD_SETLK) && tries.get() <= refusals;
                refused.then_some(errno)
            };
            let done = with_faults(&[libc::SYS_fcntl], answer, || {
                for wait in [Wait::NO, Wait::FOREVER] {
                    let hold = |space: &LockSpace, mode, target: Target<'_>| {
                        begin.send(()).unwrap();
                        space.acquire(A, Request::new(mode, target), wait.clone()).unwrap()
                    };
                    drop(hold(&space, Mode::Exclusive, NAME.into()));
                    drop(hold(&direct, Mode::Exclusive, Target::image(&image)));
                    let file = open(&image);
                    drop(hold(&direct, Mode::Exclusive, Target::opened(NAME, &file)));
                    let mut lease = hold(&space, Mode::Shared, NAME.into());
                    begin.send(()).unwrap();
                    lease.upgrade(wait.clone()).unwrap();
                    begin.send(()).unwrap();
                    lease.downgrade().unwrap();
                }
                // The last one, which was granted.
                begin.send(()).unwrap();
                space.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap()
            });
            let Some(lease) = done else { return skip_or_fail("seccomp", "no filter that asks") };
            assert_eq!((tries.get(), questions.get()), (refusals + 1, refusals));
            drop(lease);
        }
    });
}

#[test]
fn a_try_that_is_refused_for_nobodys_lock_for_ever_is_busy_with_nobody() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    space.create(NAME).unwrap();
    without_locks(libc::EAGAIN, || {
        let refused = expect_busy(space.acquire(A, Request::exclusive(NAME), Wait::NO));
        assert_eq!((refused.outside(), refused.held()), (None, None));
    });
}

/// What a holder in another process does.
fn hold_elsewhere(
    file: &Path,
    kind: Kind,
    lock: Lock,
    (start, len): (i64, i64),
    body: impl FnOnce(u32),
) {
    let (locked, done) = (Gate::new(), Gate::new());
    let child = fork(|| {
        let file = open(file);
        assert!(set_lock(&file, kind, lock, start, len).unwrap());
        locked.open();
        done.wait();
    });
    locked.wait();
    body(child.pid());
    done.open();
    child.join();
}

#[test]
fn a_refusal_tells_mode_bytes_and_process_of_the_lock_in_the_way() {
    let dir = TempDir::new().unwrap();
    let (_folder, image) = image();
    let (space, direct) = (space_in(dir.path()), direct());
    space.create(NAME).unwrap();
    let lock_file = dir.path().join(NAME);
    let bytes = |start, len| ByteRange::new(start, NonZeroU64::new(len).unwrap()).unwrap();
    let whole = ByteRange::WHOLE_FILE;
    for kind in [Kind::Ofd, Kind::Record] {
        for (lock, mode) in [(Lock::Exclusive, Mode::Exclusive), (Lock::Shared, Mode::Shared)] {
            for (at, range) in
                [((0, 1), ByteRange::FIRST), ((100, 4), bytes(100, 4)), ((0, 0), whole)]
            {
                let check = |busy: Busy, pid: u32| {
                    let outside = *busy.outside().expect("the kernel has told");
                    let pid = (kind == Kind::Record).then_some(pid);
                    assert_eq!((outside.mode, outside.range, outside.pid), (mode, range, pid));
                    assert!(busy.to_string().contains(&format!("lock space, {outside}; asked")));
                };
                let request = |target: Target<'static>| Request::exclusive(target).range(whole);
                hold_elsewhere(&lock_file, kind, lock, at, |pid| {
                    check(expect_busy(space.acquire(A, request(NAME.into()), Wait::NO)), pid);
                    let short = Wait::within(Duration::from_millis(30));
                    check(expect_busy(space.acquire(A, request(NAME.into()), short.clone())), pid);
                    let all = [request(NAME.into())];
                    check(expect_busy(space.acquire_all(A, all, short)), pid);
                    let Err(LockFileError::Busy(busy)) = space.delete(NAME) else { panic!() };
                    check(busy, pid);
                });
                hold_elsewhere(&image, kind, lock, at, |pid| {
                    let target = || Target::image(&image);
                    let request = Request::exclusive(target()).range(whole);
                    check(expect_busy(direct.acquire(A, request, Wait::NO)), pid);
                    let file = open(&image);
                    let request = Request::exclusive(Target::opened(NAME, &file)).range(whole);
                    check(expect_busy(direct.acquire(A, request, Wait::NO)), pid);
                    if mode == Mode::Shared {
                        let request = Request::shared(target()).range(whole).upgradable();
                        let mut lease = direct.acquire(A, request, Wait::NO).unwrap();
                        check(expect_busy(lease.upgrade(Wait::NO)), pid);
                    }
                });
            }
        }
    }
}

/// Runs `body` beside a child that has a lease on the file, as a file server takes it, and gives it up when
/// `body` says so. Its file stays open.
fn lease_elsewhere(file: &Path, kind: libc::c_int, body: impl FnOnce(&Gate)) {
    let (taken, done) = (Gate::new(), Gate::new());
    let child = fork(|| {
        let file = match kind {
            libc::F_RDLCK => fs::File::open(file).unwrap(),
            _ => open(file),
        };
        let set = |kind: libc::c_int| {
            // SAFETY: integers, of an open descriptor; and a signal that is ignored from then on, as the
            // kernel asks by it.
            #[allow(unsafe_code, reason = "leases, which rustix does not have")]
            unsafe {
                libc::signal(libc::SIGIO, libc::SIG_IGN);
                libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind)
            }
        };
        assert_eq!(set(kind), 0, "{}", std::io::Error::last_os_error());
        taken.open();
        done.wait();
        set(libc::F_UNLCK);
        done.wait();
    });
    taken.wait();
    body(&done);
    done.open();
    child.join();
}

#[test]
fn a_leased_file_is_busy_to_a_try_and_waited_for_by_a_wait() {
    let dir = TempDir::new().unwrap();
    let (_folder, image) = image();
    let (space, direct) = (space_in(dir.path()), direct());
    space.create(NAME).unwrap();
    let lock_file = dir.path().join(NAME);
    for (file, kind, mode) in [
        (&image, libc::F_RDLCK, Mode::Exclusive),
        (&image, libc::F_WRLCK, Mode::Exclusive),
        (&image, libc::F_WRLCK, Mode::Shared),
        (&lock_file, libc::F_RDLCK, Mode::Shared),
        (&lock_file, libc::F_WRLCK, Mode::Exclusive),
    ] {
        let (space, name) = match file == &image {
            true => (direct.clone(), image.clone()),
            false => (space.clone(), NAME.into()),
        };
        let acquire = {
            let (space, name) = (space.clone(), name.clone());
            move |wait| space.acquire(A, Request::new(mode, &name), wait)
        };
        lease_elsewhere(file, kind, |give_up| {
            let refused = expect_busy(acquire(Wait::NO));
            assert!(refused.is_leased() && refused.outside().is_none() && refused.held().is_none());
            assert!(refused.to_string().contains("is busy: leased by another program; asked for"));
            let short = Duration::from_millis(30);
            let refused = expect_busy(acquire(Wait::within(short)));
            assert!(refused.is_leased() && refused.waited() >= short, "{refused:?}");
            let all = [Request::new(mode, &name)];
            assert!(expect_busy(space.acquire_all(A, all, Wait::NO)).is_leased());
            let cancel = Cancel::new();
            let wait = Wait::FOREVER.unless(&cancel);
            let waiting = start({
                let acquire = acquire.clone();
                move || acquire(wait).map(drop)
            });
            let waiting = waiting.sleeps_for_others();
            cancel.cancel();
            assert!(matches!(waiting.join(), Err(AcquireError::Cancelled { .. })));
            if file == &lock_file {
                space.create(NAME).unwrap();
                let Err(LockFileError::Busy(busy)) = space.delete(NAME) else { panic!() };
                assert!(busy.is_leased());
            }
            let waiting = start({
                let acquire = acquire.clone();
                move || acquire(Wait::FOREVER).map(|lease| lease.mode())
            });
            let all = start(move || {
                let (all, wait) = ([Request::new(mode, &name)], Wait::within(LONG));
                space.acquire_all(B, all, wait).map(drop)
            });
            let (waiting, all) = (waiting.sleeps_for_others(), all.sleeps_for_others());
            give_up.open();
            assert_eq!(waiting.join().unwrap(), mode);
            all.join().unwrap();
        });
    }
}

/// All bytes but the last: what a process that removes the file has locked.
const REMOVAL: (i64, i64) = (0, i64::MAX);

#[test]
fn a_try_does_not_wait_for_a_remover_that_was_stopped() {
    let dir = TempDir::new().unwrap();
    let (_folder, image) = image();
    let (space, direct) = (space_in(dir.path()), direct());
    space.create(NAME).unwrap();
    // As a remover that was stopped between its lock and its unlink.
    for file in [&dir.path().join(NAME), &image] {
        hold_elsewhere(file, Kind::Ofd, Lock::Exclusive, REMOVAL, |_| {
            let took = (0..10).map(|_| {
                let begun = Instant::now();
                let refused = match file == &image {
                    true => direct.acquire(A, Request::exclusive(file), Wait::NO),
                    false => space.acquire(A, Request::shared(NAME).auto_create(), Wait::NO),
                };
                let outside = *expect_busy(refused).outside().expect("the kernel has told");
                assert_eq!((outside.mode, outside.range), (Mode::Exclusive, ByteRange::WHOLE_FILE));
                begun.elapsed()
            });
            // The best of them, as other programs may have the processor. It was 0.1 s at least, by
            // its sleeps alone.
            let best = took.min().unwrap();
            assert!(best < Duration::from_millis(50), "{best:?}");
        });
    }
    hold_elsewhere(&dir.path().join(NAME), Kind::Ofd, Lock::Exclusive, REMOVAL, |_| {
        assert!(matches!(space.delete(NAME), Err(LockFileError::Busy(_))));
    });
    space.delete(NAME).unwrap();
}

/// Twenty resources that cannot be locked, each of a lock file that the call makes.
fn fail_twenty_times(space: &LockSpace, acquire: impl Fn(&LockSpace, Request<'_>) -> AcquireError) {
    for at in 0..20 {
        let mode = if at % 2 == 0 { Mode::Exclusive } else { Mode::Shared };
        let error = acquire(space, Request::new(mode, format!("disk-{at}")).auto_create());
        assert!(matches!(error, AcquireError::Io(_)), "{error}");
    }
}

/// Runs it with all calls failing that `fails` names, by this error.
fn failing<T: Send>(
    calls: &[libc::c_long],
    fails: impl Fn(&Call) -> bool,
    errno: libc::c_int,
    body: impl FnOnce() -> T + Send,
) -> Option<T> {
    let done = with_faults(calls, |call| fails(&call).then_some(errno), body);
    if done.is_none() {
        skip_or_fail("seccomp", "the kernel refuses a filter that asks");
    }
    done
}

#[test]
fn who_is_given_no_lock_leaves_no_lock_file() {
    alone(|| {
        let only_locks = |call: &Call| call.is_fcntl(libc::F_OFD_SETLK);
        let all_fcntl = |_: &Call| true;
        let fails: [&(dyn Fn(&Call) -> bool + Sync); 2] = [&only_locks, &all_fcntl];
        for (fails, errno) in fails
            .into_iter()
            .flat_map(|fails| [libc::ENOLCK, libc::EACCES, libc::EIO].map(|errno| (fails, errno)))
        {
            let dirs = [(); 3].map(|()| TempDir::new().unwrap());
            let spaces = [
                space_in(dirs[0].path()),
                LockSpace::open(Naming::md5(dirs[1].path())).unwrap(),
                space_in(dirs[2].path()),
            ];
            failing(&[libc::SYS_fcntl], fails, errno, || {
                fail_twenty_times(&spaces[0], |space, request| {
                    space.acquire(A, request, Wait::NO).unwrap_err()
                });
                fail_twenty_times(&spaces[1], |space, request| {
                    space.acquire(A, request, Wait::within(LONG)).unwrap_err()
                });
                fail_twenty_times(&spaces[2], |space, request| {
                    space.acquire_all(A, [request], Wait::NO).unwrap_err()
                });
            });
            for (dir, space) in dirs.iter().zip(&spaces) {
                assert_eq!(files_in(dir.path()), 0, "errno {errno}");
                assert!(space.list().is_empty());
                // It was for nobody's lock.
                drop(
                    space.acquire(A, Request::exclusive("disk-0").auto_create(), Wait::NO).unwrap(),
                );
                assert_eq!(files_in(dir.path()), 0);
            }
        }
    });
}

/// A file whose lock has failed cannot be removed: without its lock, nobody may. So one is left where locks
/// are given no more, and none is made beside it.
#[test]
fn where_locks_are_given_no_more_one_lock_file_is_left_and_not_one_for_each_name() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let space = space_in(dir.path());
        let one = || Request::exclusive("disk-0").auto_create();
        drop(space.acquire(A, one(), Wait::NO).unwrap());
        failing(
            &[libc::SYS_fcntl],
            |_| true,
            libc::ENOLCK,
            || {
                fail_twenty_times(&space, |space, request| {
                    space.acquire(A, request, Wait::NO).unwrap_err()
                });
            },
        );
        assert_eq!(files_in(dir.path()), 1);
        drop(space.acquire(A, one(), Wait::NO).unwrap());
        assert_eq!(files_in(dir.path()), 0, "who asks for it again cleans up");
    });
}

#[test]
fn who_is_told_nothing_of_a_file_that_it_has_made_leaves_no_lock_file() {
    alone(|| {
        for call in [libc::SYS_fstat, libc::SYS_newfstatat] {
            let dirs = [(); 2].map(|()| TempDir::new().unwrap());
            let [space, waited] = [0, 1].map(|at: usize| space_in(dirs[at].path()));
            failing(
                &[call],
                |_| true,
                libc::EIO,
                || {
                    fail_twenty_times(&space, |space, request| {
                        space.acquire(A, request, Wait::NO).unwrap_err()
                    });
                    let refused = space.create(NAME).unwrap_err();
                    assert!(matches!(refused, LockFileError::Io(_)), "{refused}");
                    fail_twenty_times(&waited, |space, request| {
                        space.acquire(A, request, Wait::within(LONG)).unwrap_err()
                    });
                },
            );
            assert_eq!([0, 1].map(|at: usize| files_in(dirs[at].path())), [0, 0], "call {call}");
        }
    });
}
