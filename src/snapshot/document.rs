//! State documents: libvirt's lockspace object, and what that leaves out.
//!
//! ```json
//! { "directory": "/run/vmm/locks",
//!   "resources": [
//!     { "name": "/img/a.qcow2", "path": "/run/vmm/locks/5f3c…", "fd": 14, "lockHeld": true,
//!       "flags": 2, "owners": [4711],
//!       "lockspace": { "range": [0, 1], "device": 64768, "inode": 12, "origin": "auto-created" } } ],
//!   "lockspace": { "version": 1, "naming": "md5", "range": [0, 1], "fileMode": 384,
//!                  "directory": [64768, 2], "staleRetries": 0, "pid": 30199, "started": 812 } }
//! ```
//!
//! What libvirt does not know stands under the key `lockspace`, which its reader skips. An owner
//! stands in `owners` once for each of its holds. A name or a directory that is not UTF-8 stands
//! there with replacement characters, and exactly, in hexadecimal, as `hex` under our key. So does a
//! name of `Naming::sha256`: its `name` is the SHA-256 of it, by which libvirt knows the resource.
//!
//! A document that was read is kept as the JSON that it is, and each entry is parsed when it is
//! restored: so one malformed entry does not make the others unreadable, and a document that passes
//! through a program is written as it was read.
//!
//! Nothing here makes a system call.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroU64;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use super::error::InvalidEntry;
use crate::types::{ByteRange, FileId, Mode, Origin};

/// The version of what stands under our key.
pub(super) const VERSION: u64 = 1;

/// libvirt's `VIR_LOCK_SPACE_ACQUIRE_SHARED` and `…_AUTOCREATE`.
pub(super) const SHARED: u64 = 1;
pub(super) const AUTO_CREATED: u64 = 2;

/// The state of one space, to be put into a program's own state: it serializes as libvirt's
/// lockspace object. What it says is checked when it is restored, not before.
///
/// ```
/// use lockspace::snapshot::Document;
///
/// // A lockspace object of libvirt's lock daemon.
/// let document: Document = serde_json::from_str(r#"{ "resources": [] }"#)?;
/// assert_eq!(serde_json::to_string(&document)?, r#"{"resources":[]}"#);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Document(Arc<Content>);

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Content {
    /// What this program has written: with its keys in libvirt's order.
    Written(SpaceState),
    /// What was read, whatever it is.
    Read(Value),
}

impl Document {
    pub(super) fn new(state: SpaceState) -> Self {
        Self(Arc::new(Content::Written(state)))
    }

    /// The document as JSON.
    pub(super) fn json(&self) -> Cow<'_, Value> {
        match &*self.0 {
            // Numbers, strings, and keys that are strings: it cannot fail.
            Content::Written(state) => Cow::Owned(serde_json::to_value(state).unwrap_or_default()),
            Content::Read(json) => Cow::Borrowed(json),
        }
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Arc::new(Content::Read(Value::deserialize(deserializer)?))))
    }
}

impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        self.json() == other.json()
    }
}

/// A space.
#[derive(Debug, Serialize)]
pub(super) struct SpaceState {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) directory: Option<String>,
    pub(super) resources: Vec<ResourceState<'static>>,
    pub(super) lockspace: SpaceExtension,
}

/// What libvirt does not say of a space.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SpaceExtension {
    pub(super) version: u64,
    pub(super) naming: String,
    pub(super) range: RangeState,
    pub(super) file_mode: u32,
    /// Device and inode of the directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) directory: Option<(u64, u64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hex: Option<String>,
    pub(super) stale_retries: u64,
    /// The process that wrote it, and when that was started, in the kernel's ticks.
    pub(super) pid: u32,
    pub(super) started: u64,
}

/// A resource.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ResourceState<'a> {
    #[serde(borrow)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) path: Cow<'a, str>,
    /// -1 in memory.
    pub(super) fd: i64,
    pub(super) lock_held: bool,
    pub(super) flags: u64,
    pub(super) owners: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) lockspace: Option<ResourceExtension>,
}

/// What libvirt does not say of a resource.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ResourceExtension {
    pub(super) range: RangeState,
    pub(super) device: u64,
    pub(super) inode: u64,
    #[serde(with = "OriginState")]
    pub(super) origin: Origin,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hex: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Origin", rename_all = "kebab-case")]
enum OriginState {
    Existing,
    AutoCreated,
    Opened,
    InMemory,
}

/// The first byte, and how many; `null` for all that follow.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(try_from = "(u64, Option<NonZeroU64>)", into = "(u64, Option<NonZeroU64>)")]
pub(super) struct RangeState(pub(super) ByteRange);

impl From<RangeState> for (u64, Option<NonZeroU64>) {
    fn from(RangeState(range): RangeState) -> Self {
        (range.start(), range.len())
    }
}

impl TryFrom<(u64, Option<NonZeroU64>)> for RangeState {
    type Error = &'static str;

    fn try_from((start, len): (u64, Option<NonZeroU64>)) -> Result<Self, Self::Error> {
        ByteRange::recorded(start, len).map(Self).ok_or("a range that no hold can have")
    }
}

/// A text that may not be UTF-8, as JSON can hold it: with replacement characters, and in
/// hexadecimal if it needed any.
pub(super) fn lossy(text: &OsStr) -> (String, Option<String>) {
    match text.to_str() {
        Some(text) => (text.to_owned(), None),
        None => (text.to_string_lossy().into_owned(), Some(hex::encode(text.as_bytes()))),
    }
}

/// The text that [`lossy`] was given.
pub(super) fn exact_bytes<'a>(
    lossy: &'a str,
    hex: Option<&str>,
) -> Result<Cow<'a, OsStr>, InvalidEntry> {
    match hex.map(hex::decode) {
        None => Ok(Cow::Borrowed(lossy.as_ref())),
        Some(Ok(bytes)) => Ok(Cow::Owned(OsString::from_vec(bytes))),
        Some(Err(error)) => Err(InvalidEntry::Malformed(format!("`hex`: {error}"))),
    }
}

/// A document that was parsed, but for its entries.
pub(super) struct Parsed<'a> {
    pub(super) directory: Option<&'a Value>,
    /// `None` in a document of libvirt's.
    pub(super) extension: Option<SpaceExtension>,
    pub(super) entries: &'a [Value],
}

impl<'a> Parsed<'a> {
    pub(super) fn parse(document: &'a Value) -> Result<Self, InvalidEntry> {
        let entries = document.get("resources").and_then(Value::as_array);
        let entries = entries.ok_or_else(|| malformed("no array `resources`"))?;
        let extension = document.get("lockspace").map(SpaceExtension::parse).transpose()?;
        Ok(Self { directory: document.get("directory"), extension, entries })
    }

    /// The path of the directory, if there is one.
    pub(super) fn directory(&self) -> Result<Option<PathBuf>, InvalidEntry> {
        let hex = self.extension.as_ref().and_then(|extension| extension.hex.as_deref());
        match self.directory {
            None => Ok(None),
            Some(Value::String(path)) => Ok(Some(PathBuf::from(&*exact_bytes(path, hex)?))),
            Some(_) => Err(malformed("`directory` is not a string")),
        }
    }
}

impl SpaceExtension {
    fn parse(json: &Value) -> Result<Self, InvalidEntry> {
        match json.get("version").and_then(Value::as_u64) {
            Some(VERSION) => Self::deserialize(json).map_err(malformed),
            Some(later) => Err(InvalidEntry::Version(later)),
            None => Err(malformed("no version")),
        }
    }
}

/// What an entry asks to be restored.
#[derive(Debug)]
pub(super) struct ResolvedEntry<'a> {
    pub(super) name: Cow<'a, OsStr>,
    pub(super) path: &'a str,
    pub(super) fd: i64,
    pub(super) lock_held: bool,
    pub(super) mode: Mode,
    pub(super) origin: Origin,
    /// `None` in a document of libvirt's.
    pub(super) range: Option<ByteRange>,
    /// `None` in a document of libvirt's.
    pub(super) id: Option<FileId>,
    pub(super) owners: &'a [u64],
}

impl<'a> ResourceState<'a> {
    pub(super) fn parse(json: &'a Value) -> Result<Self, InvalidEntry> {
        Self::deserialize(json).map_err(malformed)
    }

    /// Checks what an entry says by itself, without a look at the descriptor or the space.
    pub(super) fn resolve(&self) -> Result<ResolvedEntry<'_>, InvalidEntry> {
        if self.flags & !(SHARED | AUTO_CREATED) != 0 {
            return Err(InvalidEntry::Flags(self.flags));
        }
        let extension = self.lockspace.as_ref();
        let auto_created = self.flags & AUTO_CREATED != 0;
        let origin = match extension {
            Some(extension) => extension.origin,
            None if auto_created => Origin::AutoCreated,
            None => Origin::Existing,
        };
        if auto_created != (origin == Origin::AutoCreated) {
            return Err(malformed("its flags and its origin disagree"));
        }
        let mode = if self.flags & SHARED != 0 { Mode::Shared } else { Mode::Exclusive };
        match self.owners.len() {
            0 => return Err(InvalidEntry::NoOwner),
            more if mode == Mode::Exclusive && more > 1 => {
                return Err(InvalidEntry::ExclusiveOwners(more));
            }
            _ => {}
        }
        Ok(ResolvedEntry {
            name: exact_bytes(&self.name, extension.and_then(|more| more.hex.as_deref()))?,
            path: &self.path,
            fd: self.fd,
            lock_held: self.lock_held,
            mode,
            origin,
            range: extension.map(|more| more.range.0),
            id: extension.map(|more| FileId { dev: more.device, ino: more.inode }),
            owners: &self.owners,
        })
    }
}

/// The name of an entry, exactly if that can be read.
pub(super) fn name_of(entry: &Value) -> Option<OsString> {
    let name = entry.get("name")?.as_str()?;
    let hex = entry.get("lockspace").and_then(|more| more.get("hex")?.as_str());
    Some(exact_bytes(name, hex).map_or_else(|_| name.into(), Cow::into_owned))
}

/// The number of an entry's descriptor, if that can be read.
pub(super) fn fd_of(entry: &Value) -> Option<i64> {
    entry.get("fd")?.as_i64()
}

pub(super) fn malformed(what: impl ToString) -> InvalidEntry {
    InvalidEntry::Malformed(what.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"resources":[{"name":"a","path":"/a","fd":5,"lockHeld":true,"flags":0,
        "owners":[1,2],"lockspace":{"range":[0,null],"device":1,"inode":2,"origin":"opened",
        "hex":"61"}}]}"#;

    fn read(text: &str) -> (Document, Value) {
        (serde_json::from_str(text).unwrap(), serde_json::from_str(text).unwrap())
    }

    /// Whether the one entry can be parsed.
    fn parses(document: &Document) -> bool {
        let json = document.json();
        ResourceState::parse(&Parsed::parse(&json).unwrap().entries[0]).is_ok()
    }

    #[test]
    fn what_cannot_be_parsed_is_written_as_it_was_read() {
        let (document, json) = read(GOOD);
        assert!(parses(&document));
        // Each value in turn replaced or left out, at either depth, or one added.
        let odd = ["null", "-1", "1.5", "\"x\"", "[]", "[0,1,2]", "[null,1]", "[1,{}]", "{}", "7"];
        let mut odd_ones = 0;
        let mut check = |json: Value| {
            let (document, again) = read(&json.to_string());
            odd_ones += usize::from(!parses(&document));
            assert_eq!(serde_json::to_value(&document).unwrap(), again);
            // From a tree, too.
            let document: Document = serde_json::from_value(json.clone()).unwrap();
            assert_eq!(serde_json::to_value(&document).unwrap(), json);
        };
        for parent in ["/resources/0", "/resources/0/lockspace"] {
            let object = json.pointer(parent).unwrap().as_object().unwrap();
            for key in object.keys().map(String::as_str).chain(["later"]) {
                for odd in odd {
                    let mut json = json.clone();
                    json.pointer_mut(parent).unwrap()[key] = serde_json::from_str(odd).unwrap();
                    check(json);
                }
                let mut json = json.clone();
                json.pointer_mut(parent).unwrap().as_object_mut().unwrap().remove(key);
                check(json);
            }
        }
        assert!(odd_ones > 100, "{odd_ones}");
    }

    #[test]
    fn the_last_of_several_counts() {
        for (first, last, good) in [("5", "6", true), ("null", "6", true), ("6", "null", false)] {
            let text = GOOD.replace(r#""fd":5"#, &format!(r#""fd":{first},"fd":{last}"#));
            let (document, json) = read(&text);
            assert_eq!(serde_json::to_value(&document).unwrap(), json, "{text}");
            assert_eq!(parses(&document), good, "{text}");
        }
        for (first, last) in [("[]", "[1]"), ("[1]", "null"), ("null", "[1]"), ("1", "2")] {
            let text = format!(r#"{{"resources":{first},"a":1,"resources":{last}}}"#);
            let (document, json) = read(&text);
            assert_eq!(serde_json::to_value(&document).unwrap(), json, "{text}");
            assert_eq!(Parsed::parse(&document.json()).is_ok(), json["resources"].is_array());
        }
    }
}
