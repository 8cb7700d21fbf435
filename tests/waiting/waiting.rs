//! Waiting: who waits is granted when the holder goes, whoever that is and however it goes; ends at
//! its deadline and never before; and leaves nothing behind when it ends with nothing.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::forked::{
    Forked, Gate, Kind, Lock, exit_now, fork, is_free_for_others, open, ran_alone, set_lock,
    shared_memory,
};
use crate::support::hung_fs::HungFs;
use crate::support::interop::skip_or_fail;
use crate::support::process::held;
use crate::support::waits::{LONG, Waiting, child_watches, eventually, helpers, open_below, start};
use lockspace::{AcquireError, Busy, Cancel, Lease, LockSpace, Mode, Naming, OwnerId};
use lockspace::{Request, Wait};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

const A: OwnerId = OwnerId::new(1);
const B: OwnerId = OwnerId::new(2);
const C: OwnerId = OwnerId::new(3);
const NAME: &str = "disk";
/// Long enough that a wait which ends too early is seen.
const SHORT: Duration = Duration::from_millis(200);

type Acquired = Result<Lease, AcquireError>;

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

    fn in_memory() -> Self {
        Self { space: LockSpace::open(Naming::in_memory()).unwrap(), dir: None }
    }

    fn both() -> [Self; 2] {
        [Self::on_disk(), Self::in_memory()]
    }

    fn dir(&self) -> &Path {
        self.dir.as_ref().unwrap().path()
    }

    fn file(&self) -> PathBuf {
        self.dir().join(NAME)
    }

    fn hold(&self, owner: OwnerId, mode: Mode) -> Lease {
        self.space.acquire(owner, Request::new(mode, NAME), Wait::NO).unwrap()
    }

    fn start(&self, owner: OwnerId, mode: Mode, wait: Wait) -> Waiting<Acquired> {
        let space = self.space.clone();
        start(move || space.acquire(owner, Request::new(mode, NAME), wait))
    }

    fn owners(&self) -> Vec<OwnerId> {
        self.space.list().into_iter().flat_map(|held| held.owners.into_keys()).collect()
    }

    /// Nothing is held, open, locked, or listed.
    #[track_caller]
    fn is_as_new(&self) {
        assert_eq!(self.space.list(), []);
        if let Some(dir) = &self.dir {
            assert_eq!(open_below(dir.path()), 0, "descriptors are left");
            assert_eq!(held(&self.file()), None, "a lock is left");
        }
        drop(self.space.acquire(C, Request::exclusive(NAME), Wait::NO).expect("it is free"));
    }
}

fn space_in(dir: &Path) -> LockSpace {
    LockSpace::open(Naming::verbatim(dir)).unwrap()
}

/// Every way to say that it may take long.
fn long_waits() -> [(&'static str, Wait); 6] {
    let cancel = Cancel::new();
    [
        ("within", Wait::within(LONG)),
        ("until", Wait::until(Instant::now() + LONG)),
        ("for ever", Wait::FOREVER),
        ("within a time that no clock reaches", Wait::within(Duration::MAX)),
        ("for ever unless cancelled", Wait::FOREVER.unless(&cancel)),
        ("within, unless cancelled", Wait::within(LONG).unless(&cancel)),
    ]
}

#[track_caller]
fn busy(result: Acquired) -> Busy {
    match result {
        Err(AcquireError::Busy(busy)) => busy,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn is_cancelled(result: Acquired) -> Duration {
    match result {
        Err(AcquireError::Cancelled { name, waited }) => {
            assert_eq!(name, NAME);
            waited
        }
        other => panic!("{other:?}"),
    }
}

/// A child that holds the lock file through a space of its own, and says when; then it does what
/// `then` says, once told to, and stays.
struct Holder {
    child: Forked,
    go: Arc<Gate>,
}

fn held_by_child(dir: &Path, request: Request<'_>, then: impl FnOnce(Lease)) -> Holder {
    let (ready, go, never) = (Gate::new(), Arc::new(Gate::new()), Gate::new());
    let child = fork(|| {
        let lease = space_in(dir).acquire(A, request, Wait::NO).unwrap();
        ready.open();
        go.wait();
        then(lease);
        never.wait();
    });
    ready.wait();
    Holder { child, go }
}

// Granted.

#[test]
fn a_wait_is_granted_when_another_thread_releases() {
    for (how, wait) in long_waits() {
        for room in Room::both() {
            let lease = room.hold(A, Mode::Exclusive);
            let waiting = room.start(B, Mode::Exclusive, wait.clone()).sleeps();
            assert_eq!(room.owners(), [A], "{how}");
            drop(lease);
            let lease = waiting.join().expect(how);
            assert_eq!((lease.owner(), lease.mode()), (B, Mode::Exclusive));
            lease.verify().unwrap();
            assert_eq!(room.owners(), [B], "{how}");
            drop(lease);
            room.is_as_new();
        }
    }
}

#[test]
fn a_wait_is_granted_when_a_kept_hold_is_released() {
    for room in Room::both() {
        room.hold(A, Mode::Exclusive).keep();
        let waiting = room.start(B, Mode::Shared, Wait::FOREVER).sleeps();
        room.space.release(A, NAME).unwrap();
        drop(waiting.join().unwrap());
        room.hold(A, Mode::Exclusive).keep();
        let waiting = room.start(B, Mode::Shared, Wait::FOREVER).sleeps();
        assert_eq!(room.space.release_owner(A).holds, 1);
        drop(waiting.join().unwrap());
        room.is_as_new();
    }
}

#[test]
fn a_wait_is_granted_when_another_space_of_the_process_releases() {
    for (how, wait) in long_waits() {
        let room = Room::on_disk();
        let other = space_in(room.dir());
        let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
        let waiting = room.start(B, Mode::Exclusive, wait).watches();
        drop(lease);
        waiting.join().expect(how).verify().unwrap();
        room.is_as_new();
    }
}

#[test]
fn a_wait_is_granted_when_another_process_releases() {
    for (how, wait) in long_waits() {
        for mode in [Mode::Exclusive, Mode::Shared] {
            let room = Room::on_disk();
            let holder = held_by_child(room.dir(), Request::exclusive(NAME), drop);
            let waiting = room.start(B, mode, wait.clone()).watches();
            holder.go.open();
            let lease = waiting.join().expect(how);
            lease.verify().unwrap();
            assert_eq!(held(&room.file()), Some(mode), "{how}");
            drop(lease);
            room.is_as_new();
            holder.child.kill();
        }
    }
}

#[test]
fn a_wait_is_granted_when_the_holders_process_is_killed() {
    let room = Room::on_disk();
    let holder = held_by_child(room.dir(), Request::exclusive(NAME), drop);
    let waiting = room.start(B, Mode::Exclusive, Wait::within(LONG)).watches();
    holder.child.kill();
    waiting.join().unwrap().verify().unwrap();
    room.is_as_new();
}

#[test]
fn a_wait_is_granted_when_another_process_unlinks_and_closes() {
    let dir = TempDir::new().unwrap();
    let request = || Request::exclusive(NAME).auto_create();
    let holder = held_by_child(dir.path(), request(), |lease| lease.release().unwrap());
    let space = space_in(dir.path());
    let waiting = start(move || space.acquire(B, request(), Wait::within(LONG))).watches();
    let path = dir.path().join(NAME);
    let before = fs::metadata(&path).unwrap();
    holder.go.open();
    let lease = waiting.join().unwrap();
    lease.verify().expect("it holds the file that has the name now, not the one that had it");
    drop((lease, before));
    assert!(!path.exists(), "the waiter had asked for auto_create: it cleans up");
    assert_eq!(open_below(dir.path()), 0);
}

/// Who does not ask for it gets no new file: what it waited for is gone.
#[test]
fn a_wait_without_auto_create_ends_when_the_file_is_removed() {
    let dir = TempDir::new().unwrap();
    let request = Request::exclusive(NAME).auto_create();
    let holder = held_by_child(dir.path(), request, |lease| lease.release().unwrap());
    let space = space_in(dir.path());
    let waiting = start({
        let space = space.clone();
        move || space.acquire(B, Request::exclusive(NAME), Wait::FOREVER)
    });
    let waiting = waiting.watches();
    holder.go.open();
    let refused = waiting.join();
    assert!(matches!(refused, Err(AcquireError::NotFound { .. })), "{refused:?}");
    assert_eq!((space.list().len(), open_below(dir.path())), (0, 0));
    assert!(!dir.path().join(NAME).exists());
}

/// Two processes share the holder's open file, so its unlock closes nothing, and no event comes.
#[test]
fn a_wait_is_granted_after_an_unlock_that_no_event_tells_of() {
    let room = Room::on_disk();
    let file = open(room.file());
    assert!(set_lock(&file, Kind::Ofd, Lock::Exclusive, 0, 1).unwrap());
    let (go, never) = (Gate::new(), Gate::new());
    let child = fork(|| {
        go.wait();
        set_lock(&file, Kind::Ofd, Lock::No, 0, 0).unwrap();
        never.wait();
    });
    let waiting = room.start(B, Mode::Exclusive, Wait::within(LONG)).watches();
    go.open();
    waiting.join().expect("the poll finds it").verify().unwrap();
    child.kill();
    drop(file);
}

#[test]
fn a_shared_wait_is_granted_when_the_holder_becomes_shared() {
    // Of this space, of another process: there no event tells it.
    for room in Room::both() {
        let mut lease = room.hold(A, Mode::Exclusive);
        let waiting = room.start(B, Mode::Shared, Wait::FOREVER).sleeps();
        lease.downgrade().unwrap();
        let joined = waiting.join().unwrap();
        assert_eq!(room.owners(), [A, B]);
        drop((lease, joined));
        room.is_as_new();
    }
    let room = Room::on_disk();
    let holder = held_by_child(room.dir(), Request::exclusive(NAME), |mut lease| {
        lease.downgrade().unwrap();
        std::mem::forget(lease);
    });
    let waiting = room.start(B, Mode::Shared, Wait::within(LONG)).watches();
    holder.go.open();
    waiting.join().unwrap().verify().unwrap();
    assert_eq!(held(&room.file()), Some(Mode::Shared), "the child's");
    holder.child.kill();
    room.is_as_new();
}

#[test]
fn a_waiting_process_is_granted_when_this_one_releases() {
    if ran_alone() {
        return;
    }
    let room = Room::on_disk();
    let lease = room.hold(A, Mode::Exclusive);
    let child = fork(|| {
        let space = space_in(room.dir());
        space.acquire(B, Request::exclusive(NAME), Wait::within(LONG)).unwrap().verify().unwrap();
    });
    child_watches(child.pid());
    drop(lease);
    child.join();
    room.is_as_new();
}

// Deadlines.

/// Somebody holds it, in each way that there is: calls `test` with the name of the way, and with
/// who the busy refusal has to name.
fn in_each_way(test: impl Fn(&Room, &str, Option<Mode>)) {
    for room in Room::both() {
        let _lease = room.hold(A, Mode::Exclusive);
        test(&room, "held exclusive in the space", Some(Mode::Exclusive));
    }
    for room in Room::both() {
        let _lease = room.hold(A, Mode::Shared);
        test(&room, "held shared in the space", Some(Mode::Shared));
    }
    let room = Room::on_disk();
    let lease = space_in(room.dir()).acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
    test(&room, "held in another space", None);
    drop(lease);
    let holder = held_by_child(room.dir(), Request::shared(NAME), drop);
    test(&room, "held in another process", None);
    holder.child.kill();
    room.is_as_new();
}

#[test]
fn a_deadline_is_never_early() {
    in_each_way(|room, way, mode| {
        for until in [false, true] {
            for millis in [1, 7, 20, 60, 130] {
                let time = Duration::from_millis(millis);
                let started = Instant::now();
                let wait = if until { Wait::until(started + time) } else { Wait::within(time) };
                let refused = room.space.acquire(B, Request::exclusive(NAME), wait);
                let elapsed = started.elapsed();
                assert!(elapsed >= time, "{way}: {elapsed:?} of {time:?}");
                // On a busy machine, a helper may not have come to ask the file system by then.
                if mode.is_none() && matches!(refused, Err(AcquireError::Unresponsive { .. })) {
                    continue;
                }
                let refused = busy(refused);
                // What it says may leave out the moment before the call.
                let said = refused.waited();
                assert!(said <= elapsed && said + Duration::from_millis(1) >= time, "{said:?}");
                assert_eq!(refused.held(), mode, "{way}");
                assert_eq!(refused.owners(), if mode.is_some() { &[A][..] } else { &[] });
                assert_eq!((refused.name(), refused.asked()), (NAME.as_ref(), Mode::Exclusive));
                assert!(refused.to_string().contains(", waited "), "{refused}");
            }
        }
    });
}

#[test]
fn a_wait_within_a_time_says_that_it_waited_so_long() {
    in_each_way(|room, way, _| {
        let wait = Wait::within(SHORT);
        let made = Instant::now();
        let refused = busy(room.space.acquire(B, Request::exclusive(NAME), wait));
        assert!(refused.waited() + Duration::from_millis(1) >= SHORT, "{way}");
        assert!(refused.waited() <= made.elapsed() + SHORT, "{way}");
    });
}

#[test]
fn a_deadline_in_the_past_tries_once() {
    for past in [Duration::ZERO, Duration::from_millis(50)] {
        let waits = || {
            let now = Instant::now();
            [Wait::until(now.checked_sub(past).unwrap_or(now)), Wait::within(Duration::ZERO)]
        };
        for room in Room::both() {
            for wait in waits() {
                let lease = room.space.acquire(B, Request::exclusive(NAME), wait);
                let lease = lease.unwrap_or_else(|error| panic!("it is free: {error}"));
                lease.verify().unwrap();
                drop(lease);
                room.is_as_new();
            }
        }
        in_each_way(|room, _, mode| {
            for wait in waits() {
                let refused = busy(room.space.acquire(B, Request::exclusive(NAME), wait));
                assert_eq!(refused.held(), mode);
            }
        });
    }
}

#[test]
fn a_time_that_no_clock_reaches_is_for_ever() {
    in_each_way(|room, _, _| {
        let cancel = Cancel::new();
        let wait = Wait::within(Duration::MAX).unless(&cancel);
        let waiting = room.start(B, Mode::Exclusive, wait).sleeps();
        cancel.cancel();
        is_cancelled(waiting.join());
    });
}

// Cancelling.

#[test]
fn a_wait_that_was_cancelled_before_ends_at_once_and_takes_nothing() {
    let cancel = Cancel::new();
    cancel.clone().cancel();
    for (_, wait) in long_waits().into_iter().chain([("no", Wait::NO)]) {
        for room in Room::both() {
            let request = Request::exclusive(NAME).auto_create();
            if room.dir.is_some() {
                room.space.delete(NAME).unwrap();
            }
            is_cancelled(room.space.acquire(B, request, wait.clone().unless(&cancel)));
            assert_eq!(room.space.list(), []);
            if room.dir.is_some() {
                assert!(!room.file().exists(), "it has made a lock file");
                room.space.create(NAME).unwrap();
            }
            room.is_as_new();
        }
    }
}

#[test]
fn a_wait_can_be_cancelled_whoever_holds() {
    in_each_way(|room, _, _| {
        for on_drop in [false, true] {
            let cancel = Cancel::new();
            let wait = Wait::FOREVER.unless(&cancel);
            let started = Instant::now();
            let waiting = room.start(B, Mode::Exclusive, wait).sleeps();
            if on_drop {
                drop(cancel.on_drop());
            } else {
                cancel.cancel();
                assert!(cancel.is_cancelled());
            }
            assert!(is_cancelled(waiting.join()) <= started.elapsed());
        }
    });
}

#[test]
fn one_cancel_ends_all_its_waits_and_no_other() {
    for room in Room::both() {
        let lease = room.hold(A, Mode::Exclusive);
        let cancel = Cancel::new();
        let stays = room.start(C, Mode::Exclusive, Wait::FOREVER.unless(&Cancel::new())).sleeps();
        let go: Vec<_> = (10..20)
            .map(|owner| {
                let wait = Wait::FOREVER.unless(&cancel);
                room.start(OwnerId::new(owner), Mode::Exclusive, wait).sleeps()
            })
            .collect();
        cancel.cancel();
        for waiting in go {
            is_cancelled(waiting.join());
        }
        assert!(!stays.is_finished());
        drop(lease);
        drop(stays.join().unwrap());
        room.is_as_new();
    }
}

#[test]
fn release_owner_cancels_that_owners_waits_only() {
    in_each_way(|room, way, mode| {
        let second = OwnerId::new(30);
        let waits = [B, C, second].map(|o| room.start(o, Mode::Exclusive, Wait::FOREVER).sleeps());
        assert_eq!(room.space.release_owner(C).holds, 0);
        let [b, c, d] = waits;
        is_cancelled(c.join());
        assert!(!b.is_finished() && !d.is_finished(), "{way}");
        assert_eq!(room.space.release_owner(B).holds, 0);
        is_cancelled(b.join());
        assert!(!d.is_finished(), "{way}");
        room.space.release_owner(second);
        is_cancelled(d.join());
        // A wait that begins later is not concerned.
        let wait = Wait::within(SHORT);
        assert_eq!(busy(room.space.acquire(B, Request::exclusive(NAME), wait)).held(), mode);
    });
}

// Nothing stays.

/// How a wait can end with nothing.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Deadline,
    Cancel,
    ReleaseOwner,
}

const ENDINGS: [Ending; 3] = [Ending::Deadline, Ending::Cancel, Ending::ReleaseOwner];

/// Waits as B, and ends the wait.
#[track_caller]
fn wait_in_vain(room: &Room, ending: Ending, mode: Mode, behind: impl FnOnce()) {
    let cancel = Cancel::new();
    let wait = match ending {
        // Longer, so that whoever comes behind is behind it.
        Ending::Deadline => Wait::within(Duration::from_millis(300)),
        _ => Wait::FOREVER.unless(&cancel),
    };
    let waiting = room.start(B, mode, wait).sleeps();
    behind();
    match ending {
        Ending::Deadline => drop(busy(waiting.join())),
        Ending::Cancel => {
            cancel.cancel();
            is_cancelled(waiting.join());
        }
        Ending::ReleaseOwner => {
            room.space.release_owner(B);
            is_cancelled(waiting.join());
        }
    }
}

#[test]
fn a_wait_in_vain_leaves_everything_as_if_never_asked() {
    for ending in ENDINGS {
        in_each_way(|room, way, mode| {
            let before = room.dir.as_ref().map(|dir| open_below(dir.path()));
            let listed = room.space.list();
            wait_in_vain(room, ending, Mode::Exclusive, || {});
            assert_eq!(room.dir.as_ref().map(|dir| open_below(dir.path())), before, "{way}");
            assert_eq!(room.space.list(), listed, "{way}, {ending:?}");
            // A shared request is not refused for the sake of who has gone.
            if mode == Some(Mode::Shared) {
                drop(room.hold(C, Mode::Shared));
            }
        });
    }
}

/// The holder's release finds nobody, and the file goes with it.
#[test]
fn a_wait_in_vain_leaves_no_lock_file() {
    for ending in ENDINGS {
        let dir = TempDir::new().unwrap();
        let room = Room { space: space_in(dir.path()), dir: Some(dir) };
        for inside in [true, false] {
            let space = if inside { room.space.clone() } else { space_in(room.dir()) };
            let request = Request::exclusive(NAME).auto_create();
            let lease = space.acquire(A, request, Wait::NO).unwrap();
            wait_in_vain(&room, ending, Mode::Exclusive, || {});
            lease.release().unwrap();
            assert!(!room.file().exists(), "{ending:?}");
            assert_eq!((room.space.list().len(), open_below(room.dir())), (0, 0));
        }
    }
}

#[test]
fn who_queues_behind_a_wait_in_vain_goes_on() {
    for ending in ENDINGS {
        for room in Room::both() {
            // C could share with A, but waits behind B.
            let lease = room.hold(A, Mode::Shared);
            let mut behind = None;
            wait_in_vain(&room, ending, Mode::Exclusive, || {
                behind = Some(room.start(C, Mode::Shared, Wait::FOREVER).sleeps());
                assert_eq!(room.owners(), [A]);
            });
            let joined = behind.unwrap().join().expect("it joins at once");
            assert_eq!(room.owners(), [A, C], "{ending:?}");
            drop((lease, joined));

            // And where nobody can share, the queue goes on without B.
            let lease = room.hold(A, Mode::Exclusive);
            let mut behind = None;
            wait_in_vain(&room, ending, Mode::Exclusive, || {
                behind = Some(room.start(C, Mode::Exclusive, Wait::FOREVER).sleeps());
            });
            assert_eq!(room.owners(), [A]);
            drop(lease);
            drop(behind.unwrap().join().unwrap());
            room.is_as_new();
        }
        // Outside: B is the one who watches the file, and C takes over from it.
        let room = Room::on_disk();
        let other = space_in(room.dir());
        let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
        let mut behind = None;
        wait_in_vain(&room, ending, Mode::Exclusive, || {
            behind = Some(room.start(C, Mode::Exclusive, Wait::FOREVER).sleeps());
        });
        let behind = behind.unwrap().watches();
        drop(lease);
        drop(behind.join().unwrap());
        room.is_as_new();
    }
}

// The queue.

#[test]
fn threads_are_served_in_the_order_in_which_they_asked() {
    for room in Room::both() {
        let lease = room.hold(A, Mode::Exclusive);
        let (tell, order) = mpsc::channel();
        let waiting: Vec<_> = (10..30)
            .map(|owner| {
                let (space, tell) = (room.space.clone(), tell.clone());
                start(move || {
                    let request = Request::exclusive(NAME);
                    let lease = space.acquire(OwnerId::new(owner), request, Wait::FOREVER).unwrap();
                    tell.send(owner).unwrap();
                    drop(lease);
                })
                .sleeps()
            })
            .collect();
        drop(lease);
        waiting.into_iter().for_each(Waiting::join);
        let order: Vec<_> = order.try_iter().collect();
        assert_eq!(order, (10..30).collect::<Vec<_>>());
        room.is_as_new();
    }
}

/// The first is granted; those who can share with it, as far as nobody exclusive is between.
#[test]
fn shared_waiters_are_let_in_together_up_to_the_next_exclusive_one() {
    for room in Room::both() {
        let lease = room.hold(A, Mode::Exclusive);
        let modes = [Mode::Shared, Mode::Shared, Mode::Exclusive, Mode::Shared];
        let mut number = 10;
        let [s1, s2, exclusive, s3] = modes.map(|mode| {
            number += 1;
            room.start(OwnerId::new(number), mode, Wait::FOREVER).sleeps()
        });
        drop(lease);
        let shared = (s1.join().unwrap(), s2.join().unwrap());
        assert_eq!(room.owners(), [11, 12].map(OwnerId::new));
        assert!(!exclusive.is_finished() && !s3.is_finished());
        drop(shared);
        let exclusive = exclusive.join().unwrap();
        assert!(!s3.is_finished());
        drop(exclusive);
        drop(s3.join().unwrap());
        room.is_as_new();
    }
}

#[test]
fn a_shared_try_is_refused_while_an_exclusive_request_waits() {
    for room in Room::both() {
        let lease = room.hold(A, Mode::Shared);
        let waiting = room.start(B, Mode::Exclusive, Wait::FOREVER).sleeps();
        let refused = busy(room.space.acquire(C, Request::shared(NAME), Wait::NO));
        let said = "held shared by owner 1, and an exclusive request waits; asked for shared";
        assert!(refused.to_string().contains(said), "{refused}");
        assert_eq!((refused.held(), refused.owners()), (Some(Mode::Shared), &[A][..]));
        assert_eq!(refused.waited(), Duration::ZERO);

        // Who holds it already would wait for itself.
        for wait in [Wait::NO, Wait::within(LONG), Wait::FOREVER] {
            drop(room.space.acquire(A, Request::shared(NAME), wait).unwrap());
        }
        drop(lease);
        let exclusive = waiting.join().unwrap();
        let refused = busy(room.space.acquire(C, Request::shared(NAME), Wait::NO));
        assert!(!refused.to_string().contains("waits"), "{refused}");
        drop(exclusive);
        room.is_as_new();
    }
}

/// Each of the stream holds until the next one has come: without a queue, it is never free.
#[test]
fn a_stream_of_shared_holders_does_not_starve_an_exclusive_waiter() {
    for room in Room::both() {
        let request = || Request::shared(NAME);
        let mut lease = room.hold(OwnerId::new(100), Mode::Shared);
        let waiting = room.start(B, Mode::Exclusive, Wait::FOREVER).sleeps();
        let mut handoffs = 0;
        while !waiting.is_finished() && handoffs < 10_000 {
            let next = OwnerId::new(101 + handoffs % 2);
            match room.space.acquire(next, request(), Wait::NO) {
                Ok(next) => lease = next,
                Err(AcquireError::Busy(_)) => break,
                Err(error) => panic!("{error}"),
            }
            handoffs += 1;
        }
        assert!(handoffs < 10_000, "the stream goes on, and the exclusive request waits");
        drop(lease);
        drop(waiting.join().unwrap());
        room.is_as_new();
    }
}

// Waiting for oneself.

/// Longer than a process has something before it lets others go first.
const TURN: Duration = Duration::from_millis(60);

/// Holds something for so long.
fn hold_for(time: Duration, lease: impl Sized) {
    let began = Instant::now();
    while began.elapsed() < time {
        thread::yield_now();
    }
    drop(lease);
}

/// Whether who asks `again` after such a `turn` lets others go first. This thread may be stopped
/// between the two, or meanwhile, and so it is asked until it has been so twice, or not at all.
fn lets_others_go_first(turn: impl Fn(), again: impl Fn()) -> bool {
    rounds(turn, again).filter(|polite| *polite).take(2).count() == 2
}

fn takes_it_at_once(turn: impl Fn(), again: impl Fn()) -> bool {
    rounds(turn, again).filter(|polite| !polite).take(2).count() == 2
}

/// Whether it was left to others, as far as can be seen from here.
fn rounds(turn: impl Fn(), again: impl Fn()) -> impl Iterator<Item = bool> {
    (0..20).map(move |_| {
        turn();
        let began = Instant::now();
        again();
        began.elapsed() >= Duration::from_millis(1)
    })
}

#[test]
fn who_waits_for_what_it_has_just_let_go_of_lets_others_go_first() {
    let (room, in_memory) = (Room::on_disk(), Room::in_memory());
    let request = || Request::exclusive(NAME);
    let acquire = |space: &LockSpace, owner, wait| space.acquire(owner, request(), wait).unwrap();
    let wait = || acquire(&room.space, A, Wait::within(LONG));
    let attempt = || acquire(&room.space, A, Wait::NO);
    assert!(lets_others_go_first(|| hold_for(TURN, wait()), || drop(wait())));
    let several = || {
        let requests = [request(), Request::exclusive("other").auto_create()];
        room.space.acquire_all(A, requests, Wait::within(LONG)).unwrap()
    };
    assert!(lets_others_go_first(|| hold_for(TURN, several()), || drop(several())));
    // A try takes what is free, and so does a wait for what no other process can have.
    assert!(takes_it_at_once(|| hold_for(TURN, attempt()), || drop(attempt())));
    assert!(takes_it_at_once(|| hold_for(TURN, wait()), || drop(attempt())));
    let alone = || acquire(&in_memory.space, A, Wait::within(LONG));
    assert!(takes_it_at_once(|| hold_for(TURN, alone()), || drop(alone())));
}

/// However the turn goes round within the process, others have not had theirs.
#[test]
fn a_process_is_polite_whichever_of_its_threads_spaces_and_calls_had_it() {
    let room = Room::on_disk();
    let second = space_in(room.dir());
    let acquire = |space: &LockSpace, owner, wait| {
        space.acquire(owner, Request::exclusive(NAME), wait).unwrap()
    };
    let wait = || acquire(&room.space, A, Wait::within(LONG));
    let by_two_spaces = || {
        hold_for(TURN / 2, wait());
        hold_for(TURN / 2, acquire(&second, A, Wait::within(LONG)));
    };
    assert!(lets_others_go_first(by_two_spaces, || drop(wait())));
    let also_by_a_try = || {
        hold_for(TURN / 2, wait());
        hold_for(TURN / 2, acquire(&room.space, A, Wait::NO));
    };
    assert!(lets_others_go_first(also_by_a_try, || drop(wait())));
    let by_two_threads = || {
        let lease = wait();
        let next = room.start(B, Mode::Exclusive, Wait::within(LONG)).sleeps();
        hold_for(TURN / 2, lease);
        hold_for(TURN / 2, next.join().unwrap());
    };
    assert!(lets_others_go_first(by_two_threads, || drop(wait())));
}

#[test]
fn a_try_is_not_refused_while_a_wait_that_it_can_share_with_lets_others_go_first() {
    let room = Room::on_disk();
    for _ in 0..20 {
        hold_for(TURN, room.space.acquire(A, Request::shared(NAME), Wait::within(LONG)).unwrap());
        let waiting = room.start(A, Mode::Shared, Wait::within(LONG));
        loop {
            let last = waiting.is_finished();
            drop(room.space.acquire(B, Request::shared(NAME), Wait::NO).unwrap());
            if last {
                break;
            }
        }
        drop(waiting.join().unwrap());
    }
}

#[test]
fn who_is_cancelled_while_it_lets_others_go_first_gets_nothing() {
    let room = Room::on_disk();
    let request = || Request::exclusive(NAME);
    // It may be late for that: the lock is there after a millisecond.
    eventually("a wait is cancelled in time", || {
        let lease = room.space.acquire(A, request(), Wait::within(LONG)).unwrap();
        let (space, cancel, go) =
            (room.space.clone(), Cancel::new(), Arc::new(AtomicBool::new(false)));
        let waiting = start({
            let (wait, go) = (Wait::within(LONG).unless(&cancel), Arc::clone(&go));
            move || {
                while !go.load(SeqCst) {
                    std::hint::spin_loop();
                }
                space.acquire(B, request(), wait).map(drop)
            }
        });
        hold_for(TURN, lease);
        go.store(true, SeqCst);
        while !waiting.is_asleep() && !waiting.is_finished() {
            std::hint::spin_loop();
        }
        cancel.cancel();
        matches!(waiting.join(), Err(AcquireError::Cancelled { .. }))
    });
    assert!(is_free_for_others(&room.file()));
}

#[test]
fn an_owner_that_would_wait_for_itself_is_told_so_at_once() {
    let deadlock = |room: &Room, mode| {
        for (_, wait) in long_waits() {
            let refused = room.start(A, mode, wait).join();
            let Err(AcquireError::Deadlock { name, .. }) = &refused else { panic!("{refused:?}") };
            assert_eq!(name, NAME);
        }
        // A try does not wait, so it is only busy.
        let refused = busy(room.space.acquire(A, Request::new(mode, NAME), Wait::NO));
        assert_eq!(refused.asked(), mode);
    };
    for room in Room::both() {
        for (holds, asks) in [
            (Mode::Exclusive, Mode::Exclusive),
            (Mode::Exclusive, Mode::Shared),
            (Mode::Shared, Mode::Exclusive),
        ] {
            let lease = room.hold(A, holds);
            deadlock(&room, asks);
            lease.keep();
            deadlock(&room, asks);
            room.space.release(A, NAME).unwrap();
        }
        // Also beside another.
        let others = (room.hold(B, Mode::Shared), room.hold(A, Mode::Shared));
        deadlock(&room, Mode::Exclusive);
        drop(others);
        // It waits already.
        let lease = room.hold(B, Mode::Exclusive);
        let waiting = room.start(A, Mode::Exclusive, Wait::FOREVER).sleeps();
        deadlock(&room, Mode::Exclusive);
        deadlock(&room, Mode::Shared);
        drop(lease);
        drop(waiting.join().unwrap());
        room.is_as_new();
    }
    // It waits already, for somebody outside.
    let room = Room::on_disk();
    let other = space_in(room.dir());
    let lease = other.acquire(B, Request::exclusive(NAME), Wait::NO).unwrap();
    let waiting = room.start(A, Mode::Exclusive, Wait::FOREVER).watches();
    deadlock(&room, Mode::Exclusive);
    drop(lease);
    drop(waiting.join().unwrap());
    room.is_as_new();
}

#[test]
fn several_at_once_that_wait_for_their_own_owner_are_told_so_at_once() {
    for room in Room::both() {
        let lease = room.hold(A, Mode::Exclusive);
        let space = room.space.clone();
        let all = start(move || {
            if !space.list()[0].path.as_os_str().is_empty() {
                space.create("other").unwrap();
            }
            let requests = [Request::exclusive("other"), Request::exclusive(NAME)];
            space.acquire_all(A, requests, Wait::FOREVER).map(drop)
        });
        let refused = all.join();
        let Err(AcquireError::Deadlock { name, .. }) = &refused else { panic!("{refused:?}") };
        assert_eq!(name, NAME);
        assert_eq!(room.owners(), [A]);
        drop(lease);
        room.is_as_new();
    }
}

#[test]
fn several_at_once_that_wait_for_their_own_owner_are_told_so_whatever_else_is_held() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    let own = space.acquire(A, Request::exclusive("own"), Wait::NO).unwrap();
    let other = space.acquire(B, Request::exclusive("other"), Wait::NO).unwrap();
    let all = space.clone();
    let all = start(move || {
        let requests = [Request::exclusive("other"), Request::shared("own")];
        all.acquire_all(A, requests, Wait::FOREVER).map(drop)
    });
    let refused = all.join();
    assert!(
        matches!(&refused, Err(AcquireError::Deadlock { name, .. }) if name == "own"),
        "{refused:?}"
    );
    drop((own, other));
    assert_eq!(space.list(), []);
}

/// One of its shared waits comes to hold while another is behind an exclusive one: that one would
/// wait for the first, as it would if it asked now.
#[test]
fn an_owner_that_comes_to_share_is_followed_by_its_other_waits() {
    for room in Room::both() {
        let lease = room.hold(B, Mode::Exclusive);
        let first = room.start(A, Mode::Shared, Wait::FOREVER).sleeps();
        let exclusive = room.start(C, Mode::Exclusive, Wait::FOREVER).sleeps();
        let second = room.start(A, Mode::Shared, Wait::within(Duration::from_secs(10))).sleeps();
        drop(lease);
        let first = first.join().unwrap();
        let second = second.join().expect("its owner shares it already");
        drop((first, second));
        drop(exclusive.join().unwrap());
        room.is_as_new();
    }
}

// A file system that hangs.

fn hung_fs() -> Option<HungFs> {
    HungFs::mount().map_err(|why| skip_or_fail("a FUSE file system", &why)).ok()
}

#[track_caller]
fn is_stuck(result: Acquired, path: &Path) -> Duration {
    match result {
        Err(AcquireError::Unresponsive { name, path: said, waited }) => {
            assert_eq!((&*name, &*said), (path.as_os_str(), path));
            waited
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_deadline_holds_when_the_file_system_hangs_and_a_late_success_is_given_back() {
    for mode in [Mode::Exclusive, Mode::Shared] {
        for somebody_waits in [false, true] {
            let Some(hung) = hung_fs() else { return };
            late_success(&hung, mode, somebody_waits);
        }
    }
}

fn late_success(hung: &HungFs, mode: Mode, somebody_waits: bool) {
    let space = LockSpace::open(Naming::direct()).unwrap();
    let path = hung.path().join("a");
    let started = Instant::now();
    let refused = space.acquire(A, Request::new(mode, &path), Wait::within(SHORT));
    let elapsed = started.elapsed();
    let said = is_stuck(refused, &path);
    assert!(elapsed >= SHORT, "{elapsed:?}");
    assert!(said <= elapsed && said + Duration::from_millis(1) >= SHORT, "{said:?}");
    assert_eq!(space.list(), []);

    // Whoever asks for it is told so, whatever it wishes.
    is_stuck(space.acquire(A, Request::exclusive(&path), Wait::NO), &path);
    is_stuck(space.acquire(B, Request::shared(&path), Wait::NO), &path);
    is_stuck(space.acquire(B, Request::exclusive(&path), Wait::within(SHORT)), &path);
    let wait = |owner, wait| {
        let (space, path) = (space.clone(), path.clone());
        start(move || space.acquire(owner, Request::exclusive(&path), wait)).sleeps()
    };
    let cancel = Cancel::new();
    let waiting = wait(B, Wait::FOREVER.unless(&cancel));
    cancel.cancel();
    assert!(matches!(waiting.join(), Err(AcquireError::Cancelled { .. })));

    // Who has time gets it when the answer comes.
    let waiting = somebody_waits.then(|| wait(C, Wait::within(LONG)));
    hung.answer_all();
    if let Some(waiting) = waiting {
        waiting.join().unwrap().verify().unwrap();
    }
    let mut lease = None;
    eventually("the resource can be acquired again", || {
        match space.acquire(C, Request::exclusive(&path), Wait::NO) {
            Ok(granted) => lease = Some(granted),
            Err(AcquireError::Unresponsive { .. }) => {}
            Err(error) => panic!("the late success was not given back: {error}"),
        }
        lease.is_some()
    });
    assert_eq!(held(&path), Some(Mode::Exclusive));
    drop(lease);
    assert!(is_free_for_others(&path));
    assert_eq!((space.list().len(), open_below(hung.path())), (0, 0));
}

/// Its first wait is over: it does not wait for itself.
#[test]
fn the_same_owner_can_ask_again_for_what_is_stuck() {
    let Some(hung) = hung_fs() else { return };
    let space = LockSpace::open(Naming::direct()).unwrap();
    let path = hung.path().join("a");
    for _ in 0..3 {
        let request = Request::exclusive(&path);
        is_stuck(space.acquire(A, request, Wait::within(SHORT)), &path);
    }
    hung.answer_all();
}

#[test]
fn a_wait_on_a_file_system_that_hangs_can_be_cancelled() {
    let Some(hung) = hung_fs() else { return };
    let space = LockSpace::open(Naming::direct()).unwrap();
    for by_owner in [false, true] {
        let path = hung.path().join(by_owner.to_string());
        let cancel = Cancel::new();
        let waiting = start({
            let (space, path, cancel) = (space.clone(), path.clone(), cancel.clone());
            move || space.acquire(A, Request::exclusive(&path), Wait::FOREVER.unless(&cancel))
        });
        let waiting = waiting.sleeps();
        if by_owner {
            space.release_owner(A);
        } else {
            cancel.cancel();
        }
        let ended = waiting.join();
        assert!(matches!(ended, Err(AcquireError::Cancelled { .. })), "{ended:?}");
    }
    hung.answer_all();
    eventually("all is closed", || open_below(hung.path()) == 0);
    assert_eq!(space.list(), []);
}

/// Where the wait hangs before the name is even known.
#[test]
fn a_deadline_holds_when_the_path_of_an_image_cannot_be_resolved() {
    let Some(hung) = hung_fs() else { return };
    let dir = TempDir::new().unwrap();
    let path = hung.path().join(format!("{}-a", crate::support::hung_fs::LOOKUP_HANGS));
    for naming in [Naming::direct(), Naming::md5(dir.path())] {
        let space = LockSpace::open(naming).unwrap();
        let started = Instant::now();
        let image = Request::exclusive(lockspace::Target::image(&path));
        is_stuck(space.acquire(A, image, Wait::within(SHORT)), &path);
        assert!(started.elapsed() >= SHORT);
        // Or the folder of one that is yet to be made.
        let (below, started) = (path.join("new"), Instant::now());
        let image = Request::exclusive(lockspace::Target::new_image(&below));
        is_stuck(space.acquire(A, image, Wait::within(SHORT)), &below);
        assert!(started.elapsed() >= SHORT);
        assert_eq!(space.list(), []);
    }
    hung.answer_all();
}

struct OpensOnDrop<'a>(&'a Gate);

impl Drop for OpensOnDrop<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[test]
fn a_hung_file_system_neither_grows_threads_nor_stops_others() {
    if ran_alone() {
        return;
    }
    let child; // dropped last: it can end only after the answer
    let Some(hung) = hung_fs() else { return };
    let dir = TempDir::new().unwrap();
    let (asked, answered) = (Gate::new(), Gate::new());
    child = fork(|| {
        // Also if it panics: a process with a stuck thread cannot even exit.
        let asked = OpensOnDrop(&asked);
        let space = LockSpace::open(Naming::direct()).unwrap();
        let stuck = |number: u32, time| {
            let path = hung.path().join(number.to_string());
            is_stuck(space.acquire(A, Request::exclusive(&path), Wait::within(time)), &path);
        };
        stuck(0, SHORT);
        assert_eq!(helpers(), 1);
        for number in 1..=50 {
            stuck(number, Duration::from_millis(5));
            assert_eq!(helpers(), 1, "after {number} more calls");
        }
        let at_once: Vec<_> = (100..150)
            .map(|number| {
                let (space, path) = (space.clone(), hung.path().join(number.to_string()));
                let wait = Wait::within(Duration::from_millis(100));
                start(move || is_stuck(space.acquire(A, Request::shared(&path), wait), &path))
            })
            .collect();
        for waiting in at_once {
            waiting.join();
        }
        assert_eq!(helpers(), 1, "after 50 calls at once");

        // Others: this space in another directory, and another space.
        let image = dir.path().join("image");
        File::create(&image).unwrap();
        let files = space_in(dir.path());
        let memory = LockSpace::open(Naming::in_memory()).unwrap();
        for wait in [Wait::NO, Wait::within(LONG), Wait::FOREVER] {
            let lease = space.acquire(B, Request::exclusive(&image), wait.clone()).unwrap();
            drop(files.acquire(B, Request::exclusive(NAME).auto_create(), wait.clone()).unwrap());
            drop(memory.acquire(B, Request::exclusive(NAME), wait).unwrap());
            drop(lease);
        }
        eventually("those of the others end", || helpers() == 1);
        drop(asked);
        answered.wait();
        let path = hung.path().join("0");
        let lease = space.acquire(B, Request::exclusive(&path), Wait::within(LONG)).unwrap();
        lease.verify().unwrap();
        drop(lease);
        assert_eq!((space.list().len(), open_below(hung.path())), (0, 0));
    });
    asked.wait();
    hung.answer_all();
    answered.open();
    child.join();
    for number in [0, 1, 49, 100] {
        assert!(is_free_for_others(&hung.path().join(number.to_string())));
    }
}

// Under fire.

const PROCESSES: usize = 4;
const DOOMED: u64 = 2;
// Behind the slots, each of which says that its process holds, or is to be killed.
const STOP: usize = PROCESSES;
const HOLDS: usize = PROCESSES + 1;
const TWICE: usize = PROCESSES + 2;
const KILLS: u64 = 40;

#[test]
fn a_storm_of_opens_and_closes_keeps_no_waiter_busy() {
    let room = Room::on_disk();
    let path = room.file();
    let lease = room.space.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
    let other = space_in(room.dir.as_ref().unwrap().path());
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let storm = scope.spawn(|| {
            while !over.load(SeqCst) {
                drop(File::open(&path).unwrap());
            }
        });
        let worked = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
        let (began, before) = (Instant::now(), worked());
        let refused = other.acquire(B, Request::exclusive(NAME), Wait::within(5 * SHORT));
        // Of its time, and not of the clock's: whatever else the machine does.
        let (took, worked) = (began.elapsed(), worked() - before);
        over.store(true, SeqCst);
        storm.join().unwrap();
        busy(refused);
        assert!(worked < took / 4, "{worked:?} of {took:?}");
    });
    drop(lease);
}

/// As tests/processes/churn.rs, by waiting: a process says that it holds only while it does, and what a
/// killed one has said is known not to count before it is killed.
#[test]
fn waits_for_files_that_come_and_go_never_hold_twice_nor_starve() {
    if ran_alone() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let memory: &[AtomicU64; PROCESSES + 3] = shared_memory();
    let reported = Gate::new();
    let churn = |me: usize| {
        let space = space_in(dir.path());
        for cycle in 1_u64.. {
            if memory[STOP].load(SeqCst) != 0 {
                return;
            }
            let request = Request::exclusive(NAME).auto_create();
            let lease = space.acquire(OwnerId::this_process(), request, Wait::within(LONG / 2));
            let lease = lease.unwrap_or_else(|error| panic!("cycle {cycle}: {error}"));
            memory[me].fetch_or(1, SeqCst);
            for _ in 0..3 {
                for other in (0..PROCESSES).filter(|&other| other != me) {
                    if memory[other].load(SeqCst) == 1 {
                        memory[TWICE].fetch_add(1, SeqCst);
                    }
                }
                thread::yield_now();
            }
            memory[me].fetch_and(!1, SeqCst);
            lease.release().unwrap();
            memory[HOLDS].fetch_add(1, SeqCst);
            if cycle % 20 == 0 {
                reported.open();
            }
        }
    };
    let mut children: Vec<_> = (0..PROCESSES).map(|me| fork(|| churn(me))).collect();
    for kill in 0..2 * KILLS {
        reported.wait();
        if kill % 2 == 1 {
            let victim = (kill as usize / 2) % PROCESSES;
            memory[victim].fetch_or(DOOMED, SeqCst);
            children.remove(victim).kill();
            memory[victim].store(0, SeqCst);
            children.insert(victim, fork(|| churn(victim)));
        }
    }
    memory[STOP].store(1, SeqCst);
    children.into_iter().for_each(Forked::join);
    assert_eq!(memory[TWICE].load(SeqCst), 0, "held twice");
    assert!(memory[HOLDS].load(SeqCst) >= 2 * KILLS);
    // What the last of the killed may have left is removed by whoever asks for it next.
    let space = space_in(dir.path());
    drop(space.acquire(A, Request::exclusive(NAME).auto_create(), Wait::NO).unwrap());
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "a file is left");
}

/// The same by threads of one process, of which many wait at any time.
#[test]
fn threads_that_wait_for_files_that_come_and_go_never_hold_twice() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let inside = Arc::new(Mutex::new(()));
    let threads: Vec<_> = (0..6)
        .map(|owner| {
            let (space, inside) = (space.clone(), Arc::clone(&inside));
            start(move || {
                for _ in 0..300 {
                    let request = Request::exclusive(NAME).auto_create();
                    let lease = space.acquire(OwnerId::new(owner), request, Wait::within(LONG));
                    let lease = lease.unwrap();
                    drop(inside.try_lock().expect("held twice"));
                    drop(lease);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(Waiting::join);
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "a file is left");
    assert_eq!((space.list().len(), open_below(dir.path())), (0, 0));
}

/// Nobody who waits is in the way of who asks elsewhere.
#[test]
fn a_child_that_is_killed_while_it_waits_leaves_nothing() {
    if ran_alone() {
        return;
    }
    let room = Room::on_disk();
    let lease = room.hold(A, Mode::Exclusive);
    let child = fork(|| {
        let space = space_in(room.dir());
        let _ = space.acquire(B, Request::exclusive(NAME), Wait::FOREVER);
        exit_now(1);
    });
    child_watches(child.pid());
    child.kill();
    drop(lease);
    room.is_as_new();
}
