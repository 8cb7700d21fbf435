//! Turns: a process that waits for what it has only just let go of must not always be the first.
//!
//! Who waits in another process is told of a release and then needs some microseconds to wake; who
//! waits here finds the lock free at once. So a process may have a resource again and again for a
//! while ([`PASSING`]), and then its waits leave it alone for as long as others need ([`COURTESY`]).
//! Where it has met others, the while is short ([`AMONG_RIVALS`]).
//!
//! A turn is the process's: it begins when it gets the lock by a wait, goes on through its queue, its
//! spaces and its tries, and ends when it has left the lock alone for the length of a courtesy, so
//! that anybody could have had it.

use std::num::NonZeroU16;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::engine::Directory;
use crate::types::FileId;

/// How long a turn lasts, at least, before the lock is left to other processes. Rarely, since mostly
/// there is nobody.
const PASSING: Duration = Duration::from_millis(50);

/// The same where others are known to want it.
const AMONG_RIVALS: Duration = Duration::from_millis(2);

/// How long it is left to them. A waiter elsewhere wakes in a tenth of that.
pub(crate) const COURTESY: Duration = Duration::from_millis(1);

/// About when a turn began. Small, as each resource has one, and so it comes round after 16 seconds:
/// who holds for just about that long is taken to have held for a moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began(NonZeroU16);

/// What has its turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TurnKey {
    directory: Option<FileId>,
    /// Two of the same hash share their turns, and are polite too often.
    hash: u64,
}

/// Whether somebody outside of the process held the lock when it was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contention {
    Met,
    NotMet,
}

/// What a process has just let go of.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    lately: Mutex<Lately>,
    /// How much that is, for who has no time to look.
    count: AtomicUsize,
}

/// Hardly ever more than a few, as each is soon forgotten.
#[derive(Debug, Default)]
struct Lately(Vec<Paused>);

/// A turn that has ended, unless it goes on in a moment.
#[derive(Debug)]
struct Paused {
    key: TurnKey,
    at: Instant,
    since: Instant,
}

impl TurnKey {
    /// Of a resource by the directory of its lock file and the hash of its name.
    pub(crate) fn new(directory: Option<&Directory>, hash: u64) -> Self {
        Self { directory: directory.map(Directory::id), hash }
    }
}

impl Began {
    pub(crate) fn now() -> Self {
        Self::at(Instant::now())
    }

    fn at(moment: Instant) -> Self {
        /// What is counted from: long ago, since a turn among rivals counts as begun earlier.
        static START: LazyLock<Instant> = LazyLock::new(|| {
            let now = Instant::now();
            now.checked_sub(PASSING).unwrap_or(now)
        });
        let quarters = moment.saturating_duration_since(*START).as_micros() / 250;
        // One more or less does not matter.
        Self(NonZeroU16::new(quarters as u16).unwrap_or(NonZeroU16::MIN))
    }

    fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(250) * u32::from(self.0.get().wrapping_sub(earlier.0.get()))
    }

    /// Whether the turn has lasted long enough.
    pub(crate) fn is_over(self) -> bool {
        Self::now().since(self) >= PASSING
    }
}

impl Turns {
    /// What was held in a turn that began then has been let go of.
    pub(crate) fn end(&self, key: TurnKey, began: Began) {
        self.look(|lately, now| lately.end(key, began, now));
    }

    /// Until when it is to be left to others.
    pub(crate) fn for_others_until(&self, key: TurnKey) -> Option<Instant> {
        self.are_any().then(|| self.look(|lately, now| lately.for_others_until(key, now)))?
    }

    /// A wait has got it: since when the turn counts.
    pub(crate) fn begin(&self, key: TurnKey, rivals: Contention) -> Began {
        self.look(|lately, now| lately.begin(key, rivals, now))
    }

    /// A try has got it: that is no turn, but one may go on.
    pub(crate) fn go_on(&self, key: impl FnOnce() -> TurnKey) -> Option<Began> {
        self.are_any().then(|| self.look(|lately, _| lately.go_on(key())))?
    }

    fn are_any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    fn look<T>(&self, look: impl FnOnce(&mut Lately, Instant) -> T) -> T {
        let now = Instant::now();
        let mut lately = self.lately.lock();
        lately.forget(now);
        let seen = look(&mut lately, now);
        self.count.store(lately.0.len(), Ordering::Relaxed);
        seen
    }
}

impl Lately {
    /// What is not gone on with for so long has ended.
    fn forget(&mut self, now: Instant) {
        self.0.retain(|turn| now.saturating_duration_since(turn.at) < COURTESY);
    }

    fn find(&mut self, key: TurnKey) -> Option<&mut Paused> {
        self.0.iter_mut().find(|turn| turn.key == key)
    }

    fn end(&mut self, key: TurnKey, began: Began, now: Instant) {
        let lasted = Began::at(now).since(began).min(PASSING);
        let since = now.checked_sub(lasted).unwrap_or(now);
        match self.find(key) {
            // Shared by two spaces.
            Some(turn) => (turn.at, turn.since) = (now, turn.since.min(since)),
            None => self.0.push(Paused { key, at: now, since }),
        }
    }

    fn for_others_until(&mut self, key: TurnKey, now: Instant) -> Option<Instant> {
        let turn = self.find(key)?;
        (now.saturating_duration_since(turn.since) >= PASSING).then(|| turn.at + COURTESY)
    }

    fn begin(&mut self, key: TurnKey, rivals: Contention, now: Instant) -> Began {
        let since = self.find(key).map_or(now, |turn| turn.since);
        Began::at(match rivals {
            Contention::Met => since.min(now.checked_sub(PASSING - AMONG_RIVALS).unwrap_or(now)),
            Contention::NotMet => since,
        })
    }

    fn go_on(&mut self, key: TurnKey) -> Option<Began> {
        self.find(key).map(|turn| Began::at(turn.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    const KEY: TurnKey = TurnKey { directory: None, hash: 7 };

    /// What a process does with a lock, at moments of its own.
    struct Worker {
        lately: Lately,
        now: Instant,
        /// When it was polite.
        pauses: Vec<Instant>,
    }

    impl Worker {
        fn new() -> Self {
            let now = Instant::now() + PASSING;
            Self { lately: Lately::default(), now, pauses: Vec::new() }
        }

        /// Waits for it, and holds it for so long.
        fn hold(&mut self, rivals: Contention, lasting: Duration) {
            self.lately.forget(self.now);
            if let Some(until) = self.lately.for_others_until(KEY, self.now) {
                self.pauses.push(self.now);
                self.now = until;
                self.lately.forget(self.now);
            }
            let began = self.lately.begin(KEY, rivals, self.now);
            self.let_go(began, lasting);
        }

        fn let_go(&mut self, began: Began, lasting: Duration) {
            // Other resources come and go meanwhile.
            let other = TurnKey { hash: 8, ..KEY };
            self.lately.end(other, began, self.now + lasting / 2);
            self.now += lasting;
            self.lately.forget(self.now);
            self.lately.end(KEY, began, self.now);
        }

        fn hold_again_and_again(
            mut self,
            rivals: Contention,
            lasting: Duration,
            times: u32,
        ) -> usize {
            (0..times).for_each(|_| self.hold(rivals, lasting));
            self.pauses.len()
        }
    }

    #[test]
    fn who_asks_again_at_once_is_polite_once_in_a_while() {
        let pauses = Worker::new().hold_again_and_again(Contention::NotMet, MILLISECOND / 10, 5000);
        assert!((9..=10).contains(&pauses), "{pauses}");
        let pauses = Worker::new().hold_again_and_again(Contention::NotMet, MILLISECOND, 500);
        assert!((9..=10).contains(&pauses), "{pauses}");
    }

    #[test]
    fn who_has_met_others_is_polite_sooner() {
        let pauses = Worker::new().hold_again_and_again(Contention::Met, MILLISECOND / 10, 1000);
        assert!((40..=55).contains(&pauses), "{pauses}");
        let pauses = Worker::new().hold_again_and_again(Contention::Met, 3 * MILLISECOND, 100);
        assert_eq!(pauses, 99);
    }

    #[test]
    fn who_holds_it_for_long_is_polite_each_time() {
        for lasting in [2 * PASSING, Duration::from_secs(5000)] {
            assert_eq!(Worker::new().hold_again_and_again(Contention::NotMet, lasting, 10), 9);
        }
    }

    #[test]
    fn who_asks_later_need_not_be_polite() {
        let mut worker = Worker::new();
        for _ in 0..10 {
            worker.hold(Contention::NotMet, 2 * PASSING);
            worker.now += COURTESY;
        }
        assert_eq!(worker.pauses, []);
        worker.hold(Contention::NotMet, 2 * PASSING);
        worker.now += COURTESY / 2;
        worker.hold(Contention::NotMet, MILLISECOND);
        assert_eq!(worker.pauses.len(), 1);
    }

    #[test]
    fn a_try_is_no_turn_but_goes_on_with_one() {
        let mut worker = Worker::new();
        assert!(worker.lately.go_on(KEY).is_none());
        for _ in 0..10 {
            worker.hold(Contention::NotMet, PASSING / 3);
            let began = worker.lately.go_on(KEY).expect("it goes on");
            worker.let_go(began, PASSING / 3);
        }
        assert!((4..=5).contains(&worker.pauses.len()), "{:?}", worker.pauses);
    }

    #[test]
    fn all_who_ask_meanwhile_are_polite_until_then() {
        let mut worker = Worker::new();
        worker.hold(Contention::NotMet, 2 * PASSING);
        let (lately, now) = (&mut worker.lately, worker.now);
        let until = Some(now + COURTESY);
        assert_eq!(lately.for_others_until(KEY, now), until);
        assert_eq!(lately.for_others_until(KEY, now + COURTESY / 2), until);
        assert_eq!(lately.for_others_until(TurnKey { hash: 9, ..KEY }, now), None);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let turns = Turns::default();
        for hash in 0..1000 {
            let key = TurnKey { hash, ..KEY };
            turns.end(key, turns.begin(key, Contention::NotMet));
            assert!(turns.are_any() && turns.go_on(|| key).is_some());
            turns.look(|lately, now| lately.forget(now + COURTESY));
            assert!(!turns.are_any());
            assert!(turns.go_on(|| unreachable!("nothing is looked for")).is_none());
        }
    }
}
