//! Forked children of a test.
//!
//! A test process has many threads, and `fork` copies one of them: whatever lock another thread
//! had at that moment stays locked in the child for ever. So a child does simple things only, and
//! leaves by `_exit`. After [`fork`] it may allocate, since glibc puts malloc in order; after
//! [`clone`] it may not. A test whose children wait, or start threads, forks them in a process that
//! has no other test: [`alone`](super::alone::alone).
//!
//! No child outlives its test, and none hangs it: a child that is not done in time is ended by an
//! alarm, which its [`Forked::join`] reports as the failure that it is.

#![allow(unsafe_code, reason = "fork, and what its children do")]

use std::fmt::Display;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use super::rounds::times;

/// A child that takes longer than this hangs, in seconds.
const PATIENCE: libc::c_uint = 120;

/// A forked child. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Forked {
    /// `None` once it was waited for.
    pid: Option<Pid>,
    report: PipeReader,
}

/// Runs `body` in a child made by `fork`. What it captures it has a copy of: `take` of a borrowed
/// `Option` in the child leaves the parent's in place. A panic there fails [`Forked::join`] here.
pub(crate) fn fork(body: impl FnOnce()) -> Forked {
    // SAFETY: the child is one thread, which goes on in `run_in_child` and never returns from it.
    start(body, || unsafe { libc::fork() })
}

/// Runs `body` in a child. What it asserts there is asserted here.
#[track_caller]
pub(crate) fn in_child(body: impl FnOnce()) {
    fork(body).join();
}

/// Runs `body` in a child; its answer, as a text that fits into a pipe.
#[track_caller]
pub(crate) fn ask_child<T: Display>(body: impl FnOnce() -> T) -> String {
    let (mut answer, to_parent) = io::pipe().expect("a pipe");
    fork(|| {
        let answer = body().to_string();
        (&to_parent).write_all(answer.as_bytes()).expect("the parent has the other end");
    })
    .join();
    read_what_is_there(&mut answer)
}

/// What has been written to the pipe. Not to its end: another child may have inherited that.
fn read_what_is_there(pipe: &mut PipeReader) -> String {
    rustix::fs::fcntl_setfl(&*pipe, OFlags::NONBLOCK).expect("a pipe");
    let mut bytes = vec![0; 65536];
    let length = pipe.read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// As [`fork`], by the system call alone, which no `pthread_atfork` handler hears of. The body
/// must not allocate.
pub(crate) fn clone(body: impl FnOnce()) -> Forked {
    // SAFETY: as for `fork`: without CLONE_VM the child has its own memory, and it goes on with
    // this stack, since none is given.
    start(body, || unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) as i32 })
}

fn start(body: impl FnOnce(), fork: impl FnOnce() -> libc::pid_t) -> Forked {
    report_panics_of_children();
    let (report, to_parent) = io::pipe().expect("a pipe");
    match fork() {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => run_in_child(body, &to_parent),
        pid => Forked { pid: Pid::from_raw(pid), report },
    }
}

fn run_in_child(body: impl FnOnce(), to_parent: &PipeWriter) -> ! {
    REPORT.store(to_parent.as_raw_fd(), Ordering::Relaxed);
    // SAFETY: two calls with integers.
    unsafe {
        libc::alarm(PATIENCE * times());
        // When the test's thread ends, however it does.
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    let outcome = panic::catch_unwind(AssertUnwindSafe(body));
    exit_now(i32::from(outcome.is_err()))
}

/// In a child: what the parent owns, to drop it here. `original` is not to be used here after it.
pub(crate) fn copy_in_child<T>(original: &T) -> T {
    assert_ne!(REPORT.load(Ordering::Relaxed), -1, "only a child has a copy");
    // SAFETY: a forked child's memory is a copy, whose original the parent goes on to own. Nobody
    // else drops the copy: the threads that borrow it are not here, and this thread never returns
    // to the frame that has it.
    unsafe { std::ptr::read(original) }
}

/// What a child exits with in [`without_system_calls`] where the kernel has no seccomp.
pub(crate) const NO_SECCOMP: i32 = 77;

/// In a child: runs `body` and exits. Any system call in it but `read` and `write` kills the child.
pub(crate) fn without_system_calls(body: impl FnOnce()) -> ! {
    // SAFETY: two integers; the mode needs no filter.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_STRICT) } != 0 {
        exit_now(NO_SECCOMP);
    }
    let outcome = panic::catch_unwind(AssertUnwindSafe(body));
    // SAFETY: not `_exit`, which makes a system call that is not allowed either; the child is one
    // thread.
    unsafe { libc::syscall(libc::SYS_exit, i32::from(outcome.is_err())) };
    unreachable!("the process has ended");
}

/// In a child: from now on these system calls fail with `EPERM`, as under a filter that does not know
/// them. `false` where the kernel has no such filters.
pub(crate) fn refuse_system_calls(calls: &[libc::c_long]) -> bool {
    let code = |code: u32| u16::try_from(code).expect("a code");
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let number = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
    let is = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let answer = code(libc::BPF_RET | libc::BPF_K);
    let mut filter = vec![step(number, 0, 0, 0)];
    for &call in calls {
        filter.push(step(is, u32::try_from(call).expect("a number"), 0, 1));
        filter.push(step(answer, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs(), 0, 0));
    }
    filter.push(step(answer, libc::SECCOMP_RET_ALLOW, 0, 0));
    let len = u16::try_from(filter.len()).expect("a short filter");
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: integers, and a program that lives through the call.
    unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) == 0
    }
}

/// A program that can start no thread: the kernel refuses it. `false` where it has no such filters.
pub(crate) fn without_threads(command: &mut std::process::Command) -> bool {
    use std::os::unix::process::CommandExt;
    let refuse = || refuse_system_calls(&[libc::SYS_clone, libc::SYS_clone3]);
    // SAFETY: the child is a copy of this thread, and glibc puts malloc in order after a fork.
    unsafe { command.pre_exec(move || if refuse() { Ok(()) } else { Err(io::Error::other("")) }) };
    fork(|| exit_now(i32::from(!refuse()))).join_code() == 0
}

/// Ends this process, without destructors.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: nothing of this process runs after it.
    unsafe { libc::_exit(code) }
}

/// In a child, the descriptor that its panics are reported to.
static REPORT: AtomicI32 = AtomicI32::new(-1);

/// The hook is set before any fork: to set it in the child could wait for a thread that is not
/// there.
fn report_panics_of_children() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| match REPORT.load(Ordering::Relaxed) {
            -1 => usual(info),
            fd => {
                let text = info.to_string();
                // SAFETY: the pointer and the length are those of `text`.
                unsafe { libc::write(fd, text.as_ptr().cast(), text.len()) };
            }
        }));
    });
}

impl Forked {
    pub(crate) fn pid(&self) -> u32 {
        self.pid.expect("not waited for").as_raw_nonzero().get().cast_unsigned()
    }

    /// Waits for the child's end, and fails unless its body returned, or exited with 0.
    #[track_caller]
    pub(crate) fn join(self) {
        assert_eq!(self.join_code(), 0, "the child's exit code");
    }

    /// Waits for the child's end, and fails unless it exited: with which code?
    #[track_caller]
    pub(crate) fn join_code(self) -> i32 {
        let status = self.join_status();
        status.exit_status().unwrap_or_else(|| panic!("the child ended by {status:?}"))
    }

    /// Waits for the child's end, and fails if it panicked.
    #[track_caller]
    pub(crate) fn join_status(mut self) -> WaitStatus {
        let status = self.wait();
        let report = read_what_is_there(&mut self.report);
        assert!(report.is_empty(), "in the child: {report}");
        status
    }

    /// Kills the child, waits until it is gone, and fails if it had panicked.
    #[track_caller]
    pub(crate) fn kill(self) {
        let _ = kill_process(self.pid.expect("not waited for"), Signal::KILL);
        self.join_status();
    }

    fn wait(&mut self) -> WaitStatus {
        let pid = self.pid.take().expect("not waited for");
        loop {
            match waitpid(Some(pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => return status,
                Ok(None) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("waitpid: {error}"),
            }
        }
    }
}

impl Drop for Forked {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            let _ = kill_process(pid, Signal::KILL);
            self.wait();
        }
    }
}

/// Numbers, all 0, that this process shares with the children that it forks later.
pub(crate) fn shared_memory<const N: usize>() -> &'static [AtomicU64; N] {
    let (protect, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANON);
    // SAFETY: a new mapping, at an address that the kernel chooses.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), 8 * N, protect, flags, -1, 0) };
    assert_ne!(memory, libc::MAP_FAILED, "{}", io::Error::last_os_error());
    // SAFETY: it begins a page, has that many bytes, all zero, which is a valid atomic number, and
    // is never unmapped.
    unsafe { &*memory.cast() }
}

/// One side waits, once for each time that the other opens; both sides have it across a fork.
#[derive(Debug)]
pub(crate) struct Gate {
    reader: PipeReader,
    writer: PipeWriter,
}

impl Gate {
    pub(crate) fn new() -> Self {
        let (reader, writer) = io::pipe().expect("a pipe");
        Self { reader, writer }
    }

    pub(crate) fn open(&self) {
        (&self.writer).write_all(&[1]).expect("both ends are open");
    }

    /// Fails after two minutes: whoever was to open has ended.
    #[track_caller]
    pub(crate) fn wait(&self) {
        let mut poll =
            libc::pollfd { fd: self.reader.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: it points to one `pollfd`, which lives through the call.
        let ready =
            unsafe { libc::poll(&raw mut poll, 1, (PATIENCE * times()) as libc::c_int * 1000) };
        assert_eq!(ready, 1, "nobody opened the gate");
        (&self.reader).read_exact(&mut [0]).expect("both ends are open");
    }
}
