//! Names that cannot be.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;

use super::{VM, bad, folder, granted, refused, undisturbed};
use crate::support::locks::held;
use crate::support::spaces::{BOTH, names_in};
use lockspace::{InvalidRequest, LockFileError, LockSpace, Naming, ReleaseError, Request, Target};

/// Every verb refuses the name, and no file appears.
#[track_caller]
fn no_name(naming: Naming, dir: &Path, name: &OsStr, why: &InvalidRequest) {
    let before = names_in(dir);
    undisturbed(naming, |space| {
        for mode in BOTH {
            for request in [Request::new(mode, name), Request::new(mode, name).auto_create()] {
                let error = refused(space, request);
                // A direct space may say first that it creates nothing.
                let is = bad(error, name);
                assert!(is == *why || is == InvalidRequest::AutoCreateInDirect, "{is}");
            }
        }
        match space.create(name) {
            Err(LockFileError::Invalid { name: named, why: is }) => {
                assert_eq!((&*named, &is), (name, why));
            }
            other => panic!("{other:?}"),
        }
        match space.delete(name) {
            Err(LockFileError::Invalid { name: named, why: is }) => {
                assert_eq!((&*named, &is), (name, why));
            }
            other => panic!("{other:?}"),
        }
        match space.release(VM, name) {
            Err(ReleaseError::NotHeld { .. }) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(bad(space.holders(name).unwrap_err(), name), *why);
    });
    assert_eq!(names_in(dir), before);
}

fn namings(dir: &Path) -> [Naming; 4] {
    [Naming::verbatim(dir), Naming::md5(dir), Naming::direct(), Naming::in_memory()]
}

#[test]
fn an_empty_name_is_refused() {
    let dir = folder();
    for naming in namings(dir.path()) {
        no_name(naming, dir.path(), "".as_ref(), &InvalidRequest::Empty);
    }
}

#[test]
fn a_name_with_a_nul_byte_is_refused() {
    let dir = folder();
    for naming in namings(dir.path()) {
        no_name(naming, dir.path(), "/a\0b".as_ref(), &InvalidRequest::Nul);
    }
}

#[test]
fn a_name_that_is_longer_than_any_path_is_refused() {
    let dir = folder();
    let name = "/".repeat(4096);
    for naming in namings(dir.path()) {
        no_name(naming, dir.path(), name.as_ref(), &InvalidRequest::TooLong { max: 4095 });
    }
    for naming in [Naming::md5(dir.path()), Naming::in_memory()] {
        let space = LockSpace::open(naming).unwrap();
        granted(&space, Request::exclusive(&name[1..]).auto_create()).release().unwrap();
    }
}

#[test]
fn a_name_that_is_longer_than_a_file_name_is_refused_verbatim() {
    let dir = folder();
    let name = "x".repeat(256);
    let verbatim = Naming::verbatim(dir.path());
    no_name(verbatim.clone(), dir.path(), name.as_ref(), &InvalidRequest::TooLong { max: 255 });
    let space = LockSpace::open(verbatim).unwrap();
    granted(&space, Request::exclusive(&name[1..]).auto_create()).release().unwrap();
}

#[test]
fn a_name_that_is_not_one_component_is_refused_verbatim() {
    let dir = folder();
    for name in [".", "..", "a/b", "/a", "a/", "../x", "/"] {
        let verbatim = Naming::verbatim(dir.path());
        no_name(verbatim, dir.path(), name.as_ref(), &InvalidRequest::NotOneComponent);
    }
}

#[test]
fn a_relative_name_is_refused_in_a_direct_space() {
    let dir = folder();
    for name in ["a", ".", "..", "a/b"] {
        no_name(Naming::direct(), dir.path(), name.as_ref(), &InvalidRequest::Relative);
    }
}

#[test]
fn a_name_that_cannot_be_is_refused_for_an_open_file_too() {
    let dir = folder();
    let open = File::create(dir.path().join("a")).unwrap();
    let long = "x".repeat(4096);
    undisturbed(Naming::md5(dir.path()), |space| {
        for (name, why) in [
            ("", InvalidRequest::Empty),
            ("a\0", InvalidRequest::Nul),
            (&long, InvalidRequest::TooLong { max: 4095 }),
        ] {
            let error = refused(space, Request::exclusive(Target::opened(name, &open)));
            assert_eq!(bad(error, name), why);
        }
    });
    assert_eq!(held(&dir.path().join("a")), None);
}
