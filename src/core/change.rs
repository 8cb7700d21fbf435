//! Creating and deleting lock files of resources that nobody holds: `LockSpace::create` and
//! `delete`.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Instant;

use super::{Core, TransitionGuard};
use crate::engine::{Key, LockError, Name, create_file, delete_file};
use crate::error::{Busy, LockFileError};
use crate::sys::Errno;
use crate::types::{ByteRange, IoError, Mode};

impl Core {
    /// Creates the file of a resource that is not held in this space.
    pub(crate) fn create(&self, text: &OsStr) -> Result<(), LockFileError> {
        self.change(text, |name| create_file(name, self.file_mode))
    }

    /// Removes the file of a resource that is held neither in this space nor outside of it.
    pub(crate) fn delete(&self, text: &OsStr) -> Result<(), LockFileError> {
        self.change(text, |name| delete_file(name, &self.stale_retries))
    }

    fn change(
        &self,
        text: &OsStr,
        change: impl FnOnce(&Name) -> Result<(), LockError>,
    ) -> Result<(), LockFileError> {
        self.process.check().map_err(|creator| LockFileError::Forked { creator })?;
        let invalid = |why| LockFileError::Invalid { name: text.to_owned(), why };
        let key = Key::from(text);
        let name = self.naming.name(key).map_err(invalid)?;
        let mut table = self.lock();
        while let Some(slot) = table.find(key) {
            let resource = table.resource(slot);
            if let Some((held, owners)) = resource.blockers() {
                let name = Arc::clone(resource.name());
                let busy = Busy::inside(name, Mode::Exclusive, held, owners);
                return Err(LockFileError::Busy(busy));
            }
            table.watch_transition(slot, Instant::now());
            self.wait_for_transition(&mut table, None);
        }
        let slot = table.begin_change(key.hash(), Arc::clone(&name));
        drop(table);
        let transition = TransitionGuard::new(self, slot, name);
        let changed = change(transition.name());
        let name = transition.end();
        changed.map_err(|error| self.change_error(error, name))
    }

    fn change_error(&self, error: LockError, name: Arc<Name>) -> LockFileError {
        let text = || name.text().to_owned();
        match error {
            LockError::Contended(file, by) => {
                let id = file.id();
                drop(file);
                let asked = (Mode::Exclusive, ByteRange::WHOLE_FILE);
                LockFileError::Busy(self.refused_by_kernel(name, asked, (id, by)))
            }
            LockError::Leased(id) => {
                LockFileError::Busy(Busy::leased(name, Mode::Exclusive).on(id))
            }
            LockError::Invalid(why) => LockFileError::Invalid { name: text(), why },
            LockError::DirectoryReplaced(directory) => {
                LockFileError::DirectoryReplaced { name: text(), directory }
            }
            LockError::NotFound => {
                LockFileError::Io(IoError::new("openat", name.path(), Errno::NOENT))
            }
            LockError::Unstable(_) => {
                LockFileError::Io(IoError::new("openat", name.path(), Errno::BUSY))
            }
            LockError::Io(error) => LockFileError::Io(error),
        }
    }
}
