//! Whether two descriptors, of any two processes, are one open file description.
//!
//! A child forked beside a lock shares the lock; a stranger with an equal shared lock does not,
//! and the kernel's tables show both alike. Only `kcmp` tells them apart, and neither rustix nor
//! libc has a function for it, so this is the one raw call of the module `holder`.

use std::os::fd::RawFd;

/// Whether descriptor `fd1` of process `pid1` and `fd2` of `pid2` are one open file description;
/// `None` where the kernel does not say: the caller may not look into both processes, a
/// descriptor is gone, or the call is missing or filtered.
pub(crate) fn same_description(pid1: u32, fd1: RawFd, pid2: u32, fd2: RawFd) -> Option<bool> {
    const KCMP_FILE: libc::c_long = 0;
    let [pid1, pid2] = [pid1, pid2].map(|pid| pid as libc::c_long);
    let [fd1, fd2] = [fd1, fd2].map(|fd| fd as libc::c_long);
    // SAFETY: the call takes five integers, compares, and writes no memory of ours. A number that
    // names no process or descriptor is answered with an error.
    match unsafe { libc::syscall(libc::SYS_kcmp, pid1, pid2, KCMP_FILE, fd1, fd2) } {
        0 => Some(true),
        // 1 and 2 give an order, 3 says "not equal" without one.
        1..=3 => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::same_description;

    #[test]
    fn a_duplicate_is_the_same_description_and_a_second_open_is_not() {
        let pid = std::process::id();
        let file = File::open("/dev/null").unwrap();
        let duplicate = file.try_clone().unwrap();
        let second = File::open("/dev/null").unwrap();
        let same = |a: &File, b: &File| same_description(pid, a.as_raw_fd(), pid, b.as_raw_fd());
        assert_eq!(same(&file, &duplicate), Some(true));
        assert_eq!(same(&file, &second), Some(false));
        assert_eq!(same_description(pid, file.as_raw_fd(), pid, -1), None);
    }
}
