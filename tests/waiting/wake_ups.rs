//! Who waits for what is held elsewhere is told of its end, and does not find it at the next look:
//! that comes once in 100 ms. Each is the best of several, as a busy machine can delay any of them.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::alone::alone;
use crate::support::forked::{Gate, fork};
use crate::support::locks::open;
use crate::support::spaces::{A, B, HoldingChild, NAME, Room, auto, granted, space_in};
use crate::support::waits::{LONG, start};
use lockspace::{LockSpace, Mode, Request, Wait};
use tempfile::TempDir;

/// Far below the time between two looks, and far above what it takes to be told.
const TOLD: Duration = Duration::from_millis(40);

/// Fails unless a wait is granted so soon after `release`, which ends what the space waits for.
#[track_caller]
fn is_told<H>(
    space: &LockSpace,
    request: &Request<'static>,
    mut hold: impl FnMut() -> H,
    mut release: impl FnMut(&mut H),
) {
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let mut held = hold();
        let (space, request) = (space.clone(), request.clone());
        let waiting = start(move || {
            let lease = space.acquire(B, request, Wait::within(LONG)).unwrap();
            (Instant::now(), lease)
        });
        // It has just looked, and sleeps until it is told, or for 100 ms.
        let waiting = waiting.watches();
        let released = Instant::now();
        release(&mut held);
        let (granted, lease) = waiting.join();
        lease.verify().unwrap();
        best = best.min(granted.saturating_duration_since(released));
    }
    assert!(best < TOLD, "it was told after {best:?}");
}

#[test]
fn a_wait_is_told_when_another_space_releases() {
    let room = Room::on_disk();
    let other = space_in(room.dir());
    for mode in [Mode::Exclusive, Mode::Shared] {
        let hold = || Some(granted(&other, A, Request::exclusive(NAME)));
        is_told(&room.space, &Request::new(mode, NAME), hold, |lease| drop(lease.take()));
    }
}

#[test]
fn a_wait_is_told_when_another_process_releases() {
    let room = Room::on_disk();
    let hold = || HoldingChild::start(room.dir(), Request::exclusive(NAME), drop);
    is_told(&room.space, &Request::exclusive(NAME), hold, |holder| holder.go.open());
}

#[test]
fn a_wait_is_told_when_the_holder_is_killed() {
    let room = Room::on_disk();
    let hold = || Some(HoldingChild::start(room.dir(), Request::exclusive(NAME), drop));
    is_told(&room.space, &Request::exclusive(NAME), hold, |holder| {
        holder.take().unwrap().child.kill();
    });
}

/// It waits for a file that goes, and gets one that is made then.
#[test]
fn a_wait_is_told_when_the_lock_file_is_removed() {
    let dir = TempDir::new().unwrap();
    let (space, other) = (space_in(dir.path()), space_in(dir.path()));
    let hold = || Some(granted(&other, A, auto(NAME)));
    is_told(&space, &auto(NAME), hold, |lease| drop(lease.take()));
}

/// The holder's descriptor stays open elsewhere, so that nothing but the file's name tells of it.
#[test]
fn a_wait_is_told_when_the_lock_file_loses_its_name() {
    let dir = TempDir::new().unwrap();
    let (space, other) = (space_in(dir.path()), space_in(dir.path()));
    let path = dir.path().join(NAME);
    let hold = || {
        let lease = granted(&other, A, auto(NAME));
        (lease, open(&path))
    };
    is_told(&space, &auto(NAME), hold, |(_, _)| std::fs::remove_file(&path).unwrap());
}

/// As on /run.
#[test]
fn a_wait_is_told_of_what_is_in_memory() {
    let dir = crate::support::spaces::folder_in_memory();
    let (space, other) = (space_in(dir.path()), space_in(dir.path()));
    let hold = || Some(granted(&other, A, auto(NAME)));
    is_told(&space, &auto(NAME), hold, |lease| drop(lease.take()));
}

#[test]
fn an_upgrade_is_told_when_another_space_leaves() {
    let room = Room::on_disk();
    let other = space_in(room.dir());
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let theirs = granted(&other, A, Request::shared(NAME));
        let mut lease = room.hold(B, Mode::Shared);
        let waiting = start(move || {
            lease.upgrade(Wait::within(LONG)).unwrap();
            (Instant::now(), lease)
        });
        let waiting = waiting.watches();
        let released = Instant::now();
        drop(theirs);
        let (granted, _lease) = waiting.join();
        best = best.min(granted.saturating_duration_since(released));
    }
    assert!(best < TOLD, "it was told after {best:?}");
}

/// An unlock without a close is found at the next look, and not later.
#[test]
fn what_no_event_tells_of_is_found_at_the_next_look() {
    alone(|| {
        let room = Room::on_disk();
        let mut best = Duration::MAX;
        for _ in 0..5 {
            best = best.min(unlocked_and_not_closed(&room.space, &room.file()));
        }
        assert!(best < 3 * Duration::from_millis(100), "it looked after {best:?}");
    });
}

/// How long a wait needs to find that a lock is gone, of which two processes have the descriptor.
fn unlocked_and_not_closed(space: &LockSpace, file: &Path) -> Duration {
    use crate::support::locks::{ofd_lock, unlock_ofd};

    let file = open(file);
    ofd_lock(&file, true, 0, 1).unwrap();
    let never = Gate::new();
    let _child = fork(|| never.wait());
    let space = space.clone();
    let waiting = start(move || {
        let lease = space.acquire(B, Request::exclusive(NAME), Wait::within(LONG)).unwrap();
        (Instant::now(), lease)
    });
    let waiting = waiting.watches();
    let unlocked = Instant::now();
    unlock_ofd(&file, 0, 0).unwrap();
    let (granted, _lease) = waiting.join();
    granted.saturating_duration_since(unlocked)
}
