//! Restoring spaces: once every entry is proven, the descriptors become theirs.

use std::os::fd::AsRawFd;

use super::document::Document;
use super::error::RestoreError;
use super::prove::{ProvenEntry, ProvenFile, ProvenSpace, prove};
use crate::api::LockSpace;
use crate::core::{Core, Hold};
use crate::engine::LockFile;
use crate::sys::fd::close_all_on_exec;
use crate::sys::inherited::InheritedFds;

/// Restores the spaces of the documents, with everything that they held: all, or none. What was
/// held by leases is kept now, for its owner: [`LockSpace::retake`] makes it a lease again.
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
    let (spaces, mut failed) = prove(inherited, documents);
    match failed.is_empty() {
        true => Ok(adopt(spaces)),
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
    let (spaces, failed) = prove(inherited, documents);
    (adopt(spaces), failed)
}

/// Makes spaces of what is proven, and the descriptors theirs.
fn adopt(spaces: Vec<ProvenSpace>) -> Vec<LockSpace> {
    let entries = spaces.iter().flat_map(|space| &space.entries);
    let mut numbers: Vec<_> =
        entries.filter_map(|entry| Some(entry.file.as_ref()?.fd.as_raw_fd())).collect();
    // They are open, so it cannot fail.
    let _ = close_all_on_exec(&mut numbers);
    let adopted = spaces.into_iter().map(|ProvenSpace { space, entries }| {
        let holds = entries.into_iter().map(|entry| {
            let ProvenEntry { name, mode, range, origin, owners, file } = entry;
            let file = file.map(|ProvenFile { fd, id }| {
                let access = fd.access();
                LockFile::restored(fd.into_owned(), id, range, access)
            });
            (name, Hold::new(file, range, mode, origin, owners))
        });
        LockSpace::restored(Core::restored(space, holds))
    });
    adopted.collect()
}
