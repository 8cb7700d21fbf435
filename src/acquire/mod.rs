//! How a call acquires: from a request to a hold.
//!
//! | step | file |
//! |---|---|
//! | the request's target becomes a resource's name | `resolve` |
//! | the table admits it: it joins, acquires, waits in the queue, or is refused | `admit` |
//! | a try locks the file, or is refused; a try of a plain name also passes the table here | this one |
//! | a wait locks the file, or sleeps until it is free: the decisions | `contender`, a pure state machine |
//! | the system calls and sleeps that the state machine asks for | `contend` |
//! | which thread makes a system call: this one or a worker | `blocking` |
//! | several requests, all or none | `all` |
//! | the errors that callers get | `failure` |
//! | an upgrade or a downgrade of a hold: an upgrade that waits uses the same machine | `convert` |
//!
//! This layer uses every layer below it. It does not know the public types that call it.

mod admit;
mod all;
mod blocking;
mod contend;
mod contender;
mod convert;
mod failure;
mod resolve;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::MutexGuard;

#[cfg(feature = "tracing")]
use crate::core::events;
use crate::core::{Core, Hold, OwnedHold, TransitionGuard};
use crate::engine::{self, Key, LockError, LockFile, Name, OpenNaming};
use crate::error::{AcquireError, Busy};
use crate::table::{Admission, Claim, Owners, Table, Ticket, TurnKey};
use crate::types::{FileId, HardLinks, LockSpec, Origin, OwnerId, Request, Settings, TargetKind};
use crate::wait::{Start, Wait, WaitContext};
use admit::Entry;
use contend::ContendingAcquire;
use contender::OnContention;
pub(crate) use resolve::ResolvedRequest;

/// A waiting call. As long as this lives, the table finds the call by its owner, to cancel it.
struct RegisteredWait<'a> {
    core: &'a Core,
    context: WaitContext,
    ticket: Ticket,
}

impl<'a> RegisteredWait<'a> {
    fn new(core: &'a Core, owner: OwnerId, context: WaitContext) -> Self {
        let ticket = core.lock().begin_wait(owner, &context.waker);
        Self { core, context, ticket }
    }
}

impl Drop for RegisteredWait<'_> {
    fn drop(&mut self) {
        self.core.lock().end_wait(self.ticket);
    }
}

/// Whether a call waits for holders, and which thread makes its system calls.
#[derive(Clone, Copy)]
enum Patience<'a> {
    /// The call makes its system calls itself, however long they take, and is refused if there is
    /// another holder or an exclusive waiter.
    Try,
    /// The call is refused like a try, but workers make its system calls, so that it ends at its
    /// deadline.
    TryWithin(&'a RegisteredWait<'a>),
    /// The call waits for the holders and the waiters ahead of it.
    Wait(&'a RegisteredWait<'a>),
}

impl<'a> Patience<'a> {
    /// The wait that limits the system calls; `None` if nothing limits them.
    fn context(self) -> Option<&'a WaitContext> {
        match self {
            Self::Try => None,
            Self::TryWithin(wait) | Self::Wait(wait) => Some(&wait.context),
        }
    }
}

impl Core {
    /// Acquires one resource.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        owner: OwnerId,
        request: &Request<'_>,
        wait: Wait,
    ) -> Result<OwnedHold, AcquireError> {
        self.check()?;
        #[cfg(feature = "tracing")]
        if events::are_wanted() {
            return self.acquire_and_tell(owner, request, wait);
        }
        self.acquire_untold(owner, request, wait)
    }

    #[cfg(feature = "tracing")]
    #[cold]
    fn acquire_and_tell(
        self: &Arc<Self>,
        owner: OwnerId,
        request: &Request<'_>,
        wait: Wait,
    ) -> Result<OwnedHold, AcquireError> {
        let started = events::started(&wait);
        let acquired = self.acquire_untold(owner, request, wait);
        let asked = (request.target.text(), request.settings.mode);
        events::ended(owner, asked, started, acquired.as_ref().map(|hold| hold.name().text()));
        acquired
    }

    #[inline]
    fn acquire_untold(
        self: &Arc<Self>,
        owner: OwnerId,
        request: &Request<'_>,
        wait: Wait,
    ) -> Result<OwnedHold, AcquireError> {
        if wait.is_no()
            && let TargetKind::Name(name) = &request.target.0
            && !self.needs_look(&request.settings)
        {
            return self.try_name(owner, name, request);
        }
        match WaitContext::start(wait) {
            Start::Try => self.acquire_one(owner, request, Patience::Try),
            Start::Cancelled => Err(failure::cancelled_at_once(request.target.text())),
            Start::Wait(context) => {
                let wait = RegisteredWait::new(self, owner, context);
                self.acquire_one(owner, request, Patience::Wait(&wait))
            }
        }
    }

    /// Whether a request for a name must look at its file before it asks the table.
    fn needs_look(&self, settings: &Settings) -> bool {
        matches!(self.naming, OpenNaming::Direct)
            && (settings.auto_create || settings.hard_links == HardLinks::Refused)
    }

    /// A try of a plain name, the common case. A resource that is held is joined or refused under
    /// one lock of the table, without any other preparation.
    fn try_name(
        self: &Arc<Self>,
        owner: OwnerId,
        name: &OsStr,
        request: &Request<'_>,
    ) -> Result<OwnedHold, AcquireError> {
        let (key, mode) = (Key::from(name), request.settings.mode);
        let mut table = self.lock();
        let slot = table.find(key);
        if let Some(slot) = slot
            && !table.is_frozen()
        {
            let resource = table.resource(slot);
            if let Some((held, owners)) = resource.refuses(mode) {
                let name = Arc::clone(resource.name());
                drop(table);
                return Err(AcquireError::Busy(Busy::inside(name, mode, held, owners)));
            }
            let range = request.settings.range.unwrap_or(self.range);
            let claim = Claim { owner, mode, range, file: None, opened: false };
            if let Admission::Joined = table.admit(slot, &claim) {
                let name = Arc::clone(table.resource(slot).name());
                drop(table);
                return Ok(OwnedHold::new(self, (slot, name), owner, mode));
            }
        }
        if slot.is_some() || table.is_frozen() {
            drop(table);
            return self.acquire_one(owner, request, Patience::Try);
        }
        self.try_absent(table, key, owner, request)
    }

    /// A try of a name that is absent from the table.
    #[inline(never)]
    fn try_absent(
        self: &Arc<Self>,
        mut table: MutexGuard<'_, Table<LockFile>>,
        key: Key<'_>,
        owner: OwnerId,
        request: &Request<'_>,
    ) -> Result<OwnedHold, AcquireError> {
        let spec = self.spec(&request.settings);
        let (mode, range) = (spec.mode, spec.range);
        let claim = Claim { owner, mode, range, file: None, opened: false };
        let invalid = |why| AcquireError::Invalid { name: key.text().to_owned(), why };
        let name = self.naming.name(key).map_err(invalid)?;
        let slot = table.begin_acquire(key.hash(), Arc::clone(&name), &claim);
        drop(table);
        let transition = TransitionGuard::new(self, slot, name);
        self.lock_now(transition, Ok(LockCall { spec, opened: None }), &claim)
    }

    fn acquire_one(
        self: &Arc<Self>,
        owner: OwnerId,
        request: &Request<'_>,
        patience: Patience<'_>,
    ) -> Result<OwnedHold, AcquireError> {
        let resolved = self.resolve(request, patience)?;
        self.acquire_resolved(owner, &resolved, patience)
    }

    fn acquire_resolved(
        self: &Arc<Self>,
        owner: OwnerId,
        resolved: &ResolvedRequest<'_>,
        patience: Patience<'_>,
    ) -> Result<OwnedHold, AcquireError> {
        let mut claim = resolved.claim(owner);
        loop {
            let (transition, handed_over) = match self.enter(resolved, &mut claim, patience)? {
                Entry::Joined(slot, name) => {
                    return Ok(OwnedHold::new(self, (slot, name), owner, claim.mode));
                }
                Entry::AskAgain => continue,
                Entry::Acquire(transition, handed_over) => (transition, handed_over),
            };
            let (wait, on_contention) = match patience {
                Patience::Try => {
                    return self.lock_now(transition, LockCall::new(resolved), &claim);
                }
                Patience::TryWithin(wait) => (wait, OnContention::GiveUp),
                Patience::Wait(wait) => (wait, OnContention::Wait),
            };
            let context = &wait.context;
            let acquire = ContendingAcquire::new(self, transition, resolved, claim, context);
            return acquire.run(handed_over, on_contention);
        }
    }

    /// Makes the system calls of a try on this thread, and ends the transition.
    fn lock_now(
        self: &Arc<Self>,
        transition: TransitionGuard<'_>,
        call: Result<LockCall, LockError>,
        claim: &Claim,
    ) -> Result<OwnedHold, AcquireError> {
        match call.and_then(|call| call.run(self, transition.name())) {
            Ok(locked) => {
                let turn = self.process.fairness.resume_turn(|| turn_key(transition.name()));
                let held = transition.end_in_hold(locked.into_hold(claim), turn);
                Ok(OwnedHold::new(self, held, claim.owner, claim.mode))
            }
            Err(LockError::Contended(file, by)) => {
                let id = file.id();
                // Closed before the transition ends, and the next waiter gets one.
                drop(file);
                let name = transition.end();
                Err(AcquireError::Busy(self.refused_by_kernel(
                    name,
                    (claim.mode, claim.range),
                    (id, by),
                )))
            }
            Err(LockError::Leased(id)) => {
                let name = transition.end();
                Err(AcquireError::Busy(Busy::leased(name, claim.mode).on(id)))
            }
            Err(error) => {
                let name = transition.end();
                Err(failure::from_lock_error(error, name.text(), || name.path()))
            }
        }
    }
}

/// The system calls that open and lock a file, packed for this thread or a worker.
struct LockCall {
    spec: LockSpec,
    opened: Option<(OwnedFd, FileId)>,
}

/// A lock, and where its file came from.
struct Locked {
    /// `None` in memory.
    file: Option<LockFile>,
    origin: Origin,
}

impl LockCall {
    fn new(resolved: &ResolvedRequest<'_>) -> Result<Self, LockError> {
        let opened = match &resolved.opened {
            Some(opened) => Some((engine::duplicate(opened.fd)?, opened.id)),
            None => None,
        };
        Ok(Self { spec: resolved.spec, opened })
    }

    fn run(self, core: &Core, name: &Name) -> Result<Locked, LockError> {
        if let Some((fd, id)) = self.opened {
            core.has_opened.store(true, Ordering::Relaxed);
            let file = LockFile::lock_opened(&core.process.inodes, fd, id, &self.spec)?;
            return Ok(Locked { file: Some(file), origin: Origin::Opened });
        }
        if name.leads_nowhere() {
            return Ok(Locked { file: None, origin: Origin::InMemory });
        }
        let file = LockFile::open_and_lock(name, &self.spec, &core.stale_retries)?;
        Ok(Locked { file: Some(file), origin: origin_of(&self.spec) })
    }
}

impl Locked {
    fn into_hold(self, claim: &Claim) -> Hold {
        Hold::new(self.file, claim.range, claim.mode, self.origin, Owners::one(claim.owner))
    }
}

/// The origin of a file that was opened by its name.
fn origin_of(spec: &LockSpec) -> Origin {
    if spec.create { Origin::AutoCreated } else { Origin::Existing }
}

fn turn_key(name: &Name) -> TurnKey {
    TurnKey::of(name, Key::from(name.text()).hash())
}
