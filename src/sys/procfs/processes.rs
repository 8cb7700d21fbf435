//! `/proc/PID`: which processes have a lock's descriptor.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use super::fdinfo::FdInfo;
use super::locks::{FdLock, FileKey};

/// A descriptor of some process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) pid: u32,
    /// The thread that shows it: the main one, whose number is the pid, may have exited.
    pub(crate) tid: u32,
    pub(crate) fd: RawFd,
}

/// Every descriptor in sight that carries an OFD lock on this file, by lock.
///
/// What is in the way of one look (the process has exited, or is not ours to see) ends that look
/// alone.
pub(crate) fn carriers(file: FileKey) -> io::Result<HashMap<FdLock, Vec<Descriptor>>> {
    let mut found: HashMap<_, Vec<_>> = HashMap::new();
    let processes = fs::read_dir("/proc");
    let processes = processes.map_err(|error| super::missing(Path::new("/proc"), error))?;
    for process in processes.flatten() {
        let Some(pid) = super::parse(process.file_name().as_bytes()) else { continue };
        for descriptor in descriptors_of(pid) {
            let Descriptor { tid, fd, .. } = descriptor;
            let Ok(info) = FdInfo::of(pid, tid, fd) else { continue };
            for lock in info.ofd_locks_on(file) {
                found.entry(lock).or_default().push(descriptor);
            }
        }
    }
    Ok(found)
}

/// The descriptors of a process that can carry a lock.
fn descriptors_of(pid: u32) -> Vec<Descriptor> {
    match descriptors_by(pid, pid) {
        // A main thread that has exited shows none, while those of the others are the process's.
        Some(none) if none.is_empty() => {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let threads = threads.filter_map(|thread| super::parse(thread.file_name().as_bytes()));
            let others = threads.filter(|tid| *tid != pid);
            let shown = others.filter_map(|tid| descriptors_by(pid, tid));
            shown.max_by_key(Vec::len).unwrap_or_default()
        }
        shown => shown.unwrap_or_default(),
    }
}

/// The same as one of its threads shows them; `None` if it is not ours to see.
fn descriptors_by(pid: u32, tid: u32) -> Option<Vec<Descriptor>> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/task/{tid}/fd")).ok()?;
    let descriptors = descriptors.flatten().filter_map(|descriptor| {
        let fd = super::parse(descriptor.file_name().as_bytes())?;
        (!is_no_file(&descriptor.path())).then_some(Descriptor { pid, tid, fd })
    });
    Some(descriptors.collect())
}

/// Whether a descriptor is a socket or the like, which has no locks: reading the link is cheaper
/// than making the kernel print an fdinfo, and, unlike a `stat`, asks no file system.
fn is_no_file(link: &Path) -> bool {
    let kinds: [&[u8]; 3] = [b"socket:", b"pipe:", b"anon_inode:"];
    fs::read_link(link)
        .is_ok_and(|to| kinds.iter().any(|kind| to.as_os_str().as_bytes().starts_with(kind)))
}

/// The short name of a process, which it chose itself; empty where it cannot be read.
pub(crate) fn command_of(pid: u32) -> OsString {
    let mut command = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    command.pop_if(|last| *last == b'\n');
    OsString::from_vec(command)
}
