//! Which resource is meant.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

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
/// # let dir = tempfile::tempdir()?;
/// # let image = dir.path().join("b.qcow2");
/// # std::fs::write(&image, "")?;
/// let file = std::fs::File::open(&image)?;
/// let by_descriptor = Request::shared(Target::opened("disk-8", &file));
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone)]
pub struct Target<'a>(pub(crate) TargetKind<'a>);

#[derive(Clone, Debug)]
pub(crate) enum TargetKind<'a> {
    Name(Cow<'a, OsStr>),
    Image(&'a Path),
    NewImage(&'a Path),
    Opened(&'a OsStr, BorrowedFd<'a>),
}

impl<'a> Target<'a> {
    /// The disk image that this path leads to, by whatever spelling: the resource's name is the
    /// path with every symlink, `.` and `..` resolved, when the request is made.
    /// [`Lease::name`](crate::Lease::name) returns that name, and
    /// [`LockSpace::release`](crate::LockSpace::release) takes it. The file must be a regular file
    /// or a block device; for an image that may not be there yet, use [`Target::new_image`].
    ///
    /// Mirrors the `realpath` that libvirt leaves to its callers.
    ///
    /// In a space with a directory, the lock is on the *path*, and one image can have two paths
    /// that no resolving makes equal: by a bind mount of its folder, in another mount namespace or
    /// chroot, by a hard link, and on a file system that ignores case. Such an image is two
    /// resources there, and can be held twice. A [direct](crate::Naming::direct) space locks the
    /// image itself, so all these paths exclude each other.
    #[must_use]
    #[doc(alias = "realpath")]
    pub fn image<P: AsRef<Path> + ?Sized>(path: &'a P) -> Self {
        Self(TargetKind::Image(path.as_ref()))
    }

    /// The disk image of this path, which may not be there yet: to lock an image before it is made.
    ///
    /// An existing image is resolved as by [`Target::image`]. If there is none, the path's folder
    /// is resolved, and the path's last component appended: this is the name that `image` finds
    /// once the file has been created. (The path itself as a name is not: locked as `link/new.img`
    /// before, and by `image` afterwards, it is two resources.)
    ///
    /// A direct space locks the image itself, so there a missing one is
    /// [`AcquireError::NotFound`](crate::AcquireError::NotFound). A request is refused if the
    /// path's folder does not exist ([`InvalidRequest::NoFolder`]), if the path ends in `/`, `.` or
    /// `..` ([`InvalidRequest::NoFileName`]), and if it is a symlink to a file that does not exist
    /// ([`InvalidRequest::DanglingSymlink`]): only the program that creates the file decides where.
    ///
    /// [`InvalidRequest::NoFolder`]: crate::InvalidRequest::NoFolder
    /// [`InvalidRequest::NoFileName`]: crate::InvalidRequest::NoFileName
    /// [`InvalidRequest::DanglingSymlink`]: crate::InvalidRequest::DanglingSymlink
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
        Self(TargetKind::NewImage(path.as_ref()))
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
    /// The lock is on the descriptor's file, whatever the [`Naming`](crate::Naming). In a space with a directory it
    /// does not exclude [`Target::image`] of the same image elsewhere, which locks a lock file. Use
    /// it in a [direct](crate::Naming::direct) space, and let the others lock the image, too.
    #[must_use]
    pub fn opened<N: AsRef<OsStr> + ?Sized>(name: &'a N, file: &'a impl AsFd) -> Self {
        Self(TargetKind::Opened(name.as_ref(), file.as_fd()))
    }
}

impl Target<'_> {
    /// The name, or the path of an image as it was given.
    pub(crate) fn text(&self) -> &OsStr {
        match &self.0 {
            TargetKind::Name(name) => name,
            TargetKind::Image(path) | TargetKind::NewImage(path) => path.as_os_str(),
            TargetKind::Opened(name, _) => name,
        }
    }

    /// The target as a path, for error messages.
    pub(crate) fn path(&self) -> &Path {
        match &self.0 {
            TargetKind::Name(name) => Path::new(name),
            TargetKind::Image(path) | TargetKind::NewImage(path) => path,
            TargetKind::Opened(..) => Path::new(""),
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
                Self(TargetKind::Name(how(name)))
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
