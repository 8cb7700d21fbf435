//! Waits with a caller's open file, and for what is held by one.

use std::fs::File;

use crate::support::locks::{held, locks_shown, open};
use crate::support::spaces::{
    A, Acquired, B, C, NAME, direct, expect_busy, image_in, in_memory, space_in, wait_for,
};
use crate::support::waits::{Waiting, eventually, start};
use lockspace::{AcquireError, InvalidRequest, LockSpace, Mode, Request, Target, Wait};
use tempfile::TempDir;

/// Waits for a caller's open file.
fn wait_for_opened(space: &LockSpace, name: &'static str, file: File) -> Waiting<Acquired> {
    let space = space.clone();
    start(move || {
        let request = Request::exclusive(Target::opened(name, &file));
        space.acquire(B, request, Wait::FOREVER)
    })
}

/// Promise 1, one holder: a wait by name behind a descriptor of that name is granted with a lock.
#[test]
fn a_wait_by_name_behind_an_open_file_of_that_name_gets_the_lock() {
    let dir = TempDir::new().unwrap();
    let image = image_in(dir.path());
    let text = image.to_str().unwrap();
    let (space, file) = (direct(), open(&image));
    let opened = Request::exclusive(Target::opened(text, &file));
    let first = space.acquire(A, opened, Wait::NO).unwrap();
    let waiting = wait_for(&space, B, Mode::Exclusive, &image, Wait::FOREVER).sleeps();
    drop(first);
    let second = waiting.join().unwrap();
    expect_busy(direct().acquire(C, Request::exclusive(&image), Wait::NO));
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
    expect_busy(direct().acquire(C, Request::exclusive(&image), Wait::NO));
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
