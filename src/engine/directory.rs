//! The directory of a space's lock files: held open, and known by its path.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::error::OpenError;
use crate::sys::mounts::Mounts;
use crate::types::{FileId, IoError};

impl From<&Stat> for FileId {
    // These fields have other widths on other targets.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    fn from(stat: &Stat) -> Self {
        Self { dev: stat.st_dev as u64, ino: stat.st_ino as u64 }
    }
}

/// An open directory, and the absolute path that led to it.
///
/// Lock files are opened relative to the open directory, so that no renaming sends an open or an
/// unlink elsewhere; but two processes must never believe in two directories, so what was locked
/// must also be what the path leads to (see `lock_file`).
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
    /// The same with a slash at its end.
    prefix: OsString,
    id: FileId,
    local: bool,
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
        let (id, local) =
            (FileId::from(&stat), is_local(&fd) && is_reached_locally(&absolute, &fd));
        let mut prefix = absolute.clone().into_os_string();
        if !prefix.as_bytes().ends_with(b"/") {
            prefix.push("/");
        }
        Ok(Self { fd, path: absolute, prefix, id, local })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The device that its file system is known by.
    pub(crate) fn device(&self) -> u64 {
        self.id.dev
    }

    /// Whether it is on a file system whose locks and lookups cannot hang, and was reached through
    /// none that can.
    pub(crate) fn is_local(&self) -> bool {
        self.local
    }

    /// What the whole path of a file in it begins with.
    pub(crate) fn prefix(&self) -> &[u8] {
        self.prefix.as_bytes()
    }

    /// Whether its path still leads to it.
    #[cold]
    pub(crate) fn is_where_it_was(&self) -> bool {
        rustix::fs::stat(&self.path).is_ok_and(|stat| FileId::from(&stat) == self.id)
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

/// Whether no look by this path, or by the path that the kernel has for it, can hang on the way.
pub(crate) fn is_reached_locally(path: &Path, fd: impl AsFd) -> bool {
    let own = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()));
    let (Ok(own), Ok(mounts)) = (own, Mounts::read()) else { return false };
    mounts.are_local_towards(path) && mounts.are_local_towards(&own)
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
