//! One file twice in a request for several.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::several::{All, images, waits};
use crate::support::locks::held;
use crate::support::spaces::{A, B, auto, is_empty, space_in};
use lockspace::{AcquireError, InvalidRequest, LockSpace, Mode, Naming, Request, Target, Wait};
use tempfile::TempDir;

/// Two requests of a call are about one file, by these spellings: refused with both, unless both are
/// shared and so can be held beside each other.
#[track_caller]
fn is_twice(result: All, modes: (Mode, Mode), one: &Path, two: &Path) {
    if modes == (Mode::Shared, Mode::Shared) {
        return drop(result.expect("shared holds do not exclude each other"));
    }
    let Err(AcquireError::Invalid { name, why: InvalidRequest::Twice { other } }) = &result else {
        panic!("{result:?}")
    };
    assert!(name != other || one == two, "{name:?} and {other:?}");
    assert!([one, two].iter().any(|path| path.as_os_str() == name), "{name:?}");
    assert!([one, two].iter().any(|path| path.as_os_str() == other), "{other:?}");
}

#[test]
fn one_file_twice_in_a_request_is_named() {
    let dir = TempDir::new().unwrap();
    let [image, other, _] = images(dir.path());
    let image = image.canonicalize().unwrap();
    let [hard, soft] = ["hard", "soft"].map(|name| image.with_file_name(name));
    fs::hard_link(&image, &hard).unwrap();
    symlink(&image, &soft).unwrap();
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();
    let hashed = LockSpace::open(Naming::md5(dir.path().join("locks"))).unwrap();
    let modes = [Mode::Exclusive, Mode::Shared];
    for wait in waits() {
        for (one, two) in modes.into_iter().flat_map(|one| modes.map(|two| (one, two))) {
            // In a directory there are no lock files yet, which only a grant would miss.
            let shared = (one, two) == (Mode::Shared, Mode::Shared);
            for space in [&direct, &hashed].into_iter().take(if shared { 1 } else { 2 }) {
                // Names.
                let same = [Request::new(one, &image), Request::new(two, &image)];
                is_twice(space.acquire_all(A, same, wait.clone()), (one, two), &image, &image);
                // Images, with another between.
                for alias in [&image, &hard, &soft] {
                    let requests = [
                        Request::new(one, Target::image(&image)),
                        Request::exclusive(Target::image(&other)),
                        Request::new(two, Target::image(alias)),
                    ];
                    let result = space.acquire_all(A, requests, wait.clone());
                    is_twice(result, (one, two), &image, alias);
                }
                assert_eq!(space.list(), []);
            }
            // Paths of a direct space, as they are.
            for alias in [&hard, &soft] {
                let requests = [
                    Request::new(one, &image),
                    Request::exclusive(&other),
                    Request::new(two, alias),
                ];
                let result = direct.acquire_all(A, requests, wait.clone());
                is_twice(result, (one, two), &image, alias);
                // And one that is open.
                for turned in [false, true] {
                    let opened = Request::new(one, Target::opened("opened", &file));
                    let mut requests = [opened, Request::new(two, alias)];
                    if turned {
                        requests.reverse();
                    }
                    let result = direct.acquire_all(A, requests, wait.clone());
                    is_twice(result, (one, two), Path::new("opened"), alias);
                }
            }
            assert_eq!(direct.list(), []);
        }
    }
    assert_eq!(held(&image), None);
}

#[test]
fn two_shared_requests_for_one_file_are_two_holds() {
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    for wait in waits() {
        let shared = || Request::shared("base").auto_create();
        let leases = space.acquire_all(A, [shared(), auto("disk"), shared()], wait).unwrap();
        let held = space.list().into_iter().find(|held| held.name == "base").unwrap();
        assert_eq!(held.owners[&A], 2);
        let mut leases = leases.into_iter();
        let (first, _disk, second) = (leases.next(), leases.next(), leases.next());
        drop(first);
        assert!(space.acquire(B, auto("base"), Wait::NO).is_err());
        drop(second);
        space.acquire(B, auto("base"), Wait::NO).unwrap().release().unwrap();
    }
    assert!(is_empty(dir.path()));
}
