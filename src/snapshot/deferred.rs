//! Releases that were deferred when a snapshot was executed, for the new program to make.
//!
//! Documents are given out when a snapshot is taken, and the releases that it defers come later. So
//! the exec writes these into a sealed file in memory, and its number into the environment. A
//! restore takes that file for what it says only if it was inherited and this process wrote it;
//! whatever else is there releases nothing.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::document::Document;
use crate::engine::Name;
use crate::sys;
use crate::sys::memfd::{self, Content, MemoryFile};
use crate::types::OwnerId;

/// The environment variable that has the file's number.
pub(super) const VARIABLE: &str = "LOCKSPACE_RELEASES";

const VERSION: u64 = 1;

/// The deferred releases of one space: of how many holds of each owner, by the resource's name.
pub(super) type Releases = HashMap<OsString, BTreeMap<u64, u32>>;

/// What the file says.
#[derive(Serialize, Deserialize)]
struct State {
    version: u64,
    /// The process that wrote it, and when that was started, in the kernel's ticks.
    pid: u32,
    started: u64,
    /// Of every document of the snapshot, so that each is found among several that are equal.
    spaces: Vec<SpaceReleases>,
}

#[derive(Serialize, Deserialize)]
struct SpaceReleases {
    document: Document,
    /// By names in hexadecimal.
    releases: BTreeMap<String, BTreeMap<u64, u32>>,
}

/// Writes down the releases that were deferred in each document's space; `None` if there are none.
pub(super) fn write(
    documents: &[Document],
    deferred: Vec<Vec<(Arc<Name>, OwnerId, u32)>>,
    started: u64,
) -> io::Result<Option<MemoryFile>> {
    if deferred.iter().all(Vec::is_empty) {
        return Ok(None);
    }
    let spaces = documents.iter().zip(deferred).map(|(document, deferred)| {
        let mut releases = BTreeMap::<_, BTreeMap<_, _>>::new();
        for (name, owner, count) in deferred {
            let of_name = releases.entry(hex::encode(name.text().as_bytes())).or_default();
            *of_name.entry(owner.get()).or_default() += count;
        }
        SpaceReleases { document: document.clone(), releases }
    });
    let pid = std::process::id();
    let state = State { version: VERSION, pid, started, spaces: spaces.collect() };
    let bytes = serde_json::to_vec(&state)?;
    MemoryFile::new(Content::Releases, &bytes).map(Some)
}

/// What the program before this one has deferred.
pub(super) struct Deferred {
    number: RawFd,
    spaces: Vec<SpaceReleases>,
}

impl Deferred {
    /// Reads what was inherited; `None` if nothing was, or it is not understood.
    pub(super) fn find() -> Option<Self> {
        let number = std::env::var_os(VARIABLE)?.to_str()?.parse().ok()?;
        let bytes = memfd::read(Content::Releases, number).ok()?;
        let State { version, pid, started, spaces } = serde_json::from_slice(&bytes).ok()?;
        let own = (VERSION, std::process::id(), sys::process::start_time().ok()?);
        ((version, pid, started) == own).then_some(Self { number, spaces })
    }

    /// The releases in the space of this document, which are told once.
    pub(super) fn releases_in(&mut self, document: &Document) -> Releases {
        let at = self.spaces.iter().position(|space| space.document == *document);
        let Some(at) = at else { return Releases::new() };
        let releases = self.spaces.remove(at).releases.into_iter();
        let by_name = releases.filter_map(|(name, owners)| {
            Some((OsString::from_vec(hex::decode(name).ok()?), owners))
        });
        by_name.collect()
    }

    /// They are made: closes the file.
    pub(super) fn forget(self) {
        let _ = memfd::take(Content::Releases, self.number);
    }
}

/// Whether these are releases of all of its holds.
pub(super) fn release_all_of(releases: &Releases, name: &OsStr, holds: usize) -> bool {
    let released = releases.get(name).into_iter().flat_map(BTreeMap::values);
    released.map(|count| *count as usize).sum::<usize>() >= holds
}
