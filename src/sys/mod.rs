//! The few things that only `unsafe` code can ask of the kernel, each behind a safe function.
//!
//! This is the one room in the crate where `unsafe` is allowed.
#![allow(unsafe_code)]

#[cfg(feature = "snapshot")]
pub(crate) mod exec;
#[cfg(feature = "snapshot")]
pub(crate) mod fd;
pub(crate) mod fork;
pub(crate) mod inotify;
pub(crate) mod kcmp;
#[cfg(feature = "snapshot")]
pub(crate) mod memfd;
pub(crate) mod mounts;
pub(crate) mod ofd;
pub(crate) mod procfs;
