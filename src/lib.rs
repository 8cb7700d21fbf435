//! One lock per disk image, across threads, processes and forks.
//!
//! A program that runs virtual machines must never let two of them write one disk. This crate
//! gives each image one lock: exclusive for a disk that is written, shared for a base image that
//! is only read. It counts the owners of a lock, says who is in the way of a refused one, removes
//! the lock files that it made, and holds on through forks and closes that would lose other kinds
//! of lock. It is libvirt's lockspace (`virlockspace.c`) as a library, on open-file-description
//! (OFD) locks.
//!
//! # A first program
//!
//! ```
//! use lockspace::{AcquireError, LockSpace, Naming, OwnerId, Request, Target, Wait};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let (locks, image) = (dir.path().join("locks"), dir.path().join("a.qcow2"));
//! # std::fs::write(&image, "")?;
//! let space = LockSpace::open(Naming::md5(locks))?;
//! let disk = || Request::exclusive(Target::image(&image)).auto_create();
//!
//! let lease = space.acquire(OwnerId::new(4711), disk(), Wait::NO)?;
//! println!("locked {:?} as {}", lease.name(), lease.path().display());
//!
//! match space.acquire(OwnerId::new(4712), disk(), Wait::NO) {
//!     // "/img/a.qcow2" is busy: held exclusive by owner 4711; asked for exclusive (...)
//!     Err(AcquireError::Busy(busy)) => println!("{busy}"),
//!     other => panic!("{other:?}"),
//! }
//!
//! lease.release()?; // as its drop does, but this tells whether the lock file is gone
//! assert!(space.list().is_empty());
//! # Ok(())
//! # }
//! ```
//!
//! # Words
//!
//! | word | what it means |
//! |---|---|
//! | lockspace | the map from resources to holds: [`LockSpace`] |
//! | resource | a named thing to lock; a [`Target`] says which |
//! | lock file | the file that stands for it, in a directory or the image itself: [`Naming`] |
//! | owner | a number that the caller chooses, a VM's for example: [`OwnerId`] |
//! | hold | one granted acquire of one owner; an owner may have several of one resource |
//! | lease | a hold as a value, which nobody else can end: [`Lease`] |
//! | kept hold | a lease that was given to the space by [`Lease::keep`], for [`LockSpace::release`] and [`LockSpace::release_owner`] to end |
//! | exclusive, shared | alone, or beside other shared holds: [`Mode`] |
//! | holder | who has a lock, as the kernel tells it: [`Holder`] |
//!
//! # Layers
//!
//! The source is a handful of folders. Each uses only those below it, which a test checks
//! (`architecture.rs`), and the head of each says what it is and what it must not know:
//!
//! ```text
//! snapshot   documents: write down what is held, execute, prove, restore
//! api        the public types that do things: spaces, leases; one line for each verb
//! transfer   one descriptor that arrives: proof of what it carries
//! acquire    from a request to a hold: try, queue, contend, all or none, convert
//! core       a space: its table under one mutex, and what creates, deletes, releases, looks, freezes
//! wait       how a call sleeps (the queue is the table's): deadline, cancel, inotify, workers
//! table      the state machine of resources: owners, queue, freeze, fairness; no system call
//! error      one error for each verb
//! engine     a lock on one thing: name, directory, open, lock, unlink, who holds it
//! sync       a mutex with a condition variable; what wakes one waiting call
//! sys        all of Linux, and all `unsafe`
//! types      plain values: owner, mode, range, request, target
//! ```
//!
//! A request for a lock goes down this way, and the hold comes back up:
//!
//! 1. **Name** (`acquire/resolve.rs`, `engine/resolve.rs`): a [`Request`] has a [`Target`]. Only
//!    [`Target::image`] and [`Target::new_image`] resolve a path; any other name is taken byte by
//!    byte. A try of such a name takes a shorter way, all of it in `acquire/mod.rs`.
//! 2. **Table** (`acquire/admit.rs`, `table`): the resource with this name is held already, or waited
//!    for in the table's queue, or this call's to acquire. One mutex guards the table; no system call
//!    is made under it.
//! 3. **Path** (`engine/name.rs`): the space's [`Naming`] says which file stands for the name.
//! 4. **Descriptor** (`engine/open.rs`): the file is opened, and created if the request said
//!    [`auto_create`](Request::auto_create).
//! 5. **Lock** (`sys/ofd.rs`): an OFD lock on the request's [`ByteRange`]. Then the name must still
//!    lead to the descriptor's file (`engine/identity.rs`), or everything begins again.
//! 6. **Hold** (`core/transition.rs`): the lock is written into the table, with its first owner. The
//!    owner's hold is a value (`core/hold.rs`), and the caller has it as a [`Lease`].
//!
//! A wait that finds the file locked elsewhere asks `acquire/contender.rs` what to do next, a state
//! machine that makes no system call; `acquire/contend.rs` does it. An upgrade or a downgrade begins in
//! `acquire/convert.rs`; an upgrade that waits is driven by the same machine.
//!
//! A release goes through `core/release.rs`: the last owner to leave unlinks, unlocks and closes the
//! file, or the table hands the locked file over to the first waiter. A restore proves each document
//! (`snapshot/prove.rs`) and each descriptor (`transfer/prove.rs`), and makes a space of them
//! (`core/snapshot.rs`) without acquiring anything.
//!
//! # Waiting
//!
//! Every acquire says how long it may take: [`Wait::NO`] tries, [`Wait::within`] has a deadline,
//! [`Wait::FOREVER`] has none, and [`Wait::unless`] adds a [`Cancel`]. Within a space, waits are
//! served in order, and a shared request does not pass an exclusive one that waits. Between
//! processes nobody keeps an order, but everybody gets a turn.
//! [`LockSpace::acquire_all`] takes several or none, and holds none while it waits for one.
//! [`Lease::upgrade`] and [`Lease::downgrade`] change the mode of a hold without a gap.
//!
//! # The promise
//!
//! 1. **One holder.** While an exclusive hold lasts, nobody else gets the resource: no thread, no
//!    other `LockSpace` in the process, no other process that takes record or OFD locks on an
//!    overlapping range of the file, and in a [direct](Naming::direct) space no other name of the
//!    file (hard link, symlink, `a//b`).
//! 2. **Nothing lost.** No refused or failed call, bad input, fork, failed exec, panic in a
//!    caller's thread, or descriptor closed elsewhere weakens a hold that was granted.
//! 3. **Nothing left.** After the last owner's release the next acquire succeeds at once, though
//!    forked children still have the descriptor. After SIGKILL it succeeds as soon as no process
//!    shares the descriptor; [`LockSpace::holders`] names those that do. A lock file that was left
//!    behind blocks nobody.
//! 4. **One resource never stalls another.** A file system that gives no answer delays the callers
//!    that ask for its files, and nobody else.
//! 5. **Every refusal explains itself:** which resource, which file, which mode, who holds it as
//!    far as that can be known, and "outside this lock space" or "unknown" where it cannot.
//!
//! The promise ends where no lock can reach: a process that shares the very descriptor and unlocks
//! it, a second device node of one block device, the upper file under an overlay, hard links and
//! bind mounts behind names in a directory, a file that is renamed or removed by hand, a program
//! that locks a lock file of [`auto_create`](Request::auto_create) and does not look whether that
//! still has its name (LXC), and every program that takes no lock, since locks are advisory.
//!
//! # Pitfalls
//!
//! ## fork
//!
//! A forked child shares its parent's descriptors, and to unlock one of them would unlock the
//! parent's. So a child's leases do nothing when dropped, and its calls are refused
//! ([`AcquireError::Forked`]): open a space of its own there, if the parent had one thread beside
//! the workers of this crate. (A child of more threads has a copy of mutexes that other threads had
//! locked, parking_lot's own tables among them: let it execute a program first.) While children live,
//! a *killed* parent's locks live on in them, unless they have executed another program. A daemon forks
//! into the background first, and then opens its space and locks.
//!
//! ## exec
//!
//! All descriptors are close-on-exec: programs that you start hold nothing of yours, and a process
//! that executes itself anew has lost all its holds, unless it does so by a `snapshot` (feature
//! `snapshot`).
//!
//! ## POSIX locks of your own
//!
//! A POSIX record lock is lost when the process closes *any* descriptor of the file. This crate
//! takes none, so its locks are safe from other code's closes. The reverse is not true: a direct
//! space closes the image when a hold ends or is refused, and there go the POSIX locks that your
//! own process has on it. [`holders_of`] opens nothing.
//!
//! ## `flock`
//!
//! `flock(2)`, `flock(1)`, [`std::fs::File::lock`] and the crates on top of them take a kind of
//! lock that excludes nothing here, and is not excluded.
//!
//! ## Two paths of one image
//!
//! A directory's lock file stands for a *name*. [`Target::image`] makes one name of all spellings of
//! a path, but not of two paths that both lead to the image without a symlink: through a bind mount
//! of its folder, in another mount namespace or chroot, by a hard link, on a file system that ignores
//! case. These are two locks, and the image can be held twice. The cure is a
//! [direct](Naming::direct) space, which locks the image itself; [`Request::refuse_hard_links`] finds
//! hard links, and nothing finds the others. An image that is not there yet is locked by
//! [`Target::new_image`]: its path as a plain name would not be the one that `image` finds later.
//!
//! ## Renames
//!
//! A lock file, or a directly locked image, that somebody renames or replaces while it is held stays
//! locked, but others can lock what is in its place: [`Lease::verify`] finds that out.
//!
//! ## Where lock files lie
//!
//! In a directory of one user's own, which nobody sweeps: whoever can write there, or removes old
//! files as cleaners of `/tmp` do, can make every lock worthless. A directory that is moved or
//! replaced is found out by the next acquire ([`AcquireError::DirectoryReplaced`]).
//!
//! ## QEMU
//!
//! QEMU locks bytes 100 to 103 and 200 to 203 of an image, all of them shared, also where it writes.
//! [`ByteRange::FIRST`], the default, does not meet them. [`ByteRange::WHOLE_FILE`] does: an
//! exclusive hold and a running QEMU exclude each other. A shared hold is granted beside a QEMU that
//! runs, even one that writes; only a QEMU that comes later is refused.
//!
//! A QEMU that is given a descriptor of [`Target::opened`] locks through the same open file. On bytes
//! that the hold covers, its locks and the hold's replace each other; on others, such as all of
//! QEMU's beside [`ByteRange::FIRST`], neither touches the other's.
//!
//! ## Overlays, network file systems, containers
//!
//! A lock through an overlay does not exclude one on the upper file beneath it. Network file
//! systems are not tested; whether other hosts know of a lock is decided by the mount, and
//! [`holders_of`] sees this host alone. Containers exclude each other where they see the same
//! file. Holders in another pid namespace may be [unknown](HeldBy::Unknown), and record locks of
//! another one are not listed.
//!
//! # Async code
//!
//! Every call that acquires, releases or looks, and the drop of a [`Lease`], makes system calls,
//! and blocks as long as the file system does. Run them where blocking is allowed, such as tokio's
//! `spawn_blocking`. A lease is `Send`: acquire it there, keep it in a task, and move it back to
//! release it. What is held in this space is refused without a system call; [`LockSpace::list`]
//! and [`LockSpace::retake`] make none either.
//!
//! Do not run waits and releases in one pool of bounded size. If waits occupy all of its threads, the
//! release that they wait for has none, and everybody waits until a deadline. So give waits a pool (or
//! threads) of their own, or allow fewer waits at once than the pool has threads, by a semaphore, say.
//!
//! # Features
//!
//! - `sha256` adds SHA-256 naming, to meet libvirt's lock daemon in its `file_lockspace_dir`.
//! - `snapshot` adds the module `snapshot`: locks that outlive the program.
//! - `tracing` emits events, with the target `lockspace`:
//!
//!   | event | level | fields | when |
//!   |---|---|---|---|
//!   | `granted` | debug | `owner`, `name`, `mode`, `waited` | an acquire, an upgrade or a downgrade has succeeded; once for each lease |
//!   | `waiting` | debug | `owner`, `name`, `mode` | a call is about to sleep until a holder is gone; once for each resource |
//!   | `refused` | debug | `owner`, `name`, `mode`, `waited`, `error` | such a call has failed; several at once are refused once |
//!   | `released` | debug | `owner`, `name`, `mode` | a hold has ended, whoever ended it |
//!   | `a lock file was left over` | warn | `error` | a drop could not remove a lock file, and has no caller to tell |
//!
//!   The thread that makes a call emits its events, while it has no mutex locked: a subscriber may use
//!   the space. One warning can come from a thread of this crate, whose stack has 512 KiB: when
//!   [`acquire_all`](LockSpace::acquire_all) gives back what it got on a file system that may hang. A
//!   subscriber that panics loses its event; the call goes on. A release that a snapshot defers is
//!   `released` at once; a restore emits nothing.
#![warn(missing_docs)]
// docs.rs shows which feature an item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "lockspace works on Linux only: it is built on open-file-description locks, /proc and MADV_WIPEONFORK"
);

mod acquire;
mod api;
#[cfg(test)]
mod architecture;
mod core;
mod engine;
mod error;
#[cfg(feature = "snapshot")]
pub mod snapshot;
mod sync;
mod sys;
mod table;
#[cfg(feature = "snapshot")]
mod transfer;
mod types;
mod wait;

pub use api::{Builder, Lease, Leases, LockSpace};
pub use core::{HeldResource, Released};
pub use engine::{HeldBy, Holder, Kind, Process, holders_of};
pub use error::{
    AcquireError, Busy, DeadlockCause, LockFileError, OpenError, ReleaseError, VerifyError,
};
pub use types::{
    ByteRange, InvalidRequest, IoError, Mode, Naming, Origin, Outside, OwnerId, Request, Target,
};
pub use wait::{Cancel, CancelOnDrop, Wait};

/// Its programs compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
