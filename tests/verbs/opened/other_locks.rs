//! Other locks of the same open file stay, whatever becomes of the hold.

use std::fs::{self, File};
use std::path::Path;

use super::{exclusive, opened, shared};
use crate::support::locks::{held, held_at, ofd_lock, open, unlock_ofd};
use crate::support::spaces::{A, B, BOTH, byte, direct, granted, image};
use crate::support::waits::{LONG, start};
use lockspace::{
    AcquireError, Cancel, InvalidRequest, Lease, LockSpace, Mode, Request, VerifyError, Wait,
};

/// What a QEMU that writes locks through the descriptor that it was given: shared, byte by byte.
const QEMUS: [i64; 5] = [100, 101, 103, 201, 203];

fn lock_as_qemu(file: &File) {
    QEMUS.iter().for_each(|&at| ofd_lock(file, false, at, 1).unwrap());
}

#[track_caller]
fn assert_qemus(image: &Path) {
    for at in QEMUS {
        assert_eq!(held_at(image, at), Some(Mode::Shared), "byte {at}");
    }
    assert_eq!(held_at(image, 102), None);
    assert_eq!(held_at(image, 200), None);
}

/// Not by the close alone: a child of another test may share the descriptor.
fn unlock_all(file: &File) {
    unlock_ofd(file, 0, 0).unwrap();
}

#[test]
fn the_end_of_a_hold_leaves_what_others_have_locked_through_the_same_open_file() {
    let (_dir, image) = image();
    type End = fn(LockSpace, Lease);
    let ends: [End; 5] = [
        |_, lease| lease.release().unwrap(),
        |_, lease| drop(lease),
        |space, lease| {
            lease.keep();
            space.release(A, "disk").unwrap();
        },
        |space, lease| {
            lease.keep();
            assert_eq!(space.release_owner(A).holds, 1);
        },
        |space, lease| {
            lease.keep();
            drop(space);
        },
    ];
    // Far from QEMU's bytes, and their neighbours: the kernel makes one lock of those.
    for (at, end) in [0, 99, 104].into_iter().flat_map(|at| ends.map(|end| (at, end))) {
        for mode in BOTH {
            let (space, file) = (direct(), open(&image));
            let request = opened(mode, "disk", &file).range(byte(at));
            let lease = granted(&space, A, request);
            lock_as_qemu(&file);
            lease.verify().unwrap();
            assert_eq!(held_at(&image, at as i64), Some(mode));
            end(space, lease);
            assert_eq!(held_at(&image, at as i64), None);
            assert_qemus(&image);
            unlock_all(&file);
        }
    }
}

#[test]
fn a_hold_that_lost_its_byte_is_found_out_beside_others_locks() {
    let (_dir, image) = image();
    for mode in BOTH {
        let file = open(&image);
        let lease = granted(&direct(), A, opened(mode, "disk", &file).range(byte(99)));
        lock_as_qemu(&file);
        lease.verify().unwrap();
        unlock_ofd(&file, 99, 1).unwrap();
        assert!(matches!(lease.verify(), Err(VerifyError::Unlocked { .. })));
        drop(lease);
        assert_qemus(&image);
        unlock_all(&file);
    }
}

#[test]
fn a_conversion_leaves_the_other_locks_of_the_open_file() {
    let (_dir, image) = image();
    let (space, other, file) = (direct(), direct(), open(&image));
    let mut lease = granted(&space, A, shared("disk", &file).range(byte(99)));
    lock_as_qemu(&file);
    // Refused, at once and after a wait.
    let theirs = granted(&other, B, Request::shared(&image).range(byte(99)));
    for wait in [Wait::NO, Wait::within(std::time::Duration::from_millis(20))] {
        assert!(matches!(lease.upgrade(wait), Err(AcquireError::Busy(_))));
        assert_eq!(held_at(&image, 99), Some(Mode::Shared));
        assert_qemus(&image);
    }
    drop(theirs);
    for _ in 0..2 {
        lease.upgrade(Wait::NO).unwrap();
        lease.verify().unwrap();
        assert_eq!(held_at(&image, 99), Some(Mode::Exclusive));
        assert_qemus(&image);
        lease.downgrade().unwrap();
        lease.verify().unwrap();
        assert_eq!(held_at(&image, 99), Some(Mode::Shared));
        assert_qemus(&image);
    }
    drop(lease);
    assert_eq!(held_at(&image, 99), None);
    assert_qemus(&image);
    unlock_all(&file);
}

#[test]
fn a_refusal_leaves_the_other_locks_of_the_open_file() {
    let (_dir, image) = image();
    let (space, file) = (direct(), open(&image));
    lock_as_qemu(&file);
    for mode in BOTH {
        for wait in [Wait::NO, Wait::within(LONG)] {
            let requests = || [Request::shared(&image).range(byte(7)), opened(mode, "disk", &file)];
            let [_, alone] = requests();
            for refused in [
                space.acquire(A, alone, wait.clone()).map(drop),
                space.acquire_all(A, requests(), wait).map(drop),
            ] {
                let why = match refused {
                    Err(AcquireError::Invalid { why, .. }) => why,
                    other => panic!("not bad: {other:?}"),
                };
                assert_eq!(why, InvalidRequest::CarriesLock);
                assert_qemus(&image);
            }
        }
    }
    unlock_all(&file);
}

#[test]
fn several_that_are_given_back_leave_the_other_locks_of_the_open_file() {
    let (dir, image) = image();
    let second = dir.path().join("b.raw");
    fs::write(&second, "").unwrap();
    let (space, other, file) = (direct(), direct(), open(&image));
    let theirs = lockspace::OwnerId::new(9);
    let _theirs = granted(&other, theirs, Request::exclusive(&second));
    let _ours = granted(&space, A, shared("disk", &file));
    lock_as_qemu(&file);
    let requests = || [shared("disk", &file), Request::exclusive(&second)];
    for wait in [Wait::NO, Wait::within(std::time::Duration::from_millis(300))] {
        let refused = space.acquire_all(B, requests(), wait);
        assert!(matches!(refused, Err(AcquireError::Busy(_))), "{refused:?}");
        assert_eq!(held(&image), Some(Mode::Shared));
        assert_qemus(&image);
    }
    unlock_ofd(&file, 100, 0).unwrap();
}

#[test]
fn a_wait_in_vain_leaves_what_others_have_locked_through_the_same_open_file_meanwhile() {
    let (_dir, image) = image();
    for cancelled in [true, false] {
        let (space, other) = (direct(), direct());
        let file = open(&image);
        let theirs = granted(&other, B, Request::exclusive(&image));
        let (cancel, duplicate) = (Cancel::new(), file.try_clone().unwrap());
        let wait = Wait::within(LONG).unless(&cancel);
        let waiting = start(move || space.acquire(A, exclusive("disk", &duplicate), wait));
        let waiting = waiting.watches();
        lock_as_qemu(&file);
        if cancelled {
            cancel.cancel();
        } else {
            // What is free now would be a second hold on a description that carries a lock.
            theirs.release().unwrap();
        }
        match waiting.join() {
            Err(AcquireError::Invalid { why: InvalidRequest::CarriesLock, .. }) => {}
            // Unless it has looked again since.
            Err(AcquireError::Cancelled { .. }) if cancelled => {}
            ended => panic!("{ended:?}"),
        }
        assert_qemus(&image);
        unlock_all(&file);
    }
}
