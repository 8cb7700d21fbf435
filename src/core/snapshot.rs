//! Freezing a space for a snapshot, and making a space from restored holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use super::{Core, Hold, Process, log_release_error};
use crate::engine::{Name, OpenNaming};
use crate::types::{ByteRange, Origin, OwnerId};
use crate::wait::UNRESPONSIVE_AFTER;

/// A space that is to be restored, without its holds.
pub(crate) struct RestoredSpace {
    pub(crate) process: &'static Process,
    pub(crate) naming: OpenNaming,
    pub(crate) range: ByteRange,
    pub(crate) file_mode: u32,
    pub(crate) stale_retries: u64,
}

impl Core {
    /// Freezes the space: lets no transition begin, and waits until all have ended.
    ///
    /// # Errors
    /// The name of a resource whose file system does not answer. This freeze has been undone then.
    pub(crate) fn freeze(&self) -> Result<(), Arc<Name>> {
        let mut table = self.lock();
        table.freeze();
        while let Some(slot) = table.in_transition() {
            let resource = table.resource(slot);
            let answer = resource.unresponsive_since().map(|since| since + UNRESPONSIVE_AFTER);
            if answer.is_some_and(|answer| Instant::now() >= answer) {
                let name = Arc::clone(resource.name());
                drop(table);
                self.thaw();
                return Err(name);
            }
            table.watch_transition(slot, Instant::now());
            self.wait_for_transition(&mut table, answer);
        }
        Ok(())
    }

    /// Ends a [`freeze`](Self::freeze). The table makes all deferred releases before another thread
    /// can lock it: no thread may find a hold whose release was deferred, and no hold acquired from
    /// now on may be released by mistake.
    pub(crate) fn thaw(&self) {
        let ended = self.update(|table, wakes| table.thaw(Instant::now(), wakes));
        for (slot, name, hold) in ended {
            log_release_error(self.finish_release(slot, &name, hold).err());
        }
    }

    /// A snapshot of the space is about to be executed: from now on, releases wait until the exec
    /// has failed. Returns the releases deferred before: resource, owner, and how many.
    pub(crate) fn begin_exec(&self) -> Vec<(Arc<Name>, OwnerId, u32)> {
        self.lock().begin_exec()
    }

    /// The exec has failed.
    pub(crate) fn end_exec(&self) {
        self.update(|table, wakes| table.end_exec(wakes));
    }

    /// Calls `each` for every held resource, in order of name, under the table's mutex.
    pub(crate) fn with_holds<T>(&self, each: impl FnMut(&Name, &Hold) -> T) -> Vec<T> {
        let mut each = each;
        let table = self.lock();
        let mut held: Vec<_> = table
            .resources()
            .filter_map(|resource| Some((resource.name(), resource.hold()?)))
            .collect();
        held.sort_unstable_by_key(|(name, _)| name.text());
        held.into_iter().map(|(name, hold)| each(name, hold)).collect()
    }

    /// A space with these holds, all of them kept.
    pub(crate) fn restored(
        space: RestoredSpace,
        holds: impl ExactSizeIterator<Item = (Arc<Name>, Hold)>,
    ) -> Self {
        let RestoredSpace { process, naming, range, file_mode, stale_retries } = space;
        let mut core = Self::new(process, naming, range, file_mode);
        core.stale_retries = AtomicU64::new(stale_retries);
        core.table.get_mut().restore(holds);
        let is_opened = |hold: &Hold| hold.origin() == Origin::Opened;
        let has_opened = core.lock().resources().filter_map(|r| r.hold()).any(is_opened);
        core.has_opened = AtomicBool::new(has_opened);
        core
    }
}
