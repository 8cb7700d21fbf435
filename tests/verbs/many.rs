//! What is done with many resources at once takes time in proportion to them, and not to their square.

use std::time::Duration;

use crate::support::spaces::{A, B, in_memory};
use lockspace::{LockSpace, OwnerId, Request, Wait};
use rustix::time::{ClockId, clock_gettime};

/// How many are few, and how many times as many are many.
const FEW: usize = 2_000;
const TIMES: u32 = 8;

/// The processor time of this thread, of which other processes have no part.
fn worked() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("it runs forwards")
}

fn time<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begun = worked();
    let done = work();
    (worked() - begun, done)
}

/// `work` tells how long it has worked on so many things. On 8 times as many it may take 20 times as
/// long: 8 is in proportion, and 64 is the square. The best of several counts.
#[track_caller]
fn grows_in_proportion(work: impl Fn(usize) -> Duration) {
    let (mut few, mut many) = (Duration::MAX, Duration::MAX);
    for _ in 0..5 {
        few = few.min(work(FEW));
        many = many.min(work(FEW * TIMES as usize));
        if many < few * 20 {
            return;
        }
    }
    panic!("{FEW} take {few:?}, and {TIMES} times as many take {many:?}");
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

fn acquire_all(space: &LockSpace, names: &[String], wait: Wait) -> lockspace::Leases {
    space.acquire_all(A, names.iter().map(Request::exclusive), wait).unwrap()
}

fn keep(space: &LockSpace, count: usize) {
    acquire_all(space, &names(count), Wait::NO).keep();
}

#[test]
fn acquiring_several() {
    for wait in [Wait::NO, Wait::FOREVER] {
        grows_in_proportion(|count| {
            let (space, names) = (in_memory(), names(count));
            time(|| acquire_all(&space, &names, wait.clone())).0
        });
    }
}

#[test]
fn acquiring_several_of_which_the_last_is_refused() {
    grows_in_proportion(|count| {
        let (space, names) = (in_memory(), names(count));
        let _held = space.acquire(B, Request::exclusive(&names[count - 1]), Wait::NO).unwrap();
        let requests = names.iter().map(Request::exclusive);
        time(|| space.acquire_all(A, requests, Wait::NO).unwrap_err()).0
    });
}

#[test]
fn acquiring_one_many_times() {
    grows_in_proportion(|count| {
        let space = in_memory();
        let requests = (0..count).map(|_| Request::shared("base"));
        time(|| drop(space.acquire_all(A, requests, Wait::NO).unwrap())).0
    });
}

#[test]
fn holding_one_for_many_owners() {
    grows_in_proportion(|count| {
        let space = in_memory();
        let hold = |owner| {
            let owner = OwnerId::new(owner as u64);
            space.acquire(owner, Request::shared("base"), Wait::NO).unwrap()
        };
        time(|| drop((0..count).map(hold).collect::<Vec<_>>())).0
    });
}

#[test]
fn releasing_many_leases() {
    grows_in_proportion(|count| {
        let space = in_memory();
        let leases = acquire_all(&space, &names(count), Wait::NO);
        time(|| drop(leases)).0
    });
}

#[test]
fn releasing_all_of_an_owner() {
    grows_in_proportion(|count| {
        let space = in_memory();
        keep(&space, count);
        time(|| assert_eq!(space.release_owner(A).holds, count)).0
    });
}

#[test]
fn releasing_one_after_another() {
    grows_in_proportion(|count| {
        let space = in_memory();
        keep(&space, count);
        let names = names(count);
        time(|| names.iter().for_each(|name| space.release(A, name).unwrap())).0
    });
}

#[test]
fn dropping_a_space() {
    grows_in_proportion(|count| {
        let space = in_memory();
        keep(&space, count);
        time(|| drop(space)).0
    });
}

#[test]
fn listing() {
    grows_in_proportion(|count| {
        let space = in_memory();
        keep(&space, count);
        time(|| assert_eq!(space.list().len(), count)).0
    });
}

#[cfg(feature = "snapshot")]
#[test]
fn a_snapshot_during_which_all_is_released() {
    use lockspace::snapshot::Snapshot;

    grows_in_proportion(|count| {
        let space = in_memory();
        keep(&space, count);
        let work = || {
            let snapshot = Snapshot::take([&space]).unwrap();
            assert_eq!(space.release_owner(A).holds, count);
            drop(snapshot);
        };
        time(work).0
    });
}
