//! What is true of the table at any time, and at the end, whatever the model says.

use proptest::prelude::TestCaseError;

use super::{Callers, LeaseOp, NAMES, OWNERS, Op, Step};
use crate::table::HoldKind;
use crate::table::queue::Queued;
use crate::table::resource::State;
use crate::table::tests::driver::Driver;
use crate::table::tests::{CallId, Event, NameId};
use crate::types::{Mode, OwnerId};

/// What is true at any time.
impl Driver {
    /// What is wrong with a resource.
    pub(super) fn flaw(&self, name: NameId) -> Option<&'static str> {
        let slot = self.find(name)?;
        let keeps: Vec<_> =
            self.table.kept(None).into_iter().filter(|(_, at)| *at == slot).collect();
        let Some(hold) = self.table.resource(slot).hold() else {
            return (!keeps.is_empty()).then_some("kept without a hold");
        };
        let counts = hold.owners().counts();
        let kept = |owner: &&OwnerId| hold.owners().count(**owner, HoldKind::Kept) > 0;
        let is_held = matches!(self.table.resource(slot).state, State::Held(_));
        let mut ahead = hold.mode();
        let mut may_join = |queued: &Queued| {
            let is_shared = queued.claim.mode == Mode::Shared && !queued.upgrades;
            let is_first = ahead == Mode::Shared;
            ahead = if is_shared { ahead } else { Mode::Exclusive };
            is_shared && (is_first || counts.contains_key(&queued.claim.owner))
        };
        let own = |queued: &Queued| !queued.upgrades && counts.contains_key(&queued.claim.owner);
        match hold.mode() {
            Mode::Exclusive if is_held && self.queued(name).any(own) => {
                Some("somebody waits for itself")
            }
            _ if counts.values().sum::<u32>() == 0 => Some("held by nobody"),
            Mode::Exclusive if counts.values().sum::<u32>() > 1 => Some("two exclusive holds"),
            _ if keeps.len() != counts.keys().filter(kept).count() => {
                Some("wrong list of the kept")
            }
            Mode::Shared
                if is_held && !self.table.is_frozen() && self.queued(name).any(&mut may_join) =>
            {
                Some("somebody waits who may join")
            }
            _ => None,
        }
    }

    /// Whether a call that waits is in its queue, or was granted something, and once.
    pub(super) fn is_known(&self, id: CallId) -> bool {
        let call = &self.calls[&id];
        let resources = self.table.resources().filter_map(|resource| resource.queue.as_ref());
        let all = resources.flat_map(|queue| &queue.waiting);
        let queued = all.filter(|queued| queued.ticket == call.ticket).count();
        let granted = usize::from(self.table.waits.grant_of(call.ticket).is_some());
        queued + granted == usize::from(call.slot.is_some())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.resources().count() + self.table.waits.len() + self.files() == 0
            && self.table.kept(None).is_empty()
    }
}

/// What is true at any time, whatever the model says.
impl Callers {
    pub(super) fn check(&self) -> Result<(), TestCaseError> {
        for name in 0..NAMES {
            if let Some(why) = self.table.flaw(name) {
                return Err(self.failure(&format!("{why}: {}", self.table.describe(name))));
            }
            let upgrades = self.table.queued(name).filter(|queued| queued.upgrades).count();
            let waiting = self.table.queued(name).skip(upgrades);
            let in_order =
                waiting.map(|queued| self.queued_at[&self.table.call_with(queued.ticket)]);
            if upgrades > 1 || !in_order.is_sorted() {
                return Err(self.failure("the queue is out of order"));
            }
        }
        if let Some(lost) = self.calls.keys().find(|call| !self.table.is_known(**call)) {
            return Err(self.failure(&format!("call {lost} is lost")));
        }
        Ok(())
    }

    fn failure(&self, why: &str) -> TestCaseError {
        TestCaseError::fail(format!("{why}{}", self.history()))
    }

    /// Everybody ends what they do, and nothing is left.
    pub(super) fn finish(&mut self) -> Result<(), TestCaseError> {
        while self.model.freezes > 0 {
            self.run(Op::Space(0, Event::Thaw))?;
        }
        while !self.model.resources.is_empty() || !self.calls.is_empty() {
            let before = self.trace.len();
            for pick in 0..NAMES {
                self.run(Op::Thread(pick, Step::Fail))?;
            }
            for pick in (0..self.calls.len()).rev() {
                self.run(Op::Call(pick))?;
            }
            for pick in (0..self.leases.len()).rev() {
                self.run(Op::Lease(pick, LeaseOp::Release))?;
            }
            for owner in 1..=OWNERS {
                self.run(Op::Kept(0, Event::NoteKept(owner)))?;
                while !self.model.noted.is_empty() {
                    self.run(Op::Kept(0, Event::ReleaseNoted))?;
                }
            }
            // Noting what is kept is always possible.
            if self.trace.len() == before + OWNERS as usize {
                return Err(self.failure("something stays for ever"));
            }
        }
        match self.table.is_empty() {
            true => Ok(()),
            false => Err(self.failure("something is left")),
        }
    }
}
