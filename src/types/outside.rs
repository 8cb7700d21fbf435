//! A lock outside of a space.

use std::fmt;

use super::{ByteRange, Mode};

/// A lock outside of this space that stands in the way of a request, as the kernel tells it.
///
/// There may be more such locks: the kernel reports one. It prints as part of a sentence: `shared
/// on byte 0, by a record lock of process 77`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Outside {
    /// The mode of the lock.
    pub mode: Mode,
    /// The bytes that it covers.
    pub range: ByteRange,
    /// The process that holds it, as this process's pid namespace numbers it. Only for a record
    /// lock: the kernel reports no process for an OFD lock.
    /// [`LockSpace::holders`](crate::LockSpace::holders) finds the processes that share an OFD
    /// lock.
    pub pid: Option<u32>,
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.mode, self.range)?;
        match self.pid {
            Some(pid) => write!(f, ", by a record lock of process {pid}"),
            None => Ok(()),
        }
    }
}
