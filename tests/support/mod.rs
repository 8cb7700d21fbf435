//! What the tests of all binaries share, and the bench of waits with them.
//!
//! | file | what is in it |
//! |---|---|
//! | `alone` | a test in a process of its own: this binary once more |
//! | `faults` | system calls that fail as a test says |
//! | `forked` | forked children: what they do, how they end, gates between them and their parent |
//! | `hung_fs` | a FUSE file system that hangs |
//! | `interop` | what a test does where something is missing that it needs |
//! | `locks` | locks that are taken behind the crate's back, and how other processes find a file |
//! | `process` | what this process is: descriptors, threads, watches, signals, limits, rights |
//! | `random` | numbers in a disorder that is the same each time |
//! | `rounds` | how long tests run that repeat something |
//! | `spaces` | spaces, requests, and what comes of them |
//! | `state` | state documents, and pictures of what they must not change |
//! | `waits` | threads that wait, and how a test knows that they do |

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod alone;
pub(crate) mod faults;
pub(crate) mod forked;
pub(crate) mod hung_fs;
pub(crate) mod interop;
pub(crate) mod locks;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod rounds;
pub(crate) mod spaces;
#[cfg(feature = "snapshot")]
pub(crate) mod state;
pub(crate) mod waits;
