//! Whose turn it is among processes, which know nothing of each other.
//!
//! A waiter in another process is told of a release, and then needs some microseconds to wake; a
//! waiter in this process finds the lock free at once. So a process may have a resource again and
//! again for a while ([`MAX_TURN`]), and then its waits leave it alone for as long as others need
//! ([`YIELD_TIME`]). Where it has met others, the while is short ([`MAX_TURN_AMONG_OTHERS`]).
//!
//! A turn is the process's: it begins when a wait gets the lock, goes on through the queue, the
//! spaces and the tries of the process, and ends when the process has left the lock alone for
//! [`YIELD_TIME`], so that anybody could have had it.

use std::time::{Duration, Instant};

use crate::engine::Name;
use crate::types::FileId;

/// How long a turn lasts, at least, before the lock is left to other processes. Rarely, since
/// mostly there is nobody else.
pub(crate) const MAX_TURN: Duration = Duration::from_millis(50);

/// The same where others are known to want the lock.
const MAX_TURN_AMONG_OTHERS: Duration = Duration::from_millis(2);

/// How long the lock is left to other processes. A waiter elsewhere wakes in a tenth of that.
pub(crate) const YIELD_TIME: Duration = Duration::from_millis(1);

/// What has its turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TurnKey {
    directory: Option<FileId>,
    /// Two names of one hash share their turns, and yield more often than they must.
    hash: u64,
}

impl TurnKey {
    /// By the directory of the lock file, and the hash of the resource's name.
    pub(crate) fn new(directory: Option<FileId>, hash: u64) -> Self {
        Self { directory, hash }
    }

    /// Of a resource whose name has this hash.
    pub(crate) fn of(name: &Name, hash: u64) -> Self {
        Self::new(name.directory().map(|directory| directory.id()), hash)
    }
}

/// Whether a wait has found the lock held by somebody outside of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contention {
    Met,
    NotMet,
}

/// The turns that have just ended, unless they go on in a moment. Hardly ever more than a few, as
/// each is soon forgotten.
#[derive(Debug, Default)]
pub(crate) struct RecentTurns(Vec<RecentTurn>);

#[derive(Debug)]
struct RecentTurn {
    key: TurnKey,
    began: Instant,
    ended: Instant,
}

impl RecentTurns {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Forgets the turns that ended [`YIELD_TIME`] ago or earlier.
    fn forget(&mut self, now: Instant) {
        self.0.retain(|turn| now.saturating_duration_since(turn.ended) < YIELD_TIME);
    }

    fn find(&mut self, key: TurnKey) -> Option<&mut RecentTurn> {
        self.0.iter_mut().find(|turn| turn.key == key)
    }

    /// What this process has had since `began` it has let go of.
    pub(crate) fn end(&mut self, key: TurnKey, began: Instant, now: Instant) {
        self.forget(now);
        match self.find(key) {
            // Two spaces of this process share it.
            Some(turn) => (turn.ended, turn.began) = (now, turn.began.min(began)),
            None => self.0.push(RecentTurn { key, began, ended: now }),
        }
    }

    /// Until when the lock is to be left to other processes; `None` if this process may have it.
    pub(crate) fn yield_until(&mut self, key: TurnKey, now: Instant) -> Option<Instant> {
        self.forget(now);
        let turn = self.find(key)?;
        let lasted = now.saturating_duration_since(turn.began);
        (lasted >= MAX_TURN).then(|| turn.ended + YIELD_TIME)
    }

    /// A wait has got the lock: since when the turn counts.
    pub(crate) fn begin(&mut self, key: TurnKey, contention: Contention, now: Instant) -> Instant {
        self.forget(now);
        let began = self.find(key).map_or(now, |turn| turn.began);
        match contention {
            Contention::NotMet => began,
            Contention::Met => {
                let earlier = now.checked_sub(MAX_TURN - MAX_TURN_AMONG_OTHERS);
                began.min(earlier.unwrap_or(now))
            }
        }
    }

    /// A try has got the lock. That begins no turn, but one may go on: since when it counts.
    pub(crate) fn resume(&mut self, key: TurnKey, now: Instant) -> Option<Instant> {
        self.forget(now);
        self.find(key).map(|turn| turn.began)
    }
}

/// For so long a process remembers that it has rivals for a file.
const RIVALS_REMEMBERED: Duration = Duration::from_millis(200);

/// The files that another process was faster to lock, and when. Hardly ever more than a few.
#[derive(Debug, Default)]
pub(crate) struct LostRaces(Vec<(FileId, Instant)>);

impl LostRaces {
    fn forget(&mut self, now: Instant) {
        self.0.retain(|(_, when)| now.saturating_duration_since(*when) < RIVALS_REMEMBERED);
    }

    pub(crate) fn add(&mut self, file: FileId, now: Instant) {
        self.forget(now);
        self.0.retain(|(other, _)| *other != file);
        self.0.push((file, now));
    }

    /// Whether this process has rivals for the file.
    pub(crate) fn has(&mut self, file: FileId, now: Instant) -> bool {
        self.forget(now);
        self.0.iter().any(|(other, _)| *other == file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const KEY: TurnKey = TurnKey { directory: None, hash: 7 };

    /// What a process does with a lock, in virtual time.
    struct Worker {
        turns: RecentTurns,
        now: Instant,
        /// When it yielded.
        yields: Vec<Instant>,
    }

    impl Worker {
        fn new() -> Self {
            let now = Instant::now() + MAX_TURN;
            Self { turns: RecentTurns::default(), now, yields: Vec::new() }
        }

        /// Waits for it, and holds it for so long.
        fn hold(&mut self, contention: Contention, lasting: Duration) {
            if let Some(until) = self.turns.yield_until(KEY, self.now) {
                self.yields.push(self.now);
                self.now = until;
            }
            let began = self.turns.begin(KEY, contention, self.now);
            self.let_go(began, lasting);
        }

        fn let_go(&mut self, began: Instant, lasting: Duration) {
            // Other resources come and go meanwhile.
            let other = TurnKey { hash: 8, ..KEY };
            self.turns.end(other, began, self.now + lasting / 2);
            self.now += lasting;
            self.turns.end(KEY, began, self.now);
        }

        fn hold_repeatedly(mut self, contention: Contention, lasting: Duration, n: u32) -> usize {
            (0..n).for_each(|_| self.hold(contention, lasting));
            self.yields.len()
        }
    }

    #[test]
    fn a_process_that_asks_again_at_once_yields_once_in_a_while() {
        let yields = Worker::new().hold_repeatedly(Contention::NotMet, MILLISECOND / 10, 5000);
        assert!((9..=10).contains(&yields), "{yields}");
        let yields = Worker::new().hold_repeatedly(Contention::NotMet, MILLISECOND, 500);
        assert!((9..=10).contains(&yields), "{yields}");
    }

    #[test]
    fn a_process_that_has_met_others_yields_sooner() {
        let yields = Worker::new().hold_repeatedly(Contention::Met, MILLISECOND / 10, 1000);
        assert!((40..=55).contains(&yields), "{yields}");
        let yields = Worker::new().hold_repeatedly(Contention::Met, 3 * MILLISECOND, 100);
        assert_eq!(yields, 99);
    }

    #[test]
    fn a_process_that_holds_for_long_yields_each_time() {
        for lasting in [2 * MAX_TURN, Duration::from_secs(5000)] {
            assert_eq!(Worker::new().hold_repeatedly(Contention::NotMet, lasting, 10), 9);
        }
    }

    #[test]
    fn a_process_that_asks_later_need_not_yield() {
        let mut worker = Worker::new();
        for _ in 0..10 {
            worker.hold(Contention::NotMet, 2 * MAX_TURN);
            worker.now += YIELD_TIME;
        }
        assert_eq!(worker.yields, []);
        worker.hold(Contention::NotMet, 2 * MAX_TURN);
        worker.now += YIELD_TIME / 2;
        worker.hold(Contention::NotMet, MILLISECOND);
        assert_eq!(worker.yields.len(), 1);
    }

    #[test]
    fn a_try_begins_no_turn_but_goes_on_with_one() {
        let mut worker = Worker::new();
        assert!(worker.turns.resume(KEY, worker.now).is_none());
        for _ in 0..10 {
            worker.hold(Contention::NotMet, MAX_TURN / 3);
            let began = worker.turns.resume(KEY, worker.now).expect("it goes on");
            worker.let_go(began, MAX_TURN / 3);
        }
        assert!((4..=5).contains(&worker.yields.len()), "{:?}", worker.yields);
    }

    #[test]
    fn all_who_ask_meanwhile_yield_until_the_same_moment() {
        let mut worker = Worker::new();
        worker.hold(Contention::NotMet, 2 * MAX_TURN);
        let (turns, now) = (&mut worker.turns, worker.now);
        let until = Some(now + YIELD_TIME);
        assert_eq!(turns.yield_until(KEY, now), until);
        assert_eq!(turns.yield_until(KEY, now + YIELD_TIME / 2), until);
        assert_eq!(turns.yield_until(TurnKey { hash: 9, ..KEY }, now), None);
    }

    #[test]
    fn turns_that_are_over_are_forgotten() {
        let mut turns = RecentTurns::default();
        let mut now = Instant::now();
        for hash in 0..1000 {
            let key = TurnKey { hash, ..KEY };
            let began = turns.begin(key, Contention::NotMet, now);
            turns.end(key, began, now);
            assert!(turns.len() == 1 && turns.resume(key, now).is_some());
            now += YIELD_TIME;
            assert!(turns.resume(key, now).is_none() && turns.len() == 0);
        }
    }

    #[test]
    fn rivals_are_remembered_for_a_while() {
        let [a, b] = [1, 2].map(|ino| FileId { dev: 1, ino });
        let (mut races, start) = (LostRaces::default(), Instant::now());
        races.add(a, start);
        races.add(b, start + RIVALS_REMEMBERED / 2);
        assert!(races.has(a, start + RIVALS_REMEMBERED / 2));
        assert!(!races.has(a, start + RIVALS_REMEMBERED));
        assert!(races.has(b, start + RIVALS_REMEMBERED));
    }
}
