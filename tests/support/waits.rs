//! Threads that wait, and how a test knows that they do: by what the kernel says of them, never by
//! the time that has passed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::rounds::patience;

/// What takes longer hangs. No test depends on it but to fail.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A thread that runs something that waits.
#[derive(Debug)]
pub(crate) struct Waiting<T> {
    task: PathBuf,
    thread: JoinHandle<()>,
    result: mpsc::Receiver<T>,
}

/// Runs `body` in a thread of its own.
pub(crate) fn start<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Waiting<T> {
    let (tell, told) = mpsc::channel();
    let (done, result) = mpsc::channel();
    let thread = thread::spawn(move || {
        tell.send(rustix::thread::gettid().as_raw_nonzero()).expect("the test waits for it");
        let _ = done.send(body());
    });
    let task = PathBuf::from(format!("/proc/self/task/{}", told.recv().expect("it has begun")));
    Waiting { task, thread, result }
}

impl<T> Waiting<T> {
    /// Returns when the thread sleeps: in the queue, or before a file that somebody else holds.
    #[track_caller]
    pub(crate) fn sleeps(self) -> Self {
        eventually("the thread sleeps", || {
            assert!(!self.thread.is_finished(), "it does not wait");
            sleeps_in(&self.task, &[libc::SYS_futex, libc::SYS_ppoll])
        });
        self
    }

    /// Returns when the thread watches a file that is held outside of its space.
    #[track_caller]
    pub(crate) fn watches(self) -> Self {
        eventually("the thread watches", || {
            assert!(!self.thread.is_finished(), "it does not wait");
            sleeps_in(&self.task, &[libc::SYS_ppoll])
        });
        self
    }

    /// Returns when the thread sleeps until another thread of its process wakes it.
    #[track_caller]
    pub(crate) fn sleeps_for_others(self) -> Self {
        eventually("the thread sleeps for others", || {
            assert!(!self.thread.is_finished(), "it does not wait");
            self.is_asleep()
        });
        self
    }

    /// Whether the thread sleeps until another thread of its process wakes it.
    pub(crate) fn is_asleep(&self) -> bool {
        sleeps_in(&self.task, &[libc::SYS_futex])
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// What the thread has brought. Fails if it panicked, or hangs.
    #[track_caller]
    pub(crate) fn join(self) -> T {
        match self.result.recv_timeout(patience(LONG)) {
            Ok(result) => {
                self.thread.join().expect("it has sent its result");
                result
            }
            Err(error) => panic!("it hangs, or has panicked: {error}"),
        }
    }
}

/// Returns when the only thread of a child watches a file that somebody else holds.
#[track_caller]
pub(crate) fn child_watches(pid: u32) {
    let task = PathBuf::from(format!("/proc/{pid}"));
    eventually("the child watches", || sleeps_in(&task, &[libc::SYS_ppoll]));
}

/// Returns when the first thread of another program blocks in this call.
#[track_caller]
pub(crate) fn program_blocks_in(pid: u32, call: libc::c_long) {
    let task = PathBuf::from(format!("/proc/{pid}"));
    eventually("the program blocks", || sleeps_in(&task, &[call]));
}

fn sleeps_in(task: &Path, calls: &[libc::c_long]) -> bool {
    let call = fs::read_to_string(task.join("syscall")).unwrap_or_default();
    let call = call.split(' ').next().and_then(|number| number.parse().ok());
    let asleep = fs::read_to_string(task.join("stat")).is_ok_and(|stat| stat.contains(") S "));
    asleep && call.is_some_and(|call| calls.contains(&call))
}

/// Asks until it is so. Fails after a minute.
#[track_caller]
pub(crate) fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !so() {
        assert!(started.elapsed() < LONG, "it never happens that {what}");
        thread::yield_now();
    }
}
