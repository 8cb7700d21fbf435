//! One resource of the model, and the rules of who may hold it.

use crate::table::tests::describe::letter;
use crate::table::tests::{Ask, CallId, Carrier, FILE_BY_NAME, Moment};
use crate::types::Mode;

#[derive(Debug)]
pub(in crate::table::tests) struct Resource {
    /// Which one of those that have had the name.
    pub(super) life: u32,
    pub(in crate::table::tests) phase: Phase,
    /// The one that acquires, or the first one that holds it.
    pub(in crate::table::tests) ask: Ask,
    /// How it is held, or will be.
    pub(in crate::table::tests) mode: Mode,
    pub(in crate::table::tests) holds: Vec<Hold>,
    pub(in crate::table::tests) carrier: Carrier,
    /// The thread that has the transition has the file, which is locked in this mode.
    pub(in crate::table::tests) in_hand: Option<Mode>,
    pub(in crate::table::tests) waiters: Vec<Waiter>,
    pub(in crate::table::tests) turn: Option<Moment>,
    pub(super) watched: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::table::tests) enum Phase {
    Acquiring,
    Unresponsive(Moment),
    Contended,
    Held,
    Converting(Mode),
    Changing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::table::tests) struct Hold {
    pub(in crate::table::tests) owner: u64,
    pub(in crate::table::tests) is_kept: bool,
    /// Released while the space was frozen.
    pub(in crate::table::tests) has_ended: bool,
}

#[derive(Clone, Copy, Debug)]
pub(in crate::table::tests) struct Waiter {
    pub(in crate::table::tests) call: CallId,
    pub(in crate::table::tests) ask: Ask,
    pub(in crate::table::tests) upgrades: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::table::tests) enum Grant {
    Joined,
    Acquire,
    TakeOver(Mode),
    AskAgain,
    Invalid(&'static str),
}

pub(super) fn exclude(one: Mode, other: Mode) -> bool {
    one == Mode::Exclusive || other == Mode::Exclusive
}

impl Hold {
    pub(super) fn new(owner: u64) -> Self {
        Self { owner, is_kept: false, has_ended: false }
    }
}

impl Resource {
    /// The hold that the one that acquires it will have.
    pub(in crate::table::tests) fn acquiring(&self) -> Option<Hold> {
        let acquires = !matches!(self.phase, Phase::Held | Phase::Converting(_) | Phase::Changing);
        acquires.then(|| Hold::new(self.ask.owner))
    }

    /// Whoever is in the way of `except`, or of anybody else.
    pub(super) fn owners(&self, except: Option<u64>) -> Vec<u64> {
        let counts = |owner| self.holds.iter().filter(|hold| hold.owner == owner).count();
        let holds = self.acquiring().into_iter().chain(self.holds.iter().copied());
        let mut owners: Vec<_> = holds.map(|hold| hold.owner).collect();
        owners.sort_unstable();
        owners.dedup();
        owners.retain(|owner| Some(*owner) != except || counts(*owner) > 1);
        owners
    }

    pub(super) fn is_held_by(&self, owner: u64) -> bool {
        self.holds.iter().any(|hold| hold.owner == owner)
    }

    pub(super) fn has_only_hold(&self, owner: u64) -> bool {
        self.holds.len() == 1 && self.holds[0].owner == owner
    }

    /// Whether a request may join those that hold it, although these wait.
    pub(super) fn may_join(&self, ask: Ask, before: &[Waiter]) -> bool {
        !exclude(self.mode, ask.mode)
            && (self.is_held_by(ask.owner)
                || before.iter().all(|waiter| waiter.ask.mode == Mode::Shared))
    }

    /// Adds a hold, if the request means the bytes and the file that are locked.
    pub(super) fn join(&mut self, ask: Ask, has_looked: bool) -> Grant {
        if ask.range() != self.ask.range() {
            return Grant::Invalid("invalid: other bytes");
        }
        let means_open_file = ask.opened().is_some();
        let is_open_file = self.carrier != Carrier::Memory && self.ask.opened().is_some();
        if is_open_file && !means_open_file && !has_looked {
            return Grant::AskAgain;
        }
        let file = |ask: Ask| ask.opened().unwrap_or(FILE_BY_NAME);
        let is_other = match self.carrier {
            Carrier::Memory => means_open_file,
            _ => file(ask) != file(self.ask),
        };
        if is_other {
            return Grant::Invalid("invalid: other file");
        }
        self.holds.push(Hold::new(ask.owner));
        Grant::Joined
    }

    /// What its own owner has, or waits for, that a request would wait for. What nobody waits for any
    /// more is not for its owner, and what is being converted may become shared.
    pub(super) fn excludes_own(&self, ask: Ask) -> Option<String> {
        let acquires = matches!(self.phase, Phase::Acquiring | Phase::Contended);
        let acquiring = acquires.then_some(("wait", self.ask.owner, self.mode));
        let held = self.holds.iter().map(|hold| ("hold", hold.owner, self.mode));
        let waiting = self.waiters.iter().map(|it| ("wait", it.ask.owner, it.ask.mode));
        let own = acquiring.into_iter().chain(held).chain(waiting);
        let excludes = |what: &str, mode| match self.phase {
            Phase::Converting(_) if what == "hold" => ask.mode == Mode::Exclusive,
            _ => exclude(mode, ask.mode),
        };
        let mut own =
            own.filter(|(what, owner, mode)| *owner == ask.owner && excludes(what, *mode));
        own.next().map(|(what, _, mode)| format!("deadlock: own {what} {}", letter(mode)))
    }
}
