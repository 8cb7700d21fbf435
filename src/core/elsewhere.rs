//! What this process has of a file by another name, or in another space.
//!
//! A space's table knows resources by their names, so it does not see that an owner that waits for
//! one name holds the same file by another one (a hard link in a direct space, a caller's open file),
//! or in another space: the kernel refuses the lock, and the owner would wait for itself for ever. So
//! whoever is refused by the kernel looks for the file in all spaces of the process, before it sleeps
//! and as long as it waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::Core;
use crate::engine::{LockFile, Name};
use crate::error::Blockers;
use crate::table::Claim;
use crate::types::{ByteRange, FileId, Mode, OwnerId};
use crate::wait::CallQueue;

/// The spaces of a process, and the waits of its shared holds to become exclusive.
#[derive(Debug, Default)]
pub(crate) struct Spaces {
    spaces: Mutex<Vec<Weak<Core>>>,
    upgrades: Mutex<Vec<Upgrading>>,
    upgrades_begun: AtomicU64,
}

/// A shared hold that waits to become exclusive.
#[derive(Debug)]
struct Upgrading {
    number: u64,
    file: FileId,
    range: ByteRange,
    owner: OwnerId,
    name: Arc<Name>,
}

/// A shared hold waits to become exclusive while this lives.
pub(crate) struct UpgradeGuard {
    spaces: &'static Spaces,
    number: u64,
}

impl Drop for UpgradeGuard {
    fn drop(&mut self) {
        self.spaces.upgrades.lock().retain(|upgrading| upgrading.number != self.number);
    }
}

/// A hold of a file by another name, or in another space.
#[derive(Clone, Debug)]
pub(crate) struct HoldElsewhere {
    pub(crate) file: FileId,
    pub(crate) name: Arc<Name>,
    pub(crate) mode: Mode,
    range: ByteRange,
    owners: Vec<OwnerId>,
}

impl HoldElsewhere {
    /// Whether it keeps the claim's own owner from what it asks for.
    pub(crate) fn is_own_and_excludes(&self, claim: &Claim) -> bool {
        self.owners.contains(&claim.owner)
            && self.range.overlaps(claim.range)
            && !self.mode.compatible(claim.mode)
    }
}

impl Spaces {
    /// Two shared holds of one file that both wait to become exclusive wait for each other.
    ///
    /// # Errors
    /// The owner and the name of the one that waits already.
    pub(crate) fn begin_upgrade(
        &'static self,
        file: FileId,
        range: ByteRange,
        owner: OwnerId,
        name: &Arc<Name>,
    ) -> Result<UpgradeGuard, (OwnerId, Arc<Name>)> {
        let mut upgrades = self.upgrades.lock();
        let other = upgrades.iter().find(|other| other.file == file && other.range.overlaps(range));
        if let Some(other) = other {
            return Err((other.owner, Arc::clone(&other.name)));
        }
        let number = self.upgrades_begun.fetch_add(1, Ordering::Relaxed);
        upgrades.push(Upgrading { number, file, range, owner, name: Arc::clone(name) });
        Ok(UpgradeGuard { spaces: self, number })
    }
}

impl Core {
    /// Lets other spaces of the process find what this one holds.
    pub(crate) fn register(self: &Arc<Self>) {
        let mut spaces = self.process.spaces.spaces.lock();
        // Seldom enough to cost nothing.
        if spaces.len().is_power_of_two() {
            spaces.retain(|space| space.strong_count() > 0);
        }
        spaces.push(Arc::downgrade(self));
    }

    /// The holds of certain files in all spaces of this process, but those of the resource with this
    /// very name. Those of a space that is frozen may have been released, which is done later: they
    /// are left out.
    pub(crate) fn holds_elsewhere(
        &self,
        is_meant: impl Fn(FileId) -> bool,
        name: Option<&Arc<Name>>,
    ) -> Vec<HoldElsewhere> {
        let spaces: Vec<_> =
            self.process.spaces.spaces.lock().iter().filter_map(Weak::upgrade).collect();
        let mut found = Vec::new();
        for space in &spaces {
            let table = space.lock();
            if table.is_frozen() {
                continue;
            }
            for resource in table.resources() {
                let hold = resource.hold().and_then(|hold| Some((hold, hold.file()?.id())));
                let Some((hold, file)) = hold.filter(|(_, file)| is_meant(*file)) else { continue };
                if name.is_some_and(|name| Arc::ptr_eq(name, resource.name())) {
                    continue;
                }
                found.push(HoldElsewhere {
                    file,
                    name: Arc::clone(resource.name()),
                    mode: hold.mode(),
                    range: hold.range(),
                    owners: hold.owners().ids(),
                });
            }
        }
        for space in spaces {
            // Dropped everywhere else meanwhile: what it still keeps is released with it, which can
            // hang.
            if let Some(last) = Arc::into_inner(space) {
                let drop_it = move || drop(last);
                self.process.workers.run_detached(&CallQueue::Housekeeping, &|| false, drop_it);
            }
        }
        found
    }

    /// Who in this space is in the way of a lock on a file, by another name.
    pub(super) fn blockers_by_file(
        &self,
        name: &Arc<Name>,
        (asked, range): (Mode, ByteRange),
        file: FileId,
    ) -> Option<(Mode, Blockers)> {
        // In a directory, one file has one name, unless somebody has handed it in.
        if name.directory().is_some() && !self.has_opened.load(Ordering::Relaxed) {
            return None;
        }
        let table = self.lock();
        // A shared hold of its own is not what a conversion meets.
        let others = table.resources().filter(|resource| !Arc::ptr_eq(resource.name(), name));
        let mut holds = others.filter_map(|resource| resource.hold());
        let hold = holds.find(|hold| {
            hold.file().map(LockFile::id) == Some(file)
                && hold.range().overlaps(range)
                && !hold.mode().compatible(asked)
        })?;
        Some((hold.mode(), hold.owners().blockers(None)))
    }
}
