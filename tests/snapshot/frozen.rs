//! What may happen in a space while it is frozen, and what goes on after the thaw.

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;

use crate::support::locks::held;
use crate::support::spaces::{
    A, Acquired, B, C, NAME, expect_cancelled, in_memory, space_in, wait_for,
};
use crate::support::waits::start;
use lockspace::snapshot::{Snapshot, carried};
use lockspace::{AcquireError, Cancel, Lease, LockSpace, Mode, OwnerId, Request, Wait};
use tempfile::TempDir;

/// As often a race is run that only a wrong lock space can lose.
const ROUNDS: usize = 15;

/// Holds whose releases take a while, for the thaw to be busy with.
const MANY: usize = 100;

/// As often another process takes its turn, which a wait that goes on would take from it.
const TURNS: usize = 100;

fn hold(space: &LockSpace, owner: OwnerId, name: &str) -> Acquired {
    space.acquire(owner, Request::exclusive(name).auto_create(), Wait::NO)
}

fn hold_many(space: &LockSpace) -> Vec<Lease> {
    (0..MANY).map(|index| hold(space, C, &format!("other-{index}")).unwrap()).collect()
}

/// Promise 2, nothing lost: what a snapshot describes stays so, whoever leaves the queue.
#[test]
fn who_leaves_the_queue_of_a_frozen_space_lets_nobody_join() {
    let space = in_memory();
    let _first = space.acquire(A, Request::shared(NAME), Wait::NO).unwrap();
    let cancel = Cancel::new();
    let leaves = wait_for(&space, B, Mode::Exclusive, NAME, Wait::FOREVER.unless(&cancel)).sleeps();
    let joins = wait_for(&space, C, Mode::Shared, NAME, Wait::FOREVER).sleeps();
    let snapshot = Snapshot::take([&space]).unwrap();
    let before = space.list();
    cancel.cancel();
    expect_cancelled(leaves.join(), NAME);
    assert_eq!(space.list(), before, "what is held has changed while frozen");
    drop(snapshot);
    drop(joins.join().unwrap());
}

/// Promise 1, one holder: a frozen space acquires nothing, since no document would tell it.
#[test]
fn who_comes_to_the_head_of_the_queue_of_a_frozen_space_does_not_acquire() {
    (0..ROUNDS).for_each(|_| head_of_frozen());
}

fn head_of_frozen() {
    let dir = TempDir::new().unwrap();
    let (outside, space) = (space_in(dir.path()), space_in(dir.path()));
    outside.create(NAME).unwrap();
    let take = || outside.acquire(A, Request::exclusive(NAME), Wait::NO);
    let taken = take().unwrap();
    let cancel = Cancel::new();
    let head = wait_for(&space, B, Mode::Exclusive, NAME, Wait::FOREVER.unless(&cancel)).watches();
    let next = wait_for(&space, C, Mode::Exclusive, NAME, Wait::FOREVER).sleeps();
    let snapshot = Snapshot::take([&space]).unwrap();
    drop(taken);
    cancel.cancel();
    expect_cancelled(head.join(), NAME);
    for _ in 0..TURNS {
        drop(take().expect("nobody acquires while frozen"));
        assert_eq!(space.list(), [], "acquired while frozen");
        thread::yield_now();
    }
    drop(snapshot);
    next.join().unwrap().verify().unwrap();
}

/// Promise 2, nothing lost: a release that was put off does not end a hold of after the thaw.
#[test]
fn what_was_put_off_does_not_end_a_later_hold_of_the_same_owner() {
    (0..ROUNDS).for_each(|_| put_off_and_later_hold());
}

fn put_off_and_later_hold() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let many = hold_many(&space);
    hold(&space, A, NAME).unwrap().keep();
    let snapshot = Snapshot::take([&space]).unwrap();
    drop(many);
    space.release(A, NAME).unwrap();
    let (tell, told) = mpsc::channel();
    let clone = space.clone();
    // A daemon that cleans up after an owner, and takes the disk for it again.
    let again = start(move || {
        loop {
            clone.release_owner(A);
            match hold(&clone, A, NAME) {
                Ok(lease) => return lease.keep(),
                Err(AcquireError::Frozen { .. } | AcquireError::Busy(_)) => {
                    let _ = tell.send(());
                    thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
    told.recv().expect("it is frozen");
    drop(snapshot);
    again.join();
    let names: Vec<_> = space.list().into_iter().map(|held| held.name).collect();
    assert_eq!(names, [NAME], "the later hold was lost");
    assert_eq!(held(&dir.path().join(NAME)), Some(Mode::Exclusive));
}

/// Promise 3, nothing left: after its release, though put off, an owner does not block itself.
#[test]
fn an_owner_that_let_go_while_frozen_does_not_wait_for_itself_after_the_thaw() {
    (0..ROUNDS).for_each(|_| let_go_while_frozen());
}

fn let_go_while_frozen() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let many = hold_many(&space);
    let mine = hold(&space, A, NAME).unwrap();
    let snapshot = Snapshot::take([&space]).unwrap();
    drop(many);
    drop(mine);
    let again = wait_for(&space, A, Mode::Exclusive, NAME, Wait::FOREVER).sleeps();
    drop(snapshot);
    again.join().unwrap().verify().unwrap();
}

/// Promise 2, nothing lost: a snapshot that is dropped has failed no upgrade that can wait.
#[test]
fn an_upgrade_waits_while_the_space_is_frozen() {
    let space = in_memory();
    let mut lease = space.acquire(A, Request::shared(NAME), Wait::NO).unwrap();
    let snapshot = Snapshot::take([&space]).unwrap();
    let waiting = start(move || lease.upgrade(Wait::FOREVER).map(|()| lease)).sleeps();
    drop(snapshot);
    assert_eq!(waiting.join().unwrap().mode(), Mode::Exclusive);
}

/// Promise 2, nothing lost: a snapshot that is dropped has failed nobody who waits for several.
#[test]
fn acquire_all_waits_while_the_space_is_frozen() {
    let space = in_memory();
    let snapshot = Snapshot::take([&space]).unwrap();
    let clone = space.clone();
    let requests = [Request::shared("base"), Request::exclusive("root")];
    let waiting = start(move || clone.acquire_all(A, requests, Wait::FOREVER)).sleeps();
    drop(snapshot);
    assert_eq!(waiting.join().unwrap().iter().count(), 2);
}

/// Promise 2, nothing lost: no safe call closes a descriptor that somebody else owns.
#[test]
fn carried_closes_no_file_that_this_program_has_opened() {
    let mut snapshot = Snapshot::take([&in_memory()]).unwrap();
    let number = snapshot.carry(b"state").unwrap();
    // Not dropped where it was closed: that ends the whole program.
    let mine = ManuallyDrop::new(File::open(format!("/proc/self/fd/{number}")).unwrap());
    let taken = carried(mine.as_raw_fd().unsigned_abs());
    assert!(taken.is_err(), "a `File` owns it, but it was closed: {taken:?}");
    let mut bytes = [0; 5];
    mine.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"state");
    drop(ManuallyDrop::into_inner(mine));
}

#[test]
fn what_nobody_holds_is_created_and_deleted_in_a_frozen_space() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let snapshot = Snapshot::take([&space]).unwrap();
    space.create(NAME).unwrap();
    assert!(dir.path().join(NAME).exists());
    space.delete(NAME).unwrap();
    assert!(!dir.path().join(NAME).exists());
    drop(snapshot);
}
