//! A descriptor that holds its lock: open, lock, check that the name still leads to it, unlink,
//! unlock, close.
//!
//! The trap that this module avoids: lock files are unlinked and made again while others are
//! between their `open` and their lock. Who then locks the file that has lost its name holds
//! nothing, and two programs write one image. So after every lock, *and after every refusal*, the
//! descriptor must be what the name leads to, or everything begins again.
//!
//! What it knows of owners: nothing.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, OFlags, Stat};
use rustix::io::Errno;

use crate::core::process::Process;
use crate::engine::directory::{Directory, is_local, is_reached_locally, needs_raising, raised};
use crate::engine::name::{Leads, Name};
use crate::sys::ofd;
use crate::sys::procfs::{LockKind, locks_on_descriptor};
use crate::types::{ByteRange, FileId, InvalidRequest, IoError, Mode};

/// How often a file that was replaced meanwhile is opened again. Eight processes that create and
/// unlink one name without pause need a handful.
const TRIES: u32 = 1000;

/// An open file with our lock on it.
#[derive(Debug)]
pub(crate) struct LockFile {
    fd: OwnedFd,
    id: FileId,
    range: ByteRange,
    /// Open for reading and writing, so that the lock can change its mode.
    writable: bool,
    /// Locks and lookups of it are answered from the kernel's memory, so that they cannot hang.
    local: bool,
}

/// What to open and to lock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) mode: Mode,
    pub(crate) range: ByteRange,
    /// Create the file where it is missing.
    pub(crate) create: bool,
    /// The permissions of a file that is created.
    pub(crate) file_mode: u32,
    /// Open for writing although the mode does not need it.
    pub(crate) upgradable: bool,
    pub(crate) refuse_hard_links: bool,
}

impl Ask {
    /// Whether a direct space must open the file for writing.
    fn writes(&self) -> bool {
        self.mode == Mode::Exclusive || self.upgradable
    }
}

/// What came of another try on a file that is open already.
#[derive(Debug)]
pub(crate) enum Retried {
    Locked,
    /// Somebody else still has a lock on it.
    Contended,
    /// It has lost its name: begin anew.
    Stale,
}

/// Why there is no lock. Nothing is open, locked or created then.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// Somebody else has a lock on this file, which is open and not locked.
    Contended(LockFile),
    NotFound,
    Bad(InvalidRequest),
    /// This directory, the space's, is not where its path leads any more.
    Moved(PathBuf),
    /// The file was replaced this often.
    Unstable(u32),
    Io(IoError),
}

impl From<IoError> for Refusal {
    fn from(error: IoError) -> Self {
        Self::Io(error)
    }
}

/// Whether a descriptor is what its name leads to.
enum Identity {
    /// It is.
    Same,
    /// The name leads to another file, or to none.
    Stale,
    /// The name's directory, of this path, is not where the path leads.
    Moved(PathBuf),
}

impl LockFile {
    /// Opens and locks the file that the name leads to. Never blocks on a lock. Adds to `stale`
    /// for each file that had lost its name before it was locked.
    pub(crate) fn take(name: &Name, ask: &Ask, stale: &AtomicU64) -> Result<Self, Refusal> {
        name.lead(|leads| Self::take_from(leads, ask, stale))
    }

    fn take_from(leads: &Leads<'_>, ask: &Ask, stale: &AtomicU64) -> Result<Self, Refusal> {
        for attempt in 0..TRIES {
            let Some(opened) = open(leads, ask)? else { continue };
            if let Some(taken) = Self::lock(leads, ask, opened, attempt, stale)? {
                return Ok(taken);
            }
        }
        Err(Refusal::Unstable(TRIES))
    }

    /// Locks a file that was opened, and perhaps created. `None`: begin again.
    #[inline]
    fn lock(
        leads: &Leads<'_>,
        ask: &Ask,
        (fd, created): (OwnedFd, bool),
        attempt: u32,
        stale: &AtomicU64,
    ) -> Result<Option<Self>, Refusal> {
        let locked = ofd::try_lock(fd.as_fd(), ask.mode, ask.range);
        let stat = match rustix::fs::fstat(&fd) {
            Ok(stat) => stat,
            Err(errno) => {
                ofd::unlock_and_close(fd, ask.range);
                return Err(IoError::new("fstat", leads.path(), errno).into());
            }
        };
        let file = Self::opened_at(leads, fd, &stat, ask);
        // As it is nearly always. All else is looked at closely.
        if matches!(locked, Ok(true)) && is_plain(&stat, ask) && file.is_there(leads) {
            return Ok(Some(file));
        }
        let locked = locked.map_err(|source| IoError::new("fcntl", leads.path(), source));
        file.judge(leads, ask, (locked, created), &stat, attempt, stale)
    }

    /// What is to become of a file that was opened, and perhaps locked, perhaps created: it may be
    /// ours all the same. `None`: begin again.
    #[cold]
    fn judge(
        self,
        leads: &Leads<'_>,
        ask: &Ask,
        (locked, created): (Result<bool, IoError>, bool),
        stat: &Stat,
        attempt: u32,
        stale: &AtomicU64,
    ) -> Result<Option<Self>, Refusal> {
        if let Err(refusal) = check_file(stat, || leads.path(), ask) {
            self.close();
            return Err(refusal);
        }
        let refused = match locked.and_then(|locked| Ok((locked, is_at(self.id, leads)?))) {
            Ok((true, Identity::Same)) => return Ok(Some(self)),
            // Nobody holds it any more. Only a remover that was stopped takes long.
            Ok((false, Identity::Same)) if attempt < TRIES / 2 && !self.is_held(ask) => {
                let_pass(attempt);
                None
            }
            Ok((false, Identity::Same)) if !created => return Err(Refusal::Contended(self)),
            // Somebody was faster to lock what we made. The next turn finds it theirs.
            Ok((false, Identity::Same)) => None,
            Ok((_, Identity::Moved(directory))) => Some(Refusal::Moved(directory)),
            Ok((_, Identity::Stale)) => {
                stale.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(error) => Some(error.into()),
        };
        // What is left of a file that we made for nothing is removed like a last share.
        let _ = self.release_from(leads, created.then_some(Mode::Shared));
        refused.map_or(Ok(None), Err)
    }

    /// Whether what the name leads to is this file; `false` may be a call that failed.
    fn is_there(&self, leads: &Leads<'_>) -> bool {
        let is_it = |stat: Stat| FileId::from(&stat) == self.id;
        leads.stat().is_ok_and(|stat| stat.is_none_or(is_it))
    }

    fn opened_at(leads: &Leads<'_>, fd: OwnedFd, stat: &Stat, ask: &Ask) -> Self {
        let id = FileId::from(stat);
        let (writable, local) = match leads {
            Leads::In { directory, .. } => {
                (true, directory.is_local() && directory.device() == id.dev)
            }
            // Asked when somebody waits.
            Leads::To(_) | Leads::Nowhere => (ask.writes(), false),
        };
        Self { fd, id, range: ask.range, writable, local }
    }

    /// Locks somebody's open file through `fd`, a duplicate of their descriptor.
    pub(crate) fn take_opened(
        process: &'static Process,
        fd: OwnedFd,
        id: FileId,
        ask: &Ask,
    ) -> Result<Self, Refusal> {
        let path = path_of(fd.as_fd());
        let failed = |call, source| Refusal::Io(IoError::new(call, &path, source));
        let stat = rustix::fs::fstat(&fd).map_err(|errno| failed("fstat", errno.into()))?;
        check_file(&stat, || path.clone(), ask)?;
        let access = rustix::fs::fcntl_getfl(&fd).map_err(|e| failed("fcntl", e.into()))?;
        check_access(access, ask.mode)?;
        // Two descriptors may share one open file: without this, two threads could both see it
        // without a lock and both lock it, and each would believe it was alone.
        let _alone = process.alone_with(id);
        refuse_locked(fd.as_fd())?;
        let writable = access & OFlags::RWMODE == OFlags::RDWR;
        let file = Self { fd, id, range: ask.range, writable, local: false };
        match ofd::try_lock(file.fd.as_fd(), ask.mode, ask.range) {
            Ok(true) => Ok(file),
            Ok(false) => Err(Refusal::Contended(file)),
            Err(source) => Err(failed("fcntl", source)),
        }
    }

    /// A descriptor that carries its lock already.
    #[cfg(feature = "snapshot")]
    pub(crate) fn restored(fd: OwnedFd, id: FileId, range: ByteRange, writable: bool) -> Self {
        Self { fd, id, range, writable, local: false }
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn range(&self) -> ByteRange {
        self.range
    }

    pub(crate) fn number(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Whether the lock can be turned into an exclusive one.
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }

    /// Tries again to lock an open file that is `held` in that mode, or not at all. What was held
    /// stays held if it is refused.
    pub(crate) fn retry(
        &self,
        name: &Name,
        held: Option<Mode>,
        mode: Mode,
        stale: &AtomicU64,
    ) -> Result<Retried, Refusal> {
        let failed = |source| IoError::new("fcntl", name.path(), source);
        let locked = held == Some(mode) || self.convert(mode).map_err(failed)?;
        let identity = name.lead(|leads| is_at(self.id, leads));
        if locked && !matches!(identity, Ok(Identity::Same)) {
            let _ = ofd::unlock(self.fd.as_fd(), self.range);
        }
        match identity? {
            Identity::Same if locked => Ok(Retried::Locked),
            Identity::Same => Ok(Retried::Contended),
            Identity::Moved(directory) => Err(Refusal::Moved(directory)),
            Identity::Stale => {
                stale.fetch_add(1, Ordering::Relaxed);
                Ok(Retried::Stale)
            }
        }
    }

    /// Tries again to lock somebody's open file that was contended: by now another thread may have
    /// locked the same description, through a descriptor of its own.
    pub(crate) fn retry_opened(
        &self,
        process: &'static Process,
        mode: Mode,
    ) -> Result<Retried, Refusal> {
        let _alone = process.alone_with(self.id);
        refuse_locked(self.fd.as_fd())?;
        match self.convert(mode) {
            Ok(true) => Ok(Retried::Locked),
            Ok(false) => Ok(Retried::Contended),
            Err(source) => Err(IoError::new("fcntl", path_of(self.fd.as_fd()), source).into()),
        }
    }

    /// Tries to lock in this mode, whatever it holds now.
    pub(crate) fn convert(&self, mode: Mode) -> io::Result<bool> {
        ofd::try_lock(self.fd.as_fd(), mode, self.range)
    }

    /// Whether the locks and lookups of this open file are known not to hang.
    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    /// Asks the file system what it is. May hang.
    pub(crate) fn learn_whether_local(&mut self, name: &Name) {
        let on_the_way = || !name.is_path() || is_reached_locally(Path::new(name.text()), &self.fd);
        self.local = self.local || is_local(&self.fd) && on_the_way();
    }

    /// Ends the hold: unlinks the lock file if `unlink` says in which mode it is held, unlocks,
    /// closes. Whatever cannot be removed stays, and the hold has ended all the same.
    pub(crate) fn release(self, name: &Name, unlink: Option<Mode>) -> Result<(), IoError> {
        match unlink {
            Some(_) => name.lead(|leads| self.release_from(leads, unlink)),
            None => {
                self.close();
                Ok(())
            }
        }
    }

    fn release_from(self, leads: &Leads<'_>, unlink: Option<Mode>) -> Result<(), IoError> {
        match (unlink, leads) {
            (Some(mode), Leads::In { directory, whole, file }) => {
                let unlinked = self.unlink(mode, directory, whole, file);
                // The range of the hold and that of the removal. A file that is made in a directory
                // was opened here, and nobody else locks through that.
                ofd::unlock_and_close(self.fd, ByteRange::WHOLE_FILE);
                unlinked
            }
            _ => {
                self.close();
                Ok(())
            }
        }
    }

    /// Unlocks what the hold has locked, and nothing else, and closes.
    fn close(self) {
        ofd::unlock_and_close(self.fd, self.range);
    }

    /// Whether somebody who stands in the way holds it, and is not just about to remove it.
    #[cold]
    fn is_held(&self, ask: &Ask) -> bool {
        match ofd::in_the_way(self.fd.as_fd(), ask.mode, ask.range) {
            Ok(range) => range.is_some_and(|range| range != ByteRange::REMOVAL),
            Err(_) => true,
        }
    }

    /// Removes the file, unless somebody else holds it or has put another in its place.
    fn unlink(
        &self,
        mode: Mode,
        directory: &Directory,
        whole: &CStr,
        file: &CStr,
    ) -> Result<(), IoError> {
        let path = || OsStr::from_bytes(whole.to_bytes());
        let failed = |call, source| IoError::new(call, path(), source);
        // The last two shared holders must not both keep their lock while they try to become
        // exclusive: both would fail, and the file would stay.
        if mode == Mode::Shared {
            let _ = ofd::unlock(self.fd.as_fd(), self.range);
        }
        // All bytes: somebody may hold others of it than ours.
        let alone = ofd::try_lock(self.fd.as_fd(), Mode::Exclusive, ByteRange::REMOVAL);
        if !alone.map_err(|source| failed("fcntl", source))? {
            return Ok(());
        }
        match rustix::fs::statat(directory, file, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileId::from(&stat) == self.id => {}
            // What is there is not ours, or nothing is.
            Ok(_) | Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed("newfstatat", errno.into())),
        }
        match rustix::fs::unlinkat(directory, file, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(failed("unlinkat", errno.into())),
        }
    }
}

/// Lets whoever removes a file get on with it: at first by a yield, as it takes microseconds; then,
/// if its thread does not run on a busy machine, for a tenth of a second in all.
#[cold]
fn let_pass(attempt: u32) {
    match attempt {
        0..20 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros(200)),
    }
}

/// Whether the name leads to the file `id`, which somebody has open.
///
/// By the whole path, never relative to the open directory: one call then tells both that the
/// directory is still where others look for it and that the file is still there.
fn is_at(id: FileId, leads: &Leads<'_>) -> Result<Identity, IoError> {
    match leads.stat() {
        Ok(stat) if stat.is_none_or(|stat| FileId::from(&stat) == id) => Ok(Identity::Same),
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => match leads {
            Leads::In { directory, .. } if !directory.is_where_it_was() => {
                Ok(Identity::Moved(directory.path().to_owned()))
            }
            _ => Ok(Identity::Stale),
        },
        Err(errno) => Err(IoError::new("newfstatat", leads.path(), errno)),
    }
}

/// Whether the name still leads to the file `id`, which the caller holds.
pub(crate) fn leads_to(name: &Name, id: FileId) -> Result<bool, IoError> {
    let identity = name.lead(|leads| is_at(id, leads));
    identity.map(|identity| matches!(identity, Identity::Same))
}

/// Refuses a file that has other names. What is not there has none.
pub(crate) fn refuse_hard_links(path: &Path) -> Result<(), Refusal> {
    rustix::fs::stat(path).map_or(Ok(()), |stat| check_links(&stat))
}

/// Which file the path leads to, without opening it.
pub(crate) fn id_at(path: &Path) -> Result<FileId, Refusal> {
    match rustix::fs::stat(path) {
        Ok(stat) => Ok(FileId::from(&stat)),
        Err(Errno::NOENT) => Err(Refusal::NotFound),
        Err(errno) => Err(IoError::new("stat", path, errno).into()),
    }
}

/// Puts an empty file where the name leads, if there is none.
pub(crate) fn create(name: &Name, file_mode: u32) -> Result<(), Refusal> {
    name.lead(|leads| create_at(leads, file_mode))
}

fn create_at(leads: &Leads<'_>, file_mode: u32) -> Result<(), Refusal> {
    let ask = Ask {
        mode: Mode::Shared,
        range: ByteRange::FIRST,
        create: true,
        file_mode,
        upgradable: false,
        refuse_hard_links: false,
    };
    for _ in 0..TRIES {
        match leads {
            Leads::Nowhere => return Ok(()),
            Leads::To(path) => match rustix::fs::stat(*path) {
                Ok(stat) => return check_file(&stat, || leads.path(), &ask),
                Err(Errno::NOENT) => {
                    let flags = OPEN | OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL;
                    match rustix::fs::open(*path, flags, file_mode.into()) {
                        Ok(_) => return Ok(()),
                        Err(Errno::EXIST) => {}
                        Err(errno) => {
                            return Err(IoError::new("openat", leads.path(), errno).into());
                        }
                    }
                }
                Err(errno) => return Err(IoError::new("stat", leads.path(), errno).into()),
            },
            Leads::In { .. } => {
                let Some((fd, created)) = open(leads, &ask)? else { continue };
                let stat = rustix::fs::fstat(&fd);
                let stat = stat.map_err(|errno| IoError::new("fstat", leads.path(), errno))?;
                check_file(&stat, || leads.path(), &ask)?;
                let file = LockFile::opened_at(leads, fd, &stat, &ask);
                match is_at(file.id, leads)? {
                    Identity::Same => return Ok(()),
                    Identity::Moved(directory) => {
                        let _ = file.release_from(leads, created.then_some(Mode::Shared));
                        return Err(Refusal::Moved(directory));
                    }
                    Identity::Stale => {}
                }
            }
        }
    }
    Err(Refusal::Unstable(TRIES))
}

/// Removes the file that the name leads to, unless anybody holds any byte of it.
pub(crate) fn delete(name: &Name, stale: &AtomicU64) -> Result<(), Refusal> {
    let ask = Ask {
        mode: Mode::Exclusive,
        range: ByteRange::REMOVAL,
        create: false,
        file_mode: 0,
        upgradable: false,
        refuse_hard_links: false,
    };
    if name.leads_nowhere() {
        return Ok(());
    }
    let file = LockFile::take(name, &ask, stale)?;
    let removed = name.lead(|leads| match leads {
        Leads::In { directory, file: there, .. } => {
            // Never another file than the one that is locked, whatever became of the directory.
            let stat = rustix::fs::statat(directory, *there, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileId::from(&stat) == file.id {
                true => rustix::fs::unlinkat(directory, *there, AtFlags::empty()),
                false => Err(Errno::STALE),
            }
        }
        Leads::To(path) => rustix::fs::unlink(*path),
        Leads::Nowhere => Ok(()),
    });
    file.close();
    removed.map_err(|errno| IoError::new("unlinkat", name.path(), errno).into())
}

/// Close-on-exec; a terminal does not become ours; a FIFO does not block.
const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

/// Of a lock file in a directory, which is never reached by a symlink of its own.
const OPEN_IN: OFlags = OPEN.union(OFlags::RDWR).union(OFlags::NOFOLLOW);

impl Leads<'_> {
    /// What is there; `None` where nothing can be.
    fn stat(&self) -> Result<Option<Stat>, Errno> {
        match self {
            // Not through it, if it is a symlink.
            Leads::In { whole, .. } => rustix::fs::lstat(*whole).map(Some),
            Leads::To(path) => rustix::fs::stat(*path).map(Some),
            Leads::Nowhere => Ok(None),
        }
    }
}

/// Opens the file, or creates it; `None` where it came or went meanwhile. Tells whether it was
/// created.
fn open(leads: &Leads<'_>, ask: &Ask) -> Result<Option<(OwnedFd, bool)>, Refusal> {
    let opened = match leads {
        Leads::In { directory, file, .. } => open_in(directory, file, || leads.path(), ask)?,
        Leads::To(path) => open_direct(path, ask)?.map(|fd| (fd, false)),
        Leads::Nowhere => return Err(Refusal::NotFound),
    };
    match opened {
        Some((low, created)) if needs_raising(&low) => match raised(&low) {
            Ok(fd) => Ok(Some((fd, created))),
            Err(errno) => {
                if let Ok(stat) = rustix::fs::fstat(&low) {
                    let file = LockFile::opened_at(leads, low, &stat, ask);
                    let _ = file.release_from(leads, created.then_some(Mode::Shared));
                }
                Err(IoError::new("fcntl", leads.path(), errno).into())
            }
        },
        opened => Ok(opened),
    }
}

fn open_in(
    directory: &Directory,
    file: &CStr,
    path: impl Fn() -> PathBuf,
    ask: &Ask,
) -> Result<Option<(OwnedFd, bool)>, Refusal> {
    let open = |more, mode: u32| rustix::fs::openat(directory, file, OPEN_IN | more, mode.into());
    let create = || open(OFlags::CREATE | OFlags::EXCL, ask.file_mode);
    // What is to be created is hardly ever there: one call less. Only an answer that says so counts.
    if ask.create
        && directory.is_local()
        && let Ok(fd) = create()
    {
        return Ok(Some((fd, true)));
    }
    // Without O_CREAT: with it, fs.protected_regular refuses a file of another user in a sticky
    // directory.
    let (fd, created) = match open(OFlags::empty(), 0) {
        Ok(fd) => (fd, false),
        // Where the directory has moved away, what is created is seen not to be at its path.
        Err(Errno::NOENT) if ask.create => match create() {
            Ok(fd) => (fd, true),
            Err(Errno::EXIST) => return Ok(None),
            Err(Errno::NOENT) if !directory.is_where_it_was() => {
                return Err(Refusal::Moved(directory.path().to_owned()));
            }
            Err(errno) => return Err(IoError::new("openat", path(), errno).into()),
        },
        Err(Errno::NOENT) if !directory.is_where_it_was() => {
            return Err(Refusal::Moved(directory.path().to_owned()));
        }
        Err(Errno::NOENT) => return Err(Refusal::NotFound),
        Err(errno) => {
            // A symlink, a directory, a socket: say what it is rather than what open says.
            if let Ok(stat) = rustix::fs::statat(directory, file, AtFlags::SYMLINK_NOFOLLOW) {
                check_kind(&stat, &path)?;
            }
            return Err(IoError::new("openat", path(), errno).into());
        }
    };
    Ok(Some((fd, created)))
}

fn open_direct(path: &CStr, ask: &Ask) -> Result<Option<OwnedFd>, Refusal> {
    let to_path = || Path::new(OsStr::from_bytes(path.to_bytes()));
    // Before the open: to open a device can rewind a tape or reset a line.
    match rustix::fs::stat(path) {
        Ok(stat) if is_plain(&stat, ask) => {}
        Ok(stat) => check_file(&stat, || to_path().to_owned(), ask)?,
        Err(Errno::NOENT) => return Err(Refusal::NotFound),
        Err(errno) => return Err(IoError::new("stat", to_path(), errno).into()),
    }
    let write = ask.writes();
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    match rustix::fs::open(path, OPEN | access, rustix::fs::Mode::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::ROFS) if write => Err(Refusal::Bad(InvalidRequest::ReadOnly)),
        Err(Errno::ACCESS | Errno::PERM) if write && can_read(path) => {
            Err(Refusal::Bad(InvalidRequest::ReadOnly))
        }
        Err(errno) => Err(IoError::new("openat", to_path(), errno).into()),
    }
}

fn can_read(path: &CStr) -> bool {
    rustix::fs::accessat(CWD, path, rustix::fs::Access::READ_OK, AtFlags::EACCESS).is_ok()
}

/// Refuses an open file that carries a lock already, whoever took it.
fn refuse_locked(fd: BorrowedFd<'_>) -> Result<(), Refusal> {
    let failed = |source| IoError::new("read /proc/self/fdinfo", path_of(fd), source);
    let locks = locks_on_descriptor(fd.as_raw_fd()).map_err(failed)?;
    match locks.iter().any(|lock| lock.kind.excludes()) {
        true => Err(Refusal::Bad(InvalidRequest::CarriesLock)),
        false => Ok(()),
    }
}

fn check_access(flags: OFlags, mode: Mode) -> Result<(), Refusal> {
    let access = flags & OFlags::RWMODE;
    let path_only = flags.contains(OFlags::PATH);
    let (fits, needs) = match mode {
        Mode::Exclusive => (access != OFlags::RDONLY, "writing"),
        Mode::Shared => (access != OFlags::WRONLY, "reading"),
    };
    if fits && !path_only {
        Ok(())
    } else {
        Err(Refusal::Bad(InvalidRequest::WrongAccess { needs }))
    }
}

/// Whether it is what nearly all files are, and so needs no closer look.
fn is_plain(stat: &Stat, ask: &Ask) -> bool {
    !ask.refuse_hard_links && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// Only a regular file or a block device can stand for a resource.
fn check_file(stat: &Stat, path: impl FnOnce() -> PathBuf, ask: &Ask) -> Result<(), Refusal> {
    check_kind(stat, path)?;
    if ask.refuse_hard_links {
        check_links(stat)?;
    }
    Ok(())
}

#[allow(clippy::unnecessary_cast, clippy::useless_conversion)] // its width differs by target
fn check_links(stat: &Stat) -> Result<(), Refusal> {
    match stat.st_nlink as u64 {
        // A file that has just lost its name is found out by its identity.
        0 | 1 => Ok(()),
        links => Err(Refusal::Bad(InvalidRequest::HardLinks { links })),
    }
}

fn check_kind(stat: &Stat, path: impl FnOnce() -> PathBuf) -> Result<(), Refusal> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        _ => "no file that can be written",
    };
    Err(Refusal::Bad(InvalidRequest::NotAFile { path: path(), kind }))
}

/// The path of an image without symlinks, `.` and `..`.
pub(crate) fn resolve_image(
    path: &Path,
    refuse_hard_links: bool,
) -> Result<(PathBuf, FileId), Refusal> {
    let failed = |call, source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Refusal::NotFound,
        _ => Refusal::Io(IoError::new(call, path, source)),
    };
    let resolved = std::fs::canonicalize(path).map_err(|source| failed("realpath", source))?;
    let stat = rustix::fs::stat(&resolved).map_err(|errno| failed("stat", errno.into()))?;
    check_kind(&stat, || resolved.clone())?;
    if refuse_hard_links {
        check_links(&stat)?;
    }
    Ok((resolved, FileId::from(&stat)))
}

/// The path of an image that may not be there yet: as [`resolve_image`] tells it, or will tell it
/// once the image is there. And which file is there, if one is.
pub(crate) fn resolve_new_image(
    path: &Path,
    refuse_hard_links: bool,
) -> Result<(PathBuf, Option<FileId>), Refusal> {
    let (folder, last) = folder_and_last(path).map_err(Refusal::Bad)?;
    let folder = std::fs::canonicalize(folder).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            Refusal::Bad(InvalidRequest::NoFolder { folder: folder.to_owned() })
        }
        _ => Refusal::Io(IoError::new("realpath", folder, source)),
    })?;
    let whole = folder.join(last);
    let stat = match rustix::fs::lstat(&whole) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok((whole, None)),
        Err(errno) => return Err(IoError::new("lstat", &whole, errno).into()),
    };
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return match resolve_image(&whole, refuse_hard_links) {
            Ok((resolved, id)) => Ok((resolved, Some(id))),
            // Whoever makes the file may replace the symlink or follow it: these are two names.
            Err(Refusal::NotFound) => Err(Refusal::Bad(InvalidRequest::DanglingSymlink)),
            Err(refusal) => Err(refusal),
        };
    }
    check_kind(&stat, || whole.clone())?;
    if refuse_hard_links {
        check_links(&stat)?;
    }
    Ok((whole, Some(FileId::from(&stat))))
}

/// A path's folder and its last component, byte by byte: [`Path::file_name`] takes `a/` and `a/.`
/// for `a`.
fn folder_and_last(path: &Path) -> Result<(&Path, &OsStr), InvalidRequest> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(InvalidRequest::Empty);
    }
    if bytes.contains(&0) {
        return Err(InvalidRequest::Nul);
    }
    let slash = bytes.iter().rposition(|&byte| byte == b'/');
    let (folder, last) = match slash {
        None => (&b"."[..], bytes),
        Some(0) => (&b"/"[..], &bytes[1..]),
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
    };
    match last {
        b"" | b"." | b".." => Err(InvalidRequest::NoFileName),
        _ => Ok((Path::new(OsStr::from_bytes(folder)), OsStr::from_bytes(last))),
    }
}

/// Which file a descriptor is open on.
pub(crate) fn id_of(fd: BorrowedFd<'_>, refuse_hard_links: bool) -> Result<FileId, Refusal> {
    let stat = rustix::fs::fstat(fd);
    let stat = stat.map_err(|errno| IoError::new("fstat", path_of(fd), errno))?;
    if refuse_hard_links {
        check_links(&stat)?;
    }
    Ok(FileId::from(&stat))
}

/// The mount that a descriptor was opened on, without touching its file system; 0 if the kernel
/// does not tell.
pub(crate) fn mount_of(fd: BorrowedFd<'_>) -> u64 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()));
    let info = info.unwrap_or_default();
    let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    mount.and_then(|mount| mount.trim().parse().ok()).unwrap_or_default()
}

/// A duplicate of a caller's descriptor that is ours to keep.
///
/// Not where this process has a record lock through it: the first close of any duplicate, even
/// after a refusal, would drop that.
pub(crate) fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd, Refusal> {
    let failed = |call, source| IoError::new(call, path_of(fd), source);
    let locks = locks_on_descriptor(fd.as_raw_fd());
    let locks = locks.map_err(|source| failed("read /proc/self/fdinfo", source))?;
    if locks.iter().any(|lock| lock.kind == LockKind::Posix) {
        return Err(Refusal::Bad(InvalidRequest::CarriesLock));
    }
    Ok(raised(fd).map_err(|errno| failed("fcntl", errno.into()))?)
}

/// Where a descriptor's file seems to be, for messages; empty where it has no path.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    std::fs::read_link(link).ok().filter(|path| path.is_absolute()).unwrap_or_default()
}
