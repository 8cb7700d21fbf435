//! Several processes: forked children, killed holders, and who is told to hold what.

mod churn;
mod fork;
mod ghosts;
mod holders;
mod main_thread;
#[path = "../support/mod.rs"]
mod support;
mod system_calls;
mod waiting_children;
