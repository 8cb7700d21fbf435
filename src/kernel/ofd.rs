//! Open-file-description (OFD) locks on a range of bytes.
//!
//! Why this kind: a POSIX record lock belongs to the process, so it vanishes when *any*
//! descriptor of the file is closed anywhere in the process, and two threads never exclude each
//! other. An OFD lock belongs to the open file description: it stays until that description's
//! last descriptor is closed or it is unlocked explicitly, and two descriptions exclude each
//! other wherever they live. Both kinds exclude one another, so virtlockd and we do too.
//!
//! A forked child shares the description, and so keeps the lock alive after our close: whoever
//! releases must [`unlock`] first.
//!
//! # References
//! - `fcntl_locking(2)`, "Open file description locks"

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::request::{ByteRange, Mode};

/// Tries to take, or to convert, this description's lock on `range`; never blocks.
///
/// `false`: somebody else holds a lock in the way. What this description held before, it still
/// holds then.
///
/// # Errors
/// `EBADF` where the descriptor is not open for what the mode needs (exclusive: writing, shared:
/// reading); `ENOLCK` where the kernel or a network file system has no lock to give.
pub(crate) fn try_lock(fd: BorrowedFd<'_>, mode: Mode, range: ByteRange) -> io::Result<bool> {
    match set(fd, kind_of(mode), range) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// The range of a lock that stands in the way of [`try_lock`], if one does now.
pub(crate) fn in_the_way(
    fd: BorrowedFd<'_>,
    mode: Mode,
    range: ByteRange,
) -> io::Result<Option<ByteRange>> {
    let mut lock = lock_on(kind_of(mode), range);
    // SAFETY: the descriptor is open, as its type says, and `lock` is a `flock64` that lives
    // through the call and that nobody else sees: F_OFD_GETLK reads and writes it.
    let result =
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, std::ptr::from_mut(&mut lock)) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if lock.l_type == libc::F_UNLCK as libc::c_short {
        return Ok(None);
    }
    let number = |offset| u64::try_from(offset).unwrap_or_default();
    let (start, len) = (number(lock.l_start), number(lock.l_len));
    let last = len.checked_sub(1).and_then(|more| start.checked_add(more));
    Ok(Some(ByteRange::between(start, last).unwrap_or(ByteRange::WHOLE_FILE)))
}

/// Gives back what this description holds within `range`, whoever shares it.
pub(crate) fn unlock(fd: BorrowedFd<'_>, range: ByteRange) -> io::Result<()> {
    set(fd, libc::F_UNLCK, range)
}

fn kind_of(mode: Mode) -> libc::c_int {
    match mode {
        Mode::Exclusive => libc::F_WRLCK,
        Mode::Shared => libc::F_RDLCK,
    }
}

fn lock_on(kind: libc::c_int, range: ByteRange) -> libc::flock64 {
    // `ByteRange` ends at the largest file offset, so neither number is ever out of range.
    let in_file = |offset: u64| libc::off64_t::try_from(offset).unwrap_or(libc::off64_t::MAX);
    // `l_pid` must be 0 in an OFD call, and `l_len` 0 means to the end of the file.
    libc::flock64 {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: in_file(range.start()),
        l_len: range.len().map_or(0, |len| in_file(len.get())),
        l_pid: 0,
    }
}

fn set(fd: BorrowedFd<'_>, kind: libc::c_int, range: ByteRange) -> io::Result<()> {
    let lock = lock_on(kind, range);
    loop {
        // SAFETY: the descriptor is open, as its type says, and `lock` is a `flock64` that
        // lives through the call, which is what F_OFD_SETLK reads.
        let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        // A file system that answers from afar may be interrupted; nothing has happened then.
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
