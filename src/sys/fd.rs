//! Descriptors by number: those that an exec carries over, and the flag that lets them.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The open descriptor of this number, and how it was opened: `O_RDONLY`, `O_WRONLY` or `O_RDWR`.
/// `None` if it is not open.
///
/// # Safety
/// Nobody closes it as long as what is returned is used.
pub(crate) unsafe fn borrow(number: RawFd) -> Option<(BorrowedFd<'static>, libc::c_int)> {
    // SAFETY: the call takes integers and touches no memory of ours; a number that is not open is
    // answered with an error.
    match unsafe { libc::fcntl(number, libc::F_GETFL) } {
        flags @ 0.. => {
            // SAFETY: it is open, as has just been seen, so it is not -1; that it stays open says
            // the caller.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            Some((fd, flags & libc::O_ACCMODE))
        }
        _ => None,
    }
}

/// Sets close-on-exec on each, without a call for each where their numbers are in a row. They are
/// the caller's: nobody else may be surprised.
pub(crate) fn close_all_on_exec(numbers: &mut [RawFd]) -> io::Result<()> {
    numbers.sort_unstable();
    let mut in_rows = numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next));
    in_rows.try_for_each(|row| match row {
        [first, .., last] => {
            let [first, last] = [*first, *last].map(libc::c_long::from);
            let flags = libc::CLOSE_RANGE_CLOEXEC;
            // SAFETY: the call takes integers and touches no memory of ours. With this flag it
            // closes nothing, and all numbers from the first to the last are the caller's.
            match unsafe {
                libc::syscall(libc::SYS_close_range, first, last, flags as libc::c_long)
            } {
                0 => Ok(()),
                // Before Linux 5.11.
                _ => set_close_on_exec(row, true),
            }
        }
        row => set_close_on_exec(row, true),
    })
}

/// Sets or clears close-on-exec on each. They are the caller's: nobody else may be surprised.
pub(crate) fn set_close_on_exec(numbers: &[RawFd], close: bool) -> io::Result<()> {
    let flags = if close { libc::FD_CLOEXEC } else { 0 };
    for &number in numbers {
        // SAFETY: the call takes integers and touches no memory of ours; a number that is not
        // open is answered with an error.
        if unsafe { libc::fcntl(number, libc::F_SETFD, flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Whether two descriptors of this process are one open file description; `None` where the
/// kernel does not say.
pub(crate) fn same_description(one: RawFd, other: RawFd) -> Option<bool> {
    /// Linux 6.10, for every process; `kcmp` is older and often forbidden.
    const F_DUPFD_QUERY: libc::c_int = 1027;
    // SAFETY: the call takes integers and touches no memory of ours.
    match unsafe { libc::fcntl(one, F_DUPFD_QUERY, other) } {
        0 => Some(false),
        1 => Some(true),
        _ => {
            let pid = std::process::id();
            super::kcmp::same_description(pid, one, pid, other)
        }
    }
}

/// Takes a descriptor that an exec has carried over.
///
/// # Safety
/// It is open, and nobody else owns it.
pub(crate) unsafe fn adopt(number: RawFd) -> OwnedFd {
    // SAFETY: says the caller.
    unsafe { OwnedFd::from_raw_fd(number) }
}
