//! A hold as a value.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::core::OwnedHold;
use crate::error::{AcquireError, ReleaseError, VerifyError};
use crate::types::{Mode, OwnerId};
use crate::wait::Wait;

/// A granted hold. Dropping it releases it.
///
/// While it lives, nobody can take the hold away: [`LockSpace::release`] and
/// [`LockSpace::release_owner`] touch kept holds only. It keeps its space's locks alive, also
/// after the last [`LockSpace`] handle is gone. It gives out no descriptor, and cannot be cloned:
/// either would let somebody else unlock.
///
/// Dropping a lease makes system calls (it may unlink, it unlocks and closes), which can hang on
/// a dead file system. In async code, drop it, or better [`release`](Self::release) it, where
/// blocking is allowed. A drop cannot tell that the lock file stayed behind; `release` can.
///
/// In a forked child a lease does nothing when dropped: the lock is its parent's.
///
/// [`LockSpace`]: crate::LockSpace
/// [`LockSpace::release`]: crate::LockSpace::release
/// [`LockSpace::release_owner`]: crate::LockSpace::release_owner
///
/// ```
/// use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let dir = tempfile::tempdir()?;
/// let space = LockSpace::open(Naming::md5(dir.path()))?;
/// let request = Request::exclusive("disk-7").auto_create();
/// let lease = space.acquire(OwnerId::new(1), request, Wait::NO)?;
/// assert_eq!(lease.name(), "disk-7");
/// assert!(lease.path().exists());
/// lease.release()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a lease that is dropped at once protects nothing"]
pub struct Lease {
    hold: OwnedHold,
    path: OnceLock<Box<Path>>,
}

impl Lease {
    pub(super) fn new(hold: OwnedHold) -> Self {
        Self { hold, path: OnceLock::new() }
    }

    /// The resource: what [`LockSpace::release`](crate::LockSpace::release) goes by, once the
    /// hold is kept. For an image, its resolved path.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        self.hold.name().text()
    }

    /// The lock file; empty for a resource in memory, and for a caller's open file that has no
    /// path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.path.get_or_init(|| self.hold.name().path().into())
    }

    /// Who holds it.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.hold.owner()
    }

    /// How it is held.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.hold.mode
    }

    /// Looks whether the promise still stands: the name leads to the file that is locked, and the
    /// kernel shows the lock on the descriptor. Makes system calls.
    ///
    /// What this finds nobody can prevent: a lock file, or an image, that is renamed or replaced
    /// by hand, and a process with the same descriptor that unlocks it.
    ///
    /// # Errors
    /// [`VerifyError::Replaced`], [`VerifyError::Unlocked`], or what kept it from looking.
    ///
    /// ```
    /// use lockspace::{LockSpace, Naming, OwnerId, Request, VerifyError, Wait};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let dir = tempfile::tempdir()?;
    /// let image = dir.path().join("a.raw");
    /// std::fs::write(&image, "")?;
    /// let space = LockSpace::open(Naming::direct())?;
    /// let lease = space.acquire(OwnerId::new(1), Request::exclusive(&image), Wait::NO)?;
    /// lease.verify()?;
    ///
    /// std::fs::rename(&image, dir.path().join("b.raw"))?;
    /// assert!(matches!(lease.verify(), Err(VerifyError::Replaced { .. })));
    /// # Ok(())
    /// # }
    /// ```
    pub fn verify(&self) -> Result<(), VerifyError> {
        self.hold.verify()
    }

    /// Makes a shared hold exclusive, if it is the only one, here and elsewhere. Throughout, and
    /// also if it is refused, it is held shared.
    ///
    /// Of two shared holders that wait to become exclusive, each would wait for the other: within
    /// this process the second is refused at once; between processes a deadline ends it.
    ///
    /// # Errors
    /// [`AcquireError::Busy`] if others hold it too; of a wait, [`AcquireError::Deadlock`] if one
    /// of them waits for the same, or is this owner; [`InvalidRequest::NotUpgradable`] in a direct
    /// space if the first of the shared holds was not
    /// [`upgradable`](crate::Request::upgradable); those of a wait.
    ///
    /// [`InvalidRequest::NotUpgradable`]: crate::InvalidRequest::NotUpgradable
    ///
    /// ```
    /// use lockspace::{LockSpace, Mode, Naming, OwnerId, Request, Wait};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let space = LockSpace::open(Naming::in_memory())?;
    /// let mut lease = space.acquire(OwnerId::new(1), Request::shared("a"), Wait::NO)?;
    /// lease.upgrade(Wait::NO)?;
    /// assert_eq!(lease.mode(), Mode::Exclusive);
    /// lease.downgrade()?;
    /// assert_eq!(lease.mode(), Mode::Shared);
    /// # Ok(())
    /// # }
    /// ```
    pub fn upgrade(&mut self, wait: Wait) -> Result<(), AcquireError> {
        let core = Arc::clone(self.hold.core());
        core.upgrade(&mut self.hold, wait)
    }

    /// Makes an exclusive hold shared, without a moment in which it is not held. Shared waiters
    /// of this process join at once, others within a tenth of a second: the kernel raises no
    /// event for them.
    ///
    /// # Errors
    /// [`AcquireError::Io`] if the kernel refuses, as it does for a caller's open file that cannot
    /// be read; the hold is exclusive still then.
    pub fn downgrade(&mut self) -> Result<(), AcquireError> {
        let core = Arc::clone(self.hold.core());
        core.downgrade(&mut self.hold)
    }

    /// Gives the hold into the space's care: it now lasts until
    /// [`LockSpace::release`](crate::LockSpace::release) or
    /// [`release_owner`](crate::LockSpace::release_owner) ends it, or the last handle of the
    /// space is dropped. For daemons, which hold for clients. Read [`name`](Self::name) before:
    /// `release` goes by it.
    ///
    /// ```
    /// use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let space = LockSpace::open(Naming::in_memory())?;
    /// let client = OwnerId::new(4711);
    /// space.acquire(client, Request::exclusive("a"), Wait::NO)?.keep();
    /// assert_eq!(space.release_owner(client).holds, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn keep(self) {
        self.hold.keep();
    }

    /// Ends the hold. The last hold of an auto-created resource removes the lock file.
    ///
    /// Mirrors `virLockSpaceReleaseResource`.
    ///
    /// # Errors
    /// [`ReleaseError::Leftover`] if the lock file could not be removed: the hold has ended all
    /// the same. [`ReleaseError::Forked`] in a forked child, where nothing has changed.
    #[doc(alias = "virLockSpaceReleaseResource")]
    pub fn release(self) -> Result<(), ReleaseError> {
        self.hold.release()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("name", &self.name())
            .field("path", &self.path())
            .field("owner", &self.owner())
            .field("mode", &self.mode())
            .finish()
    }
}
