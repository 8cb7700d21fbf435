//! Waiting: who is granted when, deadlines and cancelling, the order within a space and between
//! processes, file systems that hang, and what of a wait is left when it is over.

mod answers;
mod cancelling;
mod costs;
mod deadlines;
mod deadlock;
mod degraded;
mod fairness;
mod granted;
mod hand_over;
mod hung;
mod hung_deadlines;
mod in_vain;
mod left_behind;
mod opened;
mod queue;
#[path = "../support/mod.rs"]
mod support;
mod under_fire;
mod wake_ups;
mod watches;
mod ways;
