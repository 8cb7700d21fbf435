//! Turns: how processes that do not know of each other share one lock.
//!
//! After a release, a waiter of another process needs some microseconds to wake, but a waiter of
//! this process finds the lock free at once, and would always win. So a process may lock a resource
//! repeatedly for [`MAX_TURN`]; then its waits leave the lock alone for [`YIELD_TIME`], long enough
//! for a waiter of another process. After a wait that met contention, the limit is
//! [`MAX_TURN_AMONG_OTHERS`].
//!
//! A turn belongs to the process, with all its spaces. It begins when a wait gets the lock,
//! continues through later waits, handovers and tries of the process, and ends when the process has
//! left the lock alone for [`YIELD_TIME`].

use std::time::{Duration, Instant};

use crate::engine::Name;
use crate::types::FileId;

/// After a turn of this length, waits leave the lock to other processes, and releases hand it over
/// to no waiter of this space. It is long, since mostly no other process wants the lock.
pub(crate) const MAX_TURN: Duration = Duration::from_millis(50);

/// The same after a wait that met contention.
const MAX_TURN_AMONG_OTHERS: Duration = Duration::from_millis(2);

/// How long waits leave the lock to other processes. A waiter of another process wakes in a tenth
/// of this.
pub(crate) const YIELD_TIME: Duration = Duration::from_millis(1);

/// The resource that a turn is about, across the spaces of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TurnKey {
    directory: Option<FileId>,
    /// The hash of the resource's name. Two names with one hash share their turns, and so yield
    /// more often than they must.
    hash: u64,
}

impl TurnKey {
    /// By the directory of the lock file, and the hash of the resource's name.
    pub(crate) fn new(directory: Option<FileId>, hash: u64) -> Self {
        Self { directory, hash }
    }

    /// The key of a resource whose name has this hash.
    pub(crate) fn of(name: &Name, hash: u64) -> Self {
        Self::new(name.directory().map(|directory| directory.id()), hash)
    }
}

/// Whether the kernel has refused the lock to a wait: it was held outside of the space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contention {
    Met,
    NotMet,
}

/// The turns whose lock the process released less than [`YIELD_TIME`] ago: each continues if the
/// process locks again in time. Hardly ever more than a few.
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

    /// The process has released the lock, whose turn began at `began`.
    pub(crate) fn end(&mut self, key: TurnKey, began: Instant, now: Instant) {
        self.forget(now);
        match self.find(key) {
            // Another space of this process has had the same turn.
            Some(turn) => (turn.ended, turn.began) = (now, turn.began.min(began)),
            None => self.0.push(RecentTurn { key, began, ended: now }),
        }
    }

    /// Until when waits must leave the lock to other processes; `None` if they may lock it now.
    pub(crate) fn yield_until(&mut self, key: TurnKey, now: Instant) -> Option<Instant> {
        self.forget(now);
        let turn = self.find(key)?;
        let lasted = now.saturating_duration_since(turn.began);
        (lasted >= MAX_TURN).then(|| turn.ended + YIELD_TIME)
    }

    /// A wait has got the lock: returns when its turn began.
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

    /// A try has got the lock. A try begins no turn, but may continue one: returns when that began.
    pub(crate) fn resume(&mut self, key: TurnKey, now: Instant) -> Option<Instant> {
        self.forget(now);
        self.find(key).map(|turn| turn.began)
    }
}

/// How long a process remembers that it has lost a race for a file.
const RIVALS_REMEMBERED: Duration = Duration::from_millis(200);

/// The files for which a wait of this process has lost a race lately, and when. Hardly ever more
/// than a few.
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

    /// Whether this process has lost a race for the file lately.
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
