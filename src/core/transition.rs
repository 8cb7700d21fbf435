//! A transition of one resource, and the thread that has to end it.

use std::sync::Arc;
use std::time::Instant;

use super::{Core, Hold};
use crate::engine::Name;
use crate::table::{Slot, TurnKey};

/// A transition of one resource. The thread that has this ends it, in nothing if it does nothing
/// else: also by a panic.
pub(crate) struct TransitionGuard<'a> {
    ending: EndOnDrop<'a>,
    name: Arc<Name>,
}

/// Ends a transition in nothing when it is dropped.
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
    /// Of a transition that the table has just given to this thread.
    pub(crate) fn new(core: &'a Core, slot: Slot, name: Arc<Name>) -> Self {
        Self { ending: EndOnDrop::new(core, slot), name }
    }

    pub(crate) fn slot(&self) -> Slot {
        self.ending.slot
    }

    pub(crate) fn name(&self) -> &Arc<Name> {
        &self.name
    }

    /// The same resource, whose name leads to another file than it did for the thread before.
    pub(crate) fn renamed(mut self, name: Arc<Name>) -> Self {
        self.ending.core.lock().set_name(self.ending.slot, Arc::clone(&name));
        self.name = name;
        self
    }

    /// Ends it in nothing.
    pub(crate) fn end(self) -> Arc<Name> {
        self.name
    }

    /// Ends it in a hold. `turn` is since when this process has had the resource, if that counts.
    #[inline]
    pub(crate) fn end_in_hold(mut self, hold: Hold, turn: Option<Instant>) -> (Slot, Arc<Name>) {
        let EndOnDrop { core, slot, .. } = self.ending;
        self.ending.is_pending = false;
        core.update(|table, wakes| table.end_in_hold(slot, hold, turn, wakes));
        (slot, self.name)
    }

    /// A worker ends it, once the file system answers.
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

/// A transition whose caller has left: a worker ends it in nothing when it drops this.
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
    /// Ends a transition in nothing: the next waiter gets it, or the resource is absent.
    #[inline]
    fn end_transition(&self, slot: Slot) {
        self.update(|table, wakes| {
            // The turn ends before the next waiter can ask whether one has.
            if let Some((name, hash, turn)) = table.end_in_nothing(slot, wakes) {
                self.process.fairness.end_turn(TurnKey::of(&name, hash), turn);
            }
        });
    }
}
