//! Descriptors: their numbers, what an exec does with them, and whether two are one open file
//! description.

#[cfg(feature = "snapshot")]
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use super::Errno;
use super::procfs::Descriptor;

/// Standard input, output and error have this number and those below. No lock file may have one:
/// what a program prints must never land in it.
pub(crate) const LAST_STDIO: RawFd = 2;

/// A duplicate, close-on-exec, with a number above those of standard input, output and error.
pub(crate) fn above_stdio(fd: impl AsFd) -> Result<OwnedFd, Errno> {
    rustix::io::fcntl_dupfd_cloexec(fd, LAST_STDIO + 1)
}

/// Whether two descriptors of this process are one open file description; `None` where the
/// kernel does not say.
#[cfg(feature = "snapshot")]
pub(crate) fn same_description(one: RawFd, other: RawFd) -> Option<bool> {
    let pid = std::process::id();
    dupfd_query(one, other).or_else(|| kcmp(pid, one, pid, other))
}

/// The same of any two processes: a child forked beside a lock shares the lock; a stranger with an
/// equal shared lock does not, and the kernel's tables show both alike. `None` also where the caller
/// may not look into both processes.
pub(crate) fn same_description_across(one: Descriptor, other: Descriptor) -> Option<bool> {
    let own = std::process::id();
    let told =
        if (one.pid, other.pid) == (own, own) { dupfd_query(one.fd, other.fd) } else { None };
    told.or_else(|| kcmp(one.tid, one.fd, other.tid, other.fd))
}

/// Linux 6.10, for every process, but of its own descriptors only.
fn dupfd_query(one: RawFd, other: RawFd) -> Option<bool> {
    const F_DUPFD_QUERY: libc::c_int = 1027;
    // SAFETY: the call takes integers and touches no memory of ours.
    match unsafe { libc::fcntl(one, F_DUPFD_QUERY, other) } {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

/// For any two threads; older, and often forbidden.
fn kcmp(tid1: u32, fd1: RawFd, tid2: u32, fd2: RawFd) -> Option<bool> {
    const KCMP_FILE: libc::c_long = 0;
    let [tid1, tid2] = [tid1, tid2].map(|tid| tid as libc::c_long);
    let [fd1, fd2] = [fd1, fd2].map(|fd| fd as libc::c_long);
    // SAFETY: the call takes five integers, compares, and writes no memory of ours. A number that
    // names no thread or descriptor is answered with an error.
    match unsafe { libc::syscall(libc::SYS_kcmp, tid1, tid2, KCMP_FILE, fd1, fd2) } {
        0 => Some(true),
        // 1 and 2 give an order, 3 says "not equal" without one.
        1..=3 => Some(false),
        _ => None,
    }
}

/// Sets close-on-exec on each, without a call for each where their numbers are in a row. They are
/// the caller's: nobody else may be surprised.
#[cfg(feature = "snapshot")]
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
                _ => set_on_exec(row, OnExec::Close),
            }
        }
        row => set_on_exec(row, OnExec::Close),
    })
}

/// What becomes of a descriptor at an exec.
#[cfg(feature = "snapshot")]
#[derive(Clone, Copy, Debug)]
pub(crate) enum OnExec {
    Close,
    KeepOpen,
}

/// Sets or clears close-on-exec on each. They are the caller's: nobody else may be surprised.
#[cfg(feature = "snapshot")]
pub(crate) fn set_on_exec(numbers: &[RawFd], on_exec: OnExec) -> io::Result<()> {
    let flags = match on_exec {
        OnExec::Close => libc::FD_CLOEXEC,
        OnExec::KeepOpen => 0,
    };
    for &number in numbers {
        // SAFETY: the call takes integers and touches no memory of ours; a number that is not
        // open is answered with an error.
        if unsafe { libc::fcntl(number, libc::F_SETFD, flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_duplicate_is_the_same_description_and_a_second_open_is_not() {
        let pid = std::process::id();
        let file = File::open("/dev/null").unwrap();
        let duplicate = file.try_clone().unwrap();
        let second = File::open("/dev/null").unwrap();
        let by_kcmp = |a: &File, b: &File| kcmp(pid, a.as_raw_fd(), pid, b.as_raw_fd());
        assert_eq!(by_kcmp(&file, &duplicate), Some(true));
        assert_eq!(by_kcmp(&file, &second), Some(false));
        assert_eq!(kcmp(pid, file.as_raw_fd(), pid, -1), None);

        let across = |a: &File, b: &File| {
            let [a, b] = [a, b].map(|file| Descriptor { pid, tid: pid, fd: file.as_raw_fd() });
            same_description_across(a, b)
        };
        assert_eq!(across(&file, &duplicate), Some(true));
        assert_eq!(across(&file, &second), Some(false));
    }

    #[test]
    fn a_duplicate_is_above_standard_error() {
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        assert!(above_stdio(&file).unwrap().as_raw_fd() > LAST_STDIO);
    }
}
