//! The floor: the system calls that a cycle of this crate makes, with nothing around them.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

/// How the calls are issued.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// glibc's wrappers.
    Libc,
    /// rustix, which issues them by inline assembly, but glibc's `fcntl` for the lock.
    Rustix,
    /// rustix, and the lock by inline assembly too.
    Assembly,
}

/// Device and inode.
type Id = (u64, u64);

/// Open, lock, compare: a file that is there, in a directory.
pub(crate) fn in_directory(way: Way, dir: BorrowedFd<'_>, file: &CStr, path: &CStr) -> OwnedFd {
    let fd = open(way, dir, file, OFlags::RDWR | OFlags::NOFOLLOW, 0).expect("open");
    lock_and_compare(way, fd, path, AtFlags::SYMLINK_NOFOLLOW)
}

fn lock_and_compare(way: Way, fd: OwnedFd, path: &CStr, flags: AtFlags) -> OwnedFd {
    assert!(set_lock(way, fd.as_fd(), libc::F_WRLCK, 0, 1));
    let id = fstat(way, fd.as_fd());
    assert_eq!(stat(way, path, flags), Some(id));
    fd
}

/// Look, open, lock, compare: the path of an image.
pub(crate) fn direct(way: Way, path: &CStr) -> OwnedFd {
    stat(way, path, AtFlags::empty()).expect("stat");
    let fd = open(way, CWD, path, OFlags::RDWR, 0).expect("open");
    lock_and_compare(way, fd, path, AtFlags::empty())
}

/// Create, lock, compare.
pub(crate) fn created(way: Way, dir: BorrowedFd<'_>, file: &CStr, path: &CStr) -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CREATE | OFlags::EXCL;
    let fd = open(way, dir, file, flags, 0o600).expect("create");
    lock_and_compare(way, fd, path, AtFlags::SYMLINK_NOFOLLOW)
}

/// Lock all of it, compare, unlink, unlock, close.
pub(crate) fn remove(way: Way, dir: BorrowedFd<'_>, file: &CStr, fd: OwnedFd) {
    assert!(set_lock(way, fd.as_fd(), libc::F_WRLCK, 0, i64::MAX));
    stat_at(way, dir, file, AtFlags::SYMLINK_NOFOLLOW).expect("stat");
    unlink(way, dir, file);
    end(way, fd);
}

/// The least that a lockspace does around those calls. It looks whether the name can be one, writes
/// down who is acquiring, holds or releases it, under one mutex that no system call is made under,
/// makes the path of the file, and gives a lease that keeps the lockspace. No modes, no ranges, no
/// counts, no kept holds, no waiters, no errors.
pub(crate) struct Registry {
    prefix: Vec<u8>,
    map: Mutex<HashMap<Arc<[u8]>, Entry>>,
}

/// The owner, and what becomes of the resource.
type Entry = (u64, State);

enum State {
    Acquiring,
    Held(OwnedFd),
    Releasing,
}

struct Lease {
    registry: Arc<Registry>,
    name: Arc<[u8]>,
}

impl Registry {
    /// The files' paths begin with this.
    pub(crate) fn new(prefix: &[u8]) -> Arc<Self> {
        Arc::new(Self { prefix: prefix.to_vec(), map: Mutex::default() })
    }

    pub(crate) fn cycle(
        self: &Arc<Self>,
        name: &[u8],
        begin: impl FnOnce(&CStr, &CStr) -> OwnedFd,
        end: impl FnOnce(OwnedFd),
    ) {
        self.acquire(name, 1, begin).expect("it is free").release(end);
    }

    #[inline(never)]
    fn acquire(
        self: &Arc<Self>,
        name: &[u8],
        owner: u64,
        begin: impl FnOnce(&CStr, &CStr) -> OwnedFd,
    ) -> Option<Lease> {
        if name.is_empty() || name.contains(&0) {
            return None;
        }
        let key: Arc<[u8]> = name.into();
        {
            let mut map = self.map.lock();
            if map.contains_key(name) {
                return None;
            }
            map.insert(Arc::clone(&key), (owner, State::Acquiring));
        }
        let mut path = [0; 256];
        let len = self.prefix.len() + name.len();
        path[..self.prefix.len()].copy_from_slice(&self.prefix);
        path[self.prefix.len()..len].copy_from_slice(name);
        let [file, path] = [self.prefix.len(), 0]
            .map(|from| CStr::from_bytes_with_nul(&path[from..=len]).expect("it has none"));
        let fd = begin(file, path);
        self.map.lock().get_mut(name)?.1 = State::Held(fd);
        Some(Lease { registry: Arc::clone(self), name: key })
    }
}

impl Lease {
    #[inline(never)]
    fn release(self, end: impl FnOnce(OwnedFd)) {
        let held = {
            let mut map = self.registry.map.lock();
            map.get_mut(&self.name).map(|entry| std::mem::replace(&mut entry.1, State::Releasing))
        };
        if let Some(State::Held(fd)) = held {
            end(fd);
        }
        self.registry.map.lock().remove(&self.name);
    }
}

/// Opens and locks.
pub(crate) fn locked(way: Way, path: &CStr) -> OwnedFd {
    let fd = open(way, CWD, path, OFlags::RDWR, 0).expect("open");
    assert!(set_lock(way, fd.as_fd(), libc::F_WRLCK, 0, 1));
    fd
}

/// Unlocks and closes.
pub(crate) fn end(way: Way, fd: OwnedFd) {
    assert!(set_lock(way, fd.as_fd(), libc::F_UNLCK, 0, 0));
    match way {
        Way::Libc => drop(fd),
        // SAFETY: it was ours, and nobody else's.
        _ => unsafe { rustix::io::close(fd.into_raw_fd()) },
    }
}

/// What proves an entry of a state document: the descriptor is open, on this file, and the kernel
/// tells of its description that it carries this lock and no other, and of the file that nobody
/// else has one.
pub(crate) fn proven(fd: BorrowedFd<'_>) -> u64 {
    rustix::fs::fcntl_getfl(fd).expect("fcntl");
    let (_, inode) = fstat(Way::Assembly, fd);
    let own = libc::F_UNLCK;
    assert_eq!(lock_in(fd, own, 0, 1), libc::F_WRLCK);
    assert_eq!(lock_in(fd, own, 1, 0), libc::F_UNLCK);
    assert_eq!(lock_in(fd, libc::F_WRLCK, 0, 0), libc::F_UNLCK);
    inode
}

/// Close-on-exec for all of these numbers.
pub(crate) fn close_on_exec(first: i32, last: i32) {
    // SAFETY: integers; with this flag it closes nothing.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) };
}

fn open(way: Way, dir: BorrowedFd<'_>, file: &CStr, more: OFlags, mode: u32) -> Option<OwnedFd> {
    let flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK | more;
    if way != Way::Libc {
        return rustix::fs::openat(dir, file, flags, Mode::from_raw_mode(mode)).ok();
    }
    let flags = flags.bits() as libc::c_int;
    // SAFETY: the string ends with a NUL, and the descriptor, if it is one, is new.
    unsafe {
        let fd = libc::openat(dir.as_raw_fd(), file.as_ptr(), flags, mode);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}

#[allow(clippy::unnecessary_cast)] // their widths differ by target
fn fstat(way: Way, fd: BorrowedFd<'_>) -> Id {
    if way != Way::Libc {
        let stat = rustix::fs::fstat(fd).expect("fstat");
        return (stat.st_dev as u64, stat.st_ino as u64);
    }
    // SAFETY: zeros are a valid `stat`, and the call writes nothing else.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        assert_eq!(libc::fstat(fd.as_raw_fd(), &raw mut stat), 0);
        (stat.st_dev as u64, stat.st_ino as u64)
    }
}

fn stat(way: Way, path: &CStr, flags: AtFlags) -> Option<Id> {
    stat_at(way, CWD, path, flags)
}

#[allow(clippy::unnecessary_cast)] // their widths differ by target
fn stat_at(way: Way, dir: BorrowedFd<'_>, path: &CStr, flags: AtFlags) -> Option<Id> {
    if way != Way::Libc {
        let stat = rustix::fs::statat(dir, path, flags).ok()?;
        return Some((stat.st_dev as u64, stat.st_ino as u64));
    }
    let flags = flags.bits() as libc::c_int;
    // SAFETY: the string ends with a NUL; zeros are a valid `stat`, and the call writes it only.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        let result = libc::fstatat(dir.as_raw_fd(), path.as_ptr(), &raw mut stat, flags);
        (result == 0).then_some((stat.st_dev as u64, stat.st_ino as u64))
    }
}

fn unlink(way: Way, dir: BorrowedFd<'_>, file: &CStr) {
    if way != Way::Libc {
        return rustix::fs::unlinkat(dir, file, AtFlags::empty()).expect("unlink");
    }
    // SAFETY: the string ends with a NUL.
    assert_eq!(unsafe { libc::unlinkat(dir.as_raw_fd(), file.as_ptr(), 0) }, 0);
}

fn lock_on(kind: libc::c_int, start: i64, len: i64) -> libc::flock64 {
    libc::flock64 {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}

fn set_lock(way: Way, fd: BorrowedFd<'_>, kind: libc::c_int, start: i64, len: i64) -> bool {
    let mut lock = lock_on(kind, start, len);
    let fd = fd.as_raw_fd();
    match way {
        // SAFETY: F_OFD_SETLK reads the lock, which lives through the call.
        Way::Libc | Way::Rustix => unsafe {
            libc::fcntl(fd, libc::F_OFD_SETLK, &raw const lock) == 0
        },
        // SAFETY: the same.
        Way::Assembly => unsafe { raw_fcntl(fd, libc::F_OFD_SETLK, &raw mut lock) == 0 },
    }
}

/// The kind of the lock that the kernel finds.
fn lock_in(fd: BorrowedFd<'_>, kind: libc::c_int, start: i64, len: i64) -> libc::c_int {
    let mut lock = lock_on(kind, start, len);
    // SAFETY: F_OFD_GETLK reads and writes the lock, which lives through the call.
    assert_eq!(unsafe { raw_fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) }, 0);
    lock.l_type.into()
}

/// # Safety
/// That of `fcntl`.
#[cfg(target_arch = "x86_64")]
unsafe fn raw_fcntl(fd: i32, command: i32, lock: *mut libc::flock64) -> isize {
    let result: isize;
    // SAFETY: the system call overwrites the registers that are named, and says the caller.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_fcntl as isize => result,
            in("rdi") fd as isize,
            in("rsi") command as isize,
            in("rdx") lock,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack, preserves_flags),
        );
    }
    result
}

/// # Safety
/// That of `fcntl`.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn raw_fcntl(fd: i32, command: i32, lock: *mut libc::flock64) -> libc::c_long {
    // SAFETY: says the caller.
    unsafe { libc::syscall(libc::SYS_fcntl, fd, command, lock) }
}
