//! Whose turn it is among processes: what this process remembers of its own turns.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::table::{Contention, LostRaces, RecentTurns, TurnKey};
use crate::types::FileId;

/// The recent turns and lost races of this process, in all its spaces.
#[derive(Debug, Default)]
pub(crate) struct Fairness {
    turns: Mutex<RecentTurns>,
    /// How many recent turns there are, for a caller that has no time for the mutex and the clock.
    count: AtomicUsize,
    lost_races: Mutex<LostRaces>,
}

impl Fairness {
    /// What this process has had since `began` it has let go of.
    pub(crate) fn end_turn(&self, key: TurnKey, began: Instant) {
        self.with_turns(|turns, now| turns.end(key, began, now));
    }

    /// Until when a lock is to be left to other processes; `None` if this process may have it.
    pub(crate) fn yield_until(&self, key: TurnKey) -> Option<Instant> {
        self.has_turns().then(|| self.with_turns(|turns, now| turns.yield_until(key, now)))?
    }

    /// A wait has got a lock: since when the turn counts.
    pub(crate) fn begin_turn(&self, key: TurnKey, contention: Contention) -> Instant {
        self.with_turns(|turns, now| turns.begin(key, contention, now))
    }

    /// A try has got a lock: since when the turn counts that goes on by it, if one does.
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
