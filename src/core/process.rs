//! The process that a lockspace belongs to.

use std::io;
use std::sync::Arc;

use crate::engine::InodeLocks;
use crate::sys::fork::PerProcess;
use crate::table::fairness::Turns;
use crate::wait::watch::Watchers;
use crate::wait::worker_pool::WorkerPool;

static HERE: PerProcess<Process> = PerProcess::new();

/// What this crate keeps once for each process. A forked child gets one of its own.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its pid, for the message that a forked child gets.
    id: u32,
    /// The files of which somebody's open file is about to be locked.
    pub(crate) inodes: InodeLocks,
    /// Those who make the system calls of whoever waits.
    pub(crate) helpers: WorkerPool,
    pub(crate) watchers: Arc<Watchers>,
    /// What it has lately let go of, in whichever space.
    pub(crate) turns: Turns,
}

impl Process {
    /// The process that runs this.
    pub(crate) fn current() -> io::Result<&'static Self> {
        HERE.get_or_make(|| {
            let watchers = Arc::<Watchers>::default();
            Self {
                id: std::process::id(),
                inodes: InodeLocks::default(),
                helpers: WorkerPool::new(Arc::clone(&watchers)),
                watchers,
                turns: Turns::default(),
            }
        })
    }

    /// `Err` with the creator's pid in a forked child of the process that made this. No system
    /// call.
    pub(crate) fn check(&'static self) -> Result<(), u32> {
        if self.is_here() { Ok(()) } else { Err(self.id) }
    }

    /// Whether the process that runs this is the one that made it. No system call.
    pub(crate) fn is_here(&'static self) -> bool {
        HERE.is_current(self)
    }
}
