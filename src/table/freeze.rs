//! A frozen space: its holds do not change, and releases are deferred.

use hashbrown::HashMap;

use super::NoSuchHold;
use super::owners::HoldKind;
use super::slots::Slot;
use crate::types::OwnerId;

/// The releases of a frozen space.
#[derive(Debug, Default)]
pub(super) struct Freeze {
    /// How many snapshots of the space there are.
    #[cfg(feature = "snapshot")]
    pub(super) snapshots: usize,
    /// How many of them are being executed. Meanwhile no release is deferred: the new program has
    /// already been told of those deferred before.
    #[cfg(feature = "snapshot")]
    pub(super) execs: usize,
    /// How many releases to make when the last snapshot is dropped.
    deferred: HashMap<(Slot, OwnerId, HoldKind), u32>,
}

impl Freeze {
    /// Defers one release, if the owner has one of these `held` holds left.
    pub(super) fn defer(
        &mut self,
        slot: Slot,
        owner: OwnerId,
        kind: HoldKind,
        held: u32,
    ) -> Result<(), NoSuchHold> {
        if self.remaining(slot, owner, kind, held) == 0 {
            return Err(NoSuchHold);
        }
        *self.deferred.entry((slot, owner, kind)).or_default() += 1;
        Ok(())
    }

    /// How many of these `held` holds have no deferred release.
    pub(super) fn remaining(&self, slot: Slot, owner: OwnerId, kind: HoldKind, held: u32) -> u32 {
        held - self.deferred.get(&(slot, owner, kind)).copied().unwrap_or(0)
    }

    /// The deferred releases, counted by slot, owner and kind.
    #[cfg(feature = "snapshot")]
    pub(super) fn deferred(&self) -> impl Iterator<Item = (Slot, OwnerId, u32)> {
        self.deferred.iter().map(|(&(slot, owner, _), &count)| (slot, owner, count))
    }

    #[cfg(feature = "snapshot")]
    pub(super) fn into_deferred(self) -> impl Iterator<Item = (Slot, OwnerId, HoldKind)> {
        let each = self.deferred.into_iter();
        each.flat_map(|(key, count)| std::iter::repeat_n(key, count as usize))
    }
}
