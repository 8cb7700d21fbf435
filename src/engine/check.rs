//! Which files can stand for a resource.

use std::path::PathBuf;

use super::lock_file::LockError;
use crate::sys::fs::{FileKind, FileStatus};
use crate::types::{HardLinks, InvalidRequest, LockSpec};

/// Refuses a file that no lock can be taken on as `spec` says.
pub(super) fn check_file(
    status: &FileStatus,
    path: impl FnOnce() -> PathBuf,
    spec: &LockSpec,
) -> Result<(), LockError> {
    check_kind(status.kind(), path)?;
    if spec.hard_links == HardLinks::Refused { check_links(status.links()) } else { Ok(()) }
}

/// Only a regular file or a block device can stand for a resource.
pub(super) fn check_kind(kind: FileKind, path: impl FnOnce() -> PathBuf) -> Result<(), LockError> {
    let kind = match kind {
        FileKind::Regular | FileKind::BlockDevice => return Ok(()),
        FileKind::Directory => "a directory",
        FileKind::Symlink => "a symbolic link",
        FileKind::Fifo => "a FIFO",
        FileKind::Socket => "a socket",
        FileKind::CharacterDevice => "a character device",
        FileKind::Unknown => "no file that can be written",
    };
    Err(LockError::Invalid(InvalidRequest::NotAFile { path: path(), kind }))
}

pub(super) fn check_links(links: u64) -> Result<(), LockError> {
    match links {
        // A file that has just lost its name is found out by its identity.
        0 | 1 => Ok(()),
        links => Err(LockError::Invalid(InvalidRequest::HardLinks { links })),
    }
}
