//! A lock that somebody else holds, and who.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::engine::Name;
use crate::types::{DisplayPath, FileId, Mode, OwnerId};

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
