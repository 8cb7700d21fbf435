//! Errors of an acquire, each with the resource's name.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::{LockError, Name};
use crate::error::{AcquireError, DeadlockCause};
use crate::types::OwnerId;
use crate::wait::{WaitContext, WaitEnd};

pub(super) fn cancelled_at_once(text: &OsStr) -> AcquireError {
    AcquireError::Cancelled { name: text.to_owned(), waited: Duration::ZERO }
}

pub(super) fn cancelled(text: &OsStr, context: &WaitContext) -> AcquireError {
    AcquireError::Cancelled { name: text.to_owned(), waited: context.waited() }
}

pub(super) fn frozen(text: &OsStr) -> AcquireError {
    AcquireError::Frozen { name: text.to_owned() }
}

pub(super) fn deadlock(text: &OsStr, owner: OwnerId, why: DeadlockCause) -> AcquireError {
    AcquireError::Deadlock { name: text.to_owned(), owner, alias: None, why }
}

/// The same where what is in the way is held by another name, or by the same one in another space.
pub(super) fn deadlock_elsewhere(
    text: &OsStr,
    owner: OwnerId,
    why: DeadlockCause,
    other: &Name,
) -> AcquireError {
    let alias = Some(other.text()).filter(|other| *other != text).map(OsStr::to_owned);
    AcquireError::Deadlock { name: text.to_owned(), owner, alias, why }
}

/// The error of a wait that has ended before the file system answered.
pub(super) fn no_answer(
    end: WaitEnd,
    text: &OsStr,
    path: &Path,
    context: &WaitContext,
) -> AcquireError {
    match end {
        WaitEnd::Cancelled => cancelled(text, context),
        WaitEnd::TimedOut => unresponsive(text, path.to_owned(), context.waited()),
    }
}

pub(super) fn unresponsive(text: &OsStr, path: PathBuf, waited: Duration) -> AcquireError {
    AcquireError::Unresponsive { name: text.to_owned(), path, waited }
}

/// The caller has handled [`LockError::Contended`] and [`LockError::Leased`]: to turn them into
/// [`Busy`](crate::error::Busy) takes a look at the table.
#[cold]
pub(super) fn from_lock_error(
    error: LockError,
    text: &OsStr,
    path: impl FnOnce() -> PathBuf,
) -> AcquireError {
    let name = text.to_owned();
    match error {
        LockError::NotFound => AcquireError::NotFound { name, path: path() },
        LockError::Invalid(why) => AcquireError::Invalid { name, why },
        LockError::DirectoryReplaced(directory) => {
            AcquireError::DirectoryReplaced { name, directory }
        }
        LockError::Unstable(tries) => AcquireError::Unstable { name, path: path(), tries },
        LockError::Io(error) => AcquireError::Io(error),
        LockError::Contended(..) | LockError::Leased(_) => {
            unreachable!("its caller makes `Busy` of it")
        }
    }
}
