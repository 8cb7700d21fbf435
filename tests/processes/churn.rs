//! Lock files that are created and unlinked by many processes at once, some of them killed.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

use crate::support::forked::{Forked, Gate, fork, shared_memory};
use crate::support::interop::skip_or_fail;
use crate::support::locks::{Kind, Lock, set_lock};
use crate::support::random::Random;
use crate::support::rounds::rounds;
use crate::support::spaces::{is_empty, space_in};
use lockspace::{AcquireError, Lease, LockSpace, Mode, OwnerId, Request, Wait};
use tempfile::TempDir;

const NAME: &str = "a";

fn acquire(space: &LockSpace, mode: Mode) -> Result<Lease, AcquireError> {
    space.acquire(OwnerId::this_process(), Request::new(mode, NAME).auto_create(), Wait::NO)
}

const PROCESSES: usize = 8;

/// Each process reports after this many cycles, and the parent ends all after this many reports:
/// 40,000 cycles, without those of the processes that were killed before their report.
const CYCLES: u64 = 250;
const REPORTS: u64 = 160;

/// What a slot says of its process.
///
/// A process says that it holds only while it does: it sets its bit after the acquire, and clears
/// it before the release. If it is killed between, the bit stays; but the parent has set `DOOMED`
/// in the same number before that, and clears both only after the process is gone. So a bit
/// without `DOOMED` is always the truth, whoever looks, and whenever.
const EXCLUSIVE: u64 = 1;
const SHARED: u64 = 2;
const DOOMED: u64 = 4;

// Behind the slots.
const STOP: usize = PROCESSES;
const STALE: usize = PROCESSES + 1;
const BUSY: usize = PROCESSES + 2;
const HELD_EXCLUSIVE: usize = PROCESSES + 3;
const HELD_SHARED: usize = PROCESSES + 4;
const HELD_TWICE: usize = PROCESSES + 5;

type Memory = [AtomicU64; PROCESSES + 6];

/// What each of the processes does until it is stopped, or killed.
fn churn(dir: &Path, memory: &Memory, me: usize, seed: u64, report: &Gate) {
    let space = space_in(dir);
    let mut random = Random(seed);
    let mut stale = 0;
    let count = |what: usize, by: u64| memory[what].fetch_add(by, SeqCst);
    for cycle in 1.. {
        if memory[STOP].load(SeqCst) != 0 {
            return;
        }
        // With more of them, the shared holds overlap without end, and nobody unlinks.
        let mode = if random.below(4) == 0 { Mode::Shared } else { Mode::Exclusive };
        let (mine, excluded, held) = match mode {
            Mode::Exclusive => (EXCLUSIVE, EXCLUSIVE | SHARED, HELD_EXCLUSIVE),
            Mode::Shared => (SHARED, EXCLUSIVE, HELD_SHARED),
        };
        match acquire(&space, mode) {
            Ok(lease) => {
                memory[me].fetch_or(mine, SeqCst);
                for look in 0..=random.below(3) {
                    if look > 0 && random.below(16) == 0 {
                        thread::yield_now(); // with the lock
                    }
                    let others = (0..PROCESSES).filter(|&other| other != me);
                    for slot in others.map(|other| memory[other].load(SeqCst)) {
                        if slot & excluded != 0 && slot & DOOMED == 0 {
                            count(HELD_TWICE, 1);
                        }
                    }
                }
                memory[me].fetch_and(!mine, SeqCst);
                lease.release().unwrap();
                count(held, 1);
            }
            Err(AcquireError::Busy(_)) => {
                count(BUSY, 1);
                thread::yield_now(); // so that the holder gets on
            }
            Err(error) => panic!("{error}"),
        }
        count(STALE, space.stale_retries() - stale);
        stale = space.stale_retries();
        if cycle % CYCLES == 0 {
            report.open();
        }
    }
}

fn create_and_unlink_under_fire(dir: &Path) {
    let memory: &Memory = shared_memory();
    let reported = Gate::new();
    let mut seeds = Random(0x10c5_9ace);
    let mut start = |me| {
        let seed = seeds.below(u64::MAX) | 1;
        fork(|| churn(dir, memory, me, seed, &reported))
    };
    let mut processes: Vec<Forked> = (0..PROCESSES).map(&mut start).collect();
    let mut random = Random(0xdead);
    for report in 0..rounds(REPORTS) {
        reported.wait();
        // At every second report, one is killed.
        if report % 2 == 1 {
            let victim = random.below(PROCESSES as u64) as usize;
            memory[victim].fetch_or(DOOMED, SeqCst);
            processes.remove(victim).kill();
            memory[victim].store(0, SeqCst);
            processes.insert(victim, start(victim));
        }
    }
    memory[STOP].store(1, SeqCst);
    processes.into_iter().for_each(Forked::join);

    let [stale, busy, exclusive, shared, twice] =
        [STALE, BUSY, HELD_EXCLUSIVE, HELD_SHARED, HELD_TWICE]
            .map(|what| memory[what].load(SeqCst));
    let killed = rounds(REPORTS) / 2;
    println!(
        "{exclusive} exclusive and {shared} shared holds, {busy} refusals, {stale} stale retries, {killed} killed"
    );
    assert_eq!(twice, 0, "held twice");
    assert!(exclusive > 0 && shared > 0);
    assert_ne!(stale, 0, "nothing was stale: there was no fire");

    let space = space_in(dir);
    acquire(&space, Mode::Exclusive).expect("the name is free").release().unwrap();
    assert!(is_empty(dir), "a file is left");
}

#[test]
fn create_and_unlink_under_fire_never_hold_twice_on_disk() {
    let dir = TempDir::new().unwrap();
    create_and_unlink_under_fire(dir.path());
}

#[test]
fn create_and_unlink_under_fire_never_hold_twice_in_memory() {
    match TempDir::new_in("/dev/shm") {
        Ok(dir) => create_and_unlink_under_fire(dir.path()),
        Err(error) => skip_or_fail("/dev/shm", &error.to_string()),
    }
}

#[test]
fn who_asks_for_auto_create_cleans_up_after_a_killed_predecessor() {
    for (killed, next) in [
        (Mode::Exclusive, Mode::Exclusive),
        (Mode::Exclusive, Mode::Shared),
        (Mode::Shared, Mode::Exclusive),
        (Mode::Shared, Mode::Shared),
    ] {
        let dir = TempDir::new().unwrap();
        let (ready, never) = (Gate::new(), Gate::new());
        let child = fork(|| {
            let _lease = acquire(&space_in(dir.path()), killed).unwrap();
            ready.open();
            never.wait();
        });
        ready.wait();
        let space = space_in(dir.path());
        assert!(matches!(acquire(&space, Mode::Exclusive), Err(AcquireError::Busy(_))));
        child.kill();
        let left = dir.path().join(NAME);
        assert!(left.exists());

        // Who does not ask for it leaves the file.
        let request = Request::exclusive(NAME);
        space.acquire(OwnerId::new(1), request, Wait::NO).unwrap().release().unwrap();
        assert!(left.exists());

        acquire(&space, next).unwrap().release().unwrap();
        assert!(is_empty(dir.path()), "{killed} and then {next} leave a file");
    }
}

/// Somebody makes files under the name, takes the name away from them, and only then locks them:
/// what has the name is never locked. Who opened one of them in time is refused its lock, but not
/// the resource.
#[test]
fn a_lock_on_a_file_that_has_lost_its_name_keeps_nobody_out() {
    const STALE: u64 = 50;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(NAME);
    let space = space_in(dir.path());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut options = File::options();
            options.read(true).write(true).create_new(true);
            while !done.load(SeqCst) {
                let file = options.open(&path).unwrap();
                fs::remove_file(&path).unwrap();
                // Refused where the other has just locked it.
                let _ = set_lock(&file, Kind::Ofd, Lock::Exclusive, 0, 0).unwrap();
            }
        });
        let mut refused = None;
        for _ in 0..100_000 {
            if refused.is_some() || space.stale_retries() >= STALE {
                break;
            }
            refused = match space.acquire(OwnerId::new(1), Request::exclusive(NAME), Wait::NO) {
                Ok(_) | Err(AcquireError::NotFound { .. }) => None,
                Err(error) => Some(error.to_string()),
            };
        }
        done.store(true, SeqCst);
        assert_eq!(refused, None);
    });
    assert!(space.stale_retries() > 0, "no file lost its name in time");
}

/// Both must not fail to become exclusive because of the other.
#[test]
fn two_last_shared_holders_that_release_at_once_leave_no_file() {
    let rounds = rounds(3_000);
    let dir = TempDir::new().unwrap();
    let memory: &[AtomicU64; 3] = shared_memory();
    let partner = |me: usize| {
        // Returns when the other is there too.
        let meet = |step: u64| {
            memory[me].store(step, SeqCst);
            while memory[1 - me].load(SeqCst) < step {
                thread::yield_now();
            }
        };
        let space = space_in(dir.path());
        for round in 0..rounds {
            let lease = acquire(&space, Mode::Shared).unwrap();
            meet(3 * round + 1);
            lease.release().unwrap();
            meet(3 * round + 2);
            if !is_empty(dir.path()) {
                memory[2].fetch_add(1, SeqCst);
            }
            meet(3 * round + 3);
        }
    };
    let children = [0, 1].map(|me| fork(|| partner(me)));
    children.into_iter().for_each(Forked::join);
    assert_eq!(memory[2].load(SeqCst), 0, "how often a file was seen after both releases");
}
