//! Removing a lock file: with the last hold that asked for it, or by name.
//!
//! Whoever removes a file locks [`ByteRange::REMOVAL`] of it first, all bytes but the last, since
//! somebody may hold others of it than ours. Nobody else locks that range, so whoever meets it knows
//! that it will be over in a moment.

use std::ffi::{CStr, OsStr};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::AtomicU64;

use super::directory::Directory;
use super::lock_file::{LockError, LockFile};
use super::lock_path::LockPath;
use super::name::Name;
use super::refusal::{Attempt, attempt};
use crate::sys::{Errno, fs, ofd};
use crate::types::{ByteRange, HardLinks, IoError, LockSpec, Mode};

impl LockFile {
    /// Removes the file that is held in `mode`, unless somebody else holds it or has put another in
    /// its place. Only a file in a directory is ever removed.
    pub(super) fn unlink(
        &self,
        mode: Mode,
        directory: &Directory,
        full_path: &CStr,
        file: &CStr,
    ) -> Result<(), IoError> {
        let path = || OsStr::from_bytes(full_path.to_bytes());
        let failed = |call, source| IoError::new(call, path(), source);
        // The last two shared holders must not both keep their lock while they try to become
        // exclusive: both would fail, and the file would stay.
        if mode == Mode::Shared {
            let _ = ofd::unlock(self.fd.as_fd(), self.range);
        }
        match attempt(self.fd.as_fd(), Mode::Exclusive, ByteRange::REMOVAL) {
            Ok(Attempt::Locked) => {}
            Ok(Attempt::Refused(_)) => return Ok(()),
            Err(source) => return Err(failed("fcntl", source)),
        }
        // What the kernel remembers of it will do, if the file system does not tell.
        let there = fs::stat_in(directory.as_fd(), file).or_else(|errno| match errno {
            Errno::NOENT => Err(errno),
            _ => fs::stat_in_cached(directory.as_fd(), file).map_err(|_| errno),
        });
        match there {
            Ok(there) if there.id() == self.id => {}
            // What is there is not ours, or nothing is.
            Ok(_) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed("newfstatat", errno)),
        }
        match fs::unlink_in(directory.as_fd(), file) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed("unlinkat", errno)),
        }
    }
}

/// Removes the file that the name leads to, unless anybody holds any byte of it. In a direct space,
/// that is the file itself.
pub(crate) fn delete_file(name: &Name, stale_retries: &AtomicU64) -> Result<(), LockError> {
    if name.leads_nowhere() {
        return Ok(());
    }
    let spec = LockSpec {
        mode: Mode::Exclusive,
        range: ByteRange::REMOVAL,
        create: false,
        file_mode: 0,
        upgradable: false,
        hard_links: HardLinks::Allowed,
    };
    let file = LockFile::open_and_lock(name, &spec, stale_retries)?;
    let removed = name.with_path(|path| match path {
        LockPath::InDirectory { directory, file: there, .. } => {
            // Never another file than the one that is locked, whatever became of the directory.
            match fs::stat_in(directory.as_fd(), there)?.id() == file.id {
                true => fs::unlink_in(directory.as_fd(), there),
                false => Err(Errno::STALE),
            }
        }
        LockPath::Direct(path) => fs::unlink(path),
        LockPath::Nowhere => Ok(()),
    });
    file.close();
    removed.map_err(|errno| IoError::new("unlinkat", name.path(), errno).into())
}
