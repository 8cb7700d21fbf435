//! Lets events happen to a table, as the layers above it do, and tells what is seen of it.

mod holds;
mod seen;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::{Key, Name, OpenNaming};
use crate::sync::Waker;
use crate::table::queue::{Grant, HandedOver, Queued, Ticket, WakeList};
use crate::table::tests::{
    Ask, CallId, Carrier, Event, FILE_BY_NAME, FakeFile, Moment, NameId, Turn, describe, file_id,
};
use crate::table::{Admission, Hold, HoldKind, Owners, Resource, Slot, Table};
use crate::types::{Mode, Origin, OwnerId};

pub(super) struct Driver {
    pub(super) table: Table<FakeFile>,
    start: Instant,
    now: Instant,
    pub(super) calls: BTreeMap<CallId, Call>,
    /// Who acquires a resource, with the file that was handed over to it; or who converts it, or
    /// has ended its last hold.
    transitions: BTreeMap<NameId, (Ask, Option<FakeFile>)>,
    conversions: BTreeMap<NameId, Mode>,
    noted: Vec<(NameId, OwnerId, Slot)>,
    files: Rc<()>,
}

/// A call that waits.
pub(super) struct Call {
    pub(super) ticket: Ticket,
    waker: Arc<Waker>,
    ask: Ask,
    /// It knows which file its name leads to.
    has_looked: bool,
    pub(super) slot: Option<Slot>,
}

/// What came out, and whom it wakes.
type Outcome = (String, WakeList);

impl Driver {
    pub(super) fn new() -> Self {
        let start = Instant::now();
        Self {
            table: Table::default(),
            start,
            now: start,
            calls: BTreeMap::new(),
            transitions: BTreeMap::new(),
            conversions: BTreeMap::new(),
            noted: Vec::new(),
            files: Rc::new(()),
        }
    }

    /// How many files exist: each carries a lock.
    pub(super) fn files(&self) -> usize {
        Rc::strong_count(&self.files) - 1
    }

    /// The calls of an owner that a release of all it keeps would cancel.
    pub(super) fn waits_of(&self, owner: u64) -> Vec<CallId> {
        let wakers = self.table.waits_of(OwnerId::new(owner));
        wakers.iter().map(|waker| self.call_of(waker)).collect()
    }

    /// Who waits for a resource, in order.
    pub(super) fn queued(&self, name: NameId) -> impl Iterator<Item = &Queued> {
        let resource = self.find(name).map(|slot| self.table.resource(slot));
        let queue = resource.and_then(|resource| resource.queue.as_ref());
        queue.into_iter().flat_map(|queue| &queue.waiting)
    }

    pub(super) fn call_with(&self, ticket: Ticket) -> CallId {
        let mut calls = self.calls.iter();
        *calls.find(|(_, call)| call.ticket == ticket).expect("it waits").0
    }

    pub(super) fn would_wait_for_itself(&self, name: NameId, ask: Ask) -> Option<String> {
        let why = self.table.would_wait_for_itself(self.find(name)?, &ask.claim())?;
        Some(describe::deadlock(&why))
    }

    pub(super) fn apply(&mut self, name: NameId, event: Event) -> String {
        let (outcome, wakes) = match event {
            Event::Try(ask) => self.ask(name, ask, None),
            Event::Wait(call, ask) => self.ask(name, ask, Some(call)),
            Event::TakeGrant(call) => self.take_grant(name, call),
            Event::Leave(call) => self.leave(call),
            Event::Contend
            | Event::Resume
            | Event::Unresponsive
            | Event::GiveFileBack
            | Event::EndInHold(..)
            | Event::EndInNothing => self.acquiring(name, event),
            Event::Change => self.change(name),
            Event::Release(owner, kind) => self.release(name, owner, kind),
            Event::NoteKept(owner) => self.note_kept(owner),
            Event::ReleaseNoted => self.release_noted(),
            Event::SetKind(owner, kind) => self.set_kind(name, owner, kind),
            Event::Convert(owner, to) => self.convert(name, owner, to),
            Event::EndConversion { granted } => self.end_conversion(name, granted),
            Event::WaitToUpgrade(call, owner) => self.wait_to_upgrade(name, call, owner),
            Event::Freeze | Event::Thaw => self.freeze_or_thaw(event),
            Event::Pass(time) => {
                self.now += Duration::from_millis(time);
                ("passes".to_owned(), WakeList::default())
            }
        };
        self.with_woken(outcome, wakes)
    }

    fn call_of(&self, waker: &Arc<Waker>) -> CallId {
        let mut calls = self.calls.iter();
        *calls.find(|(_, call)| Arc::ptr_eq(&call.waker, waker)).expect("it waits").0
    }

    fn with_woken(&self, outcome: String, wakes: WakeList) -> String {
        let mut calls: Vec<_> = wakes.wakers().iter().map(|waker| self.call_of(waker)).collect();
        calls.sort_unstable();
        calls.dedup();
        let woken = calls.into_iter().map(|id| {
            let grant = self.table.waits.grant_of(self.calls[&id].ticket);
            let what = match grant {
                None => "is woken".to_owned(),
                Some(grant) => describe::granted(grant),
            };
            format!("{id} {what}")
        });
        describe::with_woken(outcome, &woken.collect::<Vec<_>>(), wakes.wake())
    }

    /// The slot of a resource that is not absent.
    fn slot(&self, name: NameId) -> Slot {
        self.find(name).expect("it is not absent")
    }

    pub(super) fn find(&self, name: NameId) -> Option<Slot> {
        self.table.find(Key::from(&*text(name)))
    }

    fn new_call(&mut self, id: CallId, ask: Ask) -> &mut Call {
        let table = &mut self.table;
        self.calls.entry(id).or_insert_with(|| {
            let waker = Arc::<Waker>::default();
            let ticket = table.begin_wait(OwnerId::new(ask.owner), &waker);
            Call { ticket, waker, ask, has_looked: false, slot: None }
        })
    }

    fn end_call(&mut self, call: CallId) {
        let call = self.calls.remove(&call).expect("it waits");
        self.table.end_wait(call.ticket);
    }

    /// As `Core::enter` does.
    fn ask(&mut self, name: NameId, ask: Ask, call: Option<CallId>) -> Outcome {
        let mut claim = ask.claim();
        if let Some(id) = call {
            let call = self.new_call(id, ask);
            if call.has_looked {
                claim.file = claim.file.or(Some(file_id(FILE_BY_NAME)));
            }
        }
        let outcome = loop {
            let Some(slot) = self.find(name) else {
                let hash = Key::from(&*text(name)).hash();
                self.table.begin_acquire(hash, full_name(name), &claim);
                self.transitions.insert(name, (ask, None));
                break "acquires".to_owned();
            };
            let refused = self.table.resource(slot).refuses(ask.mode);
            let refused = refused.map(|(mode, owners)| describe::refused_by(mode, &owners));
            match self.table.admit(slot, &claim) {
                Admission::Joined => {
                    assert_eq!(refused, None);
                    break "joins".to_owned();
                }
                Admission::Invalid(why) => break describe::invalid(&why),
                Admission::NeedsFileId => {
                    assert_eq!(claim.file, None, "it has looked already");
                    claim.file = Some(file_id(FILE_BY_NAME));
                    if let Some(call) = call {
                        self.new_call(call, ask).has_looked = true;
                    }
                }
                why => {
                    if let (Some(refused), Admission::Refused(mode, owners)) = (refused, &why) {
                        assert_eq!(refused, describe::refused_by(*mode, owners));
                    }
                    let Some(id) = call else { break self.refused(slot, why) };
                    let ticket = self.calls[&id].ticket;
                    if let Err(why) = self.table.enqueue(slot, ticket, claim, self.now) {
                        break describe::deadlock(&why);
                    }
                    self.new_call(id, ask).slot = Some(slot);
                    return ("waits".to_owned(), WakeList::default());
                }
            }
        };
        if let Some(call) = call {
            self.end_call(call);
        }
        (outcome, WakeList::default())
    }

    /// As `Core::refuse_unless_passing` does.
    fn refused(&mut self, slot: Slot, why: Admission) -> String {
        match why {
            Admission::Refused(mode, owners) => return describe::refused_by(mode, &owners),
            Admission::RefusedOutside => return "refused: outside".to_owned(),
            Admission::InTransition | Admission::Unresponsive(_) => {}
            other => panic!("{other:?}"),
        }
        self.table.watch_transition(slot, self.now);
        match why {
            Admission::Unresponsive(since) => format!("unresponsive since {}", self.moment(since)),
            _ => "watches".to_owned(),
        }
    }

    pub(super) fn moment(&self, instant: Instant) -> Moment {
        Moment::try_from((instant - self.start).as_millis()).unwrap()
    }

    fn take_grant(&mut self, name: NameId, id: CallId) -> Outcome {
        let call = self.calls.get_mut(&id).expect("it waits");
        let grant = self.table.take_grant(call.ticket).expect("it was granted something");
        let (outcome, ask) = (describe::granted(&grant), call.ask);
        call.slot = None;
        match grant {
            Grant::AskAgain => {
                call.has_looked = true;
                return (outcome, WakeList::default());
            }
            Grant::Acquire(HandedOver::File(file, ..)) => {
                self.transitions.insert(name, (ask, Some(file)));
            }
            Grant::Acquire(HandedOver::Nothing) => {
                self.transitions.insert(name, (ask, None));
            }
            Grant::Joined | Grant::Invalid(_) | Grant::HeldByItself(..) => {}
        }
        self.end_call(id);
        (outcome, WakeList::default())
    }

    fn leave(&mut self, id: CallId) -> Outcome {
        let (call, mut wakes) = (&self.calls[&id], WakeList::default());
        if let Some(slot) = call.slot {
            self.table.dequeue(slot, call.ticket, &mut wakes);
        }
        self.end_call(id);
        ("leaves".to_owned(), wakes)
    }

    /// What the thread does that acquires.
    fn acquiring(&mut self, name: NameId, event: Event) -> Outcome {
        let (slot, mut wakes) = (self.slot(name), WakeList::default());
        let outcome = match event {
            Event::Contend => {
                self.table.set_contended(slot, &mut wakes);
                "contends".to_owned()
            }
            Event::Resume if self.table.resume(slot) => "goes on".to_owned(),
            Event::Resume => "is frozen".to_owned(),
            Event::Unresponsive => {
                self.table.set_unresponsive(slot, self.now, &mut wakes);
                "is left to a worker".to_owned()
            }
            Event::GiveFileBack => {
                self.transitions.get_mut(&name).expect("it acquires").1 = None;
                "gives the file back".to_owned()
            }
            Event::EndInHold(carrier, turn) => {
                let hold = self.new_hold(name, carrier);
                let turn = (turn == Turn::Counts).then_some(self.now);
                self.table.end_in_hold(slot, hold, turn, &mut wakes);
                "holds".to_owned()
            }
            _ => {
                self.transitions.remove(&name);
                match self.table.end_in_nothing(slot, &mut wakes) {
                    None => "ends".to_owned(),
                    Some((ended, hash, since)) => {
                        let text = text(name);
                        assert_eq!((ended.text(), hash), (&*text, Key::from(&*text).hash()));
                        format!("ends, and a turn since {}", self.moment(since))
                    }
                }
            }
        };
        (outcome, wakes)
    }

    fn new_hold(&mut self, name: NameId, carrier: Carrier) -> Hold<FakeFile> {
        let (ask, handed_over) = self.transitions.remove(&name).expect("it acquires");
        let origin = match (carrier, ask.opened()) {
            (Carrier::Memory, _) => Origin::InMemory,
            (_, Some(_)) => Origin::Opened,
            (_, None) => Origin::Existing,
        };
        let new_file = || self.new_file(ask, carrier);
        let file = match carrier {
            Carrier::Memory => None,
            _ => Some(handed_over.unwrap_or_else(new_file)),
        };
        let owners = Owners::one(OwnerId::new(ask.owner));
        Hold::new(file, ask.range(), ask.mode, origin, owners)
    }

    pub(super) fn new_file(&self, ask: Ask, carrier: Carrier) -> FakeFile {
        FakeFile {
            number: ask.opened().unwrap_or(FILE_BY_NAME),
            range: ask.range(),
            writable: carrier == Carrier::Writable,
            _exists: Rc::clone(&self.files),
        }
    }

    /// As `Core::change` does.
    fn change(&mut self, name: NameId) -> Outcome {
        let outcome = match self.find(name) {
            None => {
                let hash = Key::from(&*text(name)).hash();
                self.table.begin_change(hash, full_name(name));
                "changes".to_owned()
            }
            Some(slot) => match self.table.resource(slot).blockers() {
                Some((mode, owners)) => describe::refused_by(mode, &owners),
                None => {
                    self.table.watch_transition(slot, self.now);
                    "watches".to_owned()
                }
            },
        };
        (outcome, WakeList::default())
    }
}

fn text(name: NameId) -> OsString {
    name.to_string().into()
}

pub(super) fn full_name(name: NameId) -> Arc<Name> {
    OpenNaming::InMemory.name(&*text(name)).expect("it is a name")
}
