//! No system call is made under the mutex: while one resource of a space is stuck on a file system
//! that gives no answer, every other one works. And whoever waits with a deadline goes at it,
//! whichever call the file system does not answer.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::forked::ran_alone;
use crate::support::hung_fs::HungFs;
use crate::support::interop::skip_or_fail;
use crate::support::waits;
use lockspace::{
    AcquireError, Lease, LockFileError, LockSpace, Mode, Naming, OwnerId, Request, Target, Wait,
    holders_of,
};
use rustix::fs::minor;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

const STUCK: OwnerId = OwnerId::new(1);
const OTHER: OwnerId = OwnerId::new(2);

/// The file system, or `None` after saying why not. Its drop, also by a failed assertion, frees the
/// stuck threads.
fn hung_fs() -> Option<HungFs> {
    HungFs::mount().map_err(|why| skip_or_fail("a FUSE file system", &why)).ok()
}

/// One of which nothing hangs yet. What a failed test leaves open on it must be leaked: a close may
/// hang until its drop, and fails after that.
fn answering_fs() -> Option<HungFs> {
    HungFs::mount_answering().map_err(|why| skip_or_fail("a FUSE file system", &why)).ok()
}

/// A space whose holds a failed test leaves.
fn leaked_space() -> &'static LockSpace {
    Box::leak(Box::new(LockSpace::open(Naming::direct()).unwrap()))
}

/// A wait that is over soon, but long enough for what does not hang, also on a busy machine.
fn shortly() -> Wait {
    Wait::within(Duration::from_millis(300))
}

/// Acquires in a thread of its own, which will be stuck.
fn start(
    space: &LockSpace,
    owner: OwnerId,
    mode: Mode,
    path: &Path,
) -> JoinHandle<Result<Lease, AcquireError>> {
    let (space, path) = (space.clone(), path.to_owned());
    thread::spawn(move || space.acquire(owner, Request::new(mode, &path), Wait::NO))
}

/// Runs `body` in a thread of its own, so that the test fails, and does not hang, if it never
/// returns.
#[track_caller]
fn promptly<T: Send + 'static>(
    space: &LockSpace,
    path: &Path,
    body: impl FnOnce(&LockSpace, &Path) -> T + Send + 'static,
) -> T {
    let (space, path) = (space.clone(), path.to_owned());
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(body(&space, &path)));
    match result.recv_timeout(Duration::from_secs(60)) {
        Ok(result) => result,
        Err(error) => panic!("it is stuck, or has panicked: {error}"),
    }
}

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
        let acquire = |space: &LockSpace, name: &Path, wait| {
            space.acquire(OTHER, Request::exclusive(name), wait)
        };
        drop(acquire(&space, name, Wait::NO).unwrap());
        let scanner = match silent_scanner(&disk) {
            Ok(scanner) => scanner,
            Err(error) => return skip_or_fail("fanotify", &error.to_string()),
        };
        let refused = promptly(&space, name, move |space, name| acquire(space, name, shortly()));
        assert!(matches!(refused, Err(AcquireError::Unresponsive { .. })), "{refused:?}");
        drop(scanner);
        // What the helper was given late is given back.
        drop(acquire(&space, name, Wait::within(Duration::from_secs(60))).unwrap());
    }
}

/// Nobody but a helper removes it, and the only one that was there has got work.
#[test]
fn a_watch_that_a_wait_has_left_is_removed_although_the_helper_hangs() {
    if ran_alone() {
        return;
    }
    let Some(hung) = hung_fs() else { return };
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let [space, other] = [(); 2].map(|()| LockSpace::open(Naming::verbatim(dir.path())).unwrap());
    space.create("disk").unwrap();
    let held = other.acquire(OTHER, Request::exclusive("disk"), Wait::NO).unwrap();
    let waiting = waits::start({
        let space = space.clone();
        move || space.acquire(OTHER, Request::exclusive("disk"), Wait::within(waits::LONG))
    });
    let waiting = waiting.watches();
    drop(held);
    let lease = waiting.join().unwrap();
    let path = hung.path().join("a");
    let refused = leaked_space().acquire(STUCK, Request::exclusive(&path), shortly());
    assert!(matches!(refused, Err(AcquireError::Unresponsive { .. })), "{refused:?}");
    waits::eventually("the watch is removed", || waits::watches() == 0);
    drop(lease);
}

/// Every verb, on resources that are not stuck.
fn every_verb(space: &LockSpace, dir: &Path) {
    let [image, base, new] = ["a.raw", "base.raw", "new.raw"].map(|name| dir.join(name));
    fs::write(&image, "").unwrap();
    fs::write(&base, "").unwrap();

    let lease = space.acquire(OTHER, Request::exclusive(&image), Wait::NO).unwrap();
    let refused = space.acquire(STUCK, Request::exclusive(&image), Wait::NO);
    assert!(matches!(refused, Err(AcquireError::Busy(_))));
    lease.verify().unwrap();
    let held: Vec<_> = space.list().into_iter().map(|held| held.name).collect();
    assert_eq!(held, [image.as_os_str()], "what is still being acquired is not held");
    let holders = space.holders(&image).unwrap();
    assert_eq!(holders.len(), 1, "{holders:?}");
    lease.keep();
    let lease = space.retake(OTHER, &image).unwrap();
    lease.release().unwrap();

    for _ in 0..2 {
        space.acquire(OTHER, Request::shared(&base), Wait::NO).unwrap().keep();
    }
    space.release(OTHER, &base).unwrap();
    assert_eq!(space.release_owner(OTHER).holds, 1);

    space.create(&new).unwrap();
    space.delete(&new).unwrap();
    assert!(!new.exists());
    assert_eq!(space.list(), []);
}

#[test]
fn a_stuck_resource_delays_no_verb_on_others() {
    let Some(hung) = hung_fs() else { return };
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::direct()).unwrap();
    let path = hung.path().join("a.raw");
    let stuck = start(&space, STUCK, Mode::Exclusive, &path);
    hung.wait_for_open(1);

    promptly(&space, dir.path(), every_verb);
    // Nor do these of the stuck one's owner, who holds nothing yet.
    promptly(&space, &path, |space, _| assert_eq!(space.release_owner(STUCK).holds, 0));
    promptly(&space, &path, |space, path| space.release(STUCK, path).unwrap_err());
    promptly(&space, &path, |space, path| space.retake(STUCK, path).unwrap_err());
    promptly(&space, dir.path(), |_, dir| {
        let other = LockSpace::open(Naming::md5(dir.join("locks"))).unwrap();
        other.acquire(OTHER, Request::exclusive("b").auto_create(), Wait::NO).unwrap().keep();
    });

    assert!(!stuck.is_finished());
    hung.answer_all();
    let lease = stuck.join().unwrap().expect("granted once the file system answers");
    assert_eq!((lease.mode(), lease.owner()), (Mode::Exclusive, STUCK));
    lease.verify().unwrap();
    assert_eq!(space.list().len(), 1);
    lease.release().unwrap();
    assert_eq!(space.list(), []);
}

#[test]
fn what_the_stuck_acquire_excludes_is_refused_at_once() {
    let Some(hung) = hung_fs() else { return };
    let space = LockSpace::open(Naming::direct()).unwrap();
    let [exclusive, shared] = ["exclusive", "shared"].map(|name| hung.path().join(name));
    let stuck = [(Mode::Exclusive, &exclusive), (Mode::Shared, &shared)]
        .map(|(mode, path)| start(&space, STUCK, mode, path));
    hung.wait_for_open(2);

    for (held, path, asked) in [
        (Mode::Exclusive, &exclusive, Mode::Exclusive),
        (Mode::Exclusive, &exclusive, Mode::Shared),
        (Mode::Shared, &shared, Mode::Exclusive),
    ] {
        let refused = promptly(&space, path, move |space, path| {
            space.acquire(OTHER, Request::new(asked, path), Wait::NO).unwrap_err()
        });
        let AcquireError::Busy(busy) = refused else { panic!("{refused}") };
        assert_eq!((busy.held(), busy.owners()), (Some(held), &[STUCK][..]));
        assert_eq!((busy.name(), busy.asked()), (path.as_os_str(), asked));
    }
    let refused = promptly(&space, &shared, |space, path| space.create(path).unwrap_err());
    assert!(matches!(refused, LockFileError::Busy(busy) if busy.owners() == [STUCK]));
    let refused = promptly(&space, &exclusive, |space, path| space.delete(path).unwrap_err());
    assert!(matches!(refused, LockFileError::Busy(busy) if busy.owners() == [STUCK]));

    assert!(stuck.iter().all(|stuck| !stuck.is_finished()));
    hung.answer_all();
    for stuck in stuck {
        stuck.join().unwrap().unwrap().verify().unwrap();
    }
}

#[test]
fn a_try_that_can_share_waits_for_the_stuck_one_and_joins_it() {
    let Some(hung) = hung_fs() else { return };
    let space = LockSpace::open(Naming::direct()).unwrap();
    let path = hung.path().join("base.raw");
    let stuck = start(&space, STUCK, Mode::Shared, &path);
    hung.wait_for_open(1);
    let (tell, second_is) = mpsc::channel();
    let second = {
        let (space, path) = (space.clone(), path.clone());
        thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            space.acquire(OTHER, Request::shared(&path), Wait::NO)
        })
    };
    let stat = format!("/proc/self/task/{}/stat", second_is.recv().unwrap());
    // It sleeps, or it has wrongly returned.
    let sleeps = || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "));
    while !sleeps() && !second.is_finished() {
        thread::yield_now();
    }
    hung.answer_all();
    let leases = [stuck, second].map(|thread| thread.join().unwrap().unwrap());
    let held = &space.list()[0];
    assert_eq!(held.owners.keys().collect::<Vec<_>>(), [&STUCK, &OTHER]);
    drop(leases);
    assert_eq!(space.list(), []);
}

#[test]
fn two_stuck_resources_do_not_wait_for_each_other() {
    let Some(hung) = hung_fs() else { return };
    let space = LockSpace::open(Naming::direct()).unwrap();
    let stuck =
        ["a", "b"].map(|name| start(&space, STUCK, Mode::Exclusive, &hung.path().join(name)));
    hung.wait_for_open(2); // fails if the second never gets as far
    hung.answer_all();
    for stuck in stuck {
        stuck.join().unwrap().unwrap().release().unwrap();
    }
}

#[test]
fn who_holds_a_file_whose_open_hangs_is_told_at_once() {
    let Some(hung) = hung_fs() else { return };
    let space = LockSpace::open(Naming::direct()).unwrap();
    let [held, free] = ["held", "free"].map(|name| hung.path().join(name));
    let stuck = start(&space, STUCK, Mode::Exclusive, &held);
    hung.wait_for_open(1);
    for path in [&held, &free] {
        let holders = promptly(&space, path, |_, path| holders_of(path).unwrap());
        assert_eq!(holders, []);
        let holders = promptly(&space, path, |space, path| space.holders(path).unwrap());
        assert_eq!(holders, []);
    }
    hung.answer_all();
    let lease = stuck.join().unwrap().unwrap();
    let holders = promptly(&space, &held, |_, path| holders_of(path).unwrap());
    assert_eq!(holders.len(), 1, "{holders:?}");
    drop(lease);
}

#[test]
fn a_given_up_wait_for_an_opened_file_stalls_no_other_resource() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::direct()).unwrap();
    let Some(hung) = answering_fs() else { return };
    let [path, local] = [hung.path().join("a.raw"), dir.path().join("b.raw")];
    fs::write(&local, "").unwrap();
    let image: &File = Box::leak(Box::new(File::options().write(true).open(&path).unwrap()));
    hung.hang_attributes(0);
    hung.hang_closes();
    // The first one's work hangs, the others' never begins, and has a duplicate of the descriptor.
    for _ in 0..3 {
        let given_up = promptly(&space, &path, move |space, _| {
            let request = Request::exclusive(Target::opened("a", image));
            space.acquire(STUCK, request, shortly()).unwrap_err()
        });
        assert!(matches!(given_up, AcquireError::Unresponsive { .. }), "{given_up}");
        hung.wait_for_attributes(1);
    }
    promptly(&space, &local, |space, local| {
        let wait = Wait::within(Duration::from_secs(3600));
        space.acquire(OTHER, Request::exclusive(local), wait).unwrap().release().unwrap();
    });
}

#[test]
fn a_wait_goes_at_its_deadline_though_what_is_mounted_on_its_lock_file_hangs() {
    let Some(hung) = hung_fs() else { return };
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    space.create("disk").unwrap();
    let lock_file = dir.path().join("disk");
    if let Err(errno) = mount_bind(hung.path().join("a"), &lock_file) {
        return skip_or_fail("a bind mount", &errno.to_string());
    }
    let _mounted = Mounted(&lock_file);
    let given_up = promptly(&space, &lock_file, |space, _| {
        space.acquire(STUCK, Request::exclusive("disk"), shortly()).unwrap_err()
    });
    assert!(matches!(given_up, AcquireError::Unresponsive { .. }), "{given_up}");
}

#[test]
fn what_is_held_is_busy_at_the_deadline_also_where_a_file_system_might_hang() {
    let [first, second] = [leaked_space(), leaked_space()];
    let Some(answering) = answering_fs() else { return };
    let path = answering.path().join("a.raw");
    first.acquire(STUCK, Request::exclusive(&path), Wait::NO).unwrap().keep();
    for time in (300..400).step_by(20).map(Duration::from_millis) {
        let refused = second.acquire(OTHER, Request::exclusive(&path), Wait::within(time));
        let refused = refused.unwrap_err();
        let AcquireError::Busy(busy) = refused else { panic!("after {time:?}: {refused}") };
        assert_eq!(busy.name(), path);
        // And it is nobody's any more.
        let refused = second.acquire(OTHER, Request::exclusive(&path), Wait::NO);
        assert!(matches!(refused, Err(AcquireError::Busy(_))), "after {time:?}: {refused:?}");
    }
    first.release(STUCK, &path).unwrap();
    second.acquire(OTHER, Request::exclusive(&path), Wait::NO).unwrap().release().unwrap();
}

/// A space that holds `name` in `hung`; another, whose requests it refuses; and the path.
fn held_in(hung: &HungFs, mode: Mode) -> (&'static LockSpace, &'static LockSpace, PathBuf) {
    let (holder, space) = (leaked_space(), leaked_space());
    let path = hung.path().join("a.raw");
    holder.acquire(STUCK, Request::new(mode, &path), Wait::NO).unwrap().keep();
    (holder, space, path)
}

#[test]
fn a_wait_goes_at_its_deadline_whichever_question_for_attributes_hangs() {
    for answered in 0..12 {
        let Some(hung) = answering_fs() else { return };
        let (_, space, path) = held_in(&hung, Mode::Exclusive);
        hung.hang_attributes(answered);
        let error = promptly(space, &path, |space, path| {
            let wait = Wait::within(Duration::from_millis(150));
            space.acquire(OTHER, Request::exclusive(path), wait).unwrap_err()
        });
        let known = matches!(error, AcquireError::Unresponsive { .. } | AcquireError::Busy(_));
        assert!(known, "after {answered}: {error}");
    }
}

/// A local image behind a file system that hangs.
#[test]
fn a_wait_goes_at_its_deadline_wherever_on_the_way_to_a_local_file_it_hangs() {
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
        let error = promptly(space, &path, |space, path| {
            space.acquire(OTHER, Request::exclusive(path), shortly()).unwrap_err()
        });
        let known = matches!(error, AcquireError::Unresponsive { .. } | AcquireError::Busy(_));
        assert!(known, "after {let_through}: {error}");
    }
}

#[test]
fn a_waiting_upgrade_goes_at_its_deadline_whichever_question_for_attributes_hangs() {
    for answered in 0..3 {
        let Some(hung) = answering_fs() else { return };
        let (_, space, path) = held_in(&hung, Mode::Shared);
        let request = Request::shared(&path).upgradable();
        let lease = space.acquire(OTHER, request, Wait::NO).unwrap();
        hung.hang_attributes(answered);
        let refused = promptly(space, &path, |_, _| {
            let mut lease = lease;
            let refused = lease.upgrade(Wait::within(Duration::from_millis(150))).unwrap_err();
            lease.keep();
            refused
        });
        assert!(matches!(refused, AcquireError::Busy(_)), "after {answered}: {refused}");
    }
}

#[test]
fn a_wait_goes_at_its_deadline_though_the_close_of_what_it_waited_for_hangs() {
    let Some(hung) = answering_fs() else { return };
    let (_, space, path) = held_in(&hung, Mode::Exclusive);
    hung.hang_closes();
    let refused = promptly(space, &path, |space, path| {
        space.acquire(OTHER, Request::exclusive(path), shortly()).unwrap_err()
    });
    assert!(matches!(refused, AcquireError::Busy(_)), "{refused}");
    // By a helper.
    hung.wait_for_close(1);
}

#[test]
fn several_are_waited_for_no_longer_though_the_close_of_one_that_is_held_hangs() {
    let Some(hung) = answering_fs() else { return };
    let (_, space, path) = held_in(&hung, Mode::Exclusive);
    hung.hang_closes();
    let refused = promptly(space, &path, |space, path| {
        space.acquire_all(OTHER, [Request::exclusive(path)], shortly()).unwrap_err()
    });
    // Behind the close, nothing more is told of it.
    let known = matches!(refused, AcquireError::Unresponsive { .. } | AcquireError::Busy(_));
    assert!(known, "{refused}");
    hung.wait_for_close(1);
}

#[test]
fn several_are_waited_for_no_longer_though_to_give_back_one_of_them_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let (holder, space) = (leaked_space(), leaked_space());
    let Some(hung) = answering_fs() else { return };
    let [ours, free, held] =
        [hung.path().join("a.raw"), dir.path().join("b.raw"), dir.path().join("c.raw")];
    fs::write(&free, "").unwrap();
    fs::write(&held, "").unwrap();
    let held_there = holder.acquire(STUCK, Request::exclusive(&held), Wait::NO).unwrap();
    hung.hang_closes();
    let refused = promptly(space, &ours, {
        let (free, held) = (free.clone(), held.clone());
        move |space, ours| {
            let all = [ours, &free, &held].map(Request::exclusive);
            space.acquire_all(OTHER, all, shortly()).unwrap_err()
        }
    });
    assert!(matches!(refused, AcquireError::Busy(_)), "{refused}");
    hung.wait_for_close(1);
    assert_eq!(space.list(), [], "what is being given back is not held");
    holder.acquire(STUCK, Request::exclusive(&free), Wait::NO).unwrap().release().unwrap();
    held_there.release().unwrap();

    hung.answer_all();
    space.acquire(OTHER, Request::exclusive(&ours), Wait::NO).unwrap().release().unwrap();
}

#[test]
fn who_waits_where_a_file_system_might_hang_is_told_of_a_close() {
    let Some(hung) = answering_fs() else { return };
    let (holder, space, path) = held_in(&hung, Mode::Exclusive);
    let file = fs::metadata(&path).unwrap();
    let watched = format!("ino:{:x} sdev:{:x} ", file.ino(), minor(file.dev()));
    let is_watched = || {
        let infos = fs::read_dir("/proc/self/fdinfo").unwrap();
        let infos = infos.filter_map(|info| fs::read_to_string(info.unwrap().path()).ok());
        infos.into_iter().any(|info| info.contains(&watched))
    };
    let waiter = {
        let path = path.clone();
        thread::spawn(move || {
            let wait = Wait::within(Duration::from_secs(60));
            space.acquire(OTHER, Request::exclusive(&path), wait)?.release().unwrap();
            Ok::<_, AcquireError>(())
        })
    };
    while !is_watched() && !waiter.is_finished() {
        thread::yield_now();
    }
    holder.release(STUCK, &path).unwrap();
    waiter.join().unwrap().unwrap();
    assert!(!is_watched());
}
