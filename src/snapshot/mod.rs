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

mod document;
mod fit;
mod libvirt;
mod listing;
mod restore;

use std::ffi::OsString;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::sync::Arc;

use rustix::fs::{Mode as FileMode, OFlags};

pub use document::Document;
pub use libvirt::{LibvirtLimit, NotForLibvirt};
pub use restore::{InvalidEntry, RestoreError, restore, restore_what_verifies};

use crate::api::LockSpace;
use crate::core::{Core, Hold};
use crate::engine::{LockFile, Name};
use crate::error::ForkedMessage;
use crate::snapshot::document::{
    AUTO_CREATED, ResourceMore, ResourceState, SHARED, SpaceMore, VERSION, legible,
};
use crate::snapshot::fit::Fitted;
use crate::sys::exec;
use crate::sys::memfd::{self, MemoryFile};
use crate::types::{FileId, Mode, Origin};

/// Several spaces, frozen: what they hold does not change while this lives.
///
/// Tries are refused meanwhile ([`AcquireError::Frozen`](crate::AcquireError::Frozen)), waits
/// wait, and releases are put off; when it is dropped, they happen, and everything goes on. A
/// snapshot that is executed comes back only if that failed.
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
}

/// Why there is no snapshot. Nothing is frozen then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file system of a resource has not answered a request that nobody waits for any more;
    /// what becomes of it cannot be known.
    #[error("{name:?}: its file system has not answered, so its state is not known")]
    Unresponsive {
        /// The resource.
        name: OsString,
    },
    /// The same space was named twice.
    #[error("the same lock space was named twice")]
    Twice,
    /// The calling process is a forked child of the one that made the space.
    #[error("{}", ForkedMessage(*.creator))]
    Forked {
        /// The pid of the process that made the space.
        creator: u32,
    },
    /// `/proc` does not tell when this process was started.
    #[error("read /proc/self/stat: {0}")]
    Io(#[source] io::Error),
}

/// The exec failed: this program goes on, and every lock is held.
#[derive(Debug, thiserror::Error)]
#[error("execve {program:?}: {source}")]
#[non_exhaustive]
pub struct ExecError {
    /// The program that was to be executed.
    pub program: OsString,
    /// Why it was not.
    pub source: io::Error,
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
    /// drop(lease); // put off
    /// assert_eq!(space.list().len(), 1);
    /// drop(snapshot);
    /// assert_eq!(space.list().len(), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn take<'a>(
        spaces: impl IntoIterator<Item = &'a LockSpace>,
    ) -> Result<Self, SnapshotError> {
        let started = started().map_err(SnapshotError::Io)?;
        let mut snapshot = Self {
            spaces: Vec::new(),
            documents: Vec::new(),
            held: Vec::new(),
            carried: Vec::new(),
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

    /// Puts bytes into a sealed file in memory that the exec carries over; what is returned is
    /// for [`carried`], by way of an argument or the environment. May be called more than once.
    ///
    /// # Errors
    /// Those of `memfd_create` and of writing to it.
    #[doc(alias = "memfd_create")]
    pub fn carry(&mut self, bytes: &[u8]) -> io::Result<u32> {
        let file = MemoryFile::new(bytes)?;
        let number = file.number();
        self.carried.push(file);
        Ok(number.unsigned_abs())
    }

    /// Executes another program, or a new version of this one, in this process, with every lock
    /// held. Returns only if that fails: then everything is held still, close-on-exec is set
    /// again on every descriptor, signal mask, SIGPIPE and working directory are as they were,
    /// and what was put off happens.
    ///
    /// The descriptors can be inherited from the moment before `execve` on; a command that
    /// another thread spawns in that moment inherits them too. That weakens no lock.
    ///
    /// What else the command was told to change in its child (standard streams, ids) stays
    /// changed after a failure: tell it nothing of the kind. `env_clear` and `arg0` cannot be
    /// learned from a command, and have no effect here: use `env_remove`.
    pub fn exec(self, command: &mut Command) -> ExecError {
        if self.spaces.iter().any(|space| !space.core().process.is_here()) {
            let source = io::Error::other("a forked child cannot pass its parent's locks on");
            return ExecError { program: command.get_program().to_owned(), source };
        }
        let mut keep = self.held.clone();
        keep.extend(self.carried.iter().map(MemoryFile::number));
        let here = command.get_current_dir().and_then(|_| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(".", flags, FileMode::empty()).ok()
        });
        let source = exec::exec(command, keep);
        if let Some(here) = here {
            let _ = rustix::process::fchdir(here);
        }
        ExecError { program: command.get_program().to_owned(), source }
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
    memfd::take(number.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?)
}

/// What a frozen space holds, and the descriptors that it is held by.
fn document_of(core: &Core, started: u64, held: &mut Vec<RawFd>) -> Document {
    let resources = core.with_holds(|name, hold| {
        held.extend(hold.file().map(LockFile::number));
        Fitted::Fits(resource_state(name, hold))
    });
    let directory = core.naming.directory();
    let (path, hex) = match directory.map(|directory| legible(directory.path().as_os_str())) {
        Some((path, hex)) => (Some(path), hex),
        None => (None, None),
    };
    let more = SpaceMore {
        version: VERSION,
        naming: core.naming.word().to_owned(),
        range: core.range.into(),
        file_mode: core.file_mode,
        directory: directory.map(|directory| (directory.id().dev, directory.id().ino)),
        hex,
        stale_retries: core.stale_retries(),
        pid: std::process::id(),
        started,
    };
    Document::new(path, resources, &more)
}

fn resource_state(name: &Name, hold: &Hold) -> ResourceState {
    let (text, hex) = match name.sent_to_libvirt() {
        Some(hash) => (hash, Some(hex::encode(name.text().as_bytes()))),
        None => legible(name.text()),
    };
    let (path, _) = legible(name.path().as_os_str());
    let owners = hold.owners().counts().into_iter();
    let owners = owners.flat_map(|(id, count)| std::iter::repeat_n(id.get(), count as usize));
    let shared = if hold.mode() == Mode::Shared { SHARED } else { 0 };
    let auto_created = if hold.origin() == Origin::AutoCreated { AUTO_CREATED } else { 0 };
    let id = hold.file().map_or(FileId { dev: 0, ino: 0 }, LockFile::id);
    ResourceState {
        name: text,
        path,
        fd: hold.file().map_or(-1, |file| file.number().into()),
        lock_held: hold.file().is_some(),
        flags: shared | auto_created,
        owners: owners.collect(),
        lockspace: Some(ResourceMore {
            range: hold.range().into(),
            device: id.dev,
            inode: id.ino,
            origin: hold.origin().into(),
            hex,
        }),
    }
}

/// When this process was started, in the kernel's ticks: with the pid, it tells this process from
/// every other one. An exec does not change it.
pub(crate) fn started() -> io::Result<u64> {
    let stat = std::fs::read("/proc/self/stat")?;
    // The command stands second, in brackets, and may contain anything.
    let after = stat.iter().rposition(|&byte| byte == b')').map(|at| &stat[at + 1..]);
    let field = after.and_then(|rest| str::from_utf8(rest).ok()?.split_ascii_whitespace().nth(19));
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "no start time in it");
    field.and_then(|field| field.parse().ok()).ok_or_else(odd)
}
