//! The settings with which a space is opened.

use crate::types::{ByteRange, Naming};

/// The settings of a space that is not open yet; see
/// [`LockSpace::builder`](crate::LockSpace::builder).
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

    /// The range of requests that set none; [`ByteRange::FIRST`] unless set.
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
    /// unless set. Missing parent directories are created with the umask's default. A user who can
    /// write to the directory can make every lock worthless.
    pub fn dir_mode(mut self, mode: u32) -> Self {
        self.dir_mode = mode;
        self
    }
}
