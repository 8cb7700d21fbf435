//! A space: one lock for each resource, and its verbs.

use std::ffi::OsStr;
use std::fmt;
use std::sync::Arc;

use super::{Builder, Lease, Leases};
use crate::core::{Core, HeldResource, Process, Released, log_release_error};
use crate::engine::Holder;
use crate::error::{AcquireError, LockFileError, OpenError, ReleaseError};
use crate::types::{IoError, Naming, OwnerId, Request, Target};
use crate::wait::Wait;

/// A map from each held resource to its one locked descriptor and its owners.
///
/// A space is a handle: clones are the same space, and it can be used from any thread. Open one
/// for each directory of lock files (or one direct space) and keep it; two spaces on one
/// directory exclude each other correctly, but see each other only as "held outside".
///
/// When the last handle is dropped, kept holds are released; leases live on.
///
/// | verb | libvirt's |
/// |---|---|
/// | [`open`](Self::open), drop | `virLockSpaceNew`, `virLockSpaceFree` |
/// | [`create`](Self::create), [`delete`](Self::delete) | `virLockSpaceCreateResource`, `…DeleteResource` |
/// | [`acquire`](Self::acquire) | `virLockSpaceAcquireResource` |
/// | [`release`](Self::release), [`Lease::release`] | `virLockSpaceReleaseResource` |
/// | [`release_owner`](Self::release_owner) | `virLockSpaceReleaseResourcesForOwner` |
/// | [`list`](Self::list), [`holders`](Self::holders), [`retake`](Self::retake) | |
///
/// ```
/// use lockspace::{AcquireError, LockSpace, Naming, OwnerId, Request, Target, Wait};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let image = dir.path().join("a.qcow2");
/// # std::fs::write(&image, "")?;
/// let space = LockSpace::open(Naming::md5(dir.path().join("locks")))?;
/// let disk = || Request::exclusive(Target::image(&image)).auto_create();
///
/// let lease = space.acquire(OwnerId::new(1), disk(), Wait::NO)?;
/// let refused = space.acquire(OwnerId::new(2), disk(), Wait::NO);
/// assert!(matches!(refused, Err(AcquireError::Busy(_))));
///
/// drop(lease);
/// let lease = space.acquire(OwnerId::new(2), disk(), Wait::NO)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
#[doc(alias = "virLockSpace")]
pub struct LockSpace(Arc<Handle>);

/// What the clones of a [`LockSpace`] share. Leases share [`Core`] only.
struct Handle(Arc<Core>);

impl LockSpace {
    /// Opens a space. If the naming has a directory, this creates it where it is missing, for its
    /// user alone (0700), and holds it open. An existing directory is used as it is: its owner and
    /// its mode are not checked. A relative path is made absolute now; later changes of the working
    /// directory do not matter.
    ///
    /// Mirrors `virLockSpaceNew`.
    ///
    /// # Errors
    /// [`OpenError::NotADirectory`], or [`OpenError::Io`] with what failed.
    #[doc(alias = "virLockSpaceNew")]
    pub fn open(naming: Naming) -> Result<Self, OpenError> {
        Self::builder(naming).open()
    }

    /// A builder, to open a space with settings other than those of [`open`](Self::open).
    pub fn builder(naming: Naming) -> Builder {
        Builder::new(naming)
    }

    /// Creates the resource's lock file, empty, if there is none. In a direct space, that is the
    /// file itself; in memory, nothing is created. The name is taken byte by byte: for an image,
    /// pass its resolved path.
    ///
    /// If another process holds the resource with [`auto_create`](Request::auto_create), its last
    /// release removes the file nevertheless. While a snapshot freezes the space, this and
    /// [`delete`](Self::delete) still work: they are about what nobody holds.
    ///
    /// Mirrors `virLockSpaceCreateResource`.
    ///
    /// # Errors
    /// [`LockFileError::Busy`] if the resource is held in this space; other variants say why the
    /// file was not created.
    ///
    /// ```
    /// use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let dir = tempfile::tempdir()?;
    /// let space = LockSpace::open(Naming::verbatim(dir.path()))?;
    /// space.create("a")?;
    /// space.acquire(OwnerId::new(1), Request::exclusive("a"), Wait::NO)?.release()?;
    /// assert!(dir.path().join("a").exists());
    /// space.delete("a")?;
    /// assert!(!dir.path().join("a").exists());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "virLockSpaceCreateResource")]
    pub fn create(&self, name: impl AsRef<OsStr>) -> Result<(), LockFileError> {
        self.0.0.create(name.as_ref())
    }

    /// Removes the resource's lock file, if no byte of it is locked, in this space or outside of
    /// it. In a direct space, that is the file itself! If its name is a symbolic link there, the file
    /// that it leads to must be free, and the link is removed.
    ///
    /// Mirrors `virLockSpaceDeleteResource`.
    ///
    /// # Errors
    /// [`LockFileError::Busy`] if the resource is held; [`LockFileError::Io`] with `ENOENT` if
    /// there is no lock file.
    #[doc(alias = "virLockSpaceDeleteResource")]
    pub fn delete(&self, name: impl AsRef<OsStr>) -> Result<(), LockFileError> {
        self.0.0.delete(name.as_ref())
    }

    /// Acquires a resource for an owner.
    ///
    /// An exclusive hold excludes every other one; shared holds exclude exclusive ones. An owner
    /// may have several shared holds of one resource, and each is released by itself. A refused
    /// call changes nothing.
    ///
    /// A wait queues behind the other waits of this space for the resource. Threads that must wait
    /// for each other need different owners: a call that would wait for a hold of its own owner is
    /// refused with [`AcquireError::Deadlock`].
    ///
    /// If the resource is held in this space, a try of it is refused without a system call, except
    /// those that resolve an image's path. The lock is an OFD lock on the request's byte range.
    ///
    /// Mirrors `virLockSpaceAcquireResource`.
    ///
    /// # Errors
    /// [`AcquireError::Busy`] says which holder is in the way. Every other variant says what is
    /// wrong. After an error, this call holds nothing, has nothing open, and has left nothing
    /// behind.
    #[doc(alias = "virLockSpaceAcquireResource")]
    #[doc(alias = "lxclock")]
    #[doc(alias = "F_OFD_SETLK")]
    pub fn acquire(
        &self,
        owner: OwnerId,
        request: Request<'_>,
        wait: Wait,
    ) -> Result<Lease, AcquireError> {
        self.0.0.acquire(owner, &request, wait).map(Lease::new)
    }

    /// Acquires several resources for an owner: all, or none. One deadline covers them all, and the
    /// leases come in the order of the requests. While the call waits for one resource, it holds
    /// none of the others, so two calls with the same requests in opposite orders do not block each
    /// other. An error about the lock file of one request may be returned only once the resources
    /// before it are free.
    ///
    /// # Errors
    /// Those of [`acquire`](Self::acquire), about the request that was refused;
    /// [`InvalidRequest::Twice`](crate::InvalidRequest::Twice) if two requests are about one file
    /// or name and exclude each other.
    ///
    /// ```
    /// use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let space = LockSpace::open(Naming::in_memory())?;
    /// let requests = [Request::exclusive("root"), Request::shared("base")];
    /// let leases = space.acquire_all(OwnerId::new(1), requests, Wait::NO)?;
    /// let names: Vec<_> = leases.iter().map(|lease| lease.name()).collect();
    /// assert_eq!(names, ["root", "base"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn acquire_all<'a>(
        &self,
        owner: OwnerId,
        requests: impl IntoIterator<Item = Request<'a>>,
        wait: Wait,
    ) -> Result<Leases, AcquireError> {
        let requests: Vec<_> = requests.into_iter().collect();
        let holds = self.0.0.acquire_all(owner, &requests, wait)?;
        Ok(Leases::new(holds.into_iter().map(Lease::new).collect()))
    }

    /// Ends one kept hold of an owner. The end of the last hold of an auto-created resource removes
    /// the lock file. The name is that of [`Lease::name`]: for an image, its resolved path.
    ///
    /// Mirrors `virLockSpaceReleaseResource`.
    ///
    /// # Errors
    /// [`ReleaseError::NotHeld`] if the owner has no kept hold of the resource: a lease is released
    /// by [`Lease::release`] or its drop. [`ReleaseError::Leftover`] if the lock file could not be
    /// removed: the hold has ended all the same.
    #[doc(alias = "virLockSpaceReleaseResource")]
    pub fn release(&self, owner: OwnerId, name: impl AsRef<OsStr>) -> Result<(), ReleaseError> {
        self.0.0.release_by_name(name.as_ref(), owner)
    }

    /// Ends every kept hold of an owner, and cancels its waits, in time proportional to their
    /// number. Leases are not touched.
    ///
    /// An acquire that is granted during this call, or begins later, is not touched; if its lease
    /// is kept after this call, that hold stays. So a daemon whose client is gone first makes sure
    /// that no call for this owner runs or begins: it cancels the client's
    /// [`Cancel`](crate::Cancel), waits for the threads that serve the client, and then calls this.
    ///
    /// Mirrors `virLockSpaceReleaseResourcesForOwner`.
    #[doc(alias = "virLockSpaceReleaseResourcesForOwner")]
    pub fn release_owner(&self, owner: OwnerId) -> Released {
        self.0.0.release_owner(owner)
    }

    /// Turns one kept hold back into a lease. The name is that of [`Lease::name`]: for an image,
    /// its resolved path.
    ///
    /// # Errors
    /// [`ReleaseError::NotHeld`] if the owner has no kept hold of the resource.
    ///
    /// ```
    /// use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let space = LockSpace::open(Naming::in_memory())?;
    /// let owner = OwnerId::new(1);
    /// space.acquire(owner, Request::exclusive("a"), Wait::NO)?.keep();
    /// let lease = space.retake(owner, "a")?;
    /// assert!(space.release(owner, "a").is_err(), "a lease cannot be taken away");
    /// # Ok(())
    /// # }
    /// ```
    pub fn retake(&self, owner: OwnerId, name: impl AsRef<OsStr>) -> Result<Lease, ReleaseError> {
        self.0.0.retake(name.as_ref(), owner).map(Lease::new)
    }

    /// The resources held in this space now, in no order. Empty in a forked child. Makes no system
    /// call.
    ///
    /// ```
    /// use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let space = LockSpace::open(Naming::in_memory())?;
    /// let owner = OwnerId::new(1);
    /// let _first = space.acquire(owner, Request::shared("base"), Wait::NO)?;
    /// let _second = space.acquire(owner, Request::shared("base"), Wait::NO)?;
    /// let held = &space.list()[0];
    /// assert_eq!((&*held.name, held.owners[&owner]), ("base".as_ref(), 2));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn list(&self) -> Vec<HeldResource> {
        self.0.0.list()
    }

    /// The holders of a resource: first this space's owners, then every other record or OFD lock
    /// that the kernel's tables show on its file, on any bytes. Never opens the file, since closing
    /// it again would drop this process's POSIX locks on it.
    ///
    /// This reads the tables of all processes, which takes tens of milliseconds on a busy host. The
    /// result may be out of date at once.
    ///
    /// # Errors
    /// An invalid name, a path that cannot be resolved, or tables that cannot be read. A resource
    /// without a file has no holders, which is no error.
    ///
    /// ```
    /// use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let dir = tempfile::tempdir()?;
    /// let space = LockSpace::open(Naming::md5(dir.path()))?;
    /// let _lease = space.acquire(OwnerId::new(7), Request::exclusive("a").auto_create(), Wait::NO)?;
    /// let holders = space.holders("a")?;
    /// assert_eq!(holders[0].to_string(), "owner 7 (exclusive, byte 0)");
    /// # Ok(())
    /// # }
    /// ```
    pub fn holders<'a>(&self, target: impl Into<Target<'a>>) -> Result<Vec<Holder>, AcquireError> {
        let core = &self.0.0;
        core.check()?;
        let request = Request::shared(target);
        let resolved = core.resolve_to_look(&request)?;
        core.holders(resolved.text(), resolved.opened())
    }

    /// How often an acquire opened a file, found that its name no longer led to it, and opened it
    /// again: a measure of how often creates and unlinks race.
    #[must_use]
    pub fn stale_retries(&self) -> u64 {
        self.0.0.stale_retries()
    }

    pub(super) fn new(core: Core) -> Self {
        let core = Arc::new(core);
        core.register();
        Self(Arc::new(Handle(core)))
    }

    /// A space with what a snapshot has carried over.
    #[cfg(feature = "snapshot")]
    pub(crate) fn restored(core: Core) -> Self {
        Self::new(core)
    }

    #[cfg(feature = "snapshot")]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.0
    }
}

impl Builder {
    /// Opens the space.
    ///
    /// # Errors
    /// As [`LockSpace::open`].
    pub fn open(self) -> Result<LockSpace, OpenError> {
        let process = Process::current();
        let process = process.map_err(|e| OpenError::Io(IoError::new("mmap", "", e)))?;
        let naming = self.naming.open(self.dir_mode).map_err(OpenError::from_io)?;
        Ok(LockSpace::new(Core::new(process, naming, self.range, self.file_mode)))
    }
}

impl fmt::Debug for LockSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockSpace").field("naming", &self.0.0.naming).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.0.process.is_here() {
            log_release_error(self.0.release_kept(None).leftovers);
        }
    }
}
