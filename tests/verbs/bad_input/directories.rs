//! Directories that are none, or gone.

use std::fs;
use std::os::unix::fs::symlink;

use super::{assert_io, assert_io_error, file, folder, refused, undisturbed};
use crate::support::spaces::{BOTH, names_in};
use lockspace::{AcquireError, LockFileError, LockSpace, Naming, OpenError, Request, Target};
use rustix::io::Errno;

#[test]
fn a_file_on_the_way_is_told_with_the_path() {
    let dir = folder();
    let image = file(dir.path().join("a"), 0o600);
    let below = image.join("b");
    match LockSpace::open(Naming::md5(&below)) {
        Err(OpenError::NotADirectory { path }) => assert_eq!(path, below),
        other => panic!("{other:?}"),
    }
    undisturbed(Naming::direct(), |space| {
        for mode in BOTH {
            assert_io(refused(space, Request::new(mode, &below)), "stat", &below, Errno::NOTDIR);
            let error = refused(space, Request::new(mode, Target::image(&below)));
            assert_io(error, "realpath", &below, Errno::NOTDIR);
        }
    });
}

#[test]
fn a_missing_directory_on_the_way_to_an_image_is_not_found() {
    let dir = folder();
    let path = dir.path().join("missing/a");
    undisturbed(Naming::direct(), |space| {
        for mode in BOTH {
            match refused(space, Request::new(mode, &path)) {
                AcquireError::NotFound { path: at, .. } => assert_eq!(at, path),
                error => panic!("{error:?}"),
            }
        }
        match space.create(&path) {
            Err(LockFileError::Io(error)) => assert_io_error(&error, "openat", &path, Errno::NOENT),
            other => panic!("{other:?}"),
        }
    });
    assert!(names_in(dir.path()).is_empty());
}

#[test]
fn a_directory_that_a_dangling_symlink_stands_for_is_an_error() {
    let dir = folder();
    let link = dir.path().join("locks");
    symlink("nothing", &link).unwrap();
    match LockSpace::open(Naming::md5(&link)) {
        Err(OpenError::Io(error)) => assert_io_error(&error, "openat", &link, Errno::NOENT),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_directory_that_was_removed_under_the_space_is_told() {
    let dir = folder();
    let locks = dir.path().join("locks");
    undisturbed(Naming::verbatim(&locks), |space| {
        fs::remove_dir(&locks).unwrap();
        for mode in BOTH {
            for request in [Request::new(mode, "a"), Request::new(mode, "a").auto_create()] {
                match refused(space, request) {
                    AcquireError::DirectoryReplaced { name, directory } => {
                        assert_eq!((&*name, directory), ("a".as_ref(), locks.clone()));
                    }
                    error => panic!("{error:?}"),
                }
            }
        }
        assert!(matches!(space.create("a"), Err(LockFileError::DirectoryReplaced { .. })));
        assert!(matches!(space.delete("a"), Err(LockFileError::DirectoryReplaced { .. })));
    });
    assert!(names_in(dir.path()).is_empty());
}
