//! A file system whose `open` never answers, until it is told to; or another call, by choice.
//!
//! It speaks the FUSE protocol itself, over `/dev/fuse`: a dozen requests, no library. It must run
//! as root, since it calls mount(2).
//!
//! The files: every name that is looked up exists, as an empty regular file of root, mode 0666,
//! with an inode of its own that stays; all are in the root directory, mode 0777, whose listing is
//! empty. Attributes are cached for a day, so `stat` of a known name asks nobody. `open` with
//! `O_PATH` asks nobody either (but see [`HungFs::mount_answering`]). The kernel handles locks by
//! itself. Nothing else works (`unlink`,
//! `mkdir`, `rename`, `link`: ENOSYS).
//!
//! # A parked `open` is a trap
//!
//! A thread in it cannot be killed, and a process with such a thread cannot exit: it would wait for
//! its own server, for ever. So nothing here relies on `/dev/fuse` being closed at exit:
//! - [`HungFs`]'s drop answers all, aborts the connection, unmounts and joins, also when a panic
//!   unwinds. Drop it *before* joining threads that may be stuck: declare it after them, or call
//!   [`HungFs::answer_all`] first; with `thread::scope`, create it inside the scope's closure.
//! - If the process dies otherwise (killed, aborted), a watchdog of its own, a small shell, sees it
//!   within a fifth of a second and does the same.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{self, Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

use super::alone::is_alone;
use super::interop::skip_or_fail;

/// Names that begin so have their first lookup parked too, not only their open.
///
/// While one is parked, the kernel holds the directory's lock shared: whoever would change the
/// directory (`O_CREAT`, `unlink`) may be stuck too; plain opens and stats of other names go on.
pub(crate) const LOOKUP_HANGS: &str = "lookup-hang";

/// No test waits longer than this for a request to be parked: it fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The file system, or `None` after saying why not. Its drop, also by a failed assertion, frees
/// the stuck threads.
///
/// For a test that runs [`alone`](super::alone::alone): a forked child of another test would share
/// the descriptors on it, and be stuck with them when it ends.
#[track_caller]
pub(crate) fn hung_fs() -> Option<HungFs> {
    assert!(is_alone());
    HungFs::mount().map_err(|why| skip_or_fail("a FUSE file system", &why)).ok()
}

/// One of which nothing hangs yet. What a failed test leaves open on it must be leaked: a close may
/// hang until its drop, and fails after that.
#[track_caller]
pub(crate) fn answering_fs() -> Option<HungFs> {
    assert!(is_alone());
    HungFs::mount_answering().map_err(|why| skip_or_fail("a FUSE file system", &why)).ok()
}

/// The file system, mounted until this is dropped.
#[derive(Debug)]
pub(crate) struct HungFs {
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
    /// The connection's `abort` in fusectl: whatever is written there ends it.
    abort: File,
    watchdog: Child,
    folder: TempDir,
}

impl HungFs {
    /// Mounts it in a temporary directory. The error says why FUSE is not possible here.
    pub(crate) fn mount() -> Result<HungFs, String> {
        Self::mount_with(
            State { hangs: vec![(Kind::Open, 0), (Kind::Lookup, 0)], parked: vec![] },
            A_DAY,
        )
    }

    /// The same, but nothing hangs yet, and names and attributes are cached for no time: whatever
    /// needs them, such as a check of permissions, asks.
    pub(crate) fn mount_answering() -> Result<HungFs, String> {
        Self::mount_with(State::default(), 0)
    }

    fn mount_with(state: State, cached: u64) -> Result<HungFs, String> {
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .map_err(|e| format!("/dev/fuse: {e}"))?;
        let folder = TempDir::with_prefix("hung-fs-").map_err(|e| format!("tempdir: {e}"))?;
        let options = format!(
            "fd={},rootmode=40777,user_id=0,group_id=0,allow_other,default_permissions",
            device.as_raw_fd()
        );
        let options = CString::new(options).expect("no NUL in it");
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("hung-fs", folder.path(), "fuse", flags, &*options)
            .map_err(|e| format!("mount of fuse: {e}"))?;

        let shared =
            Arc::new(Shared { device, cached, state: Mutex::new(state), parked: Condvar::new() });
        let server = thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.serve()
        });
        let guards = open_abort(folder.path()).and_then(|abort| {
            let watchdog = spawn_watchdog(&abort, folder.path())?;
            Ok((abort, watchdog))
        });
        match guards {
            Ok((abort, watchdog)) => {
                Ok(HungFs { shared, server: Some(server), abort, watchdog, folder })
            }
            Err(e) => {
                // Nothing can be open on it yet, so this ends the connection and with it the server.
                let _ = unmount(folder.path(), UnmountFlags::DETACH);
                let _ = server.join();
                Err(e)
            }
        }
    }

    /// The mount point.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Blocks until at least `n` opens are parked, and fails after a minute.
    #[track_caller]
    pub(crate) fn wait_for_open(&self, n: usize) {
        self.shared.wait_for(Kind::Open, n);
    }

    /// Blocks until at least `n` lookups are parked (see [`LOOKUP_HANGS`]), and fails after a minute.
    #[track_caller]
    pub(crate) fn wait_for_lookup(&self, n: usize) {
        self.shared.wait_for(Kind::Lookup, n);
    }

    /// From now on whoever closes a file hangs.
    pub(crate) fn hang_closes(&self) {
        self.shared.state().hangs.push((Kind::Close, 0));
    }

    /// From now on whoever follows a path through it hangs, after so many have been let through.
    pub(crate) fn hang_names(&self, after: usize) {
        self.shared.state().hangs.push((Kind::Name, after));
    }

    /// From now on whoever needs the attributes of a file hangs, after so many have been told them.
    pub(crate) fn hang_attributes(&self, after: usize) {
        self.shared.state().hangs.push((Kind::Attributes, after));
    }

    /// Blocks until at least `n` closes are parked, and fails after a minute.
    #[track_caller]
    pub(crate) fn wait_for_close(&self, n: usize) {
        self.shared.wait_for(Kind::Close, n);
    }

    /// Blocks until at least `n` who need attributes are parked, and fails after a minute.
    #[track_caller]
    pub(crate) fn wait_for_attributes(&self, n: usize) {
        self.shared.wait_for(Kind::Attributes, n);
    }

    /// Answers every parked request, and from now on every request at once, with success.
    pub(crate) fn answer_all(&self) {
        self.shared.answer_all();
    }
}

impl Drop for HungFs {
    fn drop(&mut self) {
        self.answer_all();
        // Files may still be open here or in a forked child, so unmounting alone would end nothing.
        let aborted = self.abort.write_all(b"1");
        let unmounted = unmount(self.folder.path(), UnmountFlags::DETACH);
        let _ = self.watchdog.kill();
        let _ = self.watchdog.wait();
        if aborted.is_ok()
            && let Some(server) = self.server.take()
        {
            let _ = server.join();
        }
        if !thread::panicking() {
            aborted.expect("the FUSE connection is aborted");
            unmounted.expect("the mount point is unmounted");
        }
    }
}

/// Opens the connection's `abort`, through a mount of fusectl that is gone again on return.
fn open_abort(mount_point: &Path) -> Result<File, String> {
    // The connection's name is its device number, and an anonymous device's major is 0.
    let device = mount_point.metadata().map_err(|e| format!("stat of the mount point: {e}"))?.dev();
    let control = TempDir::with_prefix("hung-fs-").map_err(|e| format!("tempdir: {e}"))?;
    mount("fusectl", control.path(), "fusectl", MountFlags::empty(), None)
        .map_err(|e| format!("mount of fusectl: {e}"))?;
    let abort = File::options()
        .write(true)
        .open(control.path().join(format!("{device}/abort")))
        .map_err(|e| format!("fusectl: abort of connection {device}: {e}"));
    let unmounted = unmount(control.path(), UnmountFlags::DETACH);
    unmounted.map_err(|e| format!("unmount of fusectl: {e}"))?;
    abort
}

/// Starts the shell that ends the connection and the mount when this process is gone without doing
/// so. Gone means that its main thread is: others may be stuck, and hold every descriptor open.
fn spawn_watchdog(abort: &File, mount_point: &Path) -> Result<Child, String> {
    const SCRIPT: &str = "while [ -e /proc/$1/exe ]; do sleep 0.2; done
        echo 1; umount -l \"$2\"; rmdir \"$2\"";
    let abort = abort.try_clone().map_err(|e| format!("dup: {e}"))?;
    Command::new("/bin/sh")
        .args(["-c", SCRIPT, "hung-fs-watchdog"])
        .arg(process::id().to_string())
        .arg(mount_point)
        .current_dir("/")
        .process_group(0) // a terminal's Ctrl-C is not for it
        .stdin(Stdio::null())
        .stdout(abort)
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("/bin/sh: {e}"))
}

#[derive(Debug)]
struct Shared {
    device: File,
    /// For how many seconds the kernel may believe attributes.
    cached: u64,
    state: Mutex<State>,
    parked: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What hangs, each after so many that are answered.
    hangs: Vec<(Kind, usize)>,
    parked: Vec<Parked>,
}

#[derive(Debug)]
struct Parked {
    kind: Kind,
    unique: u64,
    answer: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Lookup,
    Name,
    Open,
    Close,
    Attributes,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    fn wait_for(&self, kind: Kind, n: usize) {
        let missing =
            |state: &mut State| state.parked.iter().filter(|p| p.kind == kind).count() < n;
        let (state, timeout) = self
            .parked
            .wait_timeout_while(self.state(), PATIENCE, missing)
            .unwrap_or_else(PoisonError::into_inner);
        let now = format!("{:?}", state.parked);
        drop(state);
        assert!(!timeout.timed_out(), "no {n} of {kind:?} parked: {now}");
    }

    fn answer_all(&self) {
        let mut state = self.state();
        state.hangs.clear();
        for Parked { unique, answer, .. } in state.parked.drain(..) {
            self.reply(unique, Ok(answer));
        }
    }

    fn park(&self, kind: Kind, unique: u64, answer: Vec<u8>) {
        let mut state = self.state();
        match state.hangs.iter_mut().find(|(hangs, _)| *hangs == kind) {
            Some((_, 0)) => {
                state.parked.push(Parked { kind, unique, answer });
                self.parked.notify_all();
            }
            Some((_, answered)) => {
                *answered -= 1;
                self.reply(unique, Ok(answer));
            }
            None => self.reply(unique, Ok(answer)),
        }
    }

    /// Sends one answer. It fails where the kernel has given up the request: nobody's business.
    fn reply(&self, unique: u64, answer: Result<Vec<u8>, Errno>) {
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(errno) => (-errno.raw_os_error(), Vec::new()),
        };
        let length = u32::try_from(16 + body.len()).expect("a short answer");
        let message =
            Message::default().u32(length).u32(error.cast_unsigned()).u64(unique).bytes(&body);
        let _ = (&self.device).write(&message.0);
    }

    /// The server: one request after the other, until the connection ends.
    fn serve(&self) {
        let mut inodes = BTreeMap::<Vec<u8>, u64>::new();
        let mut buffer = vec![0; 128 * 1024]; // FUSE wants room for max_write and a header, 8 KiB at least
        loop {
            match (&self.device).read(&mut buffer) {
                Ok(length) => self.handle(&buffer[..length], &mut inodes),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {} // given up before it was read
                Err(_) => return,                                   // ENODEV: aborted, or unmounted
            }
        }
    }

    /// Answers or parks one request (`struct fuse_in_header`, then the operation's own).
    fn handle(&self, request: &[u8], inodes: &mut BTreeMap<Vec<u8>, u64>) {
        let u32_at = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("4"));
        let u64_at = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().expect("8"));
        let (opcode, unique, node, body) = (u32_at(4), u64_at(8), u64_at(16), &request[40..]);
        let empty = Message::default;
        let answer = match opcode {
            LOOKUP => {
                let name = body.strip_suffix(b"\0").unwrap_or(body);
                let next = ROOT + 1 + inodes.len() as u64;
                let inode = *inodes.entry(name.to_vec()).or_insert(next);
                let entry = empty()
                    .u64(inode)
                    .u64(0) // generation
                    .u64(self.cached) // the name's
                    .u64(self.cached) // the attributes'
                    .u64(0) // nanoseconds of both
                    .attributes(inode);
                if name.starts_with(LOOKUP_HANGS.as_bytes()) {
                    return self.park(Kind::Lookup, unique, entry.0);
                }
                return self.park(Kind::Name, unique, entry.0);
            }
            OPEN => return self.park(Kind::Open, unique, empty().zeros(16).0),
            GETATTR | SETATTR => {
                let attributes = empty().u64(self.cached).u64(0).attributes(node);
                if node != ROOT {
                    return self.park(Kind::Attributes, unique, attributes.0);
                }
                attributes
            }
            FLUSH => return self.park(Kind::Close, unique, Vec::new()),
            INIT => empty()
                .u32(7) // the protocol's version
                .u32(u32_at(44).min(31))
                .u32(0) // max_readahead
                // No FUSE_POSIX_LOCKS: the kernel does locks by itself.
                .u32(u32_at(52) & PARALLEL_DIROPS)
                .u32(0) // background requests: the kernel's default
                .u32(4096) // max_write
                .zeros(40),
            STATFS => empty().zeros(40).u32(4096).u32(255).u32(4096).zeros(28),
            OPENDIR => empty().zeros(16),
            READ | READDIR | RELEASE | RELEASEDIR | DESTROY => empty(),
            FORGET | BATCH_FORGET | INTERRUPT => return, // want no answer
            _ => return self.reply(unique, Err(Errno::NOSYS)), // ACCESS, ...: the kernel does without
        };
        self.reply(unique, Ok(answer.0));
    }
}

// include/uapi/linux/fuse.h
const ROOT: u64 = 1;
const PARALLEL_DIROPS: u32 = 1 << 18; // a parked lookup does not stop the others
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const OPEN: u32 = 14;
const READ: u32 = 15;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25; // a close
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// How long the kernel may believe what it was told, in seconds.
const A_DAY: u64 = 24 * 60 * 60;

/// Bytes for the kernel, in its own order.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_ne_bytes())
    }

    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    /// `struct fuse_attr`: the directory, or an empty file.
    fn attributes(self, inode: u64) -> Self {
        let (mode, links) = match inode {
            ROOT => (0o040_777, 2),
            _ => (0o100_666, 1),
        };
        self.u64(inode)
            .zeros(5 * 8 + 3 * 4) // size, blocks, times and their nanoseconds
            .u32(mode)
            .u32(links)
            .zeros(3 * 4) // uid, gid, rdev
            .u32(4096) // block size
            .u32(0) // flags
    }
}

/// True if `folder` is the mount point of anything (for tests of this module).
pub(crate) fn is_mounted(folder: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc is mounted");
    let folder = folder.to_str().expect("UTF-8");
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(folder))
}
