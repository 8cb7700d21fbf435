//! A file with two names is refused where the request says so.

use std::fs::{self, File};

use crate::support::locks::held;
use crate::support::spaces::{A, B, BOTH, bad, direct, granted, image, is_empty};
use lockspace::{InvalidRequest, LockSpace, Naming, Request, Target};

#[test]
fn a_file_with_two_names_is_refused_where_the_request_says_so() {
    let (dir, image) = image();
    let space = direct();
    let hard = dir.path().join("hard");
    fs::hard_link(&image, &hard).unwrap();
    for mode in BOTH {
        for name in [&image, &hard] {
            let request = Request::new(mode, name).refuse_hard_links();
            assert_eq!(bad(&space, B, request), InvalidRequest::HardLinks { links: 2 });
        }
    }
    assert_eq!(held(&image), None);
    granted(&space, A, Request::exclusive(&image)).release().unwrap();
    fs::remove_file(&hard).unwrap();
    granted(&space, A, Request::exclusive(&image).refuse_hard_links()).release().unwrap();
}

#[test]
fn an_image_with_two_names_is_refused_behind_hashed_names() {
    let (dir, image) = image();
    let locks = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    fs::hard_link(&image, dir.path().join("hard")).unwrap();
    for mode in BOTH {
        let request = Request::new(mode, Target::image(&image)).auto_create().refuse_hard_links();
        assert_eq!(bad(&space, B, request), InvalidRequest::HardLinks { links: 2 });
    }
    assert!(is_empty(locks.path()));
}

#[test]
fn an_open_file_with_two_names_is_refused_where_the_request_says_so() {
    let (dir, image) = image();
    fs::hard_link(&image, dir.path().join("hard")).unwrap();
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let request = Request::exclusive(Target::opened("disk", &file)).refuse_hard_links();
    assert_eq!(bad(&direct(), B, request), InvalidRequest::HardLinks { links: 2 });
}

#[test]
fn a_file_with_two_names_is_refused_beside_a_shared_hold_too() {
    let (dir, image) = image();
    fs::hard_link(&image, dir.path().join("hard")).unwrap();
    let space = direct();
    let _lease = granted(&space, A, Request::shared(&image));
    let request = Request::shared(&image).refuse_hard_links();
    assert_eq!(bad(&space, B, request), InvalidRequest::HardLinks { links: 2 });
}
