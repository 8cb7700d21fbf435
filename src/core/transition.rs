//! A transition of one resource, and the thread that has to end it.

use std::sync::Arc;
use std::time::Instant;

use super::{Core, Hold};
use crate::engine::Name;
use crate::table::{Slot, TurnKey};

/// A transition of one resource. The thread that has this ends it, in nothing if it does nothing
/// else: also by a panic.
pub(crate) struct TransitionGuard<'a> {
    core: &'a Core,
    slot: Slot,
    name: Arc<Name>,
    /// It is still this guard's to end.
    is_pending: bool,
}

impl<'a> TransitionGuard<'a> {
    /// Of a transition that the table has just given to this thread.
    pub(crate) fn new(core: &'a Core, slot: Slot, name: Arc<Name>) -> Self {
        Self { core, slot, name, is_pending: true }
    }

    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    pub(crate) fn name(&self) -> &Arc<Name> {
        &self.name
    }

    /// The same resource, whose name leads to another file than it did for the thread before.
    pub(crate) fn renamed(mut self, name: Arc<Name>) -> Self {
        self.core.lock().set_name(self.slot, Arc::clone(&name));
        self.name = name;
        self
    }

    /// Ends it in nothing.
    pub(crate) fn end(mut self) -> Arc<Name> {
        self.is_pending = false;
        self.core.end_transition(self.slot);
        Arc::clone(&self.name)
    }

    /// Ends it in a hold. `turn` is since when this process has had the resource, if that counts.
    pub(crate) fn end_in_hold(mut self, hold: Hold, turn: Option<Instant>) -> (Slot, Arc<Name>) {
        self.is_pending = false;
        self.core.update(|table, wakes| table.end_in_hold(self.slot, hold, turn, wakes));
        (self.slot, Arc::clone(&self.name))
    }

    /// A worker ends it, once the file system answers.
    pub(crate) fn leave_to_worker(&mut self) {
        self.is_pending = false;
        self.core.update(|table, wakes| table.set_unresponsive(self.slot, Instant::now(), wakes));
    }
}

impl Drop for TransitionGuard<'_> {
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
    fn end_transition(&self, slot: Slot) {
        self.update(|table, wakes| {
            // The turn ends before the next waiter can ask whether one has.
            if let Some((name, hash, turn)) = table.end_in_nothing(slot, wakes) {
                self.process.fairness.end_turn(TurnKey::of(&name, hash), turn);
            }
        });
    }
}
