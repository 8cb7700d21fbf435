//! Carries out the actions of a [`Contender`]: the system calls and the sleeps of the wait that has
//! the resource's transition.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::blocking::{self, Thread};
use super::contender::{Action, Contender, Event, OnContention, Rest};
use super::resolve::queue_of_name;
use super::{LockCall, Locked, ResolvedRequest, failure, origin_of, turn_key};
use crate::core::{
    Core, DetachedTransition, HoldElsewhere, OwnedHold, TransitionGuard, mode_to_unlink, tell,
};
use crate::engine::{LockError, LockFile, Name, Retried};
use crate::error::{AcquireError, Busy, DeadlockCause};
use crate::table::{Claim, Contention, HandedOver, Slot};
use crate::types::{FileId, Mode, Origin, Outside};
use crate::wait::{
    CallOptions, CallQueue, DescriptorPermit, OnTimeout, PooledInotify, TimedOut,
    UNRESPONSIVE_AFTER, WaitContext, WaitEnd, Woken,
};

/// The two waits that a contender can decide for: an acquire, or an upgrade.
pub(super) trait Contest {
    /// Opens the file and locks it.
    fn open(&mut self) -> Result<Event, AcquireError>;

    /// Tries to lock the open file again. For [`Watching::Anew`], first renews the watch.
    fn retry(&mut self, watch: Watching) -> Result<Event, AcquireError>;

    fn rest(&mut self, rest: Rest) -> Result<Event, AcquireError>;

    /// The open file, if its lock was refused.
    fn file(&self) -> Option<FileId>;

    /// Looks for a hold of the owner that waits, by another name or in another space.
    ///
    /// # Errors
    /// It would wait for that.
    fn find_own_hold(&mut self) -> Result<Event, AcquireError>;

    /// The error of a wait that is over.
    fn give_up(&mut self) -> AcquireError;
}

/// Whether to renew the watch of an open file before trying its lock again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watching {
    AsBefore,
    Anew,
}

/// Carries out `action` and all later actions of the contender, until it finishes or gives up.
pub(super) fn drive(
    core: &Core,
    contest: &mut impl Contest,
    contender: &mut Contender,
    mut action: Action,
) -> Result<(), AcquireError> {
    let mut rivalled = None;
    loop {
        let event = match action {
            Action::Finish => return Ok(()),
            Action::GiveUp => return Err(contest.give_up()),
            Action::Open => contest.open()?,
            Action::Retry => contest.retry(Watching::AsBefore)?,
            Action::WatchAndRetry => contest.retry(Watching::Anew)?,
            Action::FindOwnHold => contest.find_own_hold()?,
            Action::Rest(rest) => contest.rest(rest)?,
        };
        let file = contest.file();
        if let Some(file) = file
            && rivalled != Some(file)
        {
            rivalled = Some(file);
            if core.process.fairness.has_rivals(file) {
                contender.has_rivals();
            }
        }
        let lost = contender.lost_races();
        action = contender.step(event, Instant::now());
        if let Some(file) = file
            && contender.lost_races() > lost
        {
            core.process.fairness.lost_race(file);
        }
    }
}

/// Looks for holds of a file by other names than that of the resource in `slot`, or in other spaces:
/// those who wait for them though they are their own owners', behind the call that contends, are sent
/// away. Returns what is in the way of that call itself.
pub(super) fn find_own_hold(
    core: &Core,
    (slot, name): (Slot, &Arc<Name>),
    file: FileId,
    claim: &Claim,
) -> Option<HoldElsewhere> {
    let elsewhere = core.holds_elsewhere(|other| other == file, Some(name));
    if elsewhere.is_empty() {
        return None;
    }
    let own = |claim: &Claim| elsewhere.iter().find(|hold| hold.is_own_and_excludes(claim));
    let of_waiter = |claim: &Claim| own(claim).map(|hold| (hold.mode, Arc::clone(&hold.name)));
    core.update(|table, wakes| table.refuse_waiters(slot, of_waiter, wakes));
    own(claim).cloned()
}

/// Rests on this thread.
pub(super) fn rest(rest: Rest, context: &WaitContext, watch: Option<&mut PooledInotify>) -> Event {
    match (rest, watch) {
        (Rest::Yield(until), _) => context.yield_to_others(until),
        (Rest::YieldThread, _) => thread::yield_now(),
        (Rest::UntilWoken, _) => context.waker.sleep(context.deadline()),
        (Rest::Pause(until), _) => context.waker.sleep(Some(until)),
        (Rest::Sleep(until), Some(watch)) => {
            let by_file = watch.sleep(&context.waker, until) == Woken::ByFile;
            return Event::Woken { by_file };
        }
        (Rest::Sleep(until), None) => {
            context.waker.sleep(Some(until));
            return Event::Woken { by_file: false };
        }
    }
    Event::Rested
}

/// An acquire that may wait, and has the resource's transition.
pub(super) struct ContendingAcquire<'a> {
    core: &'a Arc<Core>,
    transition: TransitionGuard<'a>,
    resolved: &'a ResolvedRequest<'a>,
    claim: Claim,
    context: &'a WaitContext,
    queue: CallQueue,
    /// The open file, while its lock is refused.
    contended: Option<ContendedFile>,
    /// What refused the last try.
    last_refusal: Option<LastRefusal>,
    locked: Option<Locked>,
}

/// What refused a try.
#[derive(Clone, Copy)]
enum LastRefusal {
    /// A lock on this file; which one, if the kernel has told.
    Lock(FileId, Option<Outside>),
    Lease(FileId),
}

/// A file that is open in this call and not locked by it.
struct ContendedFile {
    /// Dropped before the file: otherwise removing the watch could drop the inode's last reference,
    /// which can hang.
    watch: Option<PooledInotify>,
    file: LockFile,
}

impl<'a> ContendingAcquire<'a> {
    pub(super) fn new(
        core: &'a Arc<Core>,
        transition: TransitionGuard<'a>,
        resolved: &'a ResolvedRequest<'a>,
        claim: Claim,
        context: &'a WaitContext,
    ) -> Self {
        let queue = resolved.queue(transition.name());
        Self {
            core,
            transition,
            resolved,
            claim,
            context,
            queue,
            contended: None,
            last_refusal: None,
            locked: None,
        }
    }

    pub(super) fn run(
        mut self,
        handed_over: HandedOver<LockFile>,
        on_contention: OnContention,
    ) -> Result<OwnedHold, AcquireError> {
        let contention = self.acquire(handed_over, on_contention);
        if let Some(contended) = self.contended.take() {
            self.close(contended);
        }
        let (contention, locked) = (contention?, self.locked.take());
        let locked = locked.expect("the contender has finished with a lock");
        // A lock in memory has no turns: no other process can want it.
        let turn = locked.file.as_ref().map(|_| {
            self.core.process.fairness.begin_turn(turn_key(self.transition.name()), contention)
        });
        let held = self.transition.end_in_hold(locked.into_hold(&self.claim), turn);
        Ok(OwnedHold::new(self.core, held, self.claim.owner, self.claim.mode))
    }

    fn acquire(
        &mut self,
        handed_over: HandedOver<LockFile>,
        on_contention: OnContention,
    ) -> Result<Contention, AcquireError> {
        let mut yield_until = None;
        match handed_over {
            HandedOver::File(file, held, origin) => {
                if self.take_over(file, held, origin)? {
                    return Ok(Contention::NotMet);
                }
            }
            HandedOver::Nothing if on_contention == OnContention::Wait => {
                let key = turn_key(self.transition.name());
                yield_until = self.core.process.fairness.yield_until(key);
            }
            HandedOver::Nothing => {}
        }
        let mut contender = Contender::new(self.context.deadline(), on_contention);
        let action = contender.begin(yield_until);
        drive(&Arc::clone(self.core), self, &mut contender, action)?;
        Ok(contender.contention())
    }

    /// Takes over the file of a hold of this space that has just ended, locked in mode `held`.
    /// `false` if that fails: then the file was released, as if there had been no waiter.
    fn take_over(
        &mut self,
        file: LockFile,
        held: Mode,
        from: Origin,
    ) -> Result<bool, AcquireError> {
        let origin = match from {
            Origin::Existing => origin_of(&self.resolved.spec),
            from => from,
        };
        let (core, name) = (Arc::clone(self.core), Arc::clone(self.transition.name()));
        let mode = self.claim.mode;
        // The job must run, and not just be dropped with the file: if a forked child shares the
        // open file description, only an unlock ends the lock.
        let thread = Thread::for_file(&file, OnTimeout::RunAnyway);
        let take_over = move || {
            let mut file = file;
            file.learn_whether_local(&name);
            let taken = file.retry(&name, Some(held), mode, &core.stale_retries);
            (file, taken)
        };
        let (file, taken) = self.call(thread, take_over, move |(file, taken)| {
            let held = if let Ok(Retried::Locked) = taken { mode } else { held };
            Some((file, mode_to_unlink(origin, held)))
        })?;
        match taken {
            Ok(Retried::Locked) => {
                self.locked = Some(Locked { file: Some(file), origin });
                return Ok(true);
            }
            // Others share it, or it has lost its name.
            Ok(retried) => {
                if let Retried::Contended(by) = retried {
                    self.last_refusal = Some(LastRefusal::Lock(file.id(), by));
                }
                self.release(file, mode_to_unlink(origin, held))?;
            }
            Err(error) => {
                self.release(file, mode_to_unlink(origin, held))?;
                return Err(self.lock_error(error));
            }
        }
        Ok(false)
    }

    fn release(&mut self, file: LockFile, unlink: Option<Mode>) -> Result<(), AcquireError> {
        let name = Arc::clone(self.transition.name());
        let thread = Thread::for_file(&file, OnTimeout::RunAnyway);
        self.call(thread, move || drop(file.release(&name, unlink)), |()| None)
    }

    /// Makes system calls for the transition. If the wait ends first, the worker releases what they
    /// return later: `late` gives the file to release, and the mode if it is to be unlinked.
    fn call<T: Send + 'static>(
        &mut self,
        thread: Thread,
        work: impl FnOnce() -> T + Send + 'static,
        late: impl FnOnce(T) -> Option<(LockFile, Option<Mode>)> + Send + 'static,
    ) -> Result<T, AcquireError> {
        let Thread::Worker(on_timeout) = thread else { return Ok(work()) };
        let (core, name) = (Arc::clone(self.core), Arc::clone(self.transition.name()));
        let slot = self.transition.slot();
        let its_name = Arc::clone(&name);
        let give_back = move |done: Option<T>| {
            let _transition = DetachedTransition { core, slot };
            if let Some((file, unlink)) = done.and_then(late) {
                let _ = file.release(&name, unlink);
            }
        };
        let (began, transition) = (Instant::now(), &mut self.transition);
        let leaving = || transition.leave_to_worker();
        let cannot_hang = || blocking::seems_local(&its_name, &self.queue);
        let options = CallOptions { on_timeout, cannot_hang: &cannot_hang };
        let workers = &self.core.process.workers;
        match workers.run(&self.queue, (self.context, options), work, give_back, leaving) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(TimedOut(end))) => Err(self.no_answer(end, began)),
            Err(no_worker) => Err(blocking::without_worker(no_worker)),
        }
    }

    fn no_answer(&self, end: WaitEnd, began: Instant) -> AcquireError {
        match self.last_refusal {
            // The last try was refused, and the wait ended too soon for an answer to the next one.
            Some(last) if end == WaitEnd::TimedOut && began.elapsed() < UNRESPONSIVE_AFTER => {
                self.busy(last)
            }
            _ => {
                let name = self.transition.name();
                failure::no_answer(end, name.text(), &name.path(), self.context)
            }
        }
    }

    /// Closes a file that is not locked here.
    fn close(&self, ContendedFile { watch, file }: ContendedFile) {
        drop(watch);
        if !file.is_local() {
            let cannot_hang = || blocking::seems_local(self.transition.name(), &self.queue);
            let workers = &self.core.process.workers;
            workers.run_detached(&self.queue, &cannot_hang, move || drop(file));
        }
    }

    fn busy(&self, refusal: LastRefusal) -> AcquireError {
        let (name, asked) = (Arc::clone(self.transition.name()), self.claim.mode);
        let busy = match refusal {
            LastRefusal::Lock(id, by) => {
                self.core.refused_by_kernel(name, (asked, self.claim.range), (id, by))
            }
            LastRefusal::Lease(id) => Busy::leased(name, asked).on(id),
        };
        AcquireError::Busy(busy.after(self.context.waited()))
    }

    fn lock_error(&self, error: LockError) -> AcquireError {
        let name = self.transition.name();
        failure::from_lock_error(error, name.text(), || name.path())
    }

    /// Contended to acquiring, before system calls: waits for the end of a freeze. Fails if the
    /// wait ends before that, or is cancelled: a cancelled wait must not take the lock even if it
    /// is free.
    fn resume(&self) -> Result<(), AcquireError> {
        let mut table = self.core.lock();
        let text = self.transition.name().text();
        while !table.resume(self.transition.slot()) {
            self.core.wait_while_frozen(&mut table, text, self.context)?;
        }
        match self.context.waker.is_cancelled() {
            true => Err(failure::cancelled(text, self.context)),
            false => Ok(()),
        }
    }
}

impl Contest for ContendingAcquire<'_> {
    fn open(&mut self) -> Result<Event, AcquireError> {
        if let Some(contended) = self.contended.take() {
            self.close(contended);
        }
        self.resume()?;
        if let (Some(last), Some(WaitEnd::TimedOut)) = (self.last_refusal, self.context.end()) {
            return Err(self.busy(last));
        }
        let permit = self.permit_descriptor()?;
        let call = LockCall::new(self.resolved).map_err(|error| self.lock_error(error))?;
        let name = Arc::clone(self.transition.name());
        let on_timeout = match call.opened {
            Some(_) => OnTimeout::DropOnWorker,
            None => OnTimeout::Remove,
        };
        let thread = Thread::to_open(&name, on_timeout);
        let (core, mode) = (Arc::clone(self.core), self.claim.mode);
        let open = move || {
            let _permit = permit;
            let mut locked = call.run(&core, &name);
            if let Ok(Locked { file: Some(file), .. }) | Err(LockError::Contended(file, _)) =
                &mut locked
            {
                file.learn_whether_local(&name);
            }
            locked
        };
        let locked = self.call(thread, open, move |locked: Result<Locked, LockError>| {
            let Locked { file, origin } = locked.ok()?;
            Some((file?, mode_to_unlink(origin, mode)))
        })?;
        match locked {
            Ok(locked) => {
                self.locked = Some(locked);
                Ok(Event::Locked)
            }
            Err(LockError::Contended(file, by)) => {
                self.last_refusal = Some(LastRefusal::Lock(file.id(), by));
                self.contended = Some(ContendedFile { watch: None, file });
                Ok(Event::Refused)
            }
            Err(LockError::Leased(id)) => {
                self.last_refusal = Some(LastRefusal::Lease(id));
                Ok(Event::Leased)
            }
            Err(error) => Err(self.lock_error(error)),
        }
    }

    fn retry(&mut self, watching: Watching) -> Result<Event, AcquireError> {
        let Some(ContendedFile { mut watch, file }) = self.contended.take() else {
            return Ok(Event::Stale);
        };
        // After the deadline, a worker's answer comes too late, and would be reported as a file
        // system that does not answer.
        if !file.is_local() && self.context.end() == Some(WaitEnd::TimedOut) {
            self.contended = Some(ContendedFile { watch, file });
            return Ok(Event::Refused);
        }
        if watching == Watching::Anew {
            match &mut watch {
                Some(watch) => watch.drain(),
                None => watch = self.core.process.watches.take(file.number()),
            }
        }
        let (core, name) = (Arc::clone(self.core), Arc::clone(self.transition.name()));
        let (mode, opened) = (self.claim.mode, self.claim.opened);
        let thread = Thread::for_file(&file, OnTimeout::DropOnWorker);
        let retry = move || {
            let (mut file, mut watch) = (file, watch);
            file.learn_whether_local(&name);
            if let Some(watch) = &mut watch
                && watching == Watching::Anew
                && !watch.is_armed()
            {
                watch.arm();
            }
            let retried = match opened {
                true => file.retry_opened(&core.process.inodes, mode),
                false => file.retry(&name, None, mode, &core.stale_retries),
            };
            (ContendedFile { watch, file }, retried)
        };
        let origin = self.origin();
        let (contended, retried) = self.call(thread, retry, move |(contended, retried)| {
            // Unlock only a lock that this retry has made: another hold may use the same open file
            // description.
            let locked = matches!(retried, Ok(Retried::Locked));
            locked.then_some((contended.file, mode_to_unlink(origin, mode)))
        })?;
        match retried {
            Ok(Retried::Locked) => {
                self.has_locked(contended);
                return Ok(Event::Locked);
            }
            Ok(Retried::Stale) => {
                self.close(contended);
                return Ok(Event::Stale);
            }
            Ok(Retried::Contended(by)) => {
                self.last_refusal = Some(LastRefusal::Lock(contended.file.id(), by));
                self.contended = Some(contended);
            }
            Err(error) => {
                self.close(contended);
                return Err(self.lock_error(error));
            }
        }
        Ok(Event::Refused)
    }

    fn rest(&mut self, how: Rest) -> Result<Event, AcquireError> {
        if let Rest::Yield(_) = how {
            return Ok(rest(how, self.context, None));
        }
        self.core.process.workers.prepare_to_drop_cached();
        let slot = self.transition.slot();
        self.core.update(|table, wakes| table.set_contended(slot, wakes));
        tell!(waits(self.context, &self.claim, self.transition.name().text()));
        let watch = self.contended.as_mut().and_then(|contended| contended.watch.as_mut());
        let event = rest(how, self.context, watch);
        self.resume()?;
        Ok(event)
    }

    fn file(&self) -> Option<FileId> {
        self.contended.as_ref().map(|contended| contended.file.id())
    }

    fn find_own_hold(&mut self) -> Result<Event, AcquireError> {
        let (slot, name, claim) = (self.transition.slot(), self.transition.name(), &self.claim);
        let Some(file) = self.file() else { return Ok(Event::Refused) };
        match find_own_hold(self.core, (slot, name), file, claim) {
            None => Ok(Event::Refused),
            Some(HoldElsewhere { name: other, mode: held, .. }) => {
                let why = DeadlockCause::OwnHold { held };
                Err(failure::deadlock_elsewhere(name.text(), claim.owner, why, &other))
            }
        }
    }

    fn give_up(&mut self) -> AcquireError {
        let name = self.transition.name();
        match (self.context.end(), self.last_refusal) {
            (Some(WaitEnd::Cancelled), _) => failure::cancelled(name.text(), self.context),
            (_, Some(last)) => self.busy(last),
            (_, None) => failure::frozen(name.text()),
        }
    }
}

impl ContendingAcquire<'_> {
    /// For the duplicate of a caller's descriptor.
    fn permit_descriptor(&self) -> Result<Option<DescriptorPermit>, AcquireError> {
        if !self.claim.opened {
            return Ok(None);
        }
        let name = self.transition.name();
        let (about, context) = ((name.text(), &*name.path()), Some(self.context));
        blocking::permit_descriptor(self.core, about, context, &self.queue)
    }

    fn origin(&self) -> Origin {
        match self.claim.opened {
            true => Origin::Opened,
            false => origin_of(&self.resolved.spec),
        }
    }

    fn has_locked(&mut self, ContendedFile { mut watch, file }: ContendedFile) {
        // Cached only on a local file system: a later removal of the watch can drop the last
        // reference to the inode, which can hang on others.
        if file.is_local() && self.core.process.workers.will_drop_cached() {
            watch.iter_mut().for_each(PooledInotify::cache);
        }
        drop(watch);
        self.locked = Some(Locked { file: Some(file), origin: self.origin() });
    }
}

/// Arms the watch of a file that an upgrade waits for.
pub(super) fn arm(
    core: &Arc<Core>,
    file: (&Name, FileId, Thread),
    context: &WaitContext,
    mut watch: PooledInotify,
) -> Option<PooledInotify> {
    let (name, id, thread) = file;
    let work = move || {
        watch.arm();
        watch
    };
    let Thread::Worker(on_timeout) = thread else { return Some(work()) };
    let options = CallOptions { on_timeout, cannot_hang: &|| false };
    let queue = queue_of_name(name).unwrap_or(CallQueue::Device(id.dev));
    core.process.workers.run(&queue, (context, options), work, drop, || ()).ok()?.ok()
}
