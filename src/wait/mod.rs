//! How a call waits: its deadline and cancel, the inotify watches by which it sleeps while a file
//! is locked elsewhere, and the workers that make system calls which may hang.
//!
//! This layer uses `types`, `sys` and `sync`. It knows no owner and no resource, and decides nothing
//! about who gets a lock.

mod cancel;
mod context;
#[allow(clippy::module_inception, reason = "it is named after the public type")]
mod wait;
mod watch_pool;
mod worker_pool;

pub use cancel::{Cancel, CancelOnDrop};
pub(crate) use context::{Start, WaitContext, WaitEnd};
pub use wait::Wait;
pub(crate) use watch_pool::{PooledInotify, WatchPool, Woken};
pub(crate) use worker_pool::{
    CallOptions, CallQueue, DescriptorPermit, NoWorker, OnTimeout, TimedOut, UNRESPONSIVE_AFTER,
    WorkerPool,
};
