//! State documents in tests: what a restore is given, and what it must not change.
//!
//! A restore wants descriptors that nobody owns. A test gets them in a forked child: it holds what
//! it likes there, takes a snapshot, and forgets everything ([`leave_behind`]), as an exec does.

#![allow(dead_code, reason = "each test binary uses a part, and so does the fuzz target")]
#![allow(unsafe_code, reason = "descriptors by number: that is what a state document names")]

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lockspace::snapshot::{self, Document, RestoreError, Snapshot};
use lockspace::{Lease, LockSpace};
use serde_json::{Value, json};

/// Everything that a refused restore must leave as it is: the descriptors of this process, with
/// their files, flags and locks, and a tree of files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Picture {
    descriptors: BTreeMap<i32, String>,
    files: BTreeMap<PathBuf, String>,
}

impl Picture {
    pub(crate) fn take(tree: &Path) -> Self {
        let mut files = BTreeMap::new();
        add_files(tree, &mut files);
        Self { descriptors: descriptors(), files }
    }

    pub(crate) fn numbers(&self) -> impl Iterator<Item = i32> {
        self.descriptors.keys().copied()
    }
}

/// Each open descriptor: where it leads, its position and flags (close-on-exec among them), and
/// its locks.
pub(crate) fn descriptors() -> BTreeMap<i32, String> {
    let numbers = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_str().unwrap().parse::<i32>().unwrap());
    let numbers: Vec<_> = numbers.collect();
    let seen = numbers.into_iter().filter_map(|number| {
        // The listing's own descriptor is closed by now.
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
        let link = fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
        // Others write to the standard streams, which may be a file.
        let others = |line: &&str| number > 2 || !line.starts_with("pos:");
        let info: Vec<_> = info.lines().filter(others).collect();
        Some((number, format!("{} {}", link.display(), info.join("\n"))))
    });
    seen.collect()
}

fn add_files(path: &Path, files: &mut BTreeMap<PathBuf, String>) {
    let Ok(meta) = fs::symlink_metadata(path) else { return };
    let (inode, mode, links) = (meta.ino(), meta.mode(), meta.nlink());
    let (size, when, nanos) = (meta.size(), meta.mtime(), meta.mtime_nsec());
    let text = format!("{inode} {mode:o} {links} {size} {when}.{nanos}");
    files.insert(path.to_owned(), text);
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            add_files(&entry.unwrap().path(), files);
        }
    }
}

/// A document of another program, or another version.
pub(crate) fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// What an exec would leave: the descriptors, their locks, and an array of documents.
pub(crate) fn leave_behind(spaces: Vec<LockSpace>, leases: Vec<Lease>) -> Value {
    let snapshot = Snapshot::take(&spaces).unwrap();
    let documents = json!(snapshot.documents());
    std::mem::forget((snapshot, spaces, leases));
    documents
}

/// Reads documents as a program does that got them as text.
pub(crate) fn documents_in(array: &Value) -> Vec<Document> {
    serde_json::from_str(&array.to_string()).unwrap()
}

/// Restores in a process where nobody else has or takes descriptors: a forked child, of which only
/// this thread is left.
pub(crate) fn restore(array: &Value) -> Result<Vec<LockSpace>, RestoreError> {
    // SAFETY: what the documents name was left behind; nobody else owns it.
    unsafe { snapshot::restore(&documents_in(array)) }
}

/// As [`restore`], what can be.
pub(crate) fn restore_what_verifies(array: &Value) -> (Vec<LockSpace>, Vec<RestoreError>) {
    // SAFETY: as above.
    unsafe { snapshot::restore_what_verifies(&documents_in(array)) }
}

/// A descriptor that nobody owns, as an exec leaves it.
pub(crate) fn disown(fd: impl Into<OwnedFd>) -> i32 {
    fd.into().into_raw_fd()
}

/// A descriptor that is open, by its number. It must stay open for as long as this is used.
pub(crate) fn at(number: i32) -> BorrowedFd<'static> {
    // SAFETY: says the caller.
    unsafe { BorrowedFd::borrow_raw(number) }
}

/// Closes what nobody owns.
pub(crate) fn close(number: i32) {
    // SAFETY: says the caller.
    unsafe { libc::close(number) };
}

/// Puts a descriptor at a number that nobody uses.
pub(crate) fn put_at(fd: impl Into<OwnedFd>, number: i32) {
    let fd = fd.into();
    // SAFETY: integers. The numbers are the test's own choice.
    unsafe {
        assert_eq!(libc::fcntl(number, libc::F_GETFD), -1, "{number} is in use");
        assert_eq!(libc::dup2(std::os::fd::AsRawFd::as_raw_fd(&fd), number), number);
    }
}

/// Whether the descriptor closes on exec.
pub(crate) fn closes_on_exec(number: i32) -> bool {
    // SAFETY: integers.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    assert_ne!(flags, -1, "{number} is not open");
    flags & libc::FD_CLOEXEC != 0
}

/// The numbers that documents name.
pub(crate) fn numbers_in(array: &Value) -> Vec<i32> {
    let entries = array.as_array().unwrap().iter().flat_map(|d| d["resources"].as_array().unwrap());
    let numbers = entries.filter_map(|entry| i32::try_from(entry["fd"].as_i64()?).ok());
    numbers.filter(|&number| number >= 0).collect()
}

/// Whether documents are the good ones, or less of them: whole documents or entries may be missing,
/// and what only an owner, a default or a counter is may be another. All else must be as it was.
/// Written from the format's description, to be compared with what a restore says.
pub(crate) fn is_good_state(documents: &Value, good: &Value) -> bool {
    let mut numbers = Vec::new();
    let mut all = documents.as_array().into_iter().flatten();
    documents.is_array() && all.all(|document| is_good_document(document, good, &mut numbers))
}

fn is_good_document(document: &Value, good: &Value, numbers: &mut Vec<i64>) -> bool {
    let Some(entries) = document["resources"].as_array() else { return false };
    let (directory, more) = (document.get("directory"), document.get("lockspace"));
    let all = good.as_array().into_iter().flatten();
    let mut originals = all.filter(|good| {
        let ours = &good["lockspace"];
        directory == good.get("directory")
            && match more {
                Some(more) => {
                    let same = ["version", "naming", "directory", "pid", "started"];
                    same.iter().all(|key| more.get(key).unwrap_or(&Value::Null) == &ours[key])
                        && is_range(&more["range"])
                        && more["fileMode"].as_u64().is_some_and(|mode| u32::try_from(mode).is_ok())
                        && more["staleRetries"].is_u64()
                        && more["hex"] == ours["hex"]
                }
                None => {
                    entries.is_empty() || ours["naming"] == "direct" || ours["naming"] == "verbatim"
                }
            }
    });
    let libvirts_of_nothing = more.is_none()
        && entries.is_empty()
        && directory.is_none_or(|path| path.as_str().is_some_and(|path| Path::new(path).is_dir()));
    let Some(own) = originals.next() else { return libvirts_of_nothing };
    let range = more.map_or(json!([0, 1]), |more| more["range"].clone());
    let mut names = Vec::new();
    entries.iter().all(|entry| {
        let mut originals = good.as_array().into_iter().flatten().flat_map(|document| {
            let entries = document["resources"].as_array().into_iter().flatten();
            entries.map(move |entry| (entry, std::ptr::eq(document, own)))
        });
        let naming = own["lockspace"]["naming"].as_str().unwrap_or_default();
        let is_good = originals
            .any(|(original, is_own)| is_good_entry(entry, original, &range, (naming, is_own)));
        let (name, number) = (name_of(entry), entry["fd"].as_i64().unwrap_or(0));
        let again = names.contains(&name) || number >= 0 && numbers.contains(&number);
        names.push(name);
        numbers.push(number);
        is_good && !again
    })
}

/// Whether an entry may stand for what an original one is, in a space of this naming, which may be
/// the original's own or another. Only the lock can be proven: not whose it is, and not where a
/// caller's open file came from.
fn is_good_entry(
    entry: &Value,
    original: &Value,
    range: &Value,
    (naming, is_own): (&str, bool),
) -> bool {
    let (more, ours) = (&entry["lockspace"], &original["lockspace"]);
    let (Some(name), Some(was)) = (name_of(entry), name_of(original)) else { return false };
    let Some(owners) = entry["owners"].as_array() else { return false };
    let Some(flags) = entry["flags"].as_u64().filter(|flags| *flags < 4) else { return false };
    let same_in = |one: &Value, other: &Value, keys: &[&str]| {
        keys.iter().all(|key| one.get(key).is_some() && one[key] == other[key])
    };
    let origin = match (more, flags & 2) {
        (Value::Null, 0) => "existing",
        (Value::Null, _) => "auto-created",
        (more, _) => more["origin"].as_str().unwrap_or_default(),
    };
    let any_name = !name.is_empty() && name.len() < 4096 && !name.contains(&0);
    let same_file = match more {
        Value::Null => range == &ours["range"],
        more => same_in(more, ours, &["range", "device", "inode"]),
    };
    let in_memory = ours["origin"] == "in-memory";
    same_in(entry, original, &["fd", "lockHeld"])
        && entry["path"].is_string()
        && owners.iter().all(Value::is_u64)
        && (owners.len() == 1 || flags & 1 != 0 && !owners.is_empty())
        && (in_memory || original["flags"].as_u64().is_some_and(|was| was & 1 == flags & 1))
        && (flags & 2 != 0) == (origin == "auto-created")
        && match (origin, naming) {
            ("in-memory", "in-memory") => {
                let numbers = more["device"].is_u64() && more["inode"].is_u64();
                in_memory && any_name && entry["path"] == "" && numbers && is_range(&more["range"])
            }
            ("opened", _) => !in_memory && any_name && same_file,
            ("existing", "direct") => {
                !in_memory
                    && same_file
                    && entry["path"] == original["path"]
                    && entry["path"].as_str().is_some_and(|path| path.as_bytes() == name)
            }
            ("existing" | "auto-created", "md5" | "sha256" | "verbatim") => {
                is_own && same_file && name == was && entry["path"] == original["path"]
            }
            _ => false,
        }
}

/// The name's bytes.
pub(crate) fn name_of(entry: &Value) -> Option<Vec<u8>> {
    let legible = entry["name"].as_str()?.as_bytes().to_vec();
    match &entry["lockspace"]["hex"] {
        Value::Null => Some(legible),
        Value::String(hex) if hex.len().is_multiple_of(2) && hex.is_ascii() => (0..hex.len())
            .step_by(2)
            .map(|at| {
                u8::from_str_radix(&hex[at..at + 2], 16)
                    .ok()
                    .filter(|_| !hex[at..].starts_with('+'))
            })
            .collect(),
        _ => None,
    }
}

/// `[start, length]`, or `[start, null]`, of bytes that there can be.
fn is_range(range: &Value) -> bool {
    const LAST: u64 = i64::MAX as u64;
    let Some([start, len]) = range.as_array().map(Vec::as_slice) else { return false };
    // No file has the very last byte, so nothing begins there; and who removes a file locks all but
    // that byte, so no hold does.
    let Some(start) = start.as_u64().filter(|start| *start < LAST) else { return false };
    let fits = |len: u64| len > 0 && len - 1 <= LAST - start && (start, len) != (0, LAST);
    len.is_null() || len.as_u64().is_some_and(fits)
}
