//! Table and model beside each other over random sequences of events.
//!
//! What callers cannot do is left out: a thread has one transition at a time, and it is the only one
//! that ends it; a lease that is being converted, or waits for that, is borrowed meanwhile; and
//! while the space is frozen nobody asks.

mod flaws;
mod ops;

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use crate::table::HoldKind;
use crate::table::tests::driver::Driver;
use crate::table::tests::model::{Grant, Model, Phase};
use crate::table::tests::{Ask, CallId, Carrier, Event, NameId};
use crate::types::Mode;
use ops::{LeaseOp, Op, Patience, Step, ops};

const NAMES: NameId = 2;
const OWNERS: u64 = 4;

fn asks_by_name() -> impl Iterator<Item = Ask> {
    let modes = [Mode::Shared, Mode::Exclusive];
    (1..=OWNERS).flat_map(move |owner| modes.map(|mode| Ask::new(owner, mode)))
}

/// Who does what to the table and the model.
struct Callers {
    table: Driver,
    model: Model,
    leases: Vec<Lease>,
    /// The calls that wait, in order of number: for which resource.
    calls: BTreeMap<CallId, (NameId, Ask)>,
    /// How many calls there were.
    last_call: CallId,
    /// Every event, and when each call came into its queue.
    trace: Vec<(NameId, Event, String)>,
    queued_at: BTreeMap<CallId, usize>,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    name: NameId,
    owner: u64,
    converts: bool,
    waits: Option<CallId>,
}

impl Callers {
    fn new() -> Self {
        Self {
            table: Driver::new(),
            model: Model::default(),
            leases: Vec::new(),
            calls: BTreeMap::new(),
            last_call: 0,
            trace: Vec::new(),
            queued_at: BTreeMap::new(),
        }
    }

    /// Does it, if it can be done now.
    fn run(&mut self, op: Op) -> Result<(), TestCaseError> {
        let Some((name, event)) = self.event_of(op) else { return Ok(()) };
        let outcome = self.happen(name, event)?;
        let first = outcome.split(',').next().unwrap_or_default();
        self.note(name, event, first);
        self.check()
    }

    /// Lets it happen to both, and compares what is seen of them.
    fn happen(&mut self, name: NameId, event: Event) -> Result<String, TestCaseError> {
        let outcome = self.table.apply(name, event);
        let expected = self.model.apply(name, event);
        self.trace.push((name, event, outcome.clone()));
        prop_assert_eq!(&outcome, &expected, "{}", self.history());
        for name in 0..NAMES {
            let (seen, expected) = (self.table.describe(name), self.model.describe(name));
            prop_assert_eq!(seen, expected, "resource {}{}", name, self.history());
        }
        #[cfg(feature = "snapshot")]
        {
            let moving: Vec<_> = self.model.in_transition().collect();
            let right = match self.table.in_transition() {
                Some(name) => moving.contains(&name),
                None => moving.is_empty(),
            };
            prop_assert!(right, "{:?} are in transition{}", moving, self.history());
        }
        for owner in 1..=OWNERS {
            let (seen, expected) = (self.table.waits_of(owner), self.model.waits_of(owner));
            prop_assert_eq!(seen, expected, "waits of {}{}", owner, self.history());
        }
        for (name, ask) in (0..NAMES).flat_map(|name| asks_by_name().map(move |ask| (name, ask))) {
            let seen = self.table.would_wait_for_itself(name, ask);
            let expected = self.model.would_wait_for_itself(name, ask);
            prop_assert_eq!(seen, expected, "{:?} for itself{}", ask, self.history());
        }
        let (seen, expected) = (self.table.files(), self.model.files());
        prop_assert_eq!(seen, expected, "files{}", self.history());
        Ok(outcome)
    }

    fn history(&self) -> String {
        let event = |(name, event, outcome): &_| format!("\n    ({name}, {event:?}): {outcome}");
        let events = self.trace.iter().map(event);
        format!(" after{}", events.collect::<String>())
    }

    fn event_of(&mut self, op: Op) -> Option<(NameId, Event)> {
        match op {
            Op::Ask(..) if self.model.freezes > 0 => None,
            Op::Ask(name, ask, Patience::Try) => Some((name, Event::Try(ask))),
            Op::Ask(name, ask, Patience::Wait) => {
                self.last_call += 1;
                self.calls.insert(self.last_call, (name, ask));
                Some((name, Event::Wait(self.last_call, ask)))
            }
            Op::Thread(pick, step) => self.step_of(pick, step),
            Op::Call(pick) => self.call_event(pick),
            Op::Lease(pick, op) => self.lease_event(pick, op),
            Op::Kept(name, Event::ReleaseNoted) => {
                (!self.model.noted.is_empty()).then_some((name, Event::ReleaseNoted))
            }
            Op::Kept(name, event @ Event::NoteKept(_)) => Some((name, event)),
            Op::Kept(name, event) => {
                self.model.resources.contains_key(&name).then_some((name, event))
            }
            Op::Space(name, event) => match event {
                Event::Freeze if self.model.freezes == 2 => None,
                Event::Thaw if self.model.freezes == 0 => None,
                event => Some((name, event)),
            },
        }
    }

    /// The thread that acquires a resource has not yet seen that it does.
    fn is_granted(&self, name: NameId) -> bool {
        let granted = |id: &CallId| self.model.calls.get(id).and_then(|(_, grant)| *grant);
        let acquires = |id| matches!(granted(id), Some(Grant::Acquire | Grant::TakeOver(_)));
        self.calls.iter().any(|(id, (asked, _))| *asked == name && acquires(id))
    }

    fn step_of(&self, pick: usize, step: Step) -> Option<(NameId, Event)> {
        let moves = |name: &NameId| {
            let resource = self.model.resources.get(name);
            resource.is_some_and(|resource| resource.phase != Phase::Held)
                && !self.is_granted(*name)
        };
        let moving: Vec<_> = (0..NAMES).filter(moves).collect();
        let name = *moving.get(pick % moving.len().max(1))?;
        let resource = &self.model.resources[&name];
        let event = match (resource.phase, step) {
            (Phase::Acquiring, Step::Succeed(carrier, turn)) => {
                let carrier = match resource.mode {
                    _ if resource.in_hand.is_some() => resource.carrier,
                    Mode::Exclusive if carrier == Carrier::ReadOnly => Carrier::Writable,
                    _ if resource.ask.opened().is_some() => match carrier {
                        Carrier::Memory => Carrier::Writable,
                        carrier => carrier,
                    },
                    _ => carrier,
                };
                Event::EndInHold(carrier, turn)
            }
            (Phase::Acquiring, Step::Other(Event::Contend)) if resource.in_hand.is_some() => {
                return None;
            }
            (Phase::Acquiring, Step::Other(Event::GiveFileBack)) if resource.in_hand.is_none() => {
                return None;
            }
            (Phase::Acquiring, Step::Other(event)) => event,
            (Phase::Converting(_), Step::Succeed(..)) => Event::EndConversion { granted: true },
            (Phase::Converting(_), Step::Fail) => Event::EndConversion { granted: false },
            (_, Step::Fail) => Event::EndInNothing,
            (Phase::Contended, Step::Other(Event::Resume)) => Event::Resume,
            _ => return None,
        };
        Some((name, event))
    }

    fn call_event(&self, pick: usize) -> Option<(NameId, Event)> {
        let (id, (name, ask)) = self.calls.iter().nth(pick % self.calls.len().max(1))?;
        let event = match self.model.calls[id].1 {
            Some(_) => Event::TakeGrant(*id),
            None if self.leases.iter().any(|l| l.waits == Some(*id) && l.converts) => return None,
            None if self.is_queued(*name, *id) || self.model.freezes > 0 => Event::Leave(*id),
            None => Event::Wait(*id, *ask),
        };
        Some((*name, event))
    }

    fn is_queued(&self, name: NameId, id: CallId) -> bool {
        let waiters = self.model.resources.get(&name).map(|resource| &resource.waiters);
        waiters.is_some_and(|waiters| waiters.iter().any(|waiter| waiter.call == id))
    }

    fn lease_event(&mut self, pick: usize, op: LeaseOp) -> Option<(NameId, Event)> {
        let at = pick % self.leases.len().max(1);
        let Lease { name, owner, converts, waits } = *self.leases.get(at)?;
        let is_shared = self.model.resources[&name].mode == Mode::Shared;
        let event = match op {
            _ if converts => return None,
            LeaseOp::Convert(to) if waits.is_none() || to == Mode::Exclusive => {
                Event::Convert(owner, to)
            }
            _ if waits.is_some() => return None,
            LeaseOp::Release => Event::Release(owner, HoldKind::Leased),
            LeaseOp::Keep => Event::SetKind(owner, HoldKind::Kept),
            LeaseOp::WaitToUpgrade if is_shared => {
                self.last_call += 1;
                let ask = Ask::new(owner, Mode::Exclusive);
                self.calls.insert(self.last_call, (name, ask));
                Event::WaitToUpgrade(self.last_call, owner)
            }
            _ => return None,
        };
        // The lease that does it is the last one meanwhile.
        let lease = self.leases.remove(at);
        self.leases.push(lease);
        Some((name, event))
    }

    /// What the callers have afterwards.
    fn note(&mut self, name: NameId, event: Event, outcome: &str) {
        let new = |owner| Lease { name, owner, converts: false, waits: None };
        match (event, outcome) {
            (Event::Try(ask), "joins") => self.leases.push(new(ask.owner)),
            (Event::Wait(call, ask), "joins") => {
                self.calls.remove(&call);
                self.leases.push(new(ask.owner));
            }
            (Event::Wait(call, _), "waits") => {
                self.queued_at.insert(call, self.trace.len());
            }
            (Event::Wait(call, _), _) => {
                self.calls.remove(&call);
            }
            (Event::TakeGrant(call), outcome) if outcome != "asks again" => {
                let (_, ask) = self.calls.remove(&call).expect("it waits");
                self.leases.extend((outcome == "joins").then(|| new(ask.owner)));
            }
            (Event::Leave(call), _) => {
                self.calls.remove(&call);
                for lease in self.leases.iter_mut().filter(|lease| lease.waits == Some(call)) {
                    lease.waits = None;
                }
            }
            (Event::EndInHold(..), _) => {
                let owner = self.model.resources[&name].ask.owner;
                self.leases.push(new(owner));
            }
            (Event::Release(_, HoldKind::Leased) | Event::SetKind(_, HoldKind::Kept), outcome) => {
                assert_ne!(outcome, "no such hold", "a lease has one{}", self.history());
                self.leases.pop();
            }
            (Event::SetKind(owner, HoldKind::Leased), "done") => self.leases.push(new(owner)),
            (Event::Convert(..), outcome) => {
                assert_ne!(outcome, "in transition", "{}", self.history());
                self.leases.last_mut().expect("it converts").converts = outcome == "begins";
            }
            (Event::EndConversion { .. }, _) => {
                let mut of_it = self.leases.iter_mut().filter(|lease| lease.name == name);
                of_it.find(|lease| lease.converts).expect("it converts").converts = false;
            }
            (Event::WaitToUpgrade(call, _), "waits") => {
                self.leases.last_mut().expect("it waits").waits = Some(call);
            }
            (Event::WaitToUpgrade(call, _), _) => {
                self.calls.remove(&call);
            }
            _ => {}
        }
    }
}

proptest! {
    #[test]
    fn the_table_does_what_the_model_does(script in vec(ops(), 1..100)) {
        let mut callers = Callers::new();
        for op in script {
            callers.run(op)?;
        }
        callers.finish()?;
    }
}
