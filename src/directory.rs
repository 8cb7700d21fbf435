//! The directory of a space's lock files: held open, and known by its path.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::error::{IoError, OpenError};

/// Which file it is, as long as somebody has it open: file systems give a freed inode number to
/// the next file at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

impl From<&Stat> for FileId {
    // These fields have other widths on other targets.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    fn from(stat: &Stat) -> Self {
        Self { dev: stat.st_dev as u64, ino: stat.st_ino as u64 }
    }
}

/// An open directory, and the absolute path that led to it.
///
/// Two processes must never believe in two directories. So a lock file is opened relative to the
/// open directory, and must then be what the whole path leads to: that finds out a directory that
/// was moved. In a burst of acquires only the first do so, and the others open by the whole path:
/// wherever it leads, it leads everybody there.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    /// The same with a slash at its end.
    prefix: OsString,
    id: FileId,
    local: bool,
    /// In which tick the last looks at the path were, and in the lowest byte how many.
    looks: AtomicU64,
}

/// How many acquires in one tick look at the path before the others go by what they saw.
const LOOKS: u64 = 8;

/// Counts the milliseconds, by four: about what the kernel's coarse clock can tell.
fn tick() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    (now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000) / 4
}

impl Directory {
    /// Opens the directory; makes it, with `mode`, and its parents where they are missing.
    pub(crate) fn open(path: &Path, mode: u32) -> Result<Self, OpenError> {
        Self::open_or(path, |path| make(path, mode))
    }

    /// Opens the directory, if it is there.
    #[cfg(feature = "snapshot")]
    pub(crate) fn reopen(path: &Path) -> Result<Self, OpenError> {
        Self::open_or(path, |_| Err(Errno::NOENT.into()))
    }

    /// Its device and inode.
    #[cfg(feature = "snapshot")]
    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    fn open_or(path: &Path, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<Self, OpenError> {
        let failed = |call| {
            move |source: io::Error| match Errno::from_io_error(&source) {
                Some(Errno::NOTDIR) => OpenError::NotADirectory { path: path.to_owned() },
                _ => OpenError::Io(IoError::new(call, path, source)),
            }
        };
        // Symlinks stay in it: if one of them is turned elsewhere later, that must be seen.
        let absolute = std::path::absolute(path).map_err(failed("getcwd"))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(CWD, &absolute, flags, Mode::empty());
        let fd = match open() {
            Err(Errno::NOENT) => {
                make(&absolute).map_err(failed("mkdir"))?;
                open()
            }
            opened => opened,
        };
        let fd = fd.and_then(|fd| if needs_raising(&fd) { raised(&fd) } else { Ok(fd) });
        let fd = fd.map_err(|errno| failed("openat")(errno.into()))?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| failed("fstat")(errno.into()))?;
        let (id, local) = (FileId::from(&stat), is_local(&fd));
        let mut prefix = absolute.clone().into_os_string();
        if !prefix.as_bytes().ends_with(b"/") {
            prefix.push("/");
        }
        Ok(Self { fd, path: absolute, prefix, id, local, looks: AtomicU64::new(0) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The device that its file system is known by.
    pub(crate) fn device(&self) -> u64 {
        self.id.dev
    }

    /// Whether it is on a file system whose locks and lookups cannot hang.
    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    /// Whether several acquires of the last milliseconds have looked at the path, and found it to lead
    /// here, on a file system that tells the truth at once.
    pub(crate) fn is_in_burst(&self) -> bool {
        self.local && self.looks.load(Ordering::Relaxed) == tick() << 8 | LOOKS
    }

    /// Somebody has just looked where the path leads.
    pub(crate) fn was_looked_at(&self, leads_here: bool) {
        let (looks, tick) = (self.looks.load(Ordering::Relaxed), tick());
        let before = if looks >> 8 == tick { looks & 0xff } else { 0 };
        let now = if leads_here { LOOKS.min(before + 1) } else { 0 };
        self.looks.store(tick << 8 | now, Ordering::Relaxed);
    }

    /// What the whole path of a file in it begins with.
    pub(crate) fn prefix(&self) -> &[u8] {
        self.prefix.as_bytes()
    }

    /// Whether its path still leads to it.
    #[cold]
    pub(crate) fn is_where_it_was(&self) -> bool {
        let it_is = rustix::fs::stat(&self.path).is_ok_and(|stat| FileId::from(&stat) == self.id);
        if !it_is {
            self.was_looked_at(false);
        }
        it_is
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether it is on a file system that answers from the kernel's memory, unlike NFS, FUSE or cluster
/// file systems.
pub(crate) fn is_local(fd: impl AsFd) -> bool {
    const EXT: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const F2FS: u64 = 0xf2f5_2010;
    const TMPFS: u64 = 0x0102_1994;
    const RAMFS: u64 = 0x8584_58f6;
    const ZFS: u64 = 0x2fc1_2fc1;
    #[allow(clippy::unnecessary_cast)] // its type differs by target
    let magic = rustix::fs::fstatfs(fd).map_or(0, |fs| fs.f_type as u64 & 0xffff_ffff);
    [EXT, XFS, BTRFS, F2FS, TMPFS, RAMFS, ZFS].contains(&magic)
}

fn make(path: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Whether a descriptor has the number of standard input, output or error: what a program prints
/// must never land in it.
pub(crate) fn needs_raising(fd: impl AsFd) -> bool {
    fd.as_fd().as_raw_fd() <= 2
}

/// A duplicate with a number above 2.
pub(crate) fn raised(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(fd, 3)
}
