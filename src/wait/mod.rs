//! How long a caller is willing to wait, and the waker that wakes it.

pub(crate) mod watch;
pub(crate) mod worker_pool;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sync::Waker;

/// How long an acquire may take. It is always written out, so that the line that acquires tells
/// whether it blocks.
///
/// A deadline covers everything: resolving a path, opening, locking. It is never early. A wait
/// makes the system calls that could hang on a helper thread, and that costs some ten microseconds
/// more than a try does. In memory nothing of the kind is needed.
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
    limit: Limit,
    cancel: Option<Cancel>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Limit {
    No,
    Until(Instant),
    Forever,
}

impl Wait {
    /// Not at all: what is held is refused at once.
    ///
    /// A try makes its system calls itself, so it may block as long as the file system does, and
    /// it waits for another thread of this process that is just making them for the same
    /// resource.
    pub const NO: Self = Self { limit: Limit::No, cancel: None };

    /// As long as it takes.
    pub const FOREVER: Self = Self { limit: Limit::Forever, cancel: None };

    /// This long, from now on. A time that no clock reaches is for ever.
    ///
    /// Mirrors the timeout, in whole seconds, of LXC's `lxclock`.
    pub fn within(time: Duration) -> Self {
        let limit = Instant::now().checked_add(time).map_or(Limit::Forever, Limit::Until);
        Self { limit, cancel: None }
    }

    /// Until this moment. One that has passed tries once.
    pub fn until(moment: Instant) -> Self {
        Self { limit: Limit::Until(moment), cancel: None }
    }

    /// Whether it is [`NO`](Self::NO).
    pub(crate) fn is_no(&self) -> bool {
        self.limit == Limit::No && self.cancel.is_none()
    }

    /// The same, unless it is cancelled before.
    pub fn unless(self, cancel: &Cancel) -> Self {
        Self { cancel: Some(cancel.clone()), ..self }
    }
}

/// Ends waits from another thread. Clones are the same.
///
/// It stays cancelled: a wait that begins later ends at once, also one that would only try, and
/// also where the resource is free.
///
/// ```
/// use lockspace::{AcquireError, Cancel, LockSpace, Naming, OwnerId, Request, Wait};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let space = LockSpace::open(Naming::in_memory())?;
/// let _lease = space.acquire(OwnerId::new(1), Request::exclusive("a"), Wait::NO)?;
///
/// let cancel = Cancel::new();
/// std::thread::scope(|scope| {
///     let wait = Wait::FOREVER.unless(&cancel);
///     let space = &space;
///     let waiter =
///         scope.spawn(move || space.acquire(OwnerId::new(2), Request::exclusive("a"), wait));
///     cancel.cancel();
///     let ended = waiter.join().unwrap();
///     assert!(matches!(ended, Err(AcquireError::Cancelled { .. })));
/// });
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Cancel(Arc<Cancelling>);

#[derive(Default)]
struct Cancelling {
    cancelled: AtomicBool,
    waiting: Mutex<Vec<Arc<Waker>>>,
}

impl Cancel {
    /// Nothing is cancelled yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends every wait that was made with this, now and later. Does not block, but takes a mutex:
    /// not for signal handlers.
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::SeqCst);
        for waker in std::mem::take(&mut *self.0.waiting.lock()) {
            waker.cancel();
        }
    }

    /// Whether [`cancel`](Self::cancel) was called.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.cancelled.load(Ordering::SeqCst)
    }

    /// Cancels when what this returns is dropped, such as with the future that waits.
    pub fn on_drop(self) -> CancelOnDrop {
        CancelOnDrop(self)
    }

    fn register(&self, waker: &Arc<Waker>) {
        self.0.waiting.lock().push(Arc::clone(waker));
        // It may have been cancelled just before; then nobody else will ring.
        if self.is_cancelled() {
            waker.cancel();
        }
    }

    fn unregister(&self, waker: &Arc<Waker>) {
        let mut waiting = self.0.waiting.lock();
        if let Some(at) = waiting.iter().position(|other| Arc::ptr_eq(other, waker)) {
            waiting.swap_remove(at);
        }
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancel").field(&self.is_cancelled()).finish()
    }
}

/// Cancels when it is dropped; see [`Cancel::on_drop`].
#[derive(Debug)]
#[must_use = "it cancels when it is dropped, so it must have a name"]
pub struct CancelOnDrop(Cancel);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// One call's wait: since when, until when, and the waker that others ring.
pub(crate) struct WaitContext {
    pub(crate) waker: Arc<Waker>,
    started: Instant,
    limit: Limit,
    cancel: Option<Cancel>,
}

/// How a call begins.
pub(crate) enum Start {
    /// It tries once, and makes its system calls itself.
    Try,
    /// It is over before it has begun.
    Cancelled,
    Wait(WaitContext),
}

/// A wait has ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitEnd {
    TimedOut,
    Cancelled,
}

impl WaitContext {
    /// What there is to do for a caller that wants this.
    pub(crate) fn of(wait: Wait) -> Start {
        if wait.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            return Start::Cancelled;
        }
        // The clock can be a system call, and a try must make none here.
        if wait.limit == Limit::No {
            return Start::Try;
        }
        let started = Instant::now();
        if matches!(wait.limit, Limit::Until(moment) if moment <= started) {
            return Start::Try;
        }
        let waker = Arc::new(Waker::default());
        if let Some(cancel) = &wait.cancel {
            cancel.register(&waker);
        }
        Start::Wait(Self { waker, started, limit: wait.limit, cancel: wait.cancel })
    }

    /// How long it has lasted.
    pub(crate) fn waited(&self) -> Duration {
        self.started.elapsed()
    }

    /// The deadline, if there is one.
    pub(crate) fn until(&self) -> Option<Instant> {
        match self.limit {
            Limit::No => Some(self.started),
            Limit::Until(moment) => Some(moment),
            Limit::Forever => None,
        }
    }

    /// The deadline, or `pause` from now, whichever comes first.
    pub(crate) fn until_or_in(&self, pause: Duration) -> Instant {
        let soon = Instant::now() + pause;
        self.until().map_or(soon, |until| until.min(soon))
    }

    /// Lets others go first until then, but not for more than a quarter of the time that is left.
    pub(crate) fn yield_to_others(&self, until: Instant) {
        let now = Instant::now();
        let left = self.until().map(|end| now + end.saturating_duration_since(now) / 4);
        self.waker.pause(left.map_or(until, |left| left.min(until)));
    }

    /// Whether the wait has to end.
    pub(crate) fn over(&self) -> Option<WaitEnd> {
        if self.waker.is_cancelled() {
            return Some(WaitEnd::Cancelled);
        }
        self.until().is_some_and(|until| Instant::now() >= until).then_some(WaitEnd::TimedOut)
    }
}

impl Drop for WaitContext {
    fn drop(&mut self) {
        if let Some(cancel) = &self.cancel {
            cancel.unregister(&self.waker);
        }
    }
}
