//! Converting the lock of a held resource to another mode.

use super::queue::{Grant, Waits, WakeList};
use super::resource::{Resource, State};
use super::{Conversion, LockedFile};
use crate::types::{Mode, OwnerId};

impl<F: LockedFile> Resource<F> {
    /// Takes the file out to convert its lock, if this is the only hold.
    pub(super) fn begin_conversion(&mut self, owner: OwnerId, to: Mode) -> Conversion<F> {
        let State::Held(hold) = &mut self.state else { return Conversion::InTransition };
        if hold.mode() == to {
            return Conversion::Done;
        }
        // Checked first: waiting would not help.
        if to == Mode::Exclusive && hold.file().is_some_and(|file| !file.is_writable()) {
            return Conversion::NotUpgradable;
        }
        if !hold.owners.is_sole(owner) {
            return Conversion::Refused(hold.mode(), hold.owners.blockers(Some(owner)));
        }
        let Some(file) = hold.take_file() else {
            hold.set_mode(to);
            return Conversion::Done;
        };
        let State::Held(hold) = std::mem::replace(&mut self.state, State::changing()) else {
            unreachable!("its state has just been matched")
        };
        self.state = State::Converting(hold);
        Conversion::Begun(file)
    }

    /// Puts the file back after the conversion of its lock; `converted_to` is `None` if the kernel
    /// refused.
    pub(super) fn end_conversion(
        &mut self,
        file: F,
        converted_to: Option<Mode>,
        waits: &mut Waits<F>,
        wakes: &mut WakeList,
    ) {
        if let State::Converting(mut hold) = std::mem::replace(&mut self.state, State::changing()) {
            hold.put_file(file, converted_to);
            self.state = State::Held(hold);
        }
        self.send_back_own(waits, wakes);
        self.admit_waiters(waits, wakes);
    }

    /// Waiters that queued during the conversion may now wait for an exclusive hold of their own
    /// owner. They must ask for admission again, which refuses them.
    fn send_back_own(&mut self, waits: &mut Waits<F>, wakes: &mut WakeList) {
        let (State::Held(hold), Some(queue)) = (&self.state, &mut self.queue) else { return };
        if hold.mode() == Mode::Shared {
            return;
        }
        queue.waiting.retain(|queued| {
            let is_own = !queued.upgrades && hold.owners.has(queued.claim.owner);
            if is_own {
                waits.grant(queued.ticket, Grant::AskAgain, wakes);
            }
            !is_own
        });
    }
}
