//! Which file it is.

/// Which file it is, as long as somebody has it open: file systems give a freed inode number to
/// the next file at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}
