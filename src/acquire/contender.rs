//! The one wait of this process that contends with other processes for a file: what it does next.
//!
//! A pure state machine: [`Contender::step`] is told what has happened and when, and says what is
//! to be done. Whoever drives it makes the system calls and sleeps. An upgrade is the same machine:
//! its file is open and locked shared already, so it begins with [`Action::Retry`].
//!
//! | phase | what is being done | what can happen |
//! |---|---|---|
//! | yielding | the lock is left to other processes, or a leased file to the lease's holder | the time is over: opening |
//! | opening | the file is opened and locked | locked; held elsewhere: watching; leased: yielding; the wait is over |
//! | watching | the open file is locked again | locked; still held: sleeping, or again at once; it has lost its name: opening |
//! | sleeping | the thread sleeps until the file is closed or the time is over | watching |
//!
//! What makes it more than a loop: the kernel tells of a close a moment before the lock is free, so
//! a wake-up is followed by several tries; of several processes it always wakes the same one first,
//! so one that was too late before leaves the lock to others for a few rounds; other programs may
//! open and close the file without end, so not every wake-up is believed; and some releases raise no
//! event at all, so it looks for itself ten times a second.

use std::time::{Duration, Instant};

use crate::table::Contention;

/// How often a wait looks for itself.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// After a close the lock may be free only a moment later: how often to try at once, when to try
/// after that, and the pause up to which that doubles.
const IMMEDIATE_TRIES: u32 = 4;
const FIRST_BACKOFF: Duration = Duration::from_micros(50);
const MAX_BACKOFF: Duration = Duration::from_micros(1600);

/// A process that was too late for the file lately wakes so much later, for so many rounds after
/// its own. One that was never too late has no rivals, and does not.
const YIELD_ROUNDS: u32 = 4;
const YIELD_DELAY: Duration = Duration::from_micros(150);

/// How often a file is opened anew that another program has a lease on: no event tells of its end.
const LEASE_INTERVAL: Duration = Duration::from_millis(10);

/// After so many wake-ups for nothing there is a pause. Not after each: a wait among many for a lock
/// that passes on fast must not always be the last to look.
const MAX_SPURIOUS_WAKEUPS: u32 = 8;
const SPURIOUS_PAUSE: Duration = Duration::from_millis(1);

/// What is to be done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Open the file and lock it: [`Event::Locked`], [`Event::Refused`] or [`Event::Leased`].
    Open,
    /// Lock the open file again: [`Event::Locked`], [`Event::Refused`], [`Event::RefusedHere`] or
    /// [`Event::Stale`].
    Retry,
    /// The same, but first take the events that have come, and have the kernel tell of new ones:
    /// what happens from then on ends the next sleep.
    WatchAndRetry,
    Rest(Rest),
    /// It holds the lock.
    Finish,
    /// The wait is over, and somebody else holds the lock.
    GiveUp,
}

/// How the thread rests before the next action. Once it has: [`Event::Rested`], or of a sleep,
/// [`Event::Woken`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Leave the lock to other processes until then.
    Yield(Instant),
    /// Let other threads run.
    YieldThread,
    /// Until then, unless woken by this process.
    Pause(Instant),
    /// Until something happens to the file, or this process wakes the wait, and until then at most.
    Sleep(Instant),
    /// Until this process wakes the wait.
    UntilWoken,
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Locked,
    /// Somebody outside of this space holds the lock.
    Refused,
    /// The file cannot be opened for now, as another program has a lease on it.
    Leased,
    /// Other owners of this space hold it too: of an upgrade.
    RefusedHere,
    /// The open file has lost its name.
    Stale,
    /// The sleep has ended, by an event of the file or otherwise.
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

/// What a wait does where the lock is held elsewhere.
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
    /// Another process was faster to lock this file lately.
    has_rivals: bool,
    /// The watch is not armed, or its events are unread: it would not end a sleep, or end it for
    /// what is known.
    watch_is_used: bool,
    /// Tries yet to be made at once before the next sleep.
    immediate_tries: u32,
    /// Something has happened to the file lately: how long to sleep before the next try.
    backoff: Option<Duration>,
    spurious_wakeups: u32,
    lost_races: u32,
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

    /// Whether somebody outside of the space was met.
    pub(super) fn contention(&self) -> Contention {
        self.contention
    }

    /// How many races this wait has lost for the file that is open now.
    pub(super) fn lost_races(&self) -> u32 {
        self.pacing.lost_races
    }

    /// Another process was faster to lock the file that is open now.
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
        // Not before the first try after a sleep: the less there is between the holder's release
        // and the lock, the better.
        if std::mem::take(&mut pacing.watch_is_used) {
            return Action::WatchAndRetry;
        }
        if pacing.immediate_tries > 0 {
            pacing.immediate_tries -= 1;
            if pacing.immediate_tries > 0 {
                // The holder that closes may have been stopped by the wake-up of this thread.
                return Action::Rest(Rest::YieldThread);
            }
            pacing.lost_races += 1;
        }
        if pacing.spurious_wakeups == MAX_SPURIOUS_WAKEUPS {
            pacing.spurious_wakeups = 0;
            return Action::Rest(Rest::Pause(self.deadline_or(now + SPURIOUS_PAUSE)));
        }
        self.phase = Phase::Sleeping;
        let pause = self.pacing.backoff.unwrap_or(POLL_INTERVAL);
        Action::Rest(Rest::Sleep(self.deadline_or(now + pause)))
    }

    /// The sleep has ended, and nothing has happened to the file.
    fn after_pause(&mut self) -> Action {
        match self.pacing.backoff {
            None => self.pacing.spurious_wakeups = 0,
            Some(backoff) => {
                self.pacing.backoff = Some(2 * backoff).filter(|backoff| *backoff <= MAX_BACKOFF);
            }
        }
        self.retry()
    }

    /// Something has happened to the file.
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
        run.expect(Action::WatchAndRetry).tell(Event::Refused).expect_sleep(POLL_INTERVAL);
    }

    #[test]
    fn an_upgrade_sleeps_by_whoever_is_in_its_way() {
        let mut run = Run::wait(Some(MILLISECOND));
        run.action = run.contender.begin_upgrade();
        run.expect(Action::Retry).tell(Event::RefusedHere);
        run.expect(Action::Rest(Rest::UntilWoken)).tell(Event::Rested);
        run.expect(Action::Retry).tell(Event::Refused);
        run.expect(Action::WatchAndRetry).tell(Event::Refused);
        run.expect_sleep(MILLISECOND).tell(BY_FILE);
        run.expect(Action::Retry).tell(Event::RefusedHere);
        run.pass(MILLISECOND).expect(Action::Rest(Rest::UntilWoken)).tell(Event::Rested);
        run.expect(Action::Retry).tell(Event::RefusedHere).expect(Action::GiveUp);
    }
}
