//! Who can take a snapshot, and when.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::support::alone::alone;
use crate::support::forked::fork;
use crate::support::hung_fs::hung_fs;
use crate::support::locks::is_free_for_others;
use crate::support::spaces::{A, B, expect_cancelled, expect_frozen, hold_as, space_in, wait_for};
use crate::support::waits::eventually;
use lockspace::snapshot::{Snapshot, SnapshotError};
use lockspace::{Cancel, LockSpace, Mode, Naming, Request, Wait};
use serde_json::json;

#[test]
fn the_same_space_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (space, other) = (space_in(dir.path()), space_in(dir.path()));
    let lease = hold_as(&space, A, Mode::Exclusive, "a");
    let refused = Snapshot::take([&space, &other, &space.clone()]);
    assert!(matches!(refused, Err(SnapshotError::Twice)), "{refused:?}");
    drop(lease);
    assert_eq!((space.list().len(), other.list().len()), (0, 0), "nothing is frozen");
    assert_eq!(Snapshot::take([]).unwrap().documents(), []);
}

#[test]
fn a_forked_child_takes_none_and_thaws_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let lease = hold_as(&space, A, Mode::Exclusive, "a");
    let (me, mut snapshot) = (std::process::id(), Some(Snapshot::take([&space]).unwrap()));
    fork(|| {
        let refused = Snapshot::take([&space]);
        assert!(matches!(refused, Err(SnapshotError::Forked { creator }) if creator == me));
        drop(snapshot.take());
        assert!(!is_free_for_others(&dir.path().join("a")));
    })
    .join();
    assert!(snapshot.is_some());
    expect_frozen(space.acquire(B, Request::shared("b").auto_create(), Wait::NO), "b");
    drop(lease);
    assert_eq!(space.list().len(), 1);
    drop(snapshot);
    assert_eq!(space.list().len(), 0);
}

#[test]
fn it_waits_for_a_thread_that_is_acquiring() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let space = LockSpace::open(Naming::direct()).unwrap();
        let path = hung.path().join("a.raw");
        let acquiring = thread::spawn({
            let (space, path) = (space.clone(), path.clone());
            move || space.acquire(A, Request::exclusive(&path), Wait::NO)
        });
        hung.wait_for_open(1);
        let (done, taken) = mpsc::channel();
        let taking = thread::spawn({
            let space = space.clone();
            move || {
                let snapshot = Snapshot::take([&space]);
                done.send(()).unwrap();
                snapshot
            }
        });
        let early = taken.recv_timeout(Duration::from_millis(200));
        assert_eq!(early, Err(mpsc::RecvTimeoutError::Timeout), "it did not wait");
        // What has not begun does not begin any more.
        expect_frozen(space.acquire(B, Request::shared("/dev/null"), Wait::NO), "/dev/null");
        hung.answer_all();
        let lease = acquiring.join().unwrap().unwrap();
        let snapshot = taking.join().unwrap().unwrap();
        let entry = &json!(snapshot.documents())[0]["resources"][0];
        assert_eq!(entry["name"], path.to_str().unwrap());
        drop(snapshot);
        lease.release().unwrap();
    });
}

#[test]
fn it_is_refused_while_a_file_system_gives_no_answer_to_nobody() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let dir = tempfile::tempdir().unwrap();
        let (other, space) = (space_in(dir.path()), LockSpace::open(Naming::direct()).unwrap());
        let path = hung.path().join("a.raw");
        let cancel = Cancel::new();
        let waiting = wait_for(&space, A, Mode::Exclusive, &path, Wait::FOREVER.unless(&cancel));
        // The file system has been asked, and is to answer nobody.
        hung.wait_for_open(1);
        cancel.cancel();
        expect_cancelled(waiting.join(), &path);
        match Snapshot::take([&other, &space]) {
            Err(SnapshotError::Unresponsive { name }) => assert_eq!(name, path),
            other => panic!("not refused: {other:?}"),
        }
        // Neither space is frozen.
        hold_as(&other, A, Mode::Exclusive, "a").release().unwrap();
        hung.answer_all();
        eventually("it settles", || Snapshot::take([&space]).is_ok());
        assert_eq!(space.list(), []);
    });
}
