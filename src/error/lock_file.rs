//! Why a lock file was not created or deleted.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Busy, ForkedMessage};
use crate::types::{DisplayPath, InvalidRequest, IoError};

/// Why [`LockSpace::create`](crate::LockSpace::create) or
/// [`LockSpace::delete`](crate::LockSpace::delete) did not. The file is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockFileError {
    /// The resource is held: in this space, or, of a delete, elsewhere.
    #[error(transparent)]
    Busy(Busy),
    /// The name, or what is under it, is no resource.
    #[error("{name:?} is no resource: {why}")]
    Invalid {
        /// The resource.
        name: OsString,
        /// What is wrong with it.
        why: InvalidRequest,
    },
    /// See [`AcquireError::DirectoryReplaced`](crate::AcquireError::DirectoryReplaced).
    #[error("{name:?}: the directory of the lock space, {}, was moved, removed or replaced", DisplayPath(.directory))]
    DirectoryReplaced {
        /// The resource.
        name: OsString,
        /// The directory that the space was opened with.
        directory: PathBuf,
    },
    /// The calling process is a forked child of the one that made the space.
    #[error("{}", ForkedMessage(*.creator))]
    Forked {
        /// The pid of the process that made the space.
        creator: u32,
    },
    /// A system call failed; of a delete, `ENOENT` where there was no such resource.
    #[error(transparent)]
    Io(IoError),
}
