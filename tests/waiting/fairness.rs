//! Between processes: who waits for what it has just let go of lets others go first.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::alone::alone;
use crate::support::forked::{Forked, Gate, fork};
use crate::support::locks::is_free_for_others;
use crate::support::spaces::{A, B, NAME, Room, space_in};
use crate::support::waits::{LONG, eventually, start};
use lockspace::{AcquireError, Cancel, LockSpace, Mode, OwnerId, Request, Wait};

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

/// A child that holds it for 2 ms and waits for it again at once, in so many threads, until it is
/// dropped.
fn never_pauses(dir: &Path, threads: u64) -> Forked {
    let begun = Gate::new();
    let child = fork(|| {
        let space = space_in(dir);
        let take = |owner| {
            let wait = Wait::within(LONG);
            space.acquire(OwnerId::new(owner), Request::exclusive(NAME), wait).unwrap()
        };
        drop(take(0));
        begun.open();
        thread::scope(|scope| {
            for owner in 0..threads {
                scope.spawn(move || {
                    loop {
                        hold_for(Duration::from_millis(2), take(owner));
                    }
                });
            }
        });
    });
    begun.wait();
    child
}

/// Whether its threads take turns by releases, or pass the lock on among themselves.
#[test]
fn a_process_that_never_pauses_leaves_turns_to_another() {
    // Some hundred turns.
    const AT_LAST: Duration = Duration::from_secs(5);
    alone(|| {
        for threads in [1, 3] {
            let room = Room::on_disk();
            let rival = never_pauses(room.dir(), threads);
            for turn in 0..20 {
                let lease = room.start(B, Mode::Exclusive, Wait::within(AT_LAST)).join();
                drop(
                    lease.unwrap_or_else(|error| panic!("{threads} threads, turn {turn}: {error}")),
                );
            }
            rival.kill();
        }
    });
}
