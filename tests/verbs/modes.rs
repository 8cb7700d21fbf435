//! What libvirt's own lockspace test shows, in its order, and what its verbs promise beside:
//! exclusive and shared holds, and how long an auto-created file lives.

use std::fs::{self, File};

use crate::support::locks::held;
use crate::support::spaces::{A, B, busy, granted, is_empty, verbatim};
use lockspace::{LockFileError, LockSpace, Mode, Naming, Request};

#[test]
fn an_exclusive_hold_excludes_everybody_its_own_owner_too() {
    let (dir, space) = verbatim();
    space.create("a").unwrap();
    let lease = granted(&space, A, Request::exclusive("a"));
    for owner in [A, B] {
        for (mode, request) in
            [(Mode::Exclusive, Request::exclusive("a")), (Mode::Shared, Request::shared("a"))]
        {
            let busy = busy(&space, owner, request);
            assert_eq!((busy.owners(), busy.held()), (&[A][..], Some(Mode::Exclusive)));
            assert_eq!((busy.name(), busy.path()), ("a".as_ref(), &*dir.path().join("a")));
            assert_eq!((busy.asked(), busy.waited().is_zero()), (mode, true));
        }
    }
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
    lease.release().unwrap();
    assert_eq!(held(&dir.path().join("a")), None);
    granted(&space, B, Request::exclusive("a")).release().unwrap();
    assert!(dir.path().join("a").exists(), "it was created by hand and stays");
}

#[test]
fn two_resources_are_held_side_by_side() {
    let (_dir, space) = verbatim();
    let leases = ["a", "b"].map(|name| granted(&space, A, Request::exclusive(name).auto_create()));
    assert_eq!(leases.each_ref().map(|lease| held(lease.path())), [Some(Mode::Exclusive); 2]);
}

#[test]
fn shared_holds_stand_side_by_side_and_keep_an_exclusive_one_out_until_the_last_is_gone() {
    let (dir, space) = verbatim();
    space.create("a").unwrap();
    let first = granted(&space, A, Request::shared("a"));
    let refused = busy(&space, B, Request::exclusive("a"));
    assert_eq!((refused.owners(), refused.held()), (&[A][..], Some(Mode::Shared)));
    let second = granted(&space, B, Request::shared("a"));
    assert_eq!(busy(&space, A, Request::exclusive("a")).owners(), [A, B]);

    first.release().unwrap();
    assert_eq!(busy(&space, A, Request::exclusive("a")).owners(), [B]);
    assert_eq!(held(second.path()), Some(Mode::Shared));
    second.release().unwrap();
    assert_eq!(held(&dir.path().join("a")), None);
    let _third = granted(&space, A, Request::exclusive("a"));
}

#[test]
fn an_auto_created_file_lives_as_long_as_its_exclusive_hold() {
    let (dir, space) = verbatim();
    let lease = granted(&space, A, Request::exclusive("a").auto_create());
    assert!(dir.path().join("a").is_file());
    busy(&space, A, Request::exclusive("a").auto_create());
    busy(&space, B, Request::exclusive("a").auto_create());
    assert!(dir.path().join("a").is_file());
    lease.release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn an_auto_created_file_lives_as_long_as_its_last_shared_hold() {
    let (dir, space) = verbatim();
    let first = granted(&space, A, Request::shared("a").auto_create());
    busy(&space, B, Request::exclusive("a").auto_create());
    let second = granted(&space, B, Request::shared("a").auto_create());
    first.release().unwrap();
    assert!(dir.path().join("a").is_file());
    assert_eq!(held(second.path()), Some(Mode::Shared));
    second.release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn an_auto_created_file_that_another_space_shares_stays_for_it() {
    let (dir, space) = verbatim();
    let other = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let ours = granted(&space, A, Request::shared("a").auto_create());
    let theirs = granted(&other, B, Request::shared("a").auto_create());
    ours.release().unwrap();
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Shared));
    theirs.release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn who_asked_for_auto_creation_removes_a_file_that_was_left_behind() {
    let (dir, space) = verbatim();
    File::create(dir.path().join("a")).unwrap();
    granted(&space, A, Request::exclusive("a").auto_create()).release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn a_direct_space_works_on_full_paths() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.raw");
    let space = LockSpace::open(Naming::direct()).unwrap();
    space.create(&image).unwrap();
    fs::write(&image, "content").unwrap();
    space.create(&image).unwrap();

    let lease = granted(&space, A, Request::exclusive(&image));
    assert_eq!((lease.name(), lease.path()), (image.as_os_str(), &*image));
    assert_eq!(held(&image), Some(Mode::Exclusive));
    assert!(matches!(space.create(&image), Err(LockFileError::Busy(_))));
    assert!(matches!(space.delete(&image), Err(LockFileError::Busy(_))));
    lease.release().unwrap();
    assert_eq!(held(&image), None);
    assert_eq!(fs::read(&image).unwrap(), b"content");

    space.delete(&image).unwrap();
    assert!(is_empty(dir.path()));
}
