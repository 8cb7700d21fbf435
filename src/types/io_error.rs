//! A system call that failed.

use std::io;
use std::path::PathBuf;

use super::display::AfterCall;

/// A system call that failed, and the file it was about.
#[derive(Debug, thiserror::Error)]
#[error("{call}{}: {source}", AfterCall(.path))]
#[non_exhaustive]
pub struct IoError {
    /// The system call.
    pub call: &'static str,
    /// The file, or the directory.
    pub path: PathBuf,
    /// What the kernel answered.
    pub source: io::Error,
}

impl IoError {
    #[cold]
    pub(crate) fn new(
        call: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self { call, path: path.into(), source: source.into() }
    }
}
