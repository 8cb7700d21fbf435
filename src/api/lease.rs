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
/// [`LockSpace::release_owner`] touch kept holds only. A lease keeps its lock even after the last
/// [`LockSpace`] handle is dropped. It gives out no descriptor, and cannot be cloned: either would
/// let other code unlock.
///
/// Dropping a lease makes system calls (it may unlink, it unlocks and closes), which can hang on a
/// dead file system. In async code, drop it, or better [`release`](Self::release) it, where
/// blocking is allowed. A drop cannot report that the lock file was left behind; `release` can.
///
/// In a forked child a lease does nothing when dropped: the lock is its parent's. Nothing drops a lease
/// in a `static`: the kernel ends its lock when the process exits, but a lock file of
/// [`auto_create`](crate::Request::auto_create) stays.
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

    /// The resource's name, to be passed to [`LockSpace::release`](crate::LockSpace::release) once
    /// the hold is kept. For an image, its resolved path.
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

    /// The owner of the hold.
    #[must_use]
    pub fn owner(&self) -> OwnerId {
        self.hold.owner()
    }

    /// The mode of the hold.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.hold.mode
    }

    /// Checks that the hold is intact: the name leads to the locked file, and the kernel shows the
    /// lock on the descriptor. Makes system calls.
    ///
    /// This finds what no lock can prevent: a lock file or an image that is renamed or replaced by
    /// hand, and a process that shares the descriptor and unlocks it.
    ///
    /// # Errors
    /// [`VerifyError::Replaced`], [`VerifyError::Unlocked`], or the error that prevented the check.
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

    /// Makes a shared hold exclusive, if it is the only hold of the resource, in this space and
    /// outside of it. Until then, and after an error, the hold stays shared.
    ///
    /// Two shared holders that wait for an upgrade would wait for each other: within a space the
    /// second is refused at once; between spaces or processes, only a deadline or a cancel ends the
    /// waits.
    ///
    /// # Errors
    /// [`AcquireError::Busy`] if the resource has other holds; for a wait,
    /// [`AcquireError::Deadlock`] if another hold waits for an upgrade, or this owner has another
    /// hold of the resource; [`InvalidRequest::NotUpgradable`] in a direct space if the first of
    /// the shared holds was not [`upgradable`](crate::Request::upgradable); those of a wait.
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

    /// Makes an exclusive hold shared, without a moment in which the resource is not held. Shared
    /// waiters of this space join at once; other waiters of this crate notice within a tenth of a
    /// second, as the kernel raises no event for them.
    ///
    /// # Errors
    /// [`AcquireError::Frozen`] while a snapshot freezes the space; [`AcquireError::Io`] if the
    /// kernel refuses, as it does for a caller's open file that cannot be read. The hold is then
    /// still exclusive.
    pub fn downgrade(&mut self) -> Result<(), AcquireError> {
        let core = Arc::clone(self.hold.core());
        core.downgrade(&mut self.hold)
    }

    /// Turns the lease into a kept hold, which lasts until
    /// [`LockSpace::release`](crate::LockSpace::release) or
    /// [`release_owner`](crate::LockSpace::release_owner) ends it, or the last handle of the space
    /// is dropped. This is for daemons that hold resources for clients. Read [`name`](Self::name)
    /// before: `LockSpace::release` needs it.
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

    /// Ends the hold. The end of the last hold of an auto-created resource removes the lock file.
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
