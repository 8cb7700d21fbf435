//! One lock per disk image, across threads, processes and forks.
#![warn(missing_docs)]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "lockspace works on Linux only: it is built on open-file-description locks, /proc and MADV_WIPEONFORK"
);

mod directory;
mod error;
mod holder;
mod kernel;
mod lease;
mod lock_file;
mod name;
mod process;
mod request;
mod resource;
mod space;
mod wait;

pub use error::{
    AcquireError, BadRequest, Busy, CreateError, DeleteError, IoError, OpenError, ReleaseError,
    VerifyError,
};
pub use holder::{By, Holder, Kind, Process, holders_of};
pub use lease::Lease;
pub use name::{Naming, Target};
pub use request::{ByteRange, Mode, OwnerId, Request};
pub use resource::Origin;
pub use space::{Builder, Held, LockSpace, Released};
pub use wait::Wait;
