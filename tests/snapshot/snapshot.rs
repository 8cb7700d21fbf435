//! A snapshot: what it freezes, what it writes down, and that a failed exec loses nothing.
#![allow(unsafe_code, reason = "what is done right before an exec")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use crate::support::forked::{fork, is_free_for_others};
use crate::support::hung_fs::HungFs;
use crate::support::interop::skip_or_fail;
use crate::support::process::{
    held, held_at, in_child, ofd_lock, record_lock, signals, unlock_ofd, unlock_record,
};
use crate::support::state::{closes_on_exec, descriptors, leave_behind, numbers_in, restore};
use crate::support::waits::{LONG, Waiting, eventually, start};
use lockspace::snapshot::{Document, ExecError, InvalidEntry, Snapshot, SnapshotError, carried};
use lockspace::{
    AcquireError, ByteRange, Cancel, Lease, LockSpace, Mode, Naming, Origin, OwnerId, ReleaseError,
    Request, Target, Wait,
};
use serde_json::{Value, json};

const ONE: OwnerId = OwnerId::new(1);
const TWO: OwnerId = OwnerId::new(2);

fn space_in(dir: &Path) -> LockSpace {
    LockSpace::open(Naming::verbatim(dir)).unwrap()
}

fn hold(space: &LockSpace, owner: OwnerId, mode: Mode, name: &str) -> Lease {
    space.acquire(owner, Request::new(mode, name).auto_create(), Wait::NO).unwrap()
}

fn owners(space: &LockSpace, name: &str) -> BTreeMap<OwnerId, u32> {
    let held = space.list().into_iter().find(|held| held.name == name);
    held.map(|held| held.owners).unwrap_or_default()
}

fn counts<const N: usize>(owners: [(OwnerId, u32); N]) -> BTreeMap<OwnerId, u32> {
    owners.into()
}

#[track_caller]
fn assert_frozen<T: std::fmt::Debug>(answer: Result<T, AcquireError>, name: &str) {
    match answer {
        Err(AcquireError::Frozen { name: found }) => assert_eq!(found, name),
        other => panic!("not refused as frozen: {other:?}"),
    }
}

#[track_caller]
fn assert_not_held(answer: Result<impl std::fmt::Debug, ReleaseError>) {
    assert!(matches!(answer, Err(ReleaseError::NotHeld { .. })), "{answer:?}");
}

// --- An exec that fails.

/// The numbers of all descriptors, with what is to be seen of those of a folder. The others are the
/// other tests', as a child inherits them, and not to be compared.
fn descriptors_under(dir: &Path) -> BTreeMap<i32, String> {
    let ours = |text: String| Some(text).filter(|text| text.starts_with(dir.to_str().unwrap()));
    descriptors().into_iter().map(|(n, text)| (n, ours(text).unwrap_or_default())).collect()
}

/// Takes a snapshot, fails to exec, and checks that everything is as it was. In a child, since what
/// goes wrong there ends the process.
#[track_caller]
fn exec_fails(command: impl Fn(&Path) -> Command, expected: i32) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a");
    in_child(|| {
        let space = space_in(dir.path());
        let lease = hold(&space, ONE, Mode::Exclusive, "a");
        hold(&space, TWO, Mode::Shared, "b").keep();
        let here = std::env::current_dir().unwrap();
        let before = descriptors_under(dir.path());
        for _ in 0..3 {
            let mut snapshot = Snapshot::take([&space]).unwrap();
            let numbers = numbers_in(&json!(snapshot.documents()));
            assert_eq!(numbers.len(), 2);
            let state = snapshot.carry(b"state").unwrap();
            assert!(closes_on_exec(state.try_into().unwrap()));
            let error: ExecError = snapshot.exec(&mut command(dir.path()));
            assert_eq!(error.source.raw_os_error(), Some(expected), "{error}");
            let text = error.to_string();
            assert!(text.contains("execve") && text.contains(&*error.program.to_string_lossy()));
            assert!(numbers.into_iter().all(closes_on_exec));
            // The carried file is closed again, and nothing else has come or gone.
            assert_eq!(descriptors_under(dir.path()), before);
            assert_eq!(std::env::current_dir().unwrap(), here);
            assert_eq!(held(&path), Some(Mode::Exclusive));
            assert_eq!(held(&dir.path().join("b")), Some(Mode::Shared));
            hold(&space, TWO, Mode::Exclusive, "c").release().unwrap();
        }
        lease.release().unwrap();
        assert!(!path.exists());
        assert_eq!(space.release_owner(TWO).holds, 1);
        assert_eq!(
            fs::read_dir(dir.path())
                .unwrap()
                .filter(|e| {
                    let name = e.as_ref().unwrap().file_name();
                    ["a", "b", "c"].iter().any(|other| name == *other)
                })
                .count(),
            0
        );
    });
}

#[test]
fn exec_of_a_program_that_is_missing() {
    exec_fails(|dir| Command::new(dir.join("missing")), libc::ENOENT);
}

#[test]
fn exec_of_what_is_no_program() {
    let bad = |dir: &Path| {
        let program = dir.join("program");
        fs::write(&program, b"\x7fELF no more").unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        Command::new(program)
    };
    exec_fails(bad, libc::ENOEXEC);
}

#[test]
fn exec_of_what_may_not_be_executed() {
    let file = |dir: &Path| {
        fs::write(dir.join("program"), "").unwrap();
        Command::new(dir.join("program"))
    };
    exec_fails(file, libc::EACCES);
    exec_fails(|dir| Command::new(dir), libc::EACCES);
}

#[test]
fn exec_with_too_many_arguments() {
    let long = |_: &Path| {
        let mut command = Command::new("/bin/true");
        command.arg("x".repeat(1 << 20));
        command
    };
    exec_fails(long, libc::E2BIG);
}

#[test]
fn exec_in_a_working_directory_of_its_own() {
    let moved = |dir: &Path| {
        let mut command = Command::new(dir.join("missing"));
        command.current_dir("/");
        command
    };
    exec_fails(moved, libc::ENOENT);
    let nowhere = |_: &Path| {
        let mut command = Command::new("/bin/true");
        command.current_dir("/no/such/directory");
        command
    };
    exec_fails(nowhere, libc::ENOENT);
}

#[test]
fn a_command_that_failed_once_inherits_nothing_later() {
    let dir = tempfile::tempdir().unwrap();
    in_child(|| {
        let space = space_in(dir.path());
        let _lease = hold(&space, ONE, Mode::Exclusive, "a");
        let number = |snapshot: &Snapshot| numbers_in(&json!(snapshot.documents()))[0];
        let snapshot = Snapshot::take([&space]).unwrap();
        let number = number(&snapshot);
        let mut command = Command::new(dir.path().join("program"));
        command.arg(number.to_string());
        let _ = snapshot.exec(&mut command);
        // The same command, spawned now that there is such a program.
        let script = "#!/bin/sh\n[ ! -e /proc/self/fd/$1 ]\n";
        fs::write(dir.path().join("program"), script).unwrap();
        let mode = Permissions::from_mode(0o755);
        fs::set_permissions(dir.path().join("program"), mode).unwrap();
        assert!(command.status().unwrap().success(), "it has descriptor {number}");
        assert!(closes_on_exec(number));
    });
}

#[test]
fn signals_are_as_before_after_a_failed_exec() {
    in_child(|| {
        crate::support::process::block_signals(&[libc::SIGUSR1, libc::SIGTERM]);
        let before = signals();
        // Rust ignores SIGPIPE; as a daemon wants it.
        let ignored = before.iter().find(|line| line.starts_with("SigIgn:")).unwrap();
        assert!(ignored.ends_with("1000"), "{ignored}");
        let space = LockSpace::open(Naming::in_memory()).unwrap();
        let snapshot = Snapshot::take([&space]).unwrap();
        let _ = snapshot.exec(&mut Command::new("/no/such/program"));
        assert_eq!(signals(), before);
    });
}

// --- A snapshot that is dropped.

#[test]
fn what_is_released_meanwhile_is_released_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let lease = hold(&space, ONE, Mode::Exclusive, "dropped");
    let released = hold(&space, ONE, Mode::Exclusive, "released");
    for name in ["by-name", "by-owner"] {
        for _ in 0..2 {
            hold(&space, ONE, Mode::Shared, name).keep();
        }
        hold(&space, TWO, Mode::Shared, name).keep();
    }
    let stays = hold(&space, ONE, Mode::Exclusive, "stays");

    let snapshot = Snapshot::take([&space]).unwrap();
    let before = space.list().len();
    drop(lease);
    released.release().unwrap();
    // One of two; the second; a third there never was.
    space.release(ONE, "by-name").unwrap();
    space.release(ONE, "by-name").unwrap();
    assert_not_held(space.release(ONE, "by-name"));
    assert_not_held(space.retake(ONE, "by-name"));
    // What remains of the owner's: the two holds of the other.
    assert_eq!(space.release_owner(ONE).holds, 2);
    assert_eq!(space.release_owner(ONE).holds, 0);
    assert_not_held(space.release(ONE, "by-owner"));
    assert_not_held(space.release(OwnerId::new(3), "by-owner"));
    assert_not_held(space.release(ONE, "stays"));
    assert_eq!(space.list().len(), before, "nothing has happened yet");
    for name in ["dropped", "released", "by-name", "by-owner", "stays"] {
        assert!(!is_free_for_others(&dir.path().join(name)), "{name}");
    }

    drop(snapshot);
    assert_eq!(owners(&space, "by-name"), counts([(TWO, 1)]));
    assert_eq!(owners(&space, "by-owner"), counts([(TWO, 1)]));
    assert_eq!(owners(&space, "stays"), counts([(ONE, 1)]));
    assert_eq!(space.list().len(), 3);
    assert!(!dir.path().join("dropped").exists() && !dir.path().join("released").exists());
    stays.verify().unwrap();
    assert_eq!(space.release_owner(TWO).holds, 2);
    assert_eq!(space.list().len(), 1);
}

#[test]
fn the_last_handle_and_the_leases_may_go_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    hold(&space, ONE, Mode::Exclusive, "kept").keep();
    let lease = hold(&space, ONE, Mode::Exclusive, "lease");
    let snapshot = Snapshot::take([&space]).unwrap();
    drop(space);
    drop(lease);
    assert!(!is_free_for_others(&dir.path().join("kept")));
    assert!(!is_free_for_others(&dir.path().join("lease")));
    drop(snapshot);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn keeping_and_retaking_go_on_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let lease = hold(&space, ONE, Mode::Exclusive, "a");
    hold(&space, ONE, Mode::Exclusive, "b").keep();
    let snapshot = Snapshot::take([&space]).unwrap();
    assert_not_held(space.release(ONE, "a"));
    lease.keep();
    space.release(ONE, "a").unwrap();
    // It is as good as released: nobody may have it as a lease again.
    assert_not_held(space.retake(ONE, "a"));
    let lease = space.retake(ONE, "b").unwrap();
    assert_not_held(space.release(ONE, "b"));
    assert_eq!(space.release_owner(ONE).holds, 0);
    lease.verify().unwrap();
    drop(snapshot);
    let names: Vec<_> = space.list().into_iter().map(|held| held.name).collect();
    assert_eq!(names, ["b"]);
    lease.verify().unwrap();
}

#[test]
fn tries_are_refused_and_waits_go_on_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let mut shared = hold(&space, ONE, Mode::Shared, "shared");
    let mut other = hold(&space, ONE, Mode::Exclusive, "other");
    let held = hold(&space, ONE, Mode::Exclusive, "held");
    let snapshot = Snapshot::take([&space]).unwrap();
    let request = |name| Request::shared(name).auto_create();
    assert_frozen(space.acquire(TWO, request("new"), Wait::NO), "new");
    // Also to join needs to change what is held.
    assert_frozen(space.acquire(TWO, request("shared"), Wait::NO), "shared");
    assert_frozen(shared.upgrade(Wait::NO), "shared");
    assert_frozen(other.downgrade(), "other");
    assert_frozen(space.acquire_all(TWO, [request("x"), request("y")], Wait::NO), "x");
    let soon = Wait::within(Duration::from_millis(30));
    assert_frozen(space.acquire(TWO, request("new"), soon), "new");
    let cancel = Cancel::new();
    let wait = |name: &'static str, wait: Wait| {
        let (space, request) = (space.clone(), request(name));
        start(move || space.acquire(TWO, request, wait)).sleeps_for_others()
    };
    let [new, join, queued] = ["new", "shared", "held"].map(|name| wait(name, Wait::within(LONG)));
    let cancelled = wait("other", Wait::FOREVER.unless(&cancel));
    cancel.cancel();
    let cancelled = cancelled.join();
    assert!(matches!(cancelled, Err(AcquireError::Cancelled { .. })), "{cancelled:?}");
    assert!(![&new, &join, &queued].iter().any(|wait| wait.is_finished()));
    drop(held);
    assert!(!queued.is_finished());
    drop(snapshot);
    assert_eq!(new.join().unwrap().name(), "new");
    assert_eq!(join.join().unwrap().name(), "shared");
    assert_eq!(queued.join().unwrap().name(), "held");
    shared.upgrade(Wait::NO).unwrap();
    other.downgrade().unwrap();
}

#[test]
fn what_was_released_meanwhile_is_not_taken_for_a_deadlock() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    let acquire = |request| space.acquire(ONE, request, Wait::NO).unwrap();
    let (released, mut kept) = (acquire(Request::shared("a")), acquire(Request::shared("a")));
    let other = acquire(Request::exclusive("b"));
    let snapshot = Snapshot::take([&space]).unwrap();
    drop((released, other));
    let soon = Wait::within(Duration::from_millis(20));
    assert_frozen(kept.upgrade(soon.clone()), "a");
    let requests = [Request::exclusive("b")];
    assert_frozen(space.acquire_all(ONE, requests, soon), "b");
    drop(snapshot);
    kept.upgrade(Wait::NO).unwrap();
    drop(acquire(Request::exclusive("b")));
}

#[test]
fn a_wait_that_began_before_goes_on_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let held = hold(&space, ONE, Mode::Exclusive, "a");
    // And one for what another space holds.
    let outside = space_in(dir.path());
    let theirs = hold(&outside, ONE, Mode::Exclusive, "b");
    let wait = |name: &'static str| {
        let (space, request) = (space.clone(), Request::exclusive(name).auto_create());
        start(move || space.acquire(TWO, request, Wait::within(LONG)))
    };
    let here = wait("a").sleeps_for_others();
    let there = wait("b").watches();
    let snapshot = Snapshot::take([&space]).unwrap();
    assert_eq!(json!(snapshot.documents())[0]["resources"].as_array().unwrap().len(), 1);
    drop(held);
    drop(theirs);
    // Both know of it, and sleep on: the one because the release is put off, the other because it
    // must not lock anything now.
    let waits = [here, there].map(|wait| wait.sleeps_for_others());
    drop(snapshot);
    for wait in waits {
        assert_eq!(wait.join().unwrap().owner(), TWO);
    }
}

#[test]
fn the_last_of_several_snapshots_thaws() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = ["1", "2"].map(|name| space_in(&dir.path().join(name)));
    let lease = hold(&one, ONE, Mode::Exclusive, "a");
    let first = Snapshot::take([&one, &other]).unwrap();
    let second = Snapshot::take([&one]).unwrap();
    assert_eq!((first.documents().len(), second.documents().len()), (2, 1));
    assert_eq!(first.documents()[0], second.documents()[0]);
    assert_ne!(first.documents()[1], second.documents()[0]);
    drop(lease);
    drop(first);
    assert_eq!(one.list().len(), 1);
    let request = || Request::exclusive("b").auto_create();
    assert_frozen(one.acquire(ONE, request(), Wait::NO), "b");
    let _free = other.acquire(ONE, request(), Wait::NO).unwrap();
    // A failed exec of the last one thaws, too.
    let _ = second.exec(&mut Command::new("/no/such/program"));
    assert_eq!(one.list(), []);
    one.acquire(ONE, request(), Wait::NO).unwrap().release().unwrap();
}

#[test]
fn a_release_waits_for_the_end_of_an_exec() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let lease = hold(&space, ONE, Mode::Exclusive, "leased");
    hold(&space, ONE, Mode::Exclusive, "kept").keep();
    hold(&space, TWO, Mode::Exclusive, "an owner's").keep();
    let waiting = Arc::new(Mutex::new(Vec::new()));
    let mut command = Command::new("/no/such/program");
    let last_thing = {
        let (waiting, space, mut lease) = (Arc::clone(&waiting), space.clone(), Some(lease));
        move || {
            let lease = lease.take().unwrap();
            let [kept, of_owner] = [(); 2].map(|()| space.clone());
            let releases = [
                start(move || drop(lease)),
                start(move || kept.release(ONE, "kept").unwrap()),
                start(move || assert_eq!(of_owner.release_owner(TWO).holds, 1)),
            ];
            waiting.lock().unwrap().extend(releases.map(Waiting::sleeps_for_others));
            // Nobody else waits.
            assert_eq!(space.list().len(), 3);
            assert_frozen(space.acquire(ONE, Request::shared("b").auto_create(), Wait::NO), "b");
            Ok(())
        }
    };
    // SAFETY: it runs in this process, whose other threads go on.
    unsafe { command.pre_exec(last_thing) };
    let error = Snapshot::take([&space]).unwrap().exec(&mut command);
    assert_eq!(error.source.raw_os_error(), Some(libc::ENOENT), "{error}");
    waiting.lock().unwrap().drain(..).for_each(Waiting::join);
    assert_eq!(space.list(), []);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

// --- No snapshot.

#[test]
fn the_same_space_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (space, other) = (space_in(dir.path()), space_in(dir.path()));
    let lease = hold(&space, ONE, Mode::Exclusive, "a");
    let refused = Snapshot::take([&space, &other, &space.clone()]);
    assert!(matches!(refused, Err(SnapshotError::Twice)), "{refused:?}");
    drop(lease);
    assert_eq!((space.list().len(), other.list().len()), (0, 0), "nothing is frozen");
    assert_eq!(Snapshot::take([]).unwrap().documents(), []);
}

#[test]
fn a_forked_child_takes_none_and_thaws_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let lease = hold(&space, ONE, Mode::Exclusive, "a");
    let (me, mut snapshot) = (std::process::id(), Some(Snapshot::take([&space]).unwrap()));
    fork(|| {
        let refused = Snapshot::take([&space]);
        assert!(matches!(refused, Err(SnapshotError::Forked { creator }) if creator == me));
        drop(snapshot.take());
        assert!(!is_free_for_others(&dir.path().join("a")));
    })
    .join();
    assert!(snapshot.is_some());
    assert_frozen(space.acquire(TWO, Request::shared("b").auto_create(), Wait::NO), "b");
    drop(lease);
    assert_eq!(space.list().len(), 1);
    drop(snapshot);
    assert_eq!(space.list().len(), 0);
}

#[test]
fn it_waits_for_a_thread_that_is_acquiring() {
    let hung = match HungFs::mount() {
        Ok(hung) => hung,
        Err(why) => return skip_or_fail("a FUSE file system", &why),
    };
    let space = LockSpace::open(Naming::direct()).unwrap();
    let path = hung.path().join("a.raw");
    let acquiring = thread::spawn({
        let (space, path) = (space.clone(), path.clone());
        move || space.acquire(ONE, Request::exclusive(&path), Wait::NO)
    });
    hung.wait_for_open(1);
    let (done, taken) = mpsc::channel();
    let taking = thread::spawn({
        let space = space.clone();
        move || {
            let snapshot = Snapshot::take([&space]);
            done.send(()).unwrap();
            snapshot
        }
    });
    let early = taken.recv_timeout(Duration::from_millis(200));
    assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout), "it did not wait");
    // What has not begun does not begin any more.
    assert_frozen(space.acquire(TWO, Request::shared("/dev/null"), Wait::NO), "/dev/null");
    hung.answer_all();
    let lease = acquiring.join().unwrap().unwrap();
    let snapshot = taking.join().unwrap().unwrap();
    let entry = &json!(snapshot.documents())[0]["resources"][0];
    assert_eq!(entry["name"], path.to_str().unwrap());
    drop(snapshot);
    lease.release().unwrap();
}

#[test]
fn it_is_refused_while_a_file_system_gives_no_answer_to_nobody() {
    let hung = match HungFs::mount() {
        Ok(hung) => hung,
        Err(why) => return skip_or_fail("a FUSE file system", &why),
    };
    let dir = tempfile::tempdir().unwrap();
    let (other, space) = (space_in(dir.path()), LockSpace::open(Naming::direct()).unwrap());
    let path = hung.path().join("a.raw");
    let soon = Wait::within(Duration::from_millis(50));
    let stuck = space.acquire(ONE, Request::exclusive(&path), soon);
    assert!(matches!(stuck, Err(AcquireError::Unresponsive { .. })), "{stuck:?}");
    match Snapshot::take([&other, &space]) {
        Err(SnapshotError::Unresponsive { name }) => assert_eq!(name, path),
        other => panic!("not refused: {other:?}"),
    }
    // Neither space is frozen.
    hold(&other, ONE, Mode::Exclusive, "a").release().unwrap();
    hung.answer_all();
    eventually("it settles", || Snapshot::take([&space]).is_ok());
    assert_eq!(space.list(), []);
}

// --- Documents.

#[test]
fn documents_have_libvirts_shape() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    space.create("existing").unwrap();
    let _existing = space.acquire(ONE, Request::exclusive("existing"), Wait::NO).unwrap();
    let _made = hold(&space, ONE, Mode::Exclusive, "made");
    let _shared: Vec<_> = [TWO, ONE, TWO]
        .into_iter()
        .map(|owner| hold(&space, owner, Mode::Shared, "shared"))
        .collect();
    let image = dir.path().join("image");
    fs::write(&image, "").unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();
    let _image = direct.acquire(ONE, Request::shared(&image), Wait::NO).unwrap();
    let memory = LockSpace::open(Naming::in_memory()).unwrap();
    let snapshot = Snapshot::take([&space, &direct, &memory]).unwrap();

    let mut documents = json!(snapshot.documents());
    // What libvirt's own writes, and nothing else but our one key.
    let ours: Vec<_> = documents
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .map(|document| {
            let entries = document["resources"].as_array_mut().unwrap().iter_mut();
            let entries: Vec<_> = entries.map(|entry| without(entry, "lockspace")).collect();
            (without(document, "lockspace"), entries)
        })
        .collect();
    let numbers: Vec<_> = numbers_in(&documents);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let entry = |name: String, path: String, fd: i32, flags: u32, owners: &[u64]| json!({ "name": name, "path": path, "fd": fd, "lockHeld": true, "flags": flags, "owners": owners });
    let expected = json!([
        {
            "directory": dir.path(),
            "resources": [
                entry("existing".into(), path("existing"), numbers[0], 0, &[1]),
                entry("made".into(), path("made"), numbers[1], 2, &[1]),
                entry("shared".into(), path("shared"), numbers[2], 3, &[1, 2, 2]),
            ],
        },
        { "resources": [entry(path("image"), path("image"), numbers[3], 1, &[1])] },
        { "resources": [] },
    ]);
    assert_eq!(documents, expected);
    let namings: Vec<_> = ours.iter().map(|(space, _)| space["naming"].clone()).collect();
    assert_eq!(namings, ["verbatim", "direct", "in-memory"]);
    assert_eq!(ours[0].0["version"], 1);
    assert_eq!(ours[0].0["pid"], std::process::id());
    let origins: Vec<_> = ours[0].1.iter().map(|entry| entry["origin"].clone()).collect();
    assert_eq!(origins, ["existing", "auto-created", "auto-created"]);
    // The keys are in libvirt's order, too, as people read them.
    let text = serde_json::to_string(&snapshot.documents()[0]).unwrap();
    let order = ["directory", "resources", "name", "path", "fd", "lockHeld", "flags", "owners"];
    let places: Vec<_> =
        order.iter().map(|key| text.find(&format!("\"{key}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "{text}");
}

fn without(object: &mut Value, key: &str) -> Value {
    object.as_object_mut().unwrap().remove(key).unwrap()
}

#[test]
fn a_document_that_is_read_again_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let _lease = hold(&space, OwnerId::new(u64::MAX), Mode::Exclusive, "a \"b\"\n\u{1}\u{10FFFF}");
    let snapshot = Snapshot::take([&space]).unwrap();
    let document = &snapshot.documents()[0];
    let text = serde_json::to_string(document).unwrap();
    let again: Document = serde_json::from_str(&text).unwrap();
    assert_eq!(&again, document);
    assert_eq!(again.clone(), again);
    let values: (Value, Value) = (serde_json::from_str(&text).unwrap(), json!(again));
    assert_eq!(values.0, values.1);
    let other: Document =
        serde_json::from_str(&text.replacen("18446744073709551615", "5", 1)).unwrap();
    assert_ne!(&other, document);
    // What a later version adds is not lost on the way.
    let later = r#"{"resources":[],"later":{"x":[1,2.5,null]}}"#;
    let document: Document = serde_json::from_str(later).unwrap();
    assert_eq!(json!(document), serde_json::from_str::<Value>(later).unwrap());
}

#[test]
fn names_that_are_no_utf8_survive() {
    let dir = tempfile::tempdir().unwrap();
    in_child(|| {
        let folder = dir.path().join(OsStr::from_bytes(b"locks\xff"));
        let names = [&b"\xff"[..], b"a\xfe", b"\xef\xbf\xbd", b"\xff\xff"].map(OsStr::from_bytes);
        let spaces = [Naming::verbatim(&folder), Naming::md5(&folder)].map(|naming| {
            let space = LockSpace::open(naming).unwrap();
            for name in names {
                let request = Request::exclusive(name).auto_create();
                space.acquire(ONE, request, Wait::NO).unwrap().keep();
            }
            space
        });
        let documents = leave_behind(spaces.to_vec(), Vec::new());
        spaces.into_iter().for_each(std::mem::forget);
        let mut expected = names.map(OsStr::to_owned);
        expected.sort();
        for space in restore(&documents).unwrap() {
            let mut found: Vec<OsString> = space.list().into_iter().map(|held| held.name).collect();
            found.sort();
            assert_eq!(found, expected);
            for held in space.list() {
                assert_eq!(held.path.parent(), Some(&*folder));
                space.retake(ONE, &held.name).unwrap().verify().unwrap();
            }
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    });
}

#[test]
fn open_descriptors_survive_with_their_names() {
    let dir = tempfile::tempdir().unwrap();
    in_child(|| {
        let path = dir.path().join("a.raw");
        let file = File::create_new(&path).unwrap();
        let space = LockSpace::open(Naming::direct()).unwrap();
        let request = Request::exclusive(Target::opened("disk", &file));
        let lease = space.acquire(ONE, request, Wait::NO).unwrap();
        drop(file);
        // Its name in the file system does not matter.
        fs::rename(&path, dir.path().join("b.raw")).unwrap();
        let documents = leave_behind(vec![space], vec![lease]);
        let space = restore(&documents).unwrap().remove(0);
        let held = &space.list()[0];
        assert_eq!((&*held.name, held.origin), ("disk".as_ref(), Origin::Opened));
        assert_eq!(crate::support::process::held(&dir.path().join("b.raw")), Some(Mode::Exclusive));
        space.release(ONE, "disk").unwrap();
        assert_eq!(crate::support::process::held(&dir.path().join("b.raw")), None);
    });
}

/// What others have locked through the same open file, as a QEMU does that was given it.
const OTHERS: [i64; 3] = [100, 101, 203];

#[track_caller]
fn assert_others(path: &Path) {
    for at in OTHERS {
        assert_eq!(held_at(path, at), Some(Mode::Shared), "byte {at}");
    }
}

/// An open file, held in this mode on this byte, with the locks of others on it.
fn open_file_with_others(path: &Path, mode: Mode, at: u64) -> (File, LockSpace, Lease) {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let (file, space) = (file.unwrap(), LockSpace::open(Naming::direct()).unwrap());
    let range = ByteRange::new(at, NonZeroU64::MIN).unwrap();
    let request = Request::new(mode, Target::opened("disk", &file)).range(range);
    let lease = space.acquire(ONE, request, Wait::NO).unwrap();
    OTHERS.iter().for_each(|&at| ofd_lock(&file, false, at, 1).unwrap());
    (file, space, lease)
}

#[test]
fn the_other_locks_of_an_open_descriptor_survive_a_snapshot_and_a_restore() {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("a.raw");
    // Byte 99 of a shared hold is one lock with its neighbours.
    for (mode, at) in [Mode::Exclusive, Mode::Shared].into_iter().flat_map(|m| [(m, 0), (m, 99)]) {
        in_child(|| {
            let (_file, space, lease) = open_file_with_others(path, mode, at);
            let snapshot = Snapshot::take([&space]).unwrap();
            drop(lease);
            assert_eq!(held_at(path, at as i64), Some(mode), "it is put off");
            drop(snapshot);
            assert_eq!(held_at(path, at as i64), None);
            assert_others(path);
        });
        in_child(|| {
            let (_file, space, lease) = open_file_with_others(path, mode, at);
            let documents = leave_behind(vec![space], vec![lease]);
            let space = restore(&documents).unwrap().remove(0);
            let lease = space.retake(ONE, "disk").unwrap();
            lease.verify().unwrap();
            assert_eq!(held_at(path, at as i64), Some(mode));
            assert_others(path);
            lease.release().unwrap();
            assert_eq!(held_at(path, at as i64), None);
            assert_others(path);
        });
    }
}

#[test]
fn an_open_descriptor_that_has_lost_its_lock_is_not_restored_for_the_locks_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("a.raw");
    in_child(|| {
        for at in [0, 99] {
            let (file, space, lease) = open_file_with_others(path, Mode::Shared, at);
            let documents = leave_behind(vec![space], vec![lease]);
            let refuses = |expected: fn(&InvalidEntry) -> bool| {
                let error = restore(&documents).expect_err("it has lost its lock");
                assert!(expected(&error.why), "{error}");
                assert_others(path);
            };
            unlock_ofd(&file, at as i64, 1).unwrap();
            refuses(|why| matches!(why, InvalidEntry::OtherLock));
            // In another mode than it was.
            ofd_lock(&file, true, at as i64, 1).unwrap();
            refuses(|why| matches!(why, InvalidEntry::OtherLock));
            assert_eq!(held_at(path, at as i64), Some(Mode::Exclusive));
            ofd_lock(&file, false, at as i64, 1).unwrap();
            // One that the first close of any descriptor would drop.
            record_lock(&file, true, 300, 1).unwrap();
            refuses(|why| matches!(why, InvalidEntry::RecordLock));
            unlock_record(&file, 300, 1).unwrap();
            restore(&documents).unwrap();
            unlock_ofd(&file, 0, 0).unwrap();
        }
    });
}

// --- What is carried.

#[test]
fn only_what_an_earlier_program_carried_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    in_child(|| {
        let file = File::create_new(dir.path().join("file")).unwrap();
        let folder = File::open(dir.path()).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("lockspace-state", flags).unwrap();
        let space = LockSpace::open(Naming::in_memory()).unwrap();
        let mut snapshot = Snapshot::take([&space]).unwrap();
        let ours = snapshot.carry(b"ours").unwrap();
        assert!(ours > 2);
        // By number: what other tests do with theirs is to be seen here, too.
        let open = || descriptors().into_keys().collect::<Vec<_>>();
        let before = open();
        let numbers =
            [file.as_raw_fd(), folder.as_raw_fd(), reader.as_raw_fd(), memory.as_raw_fd()];
        let numbers = numbers.map(i32::unsigned_abs);
        for number in numbers.into_iter().chain([0, 1, 2, 900, ours, 1 << 31, u32::MAX]) {
            carried(number).expect_err("it is not for us");
            assert_eq!(open(), before, "{number}");
        }
        drop(snapshot);
        carried(ours).expect_err("it is closed");
    });
}

#[test]
fn carried_bytes_cannot_be_changed() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    let mut snapshot = Snapshot::take([&space]).unwrap();
    let numbers = [b"".as_slice(), b"state", &vec![7; 1 << 20]].map(|b| snapshot.carry(b).unwrap());
    let path = format!("/proc/self/fd/{}", numbers[1]);
    assert_eq!(fs::read(&path).unwrap(), b"state");
    let refused = fs::write(&path, "other").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
}
