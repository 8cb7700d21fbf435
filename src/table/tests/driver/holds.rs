//! Releasing, keeping, converting and freezing.

use super::*;
use crate::table::{Conversion, NoSuchHold};

impl Driver {
    pub(super) fn release(&mut self, name: NameId, owner: u64, kind: HoldKind) -> Outcome {
        let (slot, mut wakes, now) = (self.slot(name), WakeList::default(), self.now);
        let outcome = match self.table.release(slot, OwnerId::new(owner), kind, || now, &mut wakes)
        {
            Ok(None) => "released",
            Ok(Some(hold)) => {
                self.last_ended(name, hold);
                "released, the last one"
            }
            Err(NoSuchHold) => "no such hold",
        };
        (outcome.to_owned(), wakes)
    }

    pub(super) fn last_ended(&mut self, name: NameId, hold: Hold<FakeFile>) {
        let nobody = Ask::new(0, hold.mode());
        self.transitions.insert(name, (nobody, hold.into_file()));
    }

    pub(super) fn note_kept(&mut self, owner: u64) -> Outcome {
        let kept = self.table.kept(Some(OwnerId::new(owner))).into_iter();
        self.noted = kept.map(|(owner, slot)| (self.name_of(slot), owner, slot)).collect();
        self.noted.sort_unstable();
        let names = describe::list(self.noted.iter().map(|(name, ..)| name));
        (format!("keeps: {names}"), WakeList::default())
    }

    pub(super) fn name_of(&self, slot: Slot) -> NameId {
        self.table.resource(slot).name().text().to_str().unwrap().parse().unwrap()
    }

    pub(super) fn release_noted(&mut self) -> Outcome {
        let (mut wakes, now) = (WakeList::default(), self.now);
        let (name, owner, slot) = self.noted.remove(0);
        let ended = self.table.release_kept(slot, owner, || now, &mut wakes);
        let mut outcome = format!("released {}", ended.count);
        if let Some((full_name, hold)) = ended.last {
            assert_eq!(full_name.text(), text(name));
            self.last_ended(name, hold);
            outcome += ", the last one";
        }
        (outcome, wakes)
    }

    pub(super) fn set_kind(&mut self, name: NameId, owner: u64, kind: HoldKind) -> Outcome {
        let slot = self.slot(name);
        let set = self.table.set_hold_kind(slot, OwnerId::new(owner), kind);
        let outcome = match set {
            Ok(()) => "done",
            Err(NoSuchHold) => "no such hold",
        };
        (outcome.to_owned(), WakeList::default())
    }

    pub(super) fn convert(&mut self, name: NameId, owner: u64, to: Mode) -> Outcome {
        let (slot, mut wakes) = (self.slot(name), WakeList::default());
        let conversion = self.table.begin_conversion(slot, OwnerId::new(owner), to, &mut wakes);
        let outcome = match conversion {
            Conversion::Begun(file) => {
                self.transitions.insert(name, (Ask::new(owner, to), Some(file)));
                self.conversions.insert(name, to);
                "begins".to_owned()
            }
            Conversion::Done => "done".to_owned(),
            Conversion::Refused(mode, owners) => describe::refused_by(mode, &owners),
            Conversion::NotUpgradable => "not upgradable".to_owned(),
            Conversion::InTransition => "in transition".to_owned(),
            Conversion::Frozen => "is frozen".to_owned(),
        };
        (outcome, wakes)
    }

    pub(super) fn end_conversion(&mut self, name: NameId, granted: bool) -> Outcome {
        let (slot, mut wakes) = (self.slot(name), WakeList::default());
        let file = self.transitions.remove(&name).and_then(|(_, file)| file);
        let to = self.conversions.remove(&name).filter(|_| granted);
        self.table.end_conversion(slot, file.expect("it is converted"), to, &mut wakes);
        ("ends".to_owned(), wakes)
    }

    pub(super) fn wait_to_upgrade(&mut self, name: NameId, id: CallId, owner: u64) -> Outcome {
        let slot = self.slot(name);
        let call = self.new_call(id, Ask::new(owner, Mode::Exclusive));
        call.slot = Some(slot);
        let ticket = call.ticket;
        let outcome = match self.table.enqueue_upgrade(slot, ticket, OwnerId::new(owner)) {
            Ok(()) => "waits".to_owned(),
            Err(why) => {
                self.end_call(id);
                describe::deadlock(&why)
            }
        };
        (outcome, WakeList::default())
    }

    #[cfg(feature = "snapshot")]
    pub(super) fn freeze_or_thaw(&mut self, event: Event) -> Outcome {
        if event == Event::Freeze {
            self.table.freeze();
            return ("freezes".to_owned(), WakeList::default());
        }
        let mut wakes = WakeList::default();
        let mut ended = Vec::new();
        for (slot, full_name, hold) in self.table.thaw(self.now, &mut wakes) {
            let name = self.name_of(slot);
            assert_eq!(full_name.text(), text(name));
            self.last_ended(name, hold);
            ended.push(name);
        }
        ended.sort_unstable();
        (describe::thawed(&ended), wakes)
    }

    /// A resource that a thread makes system calls for.
    #[cfg(feature = "snapshot")]
    pub(in crate::table::tests) fn in_transition(&self) -> Option<NameId> {
        self.table.in_transition().map(|slot| self.name_of(slot))
    }

    #[cfg(not(feature = "snapshot"))]
    pub(super) fn freeze_or_thaw(&mut self, _: Event) -> Outcome {
        unreachable!("nothing is frozen without snapshots")
    }
}
