//! A space: its table under one mutex, and what each verb does around it.
//!
//! Every verb that makes system calls goes the same way: under the mutex, it moves the resource
//! into a transition; *outside* the mutex, it makes the system calls; under the mutex again, it
//! ends the transition. So one resource never stalls another.
//!
//! This layer uses every layer below it. It does not know how a call acquires: that is the layer
//! `acquire`.

mod change;
mod elsewhere;
#[cfg(feature = "tracing")]
pub(crate) mod events;
mod fairness;
mod hold;
mod inspect;
mod process;
mod release;
#[cfg(feature = "snapshot")]
mod snapshot;
mod transition;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

pub(crate) use elsewhere::{HoldElsewhere, Spaces, UpgradeGuard};
pub(crate) use fairness::Fairness;
pub(crate) use hold::OwnedHold;
pub use inspect::HeldResource;
pub(crate) use process::Process;
pub use release::Released;
pub(crate) use release::{log_release_error, mode_to_unlink};
#[cfg(feature = "snapshot")]
pub(crate) use snapshot::RestoredSpace;
pub(crate) use transition::{DetachedTransition, TransitionGuard};

use crate::engine::{LockFile, Name, OpenNaming};
use crate::error::{AcquireError, Busy};
use crate::sync::Monitor;
use crate::table::{LockedFile, Table, WakeList};
use crate::types::{ByteRange, FileId, Mode, Outside};
use crate::wait::{WaitContext, WaitEnd};

/// How often a call that waits for the end of a transition checks whether it was cancelled: a
/// cancel wakes only calls that sleep by their own waker.
const CANCEL_CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// Tells subscribers of `tracing` of one of the [`events`]; never with a mutex locked. Where nobody wants
/// it, its arguments are not looked at; without the feature, it is nothing.
macro_rules! tell {
    ($event:ident($($argument:expr),* $(,)?)) => {
        #[cfg(feature = "tracing")]
        if $crate::core::events::are_wanted() {
            $crate::core::events::$event($($argument),*);
        }
    };
}
pub(crate) use tell;

/// A lock that is held by a file, or in memory.
pub(crate) type Hold = crate::table::Hold<LockFile>;

/// A space: what every `LockSpace` handle and every lease of it shares.
pub(crate) struct Core {
    pub(crate) process: &'static Process,
    pub(crate) naming: OpenNaming,
    /// The range of requests that set none.
    pub(crate) range: ByteRange,
    /// The permissions of lock files that are created.
    pub(crate) file_mode: u32,
    table: Mutex<Table<LockFile>>,
    /// Counts the ends of watched transitions, of freezes and of failed execs.
    transitions_ended: Monitor<u64>,
    /// How often a file had lost its name when it was locked.
    pub(crate) stale_retries: AtomicU64,
    /// A caller has handed in an open file, so that a file can have two names in a directory.
    pub(crate) has_opened: AtomicBool,
}

impl LockedFile for LockFile {
    fn id(&self) -> FileId {
        self.id()
    }

    fn range(&self) -> ByteRange {
        self.range()
    }

    fn is_writable(&self) -> bool {
        self.is_writable()
    }
}

impl Core {
    pub(crate) fn new(
        process: &'static Process,
        naming: OpenNaming,
        range: ByteRange,
        file_mode: u32,
    ) -> Self {
        Self {
            process,
            naming,
            range,
            file_mode,
            table: Mutex::default(),
            transitions_ended: Monitor::default(),
            stale_retries: AtomicU64::new(0),
            has_opened: AtomicBool::new(false),
        }
    }

    /// # Errors
    /// [`AcquireError::Forked`] in a forked child of the process that opened the space.
    pub(crate) fn check(&self) -> Result<(), AcquireError> {
        self.process.check().map_err(|creator| AcquireError::Forked { creator })
    }

    /// The table. No system call is made while it is locked.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Table<LockFile>> {
        self.table.lock()
    }

    /// Changes the table, unlocks it, and wakes the waiters that the change put on the list.
    #[inline]
    pub(crate) fn update<T>(
        &self,
        update: impl FnOnce(&mut Table<LockFile>, &mut WakeList) -> T,
    ) -> T {
        self.update_locked(self.lock(), update)
    }

    /// As [`update`](Self::update), with the table locked already.
    #[inline]
    fn update_locked<T>(
        &self,
        mut table: MutexGuard<'_, Table<LockFile>>,
        update: impl FnOnce(&mut Table<LockFile>, &mut WakeList) -> T,
    ) -> T {
        let mut wakes = WakeList::default();
        let updated = update(&mut table, &mut wakes);
        drop(table);
        self.wake(wakes);
        updated
    }

    /// Wakes the waiters on the list, and the threads that wait for transitions. The caller has
    /// unlocked the table.
    #[inline]
    pub(crate) fn wake(&self, wakes: WakeList) {
        if !wakes.is_empty() && wakes.wake() {
            *self.transitions_ended.lock() += 1;
            self.transitions_ended.notify_all();
        }
    }

    /// Unlocks the table and sleeps until some [watched](Table::watch_transition) transition or a
    /// freeze has ended, or until `until`. The caller looks again at what it waits for.
    pub(crate) fn wait_for_transition(
        &self,
        table: &mut MutexGuard<'_, Table<LockFile>>,
        until: Option<Instant>,
    ) {
        // Read while the table is locked: a transition ends under that mutex, and is counted later.
        let seen = *self.transitions_ended.lock();
        MutexGuard::unlocked(table, || {
            let mut ended = self.transitions_ended.lock();
            while *ended == seen && until.is_none_or(|until| Instant::now() < until) {
                ended = self.transitions_ended.wait(ended, until);
            }
        });
    }

    /// As [`wait_for_transition`](Self::wait_for_transition), for at most
    /// [`CANCEL_CHECK_INTERVAL`]: callers call it in a loop.
    ///
    /// # Errors
    /// The wait of `context` was over before this slept.
    pub(crate) fn wait_for_transition_within(
        &self,
        table: &mut MutexGuard<'_, Table<LockFile>>,
        context: &WaitContext,
    ) -> Result<(), WaitEnd> {
        if let Some(end) = context.end() {
            return Err(end);
        }
        let soon = Instant::now() + CANCEL_CHECK_INTERVAL;
        self.wait_for_transition(table, Some(context.deadline_or(soon)));
        Ok(())
    }

    /// The error for a lock on file `id` that the kernel has refused, because of lock `by` if the
    /// kernel has told. This space may itself hold the file, by another name.
    #[cold]
    pub(crate) fn refused_by_kernel(
        &self,
        name: Arc<Name>,
        asked: (Mode, ByteRange),
        (id, by): (FileId, Option<Outside>),
    ) -> Busy {
        let (mode, _) = asked;
        let busy = match self.blockers_by_file(&name, asked, id) {
            Some((held, owners)) => Busy::inside(name, mode, held, owners),
            None => Busy::outside_by(name, mode, by),
        };
        busy.on(id)
    }

    /// How often a file had lost its name when it was locked.
    pub(crate) fn stale_retries(&self) -> u64 {
        self.stale_retries.load(Ordering::Relaxed)
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if self.process.is_here() {
            // Holds that were kept after the last handle was dropped.
            log_release_error(self.release_kept(None).leftovers);
        } else if self.table.is_locked() {
            // Another thread of the parent was changing the table during the fork. The copy may be
            // inconsistent, so it is leaked.
            std::mem::forget(std::mem::take(self.table.get_mut()));
        }
        // In a forked child, the fields' drops close the descriptors, and unlock nothing.
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("naming", &self.naming).finish_non_exhaustive()
    }
}
