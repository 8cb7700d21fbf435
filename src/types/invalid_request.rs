//! What is wrong with a request.

use std::ffi::OsString;
use std::path::PathBuf;

use super::ByteRange;
use super::display::{DisplayPath, FileSubject};

/// What is wrong with a request, or with the file that it leads to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRequest {
    /// The name is empty.
    #[error("the name is empty")]
    Empty,
    /// The name is longer than this naming allows.
    #[error("the name has more than {max} bytes")]
    TooLong {
        /// How many bytes are allowed.
        max: usize,
    },
    /// The name has a NUL byte.
    #[error("the name has a NUL byte")]
    Nul,
    /// The name is not one path component, as verbatim naming needs.
    #[error("the name is not one path component")]
    NotOneComponent,
    /// The name is not an absolute path, as a direct space needs.
    #[error("a direct space needs an absolute path: `Target::image` makes one")]
    Relative,
    /// The path of [`Target::new_image`](crate::Target::new_image) ends in `/`, `.` or `..`, as no
    /// image's does.
    #[error("the path ends in `/`, `.` or `..`, so it does not name a file")]
    NoFileName,
    /// The folder of the path of [`Target::new_image`](crate::Target::new_image) is not there.
    #[error("its folder {} does not exist", DisplayPath(.folder))]
    NoFolder {
        /// The path without its last component.
        folder: PathBuf,
    },
    /// The path of [`Target::new_image`](crate::Target::new_image) is a symlink to a file that does
    /// not exist.
    #[error("it is a symbolic link to a file that does not exist")]
    DanglingSymlink,
    /// The target's file is neither a regular file nor a block device.
    #[error("{} {kind}, neither a regular file nor a block device", FileSubject(.path))]
    NotAFile {
        /// Where it is.
        path: PathBuf,
        /// What it is, such as "a directory".
        kind: &'static str,
    },
    /// The file has other names, and [`Request::refuse_hard_links`] was asked for.
    ///
    /// [`Request::refuse_hard_links`]: crate::Request::refuse_hard_links
    #[error("the file has {links} names")]
    HardLinks {
        /// How many names the file has.
        links: u64,
    },
    /// In a direct space, no acquire creates the user's image, and no release removes it.
    #[error("a direct space does not create files")]
    AutoCreateInDirect,
    /// The file can only be read, and an exclusive lock needs a descriptor that can write.
    #[error("the file can only be read: it can be held shared, not exclusive nor upgradable")]
    ReadOnly,
    /// The descriptor is not open for the mode: shared needs reading, exclusive needs writing.
    #[error("the descriptor is not open for {needs}")]
    WrongAccess {
        /// "reading" or "writing".
        needs: &'static str,
    },
    /// The caller's open file carries a lock already, which this crate's lock would replace.
    #[error("the open file carries a lock already")]
    CarriesLock,
    /// The resource is held on other bytes, and all its holds in one space must have the same
    /// range.
    #[error("it is held on {held}, and was asked for on {asked}")]
    OtherRange {
        /// The range that it is held on.
        held: ByteRange,
        /// The range that was asked for.
        asked: ByteRange,
    },
    /// The name is held for another file than the request means: one of the two is a caller's open
    /// file.
    #[error("the name is held for another file")]
    OtherFile,
    /// The hold's file is open for reading only, so it cannot become exclusive: the first of the
    /// shared holds must ask with [`Request::upgradable`](crate::Request::upgradable).
    #[error("its file is open for reading only: the first hold did not ask with upgradable()")]
    NotUpgradable,
    /// Two requests of one `acquire_all` are about one file or name, and exclude each other.
    #[error("the request names the same file as {other:?}")]
    Twice {
        /// The name in the earlier of the two requests.
        other: OsString,
    },
    /// The owner already has the greatest number of holds of the resource that can be counted.
    #[error("the owner has too many holds of it")]
    TooManyHolds,
}
