//! An exec that fails loses nothing.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::support::forked::in_child;
use crate::support::locks::held;
use crate::support::process::{block_signals, signals};
use crate::support::spaces::{A, B, expect_frozen, hold_as, space_in};
use crate::support::state::{closes_on_exec, descriptors, numbers_in};
use crate::support::waits::{Waiting, start};
use lockspace::snapshot::{ExecError, Snapshot};
use lockspace::{LockSpace, Mode, Naming, Request, Wait};
use serde_json::json;

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
        let lease = hold_as(&space, A, Mode::Exclusive, "a");
        hold_as(&space, B, Mode::Shared, "b").keep();
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
            hold_as(&space, B, Mode::Exclusive, "c").release().unwrap();
        }
        lease.release().unwrap();
        assert!(!path.exists());
        assert_eq!(space.release_owner(B).holds, 1);
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
        let _lease = hold_as(&space, A, Mode::Exclusive, "a");
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
        block_signals(&[libc::SIGUSR1, libc::SIGTERM]);
        let before = signals();
        // Rust ignores SIGPIPE; as a daemon wants it. Others may be ignored as well, as by nohup.
        let ignored = before.iter().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
        let ignored = u64::from_str_radix(ignored.trim(), 16).unwrap();
        assert_ne!(ignored & 1 << (libc::SIGPIPE - 1), 0, "{ignored:x}");
        let space = LockSpace::open(Naming::in_memory()).unwrap();
        let snapshot = Snapshot::take([&space]).unwrap();
        let _ = snapshot.exec(&mut Command::new("/no/such/program"));
        assert_eq!(signals(), before);
    });
}

#[test]
fn a_release_waits_for_the_end_of_an_exec() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let lease = hold_as(&space, A, Mode::Exclusive, "leased");
    hold_as(&space, A, Mode::Exclusive, "kept").keep();
    hold_as(&space, B, Mode::Exclusive, "an owner's").keep();
    let waiting = Arc::new(Mutex::new(Vec::new()));
    let mut command = Command::new("/no/such/program");
    let last_thing = {
        let (waiting, space, mut lease) = (Arc::clone(&waiting), space.clone(), Some(lease));
        move || {
            let lease = lease.take().unwrap();
            let [kept, of_owner] = [(); 2].map(|()| space.clone());
            let releases = [
                start(move || drop(lease)),
                start(move || kept.release(A, "kept").unwrap()),
                start(move || assert_eq!(of_owner.release_owner(B).holds, 1)),
            ];
            waiting.lock().unwrap().extend(releases.map(Waiting::sleeps_for_others));
            // Nobody else waits.
            assert_eq!(space.list().len(), 3);
            expect_frozen(space.acquire(A, Request::shared("b").auto_create(), Wait::NO), "b");
            Ok(())
        }
    };
    // SAFETY: it runs in this process, whose other threads go on.
    #[allow(unsafe_code, reason = "what is done right before an exec")]
    unsafe {
        command.pre_exec(last_thing)
    };
    let error = Snapshot::take([&space]).unwrap().exec(&mut command);
    assert_eq!(error.source.raw_os_error(), Some(libc::ENOENT), "{error}");
    waiting.lock().unwrap().drain(..).for_each(Waiting::join);
    assert_eq!(space.list(), []);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
