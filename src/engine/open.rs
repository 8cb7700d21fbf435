//! From a name to a lock: open, lock, check that the name still leads to the descriptor.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::check::{check_file, check_kind};
use super::directory::Directory;
use super::identity::{Identity, is_at};
use super::lock_file::{LockError, LockFile};
use super::lock_path::LockPath;
use super::name::Name;
use super::refusal::{Tries, Verdict, is_refusal};
use crate::sys::fs::{self, FileStatus};
use crate::sys::{Errno, fd as descriptor, ofd};
use crate::types::{ByteRange, FileId, HardLinks, InvalidRequest, IoError, LockSpec, Mode};

/// How often a file that was replaced meanwhile is opened again. Eight processes that create and
/// unlink one name without pause need a handful.
const TRIES: u32 = 1000;

/// How long a removal is waited for, which takes microseconds unless its thread was stopped. A file
/// that is still there is said to be held.
const REMOVAL_TIME: Duration = Duration::from_millis(5);

/// A file that was opened, and perhaps created for it.
struct Opened {
    fd: OwnedFd,
    created: bool,
}

impl Opened {
    /// Closes it; a file that was created for this attempt is removed, as the last shared hold removes
    /// it.
    #[cold]
    fn give_back(self, path: &LockPath<'_>, spec: &LockSpec) {
        let Self { fd, created } = self;
        // What the kernel remembers of it will do, if the file system does not tell.
        match fs::fstat(&fd).or_else(|_| fs::fstat_cached(&fd)) {
            Ok(status) => {
                let file = LockFile::opened_at(path, fd, status.id(), spec);
                let _ = file.release_at(path, created.then_some(Mode::Shared));
            }
            Err(_) => ofd::unlock_and_close(fd, spec.range),
        }
    }
}

/// The outcome of one attempt to open and lock a file.
struct OpenAttempt {
    created: bool,
    status: FileStatus,
    locked: Result<(), Errno>,
}

impl LockFile {
    /// Opens and locks the file that the name leads to. Never blocks on a lock. Adds to
    /// `stale_retries` for each file that had lost its name before it was locked.
    pub(crate) fn open_and_lock(
        name: &Name,
        spec: &LockSpec,
        stale_retries: &AtomicU64,
    ) -> Result<Self, LockError> {
        name.with_path(|path| {
            if spec.create
                && let LockPath::InDirectory { directory, .. } = path
            {
                let failed = |errno| IoError::new("fcntl", path.to_path(), errno);
                directory.try_locks().map_err(failed)?;
            }
            for _ in 0..TRIES {
                let Some(Opened { fd, created }) = open(path, spec)? else { continue };
                let locked = ofd::try_lock(fd.as_fd(), spec.mode, spec.range);
                let status = match fs::fstat(&fd) {
                    Ok(status) => status,
                    Err(errno) => {
                        Opened { fd, created }.give_back(path, spec);
                        return Err(IoError::new("fstat", path.to_path(), errno).into());
                    }
                };
                let file = Self::opened_at(path, fd, status.id(), spec);
                // The usual case, in which nothing has to be classified.
                if locked.is_ok() && is_plain(&status, spec) && file.is_there(path) {
                    return Ok(file);
                }
                let attempt = OpenAttempt { created, status, locked };
                if let Some(file) = file.classify(path, spec, attempt, stale_retries)? {
                    return Ok(file);
                }
            }
            Err(LockError::Unstable(TRIES))
        })
    }

    /// Decides about a file that was opened, and perhaps created, and perhaps locked: the lock is
    /// ours, it is refused, or (`None`) another attempt has to be made.
    #[cold]
    fn classify(
        self,
        path: &LockPath<'_>,
        spec: &LockSpec,
        OpenAttempt { created, status, mut locked }: OpenAttempt,
        stale_retries: &AtomicU64,
    ) -> Result<Option<Self>, LockError> {
        if let Err(error) = check_file(&status, || path.to_path(), spec) {
            self.close();
            return Err(error);
        }
        let failed = |errno| {
            if let LockPath::InDirectory { directory, .. } = path {
                directory.doubt_locks();
            }
            LockError::Io(IoError::new("fcntl", path.to_path(), errno))
        };
        let (mut tries, mut removal) = (Tries::default(), RemovalWait::default());
        let refused = loop {
            if let Err(errno) = locked
                && !is_refusal(errno)
            {
                break Some(failed(errno));
            }
            match is_at(self.id, path) {
                Ok(Identity::Same) => {}
                Ok(Identity::DirectoryReplaced(directory)) => {
                    break Some(LockError::DirectoryReplaced(directory));
                }
                Ok(Identity::Stale) => {
                    stale_retries.fetch_add(1, Ordering::Relaxed);
                    break None;
                }
                Err(error) => break Some(error.into()),
            }
            // Only who is in the way of the file that the name leads to matters.
            let Err(errno) = locked else { return Ok(Some(self)) };
            match tries.judge(self.fd.as_fd(), spec.mode, spec.range, errno) {
                Verdict::TryAgain => {}
                Verdict::Removing(_) if removal.back_off() => {}
                Verdict::Removing(by) => return Err(LockError::Contended(self, Some(by))),
                Verdict::Held(by) => return Err(LockError::Contended(self, by)),
                Verdict::Failed(errno) => break Some(failed(errno)),
            }
            locked = ofd::try_lock(self.fd.as_fd(), spec.mode, spec.range);
        };
        // A file that was created for this attempt is removed as the last shared hold removes it.
        let _ = self.release_at(path, created.then_some(Mode::Shared));
        refused.map_or(Ok(None), Err)
    }

    /// Whether what the name leads to is this file; `false` may be a call that failed.
    fn is_there(&self, path: &LockPath<'_>) -> bool {
        path.stat().is_ok_and(|there| there.is_none_or(|there| there.id() == self.id))
    }

    fn opened_at(path: &LockPath<'_>, fd: OwnedFd, id: FileId, spec: &LockSpec) -> Self {
        let (writable, local) = match path {
            LockPath::InDirectory { directory, .. } => {
                (true, directory.local && directory.id.dev == id.dev)
            }
            // Asked when somebody waits.
            LockPath::Direct(_) | LockPath::Nowhere => (spec.needs_writing(), false),
        };
        Self { fd, id, range: spec.range, writable, local }
    }
}

/// Whether it is a regular file of which nothing more was asked, as nearly all are.
fn is_plain(status: &FileStatus, spec: &LockSpec) -> bool {
    spec.hard_links == HardLinks::Allowed && status.is_regular()
}

/// The time that a call gives to a thread that removes the file.
#[derive(Default)]
struct RemovalWait {
    yields: u32,
    since: Option<Instant>,
}

impl RemovalWait {
    /// Gives it some: at first by a yield, as a removal takes microseconds; then by a sleep, as that
    /// thread may not run on a busy machine. `false` once it has had [`REMOVAL_TIME`].
    #[cold]
    fn back_off(&mut self) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.yields < 20 {
            self.yields += 1;
            std::thread::yield_now();
            return true;
        }
        let goes_on = since.elapsed() < REMOVAL_TIME;
        if goes_on {
            std::thread::sleep(Duration::from_micros(200));
        }
        goes_on
    }
}

/// Opens the file, or creates it; `None` where it came or went meanwhile.
fn open(path: &LockPath<'_>, spec: &LockSpec) -> Result<Option<Opened>, LockError> {
    let opened = match path {
        LockPath::InDirectory { directory, file, .. } => {
            open_in(directory, file, || path.to_path(), spec)?
        }
        LockPath::Direct(path) => open_direct(path, spec)?,
        LockPath::Nowhere => return Err(LockError::NotFound),
    };
    match opened {
        Some(low) if low.fd.as_raw_fd() <= descriptor::LAST_STDIO => {
            match descriptor::above_stdio(&low.fd) {
                Ok(fd) => Ok(Some(Opened { fd, created: low.created })),
                Err(errno) => {
                    low.give_back(path, spec);
                    Err(IoError::new("fcntl", path.to_path(), errno).into())
                }
            }
        }
        opened => Ok(opened),
    }
}

fn open_in(
    directory: &Directory,
    file: &CStr,
    path: impl Fn() -> PathBuf,
    spec: &LockSpec,
) -> Result<Option<Opened>, LockError> {
    let create = || fs::create_in(directory.fd.as_fd(), file, spec.file_mode);
    // A file that is to be created is rarely there: this saves the open that would fail. If this
    // fails, for whatever reason, the usual way finds out why.
    if spec.create
        && directory.local
        && let Ok(fd) = create()
    {
        return Ok(Some(Opened { fd, created: true }));
    }
    match fs::open_in(directory.fd.as_fd(), file) {
        Ok(fd) => Ok(Some(Opened { fd, created: false })),
        // If the directory was moved away, the check of the identity finds that out afterwards.
        Err(Errno::NOENT) if spec.create => match create() {
            Ok(fd) => Ok(Some(Opened { fd, created: true })),
            Err(Errno::EXIST) => Ok(None),
            Err(Errno::NOENT) if !directory.is_where_it_was() => {
                Err(LockError::DirectoryReplaced(directory.path().to_owned()))
            }
            Err(errno) => Err(IoError::new("openat", path(), errno).into()),
        },
        Err(Errno::NOENT) if !directory.is_where_it_was() => {
            Err(LockError::DirectoryReplaced(directory.path().to_owned()))
        }
        Err(Errno::NOENT) => Err(LockError::NotFound),
        Err(errno) => {
            // A symlink, a directory, a socket: the error says what it is, not what `open` says.
            if let Ok(status) = fs::stat_in(directory.fd.as_fd(), file) {
                check_kind(status.kind(), &path)?;
                check_lease(errno, &status)?;
            }
            Err(IoError::new("openat", path(), errno).into())
        }
    }
}

fn open_direct(path: &CStr, spec: &LockSpec) -> Result<Option<Opened>, LockError> {
    let to_path = || Path::new(OsStr::from_bytes(path.to_bytes()));
    // Before the open, since to open a device can rewind a tape or reset a line.
    let status = match fs::stat(path) {
        Ok(status) => status,
        Err(Errno::NOENT) => return Err(LockError::NotFound),
        Err(errno) => return Err(IoError::new("stat", to_path(), errno).into()),
    };
    if !is_plain(&status, spec) {
        check_file(&status, || to_path().to_owned(), spec)?;
    }
    let write = spec.needs_writing();
    let opened = if write { fs::open_to_write(path) } else { fs::open_to_read(path) };
    match opened {
        Ok(fd) => Ok(Some(Opened { fd, created: false })),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::ROFS) if write => Err(LockError::Invalid(InvalidRequest::ReadOnly)),
        Err(Errno::ACCESS | Errno::PERM) if write && fs::can_read(path) => {
            Err(LockError::Invalid(InvalidRequest::ReadOnly))
        }
        Err(errno) => {
            check_lease(errno, &status)?;
            Err(IoError::new("openat", to_path(), errno).into())
        }
    }
}

/// A regular file is refused with `EAGAIN` for a lease alone, until its holder has given that up: an
/// open that would block, as these never do, waits for it.
fn check_lease(errno: Errno, status: &FileStatus) -> Result<(), LockError> {
    match errno == Errno::AGAIN && status.is_regular() {
        true => Err(LockError::Leased(status.id())),
        false => Ok(()),
    }
}

/// Puts an empty file where the name leads, if there is none.
pub(crate) fn create_file(name: &Name, file_mode: u32) -> Result<(), LockError> {
    let spec = LockSpec {
        mode: Mode::Shared,
        range: ByteRange::FIRST,
        create: true,
        file_mode,
        upgradable: false,
        hard_links: HardLinks::Allowed,
    };
    name.with_path(|path| {
        for _ in 0..TRIES {
            let is_there = match path {
                LockPath::InDirectory { .. } => create_in(path, &spec)?,
                LockPath::Direct(direct) => create_direct(direct, &spec)?,
                LockPath::Nowhere => true,
            };
            if is_there {
                return Ok(());
            }
        }
        Err(LockError::Unstable(TRIES))
    })
}

/// Whether the file is there, and stays; `false` where it came or went meanwhile.
fn create_in(path: &LockPath<'_>, spec: &LockSpec) -> Result<bool, LockError> {
    let opened = match open(path, spec) {
        Ok(Some(opened)) => opened,
        Ok(None) => return Ok(false),
        // It is there, whoever has leased it.
        Err(LockError::Leased(id)) if matches!(is_at(id, path), Ok(Identity::Same)) => {
            return Ok(true);
        }
        Err(error) => return Err(error),
    };
    let look = || {
        let failed = |errno| IoError::new("fstat", path.to_path(), errno);
        let status = fs::fstat(&opened.fd).map_err(failed)?;
        check_file(&status, || path.to_path(), spec)?;
        Ok(is_at(status.id(), path)?)
    };
    let error = match look() {
        Ok(Identity::Same) => return Ok(true),
        Ok(Identity::Stale) => return Ok(false),
        Ok(Identity::DirectoryReplaced(directory)) => LockError::DirectoryReplaced(directory),
        Err(error) => error,
    };
    opened.give_back(path, spec);
    Err(error)
}

/// The same for the file of a path.
fn create_direct(path: &CStr, spec: &LockSpec) -> Result<bool, LockError> {
    let to_path = || PathBuf::from(OsStr::from_bytes(path.to_bytes()));
    match fs::stat(path) {
        Ok(status) => check_file(&status, to_path, spec).map(|()| true),
        Err(Errno::NOENT) => match fs::create(path, spec.file_mode) {
            Ok(_) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(errno) => Err(IoError::new("openat", to_path(), errno).into()),
        },
        Err(errno) => Err(IoError::new("stat", to_path(), errno).into()),
    }
}
