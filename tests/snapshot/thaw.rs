//! What a snapshot freezes, and what goes on when it is dropped.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::support::locks::is_free_for_others;
use crate::support::spaces::{
    A, B, expect_frozen, expect_not_held, hold_as, in_memory, owners_of, space_in,
};
use crate::support::waits::{LONG, start};
use lockspace::snapshot::Snapshot;
use lockspace::{AcquireError, Cancel, Mode, OwnerId, Request, Wait};
use serde_json::json;

fn counts<const N: usize>(owners: [(OwnerId, u32); N]) -> BTreeMap<OwnerId, u32> {
    owners.into()
}

#[test]
fn what_is_released_meanwhile_is_released_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let lease = hold_as(&space, A, Mode::Exclusive, "dropped");
    let released = hold_as(&space, A, Mode::Exclusive, "released");
    for name in ["by-name", "by-owner"] {
        for _ in 0..2 {
            hold_as(&space, A, Mode::Shared, name).keep();
        }
        hold_as(&space, B, Mode::Shared, name).keep();
    }
    let stays = hold_as(&space, A, Mode::Exclusive, "stays");

    let snapshot = Snapshot::take([&space]).unwrap();
    let before = space.list().len();
    drop(lease);
    released.release().unwrap();
    // One of two; the second; a third there never was.
    space.release(A, "by-name").unwrap();
    space.release(A, "by-name").unwrap();
    expect_not_held(space.release(A, "by-name"), A, "by-name");
    expect_not_held(space.retake(A, "by-name"), A, "by-name");
    // What remains of the owner's: the two holds of the other.
    assert_eq!(space.release_owner(A).holds, 2);
    assert_eq!(space.release_owner(A).holds, 0);
    expect_not_held(space.release(A, "by-owner"), A, "by-owner");
    expect_not_held(space.release(OwnerId::new(3), "by-owner"), OwnerId::new(3), "by-owner");
    expect_not_held(space.release(A, "stays"), A, "stays");
    assert_eq!(space.list().len(), before, "nothing has happened yet");
    for name in ["dropped", "released", "by-name", "by-owner", "stays"] {
        assert!(!is_free_for_others(&dir.path().join(name)), "{name}");
    }

    drop(snapshot);
    assert_eq!(owners_of(&space, "by-name"), counts([(B, 1)]));
    assert_eq!(owners_of(&space, "by-owner"), counts([(B, 1)]));
    assert_eq!(owners_of(&space, "stays"), counts([(A, 1)]));
    assert_eq!(space.list().len(), 3);
    assert!(!dir.path().join("dropped").exists() && !dir.path().join("released").exists());
    stays.verify().unwrap();
    assert_eq!(space.release_owner(B).holds, 2);
    assert_eq!(space.list().len(), 1);
}

#[test]
fn the_last_handle_and_the_leases_may_go_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    hold_as(&space, A, Mode::Exclusive, "kept").keep();
    let lease = hold_as(&space, A, Mode::Exclusive, "lease");
    let snapshot = Snapshot::take([&space]).unwrap();
    drop(space);
    drop(lease);
    assert!(!is_free_for_others(&dir.path().join("kept")));
    assert!(!is_free_for_others(&dir.path().join("lease")));
    drop(snapshot);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn keeping_and_retaking_go_on_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let lease = hold_as(&space, A, Mode::Exclusive, "a");
    hold_as(&space, A, Mode::Exclusive, "b").keep();
    let snapshot = Snapshot::take([&space]).unwrap();
    expect_not_held(space.release(A, "a"), A, "a");
    lease.keep();
    space.release(A, "a").unwrap();
    // It is as good as released: nobody may have it as a lease again.
    expect_not_held(space.retake(A, "a"), A, "a");
    let lease = space.retake(A, "b").unwrap();
    expect_not_held(space.release(A, "b"), A, "b");
    assert_eq!(space.release_owner(A).holds, 0);
    lease.verify().unwrap();
    drop(snapshot);
    let names: Vec<_> = space.list().into_iter().map(|held| held.name).collect();
    assert_eq!(names, ["b"]);
    lease.verify().unwrap();
}

#[test]
fn tries_are_refused_and_waits_go_on_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let mut shared = hold_as(&space, A, Mode::Shared, "shared");
    let mut other = hold_as(&space, A, Mode::Exclusive, "other");
    let held = hold_as(&space, A, Mode::Exclusive, "held");
    let snapshot = Snapshot::take([&space]).unwrap();
    let request = |name| Request::shared(name).auto_create();
    expect_frozen(space.acquire(B, request("new"), Wait::NO), "new");
    // Also to join needs to change what is held.
    expect_frozen(space.acquire(B, request("shared"), Wait::NO), "shared");
    expect_frozen(shared.upgrade(Wait::NO), "shared");
    expect_frozen(other.downgrade(), "other");
    expect_frozen(space.acquire_all(B, [request("x"), request("y")], Wait::NO), "x");
    let soon = Wait::within(Duration::from_millis(30));
    expect_frozen(space.acquire(B, request("new"), soon), "new");
    let cancel = Cancel::new();
    let wait = |name: &'static str, wait: Wait| {
        let (space, request) = (space.clone(), request(name));
        start(move || space.acquire(B, request, wait)).sleeps_for_others()
    };
    let [new, join, queued] = ["new", "shared", "held"].map(|name| wait(name, Wait::within(LONG)));
    let cancelled = wait("other", Wait::FOREVER.unless(&cancel));
    cancel.cancel();
    let cancelled = cancelled.join();
    assert!(matches!(cancelled, Err(AcquireError::Cancelled { .. })), "{cancelled:?}");
    assert!(![&new, &join, &queued].iter().any(|wait| wait.is_finished()));
    drop(held);
    assert!(!queued.is_finished());
    drop(snapshot);
    assert_eq!(new.join().unwrap().name(), "new");
    assert_eq!(join.join().unwrap().name(), "shared");
    assert_eq!(queued.join().unwrap().name(), "held");
    shared.upgrade(Wait::NO).unwrap();
    other.downgrade().unwrap();
}

#[test]
fn what_was_released_meanwhile_is_not_taken_for_a_deadlock() {
    let space = in_memory();
    let acquire = |request| space.acquire(A, request, Wait::NO).unwrap();
    let (released, mut kept) = (acquire(Request::shared("a")), acquire(Request::shared("a")));
    let other = acquire(Request::exclusive("b"));
    let snapshot = Snapshot::take([&space]).unwrap();
    drop((released, other));
    let soon = Wait::within(Duration::from_millis(20));
    expect_frozen(kept.upgrade(soon.clone()), "a");
    let requests = [Request::exclusive("b")];
    expect_frozen(space.acquire_all(A, requests, soon), "b");
    drop(snapshot);
    kept.upgrade(Wait::NO).unwrap();
    drop(acquire(Request::exclusive("b")));
}

#[test]
fn a_wait_that_began_before_goes_on_afterwards() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let held = hold_as(&space, A, Mode::Exclusive, "a");
    // And one for what another space holds.
    let outside = space_in(dir.path());
    let theirs = hold_as(&outside, A, Mode::Exclusive, "b");
    let wait = |name: &'static str| {
        let (space, request) = (space.clone(), Request::exclusive(name).auto_create());
        start(move || space.acquire(B, request, Wait::within(LONG)))
    };
    let here = wait("a").sleeps_for_others();
    let there = wait("b").watches();
    let snapshot = Snapshot::take([&space]).unwrap();
    assert_eq!(json!(snapshot.documents())[0]["resources"].as_array().unwrap().len(), 1);
    drop(held);
    drop(theirs);
    // Both know of it, and sleep on: the one because the release is put off, the other because it
    // must not lock anything now.
    let waits = [here, there].map(|wait| wait.sleeps_for_others());
    drop(snapshot);
    for wait in waits {
        assert_eq!(wait.join().unwrap().owner(), B);
    }
}

#[test]
fn the_last_of_several_snapshots_thaws() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = ["1", "2"].map(|name| space_in(&dir.path().join(name)));
    let lease = hold_as(&one, A, Mode::Exclusive, "a");
    let first = Snapshot::take([&one, &other]).unwrap();
    let second = Snapshot::take([&one]).unwrap();
    assert_eq!((first.documents().len(), second.documents().len()), (2, 1));
    assert_eq!(first.documents()[0], second.documents()[0]);
    assert_ne!(first.documents()[1], second.documents()[0]);
    drop(lease);
    drop(first);
    assert_eq!(one.list().len(), 1);
    let request = || Request::exclusive("b").auto_create();
    expect_frozen(one.acquire(A, request(), Wait::NO), "b");
    let _free = other.acquire(A, request(), Wait::NO).unwrap();
    // A failed exec of the last one thaws, too.
    let _ = second.exec(&mut Command::new("/no/such/program"));
    assert_eq!(one.list(), []);
    one.acquire(A, request(), Wait::NO).unwrap().release().unwrap();
}
