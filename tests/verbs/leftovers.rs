//! What happens when somebody meddles: a lock file that cannot be removed, a directory that is
//! replaced, a file that is renamed, a lock that is taken away; and what lives how long.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::support::forked::{self, Kind, Lock, fork, is_free_for_others};
use crate::support::interop::skip_or_fail;
use lockspace::{
    AcquireError, Lease, LockFileError, LockSpace, Mode, Naming, OwnerId, ReleaseError, Request,
    VerifyError, Wait,
};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use tempfile::TempDir;

const OWNER: OwnerId = OwnerId::new(1);
const OTHER: OwnerId = OwnerId::new(2);

fn space_in(dir: &Path) -> LockSpace {
    LockSpace::open(Naming::verbatim(dir)).unwrap()
}

fn made<'a>(mode: Mode, name: &'a str) -> Request<'a> {
    Request::new(mode, name).auto_create()
}

fn hold(space: &LockSpace, name: &str) -> Lease {
    space.acquire(OWNER, made(Mode::Exclusive, name), Wait::NO).unwrap()
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A directory that nothing can be removed from until this is dropped.
struct Unremovable<'a> {
    dir: &'a Path,
    opened: File,
}

impl<'a> Unremovable<'a> {
    /// `None` after saying why it cannot be made so.
    fn new(dir: &'a Path) -> Option<Self> {
        let opened = File::open(dir).unwrap();
        let done = if rustix::process::geteuid().is_root() {
            // Whom permissions do not stop, but this flag does (`chattr +a`).
            ioctl_getflags(&opened).and_then(|old| ioctl_setflags(&opened, old | IFlags::APPEND))
        } else {
            fs::set_permissions(dir, Permissions::from_mode(0o500)).unwrap();
            Ok(())
        };
        match done {
            Ok(()) => Some(Self { dir, opened }),
            Err(error) => {
                skip_or_fail("an append-only directory", &error.to_string());
                None
            }
        }
    }
}

impl Drop for Unremovable<'_> {
    fn drop(&mut self) {
        if rustix::process::geteuid().is_root() {
            let _ = ioctl_getflags(&self.opened)
                .and_then(|old| ioctl_setflags(&self.opened, old - IFlags::APPEND));
        } else {
            let _ = fs::set_permissions(self.dir, Permissions::from_mode(0o700));
        }
    }
}

#[track_caller]
fn assert_leftover(error: &ReleaseError, path: &Path) {
    let ReleaseError::Leftover { name, source } = error else { panic!("{error}") };
    assert_eq!(Some(&**name), path.file_name());
    assert_eq!(source.path, path);
    assert_eq!(source.source.kind(), io::ErrorKind::PermissionDenied);
    assert!(error.to_string().contains("unlinkat"), "{error}");
}

#[test]
fn a_lock_file_that_cannot_be_removed_is_reported_and_blocks_nobody() {
    for mode in [Mode::Exclusive, Mode::Shared] {
        let dir = TempDir::new().unwrap();
        let space = space_in(dir.path());
        let path = dir.path().join("a");
        let lease = space.acquire(OWNER, made(mode, "a"), Wait::NO).unwrap();

        let Some(unremovable) = Unremovable::new(dir.path()) else { return };
        assert_leftover(&lease.release().unwrap_err(), &path);
        assert_eq!(space.list(), []);
        assert!(path.exists());
        assert!(is_free_for_others(&path));
        // A drop tells nobody, and ends the hold as well. So does whoever asked for no removal.
        drop(space.acquire(OTHER, made(mode, "a"), Wait::NO).unwrap());
        assert!(is_free_for_others(&path));
        let other = space_in(dir.path());
        other.acquire(OTHER, Request::exclusive("a"), Wait::NO).unwrap().release().unwrap();
        assert!(path.exists());

        drop(unremovable);
        space.acquire(OTHER, made(mode, "a"), Wait::NO).unwrap().release().unwrap();
        assert_eq!(names_in(dir.path()), [""; 0]);
    }
}

#[test]
fn releases_of_kept_holds_report_what_could_not_be_removed() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let names = ["a", "b", "c"];
    for name in names {
        hold(&space, name).keep();
    }
    space.create("existing").unwrap();
    space.acquire(OWNER, Request::exclusive("existing"), Wait::NO).unwrap().keep();

    let Some(unremovable) = Unremovable::new(dir.path()) else { return };
    assert_leftover(&space.release(OWNER, "a").unwrap_err(), &dir.path().join("a"));
    let released = space.release_owner(OWNER);
    assert_eq!(released.holds, 3);
    let [first, second] = &released.leftovers[..] else { panic!("{:?}", released.leftovers) };
    assert_leftover(first, &dir.path().join("b"));
    assert_leftover(second, &dir.path().join("c"));
    assert_eq!(space.list(), []);
    for name in names {
        assert!(is_free_for_others(&dir.path().join(name)));
    }

    drop(unremovable);
    for name in names {
        hold(&space, name).release().unwrap();
    }
    assert_eq!(names_in(dir.path()), ["existing"]);
}

#[test]
fn a_lock_file_that_is_gone_already_is_no_leftover() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let lease = hold(&space, "a");
    fs::remove_file(lease.path()).unwrap();
    lease.release().unwrap();
}

#[test]
fn a_release_never_removes_a_file_that_somebody_else_put_there() {
    for mode in [Mode::Exclusive, Mode::Shared] {
        let dir = TempDir::new().unwrap();
        let space = space_in(dir.path());
        let lease = space.acquire(OWNER, made(mode, "a"), Wait::NO).unwrap();
        let path = lease.path().to_owned();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody's").unwrap();
        lease.release().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    }
}

/// Every call that would open a lock file by the directory's path, on names that are there and on
/// names that are not, refused as the directory is elsewhere.
#[track_caller]
fn assert_all_moved(space: &LockSpace, path: &Path, names: &[&str]) {
    for &name in names {
        let is_it = |n: &OsStr, d: &Path| n == name && d == path;
        for mode in [Mode::Exclusive, Mode::Shared] {
            for request in [made(mode, name), Request::new(mode, name)] {
                // A wait opens the file in another way, at first.
                for wait in [Wait::NO, Wait::within(Duration::from_secs(60))] {
                    let refused = space.acquire(OTHER, request.clone(), wait).unwrap_err();
                    let AcquireError::DirectoryReplaced { name, directory } = &refused else {
                        panic!("{name}: {refused}");
                    };
                    assert!(is_it(name, directory), "{refused}");
                }
            }
        }
        let refused = space.create(name).unwrap_err();
        let LockFileError::DirectoryReplaced { name: n, directory } = &refused else {
            panic!("{name}: {refused}");
        };
        assert!(is_it(n, directory), "{refused}");
        let refused = space.delete(name).unwrap_err();
        let LockFileError::DirectoryReplaced { name: n, directory } = &refused else {
            panic!("{name}: {refused}");
        };
        assert!(is_it(n, directory), "{refused}");
    }
}

/// A space in a directory with two files, `held` by a lease and `free`.
fn space_with_two(dir: &Path) -> (LockSpace, Lease) {
    let space = space_in(dir);
    space.create("free").unwrap();
    let lease = hold(&space, "held");
    lease.verify().unwrap();
    (space, lease)
}

/// The lease of [`space_with_two`], whose directory is at `now`, holds still, and its release
/// removes its file there.
#[track_caller]
fn assert_holds_until_released(space: &LockSpace, lease: Lease, now: &Path) {
    assert!(!is_free_for_others(&now.join("held")));
    assert_eq!(space.list().len(), 1);
    assert!(matches!(lease.verify(), Err(VerifyError::Replaced { .. })));
    lease.release().unwrap();
    assert_eq!(names_in(now), ["free"]);
    assert_eq!(space.list(), []);
}

#[test]
fn a_directory_renamed_away_and_made_anew_is_found_out() {
    let root = TempDir::new().unwrap();
    let [path, away] = ["locks", "away"].map(|name| root.path().join(name));
    let (space, lease) = space_with_two(&path);
    fs::rename(&path, &away).unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    fs::create_dir(&path).unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    // Also where the new directory has a file of that name.
    fs::write(path.join("free"), "").unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    assert_eq!(names_in(&path), ["free"]);
    assert_eq!(names_in(&away), ["free", "held"]);
    assert_holds_until_released(&space, lease, &away);

    // Moved back, it is where it was.
    fs::remove_dir_all(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    hold(&space, "new").release().unwrap();
}

#[test]
fn a_directory_that_moves_is_found_out_at_once_however_fast_acquires_come() {
    for _ in 0..20 {
        let root = TempDir::new().unwrap();
        let [path, away] = ["locks", "away"].map(|name| root.path().join(name));
        let [space, second] = [(); 2].map(|()| space_in(&path));
        space.create("free").unwrap();
        let lease = hold(&space, "held");
        let acquire = || second.acquire(OTHER, Request::exclusive("free"), Wait::NO);
        (0..20).for_each(|_| drop(acquire().unwrap()));
        fs::rename(&path, &away).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("free"), "").unwrap();
        fs::write(path.join("held"), "").unwrap();
        let refused = second.delete("held");
        assert!(matches!(
            refused,
            Err(LockFileError::DirectoryReplaced { .. } | LockFileError::Busy(_))
        ));
        let refused = second.acquire(OTHER, Request::exclusive("held"), Wait::NO);
        let said =
            matches!(refused, Err(AcquireError::DirectoryReplaced { .. } | AcquireError::Busy(_)));
        assert!(said, "{refused:?}");
        assert!(matches!(acquire(), Err(AcquireError::DirectoryReplaced { .. })));
        assert_all_moved(&second, &path, &["free", "new"]);
        assert_eq!([names_in(&path), names_in(&away)], [["free", "held"], ["free", "held"]]);
        assert_holds_until_released(&space, lease, &away);
    }
}

#[test]
fn a_removed_directory_is_found_out() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("locks");
    let (space, lease) = space_with_two(&path);
    fs::remove_dir_all(&path).unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    assert!(!path.exists());
    assert!(matches!(lease.verify(), Err(VerifyError::Replaced { .. })));
    lease.release().expect("the hold ends, and there is nothing to remove");
    assert_eq!(space.list(), []);

    fs::create_dir(&path).unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    assert_eq!(names_in(&path), [""; 0]);
}

#[test]
fn a_symlink_in_the_path_that_is_turned_elsewhere_is_found_out() {
    let root = TempDir::new().unwrap();
    let [link, old, new] = ["link", "old", "new"].map(|name| root.path().join(name));
    fs::create_dir(&old).unwrap();
    fs::create_dir_all(new.join("locks")).unwrap();
    symlink(&old, &link).unwrap();
    let path = link.join("locks");
    let (space, lease) = space_with_two(&path);
    assert_eq!(lease.path(), path.join("held"));

    fs::remove_file(&link).unwrap();
    symlink(&new, &link).unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    assert_eq!(names_in(&new.join("locks")), [""; 0]);
    assert_eq!(names_in(&old.join("locks")), ["free", "held"]);
    assert_holds_until_released(&space, lease, &old.join("locks"));
}

#[test]
fn what_is_held_is_busy_rather_than_moved() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("locks");
    let (space, lease) = space_with_two(&path);
    fs::remove_dir_all(&path).unwrap();
    let refused = space.acquire(OTHER, Request::exclusive("held"), Wait::NO);
    assert!(matches!(refused, Err(AcquireError::Busy(busy)) if busy.owners() == [OWNER]));
    assert!(matches!(space.delete("held"), Err(LockFileError::Busy(_))));
    drop(lease);
}

#[test]
fn a_lease_outlives_the_last_handle_of_its_space_and_kept_holds_do_not() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let lease = hold(&space, "leased");
    hold(&space, "kept").keep();
    let also = space.clone();
    drop(space);
    assert_eq!(names_in(dir.path()), ["kept", "leased"]);
    drop(also);
    assert_eq!(names_in(dir.path()), ["leased"]);

    lease.verify().unwrap();
    assert!(!is_free_for_others(lease.path()));
    let other = space_in(dir.path());
    let refused = other.acquire(OTHER, Request::shared("leased"), Wait::NO);
    assert!(matches!(refused, Err(AcquireError::Busy(_))));
    lease.release().unwrap();
    assert_eq!(names_in(dir.path()), [""; 0]);
}

#[test]
fn what_is_kept_after_the_last_handle_is_gone_ends_with_the_last_lease() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let [first, last] = ["first", "last"].map(|name| hold(&space, name));
    drop(space);
    first.keep();
    assert_eq!(names_in(dir.path()), ["first", "last"]);
    drop(last);
    assert_eq!(names_in(dir.path()), [""; 0]);
}

#[test]
fn verify_finds_a_file_that_is_renamed_replaced_or_unlinked() {
    let meddlings: [fn(&Path); 3] = [
        |path| fs::rename(path, path.with_extension("away")).unwrap(),
        |path| {
            fs::write(path.with_extension("new"), "").unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        },
        |path| fs::remove_file(path).unwrap(),
    ];
    for meddle in meddlings {
        for direct in [false, true] {
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("a");
            fs::write(&path, "").unwrap();
            let space = match direct {
                true => LockSpace::open(Naming::direct()).unwrap(),
                false => space_in(dir.path()),
            };
            let name = if direct { path.as_os_str() } else { OsStr::new("a") };
            let lease = space.acquire(OWNER, Request::exclusive(name), Wait::NO).unwrap();
            lease.verify().unwrap();
            meddle(&path);
            match lease.verify() {
                Err(VerifyError::Replaced { name: n, path: p }) => {
                    assert_eq!((&*n, &p), (name, &path));
                }
                other => panic!("not found out: {other:?}"),
            }
            lease.release().unwrap();
        }
    }
}

/// The descriptor of this process that is open on `path`.
fn descriptor_of(path: &Path) -> RawFd {
    let path = path.canonicalize().unwrap();
    let found = fs::read_dir("/proc/self/fd")
        .unwrap()
        .flatten()
        .find(|entry| fs::read_link(entry.path()).is_ok_and(|to: PathBuf| to == path));
    found.expect("it is open").file_name().to_str().unwrap().parse().unwrap()
}

#[test]
#[allow(unsafe_code, reason = "no safe way leads to a lease's descriptor")]
fn verify_finds_a_lock_that_a_child_took_away() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let lease = hold(&space, "a");
    let number = descriptor_of(lease.path());
    // SAFETY: the lease keeps it open; the child has it too.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fork(|| assert!(forked::set_lock(fd, Kind::Ofd, Lock::No, 0, 0).unwrap())).join();
    match lease.verify() {
        Err(VerifyError::Unlocked { name, path }) => {
            assert_eq!((name.to_str(), &*path), (Some("a"), lease.path()));
        }
        other => panic!("not found out: {other:?}"),
    }
    // A weaker lock than the one that was granted is no better.
    fork(|| assert!(forked::set_lock(fd, Kind::Ofd, Lock::Shared, 0, 1).unwrap())).join();
    assert!(matches!(lease.verify(), Err(VerifyError::Unlocked { .. })));
    fork(|| assert!(forked::set_lock(fd, Kind::Ofd, Lock::Exclusive, 0, 1).unwrap())).join();
    lease.verify().unwrap();
}

#[test]
fn a_panic_in_a_thread_releases_its_lease_and_the_space_goes_on() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let base = space.acquire(OWNER, made(Mode::Shared, "base"), Wait::NO).unwrap();
    let panicked = {
        let space = space.clone();
        thread::spawn(move || {
            let _exclusive = hold(&space, "a");
            let _shared = space.acquire(OTHER, Request::shared("base"), Wait::NO).unwrap();
            hold(&space, "kept").keep();
            panic!("as a caller's bug would");
        })
    };
    assert!(panicked.join().is_err());
    assert_eq!(names_in(dir.path()), ["base", "kept"]);
    let held: Vec<_> = space.list().into_iter().map(|held| held.owners.len()).collect();
    assert_eq!(held, [1, 1], "the panic took nobody else's hold");
    base.verify().unwrap();
    hold(&space, "a").release().unwrap();
    space.release(OWNER, "kept").unwrap();
    base.release().unwrap();
    assert_eq!(names_in(dir.path()), [""; 0]);
}
