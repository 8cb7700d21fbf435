//! Where a name leads, written out for system calls.

use std::ffi::{CStr, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::directory::Directory;
use crate::sys::Errno;
use crate::sys::fs::{self, FileStatus};

/// Where a name leads, written out for system calls.
pub(crate) enum LockPath<'a> {
    /// To a file in a directory: by its full path, and by its name there.
    InDirectory { directory: &'a Directory, full_path: &'a CStr, file: &'a CStr },
    /// To the file of this path.
    Direct(&'a CStr),
    /// Nowhere: the resource is in memory only, or is somebody's open descriptor.
    Nowhere,
}

impl LockPath<'_> {
    /// The path of the file; empty where there is none.
    #[cold]
    pub(super) fn to_path(&self) -> PathBuf {
        match self {
            Self::InDirectory { full_path: path, .. } | Self::Direct(path) => {
                Path::new(OsStr::from_bytes(path.to_bytes())).to_owned()
            }
            Self::Nowhere => PathBuf::new(),
        }
    }

    /// What is there; `None` where nothing can be.
    ///
    /// By the full path, never relative to the open directory: one call then tells both that the
    /// directory is still where others look for it and that the file is still there.
    pub(super) fn stat(&self) -> Result<Option<FileStatus>, Errno> {
        match self {
            // Not through it, if it is a symlink.
            Self::InDirectory { full_path, .. } => fs::lstat(*full_path).map(Some),
            Self::Direct(path) => fs::stat(*path).map(Some),
            Self::Nowhere => Ok(None),
        }
    }
}
