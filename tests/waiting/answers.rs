//! What a wait says when it ends in vain is true: of a file system, of a holder, of its own owner.
//! And what it leaves behind while a file system hangs is bounded.

use std::fmt::Debug;
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::support::alone::alone;
use crate::support::forked::{exit_now, fork, refuse_system_calls};
use crate::support::hung_fs::HungFs;
use crate::support::interop::skip_or_fail;
use crate::support::locks::ofd_lock;
use crate::support::process::{helpers, open_below};
use crate::support::waits::{LONG, eventually, start};
use lockspace::{
    AcquireError, Busy, ByteRange, DeadlockCause, Lease, LockSpace, Mode, Naming, OwnerId, Request,
    Target, Wait,
};
use tempfile::TempDir;

const A: OwnerId = OwnerId::new(1);
const B: OwnerId = OwnerId::new(2);
/// Over soon, but long enough for what does not hang.
const SHORT: Duration = Duration::from_millis(300);

type Acquired = Result<Lease, AcquireError>;

#[track_caller]
fn busy(result: Acquired) -> Busy {
    match result {
        Err(AcquireError::Busy(busy)) => busy,
        other => panic!("{other:?}"),
    }
}

/// A file system that hangs once it is told to. What is open on it must be leaked.
fn answering_fs() -> Option<HungFs> {
    HungFs::mount_answering().map_err(|why| skip_or_fail("a FUSE file system", &why)).ok()
}

fn hung_fs() -> Option<HungFs> {
    HungFs::mount().map_err(|why| skip_or_fail("a FUSE file system", &why)).ok()
}

fn leaked<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Threads that want every processor, until this is dropped.
struct BusyMachine {
    over: Arc<AtomicBool>,
    _only: MutexGuard<'static, ()>,
}

impl BusyMachine {
    /// One at a time.
    fn new() -> Self {
        static ONLY: Mutex<()> = Mutex::new(());
        let _only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        let over = Arc::new(AtomicBool::new(false));
        for _ in 0..2 * thread::available_parallelism().unwrap().get() {
            let over = Arc::clone(&over);
            thread::spawn(move || while !over.load(SeqCst) {});
        }
        Self { over, _only }
    }
}

impl Drop for BusyMachine {
    fn drop(&mut self) {
        self.over.store(true, SeqCst);
    }
}

/// Three owners that want one resource, each 126 times for 5 to 24 ms, on a busy machine: a deadline
/// falls anywhere. What was said to them but that it is busy.
fn said_to_three(acquire: impl Fn(OwnerId, Wait) -> Acquired + Sync) -> Vec<String> {
    let _load = BusyMachine::new();
    let said = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for owner in 1..=3 {
            let (acquire, said) = (&acquire, &said);
            scope.spawn(move || {
                for time in (5..=24).cycle().take(126).map(Duration::from_millis) {
                    match acquire(OwnerId::new(owner), Wait::within(time)) {
                        Ok(lease) => {
                            thread::sleep(time / 3);
                            lease.release().unwrap();
                        }
                        Err(AcquireError::Busy(_)) => {}
                        Err(error) => said.lock().unwrap().push(error.to_string()),
                    }
                }
            });
        }
    });
    said.into_inner().unwrap()
}

const NOTHING: [String; 0] = [];

/// Into the open of a file that has just replaced another one, into its removal.
#[test]
fn a_file_system_that_answers_is_not_called_unresponsive_where_lock_files_come_and_go() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let spaces = [(); 3].map(|()| LockSpace::open(Naming::md5(dir.path())).unwrap());
    let said = said_to_three(|owner, wait| {
        let space = &spaces[owner.get() as usize - 1];
        space.acquire(owner, Request::exclusive("disk").auto_create(), wait)
    });
    assert_eq!(said, NOTHING);
}

/// Into the release of the holder before.
#[test]
fn a_file_system_that_answers_is_not_called_unresponsive_in_a_queue() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let space = LockSpace::open(Naming::md5(dir.path())).unwrap();
    let said = said_to_three(|owner, wait| {
        space.acquire(owner, Request::exclusive("disk").auto_create(), wait)
    });
    assert_eq!(said, NOTHING);
}

#[test]
fn a_file_system_that_answers_is_not_called_unresponsive_by_several_at_once() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let space = LockSpace::open(Naming::md5(dir.path())).unwrap();
    let said = said_to_three(|owner, wait| {
        let disks = ["disk", "base"].map(|name| Request::exclusive(name).auto_create());
        let leases = space.acquire_all(owner, disks, wait)?;
        Ok(leases.into_iter().next().unwrap())
    });
    assert_eq!(said, NOTHING);
}

#[test]
fn a_file_system_that_answers_is_not_called_unresponsive_of_an_image_itself() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = dir.path().join("a.raw");
    fs::write(&image, "").unwrap();
    let spaces = [(); 3].map(|()| LockSpace::open(Naming::direct()).unwrap());
    let said = said_to_three(|owner, wait| {
        let (space, target) = (&spaces[owner.get() as usize - 1], Target::image(&image));
        space.acquire(owner, Request::exclusive(target), wait)
    });
    assert_eq!(said, NOTHING);
    let said = said_to_three(|owner, wait| {
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let target = Target::opened("disk", &file);
        spaces[0].acquire(owner, Request::exclusive(target), wait)
    });
    assert_eq!(said, NOTHING);
}

/// There is no file system.
#[test]
fn in_memory_no_file_system_gives_no_answer() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    let said = said_to_three(|owner, wait| space.acquire(owner, Request::exclusive("disk"), wait));
    assert_eq!(said, NOTHING);
}

/// A process that removes a lock file, and was stopped just before, has all of its bytes but the last.
#[test]
fn a_remover_that_was_stopped_is_a_holder() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    space.create("disk").unwrap();
    let file = File::options().write(true).open(dir.path().join("disk")).unwrap();
    ofd_lock(&file, true, 0, i64::MAX).unwrap();
    let try_is_refused = busy(space.acquire(A, Request::exclusive("disk"), Wait::NO));
    assert_eq!(try_is_refused.held(), None);
    let wait = || Wait::within(Duration::from_millis(20));
    busy(space.acquire(A, Request::exclusive("disk"), wait()));
    let both = space.acquire_all(A, ["disk", "a"].map(Request::exclusive), wait());
    assert!(matches!(both, Err(AcquireError::Busy(_))), "{both:?}");
    let waiting = start({
        let space = space.clone();
        move || space.acquire(A, Request::exclusive("disk"), Wait::within(LONG))
    });
    drop((waiting.watches(), file));
}

/// What each of them had for its call, it keeps until that is answered.
#[test]
fn waits_that_were_given_up_on_an_opened_file_leave_few_descriptors() {
    let space = leaked(LockSpace::open(Naming::direct()).unwrap());
    let Some(hung) = answering_fs() else { return };
    let image: &File =
        leaked(File::options().read(true).write(true).open(hung.path().join("a.raw")).unwrap());
    hung.hang_attributes(0);
    hung.hang_closes();
    let wait = |owner: u64, time| {
        let request = Request::exclusive(Target::opened("a", image));
        let given_up = space.acquire(OwnerId::new(owner), request, Wait::within(time));
        assert!(matches!(given_up, Err(AcquireError::Unresponsive { .. })), "{given_up:?}");
    };
    for owner in 0..40 {
        wait(owner, Duration::from_millis(1));
    }
    hung.wait_for_attributes(1);
    assert!(open_below(hung.path()) <= 20, "{} descriptors", open_below(hung.path()));
    // Nor many at once, and nor several at once.
    thread::scope(|scope| {
        (100..140).for_each(|owner| drop(scope.spawn(move || wait(owner, SHORT))));
    });
    let all = [Request::exclusive(Target::opened("a", image))];
    let all = space.acquire_all(A, all, Wait::within(Duration::from_millis(1)));
    assert!(matches!(all, Err(AcquireError::Unresponsive { .. })), "{all:?}");
    assert!(open_below(hung.path()) <= 20, "{} descriptors", open_below(hung.path()));

    // Whoever has time enough gets it once it is answered.
    let patient = start(|| {
        let request = Request::exclusive(Target::opened("a", image));
        space.acquire(B, request, Wait::within(LONG)).map(Lease::keep)
    });
    let patient = patient.sleeps_for_others();
    hung.answer_all();
    patient.join().unwrap();
    eventually("what was left is closed", || open_below(hung.path()) == 2);
}

/// A wait on every resource that hangs no call is granted, however it is named.
#[track_caller]
fn waits_work_below(dir: &Path) {
    let [disk, image] = ["disk", "image"].map(|name| dir.join(name));
    fs::write(&image, "").unwrap();
    let locks = LockSpace::open(Naming::md5(dir.join("locks"))).unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let wait = || Wait::within(LONG);
    for request in [
        Request::exclusive("disk").auto_create(),
        Request::exclusive(Target::image(&image)).auto_create(),
        Request::exclusive(Target::new_image(&disk)).auto_create(),
        Request::exclusive(Target::opened("disk", &file)),
    ] {
        locks.acquire(A, request.clone(), wait()).unwrap().release().unwrap();
        drop(locks.acquire_all(A, [request], wait()).unwrap());
    }
    for request in [
        Request::exclusive(&image),
        Request::exclusive(&image).refuse_hard_links(),
        Request::exclusive(Target::image(&image)),
        Request::exclusive(Target::opened("disk", &file)),
    ] {
        direct.acquire(A, request.clone(), wait()).unwrap().release().unwrap();
        drop(direct.acquire_all(A, [request], wait()).unwrap());
    }
    // And refused, where it is held.
    let other = LockSpace::open(Naming::direct()).unwrap();
    let held = other.acquire(B, Request::exclusive(&image), Wait::NO).unwrap();
    busy(direct.acquire(A, Request::exclusive(&image), Wait::within(SHORT)));
    held.release().unwrap();
}

/// 64 workers at most, one for each directory: of no more can it be known that they are on one file
/// system.
#[test]
fn many_directories_that_hang_take_few_threads_and_stop_no_wait_elsewhere() {
    alone(|| {
        let dir = tempfile::tempdir().unwrap();
        let space = LockSpace::open(Naming::direct()).unwrap();
        let Some(hung) = hung_fs() else { return };
        let (space, hung) = (&space, &hung);
        let acquire = |i: usize, wait| {
            let directory = dir.path().join(format!("directory {i}"));
            symlink(hung.path(), &directory).unwrap();
            let path = directory.join(format!("{i}.raw"));
            space.acquire(OwnerId::new(i as u64), Request::exclusive(&path), wait)
        };
        thread::scope(|scope| {
            let stuck: Vec<_> =
                (0..64).map(|i| scope.spawn(move || acquire(i, Wait::within(LONG)))).collect();
            hung.wait_for_open(64);
            assert_eq!(helpers(), 64);
            for i in 64..70 {
                let given_up = acquire(i, Wait::within(SHORT));
                assert!(matches!(given_up, Err(AcquireError::Unresponsive { .. })), "{given_up:?}");
            }
            assert_eq!(helpers(), 64);
            waits_work_below(dir.path());
            // A wait that watches is woken.
            let [first, second] =
                [(); 2].map(|()| LockSpace::open(Naming::verbatim(dir.path())).unwrap());
            first.create("lock").unwrap();
            let lease = first.acquire(A, Request::exclusive("lock"), Wait::NO).unwrap();
            let waiting =
                start(move || second.acquire(B, Request::exclusive("lock"), Wait::within(LONG)));
            let waiting = waiting.watches();
            lease.release().unwrap();
            waiting.join().unwrap().release().unwrap();
            assert_eq!(helpers(), 64);

            hung.answer_all();
            for stuck in stuck {
                stuck.join().unwrap().unwrap().release().unwrap();
            }
        });
        eventually("no worker is left", || helpers() == 0);
    });
}

/// Runs `body` in a process in which no thread can be started.
#[track_caller]
fn without_threads(body: impl FnOnce()) {
    const NO_FILTER: i32 = 77;
    let child = fork(|| {
        if !refuse_system_calls(&[libc::SYS_clone, libc::SYS_clone3]) {
            exit_now(NO_FILTER);
        }
        assert!(thread::Builder::new().spawn(|| ()).is_err());
        body();
    });
    match child.join_code() {
        NO_FILTER => skip_or_fail("seccomp", "the kernel refuses a filter"),
        code => assert_eq!(code, 0),
    }
}

#[test]
fn where_no_thread_can_be_had_a_wait_makes_its_local_calls_itself() {
    alone(|| {
        let dir = tempfile::tempdir().unwrap();
        without_threads(|| waits_work_below(dir.path()));
    });
}

#[test]
fn where_no_thread_can_be_had_a_wait_that_might_hang_says_what_it_lacks() {
    alone(|| {
        let Some(answering) = answering_fs() else { return };
        let image = answering.path().join("a.raw");
        without_threads(|| {
            let space = LockSpace::open(Naming::direct()).unwrap();
            let image_of = |request| space.acquire(A, request, Wait::within(LONG)).unwrap_err();
            for error in [
                image_of(Request::exclusive(&image)),
                image_of(Request::exclusive(Target::image(&image))),
            ] {
                let said = "start a worker thread: Operation not permitted (os error 1)";
                assert_eq!(error.to_string(), said);
            }
            // A try starts none.
            space.acquire(A, Request::exclusive(&image), Wait::NO).unwrap().release().unwrap();
        });
    });
}

// Owners that would wait for themselves.

/// Two names of one file.
struct Aliases {
    _dir: TempDir,
    names: [PathBuf; 2],
}

impl Aliases {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let names = ["a.raw", "b.raw"].map(|name| dir.path().join(name));
        fs::write(&names[0], "").unwrap();
        fs::hard_link(&names[0], &names[1]).unwrap();
        Self { _dir: dir, names }
    }

    fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.names[0]).unwrap()
    }
}

fn direct() -> LockSpace {
    LockSpace::open(Naming::direct()).unwrap()
}

/// Runs a call that must not wait, and fails where it does.
#[track_caller]
fn at_once<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    start(call).join()
}

#[track_caller]
fn is_deadlock<T: Debug>(
    result: Result<T, AcquireError>,
    expected: (OwnerId, Option<&Path>, DeadlockCause),
) {
    match result {
        Err(AcquireError::Deadlock { owner, alias, why, .. }) => {
            assert_eq!((owner, alias.as_deref().map(Path::new), why), expected);
        }
        other => panic!("{other:?}"),
    }
}

const HELD: DeadlockCause = DeadlockCause::OwnHold { held: Mode::Exclusive };
const HELD_SHARED: DeadlockCause = DeadlockCause::OwnHold { held: Mode::Shared };

#[test]
fn an_owner_that_holds_a_file_by_another_name_does_not_wait_for_itself() {
    let aliases = Aliases::new();
    let [a, b] = aliases.names.clone();
    for (held, asked, why) in [
        (Mode::Exclusive, Mode::Exclusive, HELD),
        (Mode::Exclusive, Mode::Shared, HELD),
        (Mode::Shared, Mode::Exclusive, HELD_SHARED),
    ] {
        // By the other name in the same space, and by both names in another space.
        let space = direct();
        let lease = space.acquire(A, Request::new(held, &a), Wait::NO).unwrap();
        for (space, name, alias) in
            [(space.clone(), &b, Some(&*a)), (direct(), &b, Some(&a)), (direct(), &a, None)]
        {
            let name = name.clone();
            let waits = at_once(move || {
                space.acquire(A, Request::new(asked, Target::image(&name)), Wait::FOREVER)
            });
            is_deadlock(waits, (A, alias, why));
        }
        // It still has what it had, and another owner waits as ever.
        lease.verify().unwrap();
        let waiting = start({
            let (space, b) = (space.clone(), b.clone());
            move || space.acquire(B, Request::new(asked, &b), Wait::FOREVER)
        });
        let waiting = waiting.watches();
        lease.release().unwrap();
        waiting.join().unwrap().release().unwrap();
    }
}

#[test]
fn what_names_the_file_makes_no_difference_to_an_owner_that_would_wait_for_itself() {
    let aliases = Aliases::new();
    let [a, b] = aliases.names.clone();
    let space = direct();
    let opened = aliases.open();
    let held = Request::exclusive(Target::opened("its disk", &opened));
    let lease = space.acquire(A, held, Wait::NO).unwrap();
    let waits = at_once({
        let (space, a) = (space.clone(), a.clone());
        move || space.acquire(A, Request::exclusive(&a), Wait::FOREVER)
    });
    is_deadlock(waits, (A, Some(Path::new("its disk")), HELD));
    drop(lease);

    let lease = space.acquire(A, Request::exclusive(&b), Wait::NO).unwrap();
    let waits = at_once({
        let (space, file) = (space.clone(), aliases.open());
        move || {
            let target = Target::opened("its disk", &file);
            space.acquire(A, Request::exclusive(target), Wait::FOREVER)
        }
    });
    is_deadlock(waits, (A, Some(&b), HELD));
    drop(lease);

    // Two spaces on one directory of lock files.
    let dir = tempfile::tempdir().unwrap();
    let [first, second] = [(); 2].map(|()| LockSpace::open(Naming::md5(dir.path())).unwrap());
    let disk = || Request::exclusive("disk").auto_create();
    let lease = first.acquire(A, disk(), Wait::NO).unwrap();
    lease.keep();
    let waits = at_once(move || second.acquire(A, disk(), Wait::FOREVER));
    is_deadlock(waits, (A, None, HELD));
}

#[test]
fn several_at_once_do_not_wait_for_their_own_owner_by_another_name() {
    let aliases = Aliases::new();
    let [a, b] = aliases.names.clone();
    let other = aliases.names[0].with_file_name("c.raw");
    fs::write(&other, "").unwrap();
    let space = direct();
    let _lease = space.acquire(A, Request::exclusive(&a), Wait::NO).unwrap();
    // Whatever else is held.
    let _held = direct().acquire(B, Request::exclusive(&other), Wait::NO).unwrap();
    for all in [vec![b.clone()], vec![other, b]] {
        let space = space.clone();
        let waits = at_once(move || {
            let all = all.iter().map(|image| Request::exclusive(Target::image(image)));
            space.acquire_all(A, all, Wait::FOREVER)
        });
        is_deadlock(waits, (A, Some(&a), HELD));
    }
}

#[test]
fn an_upgrade_does_not_wait_for_another_hold_of_its_owner() {
    let aliases = Aliases::new();
    let [a, b] = aliases.names.clone();
    let [space, other] = [direct(), direct()];
    let shared = |name: &Path| Request::shared(name.to_owned()).upgradable();
    for (space_of_b, name_of_b, alias) in [(&space, &b, Some(&*b)), (&other, &a, None)] {
        let mut lease = space.acquire(A, shared(&a), Wait::NO).unwrap();
        let _second = space_of_b.acquire(A, shared(name_of_b), Wait::NO).unwrap();
        let (upgraded, lease) = at_once(move || (lease.upgrade(Wait::FOREVER), lease));
        is_deadlock(upgraded, (A, alias, DeadlockCause::OtherOwnHold));
        assert_eq!(lease.mode(), Mode::Shared);
        lease.verify().unwrap();
    }
}

/// The first one goes on waiting, and becomes exclusive once the second one gives up.
#[test]
fn a_second_upgrade_by_another_name_does_not_wait_for_the_first() {
    let aliases = Aliases::new();
    let [a, b] = aliases.names.clone();
    let [space, other] = [direct(), direct()];
    let shared = |name: &Path| Request::shared(name.to_owned()).upgradable();
    for (space_of_b, name_of_b, alias) in [(&space, &b, Some(&*a)), (&other, &a, None)] {
        let mut first = space.acquire(A, shared(&a), Wait::NO).unwrap();
        let mut second = space_of_b.acquire(B, shared(name_of_b), Wait::NO).unwrap();
        let waiting = start(move || first.upgrade(Wait::FOREVER).map(|()| first)).watches();
        let (upgraded, second) = at_once(move || (second.upgrade(Wait::FOREVER), second));
        is_deadlock(upgraded, (B, alias, DeadlockCause::Upgrade { other: A }));
        drop(second);
        assert_eq!(waiting.join().unwrap().mode(), Mode::Exclusive);
    }
    // On bytes of their own, none is in the way of the other.
    let on = |start| ByteRange::new(start, NonZeroU64::MIN).unwrap();
    let mut first = space.acquire(A, shared(&a).range(on(1)), Wait::NO).unwrap();
    let mut second = space.acquire(B, shared(&b).range(on(2)), Wait::NO).unwrap();
    let held = other.acquire(OwnerId::new(3), shared(&a).range(on(1)), Wait::NO).unwrap();
    let waiting = start(move || first.upgrade(Wait::FOREVER).map(|()| first)).watches();
    second.upgrade(Wait::within(LONG)).unwrap();
    drop(held);
    drop(waiting.join().unwrap());
}

/// It has never asked the kernel itself.
#[test]
fn an_owner_does_not_queue_behind_another_one_for_what_it_holds_by_another_name() {
    let aliases = Aliases::new();
    let [a, b] = aliases.names.clone();
    let space = direct();
    let lease = space.acquire(A, Request::exclusive(&a), Wait::NO).unwrap();
    let wait_for_b = |owner| {
        let (space, b) = (space.clone(), b.clone());
        start(move || space.acquire(owner, Request::exclusive(&b), Wait::FOREVER))
    };
    let first = wait_for_b(B).watches();
    is_deadlock(wait_for_b(A).join(), (A, Some(&a), HELD));
    drop(lease);
    first.join().unwrap().release().unwrap();
}

/// Another thread is faster to get the file for the same owner, by another name.
#[test]
fn an_owner_that_comes_to_hold_what_it_waits_for_is_told() {
    let aliases = Aliases::new();
    let [a, b] = aliases.names.clone();
    let space = direct();
    // The first byte is what the wait lacks; the others are free for the owner's other thread.
    let outside = aliases.open();
    ofd_lock(&outside, true, 0, 1).unwrap();
    let waiting = start({
        let (space, a) = (space.clone(), a.clone());
        move || {
            let all = Request::exclusive(&a).range(ByteRange::WHOLE_FILE);
            space.acquire(A, all, Wait::FOREVER)
        }
    });
    let waiting = waiting.watches();
    let some = ByteRange::new(7, NonZeroU64::MIN).unwrap();
    let lease = space.acquire(A, Request::exclusive(&b).range(some), Wait::NO).unwrap();
    is_deadlock(waiting.join(), (A, Some(&b), HELD));
    lease.verify().unwrap();
}

#[test]
fn a_hold_of_other_bytes_is_in_nobodys_way_and_is_not_blamed() {
    let aliases = Aliases::new();
    let [a, b] = aliases.names.clone();
    let space = direct();
    let at = |start| ByteRange::new(start, NonZeroU64::MIN).unwrap();
    let held = space.acquire(A, Request::exclusive(&a).range(at(5)), Wait::NO).unwrap();
    drop(space.acquire(A, Request::exclusive(&b).range(at(6)), Wait::within(LONG)).unwrap());
    let outside = aliases.open();
    ofd_lock(&outside, true, 6, 1).unwrap();
    for wait in [Wait::NO, Wait::within(SHORT)] {
        let refused = busy(space.acquire(A, Request::exclusive(&b).range(at(6)), wait));
        assert_eq!((refused.held(), refused.owners()), (None, &[][..]));
    }
    // Nor one that can be shared.
    drop(held);
    let _held = space.acquire(A, Request::shared(&a).range(at(5)), Wait::NO).unwrap();
    let both = ByteRange::new(5, NonZeroU64::new(2).unwrap()).unwrap();
    for wait in [Wait::NO, Wait::within(SHORT)] {
        let refused = busy(space.acquire(B, Request::shared(&b).range(both), wait));
        assert_eq!((refused.held(), refused.owners()), (None, &[][..]));
        assert!(!refused.to_string().contains("an exclusive request waits"), "{refused}");
    }
    drop(outside);
    drop(space.acquire(B, Request::shared(&b).range(both), Wait::NO).unwrap());
}

/// A lock file has two names where a caller hands it in.
#[test]
fn a_lock_file_that_was_handed_in_is_held_inside() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    space.create("disk").unwrap();
    let path = dir.path().join("disk");
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let target = Target::opened("handed in", &file);
    let _lease = space.acquire(A, Request::exclusive(target), Wait::NO).unwrap();
    for wait in [Wait::NO, Wait::within(SHORT)] {
        let refused = busy(space.acquire(B, Request::exclusive("disk"), wait));
        assert_eq!((refused.held(), refused.owners()), (Some(Mode::Exclusive), &[A][..]));
    }
    let waits = at_once(move || space.acquire(A, Request::exclusive("disk"), Wait::FOREVER));
    is_deadlock(waits, (A, Some(Path::new("handed in")), HELD));
}
