//! The kernel's table of mounts, as far as this process sees them.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The table at one moment.
pub(crate) struct Mounts(Vec<u8>);

/// What is mounted, and where: without symlinks, as the kernel has it.
pub(crate) struct Mount<'a> {
    pub(crate) point: PathBuf,
    /// The kind of its file system, as in `/proc/filesystems`.
    kind: &'a [u8],
}

impl Mounts {
    pub(crate) fn read() -> io::Result<Self> {
        fs::read("/proc/thread-self/mountinfo").map(Self)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Mount<'_>> {
        self.0.split(|&b| b == b'\n').filter_map(|line| {
            // `27 1 254:0 / /run rw shared:5 - ext4 /dev/vda rw`: mount, parent, device, root,
            // mount point, options, any number of fields, a hyphen, kind, source, more options.
            let mut fields = line.split(|&b| b == b' ');
            let point = PathBuf::from(OsString::from_vec(unescaped(fields.nth(4)?)));
            let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
            Some(Mount { point, kind })
        })
    }

    /// Whether who follows this path needs an answer of file systems only that give it from the
    /// kernel's memory, unlike network file systems, FUSE or an automounter.
    pub(crate) fn are_local_towards(&self, path: &Path) -> bool {
        let mut on_the_way = self.iter().filter(|mount| path.starts_with(&mount.point)).peekable();
        on_the_way.peek().is_some() && on_the_way.all(|mount| mount.is_local())
    }
}

impl Mount<'_> {
    fn is_local(&self) -> bool {
        // To pass through, and not only to hold lock files: so these are more than those of
        // `directory::is_local`.
        const LOCAL: [&[u8]; 18] = [
            b"ext2",
            b"ext3",
            b"ext4",
            b"xfs",
            b"btrfs",
            b"f2fs",
            b"bcachefs",
            b"zfs",
            b"tmpfs",
            b"ramfs",
            b"rootfs",
            b"devtmpfs",
            b"overlay",
            b"squashfs",
            b"erofs",
            b"iso9660",
            b"proc",
            b"sysfs",
        ];
        LOCAL.contains(&self.kind)
    }
}

/// The table has blanks and backslashes as three octal digits after a backslash.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let code = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] if first == b'\\' => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = r"1 0 254:0 / / rw,relatime - ext4 /dev/vda rw
2 1 0:20 / /run rw shared:5 master:7 - tmpfs tmpfs rw
3 2 0:21 / /run/user/1/far rw - fuse.sshfs host: rw
4 3 0:22 / /run/user/1/far/near rw - tmpfs tmpfs rw
5 1 0:23 / /net rw - autofs map rw
6 1 0:24 / /a\040b\134c rw - nfs4 host:/ rw
7 1 0:25 / /img rw - xfs /dev/vdb rw

";

    fn is_local(path: &str) -> bool {
        Mounts(TABLE.as_bytes().to_vec()).are_local_towards(Path::new(path))
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
        assert!(!Mounts(Vec::new()).are_local_towards(Path::new("/")));
    }

    #[test]
    fn the_kernels_table_is_read() {
        let mounts = Mounts::read().unwrap();
        assert!(mounts.iter().any(|mount| mount.point == Path::new("/proc")));
        assert!(mounts.iter().all(|mount| mount.point.is_absolute() && !mount.kind.is_empty()));
    }
}
