//! The few things that only `unsafe` code can ask of the kernel, each behind a safe function.
//!
//! This is the one room in the crate where `unsafe` is allowed.
#![allow(unsafe_code)]

pub(crate) mod fork;
pub(crate) mod kcmp;
pub(crate) mod ofd;
