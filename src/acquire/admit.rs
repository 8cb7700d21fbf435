//! Admission by the table: a call joins a hold, gets a transition, waits in the queue, or is
//! refused.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use super::{Patience, RegisteredWait, ResolvedRequest, failure};
use crate::core::{Core, TransitionGuard, tell};
use crate::engine::{Key, LockFile, Name};
use crate::error::{AcquireError, Blockers, Busy, DeadlockCause};
use crate::table::{Admission, Claim, Grant, HandedOver, Resource, Slot, Table, WakeList};
use crate::types::{InvalidRequest, Mode, OwnerId};
use crate::wait::{UNRESPONSIVE_AFTER, WaitContext, WaitEnd};

/// A release that is not over after so long hangs, or its thread has got no processor all that time.
const HANGS_AFTER: Duration = Duration::from_secs(1);

/// What the table has granted to a call.
pub(super) enum Entry<'a> {
    /// The call has joined the other shared holds of the resource.
    Joined(Slot, Arc<Name>),
    /// The call has the transition, and acquires the resource.
    Acquire(TransitionGuard<'a>, HandedOver<LockFile>),
    AskAgain,
}

impl Core {
    /// Asks the table for admission, and waits for it if `patience` says so.
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
                let Some(context) = patience.context() else {
                    return Err(failure::frozen(&resolved.text));
                };
                self.wait_while_frozen(&mut table, &resolved.text, context)?;
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
                        let queued = table.enqueue(slot, wait.ticket, *claim, Instant::now());
                        drop(table);
                        queued
                            .map_err(|why| failure::deadlock(&resolved.text, claim.owner, why))?;
                        tell!(waits(&wait.context, claim, &resolved.text));
                        return self.wait_in_queue(slot, wait, resolved, (claim.owner, claim.mode));
                    }
                    _ => {
                        self.refuse_unless_passing(&mut table, slot, refused, claim, patience)?;
                    }
                },
            }
        }
    }

    /// Sleeps once while the space is frozen, for a call on the resource with this name: the caller
    /// asks in a loop whether the freeze is over.
    pub(super) fn wait_while_frozen(
        &self,
        table: &mut MutexGuard<'_, Table<LockFile>>,
        text: &OsStr,
        context: &WaitContext,
    ) -> Result<(), AcquireError> {
        self.wait_for_transition_within(table, context).map_err(|end| match end {
            WaitEnd::Cancelled => failure::cancelled(text, context),
            WaitEnd::TimedOut => failure::frozen(text),
        })
    }

    /// Ends one round of a call that does not wait for holders: sleeps if only a transition is in
    /// the way, so that the call asks again; else refuses the call.
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
        table.watch_transition(slot, Instant::now());
        let Some(context) = patience.context() else {
            self.wait_for_transition(table, answer);
            return Ok(());
        };
        self.wait_for_transition_within(table, context)
            .map_err(|end| refusal(table, slot, claim.mode, end, context))
    }

    /// Sleeps in the queue until the wait is granted something.
    fn wait_in_queue(
        &self,
        slot: Slot,
        wait: &RegisteredWait<'_>,
        resolved: &ResolvedRequest<'_>,
        (owner, asked): (OwnerId, Mode),
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
                (Some(Grant::HeldByItself(held, other)), _) => {
                    let why = DeadlockCause::OwnHold { held };
                    return Err(failure::deadlock_elsewhere(&resolved.text, owner, why, &other));
                }
                (None, Some(end)) => return Err(self.leave_queue(table, slot, wait, asked, end)),
                (None, None) => {}
            }
            drop(table);
            wait.context.waker.sleep(wait.context.deadline());
        }
    }

    /// Renames the transition for this request. The previous acquire of this name may have used a
    /// path, and this one a descriptor, or the reverse: then the way to the file differs.
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

    /// Takes a wait that has ended out of the queue, and returns its error.
    fn leave_queue(
        &self,
        mut table: MutexGuard<'_, Table<LockFile>>,
        slot: Slot,
        wait: &RegisteredWait<'_>,
        asked: Mode,
        end: WaitEnd,
    ) -> AcquireError {
        // It is there while somebody waits.
        let error = refusal(&table, slot, asked, end, &wait.context);
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

/// The error of a wait that has ended before the table has granted anything: who is in its way.
fn refusal(
    table: &Table<LockFile>,
    slot: Slot,
    asked: Mode,
    end: WaitEnd,
    context: &WaitContext,
) -> AcquireError {
    let resource = table.resource(slot);
    let name = Arc::clone(resource.name());
    let hangs = || {
        let changing = resource.changing_since().map(|since| since.elapsed());
        resource.unresponsive_since().is_some()
            || changing.is_some_and(|time| time >= HANGS_AFTER && leads_to_a_file(&name))
    };
    let busy = match end {
        WaitEnd::Cancelled => return failure::cancelled(name.text(), context),
        WaitEnd::TimedOut if hangs() => {
            return failure::unresponsive(name.text(), name.path(), context.waited());
        }
        WaitEnd::TimedOut if resource.is_contended() && table.is_frozen() => {
            return failure::frozen(name.text());
        }
        WaitEnd::TimedOut if resource.is_contended() => Busy::outside_by(name, asked, None),
        // Nobody excludes it: it has waited for the system calls of another thread alone.
        WaitEnd::TimedOut
            if resource.hold().is_none()
                && resource.occupant().is_some_and(|(mode, _)| mode.compatible(asked))
                && context.waited() >= UNRESPONSIVE_AFTER
                && leads_to_a_file(&name) =>
        {
            return failure::unresponsive(name.text(), name.path(), context.waited());
        }
        WaitEnd::TimedOut => match resource.occupant() {
            Some((held, owners)) => inside(resource, asked, held, owners),
            // By a call that creates or deletes the file.
            None => Busy::inside(name, asked, Mode::Exclusive, Vec::new().into()),
        },
    };
    AcquireError::Busy(busy.after(context.waited()))
}

/// Whether calls for the resource can hang: in memory there are none.
fn leads_to_a_file(name: &Name) -> bool {
    !name.leads_nowhere() || name.is_of_opened()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::Hold;
    use crate::engine::OpenNaming;
    use crate::table::{HoldKind, Owners};
    use crate::types::{ByteRange, Origin};
    use crate::wait::{Start, Wait};
    use std::ffi::OsStr;

    const ASKED: Mode = Mode::Exclusive;
    const HOLDER: OwnerId = OwnerId::new(1);
    const WAITER: OwnerId = OwnerId::new(2);

    /// A table with one resource, and a wait for it whose time is over.
    struct Late {
        table: Table<LockFile>,
        slot: Slot,
        context: WaitContext,
    }

    impl Late {
        /// `begin` says what is being done to the resource.
        fn new(
            naming: &OpenNaming,
            begin: impl FnOnce(&mut Table<LockFile>, u64, Arc<Name>) -> Slot,
        ) -> Self {
            let key = Key::from(OsStr::new("/a"));
            let mut table = Table::default();
            let slot = begin(&mut table, key.hash(), naming.name(key).unwrap());
            let Start::Wait(context) = WaitContext::start(Wait::FOREVER) else { unreachable!() };
            Self { table, slot, context }
        }

        /// The only hold of a resource is being released.
        fn behind_release(naming: &OpenNaming) -> Self {
            Self::new(naming, |table, hash, name| {
                let slot = table.begin_acquire(hash, name, &claim(HOLDER));
                let owners = Owners::one(HOLDER);
                let hold = Hold::new(None, ByteRange::FIRST, ASKED, Origin::InMemory, owners);
                let mut wakes = WakeList::default();
                table.end_in_hold(slot, hold, None, &mut wakes);
                let now = Instant::now;
                let last = table.release(slot, HOLDER, HoldKind::Leased, now, &mut wakes);
                assert!(matches!(last, Ok(Some(_))) && !wakes.wake());
                slot
            })
        }

        /// What the wait is told that has been delayed for so long.
        fn is_told(&mut self, delay: Duration) -> AcquireError {
            let ticket = self.table.begin_wait(WAITER, &self.context.waker);
            let began = Instant::now().checked_sub(delay).unwrap();
            self.table.enqueue(self.slot, ticket, claim(WAITER), began).unwrap();
            let end = WaitEnd::TimedOut;
            let told = refusal(&self.table, self.slot, ASKED, end, &self.context);
            self.table.dequeue(self.slot, ticket, &mut WakeList::default());
            told
        }
    }

    fn claim(owner: OwnerId) -> Claim {
        Claim { owner, mode: ASKED, range: ByteRange::FIRST, file: None, opened: false }
    }

    #[track_caller]
    fn is_busy_by(told: AcquireError, owners: &[OwnerId]) {
        let AcquireError::Busy(busy) = told else { panic!("{told}") };
        assert_eq!((busy.held(), busy.owners()), (Some(ASKED), owners));
    }

    #[test]
    fn who_releases_holds_until_a_file_system_is_seen_not_to_answer() {
        let mut late = Late::behind_release(&OpenNaming::Direct);
        is_busy_by(late.is_told(Duration::ZERO), &[HOLDER]);
        let mut late = Late::behind_release(&OpenNaming::Direct);
        let told = late.is_told(HANGS_AFTER);
        assert!(matches!(told, AcquireError::Unresponsive { .. }), "{told}");
    }

    #[test]
    fn in_memory_there_is_no_file_system() {
        let mut late = Late::behind_release(&OpenNaming::InMemory);
        is_busy_by(late.is_told(HANGS_AFTER), &[HOLDER]);
    }

    #[test]
    fn who_creates_or_deletes_a_file_is_no_owner() {
        let create = |table: &mut Table<LockFile>, hash, name| table.begin_change(hash, name);
        is_busy_by(Late::new(&OpenNaming::Direct, create).is_told(Duration::ZERO), &[]);
    }

    /// It has the transition, and makes no call before the end of the freeze.
    #[cfg(feature = "snapshot")]
    #[test]
    fn behind_who_waits_for_the_end_of_a_freeze_nobody_is_said_to_hold() {
        let mut late = Late::behind_release(&OpenNaming::Direct);
        let mut wakes = WakeList::default();
        let ticket = late.table.begin_wait(HOLDER, &late.context.waker);
        late.table.enqueue(late.slot, ticket, claim(HOLDER), Instant::now()).unwrap();
        late.table.freeze();
        assert!(late.table.end_in_nothing(late.slot, &mut wakes).is_none() && !wakes.wake());
        let told = late.is_told(Duration::ZERO);
        assert!(matches!(told, AcquireError::Frozen { .. }), "{told}");
    }
}
