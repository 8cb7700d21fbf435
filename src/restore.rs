//! Taking over what a snapshot has carried through an exec, once every entry is proven.
//!
//! The descriptors come as numbers in a text. Until everything is proven they are only looked at,
//! by way of `/proc`: to look at a number through a descriptor of ours would be to trust it
//! already.
#![allow(unsafe_code, reason = "numbers become descriptors of ours here: that is the contract")]

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::FileType;
use serde::Deserialize;
use serde_json::Value;

use crate::directory::FileId;
use crate::document::{
    AUTO_CREATED, Document, ResourceState, SHARED, SpaceMore, VERSION, Wanted, exact, legible,
};
use crate::error::{BadRequest, OpenError};
use crate::kernel::descriptor;
use crate::lock_file::{self, LockFile};
use crate::lock_table::{FdLock, LockKind, access_and_locks};
use crate::name::{Name, Naming, Place};
use crate::process::Process;
use crate::request::{ByteRange, Mode, OwnerId};
use crate::resource::{Hold, Origin, Owners};
use crate::snapshot::started;
use crate::space::{Inner, LockSpace};

/// An entry of a document that does not stand up to proof, or a document that does not.
#[derive(Debug)]
#[non_exhaustive]
pub struct RestoreError {
    /// Which document, counted from 0.
    pub document: usize,
    /// Which of its resources, counted from 0; `None` if the document itself is bad.
    pub entry: Option<usize>,
    /// The resource's name, as far as it can be read.
    pub name: Option<OsString>,
    /// The descriptor's number, as far as it can be read.
    pub fd: Option<i64>,
    /// What is wrong.
    pub why: BadEntry,
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.document)?;
        if let Some(entry) = self.entry {
            write!(f, ", entry {entry}")?;
        }
        if let Some(name) = &self.name {
            write!(f, ", {name:?}")?;
        }
        if let Some(fd) = self.fd {
            write!(f, ", descriptor {fd}")?;
        }
        write!(f, ": {}", self.why)
    }
}

impl std::error::Error for RestoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.why)
    }
}

/// What is wrong with an entry, or with a document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BadEntry {
    /// It is not of the shape of a state document.
    #[error("it makes no sense: {0}")]
    Malformed(String),
    /// A later version of this crate wrote it.
    #[error("it is of version {0}, which is not known here")]
    Version(u64),
    /// Its naming is not known, or needs a feature that is missing.
    #[error("its naming {0:?} is not known here")]
    Naming(String),
    /// Another process wrote it, or an earlier one with this pid.
    #[error("process {pid}, started at {started}, wrote it, and not this one")]
    OtherProcess {
        /// The writer's pid.
        pid: u32,
        /// When the writer was started, in the kernel's ticks.
        started: u64,
    },
    /// The directory cannot be opened.
    #[error(transparent)]
    Directory(OpenError),
    /// The directory is not the one that it was.
    #[error("the path of the directory leads to another one")]
    DirectoryReplaced,
    /// The name cannot be in such a space.
    #[error("{0}")]
    Name(BadRequest),
    /// Another entry has the same name.
    #[error("the name is there twice")]
    DuplicateName,
    /// The path is not the one that the name leads to.
    #[error("its path is not where its name leads")]
    Path,
    /// Flags that are not known.
    #[error("flags {0} are not known")]
    Flags(u64),
    /// A resource is held by nobody.
    #[error("it has no owner")]
    NoOwner,
    /// An exclusive hold is more than one.
    #[error("it is exclusive, and has {0} owners")]
    ExclusiveOwners(usize),
    /// Standard input, output and error are never locks; nor are negative or huge numbers.
    #[error("no lock has such a descriptor")]
    Number,
    /// Another entry has the same descriptor.
    #[error("the descriptor is there twice")]
    DuplicateDescriptor,
    /// Another entry has a duplicate of this descriptor, so that both would be one lock.
    #[error("the descriptor is a duplicate of descriptor {0}, of another entry")]
    SameDescription(RawFd),
    /// The kernel does not tell whether this descriptor and another entry's are duplicates.
    #[error("whether the descriptor is a duplicate of descriptor {0} cannot be known")]
    Unproven(RawFd),
    /// No such descriptor is open.
    #[error("the descriptor is not open")]
    NotOpen,
    /// It is not open on a regular file or a block device.
    #[error("the descriptor is open on {0}")]
    NotAFile(&'static str),
    /// It is open on another file than the recorded one.
    #[error("the descriptor is open on another file than it was")]
    OtherFile,
    /// The name leads to another file by now, or to none.
    #[error("its path leads to another file, or to none")]
    Replaced,
    /// There is no lock on it.
    #[error("the descriptor carries no lock")]
    Unlocked,
    /// The lock is a POSIX record lock, as libvirt's lock daemon takes: the first close of any
    /// descriptor of the file would drop it.
    #[error("the descriptor carries a POSIX record lock, and not an OFD lock")]
    RecordLock,
    /// The lock is of another mode or range, or is not the only one.
    #[error("the descriptor carries another lock than it should")]
    OtherLock,
    /// It could not be looked at.
    #[error("{0}")]
    Io(#[source] io::Error),
}

/// Restores the spaces of the documents, with everything that they held: all, or none. What was
/// held by leases is kept now, for its owner: [`LockSpace::retake`] makes it a lease again.
///
/// Every entry is proven first: this process wrote the document (not asked of libvirt's, which do
/// not say); the descriptor is open, above 2, named once, no duplicate of another entry's, a
/// regular file or a block device, the recorded one, and still what the name leads to; it carries
/// one lock and no other, OFD, of this mode and range. If any proof fails, nothing has changed: no
/// descriptor, no flag, no lock, no file.
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
pub unsafe fn restore<'a>(
    documents: impl IntoIterator<Item = &'a Document>,
) -> Result<Vec<LockSpace>, RestoreError> {
    let (spaces, mut bad) = prove(documents);
    if !bad.is_empty() {
        return Err(bad.swap_remove(0));
    }
    // SAFETY: says the caller.
    Ok(unsafe { adopt(spaces) })
}

/// Restores what can be proven, and returns the rest: for programs that would rather hold some
/// locks than none. A space comes back for each document that is one, in their order, even if none
/// of its entries was proven. The descriptors of entries that failed are left alone: they are open
/// still, and may well be locked.
///
/// # Safety
/// As [`restore`].
pub unsafe fn restore_what_verifies<'a>(
    documents: impl IntoIterator<Item = &'a Document>,
) -> (Vec<LockSpace>, Vec<RestoreError>) {
    let (spaces, bad) = prove(documents);
    // SAFETY: says the caller.
    (unsafe { adopt(spaces) }, bad)
}

/// A space whose entries are proven.
struct Proven {
    place: Place,
    process: &'static Process,
    range: ByteRange,
    file_mode: u32,
    stale: u64,
    entries: Vec<ProvenEntry>,
}

struct ProvenEntry {
    name: Arc<Name>,
    mode: Mode,
    range: ByteRange,
    origin: Origin,
    owners: Vec<OwnerId>,
    /// `None` in memory.
    file: Option<ProvenFile>,
}

#[derive(Clone, Copy)]
struct ProvenFile {
    number: RawFd,
    id: FileId,
    writable: bool,
}

/// Takes what is proven.
///
/// # Safety
/// As [`restore`].
unsafe fn adopt(spaces: Vec<Proven>) -> Vec<LockSpace> {
    let numbers: Vec<_> = spaces
        .iter()
        .flat_map(|space| &space.entries)
        .filter_map(|entry| Some(entry.file?.number))
        .collect();
    // They are open, so it cannot fail.
    let _ = descriptor::set_close_on_exec(&numbers, true);
    let adopted = spaces.into_iter().map(|space| {
        let holds = space.entries.into_iter().map(|entry| {
            let file = entry.file.map(|file| {
                // SAFETY: it is open, as was proven, and named by no other entry; that nobody else
                // owns it says the caller.
                let fd = unsafe { descriptor::adopt(file.number) };
                LockFile::restored(fd, file.id, entry.range, file.writable)
            });
            let owners = Owners::kept(&entry.owners);
            let ProvenEntry { name, mode, range, origin, .. } = entry;
            (name, Hold::new(file, range, mode, origin, owners))
        });
        let how = (space.range, space.file_mode);
        Inner::restored(space.process, space.place, how, space.stale, holds.collect())
    });
    adopted.collect()
}

/// Proves what can be proven. Changes nothing.
fn prove<'a>(
    documents: impl IntoIterator<Item = &'a Document>,
) -> (Vec<Proven>, Vec<RestoreError>) {
    let mut prover = Prover::default();
    let mut spaces = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        match prover.space(index, &document.tree()) {
            Ok(space) => spaces.push(space),
            Err(why) => prover.bad.push(RestoreError {
                document: index,
                entry: None,
                name: None,
                fd: None,
                why,
            }),
        }
    }
    (spaces, prover.bad)
}

#[derive(Default)]
struct Prover {
    numbers: HashSet<RawFd>,
    /// The descriptors of each file: only those can be duplicates of each other.
    of_file: HashMap<FileId, Vec<RawFd>>,
    bad: Vec<RestoreError>,
}

impl Prover {
    fn space(&mut self, document: usize, tree: &Value) -> Result<Proven, BadEntry> {
        let malformed = |error: serde_json::Error| BadEntry::Malformed(error.to_string());
        let missing = |what: &str| BadEntry::Malformed(format!("no {what}"));
        let entries = tree.get("resources").and_then(Value::as_array);
        let entries = entries.ok_or_else(|| missing("array `resources`"))?;
        let more = match tree.get("lockspace") {
            Some(more) => {
                let version = more.get("version").and_then(Value::as_u64);
                match version.ok_or_else(|| missing("version"))? {
                    VERSION => Some(SpaceMore::deserialize(more).map_err(malformed)?),
                    other => return Err(BadEntry::Version(other)),
                }
            }
            None => None,
        };
        let directory = match tree.get("directory") {
            Some(Value::String(path)) => {
                let hex = more.as_ref().and_then(|more| more.hex.as_deref());
                Some(PathBuf::from(
                    exact(path, hex).ok_or_else(|| missing("hexadecimal in `hex`"))?,
                ))
            }
            Some(_) => return Err(BadEntry::Malformed("`directory` is no string".to_owned())),
            None => None,
        };
        let process = Process::current().map_err(BadEntry::Io)?;
        let mut space = match more {
            Some(more) => {
                if (more.pid, more.started)
                    != (std::process::id(), started().map_err(BadEntry::Io)?)
                {
                    let SpaceMore { pid, started, .. } = more;
                    return Err(BadEntry::OtherProcess { pid, started });
                }
                let naming = Naming::from_word(&more.naming, directory);
                let naming = naming.ok_or_else(|| BadEntry::Naming(more.naming.clone()))?;
                let place = naming.reopen().map_err(BadEntry::Directory)?;
                let id = place.directory().map(|dir| (dir.id().dev, dir.id().ino));
                if id != more.directory {
                    return Err(BadEntry::DirectoryReplaced);
                }
                let range = more.range.range().ok_or_else(|| missing("sensible range"))?;
                let (file_mode, stale, entries) = (more.file_mode, more.stale_retries, Vec::new());
                Proven { place, process, range, file_mode, stale, entries }
            }
            // libvirt's: the directory's files have the resources' names.
            None => {
                let naming = directory.map_or_else(Naming::direct, Naming::verbatim);
                let place = naming.reopen().map_err(BadEntry::Directory)?;
                let (range, file_mode) = (ByteRange::FIRST, 0o600);
                Proven { place, process, range, file_mode, stale: 0, entries: Vec::new() }
            }
        };
        let mut names = HashSet::new();
        for (index, entry) in entries.iter().enumerate() {
            let proven = self.entry(&space, entry).and_then(|proven| {
                match names.insert(proven.name.text().to_owned()) {
                    true => Ok(proven),
                    false => Err(BadEntry::DuplicateName),
                }
            });
            match proven {
                Ok(proven) => space.entries.push(proven),
                Err(why) => self.bad.push(RestoreError {
                    document,
                    entry: Some(index),
                    name: entry.get("name").and_then(Value::as_str).map(OsString::from),
                    fd: entry.get("fd").and_then(Value::as_i64),
                    why,
                }),
            }
        }
        Ok(space)
    }

    fn entry(&mut self, space: &Proven, entry: &Value) -> Result<ProvenEntry, BadEntry> {
        let state = ResourceState::deserialize(entry);
        let state = state.map_err(|error| BadEntry::Malformed(error.to_string()))?;
        if state.flags & !(SHARED | AUTO_CREATED) != 0 {
            return Err(BadEntry::Flags(state.flags));
        }
        let wanted = state.wanted().map_err(|why| BadEntry::Malformed(why.to_owned()))?;
        match wanted.owners.len() {
            0 => return Err(BadEntry::NoOwner),
            more if wanted.mode == Mode::Exclusive && more > 1 => {
                return Err(BadEntry::ExclusiveOwners(more));
            }
            _ => {}
        }
        let name = match wanted.origin {
            Origin::Opened => Place::name_of_opened(&*wanted.name, (*wanted.path).into()),
            _ => space.place.name(&*wanted.name),
        };
        let name = name.map_err(BadEntry::Name)?;
        if legible(name.path().as_os_str()).0 != wanted.path {
            return Err(BadEntry::Path);
        }
        let range = wanted.range.unwrap_or(space.range);
        // Only a directory's files are made: to remove an image in the end would lose it.
        if wanted.origin == Origin::AutoCreated && space.place.directory().is_none() {
            return Err(BadEntry::Malformed("only in a directory are files created".to_owned()));
        }
        let in_memory = matches!(space.place, Place::InMemory) && wanted.origin != Origin::Opened;
        if in_memory != (wanted.origin == Origin::InMemory) || in_memory == wanted.lock_held {
            return Err(BadEntry::Malformed("what is held does not fit the naming".to_owned()));
        }
        let file = match in_memory {
            true if wanted.fd == -1 => None,
            true => return Err(BadEntry::Number),
            false => Some(self.file(&name, &wanted, range)?),
        };
        let Wanted { mode, origin, owners, .. } = wanted;
        Ok(ProvenEntry { name, mode, range, origin, owners, file })
    }

    fn file(
        &mut self,
        name: &Name,
        wanted: &Wanted,
        range: ByteRange,
    ) -> Result<ProvenFile, BadEntry> {
        let number = RawFd::try_from(wanted.fd).ok().filter(|number| *number > 2);
        let number = number.ok_or(BadEntry::Number)?;
        if !self.numbers.insert(number) {
            return Err(BadEntry::DuplicateDescriptor);
        }
        let gone = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => BadEntry::NotOpen,
            _ => BadEntry::Io(error),
        };
        let (access, locks) = access_and_locks(number).map_err(gone)?;
        // Through /proc, which follows to the very file, and needs no descriptor of ours yet.
        let stat = rustix::fs::stat(format!("/proc/self/fd/{number}"));
        let stat = stat.map_err(|errno| gone(errno.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile | FileType::BlockDevice => {}
            FileType::Directory => return Err(BadEntry::NotAFile("a directory")),
            FileType::Fifo => return Err(BadEntry::NotAFile("a pipe")),
            FileType::Socket => return Err(BadEntry::NotAFile("a socket")),
            _ => return Err(BadEntry::NotAFile("neither a file nor a block device")),
        }
        let id = FileId::from(&stat);
        if wanted.id.is_some_and(|recorded| recorded != id) {
            return Err(BadEntry::OtherFile);
        }
        check_lock(&locks, wanted.mode, range)?;
        let there = lock_file::leads_to(name, id).map_err(|error| BadEntry::Io(error.source))?;
        if !there {
            return Err(BadEntry::Replaced);
        }
        let others = self.of_file.entry(id).or_default();
        for &other in &*others {
            match descriptor::same_description(number, other) {
                Some(false) => {}
                Some(true) => return Err(BadEntry::SameDescription(other)),
                None => return Err(BadEntry::Unproven(other)),
            }
        }
        others.push(number);
        Ok(ProvenFile { number, id, writable: access == libc::O_RDWR })
    }
}

/// One lock and no other: an OFD lock of this mode and range.
fn check_lock(locks: &[FdLock], mode: Mode, range: ByteRange) -> Result<(), BadEntry> {
    // A flock belongs to the open file too, and excludes none of ours.
    let mut locks = locks.iter().filter(|lock| lock.kind.excludes());
    match (locks.next(), locks.next()) {
        (None, _) => Err(BadEntry::Unlocked),
        (Some(FdLock { kind: LockKind::Posix, .. }), _) => Err(BadEntry::RecordLock),
        (Some(lock), None) if (lock.mode, lock.range) == (mode, range) => Ok(()),
        _ => Err(BadEntry::OtherLock),
    }
}
