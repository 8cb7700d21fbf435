//! Ending holds.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Instant;

use super::transition::EndOnDrop;
use super::{Core, Hold, tell};
use crate::engine::{Key, LockFile, Name};
use crate::error::ReleaseError;
use crate::table::{HoldKind, NoSuchHold, Slot, Table, WakeList};
use crate::types::{Mode, Origin, OwnerId};

/// What [`LockSpace::release_owner`](crate::LockSpace::release_owner) did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Released {
    /// How many kept holds have ended.
    pub holds: usize,
    /// The lock files that could not be removed, or the reason why nothing was done
    /// ([`ReleaseError::Forked`]).
    pub leftovers: Vec<ReleaseError>,
}

/// Logs the errors of a release that has no caller to return them to, with the feature `tracing`. A
/// file that is left over blocks nobody.
pub(crate) fn log_release_error(errors: impl IntoIterator<Item = ReleaseError>) {
    for error in errors {
        #[cfg(feature = "tracing")]
        super::events::left_over(&error);
        #[cfg(not(feature = "tracing"))]
        drop(error);
    }
}

/// The mode of a hold whose release unlinks its file; `None` if the file stays.
pub(crate) fn mode_to_unlink(origin: Origin, mode: Mode) -> Option<Mode> {
    (origin == Origin::AutoCreated).then_some(mode)
}

impl Core {
    /// Ends one leased hold of an owner.
    pub(crate) fn release(
        &self,
        slot: Slot,
        name: &Arc<Name>,
        owner: OwnerId,
    ) -> Result<(), ReleaseError> {
        self.process.check().map_err(|creator| ReleaseError::Forked { creator })?;
        match self.leave(slot, owner, HoldKind::Leased) {
            Ok(None) => Ok(()),
            Ok(Some(hold)) => self.finish_release(slot, name, hold),
            Err(NoSuchHold) => Err(ReleaseError::NotHeld { owner, name: name.text().to_owned() }),
        }
    }

    /// Ends one kept hold of an owner.
    pub(crate) fn release_by_name(&self, text: &OsStr, owner: OwnerId) -> Result<(), ReleaseError> {
        self.process.check().map_err(|creator| ReleaseError::Forked { creator })?;
        let not_held = || ReleaseError::NotHeld { owner, name: text.to_owned() };
        #[cfg(feature = "tracing")]
        let mut mode = None;
        let (slot, name, last) = self.update_by_release(|table, wakes| {
            let slot = table.find(Key::from(text)).ok_or_else(not_held)?;
            let name = Arc::clone(table.resource(slot).name());
            #[cfg(feature = "tracing")]
            {
                mode = table.resource(slot).hold().map(Hold::mode);
            }
            let last = table.release(slot, owner, HoldKind::Kept, Instant::now, wakes);
            last.map(|last| (slot, name, last)).map_err(|NoSuchHold| not_held())
        })?;
        let released = last.map_or(Ok(()), |hold| self.finish_release(slot, &name, hold));
        tell!(released_kept(owner, mode.map(|mode| (name, mode)), 1));
        released
    }

    /// Ends every kept hold of one owner, and cancels its waits.
    pub(crate) fn release_owner(&self, owner: OwnerId) -> Released {
        match self.process.check() {
            Ok(()) => self.release_kept(Some(owner)),
            Err(creator) => {
                Released { holds: 0, leftovers: vec![ReleaseError::Forked { creator }] }
            }
        }
    }

    /// Ends every kept hold of one owner, and cancels its waits; or every kept hold of the space.
    /// Takes one resource after the other: if the file system of one hangs, the later resources
    /// stay held, instead of being stuck in a transition.
    pub(crate) fn release_kept(&self, owner: Option<OwnerId>) -> Released {
        let (mut kept, waits) = {
            let table = self.lock();
            (table.kept(owner), owner.map_or_else(Vec::new, |owner| table.waits_of(owner)))
        };
        waits.iter().for_each(|waker| waker.cancel());
        // About in the order in which they were acquired.
        kept.sort_unstable();
        let mut released = Released { holds: 0, leftovers: Vec::new() };
        for (owner, slot) in kept {
            #[cfg(feature = "tracing")]
            let mut held = None;
            let ended = self.update_by_release(|table, wakes| {
                #[cfg(feature = "tracing")]
                {
                    held = super::events::are_wanted().then(|| table.name_and_mode(slot)).flatten();
                }
                table.release_kept(slot, owner, Instant::now, wakes)
            });
            released.holds += ended.count as usize;
            if let Some((name, hold)) = ended.last {
                released.leftovers.extend(self.finish_release(slot, &name, hold).err());
            }
            tell!(released_kept(owner, held, ended.count));
        }
        released
    }

    /// Ends one hold in the table; while the space is frozen, defers its end. If this returns the
    /// lock, the caller [finishes](Self::finish_release) the release.
    #[inline]
    pub(super) fn leave(
        &self,
        slot: Slot,
        owner: OwnerId,
        kind: HoldKind,
    ) -> Result<Option<Hold>, NoSuchHold> {
        self.update_by_release(|table, wakes| table.release(slot, owner, kind, Instant::now, wakes))
    }

    /// Changes the table by a release. While a snapshot of the space is being executed, waits
    /// first: otherwise the caller would learn that the hold has ended, and the new program would
    /// not.
    #[inline]
    fn update_by_release<T>(
        &self,
        update: impl FnOnce(&mut Table<LockFile>, &mut WakeList) -> T,
    ) -> T {
        #[cfg_attr(not(feature = "snapshot"), allow(unused_mut, reason = "nothing is executed"))]
        let mut table = self.lock();
        #[cfg(feature = "snapshot")]
        while table.is_in_exec() {
            self.wait_for_transition(&mut table, None);
        }
        self.update_locked(table, update)
    }

    /// Makes the system calls of a release after the last hold has ended, and ends the transition.
    #[inline]
    pub(super) fn finish_release(
        &self,
        slot: Slot,
        name: &Arc<Name>,
        hold: Hold,
    ) -> Result<(), ReleaseError> {
        let transition = EndOnDrop::new(self, slot);
        let unlink = mode_to_unlink(hold.origin(), hold.mode());
        let released = hold.into_file().map_or(Ok(()), |file| file.release(name, unlink));
        drop(transition);
        released.map_err(|source| ReleaseError::Leftover { name: name.text().to_owned(), source })
    }
}
