//! Why a hold was not released as asked.

use std::ffi::OsString;

use super::ForkedMessage;
use crate::types::{IoError, OwnerId};

/// Why a release, or [`LockSpace::retake`](crate::LockSpace::retake), did not go as asked.
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
