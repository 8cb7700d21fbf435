//! Descriptors that an exec has carried over: numbers become descriptors that this crate owns.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use hashbrown::HashSet;
use rustix::fs::OFlags;

use super::fs::Access;

/// The descriptors that this process has inherited and that nobody in it owns.
#[derive(Debug)]
pub(crate) struct InheritedFds {
    claimed: HashSet<RawFd>,
}

/// One of them. Unlike an [`OwnedFd`], it stays open when this is dropped.
#[derive(Debug)]
pub(crate) struct InheritedFd {
    number: RawFd,
    access: Access,
}

/// Why a number is not an inherited descriptor.
#[derive(Debug)]
pub(crate) enum NotInherited {
    /// It was claimed before.
    Claimed,
    NotOpen,
}

impl InheritedFds {
    /// # Safety
    /// While this lives, or an [`InheritedFd`] of it, nobody else in this process owns, opens or
    /// closes a descriptor whose number is claimed.
    pub(crate) unsafe fn new() -> Self {
        Self { claimed: HashSet::new() }
    }

    pub(crate) fn reserve(&mut self, additional: usize) {
        self.claimed.reserve(additional);
    }

    /// The descriptor of this number, which nobody else gets from now on.
    pub(crate) fn claim(&mut self, number: RawFd) -> Result<InheritedFd, NotInherited> {
        if !self.claimed.insert(number) {
            return Err(NotInherited::Claimed);
        }
        // SAFETY: the call takes integers and touches no memory of ours; a number that is not open
        // is answered with an error.
        match u32::try_from(unsafe { libc::fcntl(number, libc::F_GETFL) }) {
            Ok(flags) => {
                let access = Access::of(OFlags::from_bits_retain(flags));
                Ok(InheritedFd { number, access })
            }
            Err(_) => Err(NotInherited::NotOpen),
        }
    }
}

impl InheritedFd {
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn into_owned(self) -> OwnedFd {
        // SAFETY: it was open when it was claimed, and was claimed once; that nobody else owns or
        // closes it said the caller of `InheritedFds::new`.
        unsafe { OwnedFd::from_raw_fd(self.number) }
    }
}

impl AsRawFd for InheritedFd {
    fn as_raw_fd(&self) -> RawFd {
        self.number
    }
}

impl AsFd for InheritedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: it was open when it was claimed, so it is not -1; that nobody closes it said the
        // caller of `InheritedFds::new`.
        unsafe { BorrowedFd::borrow_raw(self.number) }
    }
}
