//! Every state, and every event that can happen in it: what comes out, and which state follows.
//!
//! A row names events, and then `outcome => state`, in the words of the [tests](super); the state is
//! the same where none is named. Owners 1 and 2 hold, 2 and 3 wait, and those who ask are 1, and 4,
//! who has nothing. What callers cannot do is left out by [`can_happen`], and nothing else.

mod acquiring;
mod frozen;
mod held;

use crate::table::HoldKind::{Kept, Leased};
use crate::table::tests::Event::{self, *};
use crate::table::tests::driver::Driver;
use crate::table::tests::model::Model;
use crate::table::tests::{Ask, Carrier, Turn};
use crate::types::Mode::{Exclusive, Shared};

const fn try_s(owner: u64) -> Event {
    Try(Ask::new(owner, Shared))
}

const fn try_x(owner: u64) -> Event {
    Try(Ask::new(owner, Exclusive))
}

const fn wait_s(owner: u64) -> Event {
    Wait(owner, Ask::new(owner, Shared))
}

const fn wait_x(owner: u64) -> Event {
    Wait(owner, Ask::new(owner, Exclusive))
}

const END_IN_HOLD: Event = EndInHold(Carrier::Writable, Turn::DoesNotCount);
const END_READ_ONLY: Event = EndInHold(Carrier::ReadOnly, Turn::DoesNotCount);
const END_IN_MEMORY: Event = EndInHold(Carrier::Memory, Turn::DoesNotCount);
const GRANTED: Event = EndConversion { granted: true };
const REFUSED: Event = EndConversion { granted: false };

/// A second wait of the owner that has got the resource.
const OWN_WAIT: Event = Wait(8, Ask::new(1, Shared));

/// What names a kept hold that is not there.
const NOT_KEPT: &[Event] = &[Release(1, Kept), Release(4, Kept), SetKind(1, Leased)];

/// All that can happen to one resource.
const EVENTS: &[Event] = &[
    try_s(1),
    try_s(4),
    try_x(1),
    try_x(4),
    wait_s(1),
    wait_s(4),
    wait_x(1),
    wait_x(4),
    Leave(9),
    Leave(2),
    Contend,
    Resume,
    Unresponsive,
    END_IN_HOLD,
    EndInNothing,
    Change,
    Release(1, Leased),
    Release(2, Leased),
    Release(1, Kept),
    Release(4, Kept),
    ReleaseNoted,
    SetKind(1, Kept),
    SetKind(1, Leased),
    Convert(1, Exclusive),
    Convert(1, Shared),
    GRANTED,
    REFUSED,
    WaitToUpgrade(9, 1),
    WaitToUpgrade(7, 2),
    Freeze,
    Thaw,
];

/// Who has a transition ends it, and nobody else. Who has a lease has a hold; a lease that is being
/// converted, or waits for that, is borrowed. What is released by name need not be there. While the
/// space is frozen nobody asks: the calls wait outside of the table.
fn can_happen(state: &str, event: Event) -> bool {
    let is = |states: &[&str]| states.iter().any(|word| state.starts_with(word));
    let is_frozen = state.ends_with(", frozen");
    let (holds, waiters) = state.split_once(" <-").unwrap_or((state, ""));
    let upgrades = waiters.contains('!');
    let has_lease =
        |owner: &str| is(&["held"]) && holds.split([' ', ',']).any(|word| word == owner);
    match event {
        Try(_) | Wait(..) => !is_frozen,
        Leave(9) => upgrades,
        Leave(call) => waiters.contains(&format!("{call}")),
        Contend | Unresponsive | EndInHold(..) => is(&["acquiring"]),
        Resume => is(&["acquiring", "contended"]),
        EndInNothing => is(&["acquiring", "unresponsive", "contended", "changing"]),
        EndConversion { .. } => is(&["converting"]),
        Release(2, Leased) => has_lease("2"),
        Release(_, Leased) | SetKind(_, Kept) | Convert(_, Shared) => has_lease("1") && !upgrades,
        WaitToUpgrade(_, 2) => has_lease("2"),
        WaitToUpgrade(..) => {
            has_lease("1") && !upgrades && is(&["held S"]) && !state.contains("read-only")
        }
        Convert(_, Exclusive) => has_lease("1"),
        Release(_, Kept) | SetKind(_, Leased) => !is(&["absent"]),
        ReleaseNoted => holds.contains("1k"),
        Thaw => is_frozen,
        Freeze => cfg!(feature = "snapshot"),
        Change => true,
        TakeGrant(_) | GiveFileBack | NoteKept(_) | Pass(_) => false,
    }
}

#[derive(Clone, Copy)]
struct State {
    name: &'static str,
    /// What leads to it.
    script: &'static [Event],
    rows: &'static [(&'static [Event], &'static str)],
}

/// A resource of that state, in the table and in the model.
struct Both(Driver, Model);

impl Both {
    fn after(script: &[Event]) -> Self {
        let mut both = Self(Driver::new(), Model::default());
        for event in script {
            both.apply(*event);
        }
        both
    }

    fn apply(&mut self, event: Event) -> String {
        let outcome = self.0.apply(0, event);
        assert_eq!(outcome, self.1.apply(0, event), "the model does otherwise: {event:?}");
        outcome
    }

    fn describe(&self) -> String {
        let state = self.0.describe(0);
        assert_eq!(state, self.1.describe(0), "the model is otherwise");
        if self.0.table.is_frozen() { state + ", frozen" } else { state }
    }
}

#[test]
fn every_event_in_every_state_has_its_outcome() {
    let mut states = Vec::from(acquiring::STATES);
    states.extend(held::STATES);
    if cfg!(feature = "snapshot") {
        states.extend(frozen::STATES);
    }
    for State { name, script, rows } in states {
        assert_eq!(Both::after(script).describe(), *name);
        let mut all = rows.iter().flat_map(|(events, _)| *events);
        let never = all.find(|event| {
            let is_freeze = **event == Freeze && !cfg!(feature = "snapshot");
            !(EVENTS.contains(event) && (can_happen(name, **event) || is_freeze))
        });
        assert_eq!(never, None, "in the state {name:?}");
        for event in EVENTS.iter().filter(|event| can_happen(name, **event)) {
            let mut rows = rows.iter().filter(|(events, _)| events.contains(event));
            let (Some((_, expected)), None) = (rows.next(), rows.next()) else {
                panic!("not one row for {event:?} in the state {name:?}");
            };
            let mut both = Both::after(script);
            let (outcome, state) = (both.apply(*event), both.describe());
            let seen = if state == *name { outcome } else { format!("{outcome} => {state}") };
            assert_eq!(&seen, expected, "{event:?} in the state {name:?}");
        }
    }
}
