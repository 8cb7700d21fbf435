//! Tests that run in a process of their own.
//!
//! `cargo test` runs the tests of a binary in threads of one process, `cargo nextest` each in a
//! process of its own. A test for which that makes a difference runs [`alone`], and then it makes
//! none:
//! - one that looks at something of the whole process: its descriptors, threads, watches, time;
//! - one whose forked children wait or start threads: what another thread has locked at the moment
//!   of a fork, in parking_lot's tables for example, stays locked in the child for ever;
//! - one that changes what all threads share, such as limits;
//! - one with a file system that hangs, whose descriptors no child of another test may share.

use std::env;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::thread;

use super::forked::in_child;
use rustix::process::{Signal, set_parent_process_death_signal};

/// The name of the test that a process was started for.
const ALONE: &str = "LOCKSPACE_TEST_ALONE";

/// The full name of the calling test, as `--exact` takes it.
pub(crate) fn this_test() -> String {
    let thread = thread::current();
    thread.name().expect("the test harness names the thread of a test after it").to_owned()
}

/// This binary once more, for exactly this test.
pub(crate) fn this_binary(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("/proc is mounted"));
    command.args([test, "--exact", "--include-ignored", "--nocapture", "--test-threads=1"]);
    command.stdin(Stdio::null());
    command
}

/// Whether this process was started for one test.
pub(crate) fn is_alone() -> bool {
    env::var_os(ALONE).is_some()
}

/// Runs `body`, the whole of the calling test, in a process that has no other test. Beside its
/// thread that process has the main one, which waits for it without a lock.
#[track_caller]
pub(crate) fn alone(body: impl FnOnce()) {
    let test = this_test();
    if env::var_os(ALONE).is_some_and(|name| *name == *test) {
        // So that it does not outlive a test that is killed.
        set_parent_process_death_signal(Some(Signal::KILL)).expect("a signal that there is");
        return body();
    }
    let output = this_binary(&test).env(ALONE, &test).output().expect("it is there to be run");
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        for why in said.lines().filter(|line| line.starts_with("skipped: ")) {
            let _ = writeln!(io::stderr(), "{why}");
        }
    } else {
        let out = String::from_utf8_lossy(&output.stdout);
        panic!("{test} failed in a process of its own ({}): {out}{said}", output.status);
    }
}

/// Runs `body` in a child, which has one thread, of a process that has no other test.
#[track_caller]
pub(crate) fn alone_in_child(body: impl FnOnce()) {
    alone(|| in_child(body));
}
