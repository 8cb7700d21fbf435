//! Sleeping until a lock file that somebody else holds is closed, unlinked or renamed.
//!
//! The kernel's own waiting lock call has no deadline, and nothing but a signal ends it. inotify
//! tells of a close within a hundred microseconds. It tells nothing where a holder unlocks
//! without closing, where another process shares the holder's descriptor, or where the holder is
//! another host: so whoever watches must look again every now and then ([`LOOK_AGAIN`]).
//!
//! Making an instance is cheap, but closing one takes ten milliseconds, so instances are kept.
//! Each watches one file at a time: two watches of one inode in one instance would be one watch,
//! and removing one would silence both. There are few of them ([`INSTANCES`], of the 128 that a
//! user may have); who finds none left looks again more slowly, with the same result.

use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;

use crate::wait::{Bell, Patience};

/// How often whoever watches must look for itself.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// After a close, the lock may be free only a moment later: when to look first, and when the
/// doubling of that ends.
const FIRST_LOOK: Duration = Duration::from_micros(50);
const LAST_LOOK: Duration = Duration::from_micros(1600);

/// How many inotify instances a process keeps at most.
const INSTANCES: usize = 16;

/// The instances of a process.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<Pool>);

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Watcher>,
    made: usize,
}

struct Watcher {
    inotify: OwnedFd,
    alarm: Arc<OwnedFd>,
}

/// A file that is being watched.
pub(crate) struct Watch<'a> {
    watchers: &'a Watchers,
    /// `None` where there is no instance to be had.
    watching: Option<(Watcher, i32)>,
    /// Something has happened to the file lately: when to look again.
    soon: Option<Duration>,
}

impl Watchers {
    /// Watches the file that this process has open under this number. By the number, so that it is
    /// that file whatever becomes of its name.
    pub(crate) fn watch(&self, number: RawFd) -> Watch<'_> {
        let watching = self.take().and_then(|watcher| {
            let events = WatchFlags::CLOSE
                | WatchFlags::DELETE_SELF
                | WatchFlags::ATTRIB
                | WatchFlags::MOVE_SELF;
            let path = format!("/proc/self/fd/{number}");
            match inotify::add_watch(&watcher.inotify, path, events) {
                Ok(watch) => Some((watcher, watch)),
                Err(_) => {
                    self.give_back(watcher);
                    None
                }
            }
        });
        Watch { watchers: self, watching, soon: None }
    }

    fn take(&self) -> Option<Watcher> {
        {
            let mut pool = self.0.lock();
            if let Some(watcher) = pool.idle.pop() {
                return Some(watcher);
            }
            if pool.made == INSTANCES {
                return None;
            }
            pool.made += 1;
        }
        let watcher = Watcher::new();
        if watcher.is_err() {
            self.0.lock().made -= 1;
        }
        watcher.ok()
    }

    fn give_back(&self, watcher: Watcher) {
        self.0.lock().idle.push(watcher);
    }
}

impl Watcher {
    fn new() -> Result<Self, Errno> {
        Ok(Self {
            inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            alarm: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
        })
    }

    /// Takes all events; whether one of them is about this watch, or was lost.
    fn drain(&self, watch: Option<i32>) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = Reader::new(&self.inotify, &mut buffer);
        let mut ours = false;
        while let Ok(event) = events.next() {
            ours |= Some(event.wd()) == watch || event.events().contains(ReadFlags::QUEUE_OVERFLOW);
        }
        ours
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher").field(&self.inotify).finish()
    }
}

impl Watch<'_> {
    /// Sleeps until it is worth looking at the file again, the bell rings, or the wait is over.
    pub(crate) fn sleep(&mut self, patience: &Patience) {
        let until = patience.until_or_in(self.soon.unwrap_or(LOOK_AGAIN));
        self.soon = match self.sleep_until(&patience.bell, until) {
            true => Some(FIRST_LOOK),
            false => self.soon.map(|pause| 2 * pause).filter(|pause| *pause <= LAST_LOOK),
        };
    }

    /// `true` if something has happened to the file.
    fn sleep_until(&self, bell: &Bell, until: Instant) -> bool {
        let Some((watcher, watch)) = &self.watching else {
            bell.sleep(Some(until));
            return false;
        };
        if !bell.set_alarm(&watcher.alarm) {
            return false;
        }
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        let mut ready = [
            PollFd::new(&watcher.inotify, PollFlags::IN),
            PollFd::from_borrowed_fd(watcher.alarm.as_fd(), PollFlags::IN),
        ];
        // Interrupted or not: whoever watches looks at everything anyway.
        let _ = poll(&mut ready, timeout.as_ref());
        bell.take_alarm();
        let _ = rustix::io::read(&*watcher.alarm, &mut [0_u8; 8]);
        watcher.drain(Some(*watch))
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some((watcher, watch)) = self.watching.take() {
            // The file may be gone, and the watch with it.
            let _ = inotify::remove_watch(&watcher.inotify, watch);
            watcher.drain(None);
            self.watchers.give_back(watcher);
        }
    }
}
