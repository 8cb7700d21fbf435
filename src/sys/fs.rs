//! Files: opening, creating and removing them, and asking what they are.
//!
//! The flags of each open stand here, and not with those who open.
//!
//! # References
//! - `open(2)`, `stat(2)`, `unlink(2)`

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, OFlags, Stat};
use rustix::path::Arg;

use super::Errno;
use crate::types::FileId;

/// Close-on-exec; a terminal does not become ours; a FIFO does not block.
const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

/// Of a lock file in a directory, which is never reached by a symlink of its own.
const OPEN_IN: OFlags = OPEN.union(OFlags::RDWR).union(OFlags::NOFOLLOW);

const NO_MODE: rustix::fs::Mode = rustix::fs::Mode::empty();

/// What `stat` tells of a file, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileStatus {
    pub(crate) id: FileId,
    pub(crate) kind: FileKind,
    /// How many names it has.
    pub(crate) links: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Regular,
    BlockDevice,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharacterDevice,
    Unknown,
}

/// What a descriptor is open for. One that stands for a path only is open for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Access {
    pub(super) fn of(flags: OFlags) -> Self {
        let access = flags & OFlags::RWMODE;
        let path_only = flags.contains(OFlags::PATH);
        let read = !path_only && access != OFlags::WRONLY;
        Self { read, write: !path_only && access != OFlags::RDONLY }
    }
}

impl From<Stat> for FileStatus {
    // These fields have other widths on other targets.
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
    fn from(stat: Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => FileKind::Regular,
            FileType::BlockDevice => FileKind::BlockDevice,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            FileType::CharacterDevice => FileKind::CharacterDevice,
            FileType::Unknown => FileKind::Unknown,
        };
        let id = FileId { dev: stat.st_dev as u64, ino: stat.st_ino as u64 };
        Self { id, kind, links: stat.st_nlink as u64 }
    }
}

/// The file that a path leads to, symlinks followed.
pub(crate) fn stat(path: impl Arg) -> Result<FileStatus, Errno> {
    rustix::fs::stat(path).map(FileStatus::from)
}

/// The file that a path leads to; a symlink as its last component is told of itself.
pub(crate) fn lstat(path: impl Arg) -> Result<FileStatus, Errno> {
    rustix::fs::lstat(path).map(FileStatus::from)
}

/// The file of this name in a directory; a symlink is told of itself.
pub(crate) fn stat_in(directory: BorrowedFd<'_>, name: &CStr) -> Result<FileStatus, Errno> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(FileStatus::from)
}

/// The file of an open descriptor.
pub(crate) fn fstat(fd: impl AsFd) -> Result<FileStatus, Errno> {
    rustix::fs::fstat(fd).map(FileStatus::from)
}

/// Opens a file by its path, for reading, and for writing too if `write` says so. Never creates it.
pub(crate) fn open(path: &CStr, write: bool) -> Result<OwnedFd, Errno> {
    let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
    rustix::fs::open(path, OPEN | access, NO_MODE)
}

/// Creates a file that is not there.
pub(crate) fn create(path: &CStr, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = OPEN | OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL;
    rustix::fs::open(path, flags, mode.into())
}

/// Opens a lock file in a directory, for reading and writing. Never creates it: `fs.protected_regular`
/// refuses O_CREAT on a file of another user in a sticky directory, also where it exists.
pub(crate) fn open_in(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, OPEN_IN, NO_MODE)
}

/// Creates a lock file that is not there.
pub(crate) fn create_in(
    directory: BorrowedFd<'_>,
    name: &CStr,
    mode: u32,
) -> Result<OwnedFd, Errno> {
    let flags = OPEN_IN | OFlags::CREATE | OFlags::EXCL;
    rustix::fs::openat(directory, name, flags, mode.into())
}

pub(crate) fn open_directory(path: impl Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, NO_MODE)
}

/// A descriptor that stands for the file of this path, and through which nothing can be done to it:
/// its end drops no lock.
pub(crate) fn open_path_only(path: impl Arg) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, NO_MODE)
}

pub(crate) fn unlink(path: &CStr) -> Result<(), Errno> {
    rustix::fs::unlink(path)
}

pub(crate) fn unlink_in(directory: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    rustix::fs::unlinkat(directory, name, AtFlags::empty())
}

/// Whether this process may read the file.
pub(crate) fn can_read(path: &CStr) -> bool {
    rustix::fs::accessat(CWD, path, rustix::fs::Access::READ_OK, AtFlags::EACCESS).is_ok()
}

/// What a descriptor was opened for.
pub(crate) fn access_of(fd: impl AsFd) -> Result<Access, Errno> {
    rustix::fs::fcntl_getfl(fd).map(Access::of)
}
