//! A value, and the threads that wait for it to change.
//!
//! By the standard library's mutex and condition variable, as these are all in their own memory.
//! parking_lot keeps the sleeping threads of a process in one table, on those threads' stacks. A
//! forked child has a copy of the table but none of the other threads, and gives their stacks to
//! threads of its own: it would trip over a worker or a waiter that slept when it was forked. So
//! every thread that sleeps for longer than a few instructions take sleeps here.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Debug, Default)]
pub(crate) struct Monitor<T> {
    value: Mutex<T>,
    changed: Condvar,
}

impl<T> Monitor<T> {
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        // No code under the mutex panics half done.
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until notified, perhaps for nothing, or until `until`.
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
