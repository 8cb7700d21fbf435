//! What it means that a lock was refused.
//!
//! The kernel says `EAGAIN` or `EACCES`, and neither is an answer. Of a hundred `EAGAIN` among processes
//! that lock and unlink one file without pause, ten come after the other lock is gone. `EACCES` is
//! POSIX's other word for the same; but it is also what a file system or a security module says to a
//! process that may not lock at all. So the kernel is asked, once for each refusal, who is in the way.

use std::os::fd::BorrowedFd;
use std::thread;

use crate::sys::{Errno, ofd};
use crate::types::{ByteRange, Mode, Outside};

/// How often a lock is tried again at once because nobody was in the way of the last try.
const VAIN_TRIES: u32 = 20;

/// What is to be done about a lock that was refused.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Try again: nobody is in the way.
    TryAgain,
    /// Somebody holds it. `None`: nobody whom the kernel tells of.
    Held(Option<Outside>),
    /// It is held by whoever is about to remove the file: see [`ByteRange::REMOVAL`].
    Removing(Outside),
    Failed(Errno),
}

/// What came of a try to lock an open file.
#[derive(Debug)]
pub(crate) enum Attempt {
    Locked,
    /// Somebody else's lock is in the way: this one, if the kernel has told.
    Refused(Option<Outside>),
}

/// Whether a lock call that failed may have failed for somebody else's lock.
pub(super) fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::AGAIN | Errno::ACCESS)
}

/// The tries of one call, which are not repeated without end.
#[derive(Debug, Default)]
pub(super) struct Tries {
    in_vain: u32,
    was_denied: bool,
}

impl Tries {
    /// Asks who has been in the way of a lock. Yields the processor before another try.
    #[cold]
    pub(super) fn judge(
        &mut self,
        fd: BorrowedFd<'_>,
        mode: Mode,
        range: ByteRange,
        errno: Errno,
    ) -> Verdict {
        if !is_refusal(errno) {
            return Verdict::Failed(errno);
        }
        let is_denied = errno == Errno::ACCESS;
        match ofd::in_the_way(fd, mode, range) {
            Ok(Some(lock)) => {
                let shown = Outside { range: lock.range.lockable(), ..lock };
                match lock.range == ByteRange::REMOVAL {
                    true => Verdict::Removing(shown),
                    false => Verdict::Held(Some(shown)),
                }
            }
            Ok(None) if is_denied && !std::mem::replace(&mut self.was_denied, true) => {
                Verdict::TryAgain
            }
            // It was not for somebody's lock. Who may not lock may not be allowed to ask either.
            Ok(None) | Err(_) if is_denied => Verdict::Failed(errno),
            Ok(None) if self.in_vain < VAIN_TRIES => {
                self.in_vain += 1;
                thread::yield_now();
                Verdict::TryAgain
            }
            Ok(None) | Err(_) => Verdict::Held(None),
        }
    }
}

/// Tries to lock an open file, whatever it holds now; what it holds stays if that is refused.
pub(super) fn attempt(fd: BorrowedFd<'_>, mode: Mode, range: ByteRange) -> Result<Attempt, Errno> {
    let mut tries = Tries::default();
    loop {
        let Err(errno) = ofd::try_lock(fd, mode, range) else { return Ok(Attempt::Locked) };
        match tries.judge(fd, mode, range, errno) {
            Verdict::TryAgain => {}
            Verdict::Held(by) => return Ok(Attempt::Refused(by)),
            Verdict::Removing(by) => return Ok(Attempt::Refused(Some(by))),
            Verdict::Failed(errno) => return Err(errno),
        }
    }
}
