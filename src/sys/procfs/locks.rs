//! `/proc/locks`: every lock that there is.
//!
//! The trap: the table is given out in pieces, by line count. If a lock comes or goes between two
//! reads, a reader skips a line, or sees one again: one that was held all the time was missed in 172
//! of 4000 looks beside one process that toggled 200 others. So it is read in large pieces, more
//! than once.

use std::collections::HashMap;
use std::fs::File;
use std::hash::Hash;
use std::io::{self, Read};

use crate::types::{ByteRange, Mode};

/// A lock, without its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FdLock {
    pub(crate) kind: LockKind,
    pub(crate) mode: Mode,
    pub(crate) range: ByteRange,
}

impl FdLock {
    /// Whether it is an OFD lock of this mode on all of this range. On a caller's open file it can be
    /// longer: the kernel makes one lock of neighbouring ones of one mode.
    pub(crate) fn is_ofd_over(&self, mode: Mode, range: ByteRange) -> bool {
        self.kind == LockKind::Ofd && self.mode == mode && self.range.contains(range)
    }
}

/// What the kernel's tables list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LockKind {
    Ofd,
    Posix,
    Flock,
    /// A lease, a delegation, or what a later kernel adds.
    Other,
}

impl LockKind {
    /// Whether locks of this kind and those of a lockspace exclude each other.
    pub(crate) fn excludes(self) -> bool {
        matches!(self, Self::Ofd | Self::Posix)
    }
}

/// A file as the lock tables name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileKey {
    pub(super) dev: u64,
    pub(super) ino: u64,
}

impl FileKey {
    /// From `fe:01:1234`: major and minor in hexadecimal, inode.
    fn parse(word: &str) -> Option<Self> {
        let mut parts = word.split(':');
        let mut device = || u32::from_str_radix(parts.next()?, 16).ok();
        let dev = rustix::fs::makedev(device()?, device()?);
        Some(Self { dev, ino: parts.next()?.parse().ok()? })
    }
}

/// One line of `/proc/locks`, or the same after `lock:` in an fdinfo.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) lock: FdLock,
    /// -1 for an OFD lock; 0 or less if the process is not one of ours.
    pub(crate) pid: i64,
    file: FileKey,
    /// A waiter, which holds nothing.
    waits: bool,
}

impl Entry {
    /// From `1: OFDLCK ADVISORY  WRITE -1 fe:01:1234 0 EOF`; a waiter has `->` before the kind.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace().skip(1).peekable();
        let waits = words.next_if_eq(&"->").is_some();
        let kind = match words.next()? {
            "OFDLCK" => LockKind::Ofd,
            "POSIX" => LockKind::Posix,
            "FLOCK" => LockKind::Flock,
            _ => LockKind::Other,
        };
        let mode = match words.nth(1)? {
            "WRITE" => Mode::Exclusive,
            "READ" => Mode::Shared,
            // A lease that is being given up. Nobody asks in which mode.
            _ if matches!(kind, LockKind::Flock | LockKind::Other) => Mode::Shared,
            _ => return None,
        };
        let pid = words.next()?.parse().ok()?;
        let file = FileKey::parse(words.next()?)?;
        let start = words.next()?.parse().ok()?;
        let last = match words.next()? {
            "EOF" => None,
            last => Some(last.parse().ok()?),
        };
        let lock = FdLock { kind, mode, range: ByteRange::between(start, last)? };
        Some(Self { lock, pid, file, waits })
    }

    /// Whether it holds a lock on this file that can exclude one of a lockspace.
    pub(crate) fn holds(&self, file: FileKey) -> bool {
        self.lock.kind.excludes() && !self.waits && self.file == file
    }

    pub(crate) fn is_ofd(&self) -> bool {
        self.lock.kind == LockKind::Ofd
    }
}

/// How many times one look at the table showed the same lock: the least and the most.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) least: usize,
    pub(crate) most: usize,
}

/// The locks on this file that are held and can exclude one of a lockspace.
///
/// The kernel gives out its table in pieces, counting lines: where a lock further up comes or goes
/// between two pieces, the reader skips a line, or sees one again. So this looks three times.
/// (Beside a process that locked and unlocked 200 files without pause, 4 % of plain `fs::read`s
/// missed a lock that was held all the time, and 18 % showed it more than once.)
pub(crate) fn locks_on(file: FileKey) -> io::Result<HashMap<Entry, Seen>> {
    let mut locks: HashMap<Entry, Seen> = HashMap::new();
    for _ in 0..3 {
        for (entry, count) in tally(read_table(file)?.into_iter()) {
            // An exclusive lock is one, however often it is shown.
            let count = if entry.lock.mode == Mode::Exclusive { 1 } else { count };
            let seen = locks.entry(entry).or_insert(Seen { least: count, most: count });
            *seen = Seen { least: seen.least.min(count), most: seen.most.max(count) };
        }
    }
    Ok(locks)
}

fn read_table(file: FileKey) -> io::Result<Vec<Entry>> {
    // Large pieces are few: `fs::read` would begin with one of 32 bytes.
    let mut table = Vec::with_capacity(1 << 16);
    let path = "/proc/locks";
    let opened = File::open(path).map_err(|error| super::missing(path.as_ref(), error));
    opened?.read_to_end(&mut table)?;
    let entries = table.split(|&b| b == b'\n').filter_map(Entry::parse);
    Ok(entries.filter(|entry| entry.holds(file)).collect())
}

/// How many there are of each: equal shared locks are those of several descriptions.
pub(crate) fn tally<T: Eq + Hash>(items: impl Iterator<Item = T>) -> HashMap<T, usize> {
    let mut counts = HashMap::new();
    items.for_each(|item| *counts.entry(item).or_default() += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: &str) -> Option<Entry> {
        Entry::parse(line.as_bytes())
    }

    const FILE: FileKey = FileKey { dev: 0xfe01, ino: 1234 };

    #[test]
    fn a_line_of_the_table_is_read() {
        let ofd = entry("7: OFDLCK ADVISORY  WRITE -1 fe:01:1234 0 0").unwrap();
        let lock = FdLock { kind: LockKind::Ofd, mode: Mode::Exclusive, range: ByteRange::FIRST };
        assert_eq!(ofd, Entry { lock, pid: -1, file: FILE, waits: false });

        let record = entry("12: POSIX  ADVISORY  READ 77 fe:01:1234 100 103").unwrap();
        assert_eq!((record.lock.kind, record.lock.mode), (LockKind::Posix, Mode::Shared));
        assert_eq!((record.pid, record.lock.range.to_string().as_str()), (77, "bytes 100-103"));

        let whole = entry("1: POSIX  ADVISORY  WRITE 6862 fe:01:1234 0 EOF").unwrap();
        assert_eq!(whole.lock.range, ByteRange::WHOLE_FILE);
        // As in an fdinfo, after `lock:`.
        assert!(entry("\t1: OFDLCK ADVISORY  READ -1 00:1ab:9 200 EOF").is_some());
    }

    #[test]
    fn waiters_leases_and_flocks_hold_nothing() {
        for line in [
            "1: -> OFDLCK ADVISORY  WRITE -1 fe:01:1234 0 0",
            "1:  -> POSIX  ADVISORY  WRITE 77 fe:01:1234 0 EOF",
            "2: FLOCK  ADVISORY  WRITE 2711 fe:01:1234 0 EOF",
            "3: LEASE  ACTIVE    READ 8018 fe:01:1234 0 EOF",
            "3: LEASE  BREAKING  UNLCK 8018 fe:01:1234 0 EOF",
            "4: DELEG  ACTIVE    READ 8018 fe:01:1234 0 EOF",
        ] {
            assert!(!entry(line).expect(line).holds(FILE), "{line}");
        }
    }

    #[test]
    fn odd_lines_are_no_locks() {
        for line in [
            "",
            "1:",
            "1: ->",
            "1: POSIX  *NOINODE* READ 77 <none>:0 0 EOF",
            "1: POSIX  ADVISORY  SOME 77 fe:01:1234 0 EOF",
            "1: POSIX  ADVISORY  READ 77 fe:01:1234 9 8",
            "1: POSIX  ADVISORY  READ 77 fe:01:1234 -1 EOF",
            "1: POSIX  ADVISORY  READ 77 fe:01:1234 0 99999999999999999999",
            "1: POSIX  ADVISORY  READ 77 fe:01:1234 0",
        ] {
            assert_eq!(entry(line), None, "{line}");
        }
        assert_eq!(Entry::parse(b"1: POSIX \xff"), None);
    }
}
