//! The process that a lockspace belongs to.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use crate::sync::Monitor;
use crate::sys::fork::PerProcess;
use crate::table::fairness::Turns;
use crate::types::FileId;
use crate::wait::watch::Watchers;
use crate::wait::worker_pool::WorkerPool;

static HERE: PerProcess<Process> = PerProcess::new();

/// What this crate keeps once for each process. A forked child gets one of its own.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its pid, for the message that a forked child gets.
    id: u32,
    /// The files whose descriptions somebody is about to lock; see [`Process::alone_with`].
    looked_at: Monitor<HashSet<FileId>>,
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
                looked_at: Monitor::default(),
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

    /// Waits until no other thread is between its look at the locks of an open file and its own
    /// lock on it. It is about this one file: no other file's system calls are waited for.
    pub(crate) fn alone_with(&self, id: FileId) -> Alone<'_> {
        let mut looked_at = self.looked_at.lock();
        while !looked_at.insert(id) {
            looked_at = self.looked_at.wait(looked_at, None);
        }
        Alone { process: self, id }
    }
}

/// While it lives, no other thread decides about an open file of the same inode.
pub(crate) struct Alone<'a> {
    process: &'a Process,
    id: FileId,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.process.looked_at.lock().remove(&self.id);
        self.process.looked_at.notify_all();
    }
}
