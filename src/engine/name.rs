//! Names, and the paths that they lead to.
//!
//! A [`Naming`] is chosen once for a space; a [`Target`](crate::Target) says which resource is meant,
//! each time.

use std::ffi::OsStr;
use std::hash::{BuildHasher, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use hashbrown::DefaultHashBuilder;
use md5::Digest as _;

use super::directory::Directory;
use super::lock_path::LockPath;
use crate::sys::fs::{PathBuffer, PathBytes, has_byte, with_c_path};
use crate::types::{InvalidRequest, IoError, Naming, NamingKind, Scheme};

/// The longest path that the kernel takes (`PATH_MAX` without its NUL), and so the longest name.
const LONGEST_NAME: usize = 4095;
/// The longest path component (`NAME_MAX`).
const LONGEST_COMPONENT: usize = 255;

impl Naming {
    /// Opens the directory, if there is one, making it with `dir_mode` where it is missing.
    pub(crate) fn open(self, dir_mode: u32) -> Result<OpenNaming, IoError> {
        Ok(match self.0 {
            NamingKind::Directory(scheme, path) => {
                OpenNaming::Directory(scheme, Arc::new(Directory::open(&path, dir_mode)?))
            }
            NamingKind::Direct => OpenNaming::Direct,
            NamingKind::InMemory => OpenNaming::InMemory,
        })
    }
}

#[cfg(feature = "snapshot")]
impl Naming {
    /// The naming of this word, as [`OpenNaming::word`] writes it; `None` for a word that is none, or
    /// whose feature is missing.
    pub(crate) fn from_word(word: &str, directory: Option<PathBuf>) -> Option<Self> {
        match (word, directory) {
            ("md5", Some(directory)) => Some(Self::md5(directory)),
            #[cfg(feature = "sha256")]
            ("sha256", Some(directory)) => Some(Self::sha256(directory)),
            ("verbatim", Some(directory)) => Some(Self::verbatim(directory)),
            ("direct", None) => Some(Self::direct()),
            ("in-memory", None) => Some(Self::in_memory()),
            _ => None,
        }
    }

    /// Opens the directory, if there is one, only if it is there.
    pub(crate) fn reopen(self) -> Result<OpenNaming, IoError> {
        Ok(match self.0 {
            NamingKind::Directory(scheme, path) => {
                OpenNaming::Directory(scheme, Arc::new(Directory::reopen(&path)?))
            }
            NamingKind::Direct => OpenNaming::Direct,
            NamingKind::InMemory => OpenNaming::InMemory,
        })
    }
}

#[cfg(feature = "snapshot")]
impl OpenNaming {
    /// The naming in a word.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Directory(Scheme::Md5, _) => "md5",
            #[cfg(feature = "sha256")]
            Self::Directory(Scheme::Sha256, _) => "sha256",
            Self::Directory(Scheme::Verbatim, _) => "verbatim",
            Self::Direct => "direct",
            Self::InMemory => "in-memory",
        }
    }
}

/// A [`Naming`] with its directory open: where a space's names lead.
#[derive(Debug)]
pub(crate) enum OpenNaming {
    Directory(Scheme, Arc<Directory>),
    Direct,
    InMemory,
}

impl OpenNaming {
    pub(crate) fn directory(&self) -> Option<&Directory> {
        match self {
            Self::Directory(_, directory) => Some(directory),
            _ => None,
        }
    }

    /// The name with its way to a file, if such a name can be here.
    pub(crate) fn name<'a>(&self, key: impl Into<Key<'a>>) -> Result<Arc<Name>, InvalidRequest> {
        let text = key.into().text;
        let (checked, way) = match self {
            Self::Directory(scheme, directory) => {
                (check(text, Some(*scheme))?, Way::In(*scheme, Arc::clone(directory)))
            }
            Self::Direct => (check(text, None)?, Way::Path),
            Self::InMemory => (check(text, None)?, Way::Nowhere),
        };
        if matches!(way, Way::Path) && !text.as_bytes().starts_with(b"/") {
            return Err(InvalidRequest::Relative);
        }
        Ok(Name::new(checked, way))
    }

    /// A name for an open file that was handed in. `path` is where it seems to be, for messages.
    pub(crate) fn name_of_opened<'a>(
        key: impl Into<Key<'a>>,
        path: PathBuf,
    ) -> Result<Arc<Name>, InvalidRequest> {
        let text = check(key.into().text, None)?;
        Ok(Name::new(text, Way::Opened(Box::new(path))))
    }
}

/// Refuses what no naming allows, since it could never be written as a C string; and what cannot be
/// a file name, where that is `scheme`'s.
pub(crate) fn check(text: &OsStr, scheme: Option<Scheme>) -> Result<PathBytes<'_>, InvalidRequest> {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return Err(InvalidRequest::Empty);
    }
    if bytes.len() > LONGEST_NAME {
        return Err(InvalidRequest::TooLong { max: LONGEST_NAME });
    }
    let checked = PathBytes::new(bytes).ok_or(InvalidRequest::Nul)?;
    match scheme {
        Some(Scheme::Verbatim) if bytes.len() > LONGEST_COMPONENT => {
            Err(InvalidRequest::TooLong { max: LONGEST_COMPONENT })
        }
        Some(Scheme::Verbatim) if matches!(bytes, b"." | b"..") || has_byte(bytes, b'/') => {
            Err(InvalidRequest::NotOneComponent)
        }
        _ => Ok(checked),
    }
}

/// A resource's name, and its way to the lock file.
///
/// One stands in memory for each resource that is held, so it keeps nothing that can be made
/// again: neither its hash nor its digest.
#[derive(Debug)]
pub(crate) struct Name {
    /// Of up to 32 bytes, as hashed names are, without an allocation of its own.
    text: PathBuffer,
    way: Way,
}

#[derive(Debug)]
enum Way {
    In(Scheme, Arc<Directory>),
    Path,
    /// Boxed twice, as hardly any name is one.
    Opened(Box<PathBuf>),
    Nowhere,
}

/// The digest in hexadecimal, in this buffer.
fn hexadecimal<'a>(digest: &[u8], buffer: &'a mut [u8; 64]) -> PathBytes<'a> {
    let text = &mut buffer[..2 * digest.len()];
    hex::encode_to_slice(digest, text).expect("it is twice as long");
    PathBytes::new(text).expect("digits are no NULs")
}

impl Name {
    fn new(text: PathBytes<'_>, way: Way) -> Arc<Self> {
        Arc::new(Self { text: text.to_owned(), way })
    }

    /// The name that the caller knows.
    pub(crate) fn text(&self) -> &OsStr {
        OsStr::from_bytes(self.text.as_path_bytes().as_bytes())
    }

    /// Tells where it leads. That is written down on the stack, since every acquire comes this way;
    /// a hashed name is hashed for it, each time.
    pub(crate) fn with_path<T>(&self, to: impl FnOnce(&LockPath<'_>) -> T) -> T {
        let text = self.text.as_path_bytes();
        match &self.way {
            Way::In(scheme, directory) => {
                let mut digits = [0; 64];
                let file = match scheme {
                    Scheme::Md5 => hexadecimal(&md5::Md5::digest(text.as_bytes()), &mut digits),
                    #[cfg(feature = "sha256")]
                    Scheme::Sha256 => {
                        hexadecimal(&sha2::Sha256::digest(text.as_bytes()), &mut digits)
                    }
                    Scheme::Verbatim => text,
                };
                with_c_path(directory.prefix.as_path_bytes(), file, |full_path, file| {
                    to(&LockPath::InDirectory { directory, full_path, file })
                })
            }
            Way::Path => with_c_path(text, PathBytes::EMPTY, |path, _| to(&LockPath::Direct(path))),
            Way::Opened(_) | Way::Nowhere => to(&LockPath::Nowhere),
        }
    }

    /// The name by which libvirt's clients know the resource, if that is not the name itself: the
    /// SHA-256 of it.
    #[cfg(feature = "snapshot")]
    pub(crate) fn sent_to_libvirt(&self) -> Option<String> {
        match &self.way {
            #[cfg(feature = "sha256")]
            Way::In(Scheme::Sha256, _) => {
                Some(hex::encode(sha2::Sha256::digest(self.text().as_bytes())))
            }
            _ => None,
        }
    }

    /// The directory that its file is in, where that is a space's.
    pub(crate) fn directory(&self) -> Option<&Directory> {
        match &self.way {
            Way::In(_, directory) => Some(directory),
            _ => None,
        }
    }

    /// Whether it is the path of the file itself.
    pub(crate) fn is_path(&self) -> bool {
        matches!(self.way, Way::Path)
    }

    /// Whether there is no file to open.
    pub(crate) fn leads_nowhere(&self) -> bool {
        matches!(self.way, Way::Opened(_) | Way::Nowhere)
    }

    /// Whether it stands for somebody's open file.
    pub(crate) fn is_of_opened(&self) -> bool {
        matches!(self.way, Way::Opened(_))
    }

    /// The path of the lock file; empty where there is none.
    #[cold]
    pub(crate) fn path(&self) -> PathBuf {
        match &self.way {
            Way::Opened(path) => path.to_path_buf(),
            _ => self.with_path(|path| path.to_path()),
        }
    }
}

/// The text of a name, and its hash, which is computed once for each call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    text: &'a OsStr,
    hash: u64,
}

impl<'a> From<&'a OsStr> for Key<'a> {
    #[inline]
    fn from(text: &'a OsStr) -> Self {
        // Seeded at random in each process: who chooses names must not know which collide.
        static HASHER: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);
        let mut hasher = HASHER.build_hasher();
        hasher.write(text.as_bytes());
        Self { text, hash: hasher.finish() }
    }
}

impl<'a> Key<'a> {
    pub(crate) fn hash(self) -> u64 {
        self.hash
    }

    pub(crate) fn text(self) -> &'a OsStr {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(place: &OpenNaming, name: impl AsRef<OsStr>) -> InvalidRequest {
        place.name(OsStr::new(&name)).expect_err("no such name can be")
    }

    #[test]
    fn each_naming_refuses_what_it_cannot_write_down() {
        let dir = tempfile::tempdir().unwrap();
        let verbatim = Naming::verbatim(dir.path()).open(0o700).unwrap();
        for name in [".", "..", "a/b", "/a", "../x"] {
            assert_eq!(refused(&verbatim, name), InvalidRequest::NotOneComponent, "{name}");
        }
        assert_eq!(refused(&verbatim, "x".repeat(256)), InvalidRequest::TooLong { max: 255 });
        verbatim.name("x".repeat(255).as_ref()).unwrap();

        let hashed = Naming::md5(dir.path()).open(0o700).unwrap();
        for place in [&verbatim, &hashed, &OpenNaming::Direct, &OpenNaming::InMemory] {
            assert_eq!(refused(place, ""), InvalidRequest::Empty);
            assert_eq!(refused(place, "/a\0b"), InvalidRequest::Nul);
            assert!(matches!(refused(place, "/".repeat(4096)), InvalidRequest::TooLong { .. }));
        }
        assert_eq!(refused(&OpenNaming::Direct, "a"), InvalidRequest::Relative);
    }

    #[test]
    fn hashed_names_are_those_of_every_other_tool() {
        let dir = tempfile::tempdir().unwrap();
        let place = Naming::md5(dir.path()).open(0o700).unwrap();
        // printf abc | md5sum
        let name = place.name(OsStr::new("abc")).unwrap();
        assert_eq!(name.path(), dir.path().join("900150983cd24fb0d6963f7d28e17f72"));
        #[cfg(feature = "sha256")]
        {
            let place = Naming::sha256(dir.path()).open(0o700).unwrap();
            let name = place.name(OsStr::new("abc")).unwrap();
            let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
            assert_eq!(name.path(), dir.path().join(hash));
        }
    }
}
