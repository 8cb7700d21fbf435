//! What is the user's stays: no name leads out of the directory, and no image is removed.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::locks::held;
use crate::support::spaces::{A, B, BOTH, bad, direct, granted, image, is_empty, verbatim};
use lockspace::{InvalidRequest, LockFileError, LockSpace, Naming, Request, Target};

#[test]
fn a_name_that_leads_out_of_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
    let outside = dir.path().join("x");
    for there in [false, true] {
        if there {
            fs::write(&outside, "content").unwrap();
        }
        for mode in BOTH {
            let request = Request::new(mode, "../x").auto_create();
            assert_eq!(bad(&space, B, request), InvalidRequest::NotOneComponent);
        }
        assert!(matches!(space.create("../x"), Err(LockFileError::Invalid { .. })));
        assert!(matches!(space.delete("../x"), Err(LockFileError::Invalid { .. })));
        assert_eq!(outside.exists(), there);
    }
    assert_eq!(fs::read(&outside).unwrap(), b"content");
}

#[test]
fn a_symlink_in_the_directory_does_not_lead_out_of_it() {
    let (_elsewhere, image) = image();
    let (dir, space) = verbatim();
    symlink(&image, dir.path().join("a")).unwrap();
    for mode in BOTH {
        let why = bad(&space, B, Request::new(mode, "a").auto_create());
        assert!(matches!(why, InvalidRequest::NotAFile { kind: "a symbolic link", .. }), "{why}");
    }
    assert!(space.delete("a").is_err());
    assert_eq!(fs::read(&image).unwrap(), b"content");
}

#[test]
fn auto_create_in_a_direct_space_is_refused_and_the_image_survives() {
    let (dir, image) = image();
    let space = direct();
    for mode in BOTH {
        let request = Request::new(mode, &image).auto_create();
        assert_eq!(bad(&space, B, request), InvalidRequest::AutoCreateInDirect);
        let request = Request::new(mode, Target::image(&image)).auto_create();
        assert_eq!(bad(&space, B, request), InvalidRequest::AutoCreateInDirect);
        let missing = dir.path().join("missing");
        let request = Request::new(mode, &missing).auto_create();
        assert_eq!(bad(&space, B, request), InvalidRequest::AutoCreateInDirect);
        assert!(!missing.exists());
    }
    assert!(space.list().is_empty());
    assert_eq!(fs::read(&image).unwrap(), b"content");
}

#[test]
fn auto_create_in_a_direct_space_is_refused_beside_a_shared_hold_too() {
    let (_dir, image) = image();
    let space = direct();
    let _lease = granted(&space, A, Request::shared(&image));
    let request = Request::shared(&image).auto_create();
    assert_eq!(bad(&space, B, request), InvalidRequest::AutoCreateInDirect);
}

#[test]
fn releases_in_a_direct_space_leave_the_image_with_its_content() {
    let (_dir, image) = image();
    let space = direct();
    for mode in BOTH {
        granted(&space, A, Request::new(mode, &image)).release().unwrap();
        granted(&space, A, Request::new(mode, &image)).keep();
        assert_eq!(space.release_owner(A).holds, 1);
    }
    assert_eq!(fs::read(&image).unwrap(), b"content");
}

#[test]
fn an_image_gets_no_hold_in_a_space_of_hashed_names_that_touches_it() {
    let (_dir, image) = image();
    let locks = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    let request = Request::exclusive(Target::image(&image)).auto_create();
    let lease = granted(&space, A, request);
    assert_eq!(held(&image), None);
    lease.release().unwrap();
    assert!(is_empty(locks.path()));
    assert_eq!(fs::read(&image).unwrap(), b"content");
}
