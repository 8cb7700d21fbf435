//! A lock on one thing: a file in a directory, an image, a caller's open file. One call of the kernel
//! after the other; none of them waits for a lock.
//!
//! This layer uses `types`, `sys` and `sync`. It knows no owner, no queue and no waiting.

mod check;
mod directory;
mod holder;
mod holders;
mod identity;
mod lock_file;
mod lock_path;
mod name;
mod open;
mod opened;
mod refusal;
mod removal;
mod resolve;
mod trial;

pub use holder::{HeldBy, Holder, Kind, Process};
pub use holders::holders_of;
pub(crate) use holders::{holders_beside, holders_of_descriptor};
pub(crate) use lock_file::{LockError, LockFile, Retried};
#[cfg(feature = "snapshot")]
pub(crate) use name::check;
pub(crate) use name::{Key, Name, OpenNaming};
pub(crate) use open::create_file;
pub(crate) use opened::{InodeLocks, duplicate, mount_of, path_of};
pub(crate) use refusal::Attempt;
pub(crate) use removal::delete_file;
pub(crate) use resolve::{id_at, id_of, refuse_hard_links, resolve_image, resolve_new_image};
