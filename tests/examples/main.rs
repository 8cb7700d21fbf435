//! The examples, as a user runs them: real processes, their output and their exit codes.
//!
//! What a process says on its standard output tells when it holds: nothing here sleeps.

mod image_lock;
mod programs;
#[cfg(feature = "snapshot")]
mod reexec;
#[path = "../support/mod.rs"]
mod support;
mod who_holds;
