//! Who holds a resource.

use std::fmt;

/// Who holds a resource: a 64-bit id that the caller chooses, such as a VM's number or the pid
/// of the process that a daemon locks for.
///
/// The lockspace gives an id no meaning: it never asks whether a process of that number lives.
/// libvirt's owners are `pid_t`; a negative one, which would mean "unknown" or "error" there,
/// cannot be written down here:
///
/// ```compile_fail
/// let nobody = lockspace::OwnerId::from(-1);
/// ```
///
/// ```
/// use lockspace::OwnerId;
///
/// assert_eq!(OwnerId::from(4711_u32), OwnerId::new(4711));
/// assert_eq!(OwnerId::new(4711).to_string(), "4711");
/// assert_eq!(OwnerId::this_process().get(), u64::from(std::process::id()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OwnerId(u64);

impl OwnerId {
    /// An owner with this id.
    #[must_use]
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// An owner whose id is the pid of the calling process, for programs that need only one.
    #[must_use]
    pub fn this_process() -> Self {
        Self(std::process::id().into())
    }

    /// The id.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl From<u32> for OwnerId {
    fn from(id: u32) -> Self {
        Self(id.into())
    }
}

impl From<u64> for OwnerId {
    fn from(id: u64) -> Self {
        Self(id)
    }
}

impl fmt::Display for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
