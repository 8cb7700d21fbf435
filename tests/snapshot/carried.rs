//! Bytes that are carried through an exec.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use crate::support::forked::in_child;
use crate::support::state::descriptors;
use lockspace::snapshot::{Snapshot, carried};
use lockspace::{LockSpace, Naming};

#[test]
fn only_what_an_earlier_program_carried_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    in_child(|| {
        let file = File::create_new(dir.path().join("file")).unwrap();
        let folder = File::open(dir.path()).unwrap();
        let (reader, _writer) = std::io::pipe().unwrap();
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("lockspace-state", flags).unwrap();
        let space = LockSpace::open(Naming::in_memory()).unwrap();
        let mut snapshot = Snapshot::take([&space]).unwrap();
        let ours = snapshot.carry(b"ours").unwrap();
        assert!(ours > 2);
        // By number: what other tests do with theirs is to be seen here, too.
        let open = || descriptors().into_keys().collect::<Vec<_>>();
        let before = open();
        let numbers =
            [file.as_raw_fd(), folder.as_raw_fd(), reader.as_raw_fd(), memory.as_raw_fd()];
        let numbers = numbers.map(i32::unsigned_abs);
        for number in numbers.into_iter().chain([0, 1, 2, 900, ours, 1 << 31, u32::MAX]) {
            carried(number).expect_err("it is not for us");
            assert_eq!(open(), before, "{number}");
        }
        drop(snapshot);
        carried(ours).expect_err("it is closed");
    });
}

#[test]
fn carried_bytes_cannot_be_changed() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    let mut snapshot = Snapshot::take([&space]).unwrap();
    let numbers = [b"".as_slice(), b"state", &vec![7; 1 << 20]].map(|b| snapshot.carry(b).unwrap());
    let path = format!("/proc/self/fd/{}", numbers[1]);
    assert_eq!(fs::read(&path).unwrap(), b"state");
    let refused = fs::write(&path, "other").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
}
