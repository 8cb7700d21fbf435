//! Why a lock file was not created or deleted.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;

use super::{Busy, ForkedMessage};
use crate::types::{DisplayPath, InvalidRequest, IoError};

/// Why [`LockSpace::create`](crate::LockSpace::create) or
/// [`LockSpace::delete`](crate::LockSpace::delete) did not.
///
/// The file is as it was. The error itself holds no lock and no lock file; what [`Busy`] keeps open
/// is told there. As an [`io::Error`], [`Busy`](Self::Busy) is `WouldBlock`,
/// [`Invalid`](Self::Invalid) is `InvalidInput`, [`Io`](Self::Io) is of the kind of the system
/// call's error, and all others are `Other`.
///
/// ```
/// use lockspace::{LockSpace, Naming};
/// use std::io;
///
/// # let dir = tempfile::tempdir()?;
/// let space = LockSpace::open(Naming::verbatim(dir.path()))?;
/// let refused = space.create("a/b").unwrap_err();
/// assert_eq!(
///     refused.to_string(),
///     r#""a/b" cannot be created or deleted: the name is not one path component"#
/// );
/// let missing = space.delete("a").unwrap_err();
/// assert_eq!(io::Error::from(missing).kind(), io::ErrorKind::NotFound);
/// # io::Result::Ok(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockFileError {
    /// The resource is held: in this space, or, of a delete, elsewhere.
    #[error(transparent)]
    Busy(Busy),
    /// No resource can have this name, or what is there is no lock file.
    #[error("{name:?} cannot be created or deleted: {why}")]
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
    /// A system call failed; of a delete, with `ENOENT` where there is no such file.
    #[error(transparent)]
    Io(IoError),
}

impl LockFileError {
    fn io_kind(&self) -> io::ErrorKind {
        match self {
            Self::Busy(_) => io::ErrorKind::WouldBlock,
            Self::Invalid { .. } => io::ErrorKind::InvalidInput,
            Self::DirectoryReplaced { .. } | Self::Forked { .. } => io::ErrorKind::Other,
            Self::Io(error) => error.source.kind(),
        }
    }
}

impl From<LockFileError> for io::Error {
    fn from(error: LockFileError) -> Self {
        Self::new(error.io_kind(), error)
    }
}
