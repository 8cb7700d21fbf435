//! File systems that answer from the kernel's memory, unlike those of a network or of another
//! process: no call to them hangs.
//!
//! There are two ways to ask, since the table of mounts has a file system's name and `fstatfs` its
//! number; and two questions: may a lock file be there, and may a path to one lead through it? A file
//! system that is not in the list is taken for one that can hang.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{self, Path, PathBuf};

use super::fs::{self, FileKind};
use super::procfs::{self, Mounts};

/// Which calls to a file system cannot hang.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Local {
    /// Its locks and its lookups. With the number that `fstatfs` gives it.
    LocksAndLookups(u64),
    /// Its lookups. Nothing is claimed of locks: they may be another file system's, as an overlay's
    /// are, or it may have no files to be written.
    Lookups,
}

const LOCAL: [(&str, Local); 18] = {
    use Local::{LocksAndLookups, Lookups};
    [
        ("ext2", LocksAndLookups(0xef53)),
        ("ext3", LocksAndLookups(0xef53)),
        ("ext4", LocksAndLookups(0xef53)),
        ("xfs", LocksAndLookups(0x5846_5342)),
        ("btrfs", LocksAndLookups(0x9123_683e)),
        ("f2fs", LocksAndLookups(0xf2f5_2010)),
        ("zfs", LocksAndLookups(0x2fc1_2fc1)),
        ("tmpfs", LocksAndLookups(0x0102_1994)),
        ("ramfs", LocksAndLookups(0x8584_58f6)),
        ("bcachefs", Lookups),
        ("rootfs", Lookups),
        ("devtmpfs", Lookups),
        ("overlay", Lookups),
        ("squashfs", Lookups),
        ("erofs", Lookups),
        ("iso9660", Lookups),
        ("proc", Lookups),
        ("sysfs", Lookups),
    ]
};

/// Whether locks and lookups on the file system of this descriptor are known not to hang.
pub(crate) fn cannot_hang(fd: impl AsFd) -> bool {
    #[allow(clippy::unnecessary_cast)] // its type differs by target
    let number = rustix::fs::fstatfs(fd).map_or(0, |fs| fs.f_type as u64 & 0xffff_ffff);
    LOCAL.iter().any(|(_, local)| *local == Local::LocksAndLookups(number))
}

/// Whether a lookup by this path, or by the path that the kernel has for the descriptor, is known
/// not to hang on the way.
pub(crate) fn path_cannot_hang(path: &Path, fd: impl AsFd) -> bool {
    let (Ok(own), Ok(mounts)) = (procfs::path_of(fd.as_fd()), Mounts::read()) else {
        return false;
    };
    lookups_cannot_hang(&mounts, path) && lookups_cannot_hang(&mounts, &own)
}

/// Whether a lookup by this path is known not to hang, found out without asking any file system that
/// can: the way is followed step by step, and no step is made that leads out of the local ones.
pub(crate) fn way_seems_local(path: &Path) -> bool {
    const MOST_SYMLINKS: u32 = 40;
    let (Ok(path), Ok(mounts)) = (path::absolute(path), Mounts::read()) else { return false };
    let mut here = PathBuf::new();
    let mut ahead = steps_back_to_front(&path);
    let mut symlinks = 0;
    while let Some(step) = ahead.pop() {
        if step == ".." {
            here.pop();
            continue;
        }
        // A step to the root begins anew.
        here.push(step);
        if !lookups_cannot_hang(&mounts, &here) {
            return false;
        }
        match fs::lstat(&here).map(|status| status.kind()) {
            Ok(FileKind::Symlink) => {}
            Ok(_) => continue,
            // Nor is any further step made by others.
            Err(_) => return true,
        }
        symlinks += 1;
        let Ok(target) = std::fs::read_link(&here) else { return false };
        if symlinks > MOST_SYMLINKS {
            return false;
        }
        here.pop();
        ahead.extend(steps_back_to_front(&target));
    }
    true
}

fn steps_back_to_front(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|step| step.as_os_str().to_owned()).collect()
}

/// Whether the file system of the mount of this number is local. Does not ask it.
pub(crate) fn mount_seems_local(mount: u64) -> bool {
    Mounts::read().is_ok_and(|mounts| mounts.kind_of(mount).is_some_and(is_local))
}

fn is_local(kind: &[u8]) -> bool {
    LOCAL.iter().any(|(name, _)| name.as_bytes() == kind)
}

/// Whether all that is mounted on the way along a path is local. False without any mount.
fn lookups_cannot_hang(mounts: &Mounts, path: &Path) -> bool {
    let mut on_the_way = mounts.iter().filter(|mount| path.starts_with(mount.point())).peekable();
    on_the_way.peek().is_some() && on_the_way.all(|mount| is_local(mount.kind))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, RawFd};

    use super::*;
    use crate::sys::procfs::FdInfo;

    const TABLE: &str = r"1 0 254:0 / / rw,relatime - ext4 /dev/vda rw
2 1 0:20 / /run rw shared:5 master:7 - tmpfs tmpfs rw
3 2 0:21 / /run/user/1/far rw - fuse.sshfs host: rw
4 3 0:22 / /run/user/1/far/near rw - tmpfs tmpfs rw
5 1 0:23 / /net rw - autofs map rw
6 1 0:24 / /a\040b\134c rw - nfs4 host:/ rw
7 1 0:25 / /img rw - xfs /dev/vdb rw

";

    fn is_local(path: &str) -> bool {
        lookups_cannot_hang(&Mounts::parse(TABLE.as_bytes().to_vec()), Path::new(path))
    }

    #[test]
    fn what_is_on_the_way_counts() {
        for path in
            ["/", "/tmp/locks", "/run/locks", "/run/user/1", "/run/user/1/farther", "/img/a"]
        {
            assert!(is_local(path), "{path}");
        }
        for path in ["/run/user/1/far", "/run/user/1/far/near/locks", "/net/a", "/a b\\c/locks"] {
            assert!(!is_local(path), "{path}");
        }
        assert!(is_local("/a") && is_local("/a b") && is_local("/a\\040b\\134c"));
    }

    #[test]
    fn without_a_table_nothing_is_known() {
        assert!(!lookups_cannot_hang(&Mounts::parse(Vec::new()), Path::new("/")));
    }

    #[test]
    fn a_way_is_followed_through_symlinks() {
        let dir = tempfile::tempdir().unwrap();
        let [real, link, far, round] =
            ["real", "link", "far", "round"].map(|name| dir.path().join(name));
        std::fs::create_dir(&real).unwrap();
        std::fs::write(real.join("a"), "").unwrap();
        std::os::unix::fs::symlink("real/../real", &link).unwrap();
        // Any file system that is not in the list.
        let mounts = Mounts::read().unwrap();
        let other =
            mounts.iter().find(|mount| !super::is_local(mount.kind)).map(|mount| mount.point());
        std::os::unix::fs::symlink(other.as_deref().unwrap_or(Path::new("x")), &far).unwrap();
        std::os::unix::fs::symlink("round", &round).unwrap();
        for path in [&link, dir.path(), &link.join("a"), &link.join("missing/../a")] {
            assert!(way_seems_local(path), "{path:?}");
        }
        for path in [&round, Path::new("")] {
            assert!(!way_seems_local(path), "{path:?}");
        }
        for path in [far.clone(), far.join("a/b"), link.join("../far")] {
            assert_eq!(way_seems_local(&path), other.is_none(), "{path:?}");
        }
    }

    #[test]
    fn a_descriptor_is_local_by_its_mount() {
        let of = |fd: RawFd| mount_seems_local(FdInfo::of_own(fd).unwrap().mount().unwrap());
        assert!(of(std::fs::File::open("/proc").unwrap().as_raw_fd()));
        assert!(!of(std::io::pipe().unwrap().0.as_raw_fd()));
        assert!(!mount_seems_local(0));
    }

    #[test]
    fn a_file_system_for_lookups_alone_holds_no_locks() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert!(!cannot_hang(&proc));
        assert!(path_cannot_hang(Path::new("/proc"), &proc));
    }
}
