//! Which thread makes a system call: this one, or a worker.
//!
//! A call that may wait must end at its deadline, so a worker makes for it what may hang: everything
//! but calls on files that are known to be answered from the kernel's memory. A try makes all its
//! system calls itself.

use std::ffi::OsStr;
use std::path::Path;

use super::failure;
use crate::core::Core;
use crate::engine::{LockFile, Name};
use crate::error::AcquireError;
use crate::types::IoError;
use crate::wait::{
    CallOptions, CallQueue, NoWorker, OnTimeout, TimedOut, WaitContext, WithoutWorker,
};

/// Which thread makes a system call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Thread {
    This,
    /// A worker; and this is what becomes of the call if the wait ends before it has begun.
    Worker(CallOptions),
}

impl Thread {
    /// For calls on an open file.
    pub(super) fn for_file(file: &LockFile, on_timeout: OnTimeout) -> Self {
        match file.is_local() {
            true => Self::This,
            false => Self::Worker(CallOptions { on_timeout, without: WithoutWorker::Fail }),
        }
    }

    /// For calls that open the file of a name. Also on a local file system an open can hang: behind
    /// a scanner that asks to permit it (fanotify), or in a device's driver.
    pub(super) fn to_open(name: &Name, on_timeout: OnTimeout) -> Self {
        if name.leads_nowhere() && !name.is_of_opened() {
            return Self::This;
        }
        let is_local = name.directory().is_some_and(|directory| directory.is_local());
        let without = if is_local { WithoutWorker::RunHere } else { WithoutWorker::Fail };
        Self::Worker(CallOptions { on_timeout, without })
    }
}

/// Makes a call that leaves nothing to be given back, about a resource and a path: on this thread
/// without a `context`, else on a worker, which takes it from `queue`.
pub(super) fn call<T: Send + 'static>(
    core: &Core,
    (text, path): (&OsStr, &Path),
    (context, on_timeout): (Option<&WaitContext>, OnTimeout),
    queue: Option<CallQueue>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, AcquireError> {
    let (Some(context), Some(queue)) = (context, queue) else { return Ok(work()) };
    let options = CallOptions { on_timeout, without: WithoutWorker::Fail };
    match core.process.workers.run(&queue, (context, options), work, drop, || ()) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(TimedOut(end))) => Err(failure::no_answer(end, text, path, context)),
        Err(NoWorker(source)) => Err(AcquireError::Io(IoError::new("clone", path, source))),
    }
}
