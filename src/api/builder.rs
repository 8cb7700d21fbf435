//! How a space is to be opened.

use crate::types::{ByteRange, Naming};

/// Says how a space is, before it is opened.
///
/// ```
/// use lockspace::{ByteRange, LockSpace, Naming};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let dir = tempfile::tempdir()?;
/// let lxc = LockSpace::builder(Naming::verbatim(dir.path().join("lxc/lock")))
///     .range(ByteRange::WHOLE_FILE)
///     .open()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `open`"]
pub struct Builder {
    pub(super) naming: Naming,
    pub(super) range: ByteRange,
    pub(super) file_mode: u32,
    pub(super) dir_mode: u32,
}

impl Builder {
    pub(super) fn new(naming: Naming) -> Self {
        Self { naming, range: ByteRange::FIRST, file_mode: 0o600, dir_mode: 0o700 }
    }

    /// The range of requests that name none; [`ByteRange::FIRST`] unless set.
    pub fn range(mut self, range: ByteRange) -> Self {
        self.range = range;
        self
    }

    /// The permissions of lock files that are created, as for `open(2)`, less the umask; 0600
    /// unless set.
    pub fn file_mode(mut self, mode: u32) -> Self {
        self.file_mode = mode;
        self
    }

    /// The permissions of the directory if it is created, as for `mkdir(2)`, less the umask; 0700
    /// unless set. Parents that are missing get the umask's default. Whoever can write there can make every lock worthless.
    pub fn dir_mode(mut self, mode: u32) -> Self {
        self.dir_mode = mode;
        self
    }
}
