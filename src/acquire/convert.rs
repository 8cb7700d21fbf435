//! Upgrades and downgrades. The hold lasts throughout, in its old mode or the new one.

use std::sync::Arc;
use std::time::Instant;

use super::blocking::Thread;
use super::contend::{self, Contest, Watching};
use super::contender::{Contender, Event, OnContention, Rest};
use super::{RegisteredWait, failure};
#[cfg(feature = "tracing")]
use crate::core::events;
use crate::core::{Core, OwnedHold, UpgradeGuard, tell};
use crate::engine::Attempt;
use crate::error::{AcquireError, Busy, DeadlockCause};
use crate::table::{Claim, Conversion, WakeList};
use crate::types::{FileId, InvalidRequest, IoError, Mode};
use crate::wait::{OnTimeout, PooledInotify, Start, Wait, WaitContext, WaitEnd};

/// The result of one try to convert a hold.
enum Converted {
    Done,
    /// Other owners hold the resource too.
    RefusedHere(Busy),
    /// The file is held outside of this space, or here by another name.
    RefusedByKernel(Busy),
    Frozen,
}

impl Core {
    /// Makes a shared hold exclusive, once it is the resource's only hold.
    pub(crate) fn upgrade(
        self: &Arc<Self>,
        hold: &mut OwnedHold,
        wait: Wait,
    ) -> Result<(), AcquireError> {
        self.check()?;
        #[cfg(feature = "tracing")]
        let started = events::started(&wait);
        let upgraded = self.upgrade_within(hold, wait);
        tell!(ended(
            hold.owner(),
            (hold.name().text(), Mode::Exclusive),
            started,
            upgraded.as_ref().map(|()| hold.name().text()),
        ));
        upgraded
    }

    fn upgrade_within(
        self: &Arc<Self>,
        hold: &mut OwnedHold,
        wait: Wait,
    ) -> Result<(), AcquireError> {
        match WaitContext::start(wait) {
            Start::Cancelled => Err(failure::cancelled_at_once(hold.name().text())),
            Start::Try => self.try_to_convert(hold, Mode::Exclusive),
            Start::Wait(context) => {
                if let Converted::Done = self.convert(hold, Mode::Exclusive)? {
                    return Ok(());
                }
                let wait = RegisteredWait::new(self, hold.owner(), context);
                self.wait_to_upgrade(hold, &wait)
            }
        }
    }

    /// Makes an exclusive hold shared.
    pub(crate) fn downgrade(&self, hold: &mut OwnedHold) -> Result<(), AcquireError> {
        self.check()?;
        let downgraded = self.try_to_convert(hold, Mode::Shared);
        tell!(ended(
            hold.owner(),
            (hold.name().text(), Mode::Shared),
            None,
            downgraded.as_ref().map(|()| hold.name().text()),
        ));
        downgraded
    }

    fn try_to_convert(&self, hold: &mut OwnedHold, to: Mode) -> Result<(), AcquireError> {
        match self.convert(hold, to)? {
            Converted::Done => Ok(()),
            Converted::RefusedHere(busy) | Converted::RefusedByKernel(busy) => {
                Err(AcquireError::Busy(busy))
            }
            Converted::Frozen => Err(failure::frozen(hold.name().text())),
        }
    }

    fn wait_to_upgrade(
        self: &Arc<Self>,
        hold: &mut OwnedHold,
        wait: &RegisteredWait<'_>,
    ) -> Result<(), AcquireError> {
        let (slot, owner) = (hold.slot(), hold.owner());
        self.lock()
            .enqueue_upgrade(slot, wait.ticket, owner)
            .map_err(|why| failure::deadlock(hold.name().text(), owner, why))?;
        tell!(waiting(owner, hold.name().text(), Mode::Exclusive));
        let upgraded = self.contend_to_upgrade(hold, &wait.context);
        let mut wakes = WakeList::default();
        self.lock().dequeue(slot, wait.ticket, &mut wakes);
        self.wake(wakes);
        upgraded
    }

    /// Waits at the head of the queue.
    fn contend_to_upgrade(
        self: &Arc<Self>,
        hold: &mut OwnedHold,
        context: &WaitContext,
    ) -> Result<(), AcquireError> {
        let _only_one = self.begin_upgrade(hold)?;
        let mut contender = Contender::new(context.deadline(), OnContention::Wait);
        let action = contender.begin_upgrade();
        let mut upgrade = Upgrade { core: self, hold, context, watch: None, busy: None };
        contend::drive(self, &mut upgrade, &mut contender, action)
    }

    /// Lets the process know that a shared hold waits to become exclusive.
    ///
    /// # Errors
    /// Another one of the same file does so already, by another name or in another space.
    fn begin_upgrade(&self, hold: &OwnedHold) -> Result<Option<UpgradeGuard>, AcquireError> {
        let (name, owner) = (hold.name(), hold.owner());
        let file = {
            let table = self.lock();
            let held = table.resource(hold.slot()).hold();
            held.and_then(|held| held.file()).map(|file| (file.id(), file.range()))
        };
        let Some((file, range)) = file else { return Ok(None) };
        let begun = self.process.spaces.begin_upgrade(file, range, owner, name);
        begun.map(Some).map_err(|(other, its_name)| {
            let why = match other == owner {
                true => DeadlockCause::OtherOwnHold,
                false => DeadlockCause::Upgrade { other },
            };
            failure::deadlock_elsewhere(name.text(), owner, why, &its_name)
        })
    }

    /// Tries to hold in another mode. A conversion that is refused changes nothing.
    ///
    /// This thread makes the one system call, even for a wait: on an open descriptor, it can block
    /// only on a network file system, as a release can.
    fn convert(&self, hold: &mut OwnedHold, to: Mode) -> Result<Converted, AcquireError> {
        let (slot, owner, name) = (hold.slot(), hold.owner(), Arc::clone(hold.name()));
        let mut wakes = WakeList::default();
        let mut table = self.lock();
        let file = loop {
            match table.begin_conversion(slot, owner, to, &mut wakes) {
                Conversion::Begun(file) => break file,
                Conversion::Done => {
                    drop(table);
                    self.wake(wakes);
                    hold.mode = to;
                    return Ok(Converted::Done);
                }
                Conversion::NotUpgradable => {
                    let why = InvalidRequest::NotUpgradable;
                    return Err(AcquireError::Invalid { name: name.text().to_owned(), why });
                }
                Conversion::Refused(held, owners) => {
                    return Ok(Converted::RefusedHere(Busy::inside(name, to, held, owners)));
                }
                Conversion::Frozen => return Ok(Converted::Frozen),
                Conversion::InTransition => {
                    table.watch_transition(slot, Instant::now());
                    self.wait_for_transition(&mut table, None);
                }
            }
        };
        drop(table);
        let (converted, id, range) = (file.convert(to), file.id(), file.range());
        let mode = matches!(converted, Ok(Attempt::Locked)).then_some(to);
        self.update(|table, wakes| table.end_conversion(slot, file, mode, wakes));
        match converted {
            Ok(Attempt::Locked) => {
                hold.mode = to;
                Ok(Converted::Done)
            }
            Ok(Attempt::Refused(by)) => {
                Ok(Converted::RefusedByKernel(self.refused_by_kernel(name, (to, range), (id, by))))
            }
            Err(source) => Err(AcquireError::Io(IoError::new("fcntl", name.path(), source))),
        }
    }
}

/// A wait for an upgrade, at the head of the queue.
struct Upgrade<'a> {
    core: &'a Arc<Core>,
    hold: &'a mut OwnedHold,
    context: &'a WaitContext,
    watch: Option<PooledInotify>,
    /// The last refusal.
    busy: Option<Busy>,
}

impl Upgrade<'_> {
    /// Discards the pending events, and arms the watch if it is not armed.
    fn watch_anew(&mut self) {
        if let Some(watch) = &mut self.watch {
            watch.drain();
        }
        let (number, id, is_local) = {
            let table = self.core.lock();
            let hold = table.resource(self.hold.slot()).hold();
            let Some(file) = hold.and_then(|hold| hold.file()) else { return };
            (file.number(), file.id(), file.is_local())
        };
        let watch = self.watch.take().or_else(|| self.core.process.watches.take(number));
        let Some(watch) = watch else { return };
        if watch.is_armed() {
            self.watch = Some(watch);
            return;
        }
        let thread = if is_local { Thread::This } else { Thread::Worker(OnTimeout::Remove) };
        self.watch = contend::arm(self.core, (self.hold.name(), id, thread), self.context, watch);
    }

    /// Waits until the space is not frozen any more.
    fn wait_for_thaw(&self) -> Result<(), AcquireError> {
        let text = self.hold.name().text();
        let mut table = self.core.lock();
        while table.is_frozen() {
            self.core.wait_while_frozen(&mut table, text, self.context)?;
        }
        Ok(())
    }
}

impl Contest for Upgrade<'_> {
    /// An upgrade has its file open already, so this only tries again.
    fn open(&mut self) -> Result<Event, AcquireError> {
        self.retry(Watching::AsBefore)
    }

    fn retry(&mut self, watching: Watching) -> Result<Event, AcquireError> {
        if watching == Watching::Anew {
            self.watch_anew();
        }
        loop {
            if self.context.waker.is_cancelled() {
                return Err(failure::cancelled(self.hold.name().text(), self.context));
            }
            match self.core.convert(self.hold, Mode::Exclusive)? {
                Converted::Done => return Ok(Event::Locked),
                Converted::RefusedHere(busy) => {
                    self.busy = Some(busy);
                    return Ok(Event::RefusedHere);
                }
                Converted::RefusedByKernel(busy) => {
                    self.busy = Some(busy);
                    return Ok(Event::Refused);
                }
                Converted::Frozen => self.wait_for_thaw()?,
            }
        }
    }

    fn rest(&mut self, rest: Rest) -> Result<Event, AcquireError> {
        Ok(contend::rest(rest, self.context, self.watch.as_mut()))
    }

    fn file(&self) -> Option<FileId> {
        self.busy.as_ref().and_then(Busy::file)
    }

    fn find_own_hold(&mut self) -> Result<Event, AcquireError> {
        let (slot, name, owner) = (self.hold.slot(), self.hold.name(), self.hold.owner());
        let range = self.core.lock().resource(slot).hold().map(|hold| hold.range());
        let (Some(file), Some(range)) = (self.file(), range) else { return Ok(Event::Refused) };
        let claim = Claim { owner, mode: Mode::Exclusive, range, file: None, opened: false };
        match contend::find_own_hold(self.core, (slot, name), file, &claim) {
            None => Ok(Event::Refused),
            Some(other) => {
                let why = DeadlockCause::OtherOwnHold;
                Err(failure::deadlock_elsewhere(name.text(), owner, why, &other.name))
            }
        }
    }

    fn give_up(&mut self) -> AcquireError {
        let text = self.hold.name().text();
        match (self.context.end(), self.busy.take()) {
            (Some(WaitEnd::Cancelled), _) | (_, None) => failure::cancelled(text, self.context),
            (_, Some(busy)) => AcquireError::Busy(busy.after(self.context.waited())),
        }
    }
}
