//! A caller's own open file: locked through a duplicate of its descriptor, without a look at any
//! path.
//!
//! The trap: all descriptors of one open file share its lock. Two threads that were handed
//! descriptors of one open file could both see it without a lock and both lock it, and each would
//! believe that it was alone. So the look at what an open file carries and the lock on it are one
//! step, under an [`InodeGuard`].

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use super::check::check_file;
use super::lock_file::{LockError, LockFile, Retried};
use super::refusal::Attempt;
use crate::sync::Monitor;
use crate::sys::fd as descriptor;
use crate::sys::fs::{self, Access};
use crate::sys::procfs::{self, FdInfo, LockKind, locks_on_descriptor};
use crate::types::{FileId, InvalidRequest, IoError, LockSpec, Mode};

/// The inodes whose open files a thread of this process is deciding about.
#[derive(Debug, Default)]
pub(crate) struct InodeLocks(Monitor<HashSet<FileId>>);

/// While it lives, no other thread decides about an open file of the same inode.
pub(crate) struct InodeGuard<'a> {
    locks: &'a InodeLocks,
    id: FileId,
}

impl InodeLocks {
    /// Waits until no other thread is between its look at the locks of an open file and its own
    /// lock on it. It is about this one file: no other file's system calls are waited for.
    pub(crate) fn lock_inode(&self, id: FileId) -> InodeGuard<'_> {
        let mut inodes = self.0.lock();
        while !inodes.insert(id) {
            inodes = self.0.wait(inodes, None);
        }
        InodeGuard { locks: self, id }
    }
}

impl Drop for InodeGuard<'_> {
    fn drop(&mut self) {
        self.locks.0.lock().remove(&self.id);
        self.locks.0.notify_all();
    }
}

impl LockFile {
    /// Locks somebody's open file through `fd`, a duplicate of their descriptor.
    pub(crate) fn lock_opened(
        inodes: &InodeLocks,
        fd: OwnedFd,
        id: FileId,
        spec: &LockSpec,
    ) -> Result<Self, LockError> {
        let path = path_of(fd.as_fd());
        let failed = |call, source| LockError::Io(IoError::new(call, &path, source));
        let status = fs::fstat(&fd).map_err(|errno| failed("fstat", errno))?;
        check_file(&status, || path.clone(), spec)?;
        let access = fs::access_of(&fd).map_err(|errno| failed("fcntl", errno))?;
        check_access(access, spec.mode)?;
        let _guard = inodes.lock_inode(id);
        refuse_locked(fd.as_fd())?;
        let writable = access.read && access.write;
        let file = Self { fd, id, range: spec.range, writable, local: false };
        match file.convert(spec.mode) {
            Ok(Attempt::Locked) => Ok(file),
            Ok(Attempt::Refused(by)) => Err(LockError::Contended(file, by)),
            Err(source) => Err(failed("fcntl", source)),
        }
    }

    /// Tries again to lock somebody's open file that was contended: by now another thread may have
    /// locked the same description, through a descriptor of its own.
    pub(crate) fn retry_opened(
        &self,
        inodes: &InodeLocks,
        mode: Mode,
    ) -> Result<Retried, LockError> {
        let _guard = inodes.lock_inode(self.id);
        refuse_locked(self.fd.as_fd())?;
        match self.convert(mode) {
            Ok(Attempt::Locked) => Ok(Retried::Locked),
            Ok(Attempt::Refused(by)) => Ok(Retried::Contended(by)),
            Err(source) => Err(IoError::new("fcntl", path_of(self.fd.as_fd()), source).into()),
        }
    }
}

/// Refuses an open file that carries a lock already, whoever took it.
fn refuse_locked(fd: BorrowedFd<'_>) -> Result<(), LockError> {
    let failed = |source| IoError::new(procfs::READ_FDINFO, path_of(fd), source);
    let locks = locks_on_descriptor(fd.as_raw_fd()).map_err(failed)?;
    match locks.iter().any(|lock| lock.kind.excludes()) {
        true => Err(LockError::Invalid(InvalidRequest::CarriesLock)),
        false => Ok(()),
    }
}

fn check_access(access: Access, mode: Mode) -> Result<(), LockError> {
    let (fits, needs) = match mode {
        Mode::Exclusive => (access.write, "writing"),
        Mode::Shared => (access.read, "reading"),
    };
    if fits { Ok(()) } else { Err(LockError::Invalid(InvalidRequest::WrongAccess { needs })) }
}

/// A duplicate of a caller's descriptor that is ours to keep.
///
/// Not where this process has a record lock through it: the first close of any duplicate, even
/// after a refusal, would drop that.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, LockError> {
    let failed = |call, source| IoError::new(call, path_of(fd), source);
    let locks = locks_on_descriptor(fd.as_raw_fd());
    let locks = locks.map_err(|source| failed(procfs::READ_FDINFO, source))?;
    if locks.iter().any(|lock| lock.kind == LockKind::Posix) {
        return Err(LockError::Invalid(InvalidRequest::CarriesLock));
    }
    Ok(descriptor::above_stdio(fd).map_err(|errno| failed("fcntl", errno.into()))?)
}

/// The mount that a descriptor was opened on, without touching its file system; 0 if the kernel
/// does not tell.
pub(crate) fn mount_of(fd: BorrowedFd<'_>) -> u64 {
    let info = FdInfo::of_own(fd.as_raw_fd());
    info.ok().and_then(|info| info.mount()).unwrap_or_default()
}

/// Where a descriptor's file seems to be, for messages; empty where it has no path.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    procfs::path_of(fd).ok().filter(|path| path.is_absolute()).unwrap_or_default()
}
