//! Proof that a descriptor is open on the right file and carries one lock and no other.
//!
//! What a descriptor carries, the kernel tells of the open file description itself: since Linux 6.6
//! by `F_OFD_GETLK` with `F_UNLCK`, and always by `/proc/thread-self/fdinfo`, which takes six
//! times as long. Not by `/proc/locks`, which does not tell whose an OFD lock is: beside a rival that
//! locks and unlocks the same file, an unlocked descriptor would pass.
//!
//! Nothing here changes, owns or closes a descriptor.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::sys::fs::{self, FileKind};
use crate::sys::procfs::{FdLock, LockKind, OwnFdinfo};
use crate::sys::{fd as descriptor, local_fs, ofd};
use crate::types::{ByteRange, FileId, Mode};

/// What a descriptor should be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpectedLock {
    /// The file, if it is known.
    pub(crate) file: Option<FileId>,
    pub(crate) mode: Mode,
    pub(crate) range: ByteRange,
    /// The description is a caller's, so that others may have locked other bytes through it, such
    /// as a QEMU that was given it. Else it carries this lock alone.
    pub(crate) others_may_lock: bool,
}

/// Why a descriptor is not what it should be.
#[derive(Debug)]
pub(crate) enum NotProven {
    /// It is standard input, output or error.
    Stdio,
    /// It is neither a regular file nor a block device, but this.
    NotAFile(&'static str),
    /// It is open on another file than the expected one.
    OtherFile,
    /// It carries no lock that excludes another.
    Unlocked,
    /// It carries a POSIX record lock.
    RecordLock,
    /// It carries a lock of another mode or range, or more than one.
    OtherLock,
    /// It is a duplicate of this other descriptor: both have the one lock.
    SameDescription(RawFd),
    /// The kernel does not tell whether it is a duplicate of this other descriptor.
    PerhapsSameDescription(RawFd),
    Io(io::Error),
}

/// Proves one descriptor after the other.
#[derive(Debug, Default)]
pub(crate) struct Prover {
    /// The device that was asked about last, and whether its file system is local.
    device: Option<(u64, bool)>,
    fdinfo: Option<OwnFdinfo>,
}

impl Prover {
    /// Proves that the descriptor is above 2 and open on the expected file, a regular one or a block
    /// device, and that its description carries the expected lock, an OFD lock, and no other.
    /// Returns the file.
    pub(crate) fn prove(
        &mut self,
        fd: BorrowedFd<'_>,
        expected: &ExpectedLock,
    ) -> Result<FileId, NotProven> {
        if fd.as_raw_fd() <= 2 {
            return Err(NotProven::Stdio);
        }
        let status = fs::fstat(fd).map_err(|errno| NotProven::Io(errno.into()))?;
        match status.kind() {
            FileKind::Regular | FileKind::BlockDevice => {}
            FileKind::Directory => return Err(NotProven::NotAFile("a directory")),
            FileKind::Fifo => return Err(NotProven::NotAFile("a pipe")),
            FileKind::Socket => return Err(NotProven::NotAFile("a socket")),
            _ => return Err(NotProven::NotAFile("neither a file nor a block device")),
        }
        let file = status.id();
        if expected.file.is_some_and(|expected| expected != file) {
            return Err(NotProven::OtherFile);
        }
        if !(self.is_on_local(fd, file) && carries_only(fd, expected).unwrap_or(false)) {
            let locks = self.locks_on(fd.as_raw_fd()).map_err(NotProven::Io)?;
            check_locks(&locks, expected)?;
        }
        Ok(file)
    }

    /// Whether the file system answers from the kernel's memory. Another one would itself be asked
    /// about locks: it may not know the question of [`carries_only`], and need not answer at all.
    fn is_on_local(&mut self, fd: BorrowedFd<'_>, file: FileId) -> bool {
        let local = match self.device {
            Some((known, local)) if known == file.dev => local,
            _ => local_fs::cannot_hang(fd),
        };
        self.device = Some((file.dev, local));
        local
    }

    /// What the descriptor carries, by its fdinfo.
    fn locks_on(&mut self, number: RawFd) -> io::Result<Vec<FdLock>> {
        let fdinfo = match self.fdinfo.take() {
            Some(fdinfo) => fdinfo,
            None => OwnFdinfo::open()?,
        };
        self.fdinfo.insert(fdinfo).locks_on(number)
    }
}

/// Whether the description carries the expected lock and no other, and nobody else has any on the
/// file. `false` says nothing.
///
/// What the description carries cannot change meanwhile, and its own locks do not overlap: so it
/// does not matter that these are several questions.
fn carries_only(fd: BorrowedFd<'_>, expected: &ExpectedLock) -> io::Result<bool> {
    let ExpectedLock { mode, range, .. } = *expected;
    let none_in = |start, last| match ByteRange::between(start, last) {
        Some(range) => ofd::own_lock(fd, range).map(|lock| lock.is_none()),
        None => Ok(false),
    };
    let before = range.start().checked_sub(1);
    let after = range.len().map(|len| range.start() + len.get());
    Ok(ofd::own_lock(fd, range)? == Some((mode, range))
        && before.map_or(Ok(true), |last| none_in(0, Some(last)))?
        && after.map_or(Ok(true), |start| none_in(start, None))?
        // A record lock of this process, which would go with the descriptor.
        && ofd::in_the_way(fd, Mode::Exclusive, ByteRange::WHOLE_FILE)?.is_none())
}

fn check_locks(locks: &[FdLock], expected: &ExpectedLock) -> Result<(), NotProven> {
    let ExpectedLock { mode, range, others_may_lock, .. } = *expected;
    // A flock belongs to the description too, and excludes none of ours.
    let locks: SmallVec<[_; 2]> = locks.iter().filter(|lock| lock.kind.excludes()).collect();
    if locks.iter().any(|lock| lock.kind == LockKind::Posix) {
        return Err(NotProven::RecordLock);
    }
    match &locks[..] {
        [] => Err(NotProven::Unlocked),
        [lock] if (lock.mode, lock.range) == (mode, range) => Ok(()),
        locks if others_may_lock && locks.iter().any(|lock| lock.is_ofd_over(mode, range)) => {
            Ok(())
        }
        _ => Err(NotProven::OtherLock),
    }
}

/// Descriptors that are all of different descriptions: the unlock of one ends no lock of another.
#[derive(Debug, Default)]
pub(crate) struct DescriptionSet {
    /// By file: only descriptors of one file can be duplicates of each other.
    of_file: HashMap<FileId, SmallVec<[RawFd; 2]>>,
}

impl DescriptionSet {
    pub(crate) fn reserve(&mut self, additional: usize) {
        self.of_file.reserve(additional);
    }

    /// Adds a descriptor that is open on this file.
    ///
    /// # Errors
    /// It is, or may be, a duplicate of one in the set.
    pub(crate) fn insert(&mut self, number: RawFd, file: FileId) -> Result<(), NotProven> {
        let others = self.of_file.entry(file).or_default();
        for &other in &*others {
            match descriptor::same_description(number, other) {
                Some(false) => {}
                Some(true) => return Err(NotProven::SameDescription(other)),
                None => return Err(NotProven::PerhapsSameDescription(other)),
            }
        }
        others.push(number);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    /// Whatever a description carries, what the kernel answers at once and what stands in its
    /// fdinfo is the same.
    #[test]
    fn both_proofs_agree() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(false);
            options.open(dir.path().join(name)).unwrap()
        };
        let range = |start, last| ByteRange::between(start, last).unwrap();
        let ranges = [
            range(0, Some(0)),
            range(0, Some(9)),
            range(5, Some(9)),
            range(9, None),
            range(0, None),
        ];
        let modes = [Mode::Shared, Mode::Exclusive];
        let locks = modes.iter().flat_map(|&mode| {
            ranges.map(|range| ExpectedLock { file: None, mode, range, others_may_lock: false })
        });
        let locks: Vec<_> = locks.collect();
        let mut prover = Prover::default();
        let (mut proven, mut known) = (0, true);
        for (at, first) in locks.iter().enumerate() {
            for second in locks.iter().map(Some).chain([None]) {
                let file = open(&at.to_string());
                for lock in [Some(first), second].into_iter().flatten() {
                    ofd::try_lock(file.as_fd(), lock.mode, lock.range).unwrap();
                }
                for expected in &locks {
                    let carried = prover.locks_on(file.as_raw_fd()).unwrap();
                    let by_fdinfo = check_locks(&carried, expected).is_ok();
                    let at_once = carries_only(file.as_fd(), expected);
                    known &= at_once.is_ok();
                    let at_once = at_once.unwrap_or(by_fdinfo);
                    assert_eq!(at_once, by_fdinfo, "{first:?} {second:?} {expected:?}");
                    proven += usize::from(by_fdinfo);
                }
            }
        }
        assert!(proven > 20, "{proven}");
        // Who else has a lock on the file does not make it ours; that of another makes it unsure.
        let (file, other) = (open("other"), open("other"));
        let (mode, range) = (Mode::Shared, ByteRange::FIRST);
        let lock = ExpectedLock { file: None, mode, range, others_may_lock: false };
        ofd::try_lock(other.as_fd(), lock.mode, lock.range).unwrap();
        assert!(!known || !carries_only(file.as_fd(), &lock).unwrap());
        ofd::try_lock(file.as_fd(), lock.mode, lock.range).unwrap();
        assert!(!known || !carries_only(file.as_fd(), &lock).unwrap());
        ofd::unlock(other.as_fd(), lock.range).unwrap();
        assert!(!known || carries_only(file.as_fd(), &lock).unwrap());
    }
}
