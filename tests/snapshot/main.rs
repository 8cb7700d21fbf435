//! Locks that outlive the program: documents, freezing, exec and restoring.

mod hostile;
mod reexec;
mod snapshot;
#[path = "../support/mod.rs"]
mod support;
