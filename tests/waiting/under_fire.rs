//! Many who wait for files that come and go, in threads and processes, some of them killed.

use std::fs;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::alone::alone;
use crate::support::forked::{Forked, Gate, fork, shared_memory};
use crate::support::process::open_below;
use crate::support::rounds::rounds;
use crate::support::spaces::{A, NAME, space_in};
use crate::support::waits::{LONG, Waiting, start};
use lockspace::{OwnerId, Request, Wait};
use tempfile::TempDir;

const PROCESSES: usize = 4;
const DOOMED: u64 = 2;

// Behind the slots, each of which says that its process holds, or is to be killed.
const STOP: usize = PROCESSES;
const HOLDS: usize = PROCESSES + 1;
const TWICE: usize = PROCESSES + 2;
const KILLS: u64 = 40;

/// As tests/processes/churn.rs, by waiting: a process says that it holds only while it does, and what a
/// killed one has said is known not to count before it is killed.
#[test]
fn waits_for_files_that_come_and_go_never_hold_twice_nor_starve() {
    alone(|| {
        let dir = TempDir::new().unwrap();
        let memory: &[AtomicU64; PROCESSES + 3] = shared_memory();
        let reported = Gate::new();
        let churn = |me: usize| {
            let space = space_in(dir.path());
            for cycle in 1_u64.. {
                if memory[STOP].load(SeqCst) != 0 {
                    return;
                }
                let request = Request::exclusive(NAME).auto_create();
                let lease = space.acquire(OwnerId::this_process(), request, Wait::within(LONG / 2));
                let lease = lease.unwrap_or_else(|error| panic!("cycle {cycle}: {error}"));
                memory[me].fetch_or(1, SeqCst);
                for _ in 0..3 {
                    for other in (0..PROCESSES).filter(|&other| other != me) {
                        if memory[other].load(SeqCst) == 1 {
                            memory[TWICE].fetch_add(1, SeqCst);
                        }
                    }
                    thread::yield_now();
                }
                memory[me].fetch_and(!1, SeqCst);
                lease.release().unwrap();
                memory[HOLDS].fetch_add(1, SeqCst);
                if cycle % 20 == 0 {
                    reported.open();
                }
            }
        };
        let mut children: Vec<_> = (0..PROCESSES).map(|me| fork(|| churn(me))).collect();
        for kill in 0..rounds(2 * KILLS) {
            reported.wait();
            if kill % 2 == 1 {
                let victim = (kill as usize / 2) % PROCESSES;
                memory[victim].fetch_or(DOOMED, SeqCst);
                children.remove(victim).kill();
                memory[victim].store(0, SeqCst);
                children.insert(victim, fork(|| churn(victim)));
            }
        }
        memory[STOP].store(1, SeqCst);
        children.into_iter().for_each(Forked::join);
        assert_eq!(memory[TWICE].load(SeqCst), 0, "held twice");
        assert!(memory[HOLDS].load(SeqCst) >= rounds(2 * KILLS));
        // What the last of the killed may have left is removed by whoever asks for it next.
        let space = space_in(dir.path());
        drop(space.acquire(A, Request::exclusive(NAME).auto_create(), Wait::NO).unwrap());
        assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "a file is left");
    });
}

/// The same by threads of one process, of which many wait at any time.
#[test]
fn threads_that_wait_for_files_that_come_and_go_never_hold_twice() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let inside = Arc::new(Mutex::new(()));
    let threads: Vec<_> = (0..6)
        .map(|owner| {
            let (space, inside) = (space.clone(), Arc::clone(&inside));
            start(move || {
                for _ in 0..rounds(300) {
                    let request = Request::exclusive(NAME).auto_create();
                    let lease = space.acquire(OwnerId::new(owner), request, Wait::within(LONG));
                    let lease = lease.unwrap();
                    drop(inside.try_lock().expect("held twice"));
                    drop(lease);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(Waiting::join);
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "a file is left");
    assert_eq!((space.list().len(), open_below(dir.path())), (0, 0));
}
