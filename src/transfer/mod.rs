//! One descriptor that arrives: proof of what it carries.
//!
//! This layer uses every layer below it. It does not know documents, nor how a descriptor has
//! arrived: by an exec, from a parent, or over a socket.

mod prove;

pub(crate) use prove::{DescriptionSet, ExpectedLock, NotProven, Prover};
