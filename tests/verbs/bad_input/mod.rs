//! Whatever is asked, and wherever: a typed error that names it, nothing held is lost, nothing is
//! left open or behind.

mod descriptors;
mod directories;
mod messages;
mod names;
mod not_files;
mod permissions;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::forked::in_child;
use crate::support::locks::held;
use crate::support::process::open_numbers;
use lockspace::{
    AcquireError, InvalidRequest, IoError, Lease, LockSpace, Mode, Naming, OwnerId, Request,
    Target, Wait,
};
use rustix::io::Errno;
use tempfile::TempDir;

/// An owner with a number that is seen in messages.
const VM: OwnerId = OwnerId::new(4711);

/// A directory that every user may enter, so that `nobody` meets what the test is about.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    allow(dir.path(), 0o755);
    dir
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn file(path: PathBuf, mode: u32) -> PathBuf {
    fs::write(&path, "content").unwrap();
    allow(&path, mode);
    path
}

#[track_caller]
fn granted(space: &LockSpace, request: Request<'_>) -> Lease {
    space.acquire(VM, request, Wait::NO).unwrap()
}

#[track_caller]
fn refused(space: &LockSpace, request: Request<'_>) -> AcquireError {
    match space.acquire(VM, request, Wait::NO) {
        Err(error) => error,
        Ok(lease) => panic!("granted: {lease:?}"),
    }
}

#[track_caller]
fn bad(error: AcquireError, named: impl AsRef<OsStr>) -> InvalidRequest {
    assert_eq!(error.name(), Some(named.as_ref()));
    match error {
        AcquireError::Invalid { why, .. } => why,
        error => panic!("not bad: {error:?}"),
    }
}

#[track_caller]
fn assert_io(error: AcquireError, call: &str, path: &Path, errno: Errno) {
    match error {
        AcquireError::Io(error) => assert_io_error(&error, call, path, errno),
        error => panic!("no I/O error: {error:?}"),
    }
}

#[track_caller]
fn assert_io_error(error: &IoError, call: &str, path: &Path, errno: Errno) {
    assert_eq!((error.call, &*error.path), (call, path), "{error}");
    assert_eq!(Errno::from_io_error(&error.source), Some(errno), "{error}");
}

/// Runs `work` in a child, on a space that holds something. Afterwards that must still be held, and
/// nothing else, and the same descriptors must be open.
#[track_caller]
fn undisturbed(naming: Naming, work: impl FnOnce(&LockSpace)) {
    let bystander = tempfile::NamedTempFile::new().unwrap();
    in_child(|| {
        let space = LockSpace::open(naming).unwrap();
        let lease = granted(&space, Request::exclusive(Target::opened("bystander", &bystander)));
        let before = open_numbers();
        work(&space);
        assert_eq!(open_numbers(), before, "descriptors leaked, or were closed");
        assert_eq!(space.list().len(), 1);
        lease.verify().unwrap();
        assert_eq!(held(bystander.path()), Some(Mode::Exclusive));
    });
}
