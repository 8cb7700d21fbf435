//! Whether libvirt's lock daemon, which believes what it reads, may be given a document.
//!
//! What virtlockd (9.0.0) makes of a lockspace object:
//!
//! - It ends, and every lock with it, at a descriptor that is not open, at a value that is missing or
//!   of another type, at a name that is there twice, and at a file of more than 10 MiB.
//! - A resource is released by its `name`, as the bytes of the document are; its `path` is unlinked in
//!   the end if it is auto-created. For itself it makes the path of the directory and the name.
//! - What is acquired later is locked on byte 0, whatever this is locked on. The last shared holder
//!   of an auto-created file locks that byte exclusively before it unlinks it. (It does so by a
//!   record lock, which our own lock refuses: the file stays, and blocks nobody.)
//! - An owner is cut to a `pid_t`. Those of a client are released when it hangs up, by the pid that
//!   the kernel tells of it, which is 0 for one of another pid namespace.
//! - A resource without owners is never released.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::RawFd;

use serde_json::Value;

use super::document::{Document, Parsed, ResolvedEntry, ResourceState, malformed, name_of};
use super::error::InvalidEntry;
use crate::engine::check;
use crate::types::{ByteRange, InvalidRequest, Origin, OwnerId, Scheme};

/// The longest file of state that virtlockd reads.
const LONGEST: usize = 10 << 20;

/// Why libvirt's lock daemon must not be given a document.
#[derive(Debug)]
#[non_exhaustive]
pub struct NotForLibvirt {
    /// Which of its resources, counted from 0; `None` if it is the document itself.
    pub entry: Option<usize>,
    /// The resource's name, as far as it can be read.
    pub name: Option<OsString>,
    /// What virtlockd cannot take, or would take for something else.
    pub why: LibvirtLimit,
}

impl fmt::Display for NotForLibvirt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.entry) {
            (Some(name), _) => write!(f, "{name:?} cannot be given to virtlockd: {}", self.why),
            (None, Some(at)) => write!(f, "entry {at} cannot be given to virtlockd: {}", self.why),
            (None, None) => write!(f, "the document cannot be given to virtlockd: {}", self.why),
        }
    }
}

impl std::error::Error for NotForLibvirt {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.why)
    }
}

/// What libvirt's lock daemon cannot take, or would take for something else.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibvirtLimit {
    /// [`restore`](crate::snapshot::restore()) would not take it either, whatever is open.
    #[error("{0}")]
    Entry(InvalidEntry),
    /// It is held in memory, without a descriptor. The daemon ends at that, and with it every lock.
    #[error("it is held in memory, and virtlockd ends at a hold without a descriptor")]
    InMemory,
    /// Its name is not UTF-8. The daemon would know it, and release it, by another resource's name.
    #[error("its name is not UTF-8, so virtlockd would take it for another resource")]
    NotUtf8,
    /// The path of the directory is not UTF-8, or not absolute. The daemon would lock and unlink in
    /// another one.
    #[error("the path of its directory is not an absolute one in UTF-8")]
    Directory,
    /// Its lock file is not where the daemon and its clients look for one of this name: at the name
    /// itself, or, with a directory, at that and the name. So it is where names are hashed by
    /// [`Naming::md5`](crate::Naming::md5), and with
    /// [`Target::opened`](crate::Target::opened) unless the name is the file's path. No client would
    /// release it.
    #[error("its lock file is not at its name, where virtlockd's clients have theirs")]
    Path,
    /// It is not locked on byte 0, as everything is that the daemon acquires.
    #[error("it is locked on {0}, and virtlockd locks byte 0")]
    Range(ByteRange),
    /// An owner is no pid, which is from 1 to 2^31 - 1: the daemon would cut it, and take it for
    /// another one. Whatever 0 owns is released when any client of another pid namespace hangs up.
    #[error("it is held by owner {0}, and virtlockd's owners are pids from 1 to {max}", max = i32::MAX)]
    Owner(OwnerId),
    /// It is longer than all that the daemon reads.
    #[error("it is {0} bytes long, and virtlockd reads 10 MiB")]
    TooLong(usize),
}

impl Document {
    /// Looks whether libvirt's lock daemon can take this over as it is, knows whose each lock is,
    /// and releases it when its clients ask for that. The daemon looks at nothing: it ends at what it
    /// cannot read, and with it every lock; it unlinks the path that it reads, and cuts an owner that
    /// is no `pid_t`.
    ///
    /// In the daemon's state, a document without a directory is its `defaultLockspace`, and those
    /// with one are its `lockspaces`, each directory once. The whole must not be longer than 10 MiB.
    /// The daemon's clients look for a resource by its path there, or by the SHA-256 of that in a
    /// `file_lockspace_dir`, which is how a space of `Naming::sha256` is written down. The lock file
    /// of a shared hold stays behind when the daemon releases it. The daemon releases by closing its
    /// descriptor: where another process shares that, as one that was forked meanwhile or was given it
    /// as [`Target::opened`](crate::Target::opened), the lock lasts until that closes it too.
    ///
    /// # Errors
    /// [`NotForLibvirt`] names the first resource that is nothing for it.
    ///
    /// ```
    /// use lockspace::OwnerId;
    /// use lockspace::snapshot::{Document, LibvirtLimit};
    ///
    /// let document = r#"{ "resources": [{ "name": "/img/a", "path": "/img/a", "fd": 14,
    ///     "lockHeld": true, "flags": 0, "owners": [4294967296] }] }"#;
    /// let document: Document = serde_json::from_str(document)?;
    /// let error = document.for_libvirt().unwrap_err();
    /// assert_eq!(error.name.as_deref(), Some("/img/a".as_ref()));
    /// assert!(matches!(error.why, LibvirtLimit::Owner(owner) if owner == OwnerId::new(1 << 32)));
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn for_libvirt(&self) -> Result<&Self, NotForLibvirt> {
        let whole = |why| NotForLibvirt { entry: None, name: None, why };
        let json = self.json();
        let parsed = Parsed::parse(&json).map_err(|why| whole(LibvirtLimit::Entry(why)))?;
        let mut reader = Reader::new(&parsed).map_err(whole)?;
        for (at, entry) in parsed.entries.iter().enumerate() {
            let refused = |why| NotForLibvirt { entry: Some(at), name: name_of(entry), why };
            reader.check(entry).map_err(refused)?;
        }
        match self.len() {
            len if len > LONGEST => Err(whole(LibvirtLimit::TooLong(len))),
            _ => Ok(self),
        }
    }

    /// How many bytes it has as text, at least.
    fn len(&self) -> usize {
        struct Count(usize);

        impl io::Write for Count {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 += bytes.len();
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let mut count = Count(0);
        // Neither the count nor what was read from JSON can fail.
        let _ = serde_json::to_writer(&mut count, self);
        count.0
    }
}

/// One document, as virtlockd reads it.
struct Reader<'a> {
    directory: Option<&'a str>,
    /// Of the entries that name none.
    range: ByteRange,
    /// Whether names stand there as their SHA-256, so that the exact ones may be anything.
    hashed: bool,
    names: HashSet<String>,
    numbers: HashSet<RawFd>,
}

impl<'a> Reader<'a> {
    fn new(document: &Parsed<'a>) -> Result<Self, LibvirtLimit> {
        let extension = document.extension.as_ref();
        let exact = extension.is_none_or(|extension| extension.hex.is_none());
        let directory = match document.directory {
            None => None,
            Some(Value::String(path)) if exact && path.starts_with('/') && !path.contains('\0') => {
                Some(path.as_str())
            }
            Some(_) => return Err(LibvirtLimit::Directory),
        };
        let range = extension.map_or(ByteRange::FIRST, |extension| extension.range.0);
        let hashed = extension.is_some_and(|extension| extension.naming == "sha256");
        Ok(Self { directory, range, hashed, names: HashSet::new(), numbers: HashSet::new() })
    }

    fn check(&mut self, entry: &Value) -> Result<(), LibvirtLimit> {
        let state = ResourceState::parse(entry).map_err(LibvirtLimit::Entry)?;
        let origin = state.lockspace.as_ref().map(|extension| extension.origin);
        if state.fd == -1 || origin == Some(Origin::InMemory) {
            return Err(LibvirtLimit::InMemory);
        }
        let resolved = state.resolve().map_err(LibvirtLimit::Entry)?;
        self.check_name(&state, &resolved.name)?;
        self.check_lock(&resolved)?;
        let no_pid = |owner: &&u64| **owner == 0 || i32::try_from(**owner).is_err();
        let no_pid = resolved.owners.iter().find(no_pid);
        no_pid.map_or(Ok(()), |owner| Err(LibvirtLimit::Owner(OwnerId::new(*owner))))
    }

    fn check_name(&mut self, state: &ResourceState<'_>, exact: &OsStr) -> Result<(), LibvirtLimit> {
        let (name, text) = (&*state.name, OsStr::new(&*state.name));
        if exact != text && !(self.hashed && is_sha256(name)) {
            return Err(LibvirtLimit::NotUtf8);
        }
        let invalid = |why| LibvirtLimit::Entry(InvalidEntry::Name(why));
        check(text, self.directory.map(|_| Scheme::Verbatim)).map_err(invalid)?;
        let at_its_name = match self.directory {
            None if !name.starts_with('/') => return Err(invalid(InvalidRequest::Relative)),
            None => state.path == name,
            Some(directory) => {
                let below = state.path.strip_prefix(directory.trim_end_matches('/'));
                let file = below.and_then(|path| path.strip_prefix('/'));
                file.is_some_and(|file| file.trim_start_matches('/') == name)
            }
        };
        match at_its_name {
            false => Err(LibvirtLimit::Path),
            true if !self.names.insert(name.to_owned()) => {
                Err(LibvirtLimit::Entry(InvalidEntry::DuplicateName))
            }
            true => Ok(()),
        }
    }

    fn check_lock(&mut self, entry: &ResolvedEntry<'_>) -> Result<(), LibvirtLimit> {
        // It would unlink the image.
        if entry.origin == Origin::AutoCreated && self.directory.is_none() {
            return Err(LibvirtLimit::Entry(malformed("only in a directory are files created")));
        }
        let number = RawFd::try_from(entry.fd).ok().filter(|number| *number > 2);
        let number = number.ok_or(LibvirtLimit::Entry(InvalidEntry::Number))?;
        if !self.numbers.insert(number) {
            return Err(LibvirtLimit::Entry(InvalidEntry::DuplicateDescriptor));
        }
        if !entry.lock_held {
            return Err(LibvirtLimit::Entry(InvalidEntry::Unlocked));
        }
        match entry.range.unwrap_or(self.range) {
            range if range.overlaps(ByteRange::FIRST) => Ok(()),
            range => Err(LibvirtLimit::Range(range)),
        }
    }
}

fn is_sha256(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
