//! Taking over what a snapshot has carried through an exec, once every entry is proven.
//!
//! The descriptors come as numbers in a text. Until everything is proven they are only looked at:
//! they are borrowed, never owned, so that no way out closes one.
//!
//! What a descriptor carries, the kernel tells of the open file description itself: since Linux 6.6
//! by `F_OFD_GETLK` with `F_UNLCK`, and always by `/proc/thread-self/fdinfo`, which takes six
//! times as long. Not by `/proc/locks`, which does not tell whose an OFD lock is: beside a rival that
//! locks and unlocks the same file, an unlocked descriptor would pass.
#![allow(unsafe_code, reason = "numbers become descriptors of ours here: that is the contract")]

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet, HashTable};
use serde::Deserialize;
use serde_json::Value;
use smallvec::SmallVec;

use crate::api::LockSpace;
use crate::core::{Core, Hold, Process, RestoredSpace};
use crate::engine::{Key, LockFile, LockPath, Name, OpenNaming};
use crate::error::OpenError;
use crate::snapshot::document::{
    AUTO_CREATED, Document, ResourceState, SHARED, SpaceMore, VERSION, Wanted, exact, legible,
};
use crate::snapshot::fit::Fitted;
use crate::snapshot::listing::Listing;
use crate::snapshot::started;
use crate::sys::fs::{self, FileKind};
use crate::sys::procfs::{FdLock, LockKind, OwnFdinfo};
use crate::sys::{fd as descriptor, local_fs, ofd};
use crate::table::Owners;
use crate::types::{ByteRange, FileId, InvalidRequest, Mode, Naming, Origin, OwnerId};

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
    pub why: InvalidEntry,
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
pub enum InvalidEntry {
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
    Name(InvalidRequest),
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
    /// The lock is of another mode or range, or is not the only one where it must be.
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
pub unsafe fn restore<'a>(
    documents: impl IntoIterator<Item = &'a Document>,
) -> Result<Vec<LockSpace>, RestoreError> {
    // SAFETY: says the caller.
    let (spaces, mut bad) = unsafe { prove(documents) };
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
    // SAFETY: says the caller.
    let (spaces, bad) = unsafe { prove(documents) };
    // SAFETY: says the caller.
    (unsafe { adopt(spaces) }, bad)
}

/// A space whose entries are proven.
struct Proven {
    place: OpenNaming,
    process: &'static Process,
    range: ByteRange,
    file_mode: u32,
    stale: u64,
    entries: Vec<ProvenEntry>,
    /// What is in the directory, if it was worth reading.
    listing: Option<Listing>,
}

struct ProvenEntry {
    name: Arc<Name>,
    mode: Mode,
    range: ByteRange,
    origin: Origin,
    owners: Owners,
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
    let mut numbers: Vec<_> = spaces
        .iter()
        .flat_map(|space| &space.entries)
        .filter_map(|entry| Some(entry.file?.number))
        .collect();
    // They are open, so it cannot fail.
    let _ = descriptor::close_all_on_exec(&mut numbers);
    let adopted = spaces.into_iter().map(|space| {
        let holds = space.entries.into_iter().map(|entry| {
            let file = entry.file.map(|file| {
                // SAFETY: it is open, as was proven, and named by no other entry; that nobody else
                // owns it says the caller.
                let fd = unsafe { descriptor::adopt(file.number) };
                LockFile::restored(fd, file.id, entry.range, file.writable)
            });
            let ProvenEntry { name, mode, range, origin, owners, .. } = entry;
            (name, Hold::new(file, range, mode, origin, owners))
        });
        let restored = RestoredSpace {
            process: space.process,
            naming: space.place,
            range: space.range,
            file_mode: space.file_mode,
            stale_retries: space.stale,
        };
        LockSpace::restored(Core::restored(restored, holds))
    });
    adopted.collect()
}

/// Proves what can be proven. Changes nothing.
///
/// # Safety
/// As [`restore`].
unsafe fn prove<'a>(
    documents: impl IntoIterator<Item = &'a Document>,
) -> (Vec<Proven>, Vec<RestoreError>) {
    // SAFETY: says the caller.
    let mut prover = unsafe { Prover::new() };
    let mut spaces = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        match prover.space(index, document) {
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

/// From so many entries on, the directory is read as a whole.
const WORTH_LISTING: usize = 64;

struct Prover {
    numbers: HashSet<RawFd>,
    /// The descriptors of each file: only those can be duplicates of each other.
    of_file: HashMap<FileId, SmallVec<[RawFd; 2]>>,
    /// The device that was asked about last, and whether its file system is local.
    device: Option<(u64, bool)>,
    info: Option<OwnFdinfo>,
    bad: Vec<RestoreError>,
}

impl Prover {
    /// # Safety
    /// As [`restore`], as long as it is used: it borrows what documents name.
    unsafe fn new() -> Self {
        let (numbers, of_file) = (HashSet::new(), HashMap::new());
        Self { numbers, of_file, device: None, info: None, bad: Vec::new() }
    }

    fn space(&mut self, index: usize, document: &Document) -> Result<Proven, InvalidEntry> {
        let malformed = |error: serde_json::Error| InvalidEntry::Malformed(error.to_string());
        let missing = |what: &str| InvalidEntry::Malformed(format!("no {what}"));
        let entries = document.resources().ok_or_else(|| missing("array `resources`"))?;
        let tree = document.head();
        let more = match tree.get("lockspace") {
            Some(more) => {
                let version = more.get("version").and_then(Value::as_u64);
                match version.ok_or_else(|| missing("version"))? {
                    VERSION => Some(SpaceMore::deserialize(more).map_err(malformed)?),
                    other => return Err(InvalidEntry::Version(other)),
                }
            }
            None => None,
        };
        let directory = match tree.get("directory") {
            Some(Value::String(path)) => {
                let hex = more.as_ref().and_then(|more| more.hex.as_deref());
                let path = exact(path, hex).ok_or_else(|| missing("hexadecimal in `hex`"))?;
                Some(PathBuf::from(&*path))
            }
            Some(_) => return Err(InvalidEntry::Malformed("`directory` is no string".to_owned())),
            None => None,
        };
        let process = Process::current().map_err(InvalidEntry::Io)?;
        let mut space = match more {
            Some(more) => {
                if (more.pid, more.started)
                    != (std::process::id(), started().map_err(InvalidEntry::Io)?)
                {
                    let SpaceMore { pid, started, .. } = more;
                    return Err(InvalidEntry::OtherProcess { pid, started });
                }
                let naming = Naming::from_word(&more.naming, directory);
                let naming = naming.ok_or_else(|| InvalidEntry::Naming(more.naming.clone()))?;
                let place =
                    naming.reopen().map_err(OpenError::from_io).map_err(InvalidEntry::Directory)?;
                let id = place.directory().map(|dir| (dir.id().dev, dir.id().ino));
                if id != more.directory {
                    return Err(InvalidEntry::DirectoryReplaced);
                }
                let range = more.range.range().ok_or_else(|| missing("sensible range"))?;
                let (file_mode, stale) = (more.file_mode, more.stale_retries);
                Proven {
                    place,
                    process,
                    range,
                    file_mode,
                    stale,
                    entries: Vec::new(),
                    listing: None,
                }
            }
            // libvirt's: the directory's files have the resources' names.
            None => {
                let naming = directory.map_or_else(Naming::direct, Naming::verbatim);
                let place =
                    naming.reopen().map_err(OpenError::from_io).map_err(InvalidEntry::Directory)?;
                let (range, file_mode) = (ByteRange::FIRST, 0o600);
                let entries = Vec::new();
                Proven { place, process, range, file_mode, stale: 0, entries, listing: None }
            }
        };
        let capacity = entries.len();
        space.entries.reserve(capacity);
        if capacity >= WORTH_LISTING {
            space.listing = space.place.directory().and_then(|dir| Listing::read(dir, capacity));
        }
        self.numbers.reserve(capacity);
        self.of_file.reserve(capacity);
        let mut names = HashTable::<usize>::with_capacity(capacity);
        for (at, entry) in entries.iter().enumerate() {
            let proven = self.entry(&space, entry).and_then(|proven| {
                let name = Key::from(proven.name.text());
                let is_it = |other: &usize| space.entries[*other].name.text() == name.text();
                match names.find(name.hash(), is_it) {
                    Some(_) => Err(InvalidEntry::DuplicateName),
                    None => Ok(proven),
                }
            });
            match proven {
                Ok(proven) => {
                    let hash_of = |name: &Name| Key::from(name.text()).hash();
                    let hash = hash_of(&proven.name);
                    let hash_at = |at: &usize| hash_of(&space.entries[*at].name);
                    names.insert_unique(hash, space.entries.len(), hash_at);
                    space.entries.push(proven);
                }
                Err(why) => self.bad.push(RestoreError {
                    document: index,
                    entry: Some(at),
                    name: entry.name(),
                    fd: entry.fd(),
                    why,
                }),
            }
        }
        match space.place.directory() {
            Some(directory) if !directory.is_where_it_was() => Err(InvalidEntry::DirectoryReplaced),
            _ => Ok(space),
        }
    }

    fn entry(
        &mut self,
        space: &Proven,
        entry: &Fitted<ResourceState>,
    ) -> Result<ProvenEntry, InvalidEntry> {
        let state = entry.state().map_err(InvalidEntry::Malformed)?;
        if state.flags & !(SHARED | AUTO_CREATED) != 0 {
            return Err(InvalidEntry::Flags(state.flags));
        }
        let wanted = state.wanted().map_err(|why| InvalidEntry::Malformed(why.to_owned()))?;
        match wanted.owners.len() {
            0 => return Err(InvalidEntry::NoOwner),
            more if wanted.mode == Mode::Exclusive && more > 1 => {
                return Err(InvalidEntry::ExclusiveOwners(more));
            }
            _ => {}
        }
        let name = match wanted.origin {
            Origin::Opened => OpenNaming::name_of_opened(&*wanted.name, wanted.path.into()),
            _ => space.place.name(&*wanted.name),
        };
        let name = name.map_err(InvalidEntry::Name)?;
        if !name.has_path(wanted.path) && legible(name.path().as_os_str()).0 != wanted.path {
            return Err(InvalidEntry::Path);
        }
        let range = wanted.range.unwrap_or(space.range);
        // Only a directory's files are made: to remove an image in the end would lose it.
        if wanted.origin == Origin::AutoCreated && space.place.directory().is_none() {
            return Err(InvalidEntry::Malformed(
                "only in a directory are files created".to_owned(),
            ));
        }
        let in_memory =
            matches!(space.place, OpenNaming::InMemory) && wanted.origin != Origin::Opened;
        if in_memory != (wanted.origin == Origin::InMemory) || in_memory == wanted.lock_held {
            return Err(InvalidEntry::Malformed("what is held does not fit the naming".to_owned()));
        }
        let file = match in_memory {
            true if wanted.fd == -1 => None,
            true => return Err(InvalidEntry::Number),
            false => Some(self.file(space, &name, &wanted, range)?),
        };
        let Wanted { mode, origin, .. } = wanted;
        let owners = Owners::kept(wanted.owners.iter().copied().map(OwnerId::new));
        Ok(ProvenEntry { name, mode, range, origin, owners, file })
    }

    fn file(
        &mut self,
        space: &Proven,
        name: &Name,
        wanted: &Wanted<'_>,
        range: ByteRange,
    ) -> Result<ProvenFile, InvalidEntry> {
        let number = RawFd::try_from(wanted.fd).ok().filter(|number| *number > 2);
        let number = number.ok_or(InvalidEntry::Number)?;
        if !self.numbers.insert(number) {
            return Err(InvalidEntry::DuplicateDescriptor);
        }
        // SAFETY: nobody closes it meanwhile, says whoever has made this.
        let open = unsafe { descriptor::borrow(number) };
        let (fd, access) = open.ok_or(InvalidEntry::NotOpen)?;
        let status = fs::fstat(fd).map_err(|errno| InvalidEntry::Io(errno.into()))?;
        match status.kind {
            FileKind::Regular | FileKind::BlockDevice => {}
            FileKind::Directory => return Err(InvalidEntry::NotAFile("a directory")),
            FileKind::Fifo => return Err(InvalidEntry::NotAFile("a pipe")),
            FileKind::Socket => return Err(InvalidEntry::NotAFile("a socket")),
            _ => return Err(InvalidEntry::NotAFile("neither a file nor a block device")),
        }
        let id = status.id;
        if wanted.id.is_some_and(|recorded| recorded != id) {
            return Err(InvalidEntry::OtherFile);
        }
        if !self.carries_only(fd, id.dev, (wanted.mode, range)) {
            let locks = self.locks_on(number).map_err(InvalidEntry::Io)?;
            check_locks(&locks, wanted.mode, range, wanted.origin)?;
        }
        if !is_in_directory(name, id, space.listing.as_ref()) {
            let there = name.leads_to(id);
            if !there.map_err(|error| InvalidEntry::Io(error.source))? {
                return Err(InvalidEntry::Replaced);
            }
        }
        let others = self.of_file.entry(id).or_default();
        for &other in &*others {
            match descriptor::same_description(number, other) {
                Some(false) => {}
                Some(true) => return Err(InvalidEntry::SameDescription(other)),
                None => return Err(InvalidEntry::Unproven(other)),
            }
        }
        others.push(number);
        Ok(ProvenFile { number, id, writable: access.read && access.write })
    }

    /// What the descriptor carries, by its fdinfo.
    fn locks_on(&mut self, number: RawFd) -> io::Result<Vec<FdLock>> {
        let info = match self.info.take() {
            Some(info) => info,
            None => OwnFdinfo::open()?,
        };
        self.info.insert(info).locks_on(number)
    }

    /// Whether it is known at once that the description carries this lock and no other. `false`
    /// says nothing.
    fn carries_only(&mut self, fd: BorrowedFd<'_>, dev: u64, lock: (Mode, ByteRange)) -> bool {
        // Elsewhere the file system itself would be asked: it may not know this question, and need
        // not answer at all.
        let local = match self.device {
            Some((known, local)) if known == dev => local,
            _ => local_fs::cannot_hang(fd),
        };
        self.device = Some((dev, local));
        local && carries_only(fd, lock).unwrap_or(false)
    }
}

/// Whether the name is one of a directory's, and the file is in there. `false` says nothing.
///
/// The directory's path led to it when the space was begun, and whether it still does is asked once
/// in the end.
fn is_in_directory(name: &Name, id: FileId, listing: Option<&Listing>) -> bool {
    name.with_path(|path| {
        let LockPath::InDirectory { directory, file, .. } = path else { return false };
        let listed = |listing: &Listing| listing.has(file.to_bytes(), id.ino);
        if directory.device() == id.dev && listing.is_some_and(listed) {
            return true;
        }
        fs::stat_in(directory.as_fd(), file).is_ok_and(|there| there.id == id)
    })
}

/// Whether the description carries this lock and no other, and nobody else has any on the file.
///
/// What the description carries cannot change meanwhile, and its own locks do not overlap: so it
/// does not matter that these are several questions.
fn carries_only(fd: BorrowedFd<'_>, (mode, range): (Mode, ByteRange)) -> io::Result<bool> {
    let none_in = |start, last| match ByteRange::between(start, last) {
        Some(range) => ofd::own_lock(fd, range).map(|lock| lock.is_none()),
        None => Ok(false),
    };
    let before = range.start().checked_sub(1);
    let after = range.len().map(|len| range.start() + len.get());
    Ok(ofd::own_lock(fd, range)? == Some((mode, range))
        && before.map_or(Ok(true), |last| none_in(0, Some(last)))?
        && after.map_or(Ok(true), |start| none_in(start, None))?
        // A record lock of this process, which would go with the descriptor.
        && ofd::in_the_way(fd, Mode::Exclusive, ByteRange::WHOLE_FILE)?.is_none())
}

/// One lock and no other: an OFD lock of this mode and range. Of a caller's open file: that lock,
/// and on other bytes what others have locked through it, such as a QEMU that was given it.
fn check_locks(
    locks: &[FdLock],
    mode: Mode,
    range: ByteRange,
    origin: Origin,
) -> Result<(), InvalidEntry> {
    // A flock belongs to the open file too, and excludes none of ours.
    let mut locks = locks.iter().filter(|lock| lock.kind.excludes());
    if locks.clone().any(|lock| lock.kind == LockKind::Posix) {
        return Err(InvalidEntry::RecordLock);
    }
    if origin == Origin::Opened && locks.clone().any(|lock| lock.is_ofd_over(mode, range)) {
        return Ok(());
    }
    match (locks.next(), locks.next()) {
        (None, _) => Err(InvalidEntry::Unlocked),
        (Some(lock), None) if (lock.mode, lock.range) == (mode, range) => Ok(()),
        _ => Err(InvalidEntry::OtherLock),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    /// Whatever a description carries, what the kernel answers at once and what stands in its
    /// fdinfo is the same.
    #[test]
    fn both_proofs_agree() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options.open(dir.path().join(name)).unwrap()
        };
        let range = |start, last| ByteRange::between(start, last).unwrap();
        let ranges = [
            range(0, Some(0)),
            range(0, Some(9)),
            range(5, Some(9)),
            range(9, None),
            range(0, None),
        ];
        let modes = [Mode::Shared, Mode::Exclusive];
        let wanted: Vec<_> = modes.iter().flat_map(|&m| ranges.map(|r| (m, r))).collect();
        let mut info = OwnFdinfo::open().unwrap();
        let (mut proven, mut known) = (0, true);
        for (at, first) in wanted.iter().enumerate() {
            for second in wanted.iter().map(Some).chain([None]) {
                let file = open(&at.to_string());
                for (mode, range) in [Some(first), second].into_iter().flatten() {
                    assert!(ofd::try_lock(file.as_fd(), *mode, *range).unwrap());
                }
                for &lock in &wanted {
                    let locks = info.locks_on(file.as_raw_fd()).unwrap();
                    let by_info = check_locks(&locks, lock.0, lock.1, Origin::Existing).is_ok();
                    let at_once = carries_only(file.as_fd(), lock);
                    known &= at_once.is_ok();
                    let at_once = at_once.unwrap_or(by_info);
                    assert_eq!(at_once, by_info, "{first:?} {second:?} {lock:?}");
                    proven += usize::from(by_info);
                }
            }
        }
        assert!(proven > 20, "{proven}");
        // Who else has a lock on the file does not make it ours; that of another makes it unsure.
        let (file, other) = (open("other"), open("other"));
        let lock = (Mode::Shared, ByteRange::FIRST);
        assert!(ofd::try_lock(other.as_fd(), lock.0, lock.1).unwrap());
        assert!(!known || !carries_only(file.as_fd(), lock).unwrap());
        assert!(ofd::try_lock(file.as_fd(), lock.0, lock.1).unwrap());
        assert!(!known || !carries_only(file.as_fd(), lock).unwrap());
        ofd::unlock(other.as_fd(), lock.1).unwrap();
        assert!(!known || carries_only(file.as_fd(), lock).unwrap());
    }
}
