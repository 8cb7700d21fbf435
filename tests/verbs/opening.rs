//! What libvirt's own lockspace test shows, in its order, and what its verbs promise beside:
//! the space and its directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::spaces::{A, granted};
use lockspace::{LockSpace, Naming, OpenError, Request};

#[test]
fn opening_a_space_makes_its_directory_for_its_user_alone() {
    let dir = tempfile::tempdir().unwrap();
    let locks = dir.path().join("locks");
    LockSpace::open(Naming::md5(&locks)).unwrap();
    assert_eq!(fs::metadata(&locks).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn the_builder_says_with_which_permissions_the_directory_and_the_files_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let locks = dir.path().join("locks");
    let space = LockSpace::builder(Naming::verbatim(&locks)).dir_mode(0o500).file_mode(0o400);
    let space = space.open().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&locks), 0o500);
    fs::set_permissions(&locks, fs::Permissions::from_mode(0o700)).unwrap();
    space.create("a").unwrap();
    assert_eq!(mode(&locks.join("a")), 0o400);
    drop(space);
    let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
    space.create("b").unwrap();
    assert_eq!(mode(&locks.join("b")), 0o600);
}

#[test]
fn a_directory_that_is_there_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("a"), "kept").unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o7777, 0o755);
    let lease = granted(&space, A, Request::exclusive("a"));
    assert_eq!(fs::read(lease.path()).unwrap(), b"kept");
}

#[test]
fn missing_parents_of_the_directory_are_made_too() {
    let dir = tempfile::tempdir().unwrap();
    let locks = dir.path().join("run/vmm/locks");
    let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
    let lease = granted(&space, A, Request::exclusive("a").auto_create());
    assert_eq!(lease.path(), locks.join("a"));
    assert!(locks.join("a").exists());
}

#[test]
fn a_file_in_place_of_the_directory_is_an_error_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("locks");
    fs::write(&file, "kept").unwrap();
    match LockSpace::open(Naming::md5(&file)) {
        Err(OpenError::NotADirectory { path }) => assert_eq!(path, file),
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(&file).unwrap(), b"kept");
}
