//! Several processes: forked children, killed holders, and who is told to hold what.

mod churn;
mod fork;
mod holders;
mod main_thread;
#[path = "../support/mod.rs"]
mod support;
