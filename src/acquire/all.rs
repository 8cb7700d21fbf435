//! Several requests at once: all, or none.
//!
//! Such a call never waits while it holds something. When a request is refused, the call releases
//! what it has acquired, waits for that one resource, and then tries the others again.

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Patience, RegisteredWait, ResolvedRequest, failure};
#[cfg(feature = "tracing")]
use crate::core::events;
use crate::core::{Core, OwnedHold, tell};
use crate::engine::{Key, LockFile, OpenNaming};
use crate::error::{AcquireError, DeadlockCause};
use crate::table::{TurnKey, YIELD_TIME};
use crate::types::{FileId, InvalidRequest, OwnerId, Request};
use crate::wait::{Start, Wait, WaitContext, WaitEnd};

/// The requests of one call.
struct Batch<'a> {
    core: &'a Arc<Core>,
    owner: OwnerId,
    requests: Vec<ResolvedRequest<'a>>,
}

impl Core {
    pub(crate) fn acquire_all(
        self: &Arc<Self>,
        owner: OwnerId,
        requests: &[Request<'_>],
        wait: Wait,
    ) -> Result<Vec<OwnedHold>, AcquireError> {
        self.check()?;
        #[cfg(feature = "tracing")]
        let started = events::started(&wait);
        let acquired = self.acquire_each(owner, requests, wait);
        tell!(several_ended(
            owner,
            requests,
            started,
            acquired.as_ref().map(|holds| holds.iter().map(|hold| (hold.name().text(), hold.mode))),
        ));
        acquired
    }

    fn acquire_each(
        self: &Arc<Self>,
        owner: OwnerId,
        requests: &[Request<'_>],
        wait: Wait,
    ) -> Result<Vec<OwnedHold>, AcquireError> {
        match WaitContext::start(wait) {
            Start::Try => {
                let batch = Batch::new(self, owner, requests, Patience::Try)?;
                batch.try_all(None, Patience::Try)
            }
            Start::Cancelled => {
                let first = requests.first().map(|request| request.target.text());
                Err(failure::cancelled_at_once(first.unwrap_or_default()))
            }
            Start::Wait(context) => {
                let wait = RegisteredWait::new(self, owner, context);
                let batch = Batch::new(self, owner, requests, Patience::Wait(&wait))?;
                batch.wait_for_all(&wait)
            }
        }
    }
}

impl<'a> Batch<'a> {
    /// # Errors
    /// Those of resolving, and [`InvalidRequest::Twice`] if two requests exclude each other.
    fn new(
        core: &'a Arc<Core>,
        owner: OwnerId,
        requests: &'a [Request<'_>],
        patience: Patience<'_>,
    ) -> Result<Self, AcquireError> {
        let requests = requests.iter().map(|request| core.resolve(request, patience));
        let batch = Self { core, owner, requests: requests.collect::<Result<_, _>>()? };
        batch.check_duplicates()?;
        Ok(batch)
    }

    /// Refuses two requests for one name or file that exclude each other.
    fn check_duplicates(&self) -> Result<(), AcquireError> {
        let (mut names, mut files) = (HashMap::new(), HashMap::new());
        for (index, request) in self.requests.iter().enumerate() {
            let by_name = names.entry(&*request.text);
            self.check_duplicate(by_name, index)?;
            if let Some(id) = request.file() {
                self.check_duplicate(files.entry(id), index)?;
            }
        }
        Ok(())
    }

    fn check_duplicate<K>(
        &self,
        entry: Entry<'_, K, usize>,
        index: usize,
    ) -> Result<(), AcquireError> {
        match entry {
            Entry::Occupied(first) if self.exclude_each_other(*first.get(), index) => {
                Err(self.named_twice(index, *first.get()))
            }
            Entry::Occupied(_) => Ok(()),
            Entry::Vacant(vacant) => {
                vacant.insert(index);
                Ok(())
            }
        }
    }

    fn exclude_each_other(&self, first: usize, second: usize) -> bool {
        let mode = |index: usize| self.requests[index].spec.mode;
        !mode(first).compatible(mode(second))
    }

    fn named_twice(&self, index: usize, first: usize) -> AcquireError {
        let why = InvalidRequest::Twice { other: self.requests[first].spelling.to_owned() };
        AcquireError::Invalid { name: self.requests[index].spelling.to_owned(), why }
    }

    fn wait_for_all(&self, wait: &RegisteredWait<'_>) -> Result<Vec<OwnedHold>, AcquireError> {
        let context = &wait.context;
        if let Some(until) = self.check_whether_to_yield()? {
            context.yield_to_others(until);
        }
        let mut refused = None;
        let mut rounds = 0;
        loop {
            #[cfg(feature = "tracing")]
            context.waits_anew();
            let first = match refused {
                Some(index) => Some((index, self.acquire(index, Patience::Wait(wait))?)),
                None => None,
            };
            let done = self.try_all(first, Patience::TryWithin(wait));
            let Err(AcquireError::Busy(busy)) = done else { return done };
            refused = self.requests.iter().position(|request| &*request.text == busy.name());
            if refused.is_none() || context.end() == Some(WaitEnd::TimedOut) {
                return Err(AcquireError::Busy(busy.after(context.waited())));
            }
            // A random pause: two calls with the same requests in opposite orders could otherwise
            // refuse each other in every round.
            rounds += 1;
            if rounds > 1 {
                let most = YIELD_TIME.as_micros() as u64 * rounds.min(8);
                let pause = Duration::from_micros(RandomState::new().hash_one(rounds) % most);
                context.waker.pause(context.deadline_or(Instant::now() + pause));
            }
        }
    }

    /// Until when the call must leave one of the resources to other processes.
    ///
    /// # Errors
    /// A request would wait for a hold of its own owner, which would never end.
    fn check_whether_to_yield(&self) -> Result<Option<Instant>, AcquireError> {
        let table = self.core.lock();
        let mut until = None;
        for request in &self.requests {
            let key = Key::from(&*request.text);
            match table.find(key) {
                Some(slot) => {
                    let claim = request.claim(self.owner);
                    if let Some(why) = table.would_wait_for_itself(slot, &claim) {
                        return Err(failure::deadlock(&request.text, self.owner, why));
                    }
                }
                None => {
                    let directory = self.core.naming.directory().map(|directory| directory.id());
                    let key = TurnKey::new(directory, key.hash());
                    until = until.max(self.core.process.fairness.yield_until(key));
                }
            }
        }
        drop(table);
        self.refuse_own_holds_elsewhere()?;
        Ok(until)
    }

    /// As far as it is known which files are meant.
    fn refuse_own_holds_elsewhere(&self) -> Result<(), AcquireError> {
        let is_direct = matches!(self.core.naming, OpenNaming::Direct);
        let file_of = |request: &ResolvedRequest<'_>| {
            // In a directory the image is not what is locked.
            request.file().filter(|_| is_direct || request.opened().is_some())
        };
        let by_file = self.requests.iter().filter_map(|request| Some((file_of(request)?, request)));
        let by_file: HashMap<_, _> = by_file.collect();
        if by_file.is_empty() {
            return Ok(());
        }
        for hold in self.core.holds_elsewhere(|file| by_file.contains_key(&file), None) {
            let request = by_file[&hold.file];
            if hold.is_own_and_excludes(&request.claim(self.owner)) {
                let why = DeadlockCause::OwnHold { held: hold.mode };
                let text = &request.text;
                return Err(failure::deadlock_elsewhere(text, self.owner, why, &hold.name));
            }
        }
        Ok(())
    }

    /// One round: each request but the one that is held already is tried in order. If one is
    /// refused, what was taken is given back.
    fn try_all(
        &self,
        first: Option<(usize, OwnedHold)>,
        patience: Patience<'_>,
    ) -> Result<Vec<OwnedHold>, AcquireError> {
        let mut holds: Vec<Option<OwnedHold>> = Vec::new();
        holds.resize_with(self.requests.len(), || None);
        if let Some((index, hold)) = first {
            holds[index] = Some(hold);
        }
        match self.try_each(&mut holds, patience) {
            Ok(()) => Ok(holds.into_iter().flatten().collect()),
            Err(error) => {
                match patience.context() {
                    Some(context) => self.give_back(holds, context),
                    None => holds.into_iter().flatten().for_each(OwnedHold::give_back),
                }
                Err(error)
            }
        }
    }

    fn try_each(
        &self,
        holds: &mut [Option<OwnedHold>],
        patience: Patience<'_>,
    ) -> Result<(), AcquireError> {
        let mut files: HashMap<FileId, usize> = HashMap::new();
        let first = holds.iter().position(Option::is_some);
        let others = (0..holds.len()).filter(|index| Some(*index) != first);
        for index in first.into_iter().chain(others) {
            if holds[index].is_none() {
                match self.acquire(index, patience) {
                    Ok(hold) => holds[index] = Some(hold),
                    Err(AcquireError::Busy(busy)) => {
                        // This call may itself have just locked the file, by another name.
                        let own = busy.file().and_then(|id| files.get(&id));
                        return Err(match own {
                            Some(&duplicate) => self.named_twice(index, duplicate),
                            None => AcquireError::Busy(busy),
                        });
                    }
                    Err(error) => return Err(error),
                }
            }
            if let Some(id) = self.file_of(holds[index].as_ref()) {
                files.entry(id).or_insert(index);
            }
        }
        Ok(())
    }

    fn acquire(&self, index: usize, patience: Patience<'_>) -> Result<OwnedHold, AcquireError> {
        self.core.acquire_resolved(self.owner, &self.requests[index], patience)
    }

    fn file_of(&self, hold: Option<&OwnedHold>) -> Option<FileId> {
        let table = self.core.lock();
        table.resource(hold?.slot()).hold()?.file().map(LockFile::id)
    }

    /// Releases the holds of a refused round: on this thread those whose release cannot hang, then
    /// the others on workers.
    fn give_back(&self, holds: Vec<Option<OwnedHold>>, context: &WaitContext) {
        let mut may_hang = Vec::new();
        for (hold, request) in holds.into_iter().zip(&self.requests) {
            let Some(hold) = hold else { continue };
            let is_local = {
                let table = self.core.lock();
                let held = table.resource(hold.slot()).hold();
                held.and_then(|held| held.file()).is_none_or(LockFile::is_local)
            };
            match is_local {
                true => hold.give_back(),
                false => may_hang.push((request.queue(hold.name()), hold)),
            }
        }
        for (queue, hold) in may_hang {
            hold.give_back_on_worker(&queue, context);
        }
    }
}
