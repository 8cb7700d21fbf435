//! What the tests of all binaries share.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod faults;
pub(crate) mod forked;
pub(crate) mod hung_fs;
pub(crate) mod interop;
pub(crate) mod process;
#[cfg(feature = "snapshot")]
pub(crate) mod state;
pub(crate) mod waits;
