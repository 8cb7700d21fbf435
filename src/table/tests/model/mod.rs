//! What the table is to do, in plain code: for each name a list of holds and a list of waiters.

mod holds;
mod resource;
mod seen;

use std::collections::{BTreeMap, BTreeSet};

use crate::table::HoldKind;
use crate::table::tests::{Ask, CallId, Carrier, Event, Moment, NameId, Turn, describe};
use crate::types::Mode;
pub(super) use resource::{Grant, Phase};
use resource::{Hold, Resource, Waiter, exclude};

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) resources: BTreeMap<NameId, Resource>,
    /// The calls that wait, and what each was granted and has not taken yet.
    pub(super) calls: BTreeMap<CallId, (Ask, Option<Grant>)>,
    /// The calls that know which file their name leads to.
    have_looked: BTreeSet<CallId>,
    pub(super) freezes: u32,
    now: Moment,
    /// How many times a name was no longer absent.
    lives: u32,
    pub(super) noted: Vec<(NameId, u64, u32)>,
    woken: BTreeSet<CallId>,
    watchers_woken: bool,
}

impl Model {
    pub(super) fn apply(&mut self, name: NameId, event: Event) -> String {
        let outcome = match event {
            Event::Try(ask) => self.ask(name, ask, None),
            Event::Wait(call, ask) => self.ask(name, ask, Some(call)),
            Event::TakeGrant(call) => self.take_grant(call),
            Event::Leave(call) => self.leave(name, call),
            Event::Change => self.change(name),
            Event::Release(owner, kind) => self.release(name, owner, kind),
            Event::NoteKept(owner) => self.note_kept(owner),
            Event::ReleaseNoted => self.release_noted(),
            Event::SetKind(owner, kind) => self.set_kind(name, owner, kind),
            Event::Convert(owner, to) => self.convert(name, owner, to),
            Event::WaitToUpgrade(call, owner) => self.wait_to_upgrade(name, call, owner),
            Event::Freeze => {
                self.freezes += 1;
                "freezes".to_owned()
            }
            Event::Thaw => self.thaw(),
            Event::Pass(time) => {
                self.now += time;
                "passes".to_owned()
            }
            _ => self.transition(name, event),
        };
        let woken = std::mem::take(&mut self.woken).into_iter().map(|call| {
            let grant = self.calls[&call].1.map_or("is woken".to_owned(), granted);
            format!("{call} {grant}")
        });
        let woken: Vec<_> = woken.collect();
        describe::with_woken(outcome, &woken, std::mem::take(&mut self.watchers_woken))
    }

    fn at(&mut self, name: NameId) -> &mut Resource {
        self.resources.get_mut(&name).expect("it is not absent")
    }

    fn begin(&mut self, name: NameId, phase: Phase, ask: Ask) {
        self.lives += 1;
        let resource = Resource {
            life: self.lives,
            phase,
            ask,
            mode: ask.mode,
            holds: Vec::new(),
            carrier: Carrier::Memory,
            in_hand: None,
            waiters: Vec::new(),
            turn: None,
            watched: false,
        };
        self.resources.insert(name, resource);
    }

    fn ask(&mut self, name: NameId, ask: Ask, call: Option<CallId>) -> String {
        let Some(resource) = self.resources.get_mut(&name) else {
            self.begin(name, Phase::Acquiring, ask);
            self.end_call(call);
            return "acquires".to_owned();
        };
        let refused = describe::refused(resource.mode, resource.owners(None));
        let answer = match resource.phase {
            Phase::Held if resource.may_join(ask, &resource.waiters) => {
                let mut joined = resource.join(ask, false);
                if joined == Grant::AskAgain {
                    self.have_looked.extend(call);
                    joined = self.at(name).join(ask, true);
                }
                self.end_call(call);
                return granted(joined);
            }
            Phase::Unresponsive(since) => format!("unresponsive since {since}"),
            Phase::Contended => "refused: outside".to_owned(),
            Phase::Changing => "watches".to_owned(),
            Phase::Acquiring if !exclude(resource.mode, ask.mode) => "watches".to_owned(),
            Phase::Converting(_) if ask.mode == Mode::Shared => "watches".to_owned(),
            _ => refused,
        };
        let resource = self.at(name);
        let Some(call) = call else {
            resource.watched |= !answer.starts_with("refused");
            return answer;
        };
        if let Some(why) = resource.excludes_own(ask) {
            self.end_call(Some(call));
            return why;
        }
        resource.waiters.push(Waiter { call, ask, upgrades: false });
        self.calls.insert(call, (ask, None));
        "waits".to_owned()
    }

    fn end_call(&mut self, call: Option<CallId>) {
        call.map(|call| self.calls.remove(&call));
    }

    fn take_grant(&mut self, call: CallId) -> String {
        let (ask, grant) = self.calls.remove(&call).expect("it waits");
        let grant = grant.expect("it was granted something");
        if grant == Grant::AskAgain {
            self.calls.insert(call, (ask, None));
            self.have_looked.insert(call);
        }
        granted(grant)
    }

    fn leave(&mut self, name: NameId, call: CallId) -> String {
        self.calls.remove(&call);
        if let Some(resource) = self.resources.get_mut(&name)
            && let Some(at) = resource.waiters.iter().position(|waiter| waiter.call == call)
        {
            resource.waiters.remove(at);
            if self.freezes == 0 {
                self.admit_waiters(name);
            }
        }
        "leaves".to_owned()
    }

    fn grant(&mut self, call: CallId, grant: Grant) {
        self.calls.get_mut(&call).expect("it waits").1 = Some(grant);
        self.woken.insert(call);
    }

    /// Lets every waiter join that may.
    fn admit_waiters(&mut self, name: NameId) {
        let resource = self.resources.get_mut(&name).expect("it is not absent");
        if resource.phase != Phase::Held {
            return;
        }
        let may_join =
            |at: &usize| resource.may_join(resource.waiters[*at].ask, &resource.waiters[..*at]);
        if let Some(at) = (0..resource.waiters.len()).find(may_join) {
            let waiter = resource.waiters.remove(at);
            let granted = resource.join(waiter.ask, self.have_looked.contains(&waiter.call));
            self.grant(waiter.call, granted);
            self.admit_waiters(name);
        }
    }

    /// Has those ask again who would wait for themselves.
    fn send_back_own(&mut self, name: NameId) {
        let resource = self.at(name);
        let owner = resource.holds[0].owner;
        let is_own = |waiter: &Waiter| waiter.ask.owner == owner && !waiter.upgrades;
        if resource.mode == Mode::Exclusive
            && let Some(at) = resource.waiters.iter().position(is_own)
        {
            let waiter = resource.waiters.remove(at);
            self.grant(waiter.call, Grant::AskAgain);
            self.send_back_own(name);
        }
    }

    /// What the thread does that acquires, converts or changes.
    fn transition(&mut self, name: NameId, event: Event) -> String {
        let (frozen, now) = (self.freezes > 0, self.now);
        let resource = self.resources.get_mut(&name).expect("it is not absent");
        if !matches!(event, Event::Resume | Event::GiveFileBack) {
            self.watchers_woken |= std::mem::take(&mut resource.watched);
        }
        match event {
            Event::Contend => resource.phase = Phase::Contended,
            Event::Resume if frozen && resource.phase == Phase::Contended => {
                return "is frozen".to_owned();
            }
            Event::Resume => resource.phase = Phase::Acquiring,
            Event::Unresponsive => resource.phase = Phase::Unresponsive(now),
            Event::GiveFileBack => resource.in_hand = None,
            Event::EndInHold(carrier, turn) => {
                let owner = resource.ask.owner;
                resource.phase = Phase::Held;
                resource.holds.push(Hold::new(owner));
                if resource.in_hand.take().is_none() {
                    resource.carrier = carrier;
                }
                if turn == Turn::Counts && resource.turn.is_none() {
                    resource.turn = Some(now);
                }
                self.admit_waiters(name);
            }
            Event::EndConversion { granted } => {
                if let (Phase::Converting(to), true) = (resource.phase, granted) {
                    resource.mode = to;
                }
                resource.phase = Phase::Held;
                resource.in_hand = None;
                self.send_back_own(name);
                self.admit_waiters(name);
            }
            _ => return self.end_in_nothing(name),
        }
        let said = match event {
            Event::Contend => "contends",
            Event::Resume => "goes on",
            Event::Unresponsive => "is left to a worker",
            Event::GiveFileBack => "gives the file back",
            Event::EndInHold(..) => "holds",
            _ => "ends",
        };
        said.to_owned()
    }

    fn end_in_nothing(&mut self, name: NameId) -> String {
        let frozen = self.freezes > 0;
        let resource = self.at(name);
        resource.in_hand = None;
        let turn = resource.turn.take();
        if resource.waiters.is_empty() {
            self.resources.remove(&name);
        } else {
            let first = resource.waiters.remove(0);
            (resource.ask, resource.mode) = (first.ask, first.ask.mode);
            resource.phase = if frozen { Phase::Contended } else { Phase::Acquiring };
            self.grant(first.call, Grant::Acquire);
        }
        turn.map_or("ends".to_owned(), |since| format!("ends, and a turn since {since}"))
    }

    fn change(&mut self, name: NameId) -> String {
        let Some(resource) = self.resources.get_mut(&name) else {
            self.begin(name, Phase::Changing, Ask::new(0, Mode::Exclusive));
            return "changes".to_owned();
        };
        if resource.phase == Phase::Changing {
            resource.watched = true;
            return "watches".to_owned();
        }
        describe::refused(resource.mode, resource.owners(None))
    }
}

/// What is seen of the model.
impl Model {
    /// How many files carry a lock, or are with whoever releases it.
    pub(super) fn files(&self) -> usize {
        let files = |resource: &Resource| match resource.phase {
            Phase::Held => usize::from(resource.carrier != Carrier::Memory),
            _ => usize::from(resource.in_hand.is_some()),
        };
        self.resources.values().map(files).sum()
    }

    /// The resources that a thread makes system calls for.
    #[cfg(feature = "snapshot")]
    pub(super) fn in_transition(&self) -> impl Iterator<Item = NameId> {
        let moves = |phase| !matches!(phase, Phase::Contended | Phase::Held);
        self.resources.iter().filter(move |(_, it)| moves(it.phase)).map(|(name, _)| *name)
    }

    pub(super) fn would_wait_for_itself(&self, name: NameId, ask: Ask) -> Option<String> {
        let resource = self.resources.get(&name).filter(|_| self.freezes == 0);
        resource?.excludes_own(ask)
    }

    pub(super) fn waits_of(&self, owner: u64) -> Vec<CallId> {
        let of_owner = self.calls.iter().filter(|(_, (ask, _))| ask.owner == owner);
        of_owner.map(|(call, _)| *call).collect()
    }
}

fn granted(grant: Grant) -> String {
    match grant {
        Grant::Joined => "joins".to_owned(),
        Grant::Acquire => "acquires".to_owned(),
        Grant::TakeOver(mode) => format!("takes over {}", describe::letter(mode)),
        Grant::AskAgain => "asks again".to_owned(),
        Grant::Invalid(why) => why.to_owned(),
    }
}
