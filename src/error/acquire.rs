//! Why a resource was not acquired, or its hold not changed.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::deadlock::{DeadlockCause, DeadlockMessage};
use super::{Busy, ForkedMessage};
use crate::types::{DisplayPath, InvalidRequest, IoError, OwnerId};

/// Why [`LockSpace::acquire`](crate::LockSpace::acquire) did not, or
/// [`Lease::upgrade`](crate::Lease::upgrade).
///
/// Nothing was acquired, and what was held before is held as it was. The error itself holds no lock
/// and no lock file; what [`Busy`] keeps open is told there.
///
/// As an [`io::Error`], it is of the kind that the standard library's own calls would tell, and is
/// found in it again by [`downcast`](io::Error::downcast):
///
/// | here | [`io::ErrorKind`] |
/// |---|---|
/// | [`Busy`](Self::Busy) to a try | `WouldBlock` |
/// | [`Busy`](Self::Busy) after a wait, [`Unresponsive`](Self::Unresponsive) | `TimedOut` |
/// | [`NotFound`](Self::NotFound) | `NotFound` |
/// | [`Invalid`](Self::Invalid) | `InvalidInput` |
/// | [`Io`](Self::Io) | that of the system call's error |
/// | all others | `Other` |
///
/// ```
/// use lockspace::{AcquireError, Lease, LockSpace, Naming, OwnerId, Request, Wait};
/// use std::io;
///
/// fn lock(space: &LockSpace, owner: u64) -> io::Result<Lease> {
///     Ok(space.acquire(OwnerId::new(owner), Request::exclusive("a"), Wait::NO)?)
/// }
///
/// let space = LockSpace::open(Naming::in_memory())?;
/// let lease = lock(&space, 1)?;
/// let refused = lock(&space, 2).unwrap_err();
/// assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
/// assert!(refused.downcast::<AcquireError>().unwrap().is_busy());
/// # drop(lease);
/// # Ok::<(), io::Error>(())
/// ```
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
    /// To wait would be to wait for ever, so the call was refused at once: the owner would wait for
    /// itself, or two shared holders for each other to leave. So ends the wait of a VM that was
    /// started twice; a try for the same is refused with [`Busy`](Self::Busy), as a try waits for
    /// nobody.
    #[error("{}", DeadlockMessage { name, owner: *owner, alias, why })]
    Deadlock {
        /// The resource.
        name: OsString,
        /// The owner that asked.
        owner: OwnerId,
        /// Another name of the same file, if what is in the way goes by that one.
        alias: Option<OsString>,
        /// What is in the way.
        why: DeadlockCause,
    },
    /// A system call was made, by this wait or by another call for the same resource, and has not
    /// come back within the deadline. Or the calls before it on the same file system hang, or on 64
    /// others, so that it was not even made.
    #[error("{name:?}: no answer from {} within {waited:.1?}", FileSystemOf(.path))]
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
            | Self::Deadlock { name, .. }
            | Self::Unresponsive { name, .. }
            | Self::Unstable { name, .. }
            | Self::DirectoryReplaced { name, .. }
            | Self::Frozen { name } => Some(name),
            Self::Forked { .. } | Self::Io(_) => None,
        }
    }

    /// Whether somebody else holds it, so that a later try or a longer wait can succeed.
    ///
    /// ```
    /// use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let space = LockSpace::open(Naming::in_memory())?;
    /// let lease = space.acquire(OwnerId::new(1), Request::exclusive("a"), Wait::NO)?;
    /// match space.acquire(OwnerId::new(2), Request::exclusive("a"), Wait::NO) {
    ///     Err(error) if error.is_busy() => println!("later: {error}"),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok(drop(lease))
    /// # }
    /// ```
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Busy(_))
    }

    fn io_kind(&self) -> io::ErrorKind {
        match self {
            Self::Busy(busy) if busy.waited().is_zero() => io::ErrorKind::WouldBlock,
            Self::Busy(_) | Self::Unresponsive { .. } => io::ErrorKind::TimedOut,
            Self::NotFound { .. } => io::ErrorKind::NotFound,
            Self::Invalid { .. } => io::ErrorKind::InvalidInput,
            Self::Io(error) => error.source.kind(),
            Self::Cancelled { .. }
            | Self::Deadlock { .. }
            | Self::Unstable { .. }
            | Self::DirectoryReplaced { .. }
            | Self::Frozen { .. }
            | Self::Forked { .. } => io::ErrorKind::Other,
        }
    }
}

impl From<AcquireError> for io::Error {
    fn from(error: AcquireError) -> Self {
        Self::new(error.io_kind(), error)
    }
}

/// The file system of a path, if there is one.
struct FileSystemOf<'a>(&'a Path);

impl fmt::Display for FileSystemOf<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            path if path.as_os_str().is_empty() => f.write_str("its file system"),
            path => write!(f, "the file system of {}", DisplayPath(path)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::OpenNaming;
    use crate::error::{LockFileError, OpenError, ReleaseError, VerifyError};
    use crate::sys::Errno;
    use crate::types::Mode;
    use std::error::Error;

    fn busy(waited: Duration) -> Busy {
        let name = OpenNaming::InMemory.name(OsStr::new("a")).unwrap();
        Busy::inside(name, Mode::Shared, Mode::Exclusive, OwnerId::new(1).into()).after(waited)
    }

    fn denied() -> IoError {
        IoError::new("openat", "/img/a", Errno::ACCESS)
    }

    fn every_one() -> Vec<(AcquireError, io::ErrorKind)> {
        let (name, path) = (|| OsString::from("a\n"), || PathBuf::from("/img/a\nb"));
        let (waited, owner) = (Duration::from_secs(5), OwnerId::new(4711));
        let own = DeadlockCause::OtherOwnHold;
        use AcquireError as E;
        use io::ErrorKind::{
            InvalidInput, NotFound, Other, PermissionDenied, TimedOut, WouldBlock,
        };
        vec![
            (E::Busy(busy(Duration::ZERO)), WouldBlock),
            (E::Busy(busy(waited)), TimedOut),
            (E::NotFound { name: name(), path: path() }, NotFound),
            (E::Invalid { name: name(), why: InvalidRequest::Empty }, InvalidInput),
            (E::Cancelled { name: name(), waited }, Other),
            (E::Deadlock { name: name(), owner, alias: Some(name()), why: own }, Other),
            (E::Unresponsive { name: name(), path: path(), waited }, TimedOut),
            (E::Unstable { name: name(), path: path(), tries: 9 }, Other),
            (E::DirectoryReplaced { name: name(), directory: path() }, Other),
            (E::Frozen { name: name() }, Other),
            (E::Forked { creator: 1 }, Other),
            (E::Io(denied()), PermissionDenied),
        ]
    }

    #[test]
    fn as_an_io_error_it_is_of_the_expected_kind_and_is_kept() {
        for (error, kind) in every_one() {
            let (said, is_busy) = (error.to_string(), error.is_busy());
            let error = io::Error::from(error);
            assert_eq!(error.kind(), kind, "{said}");
            assert_eq!(error.to_string(), said);
            let kept = error.downcast::<AcquireError>().unwrap();
            assert_eq!((kept.to_string(), kept.is_busy()), (said, is_busy));
            assert_eq!(is_busy, matches!(kept, AcquireError::Busy(_)));
        }
    }

    #[test]
    fn no_name_or_path_forges_a_line_of_a_log() {
        for (error, _) in every_one() {
            assert!(!error.to_string().contains('\n'), "{error}");
            assert!(!error.to_string().contains("  "), "{error}");
        }
    }

    #[test]
    fn a_file_system_without_a_path_is_told_without_one() {
        let (name, waited) = ("a".into(), Duration::from_secs(5));
        let error = AcquireError::Unresponsive { name, path: PathBuf::new(), waited };
        assert_eq!(error.to_string(), r#""a": no answer from its file system within 5.0s"#);
    }

    #[test]
    fn the_errors_of_all_verbs_are_io_errors() {
        fn kind_of<E: Error + Into<io::Error>>(error: E) -> io::ErrorKind {
            let said = error.to_string();
            let error = error.into();
            assert_eq!(error.to_string(), said);
            error.kind()
        }
        use io::ErrorKind::{
            InvalidInput, NotADirectory, NotFound, Other, PermissionDenied, WouldBlock,
        };
        let (name, path) = (|| OsString::from("a"), || PathBuf::from("/img/a"));
        let (creator, owner) = (1, OwnerId::new(1));
        assert_eq!(kind_of(OpenError::NotADirectory { path: path() }), NotADirectory);
        assert_eq!(kind_of(OpenError::Io(denied())), PermissionDenied);

        use LockFileError as L;
        assert_eq!(kind_of(L::Busy(busy(Duration::ZERO))), WouldBlock);
        assert_eq!(kind_of(L::Invalid { name: name(), why: InvalidRequest::Nul }), InvalidInput);
        assert_eq!(kind_of(L::DirectoryReplaced { name: name(), directory: path() }), Other);
        assert_eq!(kind_of(L::Forked { creator }), Other);
        assert_eq!(kind_of(L::Io(denied())), PermissionDenied);

        assert_eq!(kind_of(ReleaseError::NotHeld { owner, name: name() }), NotFound);
        assert_eq!(
            kind_of(ReleaseError::Leftover { name: name(), source: denied() }),
            PermissionDenied
        );
        assert_eq!(kind_of(ReleaseError::Forked { creator }), Other);

        assert_eq!(kind_of(VerifyError::Replaced { name: name(), path: path() }), Other);
        assert_eq!(kind_of(VerifyError::Unlocked { name: name(), path: path() }), Other);
        assert_eq!(kind_of(VerifyError::Forked { creator }), Other);
        assert_eq!(kind_of(VerifyError::Io(denied())), PermissionDenied);
    }

    #[test]
    fn it_is_small_enough_to_be_returned_by_value() {
        assert!(size_of::<AcquireError>() <= 80, "{}", size_of::<AcquireError>());
    }
}
