//! `/proc/PID/fdinfo/FD`: which locks a descriptor carries, and which file it is open on.

use std::fs;
use std::io;
use std::os::fd::RawFd;

use super::locks::{Entry, FdLock, FileKey};

/// The locks that one descriptor of this process carries, in the kernel's order.
///
/// A record lock shows only on the descriptor that set it.
///
/// # Errors
///
/// Those of reading `/proc/thread-self/fdinfo/FD`, and `InvalidData` for a `lock:` line that is not
/// understood: what is to prove something must not overlook a lock.
pub(crate) fn locks_on_descriptor(fd: RawFd) -> io::Result<Vec<FdLock>> {
    FdInfo::of_own(fd)?.locks()
}

/// What the kernel tells of one descriptor.
pub(crate) struct FdInfo(Vec<u8>);

impl FdInfo {
    /// Of a descriptor of this process.
    pub(crate) fn of_own(fd: RawFd) -> io::Result<Self> {
        super::read(&format!("/proc/thread-self/fdinfo/{fd}")).map(Self)
    }

    /// What is at this path in `/proc`.
    pub(super) fn read(path: &str) -> io::Result<Self> {
        fs::read(path).map(Self)
    }

    /// The mount that the descriptor was opened on.
    pub(crate) fn mount(&self) -> Option<u64> {
        super::parse(fields(&self.0, b"mnt_id:").next()?)
    }

    /// The inode of its file, as the lock tables have it. Since Linux 5.14.
    pub(super) fn inode(&self) -> Option<u64> {
        super::parse(fields(&self.0, b"ino:").next()?)
    }

    fn locks(&self) -> io::Result<Vec<FdLock>> {
        locks_in(&self.0)
    }

    /// The OFD locks on this file.
    pub(crate) fn ofd_locks_on(&self, file: FileKey) -> Vec<FdLock> {
        let entries = fields(&self.0, b"lock:").filter_map(Entry::parse);
        let ours = entries.filter(|entry| entry.is_ofd() && entry.holds(file));
        ours.map(|entry| entry.lock).collect()
    }
}

/// As [`locks_on_descriptor`], for many descriptors: in half the time for each.
#[cfg(feature = "snapshot")]
#[derive(Debug)]
pub(crate) struct OwnFdinfo {
    directory: std::os::fd::OwnedFd,
    info: Vec<u8>,
}

#[cfg(feature = "snapshot")]
impl OwnFdinfo {
    const PATH: &str = "/proc/thread-self/fdinfo";

    /// For the calling thread.
    pub(crate) fn open() -> io::Result<Self> {
        let directory = crate::sys::fs::open_directory(Self::PATH);
        let directory =
            directory.map_err(|errno| super::missing(Self::PATH.as_ref(), errno.into()))?;
        Ok(Self { directory, info: Vec::with_capacity(1024) })
    }

    /// The locks that the descriptor of this number carries.
    pub(crate) fn locks_on(&mut self, fd: RawFd) -> io::Result<Vec<FdLock>> {
        use io::Read;
        use rustix::fs::{Mode, OFlags};

        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let name = rustix::path::DecInt::new(fd);
        let file = rustix::fs::openat(&self.directory, name, flags, Mode::empty());
        let file = file.map_err(|errno| match errno {
            // The directory is there, and no such number is open.
            super::super::Errno::NOENT => super::super::Errno::BADF,
            errno => errno,
        })?;
        self.info.clear();
        fs::File::from(file).read_to_end(&mut self.info)?;
        locks_in(&self.info)
    }
}

fn locks_in(fdinfo: &[u8]) -> io::Result<Vec<FdLock>> {
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "odd lock line in fdinfo");
    fields(fdinfo, b"lock:")
        .map(|line| Entry::parse(line).map(|entry| entry.lock).ok_or_else(odd))
        .collect()
}

/// What follows this name, in each line that begins with it.
fn fields<'a>(info: &'a [u8], name: &'static [u8]) -> impl Iterator<Item = &'a [u8]> {
    info.split(|&b| b == b'\n').filter_map(|line| Some(line.strip_prefix(name)?.trim_ascii()))
}
