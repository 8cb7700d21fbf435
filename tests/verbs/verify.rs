//! `verify` finds a file that is no more what it was, and a lock that was taken away.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use crate::support::forked::fork;
use crate::support::locks::{Kind, Lock, set_lock};
use crate::support::process::{borrowed, descriptors_to};
use crate::support::spaces::{A, hold, space_in};
use lockspace::{LockSpace, Naming, Request, VerifyError, Wait};
use tempfile::TempDir;

#[test]
fn verify_finds_a_file_that_is_renamed_replaced_or_unlinked() {
    let meddlings: [fn(&Path); 3] = [
        |path| fs::rename(path, path.with_extension("away")).unwrap(),
        |path| {
            fs::write(path.with_extension("new"), "").unwrap();
            fs::rename(path.with_extension("new"), path).unwrap();
        },
        |path| fs::remove_file(path).unwrap(),
    ];
    for meddle in meddlings {
        for direct in [false, true] {
            let dir = TempDir::new().unwrap();
            let path = dir.path().join("a");
            fs::write(&path, "").unwrap();
            let space = match direct {
                true => LockSpace::open(Naming::direct()).unwrap(),
                false => space_in(dir.path()),
            };
            let name = if direct { path.as_os_str() } else { OsStr::new("a") };
            let lease = space.acquire(A, Request::exclusive(name), Wait::NO).unwrap();
            lease.verify().unwrap();
            meddle(&path);
            match lease.verify() {
                Err(VerifyError::Replaced { name: n, path: p }) => {
                    assert_eq!((&*n, &p), (name, &path));
                }
                other => panic!("not found out: {other:?}"),
            }
            lease.release().unwrap();
        }
    }
}

#[test]
fn verify_finds_a_lock_that_a_child_took_away() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let lease = hold(&space, "a");
    // The lease keeps it open; the child has it too.
    let [number] = descriptors_to(lease.path())[..] else { panic!("it is open once") };
    let fd = borrowed(number);
    fork(|| assert!(set_lock(fd, Kind::Ofd, Lock::No, 0, 0).unwrap())).join();
    match lease.verify() {
        Err(VerifyError::Unlocked { name, path }) => {
            assert_eq!((name.to_str(), &*path), (Some("a"), lease.path()));
        }
        other => panic!("not found out: {other:?}"),
    }
    // A weaker lock than the one that was granted is no better.
    fork(|| assert!(set_lock(fd, Kind::Ofd, Lock::Shared, 0, 1).unwrap())).join();
    assert!(matches!(lease.verify(), Err(VerifyError::Unlocked { .. })));
    fork(|| assert!(set_lock(fd, Kind::Ofd, Lock::Exclusive, 0, 1).unwrap())).join();
    lease.verify().unwrap();
}
