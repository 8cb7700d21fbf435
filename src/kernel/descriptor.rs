//! Descriptors by number: those that an exec carries over, and the flag that lets them.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

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
