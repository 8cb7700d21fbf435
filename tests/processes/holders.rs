//! `holders_of`, against locks that real processes hold.
//!
//! The helper processes are this test binary once more, told by an environment variable which
//! locks to take: started, not forked, so that they share no descriptor with other tests.

#![allow(unsafe_code)]

use std::env;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};

use crate::support::alone::this_binary;
use crate::support::interop::skip_or_fail;
use crate::support::locks::{ofd_lock, open, record_lock, wait_for_ofd_lock};
use crate::support::spaces::lock_file;
use lockspace::{ByteRange, HeldBy, Holder, Kind, Mode, holders_of};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A lock to ask for, as the helper's first argument writes it.
const RECORD: &str = "record";
const OFD: &str = "ofd";
const OFD_SHARED: &str = "ofd shared";

/// Asks, and waits where it is refused.
const OFD_WAITING: &str = "ofd waiting";

/// And then forks a child that does nothing.
const OFD_FORKED: &str = "ofd forked";

fn lock(file: &File, how: &str) -> io::Result<()> {
    match how {
        RECORD => record_lock(file, true, 0, 1),
        OFD_SHARED => ofd_lock(file, false, 0, 1),
        OFD_WAITING => wait_for_ofd_lock(file),
        _ => ofd_lock(file, true, 0, 1),
    }
}

/// Not a test: what a helper process does, until its standard input ends.
#[test]
#[ignore = "a process that other tests start"]
fn helper() {
    let Ok(how) = env::var("LOCKSPACE_HELPER") else { return };
    let file = open(env::var_os("LOCKSPACE_HELPER_FILE").unwrap());
    println!("\nready");
    lock(&file, &how).unwrap();
    if how == OFD_FORKED {
        // SAFETY: the child makes one system call after the other and touches nothing else.
        match unsafe { libc::fork() } {
            // SAFETY: as above; the buffer is as long as said.
            0 => unsafe {
                let mut byte = 0_u8;
                libc::read(0, (&raw mut byte).cast(), 1);
                libc::_exit(0);
            },
            child => println!("child {child}"),
        }
    }
    println!("held");
    let _ = std::io::stdin().read(&mut [0]);
}

/// A helper process; it ends with this value.
struct Helper {
    process: Child,
    /// The pid of its forked child.
    child: Option<u32>,
    /// Kept open for what else it prints.
    stdout: Option<BufReader<ChildStdout>>,
}

impl Helper {
    /// Returns once it holds its lock, or, if it is to wait for one, is about to ask.
    fn start(how: &str, path: &Path) -> Self {
        let process = this_binary("holders::helper")
            .env("LOCKSPACE_HELPER", how)
            .env("LOCKSPACE_HELPER_FILE", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut helper = Self { process, child: None, stdout: None };
        let mut stdout = BufReader::new(helper.process.stdout.take().unwrap());
        let last = if how == OFD_WAITING { "ready" } else { "held" };
        let mut line = String::new();
        while line.trim() != last {
            line.clear();
            assert_ne!(stdout.read_line(&mut line).unwrap(), 0, "the helper died");
            if let Some(pid) = line.trim().strip_prefix("child ") {
                helper.child = Some(pid.parse().unwrap());
            }
        }
        helper.stdout = Some(stdout);
        helper
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Its children read the same pipe, and end with it.
        drop(self.process.stdin.take());
        // One that waits for its lock does not read.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn pids(holder: &Holder) -> Vec<u32> {
    match &holder.by {
        HeldBy::Processes(processes) => processes.iter().map(|process| process.pid).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_file_without_locks_has_no_holders() {
    let (_dir, path) = lock_file();
    assert_eq!(holders_of(&path).unwrap(), []);
    File::open(&path).unwrap().lock().unwrap();
    assert_eq!(holders_of(&path).unwrap(), [], "flock is another kind");
}

#[test]
fn a_record_lock_is_its_process_s() {
    let (_dir, path) = lock_file();
    let helper = Helper::start(RECORD, &path);
    let holders = holders_of(&path).unwrap();
    let [holder] = &holders[..] else { panic!("{holders:?}") };
    assert_eq!((holder.kind, holder.mode), (Kind::Record, Mode::Exclusive));
    assert_eq!((holder.range, pids(holder)), (ByteRange::FIRST, vec![helper.pid()]));
    let command = fs::read_to_string(format!("/proc/{}/comm", helper.pid())).unwrap();
    let line =
        format!("pid {} {:?} (exclusive, byte 0, record lock)", helper.pid(), command.trim());
    assert_eq!(holder.to_string(), line);
}

#[test]
fn an_ofd_lock_is_found_through_any_name_of_its_file() {
    let (dir, path) = lock_file();
    let helper = Helper::start(OFD, &path);
    let [link, hard] = ["link", "hard"].map(|name| dir.path().join(name));
    symlink(&path, &link).unwrap();
    fs::hard_link(&path, &hard).unwrap();
    for name in [path, link, hard] {
        let holders = holders_of(&name).unwrap();
        let [holder] = &holders[..] else { panic!("{holders:?}") };
        assert_eq!((holder.kind, holder.mode), (Kind::Ofd, Mode::Exclusive));
        assert_eq!(pids(holder), [helper.pid()]);
        assert!(holder.to_string().ends_with("(exclusive, byte 0, OFD lock)"));
    }
}

#[test]
fn equal_locks_of_two_processes_are_two_holders() {
    let (_dir, path) = lock_file();
    let helpers = [0; 2].map(|_| Helper::start(OFD_SHARED, &path));
    let mut found: Vec<_> = holders_of(&path).unwrap().iter().map(pids).collect();
    found.sort();
    let mut expected = helpers.map(|helper| vec![helper.pid()]);
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn equal_locks_of_one_process_are_two_holders() {
    let (_dir, path) = lock_file();
    let files = [0; 2].map(|_| open(&path));
    files.iter().for_each(|file| lock(file, OFD_SHARED).unwrap());
    let found: Vec<_> = holders_of(&path).unwrap().iter().map(pids).collect();
    assert_eq!(found.len(), 2);
    // A parallel test may be starting a helper, which has all our descriptors until its exec.
    assert!(found.iter().all(|pids| pids.contains(&std::process::id())), "{found:?}");
}

#[test]
fn a_forked_child_is_named_beside_its_parent() {
    let (_dir, path) = lock_file();
    let helper = Helper::start(OFD_FORKED, &path);
    let holders = holders_of(&path).unwrap();
    let [holder] = &holders[..] else { panic!("{holders:?}") };
    let mut expected = vec![helper.pid(), helper.child.unwrap()];
    expected.sort();
    assert_eq!(pids(holder), expected);
    assert!(holder.to_string().contains(" and pid "));
}

#[test]
fn a_waiter_is_no_holder() {
    let (_dir, path) = lock_file();
    let holding = Helper::start(OFD, &path);
    let _waiting = Helper::start(OFD_WAITING, &path);
    let ino = rustix::fs::stat(&path).unwrap().st_ino;
    let waits = |line: &str| line.contains(" -> ") && line.contains(&format!(":{ino} "));
    while !fs::read_to_string("/proc/locks").unwrap().lines().any(waits) {
        std::thread::yield_now();
    }
    let found: Vec<_> = holders_of(&path).unwrap().iter().map(pids).collect();
    assert_eq!(found, [[holding.pid()]]);
}

#[test]
fn looking_drops_no_record_lock_of_this_process() {
    let (_dir, path) = lock_file();
    let file = open(&path);
    lock(&file, RECORD).unwrap();
    for _ in 0..2 {
        let holders = holders_of(&path).unwrap();
        let [holder] = &holders[..] else { panic!("{holders:?}") };
        assert_eq!((holder.kind, pids(holder)), (Kind::Record, vec![std::process::id()]));
    }
    // What the module avoids: any close of the file does drop it.
    drop(File::open(&path).unwrap());
    assert_eq!(holders_of(&path).unwrap(), []);
}

#[test]
fn a_path_that_leads_nowhere_is_an_error() {
    let (dir, path) = lock_file();
    let cycle = dir.path().join("cycle");
    symlink(&cycle, &cycle).unwrap();
    for (path, errno) in [
        (dir.path().join("missing"), Some(libc::ENOENT)),
        ("".into(), Some(libc::ENOENT)),
        (path.join("below"), Some(libc::ENOTDIR)),
        (cycle, Some(libc::ELOOP)),
        ("a\0b".into(), Some(libc::EINVAL)),
    ] {
        assert_eq!(holders_of(&path).unwrap_err().raw_os_error(), errno, "{path:?}");
    }
}

#[test]
fn who_may_not_look_is_told_of_an_unknown_process() {
    if !rustix::process::geteuid().is_root() {
        return skip_or_fail("another user", "this is not root");
    }
    let (dir, path) = lock_file();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    let _helper = Helper::start(OFD, &path);
    let look = move || {
        let nobody = rustix::process::Uid::from_raw(65534);
        // Of this thread alone.
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody)?;
        holders_of(&path)
    };
    let holders = std::thread::spawn(look).join().unwrap().unwrap();
    let [holder] = &holders[..] else { panic!("{holders:?}") };
    assert_eq!(holder.by, HeldBy::Unknown);
    assert_eq!(holder.to_string(), "an unknown process (exclusive, byte 0, OFD lock)");
}

#[test]
fn a_file_whose_stat_names_another_device_than_its_locks_is_found() {
    let (dir, path) = lock_file();
    let in_overlay = move || {
        // The upper side is another file system than the lower one, so `stat` tells the lower's
        // own device, and the lock tables tell the overlay's.
        let [upper, merged] = ["upper", "merged"].map(|name| dir.path().join(name));
        [&upper, &merged].iter().for_each(|dir| fs::create_dir(dir).unwrap());
        // SAFETY: only this thread's mounts become its own.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        mount("none", &upper, "tmpfs", MountFlags::empty(), None)?;
        ["u", "w"].iter().for_each(|name| fs::create_dir(upper.join(name)).unwrap());
        let [lower, upper] = [dir.path(), &upper].map(|dir| dir.to_str().unwrap());
        let options = format!("lowerdir={lower},upperdir={upper}/u,workdir={upper}/w");
        mount("none", &merged, "overlay", MountFlags::empty(), &*CString::new(options).unwrap())?;

        let name = merged.join(path.file_name().unwrap());
        let file = File::open(&name).unwrap();
        lock(&file, OFD_SHARED).unwrap();
        assert_eq!(holders_of(&name).unwrap().len(), 1);
        // The file below the overlay is another one.
        assert_eq!(holders_of(&path).unwrap(), []);
        rustix::io::Result::Ok(())
    };
    if let Err(error) = std::thread::spawn(in_overlay).join().unwrap() {
        skip_or_fail("an overlay of our own", &error.to_string());
    }
}
