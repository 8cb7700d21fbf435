//! Each verb by itself: what it grants, what it refuses and how it says so, and what it leaves.

mod aliases;
mod bad_input;
mod convert;
mod create_and_delete;
mod errors;
mod kept;
mod kernel_answers;
mod leftovers;
mod lifetimes;
mod many;
mod modes;
mod moved_directories;
mod naming;
mod opened;
mod opening;
mod owners;
mod ranges;
mod several;
mod stale_files;
#[path = "../support/mod.rs"]
mod support;
mod twice;
mod users_files;
mod verify;
mod waiting_upgrades;
