//! The few things that only `unsafe` code can ask of the kernel, each behind a safe function.
//!
//! This is the one room in the crate where `unsafe` is allowed.
#![allow(unsafe_code)]

#[cfg(feature = "snapshot")]
pub(crate) mod descriptor;
#[cfg(feature = "snapshot")]
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod kcmp;
#[cfg(feature = "snapshot")]
pub(crate) mod memory_file;
pub(crate) mod ofd;
