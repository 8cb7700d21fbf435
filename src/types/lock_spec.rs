//! What is to be opened and locked, and how.

use super::{ByteRange, Mode};

/// How to open and lock a file: the settings of a request, with the defaults of its space filled
/// in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LockSpec {
    pub(crate) mode: Mode,
    pub(crate) range: ByteRange,
    /// Create the lock file where it is missing.
    pub(crate) create: bool,
    /// The permissions of a file that is created.
    pub(crate) file_mode: u32,
    /// Open for writing although the mode does not need it.
    pub(crate) upgradable: bool,
    pub(crate) hard_links: HardLinks,
}

impl LockSpec {
    /// Whether the file must be open for writing.
    pub(crate) fn needs_writing(&self) -> bool {
        self.mode == Mode::Exclusive || self.upgradable
    }
}

/// Whether a file may have more than one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HardLinks {
    Allowed,
    Refused,
}
