//! What subscribers of `tracing` are told: each grant, refusal, wait and release once, by whom and how.

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;
use std::sync::{Mutex, Once, mpsc};
use std::thread;
use std::time::Duration;

use lockspace::{AcquireError, LockSpace, Mode, Naming, OwnerId, Request, Target, Wait};
use support::alone::alone;
use support::hung_fs::answering_fs;
use support::spaces::{auto, direct, image};
use support::waits::{LONG, eventually, start};
use tempfile::TempDir;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, span};

static TOLD: Mutex<Vec<Told>> = Mutex::new(Vec::new());
/// The subscriber looks at these with each event.
static SPACES: Mutex<Vec<LockSpace>> = Mutex::new(Vec::new());

/// An event about such an owner, or such a file, makes the subscriber panic.
const PANICS: u64 = 6666;
const PANICS_TOO: &str = "the-subscriber-panics";

#[derive(Clone, Debug)]
struct Told {
    level: Level,
    thread: Option<String>,
    fields: BTreeMap<&'static str, String>,
}

impl Visit for Told {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.insert(field.name(), format!("{value:?}"));
    }
}

/// One subscriber for all threads of this process, as a program has it. The tests tell their events
/// apart by the owners.
struct Subscriber;

impl tracing::Subscriber for Subscriber {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "lockspace"
    }

    fn event(&self, event: &Event<'_>) {
        let thread = thread::current().name().map(str::to_owned);
        if thread.as_deref() == Some("lockspace") {
            use_stack();
        }
        let mut told = Told { level: *event.metadata().level(), thread, fields: BTreeMap::new() };
        event.record(&mut told);
        let spaces = SPACES.lock().unwrap().clone();
        let (done, looked) = mpsc::channel();
        thread::spawn(move || {
            done.send(spaces.iter().map(|space| space.list().len()).sum::<usize>())
        });
        if looked.recv_timeout(LONG).is_err() {
            told.fields.insert("hangs", String::new());
        }
        let panics = told.fields.get("owner").is_some_and(|owner| *owner == PANICS.to_string())
            || told.fields.get("error").is_some_and(|error| error.contains(PANICS_TOO));
        TOLD.lock().unwrap().push(told);
        assert!(!panics, "the subscriber panics, as it was told to");
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// Needs most of the stack that a worker is said to have, 512 KiB.
#[inline(never)]
fn use_stack() {
    let buffer = [1_u8; 384 * 1024];
    std::hint::black_box(&buffer);
}

fn space(naming: Naming) -> LockSpace {
    subscribe();
    let space = LockSpace::open(naming).unwrap();
    SPACES.lock().unwrap().push(space.clone());
    space
}

fn subscribe() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| tracing::subscriber::set_global_default(Subscriber).unwrap());
}

/// A space in a directory, and a second one there, as another process has it.
fn two_spaces(dir: &TempDir) -> [LockSpace; 2] {
    [(); 2].map(|()| space(Naming::verbatim(dir.path())))
}

fn told_if(of: impl Fn(&Told) -> bool) -> Vec<Told> {
    TOLD.lock().unwrap().iter().filter(|told| of(told)).cloned().collect()
}

/// What has been told of an owner: event, name, mode.
fn told_of(owner: OwnerId) -> Vec<(String, String, String)> {
    let told = told_if(|told| told.fields.get("owner") == Some(&owner.to_string()));
    let each = told.into_iter().map(|told| {
        assert_eq!(told.level, Level::DEBUG, "{told:?}");
        assert!(!told.fields.contains_key("hangs"), "a mutex is locked: {told:?}");
        let field = |name: &str| told.fields.get(name).cloned().unwrap_or_default();
        let of_error = field("error");
        match &*field("message") {
            "refused" => assert!(!of_error.is_empty() && !field("waited").is_empty(), "{told:?}"),
            "granted" => assert!(of_error.is_empty() && !field("waited").is_empty(), "{told:?}"),
            _ => assert!(of_error.is_empty() && field("waited").is_empty(), "{told:?}"),
        }
        (field("message"), field("name"), field("mode"))
    });
    each.collect()
}

#[track_caller]
fn expect(owner: OwnerId, events: &[(&str, &str, Mode)]) {
    // A thread that waits may be with the subscriber still.
    eventually("all is told", || told_of(owner).len() >= events.len());
    let events = events
        .iter()
        .map(|(message, name, mode)| (message.to_string(), format!("{name:?}"), mode.to_string()));
    assert_eq!(told_of(owner), events.collect::<Vec<_>>(), "of owner {owner}");
}

/// How long the acquires of an owner that were granted or refused took by their events.
fn waited_by(owner: OwnerId) -> Vec<String> {
    let told = told_if(|told| told.fields.get("owner") == Some(&owner.to_string()));
    told.iter().filter_map(|told| told.fields.get("waited").cloned()).collect()
}

fn owners<const N: usize>(first: u64) -> [OwnerId; N] {
    std::array::from_fn(|index| OwnerId::new(first + index as u64))
}

use Mode::{Exclusive, Shared};

#[test]
fn each_acquire_and_each_release_is_told_once() {
    let [a, b] = owners(10);
    let dir = TempDir::new().unwrap();
    let space = space(Naming::verbatim(dir.path()));
    let request = || Request::exclusive("disk").auto_create();

    let lease = space.acquire(a, request(), Wait::NO).unwrap();
    expect(a, &[("granted", "disk", Exclusive)]);
    let refused = space.acquire(b, request(), Wait::NO).unwrap_err();
    expect(b, &[("refused", "disk", Exclusive)]);
    let told = told_if(|told| told.fields.get("error") == Some(&refused.to_string()));
    assert_eq!(told.len(), 1, "the error is told as it is");

    let waiting = start({
        let space = space.clone();
        move || space.acquire(b, Request::exclusive("disk").auto_create(), Wait::FOREVER)
    });
    let waiting = waiting.sleeps();
    let mut of_b = vec![("refused", "disk", Exclusive), ("waiting", "disk", Exclusive)];
    expect(b, &of_b);
    lease.release().unwrap();
    expect(a, &[("granted", "disk", Exclusive), ("released", "disk", Exclusive)]);
    let lease = waiting.join().unwrap();
    of_b.push(("granted", "disk", Exclusive));
    expect(b, &of_b);
    drop(lease);
    of_b.push(("released", "disk", Exclusive));
    expect(b, &of_b);

    assert_eq!(waited_by(a), ["0ns"]);
    let waited = waited_by(b);
    assert!(waited[0] == "0ns" && waited[1] != "0ns", "{waited:?}");
}

#[test]
fn who_waits_for_another_space_is_told_once_however_often_it_looks() {
    let [a, b] = owners(20);
    let dir = TempDir::new().unwrap();
    let [here, elsewhere] = two_spaces(&dir);
    let request = || Request::shared("disk").auto_create();
    let lease = elsewhere.acquire(a, Request::exclusive("disk").auto_create(), Wait::NO).unwrap();
    // Longer than the time between two looks.
    let wait = Wait::within(Duration::from_millis(250));
    let refused = here.acquire(b, request(), wait).unwrap_err();
    assert!(refused.is_busy());
    expect(b, &[("waiting", "disk", Shared), ("refused", "disk", Shared)]);
    drop(lease);
    let _lease = here.acquire(b, request(), Wait::FOREVER).unwrap();
    assert_eq!(told_of(b).pop().unwrap().0, "granted");
}

#[test]
fn several_at_once_are_told_as_their_caller_sees_it() {
    let [a, b, c, d] = owners(30);
    let dir = TempDir::new().unwrap();
    let [here, elsewhere] = two_spaces(&dir);
    let names = ["a", "b", "c"];

    let leases = here.acquire_all(a, names.map(auto), Wait::NO).unwrap();
    let granted = names.map(|name| ("granted", name, Exclusive));
    expect(a, &granted);
    drop(leases);
    let released = names.map(|name| ("released", name, Exclusive));
    expect(a, &[granted, released].concat());

    // What was taken and given back is not told, and one refusal is.
    let held = elsewhere.acquire(b, auto("c"), Wait::NO).unwrap();
    for wait in [Wait::NO, Wait::within(Duration::from_millis(50))] {
        assert!(here.acquire_all(c, names.map(auto), wait).unwrap_err().is_busy());
    }
    let refused = ("refused", "c", Exclusive);
    expect(c, &[refused, ("waiting", "c", Exclusive), refused]);

    let waiting = start({
        let here = here.clone();
        move || here.acquire_all(d, names.map(auto), Wait::FOREVER)
    });
    let waiting = waiting.watches();
    expect(d, &[("waiting", "c", Exclusive)]);
    drop(held);
    let leases = waiting.join().unwrap();
    expect(d, &[&[("waiting", "c", Exclusive)], &granted[..]].concat());
    drop(leases);
    assert_eq!(told_of(d).len(), 7);
}

#[test]
fn a_changed_mode_is_told_as_a_grant() {
    let [a, b] = owners(40);
    let space = space(Naming::in_memory());
    let mut lease = space.acquire(a, Request::shared("base"), Wait::NO).unwrap();
    let other = space.acquire(b, Request::shared("base"), Wait::NO).unwrap();
    lease.upgrade(Wait::NO).unwrap_err();
    lease.upgrade(Wait::within(Duration::from_millis(20))).unwrap_err();
    drop(other);
    lease.upgrade(Wait::FOREVER).unwrap();
    lease.downgrade().unwrap();
    drop(lease);
    expect(
        a,
        &[
            ("granted", "base", Shared),
            ("refused", "base", Exclusive),
            ("waiting", "base", Exclusive),
            ("refused", "base", Exclusive),
            ("granted", "base", Exclusive),
            ("granted", "base", Shared),
            ("released", "base", Shared),
        ],
    );
}

#[test]
fn the_end_of_kept_holds_is_told_whoever_ends_them() {
    let [a, b] = owners(50);
    let (_dir, image) = image();
    // Its last handle is dropped here, so the subscriber gets none.
    subscribe();
    let space = direct();
    let keep = |owner| {
        space.acquire(owner, Request::shared(Target::image(&image)), Wait::NO).unwrap().keep();
    };
    (0..3).for_each(|_| keep(a));
    keep(b);
    let path = image.to_str().unwrap();
    space.release(a, &image).unwrap();
    assert_eq!(space.release_owner(a).holds, 2);
    space.retake(b, &image).unwrap().keep();
    drop(space);
    let times = |event: &'static str, times| std::iter::repeat_n((event, path, Shared), times);
    expect(a, &times("granted", 3).chain(times("released", 3)).collect::<Vec<_>>());
    expect(b, &[("granted", path, Shared), ("released", path, Shared)]);
}

#[test]
fn what_is_wrong_with_a_request_is_told_and_no_name_forges_a_line() {
    let [a] = owners(60);
    let dir = TempDir::new().unwrap();
    let space = space(Naming::verbatim(dir.path()));
    let name = "a\ngranted owner=1";
    let refused = space.acquire(a, Request::exclusive(name), Wait::NO).unwrap_err();
    assert!(matches!(refused, AcquireError::NotFound { .. }));
    expect(a, &[("refused", name, Exclusive)]);
    let told = told_if(|told| told.fields.get("owner") == Some(&a.to_string()));
    assert!(told[0].fields.values().all(|value| !value.contains('\n')), "{told:?}");
}

/// The warnings of this file, by the threads that told them.
fn warnings_of(path: &Path) -> Vec<Option<String>> {
    let path = path.to_str().unwrap();
    let is_one = |told: &Told| {
        told.level == Level::WARN
            && told.fields.get("error").is_some_and(|error| error.contains(path))
    };
    told_if(is_one).into_iter().map(|told| told.thread).collect()
}

#[test]
fn a_lock_file_that_is_left_over_is_a_warning() {
    alone(|| {
        let [a] = owners(70);
        // Nothing can be unlinked there.
        let Some(fuse) = answering_fs() else { return };
        let space = space(Naming::verbatim(fuse.path()));
        let lease = space.acquire(a, Request::exclusive("disk").auto_create(), Wait::NO).unwrap();
        drop(lease);
        expect(a, &[("granted", "disk", Exclusive), ("released", "disk", Exclusive)]);
        let here = thread::current().name().map(str::to_owned);
        assert_eq!(warnings_of(&fuse.path().join("disk")), [here]);
    });
}

#[test]
fn a_subscriber_that_panics_costs_no_hold() {
    let owner = OwnerId::new(PANICS);
    let [other] = owners(80);
    let dir = TempDir::new().unwrap();
    let space = space(Naming::verbatim(dir.path()));
    let lease = space.acquire(owner, auto("a"), Wait::NO).unwrap();
    lease.verify().unwrap();
    assert!(space.acquire(other, auto("a"), Wait::NO).unwrap_err().is_busy());
    drop(lease);
    for name in ["a", "b", "c"] {
        space.acquire(owner, auto(name), Wait::NO).unwrap().keep();
    }
    assert_eq!(space.release_owner(owner).holds, 3);
    assert_eq!(told_of(owner).len(), 8);
    assert_eq!(space.list(), []);
}

#[test]
fn a_subscriber_that_panics_on_a_worker_stops_nobody() {
    alone(|| {
        let [a, b] = owners(90);
        // Nothing can be unlinked there.
        let Some(fuse) = answering_fs() else { return };
        let space = space(Naming::verbatim(fuse.path()));
        let held = space.acquire(a, auto("held"), Wait::NO).unwrap();
        // The first is given back by a worker, since its file system may hang; and its file stays.
        let both = [PANICS_TOO, "held"];
        let waiting = start({
            let space = space.clone();
            move || space.acquire_all(b, both.map(auto), Wait::FOREVER)
        });
        let left_over = fuse.path().join(PANICS_TOO);
        eventually("a worker tells of the file", || !warnings_of(&left_over).is_empty());
        assert_eq!(warnings_of(&left_over), [Some("lockspace".to_owned())]);
        let _ = held.release();
        let leases = waiting.join().unwrap();
        assert_eq!(space.list().len(), 2);
        drop(leases);
    });
}
