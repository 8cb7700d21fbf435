//! A lock on one thing: a file in a directory, an image, a caller's open file.
//!
//! This layer uses `types`, `sys` and `sync`. It knows no owner, no queue and no waiting.

pub(crate) mod directory;
pub(crate) mod holders;
pub(crate) mod lock_file;
pub(crate) mod name;

pub use holders::{HeldBy, Holder, Kind, Process, holders_of};
