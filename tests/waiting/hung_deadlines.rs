//! Whoever waits with a deadline goes at it, and whoever is cancelled goes, whichever call the file
//! system does not answer.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::alone::alone;
use crate::support::hung_fs::{HungFs, answering_fs, hung_fs};
use crate::support::interop::skip_or_fail;
use crate::support::locks::{held, is_free_for_others};
use crate::support::process::open_below;
use crate::support::spaces::{A, B, C, direct, expect_cancelled, expect_stuck, wait_for};
use crate::support::waits::{LONG, eventually, start};
use crate::ways::{SHORT, at_its_deadline, held_in, leaked_space};
use lockspace::{AcquireError, Cancel, LockSpace, Mode, Naming, Request, Wait};
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use tempfile::TempDir;

/// Unmounts what is mounted here when it is dropped.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, UnmountFlags::DETACH);
    }
}

/// The same on a path through a file system that may hang.
struct MountedIn<'a>(&'a HungFs, &'a Path);

impl Drop for MountedIn<'_> {
    fn drop(&mut self) {
        self.0.answer_all();
        let _ = unmount(self.1, UnmountFlags::DETACH);
    }
}

/// A scanner that asks to be asked before this file is opened (fanotify), and never answers: every
/// open of it hangs until this is dropped.
#[allow(unsafe_code, reason = "fanotify, which rustix does not have")]
fn silent_scanner(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let (flags, events) = (libc::FAN_CLASS_CONTENT | libc::FAN_CLOEXEC, libc::FAN_OPEN_PERM);
    // SAFETY: integers in, an integer out.
    let scanner = match unsafe { libc::fanotify_init(flags, libc::O_RDONLY as u32) } {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: it is new, and nobody else's.
        fd => unsafe { OwnedFd::from_raw_fd(fd) },
    };
    let (fd, here) = (scanner.as_raw_fd(), libc::AT_FDCWD);
    // SAFETY: the path is a string that ends in NUL and lives through the call.
    match unsafe { libc::fanotify_mark(fd, libc::FAN_MARK_ADD, events, here, path.as_ptr()) } {
        0 => Ok(scanner),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Nothing is at fault with the file system, and the kernel has the file in its memory.
#[test]
fn whoever_waits_goes_at_its_deadline_where_a_scanner_does_not_let_it_open() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    let in_directory = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();
    File::create(&disk).unwrap();
    for (space, name) in [(in_directory, Path::new("disk")), (direct, &disk)] {
        let acquire =
            |space: &LockSpace, name: &Path, wait| space.acquire(B, Request::exclusive(name), wait);
        drop(acquire(&space, name, Wait::NO).unwrap());
        let scanner = match silent_scanner(&disk) {
            Ok(scanner) => scanner,
            Err(error) => return skip_or_fail("fanotify", &error.to_string()),
        };
        let refused =
            at_its_deadline(&space, name, move |space, name, wait| acquire(space, name, wait));
        assert!(matches!(refused, Err(AcquireError::Unresponsive { .. })), "{refused:?}");
        drop(scanner);
        // What the helper was given late is given back.
        drop(acquire(&space, name, Wait::within(Duration::from_secs(60))).unwrap());
    }
}

#[test]
fn a_wait_goes_at_its_deadline_though_what_is_mounted_on_its_lock_file_hangs() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let dir = tempfile::tempdir().unwrap();
        let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
        space.create("disk").unwrap();
        let lock_file = dir.path().join("disk");
        if let Err(errno) = mount_bind(hung.path().join("a"), &lock_file) {
            return skip_or_fail("a bind mount", &errno.to_string());
        }
        let _mounted = Mounted(&lock_file);
        let given_up = at_its_deadline(&space, &lock_file, |space, _, wait| {
            space.acquire(A, Request::exclusive("disk"), wait).unwrap_err()
        });
        assert!(matches!(given_up, AcquireError::Unresponsive { .. }), "{given_up}");
    });
}

#[test]
fn what_is_held_is_busy_at_the_deadline_also_where_a_file_system_might_hang() {
    alone(|| {
        let [first, second] = [leaked_space(), leaked_space()];
        let Some(answering) = answering_fs() else { return };
        let path = answering.path().join("a.raw");
        first.acquire(A, Request::exclusive(&path), Wait::NO).unwrap().keep();
        for time in (300..400).step_by(20).map(Duration::from_millis) {
            let refused = second.acquire(B, Request::exclusive(&path), Wait::within(time));
            let refused = refused.unwrap_err();
            let AcquireError::Busy(busy) = refused else { panic!("after {time:?}: {refused}") };
            assert_eq!(busy.name(), path);
            // And it is nobody's any more.
            let refused = second.acquire(B, Request::exclusive(&path), Wait::NO);
            assert!(matches!(refused, Err(AcquireError::Busy(_))), "after {time:?}: {refused:?}");
        }
        first.release(A, &path).unwrap();
        second.acquire(B, Request::exclusive(&path), Wait::NO).unwrap().release().unwrap();
    });
}

#[test]
fn a_wait_goes_at_its_deadline_whichever_question_for_attributes_hangs() {
    alone(|| {
        for answered in 0..12 {
            let Some(hung) = answering_fs() else { return };
            let (_, space, path) = held_in(&hung, Mode::Exclusive);
            hung.hang_attributes(answered);
            let error = at_its_deadline(space, &path, |space, path, wait| {
                space.acquire(B, Request::exclusive(path), wait).unwrap_err()
            });
            let known = matches!(error, AcquireError::Unresponsive { .. } | AcquireError::Busy(_));
            assert!(known, "after {answered}: {error}");
        }
    });
}

/// A local image behind a file system that hangs.
#[test]
fn a_wait_goes_at_its_deadline_wherever_on_the_way_to_a_local_file_it_hangs() {
    alone(|| {
        for let_through in 0..10 {
            let Some(hung) = answering_fs() else { return };
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("a.raw"), "").unwrap();
            let path = hung.path().join("a.raw");
            if let Err(errno) = mount_bind(dir.path().join("a.raw"), &path) {
                return skip_or_fail("a bind mount", &errno.to_string());
            }
            let _mounted = MountedIn(&hung, &path);
            let (_, space, _) = held_in(&hung, Mode::Exclusive);
            hung.hang_names(let_through);
            let error = at_its_deadline(space, &path, |space, path, wait| {
                space.acquire(B, Request::exclusive(path), wait).unwrap_err()
            });
            let known = matches!(error, AcquireError::Unresponsive { .. } | AcquireError::Busy(_));
            assert!(known, "after {let_through}: {error}");
        }
    });
}

#[test]
fn a_waiting_upgrade_goes_at_its_deadline_whichever_question_for_attributes_hangs() {
    alone(|| {
        for answered in 0..3 {
            let Some(hung) = answering_fs() else { return };
            let (_, space, path) = held_in(&hung, Mode::Shared);
            let request = Request::shared(&path).upgradable();
            let lease = space.acquire(B, request, Wait::NO).unwrap();
            hung.hang_attributes(answered);
            let refused = at_its_deadline(space, &path, |_, _, wait| {
                let mut lease = lease;
                let refused = lease.upgrade(wait).unwrap_err();
                lease.keep();
                refused
            });
            assert!(matches!(refused, AcquireError::Busy(_)), "after {answered}: {refused}");
        }
    });
}

#[test]
fn a_wait_goes_at_its_deadline_though_the_close_of_what_it_waited_for_hangs() {
    alone(|| {
        let Some(hung) = answering_fs() else { return };
        let (_, space, path) = held_in(&hung, Mode::Exclusive);
        hung.hang_closes();
        let refused = at_its_deadline(space, &path, |space, path, wait| {
            space.acquire(B, Request::exclusive(path), wait).unwrap_err()
        });
        assert!(matches!(refused, AcquireError::Busy(_)), "{refused}");
        // By a helper.
        hung.wait_for_close(1);
    });
}

#[test]
fn several_are_waited_for_no_longer_though_the_close_of_one_that_is_held_hangs() {
    alone(|| {
        let Some(hung) = answering_fs() else { return };
        let (_, space, path) = held_in(&hung, Mode::Exclusive);
        hung.hang_closes();
        let refused = at_its_deadline(space, &path, |space, path, wait| {
            space.acquire_all(B, [Request::exclusive(path)], wait).unwrap_err()
        });
        // Behind the close, nothing more is told of it.
        let known = matches!(refused, AcquireError::Unresponsive { .. } | AcquireError::Busy(_));
        assert!(known, "{refused}");
        hung.wait_for_close(1);
    });
}

#[test]
fn several_are_waited_for_no_longer_though_to_give_back_one_of_them_hangs() {
    alone(|| {
        let dir = tempfile::tempdir().unwrap();
        let (holder, space) = (leaked_space(), leaked_space());
        let Some(hung) = answering_fs() else { return };
        let [ours, free, held] =
            [hung.path().join("a.raw"), dir.path().join("b.raw"), dir.path().join("c.raw")];
        fs::write(&free, "").unwrap();
        fs::write(&held, "").unwrap();
        let held_there = holder.acquire(A, Request::exclusive(&held), Wait::NO).unwrap();
        hung.hang_closes();
        let refused = at_its_deadline(space, &ours, {
            let (free, held) = (free.clone(), held.clone());
            move |space, ours, wait| {
                let all = [ours, &free, &held].map(Request::exclusive);
                space.acquire_all(B, all, wait).unwrap_err()
            }
        });
        assert!(matches!(refused, AcquireError::Busy(_)), "{refused}");
        hung.wait_for_close(1);
        assert_eq!(space.list(), [], "what is being given back is not held");
        holder.acquire(A, Request::exclusive(&free), Wait::NO).unwrap().release().unwrap();
        held_there.release().unwrap();

        hung.answer_all();
        space.acquire(B, Request::exclusive(&ours), Wait::NO).unwrap().release().unwrap();
    });
}

/// Promise 4, nothing stalls: who asks for several returns at its deadline behind a stuck try.
#[test]
fn acquire_all_returns_at_its_deadline_where_the_try_of_another_thread_is_stuck() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let (space, path) = (direct(), hung.path().join("a.raw"));
        let first = wait_for(&space, A, Mode::Shared, &path, Wait::NO);
        hung.wait_for_open(1);
        let result = at_its_deadline(&space, &path, |space, path, wait| {
            space.acquire_all(B, [Request::shared(path)], wait).map(drop)
        });
        assert!(matches!(result, Err(AcquireError::Unresponsive { .. })), "{result:?}");
        hung.answer_all();
        drop(first.join().unwrap());
    });
}

#[test]
fn a_deadline_holds_when_the_file_system_hangs_and_a_late_success_is_given_back() {
    alone(|| {
        for mode in [Mode::Exclusive, Mode::Shared] {
            for somebody_waits in [false, true] {
                let Some(hung) = hung_fs() else { return };
                late_success(&hung, mode, somebody_waits);
            }
        }
    });
}

fn late_success(hung: &HungFs, mode: Mode, somebody_waits: bool) {
    let space = LockSpace::open(Naming::direct()).unwrap();
    let path = hung.path().join("a");
    let started = Instant::now();
    let refused = space.acquire(A, Request::new(mode, &path), Wait::within(SHORT));
    let elapsed = started.elapsed();
    let said = expect_stuck(refused, &path);
    assert!(elapsed >= SHORT, "{elapsed:?}");
    assert!(said <= elapsed && said + Duration::from_millis(1) >= SHORT, "{said:?}");
    assert_eq!(space.list(), []);

    // Whoever asks for it is told so, whatever it wishes.
    expect_stuck(space.acquire(A, Request::exclusive(&path), Wait::NO), &path);
    expect_stuck(space.acquire(B, Request::shared(&path), Wait::NO), &path);
    expect_stuck(space.acquire(B, Request::exclusive(&path), Wait::within(SHORT)), &path);
    let wait = |owner, wait| {
        let (space, path) = (space.clone(), path.clone());
        start(move || space.acquire(owner, Request::exclusive(&path), wait)).sleeps()
    };
    let cancel = Cancel::new();
    let waiting = wait(B, Wait::FOREVER.unless(&cancel));
    cancel.cancel();
    expect_cancelled(waiting.join(), &path);

    // Who has time gets it when the answer comes.
    let waiting = somebody_waits.then(|| wait(C, Wait::within(LONG)));
    hung.answer_all();
    if let Some(waiting) = waiting {
        waiting.join().unwrap().verify().unwrap();
    }
    let mut lease = None;
    eventually("the resource can be acquired again", || {
        match space.acquire(C, Request::exclusive(&path), Wait::NO) {
            Ok(granted) => lease = Some(granted),
            Err(AcquireError::Unresponsive { .. }) => {}
            Err(error) => panic!("the late success was not given back: {error}"),
        }
        lease.is_some()
    });
    assert_eq!(held(&path), Some(Mode::Exclusive));
    drop(lease);
    assert!(is_free_for_others(&path));
    assert_eq!((space.list().len(), open_below(hung.path())), (0, 0));
}

/// Its first wait is over: it does not wait for itself.
#[test]
fn the_same_owner_can_ask_again_for_what_is_stuck() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let space = LockSpace::open(Naming::direct()).unwrap();
        let path = hung.path().join("a");
        for _ in 0..3 {
            let request = Request::exclusive(&path);
            expect_stuck(space.acquire(A, request, Wait::within(SHORT)), &path);
        }
        hung.answer_all();
    });
}

#[test]
fn a_wait_on_a_file_system_that_hangs_can_be_cancelled() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let space = LockSpace::open(Naming::direct()).unwrap();
        for by_owner in [false, true] {
            let path = hung.path().join(by_owner.to_string());
            let cancel = Cancel::new();
            let waiting = start({
                let (space, path, cancel) = (space.clone(), path.clone(), cancel.clone());
                move || space.acquire(A, Request::exclusive(&path), Wait::FOREVER.unless(&cancel))
            });
            let waiting = waiting.sleeps();
            if by_owner {
                space.release_owner(A);
            } else {
                cancel.cancel();
            }
            let ended = waiting.join();
            expect_cancelled(ended, &path);
        }
        hung.answer_all();
        eventually("all is closed", || open_below(hung.path()) == 0);
        assert_eq!(space.list(), []);
    });
}

/// Where the wait hangs before the name is even known.
#[test]
fn a_deadline_holds_when_the_path_of_an_image_cannot_be_resolved() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let dir = TempDir::new().unwrap();
        let path = hung.path().join(format!("{}-a", crate::support::hung_fs::LOOKUP_HANGS));
        for naming in [Naming::direct(), Naming::md5(dir.path())] {
            let space = LockSpace::open(naming).unwrap();
            let started = Instant::now();
            let image = Request::exclusive(lockspace::Target::image(&path));
            expect_stuck(space.acquire(A, image, Wait::within(SHORT)), &path);
            assert!(started.elapsed() >= SHORT);
            // Or the folder of one that is yet to be made.
            let (below, started) = (path.join("new"), Instant::now());
            let image = Request::exclusive(lockspace::Target::new_image(&below));
            expect_stuck(space.acquire(A, image, Wait::within(SHORT)), &below);
            assert!(started.elapsed() >= SHORT);
            assert_eq!(space.list(), []);
        }
        hung.answer_all();
    });
}
