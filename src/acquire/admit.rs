//! A call's way past the table: it joins, acquires, waits in the queue, or is refused.

use std::sync::Arc;

use parking_lot::MutexGuard;

use super::{Patience, RegisteredWait, ResolvedRequest, failure};
use crate::core::{Core, TransitionGuard, tell};
use crate::engine::{Key, LockFile, Name};
use crate::error::{AcquireError, Blockers, Busy};
use crate::table::{
    Admission, Claim, Grant, HandedOver, Resource, Slot, Table, UNRESPONSIVE_AFTER, WakeList,
};
use crate::types::{InvalidRequest, Mode};
use crate::wait::WaitEnd;

/// How a call has got past the table.
pub(super) enum Entry<'a> {
    /// It has joined others that hold the resource.
    Joined(Slot, Arc<Name>),
    /// The resource is this call's to acquire.
    Acquire(TransitionGuard<'a>, HandedOver<LockFile>),
    AskAgain,
}

impl Core {
    /// Asks the table for admission, and waits for it as `patience` says.
    pub(super) fn enter(
        &self,
        resolved: &ResolvedRequest<'_>,
        claim: &mut Claim,
        patience: Patience<'_>,
    ) -> Result<Entry<'_>, AcquireError> {
        let key = Key::from(&*resolved.text);
        let mut table = self.lock();
        loop {
            if table.is_frozen() {
                self.wait_for_thaw(&mut table, resolved, patience)?;
                continue;
            }
            let Some(slot) = table.find(key) else {
                let name = resolved.name(&self.naming)?;
                let slot = table.begin_acquire(key.hash(), Arc::clone(&name), claim);
                drop(table);
                let transition = TransitionGuard::new(self, slot, name);
                return Ok(Entry::Acquire(transition, HandedOver::Nothing));
            };
            match table.admit(slot, claim) {
                Admission::Joined => {
                    return Ok(Entry::Joined(slot, Arc::clone(table.resource(slot).name())));
                }
                Admission::Invalid(why) => return Err(resolved.invalid(why)),
                Admission::NeedsFileId => {
                    let name = Arc::clone(table.resource(slot).name());
                    let look = || self.file_id_by_path(&name, patience);
                    claim.file = Some(MutexGuard::unlocked(&mut table, look)?);
                }
                refused => match patience {
                    Patience::Wait(wait) => {
                        let queued = table.enqueue(slot, wait.ticket, *claim);
                        drop(table);
                        queued
                            .map_err(|why| failure::deadlock(&resolved.text, claim.owner, why))?;
                        tell!(waits(&wait.context, claim, &resolved.text));
                        return self.wait_in_queue(slot, wait, resolved, claim.mode);
                    }
                    _ => {
                        self.refuse_unless_passing(&mut table, slot, refused, claim, patience)?;
                    }
                },
            }
        }
    }

    /// Waits for the end of a freeze, as long as `patience` allows.
    fn wait_for_thaw(
        &self,
        table: &mut MutexGuard<'_, Table<LockFile>>,
        resolved: &ResolvedRequest<'_>,
        patience: Patience<'_>,
    ) -> Result<(), AcquireError> {
        let Some(context) = patience.context() else {
            return Err(failure::frozen(&resolved.text));
        };
        self.wait_for_transition_within(table, context).map_err(|end| match end {
            WaitEnd::Cancelled => failure::cancelled(&resolved.text, context),
            WaitEnd::TimedOut => failure::frozen(&resolved.text),
        })
    }

    /// A call that does not wait for holders: waits for a transition that will be over in a moment,
    /// and is refused by anything else.
    fn refuse_unless_passing(
        &self,
        table: &mut MutexGuard<'_, Table<LockFile>>,
        slot: Slot,
        admission: Admission,
        claim: &Claim,
        patience: Patience<'_>,
    ) -> Result<(), AcquireError> {
        let name = Arc::clone(table.resource(slot).name());
        let busy = |busy: Busy| {
            Err(AcquireError::Busy(match patience.context() {
                Some(context) => busy.after(context.waited()),
                None => busy,
            }))
        };
        let answer = match admission {
            Admission::Refused(held, owners) => {
                return busy(inside(table.resource(slot), claim.mode, held, owners));
            }
            Admission::RefusedOutside => return busy(Busy::outside_by(name, claim.mode, None)),
            Admission::Unresponsive(since) => {
                let waited = since.elapsed();
                if waited >= UNRESPONSIVE_AFTER {
                    return Err(failure::unresponsive(name.text(), name.path(), waited));
                }
                Some(since + UNRESPONSIVE_AFTER)
            }
            _ => None,
        };
        table.watch_transition(slot);
        let Some(context) = patience.context() else {
            self.wait_for_transition(table, answer);
            return Ok(());
        };
        self.wait_for_transition_within(table, context)
            .map_err(|end| failure::no_answer(end, name.text(), &name.path(), context))
    }

    /// Sleeps in the queue until the wait is granted something.
    fn wait_in_queue(
        &self,
        slot: Slot,
        wait: &RegisteredWait<'_>,
        resolved: &ResolvedRequest<'_>,
        asked: Mode,
    ) -> Result<Entry<'_>, AcquireError> {
        loop {
            let end = wait.context.end();
            let mut table = self.lock();
            match (table.take_grant(wait.ticket), end) {
                (Some(Grant::Joined), _) => {
                    return Ok(Entry::Joined(slot, Arc::clone(table.resource(slot).name())));
                }
                (Some(Grant::Acquire(handed_over)), _) => {
                    let name = Arc::clone(table.resource(slot).name());
                    drop(table);
                    let transition = TransitionGuard::new(self, slot, name);
                    let transition = self.as_it_is_meant(transition, resolved)?;
                    return Ok(Entry::Acquire(transition, handed_over));
                }
                (Some(Grant::Invalid(why)), _) => return Err(resolved.invalid(why)),
                (Some(Grant::AskAgain), _) => return Ok(Entry::AskAgain),
                (None, Some(end)) => return Err(self.leave_queue(table, slot, wait, asked, end)),
                (None, None) => {}
            }
            drop(table);
            wait.context.waker.sleep(wait.context.deadline());
        }
    }

    /// The thread that acquired before may have meant a file by its path, and this one means one by
    /// a descriptor, or the other way round: then the way to the file is another one.
    fn as_it_is_meant<'a>(
        &'a self,
        transition: TransitionGuard<'a>,
        resolved: &ResolvedRequest<'_>,
    ) -> Result<TransitionGuard<'a>, AcquireError> {
        if resolved.opened.is_none() && !transition.name().is_of_opened() {
            return Ok(transition);
        }
        let name = resolved.name(&self.naming)?;
        Ok(transition.renamed(name))
    }

    /// The wait has ended in the queue.
    fn leave_queue(
        &self,
        mut table: MutexGuard<'_, Table<LockFile>>,
        slot: Slot,
        wait: &RegisteredWait<'_>,
        asked: Mode,
        end: WaitEnd,
    ) -> AcquireError {
        // It is there while somebody waits.
        let resource = table.resource(slot);
        let (name, waited) = (Arc::clone(resource.name()), wait.context.waited());
        let busy = |busy: Busy| AcquireError::Busy(busy.after(waited));
        let error = match (end, resource.blockers()) {
            (WaitEnd::Cancelled, _) => failure::cancelled(name.text(), &wait.context),
            // Nobody holds it: its file system alone delays it.
            (_, None) => failure::unresponsive(name.text(), name.path(), waited),
            _ if resource.unresponsive_since().is_some() => {
                failure::unresponsive(name.text(), name.path(), waited)
            }
            _ if resource.is_contended() && table.is_frozen() => failure::frozen(name.text()),
            _ if resource.is_contended() => busy(Busy::outside_by(Arc::clone(&name), asked, None)),
            (_, Some((held, owners))) => busy(inside(resource, asked, held, owners)),
        };
        let mut wakes = WakeList::default();
        table.dequeue(slot, wait.ticket, &mut wakes);
        drop(table);
        self.wake(wakes);
        error
    }
}

impl ResolvedRequest<'_> {
    fn invalid(&self, why: InvalidRequest) -> AcquireError {
        AcquireError::Invalid { name: self.text.clone().into_owned(), why }
    }
}

/// The resource is held in this space; and perhaps in a mode that the request could join, were it
/// not for an exclusive one that waits.
fn inside(resource: &Resource<LockFile>, asked: Mode, held: Mode, owners: Blockers) -> Busy {
    let busy = Busy::inside(Arc::clone(resource.name()), asked, held, owners);
    match held.compatible(asked) && resource.exclusive_waits() {
        true => busy.behind_waiter(),
        false => busy,
    }
}
