//! Decides what a wait does next that contends for a file with holders outside of its space. Of
//! each resource of a space, one wait at a time does so; the others are in the queue.
//!
//! A pure state machine: [`Contender::step`] takes an [`Event`] and the time, and returns the next
//! [`Action`]. `contend::drive` makes the system calls and sleeps. A waiting upgrade uses the same
//! machine: its file is open and locked shared already, so it begins with [`Action::Retry`].
//!
//! | phase | what is being done | what can happen |
//! |---|---|---|
//! | yielding | the thread pauses: it leaves the lock to other processes, or a leased file to the lease's holder | the time is over: opening |
//! | opening | the file is opened and locked | locked; held elsewhere: watching; leased: yielding; the wait is over |
//! | watching | the thread tries to lock the open file again | locked; still held: sleeping, or again after a short rest; the file has lost its name: opening; the wait is over |
//! | | its holders are looked for in this process | the owner waits for itself; else sleeping |
//! | sleeping | the thread sleeps until the file is closed or the time is over | watching |
//!
//! Why it is more than a loop:
//!
//! - The kernel reports a close a moment before the lock is free, so a wait tries several times
//!   after a wake-up.
//! - Of several processes, the kernel always wakes the same one first, so a process that has lost a
//!   race tries later for a few rounds.
//! - Other programs may open and close the file without end, so the wait pauses after many wake-ups
//!   in vain.
//! - Some releases raise no event, so the wait tries again ten times a second.

use std::time::{Duration, Instant};

use crate::table::Contention;

/// After how long without an event a wait tries again.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// After a close, the lock may be free only a moment later: how often to try at once, how long to
/// sleep then, and up to which length that sleep doubles.
const IMMEDIATE_TRIES: u32 = 4;
const FIRST_BACKOFF: Duration = Duration::from_micros(50);
const MAX_BACKOFF: Duration = Duration::from_micros(1600);

/// If the process has lost a race for the file lately, a wait tries this much later after each
/// event, until it has itself lost this many races. Other waits try at once.
const YIELD_ROUNDS: u32 = 4;
const YIELD_DELAY: Duration = Duration::from_micros(150);

/// The pause before another try to open a file on which another program has a lease: no event
/// reports the end of a lease.
const LEASE_INTERVAL: Duration = Duration::from_millis(10);

/// After so many wake-ups in vain, a wait pauses. Not after each: where many waits pass a lock on
/// fast, one that pauses always would always be last.
const MAX_SPURIOUS_WAKEUPS: u32 = 8;
const SPURIOUS_PAUSE: Duration = Duration::from_millis(1);

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Open the file and lock it: [`Event::Locked`], [`Event::Refused`] or [`Event::Leased`].
    Open,
    /// Try to lock the open file again: [`Event::Locked`], [`Event::Refused`],
    /// [`Event::RefusedHere`] or [`Event::Stale`].
    Retry,
    /// As `Retry`, but first discard the pending events and arm the watch: an event from then on
    /// ends the next sleep.
    WatchAndRetry,
    /// Find out whether the owner that waits holds the file itself, by another name:
    /// [`Event::Refused`] if not.
    FindOwnHold,
    Rest(Rest),
    /// Done: the wait has the lock.
    Finish,
    /// The wait is over, without the lock.
    GiveUp,
}

/// How the thread rests before the next action. Afterwards: [`Event::Woken`] for a sleep,
/// [`Event::Rested`] for the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Leave the lock to other processes until this moment.
    Yield(Instant),
    /// Let other threads run.
    YieldThread,
    /// Sleep until this moment, or until another thread of this process wakes the wait.
    Pause(Instant),
    /// Sleep until an event of the file, until another thread of this process wakes the wait, or
    /// until this moment.
    Sleep(Instant),
    /// Sleep until another thread of this process wakes the wait, or its deadline.
    UntilWoken,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Locked,
    /// The kernel refuses the lock: it is held outside of this space, or here by another name.
    Refused,
    /// The file cannot be opened now, as another program has a lease on it.
    Leased,
    /// Only for an upgrade: other owners of this space hold the resource too.
    RefusedHere,
    /// The open file has lost its name.
    Stale,
    /// The sleep has ended, by an event of the file or for another reason.
    Woken {
        by_file: bool,
    },
    Rested,
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Contender {
    deadline: Option<Instant>,
    on_contention: OnContention,
    phase: Phase,
    contention: Contention,
    pacing: Pacing,
}

/// What to do when the lock is held outside of this space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnContention {
    Wait,
    GiveUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Yielding,
    Opening,
    Watching,
    Sleeping,
}

/// How often to try, and how long to sleep in between.
#[derive(Debug)]
struct Pacing {
    /// This process has lost a race for this file lately.
    has_rivals: bool,
    /// The watch is not armed, or has pending events that would end the next sleep at once.
    watch_is_used: bool,
    /// Tries yet to be made at once before the next sleep.
    immediate_tries: u32,
    /// How long to sleep before the next try, after a recent event of the file.
    backoff: Option<Duration>,
    spurious_wakeups: u32,
    lost_races: u32,
    /// When a hold of the owner itself was looked for last.
    own_hold_sought: Option<Instant>,
}

impl Pacing {
    fn new() -> Self {
        Self {
            has_rivals: false,
            watch_is_used: true,
            immediate_tries: 0,
            backoff: None,
            spurious_wakeups: 0,
            lost_races: 0,
            own_hold_sought: None,
        }
    }
}

impl Contender {
    pub(super) fn new(deadline: Option<Instant>, on_contention: OnContention) -> Self {
        Self {
            deadline,
            on_contention,
            phase: Phase::Opening,
            contention: Contention::NotMet,
            pacing: Pacing::new(),
        }
    }

    /// The first action of an acquire.
    pub(super) fn begin(&mut self, yield_until: Option<Instant>) -> Action {
        match yield_until {
            Some(until) => {
                self.phase = Phase::Yielding;
                Action::Rest(Rest::Yield(until))
            }
            None => Action::Open,
        }
    }

    /// The first action of an upgrade.
    pub(super) fn begin_upgrade(&mut self) -> Action {
        self.phase = Phase::Watching;
        Action::Retry
    }

    /// Whether the kernel has refused the lock to this wait.
    pub(super) fn contention(&self) -> Contention {
        self.contention
    }

    /// How many races this wait has lost for the file that is open now.
    pub(super) fn lost_races(&self) -> u32 {
        self.pacing.lost_races
    }

    /// Notes that this process has lost a race for the open file lately.
    pub(super) fn has_rivals(&mut self) {
        self.pacing.has_rivals = true;
    }

    pub(super) fn step(&mut self, event: Event, now: Instant) -> Action {
        match (self.phase, event) {
            (_, Event::Locked) => Action::Finish,
            (Phase::Yielding, _) | (_, Event::Stale) => {
                self.phase = Phase::Opening;
                self.pacing = Pacing::new();
                Action::Open
            }
            (Phase::Opening, Event::Leased) => {
                if self.on_contention == OnContention::GiveUp || self.is_over(now) {
                    return Action::GiveUp;
                }
                self.phase = Phase::Yielding;
                Action::Rest(Rest::Pause(self.deadline_or(now + LEASE_INTERVAL)))
            }
            (Phase::Opening, _) => {
                self.contention = Contention::Met;
                match self.on_contention {
                    OnContention::Wait => self.retry(),
                    OnContention::GiveUp => Action::GiveUp,
                }
            }
            (Phase::Watching, Event::Refused) => self.after_refusal(now),
            (Phase::Watching, Event::RefusedHere) => match self.is_over(now) {
                true => Action::GiveUp,
                false => Action::Rest(Rest::UntilWoken),
            },
            (Phase::Sleeping, Event::Woken { by_file: true }) => self.after_event(now),
            (Phase::Sleeping, Event::Woken { by_file: false }) => self.after_pause(),
            (Phase::Watching | Phase::Sleeping, _) => self.retry(),
        }
    }

    fn retry(&mut self) -> Action {
        match std::mem::replace(&mut self.phase, Phase::Watching) {
            Phase::Opening => {
                self.pacing.watch_is_used = false;
                Action::WatchAndRetry
            }
            _ => Action::Retry,
        }
    }

    fn is_over(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    fn deadline_or(&self, moment: Instant) -> Instant {
        self.deadline.map_or(moment, |deadline| deadline.min(moment))
    }

    /// The lock was refused once more.
    fn after_refusal(&mut self, now: Instant) -> Action {
        self.contention = Contention::Met;
        if self.is_over(now) {
            return Action::GiveUp;
        }
        let pacing = &mut self.pacing;
        // Only after the first try that follows a sleep: nothing may delay that try.
        if std::mem::take(&mut pacing.watch_is_used) {
            return Action::WatchAndRetry;
        }
        if pacing.immediate_tries > 0 {
            pacing.immediate_tries -= 1;
            if pacing.immediate_tries > 0 {
                // The wake-up of this thread may have preempted the holder in the middle of its
                // close.
                return Action::Rest(Rest::YieldThread);
            }
            pacing.lost_races += 1;
        }
        if pacing.spurious_wakeups == MAX_SPURIOUS_WAKEUPS {
            pacing.spurious_wakeups = 0;
            return Action::Rest(Rest::Pause(self.deadline_or(now + SPURIOUS_PAUSE)));
        }
        // Also later: another thread may have got a hold for the owner.
        if pacing.own_hold_sought.is_none_or(|sought| now >= sought + POLL_INTERVAL) {
            pacing.own_hold_sought = Some(now);
            return Action::FindOwnHold;
        }
        self.phase = Phase::Sleeping;
        let pause = self.pacing.backoff.unwrap_or(POLL_INTERVAL);
        Action::Rest(Rest::Sleep(self.deadline_or(now + pause)))
    }

    /// The sleep has ended without an event of the file.
    fn after_pause(&mut self) -> Action {
        match self.pacing.backoff {
            None => self.pacing.spurious_wakeups = 0,
            Some(backoff) => {
                self.pacing.backoff = Some(2 * backoff).filter(|backoff| *backoff <= MAX_BACKOFF);
            }
        }
        self.retry()
    }

    /// The sleep has ended by an event of the file.
    fn after_event(&mut self, now: Instant) -> Action {
        let pacing = &mut self.pacing;
        pacing.watch_is_used = true;
        pacing.spurious_wakeups += 1;
        pacing.immediate_tries = if pacing.backoff.is_none() { IMMEDIATE_TRIES } else { 1 };
        pacing.backoff = Some(FIRST_BACKOFF);
        if pacing.has_rivals && pacing.lost_races < YIELD_ROUNDS {
            return Action::Rest(Rest::Pause(self.deadline_or(now + YIELD_DELAY)));
        }
        self.retry()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// A contender in virtual time.
    struct Run {
        contender: Contender,
        now: Instant,
        action: Action,
    }

    impl Run {
        fn wait(within: Option<Duration>) -> Self {
            let now = Instant::now();
            let deadline = within.map(|time| now + time);
            let mut contender = Contender::new(deadline, OnContention::Wait);
            let action = contender.begin(None);
            Self { contender, now, action }
        }

        /// Brought to its first sleep.
        fn asleep(within: Option<Duration>) -> Self {
            let mut run = Self::wait(within);
            run.expect(Action::Open).tell(Event::Refused);
            run.expect(Action::WatchAndRetry).tell(Event::Refused);
            run.expect(Action::FindOwnHold).tell(Event::Refused);
            run
        }

        fn tell(&mut self, event: Event) -> &mut Self {
            self.action = self.contender.step(event, self.now);
            self
        }

        #[track_caller]
        fn expect(&mut self, action: Action) -> &mut Self {
            assert_eq!(self.action, action);
            self
        }

        #[track_caller]
        fn expect_sleep(&mut self, time: Duration) -> &mut Self {
            self.expect(Action::Rest(Rest::Sleep(self.now + time)))
        }

        fn pass(&mut self, time: Duration) -> &mut Self {
            self.now += time;
            self
        }
    }

    const BY_FILE: Event = Event::Woken { by_file: true };
    const BY_TIME: Event = Event::Woken { by_file: false };

    #[test]
    fn a_free_lock_is_taken_at_once() {
        let mut run = Run::wait(None);
        run.expect(Action::Open).tell(Event::Locked).expect(Action::Finish);
        assert_eq!(run.contender.contention(), Contention::NotMet);
    }

    #[test]
    fn a_wait_that_does_not_wait_gives_up_at_the_first_refusal() {
        let mut contender = Contender::new(None, OnContention::GiveUp);
        assert_eq!(contender.begin(None), Action::Open);
        assert_eq!(contender.step(Event::Refused, Instant::now()), Action::GiveUp);
    }

    #[test]
    fn a_leased_file_is_opened_again_and_again_until_the_deadline() {
        let mut run = Run::wait(Some(LEASE_INTERVAL * 5 / 2));
        for pause in [LEASE_INTERVAL, LEASE_INTERVAL, LEASE_INTERVAL / 2] {
            run.expect(Action::Open).tell(Event::Leased);
            run.expect(Action::Rest(Rest::Pause(run.now + pause))).pass(pause).tell(Event::Rested);
        }
        run.expect(Action::Open).tell(Event::Leased).expect(Action::GiveUp);

        let mut contender = Contender::new(None, OnContention::GiveUp);
        assert_eq!(contender.begin(None), Action::Open);
        assert_eq!(contender.step(Event::Leased, Instant::now()), Action::GiveUp);
    }

    #[test]
    fn a_turn_that_is_over_is_yielded_before_anything_is_opened() {
        let mut contender = Contender::new(None, OnContention::Wait);
        let until = Instant::now() + MILLISECOND;
        assert_eq!(contender.begin(Some(until)), Action::Rest(Rest::Yield(until)));
        assert_eq!(contender.step(Event::Rested, until), Action::Open);
    }

    #[test]
    fn without_events_it_looks_for_itself_until_its_deadline() {
        let mut run = Run::asleep(Some(POLL_INTERVAL * 5 / 2));
        assert_eq!(run.contender.contention(), Contention::Met);
        for _ in 0..2 {
            run.expect_sleep(POLL_INTERVAL).pass(POLL_INTERVAL).tell(BY_TIME);
            run.expect(Action::Retry).tell(Event::Refused);
            run.expect(Action::FindOwnHold).tell(Event::Refused);
        }
        run.expect_sleep(POLL_INTERVAL / 2).pass(POLL_INTERVAL / 2).tell(BY_TIME);
        // Once more at the deadline: the lock may have become free meanwhile.
        run.expect(Action::Retry).tell(Event::Refused).expect(Action::GiveUp);
    }

    #[test]
    fn after_an_event_it_tries_at_once_and_then_ever_later() {
        let mut run = Run::asleep(None);
        run.tell(BY_FILE).expect(Action::Retry).tell(Event::Refused);
        run.expect(Action::WatchAndRetry).tell(Event::Refused);
        for _ in 1..IMMEDIATE_TRIES {
            run.expect(Action::Rest(Rest::YieldThread)).tell(Event::Rested);
            run.expect(Action::Retry).tell(Event::Refused);
        }
        assert_eq!(run.contender.lost_races(), 1);
        for doubled in 0..6 {
            run.expect_sleep(FIRST_BACKOFF * (1 << doubled)).tell(BY_TIME);
            run.expect(Action::Retry).tell(Event::Refused);
        }
        run.expect_sleep(POLL_INTERVAL);
    }

    /// Not each time: to look in all spaces costs more than to try.
    #[test]
    fn an_own_hold_is_sought_before_the_first_sleep_and_now_and_then() {
        let mut run = Run::wait(None);
        let (start, mut sought) = (run.now, Vec::new());
        run.expect(Action::Open).tell(Event::Refused);
        for _ in 0..10_000 {
            match run.action {
                Action::FindOwnHold => sought.push(run.now - start),
                Action::Rest(_) => assert!(!sought.is_empty()),
                _ => {}
            }
            match run.action {
                Action::Rest(Rest::Sleep(_)) => run.pass(MILLISECOND).tell(BY_FILE),
                Action::Rest(_) => run.tell(Event::Rested),
                _ => run.tell(Event::Refused),
            };
        }
        assert!(sought.len() > 3 && sought.windows(2).all(|two| two[1] - two[0] == POLL_INTERVAL));
    }

    #[test]
    fn a_process_with_rivals_wakes_later_for_some_rounds() {
        let mut run = Run::asleep(None);
        run.contender.has_rivals();
        let mut delays = 0;
        for _ in 0..20 {
            run.tell(BY_FILE);
            if run.action == Action::Rest(Rest::Pause(run.now + YIELD_DELAY)) {
                delays += 1;
                run.tell(Event::Rested);
            }
            while !matches!(run.action, Action::Rest(Rest::Sleep(_))) {
                let event = match run.action {
                    Action::Retry | Action::WatchAndRetry => Event::Refused,
                    _ => Event::Rested,
                };
                run.tell(event);
            }
        }
        assert_eq!(delays, YIELD_ROUNDS);
    }

    #[test]
    fn a_storm_of_events_is_not_always_believed() {
        let mut run = Run::asleep(None);
        let (mut pauses, mut tries) = (0, 0);
        for _ in 0..1000 {
            let event = match run.action {
                Action::Rest(Rest::Sleep(_)) => BY_FILE,
                Action::Rest(Rest::Pause(_)) => {
                    pauses += 1;
                    Event::Rested
                }
                Action::Rest(Rest::YieldThread) => Event::Rested,
                _ => {
                    tries += 1;
                    Event::Refused
                }
            };
            run.tell(event);
        }
        assert!(pauses * 4 * MAX_SPURIOUS_WAKEUPS > tries, "{pauses} pauses, {tries} tries");
    }

    #[test]
    fn a_file_that_has_lost_its_name_is_opened_anew() {
        let mut run = Run::asleep(None);
        run.tell(BY_FILE).tell(Event::Stale).expect(Action::Open).tell(Event::Refused);
        run.expect(Action::WatchAndRetry).tell(Event::Refused);
        run.expect(Action::FindOwnHold).tell(Event::Refused).expect_sleep(POLL_INTERVAL);
    }

    #[test]
    fn an_upgrade_sleeps_by_whoever_is_in_its_way() {
        let mut run = Run::wait(Some(MILLISECOND));
        run.action = run.contender.begin_upgrade();
        run.expect(Action::Retry).tell(Event::RefusedHere);
        run.expect(Action::Rest(Rest::UntilWoken)).tell(Event::Rested);
        run.expect(Action::Retry).tell(Event::Refused);
        run.expect(Action::WatchAndRetry).tell(Event::Refused);
        run.expect(Action::FindOwnHold).tell(Event::Refused);
        run.expect_sleep(MILLISECOND).tell(BY_FILE);
        run.expect(Action::Retry).tell(Event::RefusedHere);
        run.pass(MILLISECOND).expect(Action::Rest(Rest::UntilWoken)).tell(Event::Rested);
        run.expect(Action::Retry).tell(Event::RefusedHere).expect(Action::GiveUp);
    }
}
