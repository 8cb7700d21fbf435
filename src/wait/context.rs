//! One call's wait: since when, until when, and what wakes it.

#[cfg(feature = "tracing")]
use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Cancel;
use super::wait::{Limit, Wait};
use crate::sync::Waker;

/// One call's wait: since when, until when, and what wakes it.
pub(crate) struct WaitContext {
    pub(crate) waker: Arc<Waker>,
    started: Instant,
    /// `None`: the wait has no deadline.
    deadline: Option<Instant>,
    cancel: Option<Cancel>,
    /// Whether subscribers of `tracing` know that it waits.
    #[cfg(feature = "tracing")]
    is_known: Cell<bool>,
}

/// How a call begins.
pub(crate) enum Start {
    /// The call tries once, and makes its system calls itself.
    Try,
    /// The call was cancelled before it began.
    Cancelled,
    Wait(WaitContext),
}

/// Why a wait has ended without success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitEnd {
    TimedOut,
    Cancelled,
}

impl WaitContext {
    pub(crate) fn start(wait: Wait) -> Start {
        if wait.cancel.as_ref().is_some_and(Cancel::is_cancelled) {
            return Start::Cancelled;
        }
        let deadline = match wait.limit {
            // Decided before the clock is read: reading it can be a system call, and a try must not
            // make that.
            Limit::No => return Start::Try,
            Limit::Until(moment) => Some(moment),
            Limit::Forever => None,
        };
        let started = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= started) {
            return Start::Try;
        }
        let waker = Arc::<Waker>::default();
        if let Some(cancel) = &wait.cancel {
            cancel.register(&waker);
        }
        Start::Wait(Self {
            waker,
            started,
            deadline,
            cancel: wait.cancel,
            #[cfg(feature = "tracing")]
            is_known: Cell::new(false),
        })
    }

    /// For how long the call has waited.
    pub(crate) fn waited(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The earlier of `moment` and the deadline.
    pub(crate) fn deadline_or(&self, moment: Instant) -> Instant {
        self.deadline.map_or(moment, |deadline| deadline.min(moment))
    }

    /// Sleeps until `until`, to leave a lock to other processes, but for at most a quarter of the
    /// time before the deadline.
    pub(crate) fn yield_to_others(&self, until: Instant) {
        let now = Instant::now();
        let quarter = |end: Instant| now + end.saturating_duration_since(now) / 4;
        self.waker.pause(self.deadline.map_or(until, |end| quarter(end).min(until)));
    }

    /// Whether this is the first time that the call waits for what it asks for now.
    #[cfg(feature = "tracing")]
    pub(crate) fn begins_to_wait(&self) -> bool {
        !self.is_known.replace(true)
    }

    /// The call asks for something else from now on.
    #[cfg(feature = "tracing")]
    pub(crate) fn waits_anew(&self) {
        self.is_known.set(false);
    }

    /// Whether the wait has to end.
    pub(crate) fn end(&self) -> Option<WaitEnd> {
        if self.waker.is_cancelled() {
            return Some(WaitEnd::Cancelled);
        }
        let is_over = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        is_over.then_some(WaitEnd::TimedOut)
    }
}

impl Drop for WaitContext {
    fn drop(&mut self) {
        if let Some(cancel) = &self.cancel {
            cancel.unregister(&self.waker);
        }
    }
}
