//! What this crate has once in each process.

use std::io;
use std::sync::Arc;

use super::{Fairness, Spaces};
use crate::engine::InodeLocks;
use crate::sys::fork::PerProcess;
use crate::wait::{WatchPool, WorkerPool};

static HERE: PerProcess<Process> = PerProcess::new();

/// What this crate has once in each process. A forked child gets one of its own.
#[derive(Debug)]
pub(crate) struct Process {
    /// The pid of the process that made this, for the error that a forked child gets.
    id: u32,
    /// One mutex for each file that a thread is locking through a caller's descriptor.
    pub(crate) inodes: InodeLocks,
    pub(crate) workers: WorkerPool,
    pub(crate) watches: Arc<WatchPool>,
    pub(crate) fairness: Fairness,
    pub(crate) spaces: Spaces,
}

impl Process {
    /// The value of the process that calls this.
    ///
    /// # Errors
    /// Those of `mmap` and `madvise`, on first use.
    pub(crate) fn current() -> io::Result<&'static Self> {
        HERE.get_or_make(|| {
            let watches = Arc::<WatchPool>::default();
            Self {
                id: std::process::id(),
                inodes: InodeLocks::default(),
                workers: WorkerPool::new(Arc::clone(&watches)),
                watches,
                fairness: Fairness::default(),
                spaces: Spaces::default(),
            }
        })
    }

    /// `Err` with the creator's pid in a forked child of the process that made this. Makes no
    /// system call.
    pub(crate) fn check(&'static self) -> Result<(), u32> {
        if self.is_here() { Ok(()) } else { Err(self.id) }
    }

    /// Whether the calling process made this: `false` in a forked child. Makes no system call.
    pub(crate) fn is_here(&'static self) -> bool {
        HERE.is_current(self)
    }
}
