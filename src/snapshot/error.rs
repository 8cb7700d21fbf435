//! What a snapshot, an exec or a restore fails with.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::RawFd;

use crate::error::{ForkedMessage, OpenError};
use crate::sys::process::READ_STAT;
use crate::transfer::NotProven;
use crate::types::InvalidRequest;

/// Why there is no snapshot. Nothing is frozen then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file system of a resource has not answered a request that nobody waits for any more;
    /// what becomes of it cannot be known.
    #[error("{name:?}: its file system has not answered, so its state is not known")]
    Unresponsive {
        /// The resource.
        name: OsString,
    },
    /// The same space was named twice.
    #[error("the same lock space was named twice")]
    Twice,
    /// The calling process is a forked child of the one that made the space.
    #[error("{}", ForkedMessage(*.creator))]
    Forked {
        /// The pid of the process that made the space.
        creator: u32,
    },
    /// `/proc` does not tell when this process was started.
    #[error("{call}: {0}", call = READ_STAT)]
    Io(#[source] io::Error),
}

/// The exec failed: this program goes on, and every lock is held.
#[derive(Debug, thiserror::Error)]
#[error("execve {program:?}: {source}")]
#[non_exhaustive]
pub struct ExecError {
    /// The program that was to be executed.
    pub program: OsString,
    /// Why it was not.
    pub source: io::Error,
}

/// An entry of a document that does not stand up to proof, or a document that does not.
#[derive(Debug)]
#[non_exhaustive]
pub struct RestoreError {
    /// Which document, counted from 0.
    pub document: usize,
    /// Which of its resources, counted from 0; `None` if the document itself is bad.
    pub entry: Option<usize>,
    /// The resource's name, as far as it can be read.
    pub name: Option<OsString>,
    /// The descriptor's number, as far as it can be read.
    pub fd: Option<i64>,
    /// What is wrong.
    pub why: InvalidEntry,
}

impl fmt::Display for RestoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.document)?;
        if let Some(entry) = self.entry {
            write!(f, ", entry {entry}")?;
        }
        if let Some(name) = &self.name {
            write!(f, ", {name:?}")?;
        }
        if let Some(fd) = self.fd {
            write!(f, ", descriptor {fd}")?;
        }
        write!(f, ": {}", self.why)
    }
}

impl std::error::Error for RestoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.why)
    }
}

/// What is wrong with an entry, or with a document.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidEntry {
    /// It is not of the shape of a state document.
    #[error("it makes no sense: {0}")]
    Malformed(String),
    /// A later version of this crate wrote it.
    #[error("it is of version {0}, which is not known here")]
    Version(u64),
    /// Its naming is not known, or needs a feature that is missing.
    #[error("its naming {0:?} is not known here")]
    Naming(String),
    /// Another process wrote it, or an earlier one with this pid.
    #[error("process {pid}, started at {started}, wrote it, and not this one")]
    OtherProcess {
        /// The writer's pid.
        pid: u32,
        /// When the writer was started, in the kernel's ticks.
        started: u64,
    },
    /// The directory cannot be opened.
    #[error(transparent)]
    Directory(OpenError),
    /// The directory is not the one that it was.
    #[error("the path of the directory leads to another one")]
    DirectoryReplaced,
    /// The name cannot be in such a space.
    #[error("{0}")]
    Name(InvalidRequest),
    /// Another entry has the same name.
    #[error("the name is there twice")]
    DuplicateName,
    /// The path is not the one that the name leads to.
    #[error("its path is not where its name leads")]
    Path,
    /// Flags that are not known.
    #[error("flags {0} are not known")]
    Flags(u64),
    /// A resource is held by nobody.
    #[error("it has no owner")]
    NoOwner,
    /// An exclusive hold is more than one.
    #[error("it is exclusive, and has {0} owners")]
    ExclusiveOwners(usize),
    /// Standard input, output and error are never locks; nor are negative or huge numbers.
    #[error("no lock has such a descriptor")]
    Number,
    /// Another entry has the same descriptor.
    #[error("the descriptor is there twice")]
    DuplicateDescriptor,
    /// Another entry has a duplicate of this descriptor, so that both would be one lock.
    #[error("the descriptor is a duplicate of descriptor {0}, of another entry")]
    SameDescription(RawFd),
    /// The kernel does not tell whether this descriptor and another entry's are duplicates.
    #[error("whether the descriptor is a duplicate of descriptor {0} cannot be known")]
    Unproven(RawFd),
    /// No such descriptor is open.
    #[error("the descriptor is not open")]
    NotOpen,
    /// It is not open on a regular file or a block device.
    #[error("the descriptor is open on {0}")]
    NotAFile(&'static str),
    /// It is open on another file than the recorded one.
    #[error("the descriptor is open on another file than it was")]
    OtherFile,
    /// The name leads to another file by now, or to none.
    #[error("its path leads to another file, or to none")]
    Replaced,
    /// There is no lock on it.
    #[error("the descriptor carries no lock")]
    Unlocked,
    /// The lock is a POSIX record lock, as libvirt's lock daemon takes: the first close of any
    /// descriptor of the file would drop it.
    #[error("the descriptor carries a POSIX record lock, and not an OFD lock")]
    RecordLock,
    /// The lock is of another mode or range, or is not the only one where it must be.
    #[error("the descriptor carries another lock than it should")]
    OtherLock,
    /// It could not be looked at.
    #[error("{0}")]
    Io(#[source] io::Error),
}

impl From<NotProven> for InvalidEntry {
    fn from(why: NotProven) -> Self {
        match why {
            NotProven::Stdio => Self::Number,
            NotProven::NotAFile(what) => Self::NotAFile(what),
            NotProven::OtherFile => Self::OtherFile,
            NotProven::Unlocked => Self::Unlocked,
            NotProven::RecordLock => Self::RecordLock,
            NotProven::OtherLock => Self::OtherLock,
            NotProven::SameDescription(other) => Self::SameDescription(other),
            NotProven::PerhapsSameDescription(other) => Self::Unproven(other),
            NotProven::Io(error) => Self::Io(error),
        }
    }
}
