//! No system call is made under the mutex: while one resource of a space is stuck on a file system
//! that gives no answer, every other one works.

mod common {
    pub(crate) mod hung_fs;
    pub(crate) mod interop;
}

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::hung_fs::HungFs;
use common::interop::skip_or_fail;
use lockspace::{
    AcquireError, CreateError, DeleteError, Lease, LockSpace, Mode, Naming, OwnerId, Request, Wait,
    holders_of,
};

const STUCK: OwnerId = OwnerId::new(1);
const OTHER: OwnerId = OwnerId::new(2);

/// The file system, or `None` after saying why not. Its drop, also by a failed assertion, frees the
/// stuck threads.
fn hung_fs() -> Option<HungFs> {
    HungFs::mount().map_err(|why| skip_or_fail("a FUSE file system", &why)).ok()
}

/// Acquires in a thread of its own, which will be stuck.
fn start(
    space: &LockSpace,
    owner: OwnerId,
    mode: Mode,
    path: &Path,
) -> JoinHandle<Result<Lease, AcquireError>> {
    let (space, path) = (space.clone(), path.to_owned());
    thread::spawn(move || space.acquire(owner, Request::new(mode, &path), Wait::NO))
}

/// Runs `body` in a thread of its own, so that the test fails, and does not hang, if it never
/// returns.
#[track_caller]
fn promptly<T: Send + 'static>(
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

/// Every verb, on resources that are not stuck.
fn every_verb(space: &LockSpace, dir: &Path) {
    let [image, base, new] = ["a.raw", "base.raw", "new.raw"].map(|name| dir.join(name));
    fs::write(&image, "").unwrap();
    fs::write(&base, "").unwrap();

    let lease = space.acquire(OTHER, Request::exclusive(&image), Wait::NO).unwrap();
    let refused = space.acquire(STUCK, Request::exclusive(&image), Wait::NO);
    assert!(matches!(refused, Err(AcquireError::Busy(_))));
    lease.verify().unwrap();
    let held: Vec<_> = space.list().into_iter().map(|held| held.name).collect();
    assert_eq!(held, [image.as_os_str()], "what is still being acquired is not held");
    let holders = space.holders(&image).unwrap();
    assert_eq!(holders.len(), 1, "{holders:?}");
    lease.keep();
    let lease = space.retake(OTHER, &image).unwrap();
    lease.release().unwrap();

    for _ in 0..2 {
        space.acquire(OTHER, Request::shared(&base), Wait::NO).unwrap().keep();
    }
    space.release(OTHER, &base).unwrap();
    assert_eq!(space.release_owner(OTHER).holds, 1);

    space.create(&new).unwrap();
    space.delete(&new).unwrap();
    assert!(!new.exists());
    assert_eq!(space.list(), []);
}

#[test]
fn a_stuck_resource_delays_no_verb_on_others() {
    let Some(hung) = hung_fs() else { return };
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::direct()).unwrap();
    let path = hung.path().join("a.raw");
    let stuck = start(&space, STUCK, Mode::Exclusive, &path);
    hung.wait_for_open(1);

    promptly(&space, dir.path(), every_verb);
    // Nor do these of the stuck one's owner, who holds nothing yet.
    promptly(&space, &path, |space, _| assert_eq!(space.release_owner(STUCK).holds, 0));
    promptly(&space, &path, |space, path| space.release(STUCK, path).unwrap_err());
    promptly(&space, &path, |space, path| space.retake(STUCK, path).unwrap_err());
    promptly(&space, dir.path(), |_, dir| {
        let other = LockSpace::open(Naming::md5(dir.join("locks"))).unwrap();
        other.acquire(OTHER, Request::exclusive("b").auto_create(), Wait::NO).unwrap().keep();
    });

    assert!(!stuck.is_finished());
    hung.answer_all();
    let lease = stuck.join().unwrap().expect("granted once the file system answers");
    assert_eq!((lease.mode(), lease.owner()), (Mode::Exclusive, STUCK));
    lease.verify().unwrap();
    assert_eq!(space.list().len(), 1);
    lease.release().unwrap();
    assert_eq!(space.list(), []);
}

#[test]
fn what_the_stuck_acquire_excludes_is_refused_at_once() {
    let Some(hung) = hung_fs() else { return };
    let space = LockSpace::open(Naming::direct()).unwrap();
    let [exclusive, shared] = ["exclusive", "shared"].map(|name| hung.path().join(name));
    let stuck = [(Mode::Exclusive, &exclusive), (Mode::Shared, &shared)]
        .map(|(mode, path)| start(&space, STUCK, mode, path));
    hung.wait_for_open(2);

    for (held, path, asked) in [
        (Mode::Exclusive, &exclusive, Mode::Exclusive),
        (Mode::Exclusive, &exclusive, Mode::Shared),
        (Mode::Shared, &shared, Mode::Exclusive),
    ] {
        let refused = promptly(&space, path, move |space, path| {
            space.acquire(OTHER, Request::new(asked, path), Wait::NO).unwrap_err()
        });
        let AcquireError::Busy(busy) = refused else { panic!("{refused}") };
        assert_eq!((busy.held(), busy.owners()), (Some(held), &[STUCK][..]));
        assert_eq!((busy.name(), busy.asked()), (path.as_os_str(), asked));
    }
    let refused = promptly(&space, &shared, |space, path| space.create(path).unwrap_err());
    assert!(matches!(refused, CreateError::Busy(busy) if busy.owners() == [STUCK]));
    let refused = promptly(&space, &exclusive, |space, path| space.delete(path).unwrap_err());
    assert!(matches!(refused, DeleteError::Busy(busy) if busy.owners() == [STUCK]));

    assert!(stuck.iter().all(|stuck| !stuck.is_finished()));
    hung.answer_all();
    for stuck in stuck {
        stuck.join().unwrap().unwrap().verify().unwrap();
    }
}

#[test]
fn a_try_that_can_share_waits_for_the_stuck_one_and_joins_it() {
    let Some(hung) = hung_fs() else { return };
    let space = LockSpace::open(Naming::direct()).unwrap();
    let path = hung.path().join("base.raw");
    let stuck = start(&space, STUCK, Mode::Shared, &path);
    hung.wait_for_open(1);
    let (tell, second_is) = mpsc::channel();
    let second = {
        let (space, path) = (space.clone(), path.clone());
        thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
            space.acquire(OTHER, Request::shared(&path), Wait::NO)
        })
    };
    let stat = format!("/proc/self/task/{}/stat", second_is.recv().unwrap());
    // It sleeps, or it has wrongly returned.
    let sleeps = || fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "));
    while !sleeps() && !second.is_finished() {
        thread::yield_now();
    }
    hung.answer_all();
    let leases = [stuck, second].map(|thread| thread.join().unwrap().unwrap());
    let held = &space.list()[0];
    assert_eq!(held.owners.keys().collect::<Vec<_>>(), [&STUCK, &OTHER]);
    drop(leases);
    assert_eq!(space.list(), []);
}

#[test]
fn two_stuck_resources_do_not_wait_for_each_other() {
    let Some(hung) = hung_fs() else { return };
    let space = LockSpace::open(Naming::direct()).unwrap();
    let stuck =
        ["a", "b"].map(|name| start(&space, STUCK, Mode::Exclusive, &hung.path().join(name)));
    hung.wait_for_open(2); // fails if the second never gets as far
    hung.answer_all();
    for stuck in stuck {
        stuck.join().unwrap().unwrap().release().unwrap();
    }
}

#[test]
fn who_holds_a_file_whose_open_hangs_is_told_at_once() {
    let Some(hung) = hung_fs() else { return };
    let space = LockSpace::open(Naming::direct()).unwrap();
    let [held, free] = ["held", "free"].map(|name| hung.path().join(name));
    let stuck = start(&space, STUCK, Mode::Exclusive, &held);
    hung.wait_for_open(1);
    for path in [&held, &free] {
        let holders = promptly(&space, path, |_, path| holders_of(path).unwrap());
        assert_eq!(holders, []);
        let holders = promptly(&space, path, |space, path| space.holders(path).unwrap());
        assert_eq!(holders, []);
    }
    hung.answer_all();
    let lease = stuck.join().unwrap().unwrap();
    let holders = promptly(&space, &held, |_, path| holders_of(path).unwrap());
    assert_eq!(holders.len(), 1, "{holders:?}");
    drop(lease);
}
