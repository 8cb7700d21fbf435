//! Names, and the paths that they lead to.
//!
//! A [`Naming`] is chosen once for a space; a [`Target`] says which resource is meant, each time.

use std::borrow::Cow;
use std::ffi::{CStr, OsStr, OsString};
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use hashbrown::DefaultHashBuilder;
use md5::Digest as _;
use smallvec::SmallVec;

use crate::directory::Directory;
use crate::error::{BadRequest, OpenError};

/// The longest path that the kernel takes (`PATH_MAX` without its NUL), and so the longest name.
const LONGEST_NAME: usize = 4095;
/// The longest path component (`NAME_MAX`).
const LONGEST_COMPONENT: usize = 255;

/// How a space finds the file that stands for a name. It carries the directory, so that a
/// directory cannot be forgotten, nor given to a space that needs none.
///
/// | naming | lock file of the resource `NAME` | for |
/// |---|---|---|
/// | [`md5`](Self::md5) | `DIR/` and the MD5 of the name in hex | names of any length, such as image paths |
/// | `sha256` | `DIR/` and its SHA-256 | the same, beside libvirt's lock daemon (feature `sha256`) |
/// | [`verbatim`](Self::verbatim) | `DIR/NAME` | names that are file names, as LXC's are |
/// | [`direct`](Self::direct) | `NAME`, the image itself | where every program that writes images must be kept out |
/// | [`in_memory`](Self::in_memory) | none | threads of one process, as LXC's anonymous lock |
#[derive(Clone, Debug)]
pub struct Naming(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Directory(Scheme, PathBuf),
    Direct,
    InMemory,
}

/// How a name becomes a file name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    Md5,
    #[cfg(feature = "sha256")]
    Sha256,
    Verbatim,
}

impl Naming {
    /// Lock files in `directory`, named by the MD5 of the resource's name. MD5 spreads names
    /// here, it guards nothing: who can choose two names of one hash only makes them exclude each
    /// other.
    #[must_use]
    pub fn md5(directory: impl Into<PathBuf>) -> Self {
        Self(Kind::Directory(Scheme::Md5, directory.into()))
    }

    /// Lock files in `directory`, named by the SHA-256 of the resource's name: what libvirtd asks
    /// its lock daemon for when `file_lockspace_dir` is set, so that both meet on one file.
    #[cfg(feature = "sha256")]
    #[must_use]
    #[doc(alias = "file_lockspace_dir")]
    pub fn sha256(directory: impl Into<PathBuf>) -> Self {
        Self(Kind::Directory(Scheme::Sha256, directory.into()))
    }

    /// Lock files in `directory`, named as the resource is. A name is one path component then.
    #[must_use]
    pub fn verbatim(directory: impl Into<PathBuf>) -> Self {
        Self(Kind::Directory(Scheme::Verbatim, directory.into()))
    }

    /// No lock files: a name is the absolute path of the file that is locked itself.
    #[must_use]
    pub fn direct() -> Self {
        Self(Kind::Direct)
    }

    /// No files at all: the lock is known to this space alone.
    #[must_use]
    #[doc(alias = "lxc_newlock")]
    pub fn in_memory() -> Self {
        Self(Kind::InMemory)
    }

    /// Opens the directory, if there is one, making it with `dir_mode` where it is missing.
    pub(crate) fn open(self, dir_mode: u32) -> Result<Place, OpenError> {
        Ok(match self.0 {
            Kind::Directory(scheme, path) => {
                Place::Directory(scheme, Arc::new(Directory::open(&path, dir_mode)?))
            }
            Kind::Direct => Place::Direct,
            Kind::InMemory => Place::InMemory,
        })
    }
}

#[cfg(feature = "snapshot")]
impl Naming {
    /// The naming of this word, as [`Place::word`] writes it; `None` for a word that is none, or
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
    pub(crate) fn reopen(self) -> Result<Place, OpenError> {
        Ok(match self.0 {
            Kind::Directory(scheme, path) => {
                Place::Directory(scheme, Arc::new(Directory::reopen(&path)?))
            }
            Kind::Direct => Place::Direct,
            Kind::InMemory => Place::InMemory,
        })
    }
}

#[cfg(feature = "snapshot")]
impl Place {
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
pub(crate) enum Place {
    Directory(Scheme, Arc<Directory>),
    Direct,
    InMemory,
}

impl Place {
    pub(crate) fn directory(&self) -> Option<&Directory> {
        match self {
            Self::Directory(_, directory) => Some(directory),
            _ => None,
        }
    }

    /// The name with its way to a file, if such a name can be here.
    pub(crate) fn name<'a>(&self, text: impl Into<Text<'a>>) -> Result<Arc<Name>, BadRequest> {
        let text = text.into();
        check(&text)?;
        let way = match self {
            Self::Directory(scheme, directory) => {
                if *scheme == Scheme::Verbatim {
                    check_component(&text)?;
                }
                Way::In(*scheme, Arc::clone(directory))
            }
            Self::Direct if text.as_bytes().first() != Some(&b'/') => {
                return Err(BadRequest::Relative);
            }
            Self::Direct => Way::Path,
            Self::InMemory => Way::Nowhere,
        };
        Ok(Name::new(&text, way))
    }

    /// A name for an open file that was handed in. `path` is where it seems to be, for messages.
    pub(crate) fn name_of_opened<'a>(
        text: impl Into<Text<'a>>,
        path: PathBuf,
    ) -> Result<Arc<Name>, BadRequest> {
        let text = text.into();
        check(&text)?;
        Ok(Name::new(&text, Way::Opened(Box::new(path))))
    }
}

/// What no naming allows: such a name could never be written where C strings are.
pub(crate) fn check(text: &OsStr) -> Result<(), BadRequest> {
    match text.as_bytes() {
        [] => Err(BadRequest::Empty),
        bytes if bytes.len() > LONGEST_NAME => Err(BadRequest::TooLong { max: LONGEST_NAME }),
        bytes if bytes.contains(&0) => Err(BadRequest::Nul),
        _ => Ok(()),
    }
}

/// What a name that is a file name cannot be.
pub(crate) fn check_component(text: &OsStr) -> Result<(), BadRequest> {
    match text.as_bytes() {
        bytes if bytes.len() > LONGEST_COMPONENT => {
            Err(BadRequest::TooLong { max: LONGEST_COMPONENT })
        }
        b"." | b".." => Err(BadRequest::NotOneComponent),
        bytes if bytes.contains(&b'/') => Err(BadRequest::NotOneComponent),
        _ => Ok(()),
    }
}

/// A resource's name, and its way to the lock file.
///
/// One stands in memory for each resource that is held, so it keeps nothing that can be made
/// again: neither its hash nor its digest.
#[derive(Debug)]
pub(crate) struct Name {
    /// Of up to 32 bytes, as hashed names are, without an allocation of its own.
    text: SmallVec<[u8; 32]>,
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

/// Where a name leads, written out for those who make system calls.
pub(crate) enum Leads<'a> {
    /// To a file in a directory: by its whole path, and by its name there.
    In { directory: &'a Directory, whole: &'a CStr, file: &'a CStr },
    /// To the file of this path.
    To(&'a CStr),
    /// Nowhere: the resource is in memory only, or is somebody's open descriptor.
    Nowhere,
}

impl Leads<'_> {
    /// The path of the file; empty where there is none.
    #[cold]
    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::In { whole: path, .. } | Self::To(path) => {
                PathBuf::from(OsStr::from_bytes(path.to_bytes()))
            }
            Self::Nowhere => PathBuf::new(),
        }
    }
}

/// A path of these parts with its NUL, in this room if that is large enough.
fn join<'a>(parts: [&[u8]; 2], room: &'a mut [u8; 320], more: &'a mut Vec<u8>) -> &'a CStr {
    let [first, second] = parts;
    let len = first.len() + second.len();
    let path = match room.get_mut(..=len) {
        Some(path) => path,
        None => {
            more.resize(len + 1, 0);
            &mut more[..]
        }
    };
    path[..first.len()].copy_from_slice(first);
    path[first.len()..len].copy_from_slice(second);
    CStr::from_bytes_with_nul(path).expect("neither a name nor an open directory's path has a NUL")
}

/// The digest in hexadecimal, in this room.
fn hexadecimal<'a>(digest: &[u8], room: &'a mut [u8; 64]) -> &'a [u8] {
    let text = &mut room[..2 * digest.len()];
    hex::encode_to_slice(digest, text).expect("it is twice as long");
    text
}

impl Name {
    fn new(text: &OsStr, way: Way) -> Arc<Self> {
        Arc::new(Self { text: SmallVec::from_slice(text.as_bytes()), way })
    }

    /// The name that the caller knows.
    pub(crate) fn text(&self) -> &OsStr {
        OsStr::from_bytes(&self.text)
    }

    /// Tells where it leads. That is written down on the stack, since every acquire comes this way;
    /// a hashed name is hashed for it, each time.
    pub(crate) fn lead<T>(&self, to: impl FnOnce(&Leads<'_>) -> T) -> T {
        let (mut room, mut more) = ([0; 320], Vec::new());
        match &self.way {
            Way::In(scheme, directory) => {
                let mut digits = [0; 64];
                let file = match scheme {
                    Scheme::Md5 => hexadecimal(&md5::Md5::digest(&self.text), &mut digits),
                    #[cfg(feature = "sha256")]
                    Scheme::Sha256 => hexadecimal(&sha2::Sha256::digest(&self.text), &mut digits),
                    Scheme::Verbatim => &self.text,
                };
                let whole = join([directory.prefix(), file], &mut room, &mut more);
                let file = &whole.to_bytes_with_nul()[directory.prefix().len()..];
                let file = CStr::from_bytes_with_nul(file).expect("it is the end of the whole");
                to(&Leads::In { directory, whole, file })
            }
            Way::Path => to(&Leads::To(join([&self.text, &[]], &mut room, &mut more))),
            Way::Opened(_) | Way::Nowhere => to(&Leads::Nowhere),
        }
    }

    /// The name by which libvirt's clients know the resource, if that is not the name itself: the
    /// SHA-256 of it.
    #[cfg(feature = "snapshot")]
    pub(crate) fn sent_to_libvirt(&self) -> Option<String> {
        match &self.way {
            #[cfg(feature = "sha256")]
            Way::In(Scheme::Sha256, _) => Some(hex::encode(sha2::Sha256::digest(&self.text))),
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

    /// Whether this is the path of the lock file, without an allocation; `false` may be wrong.
    #[cfg(feature = "snapshot")]
    pub(crate) fn has_path(&self, path: &str) -> bool {
        self.lead(|leads| match leads {
            Leads::In { whole: own, .. } | Leads::To(own) => own.to_bytes() == path.as_bytes(),
            Leads::Nowhere => false,
        })
    }

    /// The path of the lock file; empty where there is none.
    #[cold]
    pub(crate) fn path(&self) -> PathBuf {
        match &self.way {
            Way::Opened(path) => path.to_path_buf(),
            _ => self.lead(|leads| leads.path()),
        }
    }
}

/// The text of a name, and its hash, which is computed once for each call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    text: &'a OsStr,
    hash: u64,
}

impl<'a> From<&'a OsStr> for Text<'a> {
    #[inline]
    fn from(text: &'a OsStr) -> Self {
        // Seeded at random in each process: who chooses names must not know which collide.
        static HASHER: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);
        let mut hasher = HASHER.build_hasher();
        hasher.write(text.as_bytes());
        Self { text, hash: hasher.finish() }
    }
}

impl<'a> Text<'a> {
    pub(crate) fn hash(self) -> u64 {
        self.hash
    }

    pub(crate) fn as_str(self) -> &'a OsStr {
        self.text
    }
}

impl Deref for Text<'_> {
    type Target = OsStr;

    fn deref(&self) -> &OsStr {
        self.text
    }
}

/// Which resource is meant.
///
/// A string or a path is a name, taken byte by byte: `/img/a` and `/img//a` are two names.
/// [`Target::image`] resolves a path first, so that all its spellings are one, and
/// [`Target::new_image`] also that of an image which may not be there yet; [`Target::opened`] is a
/// file that the caller has open.
///
/// ```
/// use lockspace::{Request, Target};
///
/// let by_name = Request::exclusive("disk-7");
/// let by_path = Request::exclusive(Target::image("/img/a.qcow2"));
/// let file = std::fs::File::open("/proc/self/exe").unwrap();
/// let by_descriptor = Request::shared(Target::opened("disk-8", &file));
/// ```
#[derive(Clone)]
pub struct Target<'a>(pub(crate) Means<'a>);

#[derive(Clone, Debug)]
pub(crate) enum Means<'a> {
    Name(Cow<'a, OsStr>),
    Image(&'a Path),
    NewImage(&'a Path),
    Opened(&'a OsStr, BorrowedFd<'a>),
}

impl<'a> Target<'a> {
    /// The disk image that this path leads to, by whatever spelling: the resource's name is the
    /// path with every symlink, `.` and `..` resolved, when the request is made. The lease tells
    /// that name, and releases go by it. What is there must be a regular file or a block device; for
    /// an image that may not be there yet, use [`Target::new_image`].
    ///
    /// Mirrors the `realpath` that libvirt leaves to its callers.
    ///
    /// In a space with a directory, the lock is on the *path*, and one image can have two that no
    /// resolving makes one: by a bind mount of its folder, in another mount namespace or chroot, by
    /// a hard link, and on a file system that ignores case. Such an image is two resources there,
    /// and can be held twice. A [direct](Naming::direct) space locks the image itself, and finds all
    /// of these out.
    #[must_use]
    #[doc(alias = "realpath")]
    pub fn image<P: AsRef<Path> + ?Sized>(path: &'a P) -> Self {
        Self(Means::Image(path.as_ref()))
    }

    /// The disk image of this path, which may not be there yet: to lock an image before it is made.
    ///
    /// What is there is resolved as by [`Target::image`]. Where nothing is, the path's folder is
    /// resolved, and the path's last component appended: the same name that `image` finds once the
    /// file has been made there. (The path itself as a name is not: locked as `link/new.img` before,
    /// and by `image` afterwards, it is two resources.)
    ///
    /// A direct space locks the image itself, so there a missing one is
    /// [`AcquireError::NotFound`](crate::AcquireError::NotFound). Refused are a path whose folder is
    /// not there ([`BadRequest::NoFolder`]), one that ends in `/`, `.` or `..`
    /// ([`BadRequest::NoFileName`]), and one that is a symlink to what is not there
    /// ([`BadRequest::DanglingSymlink`]): where the file would be made, only its maker knows.
    ///
    /// ```
    /// use lockspace::{LockSpace, Naming, OwnerId, Request, Target, Wait};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let (locks, image) = (dir.path().join("locks"), dir.path().join("new.qcow2"));
    /// let space = LockSpace::open(Naming::md5(locks))?;
    /// let disk = Request::exclusive(Target::new_image(&image)).auto_create();
    /// let _lease = space.acquire(OwnerId::new(1), disk, Wait::NO)?;
    ///
    /// std::fs::write(&image, "")?; // as qemu-img create does
    /// let disk = Request::exclusive(Target::image(&image)).auto_create();
    /// assert!(space.acquire(OwnerId::new(2), disk, Wait::NO).is_err());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn new_image<P: AsRef<Path> + ?Sized>(path: &'a P) -> Self {
        Self(Means::NewImage(path.as_ref()))
    }

    /// The caller's own open file, under a name of the caller's choice.
    ///
    /// The space locks a duplicate of the descriptor, so it needs no path and no permission to
    /// open; it checks no name and removes no file. The descriptor must be open for reading to be
    /// held shared and for writing to be held exclusively, and its open file must carry no record
    /// or OFD lock yet. The caller may close it: the lock is held by the duplicate too.
    ///
    /// All descriptors of one open file share its locks, and of each byte it has one. So while the
    /// lease lives, lock or unlock nothing through them on bytes that the hold covers; a QEMU that
    /// is given one does so, unless the hold is clear of its bytes, as
    /// [`ByteRange::FIRST`](crate::ByteRange::FIRST) is. OFD locks that are taken through them on
    /// other bytes are not the hold's: its end, a refusal, a snapshot and a restore leave them.
    /// Record locks (`F_SETLK`) that this process takes on the file are lost when the hold ends.
    ///
    /// The lock is on the descriptor's file, whatever the [`Naming`]. In a space with a directory it
    /// does not exclude [`Target::image`] of the same image elsewhere, which locks a lock file. Use
    /// it in a [direct](Naming::direct) space, and let the others lock the image, too.
    #[must_use]
    pub fn opened<N: AsRef<OsStr> + ?Sized>(name: &'a N, file: &'a impl AsFd) -> Self {
        Self(Means::Opened(name.as_ref(), file.as_fd()))
    }
}

impl Target<'_> {
    /// The name, or the path of an image as it was given.
    pub(crate) fn text(&self) -> &OsStr {
        match &self.0 {
            Means::Name(name) => name,
            Means::Image(path) | Means::NewImage(path) => path.as_os_str(),
            Means::Opened(name, _) => name,
        }
    }

    /// The path that it is, as far as it is one.
    pub(crate) fn path(&self) -> &Path {
        match &self.0 {
            Means::Name(name) => Path::new(name),
            Means::Image(path) | Means::NewImage(path) => path,
            Means::Opened(..) => Path::new(""),
        }
    }
}

impl fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! names {
    ($($from:ty => $how:expr),* $(,)?) => {$(
        impl<'a> From<$from> for Target<'a> {
            fn from(name: $from) -> Self {
                let how: fn($from) -> Cow<'a, OsStr> = $how;
                Self(Means::Name(how(name)))
            }
        }
    )*};
}

names! {
    &'a str => |name| Cow::Borrowed(name.as_ref()),
    &'a String => |name| Cow::Borrowed(name.as_ref()),
    &'a OsStr => |name| Cow::Borrowed(name),
    &'a OsString => |name| Cow::Borrowed(name),
    &'a Path => |name| Cow::Borrowed(name.as_os_str()),
    &'a PathBuf => |name| Cow::Borrowed(name.as_os_str()),
    String => |name| Cow::Owned(name.into()),
    OsString => |name| Cow::Owned(name),
    PathBuf => |name| Cow::Owned(name.into_os_string()),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(place: &Place, name: impl AsRef<OsStr>) -> BadRequest {
        place.name(OsStr::new(&name)).expect_err("no such name can be")
    }

    #[test]
    fn each_naming_refuses_what_it_cannot_write_down() {
        let dir = tempfile::tempdir().unwrap();
        let verbatim = Naming::verbatim(dir.path()).open(0o700).unwrap();
        for name in [".", "..", "a/b", "/a", "../x"] {
            assert_eq!(refused(&verbatim, name), BadRequest::NotOneComponent, "{name}");
        }
        assert_eq!(refused(&verbatim, "x".repeat(256)), BadRequest::TooLong { max: 255 });
        verbatim.name("x".repeat(255).as_ref()).unwrap();

        let hashed = Naming::md5(dir.path()).open(0o700).unwrap();
        for place in [&verbatim, &hashed, &Place::Direct, &Place::InMemory] {
            assert_eq!(refused(place, ""), BadRequest::Empty);
            assert_eq!(refused(place, "/a\0b"), BadRequest::Nul);
            assert!(matches!(refused(place, "/".repeat(4096)), BadRequest::TooLong { .. }));
        }
        assert_eq!(refused(&Place::Direct, "a"), BadRequest::Relative);
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
