//! Children of a process that waits, or has waited, can wait themselves.

use std::thread;

use crate::support::alone::alone;
use crate::support::forked::{Forked, fork};
use crate::support::rounds::rounds;
#[cfg(feature = "snapshot")]
use crate::support::spaces::B;
use crate::support::spaces::{A, folder_in_memory, space_in};
use crate::support::waits::LONG;
use lockspace::{Lease, LockSpace, OwnerId, Request, Wait};

fn wait_for_disk(space: &LockSpace, owner: OwnerId) -> Lease {
    space.acquire(owner, Request::exclusive("disk").auto_create(), Wait::within(LONG)).unwrap()
}

/// In children of this process, threads wait for each other and for helpers. Each child has a
/// directory of its own: what they wait for is not each other's turn, which can take long on a busy
/// machine, and shows less.
fn wait_in_children(threads: u64) {
    let children = [(); 4].map(|()| {
        fork(|| {
            let dir = folder_in_memory();
            let space = space_in(dir.path());
            let wait_again_and_again = |owner| {
                for _ in 0..400 / threads {
                    let lease = wait_for_disk(&space, owner);
                    thread::yield_now();
                    drop(lease);
                    // A try that meets a transition sleeps as well.
                    let request = Request::shared("base").auto_create();
                    drop(space.acquire(owner, request, Wait::NO));
                }
            };
            thread::scope(|scope| {
                for owner in 1..threads {
                    scope.spawn(move || wait_again_and_again(OwnerId::new(owner)));
                }
                wait_again_and_again(OwnerId::new(0));
            });
        })
    });
    children.into_iter().for_each(Forked::join);
}

/// A helper of the parent sleeps when the children are forked, and their threads get its stack.
#[test]
fn children_can_wait_although_a_helper_of_their_parent_sleeps() {
    alone(|| {
        let dir = folder_in_memory();
        let space = space_in(dir.path());
        for _ in 0..rounds(10) {
            drop(wait_for_disk(&space, A));
            wait_in_children(1);
        }
    });
}

/// The same beside threads of the parent that sleep in this crate, each in another way.
#[cfg(feature = "snapshot")]
#[test]
fn children_can_wait_although_threads_of_their_parent_wait() {
    alone(|| {
        let dir = folder_in_memory();
        let (frozen, held) = (space_in(dir.path()), space_in(dir.path()));
        let snapshot = lockspace::snapshot::Snapshot::take([&frozen]).unwrap();
        let lease = wait_for_disk(&held, B);
        let cancel = lockspace::Cancel::new();
        let waiting = [3, 4, 5, 6, 7, 8].map(|owner| {
            let space = if owner % 2 == 0 { frozen.clone() } else { held.clone() };
            let (request, wait) = (Request::exclusive("disk"), Wait::FOREVER.unless(&cancel));
            let acquire = move || space.acquire(OwnerId::new(owner), request, wait).map(drop);
            crate::support::waits::start(acquire).sleeps()
        });
        for _ in 0..rounds(30) {
            wait_in_children(4);
        }
        cancel.cancel();
        drop((lease, snapshot));
        for waiting in waiting {
            let _ = waiting.join();
        }
    });
}
