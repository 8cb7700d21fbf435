//! Files: opening, creating and removing them, and asking what they are.
//!
//! The flags of each open stand here, and not with those who open.
//!
//! # References
//! - `open(2)`, `stat(2)`, `unlink(2)`

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr;

use rustix::fs::{AtFlags, CWD, FileType, OFlags, Stat, StatxFlags};
use rustix::path::Arg;
use smallvec::SmallVec;

use super::Errno;
use crate::types::FileId;

/// Close-on-exec; a terminal does not become the process's; a FIFO does not block.
const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NOCTTY).union(OFlags::NONBLOCK);

/// Of a lock file in a directory, which is never reached by a symlink of its own.
const OPEN_IN: OFlags = OPEN.union(OFlags::RDWR).union(OFlags::NOFOLLOW);

const NO_MODE: rustix::fs::Mode = rustix::fs::Mode::empty();

/// Room for a path on the stack. Most are shorter; a longer one is put on the heap.
const STACK_BUF: usize = 320;

/// Bytes of a path, without a NUL among them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathBytes<'a>(&'a [u8]);

/// The same, kept. Up to 32 bytes, as hashed names have, need no allocation.
#[derive(Clone, Debug)]
pub(crate) struct PathBuffer(SmallVec<[u8; 32]>);

/// What `stat` tells of a file, as far as it matters here.
pub(crate) struct FileStatus {
    id: FileId,
    mode: u32,
    links: u64,
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

impl<'a> PathBytes<'a> {
    pub(crate) const EMPTY: Self = Self(&[]);

    /// `None` if there is a NUL among them.
    pub(crate) fn new(bytes: &'a [u8]) -> Option<Self> {
        (!has_byte(bytes, 0)).then_some(Self(bytes))
    }

    pub(crate) fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    pub(crate) fn to_owned(self) -> PathBuffer {
        PathBuffer(SmallVec::from_slice(self.0))
    }
}

impl PathBuffer {
    pub(crate) fn as_path_bytes(&self) -> PathBytes<'_> {
        PathBytes(&self.0)
    }
}

/// As `contains`, but always to the end: so the compiler takes many bytes in one step.
pub(crate) fn has_byte(bytes: &[u8], byte: u8) -> bool {
    bytes.iter().fold(false, |found, &other| found | (other == byte))
}

/// Writes down, on the stack if it is not long, the path of these two parts, one right after the
/// other, and gives it to `to`, with its second part alone.
#[inline]
pub(crate) fn with_c_path<T>(
    first: PathBytes<'_>,
    second: PathBytes<'_>,
    to: impl FnOnce(&CStr, &CStr) -> T,
) -> T {
    let (first, second) = (first.0, second.0);
    let len = first.len() + second.len();
    let mut stack_buf = [MaybeUninit::<u8>::uninit(); STACK_BUF];
    let mut heap_buf = Vec::new();
    let buffer = match stack_buf.get_mut(..=len) {
        Some(buffer) => buffer,
        None => {
            heap_buf.resize(len + 1, MaybeUninit::uninit());
            &mut heap_buf[..]
        }
    };
    let start = buffer.as_mut_ptr().cast::<u8>();
    // SAFETY: the buffer has `len + 1` bytes, into which the parts and the NUL fit, and nobody else
    // uses it. All of them are written, and so can be read as bytes. Both paths end with the NUL
    // that is written last, and have no other, since there is none in `PathBytes`.
    let (path, second) = unsafe {
        ptr::copy_nonoverlapping(first.as_ptr(), start, first.len());
        ptr::copy_nonoverlapping(second.as_ptr(), start.add(first.len()), second.len());
        start.add(len).write(0);
        let path = std::slice::from_raw_parts(start, len + 1);
        let of = |bytes| CStr::from_bytes_with_nul_unchecked(bytes);
        (of(path), of(&path[first.len()..]))
    };
    to(path, second)
}

impl Access {
    pub(super) fn of(flags: OFlags) -> Self {
        let access = flags & OFlags::RWMODE;
        let path_only = flags.contains(OFlags::PATH);
        let read = !path_only && access != OFlags::WRONLY;
        Self { read, write: !path_only && access != OFlags::RDONLY }
    }
}

#[allow(clippy::unnecessary_cast)] // these fields have other widths on other targets
fn id_of(stat: &Stat) -> FileId {
    FileId { dev: stat.st_dev as u64, ino: stat.st_ino as u64 }
}

impl FileStatus {
    #[allow(clippy::unnecessary_cast)] // as above
    fn of(stat: Stat) -> Self {
        Self { id: id_of(&stat), mode: stat.st_mode, links: stat.st_nlink as u64 }
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    /// How many names it has.
    pub(crate) fn links(&self) -> u64 {
        self.links
    }

    pub(crate) fn is_regular(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::RegularFile
    }

    pub(crate) fn kind(&self) -> FileKind {
        match FileType::from_raw_mode(self.mode) {
            FileType::RegularFile => FileKind::Regular,
            FileType::BlockDevice => FileKind::BlockDevice,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Symlink,
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            FileType::CharacterDevice => FileKind::CharacterDevice,
            FileType::Unknown => FileKind::Unknown,
        }
    }
}

/// The file that a path leads to, symlinks followed.
pub(crate) fn stat(path: impl Arg) -> Result<FileStatus, Errno> {
    rustix::fs::stat(path).map(FileStatus::of)
}

/// The file that a path leads to; a symlink as its last component is told of itself.
pub(crate) fn lstat(path: impl Arg) -> Result<FileStatus, Errno> {
    rustix::fs::lstat(path).map(FileStatus::of)
}

/// The file of this name in a directory; a symlink is told of itself.
pub(crate) fn stat_in(directory: BorrowedFd<'_>, name: &CStr) -> Result<FileStatus, Errno> {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(FileStatus::of)
}

/// The file of an open descriptor.
pub(crate) fn fstat(fd: impl AsFd) -> Result<FileStatus, Errno> {
    rustix::fs::fstat(fd).map(FileStatus::of)
}

/// The file of an open descriptor, as the kernel has it in memory: a network file system is not asked.
pub(crate) fn fstat_cached(fd: impl AsFd) -> Result<FileStatus, Errno> {
    statx(fd.as_fd(), c"", AtFlags::EMPTY_PATH)
}

/// The same of the file of this name in a directory; a symlink is told of itself.
pub(crate) fn stat_in_cached(directory: BorrowedFd<'_>, name: &CStr) -> Result<FileStatus, Errno> {
    statx(directory, name, AtFlags::SYMLINK_NOFOLLOW)
}

fn statx(directory: BorrowedFd<'_>, name: &CStr, flags: AtFlags) -> Result<FileStatus, Errno> {
    let (flags, wanted) = (flags | AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS);
    let stat = rustix::fs::statx(directory, name, flags, wanted)?;
    let dev = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
    Ok(FileStatus {
        id: FileId { dev, ino: stat.stx_ino },
        mode: stat.stx_mode.into(),
        links: stat.stx_nlink.into(),
    })
}

/// Opens a file by its path, for reading. Never creates it.
pub(crate) fn open_to_read(path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OPEN | OFlags::RDONLY, NO_MODE)
}

/// Opens a file by its path, for reading and writing. Never creates it.
pub(crate) fn open_to_write(path: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OPEN | OFlags::RDWR, NO_MODE)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_its_parts_and_a_nul() {
        let joined = |first: &[u8], second: &[u8]| {
            let parts = [first, second].map(|bytes| PathBytes::new(bytes).unwrap());
            with_c_path(parts[0], parts[1], |path, second| {
                (path.to_bytes_with_nul().to_vec(), second.to_bytes_with_nul().to_vec())
            })
        };
        assert_eq!(joined(b"/run/", b"a"), (b"/run/a\0".to_vec(), b"a\0".to_vec()));
        assert_eq!(joined(b"/img", b""), (b"/img\0".to_vec(), b"\0".to_vec()));
        for len in [STACK_BUF - 3, STACK_BUF - 2, STACK_BUF - 1, STACK_BUF, 4095] {
            let second = vec![b'x'; len];
            let full_path = [b"/".as_slice(), &second, b"\0"].concat();
            assert_eq!(joined(b"/", &second), (full_path.clone(), full_path[1..].to_vec()));
        }
    }

    #[test]
    fn no_path_has_a_nul_within() {
        for len in [1, 16, 33, 100] {
            let mut bytes = vec![b'x'; len];
            assert_eq!(PathBytes::new(&bytes).unwrap().to_owned().as_path_bytes().0, bytes);
            for at in [0, len / 2, len - 1] {
                bytes[at] = 0;
                assert!(PathBytes::new(&bytes).is_none(), "{at} of {len}");
                bytes[at] = b'x';
            }
        }
    }
}
