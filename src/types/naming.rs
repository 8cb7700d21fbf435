//! How a space finds the file that stands for a name.

use std::path::PathBuf;

/// How a space finds the lock file of a resource's name. It contains the directory of the lock
/// files, if there is one, so that a caller can neither forget it nor give one to a space that
/// needs none.
///
/// | naming | lock file of the resource `NAME` | for |
/// |---|---|---|
/// | [`md5`](Self::md5) | `DIR/` and the MD5 of the name in hex | names of any length, such as image paths |
/// | `sha256` | `DIR/` and its SHA-256 | the same, beside libvirt's lock daemon (feature `sha256`) |
/// | [`verbatim`](Self::verbatim) | `DIR/NAME` | names that are file names, as LXC's are |
/// | [`direct`](Self::direct) | `NAME`, the image itself | where every program that writes images must be kept out |
/// | [`in_memory`](Self::in_memory) | none | threads of one process, as LXC's anonymous lock |
#[derive(Clone, Debug)]
pub struct Naming(pub(crate) NamingKind);

#[derive(Clone, Debug)]
pub(crate) enum NamingKind {
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
    /// Lock files in `directory`, named by the MD5 of the resource's name. MD5 is no protection
    /// here: two names with the same MD5 merely exclude each other.
    #[must_use]
    pub fn md5(directory: impl Into<PathBuf>) -> Self {
        Self(NamingKind::Directory(Scheme::Md5, directory.into()))
    }

    /// Lock files in `directory`, named by the SHA-256 of the resource's name: what libvirtd asks
    /// its lock daemon for when `file_lockspace_dir` is set, so that both meet on one file.
    #[cfg(feature = "sha256")]
    #[must_use]
    #[doc(alias = "file_lockspace_dir")]
    pub fn sha256(directory: impl Into<PathBuf>) -> Self {
        Self(NamingKind::Directory(Scheme::Sha256, directory.into()))
    }

    /// Lock files in `directory`, named as the resource is. A name is one path component then.
    #[must_use]
    pub fn verbatim(directory: impl Into<PathBuf>) -> Self {
        Self(NamingKind::Directory(Scheme::Verbatim, directory.into()))
    }

    /// No lock files: a name is the absolute path of the file that is locked itself.
    #[must_use]
    pub fn direct() -> Self {
        Self(NamingKind::Direct)
    }

    /// No files at all: the lock is known to this space alone.
    #[must_use]
    #[doc(alias = "lxc_newlock")]
    pub fn in_memory() -> Self {
        Self(NamingKind::InMemory)
    }
}
