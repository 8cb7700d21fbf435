//! An open file that holds its lock, and what can be done with it: try again, convert, release.
//!
//! `open` opens and locks it, `opened` locks a caller's own open file, `removal` unlinks it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::identity::{Identity, is_at};
use super::lock_path::LockPath;
use super::name::Name;
use super::refusal::{Attempt, Tries, Verdict, attempt, is_refusal};
#[cfg(feature = "snapshot")]
use crate::sys::fs::Access;
use crate::sys::{Errno, local_fs, ofd};
use crate::types::{ByteRange, FileId, InvalidRequest, IoError, Mode, Outside};

/// An open file with our lock on it.
#[derive(Debug)]
pub(crate) struct LockFile {
    pub(super) fd: OwnedFd,
    pub(super) id: FileId,
    pub(super) range: ByteRange,
    /// Open for reading and writing, so that the lock can change its mode.
    pub(super) writable: bool,
    /// Locks and lookups of it are answered from the kernel's memory, so that they cannot hang.
    pub(super) local: bool,
}

/// What came of another try on a file that is open already.
#[derive(Debug)]
pub(crate) enum Retried {
    Locked,
    /// Somebody else still has a lock on it: this one, if the kernel has told.
    Contended(Option<Outside>),
    /// Its name leads to another file by now, or to none: it has to be opened anew.
    Stale,
}

/// Why there is no lock. Nothing is open, locked or created then.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Somebody else has a lock on this file, which is open and not locked: this lock, if the kernel
    /// has told.
    Contended(LockFile, Option<Outside>),
    /// Another program has a lease on this file, as file servers take them, so that it cannot be opened
    /// now. The kernel has asked for the lease back.
    Leased(FileId),
    NotFound,
    Invalid(InvalidRequest),
    /// This directory, the space's, is not where its path leads any more.
    DirectoryReplaced(PathBuf),
    /// The file was replaced in each of so many attempts.
    Unstable(u32),
    Io(IoError),
}

impl From<IoError> for LockError {
    fn from(error: IoError) -> Self {
        Self::Io(error)
    }
}

impl LockFile {
    /// A descriptor that carries its lock already.
    #[cfg(feature = "snapshot")]
    pub(crate) fn restored(fd: OwnedFd, id: FileId, range: ByteRange, access: Access) -> Self {
        Self { fd, id, range, writable: access.read && access.write, local: false }
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn range(&self) -> ByteRange {
        self.range
    }

    pub(crate) fn number(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether the lock can be turned into an exclusive one.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether the locks and lookups of this open file are known not to hang.
    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    /// Asks the file system what it is. May hang.
    pub(crate) fn learn_whether_local(&mut self, name: &Name) {
        let way_cannot_hang =
            || !name.is_path() || local_fs::path_cannot_hang(Path::new(name.text()), &self.fd);
        self.local = self.local || local_fs::cannot_hang(&self.fd) && way_cannot_hang();
    }

    /// Tries to lock in this mode, whatever it holds now. What is held stays held if it is refused.
    pub(crate) fn convert(&self, mode: Mode) -> Result<Attempt, Errno> {
        attempt(self.fd.as_fd(), mode, self.range)
    }

    /// Tries again to lock an open file that is `held` in that mode, or not at all. What was held
    /// stays held if it is refused.
    pub(crate) fn retry(
        &self,
        name: &Name,
        held: Option<Mode>,
        mode: Mode,
        stale_retries: &AtomicU64,
    ) -> Result<Retried, LockError> {
        let failed = |errno| LockError::Io(IoError::new("fcntl", name.path(), errno));
        let mut tries = Tries::default();
        loop {
            let locked = match held == Some(mode) {
                true => Ok(()),
                false => ofd::try_lock(self.fd.as_fd(), mode, self.range),
            };
            if let Err(errno) = locked
                && !is_refusal(errno)
            {
                return Err(failed(errno));
            }
            let identity = name.with_path(|path| is_at(self.id, path));
            if locked.is_ok() && !matches!(identity, Ok(Identity::Same)) {
                let _ = ofd::unlock(self.fd.as_fd(), self.range);
            }
            match identity? {
                Identity::Same => {}
                Identity::DirectoryReplaced(directory) => {
                    return Err(LockError::DirectoryReplaced(directory));
                }
                Identity::Stale => {
                    stale_retries.fetch_add(1, Ordering::Relaxed);
                    return Ok(Retried::Stale);
                }
            }
            // Only who is in the way of the file that the name leads to matters.
            let Err(errno) = locked else { return Ok(Retried::Locked) };
            match tries.judge(self.fd.as_fd(), mode, self.range, errno) {
                Verdict::TryAgain => {}
                Verdict::Held(by) => return Ok(Retried::Contended(by)),
                Verdict::Removing(by) => return Ok(Retried::Contended(Some(by))),
                Verdict::Failed(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Ends the hold: unlinks the lock file if `unlink` says in which mode it is held, unlocks,
    /// closes. Whatever cannot be removed stays, and the hold has ended all the same.
    pub(crate) fn release(self, name: &Name, unlink: Option<Mode>) -> Result<(), IoError> {
        match unlink {
            Some(_) => name.with_path(|path| self.release_at(path, unlink)),
            None => {
                self.close();
                Ok(())
            }
        }
    }

    /// The same where the name is written out already.
    pub(super) fn release_at(
        self,
        path: &LockPath<'_>,
        unlink: Option<Mode>,
    ) -> Result<(), IoError> {
        match (unlink, path) {
            (Some(mode), LockPath::InDirectory { directory, full_path, file }) => {
                let unlinked = self.unlink(mode, directory, full_path, file);
                // The range of the hold and that of the removal. A file that is made in a directory
                // was opened here, and nobody else locks through that.
                ofd::unlock_and_close(self.fd, ByteRange::WHOLE_FILE);
                unlinked
            }
            _ => {
                self.close();
                Ok(())
            }
        }
    }

    /// Unlocks what the hold has locked, and nothing else, and closes.
    pub(super) fn close(self) {
        ofd::unlock_and_close(self.fd, self.range);
    }
}
