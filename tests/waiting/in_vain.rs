//! A wait that ends with nothing leaves nothing: no hold, no file, and nobody in the queue.

use std::time::Duration;

use crate::support::process::open_below;
use crate::support::spaces::{A, B, C, NAME, Room, expect_busy, expect_cancelled, space_in};
use crate::support::waits::eventually;
use crate::ways::in_each_way;
use lockspace::{Cancel, Mode, Request, Wait};
use tempfile::TempDir;

/// How a wait can end with nothing.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Deadline,
    Cancel,
    ReleaseOwner,
}

const ENDINGS: [Ending; 3] = [Ending::Deadline, Ending::Cancel, Ending::ReleaseOwner];

/// Waits as B, and ends the wait.
#[track_caller]
fn wait_in_vain(room: &Room, ending: Ending, mode: Mode, behind: impl FnOnce()) {
    let cancel = Cancel::new();
    let wait = match ending {
        // Longer, so that whoever comes behind is behind it.
        Ending::Deadline => Wait::within(Duration::from_millis(300)),
        _ => Wait::FOREVER.unless(&cancel),
    };
    let waiting = room.start(B, mode, wait).sleeps();
    behind();
    match ending {
        Ending::Deadline => drop(expect_busy(waiting.join())),
        Ending::Cancel => {
            cancel.cancel();
            expect_cancelled(waiting.join(), NAME);
        }
        Ending::ReleaseOwner => {
            room.space.release_owner(B);
            expect_cancelled(waiting.join(), NAME);
        }
    }
}

#[test]
fn a_wait_in_vain_leaves_everything_as_if_never_asked() {
    for ending in ENDINGS {
        in_each_way(|room, way, mode| {
            let open = || room.dir.as_ref().map(|dir| open_below(dir.path()));
            let before = open();
            let listed = room.space.list();
            wait_in_vain(room, ending, Mode::Exclusive, || {});
            // A helper may have been looking at the file just then.
            eventually("what was opened for it is closed", || open() == before);
            assert_eq!(room.space.list(), listed, "{way}, {ending:?}");
            // A shared request is not refused for the sake of who has gone.
            if mode == Some(Mode::Shared) {
                drop(room.hold(C, Mode::Shared));
            }
        });
    }
}

/// The holder's release finds nobody, and the file goes with it.
#[test]
fn a_wait_in_vain_leaves_no_lock_file() {
    for ending in ENDINGS {
        let dir = TempDir::new().unwrap();
        let room = Room { space: space_in(dir.path()), dir: Some(dir) };
        for inside in [true, false] {
            let space = if inside { room.space.clone() } else { space_in(room.dir()) };
            let request = Request::exclusive(NAME).auto_create();
            let lease = space.acquire(A, request, Wait::NO).unwrap();
            wait_in_vain(&room, ending, Mode::Exclusive, || {});
            lease.release().unwrap();
            assert!(!room.file().exists(), "{ending:?}");
            assert_eq!(room.space.list(), []);
            eventually("all is closed", || open_below(room.dir()) == 0);
        }
    }
}

#[test]
fn who_queues_behind_a_wait_in_vain_goes_on() {
    for ending in ENDINGS {
        for room in Room::both() {
            // C could share with A, but waits behind B.
            let lease = room.hold(A, Mode::Shared);
            let mut behind = None;
            wait_in_vain(&room, ending, Mode::Exclusive, || {
                behind = Some(room.start(C, Mode::Shared, Wait::FOREVER).sleeps());
                assert_eq!(room.owners(), [A]);
            });
            let joined = behind.unwrap().join().expect("it joins at once");
            assert_eq!(room.owners(), [A, C], "{ending:?}");
            drop((lease, joined));

            // And where nobody can share, the queue goes on without B.
            let lease = room.hold(A, Mode::Exclusive);
            let mut behind = None;
            wait_in_vain(&room, ending, Mode::Exclusive, || {
                behind = Some(room.start(C, Mode::Exclusive, Wait::FOREVER).sleeps());
            });
            assert_eq!(room.owners(), [A]);
            drop(lease);
            drop(behind.unwrap().join().unwrap());
            room.is_as_new();
        }
        // Outside: B is the one who watches the file, and C takes over from it.
        let room = Room::on_disk();
        let other = space_in(room.dir());
        let lease = other.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
        let mut behind = None;
        wait_in_vain(&room, ending, Mode::Exclusive, || {
            behind = Some(room.start(C, Mode::Exclusive, Wait::FOREVER).sleeps());
        });
        let behind = behind.unwrap().watches();
        drop(lease);
        drop(behind.join().unwrap());
        room.is_as_new();
    }
}
