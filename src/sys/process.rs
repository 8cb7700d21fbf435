//! What the kernel tells of this process.

use std::io;

/// What an error calls the reading of [`start_time`].
pub(crate) const READ_STAT: &str = "read /proc/PID/stat";

/// When this process was started, in the kernel's ticks: with the pid, it tells this process from
/// every other one. An exec does not change it, whichever thread executes.
pub(crate) fn start_time() -> io::Result<u64> {
    // The process's, not the thread's, whose own start time stands in its `stat`.
    let stat = std::fs::read("/proc/thread-self/../../stat")?;
    // The command stands second, in brackets, and may contain anything.
    let after = stat.iter().rposition(|&byte| byte == b')').map(|at| &stat[at + 1..]);
    let field = after.and_then(|rest| str::from_utf8(rest).ok()?.split_ascii_whitespace().nth(19));
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "no start time in it");
    field.and_then(|field| field.parse().ok()).ok_or_else(odd)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_tells_the_start_of_the_process() {
        let own = || -> u64 {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap().parse().unwrap()
        };
        let here = start_time().unwrap();
        // Until one is started in a later tick than the process.
        while std::thread::spawn(move || {
            assert_eq!(start_time().unwrap(), here);
            own() == here
        })
        .join()
        .unwrap()
        {}
    }
}
