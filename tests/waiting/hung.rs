//! No system call is made under the mutex: while one resource of a space is stuck on a file system
//! that gives no answer, every other one works.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::support::alone::alone;
use crate::support::forked::{Gate, fork};
use crate::support::hung_fs::{answering_fs, hung_fs};
use crate::support::locks::is_free_for_others;
use crate::support::process::{helpers, open_below};
use crate::support::spaces::{
    A, B, NAME, direct, expect_cancelled, expect_stuck, space_in, wait_for,
};
use crate::support::waits::{LONG, eventually, start};
use crate::ways::{ANSWER, SHORT, held_in, promptly, shortly};
use lockspace::{
    AcquireError, Cancel, Lease, LockFileError, LockSpace, Mode, Naming, OwnerId, Request, Target,
    Wait, holders_of,
};
use rustix::fs::minor;
use tempfile::TempDir;

/// Tries in a thread of its own, which will be stuck.
fn try_in_thread(
    space: &LockSpace,
    owner: OwnerId,
    mode: Mode,
    path: &Path,
) -> JoinHandle<Result<Lease, AcquireError>> {
    let (space, path) = (space.clone(), path.to_owned());
    thread::spawn(move || space.acquire(owner, Request::new(mode, &path), Wait::NO))
}

/// Every verb, on resources that are not stuck.
fn every_verb(space: &LockSpace, dir: &Path) {
    let [image, base, new] = ["a.raw", "base.raw", "new.raw"].map(|name| dir.join(name));
    fs::write(&image, "").unwrap();
    fs::write(&base, "").unwrap();

    let lease = space.acquire(B, Request::exclusive(&image), Wait::NO).unwrap();
    let refused = space.acquire(A, Request::exclusive(&image), Wait::NO);
    assert!(matches!(refused, Err(AcquireError::Busy(_))));
    lease.verify().unwrap();
    let held: Vec<_> = space.list().into_iter().map(|held| held.name).collect();
    assert_eq!(held, [image.as_os_str()], "what is still being acquired is not held");
    let holders = space.holders(&image).unwrap();
    assert_eq!(holders.len(), 1, "{holders:?}");
    lease.keep();
    let lease = space.retake(B, &image).unwrap();
    lease.release().unwrap();

    for _ in 0..2 {
        space.acquire(B, Request::shared(&base), Wait::NO).unwrap().keep();
    }
    space.release(B, &base).unwrap();
    assert_eq!(space.release_owner(B).holds, 1);

    space.create(&new).unwrap();
    space.delete(&new).unwrap();
    assert!(!new.exists());
    assert_eq!(space.list(), []);
}

#[test]
fn a_stuck_resource_delays_no_verb_on_others() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let dir = tempfile::tempdir().unwrap();
        let space = LockSpace::open(Naming::direct()).unwrap();
        let path = hung.path().join("a.raw");
        let stuck = try_in_thread(&space, A, Mode::Exclusive, &path);
        hung.wait_for_open(1);

        promptly(&space, dir.path(), every_verb);
        // Nor do these of the stuck one's owner, who holds nothing yet.
        promptly(&space, &path, |space, _| assert_eq!(space.release_owner(A).holds, 0));
        promptly(&space, &path, |space, path| space.release(A, path).unwrap_err());
        promptly(&space, &path, |space, path| space.retake(A, path).unwrap_err());
        promptly(&space, dir.path(), |_, dir| {
            let other = LockSpace::open(Naming::md5(dir.join("locks"))).unwrap();
            other.acquire(B, Request::exclusive("b").auto_create(), Wait::NO).unwrap().keep();
        });

        assert!(!stuck.is_finished());
        hung.answer_all();
        let lease = stuck.join().unwrap().expect("granted once the file system answers");
        assert_eq!((lease.mode(), lease.owner()), (Mode::Exclusive, A));
        lease.verify().unwrap();
        assert_eq!(space.list().len(), 1);
        lease.release().unwrap();
        assert_eq!(space.list(), []);
    });
}

#[test]
fn what_the_stuck_acquire_excludes_is_refused_at_once() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let space = LockSpace::open(Naming::direct()).unwrap();
        let [exclusive, shared] = ["exclusive", "shared"].map(|name| hung.path().join(name));
        let stuck = [(Mode::Exclusive, &exclusive), (Mode::Shared, &shared)]
            .map(|(mode, path)| try_in_thread(&space, A, mode, path));
        hung.wait_for_open(2);

        for (held, path, asked) in [
            (Mode::Exclusive, &exclusive, Mode::Exclusive),
            (Mode::Exclusive, &exclusive, Mode::Shared),
            (Mode::Shared, &shared, Mode::Exclusive),
        ] {
            let refused = promptly(&space, path, move |space, path| {
                space.acquire(B, Request::new(asked, path), Wait::NO).unwrap_err()
            });
            let AcquireError::Busy(busy) = refused else { panic!("{refused}") };
            assert_eq!((busy.held(), busy.owners()), (Some(held), &[A][..]));
            assert_eq!((busy.name(), busy.asked()), (path.as_os_str(), asked));
        }
        let refused = promptly(&space, &shared, |space, path| space.create(path).unwrap_err());
        assert!(matches!(refused, LockFileError::Busy(busy) if busy.owners() == [A]));
        let refused = promptly(&space, &exclusive, |space, path| space.delete(path).unwrap_err());
        assert!(matches!(refused, LockFileError::Busy(busy) if busy.owners() == [A]));

        assert!(stuck.iter().all(|stuck| !stuck.is_finished()));
        hung.answer_all();
        for stuck in stuck {
            stuck.join().unwrap().unwrap().verify().unwrap();
        }
    });
}

#[test]
fn a_try_that_can_share_waits_for_the_stuck_one_and_joins_it() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let space = LockSpace::open(Naming::direct()).unwrap();
        let path = hung.path().join("base.raw");
        let stuck = try_in_thread(&space, A, Mode::Shared, &path);
        hung.wait_for_open(1);
        let (tell, second_is) = mpsc::channel();
        let second = {
            let (space, path) = (space.clone(), path.clone());
            thread::spawn(move || {
                tell.send(rustix::thread::gettid().as_raw_nonzero()).unwrap();
                space.acquire(B, Request::shared(&path), Wait::NO)
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
        assert_eq!(held.owners.keys().collect::<Vec<_>>(), [&A, &B]);
        drop(leases);
        assert_eq!(space.list(), []);
    });
}

#[test]
fn two_stuck_resources_do_not_wait_for_each_other() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let space = LockSpace::open(Naming::direct()).unwrap();
        let stuck = ["a", "b"]
            .map(|name| try_in_thread(&space, A, Mode::Exclusive, &hung.path().join(name)));
        hung.wait_for_open(2); // fails if the second never gets as far
        hung.answer_all();
        for stuck in stuck {
            stuck.join().unwrap().unwrap().release().unwrap();
        }
    });
}

#[test]
fn who_holds_a_file_whose_open_hangs_is_told_at_once() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let space = LockSpace::open(Naming::direct()).unwrap();
        let [held, free] = ["held", "free"].map(|name| hung.path().join(name));
        let stuck = try_in_thread(&space, A, Mode::Exclusive, &held);
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
    });
}

#[test]
fn a_given_up_wait_for_an_opened_file_stalls_no_other_resource() {
    alone(|| {
        let dir = tempfile::tempdir().unwrap();
        let space = LockSpace::open(Naming::direct()).unwrap();
        let Some(hung) = answering_fs() else { return };
        let [path, local] = [hung.path().join("a.raw"), dir.path().join("b.raw")];
        fs::write(&local, "").unwrap();
        let image: &File = Box::leak(Box::new(File::options().write(true).open(&path).unwrap()));
        hung.hang_attributes(0);
        hung.hang_closes();
        // The first one's work hangs, the others' never begins, and has a duplicate of the descriptor.
        for _ in 0..3 {
            let given_up = promptly(&space, &path, move |space, _| {
                let request = Request::exclusive(Target::opened("a", image));
                space.acquire(A, request, shortly()).unwrap_err()
            });
            assert!(matches!(given_up, AcquireError::Unresponsive { .. }), "{given_up}");
            hung.wait_for_attributes(1);
        }
        promptly(&space, &local, |space, local| {
            let wait = Wait::within(Duration::from_secs(3600));
            space.acquire(B, Request::exclusive(local), wait).unwrap().release().unwrap();
        });
    });
}

#[test]
fn who_waits_where_a_file_system_might_hang_is_told_of_a_close() {
    alone(|| {
        let Some(hung) = answering_fs() else { return };
        let (holder, space, path) = held_in(&hung, Mode::Exclusive);
        let file = fs::metadata(&path).unwrap();
        let watched = format!("ino:{:x} sdev:{:x} ", file.ino(), minor(file.dev()));
        let is_watched = || {
            let infos = fs::read_dir("/proc/self/fdinfo").unwrap();
            let infos = infos.filter_map(|info| fs::read_to_string(info.unwrap().path()).ok());
            infos.into_iter().any(|info| info.contains(&watched))
        };
        let waiter = {
            let path = path.clone();
            thread::spawn(move || {
                let wait = Wait::within(Duration::from_secs(60));
                space.acquire(B, Request::exclusive(&path), wait)?.release().unwrap();
                Ok::<_, AcquireError>(())
            })
        };
        while !is_watched() && !waiter.is_finished() {
            thread::yield_now();
        }
        holder.release(A, &path).unwrap();
        waiter.join().unwrap().unwrap();
        assert!(!is_watched());
    });
}

struct OpensOnDrop<'a>(&'a Gate);

impl Drop for OpensOnDrop<'_> {
    fn drop(&mut self) {
        self.0.open();
    }
}

#[test]
fn a_hung_file_system_neither_grows_threads_nor_stops_others() {
    alone(|| {
        let child; // dropped last: it can end only after the answer
        let Some(hung) = hung_fs() else { return };
        let dir = TempDir::new().unwrap();
        let (asked, answered) = (Gate::new(), Gate::new());
        child = fork(|| {
            // Also if it panics: a process with a stuck thread cannot even exit.
            let asked = OpensOnDrop(&asked);
            let space = LockSpace::open(Naming::direct()).unwrap();
            let stuck = |number: u32, time| {
                let path = hung.path().join(number.to_string());
                expect_stuck(
                    space.acquire(A, Request::exclusive(&path), Wait::within(time)),
                    &path,
                );
            };
            stuck(0, SHORT);
            assert_eq!(helpers(), 1);
            for number in 1..=50 {
                stuck(number, Duration::from_millis(5));
                assert_eq!(helpers(), 1, "after {number} more calls");
            }
            let at_once: Vec<_> = (100..150)
                .map(|number| {
                    let (space, path) = (space.clone(), hung.path().join(number.to_string()));
                    let wait = Wait::within(Duration::from_millis(100));
                    start(move || {
                        expect_stuck(space.acquire(A, Request::shared(&path), wait), &path)
                    })
                })
                .collect();
            for waiting in at_once {
                waiting.join();
            }
            assert_eq!(helpers(), 1, "after 50 calls at once");

            // Others: this space in another directory, and another space.
            let image = dir.path().join("image");
            File::create(&image).unwrap();
            let files = space_in(dir.path());
            let memory = LockSpace::open(Naming::in_memory()).unwrap();
            for wait in [Wait::NO, Wait::within(LONG), Wait::FOREVER] {
                let lease = space.acquire(B, Request::exclusive(&image), wait.clone()).unwrap();
                drop(
                    files.acquire(B, Request::exclusive(NAME).auto_create(), wait.clone()).unwrap(),
                );
                drop(memory.acquire(B, Request::exclusive(NAME), wait).unwrap());
                drop(lease);
            }
            eventually("those of the others end", || helpers() == 1);
            drop(asked);
            answered.wait();
            let path = hung.path().join("0");
            let lease = space.acquire(B, Request::exclusive(&path), Wait::within(LONG)).unwrap();
            lease.verify().unwrap();
            drop(lease);
            assert_eq!((space.list().len(), open_below(hung.path())), (0, 0));
        });
        asked.wait();
        hung.answer_all();
        answered.open();
        child.join();
        for number in [0, 1, 49, 100] {
            assert!(is_free_for_others(&hung.path().join(number.to_string())));
        }
    });
}

/// Promise 5, honest refusals: one cancelled wait does not make its file system one that hangs.
#[test]
fn a_file_system_is_called_stuck_only_after_it_had_time_to_answer() {
    alone(|| {
        let Some(hung) = hung_fs() else { return };
        let (space, path) = (direct(), hung.path().join("a.raw"));
        let cancel = Cancel::new();
        let waiting = wait_for(&space, A, Mode::Exclusive, &path, Wait::FOREVER.unless(&cancel));
        hung.wait_for_open(1);
        cancel.cancel();
        expect_cancelled(waiting.join(), &path);
        match space.acquire(B, Request::exclusive(&path), Wait::NO) {
            Err(AcquireError::Unresponsive { waited, .. }) => {
                assert!(waited >= ANSWER, "{waited:?}")
            }
            other => panic!("it has not answered: {other:?}"),
        }
        hung.answer_all();
        let again = wait_for(&space, B, Mode::Exclusive, &path, Wait::FOREVER);
        again.join().unwrap().verify().unwrap();
    });
}
