//! Beside the other programs that lock images: QEMU, and whoever sets record locks, as libvirt's
//! lock daemon does.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use crate::support::forked::{Forked, Gate, exit_now, fork};
use crate::support::interop::require_tool;
use crate::support::locks::{Kind, Lock, is_free_for_others, open, set_lock};
use crate::support::spaces::direct;
use lockspace::{
    AcquireError, ByteRange, HeldBy, Holder, Kind as HolderKind, Mode, OwnerId, Request, Target,
    Wait, holders_of,
};
use rustix::fs::FlockOperation;
use tempfile::TempDir;

const OWNER: OwnerId = OwnerId::new(1);

#[track_caller]
fn assert_held_outside<T: std::fmt::Debug>(refused: Result<T, AcquireError>) {
    match refused {
        Err(AcquireError::Busy(busy)) => {
            assert_eq!(busy.held(), None);
            assert!(busy.to_string().contains("held outside this lock space"), "{busy}");
        }
        other => panic!("not refused: {other:?}"),
    }
}

/// QEMU's tools, and an image of theirs.
struct Qemu {
    img: PathBuf,
    io: PathBuf,
    dir: TempDir,
    image: PathBuf,
}

impl Qemu {
    /// `None` after saying what is missing.
    fn new() -> Option<Self> {
        let (img, io) = (require_tool("qemu-img")?, require_tool("qemu-io")?);
        let dir = TempDir::new().unwrap();
        let image = dir.path().canonicalize().unwrap().join("a.qcow2");
        let qemu = Self { img, io, dir, image };
        qemu.run(&qemu.img, &["create", "-f", "qcow2"], &[qemu.image.as_ref(), "1M".as_ref()]);
        Some(qemu)
    }

    fn output(program: &Path, args: &[&str], more: &[&OsStr]) -> Output {
        Command::new(program).args(args).args(more).stdin(Stdio::null()).output().unwrap()
    }

    /// Fails unless the program succeeds.
    #[track_caller]
    fn run(&self, program: &Path, args: &[&str], more: &[&OsStr]) -> String {
        let output = Self::output(program, args, more);
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{args:?}: {stdout}{stderr}");
        stdout
    }
}

/// A `qemu-io` that has the image open, and does as it is told.
struct QemuIo {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl QemuIo {
    /// It has written to the image once when this returns.
    fn open(qemu: &Qemu) -> Self {
        let mut child = Command::new(&qemu.io)
            .arg(&qemu.image)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut io = Self { child, stdin, stdout };
        io.write();
        io
    }

    /// Writes to the image.
    #[track_caller]
    fn write(&mut self) {
        writeln!(self.stdin, "write 0 4k").unwrap();
        let answer = self.stdout.by_ref().lines().map(Result::unwrap);
        let answer = answer.take_while(|line| !line.contains("ops;")).collect::<Vec<_>>();
        assert!(answer.iter().any(|line| line.contains("wrote 4096/4096")), "{answer:?}");
    }

    fn quit(mut self) {
        writeln!(self.stdin, "quit").unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn qemu_works_on_an_image_that_is_held() {
    let Some(qemu) = Qemu::new() else { return };
    let space = direct();
    let image = qemu.image.as_os_str();
    let lease = space.acquire(OWNER, Request::exclusive(image), Wait::NO).unwrap();

    let info = qemu.run(&qemu.img, &["info"], &[image]);
    assert!(info.contains("file format: qcow2"), "{info}");
    let wrote = qemu.run(&qemu.io, &["-c", "write -P 7 0 4k"], &[image]);
    assert!(wrote.contains("wrote 4096/4096"), "{wrote}");
    qemu.run(&qemu.img, &["snapshot", "-c", "before"], &[image]);
    let snapshots = qemu.run(&qemu.img, &["snapshot", "-l"], &[image]);
    assert!(snapshots.contains("before"), "{snapshots}");
    let overlay = qemu.dir.path().join("overlay.qcow2");
    let base = ["create", "-f", "qcow2", "-F", "qcow2", "-b"];
    qemu.run(&qemu.img, &base, &[image, overlay.as_ref()]);
    let copy = qemu.dir.path().join("copy.raw");
    qemu.run(&qemu.img, &["convert", "-O", "raw"], &[image, copy.as_ref()]);
    assert_eq!(fs::read(copy).unwrap()[..4096], [7; 4096]);
    let mut running = QemuIo::open(&qemu);
    running.write();
    running.quit();

    // And nothing of that has weakened the hold.
    lease.verify().unwrap();
    assert_held_outside(direct().acquire(OWNER, Request::shared(image), Wait::NO));
    assert!(!is_free_for_others(&qemu.image));
    lease.release().unwrap();
    assert!(is_free_for_others(&qemu.image));
}

#[test]
fn the_whole_file_held_keeps_qemu_out() {
    let Some(qemu) = Qemu::new() else { return };
    let space = direct();
    let image = qemu.image.as_os_str();
    let whole = Request::exclusive(image).range(ByteRange::WHOLE_FILE);
    let lease = space.acquire(OWNER, whole, Wait::NO).unwrap();
    let refused = Qemu::output(&qemu.io, &["-c", "write 0 4k"], &[image]);
    assert!(!refused.status.success());
    let stderr = String::from_utf8(refused.stderr).unwrap();
    assert!(stderr.contains("lock"), "{stderr}");
    lease.verify().unwrap();
    lease.release().unwrap();
    qemu.run(&qemu.io, &["-c", "write 0 4k"], &[image]);
}

#[test]
fn a_running_qemu_keeps_the_whole_file_from_us_and_not_byte_0() {
    let Some(qemu) = Qemu::new() else { return };
    let space = direct();
    let image = qemu.image.as_os_str();
    let whole = |mode| Request::new(mode, image).range(ByteRange::WHOLE_FILE);
    let mut running = QemuIo::open(&qemu);

    assert_held_outside(space.acquire(OWNER, whole(Mode::Exclusive), Wait::NO));
    running.write();
    let lease = space.acquire(OWNER, Request::exclusive(image), Wait::NO).unwrap();
    running.write();
    lease.verify().unwrap();
    lease.release().unwrap();
    running.write();
    // QEMU's locks are shared, and so leave room for a reader's.
    space.acquire(OWNER, whole(Mode::Shared), Wait::NO).unwrap().release().unwrap();

    running.quit();
    space.acquire(OWNER, whole(Mode::Exclusive), Wait::NO).unwrap().release().unwrap();
}

#[test]
fn a_shared_hold_of_the_whole_file_keeps_out_only_the_qemu_that_comes_later() {
    let Some(qemu) = Qemu::new() else { return };
    let space = direct();
    let image = qemu.image.as_os_str();
    let whole = Request::shared(image).range(ByteRange::WHOLE_FILE);
    let mut running = QemuIo::open(&qemu);
    // Beside one that writes: it is granted, and does not stop it.
    let lease = space.acquire(OWNER, whole.clone(), Wait::NO).unwrap();
    running.write();
    lease.verify().unwrap();
    running.quit();
    for options in [&["-c", "write 0 4k"][..], &["-r", "-c", "read 0 4k"]] {
        let refused = Qemu::output(&qemu.io, options, &[image]);
        assert!(!refused.status.success());
        let stderr = String::from_utf8(refused.stderr).unwrap();
        assert!(stderr.contains("Failed to get \"consistent read\" lock"), "{stderr}");
    }
    lease.verify().unwrap();
    lease.release().unwrap();
    qemu.run(&qemu.io, &["-c", "write 0 4k"], &[image]);
}

#[test]
fn a_running_qemu_is_named_with_its_bytes() {
    let Some(qemu) = Qemu::new() else { return };
    let running = QemuIo::open(&qemu);
    let is_qemu = |holder: &Holder| {
        assert_eq!((holder.mode, holder.kind), (Mode::Shared, HolderKind::Ofd));
        let HeldBy::Processes(processes) = &holder.by else { panic!("{holder}") };
        assert_eq!(processes.len(), 1, "{holder}");
        assert_eq!(processes[0].pid, running.child.id());
        assert_eq!(processes[0].command, "qemu-io");
        let last = holder.range.start() + holder.range.len().unwrap().get() - 1;
        (holder.range.start(), last)
    };
    let holders = holders_of(&qemu.image).unwrap();
    let mut bytes: Vec<_> = holders.iter().map(is_qemu).collect();
    bytes.sort();
    // What it does, and what it lets nobody else do.
    let within = |from, to| bytes.iter().any(|&(start, last)| from <= start && last <= to);
    assert!(within(100, 103) && within(200, 203), "{bytes:?}");
    assert!(bytes.iter().all(|&(start, last)| {
        (100..=103).contains(&start) && last <= 103 || (200..=203).contains(&start) && last <= 203
    }));

    // Beside our own hold, which is told by its owner.
    let space = direct();
    let target = || Target::image(&qemu.image);
    let _lease = space.acquire(OWNER, Request::exclusive(target()), Wait::NO).unwrap();
    let holders = space.holders(target()).unwrap();
    assert_eq!(holders[0].by, HeldBy::Owners(vec![OWNER]));
    let mut beside: Vec<_> = holders[1..].iter().map(is_qemu).collect();
    beside.sort();
    assert_eq!(beside, bytes);
    running.quit();
    assert_eq!(space.holders(target()).unwrap().len(), 1);
}

/// Another program, which holds a lock on the file's byte 0 until it is told to go.
struct Other {
    child: Forked,
    go: Gate,
}

impl Other {
    fn hold(path: &Path, kind: Kind, lock: Lock) -> Self {
        let [ready, go] = [Gate::new(), Gate::new()];
        let child = fork(|| {
            rustix::thread::set_name(c"other program").unwrap();
            let file = open(path);
            assert!(set_lock(&file, kind, lock, 0, 1).unwrap());
            ready.open();
            go.wait();
        });
        ready.wait();
        Self { child, go }
    }

    fn end(self) {
        self.go.open();
        self.child.join();
    }

    /// Fails unless this is the one holder.
    #[track_caller]
    fn assert_named(&self, holders: &[Holder], kind: HolderKind, mode: Mode) {
        let [holder] = holders else { panic!("{holders:?}") };
        assert_eq!((holder.kind, holder.mode), (kind, mode));
        assert_eq!(holder.range, ByteRange::FIRST);
        let HeldBy::Processes(processes) = &holder.by else { panic!("{holder}") };
        assert_eq!(processes.len(), 1, "{holder}");
        assert_eq!(processes[0].pid, self.child.pid());
        assert_eq!(processes[0].command, "other program");
    }
}

#[test]
fn another_program_gets_no_record_lock_on_byte_0_while_we_hold() {
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("a.raw");
    fs::write(&image, "").unwrap();
    let space = direct();
    let attempt = |lock| {
        let child = fork(|| {
            let granted = set_lock(open(&image), Kind::Record, lock, 0, 1).unwrap();
            exit_now(i32::from(granted));
        });
        child.join_code() == 1
    };

    let lease = space.acquire(OWNER, Request::exclusive(&image), Wait::NO).unwrap();
    assert!(!attempt(Lock::Exclusive));
    assert!(!attempt(Lock::Shared));
    lease.release().unwrap();
    let lease = space.acquire(OWNER, Request::shared(&image), Wait::NO).unwrap();
    assert!(!attempt(Lock::Exclusive));
    assert!(attempt(Lock::Shared));
    lease.verify().unwrap();
    lease.release().unwrap();
    assert!(attempt(Lock::Exclusive));
}

#[test]
fn another_program_s_lock_on_byte_0_refuses_us_and_is_named() {
    for (kind, told) in [(Kind::Record, HolderKind::Record), (Kind::Ofd, HolderKind::Ofd)] {
        let dir = TempDir::new().unwrap();
        let image = dir.path().join("a.raw");
        fs::write(&image, "").unwrap();
        let space = direct();
        let ask = |mode| space.acquire(OWNER, Request::new(mode, &image), Wait::NO);

        let other = Other::hold(&image, kind, Lock::Exclusive);
        assert_held_outside(ask(Mode::Exclusive));
        assert_held_outside(ask(Mode::Shared));
        other.assert_named(&space.holders(&image).unwrap(), told, Mode::Exclusive);
        other.assert_named(&holders_of(&image).unwrap(), told, Mode::Exclusive);
        other.end();
        ask(Mode::Exclusive).unwrap().release().unwrap();

        let other = Other::hold(&image, kind, Lock::Shared);
        assert_held_outside(ask(Mode::Exclusive));
        other.assert_named(&space.holders(&image).unwrap(), told, Mode::Shared);
        let lease = ask(Mode::Shared).unwrap();
        let holders = space.holders(&image).unwrap();
        assert_eq!(holders[0].by, HeldBy::Owners(vec![OWNER]));
        other.assert_named(&holders[1..], told, Mode::Shared);
        lease.release().unwrap();
        other.end();
        assert_eq!(space.holders(&image).unwrap(), []);
    }
}

#[test]
fn a_flock_excludes_nothing_here() {
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("a.raw");
    fs::write(&image, "").unwrap();
    let file = File::open(&image).unwrap();
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    let space = direct();
    let lease = space.acquire(OWNER, Request::exclusive(&image), Wait::NO).unwrap();
    assert_eq!(space.holders(&image).unwrap().len(), 1);
    lease.verify().unwrap();
}

/// As virtlockd holds it: a record lock on byte 0 of `DIR/SHA256(path)`.
#[cfg(feature = "sha256")]
#[test]
fn a_lock_of_libvirt_s_lock_daemon_refuses_us() {
    use lockspace::{LockSpace, Naming};

    let dir = TempDir::new().unwrap();
    // printf /img/a.qcow2 | sha256sum
    let path = dir.path().join(SHA256_OF_IMAGE);
    fs::write(&path, "").unwrap();
    let space = LockSpace::open(Naming::sha256(dir.path())).unwrap();
    let ask = || space.acquire(OWNER, Request::exclusive("/img/a.qcow2").auto_create(), Wait::NO);
    let virtlockd = Other::hold(&path, Kind::Record, Lock::Exclusive);
    assert_held_outside(ask());
    assert!(path.exists());
    let holders = space.holders("/img/a.qcow2").unwrap();
    virtlockd.assert_named(&holders, HolderKind::Record, Mode::Exclusive);
    virtlockd.end();

    let lease = ask().unwrap();
    assert_eq!(lease.path(), path);
    assert!(!is_free_for_others(&path), "it would be refused as well");
    lease.release().unwrap();
}

#[cfg(feature = "sha256")]
const SHA256_OF_IMAGE: &str = "702c8ea5a72e95021434919a4e49fe0b2b5473d8c7f3a3e0bfe2c7e668c00596";
