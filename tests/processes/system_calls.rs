//! System calls that are not made.

use std::fs;

use crate::support::forked::{NO_SECCOMP, fork, without_system_calls};
use crate::support::interop::skip_or_fail;
use crate::support::spaces::{A, B, folder_in_memory, hold, space_in};
use lockspace::{AcquireError, LockSpace, Request, Wait};

#[test]
fn a_refusal_by_this_space_makes_no_system_call() {
    let check = |body: fn(&LockSpace)| {
        let child = fork(|| {
            // In a process of one thread: the others of this one make calls of their own.
            let dir = folder_in_memory();
            let space = space_in(dir.path());
            let lease = hold(&space, "a");
            let shared = Request::shared("b").auto_create();
            let base = space.acquire(A, shared, Wait::NO).unwrap();
            let busy = |request: Request<'_>| {
                let refused = space.acquire(B, request, Wait::NO);
                assert!(matches!(refused, Err(AcquireError::Busy(_))));
            };
            let many = || {
                for _ in 0..1_000 {
                    busy(Request::exclusive("a"));
                    busy(Request::shared("a"));
                    busy(Request::exclusive("b").auto_create());
                    drop(space.acquire(B, Request::shared("b"), Wait::NO).unwrap());
                    assert_eq!(space.list().len(), 2);
                }
            };
            many(); // now malloc has what it needs
            fs::remove_dir_all(dir.path()).unwrap();
            let _ends_with_the_process = (&lease, &base);
            without_system_calls(|| {
                many();
                body(&space);
            });
        });
        child.join_status()
    };
    let status = check(|_| {});
    if status.exit_status() == Some(NO_SECCOMP) {
        return skip_or_fail("seccomp", "the kernel refuses its strict mode");
    }
    assert_eq!(status.exit_status(), Some(0), "a system call was made: {status:?}");
    // That a call would have been noticed:
    let status = check(|_| drop(fs::metadata("/")));
    assert_eq!(status.terminating_signal(), Some(libc::SIGKILL));
}
