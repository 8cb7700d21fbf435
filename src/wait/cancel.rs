//! Ending waits from another thread.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::sync::Waker;

/// Ends waits from another thread. All clones cancel the same waits.
///
/// It stays cancelled: every later call with it ends at once, even a try, and even if the resource
/// is free.
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
    /// A `Cancel` that is not cancelled yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends every current and later wait that was given this `Cancel`. Does not block, but takes a
    /// mutex, so a signal handler must not call it.
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

    /// Returns a guard that cancels when it is dropped, for example together with a future that
    /// waits.
    pub fn on_drop(self) -> CancelOnDrop {
        CancelOnDrop(self)
    }

    pub(super) fn register(&self, waker: &Arc<Waker>) {
        self.0.waiting.lock().push(Arc::clone(waker));
        // `cancel` may have taken the list just before the push, and then has not seen this waker.
        if self.is_cancelled() {
            waker.cancel();
        }
    }

    pub(super) fn unregister(&self, waker: &Arc<Waker>) {
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
