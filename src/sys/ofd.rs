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

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use super::Errno;
use crate::types::{ByteRange, Mode, Outside};

/// Tries to take, or to convert, this description's lock on `range`; never blocks.
///
/// # Errors
/// What this description held before, it still holds then.
///
/// - `EAGAIN`: somebody else's lock is in the way, or was.
/// - `EACCES`: as POSIX has it, the same; but some file systems and security modules say so where
///   nobody holds anything.
/// - `EBADF` where the descriptor is not open for what the mode needs (exclusive: writing, shared:
///   reading); `ENOLCK` where the kernel or a network file system has no lock to give.
pub(crate) fn try_lock(fd: BorrowedFd<'_>, mode: Mode, range: ByteRange) -> Result<(), Errno> {
    fcntl(fd, libc::F_OFD_SETLK, kind_of(mode), range).map(drop)
}

/// A lock that stands in the way of [`try_lock`], if one does now; the first of them. The
/// descriptor need not be open for what the mode needs. The range is as the kernel has it, and so
/// perhaps none that a request can have.
///
/// # Errors
/// Where the kernel does not tell.
pub(crate) fn in_the_way(
    fd: BorrowedFd<'_>,
    mode: Mode,
    range: ByteRange,
) -> Result<Option<Outside>, Errno> {
    let lock = fcntl(fd, libc::F_OFD_GETLK, kind_of(mode), range)?;
    let mode = match libc::c_int::from(lock.l_type) {
        libc::F_UNLCK => return Ok(None),
        libc::F_RDLCK => Mode::Shared,
        _ => Mode::Exclusive,
    };
    let range = range_of(&lock).unwrap_or(ByteRange::WHOLE_FILE);
    // -1 for an OFD lock, and 0 for a process that is not in this pid namespace.
    let pid = u32::try_from(lock.l_pid).ok().filter(|pid| *pid > 0);
    Ok(Some(Outside { mode, range, pid }))
}

/// The range of a lock that the kernel tells.
fn range_of(lock: &libc::flock64) -> Option<ByteRange> {
    let (start, len) = (u64::try_from(lock.l_start).ok()?, u64::try_from(lock.l_len).ok()?);
    // A length of 0 means to the end of the file.
    let last = match len.checked_sub(1) {
        Some(more) => Some(start.checked_add(more)?),
        None => None,
    };
    ByteRange::between(start, last)
}

/// The first lock, of those that touch `range`, which this description itself carries. What others
/// do to the file does not matter.
///
/// # Errors
/// `EINVAL` before Linux 6.6.
#[cfg(feature = "snapshot")]
pub(crate) fn own_lock(
    fd: BorrowedFd<'_>,
    range: ByteRange,
) -> Result<Option<(Mode, ByteRange)>, Errno> {
    let lock = fcntl(fd, libc::F_OFD_GETLK, libc::F_UNLCK, range)?;
    let mode = match libc::c_int::from(lock.l_type) {
        libc::F_WRLCK => Mode::Exclusive,
        libc::F_RDLCK => Mode::Shared,
        _ => return Ok(None),
    };
    // No kernel tells one that is none.
    Ok(Some((mode, range_of(&lock).ok_or(Errno::OVERFLOW)?)))
}

/// Gives back what this description holds within `range`, whoever shares it.
pub(crate) fn unlock(fd: BorrowedFd<'_>, range: ByteRange) -> Result<(), Errno> {
    fcntl(fd, libc::F_OFD_SETLK, libc::F_UNLCK, range).map(drop)
}

/// Gives back what this description holds within `range`, whoever shares it, and closes the
/// descriptor.
///
/// The unlock is not left to the close: a process that was forked meanwhile shares the open file,
/// and would keep the lock alive. Nor does it go beyond `range`: where the open file is the
/// caller's, a QEMU that was given it may have locked other bytes, and needs them.
pub(crate) fn unlock_and_close(fd: OwnedFd, range: ByteRange) {
    // It cannot fail on a range as it was locked, and if it did, the close would be next.
    let _ = unlock(fd.as_fd(), range);
    // By rustix's inline assembly instead of libc, as a drop would. An error is what the file system
    // had to say in the end: the descriptor is gone all the same.
    // SAFETY: it was ours alone, as its type says, and is not used again.
    let _ = unsafe { rustix::io::try_close(fd.into_raw_fd()) };
}

fn kind_of(mode: Mode) -> libc::c_int {
    if mode == Mode::Exclusive { libc::F_WRLCK } else { libc::F_RDLCK }
}

/// The system call, with one of the OFD commands; what it leaves in the `flock64`.
fn fcntl(
    fd: BorrowedFd<'_>,
    command: libc::c_int,
    kind: libc::c_int,
    range: ByteRange,
) -> Result<libc::flock64, Errno> {
    // `ByteRange` ends at the largest file offset, so neither number is ever out of range.
    let mut lock = libc::flock64 {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: range.start().cast_signed(),
        // 0 means to the end of the file.
        l_len: range.len().map_or(0, |len| len.get().cast_signed()),
        // It must be 0 in an OFD call.
        l_pid: 0,
    };
    loop {
        match call(fd, command, &mut lock) {
            Ok(()) => return Ok(lock),
            // A file system that answers from afar may be interrupted; nothing has happened then.
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Issued here and not by libc, as rustix does for all others: beside libc's wrapper, a lock and its
/// unlock took 0.73 of the time.
#[cfg(target_arch = "x86_64")]
fn call(fd: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock64) -> Result<(), Errno> {
    let result: isize;
    // SAFETY: this is how Linux is called on x86-64; the registers that the call overwrites are
    // named. The descriptor is open, as its type says, and an OFD command reads and writes nothing
    // but the `flock64`, which lives through the call and is nobody else's.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_fcntl as isize => result,
            in("rdi") fd.as_raw_fd() as isize,
            in("rsi") command as isize,
            in("rdx") std::ptr::from_mut(lock),
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, preserves_flags),
        );
    }
    // A negative error number, which fits.
    if result < 0 { Err(Errno::from_raw_os_error(-result as i32)) } else { Ok(()) }
}

/// By libc where nothing faster was measured.
#[cfg(not(target_arch = "x86_64"))]
fn call(fd: BorrowedFd<'_>, command: libc::c_int, lock: &mut libc::flock64) -> Result<(), Errno> {
    // SAFETY: the descriptor is open, as its type says, and an OFD command reads and writes nothing
    // but the `flock64`, which lives through the call and is nobody else's.
    match unsafe { libc::fcntl(fd.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        0.. => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
