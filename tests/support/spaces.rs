//! Spaces, requests, and what comes of them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lockspace::{AcquireError, Busy, ByteRange, InvalidRequest, Lease, LockSpace, Mode, Naming};
use lockspace::{OwnerId, ReleaseError, Request, Wait};
use tempfile::TempDir;

use super::forked::{Forked, Gate, fork};
use super::locks::held;
use super::process::open_below;
use super::waits::{Waiting, eventually, start};

pub(crate) const A: OwnerId = OwnerId::new(1);
pub(crate) const B: OwnerId = OwnerId::new(2);
pub(crate) const C: OwnerId = OwnerId::new(3);
pub(crate) const BOTH: [Mode; 2] = [Mode::Exclusive, Mode::Shared];
/// A resource, where it does not matter which.
pub(crate) const NAME: &str = "disk";

/// What comes of a request.
pub(crate) type Acquired = Result<Lease, AcquireError>;

// Spaces.

/// A space whose lock files are named as the resources, in this directory.
#[track_caller]
pub(crate) fn space_in(dir: &Path) -> LockSpace {
    LockSpace::open(Naming::verbatim(dir)).unwrap()
}

/// The same in a directory of its own.
pub(crate) fn verbatim() -> (TempDir, LockSpace) {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    (dir, space)
}

/// A space that locks images themselves.
pub(crate) fn direct() -> LockSpace {
    LockSpace::open(Naming::direct()).unwrap()
}

pub(crate) fn in_memory() -> LockSpace {
    LockSpace::open(Naming::in_memory()).unwrap()
}

/// A folder on tmpfs, of which nothing can hang, wherever temporary files are.
pub(crate) fn folder_in_memory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

/// An image with a content, its path free of symlinks.
pub(crate) fn image() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let image = fs::canonicalize(dir.path()).unwrap().join("a.raw");
    fs::write(&image, "content").unwrap();
    (dir, image)
}

/// A folder with one file, which is [`NAME`].
pub(crate) fn lock_file() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    fs::write(&path, "").unwrap();
    (dir, path)
}

/// An empty image in this folder.
pub(crate) fn image_in(dir: &Path) -> PathBuf {
    let image = dir.join("a.raw");
    fs::write(&image, "").unwrap();
    image
}

pub(crate) fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

/// What is in a folder, in order.
pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

// Requests.

pub(crate) fn auto(name: &str) -> Request<'_> {
    Request::exclusive(name).auto_create()
}

pub(crate) fn byte(at: u64) -> ByteRange {
    ByteRange::new(at, NonZeroU64::MIN).unwrap()
}

// Tries.

#[track_caller]
pub(crate) fn granted(space: &LockSpace, owner: OwnerId, request: Request<'_>) -> Lease {
    space.acquire(owner, request, Wait::NO).unwrap()
}

/// `A` holds it exclusively, and it is made for that.
#[track_caller]
pub(crate) fn hold(space: &LockSpace, name: &str) -> Lease {
    granted(space, A, auto(name))
}

/// The same of any owner, in any mode.
#[track_caller]
pub(crate) fn hold_as(space: &LockSpace, owner: OwnerId, mode: Mode, name: &str) -> Lease {
    granted(space, owner, Request::new(mode, name).auto_create())
}

#[track_caller]
pub(crate) fn refused(space: &LockSpace, owner: OwnerId, request: Request<'_>) -> AcquireError {
    match space.acquire(owner, request, Wait::NO) {
        Err(error) => error,
        Ok(lease) => panic!("granted: {lease:?}"),
    }
}

#[track_caller]
pub(crate) fn busy(space: &LockSpace, owner: OwnerId, request: Request<'_>) -> Busy {
    expect_busy(space.acquire(owner, request, Wait::NO))
}

#[track_caller]
pub(crate) fn bad(space: &LockSpace, owner: OwnerId, request: Request<'_>) -> InvalidRequest {
    expect_bad(space.acquire(owner, request, Wait::NO))
}

// What has come of a request.

#[track_caller]
pub(crate) fn expect_busy<T: Debug>(result: Result<T, AcquireError>) -> Busy {
    match result {
        Err(AcquireError::Busy(busy)) => busy,
        other => panic!("not busy: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn expect_bad<T: Debug>(result: Result<T, AcquireError>) -> InvalidRequest {
    match result {
        Err(AcquireError::Invalid { why, .. }) => why,
        other => panic!("not bad: {other:?}"),
    }
}

/// How long it had waited for this resource.
#[track_caller]
pub(crate) fn expect_cancelled<T: Debug>(
    result: Result<T, AcquireError>,
    about: impl AsRef<OsStr>,
) -> Duration {
    match result {
        Err(AcquireError::Cancelled { name, waited, .. }) => {
            assert_eq!(name, about.as_ref());
            waited
        }
        other => panic!("not cancelled: {other:?}"),
    }
}

/// How long it had waited for the file, which is the resource itself.
#[track_caller]
pub(crate) fn expect_stuck<T: Debug>(result: Result<T, AcquireError>, path: &Path) -> Duration {
    match result {
        Err(AcquireError::Unresponsive { name, path: said, waited }) => {
            assert_eq!((&*name, &*said), (path.as_os_str(), path));
            waited
        }
        other => panic!("not stuck: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn expect_deadlock<T: Debug>(result: Result<T, AcquireError>, about: &str) {
    match result {
        Err(AcquireError::Deadlock { name, .. }) => assert_eq!(name, about),
        other => panic!("no deadlock: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn expect_frozen<T: Debug>(result: Result<T, AcquireError>, about: impl AsRef<OsStr>) {
    match result {
        Err(AcquireError::Frozen { name, .. }) => assert_eq!(name, about.as_ref()),
        other => panic!("not refused as frozen: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn expect_not_held<T: Debug>(
    result: Result<T, ReleaseError>,
    whose: OwnerId,
    what: impl AsRef<OsStr>,
) {
    match result {
        Err(ReleaseError::NotHeld { owner, name, .. }) => {
            assert_eq!((owner, &*name), (whose, what.as_ref()));
        }
        other => panic!("held: {other:?}"),
    }
}

/// The owners of a resource, and how many holds each has.
pub(crate) fn owners_of(space: &LockSpace, name: &str) -> BTreeMap<OwnerId, u32> {
    let held = space.list().into_iter().find(|held| held.name == *name);
    held.map(|held| held.owners).unwrap_or_default()
}

// A resource and who wants it.

/// Waits for a resource by its name, or path, which need not exist in a directory.
pub(crate) fn wait_for(
    space: &LockSpace,
    owner: OwnerId,
    mode: Mode,
    name: impl AsRef<Path>,
    wait: Wait,
) -> Waiting<Acquired> {
    let (space, name) = (space.clone(), name.as_ref().to_owned());
    start(move || {
        let request = Request::new(mode, name.as_path());
        let request = if name.is_absolute() { request } else { request.auto_create() };
        space.acquire(owner, request, wait)
    })
}

/// A space with the resource [`NAME`]: a lock file that is there, or in memory.
pub(crate) struct Room {
    pub(crate) space: LockSpace,
    pub(crate) dir: Option<TempDir>,
}

impl Room {
    pub(crate) fn on_disk() -> Self {
        let (dir, space) = verbatim();
        space.create(NAME).unwrap();
        Self { space, dir: Some(dir) }
    }

    pub(crate) fn in_memory() -> Self {
        Self { space: in_memory(), dir: None }
    }

    pub(crate) fn both() -> [Self; 2] {
        [Self::on_disk(), Self::in_memory()]
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir().join(NAME)
    }

    pub(crate) fn hold(&self, owner: OwnerId, mode: Mode) -> Lease {
        granted(&self.space, owner, Request::new(mode, NAME))
    }

    /// Waits for it in a thread of its own.
    pub(crate) fn start(&self, owner: OwnerId, mode: Mode, wait: Wait) -> Waiting<Acquired> {
        let space = self.space.clone();
        start(move || space.acquire(owner, Request::new(mode, NAME), wait))
    }

    pub(crate) fn owners(&self) -> Vec<OwnerId> {
        self.space.list().into_iter().flat_map(|held| held.owners.into_keys()).collect()
    }

    /// How it is held, by the space's word and, where there is a file, by the kernel's.
    #[track_caller]
    pub(crate) fn is_held(&self, mode: Mode) {
        assert_eq!(self.space.list()[0].mode, mode);
        if self.dir.is_some() {
            assert_eq!(held(&self.file()), Some(mode));
        }
    }

    /// Nothing is held, open, locked, or listed.
    #[track_caller]
    pub(crate) fn is_as_new(&self) {
        assert_eq!(self.space.list(), []);
        if let Some(dir) = &self.dir {
            // A helper may be about to give back what it opened for a wait that is over.
            eventually("all is closed", || open_below(dir.path()) == 0);
            assert_eq!(held(&self.file()), None, "a lock is left");
        }
        drop(self.space.acquire(C, Request::exclusive(NAME), Wait::NO).expect("it is free"));
    }
}

/// A child that holds [`NAME`] through a space of its own; then it does what it was told, once
/// [`go`](Self::go) is opened, and stays.
pub(crate) struct HoldingChild {
    pub(crate) child: Forked,
    pub(crate) go: Gate,
}

impl HoldingChild {
    /// Returns when it holds.
    pub(crate) fn start(dir: &Path, request: Request<'_>, then: impl FnOnce(Lease)) -> Self {
        let (ready, go, never) = (Gate::new(), Gate::new(), Gate::new());
        let child = fork(|| {
            let lease = granted(&space_in(dir), A, request);
            ready.open();
            go.wait();
            then(lease);
            never.wait();
        });
        ready.wait();
        Self { child, go }
    }
}
