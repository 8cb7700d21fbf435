//! Releasing, keeping, converting and freezing.

use super::*;
use crate::table::fairness::MAX_TURN;

impl Model {
    pub(super) fn release(&mut self, name: NameId, owner: u64, kind: HoldKind) -> String {
        let frozen = self.freezes > 0;
        let resource = self.at(name);
        let is_it = |hold: &Hold| {
            (hold.owner, hold.is_kept) == (owner, kind == HoldKind::Kept) && !hold.has_ended
        };
        let Some(at) = resource.holds.iter().position(is_it) else {
            return "no such hold".to_owned();
        };
        if frozen {
            resource.holds[at].has_ended = true;
            return "released".to_owned();
        }
        resource.holds.remove(at);
        let is_last = self.hold_has_ended(name);
        if is_last { "released, the last one" } else { "released" }.to_owned()
    }

    /// Whether it was the last one, and the caller has to release the lock.
    pub(super) fn hold_has_ended(&mut self, name: NameId) -> bool {
        let now = self.now;
        let resource = self.at(name);
        let first = resource.waiters.first().copied();
        if !resource.holds.is_empty() {
            if let Some(first) = first
                && first.upgrades
                && resource.has_only_hold(first.ask.owner)
            {
                self.woken.insert(first.call);
            }
            return false;
        }
        resource.in_hand = (resource.carrier != Carrier::Memory).then_some(resource.mode);
        if let Some(first) = first
            && resource.carrier != Carrier::Memory
            && resource.ask.range() == first.ask.range()
            && resource.ask.opened().is_none()
            && first.ask.opened().is_none()
            && (resource.carrier == Carrier::Writable || first.ask.mode == Mode::Shared)
            && now - *resource.turn.get_or_insert(now) < MAX_TURN.as_millis() as Moment
        {
            let taken_over = Grant::TakeOver(resource.mode);
            resource.waiters.remove(0);
            (resource.ask, resource.mode) = (first.ask, first.ask.mode);
            resource.phase = Phase::Acquiring;
            self.grant(first.call, taken_over);
            return false;
        }
        resource.phase = Phase::Changing;
        true
    }

    pub(super) fn note_kept(&mut self, owner: u64) -> String {
        let keeps = |resource: &Resource| {
            resource.holds.iter().any(|hold| hold.owner == owner && hold.is_kept)
        };
        let kept = self.resources.iter().filter(|(_, resource)| keeps(resource));
        self.noted = kept.map(|(name, resource)| (*name, owner, resource.life)).collect();
        format!("keeps: {}", describe::list(self.noted.iter().map(|(name, ..)| name)))
    }

    pub(super) fn release_noted(&mut self) -> String {
        let (name, owner, life) = self.noted.remove(0);
        let (mut count, mut is_last) = (0, "");
        while self.resources.get(&name).is_some_and(|resource| resource.life == life) {
            match &*self.release(name, owner, HoldKind::Kept) {
                "no such hold" => break,
                "released, the last one" => is_last = ", the last one",
                _ => {}
            }
            count += 1;
        }
        format!("released {count}{is_last}")
    }

    pub(super) fn set_kind(&mut self, name: NameId, owner: u64, kind: HoldKind) -> String {
        let to_kept = kind == HoldKind::Kept;
        let mut holds = self.at(name).holds.iter_mut();
        let of_other_kind =
            |hold: &&mut Hold| hold.owner == owner && hold.is_kept != to_kept && !hold.has_ended;
        match holds.find(of_other_kind) {
            Some(hold) => {
                hold.is_kept = to_kept;
                "done".to_owned()
            }
            None => "no such hold".to_owned(),
        }
    }

    pub(super) fn convert(&mut self, name: NameId, owner: u64, to: Mode) -> String {
        if self.freezes > 0 {
            return "is frozen".to_owned();
        }
        let resource = self.at(name);
        if resource.phase != Phase::Held {
            return "in transition".to_owned();
        }
        let differs = resource.mode != to;
        if differs && to == Mode::Exclusive && resource.carrier == Carrier::ReadOnly {
            return "not upgradable".to_owned();
        }
        if differs && !resource.has_only_hold(owner) {
            return describe::refused(resource.mode, resource.owners(Some(owner)));
        }
        if differs && resource.carrier != Carrier::Memory {
            resource.in_hand = Some(resource.mode);
            resource.phase = Phase::Converting(to);
            return "begins".to_owned();
        }
        resource.mode = to;
        self.admit_waiters(name);
        "done".to_owned()
    }

    pub(super) fn wait_to_upgrade(&mut self, name: NameId, call: CallId, owner: u64) -> String {
        let resource = self.at(name);
        let stays = |hold: &&Hold| hold.owner == owner && !hold.has_ended;
        if resource.holds.iter().filter(stays).count() != 1 {
            return "deadlock: other own hold".to_owned();
        }
        if let Some(other) = resource.waiters.iter().find(|waiter| waiter.upgrades) {
            return format!("deadlock: upgrade by {}", other.ask.owner);
        }
        let ask = Ask::new(owner, Mode::Exclusive);
        resource.waiters.insert(0, Waiter { call, ask, upgrades: true });
        self.calls.insert(call, (ask, None));
        "waits".to_owned()
    }

    pub(super) fn thaw(&mut self) -> String {
        self.freezes -= 1;
        if self.freezes > 0 {
            return describe::thawed(&[]);
        }
        let mut last_ended = Vec::new();
        for name in self.resources.keys().copied().collect::<Vec<_>>() {
            while let Some(at) = self.at(name).holds.iter().position(|hold| hold.has_ended) {
                self.at(name).holds.remove(at);
                last_ended.extend(self.hold_has_ended(name).then_some(name));
            }
            self.admit_waiters(name);
        }
        self.watchers_woken = true;
        describe::thawed(&last_ended)
    }
}
