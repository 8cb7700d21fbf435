//! One resource of a space: its state, its owners and their counts, its queue.
//!
//! A resource that is not in the map is *absent*. The others:
//!
//! | state | what it means | who ends it | a try that meets it |
//! |---|---|---|---|
//! | acquiring | one thread makes the system calls for one hold | that thread: held, or absent | waits, if compatible; else refused |
//! | awaited | the same thread waits for a holder outside of this space | that thread: acquiring, or absent | refused |
//! | held | a descriptor with its lock, and its owners | the last owner to leave: releasing, or acquiring for the head of the queue | joins, if compatible; else refused |
//! | converting | held, and one thread tries to change the lock's mode | that thread: held | waits, if compatible; else refused |
//! | releasing | one thread unlinks, unlocks and closes, or creates or deletes the file | that thread: acquiring for the head of the queue, or absent | waits |
//!
//! Waiters queue in order. Who is at the head when the resource becomes free gets it to acquire,
//! with the descriptor and its lock where they can simply pass on. Shared requests do not pass
//! an exclusive one that waits, but those of an owner who holds it shared already do: they would
//! wait for themselves.
//!
//! Nothing here makes a system call or takes a map's mutex.

pub(crate) mod fairness;
pub(crate) mod slots;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use smallvec::{SmallVec, smallvec};

use crate::engine::{LockFile, Name};
use crate::error::Blockers;
use crate::sync::Waker;
use crate::table::fairness::Began;
use crate::types::{ByteRange, FileId, InvalidRequest, Mode, Origin, OwnerId};

/// How long a file system may take to answer before it is called stuck: a caller can also go just
/// before the answer.
pub(crate) const ANSWER: Duration = Duration::from_millis(100);

/// A resource that is in the map.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) name: Arc<Name>,
    /// Of its name.
    pub(crate) hash: u64,
    /// Tells it from those that have been in its slot lately.
    pub(crate) serial: u32,
    /// Somebody sleeps until the transition ends.
    pub(crate) watched: bool,
    /// Since when this process has had it, if that counts.
    pub(crate) turn: Option<Began>,
    pub(crate) state: State,
    /// Boxed, as hardly any resource has one.
    queue: Option<Box<Queue>>,
}

#[derive(Debug)]
pub(crate) enum State {
    Acquiring(Claim),
    Awaited(Claim),
    Held(Hold),
    /// The hold's file is with the thread that converts it.
    Converting(Hold),
    Releasing,
}

/// What the thread that is acquiring will hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) owner: OwnerId,
    pub(crate) mode: Mode,
    /// The caller went at its deadline; the file system has not answered since then.
    pub(crate) stuck_since: Option<Instant>,
}

/// Who waits for a resource, in order.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Queued>,
}

#[derive(Debug)]
struct Queued {
    wish: Wish,
    waiter: Arc<Waiter>,
    /// It holds the resource shared, and waits to become exclusive.
    upgrades: bool,
}

/// One call that waits.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) waker: Arc<Waker>,
    /// What it was granted. Whoever grants has the map's mutex.
    grant: Mutex<Option<Grant>>,
}

/// What a waiter finds when its turn has come.
#[derive(Debug)]
pub(crate) enum Grant {
    /// It holds the resource, which has this name.
    Joined(Arc<Name>),
    /// The resource is acquiring, and the acquiring is the waiter's.
    Acquire(Inherited),
    /// It must ask again.
    Again,
    Bad(InvalidRequest),
}

/// How a resource comes to the next in the queue.
#[derive(Debug)]
pub(crate) enum Inherited {
    /// With its file, locked in this mode.
    File(LockFile, Mode, Origin),
    /// Without one.
    Nothing,
}

impl Waiter {
    pub(crate) fn new(waker: &Arc<Waker>) -> Arc<Self> {
        Arc::new(Self { waker: Arc::clone(waker), grant: Mutex::new(None) })
    }

    pub(crate) fn take_grant(&self) -> Option<Grant> {
        self.grant.lock().take()
    }
}

/// Waiters that were granted something, to be rung once the map's mutex is free again.
#[derive(Debug, Default)]
#[must_use = "who is not rung sleeps on"]
pub(crate) struct WakeList(Vec<Arc<Waker>>);

impl WakeList {
    fn grant(&mut self, waiter: &Waiter, grant: Grant) {
        *waiter.grant.lock() = Some(grant);
        self.0.push(Arc::clone(&waiter.waker));
    }

    pub(crate) fn add(&mut self, waker: &Arc<Waker>) {
        self.0.push(Arc::clone(waker));
    }

    #[inline]
    pub(crate) fn wake(self) {
        if self.0.is_empty() {
            return;
        }
        for waker in self.0 {
            waker.wake();
        }
    }
}

/// A lock that is held, and for whom.
#[derive(Debug)]
pub(crate) struct Hold {
    backing: Backing,
    pub(crate) mode: Mode,
    pub(crate) origin: Origin,
    pub(crate) owners: Owners,
}

/// What has the lock of a hold.
#[derive(Debug)]
enum Backing {
    File(LockFile),
    /// The space's memory alone; or the file is with the thread that converts it.
    None(ByteRange),
}

/// One wish, as far as the map has to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) owner: OwnerId,
    pub(crate) mode: Mode,
    pub(crate) range: ByteRange,
    /// The file that is meant, where a caller's open file or a look at the path has told it.
    pub(crate) id: Option<FileId>,
    /// The caller has handed in an open file.
    pub(crate) opened: bool,
    /// The lock file goes with the last hold.
    pub(crate) auto_create: bool,
}

impl Wish {
    /// What a resource is while the one who wishes acquires it.
    pub(crate) fn claim(&self) -> State {
        State::Acquiring(Claim { owner: self.owner, mode: self.mode, stuck_since: None })
    }
}

/// What becomes of a wish to hold in another mode.
#[derive(Debug)]
pub(crate) enum Conversion {
    /// The file, which must come back.
    Begun(LockFile),
    /// It is held so, or is in memory only.
    Done,
    /// Others hold it too.
    Refused(Mode, Blockers),
    NotUpgradable,
    /// A transition must end first.
    NotYet,
}

/// What becomes of a wish that finds its resource in the map.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It has joined the other shared holds.
    Joined,
    /// Held, or about to be, in a mode that excludes it, or others were first.
    Refused(Mode, Blockers),
    /// Held by somebody outside of this space, and others wait already.
    RefusedOutside,
    /// A transition must end first.
    NotYet,
    /// Whether it is the same file must be found out first.
    WhichFile,
    Bad(InvalidRequest),
}

impl Resource {
    pub(crate) fn new(name: Arc<Name>, hash: u64, serial: u32, state: State) -> Self {
        Self { name, hash, serial, state, watched: false, turn: None, queue: None }
    }

    /// Who holds it, if it is simply held, in a mode that excludes this one.
    #[inline]
    pub(crate) fn refuses(&self, mode: Mode) -> Option<(Mode, Blockers)> {
        match &self.state {
            State::Held(hold) if !hold.mode.compatible(mode) => {
                Some((hold.mode, hold.owners.blockers()))
            }
            _ => None,
        }
    }

    /// Lets the wish join, or says why not.
    #[inline]
    pub(crate) fn admit(&mut self, wish: &Wish) -> Admission {
        let passes = match &self.state {
            State::Held(hold) => {
                hold.mode.compatible(wish.mode)
                    && (hold.owners.has(wish.owner) || !self.exclusive_waits())
            }
            State::Acquiring(claim) => claim.mode.compatible(wish.mode),
            State::Converting(_) => wish.mode == Mode::Shared,
            State::Awaited(_) | State::Releasing => false,
        };
        match &mut self.state {
            State::Releasing => Admission::NotYet,
            State::Held(hold) if passes => hold.join(wish),
            _ if passes => Admission::NotYet,
            State::Awaited(_) => Admission::RefusedOutside,
            _ => match self.blockers() {
                Some((mode, owners)) => Admission::Refused(mode, owners),
                None => Admission::NotYet,
            },
        }
    }

    fn exclusive_waits(&self) -> bool {
        let mut queued = self.queue.iter().flat_map(|queue| &queue.waiting);
        queued.any(|queued| queued.wish.mode == Mode::Exclusive)
    }

    /// Who holds it, or is about to, and how.
    pub(crate) fn blockers(&self) -> Option<(Mode, Blockers)> {
        match &self.state {
            State::Acquiring(claim) | State::Awaited(claim) => {
                Some((claim.mode, Blockers::One([claim.owner])))
            }
            State::Held(hold) | State::Converting(hold) => {
                Some((hold.mode, hold.owners.blockers()))
            }
            State::Releasing => None,
        }
    }

    /// Whether this owner, or one of its waits that comes first, stands in its own way.
    pub(crate) fn would_wait_for_itself(&self, wish: &Wish) -> bool {
        let holds = match &self.state {
            // What nobody waits for any more will be given back.
            State::Acquiring(Claim { stuck_since: Some(_), .. }) | State::Releasing => false,
            State::Acquiring(claim) | State::Awaited(claim) => {
                claim.owner == wish.owner && !claim.mode.compatible(wish.mode)
            }
            State::Held(hold) | State::Converting(hold) => {
                hold.owners.has(wish.owner) && !hold.mode.compatible(wish.mode)
            }
        };
        let mut queued = self.queue.iter().flat_map(|queue| &queue.waiting);
        holds
            || queued.any(|other| {
                other.wish.owner == wish.owner && !other.wish.mode.compatible(wish.mode)
            })
    }

    /// Since when its file system has not answered a caller that is gone.
    pub(crate) fn stuck_since(&self) -> Option<Instant> {
        match &self.state {
            State::Acquiring(claim) => claim.stuck_since,
            _ => None,
        }
    }

    /// Whether it is to be called stuck.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck_since().is_some_and(|since| since.elapsed() >= ANSWER)
    }

    /// Whether a thread is just making system calls for it.
    #[cfg(feature = "snapshot")]
    pub(crate) fn is_in_transition(&self) -> bool {
        matches!(self.state, State::Acquiring(_) | State::Converting(_) | State::Releasing)
    }

    /// The last in the queue from now on.
    pub(crate) fn enqueue(&mut self, wish: Wish, waiter: Arc<Waiter>) {
        let queue = self.queue.get_or_insert_default();
        queue.waiting.push_back(Queued { wish, waiter, upgrades: false });
    }

    /// The first in the queue from now on, unless another waits there to become exclusive.
    pub(crate) fn enqueue_upgrade(&mut self, owner: OwnerId, waiter: Arc<Waiter>) -> bool {
        let range = self.hold().map_or(ByteRange::FIRST, Hold::range);
        let queue = self.queue.get_or_insert_default();
        let free = !queue.waiting.front().is_some_and(|first| first.upgrades);
        if free {
            let (mode, id) = (Mode::Exclusive, None);
            let wish = Wish { owner, mode, range, id, opened: false, auto_create: false };
            queue.waiting.push_front(Queued { wish, waiter, upgrades: true });
        }
        free
    }

    /// Not in the queue any more. Others may have been behind it: see [`let_in`](Self::let_in).
    pub(crate) fn dequeue(&mut self, waiter: &Arc<Waiter>) {
        if let Some(queue) = &mut self.queue {
            queue.waiting.retain(|queued| !Arc::ptr_eq(&queued.waiter, waiter));
        }
    }

    /// Lets those in the queue join what is held who may: the ones at its head, and, wherever they
    /// are, those of owners who hold it already, as they would wait for themselves.
    pub(crate) fn let_in(&mut self, rings: &mut WakeList) {
        let (State::Held(hold), Some(queue)) = (&mut self.state, &mut self.queue) else { return };
        if hold.mode == Mode::Exclusive {
            return;
        }
        let mut behind = false;
        queue.waiting.retain(|queued| {
            let wish = &queued.wish;
            if queued.upgrades || wish.mode == Mode::Exclusive {
                behind = true;
            } else if !behind || hold.owners.has(wish.owner) {
                let grant = match hold.join(wish) {
                    Admission::Joined => Grant::Joined(Arc::clone(&self.name)),
                    Admission::Bad(why) => Grant::Bad(why),
                    _ => Grant::Again,
                };
                rings.grant(&queued.waiter, grant);
                return false;
            }
            true
        });
    }

    /// Tells who waits to become exclusive that it is the only one left.
    fn tell_upgrader(&self, rings: &mut WakeList) {
        let first = self.queue.as_ref().and_then(|queue| queue.waiting.front());
        if let (State::Held(hold), Some(first)) = (&self.state, first)
            && first.upgrades
            && hold.owners.total() == 1
        {
            rings.add(&first.waiter.waker);
        }
    }

    /// Nobody holds it: it is the next one's to acquire, once the space is not frozen any more.
    /// `false` if nobody waits.
    pub(crate) fn next(
        &mut self,
        inherited: Inherited,
        frozen: bool,
        rings: &mut WakeList,
    ) -> bool {
        let Some(first) = self.queue.as_mut().and_then(|queue| queue.waiting.pop_front()) else {
            return false;
        };
        let Wish { owner, mode, .. } = first.wish;
        let claim = Claim { owner, mode, stuck_since: None };
        self.state = if frozen { State::Awaited(claim) } else { State::Acquiring(claim) };
        rings.grant(&first.waiter, Grant::Acquire(inherited));
        true
    }

    /// An owner has left. If it was the last one, and the lock does not pass on: its hold, for
    /// who asked to end it. The resource is releasing then.
    pub(crate) fn left(&mut self, rings: &mut WakeList) -> Option<Hold> {
        let State::Held(hold) = &self.state else { return None };
        if !hold.owners.is_empty() {
            self.tell_upgrader(rings);
            return None;
        }
        let passes = self.queue.as_ref().is_some_and(|queue| queue.can_inherit(hold));
        // Also what a try has got is passed on for no longer than a turn.
        let passes = passes && !self.turn.get_or_insert_with(Began::now).is_over();
        let State::Held(hold) = std::mem::replace(&mut self.state, State::Releasing) else {
            unreachable!("it was held just now")
        };
        match hold {
            Hold { backing: Backing::File(file), mode, origin, .. } if passes => {
                self.next(Inherited::File(file, mode, origin), false, rings);
                None
            }
            hold => Some(hold),
        }
    }

    /// Hands the file out to change the lock's mode, if this is the only hold.
    pub(crate) fn begin_conversion(
        &mut self,
        owner: OwnerId,
        to: Mode,
        rings: &mut WakeList,
    ) -> Conversion {
        let State::Held(hold) = &mut self.state else { return Conversion::NotYet };
        if hold.mode == to {
            return Conversion::Done;
        }
        // First what no wait could change.
        if to == Mode::Exclusive && hold.file().is_some_and(|file| !file.is_writable()) {
            return Conversion::NotUpgradable;
        }
        if hold.owners.total() > 1 {
            return Conversion::Refused(hold.mode, hold.owners.others(owner));
        }
        let without = Backing::None(hold.range());
        let Backing::File(file) = std::mem::replace(&mut hold.backing, without) else {
            hold.mode = to;
            self.let_in(rings);
            return Conversion::Done;
        };
        if let State::Held(hold) = std::mem::replace(&mut self.state, State::Releasing) {
            self.state = State::Converting(hold);
        }
        Conversion::Begun(file)
    }

    /// Takes the file back.
    pub(crate) fn end_conversion(
        &mut self,
        file: LockFile,
        mode: Option<Mode>,
        rings: &mut WakeList,
    ) {
        if let State::Converting(mut hold) = std::mem::replace(&mut self.state, State::Releasing) {
            hold.backing = Backing::File(file);
            hold.mode = mode.unwrap_or(hold.mode);
            self.state = State::Held(hold);
        }
        self.let_in(rings);
    }

    /// The hold, if it is held.
    pub(crate) fn hold(&self) -> Option<&Hold> {
        match &self.state {
            State::Held(hold) | State::Converting(hold) => Some(hold),
            _ => None,
        }
    }
}

impl Queue {
    /// Whether the descriptor of this hold, with its lock, can go to the first who waits.
    fn can_inherit(&self, hold: &Hold) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        let Some(file) = hold.file() else { return false };
        hold.range() == first.wish.range
            && !first.wish.opened
            && hold.origin != Origin::Opened
            && (first.wish.mode == Mode::Shared || file.is_writable())
    }
}

impl Hold {
    /// In memory there is no file.
    pub(crate) fn new(
        file: Option<LockFile>,
        range: ByteRange,
        mode: Mode,
        origin: Origin,
        owners: Owners,
    ) -> Self {
        let backing = file.map_or(Backing::None(range), Backing::File);
        Self { backing, mode, origin, owners }
    }

    /// The file that carries the lock; `None` in memory, and while the file is being converted.
    pub(crate) fn file(&self) -> Option<&LockFile> {
        match &self.backing {
            Backing::File(file) => Some(file),
            Backing::None(_) => None,
        }
    }

    pub(crate) fn into_file(self) -> Option<LockFile> {
        match self.backing {
            Backing::File(file) => Some(file),
            Backing::None(_) => None,
        }
    }

    /// The bytes that are locked.
    pub(crate) fn range(&self) -> ByteRange {
        match &self.backing {
            Backing::File(file) => file.range(),
            Backing::None(range) => *range,
        }
    }

    fn join(&mut self, wish: &Wish) -> Admission {
        if self.range() != wish.range {
            let (held, asked) = (self.range(), wish.range);
            return Admission::Bad(InvalidRequest::OtherRange { held, asked });
        }
        // One name can mean two files where a caller hands in descriptors.
        if wish.opened || self.origin == Origin::Opened {
            match (wish.id, self.file()) {
                (None, _) => return Admission::WhichFile,
                (Some(id), Some(file)) if file.id() == id => {}
                _ => return Admission::Bad(InvalidRequest::OtherFile),
            }
        }
        match self.owners.add(wish.owner) {
            Ok(()) => Admission::Joined,
            Err(TooMany) => Admission::Bad(InvalidRequest::TooManyHolds),
        }
    }
}

/// Which of an owner's holds is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Care {
    /// A lease has it.
    Lease,
    /// It was given into the space's care.
    Kept,
}

/// How many holds of one resource an owner has.
#[derive(Clone, Copy, Debug)]
struct Holds {
    owner: OwnerId,
    leased: u32,
    kept: u32,
    /// Where the space's list of what this owner keeps has the resource.
    at: u32,
}

impl Holds {
    fn of(&mut self, care: Care) -> &mut u32 {
        match care {
            Care::Lease => &mut self.leased,
            Care::Kept => &mut self.kept,
        }
    }

    fn total(&self) -> u32 {
        self.leased + self.kept
    }
}

/// An owner cannot have more holds of one resource.
#[derive(Debug)]
pub(crate) struct TooMany;

/// The owner has no such hold.
#[derive(Debug)]
pub(crate) struct NoSuchHold;

/// What has become of the kept holds of an owner: whoever lists them must know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeping {
    /// It keeps the resource from now on.
    Begins,
    /// It does not any more; here the list has it.
    Ends(u32),
    /// As before.
    Same,
}

/// The owners of a held resource, in order of id. Hardly ever more than a few.
#[derive(Debug)]
pub(crate) struct Owners(SmallVec<[Holds; 1]>);

impl Owners {
    /// These owners, with as many kept holds each as they are named.
    #[cfg(feature = "snapshot")]
    pub(crate) fn kept(ids: impl Iterator<Item = OwnerId>) -> Self {
        let mut owners = Self(SmallVec::new());
        for owner in ids {
            match owners.find(owner) {
                Ok(at) => owners.0[at].kept += 1,
                Err(at) => owners.0.insert(at, Holds { owner, leased: 0, kept: 1, at: 0 }),
            }
        }
        owners
    }

    /// One owner, with one hold by a lease.
    pub(crate) fn one(owner: OwnerId) -> Self {
        Self(smallvec![Holds { owner, leased: 1, kept: 0, at: 0 }])
    }

    fn find(&self, owner: OwnerId) -> Result<usize, usize> {
        match &self.0[..] {
            [one] if one.owner == owner => Ok(0),
            many => many.binary_search_by_key(&owner, |holds| holds.owner),
        }
    }

    /// One more hold of this owner, by a lease.
    fn add(&mut self, owner: OwnerId) -> Result<(), TooMany> {
        match self.find(owner) {
            Ok(at) => {
                let holds = &mut self.0[at];
                if holds.total() == u32::MAX {
                    return Err(TooMany);
                }
                holds.leased += 1;
            }
            Err(at) => self.0.insert(at, Holds { owner, leased: 1, kept: 0, at: 0 }),
        }
        Ok(())
    }

    /// Ends one hold of this owner.
    #[inline]
    pub(crate) fn remove(&mut self, owner: OwnerId, care: Care) -> Result<Keeping, NoSuchHold> {
        let at = self.find(owner).map_err(|_| NoSuchHold)?;
        let holds = &mut self.0[at];
        let of = holds.of(care);
        *of = of.checked_sub(1).ok_or(NoSuchHold)?;
        let ends = care == Care::Kept && holds.kept == 0;
        let keeping = if ends { Keeping::Ends(holds.at) } else { Keeping::Same };
        if holds.total() == 0 {
            self.0.remove(at);
        }
        Ok(keeping)
    }

    /// Ends all kept holds of this owner; tells how many, and where the list has the resource.
    pub(crate) fn remove_kept(&mut self, owner: OwnerId) -> Option<(u32, u32)> {
        let at = self.find(owner).ok()?;
        let holds = &mut self.0[at];
        let kept = std::mem::take(&mut holds.kept);
        let listed = holds.at;
        if holds.total() == 0 {
            self.0.remove(at);
        }
        (kept > 0).then_some((kept, listed))
    }

    /// Moves one hold of this owner from one care into the other.
    pub(crate) fn hand_over(
        &mut self,
        owner: OwnerId,
        from: Care,
        to: Care,
    ) -> Result<Keeping, NoSuchHold> {
        let at = self.find(owner).map_err(|_| NoSuchHold)?;
        let holds = &mut self.0[at];
        let of = holds.of(from);
        *of = of.checked_sub(1).ok_or(NoSuchHold)?;
        *holds.of(to) += 1;
        Ok(match (to, holds.kept) {
            (Care::Kept, 1) => Keeping::Begins,
            (Care::Lease, 0) => Keeping::Ends(holds.at),
            _ => Keeping::Same,
        })
    }

    /// The list of what this owner keeps has the resource here.
    pub(crate) fn listed_at(&mut self, owner: OwnerId, place: u32) {
        if let Ok(at) = self.find(owner) {
            self.0[at].at = place;
        }
    }

    /// Whether this owner has a hold.
    fn has(&self, owner: OwnerId) -> bool {
        self.find(owner).is_ok()
    }

    /// How many holds this owner has.
    pub(crate) fn count(&self, owner: OwnerId) -> u32 {
        self.find(owner).map_or(0, |at| self.0[at].total())
    }

    /// How many of them are in this care.
    pub(crate) fn count_in(&self, owner: OwnerId, care: Care) -> u32 {
        self.find(owner).map_or(0, |at| *self.0[at].clone().of(care))
    }

    /// All but one hold of this owner, for its refusal.
    fn others(&self, owner: OwnerId) -> Blockers {
        let others = self.0.iter().filter(|holds| holds.owner != owner || holds.total() > 1);
        Blockers::Many(others.map(|holds| holds.owner).collect())
    }

    /// How many holds there are, of all owners.
    pub(crate) fn total(&self) -> u64 {
        self.0.iter().map(|holds| u64::from(holds.total())).sum()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For a refusal.
    #[inline]
    pub(crate) fn blockers(&self) -> Blockers {
        match self.0[..] {
            [one] => Blockers::One([one.owner]),
            _ => Blockers::Many(self.ids()),
        }
    }

    /// Each owner once.
    pub(crate) fn ids(&self) -> Vec<OwnerId> {
        self.0.iter().map(|holds| holds.owner).collect()
    }

    /// Each owner with the number of its holds.
    pub(crate) fn counts(&self) -> BTreeMap<OwnerId, u32> {
        self.0.iter().map(|holds| (holds.owner, holds.total())).collect()
    }
}
