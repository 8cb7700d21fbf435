//! The ways to wait, who may be in the way, and calls that may hang: what several files here need.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::hung_fs::HungFs;
use crate::support::process::{descriptors_of, helpers, open_below, threads, watches};
use crate::support::spaces::{A, HoldingChild, NAME, Room, space_in};
use crate::support::waits::{LONG, eventually};
use lockspace::{Cancel, LockSpace, Mode, Naming, Request, Wait};

/// Long enough that a wait which ends too early is seen.
pub(crate) const SHORT: Duration = Duration::from_millis(200);

/// Every way to say that it may take long.
pub(crate) fn long_waits() -> [(&'static str, Wait); 6] {
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

/// Somebody holds it, in each way that there is: calls `test` with the name of the way, and with
/// who the busy refusal has to name.
pub(crate) fn in_each_way(test: impl Fn(&Room, &str, Option<Mode>)) {
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
    let holder = HoldingChild::start(room.dir(), Request::shared(NAME), drop);
    test(&room, "held in another process", None);
    holder.child.kill();
    room.is_as_new();
}

/// A space whose holds a failed test leaves.
pub(crate) fn leaked_space() -> &'static LockSpace {
    Box::leak(Box::new(LockSpace::open(Naming::direct()).unwrap()))
}

/// Soon over, but long enough for what does not hang, also on a busy machine.
const SOON: Duration = Duration::from_millis(300);

/// What is later than its deadline by this waits for something else. A busy machine is late by some
/// hundredths of it.
const LATE: Duration = Duration::from_secs(3);

pub(crate) fn shortly() -> Wait {
    Wait::within(SOON)
}

/// Runs `body` in a thread of its own, so that the test fails, and does not hang, if it never
/// returns.
#[track_caller]
pub(crate) fn promptly<T: Send + 'static>(
    space: &LockSpace,
    path: &Path,
    body: impl FnOnce(&LockSpace, &Path) -> T + Send + 'static,
) -> T {
    let (space, path) = (space.clone(), path.to_owned());
    let (done, result) = mpsc::channel();
    thread::spawn(move || done.send(body(&space, &path)));
    match result.recv_timeout(Duration::from_secs(60)) {
        Ok(result) => result,
        Err(error) => panic!("it is stuck, or has panicked: {error}"),
    }
}

/// The same with a wait. Fails unless it returns when that is over, and not before.
#[track_caller]
pub(crate) fn at_its_deadline<T: Send + 'static>(
    space: &LockSpace,
    path: &Path,
    body: impl FnOnce(&LockSpace, &Path, Wait) -> T + Send + 'static,
) -> T {
    let (result, took) = promptly(space, path, |space, path| {
        let started = Instant::now();
        let result = body(space, path, Wait::within(SOON));
        (result, started.elapsed())
    });
    assert!(took >= SOON, "early: {took:?} of {SOON:?}");
    assert!(took < SOON + LATE, "late: {took:?} of {SOON:?}");
    result
}

/// A space that holds `name` in `hung`; another, whose requests it refuses; and the path.
pub(crate) fn held_in(
    hung: &HungFs,
    mode: Mode,
) -> (&'static LockSpace, &'static LockSpace, PathBuf) {
    let (holder, space) = (leaked_space(), leaked_space());
    let path = hung.path().join("a.raw");
    holder.acquire(A, Request::new(mode, &path), Wait::NO).unwrap().keep();
    (holder, space, path)
}

/// How many inotify instances may stay.
pub(crate) const POOL: usize = 16;

/// Nothing but what the bounded pool may keep, in a process that is a test's own, once the helpers
/// have ended: one of them may have been about to give something back.
#[track_caller]
pub(crate) fn only_the_pool_is_left(dir: &Path) {
    eventually("the helpers end", || helpers() == 0);
    eventually("no thread is left but the main one and the test's", || threads() == 2);
    assert!(
        descriptors_of("inotify").len() <= POOL,
        "{} instances",
        descriptors_of("inotify").len()
    );
    assert_eq!(descriptors_of("eventfd").len(), 0);
    assert_eq!(open_below(dir), 0, "descriptors");
    assert_eq!(watches(), 0, "watches");
}

/// A file system may take as long to answer before it is called stuck.
pub(crate) const ANSWER: Duration = Duration::from_millis(100);
