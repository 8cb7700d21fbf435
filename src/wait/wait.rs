//! How long a caller is willing to wait.

use std::time::{Duration, Instant};

use super::Cancel;

/// How long an acquire may take. It has no default, so that each call shows whether it may wait.
///
/// A deadline covers everything: resolving a path, opening, locking. It is never early. A call that
/// was made just before it is given a moment to return, some milliseconds, and more if only a busy
/// machine or a local disk delays it: a file system that answers is not to be called unresponsive. A
/// wait lets a worker thread make the system calls that could hang, which costs some ten microseconds
/// more than a try does. In memory there are none.
///
/// ```
/// use lockspace::{AcquireError, LockSpace, Naming, OwnerId, Request, Wait};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let space = LockSpace::open(Naming::in_memory())?;
/// let _lease = space.acquire(OwnerId::new(1), Request::exclusive("a"), Wait::NO)?;
///
/// let wait = Wait::within(Duration::from_millis(20));
/// let refused = space.acquire(OwnerId::new(2), Request::exclusive("a"), wait);
/// let Err(AcquireError::Busy(busy)) = refused else { panic!("granted twice") };
/// assert!(busy.waited() >= Duration::from_millis(20));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "a `Wait` does nothing until it is given to `LockSpace::acquire`"]
pub struct Wait {
    pub(super) limit: Limit,
    pub(super) cancel: Option<Cancel>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    No,
    Until(Instant),
    Forever,
}

impl Wait {
    /// No wait: a resource that is held is refused at once.
    ///
    /// A try makes its system calls on the calling thread, so it may block as long as the file
    /// system does. It also waits for another thread of the space that is making system calls for
    /// the same resource.
    pub const NO: Self = Self { limit: Limit::No, cancel: None };

    /// As long as it takes.
    pub const FOREVER: Self = Self { limit: Limit::Forever, cancel: None };

    /// Waits this long, counted from now. A time too long for the clock is forever.
    ///
    /// Mirrors the timeout, in whole seconds, of LXC's `lxclock`.
    pub fn within(time: Duration) -> Self {
        let limit = Instant::now().checked_add(time).map_or(Limit::Forever, Limit::Until);
        Self { limit, cancel: None }
    }

    /// Waits until this moment. If it has passed already, the call tries once.
    pub fn until(moment: Instant) -> Self {
        Self { limit: Limit::Until(moment), cancel: None }
    }

    /// Whether this is [`NO`](Self::NO).
    pub(crate) fn is_no(&self) -> bool {
        matches!(self, Self { limit: Limit::No, cancel: None })
    }

    /// Adds a [`Cancel`], which can end the wait earlier.
    pub fn unless(self, cancel: &Cancel) -> Self {
        Self { cancel: Some(cancel.clone()), ..self }
    }
}
