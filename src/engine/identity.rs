//! Whether an open file is still what its name leads to.
//!
//! The trap: lock files are unlinked and made again while others are between their `open` and their
//! lock. Who then locks the file that has lost its name holds nothing, and two programs write one
//! image. So after every lock, *and after every refusal*, the descriptor must be what the name leads
//! to, or everything begins again.

use std::path::PathBuf;

use super::lock_path::LockPath;
use super::name::Name;
use crate::sys::Errno;
use crate::types::{FileId, IoError};

/// Whether a descriptor is what its name leads to.
pub(super) enum Identity {
    /// It is.
    Same,
    /// The name leads to another file, or to none.
    Stale,
    /// The name's directory, of this path, is not where the path leads.
    DirectoryReplaced(PathBuf),
}

/// Whether the file `id`, which somebody has open, is what the path leads to.
pub(super) fn is_at(id: FileId, path: &LockPath<'_>) -> Result<Identity, IoError> {
    match path.stat() {
        Ok(there) if there.as_ref().is_none_or(|there| there.id() == id) => Ok(Identity::Same),
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => match path {
            LockPath::InDirectory { directory, .. } if !directory.is_where_it_was() => {
                Ok(Identity::DirectoryReplaced(directory.path().to_owned()))
            }
            _ => Ok(Identity::Stale),
        },
        Err(errno) => Err(IoError::new("newfstatat", path.to_path(), errno)),
    }
}

impl Name {
    /// Whether it still leads to the file `id`, which the caller holds.
    pub(crate) fn leads_to(&self, id: FileId) -> Result<bool, IoError> {
        let identity = self.with_path(|path| is_at(id, path));
        identity.map(|identity| matches!(identity, Identity::Same))
    }
}
