//! Whether locks are given in a directory: tried before a file is made there.
//!
//! The trap: only who has locked a lock file may remove it, since anybody else who has opened it by
//! then may hold it. So one that was made for a lock that is then not given has to stay, as by `ENOLCK`
//! of a network file system without its lock manager, or `EACCES` of a security module: and so one for
//! each name. Therefore a lock is tried before the first file that a space makes, and again after one
//! has failed.

use std::collections::hash_map::RandomState;
use std::ffi::CString;
use std::hash::BuildHasher;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use super::directory::Directory;
use super::refusal::attempt;
use crate::sys::{Errno, fs, ofd};
use crate::types::{ByteRange, Mode};

impl Directory {
    /// Tries whether locks are given here, unless that is known.
    ///
    /// # Errors
    /// What the kernel says to a lock on a file here.
    #[inline]
    pub(super) fn try_locks(&self) -> Result<(), Errno> {
        match self.gives_locks.load(Ordering::Relaxed) {
            true => Ok(()),
            false => self.try_locks_now(),
        }
    }

    /// A lock on a file here has failed, and not for somebody else's.
    pub(super) fn doubt_locks(&self) {
        self.gives_locks.store(false, Ordering::Relaxed);
    }

    #[cold]
    fn try_locks_now(&self) -> Result<(), Errno> {
        // The directory itself is locked in the same way as its files on a local file system, and needs no
        // file. A failure does not count: a security module may allow the one and not the other.
        let seems_to = self.local && lock_for_a_moment(self, Mode::Shared).is_ok();
        if !seems_to {
            let name = trial_name();
            let Ok(file) = fs::create_in(self.as_fd(), &name, 0o600) else {
                // What is made next tells why.
                return Ok(());
            };
            let tried = lock_for_a_moment(&file, Mode::Exclusive);
            // Nobody but this call knows the name.
            let _ = fs::unlink_in(self.as_fd(), &name);
            tried?;
        }
        self.gives_locks.store(true, Ordering::Relaxed);
        Ok(())
    }
}

fn lock_for_a_moment(file: impl AsFd, mode: Mode) -> Result<(), Errno> {
    attempt(file.as_fd(), mode, ByteRange::FIRST)?;
    ofd::unlock(file.as_fd(), ByteRange::FIRST)
}

/// A name that nobody else gives to a file.
fn trial_name() -> CString {
    let number = RandomState::new().hash_one(());
    let name = format!(".lockspace-{}-{number:016x}", std::process::id());
    CString::new(name).expect("it has no NUL")
}
