//! The inotify instances of a process. By these, waits sleep until a file that is locked elsewhere
//! is closed, unlinked or renamed.
//!
//! The kernel's own waiting lock call has no deadline, and nothing but a signal ends it. inotify
//! reports a close within a hundred microseconds. It reports nothing if the holder unlocks without
//! closing, if another process shares the holder's descriptor, or if the holder is on another host:
//! so a wait must also try again from time to time.
//!
//! Making an instance is cheap, but closing one takes ten milliseconds, so the pool keeps them.
//! Each watches one file at a time: two watches of one inode in one instance would be the same
//! watch, and removing one would remove both. The pool has at most [`MAX_INSTANCES`], of the 128
//! that a user may have; a wait that gets none only tries again from time to time.
//!
//! Between the holder's close and the waiter's lock there are only two system calls: the return of
//! `poll`, and the lock. Removing the watch there would cost more than the wake-up itself, and some
//! milliseconds later the kernel does more work for it in a thread of its own. So a wait that gets
//! the lock leaves its watch *cached*. The next wait that takes the instance reuses the watch if it
//! is for the same file, and removes it otherwise; after a while an idle worker removes it
//! ([`WatchPool::drop_cached`]). For the same reason a watch is not `IN_ONESHOT`: the kernel would
//! remove it during the holder's close, before the lock is free.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sync::Waker;
use crate::sys::inotify::{Inotify, PollWaker, Polled};

/// How many inotify instances a process keeps at most.
const MAX_INSTANCES: usize = 16;

/// The inotify instances of a process.
#[derive(Debug, Default)]
pub(crate) struct WatchPool {
    instances: Mutex<Instances>,
    /// How many cached watches there are, to be read without the mutex.
    cached: AtomicUsize,
    /// How many waits watch a file.
    watching: AtomicUsize,
}

#[derive(Debug, Default)]
struct Instances {
    idle: Vec<IdleInotify>,
    made: usize,
}

/// An instance that no wait uses.
#[derive(Debug)]
struct IdleInotify {
    inotify: Arc<Inotify>,
    cached: Option<CachedWatch>,
}

/// A watch that a wait has left in place, and when it did.
#[derive(Clone, Copy, Debug)]
struct CachedWatch {
    watch: i32,
    since: Instant,
}

/// An instance that one wait uses. Its drop gives the instance back to the pool.
pub(crate) struct PooledInotify {
    pool: &'static WatchPool,
    inotify: Arc<Inotify>,
    /// The descriptor number of the file to watch.
    number: RawFd,
    /// The watch; `None` until armed, and after a poll waker has removed it.
    watch: Option<i32>,
    /// The cached watch of an earlier wait, for the same file or another one.
    earlier: Option<i32>,
    /// Whether the drop leaves the watch in place for the next wait.
    is_cached: bool,
}

/// Why a sleep has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// There was an event of the file. [Drain](PooledInotify::drain) the events before the next
    /// sleep.
    ByFile,
    /// The waker was used before the sleep began, or the time is over.
    Otherwise,
}

impl WatchPool {
    /// An instance to watch the file that this process has open under this number; `None` if the
    /// pool is exhausted or the kernel refuses one.
    pub(crate) fn take(&'static self, number: RawFd) -> Option<PooledInotify> {
        let IdleInotify { inotify, cached } = self.take_idle()?;
        self.watching.fetch_add(1, Ordering::SeqCst);
        let earlier = cached.map(|cached| cached.watch);
        Some(PooledInotify { pool: self, inotify, number, watch: None, earlier, is_cached: false })
    }

    /// Whether a wait uses an instance now. If none does, [`drop_cached`](Self::drop_cached)
    /// reaches every cached watch.
    pub(super) fn is_watching(&self) -> bool {
        self.watching.load(Ordering::SeqCst) > 0
    }

    pub(super) fn has_cached(&self) -> bool {
        self.cached.load(Ordering::SeqCst) > 0
    }

    /// Removes the watches that have been cached for at least `age`. When this returns, every watch
    /// that was that old at the call is gone.
    pub(super) fn drop_cached(&self, age: Duration) {
        if !self.has_cached() {
            return;
        }
        let mut instances = self.instances.lock();
        for idle in &mut instances.idle {
            if let Some(old) = idle.cached.take_if(|cached| cached.since.elapsed() >= age) {
                idle.inotify.clear(Some(old.watch));
                self.cached.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn take_idle(&self) -> Option<IdleInotify> {
        {
            let mut instances = self.instances.lock();
            if let Some(idle) = instances.idle.pop() {
                if idle.cached.is_some() {
                    self.cached.fetch_sub(1, Ordering::SeqCst);
                }
                return Some(idle);
            }
            if instances.made == MAX_INSTANCES {
                return None;
            }
            instances.made += 1;
        }
        let made = Inotify::new();
        if made.is_err() {
            self.instances.lock().made -= 1;
        }
        made.ok().map(|inotify| IdleInotify { inotify: Arc::new(inotify), cached: None })
    }

    fn give_back(&self, inotify: Arc<Inotify>, cached: Option<i32>) {
        let cached = cached.map(|watch| CachedWatch { watch, since: Instant::now() });
        let mut instances = self.instances.lock();
        if cached.is_some() {
            self.cached.fetch_add(1, Ordering::SeqCst);
        }
        instances.idle.push(IdleInotify { inotify, cached });
    }
}

impl PooledInotify {
    pub(crate) fn is_armed(&self) -> bool {
        self.watch.is_some()
    }

    /// Has the kernel report events of the file from now on. Earlier events are not reported, so
    /// the caller must try the lock after this. Can hang: see [`Inotify::watch`].
    pub(crate) fn arm(&mut self) {
        self.watch = self.inotify.watch(self.number).ok();
        if let Some(earlier) = self.earlier.take() {
            // For the same file, the kernel returns the cached watch again, at a tenth of the cost.
            self.inotify.clear(Some(earlier).filter(|_| self.watch != Some(earlier)));
        }
    }

    /// Discards the pending events.
    pub(crate) fn drain(&mut self) {
        self.inotify.drain();
    }

    /// Sleeps until an event of the file, until the waker is used, or until `until`. Without a
    /// watch, sleeps by the waker alone.
    pub(crate) fn sleep(&mut self, waker: &Waker, until: Instant) -> Woken {
        let Some(watch) = self.watch else {
            waker.sleep(Some(until));
            return Woken::Otherwise;
        };
        if !waker.set_poll_waker(PollWaker::new(&self.inotify, watch)) {
            return Woken::Otherwise;
        }
        let polled = self.inotify.poll(until.saturating_duration_since(Instant::now()));
        if waker.take_poll_waker().is_none() {
            // The poll waker has removed the watch, which raises an event, perhaps just after the
            // time was over.
            self.watch = None;
            return Woken::ByFile;
        }
        match polled {
            Polled::Events => Woken::ByFile,
            Polled::Nothing => Woken::Otherwise,
            Polled::Refused => {
                // `poll` has failed: sleep all the same, so that the wait does not spin.
                waker.sleep(Some(until));
                Woken::Otherwise
            }
        }
    }

    /// Lets the drop leave the watch in place for the next wait. The caller sees to it that a
    /// worker [removes](WatchPool::drop_cached) it later.
    pub(crate) fn cache(&mut self) {
        self.is_cached = self.watch.is_some();
    }
}

impl Drop for PooledInotify {
    fn drop(&mut self) {
        let inotify = Arc::clone(&self.inotify);
        if self.is_cached {
            self.pool.give_back(inotify, self.watch);
        } else {
            inotify.clear(self.watch.or(self.earlier));
            self.pool.give_back(inotify, None);
        }
        self.pool.watching.fetch_sub(1, Ordering::SeqCst);
    }
}
