//! Locks are never gone through an exec: beside a rival, after a hundred programs, from a busy process.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::generations::{Role, role, run, start, the_end, wait_for};
use crate::support::alone::alone;
use crate::support::locks::{Rival, is_free_for_others};
use crate::support::process::allow_descriptors;
use crate::support::rounds::rounds;
use crate::support::spaces::{A, B};
use lockspace::{LockSpace, Naming, Request, Wait};
use serde_json::{Value, json};

const LOCKS: usize = 1000;
const TIMES: u64 = 100;

#[test]
fn a_thousand_locks_outlive_a_hundred_programs() {
    match role() {
        Some(role) => hold_a_thousand_locks(&role),
        None => alone(beside_a_rival_of_a_thousand_locks),
    }
}

fn beside_a_rival_of_a_thousand_locks() {
    allow_descriptors();
    let folder = tempfile::tempdir().unwrap();
    let files: Vec<_> = (0..LOCKS).map(|i| folder.path().join(format!("locks/{i}"))).collect();
    let (ready, go) = (folder.path().join("ready"), folder.path().join("go"));
    let process = start(folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let process = process.unwrap();
    wait_for(&ready);
    let rival = Rival::start(&files);
    fs::write(go, "").unwrap();
    wait_for(&folder.path().join("done"));
    let (tries, taken) = rival.end();
    fs::write(folder.path().join("end"), "").unwrap();
    let output = process.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}{err}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(taken, 0, "of {tries} tries");
    assert!(tries > 100_000, "only {tries} tries");
    // Half of them were auto-created.
    assert_eq!(fs::read_dir(folder.path().join("locks")).unwrap().count(), LOCKS / 2);
}

fn hold_a_thousand_locks(role: &Role) {
    let pid = std::process::id();
    let space = if role.generation == 0 {
        let space = LockSpace::open(Naming::verbatim(role.folder.join("locks"))).unwrap();
        for index in 0..LOCKS {
            let name = index.to_string();
            let request = Request::exclusive(&name);
            let request = match index % 2 {
                0 => request.auto_create(),
                _ => {
                    space.create(&name).unwrap();
                    request
                }
            };
            space.acquire(A, request, Wait::NO).unwrap().keep();
        }
        fs::write(role.folder.join("ready"), "").unwrap();
        wait_for(&role.folder.join("go"));
        space
    } else {
        role.restore().remove(0)
    };
    assert_eq!(space.list().len(), LOCKS);
    let count = fs::read_dir("/proc/self/fd").unwrap().count();
    let mut notes = json!({ "pid": pid, "count": count });
    if role.generation > 0 {
        assert_eq!(role.notes["pid"], pid);
    }
    if role.generation > 2 {
        notes["count"] = role.notes["count"].clone();
        assert_eq!(role.notes["count"], count, "descriptors, since generation 2");
    }
    if role.generation < rounds(TIMES) {
        role.go_on([&space], notes);
    }
    fs::write(role.folder.join("done"), "").unwrap();
    wait_for(&role.folder.join("end"));
    let released = space.release_owner(A);
    assert_eq!((released.holds, released.leftovers.len()), (LOCKS, 0));
    the_end();
}

#[test]
fn exec_from_another_thread_while_others_are_busy() {
    if let Some(role) = role() {
        return exec_while_others_are_busy(&role);
    }
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
    // What the threads were just making may stay, as after a kill, and blocks nobody.
    let space = LockSpace::open(Naming::md5(folder.path().join("locks"))).unwrap();
    for index in 0..100 {
        let name = format!("held-{index}");
        let request = Request::exclusive(&name).auto_create();
        space.acquire(B, request, Wait::NO).unwrap().release().unwrap();
    }
}

fn exec_while_others_are_busy(role: &Role) {
    let space = if role.generation == 0 {
        let space = LockSpace::open(Naming::md5(role.folder.join("locks"))).unwrap();
        for index in 0..100 {
            let name = format!("held-{index}");
            space.acquire(A, Request::exclusive(&name).auto_create(), Wait::NO).unwrap().keep();
        }
        space
    } else {
        role.restore().remove(0)
    };
    // What the threads held at the snapshot is kept now.
    for held in space.list().iter().filter(|held| held.owners.contains_key(&B)) {
        assert!(!is_free_for_others(&held.path), "{:?}", held.name);
    }
    space.release_owner(B);
    let held = space.list();
    assert_eq!(held.len(), 100);
    for held in &held {
        space.retake(A, &held.name).unwrap().verify().unwrap();
    }
    if role.generation == 20 {
        return the_end();
    }
    // `verify` took the holds as leases, and released them: they are taken again.
    for index in 0..100 {
        let name = format!("held-{index}");
        space.acquire(A, Request::exclusive(&name).auto_create(), Wait::NO).unwrap().keep();
    }
    let cycles: Vec<_> = (0..2).map(|_| AtomicU64::new(0)).collect();
    let commands = AtomicU64::new(0);
    thread::scope(|scope| {
        for (thread, count) in cycles.iter().enumerate() {
            let space = &space;
            scope.spawn(move || {
                loop {
                    let name = format!("busy-{thread}");
                    let request = Request::exclusive(&name).auto_create();
                    let soon = Wait::within(Duration::from_secs(60));
                    drop(space.acquire(B, request, soon).unwrap());
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            loop {
                // Its end is of no interest: the program may be replaced meanwhile.
                let _ = Command::new("true").stdin(Stdio::null()).status();
                commands.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let busy = || cycles.iter().all(|count| count.load(Ordering::Relaxed) > 3);
            while !busy() || commands.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            role.go_on([&space], Value::Null);
        });
    });
}
