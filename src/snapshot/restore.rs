//! Restoring spaces: once every entry is proven, the descriptors become theirs.

use std::os::fd::AsRawFd;

use super::deferred::{Deferred, Releases};
use super::document::Document;
use super::error::RestoreError;
use super::prove::{ProvenEntry, ProvenFile, ProvenSpace, prove};
use crate::api::LockSpace;
use crate::core::{Core, Hold, log_release_error};
use crate::engine::LockFile;
use crate::error::ReleaseError;
use crate::sys::fd::close_all_on_exec;
use crate::sys::inherited::InheritedFds;
use crate::types::OwnerId;

/// Restores the spaces of the documents, with everything that they held: all, or none. What was
/// held by leases is kept now, for its owner: [`LockSpace::retake`] makes it a lease again. What was
/// released between [`Snapshot::take`](super::Snapshot::take) and the exec is released now.
///
/// Every entry is proven first: this process wrote the document (not asked of libvirt's, which do
/// not say); the descriptor is open, above 2, named once, no duplicate of another entry's, a
/// regular file or a block device, the recorded one, and still what the name leads to; it carries
/// one lock and no other, OFD, of this mode and range. (A file of [`Target::opened`] must carry that
/// lock, and may carry other OFD locks on other bytes, which stay as they are.) If any proof fails,
/// nothing has changed: no descriptor, no flag, no lock, no file.
///
/// [`Target::opened`]: crate::Target::opened
///
/// Mirrors `virLockSpaceNewPostExecRestart`.
///
/// # Safety
/// The descriptors that the documents name become the spaces' own: nobody else in this process may
/// own one of them, or open or close any meanwhile. That is so early in `main`, before other
/// threads run, and once.
///
/// # Errors
/// [`RestoreError`] names the first entry that failed.
#[doc(alias = "virLockSpaceNewPostExecRestart")]
#[allow(unsafe_code, reason = "only the caller knows who else owns descriptors")]
pub unsafe fn restore<'a>(
    documents: impl IntoIterator<Item = &'a Document>,
) -> Result<Vec<LockSpace>, RestoreError> {
    // SAFETY: says the caller.
    let inherited = unsafe { InheritedFds::new() };
    let mut deferred = Deferred::find();
    let (spaces, mut failed) = prove(inherited, deferred.as_mut(), documents);
    match failed.is_empty() {
        true => Ok(adopt(spaces, deferred)),
        false => Err(failed.swap_remove(0)),
    }
}

/// Restores what can be proven, and returns the rest: for programs that would rather hold some
/// locks than none. A space comes back for each document that is one, in their order, even if none
/// of its entries was proven. The descriptors of entries that failed are left alone: they are open
/// still, and may well be locked.
///
/// # Safety
/// As [`restore`].
#[allow(unsafe_code, reason = "as above")]
pub unsafe fn restore_what_verifies<'a>(
    documents: impl IntoIterator<Item = &'a Document>,
) -> (Vec<LockSpace>, Vec<RestoreError>) {
    // SAFETY: says the caller.
    let inherited = unsafe { InheritedFds::new() };
    let mut deferred = Deferred::find();
    let (spaces, failed) = prove(inherited, deferred.as_mut(), documents);
    (adopt(spaces, deferred), failed)
}

/// Makes spaces of what is proven, and the descriptors theirs. Then makes the releases that the
/// program before this one had deferred.
fn adopt(spaces: Vec<ProvenSpace>, deferred: Option<Deferred>) -> Vec<LockSpace> {
    let entries = spaces.iter().flat_map(|space| &space.entries);
    let mut numbers: Vec<_> =
        entries.filter_map(|entry| Some(entry.file.as_ref()?.fd.as_raw_fd())).collect();
    // They are open, so it cannot fail.
    let _ = close_all_on_exec(&mut numbers);
    let adopted = spaces.into_iter().map(|ProvenSpace { space, entries, releases }| {
        let holds = entries.into_iter().map(|entry| {
            let ProvenEntry { name, mode, range, origin, owners, file } = entry;
            let file = file.map(|ProvenFile { fd, id }| {
                let access = fd.access();
                LockFile::restored(fd.into_owned(), id, range, access)
            });
            (name, Hold::new(file, range, mode, origin, owners))
        });
        (LockSpace::restored(Core::restored(space, holds)), releases)
    });
    let adopted: Vec<_> = adopted.collect();
    if let Some(deferred) = deferred {
        deferred.forget();
    }
    // Once everything is adopted: a release may take as long as its file system does.
    let released = adopted.into_iter().map(|(space, releases)| {
        release(space.core(), &releases);
        space
    });
    released.collect()
}

fn release(core: &Core, releases: &Releases) {
    for (name, owners) in releases {
        for (&owner, &count) in owners {
            // What could not be proven is not held.
            let releases = (0..count).map(|_| core.release_by_name(name, OwnerId::new(owner)));
            let errors = releases.filter_map(Result::err);
            let held = |error: &ReleaseError| !matches!(error, ReleaseError::NotHeld { .. });
            log_release_error(errors.take_while(held));
        }
    }
}
