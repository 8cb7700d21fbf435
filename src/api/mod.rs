//! The public types with verbs: spaces and leases. Each verb calls the layer that does the work:
//! `acquire` for acquires, upgrades and downgrades, `core` for the others.
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
