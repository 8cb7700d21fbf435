//! What LXC's `lxclock` does, by this crate's verbs, and beside a real liblxc.
//!
//! liblxc exports none of its lock functions. But `save_config` and `load_config` of a container
//! take the container's lock on disk, so a small C program that calls them stands for LXC here. Its
//! lock file is `/run/lxc/lock/LXCPATH/.NAME` for root, all bytes, with `F_OFD_SETLKW`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::alone::alone;
use crate::support::forked::{Gate, fork};
use crate::support::interop::{require_tool, skip_or_fail};
use crate::support::locks::{held, held_at};
use crate::support::process::is_root;
use crate::support::waits::{LONG, program_blocks_in, start};
use lockspace::{
    AcquireError, Builder, ByteRange, Lease, LockSpace, Mode, Naming, OwnerId, ReleaseError,
    Request, Wait,
};
use tempfile::TempDir;

const ME: OwnerId = OwnerId::new(1);
const OTHER: OwnerId = OwnerId::new(2);
const CONTAINER: &str = "lockspace-test";
const LOCK: &str = ".lockspace-test";

fn lxc_naming(dir: impl Into<PathBuf>) -> Builder {
    LockSpace::builder(Naming::verbatim(dir.into())).range(ByteRange::WHOLE_FILE)
}

fn exclusive(space: &LockSpace, owner: OwnerId, wait: Wait) -> Result<Lease, AcquireError> {
    space.acquire(owner, Request::exclusive(LOCK), wait)
}

/// The anonymous lock, which excludes threads, and the named one, which excludes processes.
#[test]
fn a_lock_in_memory_and_one_on_disk_are_taken_together_in_order() {
    let dir = TempDir::new().unwrap();
    let memory = LockSpace::open(Naming::in_memory()).unwrap();
    let disk = lxc_naming(dir.path()).open().unwrap();
    disk.create(LOCK).unwrap();
    let both = {
        let (memory, disk) = (memory.clone(), disk.clone());
        move |owner, wait: Wait| -> Result<_, AcquireError> {
            let first = exclusive(&memory, owner, wait.clone())?;
            Ok((exclusive(&disk, owner, wait)?, first))
        }
    };
    let leases = both(ME, Wait::FOREVER).unwrap();
    let second = start({
        let both = both.clone();
        move || both(OTHER, Wait::within(LONG)).map(drop)
    });
    let second = second.sleeps();
    assert_eq!(disk.list()[0].owners.len(), 1);
    assert_eq!(held(&dir.path().join(LOCK)), Some(Mode::Exclusive));
    drop(leases);
    second.join().unwrap();
    assert_eq!((memory.list(), disk.list()), (vec![], vec![]));

    // If the second is refused, the first is given back.
    let other = lxc_naming(dir.path()).open().unwrap();
    let lease = exclusive(&other, OTHER, Wait::NO).unwrap();
    assert!(matches!(both(ME, Wait::NO), Err(AcquireError::Busy(_))));
    assert_eq!(memory.list(), []);
    drop(lease);
    assert!(dir.path().join(LOCK).exists(), "LXC's lock files stay");
}

// LXC's locktests.c.

#[test]
fn an_anonymous_lock_is_taken_and_given_back() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    for wait in [Wait::NO, Wait::FOREVER, Wait::within(LONG)] {
        let lease = exclusive(&space, ME, wait).unwrap();
        assert!(lease.path().as_os_str().is_empty());
        lease.release().unwrap();
    }
}

#[test]
fn a_lock_that_is_taken_is_refused_to_a_second_one_after_its_timeout() {
    let dir = TempDir::new().unwrap();
    let disk = lxc_naming(dir.path()).open().unwrap();
    disk.create(LOCK).unwrap();
    for space in [LockSpace::open(Naming::in_memory()).unwrap(), disk] {
        let _lease = exclusive(&space, ME, Wait::NO).unwrap();
        // Timeouts are not for the anonymous kind only.
        let started = Instant::now();
        let wait = Wait::within(Duration::from_millis(200));
        assert!(matches!(exclusive(&space, OTHER, wait), Err(AcquireError::Busy(_))));
        assert!(started.elapsed() >= Duration::from_millis(200));
    }
}

#[test]
fn two_processes_exclude_each_other_by_a_named_lock() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let space = lxc_naming(dir.path()).open().unwrap();
        space.create(LOCK).unwrap();
        let (ready, go) = (Gate::new(), Gate::new());
        let child = fork(|| {
            let space = lxc_naming(dir.path()).open().unwrap();
            let lease = exclusive(&space, ME, Wait::FOREVER).unwrap();
            ready.open();
            go.wait();
            drop(lease);
        });
        ready.wait();
        // All its bytes.
        let file = dir.path().join(LOCK);
        assert_eq!([0, 1, 1 << 40].map(|at| held_at(&file, at)), [Some(Mode::Exclusive); 3]);
        let started = Instant::now();
        let wait = Wait::within(Duration::from_millis(200));
        assert!(matches!(exclusive(&space, ME, wait), Err(AcquireError::Busy(_))));
        assert!(started.elapsed() >= Duration::from_millis(200));
        let waiting = start({
            let space = space.clone();
            move || exclusive(&space, ME, Wait::FOREVER)
        });
        let waiting = waiting.watches();
        go.open();
        drop(waiting.join().unwrap());
        child.join();
        assert!(file.exists());
    });
}

/// LXC answers so with -2.
#[test]
fn who_does_not_hold_a_lock_cannot_unlock_it() {
    let dir = TempDir::new().unwrap();
    let space = lxc_naming(dir.path()).open().unwrap();
    space.create(LOCK).unwrap();
    exclusive(&space, ME, Wait::NO).unwrap().keep();
    let other = lxc_naming(dir.path()).open().unwrap();
    for refused in [space.release(OTHER, LOCK), other.release(ME, LOCK), space.release(ME, ".x")] {
        assert!(matches!(refused, Err(ReleaseError::NotHeld { .. })), "{refused:?}");
    }
    assert_eq!(held(&dir.path().join(LOCK)), Some(Mode::Exclusive));
    space.release(ME, LOCK).unwrap();
    assert!(matches!(space.release(ME, LOCK), Err(ReleaseError::NotHeld { .. })));
}

// A real liblxc.

/// For each byte that it reads, it takes the container's lock on disk once, and says how that went.
const PROGRAM: &str = r#"
#include <lxc/lxccontainer.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct lxc_container *c = lxc_container_new(argv[1], argv[2]);
    if (!c) return 2;
    puts("ready"); fflush(stdout);
    int what;
    while ((what = getchar()) != EOF) {
        puts((what == 's' ? c->save_config : c->load_config)(c, NULL) ? "done" : "failed");
        fflush(stdout);
    }
    lxc_container_put(c);
    return 0;
}
"#;

/// The C program, and LXC's folder of lock files for it, which goes with this.
struct Lxc {
    program: PathBuf,
    lxcpath: PathBuf,
    locks: PathBuf,
    _dir: TempDir,
}

impl Lxc {
    /// `None` after saying why not.
    fn build() -> Option<Self> {
        if !is_root() {
            skip_or_fail("liblxc", "its lock files in /run/lxc are root's");
            return None;
        }
        let compiler = require_tool("cc")?;
        let dir = TempDir::new().unwrap();
        let (source, program) = (dir.path().join("lxc.c"), dir.path().join("lxc"));
        fs::write(&source, PROGRAM).unwrap();
        let mut compile = Command::new(compiler);
        let compiled = compile.arg(&source).arg("-o").arg(&program).arg("-llxc").output().unwrap();
        if !compiled.status.success() {
            skip_or_fail("liblxc", &String::from_utf8_lossy(&compiled.stderr));
            return None;
        }
        let lxcpath = dir.path().join("containers");
        fs::create_dir_all(lxcpath.join(CONTAINER)).unwrap();
        let locks = PathBuf::from(format!("/run/lxc/lock/{}", lxcpath.display()));
        Some(Self { program, lxcpath, locks, _dir: dir })
    }

    fn start(&self) -> Running {
        let mut program = Command::new(&self.program);
        program.arg(CONTAINER).arg(&self.lxcpath).stderr(Stdio::null());
        let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let said = child.stdout.take().unwrap();
        let mut running = Running { child, said };
        assert_eq!(running.line(), "ready");
        running
    }
}

impl Drop for Lxc {
    fn drop(&mut self) {
        // With the folder above it, which has the name of the temporary one.
        let _ = fs::remove_dir_all(self.locks.parent().unwrap());
    }
}

struct Running {
    child: Child,
    said: std::process::ChildStdout,
}

impl Running {
    /// Lets it save, or load, the container's config, under its lock.
    fn ask(&mut self, what: u8) {
        self.child.stdin.as_mut().unwrap().write_all(&[what]).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.said.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    fn is_in_the_lock_call(&self) {
        program_blocks_in(self.child.id(), libc::SYS_fcntl);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn liblxc_waits_while_this_crate_holds_its_lock() {
    let Some(lxc) = Lxc::build() else { return };
    let mut running = lxc.start();
    let space = lxc_naming(&lxc.locks).open().unwrap();
    space.create(LOCK).unwrap();
    let config = lxc.lxcpath.join(CONTAINER).join("config");
    for _ in 0..3 {
        let lease = exclusive(&space, ME, Wait::within(LONG)).unwrap();
        let _ = fs::remove_file(&config);
        running.ask(b's');
        running.is_in_the_lock_call();
        assert!(!config.exists(), "it went on without the lock");
        drop(lease);
        assert_eq!(running.line(), "done");
        assert!(config.exists());

        let lease = exclusive(&space, ME, Wait::within(LONG)).unwrap();
        running.ask(b'l');
        running.is_in_the_lock_call();
        drop(lease);
        assert_eq!(running.line(), "done");
    }
    assert!(lxc.locks.join(LOCK).exists());
}

/// liblxc holds its lock while it writes the container's config: that is a FIFO here, so it holds
/// the lock until somebody reads.
#[test]
fn this_crate_waits_while_liblxc_holds_its_lock() {
    let Some(lxc) = Lxc::build() else { return };
    let config = lxc.lxcpath.join(CONTAINER).join("config");
    let mut running = lxc.start();
    let space = lxc_naming(&lxc.locks).open().unwrap();
    space.create(LOCK).unwrap();
    make_fifo(&config);
    running.ask(b's');
    // It opens that under its lock. Not asked by tries for the lock, which would meet its own.
    program_blocks_in(running.child.id(), libc::SYS_openat);
    assert_eq!(held(&lxc.locks.join(LOCK)), Some(Mode::Exclusive));
    let refused = exclusive(&space, ME, Wait::NO);
    let Err(AcquireError::Busy(busy)) = &refused else { panic!("{refused:?}") };
    assert_eq!((busy.held(), busy.path()), (None, &*lxc.locks.join(LOCK)));
    let holders: Vec<_> = space.holders(LOCK).unwrap().iter().map(ToString::to_string).collect();
    let pid = running.child.id().to_string();
    assert!(holders.iter().any(|holder| holder.contains(&pid)), "{holders:?}");

    let waiting = start({
        let space = space.clone();
        move || exclusive(&space, ME, Wait::within(LONG))
    });
    let waiting = waiting.watches();
    // It writes its config, and gives the lock back.
    drain(&config);
    let lease = waiting.join().unwrap();
    lease.verify().unwrap();
    drop(lease);
}

fn make_fifo(path: &Path) {
    let _ = fs::remove_file(path);
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
}

/// Reads what is written, until the writer closes.
fn drain(path: &Path) {
    let mut text = Vec::new();
    File::open(path).unwrap().read_to_end(&mut text).unwrap();
}
