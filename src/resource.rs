//! One resource of a space: its state, its owners and their counts.
//!
//! A resource that is not in the map is *absent*. The others:
//!
//! | state | what it means | who may change it | a try that meets it |
//! |---|---|---|---|
//! | acquiring | one thread makes the system calls for one hold | that thread: to held, or absent | waits, if compatible; else refused |
//! | held | a descriptor with its lock, and its owners | whoever holds the map's mutex: joins, leaves; the last leave makes it releasing | joins, if compatible; else refused |
//! | releasing | one thread unlinks, unlocks and closes, or creates or deletes the file | that thread: to absent | waits |
//!
//! Nothing here makes a system call or takes a mutex.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::directory::FileId;
use crate::error::{BadRequest, Blockers};
use crate::lock_file::LockFile;
use crate::name::Name;
use crate::request::{ByteRange, Mode, OwnerId};

/// How a held resource got its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Origin {
    /// It was there, and stays.
    Existing,
    /// The first hold asked to create it: the last release removes it.
    AutoCreated,
    /// It is the caller's own open file ([`Target::opened`](crate::Target::opened)).
    Opened,
    /// There is none: the space is in memory only.
    InMemory,
}

/// A resource that is in the map.
#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) name: Arc<Name>,
    /// Tells it from every other resource that this space ever had.
    pub(crate) serial: u64,
    pub(crate) state: State,
    /// Somebody sleeps until the transition ends.
    pub(crate) watched: bool,
}

#[derive(Debug)]
pub(crate) enum State {
    Acquiring(Claim),
    Held(Hold),
    Releasing,
}

/// What the thread that is acquiring will hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) owner: OwnerId,
    pub(crate) mode: Mode,
}

/// A lock that is held, and for whom.
#[derive(Debug)]
pub(crate) struct Hold {
    /// `None` in memory.
    pub(crate) file: Option<LockFile>,
    pub(crate) mode: Mode,
    pub(crate) range: ByteRange,
    pub(crate) origin: Origin,
    pub(crate) owners: Owners,
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
}

/// What becomes of a wish that finds its resource in the map.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It has joined the other shared holds.
    Joined,
    /// Held, or about to be, in a mode that excludes it.
    Refused(Mode, Blockers),
    /// A transition must end first.
    NotYet,
    /// Whether it is the same file must be found out first.
    WhichFile,
    Bad(BadRequest),
}

impl Resource {
    /// Lets the wish join, or says why not.
    pub(crate) fn admit(&mut self, wish: &Wish) -> Admission {
        match &mut self.state {
            State::Releasing => Admission::NotYet,
            State::Acquiring(claim) if claim.mode.compatible(wish.mode) => Admission::NotYet,
            State::Held(hold) if hold.mode.compatible(wish.mode) => hold.join(wish),
            State::Acquiring(_) | State::Held(_) => match self.blockers() {
                Some((mode, owners)) => Admission::Refused(mode, owners),
                None => Admission::NotYet,
            },
        }
    }

    /// Who holds it, or is about to, and how.
    pub(crate) fn blockers(&self) -> Option<(Mode, Blockers)> {
        match &self.state {
            State::Acquiring(claim) => Some((claim.mode, Blockers::One([claim.owner]))),
            State::Held(hold) => Some((hold.mode, hold.owners.blockers())),
            State::Releasing => None,
        }
    }

    /// If the last owner has left: its hold, for who asks to end it. It is releasing then.
    pub(crate) fn take_if_unowned(&mut self) -> Option<Hold> {
        match std::mem::replace(&mut self.state, State::Releasing) {
            State::Held(hold) if hold.owners.is_empty() => Some(hold),
            state => {
                self.state = state;
                None
            }
        }
    }

    /// The hold, if it is held.
    pub(crate) fn hold(&self) -> Option<&Hold> {
        match &self.state {
            State::Held(hold) => Some(hold),
            _ => None,
        }
    }
}

impl Hold {
    fn join(&mut self, wish: &Wish) -> Admission {
        if self.range != wish.range {
            let (held, asked) = (self.range, wish.range);
            return Admission::Bad(BadRequest::OtherRange { held, asked });
        }
        // One name can mean two files where a caller hands in descriptors.
        if wish.opened || self.origin == Origin::Opened {
            match (wish.id, &self.file) {
                (None, _) => return Admission::WhichFile,
                (Some(id), Some(file)) if file.id() == id => {}
                _ => return Admission::Bad(BadRequest::OtherFile),
            }
        }
        match self.owners.add(wish.owner) {
            Ok(()) => Admission::Joined,
            Err(TooMany) => Admission::Bad(BadRequest::TooManyHolds),
        }
    }
}

/// Which of an owner's holds is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Care {
    /// A lease has it.
    Lease,
    /// It was given into the space's care.
    Kept,
}

/// How many holds of one resource an owner has.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    leased: u32,
    kept: u32,
}

impl Count {
    fn of(&mut self, care: Care) -> &mut u32 {
        match care {
            Care::Lease => &mut self.leased,
            Care::Kept => &mut self.kept,
        }
    }

    fn total(self) -> u32 {
        self.leased + self.kept
    }
}

/// An owner cannot have more holds of one resource.
#[derive(Debug)]
pub(crate) struct TooMany;

/// The owner has no such hold.
#[derive(Debug)]
pub(crate) struct NoSuchHold;

/// The owners of a held resource, in order of id. Hardly ever more than a few.
#[derive(Debug)]
pub(crate) struct Owners(Vec<(OwnerId, Count)>);

impl Owners {
    /// One owner, with one hold by a lease.
    pub(crate) fn one(owner: OwnerId) -> Self {
        Self(vec![(owner, Count { leased: 1, kept: 0 })])
    }

    fn find(&self, owner: OwnerId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&owner, |&(id, _)| id)
    }

    /// One more hold of this owner, by a lease.
    fn add(&mut self, owner: OwnerId) -> Result<(), TooMany> {
        match self.find(owner) {
            Ok(at) => {
                let count = &mut self.0[at].1;
                if count.total() == u32::MAX {
                    return Err(TooMany);
                }
                count.leased += 1;
            }
            Err(at) => self.0.insert(at, (owner, Count { leased: 1, kept: 0 })),
        }
        Ok(())
    }

    /// Ends one hold of this owner.
    pub(crate) fn remove(&mut self, owner: OwnerId, care: Care) -> Result<(), NoSuchHold> {
        let at = self.find(owner).map_err(|_| NoSuchHold)?;
        let count = &mut self.0[at].1;
        let of = count.of(care);
        *of = of.checked_sub(1).ok_or(NoSuchHold)?;
        if count.total() == 0 {
            self.0.remove(at);
        }
        Ok(())
    }

    /// Ends all kept holds of this owner; tells how many.
    pub(crate) fn remove_kept(&mut self, owner: OwnerId) -> u32 {
        let Ok(at) = self.find(owner) else { return 0 };
        let count = &mut self.0[at].1;
        let kept = std::mem::take(&mut count.kept);
        if count.total() == 0 {
            self.0.remove(at);
        }
        kept
    }

    /// Moves one hold of this owner from one care into the other.
    pub(crate) fn hand_over(
        &mut self,
        owner: OwnerId,
        from: Care,
        to: Care,
    ) -> Result<(), NoSuchHold> {
        let at = self.find(owner).map_err(|_| NoSuchHold)?;
        let count = &mut self.0[at].1;
        let of = count.of(from);
        *of = of.checked_sub(1).ok_or(NoSuchHold)?;
        *count.of(to) += 1;
        Ok(())
    }

    /// Whether this owner has a kept hold.
    pub(crate) fn has_kept(&self, owner: OwnerId) -> bool {
        self.find(owner).is_ok_and(|at| self.0[at].1.kept > 0)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// For a refusal.
    pub(crate) fn blockers(&self) -> Blockers {
        match *self.0 {
            [(one, _)] => Blockers::One([one]),
            _ => Blockers::Many(self.ids()),
        }
    }

    /// Each owner once.
    pub(crate) fn ids(&self) -> Vec<OwnerId> {
        self.0.iter().map(|&(id, _)| id).collect()
    }

    /// Each owner with the number of its holds.
    pub(crate) fn counts(&self) -> BTreeMap<OwnerId, u32> {
        self.0.iter().map(|&(id, count)| (id, count.total())).collect()
    }
}
