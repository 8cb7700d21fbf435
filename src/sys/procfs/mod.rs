//! `/proc`: what descriptors carry, which locks there are, what is mounted, who has what open.
//!
//! This process is read as `/proc/thread-self`, never as `/proc/self`: that is the main thread, and
//! once it has exited, `/proc/self/fd` and `fdinfo` are empty though the process lives.
//!
//! An entry that is missing is never passed on as "not found", which a caller would take for a file:
//! either its descriptor is not open (`EBADF`), or there is no `/proc`, and the error says so.
//!
//! # References
//! - `proc_pid_fdinfo(5)`, `proc_locks(5)`, `proc_pid_mountinfo(5)`

mod fdinfo;
mod file_key;
mod locks;
mod mountinfo;
mod processes;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

#[cfg(feature = "snapshot")]
pub(crate) use fdinfo::OwnFdinfo;
pub(crate) use fdinfo::{FdInfo, locks_on_descriptor};
pub(crate) use locks::{Entry, FdLock, FileKey, LockKind, Seen, locks_on, tally};
pub(crate) use mountinfo::Mounts;
pub(crate) use processes::{Descriptor, carriers, command_of, is_runnable};

/// What an [`IoError`](crate::IoError) calls the reading of a descriptor's locks.
pub(crate) const READ_FDINFO: &str = "read /proc/thread-self/fdinfo";
/// What it calls the reading of all locks.
pub(crate) const READ_LOCKS: &str = "read /proc/locks";

/// The path by which this process finds what it has open under this number, whatever its name is.
pub(crate) fn path_by_number(number: RawFd) -> String {
    format!("/proc/thread-self/fd/{number}")
}

/// A descriptor of its own, as [`open_path_only`](super::fs::open_path_only) makes it, of what this
/// process has open under this number.
///
/// # Errors
/// `EBADF` if nothing is open under it.
pub(crate) fn open_number(number: RawFd) -> io::Result<OwnedFd> {
    let link = path_by_number(number);
    let opened = super::fs::open_path_only(&link);
    opened.map_err(|errno| missing(Path::new(&link), errno.into()))
}

/// The path that the kernel has for an open file; for one without a path, a word for what it is.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> io::Result<PathBuf> {
    let link = path_by_number(fd.as_raw_fd());
    fs::read_link(&link).map_err(|error| missing(Path::new(&link), error))
}

/// This process's pid in the pid namespace of `/proc`.
pub(crate) fn own_pid() -> Option<u32> {
    // Such as `77/task/79`.
    let link = fs::read_link("/proc/thread-self").ok()?;
    parse(link.iter().next()?.as_bytes())
}

/// The number of the calling thread in the pid namespace of `/proc`.
pub(crate) fn own_tid() -> Option<u32> {
    let link = fs::read_link("/proc/thread-self").ok()?;
    parse(link.file_name()?.as_bytes())
}

/// What is at a path in `/proc` that exists as long as `/proc` does.
fn read(path: &str) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|error| missing(Path::new(path), error))
}

/// An error of looking at this path in `/proc`, which is not "not found".
fn missing(path: &Path, error: io::Error) -> io::Error {
    if error.kind() != io::ErrorKind::NotFound {
        return error;
    }
    let number_is_not_open = ["fd", "fdinfo"].iter().any(|folder| {
        path.parent() == Some(&Path::new("/proc/thread-self").join(folder))
            && path.parent().is_some_and(Path::exists)
    });
    match number_is_not_open {
        true => super::Errno::BADF.into(),
        false => io::Error::other(format!("{} is missing: is /proc mounted?", path.display())),
    }
}

fn parse<T: FromStr>(word: &[u8]) -> Option<T> {
    str::from_utf8(word).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_not_taken_for_a_file() {
        let not_open = open_number(RawFd::MAX).unwrap_err();
        assert_eq!(not_open.raw_os_error(), Some(libc::EBADF));
        assert_eq!(locks_on_descriptor(RawFd::MAX).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let error = read("/proc/no-such-entry").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Other);
        assert_eq!(error.to_string(), "/proc/no-such-entry is missing: is /proc mounted?");
    }

    #[test]
    fn this_process_is_known_by_its_pid() {
        assert_eq!(own_pid(), Some(std::process::id()));
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        assert_eq!(own_tid(), Some(tid.unsigned_abs()));
    }
}
