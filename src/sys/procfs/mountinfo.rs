//! `/proc/thread-self/mountinfo`: the kernel's table of mounts, as far as this process sees them.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The table at one moment.
pub(crate) struct Mounts(Vec<u8>);

/// What is mounted, and where.
pub(crate) struct Mount<'a> {
    /// Its number, as an fdinfo tells it.
    id: u64,
    /// The device of its file system, as the lock tables have it.
    device: u64,
    point: &'a [u8],
    /// The kind of its file system, as in `/proc/filesystems`.
    pub(crate) kind: &'a [u8],
}

impl Mounts {
    pub(crate) fn read() -> io::Result<Self> {
        super::read("/proc/thread-self/mountinfo").map(Self)
    }

    #[cfg(test)]
    pub(crate) fn parse(table: Vec<u8>) -> Self {
        Self(table)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Mount<'_>> {
        self.0.split(|&b| b == b'\n').filter_map(Mount::parse)
    }

    /// The kind of the file system of the mount of this number.
    pub(crate) fn kind_of(&self, id: u64) -> Option<&[u8]> {
        self.iter().find(|mount| mount.id == id).map(|mount| mount.kind)
    }

    /// The device of the mount of this number.
    pub(super) fn device_of(&self, id: u64) -> Option<u64> {
        self.iter().find(|mount| mount.id == id).map(|mount| mount.device)
    }
}

impl<'a> Mount<'a> {
    /// From `27 1 254:0 / /run rw shared:5 - ext4 /dev/vda rw`: mount, parent, device, root, mount
    /// point, options, any number of fields, a hyphen, kind, source, more options.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.split(|&b| b == b' ');
        let id = super::parse(fields.next()?)?;
        let (major, minor) = str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
        let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
        let point = fields.nth(1)?;
        let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
        Some(Self { id, device, point, kind })
    }

    /// Where it is mounted: without symlinks, as the kernel has it.
    pub(crate) fn point(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(unescaped(self.point)))
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
    use std::path::Path;

    use super::*;

    #[test]
    fn the_kernels_table_is_read() {
        let mounts = Mounts::read().unwrap();
        assert!(mounts.iter().any(|mount| mount.point() == Path::new("/proc")));
        assert!(mounts.iter().all(|mount| mount.point().is_absolute() && !mount.kind.is_empty()));
    }

    #[test]
    fn the_device_of_a_mount_is_found_by_its_whole_number() {
        let table = b"270 1 0:9 / /a rw - tmpfs a rw\nodd\n27 1 254:1 / / rw - ext4 /dev/vda rw\n";
        let mounts = Mounts(table.to_vec());
        assert_eq!(mounts.device_of(27), Some(0xfe01));
        assert_eq!(mounts.device_of(2), None);
    }

    #[test]
    fn a_mount_point_is_read_without_its_escapes() {
        let mount = Mount::parse(br"6 1 0:24 / /a\040b\134c rw a:1 b - nfs4 host:/ rw").unwrap();
        assert_eq!((mount.point(), mount.kind), (PathBuf::from("/a b\\c"), &b"nfs4"[..]));
    }
}
