//! Locks that outlive the program: freeze, write down, `exec`, restore.
//!
//! A program that upgrades itself executes its new version in the same process. Open file
//! descriptions, and the OFD locks on them, survive that, if their descriptors are not closed; so
//! nothing is ever unlocked, and nobody gets in between.
//!
//! ```no_run
//! use lockspace::{LockSpace, Naming, snapshot::{self, Document, Snapshot}};
//! use std::process::Command;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // The new program, first thing in `main`:
//! let space = match std::env::args().nth(1) {
//!     Some(carried) => {
//!         let state = snapshot::carried(carried.parse()?)?;
//!         let documents: Vec<Document> = serde_json::from_slice(&state)?;
//!         // SAFETY: nothing else has taken an inherited descriptor yet.
//!         unsafe { snapshot::restore(&documents) }?.remove(0)
//!     }
//!     None => LockSpace::open(Naming::md5("/run/vmm/locks"))?,
//! };
//!
//! // The old one, when it is told to:
//! let mut snapshot = Snapshot::take([&space])?;
//! let state = serde_json::to_vec(snapshot.documents())?;
//! let carried = snapshot.carry(&state)?;
//! // The path of the new version. Not `/proc/self/exe`, which is the old one after an upgrade.
//! let program = "/usr/sbin/vmm";
//! let error = snapshot.exec(Command::new(program).arg(carried.to_string()));
//! // Still here: every lock is held, and everything goes on.
//! eprintln!("{error}");
//! # Ok(())
//! # }
//! ```
//!
//! A signal that comes before the new program has its handler does what it does by default: SIGUSR1
//! or SIGHUP kills it, and every lock is lost. Block it in the thread that executes, before
//! [`Snapshot::take`], and unblock it in the new program once its handler is there: an exec keeps
//! the signal mask. Sockets and other descriptors are the caller's to carry over; the example
//! `reexec` does so.
//!
//! libvirt's `virtlockd` does this with `virLockSpacePreExecRestart` and
//! `virLockSpaceNewPostExecRestart`, and believes its document. Here every entry is proven before
//! anything is touched: one bad entry must not close descriptor 0, remove a file that it names, or
//! cost the good ones their locks.

// This layer uses every other one, and nothing but the user knows it. It makes no system call by
// itself: what a descriptor carries is proven by `transfer`, and an exec is made by `sys`.

mod deferred;
mod document;
mod error;
mod libvirt;
mod prove;
mod restore;
#[allow(clippy::module_inception, reason = "it is named after the public type")]
mod snapshot;

use std::io;
use std::os::fd::RawFd;

pub use document::Document;
pub use error::{ExecError, InvalidEntry, RestoreError, SnapshotError};
pub use libvirt::{LibvirtLimit, NotForLibvirt};
pub use restore::{restore, restore_what_verifies};
pub use snapshot::Snapshot;

use crate::sys::memfd::{self, Content};

/// The bytes that [`Snapshot::carry`] put into this file, in the program before this one. The
/// file is closed.
///
/// # Errors
/// If the number is not that of such a file; `NotFound` if it is not open.
///
/// ```
/// assert!(lockspace::snapshot::carried(0).is_err());
/// ```
pub fn carried(number: u32) -> io::Result<Vec<u8>> {
    let number = RawFd::try_from(number);
    let number = number.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    memfd::take(Content::State, number)
}
