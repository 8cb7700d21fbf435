//! Changing the mode of a lease: what is held stays held throughout.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use crate::support::forked::{Forked, Gate, fork};
use crate::support::locks::held;
use crate::support::process::open_below;
use crate::support::spaces::{A, B, C, NAME, Room, expect_busy, space_in};
use crate::support::waits::{LONG, Waiting, start};
use lockspace::{
    AcquireError, InvalidRequest, Lease, LockSpace, Mode, Naming, OwnerId, Request, Target, Wait,
};
use tempfile::TempDir;

/// What a wait to become exclusive has brought, and the lease.
pub(crate) type Upgraded = (Result<(), AcquireError>, Lease);

/// Upgrades in a thread of its own.
pub(crate) fn upgrade(mut lease: Lease, wait: Wait) -> Waiting<Upgraded> {
    start(move || (lease.upgrade(wait), lease))
}

#[track_caller]
fn is_not_upgradable(result: Result<(), AcquireError>) {
    let bad =
        matches!(&result, Err(AcquireError::Invalid { why: InvalidRequest::NotUpgradable, .. }));
    assert!(bad, "{result:?}");
}

/// A child that holds it shared until it is told to go.
pub(crate) fn shared_by_child(dir: &Path) -> (Forked, Arc<Gate>) {
    let (ready, go) = (Gate::new(), Arc::new(Gate::new()));
    let child = fork(|| {
        let space = space_in(dir);
        let lease = space.acquire(C, Request::shared(NAME), Wait::NO).unwrap();
        ready.open();
        go.wait();
        drop(lease);
    });
    ready.wait();
    (child, go)
}

#[test]
fn the_only_hold_changes_its_mode_there_and_back() {
    for room in Room::both() {
        for wait in [Wait::NO, Wait::within(LONG), Wait::FOREVER, Wait::until(Instant::now())] {
            let mut lease = room.hold(A, Mode::Shared);
            room.is_held(Mode::Shared);
            for _ in 0..2 {
                lease.upgrade(wait.clone()).unwrap();
                assert_eq!(lease.mode(), Mode::Exclusive);
                room.is_held(Mode::Exclusive);
                lease.verify().unwrap();
                // What it is already, it becomes again.
                lease.upgrade(wait.clone()).unwrap();
                let refused = room.space.acquire(B, Request::shared(NAME), Wait::NO);
                assert!(matches!(refused, Err(AcquireError::Busy(_))));

                lease.downgrade().unwrap();
                assert_eq!(lease.mode(), Mode::Shared);
                room.is_held(Mode::Shared);
                lease.verify().unwrap();
                lease.downgrade().unwrap();
                drop(room.hold(B, Mode::Shared));
            }
            lease.release().unwrap();
            assert_eq!(room.space.list(), []);
        }
    }
}

#[test]
fn a_kept_hold_comes_back_in_the_mode_that_it_was_changed_to() {
    for room in Room::both() {
        let mut lease = room.hold(A, Mode::Shared);
        lease.upgrade(Wait::NO).unwrap();
        lease.keep();
        let mut lease = room.space.retake(A, NAME).unwrap();
        assert_eq!(lease.mode(), Mode::Exclusive);
        lease.downgrade().unwrap();
        lease.keep();
        assert_eq!(room.space.retake(A, NAME).unwrap().mode(), Mode::Shared);
    }
}

#[test]
fn an_upgrade_that_is_refused_keeps_the_shared_hold() {
    let short = Duration::from_millis(40);
    let refused = |room: &Room, held: Option<Mode>, owners: &[OwnerId]| {
        let mut lease = room.hold(A, Mode::Shared);
        for least in [None, Some(Duration::ZERO), Some(short)] {
            let started = Instant::now();
            let wait = least.map_or(Wait::NO, Wait::within);
            let least = least.unwrap_or_default();
            let refused = expect_busy(lease.upgrade(wait));
            assert!(started.elapsed() >= least && refused.waited() + short / 10 >= least);
            assert_eq!((refused.held(), refused.asked()), (held, Mode::Exclusive));
            assert_eq!(refused.owners(), owners);
            assert_eq!(lease.mode(), Mode::Shared);
            room.is_held(Mode::Shared);
            lease.verify().unwrap();
            // Nobody is kept out for the sake of an upgrade that has ended.
            drop(room.hold(B, Mode::Shared));
        }
    };
    for room in Room::both() {
        let _other = room.hold(B, Mode::Shared);
        refused(&room, Some(Mode::Shared), &[B]);
    }
    let room = Room::on_disk();
    let (child, go) = shared_by_child(room.dir.as_ref().unwrap().path());
    refused(&room, None, &[]);
    go.open();
    child.join();
    let other = space_in(room.dir.as_ref().unwrap().path());
    let lease = other.acquire(C, Request::shared(NAME), Wait::NO).unwrap();
    refused(&room, None, &[]);
    drop(lease);
}

/// It holds it shared before and after, so it can share it meanwhile as well.
#[test]
fn an_upgrade_that_is_tried_and_refused_disturbs_no_other_hold_of_its_owner() {
    let room = Room::on_disk();
    let other = space_in(room.dir.as_ref().unwrap().path());
    let _outside = other.acquire(C, Request::shared(NAME), Wait::NO).unwrap();
    let mut lease = room.hold(A, Mode::Shared);
    let done = Arc::new(AtomicBool::new(false));
    let joins = {
        let (space, done) = (room.space.clone(), Arc::clone(&done));
        start(move || {
            while !done.load(SeqCst) {
                let joined = space.acquire(A, Request::shared(NAME), Wait::within(LONG));
                joined.map(drop)?;
            }
            Ok::<_, AcquireError>(())
        })
    };
    for _ in 0..20_000 {
        expect_busy(lease.upgrade(Wait::NO));
        if joins.is_finished() {
            break;
        }
    }
    done.store(true, SeqCst);
    joins.join().expect("the owner shares it already");
}

#[test]
fn a_direct_space_upgrades_what_was_asked_for_as_upgradable_only() {
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("image");
    File::create(&image).unwrap();
    let space = LockSpace::open(Naming::direct()).unwrap();
    let mut lease = space.acquire(A, Request::shared(&image), Wait::NO).unwrap();
    for wait in [Wait::NO, Wait::within(LONG), Wait::FOREVER] {
        is_not_upgradable(lease.upgrade(wait));
        assert_eq!((lease.mode(), held(&image)), (Mode::Shared, Some(Mode::Shared)));
    }
    // Nor is it waited for others, and what joins a hold gets that hold's file.
    let request = Request::shared(&image).upgradable();
    let mut other = space.acquire(B, request, Wait::NO).unwrap();
    for lease in [&mut lease, &mut other] {
        is_not_upgradable(lease.upgrade(Wait::FOREVER));
    }
    drop((lease, other));
    let request = Request::shared(&image).upgradable();
    let mut lease = space.acquire(A, request, Wait::within(LONG)).unwrap();
    lease.upgrade(Wait::within(LONG)).unwrap();
    assert_eq!((lease.mode(), held(&image)), (Mode::Exclusive, Some(Mode::Exclusive)));
    drop(lease);
    assert!(image.exists());
    // What was exclusive once can become so again.
    let mut lease = space.acquire(A, Request::exclusive(&image), Wait::NO).unwrap();
    lease.downgrade().unwrap();
    lease.upgrade(Wait::NO).unwrap();
    assert_eq!(held(&image), Some(Mode::Exclusive));
}

#[test]
fn an_open_file_is_upgraded_if_it_can_be_written() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("image");
    File::create(&path).unwrap();
    let space = LockSpace::open(Naming::direct()).unwrap();
    let file = File::open(&path).unwrap();
    let request = Request::shared(Target::opened("a", &file));
    let mut lease = space.acquire(A, request, Wait::NO).unwrap();
    for wait in [Wait::NO, Wait::FOREVER] {
        is_not_upgradable(lease.upgrade(wait));
    }
    assert_eq!(held(&path), Some(Mode::Shared));
    drop(lease);

    let file = File::options().read(true).write(true).open(&path).unwrap();
    let request = Request::shared(Target::opened("a", &file));
    let mut lease = space.acquire(A, request, Wait::NO).unwrap();
    for wait in [Wait::NO, Wait::FOREVER] {
        lease.upgrade(wait).unwrap();
        assert_eq!(held(&path), Some(Mode::Exclusive));
        lease.downgrade().unwrap();
        assert_eq!(held(&path), Some(Mode::Shared));
    }
    // Another one shares it: the wait is the same.
    let other = LockSpace::open(Naming::direct()).unwrap();
    let theirs = other.acquire(B, Request::shared(&path), Wait::NO).unwrap();
    assert_eq!(expect_busy(lease.upgrade(Wait::NO)).held(), None);
    let waiting = upgrade(lease, Wait::within(LONG)).watches();
    drop(theirs);
    let (upgraded, lease) = waiting.join();
    upgraded.unwrap();
    lease.verify().unwrap();
    drop(lease);
    assert_eq!(held(&path), None);
}

#[test]
fn the_release_after_a_conversion_removes_an_auto_created_file() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    for conversions in 0..=3 {
        for first in [Mode::Shared, Mode::Exclusive] {
            let request = Request::new(first, NAME).auto_create();
            let mut lease = space.acquire(A, request, Wait::NO).unwrap();
            for _ in 0..conversions {
                match lease.mode() {
                    Mode::Shared => lease.upgrade(Wait::FOREVER).unwrap(),
                    Mode::Exclusive => lease.downgrade().unwrap(),
                }
            }
            assert!(dir.path().join(NAME).exists());
            lease.release().unwrap();
            assert!(!dir.path().join(NAME).exists(), "{first}, {conversions} conversions");
            assert_eq!(open_below(dir.path()), 0);
        }
    }
}
