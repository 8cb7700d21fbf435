//! Why a verb failed: one enum for each verb, each message fit for a log.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::directory::FileId;
use crate::name::Name;
use crate::request::{ByteRange, Mode, OwnerId};

/// A path as a message shows it: plain, or quoted where a character in it could forge a line.
pub(crate) struct Shown<'a>(pub(crate) &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.to_str() {
            Some(text) if text.chars().flat_map(char::escape_debug).eq(text.chars()) => {
                f.write_str(text)
            }
            _ => write!(f, "{:?}", self.0),
        }
    }
}

/// What a sentence about a file begins with, whether it has a path or not.
struct ItIs<'a>(&'a Path);

impl fmt::Display for ItIs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            path if path.as_os_str().is_empty() => f.write_str("it is"),
            path => write!(f, "{} is", Shown(path)),
        }
    }
}

/// A system call that failed, and the file it was about.
#[derive(Debug, thiserror::Error)]
#[error("{call} {}: {source}", Shown(.path))]
#[non_exhaustive]
pub struct IoError {
    /// The system call.
    pub call: &'static str,
    /// The file, or the directory.
    pub path: PathBuf,
    /// What the kernel answered.
    pub source: io::Error,
}

impl IoError {
    #[cold]
    pub(crate) fn new(
        call: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self { call, path: path.into(), source: source.into() }
    }
}

/// What is wrong with a request, or with the file that it leads to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadRequest {
    /// The name is empty.
    #[error("the name is empty")]
    Empty,
    /// The name is longer than this naming allows.
    #[error("the name has more than {max} bytes")]
    TooLong {
        /// How many bytes are allowed.
        max: usize,
    },
    /// The name has a NUL byte.
    #[error("the name has a NUL byte")]
    Nul,
    /// The name is not one path component, as verbatim naming needs.
    #[error("the name is not one path component")]
    NotOneComponent,
    /// The name is not an absolute path, as a direct space needs.
    #[error("a direct space needs an absolute path: `Target::image` makes one")]
    Relative,
    /// The path of [`Target::new_image`](crate::Target::new_image) ends in `/`, `.` or `..`, as no
    /// image's does.
    #[error("the path ends in `/`, `.` or `..`, so it does not name a file")]
    NoFileName,
    /// The folder of the path of [`Target::new_image`](crate::Target::new_image) is not there.
    #[error("its folder {} does not exist", Shown(.folder))]
    NoFolder {
        /// The path without its last component.
        folder: PathBuf,
    },
    /// The path of [`Target::new_image`](crate::Target::new_image) is a symlink to what is not there.
    #[error("it is a symbolic link to a file that does not exist")]
    DanglingSymlink,
    /// What is there is neither a regular file nor a block device.
    #[error("{} {kind}, neither a regular file nor a block device", ItIs(.path))]
    NotAFile {
        /// Where it is.
        path: PathBuf,
        /// What it is, such as "a directory".
        kind: &'static str,
    },
    /// The file has other names, and [`Request::refuse_hard_links`] was asked for.
    ///
    /// [`Request::refuse_hard_links`]: crate::Request::refuse_hard_links
    #[error("the file has {links} names")]
    HardLinks {
        /// How many names the file has.
        links: u64,
    },
    /// In a direct space, no acquire creates the user's image, and no release removes it.
    #[error("a direct space does not create files")]
    AutoCreateInDirect,
    /// The file can only be read, and an exclusive lock needs a descriptor that can write.
    #[error("the file can only be read: it can be held shared, not exclusive nor upgradable")]
    ReadOnly,
    /// The descriptor is not open for what the mode needs: reading to share, writing to exclude.
    #[error("the descriptor is not open for {needs}")]
    WrongAccess {
        /// "reading" or "writing".
        needs: &'static str,
    },
    /// The open file that was handed in carries a lock already, which ours would replace.
    #[error("the open file carries a lock already")]
    CarriesLock,
    /// The resource is held on other bytes, and all its holds in a process have one range.
    #[error("it is held on {held}, and was asked for on {asked}")]
    OtherRange {
        /// The range that it is held on.
        held: ByteRange,
        /// The range that was asked for.
        asked: ByteRange,
    },
    /// The resource is held through an open file that is not the one that was asked for.
    #[error("the name is held for another file")]
    OtherFile,
    /// The hold's file is open for reading only, so it cannot become exclusive: the first of the
    /// shared holds must ask with [`Request::upgradable`](crate::Request::upgradable).
    #[error("its file is open for reading only: the first hold did not ask with upgradable()")]
    NotUpgradable,
    /// The same request names the file twice.
    #[error("the request names the same file as {other:?}")]
    Twice {
        /// The other name; the same one, if it stands there twice.
        other: OsString,
    },
    /// One owner has as many holds of the resource as can be counted.
    #[error("the owner has too many holds of it")]
    TooManyHolds,
}

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
            path => write!(f, " ({})", Shown(path)),
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
    Bad {
        /// The resource.
        name: OsString,
        /// What is wrong with it.
        why: BadRequest,
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
    #[error("{name:?}: no answer from the file system of {} within {waited:.1?}", Shown(.path))]
    Stuck {
        /// The resource.
        name: OsString,
        /// The file that was asked about.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// The file under the name was replaced again and again while it was being locked.
    #[error("{name:?}: the file {} was replaced {tries} times while it was being locked", Shown(.path))]
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
    #[error("{name:?}: the directory of the lock space, {}, was moved, removed or replaced", Shown(.directory))]
    Moved {
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
            | Self::Bad { name, .. }
            | Self::Cancelled { name, .. }
            | Self::Deadlock { name }
            | Self::Stuck { name, .. }
            | Self::Unstable { name, .. }
            | Self::Moved { name, .. }
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
        let path = Shown(self.path);
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
    #[error("{} is not a directory", Shown(.path))]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error(transparent)]
    Io(IoError),
}

/// Why [`LockSpace::create`](crate::LockSpace::create) did not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The resource is held.
    #[error(transparent)]
    Busy(Busy),
    /// The name, or what is under it, is no resource.
    #[error("{name:?} cannot be created: {why}")]
    Bad {
        /// The resource.
        name: OsString,
        /// What is wrong with it.
        why: BadRequest,
    },
    /// See [`AcquireError::Moved`].
    #[error("{name:?}: the directory of the lock space, {}, was moved, removed or replaced", Shown(.directory))]
    Moved {
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
    /// A system call failed.
    #[error(transparent)]
    Io(IoError),
}

/// Why [`LockSpace::delete`](crate::LockSpace::delete) did not. The file is still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeleteError {
    /// The resource is held, in this space or elsewhere.
    #[error(transparent)]
    Busy(Busy),
    /// The name, or what is under it, is no resource.
    #[error("{name:?} cannot be deleted: {why}")]
    Bad {
        /// The resource.
        name: OsString,
        /// What is wrong with it.
        why: BadRequest,
    },
    /// See [`AcquireError::Moved`].
    #[error("{name:?}: the directory of the lock space, {}, was moved, removed or replaced", Shown(.directory))]
    Moved {
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
    /// A system call failed; `ENOENT` where there was no such resource.
    #[error(transparent)]
    Io(IoError),
}

/// Why neither a create nor a delete happened.
#[derive(Debug)]
pub(crate) enum ChangeError {
    Busy(Busy),
    Bad(OsString, BadRequest),
    Moved(OsString, PathBuf),
    Forked(u32),
    Io(IoError),
}

macro_rules! from_change_error {
    ($($error:ident),*) => {$(
        impl From<ChangeError> for $error {
            fn from(error: ChangeError) -> Self {
                match error {
                    ChangeError::Busy(busy) => Self::Busy(busy),
                    ChangeError::Bad(name, why) => Self::Bad { name, why },
                    ChangeError::Moved(name, directory) => Self::Moved { name, directory },
                    ChangeError::Forked(creator) => Self::Forked { creator },
                    ChangeError::Io(error) => Self::Io(error),
                }
            }
        }
    )*};
}

from_change_error!(CreateError, DeleteError);

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
    #[error("{name:?}: {} is no longer the file that is locked", Shown(.path))]
    Replaced {
        /// The resource.
        name: OsString,
        /// Where its file was.
        path: PathBuf,
    },
    /// The descriptor has lost its lock: a process that shares it has unlocked it.
    #[error("{name:?}: the lock on {} is gone", Shown(.path))]
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
        assert_eq!(Shown(Path::new("/run/vmm/locks")).to_string(), "/run/vmm/locks");
        assert_eq!(Shown(Path::new("/a\nb is free")).to_string(), r#""/a\nb is free""#);
        let failed = IoError::new("openat", "/img/a", rustix::io::Errno::MFILE);
        assert_eq!(failed.to_string(), "openat /img/a: Too many open files (os error 24)");
    }
}
