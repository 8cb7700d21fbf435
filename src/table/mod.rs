//! The state machine of a space's resources: who holds what, who waits, and who may make system
//! calls for it.
//!
//! A resource that is not in the table is *absent*. The others:
//!
//! | state | what it means | who ends it | a try that meets it |
//! |---|---|---|---|
//! | acquiring | one thread makes the system calls for one hold | that thread: held, contended, acquiring for the head of the queue, or absent | waits, if compatible; else refused |
//! | contended | the same thread waits for a holder outside of this space, or for the end of a freeze | that thread: acquiring, acquiring for the head of the queue, or absent | refused |
//! | held | a descriptor with its lock, and its owners | the last owner to leave: changing, or acquiring for the head of the queue; a conversion: converting | joins, if compatible; else refused |
//! | converting | held, and one thread tries to change the lock's mode | that thread: held | waits, if compatible; else refused |
//! | changing | one thread unlinks, unlocks and closes, or creates or deletes the file | that thread: acquiring for the head of the queue, or absent | waits |
//!
//! Waiters queue in order. When the resource becomes free, the waiter at the head of the queue gets
//! the transition, and with it the locked descriptor where that can be handed over. A shared
//! request does not pass a waiting exclusive one, unless its owner already holds the resource
//! shared: that owner would otherwise wait for its own hold.
//!
//! If the caller of an acquire leaves before the file system has answered, the resource stays
//! acquiring, and a worker ends the transition when the answer comes.
//!
//! This layer makes no system call, takes no mutex and starts no thread; the time is passed in. It
//! does not know files either: what it must know of a locked file is [`LockedFile`]. Each method is
//! one step of a transition. It adds the waiters that must be woken to a [`WakeList`], and its
//! caller wakes them after it has unlocked the table.

mod conversion;
mod fairness;
mod freeze;
mod hold;
mod owners;
mod queue;
mod resource;
mod slots;

use std::sync::Arc;
use std::time::Instant;

use hashbrown::{HashMap, HashSet};

pub(crate) use fairness::{Contention, LostRaces, RecentTurns, TurnKey, YIELD_TIME};
pub(crate) use hold::Hold;
pub(crate) use owners::{HoldKind, Owners};
pub(crate) use queue::{Grant, HandedOver, Ticket, WakeList};
pub(crate) use resource::Resource;
pub(crate) use slots::Slot;

use crate::engine::{Key, Name};
use crate::error::{Blockers, DeadlockCause};
use crate::sync::Waker;
use crate::types::{ByteRange, FileId, InvalidRequest, Mode, OwnerId};
use freeze::Freeze;
use owners::KeptChange;
use queue::Waits;
use resource::State;
use slots::Slots;

/// The file that carries the lock of a hold, as far as the table has to know it.
pub(crate) trait LockedFile {
    fn id(&self) -> FileId;
    fn range(&self) -> ByteRange;
    /// Whether its lock can be exclusive.
    fn is_writable(&self) -> bool;
}

/// A request, as far as the table has to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) owner: OwnerId,
    pub(crate) mode: Mode,
    pub(crate) range: ByteRange,
    /// The file that the request means, if the caller's descriptor or a look at the path has told.
    pub(crate) file: Option<FileId>,
    /// The target is an open file of the caller.
    pub(crate) opened: bool,
}

/// What becomes of a claim on a resource that is not absent.
#[derive(Debug)]
pub(crate) enum Admission {
    /// The claim has joined the other shared holds.
    Joined,
    /// The resource is held or being acquired in a mode that excludes the claim, or an exclusive
    /// waiter is ahead of the claim.
    Refused(Mode, Blockers),
    /// The resource is held outside of this space, and a call of this space already waits for it.
    RefusedOutside,
    /// A transition must end first.
    InTransition,
    /// As `InTransition`, but the file system has not answered since this moment, when the caller
    /// of the transition left.
    Unresponsive(Instant),
    /// The caller must first find out which file the claim means: it may not be the one that is
    /// held.
    NeedsFileId,
    Invalid(InvalidRequest),
}

/// What becomes of a request to change the mode of a hold.
#[derive(Debug)]
pub(crate) enum Conversion<F> {
    /// The conversion has begun. The caller returns the file to [`Table::end_conversion`].
    Begun(F),
    /// The hold has the mode that was asked for, now or already before.
    Done,
    /// Other owners hold the resource too, or this owner has another hold of it.
    Refused(Mode, Blockers),
    /// The hold's file is open for reading only.
    NotUpgradable,
    /// A transition must end first.
    InTransition,
    Frozen,
}

/// The kept holds of one owner of one resource that have ended.
pub(crate) struct KeptReleased<F> {
    pub(crate) count: u32,
    /// The resource's name and its lock, if these were the last holds of the resource.
    pub(crate) last: Option<(Arc<Name>, Hold<F>)>,
}

impl<F> KeptReleased<F> {
    const NONE: Self = Self { count: 0, last: None };
}

/// The owner has no such hold.
#[derive(Debug)]
pub(crate) struct NoSuchHold;

/// The resources of a space, the kept holds of each owner, and the calls that wait.
#[derive(Debug)]
pub(crate) struct Table<F> {
    slots: Slots<F>,
    /// For each owner, the indexes of the slots where it has kept holds: a release of all of them
    /// looks at no other owner's holds.
    kept: HashMap<OwnerId, HashSet<u32>>,
    waits: Waits<F>,
    frozen: Option<Box<Freeze>>,
}

impl<F> Default for Table<F> {
    fn default() -> Self {
        Self {
            slots: Slots::default(),
            kept: HashMap::default(),
            waits: Waits::default(),
            frozen: None,
        }
    }
}

/// Looking.
impl<F: LockedFile> Table<F> {
    pub(crate) fn find(&self, key: Key<'_>) -> Option<Slot> {
        self.slots.find(key)
    }

    /// The resource in a slot that is in use: the caller holds it, waits for it, or has its
    /// transition.
    pub(crate) fn resource(&self, slot: Slot) -> &Resource<F> {
        self.slots.at(slot)
    }

    /// What is held in a slot that may be absent by now, and how.
    #[cfg(feature = "tracing")]
    pub(crate) fn name_and_mode(&self, slot: Slot) -> Option<(Arc<Name>, Mode)> {
        let resource = self.slots.get(slot)?;
        Some((Arc::clone(resource.name()), resource.hold()?.mode()))
    }

    /// All resources that are not absent, in no order.
    pub(crate) fn resources(&self) -> impl Iterator<Item = &Resource<F>> {
        self.slots.iter()
    }

    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.is_some()
    }

    /// The hold or the earlier wait of the claim's own owner that the claim would wait for. `None`
    /// while the space is frozen: the release of that hold may be deferred.
    pub(crate) fn would_wait_for_itself(&self, slot: Slot, claim: &Claim) -> Option<DeadlockCause> {
        if self.is_frozen() { None } else { self.slots.at(slot).would_wait_for_itself(claim) }
    }

    /// The next end of this resource's transition is told by [`WakeList::wake`].
    pub(crate) fn watch_transition(&mut self, slot: Slot, now: Instant) {
        let resource = self.slots.at_mut(slot);
        resource.watched = true;
        resource.delays(now);
    }
}

/// Acquiring, and changing files that nobody holds.
impl<F: LockedFile> Table<F> {
    /// Adds the claim's hold to the holds of a resource, or says why not.
    pub(crate) fn admit(&mut self, slot: Slot, claim: &Claim) -> Admission {
        self.slots.at_mut(slot).admit(claim)
    }

    /// Absent to acquiring. The caller has the transition.
    #[inline]
    pub(crate) fn begin_acquire(&mut self, hash: u64, name: Arc<Name>, claim: &Claim) -> Slot {
        let state = State::acquiring(claim.owner, claim.mode);
        self.slots.insert(|generation| Resource::new(name, hash, generation, state))
    }

    /// Absent to changing. The caller has the transition.
    pub(crate) fn begin_change(&mut self, hash: u64, name: Arc<Name>) -> Slot {
        self.slots.insert(|generation| Resource::new(name, hash, generation, State::changing()))
    }

    /// Replaces the resource's name: its way to the file differs from that of the previous acquire.
    pub(crate) fn set_name(&mut self, slot: Slot, name: Arc<Name>) {
        self.slots.at_mut(slot).set_name(name);
    }

    /// Acquiring to held. `turn` is when the process's turn with the resource began, if there is
    /// one.
    #[inline]
    pub(crate) fn end_in_hold(
        &mut self,
        slot: Slot,
        hold: Hold<F>,
        turn: Option<Instant>,
        wakes: &mut WakeList,
    ) {
        let resource = self.slots.at_mut(slot);
        resource.state = State::Held(hold);
        if let Some(turn) = turn {
            resource.start_turn(turn);
        }
        resource.admit_waiters(&mut self.waits, wakes);
        self.transition_ended(slot, wakes);
    }

    /// Acquiring, contended or changing to acquiring for the next waiter, or to absent. Returns the
    /// turn that this ends, if there was one: other processes can lock the resource now.
    #[inline]
    pub(crate) fn end_in_nothing(
        &mut self,
        slot: Slot,
        wakes: &mut WakeList,
    ) -> Option<(Arc<Name>, u64, Instant)> {
        let is_frozen = self.is_frozen();
        self.transition_ended(slot, wakes);
        let resource = self.slots.at_mut(slot);
        let turn = resource.take_turn();
        let ended = turn.map(|turn| (Arc::clone(resource.name()), resource.hash(), turn));
        if !resource.grant_next(HandedOver::Nothing, &mut self.waits, wakes) {
            self.slots.remove(slot);
        } else if is_frozen {
            // The waiter makes no system call until the thaw: see `resume`.
            resource.set_contended();
        }
        ended
    }

    /// Acquiring to contended: the lock is held outside of this space, so tries are refused at
    /// once.
    pub(crate) fn set_contended(&mut self, slot: Slot, wakes: &mut WakeList) {
        self.slots.at_mut(slot).set_contended();
        self.transition_ended(slot, wakes);
    }

    /// Contended to acquiring: system calls are made again. `false` while the space is frozen.
    pub(crate) fn resume(&mut self, slot: Slot) -> bool {
        let resource = self.slots.at_mut(slot);
        if self.frozen.is_some() && resource.is_contended() {
            return false;
        }
        resource.resume();
        true
    }

    /// The acquiring thread has left before the file system answered. A worker ends the transition
    /// when the answer comes.
    pub(crate) fn set_unresponsive(&mut self, slot: Slot, now: Instant, wakes: &mut WakeList) {
        self.slots.at_mut(slot).set_unresponsive(now);
        self.transition_ended(slot, wakes);
    }

    #[inline]
    fn transition_ended(&mut self, slot: Slot, wakes: &mut WakeList) {
        wakes.transition_ended |= std::mem::take(&mut self.slots.at_mut(slot).watched);
    }
}

/// Converting.
impl<F: LockedFile> Table<F> {
    /// Held to converting, with the hold's file for the caller; or says why not.
    pub(crate) fn begin_conversion(
        &mut self,
        slot: Slot,
        owner: OwnerId,
        to: Mode,
        wakes: &mut WakeList,
    ) -> Conversion<F> {
        if self.frozen.is_some() {
            return Conversion::Frozen;
        }
        let resource = self.slots.at_mut(slot);
        let conversion = resource.begin_conversion(owner, to);
        if let Conversion::Done = conversion {
            resource.admit_waiters(&mut self.waits, wakes);
        }
        conversion
    }

    /// Converting to held. `converted_to` is the new mode; `None` if the kernel has refused it.
    pub(crate) fn end_conversion(
        &mut self,
        slot: Slot,
        file: F,
        converted_to: Option<Mode>,
        wakes: &mut WakeList,
    ) {
        let resource = self.slots.at_mut(slot);
        resource.end_conversion(file, converted_to, &mut self.waits, wakes);
        self.transition_ended(slot, wakes);
    }
}

/// Waiting.
impl<F: LockedFile> Table<F> {
    /// Registers a waiting call, so that [`waits_of`](Self::waits_of) finds it by its owner.
    pub(crate) fn begin_wait(&mut self, owner: OwnerId, waker: &Arc<Waker>) -> Ticket {
        self.waits.begin(owner, waker)
    }

    pub(crate) fn end_wait(&mut self, ticket: Ticket) {
        self.waits.end(ticket);
    }

    /// The wakers of all waiting calls of an owner.
    pub(crate) fn waits_of(&self, owner: OwnerId) -> Vec<Arc<Waker>> {
        self.waits.of(owner).map(Arc::clone).collect()
    }

    /// Puts a wait at the end of a resource's queue.
    ///
    /// # Errors
    /// The claim would wait for a hold or an earlier wait of its own owner.
    pub(crate) fn enqueue(
        &mut self,
        slot: Slot,
        ticket: Ticket,
        claim: Claim,
        now: Instant,
    ) -> Result<(), DeadlockCause> {
        let resource = self.slots.at_mut(slot);
        if let Some(why) = resource.would_wait_for_itself(&claim) {
            return Err(why);
        }
        resource.enqueue(ticket, claim, now);
        Ok(())
    }

    /// Puts a wait for an upgrade at the head of the queue: its owner holds the resource shared.
    ///
    /// # Errors
    /// Another hold already waits for an upgrade, or the owner has another hold of the resource:
    /// either would be waited for forever. Holds whose release is deferred do not count.
    pub(crate) fn enqueue_upgrade(
        &mut self,
        slot: Slot,
        ticket: Ticket,
        owner: OwnerId,
    ) -> Result<(), DeadlockCause> {
        let resource = self.slots.at_mut(slot);
        let Some(hold) = resource.hold() else { return Err(DeadlockCause::OtherOwnHold) };
        let remaining = [HoldKind::Leased, HoldKind::Kept].map(|kind| {
            let held = hold.owners.count(owner, kind);
            let frozen = self.frozen.as_ref();
            frozen.map_or(held, |frozen| frozen.remaining(slot, owner, kind, held))
        });
        if remaining.iter().sum::<u32>() != 1 {
            return Err(DeadlockCause::OtherOwnHold);
        }
        let range = hold.range();
        resource.enqueue_upgrade(ticket, owner, range)
    }

    /// Takes a wait out of the queue of a resource that is not absent.
    pub(crate) fn dequeue(&mut self, slot: Slot, ticket: Ticket, wakes: &mut WakeList) {
        let resource = self.slots.at_mut(slot);
        resource.dequeue(ticket);
        if self.frozen.is_none() {
            resource.admit_waiters(&mut self.waits, wakes);
        }
    }

    /// Sends away the waits of a resource's queue whose own owner, as `held_by_itself` tells, holds
    /// the file in such a mode by such another name, or in another space.
    pub(crate) fn refuse_waiters(
        &mut self,
        slot: Slot,
        held_by_itself: impl Fn(&Claim) -> Option<(Mode, Arc<Name>)>,
        wakes: &mut WakeList,
    ) {
        let resource = self.slots.at_mut(slot);
        resource.refuse_waiters(held_by_itself, &mut self.waits, wakes);
        if self.frozen.is_none() {
            resource.admit_waiters(&mut self.waits, wakes);
        }
    }

    /// What a wait was granted since it was put into a queue.
    pub(crate) fn take_grant(&mut self, ticket: Ticket) -> Option<Grant<F>> {
        self.waits.take_grant(ticket)
    }
}

/// Releasing and keeping.
impl<F: LockedFile> Table<F> {
    /// Ends one hold of an owner; while the space is frozen, defers its end. Returns the lock if
    /// this was the resource's last hold: the resource is changing until the caller has released
    /// the lock and calls [`end_in_nothing`](Self::end_in_nothing).
    #[inline]
    pub(crate) fn release(
        &mut self,
        slot: Slot,
        owner: OwnerId,
        kind: HoldKind,
        now: impl FnOnce() -> Instant,
        wakes: &mut WakeList,
    ) -> Result<Option<Hold<F>>, NoSuchHold> {
        let resource = self.slots.at_mut(slot);
        if let Some(frozen) = &mut self.frozen {
            let held = resource.hold().map_or(0, |hold| hold.owners.count(owner, kind));
            return frozen.defer(slot, owner, kind, held).map(|()| None);
        }
        let State::Held(hold) = &mut resource.state else { return Err(NoSuchHold) };
        let change = hold.owners.remove(owner, kind)?;
        let last = resource.owner_left(owner, now, &mut self.waits, wakes);
        if change != KeptChange::Unchanged {
            self.kept_changed(slot, owner, change);
        }
        Ok(last)
    }

    /// The slots where one owner, or every owner for `None`, has kept holds.
    pub(crate) fn kept(&self, owner: Option<OwnerId>) -> Vec<(OwnerId, Slot)> {
        let of = |owner: OwnerId, kept: &HashSet<u32>| -> Vec<_> {
            kept.iter().map(|index| (owner, self.slots.slot(*index))).collect()
        };
        match owner {
            Some(owner) => self.kept.get(&owner).map_or_else(Vec::new, |slots| of(owner, slots)),
            None => self.kept.iter().flat_map(|(owner, slots)| of(*owner, slots)).collect(),
        }
    }

    /// Ends all kept holds of an owner in one slot, as [`release`](Self::release) ends one, and
    /// counts them. The slot may be out of use: another call may have ended the holds already.
    pub(crate) fn release_kept(
        &mut self,
        slot: Slot,
        owner: OwnerId,
        now: impl FnOnce() -> Instant,
        wakes: &mut WakeList,
    ) -> KeptReleased<F> {
        let Some(resource) = self.slots.get_mut(slot) else { return KeptReleased::NONE };
        if let Some(frozen) = &mut self.frozen {
            let held = resource.hold().map_or(0, |hold| hold.owners.count(owner, HoldKind::Kept));
            let mut deferred = 0;
            while frozen.defer(slot, owner, HoldKind::Kept, held).is_ok() {
                deferred += 1;
            }
            return KeptReleased { count: deferred, last: None };
        }
        let State::Held(hold) = &mut resource.state else { return KeptReleased::NONE };
        let count = hold.owners.remove_kept(owner);
        if count == 0 {
            return KeptReleased::NONE;
        }
        let last = resource.owner_left(owner, now, &mut self.waits, wakes);
        let last = last.map(|hold| (Arc::clone(resource.name()), hold));
        self.kept_changed(slot, owner, KeptChange::Ends);
        KeptReleased { count, last }
    }

    /// Turns one hold of the owner into one of this kind: a leased hold into a kept one, or the
    /// reverse.
    pub(crate) fn set_hold_kind(
        &mut self,
        slot: Slot,
        owner: OwnerId,
        kind: HoldKind,
    ) -> Result<(), NoSuchHold> {
        let resource = self.slots.at_mut(slot);
        let (State::Held(hold) | State::Converting(hold)) = &mut resource.state else {
            return Err(NoSuchHold);
        };
        if let Some(frozen) = &self.frozen {
            let other = match kind {
                HoldKind::Leased => HoldKind::Kept,
                HoldKind::Kept => HoldKind::Leased,
            };
            let held = hold.owners.count(owner, other);
            if frozen.remaining(slot, owner, other, held) == 0 {
                return Err(NoSuchHold);
            }
        }
        let change = hold.owners.convert_to(kind, owner)?;
        self.kept_changed(slot, owner, change);
        Ok(())
    }

    fn kept_changed(&mut self, slot: Slot, owner: OwnerId, change: KeptChange) {
        match change {
            KeptChange::Unchanged => {}
            KeptChange::Begins => drop(self.kept.entry(owner).or_default().insert(slot.index())),
            KeptChange::Ends => {
                if let Some(slots) = self.kept.get_mut(&owner) {
                    slots.remove(&slot.index());
                    if slots.is_empty() {
                        self.kept.remove(&owner);
                    }
                }
            }
        }
    }
}

/// Freezing and restoring.
#[cfg(feature = "snapshot")]
impl<F: LockedFile> Table<F> {
    /// Freezes the space. Freezes are counted: each needs its own thaw.
    pub(crate) fn freeze(&mut self) {
        self.frozen.get_or_insert_default().snapshots += 1;
    }

    /// A resource in a transition: some thread makes system calls for it.
    pub(crate) fn in_transition(&self) -> Option<Slot> {
        let moving = self.slots.iter().find(|resource| resource.is_in_transition())?;
        self.slots.find(Key::from(moving.name().text()))
    }

    /// Ends one freeze. If it was the last one, makes the deferred releases, and returns each lock
    /// whose last hold they ended, for the caller to release.
    pub(crate) fn thaw(
        &mut self,
        now: Instant,
        wakes: &mut WakeList,
    ) -> Vec<(Slot, Arc<Name>, Hold<F>)> {
        let mut ended = Vec::new();
        match &mut self.frozen {
            None => return ended,
            Some(frozen) if frozen.snapshots > 1 => {
                frozen.snapshots -= 1;
                return ended;
            }
            Some(_) => {}
        }
        let Some(frozen) = self.frozen.take() else { return ended };
        for (slot, owner, kind) in frozen.into_deferred() {
            if let Ok(Some(hold)) = self.release(slot, owner, kind, || now, wakes) {
                ended.push((slot, Arc::clone(self.slots.at(slot).name()), hold));
            }
        }
        for resource in self.slots.iter_mut() {
            resource.admit_waiters(&mut self.waits, wakes);
        }
        wakes.transition_ended = true;
        ended
    }

    /// A snapshot of the space is about to be executed. Returns the deferred releases: resource,
    /// owner, and how many.
    pub(crate) fn begin_exec(&mut self) -> Vec<(Arc<Name>, OwnerId, u32)> {
        let Some(frozen) = &mut self.frozen else { return Vec::new() };
        frozen.execs += 1;
        let name = |slot| Arc::clone(self.slots.at(slot).name());
        frozen.deferred().map(|(slot, owner, count)| (name(slot), owner, count)).collect()
    }

    /// Whether a snapshot is being executed: no release may happen, and none may be deferred.
    pub(crate) fn is_in_exec(&self) -> bool {
        self.frozen.as_ref().is_some_and(|frozen| frozen.execs > 0)
    }

    /// The exec has failed.
    pub(crate) fn end_exec(&mut self, wakes: &mut WakeList) {
        if let Some(frozen) = &mut self.frozen {
            frozen.execs -= 1;
        }
        wakes.transition_ended = true;
    }

    /// Absent to held, for each hold of a restored space.
    pub(crate) fn restore(&mut self, holds: impl ExactSizeIterator<Item = (Arc<Name>, Hold<F>)>) {
        self.slots.reserve(holds.len());
        for (name, hold) in holds {
            let (owners, hash) = (hold.owners.ids(), Key::from(name.text()).hash());
            let state = State::Held(hold);
            let slot = self.slots.insert(|generation| Resource::new(name, hash, generation, state));
            owners.into_iter().for_each(|owner| self.kept_changed(slot, owner, KeptChange::Begins));
        }
    }
}

#[cfg(test)]
mod tests;
