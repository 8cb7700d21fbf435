//! How long a caller is willing to wait.

/// How long an acquire may take. It is always written out, so that the line that acquires tells
/// whether it blocks.
#[derive(Clone, Copy, Debug)]
#[must_use = "a `Wait` does nothing until it is given to `LockSpace::acquire`"]
pub struct Wait(());

impl Wait {
    /// Not at all: what is held is refused at once.
    ///
    /// A try makes its system calls itself, so it may block as long as the file system does, and
    /// it waits for another thread of this process that is just making them for the same
    /// resource.
    pub const NO: Self = Self(());
}
