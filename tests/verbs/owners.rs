//! What libvirt's own lockspace test shows, in its order, and what its verbs promise beside:
//! owners, kept holds and leases.

use std::collections::BTreeMap;

use crate::support::locks::{held, held_at};
use crate::support::spaces::{A, B, busy, expect_not_held, granted, is_empty, owners_of, verbatim};
use lockspace::{ByteRange, LockSpace, Mode, Naming, Origin, OwnerId, Request};

#[test]
fn an_owner_that_holds_shared_twice_must_release_twice() {
    let (dir, space) = verbatim();
    for _ in 0..2 {
        granted(&space, A, Request::shared("a").auto_create()).keep();
    }
    assert_eq!(owners_of(&space, "a"), BTreeMap::from([(A, 2)]));
    space.release(A, "a").unwrap();
    assert_eq!(owners_of(&space, "a"), BTreeMap::from([(A, 1)]));
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Shared));
    space.release(A, "a").unwrap();
    assert!(is_empty(dir.path()));
    expect_not_held(space.release(A, "a"), A, "a");
}

#[test]
fn release_owner_ends_every_kept_hold_of_the_owner_double_ones_too() {
    let (dir, space) = verbatim();
    for name in ["a", "b", "b", "c", "c", "c"] {
        granted(&space, A, Request::shared(name).auto_create()).keep();
    }
    granted(&space, A, Request::exclusive("d").auto_create()).keep();
    let released = space.release_owner(A);
    assert_eq!((released.holds, released.leftovers.len()), (7, 0));
    assert!(is_empty(dir.path()));
    assert!(space.list().is_empty());
    assert_eq!(space.release_owner(A).holds, 0);
}

#[test]
fn release_owner_ends_nobody_elses_holds() {
    let (dir, space) = verbatim();
    let three = OwnerId::new(3);
    granted(&space, A, Request::shared("a").auto_create()).keep();
    granted(&space, B, Request::shared("a").auto_create()).keep();
    granted(&space, three, Request::shared("a").auto_create()).keep();
    granted(&space, A, Request::exclusive("b").auto_create()).keep();
    granted(&space, three, Request::exclusive("c").auto_create()).keep();
    assert_eq!(space.release_owner(B).holds, 1);
    assert_eq!(owners_of(&space, "a"), BTreeMap::from([(A, 1), (three, 1)]));
    assert_eq!(owners_of(&space, "b"), BTreeMap::from([(A, 1)]));
    assert_eq!(owners_of(&space, "c"), BTreeMap::from([(three, 1)]));
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Shared));
    assert_eq!(held(&dir.path().join("b")), Some(Mode::Exclusive));
}

#[test]
fn release_owner_leaves_leases_alone() {
    let (_dir, space) = verbatim();
    let leased = granted(&space, A, Request::shared("a").auto_create());
    granted(&space, A, Request::shared("a").auto_create()).keep();
    let other = granted(&space, A, Request::exclusive("b").auto_create());
    assert_eq!(space.release_owner(A).holds, 1);
    assert_eq!(owners_of(&space, "a"), BTreeMap::from([(A, 1)]));
    assert_eq!(held(leased.path()), Some(Mode::Shared));
    assert_eq!(held(other.path()), Some(Mode::Exclusive));
}

#[test]
fn a_lease_cannot_be_released_by_its_name() {
    let (_dir, space) = verbatim();
    let lease = granted(&space, A, Request::exclusive("a").auto_create());
    expect_not_held(space.release(A, "a"), A, "a");
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
}

#[test]
fn a_kept_hold_outlives_its_lease_until_it_is_released() {
    let (dir, space) = verbatim();
    granted(&space, A, Request::exclusive("a").auto_create()).keep();
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Exclusive));
    assert_eq!(busy(&space, B, Request::exclusive("a")).owners(), [A]);
    space.release(A, "a").unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn a_kept_hold_can_be_taken_back_as_a_lease() {
    let (dir, space) = verbatim();
    granted(&space, A, Request::exclusive("a").auto_create()).keep();
    let lease = space.retake(A, "a").unwrap();
    assert_eq!((lease.name(), lease.owner()), ("a".as_ref(), A));
    assert_eq!((lease.mode(), lease.path()), (Mode::Exclusive, &*dir.path().join("a")));
    assert_eq!(space.release_owner(A).holds, 0);
    expect_not_held(space.release(A, "a"), A, "a");
    expect_not_held(space.retake(A, "a").map(drop), A, "a");
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
    drop(lease);
    assert!(is_empty(dir.path()));
}

#[test]
fn of_two_kept_holds_one_can_be_taken_back() {
    let (_dir, space) = verbatim();
    for _ in 0..2 {
        granted(&space, A, Request::shared("a").auto_create()).keep();
    }
    let lease = space.retake(A, "a").unwrap();
    assert_eq!(space.release_owner(A).holds, 1);
    assert_eq!(held(lease.path()), Some(Mode::Shared));
}

#[test]
fn releasing_what_is_not_held_is_an_error_that_changes_nothing() {
    let (dir, space) = verbatim();
    granted(&space, A, Request::exclusive("a").auto_create()).keep();
    space.create("b").unwrap();
    expect_not_held(space.release(B, "a"), B, "a");
    expect_not_held(space.retake(B, "a").map(drop), B, "a");
    expect_not_held(space.release(A, "b"), A, "b");
    expect_not_held(space.release(A, "nothing"), A, "nothing");
    assert_eq!(space.release_owner(B).holds, 0);
    assert_eq!(owners_of(&space, "a"), BTreeMap::from([(A, 1)]));
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Exclusive));
    assert!(dir.path().join("b").exists());
    space.release(A, "a").unwrap();
}

#[test]
fn the_list_tells_all_that_is_held() {
    let (dir, space) = verbatim();
    assert!(space.list().is_empty());
    space.create("a").unwrap();
    let _leases = [
        granted(&space, A, Request::exclusive("a")),
        granted(&space, A, Request::shared("b").auto_create().range(ByteRange::WHOLE_FILE)),
        granted(&space, B, Request::shared("b").auto_create().range(ByteRange::WHOLE_FILE)),
    ];
    granted(&space, B, Request::shared("b").range(ByteRange::WHOLE_FILE)).keep();
    let mut list = space.list();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    let [a, b] = &list[..] else { panic!("{list:?}") };

    assert_eq!((&*a.name, &*a.path), ("a".as_ref(), &*dir.path().join("a")));
    assert_eq!((a.mode, a.origin, a.range), (Mode::Exclusive, Origin::Existing, ByteRange::FIRST));
    assert_eq!(a.owners, BTreeMap::from([(A, 1)]));

    assert_eq!((&*b.name, &*b.path), ("b".as_ref(), &*dir.path().join("b")));
    assert_eq!((b.mode, b.origin), (Mode::Shared, Origin::AutoCreated));
    assert_eq!(b.range, ByteRange::WHOLE_FILE);
    assert_eq!(b.owners, BTreeMap::from([(A, 1), (B, 2)]));
}

#[test]
fn of_several_shared_holds_the_first_decides_whether_the_file_goes() {
    let (dir, space) = verbatim();
    space.create("a").unwrap();
    let first = granted(&space, A, Request::shared("a"));
    let second = granted(&space, B, Request::shared("a").auto_create());
    assert_eq!(space.list()[0].origin, Origin::Existing);
    drop((first, second));
    assert!(dir.path().join("a").exists());

    let first = granted(&space, A, Request::shared("a").auto_create());
    let second = granted(&space, B, Request::shared("a"));
    assert_eq!(space.list()[0].origin, Origin::AutoCreated);
    drop((first, second));
    assert!(is_empty(dir.path()));
}

#[test]
fn dropping_the_last_handle_releases_kept_holds() {
    let (dir, space) = verbatim();
    granted(&space, A, Request::exclusive("a").auto_create()).keep();
    granted(&space, A, Request::shared("b").auto_create()).keep();
    granted(&space, B, Request::shared("b").auto_create()).keep();
    let clone = space.clone();
    drop(space);
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Exclusive));
    drop(clone);
    assert!(is_empty(dir.path()));
}

#[test]
fn dropping_the_last_handle_releases_kept_holds_although_a_lease_lives_on() {
    let (dir, space) = verbatim();
    granted(&space, A, Request::exclusive("a").auto_create()).keep();
    let lease = granted(&space, A, Request::exclusive("b").auto_create());
    drop(space);
    assert!(!dir.path().join("a").exists());
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
}

#[test]
fn a_lease_lives_on_when_the_last_handle_is_dropped() {
    let (dir, space) = verbatim();
    let lease = granted(&space, A, Request::shared("a").auto_create());
    granted(&space, A, Request::shared("a").auto_create()).keep();
    drop(space);
    assert_eq!(held(lease.path()), Some(Mode::Shared));
    lease.verify().unwrap();
    lease.release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn the_space_says_which_bytes_are_locked_unless_the_request_does() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::builder(Naming::verbatim(dir.path())).range(ByteRange::WHOLE_FILE);
    let space = space.open().unwrap();
    let lease = granted(&space, A, Request::exclusive("a").auto_create());
    assert_eq!(
        [0, 1, i64::MAX - 1].map(|at| held_at(lease.path(), at)),
        [Some(Mode::Exclusive); 3]
    );
    let first = Request::exclusive("b").auto_create().range(ByteRange::FIRST);
    let lease = granted(&space, A, first);
    assert_eq!([0, 1].map(|at| held_at(lease.path(), at)), [Some(Mode::Exclusive), None]);
}
