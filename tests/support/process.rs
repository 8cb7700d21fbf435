//! What this process is: its descriptors, threads, watches, signals, limits and rights.
//!
//! What is of the whole process means something only where no other test runs: in
//! [`alone`](super::alone::alone), or in a forked child for what that does not share.

#![allow(unsafe_code, reason = "calls that rustix does not have")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The signals that this thread catches, ignores or blocks. Not how many are queued, which is the
/// user's.
pub(crate) fn signals() -> Vec<String> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let of_signals = |line: &&str| line.starts_with("Sig") && !line.starts_with("SigQ");
    status.lines().filter(of_signals).map(str::to_owned).collect()
}

/// Blocks signals in this thread.
pub(crate) fn block_signals(signals: &[i32]) {
    // SAFETY: the set is initialized by the first call, and lives through the others.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for &signal in signals {
            libc::sigaddset(&raw mut set, signal);
        }
        assert_eq!(libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()), 0);
    }
}

/// The descriptors of this process that lead to something with this in its name.
pub(crate) fn descriptors_of(what: &str) -> Vec<String> {
    let links = fs::read_dir("/proc/thread-self/fd").unwrap().filter_map(|entry| {
        let entry = entry.unwrap();
        let link = fs::read_link(entry.path()).ok()?.to_str()?.to_owned();
        link.contains(what).then(|| entry.file_name().into_string().unwrap())
    });
    links.collect()
}

/// The numbers of this process's descriptors of the file that has this name.
pub(crate) fn descriptors_to(path: &Path) -> Vec<RawFd> {
    let path = path.canonicalize().expect("it is there");
    let entries = fs::read_dir("/proc/thread-self/fd").expect("/proc is mounted").flatten();
    let found = entries.filter(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == path));
    found.map(|entry| entry.file_name().to_str().unwrap().parse().unwrap()).collect()
}

/// A descriptor that is open, by its number. Whoever owns it keeps it open while this is used.
pub(crate) fn borrowed(number: RawFd) -> BorrowedFd<'static> {
    // SAFETY: says the caller.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// The descriptors of this process that lead into a folder.
pub(crate) fn open_below(folder: &Path) -> usize {
    let folder = folder.to_str().expect("UTF-8");
    let below = |entry: Result<fs::DirEntry, _>| {
        let link = entry.ok().and_then(|entry| fs::read_link(entry.path()).ok())?;
        // Not the folder itself, which its space keeps open.
        link.to_str()?.strip_prefix(folder)?.starts_with('/').then_some(())
    };
    fs::read_dir("/proc/thread-self/fd").expect("/proc is mounted").filter_map(below).count()
}

/// The numbers of this process's open descriptors, found without opening one.
pub(crate) fn open_numbers() -> Vec<i32> {
    // SAFETY: F_GETFD reads a flag of a number; one that is not open is answered by EBADF.
    (0..1024).filter(|&number| unsafe { libc::fcntl(number, libc::F_GETFD) } != -1).collect()
}

/// Closes a descriptor by its number. For a child, which owns its copy of the table.
pub(crate) fn close_number(number: i32) {
    // SAFETY: the child uses the number no more: nothing of what it runs has an owner for it.
    unsafe { libc::close(number) };
}

/// Takes every descriptor number that is left below `limit`, which becomes the process's limit.
/// For a child. Those that it took, for the caller to give some back; none if none was free.
pub(crate) fn exhaust_descriptors(limit: u64) -> Vec<OwnedFd> {
    let max = getrlimit(Resource::Nofile).maximum;
    let new = Rlimit { current: Some(limit), maximum: max };
    setrlimit(Resource::Nofile, new).expect("a lower limit");
    let Ok(null) = File::open("/dev/null") else { return Vec::new() };
    let mut taken = vec![OwnedFd::from(null)];
    // Not `try_clone`, which leaves 0 to 2 alone.
    while let Ok(one) = rustix::io::dup(&taken[0]) {
        taken.push(one);
    }
    taken
}

/// As many descriptors as may be, here and in what is executed.
pub(crate) fn allow_descriptors() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("it is allowed");
}

/// The kernel's numbers for the inotify watches of this process.
pub(crate) fn numbers_of_watches() -> Vec<String> {
    let info = |fd: String| fs::read_to_string(format!("/proc/thread-self/fdinfo/{fd}")).unwrap();
    let infos: String = descriptors_of("inotify").into_iter().map(info).collect();
    let watches = infos.lines().filter_map(|line| line.strip_prefix("inotify "));
    watches.map(|watch| watch.split(' ').next().unwrap().to_owned()).collect()
}

pub(crate) fn watches() -> usize {
    numbers_of_watches().len()
}

/// How many threads this process has.
pub(crate) fn threads() -> usize {
    fs::read_dir("/proc/self/task").expect("/proc is mounted").count()
}

/// How many threads of this crate this process has.
pub(crate) fn helpers() -> usize {
    let is_one = |entry: &Result<fs::DirEntry, _>| {
        let name = entry.as_ref().map(|entry| fs::read_to_string(entry.path().join("comm")));
        matches!(name, Ok(Ok(name)) if name == "lockspace\n")
    };
    fs::read_dir("/proc/self/task").expect("/proc is mounted").filter(is_one).count()
}

/// The processor time that this process has used.
pub(crate) fn cpu_time() -> Duration {
    // SAFETY: all zeros are a valid `rusage`, which the call fills in and outlives it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Whether this process may become another user and mount things.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Becomes the user `nobody` for good. For a child: it concerns the whole process.
pub(crate) fn become_nobody() {
    const NOBODY: u32 = 65534;
    // SAFETY: integers and an empty list in, nothing else is read or written.
    let failed = unsafe {
        libc::setgroups(0, std::ptr::null()) != 0
            || libc::setgid(NOBODY) != 0
            || libc::setuid(NOBODY) != 0
    };
    assert!(!failed, "setuid: {}", io::Error::last_os_error());
}

/// Sets an environment variable. For a child, which has one thread.
pub(crate) fn set_variable(name: &str, value: &str) {
    // SAFETY: no other thread reads or changes the environment.
    unsafe { std::env::set_var(name, value) };
}

/// Gives this process mounts of its own. For a child; only root may.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: an integer in, an integer out; no other thread of this process is concerned.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives this process a user namespace of its own, in which its user is the same and nobody has an
/// inotify instance. For a child: the kernel does it for a process of one thread only.
pub(crate) fn forbid_inotify() -> io::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    // SAFETY: an integer in, an integer out.
    if unsafe { libc::unshare(libc::CLONE_NEWUSER) } != 0 {
        return Err(io::Error::last_os_error());
    }
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    limit_inotify(0)
}

/// The limit of the process's own user namespace; the one of its user is left as it is, and so are
/// that user's instances.
pub(crate) fn limit_inotify(instances: u32) -> io::Result<()> {
    fs::write("/proc/sys/user/max_inotify_instances", instances.to_string())
}

/// How many bytes of memory this process has written to.
pub(crate) fn memory() -> usize {
    let status = fs::read_to_string("/proc/self/status").expect("/proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")).expect("kilobytes");
    kilobytes.parse::<usize>().expect("a number") * 1024
}
