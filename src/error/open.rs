//! Why a lock space was not opened.

use std::io;
use std::path::PathBuf;

use crate::types::{DisplayPath, IoError};

/// Why [`LockSpace::open`](crate::LockSpace::open) did not.
///
/// Nothing is open then; a directory that was made on the way stays. As an [`io::Error`], it is
/// `NotADirectory`, or of the kind of the system call's error.
///
/// ```
/// use lockspace::{LockSpace, Naming};
/// use std::io;
///
/// # let dir = tempfile::tempdir()?;
/// let file = dir.path().join("file");
/// std::fs::write(&file, "")?;
/// let refused = LockSpace::open(Naming::md5(&file)).unwrap_err();
/// assert_eq!(refused.to_string(), format!("{} is not a directory", file.display()));
/// assert_eq!(io::Error::from(refused).kind(), io::ErrorKind::NotADirectory);
/// # io::Result::Ok(())
/// ```
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
    /// The directory of the space was not opened, or not made.
    pub(crate) fn from_io(error: IoError) -> Self {
        match error.source.kind() {
            io::ErrorKind::NotADirectory => Self::NotADirectory { path: error.path },
            _ => Self::Io(error),
        }
    }

    fn io_kind(&self) -> io::ErrorKind {
        match self {
            Self::NotADirectory { .. } => io::ErrorKind::NotADirectory,
            Self::Io(error) => error.source.kind(),
        }
    }
}

impl From<OpenError> for io::Error {
    fn from(error: OpenError) -> Self {
        Self::new(error.io_kind(), error)
    }
}
