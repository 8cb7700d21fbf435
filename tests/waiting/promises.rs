//! What an attack on the promises of the design has once broken: each test says which promise it
//! guards.

use std::fs::{self, File};
use std::num::NonZeroU64;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::forked::{Gate, fork, open};
use crate::support::hung_fs::HungFs;
use crate::support::interop::skip_or_fail;
use crate::support::process::{held, locks_shown};
use crate::support::waits::{Waiting, eventually, start};
use lockspace::{
    AcquireError, ByteRange, Cancel, InvalidRequest, Lease, LockFileError, LockSpace, Mode, Naming,
    OwnerId, Request, Target, Wait,
};
use tempfile::TempDir;

const A: OwnerId = OwnerId::new(1);
const B: OwnerId = OwnerId::new(2);
const C: OwnerId = OwnerId::new(3);
const NAME: &str = "disk";
const FOREVER: Wait = Wait::FOREVER;
/// A file system may take as long to answer before it is called stuck.
const ANSWER: Duration = Duration::from_millis(100);

type Acquired = Result<Lease, AcquireError>;

fn direct() -> LockSpace {
    LockSpace::open(Naming::direct()).unwrap()
}

fn in_memory() -> LockSpace {
    LockSpace::open(Naming::in_memory()).unwrap()
}

fn space_in(dir: &Path) -> LockSpace {
    LockSpace::open(Naming::verbatim(dir)).unwrap()
}

fn image_in(dir: &Path) -> PathBuf {
    let image = dir.join("a.raw");
    fs::write(&image, "").unwrap();
    image
}

/// The file system, or `None` after saying why not. Its drop, also by a failed assertion, frees the
/// stuck threads.
fn hung_fs() -> Option<HungFs> {
    HungFs::mount().map_err(|why| skip_or_fail("a FUSE file system", &why)).ok()
}

/// Waits for a resource by its name, or path, which need not exist in a directory.
fn wait_for(
    space: &LockSpace,
    owner: OwnerId,
    mode: Mode,
    name: impl AsRef<Path>,
    wait: Wait,
) -> Waiting<Acquired> {
    let (space, name) = (space.clone(), name.as_ref().to_owned());
    start(move || {
        let request = Request::new(mode, name.as_path());
        let request = if name.is_absolute() { request } else { request.auto_create() };
        space.acquire(owner, request, wait)
    })
}

/// Waits for a caller's open file.
fn wait_for_opened(space: &LockSpace, name: &'static str, file: File) -> Waiting<Acquired> {
    let space = space.clone();
    start(move || {
        let request = Request::exclusive(Target::opened(name, &file));
        space.acquire(B, request, FOREVER)
    })
}

#[track_caller]
fn assert_busy<T: std::fmt::Debug>(result: Result<T, AcquireError>) {
    assert!(matches!(result, Err(AcquireError::Busy(_))), "two holders: {result:?}");
}

#[track_caller]
fn assert_cancelled(result: &Acquired) {
    assert!(matches!(result, Err(AcquireError::Cancelled { .. })), "{result:?}");
}

// One holder.

/// Promise 1, one holder: a wait by name behind a descriptor of that name is granted with a lock.
#[test]
fn a_wait_by_name_behind_an_open_file_of_that_name_gets_the_lock() {
    let dir = TempDir::new().unwrap();
    let image = image_in(dir.path());
    let text = image.to_str().unwrap();
    let (space, file) = (direct(), open(&image));
    let opened = Request::exclusive(Target::opened(text, &file));
    let first = space.acquire(A, opened, Wait::NO).unwrap();
    let waiting = wait_for(&space, B, Mode::Exclusive, &image, FOREVER).sleeps();
    drop(first);
    let second = waiting.join().unwrap();
    assert_busy(direct().acquire(C, Request::exclusive(&image), Wait::NO));
    assert_eq!(held(&image), Some(Mode::Exclusive));
    second.verify().unwrap();
}

/// Promise 1, one holder: a wait with a descriptor behind its name locks that descriptor's file.
#[test]
fn a_wait_with_an_open_file_behind_its_name_locks_that_file() {
    let dir = TempDir::new().unwrap();
    let image = image_in(dir.path());
    let space = space_in(&dir.path().join("locks"));
    let first = space.acquire(A, Request::shared(NAME).auto_create(), Wait::NO).unwrap();
    let waiting = wait_for_opened(&space, NAME, open(&image));
    // It sleeps before that too, while a helper looks at the file.
    eventually("it is in the queue, which nobody passes", || {
        space.acquire(C, Request::shared(NAME), Wait::NO).is_err()
    });
    drop(first);
    let second = waiting.join().unwrap();
    assert_busy(direct().acquire(C, Request::exclusive(&image), Wait::NO));
    assert_eq!(second.path(), image);
    second.verify().unwrap();
}

/// Promise 1, one holder: two waits with duplicates of one descriptor are not both granted.
#[test]
fn of_two_waits_with_duplicates_of_one_descriptor_one_is_granted() {
    let dir = TempDir::new().unwrap();
    let image = image_in(dir.path());
    let first = direct().acquire(A, Request::exclusive(&image), Wait::NO).unwrap();
    let file = open(&image);
    let waiting = [file.try_clone().unwrap(), file.try_clone().unwrap()]
        .map(|file| wait_for_opened(&in_memory(), NAME, file).watches());
    drop(first);
    // Whoever is granted it holds it for as long as this lives.
    let results = waiting.map(Waiting::join);
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    let refused = results.iter().find_map(|result| result.as_ref().err()).unwrap();
    let carries = matches!(refused, AcquireError::Invalid { why: InvalidRequest::CarriesLock, .. });
    assert!(carries, "{refused:?}");
    assert_eq!(locks_shown(&file), 1, "the one that was granted it has lost it");
}

/// Promise 1, one holder: what ends at the last offset excludes others, deletes among them.
#[test]
fn nobody_can_ask_for_the_range_that_only_removers_lock() {
    let all_but_the_last = NonZeroU64::new(i64::MAX as u64).unwrap();
    assert_eq!(ByteRange::new(0, all_but_the_last), Some(ByteRange::WHOLE_FILE));
    let less = NonZeroU64::new(i64::MAX as u64 - 1).unwrap();
    assert_eq!(ByteRange::new(0, less).unwrap().len(), Some(less));
}

#[test]
fn a_range_that_ends_at_the_last_offset_has_one_holder() {
    const LAST: u64 = i64::MAX as u64;
    let dir = TempDir::new().unwrap();
    let (space, other) = (space_in(dir.path()), space_in(dir.path()));
    let mut ranges = 0;
    for (start, len) in [(LAST, 1), (LAST - 1, 1), (LAST - 1, 2), (5, LAST - 4), (0, LAST + 1)] {
        // No file has the very last byte: that there is no such range is right.
        let Some(range) = ByteRange::new(start, NonZeroU64::new(len).unwrap()) else { continue };
        let request = || Request::exclusive(NAME).auto_create().range(range);
        let lease = space.acquire(A, request(), Wait::NO).unwrap();
        let deleted = other.delete(NAME);
        assert_busy(other.acquire(B, request(), Wait::NO));
        assert!(matches!(deleted, Err(LockFileError::Busy(_))), "{range:?}: {deleted:?}");
        lease.release().unwrap();
        ranges += 1;
    }
    assert_eq!(ranges, 4, "all but the very last byte are ranges");
}

/// Promise 2, nothing lost: a hold on a range that ends at the last offset is found to be held.
#[test]
fn a_hold_up_to_the_last_offset_verifies() {
    const LAST: u64 = i64::MAX as u64;
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    for (start, len) in [(0, LAST + 1), (5, LAST - 4), (LAST - 1, 2), (LAST - 1, 1)] {
        let range = ByteRange::new(start, NonZeroU64::new(len).unwrap()).unwrap();
        let request = Request::exclusive(NAME).auto_create().range(range);
        let lease = space.acquire(A, request, Wait::NO).unwrap();
        lease.verify().unwrap_or_else(|error| panic!("{range:?}: {error}"));
    }
}

// Nothing left.

/// Promise 3, nothing left: a downgrade in memory lets in at once whom it excludes no more.
#[test]
fn a_downgrade_in_memory_lets_a_shared_wait_in() {
    let space = in_memory();
    let mut first = space.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
    let waiting = wait_for(&space, B, Mode::Shared, NAME, FOREVER).sleeps();
    first.downgrade().unwrap();
    assert_eq!(waiting.join().unwrap().mode(), Mode::Shared);
}

/// Promise 3, nothing left: a lock that passes on to who gives up just then is really released.
#[test]
fn a_lock_that_passes_on_to_a_cancelled_wait_does_not_live_on_in_a_forked_child() {
    let Some(hung) = hung_fs() else { return };
    let dir = TempDir::new().unwrap();
    let (space, image) = (direct(), image_in(dir.path()));
    // The system calls of waits for this directory are made one after the other, and this one's
    // is not answered: the heir gives up before its own begin.
    let link = dir.path().join("link.raw");
    symlink(hung.path().join("a.raw"), &link).unwrap();
    let stuck = wait_for(&space, C, Mode::Exclusive, &link, FOREVER);
    hung.wait_for_open(1);

    let first = space.acquire(A, Request::exclusive(&image), Wait::NO).unwrap();
    let never = Gate::new();
    let _child = fork(|| never.wait());
    let cancel = Cancel::new();
    let wait = FOREVER.unless(&cancel);
    let heir = wait_for(&space, B, Mode::Exclusive, &image, wait).sleeps();
    first.release().unwrap();
    cancel.cancel();
    assert_cancelled(&heir.join());

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
}

// A resource never stalls another.

/// Promise 4, nothing stalls: who asks for several returns at its deadline behind a stuck try.
#[test]
fn acquire_all_returns_at_its_deadline_where_the_try_of_another_thread_is_stuck() {
    let Some(hung) = hung_fs() else { return };
    let (space, path) = (direct(), hung.path().join("a.raw"));
    let first = wait_for(&space, A, Mode::Shared, &path, Wait::NO);
    hung.wait_for_open(1);
    let (clone, path) = (space.clone(), path.clone());
    let second = start(move || {
        clone.acquire_all(B, [Request::shared(&path)], Wait::within(ANSWER)).map(drop)
    });
    let result = second.join();
    assert!(matches!(result, Err(AcquireError::Unresponsive { .. })), "{result:?}");
    hung.answer_all();
    drop(first.join().unwrap());
}

// Every refusal explains itself.

/// Promise 5, honest refusals: one cancelled wait does not make its file system one that hangs.
#[test]
fn a_file_system_is_called_stuck_only_after_it_had_time_to_answer() {
    let Some(hung) = hung_fs() else { return };
    let (space, path) = (direct(), hung.path().join("a.raw"));
    let cancel = Cancel::new();
    let waiting = wait_for(&space, A, Mode::Exclusive, &path, FOREVER.unless(&cancel));
    hung.wait_for_open(1);
    cancel.cancel();
    assert_cancelled(&waiting.join());
    match space.acquire(B, Request::exclusive(&path), Wait::NO) {
        Err(AcquireError::Unresponsive { waited, .. }) => assert!(waited >= ANSWER, "{waited:?}"),
        other => panic!("it has not answered: {other:?}"),
    }
    hung.answer_all();
    let again = wait_for(&space, B, Mode::Exclusive, &path, FOREVER);
    again.join().unwrap().verify().unwrap();
}

#[cfg(feature = "snapshot")]
mod frozen {
    use std::mem::ManuallyDrop;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    use std::sync::mpsc;
    use std::thread;

    use lockspace::snapshot::{Snapshot, carried};

    use super::*;

    /// As often a race is run that only a wrong lock space can lose.
    const ROUNDS: usize = 15;
    /// Holds whose releases take a while, for the thaw to be busy with.
    const MANY: usize = 100;
    /// As often another process takes its turn, which a wait that goes on would take from it.
    const TURNS: usize = 100;

    fn hold(space: &LockSpace, owner: OwnerId, name: &str) -> Acquired {
        space.acquire(owner, Request::exclusive(name).auto_create(), Wait::NO)
    }

    fn hold_many(space: &LockSpace) -> Vec<Lease> {
        (0..MANY).map(|index| hold(space, C, &format!("other-{index}")).unwrap()).collect()
    }

    /// Promise 2, nothing lost: what a snapshot describes stays so, whoever leaves the queue.
    #[test]
    fn who_leaves_the_queue_of_a_frozen_space_lets_nobody_join() {
        let space = in_memory();
        let _first = space.acquire(A, Request::shared(NAME), Wait::NO).unwrap();
        let cancel = Cancel::new();
        let leaves = wait_for(&space, B, Mode::Exclusive, NAME, FOREVER.unless(&cancel)).sleeps();
        let joins = wait_for(&space, C, Mode::Shared, NAME, FOREVER).sleeps();
        let snapshot = Snapshot::take([&space]).unwrap();
        let before = space.list();
        cancel.cancel();
        assert_cancelled(&leaves.join());
        assert_eq!(space.list(), before, "what is held has changed while frozen");
        drop(snapshot);
        drop(joins.join().unwrap());
    }

    /// Promise 1, one holder: a frozen space acquires nothing, since no document would tell it.
    #[test]
    fn who_comes_to_the_head_of_the_queue_of_a_frozen_space_does_not_acquire() {
        (0..ROUNDS).for_each(|_| head_of_frozen());
    }

    fn head_of_frozen() {
        let dir = TempDir::new().unwrap();
        let (outside, space) = (space_in(dir.path()), space_in(dir.path()));
        outside.create(NAME).unwrap();
        let take = || outside.acquire(A, Request::exclusive(NAME), Wait::NO);
        let taken = take().unwrap();
        let cancel = Cancel::new();
        let head = wait_for(&space, B, Mode::Exclusive, NAME, FOREVER.unless(&cancel)).watches();
        let next = wait_for(&space, C, Mode::Exclusive, NAME, FOREVER).sleeps();
        let snapshot = Snapshot::take([&space]).unwrap();
        drop(taken);
        cancel.cancel();
        assert_cancelled(&head.join());
        for _ in 0..TURNS {
            drop(take().expect("nobody acquires while frozen"));
            assert_eq!(space.list(), [], "acquired while frozen");
            thread::yield_now();
        }
        drop(snapshot);
        next.join().unwrap().verify().unwrap();
    }

    /// Promise 2, nothing lost: a release that was put off does not end a hold of after the thaw.
    #[test]
    fn what_was_put_off_does_not_end_a_later_hold_of_the_same_owner() {
        (0..ROUNDS).for_each(|_| put_off_and_later_hold());
    }

    fn put_off_and_later_hold() {
        let dir = TempDir::new().unwrap();
        let space = space_in(dir.path());
        let many = hold_many(&space);
        hold(&space, A, NAME).unwrap().keep();
        let snapshot = Snapshot::take([&space]).unwrap();
        drop(many);
        space.release(A, NAME).unwrap();
        let (tell, told) = mpsc::channel();
        let clone = space.clone();
        // A daemon that cleans up after an owner, and takes the disk for it again.
        let again = start(move || {
            loop {
                clone.release_owner(A);
                match hold(&clone, A, NAME) {
                    Ok(lease) => return lease.keep(),
                    Err(AcquireError::Frozen { .. } | AcquireError::Busy(_)) => {
                        let _ = tell.send(());
                        thread::yield_now();
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        });
        told.recv().expect("it is frozen");
        drop(snapshot);
        again.join();
        let names: Vec<_> = space.list().into_iter().map(|held| held.name).collect();
        assert_eq!(names, [NAME], "the later hold was lost");
        assert_eq!(held(&dir.path().join(NAME)), Some(Mode::Exclusive));
    }

    /// Promise 3, nothing left: after its release, though put off, an owner does not block itself.
    #[test]
    fn an_owner_that_let_go_while_frozen_does_not_wait_for_itself_after_the_thaw() {
        (0..ROUNDS).for_each(|_| let_go_while_frozen());
    }

    fn let_go_while_frozen() {
        let dir = TempDir::new().unwrap();
        let space = space_in(dir.path());
        let many = hold_many(&space);
        let mine = hold(&space, A, NAME).unwrap();
        let snapshot = Snapshot::take([&space]).unwrap();
        drop(many);
        drop(mine);
        let again = wait_for(&space, A, Mode::Exclusive, NAME, FOREVER).sleeps();
        drop(snapshot);
        again.join().unwrap().verify().unwrap();
    }

    /// Promise 2, nothing lost: a snapshot that is dropped has failed no upgrade that can wait.
    #[test]
    fn an_upgrade_waits_while_the_space_is_frozen() {
        let space = in_memory();
        let mut lease = space.acquire(A, Request::shared(NAME), Wait::NO).unwrap();
        let snapshot = Snapshot::take([&space]).unwrap();
        let waiting = start(move || lease.upgrade(FOREVER).map(|()| lease)).sleeps();
        drop(snapshot);
        assert_eq!(waiting.join().unwrap().mode(), Mode::Exclusive);
    }

    /// Promise 2, nothing lost: a snapshot that is dropped has failed nobody who waits for several.
    #[test]
    fn acquire_all_waits_while_the_space_is_frozen() {
        let space = in_memory();
        let snapshot = Snapshot::take([&space]).unwrap();
        let clone = space.clone();
        let requests = [Request::shared("base"), Request::exclusive("root")];
        let waiting = start(move || clone.acquire_all(A, requests, FOREVER)).sleeps();
        drop(snapshot);
        assert_eq!(waiting.join().unwrap().iter().count(), 2);
    }

    /// Promise 2, nothing lost: no safe call closes a descriptor that somebody else owns.
    #[test]
    fn carried_closes_no_file_that_this_program_has_opened() {
        let mut snapshot = Snapshot::take([&in_memory()]).unwrap();
        let number = snapshot.carry(b"state").unwrap();
        // Not dropped where it was closed: that ends the whole program.
        let mine = ManuallyDrop::new(File::open(format!("/proc/self/fd/{number}")).unwrap());
        let taken = carried(mine.as_raw_fd().unsigned_abs());
        assert!(taken.is_err(), "a `File` owns it, but it was closed: {taken:?}");
        let mut bytes = [0; 5];
        mine.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"state");
        drop(ManuallyDrop::into_inner(mine));
    }
}
