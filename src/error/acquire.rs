//! Why a resource was not acquired, or its hold not changed.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Busy, ForkedMessage};
use crate::types::{DisplayPath, InvalidRequest, IoError};

/// Why [`LockSpace::acquire`](crate::LockSpace::acquire) did not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// Somebody holds it in a mode that excludes this one.
    #[error(transparent)]
    Busy(Busy),
    /// There is no file to lock: the image does not exist; or its lock file does not, and the
    /// request did not say [`auto_create`](crate::Request::auto_create).
    #[error("{}", NotFoundMessage { name, path })]
    NotFound {
        /// The resource.
        name: OsString,
        /// Where its file would be.
        path: PathBuf,
    },
    /// The request cannot be granted as it stands, whoever holds what.
    #[error("{name:?} cannot be locked: {why}")]
    Invalid {
        /// The resource.
        name: OsString,
        /// What is wrong with it.
        why: InvalidRequest,
    },
    /// The wait was cancelled: by its [`Cancel`](crate::Cancel), or by
    /// [`LockSpace::release_owner`](crate::LockSpace::release_owner).
    #[error("the wait for {name:?} was cancelled after {waited:.1?}")]
    Cancelled {
        /// The resource.
        name: OsString,
        /// How long it had waited.
        waited: Duration,
    },
    /// To wait would be to wait for ever: the owner waits for itself, or two shared holders wait
    /// for each other to become exclusive. So ends, at once, the wait of an owner for what it holds
    /// itself, as when a VM is started twice; a try is refused with [`Busy`](Self::Busy) then.
    #[error(
        "to wait for {name:?} would be to wait for ever: for its own owner, or for who waits to \
         upgrade, too"
    )]
    Deadlock {
        /// The resource.
        name: OsString,
    },
    /// The file system has not answered within the deadline. One of a millisecond or two can be
    /// too short for that on a busy machine.
    #[error("{name:?}: no answer from the file system of {} within {waited:.1?}", DisplayPath(.path))]
    Unresponsive {
        /// The resource.
        name: OsString,
        /// The file that was asked about.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The file under the name was replaced again and again while it was being locked.
    #[error("{name:?}: the file {} was replaced {tries} times while it was being locked", DisplayPath(.path))]
    Unstable {
        /// The resource.
        name: OsString,
        /// Its lock file.
        path: PathBuf,
        /// How often it was opened.
        tries: u32,
    },
    /// The path of the space's directory leads to another directory by now, so that others would
    /// lock there what this space locks here.
    #[error("{name:?}: the directory of the lock space, {}, was moved, removed or replaced", DisplayPath(.directory))]
    DirectoryReplaced {
        /// The resource.
        name: OsString,
        /// The directory that the space was opened with.
        directory: PathBuf,
    },
    /// The space is frozen by a snapshot: what is held changes only when that is dropped. A wait
    /// waits for that, and gets this if its time is over before.
    #[error("{name:?} cannot be acquired while its lock space is frozen by a snapshot")]
    Frozen {
        /// The resource.
        name: OsString,
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

impl AcquireError {
    /// The resource that it is about, where it is about one.
    #[must_use]
    pub fn name(&self) -> Option<&OsStr> {
        match self {
            Self::Busy(busy) => Some(busy.name()),
            Self::NotFound { name, .. }
            | Self::Invalid { name, .. }
            | Self::Cancelled { name, .. }
            | Self::Deadlock { name }
            | Self::Unresponsive { name, .. }
            | Self::Unstable { name, .. }
            | Self::DirectoryReplaced { name, .. }
            | Self::Frozen { name } => Some(name),
            Self::Forked { .. } | Self::Io(_) => None,
        }
    }
}

/// One sentence for a missing lock file, another for a missing image.
struct NotFoundMessage<'a> {
    name: &'a OsStr,
    path: &'a Path,
}

impl fmt::Display for NotFoundMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name == self.path.as_os_str() {
            return write!(f, "{:?} does not exist", self.name);
        }
        let path = DisplayPath(self.path);
        write!(f, "{:?} has no lock file {path}: create it, or ask with auto_create()", self.name)
    }
}
