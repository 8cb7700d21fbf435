//! One leased hold of an owner, as a value: what a `Lease` contains.

use std::ffi::OsStr;
use std::fmt;
use std::sync::Arc;

use super::{Core, log_release_error, tell};
use crate::engine::{Key, Name};
use crate::error::{ReleaseError, VerifyError};
use crate::table::{HoldKind, Slot};
use crate::types::{Mode, OwnerId};
use crate::wait::{CallOptions, CallQueue, OnTimeout, WaitContext};

/// One leased hold of an owner. Its drop releases it, and nothing else can.
pub(crate) struct OwnedHold {
    core: Arc<Core>,
    slot: Slot,
    name: Arc<Name>,
    owner: OwnerId,
    pub(crate) mode: Mode,
    /// Whether this value still has to release the hold.
    is_held: bool,
}

impl OwnedHold {
    /// The value for a hold that the table has just counted.
    pub(crate) fn new(
        core: &Arc<Core>,
        (slot, name): (Slot, Arc<Name>),
        owner: OwnerId,
        mode: Mode,
    ) -> Self {
        Self { core: Arc::clone(core), slot, name, owner, mode, is_held: true }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.core
    }

    pub(crate) fn slot(&self) -> Slot {
        self.slot
    }

    pub(crate) fn name(&self) -> &Arc<Name> {
        &self.name
    }

    pub(crate) fn owner(&self) -> OwnerId {
        self.owner
    }

    /// Checks that the name still leads to the locked file, and that the kernel shows its lock.
    pub(crate) fn verify(&self) -> Result<(), VerifyError> {
        self.core.verify(self.slot, &self.name)
    }

    /// Turns the leased hold into a kept one.
    pub(crate) fn keep(mut self) {
        self.is_held = false;
        if self.core.process.is_here() {
            let kept = self.core.lock().set_hold_kind(self.slot, self.owner, HoldKind::Kept);
            debug_assert!(kept.is_ok(), "the hold is there");
        }
    }

    /// Releases the hold.
    pub(crate) fn release(mut self) -> Result<(), ReleaseError> {
        self.is_held = false;
        #[cfg(feature = "tracing")]
        if super::events::are_wanted() {
            return self.release_and_tell();
        }
        self.core.release(self.slot, &self.name, self.owner)
    }

    #[cfg(feature = "tracing")]
    #[cold]
    fn release_and_tell(&self) -> Result<(), ReleaseError> {
        let released = self.core.release(self.slot, &self.name, self.owner);
        if let Ok(()) | Err(ReleaseError::Leftover { .. }) = released {
            super::events::released(self.owner, self.name.text(), self.mode);
        }
        released
    }

    /// Releases the hold of a call that has not got all that it asked for: nobody was told of it.
    pub(crate) fn give_back(mut self) {
        self.is_held = false;
        log_release_error(self.core.release(self.slot, &self.name, self.owner).err());
    }

    /// [Gives the hold back](Self::give_back) on a worker, and waits for that as long as `context`
    /// says: the release goes on afterwards.
    pub(crate) fn give_back_on_worker(mut self, queue: &CallQueue, context: &WaitContext) {
        self.is_held = false;
        let left = self.core.leave(self.slot, self.owner, HoldKind::Leased);
        let Ok(Some(hold)) = left else { return };
        let (core, slot, name) = (Arc::clone(&self.core), self.slot, Arc::clone(&self.name));
        let finish = move || log_release_error(core.finish_release(slot, &name, hold).err());
        let options = CallOptions { on_timeout: OnTimeout::RunAnyway, cannot_hang: &|| false };
        let _ = self.core.process.workers.run(queue, (context, options), finish, drop, || ());
    }
}

impl Core {
    /// Turns one kept hold of an owner into a leased one.
    pub(crate) fn retake(
        self: &Arc<Self>,
        text: &OsStr,
        owner: OwnerId,
    ) -> Result<OwnedHold, ReleaseError> {
        self.process.check().map_err(|creator| ReleaseError::Forked { creator })?;
        let mut table = self.lock();
        let retaken = table.find(Key::from(text)).and_then(|slot| {
            table.set_hold_kind(slot, owner, HoldKind::Leased).ok()?;
            let resource = table.resource(slot);
            Some((slot, Arc::clone(resource.name()), resource.hold()?.mode()))
        });
        drop(table);
        let not_held = || ReleaseError::NotHeld { owner, name: text.to_owned() };
        let (slot, name, mode) = retaken.ok_or_else(not_held)?;
        Ok(OwnedHold::new(self, (slot, name), owner, mode))
    }
}

impl Drop for OwnedHold {
    fn drop(&mut self) {
        if self.is_held {
            let released = self.core.release(self.slot, &self.name, self.owner);
            if let Err(ReleaseError::Forked { .. }) = released {
                // The lock is its parent's.
                return;
            }
            tell!(released(self.owner, self.name.text(), self.mode));
            log_release_error(released.err());
        }
    }
}

impl fmt::Debug for OwnedHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedHold").field("name", &self.name.text()).finish_non_exhaustive()
    }
}
