//! What lives how long: leases, kept holds, the space, and a thread that panics.

use std::thread;

use crate::leftovers::made;
use crate::support::locks::is_free_for_others;
use crate::support::spaces::{A, B, hold, names_in, space_in};
use lockspace::{AcquireError, Mode, Request, Wait};
use tempfile::TempDir;

#[test]
fn a_lease_outlives_the_last_handle_of_its_space_and_kept_holds_do_not() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let lease = hold(&space, "leased");
    hold(&space, "kept").keep();
    let also = space.clone();
    drop(space);
    assert_eq!(names_in(dir.path()), ["kept", "leased"]);
    drop(also);
    assert_eq!(names_in(dir.path()), ["leased"]);

    lease.verify().unwrap();
    assert!(!is_free_for_others(lease.path()));
    let other = space_in(dir.path());
    let refused = other.acquire(B, Request::shared("leased"), Wait::NO);
    assert!(matches!(refused, Err(AcquireError::Busy(_))));
    lease.release().unwrap();
    assert_eq!(names_in(dir.path()), [""; 0]);
}

#[test]
fn what_is_kept_after_the_last_handle_is_gone_ends_with_the_last_lease() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let [first, last] = ["first", "last"].map(|name| hold(&space, name));
    drop(space);
    first.keep();
    assert_eq!(names_in(dir.path()), ["first", "last"]);
    drop(last);
    assert_eq!(names_in(dir.path()), [""; 0]);
}

#[test]
fn a_panic_in_a_thread_releases_its_lease_and_the_space_goes_on() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    let base = space.acquire(A, made(Mode::Shared, "base"), Wait::NO).unwrap();
    let panicked = {
        let space = space.clone();
        thread::spawn(move || {
            let _exclusive = hold(&space, "a");
            let _shared = space.acquire(B, Request::shared("base"), Wait::NO).unwrap();
            hold(&space, "kept").keep();
            panic!("as a caller's bug would");
        })
    };
    assert!(panicked.join().is_err());
    assert_eq!(names_in(dir.path()), ["base", "kept"]);
    let held: Vec<_> = space.list().into_iter().map(|held| held.owners.len()).collect();
    assert_eq!(held, [1, 1], "the panic took nobody else's hold");
    base.verify().unwrap();
    hold(&space, "a").release().unwrap();
    space.release(A, "kept").unwrap();
    base.release().unwrap();
    assert_eq!(names_in(dir.path()), [""; 0]);
}
