//! The queue of a resource, and all waiting calls of a space.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use super::Claim;
use crate::engine::Name;
use crate::sync::Waker;
use crate::types::{InvalidRequest, Mode, Origin, OwnerId};

/// Identifies one waiting call of one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket {
    owner: OwnerId,
    number: u64,
}

/// What a transition grants to a waiter.
#[derive(Debug)]
pub(crate) enum Grant<F> {
    /// The waiter has joined the resource's other shared holds.
    Joined,
    /// The resource is acquiring, and the waiter has this transition.
    Acquire(HandedOver<F>),
    /// The waiter must ask for admission again.
    AskAgain,
    Invalid(InvalidRequest),
    /// Its own owner holds the file in this mode, by this other name or in another space.
    HeldByItself(Mode, Arc<Name>),
}

/// What the next waiter gets with the transition.
#[derive(Debug)]
pub(crate) enum HandedOver<F> {
    /// The file of the hold that has ended, still locked in this mode.
    File(F, Mode, Origin),
    Nothing,
}

/// The waiters that a transition has to wake, after the table's mutex is unlocked.
#[derive(Debug, Default)]
#[must_use = "a waiter that is not woken sleeps on"]
pub(crate) struct WakeList {
    wakers: Vec<Arc<Waker>>,
    /// A watched transition has ended.
    pub(super) transition_ended: bool,
}

impl WakeList {
    /// Wakes the waiters of this list. Returns whether a watched transition has ended: the caller
    /// then wakes the threads that wait for it, since the table does not know how they sleep.
    #[must_use]
    pub(crate) fn wake(self) -> bool {
        self.wakers.iter().for_each(|waker| waker.wake());
        self.transition_ended
    }

    /// Whether no thread has to be woken, which is the common case.
    pub(crate) fn is_empty(&self) -> bool {
        self.wakers.is_empty() && !self.transition_ended
    }
}

#[cfg(test)]
impl WakeList {
    pub(super) fn wakers(&self) -> &[Arc<Waker>] {
        &self.wakers
    }
}

/// All waiting calls of a space, in order of owner.
pub(super) struct Waits<F> {
    waits: BTreeMap<Ticket, Wait<F>>,
    last_number: u64,
}

struct Wait<F> {
    waker: Arc<Waker>,
    grant: Option<Grant<F>>,
}

impl<F> Default for Waits<F> {
    fn default() -> Self {
        Self { waits: BTreeMap::new(), last_number: 0 }
    }
}

impl<F> Waits<F> {
    pub(super) fn begin(&mut self, owner: OwnerId, waker: &Arc<Waker>) -> Ticket {
        self.last_number += 1;
        let ticket = Ticket { owner, number: self.last_number };
        self.waits.insert(ticket, Wait { waker: Arc::clone(waker), grant: None });
        ticket
    }

    pub(super) fn end(&mut self, ticket: Ticket) {
        self.waits.remove(&ticket);
    }

    pub(super) fn of(&self, owner: OwnerId) -> impl Iterator<Item = &Arc<Waker>> {
        let [first, last] = [0, u64::MAX].map(|number| Ticket { owner, number });
        self.waits.range(first..=last).map(|(_, wait)| &wait.waker)
    }

    pub(super) fn wake(&self, ticket: Ticket, wakes: &mut WakeList) {
        wakes.wakers.extend(self.waits.get(&ticket).map(|wait| Arc::clone(&wait.waker)));
    }

    pub(super) fn grant(&mut self, ticket: Ticket, grant: Grant<F>, wakes: &mut WakeList) {
        if let Some(wait) = self.waits.get_mut(&ticket) {
            wait.grant = Some(grant);
            wakes.wakers.push(Arc::clone(&wait.waker));
        }
    }

    pub(super) fn take_grant(&mut self, ticket: Ticket) -> Option<Grant<F>> {
        self.waits.get_mut(&ticket)?.grant.take()
    }
}

#[cfg(test)]
impl<F> Waits<F> {
    /// What a wait was granted and has not taken yet.
    pub(super) fn grant_of(&self, ticket: Ticket) -> Option<&Grant<F>> {
        self.waits.get(&ticket)?.grant.as_ref()
    }

    pub(super) fn len(&self) -> usize {
        self.waits.len()
    }
}

impl<F> fmt::Debug for Waits<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.waits.keys()).finish()
    }
}

/// The waiters of one resource.
#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) waiting: VecDeque<Queued>,
    /// When the process's turn with the resource began; `None` if no turn counts yet.
    pub(super) turn: Option<Instant>,
}

#[derive(Debug)]
pub(super) struct Queued {
    pub(super) claim: Claim,
    pub(super) ticket: Ticket,
    /// The waiter holds the resource shared, and waits for an upgrade.
    pub(super) upgrades: bool,
}

impl Queue {
    pub(super) fn is_unused(&self) -> bool {
        self.waiting.is_empty() && self.turn.is_none()
    }

    /// The owner of the waiter at the head, if that waits for an upgrade.
    pub(super) fn upgrader(&self) -> Option<OwnerId> {
        self.waiting.front().filter(|first| first.upgrades).map(|first| first.claim.owner)
    }

    pub(super) fn exclusive_waits(&self) -> bool {
        self.waiting.iter().any(|queued| queued.claim.mode == Mode::Exclusive)
    }

    /// The mode of a queued wait of the claim's owner, if that mode excludes the claim.
    pub(super) fn asked_by_own(&self, claim: &Claim) -> Option<Mode> {
        let excludes = |queued: &&Queued| {
            queued.claim.owner == claim.owner && !queued.claim.mode.compatible(claim.mode)
        };
        self.waiting.iter().find(excludes).map(|queued| queued.claim.mode)
    }
}
