//! The turns and lost races of this process, behind a mutex and with the clock.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::table::{Contention, LostRaces, RecentTurns, TurnKey};
use crate::types::FileId;

/// The recent turns and lost races of this process, in all its spaces.
#[derive(Debug, Default)]
pub(crate) struct Fairness {
    turns: Mutex<RecentTurns>,
    /// How many recent turns there are, so that the common case (none) takes no mutex and reads no
    /// clock.
    count: AtomicUsize,
    lost_races: Mutex<LostRaces>,
}

impl Fairness {
    /// The process has released the lock, whose turn began at `began`.
    pub(crate) fn end_turn(&self, key: TurnKey, began: Instant) {
        self.with_turns(|turns, now| turns.end(key, began, now));
    }

    /// Until when waits must leave a lock to other processes; `None` if they may lock it now.
    pub(crate) fn yield_until(&self, key: TurnKey) -> Option<Instant> {
        self.has_turns().then(|| self.with_turns(|turns, now| turns.yield_until(key, now)))?
    }

    /// A wait has got a lock: returns when its turn began.
    pub(crate) fn begin_turn(&self, key: TurnKey, contention: Contention) -> Instant {
        self.with_turns(|turns, now| turns.begin(key, contention, now))
    }

    /// A try has got a lock: returns when the turn began that the try continues, if there is one.
    #[inline]
    pub(crate) fn resume_turn(&self, key: impl FnOnce() -> TurnKey) -> Option<Instant> {
        self.has_turns().then(|| self.with_turns(|turns, now| turns.resume(key(), now)))?
    }

    /// Another process was faster to lock a file.
    pub(crate) fn lost_race(&self, file: FileId) {
        self.lost_races.lock().add(file, Instant::now());
    }

    /// Whether another process was faster to lock a file lately.
    pub(crate) fn has_rivals(&self, file: FileId) -> bool {
        self.lost_races.lock().has(file, Instant::now())
    }

    fn has_turns(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    fn with_turns<T>(&self, look: impl FnOnce(&mut RecentTurns, Instant) -> T) -> T {
        let now = Instant::now();
        let mut turns = self.turns.lock();
        let seen = look(&mut turns, now);
        self.count.store(turns.len(), Ordering::Relaxed);
        seen
    }
}
