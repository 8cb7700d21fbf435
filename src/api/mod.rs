//! The public types that do things: spaces and leases. Their verbs are one line each; what these do
//! is in the layers below.
//!
//! This layer uses every layer below it. It knows no descriptor and no mutex.

mod builder;
mod lease;
mod leases;
mod space;

pub use builder::Builder;
pub use lease::Lease;
pub use leases::Leases;
pub use space::LockSpace;
