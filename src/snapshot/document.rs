//! What a state document says: libvirt's lockspace object, and what it leaves out.
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
//! Everything of ours stands under the key `lockspace`, which libvirt's reader passes over. An
//! owner stands in `owners` once for each of its holds. A name or a directory that is not UTF-8
//! stands there as well as it can, and exactly, in hexadecimal, as `hex` under our key. So does a
//! name of `Naming::sha256`: its `name` is the SHA-256 of it, by which libvirt knows the resource.
//!
//! Nothing here makes a system call.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::num::NonZeroU64;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use serde::de::value::StrDeserializer;
use serde::de::{IntoDeserializer, MapAccess, SeqAccess};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::snapshot::fit::{Fit, Fitted, Key, Keys, fit_map, list_of};
use crate::types::{ByteRange, FileId, Mode, Origin};

/// The version of what stands under our key.
pub(crate) const VERSION: u64 = 1;

/// libvirt's `VIR_LOCK_SPACE_ACQUIRE_SHARED` and `…_AUTOCREATE`.
pub(crate) const SHARED: u64 = 1;
pub(crate) const AUTO_CREATED: u64 = 2;

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
pub struct Document(Arc<SpaceState>);

impl Document {
    /// As a snapshot makes it.
    pub(crate) fn new(
        directory: Option<String>,
        resources: Vec<Fitted<ResourceState>>,
        more: &SpaceMore,
    ) -> Self {
        let mut head = Map::new();
        head.extend(directory.map(|path| (DIRECTORY.to_owned(), path.into())));
        head.insert("lockspace".to_owned(), serde_json::to_value(more).unwrap_or_default());
        Self(Arc::new(SpaceState { head: head.into(), resources: Some(resources) }))
    }

    /// All but the resources; the whole, if it is not of that shape.
    pub(crate) fn head(&self) -> &Value {
        &self.0.head
    }

    /// The resources, if there is a list of them.
    pub(crate) fn resources(&self) -> Option<&[Fitted<ResourceState>]> {
        self.0.resources.as_deref()
    }
}

impl Serialize for Document {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Document {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let state = match Fitted::deserialize(deserializer)? {
            Fitted::Fits(state) => state,
            Fitted::Odd(head) => SpaceState { head, resources: None },
        };
        Ok(Self(Arc::new(state)))
    }
}

impl PartialEq for Document {
    fn eq(&self, other: &Self) -> bool {
        let tree = |document: &Self| serde_json::to_value(document).unwrap_or_default();
        tree(self) == tree(other)
    }
}

const DIRECTORY: &str = "directory";
const RESOURCES: &str = "resources";

/// A space.
#[derive(Debug)]
struct SpaceState {
    /// All but a list of resources.
    head: Value,
    resources: Option<Vec<Fitted<ResourceState>>>,
}

impl Fit for SpaceState {
    fn map<'de, A: MapAccess<'de>>(mut map: A) -> Result<Fitted<Self>, A::Error> {
        let (mut head, mut resources) = (Map::new(), None);
        while let Some(key) = map.next_key_seed(Keys(&[RESOURCES]))? {
            let (key, value) = match key {
                Key::Known(key) => match map.next_value()? {
                    Fitted::Fits(list) => {
                        resources = Some(list);
                        head.remove(key);
                        continue;
                    }
                    // As always, the last of several counts.
                    Fitted::Odd(odd) => {
                        resources = None;
                        (key.to_owned(), odd)
                    }
                },
                Key::Other(key) => (key, map.next_value()?),
            };
            head.insert(key, value);
        }
        Ok(Fitted::Fits(Self { head: head.into(), resources }))
    }
}

impl Serialize for SpaceState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (Value::Object(head), Some(resources)) = (&self.head, &self.resources) else {
            return self.head.serialize(serializer);
        };
        // In libvirt's order.
        let mut map = serializer.serialize_map(Some(head.len() + 1))?;
        if let Some(directory) = head.get(DIRECTORY) {
            map.serialize_entry(DIRECTORY, directory)?;
        }
        map.serialize_entry(RESOURCES, resources)?;
        for (key, value) in head.iter().filter(|(key, _)| *key != DIRECTORY) {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

/// What libvirt does not say of a space.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SpaceMore {
    pub(crate) version: u64,
    pub(crate) naming: String,
    pub(crate) range: RangeState,
    pub(crate) file_mode: u32,
    /// Device and inode of the directory.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) directory: Option<(u64, u64)>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) hex: Option<String>,
    pub(crate) stale_retries: u64,
    /// The process that wrote it, and when that was started, in the kernel's ticks.
    pub(crate) pid: u32,
    pub(crate) started: u64,
}

/// A resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ResourceState {
    pub(crate) name: String,
    pub(crate) path: String,
    /// -1 in memory.
    pub(crate) fd: i64,
    pub(crate) lock_held: bool,
    pub(crate) flags: u64,
    pub(crate) owners: Vec<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) lockspace: Option<ResourceMore>,
}

fit_map!(ResourceState {
    name = "name", path = "path", fd = "fd", lock_held = "lockHeld", flags = "flags", owners = "owners";
    lockspace
});

impl Fitted<ResourceState> {
    /// The exact name, if that can be read, or the legible one.
    pub(crate) fn name(&self) -> Option<OsString> {
        let (name, hex) = match self {
            Self::Fits(state) => (&*state.name, state.hex()),
            Self::Odd(tree) => {
                let hex = tree.get("lockspace").and_then(|more| more.get("hex"));
                (tree.get("name")?.as_str()?, hex.and_then(Value::as_str))
            }
        };
        Some(exact(name, hex).unwrap_or(Cow::Borrowed(name.as_ref())).into_owned())
    }

    /// The whole; `Err` says what does not fit.
    pub(crate) fn state(&self) -> Result<Cow<'_, ResourceState>, String> {
        match self {
            Self::Fits(state) => Ok(Cow::Borrowed(state)),
            Self::Odd(tree) => {
                let state = ResourceState::deserialize(tree);
                state.map(Cow::Owned).map_err(|error| error.to_string())
            }
        }
    }

    pub(crate) fn fd(&self) -> Option<i64> {
        match self {
            Self::Fits(state) => Some(state.fd),
            Self::Odd(tree) => tree.get("fd")?.as_i64(),
        }
    }
}

impl Fit for Vec<u64> {
    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Fitted<Self>, A::Error> {
        Ok(match list_of(list)? {
            Fitted::Fits(ids) => Fitted::Fits(ids.into_vec()),
            Fitted::Odd(odd) => Fitted::Odd(odd),
        })
    }
}

/// What libvirt does not say of a resource.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ResourceMore {
    pub(crate) range: RangeState,
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) origin: OriginState,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) hex: Option<String>,
}

fit_map!(ResourceMore {
    range = "range", device = "device", inode = "inode", origin = "origin";
    hex
});

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OriginState {
    Existing,
    AutoCreated,
    Opened,
    InMemory,
}

impl Fit for OriginState {
    fn text(word: &str) -> Option<Self> {
        let word: StrDeserializer<'_, serde::de::value::Error> = word.into_deserializer();
        Self::deserialize(word).ok()
    }
}

impl From<Origin> for OriginState {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Existing => Self::Existing,
            Origin::AutoCreated => Self::AutoCreated,
            Origin::Opened => Self::Opened,
            Origin::InMemory => Self::InMemory,
        }
    }
}

impl From<OriginState> for Origin {
    fn from(origin: OriginState) -> Self {
        match origin {
            OriginState::Existing => Self::Existing,
            OriginState::AutoCreated => Self::AutoCreated,
            OriginState::Opened => Self::Opened,
            OriginState::InMemory => Self::InMemory,
        }
    }
}

/// The first byte, and how many; `null` for all that follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RangeState(u64, Option<u64>);

impl Fit for RangeState {
    fn list<'de, A: SeqAccess<'de>>(list: A) -> Result<Fitted<Self>, A::Error> {
        Ok(match list_of(list)? {
            Fitted::Fits(numbers) => match numbers[..] {
                [Some(start), len] => Fitted::Fits(Self(start, len)),
                _ => Fitted::Odd(numbers.into_vec().into()),
            },
            Fitted::Odd(odd) => Fitted::Odd(odd),
        })
    }
}

impl From<ByteRange> for RangeState {
    fn from(range: ByteRange) -> Self {
        Self(range.start(), range.len().map(|len| len.get()))
    }
}

impl RangeState {
    pub(crate) fn range(self) -> Option<ByteRange> {
        let Self(start, len) = self;
        match len {
            None => ByteRange::recorded(start, None),
            Some(len) => ByteRange::recorded(start, Some(NonZeroU64::new(len)?)),
        }
    }
}

/// A text that may not be UTF-8, as JSON can hold it: legible, and exact if that was not.
pub(crate) fn legible(text: &OsStr) -> (String, Option<String>) {
    match text.to_str() {
        Some(text) => (text.to_owned(), None),
        None => (text.to_string_lossy().into_owned(), Some(hex::encode(text.as_bytes()))),
    }
}

/// The text again; `None` if the hexadecimal is none.
pub(crate) fn exact<'a>(legible: &'a str, hex: Option<&str>) -> Option<Cow<'a, OsStr>> {
    match hex {
        None => Some(Cow::Borrowed(legible.as_ref())),
        Some(hex) => hex::decode(hex).ok().map(|bytes| Cow::Owned(OsString::from_vec(bytes))),
    }
}

/// What a resource's state asks to be restored.
#[derive(Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) name: Cow<'a, OsStr>,
    pub(crate) path: &'a str,
    pub(crate) fd: i64,
    pub(crate) lock_held: bool,
    pub(crate) mode: Mode,
    pub(crate) origin: Origin,
    pub(crate) range: Option<ByteRange>,
    /// `None` in a document of libvirt's.
    pub(crate) id: Option<FileId>,
    pub(crate) owners: &'a [u64],
}

impl ResourceState {
    fn hex(&self) -> Option<&str> {
        self.lockspace.as_ref()?.hex.as_deref()
    }

    /// `Err` says what of it makes no sense.
    pub(crate) fn wanted(&self) -> Result<Wanted<'_>, &'static str> {
        let more = self.lockspace.as_ref();
        let name = exact(&self.name, self.hex()).ok_or("its hex is none")?;
        let auto_created = self.flags & AUTO_CREATED != 0;
        let origin = match more {
            Some(more) => more.origin.into(),
            None if auto_created => Origin::AutoCreated,
            None => Origin::Existing,
        };
        if auto_created != (origin == Origin::AutoCreated) {
            return Err("its flags and its origin disagree");
        }
        let range = match more {
            Some(more) => Some(more.range.range().ok_or("its range is none")?),
            None => None,
        };
        Ok(Wanted {
            name,
            path: &self.path,
            fd: self.fd,
            lock_held: self.lock_held,
            mode: if self.flags & SHARED != 0 { Mode::Shared } else { Mode::Exclusive },
            origin,
            range,
            id: more.map(|more| FileId { dev: more.device, ino: more.inode }),
            owners: &self.owners,
        })
    }
}
