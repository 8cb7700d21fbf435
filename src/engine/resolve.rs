//! Which file a target means, before anything is opened or locked.

use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::check::{check_kind, check_links};
use super::lock_file::LockError;
use super::opened::path_of;
use crate::sys::Errno;
use crate::sys::fs::{self, FileKind};
use crate::types::{FileId, HardLinks, InvalidRequest, IoError};

/// The path of an image without symlinks, `.` and `..`, and which file it is.
pub(crate) fn resolve_image(
    path: &Path,
    hard_links: HardLinks,
) -> Result<(PathBuf, FileId), LockError> {
    let failed = |call, source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => LockError::NotFound,
        _ => LockError::Io(IoError::new(call, path, source)),
    };
    let resolved = std::fs::canonicalize(path).map_err(|source| failed("realpath", source))?;
    let status = fs::stat(&resolved).map_err(|errno| failed("stat", errno.into()))?;
    check_kind(status.kind(), || resolved.clone())?;
    if hard_links == HardLinks::Refused {
        check_links(status.links())?;
    }
    Ok((resolved, status.id()))
}

/// The path of an image that may not be there yet: as [`resolve_image`] tells it, or will tell it
/// once the image is there. And which file is there, if one is.
pub(crate) fn resolve_new_image(
    path: &Path,
    hard_links: HardLinks,
) -> Result<(PathBuf, Option<FileId>), LockError> {
    let (folder, last) = folder_and_last(path).map_err(LockError::Invalid)?;
    let folder = std::fs::canonicalize(folder).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            LockError::Invalid(InvalidRequest::NoFolder { folder: folder.to_owned() })
        }
        _ => LockError::Io(IoError::new("realpath", folder, source)),
    })?;
    let full_path = folder.join(last);
    let status = match fs::lstat(&full_path) {
        Ok(status) => status,
        Err(Errno::NOENT) => return Ok((full_path, None)),
        Err(errno) => return Err(IoError::new("lstat", &full_path, errno).into()),
    };
    if status.kind() == FileKind::Symlink {
        return match resolve_image(&full_path, hard_links) {
            Ok((resolved, id)) => Ok((resolved, Some(id))),
            // The program that makes the file may replace the symlink or follow it, and these are two
            // names.
            Err(LockError::NotFound) => Err(LockError::Invalid(InvalidRequest::DanglingSymlink)),
            Err(error) => Err(error),
        };
    }
    check_kind(status.kind(), || full_path.clone())?;
    if hard_links == HardLinks::Refused {
        check_links(status.links())?;
    }
    Ok((full_path, Some(status.id())))
}

/// A path's folder and its last component, byte by byte: [`Path::file_name`] takes `a/` and `a/.`
/// for `a`.
fn folder_and_last(path: &Path) -> Result<(&Path, &OsStr), InvalidRequest> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Err(InvalidRequest::Empty);
    }
    if bytes.contains(&0) {
        return Err(InvalidRequest::Nul);
    }
    let slash = bytes.iter().rposition(|&byte| byte == b'/');
    let (folder, last) = match slash {
        None => (&b"."[..], bytes),
        Some(0) => (&b"/"[..], &bytes[1..]),
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
    };
    match last {
        b"" | b"." | b".." => Err(InvalidRequest::NoFileName),
        _ => Ok((Path::new(OsStr::from_bytes(folder)), OsStr::from_bytes(last))),
    }
}

/// Which file a descriptor is open on.
pub(crate) fn id_of(fd: BorrowedFd<'_>, hard_links: HardLinks) -> Result<FileId, LockError> {
    let status = fs::fstat(fd).map_err(|errno| IoError::new("fstat", path_of(fd), errno))?;
    if hard_links == HardLinks::Refused {
        check_links(status.links())?;
    }
    Ok(status.id())
}

/// Which file the path leads to, without opening it.
pub(crate) fn id_at(path: &Path) -> Result<FileId, LockError> {
    match fs::stat(path) {
        Ok(status) => Ok(status.id()),
        Err(Errno::NOENT) => Err(LockError::NotFound),
        Err(errno) => Err(IoError::new("stat", path, errno).into()),
    }
}

/// Refuses a file that has other names. What is not there has none.
pub(crate) fn refuse_hard_links(path: &Path) -> Result<(), LockError> {
    fs::stat(path).map_or(Ok(()), |status| check_links(status.links()))
}
