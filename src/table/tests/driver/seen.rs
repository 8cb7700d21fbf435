//! What is seen of the table.

use super::*;
use crate::error::Blockers;
use crate::table::resource::State;
use crate::table::tests::describe::{Seen, SeenHold, SeenWaiter};
use crate::types::ByteRange;

impl Driver {
    pub(in crate::table::tests) fn describe(&self, name: NameId) -> String {
        let Some(slot) = self.find(name) else { return "absent".to_owned() };
        let resource = self.table.resource(slot);
        let turn = resource.queue.as_ref().and_then(|queue| queue.turn);
        let seen = Seen {
            turn: turn.map(|turn| self.moment(turn)),
            waiters: self.queued(name).map(|queued| self.see_waiter(queued)).collect(),
            ..self.see_state(slot, resource)
        };
        seen.to_string()
    }

    fn see_state(&self, slot: Slot, resource: &Resource<FakeFile>) -> Seen {
        let phase = match &resource.state {
            State::Acquiring(_) if resource.unresponsive_since().is_some() => "unresponsive",
            State::Acquiring(_) => "acquiring",
            State::Contended(_) => "contended",
            State::Held(hold) => return Seen { phase: "held", ..self.see_hold(slot, hold) },
            State::Converting(hold) => {
                return Seen { phase: "converting", ..self.see_hold(slot, hold) };
            }
            State::Changing(_) => return Seen { phase: "changing", ..Seen::default() },
        };
        let Some((mode, Blockers::One([owner]))) = resource.blockers() else {
            panic!("{phase} by nobody, or by several")
        };
        let hold = SeenHold { owner: owner.get(), kind: HoldKind::Leased, has_ended: false };
        Seen { phase, mode: Some(mode), holds: vec![hold], ..Seen::default() }
    }

    fn see_hold(&self, slot: Slot, hold: &Hold<FakeFile>) -> Seen {
        let mut holds = Vec::new();
        for owner in hold.owners().ids() {
            for kind in [HoldKind::Leased, HoldKind::Kept] {
                let held = hold.owners().count(owner, kind);
                let frozen = self.table.frozen.as_ref();
                let stay = frozen.map_or(held, |frozen| frozen.remaining(slot, owner, kind, held));
                let owner = owner.get();
                holds.extend((0..held).map(|n| SeenHold { owner, kind, has_ended: n >= stay }));
            }
        }
        let carrier = match hold.file() {
            None => (hold.origin() == Origin::InMemory).then_some(Carrier::Memory),
            Some(file) if file.writable => Some(Carrier::Writable),
            Some(_) => Some(Carrier::ReadOnly),
        };
        let opened = hold.file().filter(|_| hold.origin() == Origin::Opened);
        Seen {
            mode: Some(hold.mode()),
            holds,
            carrier,
            is_on_other_bytes: hold.range() != ByteRange::FIRST,
            opened: opened.map(|file| file.number),
            ..Seen::default()
        }
    }

    fn see_waiter(&self, queued: &Queued) -> SeenWaiter {
        let call = self.call_with(queued.ticket);
        let claim = &queued.claim;
        let (mode, owner) = (claim.mode, claim.owner.get());
        SeenWaiter { call, mode, owner, upgrades: queued.upgrades }
    }
}
