//! How a resource is held.

use std::fmt;

/// How a resource is held.
///
/// ```
/// assert_eq!(lockspace::Mode::Shared.to_string(), "shared");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "F_WRLCK")]
#[doc(alias = "F_RDLCK")]
pub enum Mode {
    /// By one hold only: for a disk that is written.
    Exclusive,
    /// By any number of holds, none of them exclusive: for a base image that is only read.
    #[doc(alias = "VIR_LOCK_SPACE_ACQUIRE_SHARED")]
    Shared,
}

impl Mode {
    /// Whether holds of these two modes may exist side by side.
    pub(crate) fn compatible(self, other: Self) -> bool {
        self == Self::Shared && other == Self::Shared
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Exclusive => "exclusive",
            Self::Shared => "shared",
        })
    }
}
