//! Which thread makes a system call: this one, or a worker.
//!
//! A call that may wait must end at its deadline, so a worker makes the system calls that may hang:
//! all that open a file or resolve a path, and those on an open file unless its file system is
//! known to answer from the kernel's memory. Conversions (see `convert`) and the release of a lease
//! are exceptions. A try makes all its system calls itself.

use std::ffi::OsStr;
use std::path::Path;

use super::failure;
use crate::core::Core;
use crate::engine::{LockFile, Name};
use crate::error::AcquireError;
use crate::sys::local_fs;
use crate::types::IoError;
use crate::wait::{
    CallOptions, CallQueue, DescriptorPermit, NoWorker, OnTimeout, TimedOut, WaitContext,
};

/// What an [`IoError`] calls the start of a worker.
const START_WORKER: &str = "start a worker thread";

/// Which thread makes a system call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Thread {
    This,
    /// A worker; and this is what becomes of the call if the wait ends before it has begun.
    Worker(OnTimeout),
}

impl Thread {
    /// The thread for system calls on an open file.
    pub(super) fn for_file(file: &LockFile, on_timeout: OnTimeout) -> Self {
        match file.is_local() {
            true => Self::This,
            false => Self::Worker(on_timeout),
        }
    }

    /// The thread for system calls that open the file of a name. An open can hang even on a local
    /// file system: it waits for a scanner's permission (fanotify), or in a device's driver.
    pub(super) fn to_open(name: &Name, on_timeout: OnTimeout) -> Self {
        match name.leads_nowhere() && !name.is_of_opened() {
            true => Self::This,
            false => Self::Worker(on_timeout),
        }
    }
}

/// Runs `work`, whose result needs no cleanup if the wait ends first: without a `context` on this
/// thread, else on a worker, by way of `queue`. `text` and `path` are for the error.
pub(super) fn call<T: Send + 'static>(
    core: &Core,
    (text, path): (&OsStr, &Path),
    (context, on_timeout): (Option<&WaitContext>, OnTimeout),
    queue: Option<CallQueue>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, AcquireError> {
    let (Some(context), Some(queue)) = (context, queue) else { return Ok(work()) };
    let cannot_hang = || match queue {
        CallQueue::Mount(mount) => local_fs::mount_seems_local(mount),
        _ => local_fs::way_seems_local(path),
    };
    let options = CallOptions { on_timeout, cannot_hang: &cannot_hang };
    match core.process.workers.run(&queue, (context, options), work, drop, || ()) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(TimedOut(end))) => Err(failure::no_answer(end, text, path, context)),
        Err(no_worker) => Err(without_worker(no_worker)),
    }
}

/// The right to make a descriptor for one call of a wait: a call that hangs keeps its own, and those
/// behind it, too.
pub(super) fn permit_descriptor(
    core: &Core,
    (text, path): (&OsStr, &Path),
    context: Option<&WaitContext>,
    queue: &CallQueue,
) -> Result<Option<DescriptorPermit>, AcquireError> {
    let Some(context) = context else { return Ok(None) };
    match core.process.workers.permit_descriptor(queue, context) {
        Ok(permit) => Ok(Some(permit)),
        Err(TimedOut(end)) => Err(failure::no_answer(end, text, path, context)),
    }
}

/// The error of a call for which there is no worker. It is about no file.
pub(super) fn without_worker(NoWorker(source): NoWorker) -> AcquireError {
    AcquireError::Io(IoError::new(START_WORKER, "", source))
}

/// Whether calls on the file of a name seem not to hang. Asks no file system.
pub(super) fn seems_local(name: &Name, queue: &CallQueue) -> bool {
    match (queue, name.directory()) {
        (CallQueue::Mount(mount), _) => local_fs::mount_seems_local(*mount),
        (_, Some(directory)) => directory.is_local() || local_fs::way_seems_local(directory.path()),
        (_, None) => !name.is_path() || local_fs::way_seems_local(Path::new(name.text())),
    }
}
