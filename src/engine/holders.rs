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

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::path::Path;

use super::holder::{HeldBy, Holder, Kind, Process};
use crate::sys::Errno;
use crate::sys::fd::same_description_across;
use crate::sys::fs::open_path_only;
use crate::sys::procfs::{
    Descriptor, Entry, FdInfo, FdLock, FileKey, LockKind, Seen, carriers, command_of, locks_on,
    open_number, own_pid, tally,
};

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
/// If there is an OFD lock: reads of `/proc/PID/fd` and `fdinfo` (of a process whose main thread has
/// exited, of `/proc/PID/task/TID`), and `kcmp`.
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
    let file = open_path_only(path.as_ref())?;
    holders_of_descriptor(file.as_fd())
}

/// [`holders_of`] the file of an open descriptor, which may be one that stands for a path only.
pub(crate) fn holders_of_descriptor(file: BorrowedFd<'_>) -> io::Result<Vec<Holder>> {
    holders(FileKey::of(file)?, &[])
}

/// Who else holds the file that this process has a hold on through the descriptor of this number.
/// Another thread may close it meanwhile: then the hold has ended, and nobody is told of.
pub(crate) fn holders_beside(number: RawFd) -> io::Result<Vec<Holder>> {
    match open_number(number) {
        Ok(file) => holders(FileKey::of(file.as_fd())?, &[number]),
        Err(error) if error.raw_os_error() == Some(Errno::BADF.raw_os_error()) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The holders of a file, without `ours`.
///
/// `ours` are descriptors of this process, no two of one description: those of its holds. Their
/// locks are left out *as locks*, together with the children that share them, which keep nobody
/// out while we hold. Without `ours`, such a lock is one holder with this process and its children.
/// A number that another thread closes meanwhile can only make the answer older than it looks.
fn holders(file: FileKey, ours: &[RawFd]) -> io::Result<Vec<Holder>> {
    let table = locks_on(file)?;
    let own = ours.iter().filter_map(|&fd| FdInfo::of_own(fd).ok());
    let own = tally(own.flat_map(|info| info.ofd_locks_on(file)));
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
    let same =
        |a: Descriptor, b: Descriptor| comparable.then(|| same_description_across(a, b)).flatten();
    let mut found = Vec::new();
    for entry in entries {
        if !entry.is_ofd() {
            found.push(holder(entry.lock, by_pid(entry.pid)));
            continue;
        }
        // A lock that is gone by now was not hidden: its holder let go while we looked.
        let count = still.get(entry).map_or(0, |seen| seen.least.min(table[entry].least));
        let mut groups = group(carriers.remove(&entry.lock).unwrap_or_default(), count, same);
        groups.retain(|group| !group.iter().any(is_ours));
        found.extend(groups.iter().map(|group| holder(entry.lock, by_processes(group))));
        if count > own(entry) + groups.len() {
            found.push(holder(entry.lock, HeldBy::Unknown));
        }
    }
    Ok(found)
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

/// Who has this OFD lock or record lock.
fn holder(lock: FdLock, by: HeldBy) -> Holder {
    let kind = if lock.kind == LockKind::Ofd { Kind::Ofd } else { Kind::Record };
    Holder { mode: lock.mode, kind, range: lock.range.lockable(), by }
}

fn by_processes(descriptors: &[Descriptor]) -> HeldBy {
    let pids: BTreeSet<u32> = descriptors.iter().map(|descriptor| descriptor.pid).collect();
    HeldBy::Processes(pids.into_iter().map(process).collect())
}

fn by_pid(pid: i64) -> HeldBy {
    match u32::try_from(pid) {
        Ok(pid) if pid > 0 => HeldBy::Processes(vec![process(pid)]),
        _ => HeldBy::Unknown,
    }
}

fn process(pid: u32) -> Process {
    Process { pid, command: command_of(pid) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::ofd;
    use crate::sys::procfs::locks_on_descriptor;
    use crate::types::{ByteRange, Mode};

    #[test]
    fn descriptors_are_grouped_by_what_kcmp_or_the_count_tells() {
        let [a, b, c] = [1, 2, 3].map(|pid| Descriptor { pid, tid: pid, fd: 3 });
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
            let holders = holders(FileKey::of(a.as_fd()).unwrap(), &ours).unwrap();
            // A busy host's table can show one lock twice: see `locks_on`.
            holders.iter().filter(|holder| holder.by != HeldBy::Unknown).count()
        };
        for file in [&a, &b] {
            assert_eq!(locks_on_descriptor(file.as_raw_fd()).unwrap(), []);
            ofd::try_lock(file.as_fd(), Mode::Shared, ByteRange::FIRST).unwrap();
        }
        assert_eq!([left(&[]), left(&[&a]), left(&[&b]), left(&[&a, &b])], [2, 1, 1, 0]);

        let lock = FdLock { kind: LockKind::Ofd, mode: Mode::Shared, range: ByteRange::FIRST };
        assert_eq!(locks_on_descriptor(a.as_raw_fd()).unwrap(), [lock]);
        a.lock().unwrap();
        assert_eq!(locks_on_descriptor(a.as_raw_fd()).unwrap().len(), 2);
    }
}
