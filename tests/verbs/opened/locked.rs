//! What can be locked, and what is left of it in the end.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::PermissionsExt;

use super::{exclusive, opened};
use crate::support::forked::in_child;
use crate::support::locks::{held, held_at, locks_shown, ofd_lock, open, unlock_ofd};
use crate::support::process::{become_nobody, is_root};
use crate::support::spaces::{A, BOTH, byte, direct, granted, image};
use lockspace::{AcquireError, LockSpace, Mode, Naming, Origin, Request, VerifyError, Wait};

#[test]
fn an_open_file_is_locked_itself() {
    let (_dir, image) = image();
    let space = direct();
    for mode in BOTH {
        let file = open(&image);
        let lease = granted(&space, A, opened(mode, "disk", &file));
        assert_eq!((lease.name(), lease.path()), (OsStr::new("disk"), &*image));
        assert_eq!((lease.owner(), lease.mode()), (A, mode));
        assert_eq!(held(&image), Some(mode));
        lease.verify().unwrap();
        lease.release().unwrap();
        assert_eq!(held(&image), None);
    }
}

#[test]
fn the_caller_may_close_its_descriptor() {
    let (_dir, image) = image();
    let space = direct();
    let file = open(&image);
    let lease = granted(&space, A, exclusive("disk", &file));
    drop(file);
    assert_eq!(held(&image), Some(Mode::Exclusive));
    lease.verify().unwrap();
    lease.release().unwrap();
    assert_eq!(held(&image), None);
}

#[test]
fn every_naming_takes_an_open_file_and_makes_none_of_its_own() {
    let (_dir, image) = image();
    let locks = tempfile::tempdir().unwrap();
    let namings = [Naming::md5(locks.path()), Naming::verbatim(locks.path()), Naming::in_memory()];
    for naming in namings {
        let space = LockSpace::open(naming).unwrap();
        // A slash is no matter: it is no file's name.
        let file = open(&image);
        let lease = granted(&space, A, exclusive("/a/disk", &file).auto_create());
        assert_eq!(held(&image), Some(Mode::Exclusive));
        assert_eq!(fs::read_dir(locks.path()).unwrap().count(), 0);
        lease.release().unwrap();
    }
}

#[test]
fn an_open_file_is_locked_though_it_could_not_be_opened_again() {
    let (dir, image) = image();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    in_child(|| {
        let file = open(&image);
        // Root's own file, and for who is not root, a file that nobody may open.
        fs::set_permissions(&image, Permissions::from_mode(0o000)).unwrap();
        if is_root() {
            become_nobody();
        }
        let space = direct();
        for mode in BOTH {
            match space.acquire(A, Request::new(mode, &image), Wait::NO) {
                Err(AcquireError::Io(error)) => assert_eq!(error.path, image),
                other => panic!("{other:?}"),
            }
            let lease = granted(&space, A, opened(mode, "disk", &file));
            assert_eq!(locks_shown(&file), 1);
            lease.verify().unwrap();
            lease.release().unwrap();
            assert_eq!(locks_shown(&file), 0);
        }
    });
}

#[test]
fn an_open_file_without_a_name_is_locked() {
    let (_dir, image) = image();
    let file = open(&image);
    fs::remove_file(&image).unwrap();
    let lease = granted(&direct(), A, exclusive("disk", &file));
    assert_eq!(locks_shown(&file), 1);
    lease.verify().unwrap();
    lease.release().unwrap();
    assert_eq!(locks_shown(&file), 0);
}

#[test]
fn the_bytes_that_were_asked_for_are_locked() {
    let (_dir, image) = image();
    let file = open(&image);
    let lease = granted(&direct(), A, exclusive("disk", &file).range(byte(7)));
    let seen = [6, 7, 8].map(|at| held_at(&image, at));
    assert_eq!(seen, [None, Some(Mode::Exclusive), None]);
    lease.verify().unwrap();
}

#[test]
fn a_release_removes_no_file() {
    let (dir, image) = image();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    for mode in BOTH {
        let file = open(&image);
        // Even where its name is that of a lock file, and it was asked for.
        let lease = granted(&space, A, opened(mode, "a.raw", &file).auto_create());
        assert_eq!(space.list()[0].origin, Origin::Opened);
        lease.release().unwrap();
        assert_eq!(fs::read(&image).unwrap(), b"content");
    }
}

#[test]
fn the_callers_descriptor_stays_usable_and_carries_no_lock_afterwards() {
    let (_dir, image) = image();
    let mut file = open(&image);
    let flags = rustix::fs::fcntl_getfl(&file).unwrap();
    let lease = granted(&direct(), A, exclusive("disk", &file));
    let use_it = |file: &mut File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        file.write_all(b"+").unwrap();
        text
    };
    assert_eq!(use_it(&mut file), "content");
    assert_eq!(locks_shown(&file), 1);
    lease.release().unwrap();
    assert_eq!(locks_shown(&file), 0);
    assert_eq!(use_it(&mut file), "content+");
    assert_eq!(rustix::fs::fcntl_getfl(&file).unwrap(), flags);
    assert_eq!(held(&image), None);
    ofd_lock(&file, true, 0, 1).unwrap();
}

#[test]
fn a_kept_hold_by_descriptor_is_released_by_its_name() {
    let (_dir, image) = image();
    let space = direct();
    let file = open(&image);
    granted(&space, A, exclusive("disk", &file)).keep();
    drop(file);
    assert_eq!(held(&image), Some(Mode::Exclusive));
    space.release(A, "disk").unwrap();
    assert_eq!(held(&image), None);
}

#[test]
fn a_lock_that_the_caller_takes_away_through_its_descriptor_is_found_out() {
    let (_dir, image) = image();
    let file = open(&image);
    let lease = granted(&direct(), A, exclusive("disk", &file));
    unlock_ofd(&file, 0, 1).unwrap();
    assert!(matches!(lease.verify(), Err(VerifyError::Unlocked { .. })));
}
