//! What a directory holds, read at once: where thousands of names are to be looked up, reading the
//! directory takes a quarter of the time of a lookup for each.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use hashbrown::HashMap;
use rustix::fs::RawDir;

use crate::engine::Directory;
use crate::sys::procfs::{self, Mounts};

/// The inodes of a directory's files, and their names.
#[derive(Debug)]
pub(crate) struct Listing {
    names: Vec<u8>,
    /// Where each inode's name stands in `names`, and how long it is: small, since most of what a
    /// look-up takes is to fetch it. One of several names, if it has more.
    of_inode: HashMap<u64, (u32, u16)>,
}

impl Listing {
    /// Reads a directory that nobody else reads through this descriptor, or at least twice as many
    /// of its entries as are `wanted`. `None` where an entry's inode may not be that of the file
    /// that its name leads to: on a file system that is not known, or where something is mounted
    /// on a name.
    pub(crate) fn read(directory: &Directory, wanted: usize) -> Option<Self> {
        if !directory.is_local() || has_mounts(directory) {
            return None;
        }
        let mut listing = Self {
            names: Vec::with_capacity(wanted.saturating_mul(32)),
            of_inode: HashMap::with_capacity(wanted),
        };
        let mut buffer = vec![MaybeUninit::uninit(); 1 << 16];
        let mut entries = RawDir::new(directory.as_fd(), &mut buffer);
        for _ in 0..wanted.saturating_mul(2) {
            let Some(entry) = entries.next() else { break };
            let entry = entry.ok()?;
            let name = entry.file_name().to_bytes();
            let place = (listing.names.len().try_into().ok()?, name.len().try_into().ok()?);
            listing.names.extend_from_slice(name);
            listing.of_inode.insert(entry.ino(), place);
        }
        Some(listing)
    }

    /// Whether the name was seen to lead to this inode; `false` says nothing.
    pub(crate) fn has(&self, name: &[u8], inode: u64) -> bool {
        let place = self.of_inode.get(&inode);
        let place = place.map(|&(start, len)| (start as usize, usize::from(len)));
        place.is_some_and(|(start, len)| &self.names[start..start + len] == name)
    }
}

/// Whether something may be mounted on a name in the directory: its entry tells the inode beneath.
fn has_mounts(directory: &Directory) -> bool {
    // As the kernel has it, without symlinks.
    let own = procfs::path_of(directory.as_fd());
    let (Ok(own), Ok(mounts)) = (own, Mounts::read()) else { return true };
    mounts.iter().map(|mount| mount.point()).any(|point| point != own && point.starts_with(&own))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn a_name_is_listed_with_its_inode_alone() {
        let dir = tempfile::tempdir().unwrap();
        let inode = |name: &str| {
            fs::write(dir.path().join(name), "").unwrap();
            fs::metadata(dir.path().join(name)).unwrap().ino()
        };
        let (a, b) = (inode("a"), inode("b"));
        let directory = Directory::reopen(dir.path()).unwrap();
        let Some(listing) = Listing::read(&directory, 100) else {
            return assert!(!directory.is_local());
        };
        assert!(listing.has(b"a", a) && listing.has(b"b", b));
        assert!(!listing.has(b"a", b) && !listing.has(b"c", a) && !listing.has(b"", a));
        let directory = Directory::reopen(dir.path()).unwrap();
        assert!(!Listing::read(&directory, 0).unwrap().has(b"a", a));
    }

    #[test]
    fn a_directory_above_a_mount_is_not_listed() {
        assert!(has_mounts(&Directory::reopen("/".as_ref()).unwrap()));
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_mounts(&Directory::reopen(dir.path()).unwrap()));
    }
}
