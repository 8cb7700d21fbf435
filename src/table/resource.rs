//! One resource: its state, and its queue. The table of states is in [`super`].

use std::sync::Arc;
use std::time::Instant;

use super::fairness::MAX_TURN;
use super::hold::Hold;
use super::queue::{Grant, HandedOver, Queue, Queued, Ticket, Waits, WakeList};
use super::{Admission, Claim, LockedFile};
use crate::engine::Name;
use crate::error::{Blockers, DeadlockCause};
use crate::types::{ByteRange, Mode, Origin, OwnerId};

/// A resource that is not absent.
#[derive(Debug)]
pub(crate) struct Resource<F> {
    name: Arc<Name>,
    /// The hash of the name.
    hash: u64,
    /// The generation of its slot.
    generation: u32,
    /// A thread waits for the transition to end.
    pub(super) watched: bool,
    pub(super) state: State<F>,
    /// Boxed, as few resources have one.
    pub(super) queue: Option<Box<Queue>>,
}

#[derive(Debug)]
pub(super) enum State<F> {
    Acquiring(Acquiring),
    Contended(Acquiring),
    Held(Hold<F>),
    /// The hold's file is with the thread that converts its lock.
    Converting(Hold<F>),
    Changing(Changing),
}

/// The owner and the mode of the hold that a thread is acquiring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Acquiring {
    owner: OwnerId,
    mode: Mode,
    /// When the caller left, at its deadline or cancelled, without an answer of the file system.
    unresponsive_since: Option<Instant>,
}

/// What the thread that is changing does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Changing {
    /// It ends this owner's hold, in this mode; or it creates or deletes the file of nobody's.
    ends: Option<(OwnerId, Mode)>,
    /// Since when, at least, it lasts: since another call has waited for it.
    seen: Option<Instant>,
}

impl<F> State<F> {
    pub(super) fn acquiring(owner: OwnerId, mode: Mode) -> Self {
        Self::Acquiring(Acquiring { owner, mode, unresponsive_since: None })
    }

    pub(super) fn changing() -> Self {
        Self::Changing(Changing { ends: None, seen: None })
    }
}

impl<F> Resource<F> {
    pub(super) fn new(name: Arc<Name>, hash: u64, generation: u32, state: State<F>) -> Self {
        Self { name, hash, generation, watched: false, state, queue: None }
    }

    pub(crate) fn name(&self) -> &Arc<Name> {
        &self.name
    }

    pub(super) fn set_name(&mut self, name: Arc<Name>) {
        self.name = name;
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash
    }

    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// The held lock; `None` in every state but held and converting.
    pub(crate) fn hold(&self) -> Option<&Hold<F>> {
        match &self.state {
            State::Held(hold) | State::Converting(hold) => Some(hold),
            _ => None,
        }
    }

    /// Who holds it, or is about to, and how; `None` while it is changing, so that it will be free in
    /// a moment.
    pub(crate) fn blockers(&self) -> Option<(Mode, Blockers)> {
        match &self.state {
            State::Acquiring(acquiring) | State::Contended(acquiring) => {
                Some((acquiring.mode, acquiring.owner.into()))
            }
            State::Held(hold) | State::Converting(hold) => {
                Some((hold.mode(), hold.owners.blockers(None)))
            }
            State::Changing(_) => None,
        }
    }

    /// The same; while it is changing, whose hold ends. `None` while its file is created or deleted.
    pub(crate) fn occupant(&self) -> Option<(Mode, Blockers)> {
        match &self.state {
            State::Changing(changing) => changing.ends.map(|(owner, mode)| (mode, owner.into())),
            _ => self.blockers(),
        }
    }

    /// Whether the resource is contended: a call of this space waits for a holder outside of it, or
    /// for the end of a freeze.
    pub(crate) fn is_contended(&self) -> bool {
        matches!(self.state, State::Contended(_))
    }

    /// Whether a thread makes system calls for the resource now.
    #[cfg(feature = "snapshot")]
    pub(super) fn is_in_transition(&self) -> bool {
        matches!(self.state, State::Acquiring(_) | State::Converting(_) | State::Changing(_))
    }

    /// When the caller left without an answer of the file system, if it did.
    pub(crate) fn unresponsive_since(&self) -> Option<Instant> {
        match &self.state {
            State::Acquiring(acquiring) => acquiring.unresponsive_since,
            _ => None,
        }
    }

    /// Since when, at least, it is changing.
    pub(crate) fn changing_since(&self) -> Option<Instant> {
        match &self.state {
            State::Changing(changing) => changing.seen,
            _ => None,
        }
    }

    /// Another call waits for the end of a transition.
    pub(super) fn delays(&mut self, now: Instant) {
        if let State::Changing(changing) = &mut self.state {
            changing.seen.get_or_insert(now);
        }
    }

    pub(super) fn set_unresponsive(&mut self, since: Instant) {
        if let State::Acquiring(acquiring) | State::Contended(acquiring) = self.state {
            let unresponsive_since = Some(since);
            self.state = State::Acquiring(Acquiring { unresponsive_since, ..acquiring });
        }
    }

    pub(super) fn set_contended(&mut self) {
        if let State::Acquiring(acquiring) = self.state {
            self.state = State::Contended(acquiring);
        }
    }

    pub(super) fn resume(&mut self) {
        if let State::Contended(acquiring) = self.state {
            self.state = State::Acquiring(acquiring);
        }
    }

    pub(super) fn start_turn(&mut self, turn: Instant) {
        self.queue.get_or_insert_default().turn.get_or_insert(turn);
    }

    #[inline]
    pub(super) fn take_turn(&mut self) -> Option<Instant> {
        self.queue.as_mut()?.turn.take()
    }
}

impl<F: LockedFile> Resource<F> {
    /// The owners and their mode, if the resource is held (not converting) in a mode that excludes
    /// `mode`.
    #[inline]
    pub(crate) fn refuses(&self, mode: Mode) -> Option<(Mode, Blockers)> {
        match &self.state {
            State::Held(hold) if !hold.mode().compatible(mode) => {
                Some((hold.mode(), hold.owners.blockers(None)))
            }
            _ => None,
        }
    }

    /// Adds the claim's hold to the holds of the resource, or says why not.
    pub(super) fn admit(&mut self, claim: &Claim) -> Admission {
        let compatible = match &self.state {
            State::Held(hold) => {
                hold.mode().compatible(claim.mode)
                    && (hold.owners.has(claim.owner) || !self.exclusive_waits())
            }
            State::Acquiring(acquiring) => acquiring.mode.compatible(claim.mode),
            State::Converting(_) => claim.mode == Mode::Shared,
            State::Contended(_) | State::Changing(_) => false,
        };
        match &mut self.state {
            State::Held(hold) if compatible => hold.join(claim),
            State::Acquiring(Acquiring { unresponsive_since: Some(since), .. }) => {
                Admission::Unresponsive(*since)
            }
            _ if compatible => Admission::InTransition,
            State::Contended(_) => Admission::RefusedOutside,
            _ => match self.blockers() {
                Some((mode, owners)) => Admission::Refused(mode, owners),
                None => Admission::InTransition,
            },
        }
    }

    /// Whether an exclusive request waits, which a shared one does not pass.
    pub(crate) fn exclusive_waits(&self) -> bool {
        self.queue.as_ref().is_some_and(|queue| queue.exclusive_waits())
    }

    /// The hold or the earlier wait of the claim's own owner that the claim would wait for.
    pub(super) fn would_wait_for_itself(&self, claim: &Claim) -> Option<DeadlockCause> {
        let excludes = |mode: Mode| !mode.compatible(claim.mode);
        match &self.state {
            // What nobody waits for any more will be given back.
            State::Acquiring(Acquiring { unresponsive_since: Some(_), .. })
            | State::Changing(_) => {}
            State::Acquiring(acquiring) | State::Contended(acquiring) => {
                if acquiring.owner == claim.owner && excludes(acquiring.mode) {
                    return Some(DeadlockCause::OwnWait { asked: acquiring.mode });
                }
            }
            State::Held(hold) => {
                if hold.owners.has(claim.owner) && excludes(hold.mode()) {
                    return Some(DeadlockCause::OwnHold { held: hold.mode() });
                }
            }
            // The hold may soon be shared. If it is exclusive instead, `send_back_own` sends the
            // waiter back.
            State::Converting(hold) => {
                if hold.owners.has(claim.owner) && claim.mode == Mode::Exclusive {
                    return Some(DeadlockCause::OwnHold { held: hold.mode() });
                }
            }
        }
        let asked = self.queue.as_ref()?.asked_by_own(claim)?;
        Some(DeadlockCause::OwnWait { asked })
    }

    /// Puts a wait at the end of the queue.
    pub(super) fn enqueue(&mut self, ticket: Ticket, claim: Claim, now: Instant) {
        self.delays(now);
        let queue = self.queue.get_or_insert_default();
        queue.waiting.push_back(Queued { claim, ticket, upgrades: false });
    }

    /// Puts a wait for an upgrade at the head of the queue.
    ///
    /// # Errors
    /// Another wait for an upgrade is there already.
    pub(super) fn enqueue_upgrade(
        &mut self,
        ticket: Ticket,
        owner: OwnerId,
        range: ByteRange,
    ) -> Result<(), DeadlockCause> {
        let queue = self.queue.get_or_insert_default();
        if let Some(other) = queue.upgrader() {
            return Err(DeadlockCause::Upgrade { other });
        }
        let claim = Claim { owner, mode: Mode::Exclusive, range, file: None, opened: false };
        queue.waiting.push_front(Queued { claim, ticket, upgrades: true });
        Ok(())
    }

    /// Takes a wait out of the queue. Waiters behind it may be able to join now: see
    /// [`admit_waiters`](Self::admit_waiters).
    pub(super) fn dequeue(&mut self, ticket: Ticket) {
        if let Some(queue) = &mut self.queue {
            queue.waiting.retain(|queued| queued.ticket != ticket);
            if queue.is_unused() {
                self.queue = None;
            }
        }
    }

    /// See [`Table::refuse_waiters`](super::Table::refuse_waiters).
    pub(super) fn refuse_waiters(
        &mut self,
        held_by_itself: impl Fn(&Claim) -> Option<(Mode, Arc<Name>)>,
        waits: &mut Waits<F>,
        wakes: &mut WakeList,
    ) {
        let Some(queue) = &mut self.queue else { return };
        queue.waiting.retain(|queued| match held_by_itself(&queued.claim) {
            Some((mode, name)) if !queued.upgrades => {
                waits.grant(queued.ticket, Grant::HeldByItself(mode, name), wakes);
                false
            }
            _ => true,
        });
    }

    /// Lets those waiters join a shared hold that may: the ones at the head of the queue, and,
    /// wherever they are, those of owners that hold it already, which would wait for themselves.
    pub(super) fn admit_waiters(&mut self, waits: &mut Waits<F>, wakes: &mut WakeList) {
        let (State::Held(hold), Some(queue)) = (&mut self.state, &mut self.queue) else { return };
        if hold.mode() == Mode::Exclusive {
            return;
        }
        let mut behind_exclusive = false;
        queue.waiting.retain(|queued| {
            let claim = &queued.claim;
            if queued.upgrades || claim.mode == Mode::Exclusive {
                behind_exclusive = true;
            } else if !behind_exclusive || hold.owners.has(claim.owner) {
                let grant = match hold.join(claim) {
                    Admission::Joined => Grant::Joined,
                    Admission::Invalid(why) => Grant::Invalid(why),
                    _ => Grant::AskAgain,
                };
                waits.grant(queued.ticket, grant, wakes);
                return false;
            }
            true
        });
    }

    /// Gives the transition of a resource that nobody holds to the waiter at the head of the queue.
    /// `false` if the queue is empty.
    pub(super) fn grant_next(
        &mut self,
        handed_over: HandedOver<F>,
        waits: &mut Waits<F>,
        wakes: &mut WakeList,
    ) -> bool {
        let Some(first) = self.queue.as_mut().and_then(|queue| queue.waiting.pop_front()) else {
            return false;
        };
        self.state = State::acquiring(first.claim.owner, first.claim.mode);
        waits.grant(first.ticket, Grant::Acquire(handed_over), wakes);
        true
    }

    /// An owner has ended a hold. If no hold is left, hands the file over to the waiter at the head
    /// of the queue where that is possible; else returns the lock for the caller to release, and
    /// the resource is changing until then.
    #[inline]
    pub(super) fn owner_left(
        &mut self,
        owner: OwnerId,
        now: impl FnOnce() -> Instant,
        waits: &mut Waits<F>,
        wakes: &mut WakeList,
    ) -> Option<Hold<F>> {
        let State::Held(hold) = &self.state else { return None };
        if !hold.owners.is_empty() {
            self.wake_upgrader(waits, wakes);
            return None;
        }
        let somebody_waits = self.queue.as_ref().is_some_and(|queue| !queue.waiting.is_empty());
        let seen = somebody_waits.then(now);
        let hands_over = self.queue.as_mut().zip(seen).is_some_and(|(queue, now)| {
            let can = queue.waiting.front().is_some_and(|first| can_take_over(first, hold));
            // Also what a try has got is handed over for no longer than a turn.
            can && now.saturating_duration_since(*queue.turn.get_or_insert(now)) < MAX_TURN
        });
        let changing = Changing { ends: Some((owner, hold.mode())), seen };
        let State::Held(hold) = std::mem::replace(&mut self.state, State::Changing(changing))
        else {
            unreachable!("its state has just been matched")
        };
        if !hands_over {
            return Some(hold);
        }
        let (mode, origin) = (hold.mode(), hold.origin());
        if let Some(file) = hold.into_file() {
            self.grant_next(HandedOver::File(file, mode, origin), waits, wakes);
        }
        None
    }

    /// Wakes the waiter that waits for an upgrade, if its hold is the only one left.
    fn wake_upgrader(&self, waits: &Waits<F>, wakes: &mut WakeList) {
        if let (State::Held(hold), Some(queue)) = (&self.state, &self.queue)
            && let Some(first) = queue.waiting.front()
            && first.upgrades
            && hold.owners.is_sole(first.claim.owner)
        {
            waits.wake(first.ticket, wakes);
        }
    }
}

/// Whether a waiter can take over the locked file of a hold that ends.
fn can_take_over<F: LockedFile>(first: &Queued, hold: &Hold<F>) -> bool {
    let Some(file) = hold.file() else { return false };
    hold.range() == first.claim.range
        && !first.claim.opened
        && hold.origin() != Origin::Opened
        && (first.claim.mode == Mode::Shared || file.is_writable())
}
