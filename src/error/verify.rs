//! Why a hold cannot be vouched for.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use super::ForkedMessage;
use crate::types::{DisplayPath, IoError};

/// Why [`Lease::verify`](crate::Lease::verify) does not vouch for the hold.
///
/// The lease lives on, whatever this says; the error holds nothing. As an [`io::Error`],
/// [`Io`](Self::Io) is of the kind of the system call's error, and all others are `Other`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The name leads to another file by now, or to none: the file that is locked was renamed,
    /// replaced or unlinked by hand, and others can lock what is under the name.
    #[error("{name:?}: {} is no longer the file that is locked", DisplayPath(.path))]
    Replaced {
        /// The resource.
        name: OsString,
        /// Where its file was.
        path: PathBuf,
    },
    /// The descriptor has lost its lock: a process that shares it has unlocked it.
    #[error("{name:?}: the lock on {} is gone", DisplayPath(.path))]
    Unlocked {
        /// The resource.
        name: OsString,
        /// The lock file.
        path: PathBuf,
    },
    /// The calling process is a forked child of the one that made the space.
    #[error("{}", ForkedMessage(*.creator))]
    Forked {
        /// The pid of the process that made the space.
        creator: u32,
    },
    /// A system call failed.
    #[error(transparent)]
    Io(IoError),
}

impl VerifyError {
    fn io_kind(&self) -> io::ErrorKind {
        match self {
            Self::Io(error) => error.source.kind(),
            Self::Replaced { .. } | Self::Unlocked { .. } | Self::Forked { .. } => {
                io::ErrorKind::Other
            }
        }
    }
}

impl From<VerifyError> for io::Error {
    fn from(error: VerifyError) -> Self {
        Self::new(error.io_kind(), error)
    }
}
