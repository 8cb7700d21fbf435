//! Each verb by itself: what it grants, what it refuses and how it says so, and what it leaves.

mod aliases;
mod bad_input;
mod convert;
mod engine_promises;
mod errors;
mod kept;
mod leftovers;
mod libvirt_parity;
mod opened;
mod several;
#[path = "../support/mod.rs"]
mod support;
