//! Device and inode: which file it is.

/// Device and inode. They identify a file only as long as somebody has it open: file systems give
/// the inode number of a file that is gone to the next one at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}
