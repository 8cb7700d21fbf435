//! Who holds a lock on a file, as far as the kernel tells.
//!
//! A refused lock says `EAGAIN` and no more, and asking is full of traps. `F_GETLK` needs a
//! descriptor of the file, and closing that again would drop every POSIX record lock that *this*
//! process has on the file; of an OFD lock it says that its holder is -1. The pids in
//! `/proc/locks` are as mute, and two equal lines there can be one process or two. So nothing
//! here opens the file, and OFD locks are traced to the processes that have them open:
//!
//! 1. The path is opened with `O_PATH`, which locks and drops nothing. That descriptor's fdinfo
//!    and `mountinfo` give the file the name it has in the lock tables: the *file system's* device,
//!    which is not always the one that `stat` tells (btrfs subvolumes, some overlays), and inode.
//! 2. `/proc/locks` gives every lock on it. A record lock has its pid there.
//! 3. `/proc/PID/fdinfo` of every process that we may look into shows the OFD locks of each of
//!    its descriptors, and `kcmp` tells which of them are one and the same.
//!
//! No step asks a file system for a file's attributes, not even for the descriptors of other
//! processes: among those can be one whose file system gives no answer, and a `stat` of it would
//! wait for ever. (Walking the *path* can still wait there.)
//!
//! What stays unknown: the holder of a lock whose descriptors are all out of sight (another
//! user's, another pid namespace's, in flight over a socket, kept alive by a mapping), and of one
//! that changed hands while we looked. A record lock of another pid namespace is not even listed.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use rustix::fs::{Mode as FileMode, OFlags};

use crate::sys::kcmp::same_description;
use crate::sys::procfs::{
    Entry, FdLock, FileKey, LockKind, Seen, locks_on, number, ofd_locks_in, own_fdinfo, tally,
};
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
    /// A process that the kernel did not name to us: see [`holders_of`].
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

/// Who holds record or OFD locks on the file that `path` leads to, symbolic links followed; one
/// entry for each lock, in the order of their ranges, and none if there is no lock.
///
/// This never opens the file, so it drops no lock, of this process either, and needs no right to
/// read the file. It is meant for messages, not for decisions: the answer is old when it comes.
/// It looks into every process, which takes milliseconds, and only root sees those of all users.
///
/// A holder is [`HeldBy::Unknown`] if the caller may not look into its process, if the lock is kept
/// by no process's descriptor (one in flight over a socket, or a mapping), or if the lock changed
/// hands meanwhile. Equal shared locks of unknown holders are one entry: on a busy host, the
/// kernel's table does not show their number. Not found are record locks of another pid
/// namespace, which the kernel hides, and `flock` locks and leases, which exclude none of a
/// lockspace's. On a network file system, only this host's locks are seen.
///
/// # Errors
///
/// Whatever walking the path fails with, such as not found; and those of reading `/proc/locks`,
/// which is missing where `/proc` is, or where that is mounted with `subset=pid`.
///
/// # System calls
///
/// `open` with `O_PATH`; reads of `/proc/thread-self/fdinfo/FD`, `mountinfo` and `/proc/locks`.
/// If there is an OFD lock: reads of `/proc/PID/fd` and `fdinfo`, and `kcmp`.
///
/// # Examples
///
/// ```
/// use lockspace::{HeldBy, holders_of};
///
/// # let dir = tempfile::tempdir()?;
/// # let image = dir.path().join("a.qcow2");
/// # std::fs::write(&image, "")?;
/// for holder in holders_of(&image)? {
///     if let HeldBy::Processes(processes) = &holder.by {
///         for process in processes {
///             println!("{} holds it {}", process.pid, holder.mode);
///         }
///     }
/// }
/// assert!(holders_of(dir.path().join("missing")).is_err());
/// # std::io::Result::Ok(())
/// ```
#[doc(alias = "F_OFD_GETLK")]
#[doc(alias = "F_GETLK")]
#[doc(alias = "lslocks")]
pub fn holders_of(path: impl AsRef<Path>) -> io::Result<Vec<Holder>> {
    holders_at(path, &[])
}

/// [`holders_of`], without `ours`: see [`holders_of_descriptor`].
pub(crate) fn holders_at(path: impl AsRef<Path>, ours: &[RawFd]) -> io::Result<Vec<Holder>> {
    let file = rustix::fs::open(path.as_ref(), OFlags::PATH | OFlags::CLOEXEC, FileMode::empty())?;
    holders_of_descriptor(file.as_fd(), ours)
}

/// [`holders_of`] the file of an open descriptor, which may be an `O_PATH` one, without `ours`.
///
/// `ours` are descriptors of this process, no two of one description: those of its holds. Their
/// locks are left out *as locks*, together with the children that share them, which keep nobody
/// out while we hold. Without `ours`, such a lock is one holder with this process and its children.
/// A number that another thread closes meanwhile can only make the answer older than it looks.
pub(crate) fn holders_of_descriptor(
    file: BorrowedFd<'_>,
    ours: &[RawFd],
) -> io::Result<Vec<Holder>> {
    holders(FileKey::of(file)?, ours)
}

/// The common heart of the functions above.
fn holders(file: FileKey, ours: &[RawFd]) -> io::Result<Vec<Holder>> {
    let table = locks_on(file)?;
    let own = ours.iter().filter_map(|&fd| own_fdinfo(fd).ok());
    let own = tally(own.flat_map(|info| ofd_locks_in(&info, file)));
    let own = |entry: &Entry| own.get(&entry.lock).copied().unwrap_or(0);
    let is_foreign = |(entry, seen): (&Entry, &Seen)| entry.is_ofd() && seen.most > own(entry);
    // Most calls are spared the long part.
    let (mut carriers, still) = if table.iter().any(is_foreign) {
        (carriers(file)?, locks_on(file)?)
    } else {
        Default::default()
    };

    let mut entries: Vec<_> = table.keys().collect();
    entries.sort_by_key(|entry| (entry.lock.range.start(), entry.lock.range.len(), entry.pid));
    let this = own_pid();
    let is_ours = |d: &Descriptor| Some(d.pid) == this && ours.contains(&d.fd);
    // In another pid namespace's `/proc`, the numbers are not those that `kcmp` takes.
    let comparable = this == Some(std::process::id());
    let same = |a: Descriptor, b: Descriptor| {
        comparable.then(|| same_description(a.pid, a.fd, b.pid, b.fd)).flatten()
    };
    let mut found = Vec::new();
    for entry in entries {
        if !entry.is_ofd() {
            found.push(Holder::new(entry.lock, by_pid(entry.pid)));
            continue;
        }
        // A lock that is gone by now was not hidden: its holder let go while we looked.
        let count = still.get(entry).map_or(0, |seen| seen.least.min(table[entry].least));
        let mut groups = group(carriers.remove(&entry.lock).unwrap_or_default(), count, same);
        groups.retain(|group| !group.iter().any(is_ours));
        found.extend(groups.iter().map(|group| Holder::new(entry.lock, by_processes(group))));
        if count > own(entry) + groups.len() {
            found.push(Holder::new(entry.lock, HeldBy::Unknown));
        }
    }
    Ok(found)
}

/// A descriptor of some process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Descriptor {
    pid: u32,
    fd: RawFd,
}

/// Every descriptor in sight that carries an OFD lock on this file, by lock.
///
/// What is in the way of one look (the process has exited, or is not ours to see) ends that look
/// alone.
fn carriers(file: FileKey) -> io::Result<HashMap<FdLock, Vec<Descriptor>>> {
    let mut found: HashMap<_, Vec<_>> = HashMap::new();
    for process in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = number(process.file_name().as_bytes()) else { continue };
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            let Some(fd) = number(descriptor.file_name().as_bytes()) else { continue };
            if is_no_file(&descriptor.path()) {
                continue;
            }
            let Ok(info) = fs::read(format!("/proc/{pid}/fdinfo/{fd}")) else { continue };
            for lock in ofd_locks_in(&info, file) {
                found.entry(lock).or_default().push(Descriptor { pid, fd });
            }
        }
    }
    Ok(found)
}

/// Whether a descriptor is a socket or the like, which has no locks: reading the link is cheaper
/// than making the kernel print an fdinfo, and, unlike a `stat`, asks no file system.
fn is_no_file(link: &Path) -> bool {
    let kinds: [&[u8]; 3] = [b"socket:", b"pipe:", b"anon_inode:"];
    fs::read_link(link)
        .is_ok_and(|to| kinds.iter().any(|kind| to.as_os_str().as_bytes().starts_with(kind)))
}

/// The descriptors, one group for each open file description; none where that cannot be told.
///
/// `listed` is how many descriptions `/proc/locks` counts. It decides where `same` cannot.
fn group(
    descriptors: Vec<Descriptor>,
    listed: usize,
    same: impl Fn(Descriptor, Descriptor) -> Option<bool>,
) -> Vec<Vec<Descriptor>> {
    let mut groups: Vec<Vec<Descriptor>> = Vec::new();
    for &descriptor in &descriptors {
        let told: Option<Vec<bool>> =
            groups.iter().map(|group| same(group[0], descriptor)).collect();
        match told.map(|told| told.iter().position(|&same| same)) {
            Some(Some(known)) => groups[known].push(descriptor),
            Some(None) => groups.push(vec![descriptor]),
            None if listed == 1 => return vec![descriptors],
            None if listed == descriptors.len() => {
                return descriptors.into_iter().map(|descriptor| vec![descriptor]).collect();
            }
            None => return Vec::new(),
        }
    }
    groups
}

impl Holder {
    /// Of an OFD lock or a record lock.
    fn new(lock: FdLock, by: HeldBy) -> Self {
        let kind = if lock.kind == LockKind::Ofd { Kind::Ofd } else { Kind::Record };
        Self { mode: lock.mode, kind, range: lock.range.lockable(), by }
    }
}

fn by_processes(descriptors: &[Descriptor]) -> HeldBy {
    let pids: BTreeSet<u32> = descriptors.iter().map(|descriptor| descriptor.pid).collect();
    HeldBy::Processes(pids.into_iter().map(Process::new).collect())
}

fn by_pid(pid: i64) -> HeldBy {
    match u32::try_from(pid) {
        Ok(pid) if pid > 0 => HeldBy::Processes(vec![Process::new(pid)]),
        _ => HeldBy::Unknown,
    }
}

impl Process {
    fn new(pid: u32) -> Self {
        let mut command = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        command.pop_if(|last| *last == b'\n');
        Self { pid, command: OsString::from_vec(command) }
    }
}

/// This process's pid in the pid namespace of `/proc`.
fn own_pid() -> Option<u32> {
    number(fs::read_link("/proc/self").ok()?.as_os_str().as_bytes())
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
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::ofd;
    use crate::sys::procfs::locks_on_descriptor;

    #[test]
    fn descriptors_are_grouped_by_what_kcmp_or_the_count_tells() {
        let [a, b, c] = [1, 2, 3].map(|pid| Descriptor { pid, fd: 3 });
        let all = || vec![a, b, c];
        let told =
            |x: Descriptor, y: Descriptor| Some(x.pid.min(y.pid) == 1 && x.pid.max(y.pid) == 3);
        assert_eq!(group(all(), 2, told), [vec![a, c], vec![b]]);
        let mute = |_, _| None;
        assert_eq!(group(all(), 1, mute), [all()]);
        assert_eq!(group(all(), 3, mute), [[a], [b], [c]]);
        assert!(group(all(), 2, mute).is_empty());
        assert!(group(vec![], 1, mute).is_empty());
    }

    #[test]
    fn our_own_locks_are_left_out_and_equal_ones_are_not() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let [a, b] = [0; 2].map(|_| File::open(file.path()).unwrap());
        let left = |ours: &[&File]| {
            let ours: Vec<_> = ours.iter().map(|file| file.as_raw_fd()).collect();
            let holders = holders_of_descriptor(a.as_fd(), &ours).unwrap();
            // A busy host's table can show one lock twice: see `locks_on`.
            holders.iter().filter(|holder| holder.by != HeldBy::Unknown).count()
        };
        for file in [&a, &b] {
            assert_eq!(locks_on_descriptor(file.as_raw_fd()).unwrap(), []);
            assert!(ofd::try_lock(file.as_fd(), Mode::Shared, ByteRange::FIRST).unwrap());
        }
        assert_eq!([left(&[]), left(&[&a]), left(&[&b]), left(&[&a, &b])], [2, 1, 1, 0]);

        let lock = FdLock { kind: LockKind::Ofd, mode: Mode::Shared, range: ByteRange::FIRST };
        assert_eq!(locks_on_descriptor(a.as_raw_fd()).unwrap(), [lock]);
        a.lock().unwrap();
        assert_eq!(locks_on_descriptor(a.as_raw_fd()).unwrap().len(), 2);
    }

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
