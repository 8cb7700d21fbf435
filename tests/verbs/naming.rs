//! What libvirt's own lockspace test shows, in its order, and what its verbs promise beside:
//! from a name to a lock file.

use std::env;
use std::fs;
use std::path::Path;

use crate::support::forked::in_child;
use crate::support::locks::held;
use crate::support::process::open_numbers;
use crate::support::spaces::{A, B, busy, direct, granted, is_empty, space_in};
use crate::support::waits::LONG;
use lockspace::{LockFileError, LockSpace, Mode, Naming, Origin, Request, Target, Wait};

#[test]
fn in_memory_a_resource_has_no_file_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    in_child(|| {
        env::set_current_dir(dir.path()).unwrap();
        let space = LockSpace::open(Naming::in_memory()).unwrap();
        let before = open_numbers();
        space.create("a").unwrap();
        let lease = granted(&space, A, Request::exclusive("a"));
        assert_eq!(lease.path(), Path::new(""));
        let busy = busy(&space, B, Request::shared("a").auto_create());
        assert_eq!((busy.owners(), busy.path()), (&[A][..], Path::new("")));
        assert!(matches!(space.delete("a"), Err(LockFileError::Busy(_))));
        let held = &space.list()[0];
        assert_eq!((held.origin, &*held.path), (Origin::InMemory, Path::new("")));
        lease.verify().unwrap();
        assert_eq!(open_numbers(), before);
        assert!(is_empty(dir.path()));
        lease.release().unwrap();
        granted(&space, B, Request::exclusive("a").auto_create()).release().unwrap();
    });
}

#[test]
fn in_memory_a_resource_that_nobody_holds_can_be_deleted() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    space.create("a").unwrap();
    space.delete("a").unwrap();
}

#[test]
fn two_spaces_in_memory_are_strangers() {
    let [one, two] = [(); 2].map(|()| LockSpace::open(Naming::in_memory()).unwrap());
    let _first = granted(&one, A, Request::exclusive("a"));
    let _second = granted(&two, A, Request::exclusive("a"));
}

/// The one file in the directory of a space of this naming, while it holds `name`.
fn file_of(naming: impl Fn(&Path) -> Naming, name: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(naming(dir.path())).unwrap();
    let lease = granted(&space, A, Request::exclusive(name).auto_create());
    let files: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    assert_eq!(lease.path(), dir.path().join(file));
    file.to_str().unwrap().to_owned()
}

#[test]
fn verbatim_a_lock_file_is_named_as_the_resource() {
    assert_eq!(file_of(|dir| Naming::verbatim(dir), ".lxc container"), ".lxc container");
}

#[test]
fn by_md5_a_lock_file_has_the_name_that_md5sum_prints() {
    // printf %s /img/a.qcow2 | md5sum
    assert_eq!(file_of(|dir| Naming::md5(dir), "/img/a.qcow2"), "59037f137443e7768f03e6883a46ca61");
}

#[cfg(feature = "sha256")]
#[test]
fn by_sha256_a_lock_file_has_the_name_that_sha256sum_prints() {
    // printf %s /img/a.qcow2 | sha256sum
    let hash = "702c8ea5a72e95021434919a4e49fe0b2b5473d8c7f3a3e0bfe2c7e668c00596";
    assert_eq!(file_of(|dir| Naming::sha256(dir), "/img/a.qcow2"), hash);
}

/// Up to the longest path that the kernel takes.
#[test]
fn a_long_path_is_locked_as_any_other() {
    let dir = tempfile::tempdir().unwrap();
    for length in [300, 319, 320, 321, 1000, 4095] {
        let mut folder = dir.path().canonicalize().unwrap();
        // With the name, and the slash before it; each folder takes a slash and a letter or more.
        while let missing @ 1.. = length - 2 - folder.as_os_str().len() {
            folder.push("f".repeat(if missing > 240 { 200 } else { missing - 1 }));
        }
        fs::create_dir_all(&folder).unwrap();
        let image = folder.join("a");
        assert_eq!(image.as_os_str().len(), length);
        fs::write(&image, "").unwrap();
        for (space, name) in [(direct(), &*image), (space_in(&folder), Path::new("a"))] {
            for wait in [Wait::NO, Wait::within(LONG)] {
                let lease = space.acquire(A, Request::exclusive(name), wait).unwrap();
                assert_eq!(lease.path(), image);
                lease.verify().unwrap();
                assert_eq!(held(&image), Some(Mode::Exclusive));
            }
        }
        let locks = tempfile::tempdir().unwrap();
        let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
        let lease = granted(&space, A, Request::exclusive(Target::image(&image)).auto_create());
        assert_eq!(lease.name(), image.as_os_str());
        lease.release().unwrap();
    }
}
