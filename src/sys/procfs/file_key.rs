//! What the kernel's tables of locks call an open file.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::fdinfo::FdInfo;
use super::locks::FileKey;
use super::mountinfo::Mounts;

impl FileKey {
    /// By way of `/proc`; what that does not tell (a kernel before 5.14, a mount outside of this
    /// process's root) `fstat` has to.
    pub(crate) fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        match Self::of_number(file.as_raw_fd()) {
            Ok(Some(key)) => Ok(key),
            _ => {
                let id = crate::sys::fs::fstat(file)?.id();
                Ok(Self { dev: id.dev, ino: id.ino })
            }
        }
    }

    /// The same of whatever this process has open under this number, without touching it; `None`
    /// where `/proc` does not tell.
    fn of_number(number: RawFd) -> io::Result<Option<Self>> {
        let info = FdInfo::of_own(number)?;
        let (Some(ino), Some(mount)) = (info.inode(), info.mount()) else { return Ok(None) };
        let device = Mounts::read()?.device_of(mount);
        Ok(device.map(|dev| Self { dev, ino }))
    }
}
