//! Wakes the thread of one waiting call, on a condition variable or in `poll`.

use std::time::Instant;

use super::Monitor;
use crate::sys::inotify::PollWaker;

/// Wakes the thread of one waiting call.
#[derive(Debug, Default)]
pub(crate) struct Waker {
    state: Monitor<WakeState>,
}

#[derive(Debug, Default)]
struct WakeState {
    /// The thread was woken, and has not slept since.
    woken: bool,
    /// The wait was cancelled. This is never reset.
    cancelled: bool,
    /// What wakes the thread while it sleeps in `poll`.
    poll_waker: Option<PollWaker>,
}

impl Waker {
    /// Wakes the thread, so that it looks again at what it waits for. If it does not sleep now, its
    /// next sleep ends at once.
    pub(crate) fn wake(&self) {
        self.change(|state| state.woken = true);
    }

    /// Cancels the wait, and wakes the thread.
    pub(crate) fn cancel(&self) {
        self.change(|state| state.cancelled = true);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.state.lock().cancelled
    }

    /// Sleeps until woken or cancelled, or until `until`.
    pub(crate) fn sleep(&self, until: Option<Instant>) {
        let mut state = self.state.lock();
        while !state.woken && !state.cancelled && until.is_none_or(|until| Instant::now() < until) {
            state = self.state.wait(state, until);
        }
        state.woken = false;
    }

    /// Sleeps until `until` or until cancelled. Ignores wakes: a worker stores its answer before it
    /// wakes this thread, so such a wake can come late.
    pub(crate) fn pause(&self, until: Instant) {
        let mut state = self.state.lock();
        while !state.cancelled && Instant::now() < until {
            state = self.state.wait(state, Some(until));
        }
    }

    /// The thread is about to sleep in `poll`: the next wake or cancel uses `poll_waker`. `false`
    /// if the thread was woken or cancelled already, and must not sleep.
    pub(crate) fn set_poll_waker(&self, poll_waker: PollWaker) -> bool {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.woken) || state.cancelled {
            return false;
        }
        state.poll_waker = Some(poll_waker);
        true
    }

    /// The thread has left `poll`. `None` if the poll waker was used.
    pub(crate) fn take_poll_waker(&self) -> Option<PollWaker> {
        let mut state = self.state.lock();
        state.woken = false;
        state.poll_waker.take()
    }

    fn change(&self, change: impl FnOnce(&mut WakeState)) {
        let mut state = self.state.lock();
        change(&mut state);
        match state.poll_waker.take() {
            // Under the mutex: when the thread finds its poll waker used, the watch must be removed
            // already.
            Some(poll_waker) => poll_waker.wake(),
            None => {
                // The thread that is woken needs this mutex, so it is unlocked before the
                // notification.
                drop(state);
                self.state.notify_one();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_pause_is_ended_by_a_cancel_only() {
        let waker = Waker::default();
        waker.wake();
        let until = Instant::now() + Duration::from_millis(5);
        waker.pause(until);
        assert!(Instant::now() >= until, "by a wake");
        waker.cancel();
        let until = Instant::now() + Duration::from_secs(60);
        waker.pause(until);
        assert!(Instant::now() < until, "not by a cancel");
    }
}
