//! Looking: which resources are held, by which holders, and whether a hold is intact.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::Core;
use crate::engine::{self, HeldBy, Holder, Key, Kind, Name};
use crate::error::{AcquireError, VerifyError};
use crate::sys::procfs;
use crate::table::Slot;
use crate::types::{ByteRange, IoError, Mode, Origin, OwnerId};

/// A resource that is held in a space; see [`LockSpace::list`](crate::LockSpace::list).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeldResource {
    /// The resource.
    pub name: OsString,
    /// Its lock file; empty where there is none.
    pub path: PathBuf,
    /// The mode of its holds.
    pub mode: Mode,
    /// Its owners, each with its number of holds: leases and kept holds together.
    pub owners: BTreeMap<OwnerId, u32>,
    /// Where its file came from.
    pub origin: Origin,
    /// The bytes that are locked.
    pub range: ByteRange,
}

impl Core {
    /// The held resources, in no order; none in a forked child.
    pub(crate) fn list(&self) -> Vec<HeldResource> {
        if self.check().is_err() {
            return Vec::new();
        }
        let table = self.lock();
        let held = table.resources().filter_map(|resource| {
            let hold = resource.hold()?;
            Some(HeldResource {
                name: resource.name().text().to_owned(),
                path: resource.name().path(),
                mode: hold.mode(),
                owners: hold.owners().counts(),
                origin: hold.origin(),
                range: hold.range(),
            })
        });
        held.collect()
    }

    /// Checks that the name still leads to the locked file, and that the kernel shows its lock.
    pub(crate) fn verify(&self, slot: Slot, name: &Name) -> Result<(), VerifyError> {
        self.process.check().map_err(|creator| VerifyError::Forked { creator })?;
        let held = {
            let table = self.lock();
            table.resource(slot).hold().and_then(|hold| {
                let file = hold.file()?;
                Some((file.id(), file.number(), hold.mode(), hold.range()))
            })
        };
        // A lock in memory cannot be lost.
        let Some((id, number, mode, range)) = held else { return Ok(()) };
        let lost = || (name.text().to_owned(), name.path());
        if !name.leads_to(id).map_err(VerifyError::Io)? {
            let (name, path) = lost();
            return Err(VerifyError::Replaced { name, path });
        }
        // The descriptor stays open under this number, since the caller borrows its lease.
        let locks = procfs::locks_on_descriptor(number).map_err(|source| {
            VerifyError::Io(IoError::new(procfs::READ_FDINFO, name.path(), source))
        })?;
        if locks.iter().any(|lock| lock.is_ofd_over(mode, range)) {
            return Ok(());
        }
        let (name, path) = lost();
        Err(VerifyError::Unlocked { name, path })
    }

    /// The holders of a resource: the owners in this space, and the other holders that the kernel
    /// shows. `opened` is the caller's open file, if the target is one.
    pub(crate) fn holders(
        &self,
        text: &OsStr,
        opened: Option<BorrowedFd<'_>>,
    ) -> Result<Vec<Holder>, AcquireError> {
        let key = Key::from(text);
        let (ours, number) = {
            let table = self.lock();
            let slot = table.find(key);
            let hold = slot.and_then(|slot| table.resource(slot).hold());
            let ours = hold.map(|hold| Holder {
                mode: hold.mode(),
                kind: Kind::Ofd,
                range: hold.range(),
                by: HeldBy::Owners(hold.owners().ids()),
            });
            (ours, hold.and_then(|hold| Some(hold.file()?.number())))
        };
        let others = match (number, opened) {
            // By the descriptor, since the name may lead to another file by now.
            (Some(number), _) => engine::holders_beside(number),
            (None, Some(fd)) => engine::holders_of_descriptor(fd),
            (None, None) => {
                let invalid = |why| AcquireError::Invalid { name: text.to_owned(), why };
                let name = self.naming.name(key).map_err(invalid)?;
                match name.leads_nowhere() {
                    true => Ok(Vec::new()),
                    false => engine::holders_of(name.path()),
                }
            }
        };
        let mut holders: Vec<_> = ours.into_iter().collect();
        match others {
            Ok(others) => holders.extend(others),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(AcquireError::Io(IoError::new(procfs::READ_LOCKS, text, error)));
            }
        }
        Ok(holders)
    }
}
