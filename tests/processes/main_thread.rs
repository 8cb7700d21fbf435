//! A process whose main thread has exited while others live on, and one without `/proc`: what the
//! kernel tells of descriptors is found by the calling thread's own entry, and where there is none,
//! that is an error and never "nobody".

#![allow(unsafe_code, reason = "the end of one thread alone")]

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use crate::support::alone::alone;
use crate::support::forked::{Forked, Gate, exit_now, fork};
use crate::support::interop::skip_or_fail;
use crate::support::locks::{Kind, Lock, open, set_lock};
use crate::support::process::is_root;
use crate::support::spaces::{A, NAME, lock_file, space_in};
use crate::support::waits::{LONG, eventually, start};
use lockspace::{AcquireError, HeldBy, Holder, Request, Target, VerifyError, Wait, holders_of};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Runs `body` in a child, in a thread that is alone there: the main one has exited.
fn without_main_thread(body: impl FnOnce() + Send + 'static) -> Forked {
    fork(|| {
        let main = format!("/proc/{0}/task/{0}/stat", std::process::id());
        thread::spawn(move || {
            eventually("the main thread has exited", || {
                fs::read_to_string(&main).unwrap().contains(") Z ")
            });
            let outcome = catch_unwind(AssertUnwindSafe(body));
            exit_now(i32::from(outcome.is_err()));
        });
        // SAFETY: it ends this thread, whose stack nobody else looks at.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    })
}

fn pids(holders: &[Holder]) -> Vec<Vec<u32>> {
    let mut pids: Vec<Vec<u32>> = holders
        .iter()
        .map(|holder| match &holder.by {
            HeldBy::Processes(processes) => processes.iter().map(|process| process.pid).collect(),
            HeldBy::Owners(owners) => panic!("{owners:?}"),
            _ => vec![],
        })
        .collect();
    pids.sort();
    pids
}

#[test]
fn holders_are_found_when_the_main_thread_has_exited() {
    alone(|| {
        let (dir, path) = lock_file();
        let [held, holds, seen] = [(); 3].map(|()| Arc::new(Gate::new()));
        let parent = std::process::id();
        let child = without_main_thread({
            let (dir, path) = (dir.path().to_owned(), path.clone());
            let [held, holds, seen] = [&held, &holds, &seen].map(Arc::clone);
            move || {
                held.wait();
                let own = std::process::id();
                let space = space_in(&dir);
                let lease = space.acquire(A, Request::shared(NAME), Wait::NO).unwrap();
                lease.verify().unwrap();
                let holders = space.holders(NAME).unwrap();
                assert_eq!(holders[0].by, HeldBy::Owners(vec![A]));
                assert_eq!(pids(&holders[1..]), [[parent]]);
                assert_eq!(pids(&holders_of(&path).unwrap()), [[parent], [own]]);
                // A caller's descriptor carries nothing, as its fdinfo tells, and then a lock.
                let file = open(&path);
                let opened = || Request::shared(Target::opened("b", &file));
                let second = space.acquire(A, opened(), Wait::NO).unwrap();
                second.verify().unwrap();
                assert_eq!(second.path(), path);
                holds.open();
                seen.wait();
            }
        });
        let file = open(&path);
        assert!(set_lock(&file, Kind::Ofd, Lock::Shared, 0, 1).unwrap());
        held.open();
        holds.wait();
        let child_holds_two = [vec![child.pid()], vec![child.pid()]];
        let mut expected = [&[vec![parent]][..], &child_holds_two].concat();
        expected.sort();
        assert_eq!(pids(&holders_of(&path).unwrap()), expected);
        seen.open();
        child.join();
    });
}

#[test]
fn a_file_is_watched_when_the_main_thread_has_exited() {
    alone(|| {
        let (dir, path) = lock_file();
        let [held, watched] = [(); 2].map(|()| Arc::new(Gate::new()));
        let child = without_main_thread({
            let dir = dir.path().to_owned();
            let [held, watched] = [&held, &watched].map(Arc::clone);
            move || {
                held.wait();
                let space = space_in(&dir);
                let waiting =
                    start(move || space.acquire(A, Request::exclusive(NAME), Wait::within(LONG)));
                let waiting = waiting.watches();
                watched.open();
                waiting.join().unwrap().release().unwrap();
            }
        });
        let file = open(&path);
        assert!(set_lock(&file, Kind::Ofd, Lock::Exclusive, 0, 1).unwrap());
        held.open();
        watched.wait();
        drop(file);
        child.join();
    });
}

#[test]
fn without_proc_nobody_is_taken_for_a_file_without_holders() {
    alone(|| {
        if !is_root() {
            return skip_or_fail("a process without /proc", "only root can hide it");
        }
        let (dir, path) = lock_file();
        let child = fork(|| {
            let space = space_in(dir.path());
            let lease = space.acquire(A, Request::exclusive(NAME), Wait::NO).unwrap();
            hide_proc().unwrap();
            let tells_of_proc = |error: &io::Error| {
                assert_ne!(error.kind(), io::ErrorKind::NotFound);
                assert!(error.to_string().contains("is /proc mounted?"), "{error}");
            };
            match space.holders(NAME) {
                Err(AcquireError::Io(error)) => tells_of_proc(&error.source),
                other => panic!("{other:?}"),
            }
            tells_of_proc(&holders_of(&path).unwrap_err());
            match lease.verify() {
                Err(VerifyError::Io(error)) => tells_of_proc(&error.source),
                other => panic!("{other:?}"),
            }
            let file = open(&path);
            match space.acquire(A, Request::shared(Target::opened("b", &file)), Wait::NO) {
                Err(AcquireError::Io(error)) => tells_of_proc(&error.source),
                other => panic!("{other:?}"),
            }
            // What needs no `/proc` goes on.
            lease.release().unwrap();
            let lease = space.acquire(A, Request::exclusive(NAME), Wait::within(LONG));
            lease.unwrap().release().unwrap();
        });
        child.join();
    });
}

/// For this process alone.
fn hide_proc() -> rustix::io::Result<()> {
    // SAFETY: only this process's mounts become its own; it has one thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount("none", "/proc", "tmpfs", MountFlags::empty(), None)
}
