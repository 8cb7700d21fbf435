//! System calls that fail as a test says, of one thread and the threads that it starts.
//!
//! A seccomp filter asks the test about each of these calls, and the test lets it pass or gives it an
//! error: so the first can fail and the next succeed, and they can be counted. The rest of the process
//! knows of no filter, but for the workers of this crate, which serve all its threads: such a test runs
//! [`alone`](super::alone::alone).

#![allow(unsafe_code, reason = "seccomp, which rustix does not have")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

/// A system call that is about to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) number: libc::c_long,
    pub(crate) arguments: [u64; 6],
}

impl Call {
    /// Whether it is `fcntl` with this command.
    pub(crate) fn is_fcntl(&self, command: libc::c_int) -> bool {
        self.number == libc::SYS_fcntl && self.arguments[1] as libc::c_int == command
    }
}

/// Runs `body` in a thread of its own. Of the system calls in `calls` that it makes, `answer` says
/// with which error each fails; `None` lets it pass. `None` is returned where the kernel has no such
/// filters.
///
/// Ends when all threads have ended that `body` has started, such as this crate's workers.
pub(crate) fn with_faults<T: Send>(
    calls: &[libc::c_long],
    mut answer: impl FnMut(Call) -> Option<libc::c_int>,
    body: impl FnOnce() -> T + Send,
) -> Option<T> {
    let calls = calls.to_vec();
    thread::scope(|scope| {
        let (tell, told) = mpsc::channel();
        let thread = scope.spawn(move || {
            let listener = install(&calls);
            let installed = listener.is_ok();
            tell.send(listener.ok()).expect("it is waited for");
            installed.then(body)
        });
        if let Some(listener) = told.recv().expect("it begins") {
            while let Some((id, call)) = next_call(&listener) {
                reply(&listener, id, answer(call));
            }
        }
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Filters the calls of this thread.
fn install(calls: &[libc::c_long]) -> io::Result<OwnedFd> {
    let code = |code: u32| u16::try_from(code).expect("a code");
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let answer = code(libc::BPF_RET | libc::BPF_K);
    let mut filter = vec![step(code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), 0, 0, 0)];
    for &call in calls {
        let number = u32::try_from(call).expect("a number");
        filter.push(step(code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K), number, 0, 1));
        filter.push(step(answer, libc::SECCOMP_RET_USER_NOTIF, 0, 0));
    }
    filter.push(step(answer, libc::SECCOMP_RET_ALLOW, 0, 0));
    let len = u16::try_from(filter.len()).expect("a short filter");
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: integers, and a program that lives through the call.
    let listener = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    match i32::try_from(listener) {
        Ok(listener) if listener >= 0 => {
            // SAFETY: the kernel has just opened it for us.
            Ok(unsafe { OwnedFd::from_raw_fd(listener) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// The next call, and its number for the reply; `None` once no thread has the filter any more.
fn next_call(listener: &OwnedFd) -> Option<(u64, Call)> {
    loop {
        let mut poll = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one `pollfd`, which lives through the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, -1) };
        if ready > 0 && poll.revents & libc::POLLIN == 0 {
            return None;
        }
        // SAFETY: all zeros are a valid one, and what the kernel asks for.
        let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the kernel writes one of these, which lives through the call.
        let received = unsafe {
            libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked)
        };
        // It fails where the thread was killed meanwhile.
        if received == 0 {
            let number = libc::c_long::from(asked.data.nr);
            return Some((asked.id, Call { number, arguments: asked.data.args }));
        }
    }
}

fn reply(listener: &OwnedFd, id: u64, error: Option<libc::c_int>) {
    // SAFETY: all zeros are a valid one.
    let mut response: libc::seccomp_notif_resp = unsafe { std::mem::zeroed() };
    response.id = id;
    match error {
        Some(error) => response.error = -error,
        None => response.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    }
    // SAFETY: the kernel reads one of these, which lives through the call. It fails where nobody waits
    // for the answer any more.
    unsafe {
        libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const response)
    };
}
