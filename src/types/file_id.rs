//! Device and inode: which file it is.

/// Device and inode. They identify a file only as long as a process has it open: a file system may
/// give the inode number of a removed file to the next new file at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}
