//! State documents that are damaged, forged or out of date: each is refused with an error that
//! names the entry, and nothing at all has changed then.

/// Says `matches!` of a reason.
macro_rules! is {
    ($($pattern:tt)*) => { |why: &InvalidEntry| matches!(why, $($pattern)*) };
}

mod damaged;
mod descriptors;
mod documents;
mod entries;
mod releases;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::support::alone::alone_in_child;
use crate::support::locks::{ofd_lock, unlock_ofd};
use crate::support::spaces::{A, B};
use crate::support::state::{
    Picture, at, closes_on_exec, leave_behind, name_of, numbers_in, restore,
};
use lockspace::snapshot::{InvalidEntry, RestoreError};
use lockspace::{ByteRange, LockSpace, Naming, Request, Wait};
use serde_json::Value;
use tempfile::TempDir;

/// Three spaces that an exec has left behind, and their documents. Lives in a forked child.
struct World {
    dir: TempDir,
    documents: Value,
}

/// The documents, and the entries of the first, by what they are.
const DIRECTORY: usize = 0;
const DIRECT: usize = 1;
const IN_MEMORY: usize = 2;
const EXCLUSIVE: usize = 0;
const AUTO_CREATED: usize = 1;
const SHARED: usize = 2;

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let locks = LockSpace::open(Naming::md5(dir.path().join("locks"))).unwrap();
        let take = |space: &LockSpace, owner, request| {
            space.acquire(owner, request, Wait::NO).unwrap().keep();
        };
        locks.create("a").unwrap();
        take(&locks, A, Request::exclusive("a"));
        take(&locks, A, Request::exclusive("b").auto_create());
        for owner in [A, B, B] {
            take(&locks, owner, Request::shared("c").auto_create());
        }
        let direct = LockSpace::builder(Naming::direct());
        let direct = direct.range(ByteRange::WHOLE_FILE).open().unwrap();
        for image in ["d.raw", "e.raw"] {
            fs::write(dir.path().join(image), "precious").unwrap();
            take(&direct, A, Request::exclusive(dir.path().join(image)));
        }
        let memory = LockSpace::open(Naming::in_memory()).unwrap();
        take(&memory, A, Request::exclusive("m"));
        let documents = leave_behind(vec![locks, direct, memory], Vec::new());
        Self { dir, documents }
    }

    fn edited(&self, edit: impl FnOnce(&mut Value)) -> Value {
        let mut documents = self.documents.clone();
        edit(&mut documents);
        documents
    }

    fn number(&self, document: usize, entry: usize) -> i32 {
        let number = &self.documents[document]["resources"][entry]["fd"];
        number.as_i64().unwrap().try_into().unwrap()
    }

    fn path(&self, document: usize, entry: usize) -> PathBuf {
        self.documents[document]["resources"][entry]["path"].as_str().unwrap().into()
    }

    /// Fails unless the documents are refused for this reason, the error names this place, and
    /// nothing has changed.
    #[track_caller]
    fn refuses(
        &self,
        documents: &Value,
        (document, entry): (usize, Option<usize>),
        why: impl FnOnce(&InvalidEntry) -> bool,
    ) {
        let error = self.refused(documents).expect("it is adopted");
        assert!(why(&error.why), "for another reason: {error} ({error:?})");
        assert_names(&error, documents, document, entry);
    }

    /// As `refuses`, about one entry.
    #[track_caller]
    fn refuses_entry(
        &self,
        (document, entry): (usize, usize),
        edit: impl FnOnce(&mut Value),
        why: impl FnOnce(&InvalidEntry) -> bool,
    ) {
        let documents = self.edited(|all| edit(&mut all[document]["resources"][entry]));
        self.refuses(&documents, (document, Some(entry)), why);
    }

    /// As `refuses`, about a document itself.
    #[track_caller]
    fn refuses_document(
        &self,
        document: usize,
        edit: impl FnOnce(&mut Value),
        why: impl FnOnce(&InvalidEntry) -> bool,
    ) {
        let documents = self.edited(|all| edit(&mut all[document]));
        self.refuses(&documents, (document, None), why);
    }

    /// As `refuses_entry`, where a number takes the place of the entry's own.
    #[track_caller]
    fn refuses_number(&self, number: impl Into<Value>, why: impl FnOnce(&InvalidEntry) -> bool) {
        let number = number.into();
        self.refuses_entry((DIRECTORY, EXCLUSIVE), |entry| entry["fd"] = number, why);
    }

    /// The error, if there is one, once it is sure that nothing has changed.
    #[track_caller]
    fn refused(&self, documents: &Value) -> Option<RestoreError> {
        let before = Picture::take(self.dir.path());
        let restored = restore(documents);
        let error = restored.map(std::mem::forget).err()?;
        assert_eq!(Picture::take(self.dir.path()), before, "something has changed: {error}");
        Some(error)
    }

    /// What is left behind was good all the time: it is adopted.
    #[track_caller]
    fn adopt(self) {
        let spaces = restore(&self.documents).unwrap();
        let held: Vec<_> = spaces.iter().map(|space| space.list().len()).collect();
        assert_eq!(held, [3, 2, 1]);
        assert!(numbers_in(&self.documents).into_iter().all(closes_on_exec));
        drop(spaces);
        let left = fs::read_dir(self.dir.path().join("locks")).unwrap().count();
        assert_eq!(left, 1, "only `a` was there before");
    }
}

#[track_caller]
fn assert_names(error: &RestoreError, documents: &Value, document: usize, entry: Option<usize>) {
    assert_eq!((error.document, error.entry), (document, entry), "{error}");
    let place = entry.map(|entry| &documents[document]["resources"][entry]);
    let legible = |entry: &Value| Some(entry["name"].as_str()?.as_bytes().to_vec());
    let name = place.and_then(|entry| name_of(entry).or_else(|| legible(entry)));
    assert_eq!(error.name.as_ref().map(|name| name.as_bytes()), name.as_deref(), "{error}");
    assert_eq!(error.fd, place.and_then(|entry| entry["fd"].as_i64()), "{error}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("document {document}")), "{text}");
    assert!(entry.is_none_or(|entry| text.contains(&format!(", entry {entry}"))), "{text}");
}

/// Runs a closure in a child with a world that is good before and after it.
#[track_caller]
fn in_world(work: impl FnOnce(&World)) {
    alone_in_child(|| {
        let world = World::new();
        work(&world);
        world.adopt();
    });
}

/// Gives the descriptor this lock, and no other.
fn ofd_lock_only(number: i32, start: i64, len: i64) {
    unlock_ofd(at(number), 0, 0).unwrap();
    ofd_lock(at(number), true, start, len).unwrap();
}
