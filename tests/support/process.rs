//! Other processes: children that run a closure, and locks taken past the crate.
//!
//! The test harness has threads, so a child is a copy of one thread in a process whose other
//! threads are gone: it may allocate (glibc sees to that), and must not wait for anybody else of
//! its parent. It ends by `_exit`, and by an alarm if it hangs.

#![allow(unsafe_code, reason = "fork, and locks that rustix does not have")]

use std::any::Any;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitStatus;

use lockspace::Mode;

/// A child that hangs is killed after so many seconds. No test depends on it but to fail.
const PATIENCE: u32 = 120;
/// The exit code of a child whose closure has panicked.
const PANICKED: i32 = 101;

/// A forked child that runs a closure.
#[derive(Debug)]
pub(crate) struct Child {
    pid: libc::pid_t,
    report: File,
}

impl Child {
    /// Forks. The child runs the closure and reports what it returns.
    pub(crate) fn fork<T: Display>(work: impl FnOnce() -> T) -> Self {
        let (report, to_parent) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .unwrap_or_else(|error| panic!("pipe: {error}"));
        // SAFETY: the child runs on with a copy of this thread alone. It allocates, which glibc
        // allows after a fork, waits for no other thread, and leaves by `_exit`.
        match unsafe { libc::fork() } {
            -1 => panic!("fork: {}", io::Error::last_os_error()),
            0 => {
                drop(report);
                // SAFETY: an integer in, an integer out.
                unsafe { libc::alarm(PATIENCE) };
                let code = run(work, to_parent);
                // SAFETY: it ends this process, and nothing is run on the way.
                unsafe { libc::_exit(code) }
            }
            pid => Self { pid, report: report.into() },
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Waits for the child: how it ended, and what it reported.
    pub(crate) fn wait(mut self) -> (ExitStatus, String) {
        let mut report = String::new();
        self.report.read_to_string(&mut report).expect("a pipe can be read");
        let mut status = 0;
        // SAFETY: `status` is an integer that lives through the call.
        while unsafe { libc::waitpid(self.pid, &raw mut status, 0) } != self.pid {
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::Interrupted, "waitpid: {error}");
        }
        (ExitStatus::from_raw(status), report)
    }

    /// Waits for the child, and panics as it did; else tells what it reported.
    #[track_caller]
    pub(crate) fn join(self) -> String {
        match self.wait() {
            (status, report) if status.success() => report,
            (status, report) => panic!("in a child ({status}): {report}"),
        }
    }
}

fn run<T: Display>(work: impl FnOnce() -> T, to_parent: OwnedFd) -> i32 {
    let (report, code) = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(report) => (report.to_string(), 0),
        Err(panic) => (message(&*panic), PANICKED),
    };
    let _ = File::from(to_parent).write_all(report.as_bytes());
    code
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

/// The signals that this thread catches, ignores or blocks. Not how many are queued, which is the user's.
pub(crate) fn signals() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let of_signals = |line: &&str| line.starts_with("Sig") && !line.starts_with("SigQ");
    status.lines().filter(of_signals).map(str::to_owned).collect()
}

/// Runs a closure in a child. What it asserts there is asserted here.
#[track_caller]
pub(crate) fn in_child(work: impl FnOnce()) {
    Child::fork(|| {
        work();
        ""
    })
    .join();
}

/// Runs a closure in a child; its answer, as text.
#[track_caller]
pub(crate) fn ask_child<T: Display>(work: impl FnOnce() -> T) -> String {
    Child::fork(work).join()
}

/// How *another process* finds byte `at` of a file locked: neither `F_SETLK` nor `F_OFD_SETLK` may
/// get through what is held.
#[track_caller]
pub(crate) fn held_at(path: &Path, at: i64) -> Option<Mode> {
    let answer = ask_child(|| {
        let file = File::options().read(true).write(true).open(path).unwrap();
        let refused = |exclusive| {
            // One after the other: inside a process the two kinds exclude each other as well.
            let record = record_lock(&file, exclusive, at, 1);
            unlock_record(&file, at, 1).unwrap();
            let ofd = ofd_lock(&file, exclusive, at, 1);
            unlock_ofd(&file, at, 1).unwrap();
            assert_eq!(record.is_ok(), ofd.is_ok(), "the kinds differ: {record:?}, {ofd:?}");
            ofd.is_err()
        };
        match (refused(true), refused(false)) {
            (false, false) => "free",
            (true, false) => "shared",
            (true, true) => "exclusive",
            (false, true) => panic!("a shared lock is refused where an exclusive one is granted"),
        }
    });
    match &*answer {
        "free" => None,
        "shared" => Some(Mode::Shared),
        _ => Some(Mode::Exclusive),
    }
}

/// [`held_at`] byte 0.
#[track_caller]
pub(crate) fn held(path: &Path) -> Option<Mode> {
    held_at(path, 0)
}

/// A record (POSIX) lock, tried once.
pub(crate) fn record_lock(fd: impl AsFd, exclusive: bool, start: i64, len: i64) -> io::Result<()> {
    set_lock(fd, libc::F_SETLK, kind(exclusive), start, len)
}

pub(crate) fn unlock_record(fd: impl AsFd, start: i64, len: i64) -> io::Result<()> {
    set_lock(fd, libc::F_SETLK, libc::F_UNLCK, start, len)
}

/// An OFD lock, tried once.
pub(crate) fn ofd_lock(fd: impl AsFd, exclusive: bool, start: i64, len: i64) -> io::Result<()> {
    set_lock(fd, libc::F_OFD_SETLK, kind(exclusive), start, len)
}

pub(crate) fn unlock_ofd(fd: impl AsFd, start: i64, len: i64) -> io::Result<()> {
    set_lock(fd, libc::F_OFD_SETLK, libc::F_UNLCK, start, len)
}

fn kind(exclusive: bool) -> libc::c_int {
    if exclusive { libc::F_WRLCK } else { libc::F_RDLCK }
}

fn set_lock(
    fd: impl AsFd,
    call: libc::c_int,
    kind: libc::c_int,
    start: i64,
    len: i64,
) -> io::Result<()> {
    let lock = libc::flock64 {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and `lock` is what the call reads and outlives it.
    match unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), call, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many `lock:` lines the kernel shows for a descriptor of this process.
pub(crate) fn locks_shown(fd: impl AsFd) -> usize {
    let info = format!("/proc/thread-self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let info = std::fs::read_to_string(info).expect("fdinfo can be read");
    info.lines().filter(|line| line.starts_with("lock:")).count()
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

/// Closes a descriptor by its number. For a child, which owns its copy of the table.
pub(crate) fn close_number(number: i32) {
    // SAFETY: the child uses the number no more: nothing of what it runs has an owner for it.
    unsafe { libc::close(number) };
}

/// The numbers of this process's open descriptors, found without opening one.
pub(crate) fn open_numbers() -> Vec<i32> {
    // SAFETY: F_GETFD reads a flag of a number; one that is not open is answered by EBADF.
    (0..1024).filter(|&number| unsafe { libc::fcntl(number, libc::F_GETFD) } != -1).collect()
}

/// Takes every descriptor number that is left below `limit`, which becomes the process's limit.
/// For a child. Those that it took, for the caller to give some back; none if none was free.
pub(crate) fn exhaust_descriptors(limit: u64) -> Vec<OwnedFd> {
    let max = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let new = rustix::process::Rlimit { current: Some(limit), maximum: max };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, new).expect("a lower limit");
    let Ok(null) = File::open("/dev/null") else { return Vec::new() };
    let mut taken = vec![OwnedFd::from(null)];
    // Not `try_clone`, which leaves 0 to 2 alone.
    while let Ok(one) = rustix::io::dup(&taken[0]) {
        taken.push(one);
    }
    taken
}

/// Gives this process mounts of its own. For a child; only root may.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: an integer in, an integer out; no other thread of this process is concerned.
    match unsafe { libc::unshare(libc::CLONE_NEWNS) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets an environment variable. For a child, which has one thread.
pub(crate) fn set_variable(name: &str, value: &str) {
    // SAFETY: no other thread reads or changes the environment.
    unsafe { std::env::set_var(name, value) };
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
