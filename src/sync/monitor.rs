//! A mutex with a condition variable: a value, and the threads that wait for it to change.
//!
//! It uses the standard library's mutex and condition variable, since their whole state is in the
//! value itself. parking_lot keeps the sleeping threads of a process in one table, with entries on
//! those threads' stacks. A forked child has a copy of that table but not the other threads, and
//! reuses their stacks for new threads: entries of workers and waiters that slept during the fork
//! would then be garbage. So every thread of this crate that may sleep long sleeps in a `Monitor`;
//! parking_lot's mutexes are held for a few instructions only.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Monitor<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Monitor<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        // A poisoned value is still intact: no code panics in the middle of a change.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until notified or until `until`; may also wake for no reason.
    pub(crate) fn wait<'a>(
        &self,
        guard: MutexGuard<'a, T>,
        until: Option<Instant>,
    ) -> MutexGuard<'a, T> {
        match until {
            None => self.changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                let woken = self.changed.wait_timeout(guard, left);
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    pub(crate) fn notify_one(&self) {
        self.changed.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.changed.notify_all();
    }
}
