//! Who comes by a descriptor and who comes by a path, under one name and under two.

use std::collections::BTreeMap;
use std::fs::{self, File};

use super::{exclusive, opened, shared};
use crate::support::locks::{held, held_at, locks_shown, open};
use crate::support::spaces::{A, B, BOTH, bad, busy, byte, direct, granted, image};
use lockspace::{
    AcquireError, ByteRange, InvalidRequest, LockSpace, Mode, Naming, Origin, Request, Wait,
};

#[test]
fn two_opens_of_one_file_share_one_name() {
    let (_dir, image) = image();
    let space = direct();
    let (one, two) = (open(&image), File::open(&image).unwrap());
    let first = granted(&space, A, shared("disk", &one));
    let second = granted(&space, B, shared("disk", &two));
    assert_eq!(space.list()[0].owners, BTreeMap::from([(A, 1), (B, 1)]));
    assert_eq!(busy(&space, A, exclusive("disk", &one)).owners(), [A, B]);
    first.release().unwrap();
    assert_eq!(held(&image), Some(Mode::Shared));
    second.release().unwrap();
    assert_eq!(held(&image), None);
}

#[test]
fn another_file_under_the_same_name_is_refused() {
    let (dir, image) = image();
    let other = dir.path().join("other");
    fs::write(&other, "").unwrap();
    let space = direct();
    let (file, other) = (open(&image), open(&other));
    let _lease = granted(&space, A, shared("disk", &file));
    assert_eq!(bad(&space, B, shared("disk", &other)), InvalidRequest::OtherFile);
    assert_eq!(locks_shown(&other), 0);
    assert_eq!(held(&image), Some(Mode::Shared));
}

#[test]
fn an_exclusive_hold_by_descriptor_keeps_out_who_comes_by_path() {
    let (_dir, image) = image();
    let space = direct();
    let file = open(&image);
    for name in ["disk", image.to_str().unwrap()] {
        let _lease = granted(&space, A, exclusive(name, &file));
        for mode in BOTH {
            let busy = busy(&space, B, Request::new(mode, &image));
            assert_eq!((busy.owners(), busy.held()), (&[A][..], Some(Mode::Exclusive)));
        }
    }
}

#[test]
fn an_exclusive_hold_by_path_keeps_out_who_comes_by_descriptor() {
    let (_dir, image) = image();
    let space = direct();
    let file = open(&image);
    let _lease = granted(&space, A, Request::exclusive(&image));
    for name in ["disk", image.to_str().unwrap()] {
        for mode in BOTH {
            let busy = busy(&space, B, opened(mode, name, &file));
            assert_eq!((busy.owners(), busy.held()), (&[A][..], Some(Mode::Exclusive)));
        }
    }
}

#[test]
fn shared_holds_by_path_and_by_descriptor_are_one_in_a_direct_space() {
    let (_dir, image) = image();
    let (space, name) = (direct(), image.to_str().unwrap());
    let file = open(&image);
    let by_path = || Request::shared(&image);
    let by_descriptor = || shared(name, &file);
    for (first, second, origin) in [
        (by_path(), by_descriptor(), Origin::Existing),
        (by_descriptor(), by_path(), Origin::Opened),
    ] {
        let first = granted(&space, A, first);
        let second = granted(&space, B, second);
        let [held_here] = &space.list()[..] else { panic!("{:?}", space.list()) };
        assert_eq!(held_here.origin, origin);
        assert_eq!(held_here.owners, BTreeMap::from([(A, 1), (B, 1)]));
        first.release().unwrap();
        assert_eq!(held(&image), Some(Mode::Shared));
        second.release().unwrap();
        assert_eq!(held(&image), None);
    }
}

#[test]
fn a_path_that_leads_elsewhere_does_not_meet_a_descriptor_under_its_name() {
    let (dir, image) = image();
    let (space, name) = (direct(), image.to_str().unwrap());
    let file = open(&image);
    let _lease = granted(&space, A, shared(name, &file));
    fs::rename(&image, dir.path().join("away")).unwrap();
    let missing = space.acquire(B, Request::shared(&image), Wait::NO);
    assert!(matches!(missing, Err(AcquireError::NotFound { .. })), "{missing:?}");
    fs::write(&image, "another").unwrap();
    assert_eq!(bad(&space, B, Request::shared(&image)), InvalidRequest::OtherFile);
    assert_eq!(held(&image), None);
}

#[test]
fn a_lock_file_does_not_meet_a_descriptor_under_its_name() {
    let (_dir, image) = image();
    let locks = tempfile::tempdir().unwrap();
    let file = open(&image);
    for naming in [Naming::md5(locks.path()), Naming::in_memory()] {
        let space = LockSpace::open(naming).unwrap();
        let by_name = || Request::shared("disk").auto_create();
        let lease = granted(&space, A, by_name());
        assert_eq!(bad(&space, B, shared("disk", &file)), InvalidRequest::OtherFile);
        drop(lease);
        let _lease = granted(&space, A, shared("disk", &file));
        assert_eq!(bad(&space, B, by_name()), InvalidRequest::OtherFile);
        assert_eq!(fs::read_dir(locks.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_shared_hold_is_joined_on_its_own_bytes_only() {
    let (_dir, image) = image();
    let space = direct();
    let (one, two) = (open(&image), open(&image));
    let _lease = granted(&space, A, shared("disk", &one).range(byte(5)));
    assert_eq!(
        bad(&space, B, shared("disk", &two)),
        InvalidRequest::OtherRange { held: byte(5), asked: ByteRange::FIRST }
    );
    granted(&space, B, shared("disk", &two).range(byte(5))).release().unwrap();
}

#[test]
fn two_opens_hold_two_ranges_of_one_file_under_two_names() {
    let (_dir, image) = image();
    let space = direct();
    let (one, two) = (open(&image), open(&image));
    let first = granted(&space, A, exclusive("left", &one).range(byte(5)));
    let second = granted(&space, A, exclusive("right", &two).range(byte(6)));
    first.release().unwrap();
    assert_eq!([5, 6].map(|at| held_at(&image, at)), [None, Some(Mode::Exclusive)]);
    second.verify().unwrap();
}
