//! What waiting costs while it lasts, and what of it is left when it is over. Each test runs in a
//! process of its own, where nobody else waits.

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::forked::{Gate, fork, refuse_system_calls};
use crate::support::interop::skip_or_fail;
use crate::support::process::{self, signals};
use crate::support::waits::{
    LONG, descriptors, eventually, helpers, numbers_of_watches, open_below, start, watches,
};
use lockspace::{AcquireError, Cancel, Lease, LockSpace, Naming, OwnerId, Request, Wait};
use parking_lot::RwLock;
use rustix::fs::inotify;
use tempfile::TempDir;

const A: OwnerId = OwnerId::new(1);
const B: OwnerId = OwnerId::new(2);
const NAME: &str = "disk";
/// How many inotify instances may stay.
const POOL: usize = 16;

/// Whoever takes all inotify instances that a user may have is alone.
static INSTANCES: RwLock<()> = RwLock::new(());

#[track_caller]
fn in_child(work: impl FnOnce()) {
    let _others = INSTANCES.read();
    process::in_child(work);
}

fn space_in(dir: &Path) -> LockSpace {
    LockSpace::open(Naming::verbatim(dir)).unwrap()
}

/// A folder on tmpfs, of which nothing can hang, wherever temporary files are.
fn folder_in_memory() -> TempDir {
    TempDir::new_in("/dev/shm").unwrap()
}

fn auto(name: &str) -> Request<'_> {
    Request::exclusive(name).auto_create()
}

/// Nothing but what the bounded pool may keep; the helpers in their own time.
#[track_caller]
fn only_the_pool_is_left(dir: &Path, threads: usize) {
    assert!(descriptors("inotify").len() <= POOL, "{} instances", descriptors("inotify").len());
    assert_eq!(descriptors("eventfd").len(), 0);
    assert_eq!(open_below(dir), 0, "descriptors");
    eventually("the helpers end", || helpers() == 0);
    assert_eq!(watches(), 0, "watches");
    let count = || fs::read_dir("/proc/self/task").unwrap().count();
    eventually("no thread is left", || count() == threads);
}

/// Many threads wait at once, until the other space's holders go.
fn many_wait(names: usize, threads: usize) {
    let dir = TempDir::new().unwrap();
    let (space, other) = (space_in(dir.path()), space_in(dir.path()));
    let names: Vec<_> = (0..names).map(|name| name.to_string()).collect();
    let hold = |name: &String| other.acquire(A, auto(name), Wait::NO).unwrap();
    let holds: Vec<_> = names.iter().map(hold).collect();
    let (done, results) = mpsc::channel();
    let started: Vec<_> = (0..threads)
        .map(|number| {
            let (space, done) = (space.clone(), done.clone());
            let name = names[number % names.len()].clone();
            let body = move || {
                let wait = Wait::within(2 * LONG);
                let granted = space.acquire(OwnerId::new(number as u64), auto(&name), wait);
                done.send(granted.map(drop).map_err(|error| error.to_string())).unwrap();
            };
            thread::Builder::new().stack_size(128 * 1024).spawn(body).unwrap()
        })
        .collect();
    // All are refused for the sake of those who wait, so all have asked.
    for name in &names {
        eventually("somebody waits for it", || {
            let tried = space.acquire(A, auto(name), Wait::NO);
            assert!(matches!(tried, Err(AcquireError::Busy(_))), "{tried:?}");
            true
        });
    }
    assert!(descriptors("inotify").len() <= POOL && watches() <= POOL);
    drop(holds);
    for _ in 0..threads {
        results.recv_timeout(2 * LONG).expect("all end").unwrap();
    }
    started.into_iter().for_each(|thread| thread.join().unwrap());
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "files are left");
    only_the_pool_is_left(dir.path(), 1);
}

#[test]
fn a_thousand_threads_can_wait_for_a_thousand_resources() {
    in_child(|| many_wait(1_000, 1_000));
}

#[test]
fn a_thousand_threads_can_wait_for_one_resource() {
    in_child(|| many_wait(1, 1_000));
}

/// Takes every inotify instance that this user may still have.
fn exhaust_inotify() -> Vec<std::os::fd::OwnedFd> {
    let flags = inotify::CreateFlags::CLOEXEC;
    let taken: Vec<_> = std::iter::from_fn(|| inotify::init(flags).ok()).collect();
    assert!(inotify::init(flags).is_err());
    taken
}

#[test]
fn without_inotify_the_results_are_the_same() {
    let _alone = INSTANCES.write();
    process::in_child(|| {
        let taken = exhaust_inotify();
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let acquire = |wait| {
            let space = space.clone();
            start(move || space.acquire(B, auto(NAME), wait).map(drop))
        };
        let hold = || other.acquire(A, auto(NAME), Wait::NO).unwrap();
        // Granted, late, cancelled.
        let lease = hold();
        let waiting = acquire(Wait::within(LONG)).sleeps();
        drop(lease);
        waiting.join().unwrap();
        let lease = hold();
        let (started, short) = (Instant::now(), Duration::from_millis(30));
        let refused = space.acquire(B, auto(NAME), Wait::within(short));
        assert!(matches!(refused, Err(AcquireError::Busy(_))) && started.elapsed() >= short);
        let cancel = Cancel::new();
        let waiting = acquire(Wait::FOREVER.unless(&cancel)).sleeps();
        cancel.cancel();
        assert!(matches!(waiting.join(), Err(AcquireError::Cancelled { .. })));
        drop(lease);
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
        assert_eq!(descriptors("inotify").len(), taken.len(), "there was one to be had");
    });
}

/// A wait under a filter of system calls: granted when the holder goes, and asleep until then.
fn granted_without(calls: &[libc::c_long]) {
    in_child(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        space.create(NAME).unwrap();
        let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
        if !refuse_system_calls(calls) {
            return skip_or_fail("seccomp", "the kernel refuses a filter");
        }
        let acquire = move || space.acquire(B, Request::exclusive(NAME), Wait::within(LONG));
        let waiting = start(acquire).sleeps_for_others();
        drop(lease);
        drop(waiting.join().unwrap());
    });
}

#[test]
fn a_wait_does_without_the_calls_that_a_filter_refuses() {
    granted_without(&[libc::SYS_inotify_init1]);
    granted_without(&[libc::SYS_inotify_add_watch]);
    granted_without(&[libc::SYS_ppoll]);
}

#[test]
fn no_watch_descriptor_or_thread_is_left_after_the_last_wait() {
    in_child(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        // A watch goes with its file, so this one stays.
        space.create(NAME).unwrap();
        for round in 0..30 {
            let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
            let cancel = Cancel::new();
            let waiting = [2, 3, 4].map(|owner| {
                let (space, wait) = (space.clone(), Wait::FOREVER.unless(&cancel));
                let owner = OwnerId::new(owner);
                start(move || space.acquire(owner, Request::exclusive(NAME), wait).map(drop))
                    .sleeps()
            });
            if round % 2 == 0 {
                cancel.cancel();
            }
            drop(lease);
            for waiting in waiting {
                let _ = waiting.join();
            }
        }
        only_the_pool_is_left(dir.path(), 1);
    });
}

/// A thread waits for what another space holds, and is granted it when that lets go.
fn granted_after_a_watch(space: &LockSpace, other: &LockSpace, name: &'static str) -> Lease {
    let lease = other.acquire(A, Request::exclusive(name), Wait::NO).unwrap();
    let space = space.clone();
    let wait = Wait::within(LONG);
    let waiting = start(move || space.acquire(B, Request::exclusive(name), wait)).watches();
    drop(lease);
    waiting.join().unwrap()
}

#[test]
fn a_helper_removes_the_watch_that_a_wait_has_left() {
    in_child(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        space.create(NAME).unwrap();
        let lease = granted_after_a_watch(&space, &other, NAME);
        eventually("the helpers end", || helpers() == 0);
        assert_eq!(watches(), 0);
        lease.verify().unwrap();
        // Also where the lease is gone before that.
        drop(lease);
        drop(granted_after_a_watch(&space, &other, NAME));
        only_the_pool_is_left(dir.path(), 1);
    });
}

#[test]
fn the_watch_that_a_wait_has_left_is_removed_although_the_helper_always_has_work() {
    in_child(|| {
        let dir = folder_in_memory();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        space.create(NAME).unwrap();
        let lease = granted_after_a_watch(&space, &other, NAME);
        eventually("the watch is removed", || {
            drop(space.acquire(A, auto("other"), Wait::within(LONG)).unwrap());
            watches() == 0
        });
        drop(lease);
    });
}

#[test]
fn who_waits_for_the_same_file_again_has_the_same_watch() {
    in_child(|| {
        let dir = folder_in_memory();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        space.create(NAME).unwrap();
        let mut numbers = Vec::new();
        for _ in 0..20 {
            let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
            let waiting = start({
                let space = space.clone();
                move || space.acquire(B, Request::exclusive(NAME), Wait::within(LONG)).map(drop)
            });
            let waiting = waiting.watches();
            numbers.extend(numbers_of_watches());
            drop(lease);
            waiting.join().unwrap();
        }
        // A helper that wakes removes it, which can be once and again, but not each time.
        assert_eq!(numbers.len(), 20);
        assert!(numbers.windows(2).any(|pair| pair[0] == pair[1]), "{numbers:?}");
    });
}

#[test]
fn who_waits_for_a_file_that_has_replaced_another_is_told_of_it() {
    in_child(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        // An inode number is given to the next file at once, and the watch of the last one is gone.
        for _ in 0..20 {
            let lease = other.acquire(A, auto(NAME), Wait::NO).unwrap();
            let waiting = start({
                let space = space.clone();
                move || space.acquire(B, auto(NAME), Wait::within(LONG)).map(drop)
            });
            let waiting = waiting.watches();
            assert_eq!(watches(), 1);
            drop(lease);
            waiting.join().unwrap();
        }
    });
}

#[test]
fn the_next_wait_removes_the_watch_that_another_has_left() {
    in_child(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        for name in ["first", "second"] {
            space.create(name).unwrap();
        }
        let first = granted_after_a_watch(&space, &other, "first");
        let held = other.acquire(A, Request::exclusive("second"), Wait::NO).unwrap();
        let waiting = start({
            let space = space.clone();
            move || space.acquire(B, Request::exclusive("second"), Wait::within(LONG))
        });
        let waiting = waiting.watches();
        assert_eq!((watches(), descriptors("inotify").len()), (1, 1));
        drop(held);
        drop((first, waiting.join().unwrap()));
    });
}

/// How often a helper has gone to sleep; `None` if there is none.
fn naps_of_the_helper() -> Option<u64> {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let status =
        tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok());
    let mut helpers = status.filter(|status| status.starts_with("Name:\tlockspace\n"));
    let status = helpers.next()?;
    let naps = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    Some(naps.unwrap().trim().parse().unwrap())
}

#[test]
fn a_helper_stays_while_somebody_watches_a_file_and_no_longer() {
    in_child(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let held = other.acquire(A, auto(NAME), Wait::NO).unwrap();
        let waiting = start({
            let space = space.clone();
            move || space.acquire(B, auto(NAME), Wait::within(2 * LONG))
        });
        let waiting = waiting.watches();
        let mut before = None;
        eventually("a helper has a name", || {
            before = naps_of_the_helper();
            before.is_some()
        });
        let before = before.unwrap();
        eventually("its idle time has ended twice", || {
            naps_of_the_helper().expect("it stays") >= before + 2
        });
        drop(held);
        let lease = waiting.join().unwrap();
        eventually("the helper ends", || helpers() == 0);
        drop(lease);
        only_the_pool_is_left(dir.path(), 1);
    });
}

#[test]
fn who_is_woken_by_another_thread_while_it_watches_watches_again() {
    in_child(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        space.create(NAME).unwrap();
        let shared = |space: &LockSpace, owner| {
            space.acquire(owner, Request::shared(NAME), Wait::NO).unwrap()
        };
        let (others, mut lease) = (shared(&other, A), shared(&space, B));
        let waiting = start(move || lease.upgrade(Wait::within(LONG)).map(|()| lease));
        let mut waiting = waiting.watches();
        for _ in 0..20 {
            // A second hold of the same owner comes and goes, which may be what it waits for.
            drop(shared(&space, B));
            eventually("it watches again", || watches() == 1);
            waiting = waiting.watches();
        }
        drop(others);
        drop(waiting.join().unwrap());
        assert_eq!((watches(), descriptors("eventfd").len()), (0, 0));
    });
}

#[test]
fn a_cancel_wakes_who_watches_by_ending_the_watch() {
    in_child(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let _held = other.acquire(A, auto(NAME), Wait::NO).unwrap();
        let mut woken = 0;
        for _ in 0..50 {
            let cancel = Cancel::new();
            let (space, wait) = (space.clone(), Wait::FOREVER.unless(&cancel));
            let waiting = start(move || space.acquire(B, auto(NAME), wait)).watches();
            assert_eq!((watches(), descriptors("eventfd").len()), (1, 0));
            cancel.cancel();
            // Unless it was just looking by itself.
            woken += usize::from(watches() == 0);
            assert!(matches!(waiting.join(), Err(AcquireError::Cancelled { .. })));
            assert_eq!((watches(), descriptors("inotify").len()), (0, 1));
        }
        assert!(woken > 0, "a cancel does not end the sleep");
    });
}

#[test]
fn waiting_changes_no_signal_handler_and_no_mask() {
    in_child(|| {
        let before = signals();
        assert_eq!(before.len(), 4);
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let lease = other.acquire(A, auto(NAME), Wait::NO).unwrap();
        let waiting = {
            let space = space.clone();
            start(move || {
                let (before, result) = (signals(), space.acquire(B, auto(NAME), Wait::FOREVER));
                assert_eq!(signals(), before);
                result.map(drop)
            })
        };
        let waiting = waiting.sleeps();
        assert_eq!(signals(), before);
        drop(lease);
        waiting.join().unwrap();
        assert_eq!(signals(), before);
    });
}

fn cpu_time() -> Duration {
    // SAFETY: all zeros are a valid `rusage`, which the call fills in and outlives it.
    #[allow(unsafe_code, reason = "getrusage, which rustix does not have")]
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_SELF, &raw mut usage), 0);
        usage
    };
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    time(usage.ru_utime) + time(usage.ru_stime)
}

#[test]
fn a_process_that_waits_uses_hardly_any_time() {
    let dir = TempDir::new().unwrap();
    let other = space_in(dir.path());
    let _lease = other.acquire(A, auto(NAME), Wait::NO).unwrap();
    in_child(|| {
        let space = space_in(dir.path());
        let (before, started) = (cpu_time(), Instant::now());
        let refused = space.acquire(B, auto(NAME), Wait::within(Duration::from_millis(1200)));
        assert!(matches!(refused, Err(AcquireError::Busy(_))));
        let (used, wall) = (cpu_time() - before, started.elapsed());
        assert!(used < wall / 20, "{used:?} of {wall:?}");
    });
}

#[test]
fn a_process_that_waits_to_become_exclusive_uses_hardly_any_time() {
    let dir = TempDir::new().unwrap();
    let other = space_in(dir.path());
    let _lease = other.acquire(A, Request::shared(NAME).auto_create(), Wait::NO).unwrap();
    in_child(|| {
        let space = space_in(dir.path());
        let mut lease = space.acquire(B, Request::shared(NAME), Wait::NO).unwrap();
        let (before, started) = (cpu_time(), Instant::now());
        let refused = lease.upgrade(Wait::within(Duration::from_millis(1200)));
        assert!(matches!(refused, Err(AcquireError::Busy(_))));
        let (used, wall) = (cpu_time() - before, started.elapsed());
        assert!(used < wall / 20, "{used:?} of {wall:?}");
    });
}

#[test]
fn a_child_of_a_process_that_waits_can_try_itself() {
    in_child(|| {
        let dir = TempDir::new().unwrap();
        let (space, other) = (space_in(dir.path()), space_in(dir.path()));
        let lease = other.acquire(A, auto(NAME), Wait::NO).unwrap();
        let waiting = start({
            let space = space.clone();
            move || space.acquire(B, auto(NAME), Wait::FOREVER).map(drop)
        });
        // Its helper is idle soon: the child must not count on it.
        let waiting = waiting.sleeps();
        let ready = Gate::new();
        let child = fork(|| {
            let refused = space.acquire(B, auto(NAME), Wait::FOREVER);
            assert!(matches!(refused, Err(AcquireError::Forked { .. })), "{refused:?}");
            // It does not wait: that is not for the child of a process of many threads.
            let mine = space_in(dir.path());
            assert!(matches!(mine.acquire(A, auto(NAME), Wait::NO), Err(AcquireError::Busy(_))));
            ready.open();
        });
        ready.wait();
        drop(lease);
        waiting.join().unwrap();
        child.join();
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
    });
}
