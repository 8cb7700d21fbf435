//! Locks that outlive the program: documents, freezing, exec and restoring.

mod carried;
mod documents;
mod failed_exec;
mod frozen;
mod generations;
mod hostile;
mod old_documents;
mod reexec;
mod released;
mod restored;
#[path = "../support/mod.rs"]
mod support;
mod taking;
mod thaw;
