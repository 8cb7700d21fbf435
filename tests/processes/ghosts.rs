//! A process that shares a lock file by a fork keeps no lock alive that was given back.

use std::fs;
use std::num::NonZeroU64;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use crate::support::forked::{Gate, fork};
use crate::support::locks::is_free_for_others;
use crate::support::rounds::rounds;
use crate::support::spaces::{A, B, folder_in_memory, hold, space_in};
use lockspace::{ByteRange, LockSpace, Mode, Naming, Request, Wait};

/// 100,000 times acquires and drops, while two threads spawn commands: between its fork and its
/// exec, each command shares the lock.
fn cycles_beside_commands(space: &LockSpace, request: &Request<'_>) {
    let (done, commands) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let spawn = || {
            while !done.load(Ordering::Relaxed) {
                assert!(Command::new("true").status().unwrap().success());
                commands.fetch_add(1, Ordering::Relaxed);
            }
        };
        scope.spawn(spawn);
        scope.spawn(spawn);
        let ghost = (0..rounds(100_000)).find_map(|cycle| {
            match space.acquire(A, request.clone(), Wait::NO) {
                Ok(lease) => {
                    drop(lease);
                    None
                }
                Err(error) => Some(format!("{error}, in cycle {cycle}")),
            }
        });
        done.store(true, Ordering::Relaxed);
        assert_eq!(ghost, None);
    });
    assert!(commands.into_inner() > 0, "no command ran meanwhile");
}

#[test]
fn no_ghost_holds_an_existing_resource_while_commands_are_spawned() {
    let dir = folder_in_memory();
    let space = space_in(dir.path());
    space.create("a").unwrap();
    cycles_beside_commands(&space, &Request::exclusive("a"));
    assert_eq!(space.stale_retries(), 0);
    assert!(dir.path().join("a").exists());
}

#[test]
fn no_ghost_holds_an_auto_created_resource_while_commands_are_spawned() {
    let dir = folder_in_memory();
    let space = space_in(dir.path());
    cycles_beside_commands(&space, &Request::exclusive("a").auto_create());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn no_ghost_holds_an_image_that_is_locked_directly_while_commands_are_spawned() {
    let dir = folder_in_memory();
    let image = dir.path().join("a.raw");
    fs::write(&image, "precious").unwrap();
    let space = LockSpace::open(Naming::direct()).unwrap();
    cycles_beside_commands(&space, &Request::exclusive(&image));
    assert_eq!(fs::read(&image).unwrap(), b"precious");
}

#[test]
fn a_lease_released_while_a_forked_child_lives_is_free_at_once() {
    let dir = folder_in_memory();
    let space = space_in(dir.path());
    space.create("existing").unwrap();
    let existing = space.acquire(A, Request::exclusive("existing"), Wait::NO).unwrap();
    let made = hold(&space, "made");
    let [existing_path, made_path] = [&existing, &made].map(|lease| lease.path().to_owned());

    let gate = Gate::new();
    let child = fork(|| gate.wait());
    existing.release().unwrap();
    made.release().unwrap();
    assert!(is_free_for_others(&existing_path));
    assert!(!made_path.exists());
    // The child has the unlinked file open still; a new one of its name has nothing to do with it.
    for name in ["existing", "made"] {
        hold(&space_in(dir.path()), name).release().unwrap();
    }
    gate.open();
    child.join();
}

/// The removal of a lock file locks nearly all of its bytes. Where the file stays after all, since
/// its name is another's, no byte of it may stay locked.
#[test]
fn what_a_removal_has_locked_is_free_at_once_though_a_forked_child_lives() {
    let dir = folder_in_memory();
    let (path, moved) = (dir.path().join("a"), dir.path().join("moved"));
    let ranges = [ByteRange::FIRST, ByteRange::WHOLE_FILE, last_bytes()];
    for (mode, range) in ranges.into_iter().flat_map(|r| [(Mode::Exclusive, r), (Mode::Shared, r)])
    {
        let space = space_in(dir.path());
        let request = Request::new(mode, "a").auto_create().range(range);
        let lease = space.acquire(A, request, Wait::NO).unwrap();
        let gate = Gate::new();
        let child = fork(|| gate.wait());
        fs::rename(&path, &moved).unwrap();
        lease.release().unwrap();
        let whole = Request::exclusive("moved").range(ByteRange::WHOLE_FILE);
        space.acquire(B, whole, Wait::NO).unwrap().release().unwrap();
        gate.open();
        child.join();
        fs::remove_file(&moved).unwrap();
    }
}

/// To the last byte that an offset can name, which no removal locks.
fn last_bytes() -> ByteRange {
    ByteRange::new(100, NonZeroU64::new(i64::MAX as u64 - 99).unwrap()).unwrap()
}
