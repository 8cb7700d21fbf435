//! How a wish becomes a hold: at once, after a wait, or together with others.
//!
//! A wish first asks the map. Where the resource is free, the asking thread alone makes the
//! system calls: it has the resource's [`Transition`]. A try that is refused is over. A wait
//! queues in the resource until its turn comes, and then, being the only one of this process that
//! may, deals with whoever holds the file elsewhere.

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::hash::BuildHasher;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::MutexGuard;

use crate::api::lease::{Lease, Leases};
use crate::core::{Inner, Map, Transition};
use crate::engine::{self, Key, LockError, LockFile, Name, OpenNaming, Retried};
use crate::error::{AcquireError, Busy};
use crate::table::fairness::{Began, COURTESY, Contention, TurnKey};
use crate::table::slots::Slot;
use crate::table::{
    ANSWER, Admission, Conversion, Grant, Hold, Inherited, Owners, Resource, State, Waiter,
    WakeList, Wish,
};
use crate::types::{
    FileId, InvalidRequest, IoError, LockSpec, Mode, Origin, OwnerId, Request, Settings, Target,
    TargetKind,
};
use crate::wait::watch::{Lent, Watch};
use crate::wait::worker_pool::{CallQueue, Late, OnTimeout};
use crate::wait::{Start, Wait, WaitContext, WaitEnd};

/// A request whose name is known.
pub(crate) struct Wanted<'a> {
    pub(crate) text: Cow<'a, OsStr>,
    pub(crate) opened: Option<(BorrowedFd<'a>, FileId)>,
    /// Where that seems to be. Asked beforehand: no system call is made under the map's mutex.
    path_of_opened: PathBuf,
    /// The image that the name was resolved from, where it is one that is there.
    image: Option<FileId>,
    settings: Settings,
}

impl<'a> Wanted<'a> {
    /// Finds the name, with system calls where the target needs them.
    pub(crate) fn new(
        inner: &Inner,
        target: &'a Target<'a>,
        settings: Settings,
    ) -> Result<Self, AcquireError> {
        match Look::at(inner, target, settings)? {
            None => Ok(Self::of(target, settings, None)),
            Some(look) => Self::found(target, settings, look.run()),
        }
    }

    /// The same, by a helper: whoever waits must not hang.
    fn patiently(
        inner: &Inner,
        target: &'a Target<'a>,
        settings: Settings,
        context: &WaitContext,
    ) -> Result<Self, AcquireError> {
        let Some(look) = Look::at(inner, target, settings)? else {
            return Ok(Self::of(target, settings, None));
        };
        let (text, path) = (target.text(), target.path());
        let looked = inner.process.helpers.run(
            look.lane(),
            context,
            look.unbegun(),
            move || look.run(),
            drop,
            || (),
        );
        Self::found(target, settings, in_time(looked, text, path, context)?)
    }

    fn found(
        target: &'a Target<'a>,
        settings: Settings,
        found: Result<Found, LockError>,
    ) -> Result<Self, AcquireError> {
        match found {
            Ok(found) => Ok(Self::of(target, settings, Some(found))),
            Err(refusal) => Err(refused(refusal, target.text(), || target.path().to_owned())),
        }
    }

    fn of(target: &'a Target<'a>, settings: Settings, found: Option<Found>) -> Self {
        let text = Cow::Borrowed(target.text());
        match (found, &target.0) {
            (Some(Found::Image(text, id)), _) => Self {
                text: Cow::Owned(text.into_os_string()),
                opened: None,
                path_of_opened: PathBuf::new(),
                image: id,
                settings,
            },
            (Some(Found::Opened(id)), TargetKind::Opened(_, fd)) => {
                let path_of_opened = engine::path_of(*fd);
                Self { text, opened: Some((*fd, id)), path_of_opened, image: None, settings }
            }
            _ => {
                let path_of_opened = PathBuf::new();
                Self { text, opened: None, path_of_opened, image: None, settings }
            }
        }
    }

    fn wish(&self, inner: &Inner, owner: OwnerId) -> Wish {
        inner.wish(owner, self.settings, self.opened.map(|(_, id)| id))
    }
}

/// The system calls that a target needs before anything can be asked, for whichever thread makes
/// them.
enum Look {
    /// Where an image really is.
    Image(PathBuf, bool),
    /// Where an image really is, or will be.
    NewImage(PathBuf, bool),
    /// Which file a caller's descriptor is open on.
    Opened(OwnedFd, bool),
    /// Whether a file has other names.
    Links(PathBuf),
}

enum Found {
    /// Its path, and which file is there, if one is.
    Image(PathBuf, Option<FileId>),
    Opened(FileId),
    OneName,
}

impl Look {
    /// Whether the target is more than a name that is taken as it is.
    fn is_needed(inner: &Inner, target: &Target<'_>, settings: &Settings) -> bool {
        match &target.0 {
            TargetKind::Name(_) => {
                let special = settings.auto_create || settings.refuse_hard_links;
                special && matches!(inner.place, OpenNaming::Direct)
            }
            TargetKind::Image(_) | TargetKind::NewImage(_) | TargetKind::Opened(..) => true,
        }
    }

    /// `None` for a name that needs none.
    fn at(
        inner: &Inner,
        target: &Target<'_>,
        settings: Settings,
    ) -> Result<Option<Self>, AcquireError> {
        let direct = matches!(inner.place, OpenNaming::Direct);
        if direct && settings.auto_create && !matches!(target.0, TargetKind::Opened(..)) {
            let (name, why) = (target.text().to_owned(), InvalidRequest::AutoCreateInDirect);
            return Err(AcquireError::Invalid { name, why });
        }
        let links = settings.refuse_hard_links;
        Ok(match &target.0 {
            TargetKind::Image(path) => Some(Self::Image(path.to_path_buf(), links)),
            TargetKind::NewImage(path) => Some(Self::NewImage(path.to_path_buf(), links)),
            TargetKind::Opened(_, fd) => {
                let fd = engine::duplicate(*fd);
                let fd = fd.map_err(|why| refused(why, target.text(), PathBuf::new))?;
                Some(Self::Opened(fd, links))
            }
            // Also where it only joins, which opens nothing.
            TargetKind::Name(name) if direct && links => Some(Self::Links(PathBuf::from(name))),
            TargetKind::Name(_) => None,
        })
    }

    fn lane(&self) -> CallQueue {
        match self {
            Self::Image(path, _) | Self::NewImage(path, _) | Self::Links(path) => {
                lane_of_path(path)
            }
            Self::Opened(fd, _) => CallQueue::Mount(engine::mount_of(fd.as_fd())),
        }
    }

    fn unbegun(&self) -> OnTimeout {
        match self {
            Self::Image(..) | Self::NewImage(..) | Self::Links(_) => OnTimeout::Remove,
            Self::Opened(..) => OnTimeout::DropOnWorker,
        }
    }

    fn run(self) -> Result<Found, LockError> {
        match self {
            Self::Image(path, links) => {
                let resolved = engine::resolve_image(&path, links);
                resolved.map(|(path, id)| Found::Image(path, Some(id)))
            }
            Self::NewImage(path, links) => {
                let resolved = engine::resolve_new_image(&path, links);
                resolved.map(|(path, id)| Found::Image(path, id))
            }
            Self::Opened(fd, links) => engine::id_of(fd.as_fd(), links).map(Found::Opened),
            Self::Links(path) => engine::refuse_hard_links(&path).map(|()| Found::OneName),
        }
    }
}

/// The system calls of an acquire, for whichever thread makes them.
struct Attempt {
    spec: LockSpec,
    opened: Option<(OwnedFd, FileId)>,
}

/// What an attempt has brought: the file, or none in memory.
type Taken = (Option<LockFile>, Origin);

impl Attempt {
    fn new(inner: &Inner, wanted: &Wanted<'_>) -> Result<Self, LockError> {
        let opened = match wanted.opened {
            Some((fd, id)) => Some((engine::duplicate(fd)?, id)),
            None => None,
        };
        Ok(Self::of(inner, wanted.settings, opened))
    }

    fn of(inner: &Inner, settings: Settings, opened: Option<(OwnedFd, FileId)>) -> Self {
        let spec = LockSpec {
            mode: settings.mode,
            range: settings.range.unwrap_or(inner.range),
            create: settings.auto_create,
            file_mode: inner.file_mode,
            upgradable: settings.upgradable,
            refuse_hard_links: settings.refuse_hard_links,
        };
        Self { spec, opened }
    }

    fn is_in_memory(&self, name: &Name) -> bool {
        self.opened.is_none() && name.leads_nowhere()
    }

    fn run(self, inner: &Inner, name: &Name) -> Result<Taken, LockError> {
        if self.is_in_memory(name) {
            return Ok((None, Origin::InMemory));
        }
        if let Some((fd, id)) = self.opened {
            let file = LockFile::lock_opened(&inner.process.inodes, fd, id, &self.spec)?;
            return Ok((Some(file), Origin::Opened));
        }
        let file = LockFile::open_and_lock(name, &self.spec, &inner.stale)?;
        Ok((Some(file), origin(self.spec.create)))
    }
}

fn origin(auto_create: bool) -> Origin {
    if auto_create { Origin::AutoCreated } else { Origin::Existing }
}

/// How a wish got past the map.
enum Admitted<'a> {
    Joined(Slot, Arc<Name>),
    Alone(Transition<'a>, Inherited),
    Queued(Slot),
}

impl Inner {
    /// What the map has to know of a request; `opened` is the file that the caller has opened.
    fn wish(&self, owner: OwnerId, settings: Settings, opened: Option<FileId>) -> Wish {
        Wish {
            owner,
            mode: settings.mode,
            range: settings.range.unwrap_or(self.range),
            id: opened,
            opened: opened.is_some(),
            auto_create: settings.auto_create,
        }
    }

    /// One request.
    pub(crate) fn acquire(
        self: &Arc<Self>,
        owner: OwnerId,
        request: &Request<'_>,
        wait: Wait,
    ) -> Result<Lease, AcquireError> {
        self.check()?;
        if wait.is_no() {
            // The busiest way, without a look at all the others.
            return self.try_once(owner, request);
        }
        match WaitContext::of(wait) {
            Start::Try => self.try_once(owner, request),
            Start::Cancelled => Err(cancelled_at_once(request.target.text())),
            Start::Wait(context) => self.as_wait_of(owner, &context, || {
                let settings = request.settings;
                let wanted = Wanted::patiently(self, &request.target, settings, &context)?;
                self.wait_for(owner, &wanted, &context, Refused::Waits)
            }),
        }
    }

    /// A try: makes its system calls itself, and is refused at once.
    fn try_once(
        self: &Arc<Self>,
        owner: OwnerId,
        request: &Request<'_>,
    ) -> Result<Lease, AcquireError> {
        let mode = request.settings.mode;
        if Look::is_needed(self, &request.target, &request.settings) {
            return self.try_after_a_look(owner, request);
        }
        let key = Key::from(request.target.text());
        let mut map = self.map.lock();
        let slot = map.resources.find(key);
        // What is simply held is refused or joined at once, and nothing is made ready for more.
        if let Some(slot) = slot
            && !map.is_frozen()
        {
            let resource = map.resources.at(slot);
            if let Some((held, owners)) = resource.refuses(mode) {
                let name = Arc::clone(&resource.name);
                drop(map);
                return Err(AcquireError::Busy(Busy::inside(name, mode, held, owners)));
            }
            let wish = self.wish(owner, request.settings, None);
            if let Admission::Joined = resource.admit(&wish) {
                let name = Arc::clone(&resource.name);
                drop(map);
                return Ok(self.lease(slot, name, &wish));
            }
        }
        self.try_further(map, key, slot, owner, request)
    }

    #[inline(never)]
    fn try_after_a_look(
        self: &Arc<Self>,
        owner: OwnerId,
        request: &Request<'_>,
    ) -> Result<Lease, AcquireError> {
        let wanted = Wanted::new(self, &request.target, request.settings)?;
        self.try_now(owner, &wanted)
    }

    /// It is absent, or something else is going on with it.
    #[inline(never)]
    fn try_further(
        self: &Arc<Self>,
        map: MutexGuard<'_, Map>,
        key: Key<'_>,
        slot: Option<Slot>,
        owner: OwnerId,
        request: &Request<'_>,
    ) -> Result<Lease, AcquireError> {
        let (target, settings) = (&request.target, request.settings);
        let wish = self.wish(owner, settings, None);
        if slot.is_none() && !map.is_frozen() {
            let name = match self.place.name(key) {
                Ok(name) => name,
                Err(why) => {
                    return Err(AcquireError::Invalid { name: key.text().to_owned(), why });
                }
            };
            let transition = self.begin(map, key.hash(), name, wish.claim());
            let taken = Attempt::of(self, settings, None).run(self, &transition.name);
            return self.tried(transition, &wish, taken);
        }
        self.try_with(map, key, wish, &Wanted::of(target, settings, None))
    }

    fn try_now(
        self: &Arc<Self>,
        owner: OwnerId,
        wanted: &Wanted<'_>,
    ) -> Result<Lease, AcquireError> {
        let (wish, key) = (wanted.wish(self, owner), Key::from(&*wanted.text));
        self.try_with(self.map.lock(), key, wish, wanted)
    }

    fn try_with(
        self: &Arc<Self>,
        map: MutexGuard<'_, Map>,
        key: Key<'_>,
        wish: Wish,
        wanted: &Wanted<'_>,
    ) -> Result<Lease, AcquireError> {
        let transition = match self.admit(map, key, wish, wanted, None, None)? {
            Admitted::Joined(slot, name) => return Ok(self.lease(slot, name, &wish)),
            Admitted::Alone(transition, _) => transition,
            Admitted::Queued(_) => unreachable!("a try does not wait"),
        };
        let attempt = Attempt::new(self, wanted);
        let taken = attempt.and_then(|attempt| attempt.run(self, &transition.name));
        self.tried(transition, &wish, taken)
    }

    /// What comes of the system calls of a try.
    fn tried(
        self: &Arc<Self>,
        transition: Transition<'_>,
        wish: &Wish,
        taken: Result<Taken, LockError>,
    ) -> Result<Lease, AcquireError> {
        match taken {
            Ok(taken) => {
                let turn = self.process.turns.go_on(|| turn_key(&transition.name));
                Ok(self.granted(transition, wish, taken, turn))
            }
            Err(LockError::Contended(file)) => {
                let id = file.id();
                // Before it is anybody else's turn.
                drop(file);
                let name = transition.end();
                Err(AcquireError::Busy(self.contended(name, wish.mode, id)))
            }
            Err(refusal) => {
                let name = transition.end();
                Err(refused(refusal, name.text(), || name.path()))
            }
        }
    }

    fn lease(self: &Arc<Self>, slot: Slot, name: Arc<Name>, wish: &Wish) -> Lease {
        Lease::new(Arc::clone(self), slot, name, wish.owner, wish.mode)
    }

    /// The transition ends in a hold.
    fn granted(
        self: &Arc<Self>,
        transition: Transition<'_>,
        wish: &Wish,
        (file, origin): Taken,
        turn: Option<Began>,
    ) -> Lease {
        let slot = transition.slot();
        let hold = Hold::new(file, wish.range, wish.mode, origin, Owners::one(wish.owner));
        let name = transition.end_in(hold, turn);
        self.lease(slot, name, wish)
    }

    /// Joins the resource, or makes it ours alone to acquire, or puts `waiter` into its queue.
    /// Without a waiter, who is in the way refuses it; without context, nothing limits the wait for
    /// another thread's system calls.
    fn admit<'a>(
        &'a self,
        mut map: MutexGuard<'a, Map>,
        key: Key<'_>,
        mut wish: Wish,
        wanted: &Wanted<'_>,
        waiter: Option<&Arc<Waiter>>,
        context: Option<&WaitContext>,
    ) -> Result<Admitted<'a>, AcquireError> {
        let text = key.text();
        let bad = |why| AcquireError::Invalid { name: text.to_owned(), why };
        loop {
            if map.is_frozen() {
                let Some(context) = context else {
                    return Err(AcquireError::Frozen { name: text.to_owned() });
                };
                let over = self.wait_for_change(&mut map, context).err();
                match over {
                    Some(WaitEnd::Cancelled) => return Err(cancelled(text, context)),
                    Some(WaitEnd::TimedOut) => {
                        return Err(AcquireError::Frozen { name: text.to_owned() });
                    }
                    None => continue,
                }
            }
            let Some(slot) = map.resources.find(key) else {
                let name = self.name(key, wanted).map_err(bad)?;
                let transition = self.begin(map, key.hash(), name, wish.claim());
                return Ok(Admitted::Alone(transition, Inherited::Nothing));
            };
            let resource = map.resources.at(slot);
            let admission = resource.admit(&wish);
            match (admission, waiter) {
                (Admission::Joined, _) => {
                    return Ok(Admitted::Joined(slot, Arc::clone(&resource.name)));
                }
                (Admission::Bad(why), _) => return Err(bad(why)),
                (Admission::WhichFile, _) => {
                    let name = Arc::clone(&resource.name);
                    let id = MutexGuard::unlocked(&mut map, || self.which_file(&name, context));
                    wish.id = Some(id?);
                }
                (_, Some(waiter)) => {
                    if resource.would_wait_for_itself(&wish) {
                        return Err(AcquireError::Deadlock { name: text.to_owned() });
                    }
                    resource.enqueue(wish, Arc::clone(waiter));
                    return Ok(Admitted::Queued(slot));
                }
                (_, None) if resource.is_stuck() => return Err(stuck(resource)),
                (admission, None)
                    if matches!(admission, Admission::NotYet)
                        || resource.stuck_since().is_some() =>
                {
                    resource.watched = true;
                    let name = Arc::clone(&resource.name);
                    match context {
                        None => match resource.stuck_since() {
                            Some(since) => {
                                self.sleep_until_settled(&mut map, Some(since + ANSWER));
                            }
                            None => self.sleep_until_settled(&mut map, None),
                        },
                        Some(context) => {
                            let waited = self.wait_for_change(&mut map, context);
                            let late = |over| late_error(over, text, &name.path(), context);
                            waited.map_err(late)?;
                        }
                    }
                }
                (Admission::Refused(held, owners), None) => {
                    let name = Arc::clone(&resource.name);
                    return Err(AcquireError::Busy(Busy::inside(name, wish.mode, held, owners)));
                }
                (Admission::RefusedOutside | Admission::NotYet, None) => {
                    let name = Arc::clone(&resource.name);
                    return Err(AcquireError::Busy(Busy::outside(name, wish.mode)));
                }
            }
        }
    }

    /// A name means one file by its path and perhaps another by a caller's descriptor: which is
    /// it by its path?
    fn which_file(
        &self,
        name: &Arc<Name>,
        context: Option<&WaitContext>,
    ) -> Result<FileId, AcquireError> {
        let text = name.text();
        if !matches!(self.place, OpenNaming::Direct) {
            // A lock file, or memory, is never the file that a caller has open.
            let why = InvalidRequest::OtherFile;
            return Err(AcquireError::Invalid { name: text.to_owned(), why });
        }
        let path = PathBuf::from(text);
        let id = match context {
            None => engine::id_at(&path),
            Some(context) => {
                let lane = lane_of_path(&path);
                let path_of_helper = path.clone();
                let look = move || engine::id_at(&path_of_helper);
                let unbegun = OnTimeout::Remove;
                let helpers = &self.process.helpers;
                let looked = helpers.run(lane, context, unbegun, look, drop, || ());
                in_time(looked, text, &path, context)?
            }
        };
        id.map_err(|refusal| refused(refusal, text, || path))
    }

    fn name(&self, key: Key<'_>, wanted: &Wanted<'_>) -> Result<Arc<Name>, InvalidRequest> {
        match wanted.opened {
            Some(_) => OpenNaming::name_of_opened(key, wanted.path_of_opened.clone()),
            None => self.place.name(key),
        }
    }

    /// The kernel has refused the lock: by another name the file may be held here all the same.
    #[cold]
    pub(crate) fn contended(&self, name: Arc<Name>, asked: Mode, id: FileId) -> Busy {
        // In a directory, one file has one name.
        if name.directory().is_some() {
            return Busy::outside(name, asked).on(id);
        }
        let map = self.map.lock();
        // A shared hold of its own is not what a conversion meets.
        let others = map.resources.iter().filter(|resource| !Arc::ptr_eq(&resource.name, &name));
        let mut holds = others.filter_map(Resource::hold);
        let busy = match holds.find(|hold| hold.file().is_some_and(|file| file.id() == id)) {
            Some(hold) => Busy::inside(name, asked, hold.mode, hold.owners.blockers()),
            None => Busy::outside(name, asked),
        };
        busy.on(id)
    }
}

/// An open file on which somebody else has a lock.
struct Refuser {
    number: RawFd,
    id: FileId,
    /// It is known not to hang.
    local: bool,
}

/// What a wait does where it is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// It waits.
    Waits,
    /// It is over: only its system calls are waited for.
    Ends,
}

/// Waiting.
impl Inner {
    /// Lets [`LockSpace::release_owner`](crate::LockSpace::release_owner) find this wait.
    fn as_wait_of<T>(
        &self,
        owner: OwnerId,
        context: &WaitContext,
        wait: impl FnOnce() -> Result<T, AcquireError>,
    ) -> Result<T, AcquireError> {
        let number = self.map.lock().begin_wait(owner, &context.waker);
        let result = wait();
        self.map.lock().end_wait(owner, number);
        result
    }

    fn wait_for(
        self: &Arc<Self>,
        owner: OwnerId,
        wanted: &Wanted<'_>,
        context: &WaitContext,
        refused: Refused,
    ) -> Result<Lease, AcquireError> {
        let (wish, key) = (wanted.wish(self, owner), Key::from(&*wanted.text));
        let waiter = Waiter::new(&context.waker);
        loop {
            if context.over() == Some(WaitEnd::Cancelled) {
                return Err(cancelled(&wanted.text, context));
            }
            let queue = (refused == Refused::Waits).then_some(&waiter);
            match self.admit(self.map.lock(), key, wish, wanted, queue, Some(context)) {
                Ok(Admitted::Joined(slot, name)) => return Ok(self.lease(slot, name, &wish)),
                Ok(Admitted::Alone(transition, inherited)) => {
                    return self.head(transition, inherited, &wish, wanted, context, refused);
                }
                Ok(Admitted::Queued(slot)) => {
                    let bad = |why| AcquireError::Invalid { name: wanted.text.to_os_string(), why };
                    match self.in_queue(slot, &waiter, context, wish.mode)? {
                        Grant::Joined(name) => return Ok(self.lease(slot, name, &wish)),
                        Grant::Acquire(inherited) => {
                            let make = || self.name(key, wanted).map_err(bad);
                            let opened = wanted.opened.is_some();
                            let alone = Transition::inherited(self, slot, opened, make)?;
                            return self.head(alone, inherited, &wish, wanted, context, refused);
                        }
                        Grant::Bad(why) => return Err(bad(why)),
                        Grant::Again => {}
                    }
                }
                Err(AcquireError::Busy(busy)) => {
                    return Err(AcquireError::Busy(busy.after(context.waited())));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sleeps in the queue until it is granted something.
    fn in_queue(
        &self,
        slot: Slot,
        waiter: &Arc<Waiter>,
        context: &WaitContext,
        asked: Mode,
    ) -> Result<Grant, AcquireError> {
        loop {
            let over = context.over();
            if let Some(grant) = waiter.take_grant() {
                return Ok(grant);
            }
            if let Some(over) = over {
                return self.leave_queue(slot, waiter, context, asked, over);
            }
            context.waker.sleep(context.until());
        }
    }

    /// The wait is over, unless it was granted something at the last moment.
    fn leave_queue(
        &self,
        slot: Slot,
        waiter: &Arc<Waiter>,
        context: &WaitContext,
        asked: Mode,
        over: WaitEnd,
    ) -> Result<Grant, AcquireError> {
        let mut rings = WakeList::default();
        let mut map = self.map.lock();
        if let Some(grant) = waiter.take_grant() {
            return Ok(grant);
        }
        // It is there while somebody waits.
        let resource = map.resources.at(slot);
        resource.dequeue(waiter);
        let name = Arc::clone(&resource.name);
        let error = match over {
            WaitEnd::Cancelled => cancelled(name.text(), context),
            // Nobody holds it: only its file system keeps it.
            WaitEnd::TimedOut
                if resource.stuck_since().is_some() || resource.blockers().is_none() =>
            {
                AcquireError::Unresponsive {
                    name: name.text().to_owned(),
                    path: name.path(),
                    waited: context.waited(),
                }
            }
            WaitEnd::TimedOut => {
                let busy = match resource.blockers() {
                    Some((held, owners)) if !matches!(resource.state, State::Awaited(_)) => {
                        Busy::inside(name, asked, held, owners)
                    }
                    _ => Busy::outside(name, asked),
                };
                AcquireError::Busy(busy.after(context.waited()))
            }
        };
        map.let_in(slot, &mut rings);
        drop(map);
        rings.wake();
        Err(error)
    }

    /// The resource is this wait's to acquire; what is in the way now is outside of this space.
    fn head(
        self: &Arc<Self>,
        transition: Transition<'_>,
        inherited: Inherited,
        wish: &Wish,
        wanted: &Wanted<'_>,
        context: &WaitContext,
        refused: Refused,
    ) -> Result<Lease, AcquireError> {
        let lane = self.lane(&transition.name, wanted);
        let head = Head { inner: self, transition, wish, lane, context };
        match head.get(inherited, wanted, refused) {
            Ok((taken, rivals)) => {
                let begin = |_: &LockFile| self.process.turns.begin(turn_key(head.name()), rivals);
                // Nobody else is to be given a turn at what is in memory.
                let turn = taken.0.as_ref().map(begin);
                Ok(self.granted(head.transition, wish, taken, turn))
            }
            Err(End { error, by_helper: true }) => {
                head.transition.give_away();
                Err(error)
            }
            Err(End { error, by_helper: false }) => {
                head.transition.end();
                Err(error)
            }
        }
    }

    fn lane(&self, name: &Name, wanted: &Wanted<'_>) -> CallQueue {
        match wanted.opened {
            Some((fd, _)) => CallQueue::Mount(engine::mount_of(fd)),
            None => lane_of(name),
        }
    }
}

/// Several at once.
impl Inner {
    /// All requests or none. Never holds and waits: what is refused is waited for with nothing
    /// held, and then comes first.
    pub(crate) fn acquire_all(
        self: &Arc<Self>,
        owner: OwnerId,
        requests: &[Request<'_>],
        wait: Wait,
    ) -> Result<Leases, AcquireError> {
        self.check()?;
        let context = match WaitContext::of(wait) {
            Start::Try => {
                let wanted = requests
                    .iter()
                    .map(|request| Wanted::new(self, &request.target, request.settings));
                let wanted: Vec<_> = wanted.collect::<Result<_, _>>()?;
                check_named_once(&wanted)?;
                return self.try_all(&wanted, None, None, |wanted| self.try_now(owner, wanted));
            }
            Start::Cancelled => {
                let first = requests.first().map(|request| request.target.text());
                return Err(cancelled_at_once(first.unwrap_or_default()));
            }
            Start::Wait(context) => context,
        };
        self.as_wait_of(owner, &context, || {
            let wanted = requests.iter().map(|request| {
                Wanted::patiently(self, &request.target, request.settings, &context)
            });
            let wanted: Vec<_> = wanted.collect::<Result<_, _>>()?;
            check_named_once(&wanted)?;
            if let Some(until) = self.check_whether_for_others(owner, &wanted)? {
                context.yield_to_others(until);
            }
            let mut first = None;
            let mut rounds = 0;
            loop {
                let mut lead = None;
                if let Some(index) = first {
                    let wanted: &Wanted<'_> = &wanted[index];
                    lead = Some((index, self.wait_for(owner, wanted, &context, Refused::Waits)?));
                }
                let done = self.try_all(&wanted, lead, Some(&context), |wanted| {
                    self.wait_for(owner, wanted, &context, Refused::Ends)
                });
                let Err(AcquireError::Busy(busy)) = done else { return done };
                first = wanted.iter().position(|wanted| &*wanted.text == busy.name());
                let over = context.over();
                if first.is_none() || over == Some(WaitEnd::TimedOut) {
                    return Err(AcquireError::Busy(busy.after(context.waited())));
                }
                // Two that ask for the same in opposite orders must not step aside in step.
                rounds += 1;
                let most = COURTESY.as_micros() as u64 * rounds.min(8);
                let pause = Duration::from_micros(RandomState::new().hash_one(rounds) % most);
                if rounds > 1 {
                    context.waker.pause(context.until_or_in(pause));
                }
            }
        })
    }

    /// Whatever else is in the way: what the owner itself holds would never be free. Tells until
    /// when one of them is to be left to other processes.
    fn check_whether_for_others(
        &self,
        owner: OwnerId,
        wanted: &[Wanted<'_>],
    ) -> Result<Option<Instant>, AcquireError> {
        let mut map = self.map.lock();
        let mut for_others = None;
        for wanted in wanted {
            let (wish, key) = (wanted.wish(self, owner), Key::from(&*wanted.text));
            match map.find(key) {
                Some(resource) if resource.would_wait_for_itself(&wish) => {
                    return Err(AcquireError::Deadlock { name: wanted.text.to_os_string() });
                }
                Some(_) => {}
                None => {
                    let turn = TurnKey::new(self.place.directory(), key.hash());
                    for_others = for_others.max(self.process.turns.for_others_until(turn));
                }
            }
        }
        Ok(for_others)
    }

    /// One round: each request but the one that `lead` holds already is tried in order. What was
    /// taken is given back if that fails, with as much context as there is.
    fn try_all(
        &self,
        wanted: &[Wanted<'_>],
        lead: Option<(usize, Lease)>,
        context: Option<&WaitContext>,
        acquire: impl FnMut(&Wanted<'_>) -> Result<Lease, AcquireError>,
    ) -> Result<Leases, AcquireError> {
        let mut taken: Vec<Option<Lease>> = wanted.iter().map(|_| None).collect();
        if let Some((index, lease)) = lead {
            taken[index] = Some(lease);
        }
        if let Err(error) = self.try_each(wanted, &mut taken, acquire) {
            if let Some(context) = context {
                let taken = taken.into_iter().zip(wanted);
                self.give_back(taken.filter_map(|(lease, wanted)| Some((lease?, wanted))), context);
            }
            return Err(error);
        }
        Ok(Leases::new(taken.into_iter().flatten().collect()))
    }

    /// Gives back what was taken: here what cannot hang, and then by helpers what can.
    fn give_back<'a>(
        &self,
        taken: impl Iterator<Item = (Lease, &'a Wanted<'a>)>,
        context: &WaitContext,
    ) {
        let mut may_hang = Vec::new();
        for (lease, wanted) in taken {
            let name = {
                let mut map = self.map.lock();
                let resource = map.find(lease.name().into());
                resource.and_then(|resource| {
                    let local = resource.hold()?.file()?.is_local();
                    (!local).then(|| Arc::clone(&resource.name))
                })
            };
            match name {
                Some(name) => may_hang.push((lease, self.lane(&name, wanted))),
                None => drop(lease),
            }
        }
        for (lease, lane) in may_hang {
            lease.release_by(|rest| {
                let helpers = &self.process.helpers;
                let _ = helpers.run(lane, context, OnTimeout::RunAnyway, rest, drop, || ());
            });
        }
    }

    fn try_each(
        &self,
        wanted: &[Wanted<'_>],
        taken: &mut [Option<Lease>],
        mut acquire: impl FnMut(&Wanted<'_>) -> Result<Lease, AcquireError>,
    ) -> Result<(), AcquireError> {
        let mut files: Vec<(FileId, usize)> = Vec::new();
        let lead = taken.iter().position(Option::is_some);
        for index in lead.into_iter().chain((0..wanted.len()).filter(|index| Some(*index) != lead))
        {
            if taken[index].is_none() {
                match acquire(&wanted[index]) {
                    Ok(lease) => taken[index] = Some(lease),
                    Err(AcquireError::Busy(busy)) => {
                        // Perhaps by another name of what this call itself has just taken.
                        let twin = files.iter().find(|(other, _)| Some(*other) == busy.file());
                        return Err(match twin {
                            Some(&(_, twin)) => named_twice(&wanted[index], &wanted[twin]),
                            None => AcquireError::Busy(busy),
                        });
                    }
                    Err(error) => return Err(error),
                }
            }
            let lease = taken[index].as_ref().expect("it was taken just now");
            if let Some(id) = self.id_of(lease.name()) {
                if let Some(&(_, twin)) = files.iter().find(|(other, _)| *other == id) {
                    return Err(named_twice(&wanted[index], &wanted[twin]));
                }
                files.push((id, index));
            }
        }
        Ok(())
    }

    /// Which file a resource is held on.
    fn id_of(&self, text: &OsStr) -> Option<FileId> {
        let mut map = self.map.lock();
        map.find(text.into())?.hold()?.file().map(LockFile::id)
    }
}

/// One request must not name a resource, or an image, twice: it would wait for itself, or hold
/// what is one disk for two.
fn check_named_once(wanted: &[Wanted<'_>]) -> Result<(), AcquireError> {
    for (index, one) in wanted.iter().enumerate() {
        let same = |other: &&Wanted<'_>| {
            let file = |wanted: &Wanted<'_>| wanted.image.or(wanted.opened.map(|(_, id)| id));
            other.text == one.text || (file(one).is_some() && file(other) == file(one))
        };
        if let Some(other) = wanted[..index].iter().find(same) {
            return Err(named_twice(one, other));
        }
    }
    Ok(())
}

fn named_twice(one: &Wanted<'_>, other: &Wanted<'_>) -> AcquireError {
    let why = InvalidRequest::Twice { other: other.text.to_os_string() };
    AcquireError::Invalid { name: one.text.to_os_string(), why }
}

/// Changing the mode of a lease.
impl Inner {
    /// Makes the only hold of a shared resource exclusive. What is held stays held throughout.
    pub(crate) fn upgrade(
        &self,
        slot: Slot,
        name: &Arc<Name>,
        owner: OwnerId,
        wait: Wait,
    ) -> Result<(), AcquireError> {
        self.check()?;
        let context = match WaitContext::of(wait) {
            Start::Cancelled => return Err(cancelled_at_once(name.text())),
            Start::Try => None,
            Start::Wait(context) => Some(context),
        };
        let refused = match self.convert(slot, name, owner, Mode::Exclusive) {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(busy)) => AcquireError::Busy(busy),
            Err(frozen @ AcquireError::Frozen { .. }) => frozen,
            Err(error) => return Err(error),
        };
        let Some(context) = context else { return Err(refused) };
        self.as_wait_of(owner, &context, || self.wait_to_upgrade(slot, name, owner, &context))
    }

    fn wait_to_upgrade(
        &self,
        slot: Slot,
        name: &Arc<Name>,
        owner: OwnerId,
        context: &WaitContext,
    ) -> Result<(), AcquireError> {
        let waiter = Waiter::new(&context.waker);
        {
            let mut map = self.map.lock();
            let resource = map.resources.at(slot);
            // Another of its own holds would never leave, nor another who waits for this one.
            let alone = resource.hold().is_some_and(|hold| hold.owners.count(owner) == 1);
            if !alone || !resource.enqueue_upgrade(owner, Arc::clone(&waiter)) {
                return Err(AcquireError::Deadlock { name: name.text().to_owned() });
            }
        }
        let mut watch = None;
        let upgraded = loop {
            let busy = match self.convert(slot, name, owner, Mode::Exclusive) {
                Ok(Ok(())) => break Ok(()),
                Ok(Err(busy)) => Ok(busy),
                Err(frozen @ AcquireError::Frozen { .. }) => Err(frozen),
                Err(error) => break Err(error),
            };
            match context.over() {
                Some(WaitEnd::TimedOut) => {
                    let busy = busy.map(|busy| AcquireError::Busy(busy.after(context.waited())));
                    break Err(busy.unwrap_or_else(|frozen| frozen));
                }
                Some(WaitEnd::Cancelled) => break Err(cancelled(name.text(), context)),
                None => {}
            }
            let Ok(busy) = busy else {
                let mut map = self.map.lock();
                let _ = map.is_frozen() && self.wait_for_change(&mut map, context).is_ok();
                continue;
            };
            match self.number_if_refused_by_kernel(slot, &busy) {
                Some(Refuser { number, id, local }) => {
                    let watch =
                        watch.get_or_insert_with(|| self.process.watchers.watch(number, id));
                    match watch.take_unarmed() {
                        // What has happened before is not told: it must be looked at once more.
                        Some(lent) => {
                            let lane = match name.is_of_opened() {
                                true => CallQueue::Device(id.dev),
                                false => lane_of(name),
                            };
                            if let Some(lent) = self.armed(lent, local, lane, context) {
                                watch.armed(lent);
                            }
                        }
                        None => watch.sleep(context),
                    }
                }
                None => context.waker.sleep(context.until()),
            }
        };
        let mut rings = WakeList::default();
        {
            let mut map = self.map.lock();
            map.resources.at(slot).dequeue(&waiter);
            map.let_in(slot, &mut rings);
        }
        rings.wake();
        upgraded
    }

    /// Arms a watch, here where that cannot hang, else by a helper; `None` if that takes too long.
    fn armed(
        &self,
        mut lent: Lent,
        local: bool,
        lane: CallQueue,
        context: &WaitContext,
    ) -> Option<Lent> {
        let work = move || {
            lent.arm();
            lent
        };
        if local {
            return Some(work());
        }
        let helpers = &self.process.helpers;
        helpers.run(lane, context, OnTimeout::Remove, work, drop, || ()).ok()?.ok()
    }

    /// The descriptor to watch, where who is in the way is not among the resource's owners: outside
    /// of this space, or here by another name of the file.
    fn number_if_refused_by_kernel(&self, slot: Slot, busy: &Busy) -> Option<Refuser> {
        let mut map = self.map.lock();
        let file = map.resources.at(slot).hold()?.file()?;
        let (number, id, local) = (file.number(), file.id(), file.is_local());
        busy.file().map(|_| Refuser { number, id, local })
    }

    /// Tries to hold it in another mode. A conversion that is refused changes nothing.
    ///
    /// The one system call, on a descriptor that is open, is made here even for a wait: only on
    /// a network file system can it block, as a release can.
    pub(crate) fn convert(
        &self,
        slot: Slot,
        name: &Arc<Name>,
        owner: OwnerId,
        to: Mode,
    ) -> Result<Result<(), Busy>, AcquireError> {
        let bad = |why| AcquireError::Invalid { name: name.text().to_owned(), why };
        let mut rings = WakeList::default();
        let mut map = self.map.lock();
        let file = loop {
            if map.is_frozen() {
                return Err(AcquireError::Frozen { name: name.text().to_owned() });
            }
            let resource = map.resources.at(slot);
            match resource.begin_conversion(owner, to, &mut rings) {
                Conversion::Begun(file) => break file,
                Conversion::Done => {
                    drop(map);
                    rings.wake();
                    return Ok(Ok(()));
                }
                Conversion::NotUpgradable => return Err(bad(InvalidRequest::NotUpgradable)),
                Conversion::Refused(mode, owners) => {
                    return Ok(Err(Busy::inside(Arc::clone(name), to, mode, owners)));
                }
                Conversion::NotYet => {
                    resource.watched = true;
                    self.sleep_until_settled(&mut map, None);
                }
            }
        };
        drop(map);
        let (converted, id) = (file.convert(to), file.id());
        self.settle_conversion(slot, file, to, matches!(converted, Ok(true)));
        match converted {
            Ok(true) => Ok(Ok(())),
            Ok(false) => Ok(Err(self.contended(Arc::clone(name), to, id))),
            Err(source) => Err(AcquireError::Io(IoError::new("fcntl", name.path(), source))),
        }
    }
}

/// The wait whose turn it is.
struct Head<'a> {
    inner: &'a Arc<Inner>,
    transition: Transition<'a>,
    wish: &'a Wish,
    lane: CallQueue,
    context: &'a WaitContext,
}

/// Why the head gives up, and whether a helper ends its transition.
struct End {
    error: AcquireError,
    by_helper: bool,
}

impl From<AcquireError> for End {
    fn from(error: AcquireError) -> Self {
        Self { error, by_helper: false }
    }
}

impl Head<'_> {
    fn get(
        &self,
        inherited: Inherited,
        wanted: &Wanted<'_>,
        refused: Refused,
    ) -> Result<(Taken, Contention), End> {
        match inherited {
            Inherited::File(file, held, origin) => {
                if let Some(taken) = self.inherit(file, held, origin)? {
                    return Ok((taken, Contention::NotMet));
                }
            }
            Inherited::Nothing if refused == Refused::Waits => {
                let turns = &self.inner.process.turns;
                if let Some(until) = turns.for_others_until(turn_key(self.name())) {
                    self.context.yield_to_others(until);
                }
            }
            Inherited::Nothing => {}
        }
        let mut rivals = Contention::NotMet;
        loop {
            self.transition.acquire_again(self.context).map_err(|over| self.over(over))?;
            // Also while it gave way, or began anew: what is free now is not for it any more.
            if self.context.waker.is_cancelled() {
                return Err(self.over(WaitEnd::Cancelled));
            }
            let file = match self.attempt(wanted)? {
                Ok(taken) => return Ok((taken, rivals)),
                Err(contended) => contended,
            };
            rivals = Contention::Met;
            if refused == Refused::Ends {
                let end = self.busy(file.id());
                self.put_away(file);
                return Err(end);
            }
            if let Some(taken) = self.watch(file)? {
                return Ok((taken, rivals));
            }
        }
    }

    fn name(&self) -> &Arc<Name> {
        &self.transition.name
    }

    /// Opens and locks; `Ok(Err(..))` is the open file that somebody else holds.
    fn attempt(&self, wanted: &Wanted<'_>) -> Result<Result<Taken, LockFile>, End> {
        let attempt = Attempt::new(self.inner, wanted);
        let attempt = attempt.map_err(|refusal| self.refused(refusal))?;
        let taken = match attempt.is_in_memory(self.name()) {
            true => attempt.run(self.inner, self.name()),
            false => self.attempt_by_helper(attempt)?,
        };
        match taken {
            Ok(taken) => Ok(Ok(taken)),
            Err(LockError::Contended(file)) => Ok(Err(file)),
            Err(refusal) => Err(self.refused(refusal)),
        }
    }

    fn attempt_by_helper(&self, attempt: Attempt) -> Result<Result<Taken, LockError>, End> {
        let (inner, name) = (Arc::clone(self.inner), Arc::clone(self.name()));
        let opened = attempt.opened.is_some();
        let work = move || {
            let mut taken = attempt.run(&inner, &name);
            if let Ok((Some(file), _)) | Err(LockError::Contended(file)) = &mut taken {
                file.learn_whether_local(&name);
            }
            taken
        };
        let mode = self.wish.mode;
        let unbegun = if opened { OnTimeout::DropOnWorker } else { OnTimeout::Remove };
        self.by_helper(unbegun, work, move |taken| match taken {
            Ok((Some(file), origin)) => Some((file, unlink_of(origin, mode))),
            _ => None,
        })
    }

    /// Takes over what another owner of this process has just left; `None` if that cannot be.
    fn inherit(&self, file: LockFile, held: Mode, from: Origin) -> Result<Option<Taken>, End> {
        let origin = match from {
            Origin::Existing => origin(self.wish.auto_create),
            from => from,
        };
        let (file, retried) = self.retry(file, origin, Some(held), None)?;
        if let Ok(Retried::Locked) = retried {
            return Ok(Some((Some(file), origin)));
        }
        // Others share it, or it has lost its name. A real release, as if nobody waited.
        self.release(file, unlink_of(origin, held))?;
        retried.map_or_else(|refusal| Err(self.refused(refusal)), |_| Ok(None))
    }

    /// Waits until the open file can be locked; `None` once it has lost its name.
    fn watch(&self, mut file: LockFile) -> Result<Option<Taken>, End> {
        let origin = match self.wish.opened {
            true => Origin::Opened,
            false => origin(self.wish.auto_create),
        };
        let helpers = &self.inner.process.helpers;
        let mut watch = self.inner.process.watchers.watch(file.number(), file.id());
        // The watch goes first: its end must not be that of the inode, which can hang.
        let leave = |file, watch: Watch| {
            drop(watch);
            self.put_away(file);
        };
        loop {
            // Who asks a helper now gets no answer in time, and would take that for one that never
            // comes.
            if !file.is_local()
                && let Some(over) = self.context.over()
            {
                let end = self.over_at(over, file.id());
                leave(file, watch);
                return Err(end);
            }
            // Also when it has only just been refused: the watch began after that.
            let (again, retried) = self.retry(file, origin, None, Some(&mut watch))?;
            file = again;
            match retried {
                Ok(Retried::Locked) => {
                    // Its end could be that of the inode, which a dead file system hangs in.
                    watch.leave(file.is_local() && helpers.will_sweep());
                    return Ok(Some((Some(file), origin)));
                }
                Ok(Retried::Stale) => {
                    leave(file, watch);
                    return Ok(None);
                }
                Ok(Retried::Contended) => {}
                Err(refusal) => {
                    leave(file, watch);
                    return Err(self.refused(refusal));
                }
            }
            helpers.prepare_to_sweep();
            self.transition.await_others();
            let end = match self.context.over() {
                Some(over) => Err(self.over_at(over, file.id())),
                None => {
                    watch.sleep(self.context);
                    let again = self.transition.acquire_again(self.context);
                    again.map_err(|over| self.over(over))
                }
            };
            if let Err(end) = end {
                leave(file, watch);
                return Err(end);
            }
        }
    }

    /// One more try on an open file, which is held in mode `held` already where it was inherited,
    /// after `watch` was armed: here where it cannot hang, else by a helper.
    fn retry(
        &self,
        file: LockFile,
        origin: Origin,
        held: Option<Mode>,
        mut watch: Option<&mut Watch>,
    ) -> Result<(LockFile, Result<Retried, LockError>), End> {
        let (mode, opened) = (self.wish.mode, self.wish.opened);
        let retry = move |file: &LockFile, inner: &Inner, name: &Name| match opened {
            true => file.retry_opened(&inner.process.inodes, mode),
            false => file.retry(name, held, mode, &inner.stale),
        };
        if file.is_local() {
            arm(watch.as_deref_mut());
            let retried = retry(&file, self.inner, self.name());
            return Ok((file, retried));
        }
        let (inner, name) = (Arc::clone(self.inner), Arc::clone(self.name()));
        let (id, began) = (file.id(), Instant::now());
        // What carries a lock must not be dropped with work that never begins: a forked child may
        // share it, and only an unlock ends it then.
        let unbegun = match held {
            Some(_) => OnTimeout::RunAnyway,
            None => OnTimeout::DropOnWorker,
        };
        let lent = watch.as_mut().and_then(|watch| watch.take_unarmed());
        let work = move || {
            let (mut file, mut lent) = (file, lent);
            file.learn_whether_local(&name);
            if let Some(lent) = &mut lent {
                lent.arm();
            }
            let retried = retry(&file, &inner, &name);
            (file, retried, lent)
        };
        let late = move |(file, retried, _)| {
            // What is not ours must not be unlocked: another hold may be on the same description.
            let held = if let Ok(Retried::Locked) = retried { Some(mode) } else { held };
            held.map(|held| (file, unlink_of(origin, held)))
        };
        match self.by_helper(unbegun, work, late) {
            Ok((file, retried, lent)) => {
                if let (Some(watch), Some(lent)) = (watch, lent) {
                    watch.armed(lent);
                }
                Ok((file, retried))
            }
            // Somebody held it when it was looked at last, and there was no time to tell more.
            Err(End { error: AcquireError::Unresponsive { .. }, by_helper })
                if began.elapsed() < ANSWER =>
            {
                Err(End { by_helper, ..self.busy(id) })
            }
            Err(end) => Err(end),
        }
    }

    /// Closes a file that is not locked, without waiting where that can hang.
    fn put_away(&self, file: LockFile) {
        if !file.is_local() {
            self.inner.process.helpers.leave_to(&self.lane, move || drop(file));
        }
    }

    /// Ends a hold: here where it cannot hang, else by a helper.
    fn release(&self, file: LockFile, unlink: Option<Mode>) -> Result<(), End> {
        if file.is_local() {
            let _ = file.release(self.name(), unlink);
            return Ok(());
        }
        let name = Arc::clone(self.name());
        let work = move || drop(file.release(&name, unlink));
        self.by_helper(OnTimeout::RunAnyway, work, |()| None)
    }

    /// Lets a helper do it. If the wait is over first, what comes of it later is given back: `late`
    /// says which file, and whether to unlink it.
    fn by_helper<T: Send + 'static>(
        &self,
        unbegun: OnTimeout,
        work: impl FnOnce() -> T + Send + 'static,
        late: impl FnOnce(T) -> Option<(LockFile, Option<Mode>)> + Send + 'static,
    ) -> Result<T, End> {
        let (inner, name) = (Arc::clone(self.inner), Arc::clone(self.name()));
        let slot = self.transition.slot();
        let give_back = move |done| {
            if let Some((file, unlink)) = late(done) {
                let _ = file.release(&name, unlink);
            }
            inner.settle(slot);
        };
        let helpers = &self.inner.process.helpers;
        let leaving = || self.transition.leave_stuck();
        let (lane, context) = (self.lane.clone(), self.context);
        match helpers.run(lane, context, unbegun, work, give_back, leaving) {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(late)) => {
                let (text, path) = (self.name().text(), self.name().path());
                let error = late_error(late.over, text, &path, self.context);
                Err(End { error, by_helper: late.begun })
            }
            Err(source) => {
                let error = IoError::new("clone", self.name().path(), source);
                Err(End::from(AcquireError::Io(error)))
            }
        }
    }

    fn busy(&self, id: FileId) -> End {
        let busy = self.inner.contended(Arc::clone(self.name()), self.wish.mode, id);
        End::from(AcquireError::Busy(busy.after(self.context.waited())))
    }

    /// The wait was over while somebody else held the file.
    fn over_at(&self, over: WaitEnd, id: FileId) -> End {
        match over {
            WaitEnd::TimedOut => self.busy(id),
            WaitEnd::Cancelled => self.over(over),
        }
    }

    /// The wait was over while it waited for nothing but its turn.
    fn over(&self, over: WaitEnd) -> End {
        End::from(match over {
            WaitEnd::Cancelled => cancelled(self.name().text(), self.context),
            WaitEnd::TimedOut => AcquireError::Frozen { name: self.name().text().to_owned() },
        })
    }

    fn refused(&self, refusal: LockError) -> End {
        End::from(refused(refusal, self.name().text(), || self.name().path()))
    }
}

/// Arms a watch on a file that cannot hang.
fn arm(watch: Option<&mut Watch>) {
    if let Some(watch) = watch
        && let Some(mut lent) = watch.take_unarmed()
    {
        lent.arm();
        watch.armed(lent);
    }
}

/// In which mode the hold's release unlinks the file, if it does.
pub(crate) fn unlink_of(origin: Origin, mode: Mode) -> Option<Mode> {
    (origin == Origin::AutoCreated).then_some(mode)
}

/// By what its turns are known.
fn turn_key(name: &Name) -> TurnKey {
    TurnKey::new(name.directory(), Key::from(name.text()).hash())
}

/// Of a name that is no caller's open file.
fn lane_of(name: &Name) -> CallQueue {
    match name.directory() {
        Some(directory) => CallQueue::Device(directory.device()),
        None if name.is_path() => lane_of_path(Path::new(name.text())),
        None => CallQueue::Device(0),
    }
}

fn lane_of_path(path: &Path) -> CallQueue {
    CallQueue::Directory(path.parent().unwrap_or(path).to_owned())
}

/// What a helper has found out before the wait was over.
fn in_time<T>(
    done: io::Result<Result<T, Late>>,
    text: &OsStr,
    path: &Path,
    context: &WaitContext,
) -> Result<T, AcquireError> {
    match done {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(late)) => Err(late_error(late.over, text, path, context)),
        Err(source) => Err(AcquireError::Io(IoError::new("clone", path, source))),
    }
}

fn late_error(over: WaitEnd, text: &OsStr, path: &Path, context: &WaitContext) -> AcquireError {
    match over {
        WaitEnd::Cancelled => cancelled(text, context),
        WaitEnd::TimedOut => {
            let (name, path) = (text.to_owned(), path.to_owned());
            AcquireError::Unresponsive { name, path, waited: context.waited() }
        }
    }
}

fn cancelled_at_once(text: &OsStr) -> AcquireError {
    AcquireError::Cancelled { name: text.to_owned(), waited: Duration::ZERO }
}

fn cancelled(text: &OsStr, context: &WaitContext) -> AcquireError {
    AcquireError::Cancelled { name: text.to_owned(), waited: context.waited() }
}

/// Somebody has gone without an answer from this resource's file system.
fn stuck(resource: &Resource) -> AcquireError {
    AcquireError::Unresponsive {
        name: resource.name.text().to_owned(),
        path: resource.name.path(),
        waited: resource.stuck_since().map_or(Duration::ZERO, |since| since.elapsed()),
    }
}

/// A refusal as the caller sees it.
#[cold]
pub(crate) fn refused(
    refusal: LockError,
    text: &OsStr,
    path: impl FnOnce() -> PathBuf,
) -> AcquireError {
    let name = text.to_owned();
    match refusal {
        LockError::NotFound => AcquireError::NotFound { name, path: path() },
        LockError::Invalid(why) => AcquireError::Invalid { name, why },
        LockError::DirectoryReplaced(directory) => {
            AcquireError::DirectoryReplaced { name, directory }
        }
        LockError::Unstable(tries) => AcquireError::Unstable { name, path: path(), tries },
        LockError::Io(error) => AcquireError::Io(error),
        LockError::Contended(_) => unreachable!("told by who knows the holds"),
    }
}
