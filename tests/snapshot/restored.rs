//! Restored spaces are full ones.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::generations::{Role, role, run, the_end};
use crate::support::locks::{held_at, is_free_for_others};
use crate::support::spaces::{A, B};
use lockspace::{
    ByteRange, Lease, LockSpace, Mode, Naming, Origin, OwnerId, ReleaseError, Request, Wait,
};
use serde_json::json;

#[test]
fn restored_spaces_are_full_ones() {
    if let Some(role) = role() {
        return all_of_them_are_restored(&role);
    }
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
}

/// Spaces of every naming that has a directory.
fn namings(dir: &Path) -> Vec<Naming> {
    Vec::from([
        Naming::md5(dir.join("0")),
        Naming::verbatim(dir.join("1")),
        #[cfg(feature = "sha256")]
        Naming::sha256(dir.join("2")),
    ])
}

/// The bytes of `existing`.
fn four_bytes() -> ByteRange {
    ByteRange::new(100, std::num::NonZeroU64::new(4).unwrap()).unwrap()
}

/// Holds of every kind; the one that is returned is a lease at the snapshot.
fn one_of_each(space: &LockSpace) -> Lease {
    space.create("existing").unwrap();
    let take = |owner, request| space.acquire(owner, request, Wait::NO).unwrap();
    take(A, Request::exclusive("existing").range(four_bytes())).keep();
    take(A, Request::exclusive("made").auto_create()).keep();
    for owner in [A, B, B] {
        take(owner, Request::shared("shared").auto_create()).keep();
    }
    // A lease that is alive at the snapshot, and a second hold of its owner that is kept.
    take(A, Request::shared("leased").auto_create()).keep();
    take(A, Request::shared("leased").auto_create())
}

fn all_of_them_are_restored(role: &Role) {
    let image = role.folder.join("image.raw");
    if role.generation == 0 {
        let mut spaces: Vec<_> = namings(&role.folder)
            .into_iter()
            .map(|naming| LockSpace::builder(naming).file_mode(0o640).open().unwrap())
            .collect();
        let leases: Vec<_> = spaces.iter().map(one_of_each).collect();
        make_stale(&spaces[0], &role.folder.join("0"));
        let stale = spaces[0].stale_retries();
        fs::write(&image, "precious").unwrap();
        let direct = LockSpace::builder(Naming::direct()).range(ByteRange::WHOLE_FILE);
        spaces.push(direct.open().unwrap());
        let request = Request::shared(&image).upgradable();
        spaces.last().unwrap().acquire(A, request, Wait::NO).unwrap().keep();
        spaces.push(LockSpace::open(Naming::in_memory()).unwrap());
        spaces.last().unwrap().acquire(A, Request::exclusive("m"), Wait::NO).unwrap().keep();
        spaces.push(LockSpace::open(Naming::md5(role.folder.join("empty"))).unwrap());
        role.go_on(&spaces, json!({ "stale": stale, "leases": leases.len() }));
    }
    let mut spaces = role.restore();
    if role.generation == 1 {
        // Once more, so that what was restored is itself written down.
        role.go_on(&spaces, role.notes.clone());
    }
    assert_eq!(role.notes["stale"], spaces[0].stale_retries());
    assert!(spaces[0].stale_retries() > 0);
    let empty = spaces.pop().unwrap();
    let memory = spaces.pop().unwrap();
    let direct = spaces.pop().unwrap();
    assert_eq!(spaces.len(), namings(&role.folder).len());

    for space in &spaces {
        is_restored(space);
        is_a_full_space(space);
    }
    // Shared but open to be written, as was asked.
    let mut lease = direct.retake(A, &image).unwrap();
    lease.upgrade(Wait::NO).unwrap();
    assert_eq!(direct.list()[0].range, ByteRange::WHOLE_FILE);
    lease.release().unwrap();
    assert_eq!(fs::read(&image).unwrap(), b"precious");
    let lease = direct.acquire(A, Request::exclusive(&image), Wait::NO).unwrap();
    assert_eq!(direct.list()[0].range, ByteRange::WHOLE_FILE, "the space's own range");
    lease.release().unwrap();
    assert!(memory.acquire(B, Request::shared("m"), Wait::NO).is_err());
    memory.release(A, "m").unwrap();
    assert!(empty.list().is_empty());
    empty.acquire(A, Request::exclusive("a").auto_create(), Wait::NO).unwrap().release().unwrap();
    the_end();
}

/// What [`one_of_each`] holds is held.
fn is_restored(space: &LockSpace) {
    let held: BTreeMap<_, _> =
        space.list().into_iter().map(|held| (held.name.clone(), held)).collect();
    let about = |name: &str| {
        let held = &held[OsStr::new(name)];
        let owners: Vec<_> = held.owners.iter().map(|(id, n)| (id.get(), *n)).collect();
        (held.mode, held.origin, held.range, owners)
    };
    let first = ByteRange::FIRST;
    let (exclusive, shared) = (Mode::Exclusive, Mode::Shared);
    let made = Origin::AutoCreated;
    assert_eq!(about("existing"), (exclusive, Origin::Existing, four_bytes(), vec![(1, 1)]));
    assert_eq!(about("made"), (exclusive, made, first, vec![(1, 1)]));
    assert_eq!(about("shared"), (shared, made, first, vec![(1, 1), (2, 2)]));
    assert_eq!(about("leased"), (shared, made, first, vec![(1, 2)]));
    assert_eq!(held.len(), 4);
    // The naming leads to the same files as before, also for a name that is new.
    let path = |name: &str| held[OsStr::new(name)].path.clone();
    for name in ["made", "shared", "leased"] {
        assert!(!is_free_for_others(&path(name)), "{name}");
    }
    assert!(is_free_for_others(&path("existing")), "byte 0 was never locked");
    assert_eq!(held_at(&path("existing"), 100), Some(Mode::Exclusive));
    let new = space.acquire(A, Request::exclusive("new").auto_create(), Wait::NO).unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(new.path()).unwrap());
    assert_eq!(mode & 0o777, 0o640 & !umask());
    new.release().unwrap();
}

/// Kept holds of their owners, one for each: retaken, released, counted.
fn is_a_full_space(space: &LockSpace) {
    let held = space.list();
    let path = |name: &str| held.iter().find(|held| held.name == name).unwrap().path.clone();
    let mut lease = space.retake(A, "leased").unwrap();
    lease.verify().unwrap();
    space.release(A, "leased").unwrap();
    let nothing = space.release(A, "leased");
    assert!(matches!(nothing, Err(ReleaseError::NotHeld { .. })), "{nothing:?}");
    lease.upgrade(Wait::NO).unwrap();
    lease.downgrade().unwrap();
    let leased = lease.path().to_owned();
    drop(lease);
    assert!(!leased.exists(), "the last hold of an auto-created file removes it");
    space.release(B, "shared").unwrap();
    assert!(space.acquire(OwnerId::new(3), Request::shared("shared"), Wait::NO).is_ok());
    assert_eq!(space.release_owner(B).holds, 1);
    assert!(path("shared").exists());
    let released = space.release_owner(A);
    assert_eq!((released.holds, released.leftovers.len()), (3, 0));
    assert!(!path("shared").exists() && !path("made").exists() && path("existing").exists());
    assert!(space.list().is_empty());
}

/// Makes the space find a file stale: another thread moves it away, again and again.
fn make_stale(space: &LockSpace, dir: &Path) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let other = LockSpace::open(Naming::md5(dir)).unwrap();
            while !done.load(Ordering::Relaxed) {
                let request = Request::exclusive("churn").auto_create();
                let _ = other.acquire(B, request, Wait::NO);
            }
        });
        while space.stale_retries() == 0 {
            let _ = space.acquire(A, Request::exclusive("churn").auto_create(), Wait::NO);
        }
        done.store(true, Ordering::Relaxed);
    });
}

fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u32::from_str_radix(umask.trim(), 8).unwrap()
}
