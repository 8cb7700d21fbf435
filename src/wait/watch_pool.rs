//! The inotify instances of a process, by which waits sleep until a file that is held elsewhere is
//! closed, unlinked or renamed.
//!
//! The kernel's own waiting lock call has no deadline, and nothing but a signal ends it. inotify
//! tells of a close within a hundred microseconds. It tells nothing where a holder unlocks without
//! closing, where another process shares the holder's descriptor, or where the holder is another
//! host: so a wait must also look for itself every now and then.
//!
//! To make an instance is cheap, to close one takes ten milliseconds, so instances are kept. Each
//! watches one file at a time: two watches of one inode in one instance would be one watch, and
//! removing one would silence both. There are few of them ([`MAX_INSTANCES`], of the 128 that a
//! user may have); a wait that gets none looks for itself alone.
//!
//! From the holder's close to the lock there are two system calls: the end of `poll`, and the lock.
//! What else there is to do costs too much there. To remove a watch costs the kernel more than the
//! wake-up does, and some milliseconds later once more, in a thread of its own which wakes a core.
//! So a wait that gets the lock leaves its watch *cached*: the next wait takes it over if it is for
//! the same file, or else removes it, as an idle worker does after a while
//! ([`WatchPool::drop_cached`]). And so a watch is never one that the kernel removes by itself once
//! it has told (`IN_ONESHOT`): the holder would do that, before its lock is gone.

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
    /// How many cached watches there are, for a caller that has no time for the mutex.
    cached: AtomicUsize,
    /// How many waits watch a file.
    watching: AtomicUsize,
}

#[derive(Debug, Default)]
struct Instances {
    idle: Vec<IdleInotify>,
    made: usize,
}

/// An instance by which nobody sleeps.
#[derive(Debug)]
struct IdleInotify {
    inotify: Arc<Inotify>,
    cached: Option<CachedWatch>,
}

/// A watch that its wait has left in place, and when.
#[derive(Clone, Copy, Debug)]
struct CachedWatch {
    watch: i32,
    since: Instant,
}

/// An instance that one wait has. It goes back to the pool when it is dropped.
pub(crate) struct PooledInotify {
    pool: &'static WatchPool,
    inotify: Arc<Inotify>,
    /// The descriptor of the file that is to be watched.
    number: RawFd,
    /// The watch, until a poll waker has ended it.
    watch: Option<i32>,
    /// The watch of an earlier wait, perhaps for the same file.
    earlier: Option<i32>,
    /// The watch stays in place for the next wait.
    is_cached: bool,
}

/// Why a sleep has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Something has happened to the file. The events are to be [drained](PooledInotify::drain)
    /// before the next sleep.
    ByFile,
    /// The waker was used, or the time is over.
    Otherwise,
}

impl WatchPool {
    /// An instance to watch the file that this process has open under this number; `None` if
    /// there is none to be had.
    pub(crate) fn take(&'static self, number: RawFd) -> Option<PooledInotify> {
        let IdleInotify { inotify, cached } = self.take_idle()?;
        self.watching.fetch_add(1, Ordering::SeqCst);
        let earlier = cached.map(|cached| cached.watch);
        Some(PooledInotify { pool: self, inotify, number, watch: None, earlier, is_cached: false })
    }

    /// Whether a wait watches a file now. If none does, [`drop_cached`](Self::drop_cached) finds
    /// every watch that was left until then.
    pub(super) fn is_watching(&self) -> bool {
        self.watching.load(Ordering::SeqCst) > 0
    }

    pub(super) fn has_cached(&self) -> bool {
        self.cached.load(Ordering::SeqCst) > 0
    }

    /// Removes the watches that have been cached for so long. When this returns, all of them are
    /// gone that were so before the call.
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

    /// Has the kernel tell of the file. What has happened to it before is not told, so it must be
    /// looked at after this. Can hang: see [`Inotify::watch`].
    pub(crate) fn arm(&mut self) {
        self.watch = self.inotify.watch(self.number).ok();
        if let Some(earlier) = self.earlier.take() {
            // A wait for the same file has the same watch again, for a tenth of the cost.
            self.inotify.clear(Some(earlier).filter(|_| self.watch != Some(earlier)));
        }
    }

    /// Takes the events that have woken the last sleep.
    pub(crate) fn drain(&mut self) {
        self.inotify.drain();
    }

    /// Sleeps until something happens to the file, the waker is used, or until `until`. Without a
    /// watch it sleeps by the waker alone.
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
            // It has ended the watch, which is an event too, perhaps after the time was over.
            self.watch = None;
            return Woken::ByFile;
        }
        match polled {
            Polled::Events => Woken::ByFile,
            Polled::Nothing => Woken::Otherwise,
            Polled::Refused => {
                // There must be a sleep between two looks.
                waker.sleep(Some(until));
                Woken::Otherwise
            }
        }
    }

    /// Leaves the watch in place for the next wait when this is dropped. Somebody must drop it
    /// [later](WatchPool::drop_cached).
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
