//! Changing the mode of a lease: what is held stays held throughout.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::forked::{Forked, Gate, fork, ran_alone};
use crate::support::process::held;
use crate::support::waits::{LONG, Waiting, child_watches, open_below, start};
use lockspace::{
    AcquireError, Busy, Cancel, InvalidRequest, Lease, LockSpace, Mode, Naming, OwnerId,
};
use lockspace::{Request, Target, Wait};
use tempfile::TempDir;

const A: OwnerId = OwnerId::new(1);
const B: OwnerId = OwnerId::new(2);
const C: OwnerId = OwnerId::new(3);
const NAME: &str = "disk";

/// A space with a lock file, or in memory.
struct Room {
    space: LockSpace,
    dir: Option<TempDir>,
}

impl Room {
    fn on_disk() -> Self {
        let dir = TempDir::new().unwrap();
        let space = space_in(dir.path());
        space.create(NAME).unwrap();
        Self { space, dir: Some(dir) }
    }

    fn both() -> [Self; 2] {
        [Self::on_disk(), Self { space: LockSpace::open(Naming::in_memory()).unwrap(), dir: None }]
    }

    fn file(&self) -> PathBuf {
        self.dir.as_ref().unwrap().path().join(NAME)
    }

    fn hold(&self, owner: OwnerId, mode: Mode) -> Lease {
        self.space.acquire(owner, Request::new(mode, NAME), Wait::NO).unwrap()
    }

    fn start(&self, owner: OwnerId, mode: Mode) -> Waiting<Result<Lease, AcquireError>> {
        let space = self.space.clone();
        start(move || space.acquire(owner, Request::new(mode, NAME), Wait::FOREVER)).sleeps()
    }

    /// How it is held, by the space's word and, where there is a file, by the kernel's.
    #[track_caller]
    fn is_held(&self, mode: Mode) {
        assert_eq!(self.space.list()[0].mode, mode);
        if self.dir.is_some() {
            assert_eq!(held(&self.file()), Some(mode));
        }
    }
}

fn space_in(dir: &Path) -> LockSpace {
    LockSpace::open(Naming::verbatim(dir)).unwrap()
}

/// What a wait to become exclusive has brought, and the lease.
type Upgraded = (Result<(), AcquireError>, Lease);

/// Upgrades in a thread of its own.
fn upgrade(mut lease: Lease, wait: Wait) -> Waiting<Upgraded> {
    start(move || (lease.upgrade(wait), lease))
}

#[track_caller]
fn busy(result: Result<(), AcquireError>) -> Busy {
    match result {
        Err(AcquireError::Busy(busy)) => busy,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn is_deadlock(result: Result<(), AcquireError>) {
    let Err(AcquireError::Deadlock { name, .. }) = &result else { panic!("{result:?}") };
    assert_eq!(name, NAME);
}

#[track_caller]
fn is_not_upgradable(result: Result<(), AcquireError>) {
    let bad =
        matches!(&result, Err(AcquireError::Invalid { why: InvalidRequest::NotUpgradable, .. }));
    assert!(bad, "{result:?}");
}

/// A child that holds it shared until it is told to go.
fn shared_by_child(dir: &Path) -> (Forked, Arc<Gate>) {
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
            let refused = busy(lease.upgrade(wait));
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

#[test]
fn an_upgrade_can_be_cancelled_and_keeps_the_shared_hold() {
    for room in Room::both() {
        for by_owner in [false, true] {
            let cancel = Cancel::new();
            let other = room.hold(B, Mode::Shared);
            let wait = Wait::FOREVER.unless(&cancel);
            let waiting = upgrade(room.hold(A, Mode::Shared), wait).sleeps();
            if by_owner {
                room.space.release_owner(A);
            } else {
                cancel.cancel();
            }
            let (ended, lease) = waiting.join();
            assert!(matches!(ended, Err(AcquireError::Cancelled { .. })), "{ended:?}");
            assert_eq!(lease.mode(), Mode::Shared);
            drop(other);
            room.is_held(Mode::Shared);
            drop(lease);
        }
    }
}

#[test]
fn an_upgrade_waits_until_the_other_holder_leaves() {
    for room in Room::both() {
        for wait in [Wait::within(LONG), Wait::FOREVER, Wait::within(Duration::MAX)] {
            let others = (room.hold(B, Mode::Shared), room.hold(C, Mode::Shared));
            let waiting = upgrade(room.hold(A, Mode::Shared), wait).sleeps();
            drop(others.0);
            assert!(!waiting.is_finished());
            drop(others.1);
            let (upgraded, lease) = waiting.join();
            upgraded.unwrap();
            assert_eq!(lease.mode(), Mode::Exclusive);
            room.is_held(Mode::Exclusive);
            drop(lease);
            assert_eq!(room.space.list(), []);
        }
    }
}

#[test]
fn an_upgrade_waits_for_a_holder_in_another_process() {
    for killed in [false, true] {
        let room = Room::on_disk();
        let (child, go) = shared_by_child(room.dir.as_ref().unwrap().path());
        let waiting = upgrade(room.hold(A, Mode::Shared), Wait::within(LONG)).watches();
        if killed {
            child.kill();
        } else {
            go.open();
            child.join();
        }
        let (upgraded, lease) = waiting.join();
        upgraded.unwrap();
        room.is_held(Mode::Exclusive);
        drop(lease);
    }
}

/// By another name of the same file: that holder does not know of this queue.
#[test]
fn an_upgrade_waits_for_a_holder_by_another_name() {
    let dir = TempDir::new().unwrap();
    let [image, link] = ["image", "link"].map(|name| dir.path().join(name));
    File::create(&image).unwrap();
    fs::hard_link(&image, &link).unwrap();
    let space = LockSpace::open(Naming::direct()).unwrap();
    let request = Request::shared(&image).upgradable();
    let lease = space.acquire(A, request, Wait::NO).unwrap();
    let other = space.acquire(B, Request::shared(&link), Wait::NO).unwrap();
    let waiting = upgrade(lease, Wait::within(Duration::from_secs(20))).sleeps();
    drop(other);
    let (upgraded, lease) = waiting.join();
    upgraded.expect("the other name is free since long");
    assert_eq!(held(&image), Some(Mode::Exclusive));
    drop(lease);
}

#[test]
fn a_waiting_upgrader_goes_before_exclusive_requests_that_queue() {
    for room in Room::both() {
        let other = room.hold(B, Mode::Shared);
        let lease = room.hold(A, Mode::Shared);
        let queued = room.start(C, Mode::Exclusive);
        let waiting = upgrade(lease, Wait::FOREVER).sleeps();
        drop(other);
        let (upgraded, lease) = waiting.join();
        upgraded.unwrap();
        assert!(!queued.is_finished());
        drop(lease);
        drop(queued.join().unwrap());
        assert_eq!(room.space.list(), []);
    }
}

#[test]
fn a_second_upgrader_is_told_at_once_that_both_would_wait_for_ever() {
    for room in Room::both() {
        let mut second = room.hold(B, Mode::Shared);
        let waiting = upgrade(room.hold(A, Mode::Shared), Wait::FOREVER).sleeps();
        is_deadlock(second.upgrade(Wait::FOREVER));
        is_deadlock(second.upgrade(Wait::within(LONG)));
        assert_eq!(busy(second.upgrade(Wait::NO)).owners(), [A]);
        assert_eq!(second.mode(), Mode::Shared);
        room.is_held(Mode::Shared);
        assert!(!waiting.is_finished());
        drop(second);
        let (upgraded, lease) = waiting.join();
        upgraded.expect("the second has left");
        assert_eq!(lease.mode(), Mode::Exclusive);
    }
}

#[test]
fn an_upgrade_that_waits_for_a_second_hold_of_its_owner_is_a_deadlock() {
    for room in Room::both() {
        let second = room.hold(A, Mode::Shared);
        let mut lease = room.hold(A, Mode::Shared);
        for wait in [Wait::FOREVER, Wait::within(LONG)] {
            is_deadlock(lease.upgrade(wait));
        }
        assert_eq!(busy(lease.upgrade(Wait::NO)).owners(), [A]);
        // Kept or leased.
        second.keep();
        is_deadlock(lease.upgrade(Wait::FOREVER));
        room.is_held(Mode::Shared);
        room.space.release(A, NAME).unwrap();
        lease.upgrade(Wait::FOREVER).unwrap();
    }
}

#[test]
fn shared_tries_are_refused_while_an_upgrader_waits() {
    for room in Room::both() {
        let other = room.hold(B, Mode::Shared);
        let waiting = upgrade(room.hold(A, Mode::Shared), Wait::FOREVER).sleeps();
        let refused = room.space.acquire(C, Request::shared(NAME), Wait::NO).map(drop);
        let said = "held shared by owner 1 and 1 more, and an exclusive request waits";
        let refused = busy(refused).to_string();
        assert!(refused.contains(said), "{refused}");
        // Who waits is let in when the upgrader is through.
        let queued = room.start(C, Mode::Shared);
        drop(other);
        let (upgraded, mut lease) = waiting.join();
        upgraded.unwrap();
        assert!(!queued.is_finished());
        lease.downgrade().unwrap();
        drop(queued.join().unwrap());
    }
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
        busy(lease.upgrade(Wait::NO));
        if joins.is_finished() {
            break;
        }
    }
    done.store(true, SeqCst);
    joins.join().expect("the owner shares it already");
}

#[test]
fn a_downgrade_lets_in_who_waits_to_share() {
    if ran_alone() {
        return;
    }
    for room in Room::both() {
        let mut lease = room.hold(A, Mode::Exclusive);
        let waiting = [B, C].map(|owner| room.start(owner, Mode::Shared));
        lease.downgrade().unwrap();
        let joined = waiting.map(|waiting| waiting.join().unwrap());
        assert_eq!(room.space.list()[0].owners.len(), 3);
        drop((lease, joined));
    }
    // And other processes, by their poll.
    let room = Room::on_disk();
    let mut lease = room.hold(A, Mode::Exclusive);
    let children = [B, C].map(|owner| {
        fork(|| {
            let space = space_in(room.dir.as_ref().unwrap().path());
            drop(space.acquire(owner, Request::shared(NAME), Wait::within(LONG)).unwrap());
        })
    });
    children.iter().for_each(|child| child_watches(child.pid()));
    lease.downgrade().unwrap();
    children.into_iter().for_each(Forked::join);
    room.is_held(Mode::Shared);
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
    assert_eq!(busy(lease.upgrade(Wait::NO)).held(), None);
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
