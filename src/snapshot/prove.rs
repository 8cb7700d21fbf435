//! Proof of what documents say, before anything of it is believed.

use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;

use hashbrown::HashSet;
use serde_json::Value;

use super::deferred::{Deferred, Releases, release_all_of};
use super::document::{
    Document, Parsed, ResolvedEntry, ResourceState, fd_of, lossy, malformed, name_of,
};
use super::error::{InvalidEntry, RestoreError};
use crate::core::{Process, RestoredSpace};
use crate::engine::{Name, OpenNaming};
use crate::error::OpenError;
use crate::sys;
use crate::sys::inherited::{InheritedFd, InheritedFds, NotInherited};
use crate::table::Owners;
use crate::transfer::{self, DescriptionSet, ExpectedLock};
use crate::types::{ByteRange, FileId, Mode, Naming, Origin, OwnerId};

/// A space whose entries are proven.
pub(super) struct ProvenSpace {
    pub(super) space: RestoredSpace,
    pub(super) entries: Vec<ProvenEntry>,
    /// Holds that are to be released at once.
    pub(super) releases: Releases,
}

pub(super) struct ProvenEntry {
    pub(super) name: Arc<Name>,
    pub(super) mode: Mode,
    pub(super) range: ByteRange,
    pub(super) origin: Origin,
    pub(super) owners: Owners,
    /// `None` in memory.
    pub(super) file: Option<ProvenFile>,
}

/// A descriptor that is proven to carry its entry's lock.
pub(super) struct ProvenFile {
    pub(super) fd: InheritedFd,
    pub(super) id: FileId,
}

/// Proves what can be proven of the documents, and tells why the rest cannot. Changes nothing.
pub(super) fn prove<'a>(
    inherited: InheritedFds,
    mut deferred: Option<&mut Deferred>,
    documents: impl IntoIterator<Item = &'a Document>,
) -> (Vec<ProvenSpace>, Vec<RestoreError>) {
    let mut prover = Prover {
        inherited,
        locks: transfer::Prover::default(),
        descriptions: DescriptionSet::default(),
        failed: Vec::new(),
    };
    let mut spaces = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let releases = deferred.as_mut().map(|deferred| deferred.releases_in(document));
        match prover.document(index, document, releases.unwrap_or_default()) {
            Ok(space) => spaces.push(space),
            Err(why) => prover.failed.push(RestoreError {
                document: index,
                entry: None,
                name: None,
                fd: None,
                why,
            }),
        }
    }
    (spaces, prover.failed)
}

struct Prover {
    inherited: InheritedFds,
    locks: transfer::Prover,
    descriptions: DescriptionSet,
    failed: Vec<RestoreError>,
}

impl Prover {
    fn document(
        &mut self,
        index: usize,
        document: &Document,
        releases: Releases,
    ) -> Result<ProvenSpace, InvalidEntry> {
        let json = document.json();
        let parsed = Parsed::parse(&json)?;
        let entries = parsed.entries;
        let space = open_space(parsed)?;
        let mut proven_entries = Vec::with_capacity(entries.len());
        self.inherited.reserve(entries.len());
        self.descriptions.reserve(entries.len());
        let mut names = HashSet::with_capacity(entries.len());
        for (at, entry) in entries.iter().enumerate() {
            let proven = self.entry(&space, &releases, entry).and_then(|proven| {
                match names.insert(proven.name.text().to_owned()) {
                    true => Ok(proven),
                    false => Err(InvalidEntry::DuplicateName),
                }
            });
            match proven {
                Ok(proven) => proven_entries.push(proven),
                Err(why) => self.failed.push(RestoreError {
                    document: index,
                    entry: Some(at),
                    name: name_of(entry),
                    fd: fd_of(entry),
                    why,
                }),
            }
        }
        Ok(ProvenSpace { space, entries: proven_entries, releases })
    }

    fn entry(
        &mut self,
        space: &RestoredSpace,
        releases: &Releases,
        json: &Value,
    ) -> Result<ProvenEntry, InvalidEntry> {
        let state = ResourceState::parse(json)?;
        let entry = state.resolve()?;
        let name = match entry.origin {
            Origin::Opened => OpenNaming::name_of_opened(&*entry.name, entry.path.into()),
            _ => space.naming.name(&*entry.name),
        };
        let name = name.map_err(InvalidEntry::Name)?;
        let path = name.path();
        if path.as_os_str() != entry.path && lossy(path.as_os_str()).0 != entry.path {
            return Err(InvalidEntry::Path);
        }
        // Only a directory's files are made: to remove an image in the end would lose it.
        if entry.origin == Origin::AutoCreated && space.naming.directory().is_none() {
            return Err(malformed("only in a directory are files created"));
        }
        let in_memory =
            matches!(space.naming, OpenNaming::InMemory) && entry.origin != Origin::Opened;
        if in_memory != (entry.origin == Origin::InMemory) || in_memory == entry.lock_held {
            return Err(malformed("what is held does not fit the naming"));
        }
        let range = entry.range.unwrap_or(space.range);
        let file = match in_memory {
            true if entry.fd == -1 => None,
            true => return Err(InvalidEntry::Number),
            false => {
                // What is released may have been removed.
                let is_held = !release_all_of(releases, name.text(), entry.owners.len());
                Some(self.file(is_held.then_some(&name), &entry, range)?)
            }
        };
        let owners = Owners::kept(entry.owners.iter().copied().map(OwnerId::new));
        Ok(ProvenEntry { name, mode: entry.mode, range, origin: entry.origin, owners, file })
    }

    /// `name` must lead to the file, if it is given.
    fn file(
        &mut self,
        name: Option<&Arc<Name>>,
        entry: &ResolvedEntry<'_>,
        range: ByteRange,
    ) -> Result<ProvenFile, InvalidEntry> {
        let number = RawFd::try_from(entry.fd).ok().filter(|number| *number > 2);
        let number = number.ok_or(InvalidEntry::Number)?;
        let fd = self.inherited.claim(number).map_err(|why| match why {
            NotInherited::Claimed => InvalidEntry::DuplicateDescriptor,
            NotInherited::NotOpen => InvalidEntry::NotOpen,
        })?;
        let expected = ExpectedLock {
            file: entry.id,
            mode: entry.mode,
            range,
            others_may_lock: entry.origin == Origin::Opened,
        };
        let id = self.locks.prove(fd.as_fd(), &expected)?;
        let leads_there = name.map_or(Ok(true), |name| name.leads_to(id));
        if !leads_there.map_err(|error| InvalidEntry::Io(error.source))? {
            return Err(InvalidEntry::Replaced);
        }
        self.descriptions.insert(number, id)?;
        Ok(ProvenFile { fd, id })
    }
}

/// The space that a document is of, without its entries.
fn open_space(document: Parsed<'_>) -> Result<RestoredSpace, InvalidEntry> {
    let directory = document.directory()?;
    let process = Process::current().map_err(InvalidEntry::Io)?;
    let open = |naming: Naming| {
        naming.reopen().map_err(|error| InvalidEntry::Directory(OpenError::from_io(error)))
    };
    let Some(extension) = document.extension else {
        // libvirt's: the directory's files have the resources' names.
        let naming = open(directory.map_or_else(Naming::direct, Naming::verbatim))?;
        let (range, file_mode) = (ByteRange::FIRST, 0o600);
        return Ok(RestoredSpace { process, naming, range, file_mode, stale_retries: 0 });
    };
    let (pid, started) = (extension.pid, extension.started);
    let own_start = sys::process::start_time().map_err(InvalidEntry::Io)?;
    if (pid, started) != (std::process::id(), own_start) {
        return Err(InvalidEntry::OtherProcess { pid, started });
    }
    let naming = Naming::from_word(&extension.naming, directory);
    let naming = open(naming.ok_or(InvalidEntry::Naming(extension.naming))?)?;
    let id = naming.directory().map(|directory| (directory.id().dev, directory.id().ino));
    if id != extension.directory {
        return Err(InvalidEntry::DirectoryReplaced);
    }
    Ok(RestoredSpace {
        process,
        naming,
        range: extension.range.0,
        file_mode: extension.file_mode,
        stale_retries: extension.stale_retries,
    })
}
