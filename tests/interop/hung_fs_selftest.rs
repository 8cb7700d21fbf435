//! Proves that the tests' own hung file system hangs, answers, and goes away.

use std::env;
use std::fs::{self, File};
use std::io::{self};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::alone::{alone, this_binary};
use crate::support::hung_fs::{HungFs, hung_fs, is_mounted};
use crate::support::locks::ofd_lock;

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

#[test]
fn an_open_is_parked_while_others_go_on_and_locks_once_it_is_answered() {
    alone(|| {
        thread::scope(|scope| {
            let Some(fs) = hung_fs() else { return };
            let [a, b] = ["a", "b"].map(|name| fs.path().join(name));
            let (opened, result) = mpsc::channel();
            let path = a.clone();
            scope.spawn(move || opened.send(open(&path)));
            fs.wait_for_open(1);

            let (meta_a, meta_b) = (fs::metadata(&a).unwrap(), fs::metadata(&b).unwrap());
            assert!(meta_b.is_file());
            assert_eq!((meta_b.len(), meta_b.mode() & 0o7777), (0, 0o666));
            assert_eq!(meta_a.dev(), meta_b.dev());
            assert_ne!(meta_a.ino(), meta_b.ino());
            assert_eq!(fs::read_dir(fs.path()).unwrap().count(), 0);
            assert!(result.try_recv().is_err(), "the open was answered");

            fs.answer_all();
            let held = result.recv().unwrap().expect("the parked open succeeds");
            let other = open(&a).expect("a later open succeeds at once");
            assert_eq!(held.metadata().unwrap().ino(), meta_a.ino());
            ofd_lock(&held, true, 0, 1).expect("the file can be locked");
            let refused = ofd_lock(&other, true, 0, 1).expect_err("it is held");
            assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
            drop(held);
            ofd_lock(&other, true, 0, 1).expect("the lock went with its descriptor");
        });
    });
}

#[test]
fn a_parked_lookup_stalls_no_other_name() {
    alone(|| {
        thread::scope(|scope| {
            let Some(fs) = hung_fs() else { return };
            let path = fs.path().join("lookup-hang-1");
            let stat = scope.spawn(move || fs::metadata(path));
            fs.wait_for_lookup(1);
            fs::metadata(fs.path().join("other")).expect("another name is looked up");
            assert!(!stat.is_finished());
            fs.answer_all();
            assert!(stat.join().unwrap().expect("found in the end").is_file());
        });
    });
}

#[test]
fn a_panic_releases_the_stuck_and_leaves_no_mount() {
    alone(|| {
        let mut mounted = PathBuf::new();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            thread::scope(|scope| {
                let Some(fs) = hung_fs() else { return };
                mounted = fs.path().to_owned();
                let path = fs.path().join("a");
                scope.spawn(move || open(&path));
                fs.wait_for_open(1);
                assert!(is_mounted(&mounted));
                panic!("as a failed assertion would");
            });
        }));
        let Err(panic) = outcome else { return };
        if mounted.as_os_str().is_empty() {
            resume_unwind(panic); // not ours: the file system is required, and missing
        }
        assert!(!is_mounted(&mounted));
        assert!(!mounted.exists());
    });
}

#[test]
fn dropping_it_with_files_open_ends_them() {
    alone(|| {
        let Some(fs) = hung_fs() else { return };
        let path = fs.path().to_owned();
        fs.answer_all();
        let file = open(&path.join("a")).unwrap();
        drop(fs);
        assert!(!is_mounted(&path));
        assert!(!path.exists());
        drop(file); // returns
    });
}

const VICTIM: &str = "LOCKSPACE_HUNG_FS_VICTIM";

/// Not a test: the process that the next one kills.
#[test]
#[ignore = "a process that another test starts"]
fn victim() {
    if env::var_os(VICTIM).is_none() {
        return;
    }
    let fs = HungFs::mount().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| open(&fs.path().join("a")));
        fs.wait_for_open(1);
        fs::write(env::var_os(VICTIM).unwrap(), fs.path().to_str().unwrap()).unwrap();
    });
}

#[test]
fn a_killed_process_is_not_stuck_for_ever_and_leaves_no_mount() {
    alone(|| {
        let Some(_) = hung_fs() else { return };
        let told = tempfile::NamedTempFile::new().unwrap();
        let mut child = this_binary("hung_fs_selftest::victim")
            .env(VICTIM, told.path())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        let mounted = loop {
            match fs::read_to_string(told.path()).unwrap() {
                path if !path.is_empty() => break PathBuf::from(path),
                _ => assert!(Instant::now() < end, "the victim did not get there"),
            }
            thread::sleep(Duration::from_millis(10));
        };
        assert!(is_mounted(&mounted));
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL)); // returns: the watchdog did it
        while mounted.exists() {
            assert!(Instant::now() < end, "the mount was left behind");
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_mounted(&mounted));
    });
}
