//! Why a verb failed: one error for each verb, each message fit for a log.
//!
//! This layer uses `types`, and of `engine` the name of a resource, so that an error can keep it
//! without a copy. The layers below return errors of their own, which know no resource; its name is
//! added once, by the caller that has it. It knows no state of a space, no queue and no waiting, and
//! makes no system call: whoever builds an error tells it what to say.

mod acquire;
mod busy;
mod deadlock;
mod lock_file;
mod open;
mod release;
mod verify;

use std::fmt;

pub use acquire::AcquireError;
pub(crate) use busy::Blockers;
pub use busy::Busy;
pub use deadlock::DeadlockCause;
pub use lock_file::LockFileError;
pub use open::OpenError;
pub use release::ReleaseError;
pub use verify::VerifyError;

/// The one sentence for every verb that is called in a forked child.
pub(crate) struct ForkedMessage(pub(crate) u32);

impl fmt::Display for ForkedMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this lock space belongs to process {}, of which this is a forked child", self.0)
    }
}
