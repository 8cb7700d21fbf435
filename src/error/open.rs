//! Why a lock space was not opened.

use std::io;
use std::path::PathBuf;

use crate::types::{DisplayPath, IoError};

/// Why [`LockSpace::open`](crate::LockSpace::open) did not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// What is at the path is not a directory.
    #[error("{} is not a directory", DisplayPath(.path))]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error(transparent)]
    Io(IoError),
}

impl OpenError {
    pub(crate) fn from_io(error: IoError) -> Self {
        match error.source.kind() {
            io::ErrorKind::NotADirectory => Self::NotADirectory { path: error.path },
            _ => Self::Io(error),
        }
    }
}
