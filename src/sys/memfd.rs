//! Sealed files in memory, which carry bytes through an exec.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};

/// What a file is for, which its name tells.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    /// What the program gives its successor.
    State,
    /// The releases that were deferred at the exec.
    Releases,
}

impl Content {
    fn file_name(self) -> &'static str {
        match self {
            Self::State => "lockspace-state",
            Self::Releases => "lockspace-releases",
        }
    }
}

/// The inodes of those that this program has made: it owns every descriptor of theirs, and others
/// may own more, of the number's path in `/proc` opened anew. Never forgotten, since those may live on.
static OWN: Mutex<Vec<u64>> = Mutex::new(Vec::new());

/// A file in memory that nobody can change any more. Close-on-exec, until it is told otherwise.
#[derive(Debug)]
pub(crate) struct MemoryFile(OwnedFd);

impl MemoryFile {
    pub(crate) fn new(content: Content, bytes: &[u8]) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(content.file_name(), flags)?;
        let mut file = File::from(super::fd::above_stdio(&fd)?);
        file.write_all(bytes)?;
        rustix::fs::fcntl_add_seals(&file, all_seals())?;
        OWN.lock().push(inode(&file)?);
        Ok(Self(file.into()))
    }

    pub(crate) fn number(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

fn inode(file: &File) -> io::Result<u64> {
    Ok(super::fs::fstat(file)?.id().ino)
}

fn all_seals() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE
}

/// The bytes of a file that [`MemoryFile::new`] made in the program before this one. It stays open.
///
/// # Errors
/// If the number is not that of such a file, or this program has made it itself.
pub(crate) fn read(content: Content, number: RawFd) -> io::Result<Vec<u8>> {
    let path = super::procfs::path_by_number(number);
    let refused = || io::Error::new(io::ErrorKind::InvalidInput, "no state was carried in it");
    // Reopened, so that nothing is assumed of the number before it is known what is there.
    let link = std::fs::read_link(&path)?;
    let mut file = File::open(&path)?;
    let named = link == Path::new(&format!("/memfd:{} (deleted)", content.file_name()));
    if !named || rustix::fs::fcntl_get_seals(&file).ok() != Some(all_seals()) {
        return Err(refused());
    }
    if OWN.lock().contains(&inode(&file)?) {
        return Err(refused());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// As [`read`], and closes the file then.
pub(crate) fn take(content: Content, number: RawFd) -> io::Result<Vec<u8>> {
    let bytes = read(content, number)?;
    // SAFETY: it is a file that only `new` makes, and not one that this program has made, so it
    // was carried over an exec, and nobody in this program can own it.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    Ok(bytes)
}
