//! What a caller is told when a call is refused, and what the standard library is told of it.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use crate::support::spaces::{NAME, direct, expect_busy, in_memory, space_in};
use crate::support::waits::{LONG, start};
use lockspace::{
    AcquireError, ByteRange, DeadlockCause, Lease, LockSpace, Mode, OwnerId, Request, Wait,
};

const VM: OwnerId = OwnerId::new(4711);
const OTHER: OwnerId = OwnerId::new(7);
const SHORT: Duration = Duration::from_millis(20);

fn hold_disk(space: &LockSpace, owner: OwnerId, mode: Mode) -> Lease {
    space.acquire(owner, Request::new(mode, NAME), Wait::NO).unwrap()
}

/// Why the wait of [`VM`] would never end, and the whole sentence.
#[track_caller]
fn deadlock<T>(result: Result<T, AcquireError>) -> (DeadlockCause, String) {
    let error = result.map(drop).unwrap_err();
    let (said, is_busy) = (error.to_string(), error.is_busy());
    let AcquireError::Deadlock { name, owner, alias, why } = error else { panic!("{error:?}") };
    assert_eq!((name.to_str(), owner, alias, is_busy), (Some(NAME), VM, None, false));
    (why, said)
}

#[test]
fn a_vm_that_is_started_twice_is_told_who_holds_its_disk() {
    let space = in_memory();
    for (held, asked) in [(Mode::Exclusive, Mode::Exclusive), (Mode::Shared, Mode::Exclusive)] {
        let lease = hold_disk(&space, VM, held);
        let refused = space.acquire(VM, Request::new(asked, NAME), Wait::NO).unwrap_err();
        assert!(refused.is_busy());
        assert_eq!(
            refused.to_string(),
            format!(r#""disk" is busy: held {held} by owner 4711; asked for exclusive"#)
        );
        let why = DeadlockCause::OwnHold { held };
        let said = format!(r#"owner 4711 would wait for itself: it already holds "disk" {held}"#);
        let wait = Wait::within(LONG);
        let refused = space.acquire(VM, Request::new(asked, NAME), wait);
        assert_eq!(deadlock(refused), (why, said.clone()));
        let all = [Request::exclusive("base"), Request::new(asked, NAME)];
        assert_eq!(deadlock(space.acquire_all(VM, all, Wait::within(LONG))), (why, said));
        drop(lease);
    }
}

#[test]
fn a_vm_that_waits_twice_is_told_of_its_other_call() {
    let space = in_memory();
    let lease = hold_disk(&space, OTHER, Mode::Exclusive);
    let waiting = {
        let space = space.clone();
        start(move || space.acquire(VM, Request::shared(NAME), Wait::FOREVER)).sleeps()
    };
    let (why, said) = deadlock(space.acquire(VM, Request::exclusive(NAME), Wait::within(LONG)));
    assert_eq!(why, DeadlockCause::OwnWait { asked: Mode::Shared });
    assert_eq!(
        said,
        r#"owner 4711 would wait for itself: another call of it already asks for "disk" (shared)"#
    );
    drop(lease);
    drop(waiting.join().unwrap());
}

#[test]
fn who_waits_to_upgrade_is_told_who_would_never_leave() {
    let space = in_memory();
    let (mut lease, second) =
        (hold_disk(&space, VM, Mode::Shared), hold_disk(&space, VM, Mode::Shared));
    let (why, said) = deadlock(lease.upgrade(Wait::within(LONG)));
    assert_eq!(why, DeadlockCause::OtherOwnHold);
    assert!(said.contains("owner 4711 would wait for itself: it has another hold of"), "{said}");
    drop(second);

    let mut other = hold_disk(&space, OTHER, Mode::Shared);
    let waiting = start(move || other.upgrade(Wait::FOREVER).map(|()| other)).sleeps();
    let (why, said) = deadlock(lease.upgrade(Wait::within(LONG)));
    assert_eq!(why, DeadlockCause::Upgrade { other: OTHER });
    assert!(said.starts_with("owner 4711 and owner 7 would wait for each other: "), "{said}");
    assert_eq!(lease.mode(), Mode::Shared);
    drop(lease);
    drop(waiting.join().unwrap());
}

#[test]
fn an_exclusive_request_waits_only_where_one_does() {
    let waits = "held shared by owner 7, and an exclusive request waits; asked for shared";
    let space = in_memory();
    let lease = hold_disk(&space, OTHER, Mode::Shared);
    let waiting = {
        let space = space.clone();
        start(move || space.acquire(VM, Request::exclusive(NAME), Wait::FOREVER)).sleeps()
    };
    for wait in [Wait::NO, Wait::within(SHORT)] {
        let refused = expect_busy(space.acquire(OwnerId::new(1), Request::shared(NAME), wait));
        assert!(refused.to_string().contains(waits), "{refused}");
    }
    drop(lease);
    drop(waiting.join().unwrap());

    // Shared by one name; by another it is asked for on bytes that somebody outside has.
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    fs::write(&a, "").unwrap();
    fs::hard_link(&a, &b).unwrap();
    let bytes = ByteRange::new(100, NonZeroU64::new(4).unwrap()).unwrap();
    let [space, outside] = [(); 2].map(|()| direct());
    let held = (
        space.acquire(VM, Request::shared(&a), Wait::NO).unwrap(),
        outside.acquire(OTHER, Request::exclusive(&a).range(bytes), Wait::NO).unwrap(),
    );
    let refused = expect_busy(space.acquire(VM, Request::shared(&b).range(bytes), Wait::NO));
    assert!(!refused.to_string().contains("waits"), "{refused}");
    drop(held);
}

#[test]
fn a_refusal_is_an_io_error_of_the_kind_that_callers_look_for() {
    fn lock(space: &LockSpace, request: Request<'_>, wait: Wait) -> io::Result<Lease> {
        Ok(space.acquire(OTHER, request, wait)?)
    }
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let _lease = space.acquire(VM, Request::exclusive(NAME).auto_create(), Wait::NO).unwrap();
    for (request, wait, kind) in [
        (Request::shared(NAME), Wait::NO, io::ErrorKind::WouldBlock),
        (Request::shared(NAME), Wait::within(SHORT), io::ErrorKind::TimedOut),
        (Request::shared("none"), Wait::NO, io::ErrorKind::NotFound),
        (Request::shared("a/b"), Wait::NO, io::ErrorKind::InvalidInput),
    ] {
        let error = lock(&space, request, wait).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        let kept = error.get_ref().and_then(|error| error.downcast_ref::<AcquireError>());
        assert_eq!(kept.map(ToString::to_string), Some(error.to_string()));
    }
}

#[test]
fn a_refusal_outlives_its_space_and_keeps_only_the_directory_open() {
    let open_in = |dir: &Path| {
        let links = fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().path());
        links.filter_map(|fd| fs::read_link(fd).ok()).filter(|path| path.starts_with(dir)).count()
    };
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let lease = space.acquire(VM, Request::exclusive(NAME).auto_create(), Wait::NO).unwrap();
    let refused = expect_busy(space.acquire(OTHER, Request::shared(NAME), Wait::NO));
    drop((lease, space));
    assert_eq!(refused.path(), dir.path().join(NAME));
    assert_eq!(refused.owners(), [VM]);
    assert_eq!(open_in(dir.path()), 1);
    drop(refused);
    assert_eq!(open_in(dir.path()), 0);
}
