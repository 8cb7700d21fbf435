//! Several resources at once: all, or none, and nothing is held by who waits.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::support::alone::alone;
use crate::support::forked::{Forked, Gate, fork};
use crate::support::hung_fs::hung_fs;
use crate::support::locks::{held, is_free_for_others};
use crate::support::process::open_below;
use crate::support::spaces::{A, B, auto, is_empty, space_in};
use crate::support::waits::{LONG, Waiting, eventually, start};
use lockspace::{
    AcquireError, Cancel, Leases, LockSpace, Mode, Naming, OwnerId, Request, Target, Wait,
};
use tempfile::TempDir;

const NAMES: [&str; 3] = ["a", "b", "c"];

pub(crate) type All = Result<Leases, AcquireError>;

pub(crate) fn images(dir: &Path) -> [PathBuf; 3] {
    NAMES.map(|name| {
        File::create(dir.join(name)).unwrap();
        dir.join(name)
    })
}

fn start_all(
    space: &LockSpace,
    owner: OwnerId,
    names: [&'static str; 3],
    wait: Wait,
) -> Waiting<All> {
    let space = space.clone();
    start(move || space.acquire_all(owner, names.map(auto), wait))
}

pub(crate) fn waits() -> [Wait; 3] {
    [Wait::NO, Wait::within(LONG), Wait::FOREVER]
}

#[test]
fn all_are_granted_in_the_order_of_the_requests_and_released_together() {
    let dir = TempDir::new().unwrap();
    for space in [space_in(dir.path()), LockSpace::open(Naming::in_memory()).unwrap()] {
        for wait in waits() {
            for order in [["a", "b", "c"], ["c", "a", "b"]] {
                let leases = space.acquire_all(A, order.map(auto), wait.clone()).unwrap();
                let names: Vec<_> = leases.iter().map(|lease| lease.name().to_owned()).collect();
                assert_eq!(names, order);
                assert_eq!((&leases).into_iter().count(), 3);
                assert_eq!(space.list().len(), 3);
                drop(leases);
                assert_eq!(space.list(), []);
                assert!(is_empty(dir.path()));

                space.acquire_all(A, order.map(auto), wait.clone()).unwrap().keep();
                assert_eq!(space.list().len(), 3);
                space.release(A, "a").unwrap();
                assert_eq!(space.release_owner(A).holds, 2);
                assert!(is_empty(dir.path()));

                let leases = space.acquire_all(A, order.map(auto), wait.clone()).unwrap();
                let mut leases: Vec<_> = leases.into_iter().collect();
                drop(leases.remove(1));
                assert_eq!(space.list().len(), 2);
            }
        }
    }
}

#[test]
fn an_empty_request_gives_no_leases() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    for wait in waits() {
        assert_eq!(space.acquire_all(A, [], wait).unwrap().into_iter().count(), 0);
    }
    assert_eq!(space.list(), []);
}

#[test]
fn each_has_its_own_mode_and_target() {
    let dir = TempDir::new().unwrap();
    let [name, image, opened] = images(dir.path());
    let link = dir.path().join("link");
    symlink(&image, &link).unwrap();
    let file = File::options().read(true).write(true).open(&opened).unwrap();
    let space = LockSpace::open(Naming::direct()).unwrap();
    for wait in waits() {
        let requests = [
            Request::exclusive(&name),
            Request::shared(Target::image(&link)),
            Request::exclusive(Target::opened("by descriptor", &file)),
        ];
        let leases = space.acquire_all(A, requests, wait).unwrap();
        let seen: Vec<_> = leases.iter().map(|l| (l.name().to_owned(), l.mode())).collect();
        let image = image.canonicalize().unwrap();
        let expected = [
            (name.clone().into_os_string(), Mode::Exclusive),
            (image.clone().into_os_string(), Mode::Shared),
            ("by descriptor".into(), Mode::Exclusive),
        ];
        assert_eq!(seen, expected);
        let modes = [&name, &image, &opened].map(|path| held(path));
        assert_eq!(modes, [Some(Mode::Exclusive), Some(Mode::Shared), Some(Mode::Exclusive)]);
        drop(leases);
        assert!([&name, &image, &opened].map(|path| held(path)).iter().all(Option::is_none));
    }
}

#[test]
fn one_that_is_refused_leaves_nothing_and_is_named() {
    for (at, refused) in NAMES.into_iter().enumerate() {
        for inside in [true, false] {
            let dir = TempDir::new().unwrap();
            let space = space_in(dir.path());
            let other = if inside { space.clone() } else { space_in(dir.path()) };
            let lease = other.acquire(B, auto(refused), Wait::NO).unwrap();
            let open = open_below(dir.path());
            let short = Duration::from_millis(50);
            for least in [Duration::ZERO, short] {
                let started = Instant::now();
                let wait = if least.is_zero() { Wait::NO } else { Wait::within(least) };
                let result = space.acquire_all(A, NAMES.map(auto), wait);
                assert!(started.elapsed() >= least, "early");
                let Err(AcquireError::Busy(busy)) = result else { panic!("{result:?}") };
                assert_eq!(busy.name(), refused, "at {at}");
                assert_eq!(busy.owners(), if inside { &[B][..] } else { &[] });
                assert!(busy.waited() + Duration::from_millis(1) >= least);
                assert_eq!(space.list().len(), usize::from(inside));
                assert_eq!(open_below(dir.path()), open);
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "files are left");
            }
            // Other errors as well.
            drop(lease);
            for wait in waits() {
                let mut requests = NAMES.map(auto);
                requests[at] = Request::exclusive(refused);
                let result = space.acquire_all(A, requests, wait);
                let Err(AcquireError::NotFound { name, .. }) = result else { panic!("{result:?}") };
                assert_eq!(name, refused);
                assert!(is_empty(dir.path()) && space.list().is_empty());
            }
        }
    }
}

#[test]
fn who_waits_for_one_holds_none_of_the_others() {
    for (at, held_by_other) in NAMES.into_iter().enumerate() {
        for inside in [true, false] {
            let dir = TempDir::new().unwrap();
            let space = space_in(dir.path());
            let other = space_in(dir.path());
            let holder = if inside { space.clone() } else { space_in(dir.path()) };
            let lease = holder.acquire(B, auto(held_by_other), Wait::NO).unwrap();
            let waiting = start_all(&space, A, NAMES, Wait::FOREVER);
            let waiting = if inside { waiting.sleeps() } else { waiting.watches() };
            for _ in 0..50 {
                for (other_at, name) in NAMES.into_iter().enumerate() {
                    if other_at != at {
                        let free = other.acquire(B, auto(name), Wait::within(LONG)).unwrap();
                        drop(free);
                        // It may be in its first round still, or in one that this has begun.
                        eventually("it holds nothing while it waits", || {
                            space.list().len() == usize::from(inside)
                        });
                    }
                }
            }
            drop(lease);
            let leases = waiting.join().unwrap();
            let names: Vec<_> = leases.iter().map(|lease| lease.name().to_owned()).collect();
            assert_eq!(names, NAMES, "in order, whichever came first");
            drop(leases);
            assert!(is_empty(dir.path()) && open_below(dir.path()) == 0);
        }
    }
}

/// One after the other is in the way, and each is waited for.
#[test]
fn it_goes_on_to_wait_for_the_next_that_is_held() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let other = space_in(dir.path());
    let leases = NAMES.map(|name| other.acquire(B, auto(name), Wait::NO).unwrap());
    let waiting = start_all(&space, A, NAMES, Wait::within(LONG)).watches();
    for lease in leases {
        assert!(!waiting.is_finished());
        drop(lease);
    }
    drop(waiting.join().unwrap());
    assert!(is_empty(dir.path()));
}

#[test]
fn a_wait_for_several_can_be_cancelled() {
    for by_owner in [true, false] {
        let dir = TempDir::new().unwrap();
        let space = space_in(dir.path());
        let lease = space.acquire(B, auto("b"), Wait::NO).unwrap();
        let cancel = Cancel::new();
        let waiting = start_all(&space, A, NAMES, Wait::FOREVER.unless(&cancel)).sleeps();
        if by_owner {
            space.release_owner(A);
        } else {
            cancel.cancel();
        }
        let ended = waiting.join();
        assert!(matches!(ended, Err(AcquireError::Cancelled { .. })), "{ended:?}");
        // A helper that was just opening a file gives it back when it is done.
        eventually("only what is held stays", || {
            fs::read_dir(dir.path()).unwrap().count() == 1 && space.list().len() == 1
        });
        drop(lease);
        assert!(is_empty(dir.path()) && space.list().is_empty());
    }
}

#[test]
fn two_processes_that_ask_in_opposite_orders_both_get_on() {
    alone(|| {
        const ROUNDS: u32 = 200;
        let dir = TempDir::new().unwrap();
        let (ready, go) = (Gate::new(), Gate::new());
        let orders = [["a", "b", "c"], ["c", "b", "a"]];
        let children = orders.map(|order| {
            fork(|| {
                let space = space_in(dir.path());
                ready.open();
                go.wait();
                let (mut granted, mut late) = (0, 0);
                while granted < ROUNDS {
                    let wait = Wait::within(Duration::from_secs(2));
                    match space.acquire_all(OwnerId::this_process(), order.map(auto), wait) {
                        Ok(leases) => {
                            granted += 1;
                            drop(leases);
                        }
                        Err(AcquireError::Busy(_)) => late += 1,
                        Err(error) => panic!("{error}"),
                    }
                    assert!(late <= 10, "{late} deadlines passed, {granted} granted");
                }
            })
        });
        ready.wait();
        ready.wait();
        go.open();
        go.open();
        children.into_iter().for_each(Forked::join);
        assert!(is_empty(dir.path()));
    });
}

#[test]
fn two_threads_that_ask_in_opposite_orders_both_get_on() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let threads = [(A, ["a", "b", "c"]), (B, ["c", "b", "a"])].map(|(owner, order)| {
        let space = space.clone();
        start(move || {
            for _ in 0..200 {
                drop(space.acquire_all(owner, order.map(auto), Wait::within(LONG)).unwrap());
            }
        })
    });
    threads.into_iter().for_each(Waiting::join);
    assert!(is_empty(dir.path()));
}

#[test]
fn one_deadline_covers_all_also_when_a_file_system_hangs() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let dir = TempDir::new().unwrap();
        let [image, ..] = images(dir.path());
        let space = LockSpace::open(Naming::direct()).unwrap();
        let path = hung.path().join("a");
        let short = Duration::from_millis(60);
        let started = Instant::now();
        let requests = [Request::exclusive(&image), Request::exclusive(&path)];
        let result = space.acquire_all(A, requests, Wait::within(short));
        assert!(started.elapsed() >= short);
        let Err(AcquireError::Unresponsive { name, .. }) = &result else { panic!("{result:?}") };
        assert_eq!(name, path.as_os_str());
        assert!(is_free_for_others(&image) && space.list().is_empty());
        hung.answer_all();
    });
}

/// Somebody else, who has time, waits for the file system already.
#[test]
fn the_deadline_covers_what_another_thread_is_just_acquiring() {
    alone(|| {
        for mode in [Mode::Shared, Mode::Exclusive] {
            let Some(hung) = hung_fs() else { return };
            let space = LockSpace::open(Naming::direct()).unwrap();
            let path = hung.path().join("a");
            let first = start({
                let (space, path) = (space.clone(), path.clone());
                move || space.acquire(A, Request::new(mode, &path), Wait::FOREVER)
            });
            hung.wait_for_open(1);
            let (tell, told) = std::sync::mpsc::channel();
            let all = start({
                let space = space.clone();
                move || {
                    let wait = Wait::within(Duration::from_millis(300));
                    let _ =
                        tell.send(space.acquire_all(B, [Request::shared(&path)], wait).map(drop));
                }
            });
            let ended = told.recv_timeout(Duration::from_secs(20));
            hung.answer_all();
            all.join();
            drop(first.join());
            let ended = ended.expect("the deadline has passed long since");
            let told =
                matches!(ended, Err(AcquireError::Busy(_) | AcquireError::Unresponsive { .. }));
            assert!(told, "{ended:?}");
        }
    });
}
