//! A lock directory that is moved, replaced or removed is found out.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use crate::leftovers::made;
use crate::support::locks::is_free_for_others;
use crate::support::spaces::{A, B, hold, names_in, space_in};
use lockspace::{AcquireError, Lease, LockFileError, LockSpace, Mode, Request, VerifyError, Wait};
use tempfile::TempDir;

/// Every call that would open a lock file by the directory's path, on names that are there and on
/// names that are not, refused as the directory is elsewhere.
#[track_caller]
fn assert_all_moved(space: &LockSpace, path: &Path, names: &[&str]) {
    for &name in names {
        let is_it = |n: &OsStr, d: &Path| n == name && d == path;
        for mode in [Mode::Exclusive, Mode::Shared] {
            for request in [made(mode, name), Request::new(mode, name)] {
                // A wait opens the file in another way, at first.
                for wait in [Wait::NO, Wait::within(Duration::from_secs(60))] {
                    let refused = space.acquire(B, request.clone(), wait).unwrap_err();
                    let AcquireError::DirectoryReplaced { name, directory } = &refused else {
                        panic!("{name}: {refused}");
                    };
                    assert!(is_it(name, directory), "{refused}");
                }
            }
        }
        let refused = space.create(name).unwrap_err();
        let LockFileError::DirectoryReplaced { name: n, directory } = &refused else {
            panic!("{name}: {refused}");
        };
        assert!(is_it(n, directory), "{refused}");
        let refused = space.delete(name).unwrap_err();
        let LockFileError::DirectoryReplaced { name: n, directory } = &refused else {
            panic!("{name}: {refused}");
        };
        assert!(is_it(n, directory), "{refused}");
    }
}

/// A space in a directory with two files, `held` by a lease and `free`.
fn space_with_two(dir: &Path) -> (LockSpace, Lease) {
    let space = space_in(dir);
    space.create("free").unwrap();
    let lease = hold(&space, "held");
    lease.verify().unwrap();
    (space, lease)
}

/// The lease of [`space_with_two`], whose directory is at `now`, holds still, and its release
/// removes its file there.
#[track_caller]
fn assert_holds_until_released(space: &LockSpace, lease: Lease, now: &Path) {
    assert!(!is_free_for_others(&now.join("held")));
    assert_eq!(space.list().len(), 1);
    assert!(matches!(lease.verify(), Err(VerifyError::Replaced { .. })));
    lease.release().unwrap();
    assert_eq!(names_in(now), ["free"]);
    assert_eq!(space.list(), []);
}

#[test]
fn a_directory_renamed_away_and_made_anew_is_found_out() {
    let root = TempDir::new().unwrap();
    let [path, away] = ["locks", "away"].map(|name| root.path().join(name));
    let (space, lease) = space_with_two(&path);
    fs::rename(&path, &away).unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    fs::create_dir(&path).unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    // Also where the new directory has a file of that name.
    fs::write(path.join("free"), "").unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    assert_eq!(names_in(&path), ["free"]);
    assert_eq!(names_in(&away), ["free", "held"]);
    assert_holds_until_released(&space, lease, &away);

    // Moved back, it is where it was.
    fs::remove_dir_all(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    hold(&space, "new").release().unwrap();
}

#[test]
fn a_directory_that_moves_is_found_out_at_once_however_fast_acquires_come() {
    for _ in 0..20 {
        let root = TempDir::new().unwrap();
        let [path, away] = ["locks", "away"].map(|name| root.path().join(name));
        let [space, second] = [(); 2].map(|()| space_in(&path));
        space.create("free").unwrap();
        let lease = hold(&space, "held");
        let acquire = || second.acquire(B, Request::exclusive("free"), Wait::NO);
        (0..20).for_each(|_| drop(acquire().unwrap()));
        fs::rename(&path, &away).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("free"), "").unwrap();
        fs::write(path.join("held"), "").unwrap();
        let refused = second.delete("held");
        assert!(matches!(
            refused,
            Err(LockFileError::DirectoryReplaced { .. } | LockFileError::Busy(_))
        ));
        let refused = second.acquire(B, Request::exclusive("held"), Wait::NO);
        let said =
            matches!(refused, Err(AcquireError::DirectoryReplaced { .. } | AcquireError::Busy(_)));
        assert!(said, "{refused:?}");
        assert!(matches!(acquire(), Err(AcquireError::DirectoryReplaced { .. })));
        assert_all_moved(&second, &path, &["free", "new"]);
        assert_eq!([names_in(&path), names_in(&away)], [["free", "held"], ["free", "held"]]);
        assert_holds_until_released(&space, lease, &away);
    }
}

#[test]
fn a_removed_directory_is_found_out() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("locks");
    let (space, lease) = space_with_two(&path);
    fs::remove_dir_all(&path).unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    assert!(!path.exists());
    assert!(matches!(lease.verify(), Err(VerifyError::Replaced { .. })));
    lease.release().expect("the hold ends, and there is nothing to remove");
    assert_eq!(space.list(), []);

    fs::create_dir(&path).unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    assert_eq!(names_in(&path), [""; 0]);
}

#[test]
fn a_symlink_in_the_path_that_is_turned_elsewhere_is_found_out() {
    let root = TempDir::new().unwrap();
    let [link, old, new] = ["link", "old", "new"].map(|name| root.path().join(name));
    fs::create_dir(&old).unwrap();
    fs::create_dir_all(new.join("locks")).unwrap();
    symlink(&old, &link).unwrap();
    let path = link.join("locks");
    let (space, lease) = space_with_two(&path);
    assert_eq!(lease.path(), path.join("held"));

    fs::remove_file(&link).unwrap();
    symlink(&new, &link).unwrap();
    assert_all_moved(&space, &path, &["free", "new"]);
    assert_eq!(names_in(&new.join("locks")), [""; 0]);
    assert_eq!(names_in(&old.join("locks")), ["free", "held"]);
    assert_holds_until_released(&space, lease, &old.join("locks"));
}

#[test]
fn what_is_held_is_busy_rather_than_moved() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("locks");
    let (space, lease) = space_with_two(&path);
    fs::remove_dir_all(&path).unwrap();
    let refused = space.acquire(B, Request::exclusive("held"), Wait::NO);
    assert!(matches!(refused, Err(AcquireError::Busy(busy)) if busy.owners() == [A]));
    assert!(matches!(space.delete("held"), Err(LockFileError::Busy(_))));
    drop(lease);
}
