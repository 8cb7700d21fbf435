//! The owners of one held resource, and how many holds each has.

use std::collections::BTreeMap;

use smallvec::{SmallVec, smallvec};

use super::NoSuchHold;
use crate::error::Blockers;
use crate::types::OwnerId;

/// What releases a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum HoldKind {
    /// A lease: its drop releases the hold.
    Leased,
    /// The space: a call that names owner and resource releases the hold.
    Kept,
}

/// The owners, in order of id. Hardly ever more than a few, and one owner needs no allocation.
#[derive(Debug)]
pub(crate) struct Owners(SmallVec<[OwnerHolds; 1]>);

/// The holds of one owner. At least one of the counts is not 0.
#[derive(Clone, Copy, Debug)]
struct OwnerHolds {
    owner: OwnerId,
    leased: u32,
    kept: u32,
}

/// Whether an owner now has its first kept hold of the resource, or none any more: the table lists
/// the kept holds of each owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(super) enum KeptChange {
    Begins,
    Ends,
    Unchanged,
}

/// The owner's holds of this resource cannot be counted any further.
#[derive(Debug)]
pub(super) struct TooManyHolds;

impl OwnerHolds {
    fn count_mut(&mut self, kind: HoldKind) -> &mut u32 {
        match kind {
            HoldKind::Leased => &mut self.leased,
            HoldKind::Kept => &mut self.kept,
        }
    }

    fn total(&self) -> u32 {
        self.leased + self.kept
    }
}

impl Owners {
    /// One owner with one leased hold.
    pub(crate) fn one(owner: OwnerId) -> Self {
        Self(smallvec![OwnerHolds { owner, leased: 1, kept: 0 }])
    }

    /// One kept hold for each time an owner is named.
    #[cfg(feature = "snapshot")]
    pub(crate) fn kept(ids: impl Iterator<Item = OwnerId>) -> Self {
        let mut owners = Self(SmallVec::new());
        for owner in ids {
            match owners.find(owner) {
                Ok(at) => owners.0[at].kept += 1,
                Err(at) => owners.0.insert(at, OwnerHolds { owner, leased: 0, kept: 1 }),
            }
        }
        owners
    }

    #[inline]
    fn find(&self, owner: OwnerId) -> Result<usize, usize> {
        match &self.0[..] {
            // The common case.
            [one] if one.owner == owner => Ok(0),
            all => all.binary_search_by_key(&owner, |holds| holds.owner),
        }
    }

    /// Adds a leased hold.
    #[inline]
    pub(super) fn add(&mut self, owner: OwnerId) -> Result<(), TooManyHolds> {
        match self.find(owner) {
            Ok(at) => {
                let holds = &mut self.0[at];
                if holds.total() == u32::MAX {
                    return Err(TooManyHolds);
                }
                holds.leased += 1;
            }
            Err(at) => self.0.insert(at, OwnerHolds { owner, leased: 1, kept: 0 }),
        }
        Ok(())
    }

    /// Removes one hold.
    #[inline]
    pub(super) fn remove(
        &mut self,
        owner: OwnerId,
        kind: HoldKind,
    ) -> Result<KeptChange, NoSuchHold> {
        let at = self.find(owner).map_err(|_| NoSuchHold)?;
        let holds = &mut self.0[at];
        let count = holds.count_mut(kind);
        *count = count.checked_sub(1).ok_or(NoSuchHold)?;
        let ends = kind == HoldKind::Kept && holds.kept == 0;
        if holds.total() == 0 {
            self.0.remove(at);
        }
        Ok(if ends { KeptChange::Ends } else { KeptChange::Unchanged })
    }

    /// Removes all kept holds of an owner, and returns how many there were.
    pub(super) fn remove_kept(&mut self, owner: OwnerId) -> u32 {
        let Ok(at) = self.find(owner) else { return 0 };
        let kept = std::mem::take(&mut self.0[at].kept);
        if self.0[at].total() == 0 {
            self.0.remove(at);
        }
        kept
    }

    /// Turns one hold of the owner from the other kind into this kind.
    pub(super) fn convert_to(
        &mut self,
        kind: HoldKind,
        owner: OwnerId,
    ) -> Result<KeptChange, NoSuchHold> {
        let other = match kind {
            HoldKind::Leased => HoldKind::Kept,
            HoldKind::Kept => HoldKind::Leased,
        };
        let at = self.find(owner).map_err(|_| NoSuchHold)?;
        let holds = &mut self.0[at];
        let from = holds.count_mut(other);
        *from = from.checked_sub(1).ok_or(NoSuchHold)?;
        *holds.count_mut(kind) += 1;
        Ok(match (kind, holds.kept) {
            (HoldKind::Kept, 1) => KeptChange::Begins,
            (HoldKind::Leased, 0) => KeptChange::Ends,
            _ => KeptChange::Unchanged,
        })
    }

    pub(super) fn has(&self, owner: OwnerId) -> bool {
        self.find(owner).is_ok()
    }

    /// How many holds of this kind an owner has.
    pub(super) fn count(&self, owner: OwnerId, kind: HoldKind) -> u32 {
        self.find(owner).map_or(0, |at| *self.0[at].clone().count_mut(kind))
    }

    /// Whether the only hold of the resource is this owner's.
    pub(super) fn is_sole(&self, owner: OwnerId) -> bool {
        matches!(&self.0[..], [holds] if holds.owner == owner && holds.total() == 1)
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The owners that a refusal names. `asking` is the owner that asks to convert its hold: it is
    /// named only if it has another hold.
    pub(crate) fn blockers(&self, asking: Option<OwnerId>) -> Blockers {
        match (&self.0[..], asking) {
            ([one], None) => one.owner.into(),
            (all, _) => {
                let blocks = |holds: &&OwnerHolds| asking != Some(holds.owner) || holds.total() > 1;
                all.iter().filter(blocks).map(|holds| holds.owner).collect::<Vec<_>>().into()
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Admission, Claim, Hold, LockedFile};
    use crate::types::{ByteRange, FileId, InvalidRequest, Mode, Origin};

    struct NoFile;

    impl LockedFile for NoFile {
        fn id(&self) -> FileId {
            unreachable!()
        }

        fn range(&self) -> ByteRange {
            unreachable!()
        }

        fn is_writable(&self) -> bool {
            unreachable!()
        }
    }

    #[test]
    fn an_owner_has_no_more_holds_than_can_be_counted() {
        let owner = OwnerId::new(1);
        let counted = OwnerHolds { owner, leased: 2, kept: u32::MAX - 3 };
        let owners = Owners(smallvec![counted]);
        let (range, mode) = (ByteRange::FIRST, Mode::Shared);
        let mut hold = Hold::<NoFile>::new(None, range, mode, Origin::InMemory, owners);
        let claim = Claim { owner, mode, range, file: None, opened: false };
        assert!(matches!(hold.join(&claim), Admission::Joined));
        let refused = hold.join(&claim);
        assert!(matches!(refused, Admission::Invalid(InvalidRequest::TooManyHolds)), "{refused:?}");
        assert_eq!(hold.owners.counts()[&owner], u32::MAX);
        assert!(matches!(hold.join(&Claim { owner: OwnerId::new(2), ..claim }), Admission::Joined));
    }
}
