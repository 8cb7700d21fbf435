//! How threads sleep and are woken: a mutex with a condition variable, and the waker of one call.
//!
//! This layer uses `types` and `sys`. It knows no files, no resources and no owners.

mod monitor;
mod waker;

pub(crate) use monitor::Monitor;
pub(crate) use waker::Waker;
