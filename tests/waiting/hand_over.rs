//! A descriptor and its lock pass on within the queue: nobody else can have the lock between.

use std::fs;
use std::os::fd::RawFd;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::alone::alone;
use crate::support::forked::{Gate, fork};
use crate::support::hung_fs::hung_fs;
use crate::support::locks::{Rival, held};
use crate::support::process::{borrowed, descriptors_to, open_below};
use crate::support::spaces::{
    A, B, BOTH, C, NAME, Room, direct, expect_cancelled, granted, hold, image_in, is_empty,
    space_in, verbatim, wait_for,
};
use crate::support::waits::{LONG, eventually};
use lockspace::{AcquireError, Cancel, Mode, Request, Wait};
use rustix::fs::{SeekFrom, seek};
use tempfile::TempDir;

/// Where the descriptor of a resource stands, which is open once: what says that it is the same.
#[track_caller]
fn descriptor_at(path: &Path) -> (RawFd, u64) {
    let [number] = descriptors_to(path)[..] else { panic!("{:?}", descriptors_to(path)) };
    (number, seek(borrowed(number), SeekFrom::Current(0)).unwrap())
}

#[test]
fn the_next_in_the_queue_gets_the_very_descriptor_with_its_lock() {
    for mode in BOTH {
        let room = Room::on_disk();
        let first = room.hold(A, Mode::Exclusive);
        // A mark on the open file itself, which no other one has.
        let (number, _) = descriptor_at(&room.file());
        seek(borrowed(number), SeekFrom::Start(4711)).unwrap();
        let waiting = room.start(B, mode, Wait::within(LONG)).sleeps();
        drop(first);
        let second = waiting.join().unwrap();
        assert_eq!(descriptor_at(&room.file()), (number, 4711), "it is another one");
        second.verify().unwrap();
        room.is_held(mode);
        drop(second);
        room.is_as_new();
    }
}

/// A rival in another process tries without pause, and would get a lock that is given back before
/// the next one takes it.
#[test]
fn a_lock_that_passes_on_is_never_free() {
    const FILES: u64 = 50;
    alone(|| {
        let (dir, space) = verbatim();
        let names: Vec<_> = (0..FILES).map(|number| number.to_string()).collect();
        let files: Vec<_> = names.iter().map(|name| dir.path().join(name)).collect();
        let holds: Vec<_> = names.iter().map(|name| hold(&space, name)).collect();
        let waiting: Vec<_> = names
            .iter()
            .map(|name| wait_for(&space, B, Mode::Exclusive, name, Wait::within(LONG)).sleeps())
            .collect();
        let rival = Rival::start(&files);
        let mut passed_on = Vec::new();
        for (lease, waiting) in holds.into_iter().zip(waiting) {
            let seen = rival.tries();
            eventually("the rival has tried all", || rival.tries() > seen + 2 * FILES);
            drop(lease);
            passed_on.push(waiting.join().unwrap());
        }
        let seen = rival.tries();
        eventually("the rival has tried all", || rival.tries() > seen + 4 * FILES);
        let (tries, taken) = rival.end();
        assert_eq!(taken, 0, "of {tries} tries");
        passed_on.iter().for_each(|lease| lease.verify().unwrap());
    });
}

/// Its lock is shared with another process, which the next in the queue has to wait for.
#[test]
fn a_lock_that_passes_on_and_cannot_become_exclusive_is_waited_for() {
    let room = Room::on_disk();
    let other = space_in(room.dir());
    let theirs = granted(&other, A, Request::shared(NAME));
    let first = room.hold(A, Mode::Shared);
    let waiting = room.start(B, Mode::Exclusive, Wait::within(LONG)).sleeps();
    drop(first);
    let waiting = waiting.watches();
    assert_eq!(room.space.list(), [], "it holds nothing while it waits");
    assert_eq!(held(&room.file()), Some(Mode::Shared));
    drop(theirs);
    let lease = waiting.join().unwrap();
    lease.verify().unwrap();
    assert_eq!(descriptors_to(&room.file()).len(), 1);
    drop(lease);
    room.is_as_new();
}

/// A lock on a file that its name does not lead to keeps nobody out.
#[test]
fn a_lock_on_a_file_that_has_lost_its_name_does_not_pass_on() {
    let (dir, space) = verbatim();
    let path = dir.path().join(NAME);
    for replaced in [false, true] {
        let first = hold(&space, NAME);
        let waiting = wait_for(&space, B, Mode::Exclusive, NAME, Wait::within(LONG)).sleeps();
        fs::remove_file(&path).unwrap();
        if replaced {
            fs::write(&path, "").unwrap();
        }
        drop(first);
        let second = waiting.join().unwrap();
        second.verify().unwrap();
        assert_eq!(held(&path), Some(Mode::Exclusive));
        assert_eq!(open_below(dir.path()), 1, "the file that has lost its name is open");
        drop(second);
        assert!(is_empty(dir.path()));
    }
}

/// Promise 3, nothing left: a lock that passes on to who gives up just then is really released.
#[test]
fn a_lock_that_passes_on_to_a_cancelled_wait_does_not_live_on_in_a_forked_child() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let dir = TempDir::new().unwrap();
        let (space, image) = (direct(), image_in(dir.path()));
        // The system calls of waits for this directory are made one after the other, and this one's
        // is not answered: the heir gives up before its own begin.
        let link = dir.path().join("link.raw");
        symlink(hung.path().join("a.raw"), &link).unwrap();
        let stuck = wait_for(&space, C, Mode::Exclusive, &link, Wait::FOREVER);
        hung.wait_for_open(1);

        let first = space.acquire(A, Request::exclusive(&image), Wait::NO).unwrap();
        let never = Gate::new();
        let _child = fork(|| never.wait());
        let cancel = Cancel::new();
        let wait = Wait::FOREVER.unless(&cancel);
        let heir = wait_for(&space, B, Mode::Exclusive, &image, wait).sleeps();
        first.release().unwrap();
        cancel.cancel();
        expect_cancelled(heir.join(), &image);

        hung.answer_all();
        drop(stuck.join().unwrap());
        eventually("the lock is released", || {
            match space.acquire(C, Request::exclusive(&image), Wait::NO) {
                Ok(_) => true,
                // The helper has not come to it yet.
                Err(AcquireError::Unresponsive { .. }) => false,
                Err(error) => panic!("nobody holds it: {error}"),
            }
        });
        assert_eq!(held(&image), None);
    });
}
