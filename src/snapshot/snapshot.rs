//! Freezing spaces, writing down what they hold, and executing another program.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::sync::Arc;

use super::deferred;
use super::document::{
    AUTO_CREATED, Document, RangeState, ResourceExtension, ResourceState, SHARED, SpaceExtension,
    SpaceState, VERSION, lossy,
};
use super::error::{ExecError, SnapshotError};
use crate::api::LockSpace;
use crate::core::{Core, Hold};
use crate::engine::{LockFile, Name};
use crate::sys;
use crate::sys::memfd::{Content, MemoryFile};
use crate::types::{FileId, Mode, Origin, OwnerId};

/// Several spaces, frozen: what they hold does not change while this lives.
///
/// Tries are refused meanwhile ([`AcquireError::Frozen`](crate::AcquireError::Frozen)), waits
/// wait, and releases are deferred: they return at once, and happen when the snapshot is dropped. A
/// snapshot that is executed comes back only if that failed; else the new program's
/// [`restore`](super::restore()) makes the releases that were deferred. Waits end with the program
/// that made them, and so does their order: a client whose grant the old program had not yet told is
/// found by [`LockSpace::list`] in the new one.
///
/// Mirrors `virLockSpacePreExecRestart`.
#[derive(Debug)]
#[must_use = "a snapshot that is dropped at once was for nothing"]
#[doc(alias = "virLockSpacePreExecRestart")]
pub struct Snapshot {
    spaces: Vec<LockSpace>,
    documents: Vec<Document>,
    /// The descriptors that hold locks. They stay open while the spaces are frozen.
    held: Vec<RawFd>,
    carried: Vec<MemoryFile>,
    /// When this process was started.
    started: u64,
}

impl Snapshot {
    /// Freezes the spaces, and writes down what they hold. Waits until no thread is just making
    /// system calls for a resource, as long as that takes.
    ///
    /// # Errors
    /// [`SnapshotError`]; everything goes on then.
    ///
    /// ```
    /// use lockspace::{LockSpace, Naming, OwnerId, Request, Wait, snapshot::Snapshot};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let space = LockSpace::open(Naming::in_memory())?;
    /// let lease = space.acquire(OwnerId::new(1), Request::exclusive("a"), Wait::NO)?;
    /// let snapshot = Snapshot::take([&space])?;
    /// drop(lease); // deferred
    /// assert_eq!(space.list().len(), 1);
    /// drop(snapshot);
    /// assert_eq!(space.list().len(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn take<'a>(
        spaces: impl IntoIterator<Item = &'a LockSpace>,
    ) -> Result<Self, SnapshotError> {
        let started = sys::process::start_time().map_err(SnapshotError::Io)?;
        let mut snapshot = Self {
            spaces: Vec::new(),
            documents: Vec::new(),
            held: Vec::new(),
            carried: Vec::new(),
            started,
        };
        for space in spaces {
            let core = space.core();
            core.process.check().map_err(|creator| SnapshotError::Forked { creator })?;
            if snapshot.spaces.iter().any(|other| Arc::ptr_eq(other.core(), core)) {
                return Err(SnapshotError::Twice);
            }
            let stuck =
                |name: Arc<Name>| SnapshotError::Unresponsive { name: name.text().to_owned() };
            core.freeze().map_err(stuck)?;
            snapshot.spaces.push(space.clone());
            snapshot.documents.push(document_of(core, started, &mut snapshot.held));
        }
        Ok(snapshot)
    }

    /// One document for each space, in their order.
    #[must_use]
    pub fn documents(&self) -> &[Document] {
        &self.documents
    }

    /// Puts bytes into a sealed file in memory that the exec carries over; what is returned is for
    /// [`carried`](super::carried), by way of an argument or the environment. May be called more than
    /// once.
    ///
    /// # Errors
    /// Those of `memfd_create` and of writing to it.
    #[doc(alias = "memfd_create")]
    pub fn carry(&mut self, bytes: &[u8]) -> io::Result<u32> {
        let file = MemoryFile::new(Content::State, bytes)?;
        let number = file.number();
        self.carried.push(file);
        Ok(number.unsigned_abs())
    }

    /// Executes another program, or a new version of this one, in this process, with every lock
    /// held. Returns only if that fails: then everything is held still, close-on-exec is set
    /// again on every descriptor, signal mask, SIGPIPE and working directory are as they were,
    /// and the deferred releases happen.
    ///
    /// The descriptors can be inherited from the moment before `execve` on; a command that
    /// another thread spawns in that moment inherits them too. That weakens no lock.
    ///
    /// A release in another thread waits while the program is executed. Those that were deferred before
    /// are written into a sealed file in memory, whose number stands in the new program's environment,
    /// as `LOCKSPACE_RELEASES`, for [`restore`](super::restore()). libvirt's lock daemon does not look
    /// there: what is given to it is not to be released any more.
    ///
    /// What else the command was told to change in its child (standard streams, ids) stays
    /// changed after a failure: tell it nothing of the kind. `env_clear` and `arg0` cannot be
    /// learned from a command, and have no effect here: use `env_remove`.
    pub fn exec(self, command: &mut Command) -> ExecError {
        let source = self.try_exec(command);
        ExecError { program: command.get_program().to_owned(), source }
    }

    fn try_exec(&self, command: &mut Command) -> io::Error {
        if self.spaces.iter().any(|space| !space.core().process.is_here()) {
            return io::Error::other("a forked child cannot pass its parent's locks on");
        }
        let mut executing = Executing { spaces: Vec::new() };
        let deferred = self.spaces.iter().map(|space| executing.begin(space.core())).collect();
        let releases = match deferred::write(&self.documents, deferred, self.started) {
            Ok(releases) => releases,
            Err(error) => return error,
        };
        let files = self.carried.iter().chain(&releases).map(MemoryFile::number);
        let keep = self.held.iter().copied().chain(files).collect();
        let number = releases.as_ref().map(|file| file.number().to_string());
        sys::exec::exec(command, keep, (deferred::VARIABLE, number))
    }
}

/// Spaces whose snapshot is being executed. The drop of this tells them that it has failed.
struct Executing<'a> {
    spaces: Vec<&'a Core>,
}

impl<'a> Executing<'a> {
    /// Returns the releases that were deferred by now.
    fn begin(&mut self, core: &'a Core) -> Vec<(Arc<Name>, OwnerId, u32)> {
        self.spaces.push(core);
        core.begin_exec()
    }
}

impl Drop for Executing<'_> {
    fn drop(&mut self) {
        self.spaces.iter().for_each(|core| core.end_exec());
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        for space in &self.spaces {
            if space.core().process.is_here() {
                space.core().thaw();
            }
        }
    }
}

/// What a frozen space holds. Adds the descriptors by which it does to `held`.
fn document_of(core: &Core, started: u64, held: &mut Vec<RawFd>) -> Document {
    let resources = core.with_holds(|name, hold| {
        held.extend(hold.file().map(LockFile::number));
        resource_state(name, hold)
    });
    let directory = core.naming.directory();
    let path = directory.map(|directory| lossy(directory.path().as_os_str()));
    let (path, hex) = path.map_or((None, None), |(path, hex)| (Some(path), hex));
    let lockspace = SpaceExtension {
        version: VERSION,
        naming: core.naming.word().to_owned(),
        range: RangeState(core.range),
        file_mode: core.file_mode,
        directory: directory.map(|directory| (directory.id().dev, directory.id().ino)),
        hex,
        stale_retries: core.stale_retries(),
        pid: std::process::id(),
        started,
    };
    Document::new(SpaceState { directory: path, resources, lockspace })
}

fn resource_state(name: &Name, hold: &Hold) -> ResourceState<'static> {
    let (text, hex) = match name.sent_to_libvirt() {
        Some(hash) => (hash, Some(hex::encode(name.text().as_bytes()))),
        None => lossy(name.text()),
    };
    let (path, _) = lossy(name.path().as_os_str());
    let owners = hold.owners().counts().into_iter();
    let owners = owners.flat_map(|(id, count)| std::iter::repeat_n(id.get(), count as usize));
    let shared = if hold.mode() == Mode::Shared { SHARED } else { 0 };
    let auto_created = if hold.origin() == Origin::AutoCreated { AUTO_CREATED } else { 0 };
    let id = hold.file().map_or(FileId { dev: 0, ino: 0 }, LockFile::id);
    let lockspace = ResourceExtension {
        range: RangeState(hold.range()),
        device: id.dev,
        inode: id.ino,
        origin: hold.origin(),
        hex,
    };
    ResourceState {
        name: text.into(),
        path: path.into(),
        fd: hold.file().map_or(-1, |file| file.number().into()),
        lock_held: hold.file().is_some(),
        flags: shared | auto_created,
        owners: owners.collect(),
        lockspace: Some(lockspace),
    }
}
