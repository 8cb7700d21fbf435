//! The public types that do things: spaces and leases.

pub(crate) mod lease;

pub use lease::{Lease, Leases};
