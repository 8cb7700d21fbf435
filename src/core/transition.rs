//! Guards that end a transition of a resource exactly once.

use std::sync::Arc;
use std::time::Instant;

use super::{Core, Hold};
use crate::engine::Name;
use crate::table::{Slot, TurnKey};

/// A transition of one resource, owned by one thread. Its drop, also by a panic, ends the
/// transition without a hold.
pub(crate) struct TransitionGuard<'a> {
    ending: EndOnDrop<'a>,
    name: Arc<Name>,
}

/// Ends a transition without a hold when it is dropped.
pub(super) struct EndOnDrop<'a> {
    core: &'a Core,
    slot: Slot,
    is_pending: bool,
}

impl<'a> EndOnDrop<'a> {
    pub(super) fn new(core: &'a Core, slot: Slot) -> Self {
        Self { core, slot, is_pending: true }
    }
}

impl<'a> TransitionGuard<'a> {
    /// The guard of a transition that the table has just given to this thread.
    pub(crate) fn new(core: &'a Core, slot: Slot, name: Arc<Name>) -> Self {
        Self { ending: EndOnDrop::new(core, slot), name }
    }

    pub(crate) fn slot(&self) -> Slot {
        self.ending.slot
    }

    pub(crate) fn name(&self) -> &Arc<Name> {
        &self.name
    }

    /// Replaces the resource's name: its way to the file differs from that of the previous acquire.
    pub(crate) fn renamed(mut self, name: Arc<Name>) -> Self {
        self.ending.core.lock().set_name(self.ending.slot, Arc::clone(&name));
        self.name = name;
        self
    }

    /// Ends the transition without a hold.
    pub(crate) fn end(self) -> Arc<Name> {
        self.name
    }

    /// Ends the transition in a hold. `turn` is when the process's turn with the resource began, if
    /// there is one.
    #[inline]
    pub(crate) fn end_in_hold(mut self, hold: Hold, turn: Option<Instant>) -> (Slot, Arc<Name>) {
        let EndOnDrop { core, slot, .. } = self.ending;
        self.ending.is_pending = false;
        core.update(|table, wakes| table.end_in_hold(slot, hold, turn, wakes));
        (slot, self.name)
    }

    /// Leaves the transition to a worker, which ends it once the file system answers.
    pub(crate) fn leave_to_worker(&mut self) {
        let EndOnDrop { core, slot, .. } = self.ending;
        self.ending.is_pending = false;
        core.update(|table, wakes| table.set_unresponsive(slot, Instant::now(), wakes));
    }
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        if self.is_pending {
            self.core.end_transition(self.slot);
        }
    }
}

/// A transition whose caller has left: the worker drops this, which ends it without a hold.
pub(crate) struct DetachedTransition {
    pub(crate) core: Arc<Core>,
    pub(crate) slot: Slot,
}

impl Drop for DetachedTransition {
    fn drop(&mut self) {
        self.core.end_transition(self.slot);
    }
}

impl Core {
    /// Ends a transition without a hold: the next waiter gets a transition, or the resource becomes
    /// absent.
    #[inline]
    fn end_transition(&self, slot: Slot) {
        self.update(|table, wakes| {
            // Recorded under the table's mutex, before the next waiter can call `yield_until`.
            if let Some((name, hash, turn)) = table.end_in_nothing(slot, wakes) {
                self.process.fairness.end_turn(TurnKey::of(&name, hash), turn);
            }
        });
    }
}
