//! `/proc/PID`: which processes have a lock's descriptor.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
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

impl Descriptor {
    fn info(self) -> io::Result<FdInfo> {
        FdInfo::read(&self.path("fdinfo"))
    }

    /// Whether it is a socket or the like, which has no locks: reading the link is cheaper than
    /// making the kernel print an fdinfo, and, unlike a `stat`, asks no file system.
    fn is_no_file(self) -> bool {
        let kinds: [&[u8]; 3] = [b"socket:", b"pipe:", b"anon_inode:"];
        fs::read_link(self.path("fd"))
            .is_ok_and(|to| kinds.iter().any(|kind| to.as_os_str().as_bytes().starts_with(kind)))
    }

    fn path(self, folder: &str) -> String {
        format!("{}/{}", path_of_thread(self.pid, self.tid, folder), self.fd)
    }
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
            if descriptor.is_no_file() {
                continue;
            }
            let Ok(info) = descriptor.info() else { continue };
            for lock in info.ofd_locks_on(file) {
                found.entry(lock).or_default().push(descriptor);
            }
        }
    }
    Ok(found)
}

/// The descriptors of a process; none if they are not ours to see.
fn descriptors_of(pid: u32) -> Vec<Descriptor> {
    match descriptors_by(pid, pid) {
        // A main thread that has exited shows none, while those of the others are the process's.
        Some(none) if none.is_empty() && has_more_threads(pid) => {
            let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            let threads = threads.filter_map(|thread| super::parse(thread.file_name().as_bytes()));
            let others = threads.filter(|tid| *tid != pid);
            let mut shown = others.filter_map(|tid| descriptors_by(pid, tid));
            shown.find(|descriptors| !descriptors.is_empty()).unwrap_or_default()
        }
        shown => shown.unwrap_or_default(),
    }
}

/// Whether a process has other threads than its main one: a kernel thread has none, and no
/// descriptors either.
fn has_more_threads(pid: u32) -> bool {
    // The folder itself, its parent, and one for each thread.
    fs::metadata(format!("/proc/{pid}/task")).is_ok_and(|folder| folder.nlink() > 3)
}

/// A folder of a thread. That of the main one is found more quickly as that of the process.
fn path_of_thread(pid: u32, tid: u32, folder: &str) -> String {
    if tid == pid {
        format!("/proc/{pid}/{folder}")
    } else {
        format!("/proc/{pid}/task/{tid}/{folder}")
    }
}

/// The same as one of its threads shows them; `None` if it is not ours to see.
fn descriptors_by(pid: u32, tid: u32) -> Option<Vec<Descriptor>> {
    let descriptors = fs::read_dir(path_of_thread(pid, tid, "fd")).ok()?;
    let numbers =
        descriptors.flatten().filter_map(|entry| super::parse(entry.file_name().as_bytes()));
    Some(numbers.map(|fd| Descriptor { pid, tid, fd }).collect())
}

/// Whether a thread of this process runs, or would if there were a processor for it: it waits for
/// nothing else.
pub(crate) fn is_runnable(tid: u32) -> bool {
    let stat = fs::read(format!("/proc/self/task/{tid}/stat")).unwrap_or_default();
    // Such as `77 (lockspace) R 1 ...`; the name can have any byte.
    let name_ends = stat.iter().rposition(|&byte| byte == b')');
    name_ends.is_some_and(|at| stat[at..].starts_with(b") R"))
}

/// The short name of a process, which it chose itself; empty where it cannot be read.
pub(crate) fn command_of(pid: u32) -> OsString {
    let mut command = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    command.pop_if(|last| *last == b'\n');
    OsString::from_vec(command)
}

#[cfg(test)]
mod tests {
    use super::super::own_tid;
    use super::*;

    #[test]
    fn a_thread_that_waits_is_not_runnable() {
        assert!(is_runnable(own_tid().unwrap()));
        let (tell, told) = std::sync::mpsc::channel();
        let (stay, end) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            tell.send(own_tid().unwrap()).unwrap();
            let _ = end.recv();
        });
        let other_is = told.recv().unwrap();
        while is_runnable(other_is) {
            std::thread::yield_now();
        }
        drop(stay);
        other.join().unwrap();
        assert!(!is_runnable(u32::MAX));
    }
}
