//! A lock file that cannot be removed, is gone, or is somebody else's by now.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::interop::skip_or_fail;
use crate::support::locks::is_free_for_others;
use crate::support::spaces::{A, B, hold, names_in, space_in};
use lockspace::{Mode, ReleaseError, Request, Wait};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use tempfile::TempDir;

pub(crate) fn made<'a>(mode: Mode, name: &'a str) -> Request<'a> {
    Request::new(mode, name).auto_create()
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
        let lease = space.acquire(A, made(mode, "a"), Wait::NO).unwrap();

        let Some(unremovable) = Unremovable::new(dir.path()) else { return };
        assert_leftover(&lease.release().unwrap_err(), &path);
        assert_eq!(space.list(), []);
        assert!(path.exists());
        assert!(is_free_for_others(&path));
        // A drop tells nobody, and ends the hold as well. So does whoever asked for no removal.
        drop(space.acquire(B, made(mode, "a"), Wait::NO).unwrap());
        assert!(is_free_for_others(&path));
        let other = space_in(dir.path());
        other.acquire(B, Request::exclusive("a"), Wait::NO).unwrap().release().unwrap();
        assert!(path.exists());

        drop(unremovable);
        space.acquire(B, made(mode, "a"), Wait::NO).unwrap().release().unwrap();
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
    space.acquire(A, Request::exclusive("existing"), Wait::NO).unwrap().keep();

    let Some(unremovable) = Unremovable::new(dir.path()) else { return };
    assert_leftover(&space.release(A, "a").unwrap_err(), &dir.path().join("a"));
    let released = space.release_owner(A);
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
        let lease = space.acquire(A, made(mode, "a"), Wait::NO).unwrap();
        let path = lease.path().to_owned();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody's").unwrap();
        lease.release().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"somebody's");
    }
}
