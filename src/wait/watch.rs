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
//!
//! From the holder's close to the lock there are two system calls: the end of `poll`, and the lock.
//! What else there is to do costs too much there. A read of the events waits until there is a
//! sleep to come. A watch that is removed costs the kernel more than the wake-up does, and some
//! milliseconds later once more, in a thread of its own which wakes a core; so who gets the lock
//! leaves its watch *lingering*. The next wait takes it over if it is for the same file, or else
//! removes it, as an idle helper does after a while ([`Watchers::sweep`]). And so a watch is never
//! one that the kernel removes when it has told (`IN_ONESHOT`): that would be done by the holder,
//! before its lock is gone.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sync::Waker;
use crate::sys::inotify::{Inotify, PollWaker, Polled};
use crate::types::FileId;
use crate::wait::WaitContext;

/// How often whoever watches must look for itself.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// After a close, the lock may be free only a moment later: how often to look at once, when to look
/// after that, and when the doubling of that ends.
const AT_ONCE: u32 = 4;
const FIRST_LOOK: Duration = Duration::from_micros(50);
const LAST_LOOK: Duration = Duration::from_micros(1600);

/// Of several processes that wait for one file, the kernel tells always the same one first. So who
/// has been too late for it lately leaves it to others for so many turns after its own, by waking
/// that much later. Who was never too late has no rivals, and does not step back.
const STEP_BACK: u32 = 4;
const LATER: Duration = Duration::from_micros(150);

/// Others may open and close the file without end, and each time wakes whoever watches. So every so
/// many wake-ups in vain there is a pause. Not after each: who waits among many for a lock that
/// passes on fast must not always be the last to look.
const IN_VAIN: u32 = 8;
const PAUSE: Duration = Duration::from_millis(1);

/// For so long a process remembers that it has rivals for a file.
const REMEMBERED: Duration = Duration::from_millis(200);

/// How many inotify instances a process keeps at most.
const INSTANCES: usize = 16;

/// The instances of a process.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    pool: Mutex<Pool>,
    /// How many watches linger in the pool, for who has no time to look.
    lingering: AtomicUsize,
    /// How many waits watch a file.
    watching: AtomicUsize,
}

#[derive(Debug, Default)]
struct Pool {
    idle: Vec<Idle>,
    made: usize,
    /// The files that somebody else was faster to lock, and when; hardly ever more than a few.
    rivals: Vec<(FileId, Instant)>,
}

/// An instance that a wait has, which goes back to the others when it is dropped.
pub(crate) struct Lent {
    watchers: &'static Watchers,
    watcher: Arc<Inotify>,
    /// The descriptor of the file that is watched.
    number: RawFd,
    /// The kernel's number for the watch, until it was the alarm that has woken. It never comes to
    /// mean another watch.
    armed: Option<i32>,
    /// The watch of the wait before, which may have been for the same file.
    old: Option<i32>,
    /// The watch is left for others to remove.
    lingers: bool,
}

/// An instance that nobody sleeps by.
#[derive(Debug)]
struct Idle {
    watcher: Arc<Inotify>,
    lingering: Option<Lingering>,
}

/// A watch that its wait has left, and when.
#[derive(Clone, Copy, Debug)]
struct Lingering {
    watch: i32,
    since: Instant,
}

/// A file that somebody wants to be told about.
pub(crate) struct Watch {
    watchers: &'static Watchers,
    /// `None` where there is no instance to be had.
    lent: Option<Lent>,
    /// The kernel is to be told of the file before that is looked at.
    to_arm: bool,
    /// There are events that nobody has read.
    unread: bool,
    /// How often to look yet before the next sleep.
    at_once: u32,
    /// Something has happened to the file lately: when to look again.
    soon: Option<Duration>,
    /// How often something has happened since the last pause, and the file could not be locked.
    in_vain: u32,
    id: FileId,
    /// How often somebody else was faster.
    lost: u32,
    has_rivals: bool,
}

impl Watchers {
    /// Watches the file that this process has open under this number, once that is
    /// [armed](Watch::take_unarmed).
    pub(crate) fn watch(&'static self, number: RawFd, id: FileId) -> Watch {
        self.watching.fetch_add(1, Ordering::SeqCst);
        let lent = self.take().map(|Idle { watcher, lingering }| Lent {
            watchers: self,
            watcher,
            number,
            armed: None,
            old: lingering.map(|lingering| lingering.watch),
            lingers: false,
        });
        Watch {
            watchers: self,
            lent,
            to_arm: true,
            unread: false,
            at_once: 0,
            soon: None,
            in_vain: 0,
            id,
            lost: 0,
            has_rivals: self.remembers_rivals(id),
        }
    }

    /// Whether some wait watches a file now. If none does, a sweep finds all that was left until
    /// then.
    pub(crate) fn is_watching(&self) -> bool {
        self.watching.load(Ordering::SeqCst) > 0
    }

    /// Whether there are watches to be swept.
    pub(crate) fn linger(&self) -> bool {
        self.lingering.load(Ordering::SeqCst) > 0
    }

    /// Removes the watches that have lingered for so long. Who returns from this knows that all are
    /// gone that had before.
    pub(crate) fn sweep(&self, age: Duration) {
        if !self.linger() {
            return;
        }
        let mut pool = self.pool.lock();
        for idle in &mut pool.idle {
            if let Some(old) = idle.lingering.take_if(|old| old.since.elapsed() >= age) {
                idle.watcher.clear(Some(old.watch));
                self.lingering.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    fn remembers_rivals(&self, id: FileId) -> bool {
        let mut pool = self.pool.lock();
        pool.rivals.retain(|(_, when)| when.elapsed() < REMEMBERED);
        pool.rivals.iter().any(|(other, _)| *other == id)
    }

    fn remember_rivals(&self, id: FileId) {
        let mut pool = self.pool.lock();
        pool.rivals.retain(|(other, when)| *other != id && when.elapsed() < REMEMBERED);
        pool.rivals.push((id, Instant::now()));
    }

    fn take(&self) -> Option<Idle> {
        {
            let mut pool = self.pool.lock();
            if let Some(idle) = pool.idle.pop() {
                if idle.lingering.is_some() {
                    self.lingering.fetch_sub(1, Ordering::SeqCst);
                }
                return Some(idle);
            }
            if pool.made == INSTANCES {
                return None;
            }
            pool.made += 1;
        }
        let watcher = Inotify::new();
        if watcher.is_err() {
            self.pool.lock().made -= 1;
        }
        watcher.ok().map(|watcher| Idle { watcher: Arc::new(watcher), lingering: None })
    }

    fn give_back(&self, watcher: Arc<Inotify>, lingering: Option<i32>) {
        let lingering = lingering.map(|watch| Lingering { watch, since: Instant::now() });
        let mut pool = self.pool.lock();
        if lingering.is_some() {
            self.lingering.fetch_add(1, Ordering::SeqCst);
        }
        pool.idle.push(Idle { watcher, lingering });
    }
}

impl Lent {
    /// Has the kernel tell of the file. By the number, so that it is that file whatever becomes of
    /// its name. The kernel asks the file system whether this process may read it, so this can hang.
    pub(crate) fn arm(&mut self) {
        self.armed = self.watcher.watch(self.number).ok();
        if let Some(old) = self.old.take() {
            // Who waits again for the same file has the same watch again, for a tenth of the cost.
            self.watcher.clear(Some(old).filter(|_| self.armed != Some(old)));
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let watcher = Arc::clone(&self.watcher);
        if self.lingers {
            self.watchers.give_back(watcher, self.armed);
        } else {
            watcher.clear(self.armed.or(self.old));
            self.watchers.give_back(watcher, None);
        }
    }
}

impl Watch {
    /// What is to be [armed](Lent::arm), and given [back](Self::armed), before the file is looked at
    /// and slept by. After that the file must be looked at once more: what has happened before is not
    /// told. If it does not come back, the wait goes on without.
    pub(crate) fn take_unarmed(&mut self) -> Option<Lent> {
        let unarmed = self.lent.as_ref().is_some_and(|lent| lent.armed.is_none());
        if std::mem::take(&mut self.to_arm) && unarmed { self.lent.take() } else { None }
    }

    pub(crate) fn armed(&mut self, lent: Lent) {
        self.lent = Some(lent);
    }

    /// Sleeps until it is worth looking at the file again, the waker rings, or the wait is over.
    ///
    /// Returns at once where there is something to be done before the next sleep: the file is to be
    /// looked at after that, or what happens meanwhile would be missed.
    pub(crate) fn sleep(&mut self, context: &WaitContext) {
        if let Some(lent) = &self.lent
            && std::mem::take(&mut self.unread)
        {
            lent.watcher.drain();
            self.to_arm = true;
            return;
        }
        if self.at_once > 0 {
            self.at_once -= 1;
            if self.at_once > 0 {
                // Who closes may have been stopped by this very thread's waking.
                thread::yield_now();
                return;
            }
            // Somebody else has it.
            self.lost += 1;
            self.watchers.remember_rivals(self.id);
        }
        if self.in_vain == IN_VAIN {
            self.in_vain = 0;
            context.waker.sleep(Some(context.until_or_in(PAUSE)));
            // It may have been rung.
            return;
        }
        let until = context.until_or_in(self.soon.unwrap_or(LOOK_AGAIN));
        self.soon = match self.sleep_until(&context.waker, until) {
            true => {
                self.in_vain += 1;
                self.at_once = if self.soon.is_none() { AT_ONCE } else { 1 };
                if self.has_rivals && self.lost < STEP_BACK {
                    context.waker.sleep(Some(context.until_or_in(LATER)));
                }
                Some(FIRST_LOOK)
            }
            false if self.soon.is_none() => {
                self.in_vain = 0;
                None
            }
            false => self.soon.map(|pause| 2 * pause).filter(|pause| *pause <= LAST_LOOK),
        };
    }

    /// `true` if something has happened to the file, or the waker has ended the watch.
    fn sleep_until(&mut self, waker: &Waker, until: Instant) -> bool {
        let Some((lent, watch)) = self.lent.as_mut().and_then(|lent| {
            let watch = lent.armed?;
            Some((lent, watch))
        }) else {
            waker.sleep(Some(until));
            return false;
        };
        let watcher = &lent.watcher;
        if !waker.set_poll_waker(PollWaker::new(watcher, watch)) {
            return false;
        }
        let polled = watcher.poll(until.saturating_duration_since(Instant::now()));
        self.unread = polled == Polled::Events;
        if waker.take_poll_waker().is_none() {
            // Perhaps after the time was over.
            self.unread = true;
            lent.armed = None;
        } else if polled == Polled::Refused {
            // A filter of system calls, say. There must be a sleep between two looks.
            waker.sleep(Some(until));
        }
        self.unread
    }

    /// The lock is there. Leaves the watch for others to remove, if somebody `will_sweep` soon.
    pub(crate) fn leave(mut self, will_sweep: bool) {
        if let Some(lent) = &mut self.lent {
            lent.lingers = will_sweep && lent.armed.is_some();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.lent = None;
        self.watchers.watching.fetch_sub(1, Ordering::SeqCst);
    }
}
