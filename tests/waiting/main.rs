//! Waiting: who is granted when, deadlines and cancelling, file systems that hang, and what of a wait
//! is left when it is over.

mod hung;
mod left_behind;
mod promises;
#[path = "../support/mod.rs"]
mod support;
mod waiting;
