//! A descriptor and its lock that pass on within the queue.

use std::os::unix::fs::symlink;

use crate::support::alone::alone;
use crate::support::forked::{Gate, fork};
use crate::support::hung_fs::hung_fs;
use crate::support::locks::held;
use crate::support::spaces::{A, B, C, direct, expect_cancelled, image_in, wait_for};
use crate::support::waits::eventually;
use lockspace::{AcquireError, Cancel, Mode, Request, Wait};
use tempfile::TempDir;

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
