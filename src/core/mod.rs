//! The lockspace: one map from name to resource, one mutex around it, and the verbs.
//!
//! Every verb goes the same way: it asks the map under the mutex, moves the resource into a
//! transition, makes its system calls *outside* the mutex, and ends the transition under it. So
//! one resource never stalls another. This module knows no system call; `lock_file` makes them.

pub(crate) mod process;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
#[cfg(feature = "snapshot")]
use std::iter::repeat_n;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use parking_lot::{Mutex, MutexGuard};

use crate::acquire::{self, Wanted};
use crate::api::lease::{Lease, Leases};
use crate::core::process::Process;
use crate::engine::{self, HeldBy, Holder, Key, Kind, LockError, LockFile, Name, OpenNaming};
use crate::error::{AcquireError, Busy, LockFileError, OpenError, ReleaseError, VerifyError};
use crate::sync::Monitor;
use crate::sync::Waker;
use crate::sys::Errno;
use crate::sys::procfs::{self, FdLock, locks_on_descriptor};
use crate::table::fairness::{Began, TurnKey};
use crate::table::slots::{Resources, Slot};
use crate::table::{Care, Claim, Hold, Inherited, Keeping, NoSuchHold, Resource, State, WakeList};
use crate::types::{ByteRange, IoError, Mode, Naming, Origin, OwnerId, Request, Target};
use crate::wait::{Wait, WaitContext, WaitEnd};

/// One map from resource to the one descriptor that is held for it, and its owners.
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

/// What the clones of a [`LockSpace`] share. Leases share [`Inner`] only.
pub(crate) struct Handle(Arc<Inner>);

/// Errors of a release that nobody is there to be told of: a leftover file blocks nobody. The
/// feature `tracing` writes them down.
pub(crate) fn untold(errors: impl IntoIterator<Item = ReleaseError>) {
    for error in errors {
        #[cfg(feature = "tracing")]
        tracing::warn!(%error, "a release without anybody to tell");
        #[cfg(not(feature = "tracing"))]
        drop(error);
    }
}

/// The map, and what every verb needs.
pub(crate) struct Inner {
    pub(crate) process: &'static Process,
    pub(crate) place: OpenNaming,
    pub(crate) range: ByteRange,
    pub(crate) file_mode: u32,
    pub(crate) map: Mutex<Map>,
    /// How many transitions have ended that somebody watched.
    settled: Monitor<u64>,
    pub(crate) stale: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct Map {
    pub(crate) resources: Resources,
    /// What each owner keeps, so that all of it is found without a look at anybody else's. A
    /// resource knows its place in the list of each owner, so that it can leave it at once.
    kept: HashMap<OwnerId, Vec<Slot>>,
    /// The waits of each owner, to be cancelled with it.
    waits: BTreeMap<(OwnerId, u64), Arc<Waker>>,
    serial: u64,
    /// What a snapshot has put off, while there is one.
    frozen: Option<Box<Frozen>>,
}

/// A space while a [`Snapshot`](crate::snapshot::Snapshot) of it lives.
#[derive(Debug, Default)]
struct Frozen {
    /// How many snapshots there are.
    #[cfg_attr(not(feature = "snapshot"), allow(dead_code, reason = "nothing freezes"))]
    snapshots: usize,
    /// Releases that happen when the last of them is dropped: how many of each.
    put_off: HashMap<(Slot, OwnerId, Care), u32>,
}

/// Says how a space is, before it is opened.
///
/// ```
/// use lockspace::{ByteRange, LockSpace, Naming};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let dir = tempfile::tempdir()?;
/// let lxc = LockSpace::builder(Naming::verbatim(dir.path().join("lxc/lock")))
///     .range(ByteRange::WHOLE_FILE)
///     .open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `open`"]
pub struct Builder {
    naming: Naming,
    range: ByteRange,
    file_mode: u32,
    dir_mode: u32,
}

impl Builder {
    /// The range of requests that name none; [`ByteRange::FIRST`] unless set.
    pub fn range(mut self, range: ByteRange) -> Self {
        self.range = range;
        self
    }

    /// The permissions of lock files that are created, as for `open(2)`, less the umask; 0600
    /// unless set.
    pub fn file_mode(mut self, mode: u32) -> Self {
        self.file_mode = mode;
        self
    }

    /// The permissions of the directory if it is created, as for `mkdir(2)`, less the umask; 0700
    /// unless set. Parents that are missing get the umask's default. Whoever can write there can make every lock worthless.
    pub fn dir_mode(mut self, mode: u32) -> Self {
        self.dir_mode = mode;
        self
    }

    /// Opens the space.
    ///
    /// # Errors
    /// As [`LockSpace::open`].
    pub fn open(self) -> Result<LockSpace, OpenError> {
        let process = Process::current();
        let process = process.map_err(|e| OpenError::Io(IoError::new("mmap", "", e)))?;
        let inner = Inner {
            process,
            place: self.naming.open(self.dir_mode).map_err(OpenError::from_io)?,
            range: self.range,
            file_mode: self.file_mode,
            map: Mutex::default(),
            settled: Monitor::default(),
            stale: AtomicU64::new(0),
        };
        Ok(LockSpace(Arc::new(Handle(Arc::new(inner)))))
    }
}

/// A resource that is held in a space; see [`LockSpace::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldResource {
    /// The resource.
    pub name: OsString,
    /// Its lock file; empty where there is none.
    pub path: PathBuf,
    /// How it is held.
    pub mode: Mode,
    /// Who holds it, and how many times, leases and kept holds together.
    pub owners: BTreeMap<OwnerId, u32>,
    /// Where its file came from.
    pub origin: Origin,
    /// The bytes that are locked.
    pub range: ByteRange,
}

/// What [`LockSpace::release_owner`] did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Released {
    /// How many kept holds have ended.
    pub holds: usize,
    /// Lock files that could not be removed, or the reason why nothing was done
    /// ([`ReleaseError::Forked`]).
    pub leftovers: Vec<ReleaseError>,
}

impl LockSpace {
    /// Opens a space. The directory, if the naming has one, is made where it is missing, for its
    /// user alone (0700), and held open. One that is there is taken as it is: its owner and its mode
    /// are not checked. A relative path is made absolute now; later changes of the working directory
    /// do not matter.
    ///
    /// Mirrors `virLockSpaceNew`.
    ///
    /// # Errors
    /// [`OpenError::NotADirectory`], or [`OpenError::Io`] with what failed.
    #[doc(alias = "virLockSpaceNew")]
    pub fn open(naming: Naming) -> Result<Self, OpenError> {
        Self::builder(naming).open()
    }

    /// To open a space that is not as [`open`](Self::open) makes it.
    pub fn builder(naming: Naming) -> Builder {
        Builder { naming, range: ByteRange::FIRST, file_mode: 0o600, dir_mode: 0o700 }
    }

    /// Makes the resource's lock file, empty, if there is none. In a direct space, that is the
    /// file itself; in memory, nothing is made. The name is taken byte by byte: for an image, pass
    /// its resolved path.
    ///
    /// Mirrors `virLockSpaceCreateResource`.
    ///
    /// # Errors
    /// [`LockFileError::Busy`] if the resource is held in this space; what kept the file from being
    /// made.
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
        let inner = self.inner();
        let create = |name: &Name| engine::create_file(name, inner.file_mode);
        inner.change(name.as_ref(), create)
    }

    /// Removes the resource's lock file, if nobody holds any byte of it, here or elsewhere. In a
    /// direct space, that is the file itself!
    ///
    /// Mirrors `virLockSpaceDeleteResource`.
    ///
    /// # Errors
    /// [`LockFileError::Busy`] if it is held; [`LockFileError::Io`] with `ENOENT` if there is none.
    #[doc(alias = "virLockSpaceDeleteResource")]
    pub fn delete(&self, name: impl AsRef<OsStr>) -> Result<(), LockFileError> {
        let inner = self.inner();
        let delete = |name: &Name| engine::delete_file(name, &inner.stale);
        inner.change(name.as_ref(), delete)
    }

    /// Acquires a resource for an owner.
    ///
    /// An exclusive hold excludes every other one; shared holds exclude exclusive ones. An owner
    /// may hold shared more than once: each hold is released by itself. A refused call changes
    /// nothing.
    ///
    /// A wait queues behind the other waits of this space, and does not pass them. Threads that
    /// are to wait for each other need owners of their own: an owner never waits for itself, it is
    /// refused with [`AcquireError::Deadlock`].
    ///
    /// What is held in this space is refused without a system call. The lock is an OFD lock on
    /// the request's byte range.
    ///
    /// Mirrors `virLockSpaceAcquireResource`.
    ///
    /// # Errors
    /// [`AcquireError::Busy`] says who is in the way. Every other variant tells what is wrong;
    /// nothing is held, open or left behind then.
    #[doc(alias = "virLockSpaceAcquireResource")]
    #[doc(alias = "lxclock")]
    #[doc(alias = "F_OFD_SETLK")]
    pub fn acquire(
        &self,
        owner: OwnerId,
        request: Request<'_>,
        wait: Wait,
    ) -> Result<Lease, AcquireError> {
        self.inner().acquire(owner, &request, wait)
    }

    /// Acquires several resources for an owner: all, or none. One deadline covers them all, and the
    /// leases come in the order of the requests. While it waits for one, it holds none of the
    /// others, so two callers that ask for the same in opposite orders do not block each other.
    /// What is wrong with the lock file of one may be told only when those before it are free.
    ///
    /// # Errors
    /// Those of [`acquire`](Self::acquire), about the request that was refused;
    /// [`InvalidRequest::Twice`](crate::InvalidRequest::Twice) if two requests are about one file.
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
        self.inner().acquire_all(owner, &requests, wait)
    }

    /// Ends one kept hold of an owner. With the last hold of an auto-created resource goes the
    /// lock file. The name is that of [`Lease::name`]: of an image, its resolved path.
    ///
    /// Mirrors `virLockSpaceReleaseResource`.
    ///
    /// # Errors
    /// [`ReleaseError::NotHeld`] if the owner has no kept hold of it: leases are released by who
    /// has them. [`ReleaseError::Leftover`] if the lock file could not be removed: the hold has
    /// ended all the same.
    #[doc(alias = "virLockSpaceReleaseResource")]
    pub fn release(&self, owner: OwnerId, name: impl AsRef<OsStr>) -> Result<(), ReleaseError> {
        self.inner().release_by_text(name.as_ref(), owner)
    }

    /// Ends every kept hold of an owner, and cancels its waits, in time proportional to their
    /// number. Leases stay.
    ///
    /// An acquire that is granted meanwhile, or begins later, is not touched; if its lease is kept
    /// after this, that hold stays. So a daemon whose client is gone first sees to it that no call
    /// for this owner runs any more, and none begins: it cancels the client's
    /// [`Cancel`](crate::Cancel), waits for the threads that serve the client, and then calls this.
    ///
    /// Mirrors `virLockSpaceReleaseResourcesForOwner`.
    #[doc(alias = "virLockSpaceReleaseResourcesForOwner")]
    pub fn release_owner(&self, owner: OwnerId) -> Released {
        let inner = self.inner();
        match inner.process.check() {
            Ok(()) => inner.release_kept(Some(owner)),
            Err(creator) => {
                Released { holds: 0, leftovers: vec![ReleaseError::Forked { creator }] }
            }
        }
    }

    /// Takes a kept hold back as a lease, one for each call. The name is that of [`Lease::name`]: of
    /// an image, its resolved path.
    ///
    /// # Errors
    /// [`ReleaseError::NotHeld`] if the owner has no kept hold of it.
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
        let (inner, text) = (self.inner(), name.as_ref());
        inner.process.check().map_err(|creator| ReleaseError::Forked { creator })?;
        let mut map = inner.map.lock();
        let not_held = |NoSuchHold| ReleaseError::NotHeld { owner, name: text.to_owned() };
        let slot = map.resources.find(text.into()).ok_or(NoSuchHold).map_err(not_held)?;
        let handed = map.hand_over(slot, owner, Care::Kept, Care::Lease);
        let (name, mode) = handed.map_err(not_held)?;
        Ok(Lease::new(Arc::clone(inner), slot, name, owner, mode))
    }

    /// What is held in this space now, in no order. Empty in a forked child. Makes no system
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
        let inner = self.inner();
        if inner.check().is_err() {
            return Vec::new();
        }
        let map = inner.map.lock();
        let held = map.resources.iter().filter_map(|resource| {
            let hold = resource.hold()?;
            Some(HeldResource {
                name: resource.name.text().to_owned(),
                path: resource.name.path(),
                mode: hold.mode,
                owners: hold.owners.counts(),
                origin: hold.origin,
                range: hold.range(),
            })
        });
        held.collect()
    }

    /// Who holds a resource: first this space's owners, then whoever else the kernel's tables
    /// show with a record or OFD lock on its file, on whatever bytes. Never opens the file, since
    /// closing it again could drop somebody's POSIX locks.
    ///
    /// This reads the tables of all processes (tens of milliseconds on a busy host), and is a
    /// look at one moment.
    ///
    /// # Errors
    /// Those of a request: a name that cannot be, a path that cannot be resolved, tables that
    /// cannot be read. A resource without a file has no holders, and that is no error.
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
        let inner = self.inner();
        inner.check()?;
        let Request { target, settings } = Request::shared(target);
        inner.holders(&Wanted::new(inner, &target, settings)?)
    }

    /// How often a file was found, after it was opened, to have lost its name to another one or
    /// to none, and was opened anew: a measure of how much create and unlink race here.
    #[must_use]
    pub fn stale_retries(&self) -> u64 {
        self.inner().stale.load(Ordering::Relaxed)
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.0.0
    }
}

impl fmt::Debug for LockSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockSpace").field("place", &self.inner().place).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.0.process.is_here() {
            untold(self.0.release_kept(None).leftovers);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.process.is_here() {
            // What was kept after the last handle was gone.
            untold(self.release_kept(None).leftovers);
        } else if self.map.is_locked() {
            // Another thread was changing the map when this process was forked off. It cannot
            // even be freed.
            std::mem::forget(std::mem::take(self.map.get_mut()));
        }
        // In a forked child the descriptors are closed, and nothing else is done.
    }
}

impl Inner {
    pub(crate) fn check(&self) -> Result<(), AcquireError> {
        self.process.check().map_err(|creator| AcquireError::Forked { creator })
    }

    /// Creates or deletes the file of a resource that nobody holds here.
    fn change(
        &self,
        text: &OsStr,
        change: impl FnOnce(&Name) -> Result<(), LockError>,
    ) -> Result<(), LockFileError> {
        self.process.check().map_err(|creator| LockFileError::Forked { creator })?;
        let bad = |why| LockFileError::Invalid { name: text.to_owned(), why };
        let name = self.place.name(text).map_err(bad)?;
        let key = Key::from(text);
        let mut map = self.map.lock();
        while let Some(slot) = map.resources.find(key) {
            let resource = map.resources.at(slot);
            let Some((held, owners)) = resource.blockers() else {
                resource.watched = true;
                self.sleep_until_settled(&mut map, None);
                continue;
            };
            let name = Arc::clone(&resource.name);
            return Err(LockFileError::Busy(Busy::inside(name, Mode::Exclusive, held, owners)));
        }
        let transition = self.begin(map, key.hash(), Arc::clone(&name), State::Releasing);
        let changed = change(&name);
        transition.end();
        changed.map_err(|refusal| match refusal {
            LockError::Contended(file) => {
                LockFileError::Busy(self.contended(name, Mode::Exclusive, file.id()))
            }
            LockError::Invalid(why) => bad(why),
            LockError::DirectoryReplaced(directory) => {
                LockFileError::DirectoryReplaced { name: text.to_owned(), directory }
            }
            LockError::NotFound => {
                LockFileError::Io(IoError::new("openat", name.path(), Errno::NOENT))
            }
            LockError::Unstable(_) => {
                LockFileError::Io(IoError::new("openat", name.path(), Errno::BUSY))
            }
            LockError::Io(error) => LockFileError::Io(error),
        })
    }

    /// Sleeps until a transition that is watched may have ended, or a snapshot, or the wait is
    /// over.
    pub(crate) fn wait_for_change(
        &self,
        map: &mut MutexGuard<'_, Map>,
        context: &WaitContext,
    ) -> Result<(), WaitEnd> {
        if let Some(over) = context.over() {
            return Err(over);
        }
        // A cancel does not ring here, but neither lasts long where all is well.
        let soon = context.until_or_in(Duration::from_millis(10));
        self.sleep_until_settled(map, Some(soon));
        Ok(())
    }

    /// Sleeps, without the map, until a transition that is watched has ended, or a snapshot, or until
    /// `until`.
    pub(crate) fn sleep_until_settled(
        &self,
        map: &mut MutexGuard<'_, Map>,
        until: Option<Instant>,
    ) {
        // What is waited for ends under the map's mutex, and is counted after that.
        let seen = *self.settled.lock();
        MutexGuard::unlocked(map, || {
            let mut settled = self.settled.lock();
            while *settled == seen && until.is_none_or(|until| Instant::now() < until) {
                settled = self.settled.wait(settled, until);
            }
        });
    }

    fn tell_settled(&self) {
        *self.settled.lock() += 1;
        self.settled.notify_all();
    }

    /// Waits until no thread makes system calls for any resource, and lets none begin.
    ///
    /// `Err` is a resource whose file system has not answered.
    #[cfg(feature = "snapshot")]
    pub(crate) fn freeze(&self) -> Result<(), Arc<Name>> {
        let mut map = self.map.lock();
        map.frozen.get_or_insert_default().snapshots += 1;
        loop {
            let moving = map.resources.iter_mut().find(|resource| resource.is_in_transition());
            let Some(resource) = moving else { return Ok(()) };
            if resource.is_stuck() {
                let name = Arc::clone(&resource.name);
                drop(map);
                self.thaw();
                return Err(name);
            }
            resource.watched = true;
            match resource.stuck_since() {
                Some(since) => {
                    let answer = since + crate::table::ANSWER;
                    self.sleep_until_settled(&mut map, Some(answer));
                }
                None => self.sleep_until_settled(&mut map, None),
            }
        }
    }

    /// Everything that is held, while the space is frozen, in order of name.
    #[cfg(feature = "snapshot")]
    pub(crate) fn with_holds<T>(&self, each: impl FnMut(&Name, &Hold) -> T) -> Vec<T> {
        let map = self.map.lock();
        let mut held: Vec<_> = map
            .resources
            .iter()
            .filter_map(|resource| Some((&*resource.name, resource.hold()?)))
            .collect();
        held.sort_unstable_by_key(|(name, _)| name.text());
        let mut each = each;
        held.into_iter().map(|(name, hold)| each(name, hold)).collect()
    }

    /// A space with these holds, all of them kept.
    #[cfg(feature = "snapshot")]
    pub(crate) fn restored(
        process: &'static Process,
        place: OpenNaming,
        how: (ByteRange, u32),
        stale: u64,
        holds: impl ExactSizeIterator<Item = (Arc<Name>, Hold)>,
    ) -> LockSpace {
        let mut map = Map::default();
        map.resources.reserve(holds.len());
        for (name, hold) in holds {
            let owners = hold.owners.ids();
            let hash = Key::from(name.text()).hash();
            let slot = map.insert(hash, name, State::Held(hold));
            owners.into_iter().for_each(|owner| map.note(slot, owner, Keeping::Begins));
        }
        let (range, file_mode) = how;
        let (map, settled, stale) = (Mutex::new(map), Monitor::default(), AtomicU64::new(stale));
        let inner = Self { process, place, range, file_mode, map, settled, stale };
        LockSpace(Arc::new(Handle(Arc::new(inner))))
    }

    /// Ends what [`freeze`](Self::freeze) began: what was put off happens.
    #[cfg(feature = "snapshot")]
    pub(crate) fn thaw(&self) {
        let (mut last, mut rings) = (Vec::new(), WakeList::default());
        {
            let mut map = self.map.lock();
            let Some(frozen) = &mut map.frozen else { return };
            frozen.snapshots -= 1;
            if frozen.snapshots > 0 {
                return;
            }
            // All of it before anybody else gets the mutex: who is released must not be found to
            // hold, and what is acquired from now on must not be released.
            let put_off = map.frozen.take().map(|frozen| frozen.put_off).unwrap_or_default();
            let each = put_off.into_iter().flat_map(|(key, count)| repeat_n(key, count as usize));
            for (slot, owner, care) in each {
                if let Ok(Some(hold)) = map.leave(slot, owner, care, &mut rings) {
                    last.push((slot, Arc::clone(&map.resources.at(slot).name), hold));
                }
            }
            for resource in map.resources.iter_mut() {
                resource.let_in(&mut rings);
            }
        }
        self.tell_settled();
        rings.wake();
        untold(last.into_iter().filter_map(|(slot, name, hold)| self.end(slot, &name, hold).err()));
    }

    /// Puts an absent resource into a transition that this thread alone will end.
    pub(crate) fn begin(
        &self,
        mut map: MutexGuard<'_, Map>,
        hash: u64,
        name: Arc<Name>,
        state: State,
    ) -> Transition<'_> {
        let slot = map.insert(hash, Arc::clone(&name), state);
        drop(map);
        Transition::granted(self, slot, name)
    }

    /// A transition has ended in nothing.
    pub(crate) fn settle(&self, slot: Slot) {
        self.change_state(slot, |resource, frozen, rings| {
            // Others than this process can have it now.
            if let Some(began) = resource.turn.take() {
                self.process
                    .turns
                    .end(TurnKey::new(resource.name.directory(), resource.hash), began);
            }
            resource.next(Inherited::Nothing, frozen, rings)
        });
    }

    /// A conversion has ended; in the new mode, if it was granted.
    pub(crate) fn settle_conversion(&self, slot: Slot, file: LockFile, to: Mode, granted: bool) {
        self.change_state(slot, |resource, _, rings| {
            resource.end_conversion(file, granted.then_some(to), rings);
            true
        });
    }

    /// Ends a state of a resource that is in the map, and removes it unless `change` says that it
    /// stays. Wakes whoever waited for that.
    /// `change` is told whether the space is frozen.
    fn change_state(
        &self,
        slot: Slot,
        change: impl FnOnce(&mut Resource, bool, &mut WakeList) -> bool,
    ) {
        let mut rings = WakeList::default();
        let mut map = self.map.lock();
        let frozen = map.is_frozen();
        // Only who ends its transition removes it.
        let resource = map.resources.at(slot);
        let watched = std::mem::take(&mut resource.watched);
        let removed = match change(resource, frozen, &mut rings) {
            true => None,
            false => Some(map.resources.remove(slot)),
        };
        drop(map);
        drop(removed);
        if watched {
            self.tell_settled();
        }
        rings.wake();
    }

    /// Gives a lease's hold into the space's care.
    pub(crate) fn keep(&self, slot: Slot, owner: OwnerId) {
        if self.process.is_here() {
            let kept = self.map.lock().hand_over(slot, owner, Care::Lease, Care::Kept);
            debug_assert!(kept.is_ok(), "a lease has its hold");
        }
    }

    /// Ends the hold of a lease.
    pub(crate) fn release(
        &self,
        slot: Slot,
        name: &Arc<Name>,
        owner: OwnerId,
    ) -> Result<(), ReleaseError> {
        self.process.check().map_err(|creator| ReleaseError::Forked { creator })?;
        let left = self.leave(self.map.lock(), slot, owner, Care::Lease);
        let not_held = |NoSuchHold| ReleaseError::NotHeld { owner, name: name.text().to_owned() };
        left.map_err(not_held)?.map_or(Ok(()), |hold| self.end(slot, name, hold))
    }

    /// Ends a kept hold.
    fn release_by_text(&self, text: &OsStr, owner: OwnerId) -> Result<(), ReleaseError> {
        self.process.check().map_err(|creator| ReleaseError::Forked { creator })?;
        let not_held = |NoSuchHold| ReleaseError::NotHeld { owner, name: text.to_owned() };
        let mut map = self.map.lock();
        let slot = map.resources.find(text.into()).ok_or(NoSuchHold).map_err(not_held)?;
        let name = Arc::clone(&map.resources.at(slot).name);
        let left = self.leave(map, slot, owner, Care::Kept);
        left.map_err(not_held)?.map_or(Ok(()), |hold| self.end(slot, &name, hold))
    }

    /// Ends one hold, or puts that off while the space is frozen. What comes back is to be ended.
    pub(crate) fn leave(
        &self,
        mut map: MutexGuard<'_, Map>,
        slot: Slot,
        owner: OwnerId,
        care: Care,
    ) -> Result<Option<Hold>, NoSuchHold> {
        let mut rings = WakeList::default();
        let left = match map.frozen {
            Some(_) => map.put_off(slot, owner, care).map(|()| None),
            None => map.leave(slot, owner, care, &mut rings),
        };
        drop(map);
        rings.wake();
        left
    }

    /// Ends all kept holds, of one owner or of every one. One resource after the other: if the
    /// file system of one hangs, those behind it are held still, and not neither held nor free.
    fn release_kept(&self, owner: Option<OwnerId>) -> Released {
        let (mut holds, kept, waits) = {
            let mut map = self.map.lock();
            let waits = map.waits_of(owner);
            match map.frozen {
                Some(_) => (map.put_off_kept(owner), Vec::new(), waits),
                None => (0, map.kept_of(owner), waits),
            }
        };
        for waker in waits {
            waker.cancel();
        }
        let mut leftovers = Vec::new();
        for kept in kept {
            let mut rings = WakeList::default();
            let (left, last) = self.map.lock().leave_kept(kept, &mut rings);
            rings.wake();
            holds += left;
            leftovers.extend(last.and_then(|(name, hold)| self.end(kept.slot, &name, hold).err()));
        }
        Released { holds, leftovers }
    }

    /// Makes the system calls of a release, after the last owner has left.
    pub(crate) fn end(&self, slot: Slot, name: &Arc<Name>, hold: Hold) -> Result<(), ReleaseError> {
        let transition = Ending { inner: self, slot };
        let unlink = acquire::unlink_of(hold.origin, hold.mode);
        let released = hold.into_file().map_or(Ok(()), |file| file.release(name, unlink));
        drop(transition);
        let name = || name.text().to_owned();
        released.map_err(|source| ReleaseError::Leftover { name: name(), source })
    }

    pub(crate) fn verify(&self, slot: Slot, name: &Name) -> Result<(), VerifyError> {
        self.process.check().map_err(|creator| VerifyError::Forked { creator })?;
        let seen = {
            let mut map = self.map.lock();
            map.resources.at(slot).hold().and_then(|hold| {
                let file = hold.file()?;
                Some((file.id(), file.number(), hold.mode, hold.range()))
            })
        };
        // In memory nothing can be lost.
        let Some((id, number, mode, range)) = seen else { return Ok(()) };
        if !name.leads_to(id).map_err(VerifyError::Io)? {
            return Err(VerifyError::Replaced { name: name.text().to_owned(), path: name.path() });
        }
        // The caller's lease keeps this number ours.
        let locks = locks_on_descriptor(number).map_err(|source| {
            VerifyError::Io(IoError::new(procfs::READ_FDINFO, name.path(), source))
        })?;
        let ours = |lock: &FdLock| lock.is_ofd_over(mode, range);
        if locks.iter().any(ours) {
            Ok(())
        } else {
            Err(VerifyError::Unlocked { name: name.text().to_owned(), path: name.path() })
        }
    }

    fn holders(&self, wanted: &Wanted<'_>) -> Result<Vec<Holder>, AcquireError> {
        let text = &*wanted.text;
        let bad = |why| AcquireError::Invalid { name: text.to_owned(), why };
        let (inside, ours) = {
            let mut map = self.map.lock();
            let hold = map.find(text.into()).and_then(|resource| resource.hold());
            let file = hold.and_then(Hold::file).map(|file| (file.id(), file.number()));
            let inside = hold.map(|hold| Holder {
                mode: hold.mode,
                kind: Kind::Ofd,
                range: hold.range(),
                by: HeldBy::Owners(hold.owners.ids()),
            });
            (inside, file)
        };
        let kernels = match (ours, wanted.opened) {
            // By its number, since another file may be under the name by now.
            (Some((_, number)), _) => engine::holders_beside(number),
            (None, Some((fd, _))) => engine::holders_of_descriptor(fd),
            (None, None) => {
                let name = self.place.name(text).map_err(bad)?;
                match name.leads_nowhere() {
                    true => Ok(Vec::new()),
                    false => engine::holders_of(name.path()),
                }
            }
        };
        let mut holders: Vec<_> = inside.into_iter().collect();
        match kernels {
            Ok(kernels) => holders.extend(kernels),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(AcquireError::Io(IoError::new(procfs::READ_LOCKS, text, error)));
            }
        }
        Ok(holders)
    }
}

/// A transition of one resource, which the thread that has this ends; also by a panic.
pub(crate) struct Transition<'a> {
    ending: Ending<'a>,
    pub(crate) name: Arc<Name>,
}

/// Ends a transition in nothing, when it is dropped.
struct Ending<'a> {
    inner: &'a Inner,
    slot: Slot,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.inner.settle(self.slot);
    }
}

impl<'a> Transition<'a> {
    /// The map has given it to this thread.
    pub(crate) fn granted(inner: &'a Inner, slot: Slot, name: Arc<Name>) -> Self {
        Self { ending: Ending { inner, slot }, name }
    }

    /// The map has handed it on to this thread. Whoever had it before may have meant a file by its
    /// path, and this thread one by a descriptor, or the other way round: what the name leads to
    /// is made anew then, by `make`.
    ///
    /// # Errors
    /// Those of `make`; the transition has ended then.
    pub(crate) fn inherited<E>(
        inner: &'a Inner,
        slot: Slot,
        opened: bool,
        make: impl FnOnce() -> Result<Arc<Name>, E>,
    ) -> Result<Self, E> {
        let name = Arc::clone(&inner.map.lock().resources.at(slot).name);
        let mut transition = Self::granted(inner, slot, name);
        if opened || transition.name.is_of_opened() {
            transition.name = make()?;
            inner.map.lock().resources.at(slot).name = Arc::clone(&transition.name);
        }
        Ok(transition)
    }

    pub(crate) fn slot(&self) -> Slot {
        self.ending.slot
    }

    /// It ends in nothing.
    pub(crate) fn end(self) -> Arc<Name> {
        self.name
    }

    /// It ends in a hold, and perhaps begins a `turn`, unless that began earlier.
    pub(crate) fn end_in(self, hold: Hold, turn: Option<Began>) -> Arc<Name> {
        let Self { ending, name } = self;
        ending.inner.change_state(ending.slot, |resource, _, rings| {
            resource.turn = resource.turn.or(turn);
            resource.state = State::Held(hold);
            resource.let_in(rings);
            true
        });
        std::mem::forget(ending);
        name
    }

    /// What is in the way is outside of this space: tries need not wait for this to end.
    pub(crate) fn await_others(&self) {
        self.ending.inner.change_state(self.ending.slot, |resource, _, _| {
            if let State::Acquiring(claim) = resource.state {
                resource.state = State::Awaited(claim);
            }
            true
        });
    }

    /// System calls are made again, unless the space is frozen until the wait is over.
    pub(crate) fn acquire_again(&self, context: &WaitContext) -> Result<(), WaitEnd> {
        let mut map = self.ending.inner.map.lock();
        while let State::Awaited(claim) = map.resources.at(self.ending.slot).state {
            if map.is_frozen() {
                self.ending.inner.wait_for_change(&mut map, context)?;
            } else {
                map.resources.at(self.ending.slot).state = State::Acquiring(claim);
            }
        }
        Ok(())
    }

    /// Nobody waits for it any more. A helper ends it, when the file system answers.
    pub(crate) fn leave_stuck(&self) {
        self.ending.inner.change_state(self.ending.slot, |resource, _, _| {
            if let State::Acquiring(claim) | State::Awaited(claim) = resource.state {
                let stuck_since = Some(Instant::now());
                resource.state = State::Acquiring(Claim { stuck_since, ..claim });
            }
            true
        });
    }

    /// It is another thread's to end.
    pub(crate) fn give_away(self) {
        std::mem::forget(self.ending);
    }
}

/// One of the resources that an owner keeps.
#[derive(Clone, Copy)]
struct Kept {
    owner: OwnerId,
    slot: Slot,
    /// Of the resource: another one may be in the slot later.
    serial: u32,
}

impl Map {
    pub(crate) fn find(&mut self, text: Key<'_>) -> Option<&mut Resource> {
        self.resources.find(text).map(|slot| self.resources.at(slot))
    }

    fn insert(&mut self, hash: u64, name: Arc<Name>, state: State) -> Slot {
        // Cut: it only has to differ from those that were in the slot lately.
        let serial = self.next_serial() as u32;
        self.resources.insert(Resource::new(name, hash, serial, state))
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    pub(crate) fn begin_wait(&mut self, owner: OwnerId, waker: &Arc<Waker>) -> u64 {
        let number = self.next_serial();
        self.waits.insert((owner, number), Arc::clone(waker));
        number
    }

    pub(crate) fn end_wait(&mut self, owner: OwnerId, number: u64) {
        self.waits.remove(&(owner, number));
    }

    /// Lets those at the head of a resource's queue join what is held, unless it is frozen.
    pub(crate) fn let_in(&mut self, slot: Slot, rings: &mut WakeList) {
        if !self.is_frozen()
            && let Some(resource) = self.resources.get(slot)
        {
            resource.let_in(rings);
        }
    }

    /// The waits of one owner. Who drops the last handle waits for nobody.
    fn waits_of(&self, owner: Option<OwnerId>) -> Vec<Arc<Waker>> {
        let all = owner.map(|owner| self.waits.range((owner, 0)..=(owner, u64::MAX)));
        all.into_iter().flatten().map(|(_, waker)| Arc::clone(waker)).collect()
    }

    /// Ends one hold of an owner. If it was the last of the resource, the resource is now
    /// releasing, and the caller must end the hold.
    fn leave(
        &mut self,
        slot: Slot,
        owner: OwnerId,
        care: Care,
        rings: &mut WakeList,
    ) -> Result<Option<Hold>, NoSuchHold> {
        let resource = self.resources.at(slot);
        let State::Held(hold) = &mut resource.state else { return Err(NoSuchHold) };
        let keeping = hold.owners.remove(owner, care)?;
        let left = resource.left(rings);
        if keeping != Keeping::Same {
            self.note(slot, owner, keeping);
        }
        Ok(left)
    }

    /// Keeps the list of what an owner keeps.
    fn note(&mut self, slot: Slot, owner: OwnerId, keeping: Keeping) {
        match keeping {
            Keeping::Same => {}
            Keeping::Begins => {
                let list = self.kept.entry(owner).or_default();
                // As many as there are slots, at most.
                let at = list.len() as u32;
                list.push(slot);
                self.listed_at(slot, owner, at);
            }
            Keeping::Ends(at) => {
                let Some(list) = self.kept.get_mut(&owner) else { return };
                list.swap_remove(at as usize);
                match list.get(at as usize) {
                    Some(&moved) => self.listed_at(moved, owner, at),
                    None if list.is_empty() => drop(self.kept.remove(&owner)),
                    None => {}
                }
            }
        }
    }

    fn listed_at(&mut self, slot: Slot, owner: OwnerId, at: u32) {
        if let State::Held(hold) | State::Converting(hold) = &mut self.resources.at(slot).state {
            hold.owners.listed_at(owner, at);
        }
    }

    /// What one owner keeps, or every one.
    fn kept_of(&mut self, owner: Option<OwnerId>) -> Vec<Kept> {
        let all: Vec<(OwnerId, &Vec<Slot>)> = match owner {
            Some(owner) => self.kept.get(&owner).map(|list| (owner, list)).into_iter().collect(),
            None => self.kept.iter().map(|(&owner, list)| (owner, list)).collect(),
        };
        let resources = &mut self.resources;
        let mut kept = Vec::with_capacity(all.iter().map(|(_, list)| list.len()).sum());
        for (owner, list) in all {
            kept.extend(list.iter().map(|&slot| {
                let serial = resources.at(slot).serial;
                Kept { owner, slot, serial }
            }));
        }
        kept
    }

    /// Ends all kept holds that an owner has of one resource: how many there were, and the hold to
    /// end if they were the last ones.
    fn leave_kept(
        &mut self,
        kept: Kept,
        rings: &mut WakeList,
    ) -> (usize, Option<(Arc<Name>, Hold)>) {
        let Kept { owner, slot, serial } = kept;
        // Somebody else may have ended them meanwhile.
        let resource = self.resources.get(slot).filter(|resource| resource.serial == serial);
        let Some(resource) = resource else { return (0, None) };
        if self.frozen.is_some() {
            // Since it was looked up. It is put off like the others.
            let mut holds = 0;
            while self.put_off(slot, owner, Care::Kept).is_ok() {
                holds += 1;
            }
            return (holds, None);
        }
        let State::Held(hold) = &mut resource.state else { return (0, None) };
        let Some((holds, at)) = hold.owners.remove_kept(owner) else { return (0, None) };
        let last = resource.left(rings).map(|hold| (Arc::clone(&resource.name), hold));
        self.note(slot, owner, Keeping::Ends(at));
        (holds as usize, last)
    }

    /// A release while the space is frozen: it is put off.
    fn put_off(&mut self, slot: Slot, owner: OwnerId, care: Care) -> Result<(), NoSuchHold> {
        if self.left_after_thaw(slot, owner, care) == 0 {
            return Err(NoSuchHold);
        }
        let frozen = self.frozen.get_or_insert_default();
        *frozen.put_off.entry((slot, owner, care)).or_default() += 1;
        Ok(())
    }

    /// The same for all kept holds, of one owner or of every one; tells how many.
    fn put_off_kept(&mut self, owner: Option<OwnerId>) -> usize {
        let mut holds = 0;
        for Kept { owner, slot, .. } in self.kept_of(owner) {
            while self.put_off(slot, owner, Care::Kept).is_ok() {
                holds += 1;
            }
        }
        holds
    }

    /// How many holds an owner will have once everything that was put off has happened.
    fn left_after_thaw(&mut self, slot: Slot, owner: OwnerId, care: Care) -> usize {
        let Some(hold) = self.resources.at(slot).hold() else { return 0 };
        let now = hold.owners.count_in(owner, care) as usize;
        let frozen = self.frozen.as_ref();
        let put_off = frozen.and_then(|frozen| frozen.put_off.get(&(slot, owner, care)));
        now - put_off.copied().unwrap_or(0) as usize
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// Moves one hold of an owner from one care into the other.
    fn hand_over(
        &mut self,
        slot: Slot,
        owner: OwnerId,
        from: Care,
        to: Care,
    ) -> Result<(Arc<Name>, Mode), NoSuchHold> {
        if self.is_frozen() && self.left_after_thaw(slot, owner, from) == 0 {
            return Err(NoSuchHold);
        }
        let resource = self.resources.at(slot);
        let (State::Held(hold) | State::Converting(hold)) = &mut resource.state else {
            return Err(NoSuchHold);
        };
        let keeping = hold.owners.hand_over(owner, from, to)?;
        let (name, mode) = (Arc::clone(&resource.name), hold.mode);
        self.note(slot, owner, keeping);
        Ok((name, mode))
    }
}
