//! The directory of a space's lock files: held open, and known by its path.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use crate::sys::fs::{self, PathBuffer, PathBytes};
use crate::sys::{Errno, fd, local_fs};
use crate::types::{FileId, IoError};

/// An open directory, and the absolute path that led to it.
///
/// Lock files are opened and unlinked relative to the open directory, so that none of these calls
/// ends up in another directory after a rename. But two processes must never use two directories for
/// one space, so a file that was locked must also be what its full path leads to (see `identity`).
#[derive(Debug)]
pub(crate) struct Directory {
    pub(super) fd: OwnedFd,
    path: PathBuf,
    /// What the full path of a file in it begins with: the path, with a slash at its end.
    pub(super) prefix: PathBuffer,
    pub(super) id: FileId,
    /// It is on a file system whose locks and lookups cannot hang, and was reached through none
    /// that can.
    pub(super) local: bool,
    /// A lock was given on a file in it, and none has failed since: see `trial`.
    pub(super) gives_locks: AtomicBool,
}

impl Directory {
    /// Opens the directory; makes it, with `mode`, and its parents where they are missing.
    ///
    /// # Errors
    /// What failed: `ENOTDIR` where something else is at the path.
    pub(crate) fn open(path: &Path, mode: u32) -> Result<Self, IoError> {
        Self::open_or(path, |path| make(path, mode))
    }

    /// Opens the directory, if it is there.
    #[cfg(feature = "snapshot")]
    pub(crate) fn reopen(path: &Path) -> Result<Self, IoError> {
        Self::open_or(path, |_| Err(Errno::NOENT.into()))
    }

    fn open_or(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<Self, IoError> {
        let failed = |call| move |source: io::Error| IoError::new(call, path, source);
        // Symlinks stay in it: if one of them is turned elsewhere later, that must be seen.
        let absolute = std::path::absolute(path).map_err(failed("getcwd"))?;
        let opened = match fs::open_directory(&absolute) {
            Err(Errno::NOENT) => {
                make(&absolute).map_err(failed("mkdir"))?;
                fs::open_directory(&absolute)
            }
            opened => opened,
        };
        let opened = opened.and_then(|fd| match fd.as_raw_fd() <= fd::LAST_STDIO {
            true => fd::above_stdio(&fd),
            false => Ok(fd),
        });
        let fd = opened.map_err(|errno| failed("openat")(errno.into()))?;
        let id = fs::fstat(&fd).map_err(|errno| failed("fstat")(errno.into()))?.id();
        let local = local_fs::cannot_hang(&fd) && local_fs::path_cannot_hang(&absolute, &fd);
        let mut prefix = absolute.clone().into_os_string();
        if !prefix.as_bytes().ends_with(b"/") {
            prefix.push("/");
        }
        let prefix = PathBytes::new(prefix.as_bytes()).expect("it was opened by this path");
        let prefix = prefix.to_owned();
        let gives_locks = AtomicBool::new(false);
        Ok(Self { fd, path: absolute, prefix, id, local, gives_locks })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its device and inode.
    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    /// The device that its file system is known by.
    pub(crate) fn device(&self) -> u64 {
        self.id.dev
    }

    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    /// Whether its path still leads to it.
    #[cold]
    pub(crate) fn is_where_it_was(&self) -> bool {
        fs::stat(&self.path).is_ok_and(|status| status.id() == self.id)
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}
