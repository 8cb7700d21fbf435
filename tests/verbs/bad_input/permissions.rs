//! What may not be opened, written or removed, by permission or on a read-only file system.

use std::fs;
use std::path::Path;

use super::{allow, assert_io, assert_io_error, bad, file, folder, granted, refused};
use crate::support::forked::{ask_child, in_child};
use crate::support::interop::skip_or_fail;
use crate::support::process::{become_nobody, is_root, open_numbers, unshare_mounts};
use crate::support::spaces::{BOTH, names_in};
use lockspace::{
    AcquireError, InvalidRequest, LockFileError, LockSpace, Naming, OpenError, Request, Target,
};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};

/// Runs in a child that is no root.
#[track_caller]
fn as_nobody(work: impl FnOnce()) {
    in_child(|| {
        if is_root() {
            become_nobody();
        }
        work();
    });
}

#[test]
fn a_file_that_can_only_be_read_is_held_shared_and_explained_otherwise() {
    let dir = folder();
    let image = file(dir.path().join("a"), 0o444);
    as_nobody(|| {
        let space = LockSpace::open(Naming::direct()).unwrap();
        let before = open_numbers();
        for request in [Request::exclusive(&image), Request::shared(&image).upgradable()] {
            assert_eq!(bad(refused(&space, request), &image), InvalidRequest::ReadOnly);
        }
        assert_eq!(open_numbers(), before);
        let lease = granted(&space, Request::shared(&image));
        let request = Request::exclusive(&image);
        assert!(matches!(refused(&space, request), AcquireError::Busy(_)));
        lease.verify().unwrap();
        lease.release().unwrap();
    });
}

#[test]
fn a_file_without_permission_is_told_with_the_path() {
    let dir = folder();
    let image = file(dir.path().join("a"), 0o000);
    let hidden = dir.path().join("hidden");
    fs::create_dir(&hidden).unwrap();
    let inside = file(hidden.join("b"), 0o666);
    allow(&hidden, 0o000);
    as_nobody(|| {
        let space = LockSpace::open(Naming::direct()).unwrap();
        let before = open_numbers();
        for mode in BOTH {
            let error = refused(&space, Request::new(mode, &image));
            assert_io(error, "openat", &image, Errno::ACCESS);
            let error = refused(&space, Request::new(mode, &inside));
            assert_io(error, "stat", &inside, Errno::ACCESS);
            let error = refused(&space, Request::new(mode, Target::image(&inside)));
            assert_io(error, "realpath", &inside, Errno::ACCESS);
        }
        assert_eq!(open_numbers(), before);
    });
    allow(&hidden, 0o700);
}

#[test]
fn a_lock_file_without_permission_is_told_with_the_path() {
    let dir = folder();
    let locks = dir.path().join("locks");
    fs::create_dir(&locks).unwrap();
    let theirs = file(locks.join("theirs"), 0o000);
    allow(&locks, 0o555);
    as_nobody(|| {
        let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
        let before = open_numbers();
        for mode in BOTH {
            let error = refused(&space, Request::new(mode, "theirs").auto_create());
            assert_io(error, "openat", &theirs, Errno::ACCESS);
            let error = refused(&space, Request::new(mode, "new").auto_create());
            assert_io(error, "openat", &locks.join("new"), Errno::ACCESS);
        }
        match space.create("new") {
            Err(LockFileError::Io(error)) => {
                assert_io_error(&error, "openat", &locks.join("new"), Errno::ACCESS);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(open_numbers(), before);
        assert_eq!(names_in(&locks), ["theirs"]);
    });
    allow(&locks, 0o700);
}

#[test]
fn a_directory_without_permission_is_told_with_the_path() {
    let dir = folder();
    let locks = dir.path().join("locks");
    fs::create_dir(&locks).unwrap();
    allow(&locks, 0o000);
    as_nobody(|| {
        let before = open_numbers();
        match LockSpace::open(Naming::md5(&locks)) {
            Err(OpenError::Io(error)) => assert_io_error(&error, "openat", &locks, Errno::ACCESS),
            other => panic!("{other:?}"),
        }
        assert_eq!(open_numbers(), before);
    });
    allow(&locks, 0o700);
}

#[test]
fn a_file_that_cannot_be_removed_stays_where_delete_was_asked() {
    let dir = folder();
    let locks = dir.path().join("locks");
    fs::create_dir(&locks).unwrap();
    let lock_file = file(locks.join("a"), 0o666);
    allow(&locks, 0o555);
    as_nobody(|| {
        let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
        match space.delete("a") {
            Err(LockFileError::Io(e)) => assert_io_error(&e, "unlinkat", &lock_file, Errno::ACCESS),
            other => panic!("{other:?}"),
        }
        granted(&space, Request::exclusive("a")).release().unwrap();
    });
    allow(&locks, 0o700);
}

/// Runs `work` in a child, on a file system that can only be read, mounted at the path that it
/// gets, and on which there is a file `a`, and a directory `locks` with a file `b`.
fn on_a_read_only_file_system(work: impl FnOnce(&Path)) {
    if !is_root() {
        return skip_or_fail("a read-only file system", "only root may mount");
    }
    let dir = folder();
    let at = dir.path();
    let why = ask_child(|| {
        let mounted = unshare_mounts().and_then(|()| {
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            mount("tmpfs", at, "tmpfs", MountFlags::empty(), None)?;
            Ok(())
        });
        if let Err(error) = mounted {
            return format!("mount: {error}");
        }
        file(at.join("a"), 0o666);
        fs::create_dir(at.join("locks")).unwrap();
        file(at.join("locks/b"), 0o666);
        mount_remount(at, MountFlags::RDONLY, "").unwrap();
        assert!(fs::write(at.join("c"), "").is_err(), "the file system is not read-only");
        work(at);
        String::new()
    });
    if !why.is_empty() {
        skip_or_fail("a read-only file system", &why);
    }
}

#[test]
fn on_a_read_only_file_system_an_image_is_held_shared_and_explained_otherwise() {
    on_a_read_only_file_system(|at| {
        let space = LockSpace::open(Naming::direct()).unwrap();
        let image = at.join("a");
        let before = open_numbers();
        for request in [Request::exclusive(&image), Request::shared(&image).upgradable()] {
            assert_eq!(bad(refused(&space, request), &image), InvalidRequest::ReadOnly);
        }
        assert_eq!(open_numbers(), before);
        let lease = granted(&space, Request::shared(&image));
        lease.verify().unwrap();
        lease.release().unwrap();
    });
}

#[test]
fn on_a_read_only_file_system_a_lock_file_is_told_with_the_path() {
    on_a_read_only_file_system(|at| {
        let locks = at.join("locks");
        let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
        let before = open_numbers();
        for mode in BOTH {
            for name in ["b", "new"] {
                let error = refused(&space, Request::new(mode, name).auto_create());
                assert_io(error, "openat", &locks.join(name), Errno::ROFS);
            }
        }
        assert_eq!(open_numbers(), before);
        let missing = at.join("missing");
        match LockSpace::open(Naming::md5(&missing)) {
            Err(OpenError::Io(error)) => assert_io_error(&error, "mkdir", &missing, Errno::ROFS),
            other => panic!("{other:?}"),
        }
    });
}
