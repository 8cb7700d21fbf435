//! What is seen of the model.

use super::*;
use crate::table::tests::How;
use crate::table::tests::describe::{Seen, SeenHold, SeenWaiter};

impl Model {
    pub(in crate::table::tests) fn describe(&self, name: NameId) -> String {
        let Some(resource) = self.resources.get(&name) else { return "absent".to_owned() };
        let (phase, is_held) = match resource.phase {
            Phase::Acquiring => ("acquiring", false),
            Phase::Unresponsive(_) => ("unresponsive", false),
            Phase::Contended => ("contended", false),
            Phase::Held => ("held", true),
            Phase::Converting(_) => ("converting", true),
            Phase::Changing => ("changing", false),
        };
        let acquiring = resource.acquiring();
        let mut holds = if is_held { resource.holds.clone() } else { Vec::from_iter(acquiring) };
        holds.sort_unstable();
        let holds = holds.iter().map(|hold| SeenHold {
            owner: hold.owner,
            kind: if hold.is_kept { HoldKind::Kept } else { HoldKind::Leased },
            has_ended: hold.has_ended,
        });
        let has_file = resource.phase == Phase::Held && resource.carrier != Carrier::Memory;
        let waiters = resource.waiters.iter().map(|waiter| SeenWaiter {
            call: waiter.call,
            mode: waiter.ask.mode,
            owner: waiter.ask.owner,
            upgrades: waiter.upgrades,
        });
        let seen = Seen {
            phase,
            mode: (resource.phase != Phase::Changing).then_some(resource.mode),
            holds: holds.collect(),
            carrier: Some(resource.carrier)
                .filter(|carrier| has_file || is_held && *carrier == Carrier::Memory),
            is_on_other_bytes: is_held && resource.ask.how == How::OtherRange,
            opened: resource.ask.opened().filter(|_| has_file),
            turn: resource.turn,
            waiters: waiters.collect(),
        };
        seen.to_string()
    }
}
