//! Locks that are taken behind the crate's back, and how other processes find a file.

#![allow(unsafe_code, reason = "fcntl's locks, of which rustix has no ranged ones")]

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use lockspace::Mode;

use super::forked::{Forked, ask_child, exit_now, fork, shared_memory};

/// Whose a lock is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// An open file description's.
    Ofd,
    /// A process's, as `F_SETLK` sets it.
    Record,
}

/// What to set, as in `l_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    Exclusive,
    Shared,
    No,
}

/// Sets a lock on `len` bytes from `start` on, where 0 bytes are all the rest of the file. It fails
/// at once where somebody else's is in the way.
fn fcntl(fd: impl AsFd, kind: Kind, lock: Lock, start: i64, len: i64) -> io::Result<()> {
    let command = match kind {
        Kind::Ofd => libc::F_OFD_SETLK,
        Kind::Record => libc::F_SETLK,
    };
    call(fd, command, lock, start, len)
}

fn call(fd: impl AsFd, command: libc::c_int, lock: Lock, start: i64, len: i64) -> io::Result<()> {
    let l_type = match lock {
        Lock::Exclusive => libc::F_WRLCK,
        Lock::Shared => libc::F_RDLCK,
        Lock::No => libc::F_UNLCK,
    };
    let lock = libc::flock64 {
        l_type: l_type as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    };
    // SAFETY: the descriptor is open, and `lock` lives through the call.
    match unsafe { libc::fcntl(fd.as_fd().as_raw_fd(), command, &raw const lock) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Tries to set a lock; `false` if somebody else's is in the way.
pub(crate) fn set_lock(
    fd: impl AsFd,
    kind: Kind,
    lock: Lock,
    start: i64,
    len: i64,
) -> io::Result<bool> {
    match fcntl(fd, kind, lock, start, len) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

fn mode(exclusive: bool) -> Lock {
    if exclusive { Lock::Exclusive } else { Lock::Shared }
}

/// A record (POSIX) lock, tried once.
pub(crate) fn record_lock(fd: impl AsFd, exclusive: bool, start: i64, len: i64) -> io::Result<()> {
    fcntl(fd, Kind::Record, mode(exclusive), start, len)
}

pub(crate) fn unlock_record(fd: impl AsFd, start: i64, len: i64) -> io::Result<()> {
    fcntl(fd, Kind::Record, Lock::No, start, len)
}

/// An OFD lock, tried once.
pub(crate) fn ofd_lock(fd: impl AsFd, exclusive: bool, start: i64, len: i64) -> io::Result<()> {
    fcntl(fd, Kind::Ofd, mode(exclusive), start, len)
}

/// An exclusive OFD lock on byte 0, waited for in the kernel.
pub(crate) fn wait_for_ofd_lock(fd: impl AsFd) -> io::Result<()> {
    call(fd, libc::F_OFD_SETLKW, Lock::Exclusive, 0, 1)
}

pub(crate) fn unlock_ofd(fd: impl AsFd, start: i64, len: i64) -> io::Result<()> {
    fcntl(fd, Kind::Ofd, Lock::No, start, len)
}

/// How many `lock:` lines the kernel shows for a descriptor of this process.
pub(crate) fn locks_shown(fd: impl AsFd) -> usize {
    let info = format!("/proc/thread-self/fdinfo/{}", fd.as_fd().as_raw_fd());
    let info = fs::read_to_string(info).expect("fdinfo can be read");
    info.lines().filter(|line| line.starts_with("lock:")).count()
}

/// Opens a file for reading and writing.
#[track_caller]
pub(crate) fn open(path: impl AsRef<Path>) -> File {
    File::options().read(true).write(true).open(path).expect("it can be opened")
}

/// Whether another process gets an exclusive record lock on byte 0 of the file, now.
#[track_caller]
pub(crate) fn is_free_for_others(path: &Path) -> bool {
    let child = fork(|| {
        let free = set_lock(open(path), Kind::Record, Lock::Exclusive, 0, 1).expect("F_SETLK");
        exit_now(if free { 10 } else { 11 });
    });
    match child.join_code() {
        10 => true,
        11 => false,
        code => panic!("the child's exit code was {code}"),
    }
}

/// How *another process* finds byte `at` of a file locked: neither `F_SETLK` nor `F_OFD_SETLK` may
/// get through what is held.
#[track_caller]
pub(crate) fn held_at(path: &Path, at: i64) -> Option<Mode> {
    let answer = ask_child(|| {
        let file = open(path);
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

/// A child that tries to lock each of some files without pause, until it is ended.
#[derive(Debug)]
pub(crate) struct Rival {
    _child: Forked,
    /// How often it tried, and how often it was not refused.
    counts: &'static [AtomicU64; 2],
}

impl Rival {
    pub(crate) fn start(files: &[PathBuf]) -> Self {
        let counts = shared_memory::<2>();
        let child = fork(|| {
            // The files stay open: what is asked is whether the locks on them are ever gone.
            let opened: Vec<_> = files.iter().map(open).collect();
            loop {
                for kind in [Kind::Ofd, Kind::Record] {
                    for file in &opened {
                        // Only an exclusive lock refuses a shared one: nothing is easier to get.
                        let got = set_lock(file, kind, Lock::Shared, 0, 1).unwrap();
                        counts[0].fetch_add(1, Ordering::Relaxed);
                        counts[1].fetch_add(u64::from(got), Ordering::Relaxed);
                    }
                }
            }
        });
        Self { _child: child, counts }
    }

    /// How often it has tried until now.
    pub(crate) fn tries(&self) -> u64 {
        self.counts[0].load(Ordering::Relaxed)
    }

    /// How often it tried, and how often it was not refused.
    pub(crate) fn end(self) -> (u64, u64) {
        (self.tries(), self.counts[1].load(Ordering::Relaxed))
    }
}
