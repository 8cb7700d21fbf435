//! A holder of a lock, and how it reads in a log.

use std::ffi::OsString;
use std::fmt;

use crate::types::{ByteRange, Mode, OwnerId};

/// One lock, and who has it.
///
/// It prints as one line of a log: what is not plain text in a process's name is escaped.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let image = dir.path().join("a.qcow2");
/// # std::fs::write(&image, "")?;
/// for holder in lockspace::holders_of(&image)? {
///     // pid 77 "qemu-system-x86" (shared, bytes 100-103, OFD lock)
///     eprintln!("{}: {holder}", image.display());
/// }
/// # std::io::Result::Ok(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Whether others can hold beside it.
    pub mode: Mode,
    /// What kind of lock it is.
    pub kind: Kind,
    /// The bytes that it covers. Of a lock on byte 2^63 - 1 alone, which no file has, the byte before
    /// it too: a [`ByteRange`] has no other way to tell that.
    pub range: ByteRange,
    /// Who has it.
    pub by: HeldBy,
}

/// The kinds of lock that exclude each other, and so can stand in the way of a lockspace.
///
/// ```
/// assert_eq!(lockspace::Kind::Ofd.to_string(), "OFD lock");
/// assert_eq!(lockspace::Kind::Record.to_string(), "record lock");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// An open file description's: this crate's, QEMU's, LXC's.
    #[doc(alias = "F_OFD_SETLK")]
    Ofd,
    /// A process's, also called a POSIX lock: virtlockd's.
    #[doc(alias = "F_SETLK")]
    Record,
}

/// Who has a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HeldBy {
    /// These owners, in a lockspace of this process.
    Owners(Vec<OwnerId>),
    /// These processes, in order of their pids. They are several where forked children share
    /// their parent's descriptor: the lock lasts until it is unlocked, or all of them closed it.
    Processes(Vec<Process>),
    /// A process that the kernel did not name to us: see [`holders_of`](crate::holders_of).
    Unknown,
}

/// A process that holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Process {
    /// Its pid, as this process's `/proc` numbers it.
    pub pid: u32,
    /// Its short name, at most 15 bytes, which it chose itself: never trust it. Empty where it
    /// could not be read.
    pub command: OsString,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ofd => "OFD lock",
            Self::Record => "record lock",
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {}", self.by, self.mode, self.range)?;
        match self.by {
            // A lockspace's own locks are of one kind.
            HeldBy::Owners(_) => f.write_str(")"),
            _ => write!(f, ", {})", self.kind),
        }
    }
}

impl fmt::Display for HeldBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owners(owners) => {
                f.write_str(if owners.len() == 1 { "owner " } else { "owners " })?;
                join(f, owners, ", ")
            }
            Self::Processes(processes) => join(f, processes, " and "),
            Self::Unknown => f.write_str("an unknown process"),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if self.command.is_empty() {
            return Ok(());
        }
        // Debug quotes, and escapes what could forge a line or hide in one.
        write!(f, " {:?}", self.command)
    }
}

fn join(f: &mut fmt::Formatter<'_>, items: &[impl fmt::Display], between: &str) -> fmt::Result {
    for (i, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { between })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holders_print_as_one_line() {
        let process = |pid, command: &str| Process { pid, command: command.into() };
        let first = |mode, by| Holder { mode, kind: Kind::Ofd, range: ByteRange::FIRST, by };
        let owners = |ids: &[u64]| HeldBy::Owners(ids.iter().copied().map(OwnerId::new).collect());
        for (holder, line) in [
            (first(Mode::Exclusive, owners(&[4711])), "owner 4711 (exclusive, byte 0)"),
            (first(Mode::Shared, owners(&[1, 2])), "owners 1, 2 (shared, byte 0)"),
            (
                first(Mode::Shared, HeldBy::Processes(vec![process(77, "a"), process(78, "")])),
                r#"pid 77 "a" and pid 78 (shared, byte 0, OFD lock)"#,
            ),
            (
                first(
                    Mode::Exclusive,
                    HeldBy::Processes(vec![process(1, "a\n\x1b[31m\"\u{202e}")]),
                ),
                r#"pid 1 "a\n\u{1b}[31m\"\u{202e}" (exclusive, byte 0, OFD lock)"#,
            ),
            (
                Holder { kind: Kind::Record, ..first(Mode::Exclusive, HeldBy::Unknown) },
                "an unknown process (exclusive, byte 0, record lock)",
            ),
        ] {
            assert_eq!(holder.to_string(), line);
        }
    }
}
