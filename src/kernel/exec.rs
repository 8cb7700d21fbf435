//! Replacing this program by another, and being as before where that fails.
//!
//! `Command::exec` of the standard library prepares for the new program before it knows that
//! there will be one: it clears the signal mask and lets SIGPIPE kill again. A daemon that goes on
//! after a failed exec would then die at the next client that hangs up, with every lock it holds.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::descriptor::set_close_on_exec;

/// Executes `command` in this process, with these descriptors kept open. Returns only if that
/// fails: then they close on exec again, and signal mask and SIGPIPE are as they were.
///
/// The descriptors are the caller's, who keeps them open through the call.
pub(crate) fn exec(command: &mut Command, keep: Vec<RawFd>) -> io::Error {
    let signals = Signals::now();
    let keep = Arc::new(keep);
    // A closure cannot be taken out of a command again, so it must do nothing the next time.
    let armed = Arc::new(AtomicBool::new(true));
    let last_thing = {
        let (keep, armed) = (Arc::clone(&keep), Arc::clone(&armed));
        move || match armed.load(Ordering::Relaxed) {
            true => set_close_on_exec(&keep, false),
            false => Ok(()),
        }
    };
    // SAFETY: it makes system calls only, allocates nothing, and takes no lock.
    unsafe { command.pre_exec(last_thing) };
    let error = command.exec();
    armed.store(false, Ordering::Relaxed);
    // It can fail only for a number that is not open.
    let _ = set_close_on_exec(&keep, true);
    signals.restore();
    error
}

/// What the standard library changes before it calls `execve`.
struct Signals {
    mask: libc::sigset_t,
    pipe: libc::sigaction,
}

impl Signals {
    fn now() -> Self {
        let mut mask = MaybeUninit::uninit();
        let mut pipe = MaybeUninit::uninit();
        // SAFETY: both calls only write what they are pointed at, here room for just that, and
        // with these arguments neither can fail; zeros would be valid for both types too.
        unsafe {
            libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr());
            libc::sigaction(libc::SIGPIPE, ptr::null(), pipe.as_mut_ptr());
            Self { mask: mask.assume_init(), pipe: pipe.assume_init() }
        }
    }

    fn restore(&self) {
        // SAFETY: both are as the kernel gave them, and only they are read.
        unsafe {
            libc::sigaction(libc::SIGPIPE, &raw const self.pipe, ptr::null_mut());
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.mask, ptr::null_mut());
        }
    }
}
