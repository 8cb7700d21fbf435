//! Plain values: what a caller says, and what is said to a caller.
//!
//! This layer uses no other one. It knows no I/O, no locks and no state.

mod display;
mod file_id;
mod invalid_request;
mod io_error;
mod lock_spec;
mod mode;
mod naming;
mod origin;
mod outside;
mod owner;
mod range;
mod request;
mod target;

pub(crate) use display::DisplayPath;
pub(crate) use file_id::FileId;
pub use invalid_request::InvalidRequest;
pub use io_error::IoError;
pub(crate) use lock_spec::{HardLinks, LockSpec};
pub use mode::Mode;
pub use naming::Naming;
pub(crate) use naming::{NamingKind, Scheme};
pub use origin::Origin;
pub use outside::Outside;
pub use owner::OwnerId;
pub use range::ByteRange;
pub use request::Request;
pub(crate) use request::Settings;
pub use target::Target;
pub(crate) use target::TargetKind;
