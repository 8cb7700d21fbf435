//! Turns: a process that waits for what it has only just let go of must not always be the first.
//!
//! Who waits in another process is told of a release and then needs some microseconds to wake; who
//! waits here finds the lock free at once. So a process may have a resource again and again for a
//! while ([`PASSING`]), and then leaves it alone for as long as others need ([`COURTESY`]).
//!
//! Within the process, queues see to that. This is about resources that nobody queued for.

use std::num::NonZeroU16;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// How long a lock passes on within this process before it is left to other processes.
pub(crate) const PASSING: Duration = Duration::from_millis(10);

/// How long it is left to them. A waiter elsewhere wakes in a tenth of that.
pub(crate) const COURTESY: Duration = Duration::from_millis(1);

/// About when a turn began. Small, as each resource that is held by a wait has one, and so it comes
/// round after a minute: who holds for about that long may be impolite once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began(NonZeroU16);

/// The resources of a space that waits have just let go of. Hardly ever more than a few, as each is
/// soon forgotten.
#[derive(Debug, Default)]
pub(crate) struct Turns(Vec<Ended>);

#[derive(Debug)]
struct Ended {
    /// Of the resource's name. Two of the same hash share their turns, and are polite too often.
    hash: u64,
    at: Instant,
    /// Since when this process has had it again and again.
    since: Instant,
    /// It was asked for again at once.
    again: bool,
}

impl Began {
    pub(crate) fn at(now: Instant) -> Self {
        /// What is counted from.
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        let milliseconds = now.saturating_duration_since(*START).as_millis() as u16;
        // One more or less does not matter.
        Self(NonZeroU16::new(milliseconds).unwrap_or(NonZeroU16::MIN))
    }

    fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.get().wrapping_sub(earlier.0.get()).into())
    }
}

impl Turns {
    /// What a wait had got was let go of, at this time.
    pub(crate) fn end(&mut self, hash: u64, began: Began, now: Instant) {
        self.0.retain(|turn| {
            let lately = now.saturating_duration_since(turn.at) < COURTESY;
            // Who has it for longer than that has had it for long this time, which is told as well.
            lately || turn.again && now < turn.since + 2 * PASSING
        });
        let lasted = Began::at(now).since(began);
        let since = now.checked_sub(lasted.min(PASSING)).unwrap_or(now);
        match self.0.iter_mut().find(|turn| turn.hash == hash) {
            Some(turn) => {
                // Nobody else has had it in between.
                let goes_on = turn.again && turn.at + COURTESY + lasted > now;
                turn.since = if goes_on { turn.since } else { since };
                (turn.at, turn.again) = (now, false);
            }
            None => self.0.push(Ended { hash, at: now, since, again: false }),
        }
    }

    /// It is waited for. Whether it is to be left to others for the length of a courtesy first.
    pub(crate) fn is_for_others(&mut self, hash: u64, now: impl FnOnce() -> Instant) -> bool {
        let Some(turn) = self.0.iter_mut().find(|turn| turn.hash == hash) else { return false };
        let now = now();
        turn.again = now.saturating_duration_since(turn.at) < COURTESY;
        let due = turn.again && now >= turn.since + PASSING;
        // A turn of others, and then a new one.
        turn.again &= !due;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Holds it for so long each time, one after the other; tells when it was polite.
    fn hold_again_and_again(lasting: Duration, times: u32) -> Vec<Instant> {
        let (mut turns, mut pauses) = (Turns::default(), Vec::new());
        let mut now = Instant::now();
        for _ in 0..times {
            if turns.is_for_others(7, || now) {
                pauses.push(now);
                now += COURTESY;
            }
            let began = Began::at(now);
            now += lasting;
            // Other resources come and go meanwhile.
            turns.end(8, began, now - lasting / 2);
            turns.end(7, began, now);
        }
        pauses
    }

    #[test]
    fn who_asks_again_at_once_is_polite_once_in_a_while() {
        let pauses = hold_again_and_again(MILLISECOND / 10, 1000);
        assert!((8..=10).contains(&pauses.len()), "{pauses:?}");
        assert!(pauses.windows(2).all(|pair| pair[1] - pair[0] >= PASSING), "{pauses:?}");
    }

    #[test]
    fn who_holds_it_for_long_is_polite_each_time() {
        assert_eq!(hold_again_and_again(20 * MILLISECOND, 10).len(), 9);
        assert_eq!(hold_again_and_again(Duration::from_secs(5000), 10).len(), 9);
    }

    #[test]
    fn a_first_turn_is_as_long_as_any() {
        // Ten or so, then a pause: not one.
        let pauses = hold_again_and_again(MILLISECOND, 100);
        assert!((8..=10).contains(&pauses.len()), "{pauses:?}");
        assert!(pauses.windows(2).all(|pair| pair[1] - pair[0] >= PASSING), "{pauses:?}");
    }

    #[test]
    fn who_asks_later_need_not_be_polite() {
        let (mut turns, began) = (Turns::default(), Began::at(Instant::now()));
        let now = Instant::now() + 2 * PASSING;
        assert!(!turns.is_for_others(7, || unreachable!("no clock is read for nothing")));
        turns.end(7, began, now);
        assert!(!turns.is_for_others(8, || now));
        assert!(!turns.is_for_others(7, || now + COURTESY));
        assert!(turns.is_for_others(7, || now));
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let (mut turns, mut now) = (Turns::default(), Instant::now());
        for hash in 0..1000 {
            turns.end(hash, Began::at(now), now);
            assert!(!turns.is_for_others(hash, || now));
            now += 2 * MILLISECOND;
            assert!(turns.0.len() <= 11, "{}", turns.0.len());
        }
    }
}
