//! Why a hold was not released as asked.

use std::ffi::OsString;
use std::io;

use super::ForkedMessage;
use crate::types::{IoError, OwnerId};

/// Why a release, or [`LockSpace::retake`](crate::LockSpace::retake), did not go as asked.
///
/// The error holds nothing. As an [`io::Error`], [`NotHeld`](Self::NotHeld) is `NotFound`,
/// [`Leftover`](Self::Leftover) is of the kind of the system call's error, and
/// [`Forked`](Self::Forked) is `Other`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The owner has no kept hold of the resource; nothing has changed.
    #[error("{name:?} is not held for owner {owner}, or only by a lease")]
    NotHeld {
        /// The owner that was named.
        owner: OwnerId,
        /// The resource that was named.
        name: OsString,
    },
    /// The hold has ended, but the lock file that was to go with it is still there. It blocks
    /// nobody.
    #[error("{name:?} is released, but its lock file stays: {source}")]
    Leftover {
        /// The resource.
        name: OsString,
        /// Why the file could not be removed.
        source: IoError,
    },
    /// The calling process is a forked child of the one that made the space; nothing has changed.
    #[error("{}", ForkedMessage(*.creator))]
    Forked {
        /// The pid of the process that made the space.
        creator: u32,
    },
}

impl ReleaseError {
    fn io_kind(&self) -> io::ErrorKind {
        match self {
            Self::NotHeld { .. } => io::ErrorKind::NotFound,
            Self::Leftover { source, .. } => source.source.kind(),
            Self::Forked { .. } => io::ErrorKind::Other,
        }
    }
}

impl From<ReleaseError> for io::Error {
    fn from(error: ReleaseError) -> Self {
        Self::new(error.io_kind(), error)
    }
}
