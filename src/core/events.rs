//! What subscribers of `tracing` are told (feature `tracing`): by whom what was granted, refused,
//! waited for and released.
//!
//! Each event is told by the thread that makes the call, when the call has done its work: no mutex is
//! locked then, so a subscriber may take its time, and may use the space. What [`tell`](super::tell)
//! has to make ready for an event it makes ready only where somebody wants it.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing::{Level, debug, warn};

use crate::engine::Name;
use crate::error::{AcquireError, ReleaseError};
use crate::table::Claim;
use crate::types::{Mode, OwnerId, Request};
use crate::wait::{Wait, WaitContext};

/// Whether any subscriber wants events of this crate.
#[inline]
pub(crate) fn are_wanted() -> bool {
    Level::DEBUG <= STATIC_MAX_LEVEL && Level::DEBUG <= LevelFilter::current()
}

/// When a call begins; `None` if nobody wants to know. A try reads no clock.
#[inline]
pub(crate) fn started(wait: &Wait) -> Option<Instant> {
    (are_wanted() && !wait.is_no()).then(Instant::now)
}

/// A call has ended that asked for one resource by this name, in this mode: with a hold of the resource
/// of the name in `result`, or in vain.
#[cold]
pub(crate) fn ended(
    owner: OwnerId,
    (asked, mode): (&OsStr, Mode),
    started: Option<Instant>,
    result: Result<&OsStr, &AcquireError>,
) {
    match result {
        Ok(name) => granted(owner, name, mode, waited(started)),
        Err(error) => {
            let name = error.name().unwrap_or(asked);
            refused(owner, Some(name), Some(mode), waited(started), error);
        }
    }
}

/// A call has ended that asked for several resources: with holds of these, or in vain.
#[cold]
pub(crate) fn several_ended<'a>(
    owner: OwnerId,
    requests: &[Request<'_>],
    started: Option<Instant>,
    result: Result<impl Iterator<Item = (&'a OsStr, Mode)>, &AcquireError>,
) {
    match result {
        Ok(holds) => holds.for_each(|(name, mode)| granted(owner, name, mode, waited(started))),
        Err(error) => {
            let name = error.name();
            let mode = match error {
                AcquireError::Busy(busy) => Some(busy.asked()),
                _ => requests
                    .iter()
                    .find(|request| Some(request.target.text()) == name)
                    .map(|request| request.settings.mode),
            };
            refused(owner, name, mode, waited(started), error);
        }
    }
}

/// A call waits for holders, perhaps for a while already.
#[cold]
pub(crate) fn waits(context: &WaitContext, claim: &Claim, name: &OsStr) {
    if context.begins_to_wait() {
        waiting(claim.owner, name, claim.mode);
    }
}

/// A call begins to wait for holders.
#[cold]
pub(crate) fn waiting(owner: OwnerId, name: &OsStr, mode: Mode) {
    quietly(|| debug!(target: "lockspace", owner = owner.get(), name = ?name, %mode, "waiting"));
}

/// Kept holds of one owner have ended, of a resource of this name and mode.
#[cold]
pub(crate) fn released_kept(owner: OwnerId, held: Option<(Arc<Name>, Mode)>, count: u32) {
    let Some((name, mode)) = held else { return };
    (0..count).for_each(|_| released(owner, name.text(), mode));
}

/// A hold has ended.
#[cold]
pub(crate) fn released(owner: OwnerId, name: &OsStr, mode: Mode) {
    quietly(|| debug!(target: "lockspace", owner = owner.get(), name = ?name, %mode, "released"));
}

/// A lock file that was to go with the last hold is still there, and the caller cannot be told.
#[cold]
pub(crate) fn left_over(error: &ReleaseError) {
    quietly(|| warn!(target: "lockspace", %error, "a lock file was left over"));
}

fn granted(owner: OwnerId, name: &OsStr, mode: Mode, waited: Duration) {
    let owner = owner.get();
    quietly(|| debug!(target: "lockspace", owner, name = ?name, %mode, ?waited, "granted"));
}

fn refused(
    owner: OwnerId,
    name: Option<&OsStr>,
    mode: Option<Mode>,
    waited: Duration,
    error: &AcquireError,
) {
    let owner = owner.get();
    let (name, mode) = (name.map(tracing::field::debug), mode.map(tracing::field::display));
    quietly(|| debug!(target: "lockspace", owner, name, mode, ?waited, %error, "refused"));
}

fn waited(started: Option<Instant>) -> Duration {
    started.map_or(Duration::ZERO, |started| started.elapsed())
}

/// Tells an event. A subscriber that panics must not cost what was granted or is being released, nor
/// end a process whose thread panics already.
fn quietly(tell: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(tell));
}
