//! Why a verb failed: one enum for each verb, each message fit for a log.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::engine::Name;
use crate::types::{DisplayPath, FileId, InvalidRequest, IoError, Mode, OwnerId};

/// Who stands in the way. Cheap to build and to drop: it copies no string and asks no kernel.
///
/// ```
/// use lockspace::{AcquireError, LockSpace, Mode, Naming, OwnerId, Request, Wait};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let space = LockSpace::open(Naming::in_memory())?;
/// let _lease = space.acquire(OwnerId::new(4711), Request::exclusive("a"), Wait::NO)?;
///
/// let refused = space.acquire(OwnerId::new(7), Request::shared("a"), Wait::NO);
/// let Err(AcquireError::Busy(busy)) = refused else { panic!("granted twice") };
/// assert_eq!(busy.owners(), [OwnerId::new(4711)]);
/// assert_eq!(busy.held(), Some(Mode::Exclusive));
/// assert_eq!(
///     busy.to_string(),
///     r#""a" is busy: held exclusive by owner 4711; asked for shared"#
/// );
/// # Ok(())
/// # }
/// ```
pub struct Busy {
    name: Arc<Name>,
    path: OnceLock<Box<Path>>,
    asked: Mode,
    held: Option<Mode>,
    owners: Blockers,
    /// A request that excludes this one waits already.
    behind: bool,
    /// The file on which the kernel refused the lock. Boxed: where it is refused without a system
    /// call, the error must stay small.
    file: Option<Box<FileId>>,
    waited: Duration,
}

/// One owner, as nearly always, needs no allocation.
#[derive(Debug)]
pub(crate) enum Blockers {
    One([OwnerId; 1]),
    Many(Vec<OwnerId>),
}

impl Busy {
    /// Held in this space, by these owners.
    pub(crate) fn inside(name: Arc<Name>, asked: Mode, held: Mode, owners: Blockers) -> Self {
        Self::new(name, asked, Some(held), owners)
    }

    /// Held by somebody who is not in this space.
    pub(crate) fn outside(name: Arc<Name>, asked: Mode) -> Self {
        Self::new(name, asked, None, Blockers::Many(Vec::new()))
    }

    fn new(name: Arc<Name>, asked: Mode, held: Option<Mode>, owners: Blockers) -> Self {
        let behind = held == Some(Mode::Shared) && asked == Mode::Shared;
        let path = OnceLock::new();
        Self { name, path, asked, held, owners, behind, file: None, waited: Duration::ZERO }
    }

    /// The same, by the kernel's word on this file.
    pub(crate) fn on(self, file: FileId) -> Self {
        Self { file: Some(Box::new(file)), ..self }
    }

    /// The file on which the kernel refused the lock, if it was asked.
    pub(crate) fn file(&self) -> Option<FileId> {
        self.file.as_deref().copied()
    }

    /// The same, after a wait.
    pub(crate) fn after(self, waited: Duration) -> Self {
        Self { waited, ..self }
    }

    /// The resource.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        self.name.text()
    }

    /// Its lock file; empty where there is none.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.path.get_or_init(|| self.name.path().into())
    }

    /// The mode that was asked for.
    #[must_use]
    pub fn asked(&self) -> Mode {
        self.asked
    }

    /// The mode that it is held in within this space; `None` where the holder is elsewhere.
    #[must_use]
    pub fn held(&self) -> Option<Mode> {
        self.held
    }

    /// Who holds it within this space, or is about to; empty where the holder is elsewhere.
    /// [`LockSpace::holders`](crate::LockSpace::holders) asks the kernel too.
    #[must_use]
    pub fn owners(&self) -> &[OwnerId] {
        match &self.owners {
            Blockers::One(one) => one,
            Blockers::Many(many) => many,
        }
    }

    /// How long the call waited before it gave up; zero where it was told not to wait.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Busy")
            .field("name", &self.name())
            .field("path", &self.path())
            .field("asked", &self.asked)
            .field("held", &self.held)
            .field("owners", &self.owners())
            .field("waited", &self.waited)
            .finish()
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is busy: held ", self.name())?;
        match (self.held, self.owners()) {
            (Some(mode), [first, more @ ..]) => {
                write!(f, "{mode} by owner {first}")?;
                if !more.is_empty() {
                    write!(f, " and {} more", more.len())?;
                }
            }
            _ => f.write_str("outside this lock space")?,
        }
        if self.behind {
            f.write_str(", and an exclusive request waits")?;
        }
        write!(f, "; asked for {}", self.asked)?;
        if !self.waited.is_zero() {
            write!(f, ", waited {:.1?}", self.waited)?;
        }
        match self.path() {
            path if path.as_os_str().is_empty() => Ok(()),
            path => write!(f, " ({})", DisplayPath(path)),
        }
    }
}

impl std::error::Error for Busy {}

/// Why [`LockSpace::acquire`](crate::LockSpace::acquire) did not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// Somebody holds it in a mode that excludes this one.
    #[error(transparent)]
    Busy(Busy),
    /// There is no file to lock: the image does not exist; or its lock file does not, and the
    /// request did not say [`auto_create`](crate::Request::auto_create).
    #[error("{}", NoFile { name, path })]
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
    #[error("{}", InChild(*.creator))]
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
struct NoFile<'a> {
    name: &'a OsStr,
    path: &'a Path,
}

impl fmt::Display for NoFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name == self.path.as_os_str() {
            return write!(f, "{:?} does not exist", self.name);
        }
        let path = DisplayPath(self.path);
        write!(f, "{:?} has no lock file {path}: create it, or ask with auto_create()", self.name)
    }
}

/// The one sentence that every verb says in a forked child.
pub(crate) struct InChild(pub(crate) u32);

impl fmt::Display for InChild {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this lock space belongs to process {}, of which this is a forked child", self.0)
    }
}

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
    /// See [`AcquireError::DirectoryReplaced`].
    #[error("{name:?}: the directory of the lock space, {}, was moved, removed or replaced", DisplayPath(.directory))]
    DirectoryReplaced {
        /// The resource.
        name: OsString,
        /// The directory that the space was opened with.
        directory: PathBuf,
    },
    /// The calling process is a forked child of the one that made the space.
    #[error("{}", InChild(*.creator))]
    Forked {
        /// The pid of the process that made the space.
        creator: u32,
    },
    /// A system call failed; of a delete, `ENOENT` where there was no such resource.
    #[error(transparent)]
    Io(IoError),
}

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
    #[error("{}", InChild(*.creator))]
    Forked {
        /// The pid of the process that made the space.
        creator: u32,
    },
}

/// Why [`Lease::verify`](crate::Lease::verify) does not vouch for the hold.
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
    #[error("{}", InChild(*.creator))]
    Forked {
        /// The pid of the process that made the space.
        creator: u32,
    },
    /// A system call failed.
    #[error(transparent)]
    Io(IoError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_in_a_message_cannot_forge_a_line() {
        assert_eq!(DisplayPath(Path::new("/run/vmm/locks")).to_string(), "/run/vmm/locks");
        assert_eq!(DisplayPath(Path::new("/a\nb is free")).to_string(), r#""/a\nb is free""#);
        let failed = IoError::new("openat", "/img/a", crate::sys::Errno::MFILE);
        assert_eq!(failed.to_string(), "openat /img/a: Too many open files (os error 24)");
    }
}
