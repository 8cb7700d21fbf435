//! All of Linux: every system call but the plain ones of the standard library, every path in
//! `/proc`, and every piece of `unsafe` code (but what is the contract of `restore`), each behind a
//! safe function.
//!
//! This layer uses `types`. It knows no resource and no owner.
#![allow(unsafe_code)]

#[cfg(feature = "snapshot")]
pub(crate) mod exec;
pub(crate) mod fd;
pub(crate) mod fork;
pub(crate) mod fs;
#[cfg(feature = "snapshot")]
pub(crate) mod inherited;
pub(crate) mod inotify;
pub(crate) mod local_fs;
#[cfg(feature = "snapshot")]
pub(crate) mod memfd;
pub(crate) mod ofd;
#[cfg(feature = "snapshot")]
pub(crate) mod process;
pub(crate) mod procfs;

/// The number of an error, as a system call gives it.
pub(crate) use rustix::io::Errno;
