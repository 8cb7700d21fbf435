//! What libvirt's own lockspace test shows, in its order, and what its verbs promise beside:
//! a resource's life.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::locks::held;
use crate::support::spaces::{A, direct, granted, image, is_empty, space_in, verbatim};
use lockspace::{AcquireError, ByteRange, LockFileError, LockSpace, Naming, Request, Wait};

#[test]
fn a_resource_is_created_and_deleted() {
    let (dir, space) = verbatim();
    let file = dir.path().join("a");
    space.create("a").unwrap();
    assert!(file.is_file());
    space.delete("a").unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn a_resource_that_nobody_holds_can_be_created_again_and_keeps_its_content() {
    let (dir, space) = verbatim();
    space.create("a").unwrap();
    fs::write(dir.path().join("a"), "kept").unwrap();
    space.create("a").unwrap();
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"kept");
}

#[test]
fn a_created_file_goes_with_the_holder_elsewhere_that_would_have_created_it() {
    let (dir, space) = verbatim();
    let elsewhere = space_in(dir.path());
    let lease = granted(&elsewhere, A, Request::exclusive("a").auto_create());
    space.create("a").unwrap();
    lease.release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn a_direct_delete_of_a_symlink_removes_the_link_if_its_file_is_free() {
    let (dir, image) = image();
    let link = dir.path().join("link");
    symlink(&image, &link).unwrap();
    let space = direct();
    let lease = granted(&direct(), A, Request::exclusive(&image));
    assert!(matches!(space.delete(&link), Err(LockFileError::Busy(_))));
    assert!(link.is_symlink() && image.is_file());
    drop(lease);
    space.delete(&link).unwrap();
    assert!(!link.is_symlink() && image.is_file());
}

#[test]
fn deleting_a_resource_that_is_not_there_says_so() {
    let (dir, space) = verbatim();
    match space.delete("a") {
        Err(LockFileError::Io(error)) => {
            assert_eq!(error.source.kind(), std::io::ErrorKind::NotFound);
            assert_eq!(error.path, dir.path().join("a"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_resource_without_a_file_is_not_granted_unless_it_may_be_created() {
    let (dir, space) = verbatim();
    for request in [Request::exclusive("a"), Request::shared("a")] {
        match space.acquire(A, request, Wait::NO) {
            Err(AcquireError::NotFound { name, path }) => {
                assert_eq!((&*name, path), ("a".as_ref(), dir.path().join("a")));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(is_empty(dir.path()));
    granted(&space, A, Request::exclusive("a").auto_create()).release().unwrap();
}

#[test]
fn a_held_resource_cannot_be_deleted() {
    let (dir, space) = verbatim();
    space.create("a").unwrap();
    for request in [Request::exclusive("a"), Request::shared("a")] {
        let lease = granted(&space, A, request);
        match space.delete("a") {
            Err(LockFileError::Busy(busy)) => {
                assert_eq!((busy.owners(), busy.held()), (&[A][..], Some(lease.mode())));
            }
            other => panic!("{other:?}"),
        }
        assert!(dir.path().join("a").exists());
        assert_eq!(held(lease.path()), Some(lease.mode()));
    }
    space.delete("a").unwrap();
}

#[test]
fn a_resource_that_another_space_holds_cannot_be_deleted() {
    let (dir, space) = verbatim();
    let other = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    space.create("a").unwrap();
    let far = ByteRange::new(100, std::num::NonZeroU64::MIN).unwrap();
    for request in [Request::exclusive("a"), Request::shared("a").range(far)] {
        let lease = granted(&other, A, request);
        match space.delete("a") {
            Err(LockFileError::Busy(busy)) => assert!(busy.owners().is_empty()),
            other => panic!("{other:?}"),
        }
        assert!(lease.path().exists());
    }
}

#[test]
fn a_held_resource_cannot_be_created_again() {
    let (_dir, space) = verbatim();
    for request in [Request::exclusive("a"), Request::shared("a")] {
        let lease = granted(&space, A, request.auto_create());
        match space.create("a") {
            Err(LockFileError::Busy(busy)) => assert_eq!(busy.owners(), [A]),
            other => panic!("{other:?}"),
        }
        lease.verify().unwrap();
    }
}
