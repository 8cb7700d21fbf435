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

use crate::directory::FileId;
use crate::wait::{Bell, Patience};

/// How often whoever watches must look for itself.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// After a close, the lock may be free only a moment later: when to look first, and when the
/// doubling of that ends.
const FIRST_LOOK: Duration = Duration::from_micros(50);
const LAST_LOOK: Duration = Duration::from_micros(1600);

/// Of several processes that wait for one file, the kernel tells always the same one first. So who
/// has been too late for it lately leaves it to others for so many turns after its own, by waking
/// that much later. Who was never too late has no rivals, and does not step back.
const STEP_BACK: u32 = 4;
const LATER: Duration = Duration::from_micros(150);

/// For so long a process remembers that it has rivals for a file.
const REMEMBERED: Duration = Duration::from_millis(200);

/// How many inotify instances a process keeps at most.
const INSTANCES: usize = 16;

/// The instances of a process.
#[derive(Debug, Default)]
pub(crate) struct Watchers(Mutex<Pool>);

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Watcher>,
    made: usize,
    /// The files that somebody else was faster to lock, and when; hardly ever more than a few.
    rivals: Vec<(FileId, Instant)>,
}

struct Watcher {
    inotify: OwnedFd,
    alarm: Arc<OwnedFd>,
}

/// A file that somebody wants to be told about.
pub(crate) struct Watch<'a> {
    watchers: &'a Watchers,
    /// The file, as this process has it open.
    file: String,
    /// `None` where there is no instance to be had.
    watcher: Option<Watcher>,
    /// The kernel's number for the watch, until it has told something: it tells once, so that who
    /// gets the lock then has no watch to remove.
    armed: Option<i32>,
    /// Something has happened to the file lately: when to look again.
    soon: Option<Duration>,
    id: FileId,
    /// How often somebody else was faster.
    lost: u32,
    has_rivals: bool,
}

impl Watchers {
    /// Watches the file that this process has open under this number. By the number, so that it is
    /// that file whatever becomes of its name.
    pub(crate) fn watch(&self, number: RawFd, id: FileId) -> Watch<'_> {
        let file = format!("/proc/self/fd/{number}");
        let has_rivals = self.remembers_rivals(id);
        let mut watch = Watch {
            watchers: self,
            file,
            watcher: self.take(),
            armed: None,
            soon: None,
            id,
            lost: 0,
            has_rivals,
        };
        watch.arm();
        watch
    }

    fn remembers_rivals(&self, id: FileId) -> bool {
        let mut pool = self.0.lock();
        pool.rivals.retain(|(_, when)| when.elapsed() < REMEMBERED);
        pool.rivals.iter().any(|(other, _)| *other == id)
    }

    fn remember_rivals(&self, id: FileId) {
        let mut pool = self.0.lock();
        pool.rivals.retain(|(other, when)| *other != id && when.elapsed() < REMEMBERED);
        pool.rivals.push((id, Instant::now()));
    }

    fn take(&self) -> Option<Watcher> {
        {
            let mut pool = self.0.lock();
            if let Some(watcher) = pool.idle.pop() {
                drop(pool);
                // Of whoever had it before.
                watcher.drain(None);
                let _ = rustix::io::read(&*watcher.alarm, &mut [0_u8; 8]);
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

    /// Takes all events that are there; whether one of them is what this watch had to tell.
    fn drain(&self, watch: Option<i32>) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = Reader::new(&self.inotify, &mut buffer);
        let mut told = false;
        // One read takes them all: there are two for each time that a watch was set.
        while let Ok(event) = events.next() {
            // That a watch is gone comes as an event of its own (`IN_IGNORED`). If it is about this
            // one, its predecessor had told something, but was not gone yet when this one began:
            // the kernel took both for one, and it is gone now.
            let ours = Some(event.wd()) == watch;
            told |= ours || event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            if events.is_buffer_empty() {
                break;
            }
        }
        told
    }
}

impl fmt::Debug for Watcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watcher").field(&self.inotify).finish()
    }
}

impl Watch<'_> {
    /// Watches again, if it does not. After this the file must be looked at once more: what has
    /// happened before is not told.
    fn arm(&mut self) {
        let Some(watcher) = &self.watcher else { return };
        if self.armed.is_none() {
            let events = WatchFlags::CLOSE
                | WatchFlags::DELETE_SELF
                | WatchFlags::ATTRIB
                | WatchFlags::MOVE_SELF
                | WatchFlags::ONESHOT;
            self.armed = inotify::add_watch(&watcher.inotify, &*self.file, events).ok();
        }
    }

    /// Sleeps until it is worth looking at the file again, the bell rings, or the wait is over.
    ///
    /// Returns at once where it had stopped to watch: it does again, and the file is to be looked
    /// at first.
    pub(crate) fn sleep(&mut self, patience: &Patience) {
        if self.watcher.is_some() && self.armed.is_none() {
            // It was looked at since, in vain.
            self.lost += 1;
            self.watchers.remember_rivals(self.id);
            self.arm();
            if self.armed.is_some() {
                return;
            }
        }
        let until = patience.until_or_in(self.soon.unwrap_or(LOOK_AGAIN));
        self.soon = match self.sleep_until(&patience.bell, until) {
            true => {
                if self.has_rivals && self.lost < STEP_BACK {
                    patience.bell.sleep(Some(patience.until_or_in(LATER)));
                }
                Some(FIRST_LOOK)
            }
            false => self.soon.map(|pause| 2 * pause).filter(|pause| *pause <= LAST_LOOK),
        };
    }

    /// `true` if something has happened to the file.
    fn sleep_until(&mut self, bell: &Bell, until: Instant) -> bool {
        let (Some(watcher), Some(watch)) = (&self.watcher, self.armed) else {
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
        let [told, rung] = ready.map(|ready| !ready.revents().is_empty());
        bell.take_alarm();
        if rung {
            let _ = rustix::io::read(&*watcher.alarm, &mut [0_u8; 8]);
        }
        let told = told && watcher.drain(Some(watch));
        if told {
            self.armed = None;
        }
        told
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let Some(watcher) = self.watcher.take() else { return };
        if let Some(watch) = self.armed {
            // The file may be gone, and the watch with it.
            let _ = inotify::remove_watch(&watcher.inotify, watch);
        }
        self.watchers.give_back(watcher);
    }
}
