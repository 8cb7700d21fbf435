//! What is no file, or not there.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use super::{VM, bad, file, folder, granted, refused, undisturbed};
use crate::support::interop::skip_or_fail;
use crate::support::spaces::{BOTH, names_in};
use lockspace::{
    AcquireError, InvalidRequest, LockFileError, LockSpace, Naming, Request, Target, Wait,
};
use rustix::fs::{CWD, FileType, makedev, mknodat};

/// A directory, a FIFO, a socket, a symlink, and, if this is root, a character device: the name
/// and what an error says that it is.
fn things(dir: &Path) -> Vec<(&'static str, &'static str)> {
    fs::create_dir(dir.join("directory")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    mknodat(CWD, dir.join("fifo"), FileType::Fifo, mode, 0).unwrap();
    drop(UnixListener::bind(dir.join("socket")).unwrap());
    file(dir.join("file"), 0o600);
    symlink("file", dir.join("symlink")).unwrap();
    let mut things = vec![
        ("directory", "a directory"),
        ("fifo", "a FIFO"),
        ("socket", "a socket"),
        ("symlink", "a symbolic link"),
    ];
    let device = dir.join("device");
    match mknodat(CWD, &device, FileType::CharacterDevice, mode, makedev(1, 3)) {
        Ok(()) => things.push(("device", "a character device")),
        Err(errno) => skip_or_fail("a character device", &errno.to_string()),
    }
    things
}

#[test]
fn what_is_no_file_is_refused_in_a_directory() {
    let dir = folder();
    let things = things(dir.path());
    let before = names_in(dir.path());
    undisturbed(Naming::verbatim(dir.path()), |space| {
        for (name, kind) in &things {
            let path = dir.path().join(name);
            for mode in BOTH {
                let request = || Request::new(mode, *name);
                for request in [request(), request().auto_create()] {
                    assert_not_a_file(&bad(refused(space, request), name), &path, kind);
                }
            }
            match space.create(name) {
                Err(LockFileError::Invalid { why, .. }) => assert_not_a_file(&why, &path, kind),
                other => panic!("{other:?}"),
            }
            match space.delete(name) {
                Err(LockFileError::Invalid { why, .. }) => assert_not_a_file(&why, &path, kind),
                other => panic!("{other:?}"),
            }
        }
    });
    assert_eq!(names_in(dir.path()), before);
}

/// Whichever thread makes the system calls, and however it opens the file.
#[test]
fn a_wait_that_is_bad_is_refused_in_the_words_of_a_try() {
    let dir = folder();
    let mut names: Vec<_> = things(dir.path()).into_iter().map(|(name, _)| name).collect();
    fs::hard_link(dir.path().join("file"), dir.path().join("link")).unwrap();
    names.extend(["file", "a/b"]);
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    for name in names {
        for mode in BOTH {
            let request = Request::new(mode, name).refuse_hard_links();
            for request in [request.clone(), request.auto_create()] {
                let tried = refused(&space, request.clone());
                let wait = Wait::within(Duration::from_secs(60));
                let waited = space.acquire(VM, request, wait).unwrap_err();
                assert_eq!(waited.to_string(), tried.to_string());
            }
        }
    }
    let missing = || Request::exclusive("missing");
    let waited = space.acquire(VM, missing(), Wait::within(Duration::from_secs(60)));
    assert_eq!(waited.unwrap_err().to_string(), refused(&space, missing()).to_string());
    assert!(space.list().is_empty());
}

#[track_caller]
fn assert_not_a_file(why: &InvalidRequest, at: &Path, what: &str) {
    match why {
        InvalidRequest::NotAFile { path, kind } => assert_eq!((&**path, *kind), (at, what)),
        why => panic!("{why}"),
    }
}

#[test]
fn what_is_no_file_is_refused_in_a_direct_space() {
    let dir = folder();
    let mut things = things(dir.path());
    things.retain(|(name, _)| *name != "symlink");
    let mut paths: Vec<_> =
        things.into_iter().map(|(name, kind)| (dir.path().join(name), kind)).collect();
    paths.push(("/dev/null".into(), "a character device"));
    undisturbed(Naming::direct(), |space| {
        for (path, kind) in &paths {
            for mode in BOTH {
                let why = bad(refused(space, Request::new(mode, path)), path);
                assert_not_a_file(&why, path, kind);
            }
            match space.create(path) {
                Err(LockFileError::Invalid { why, .. }) => assert_not_a_file(&why, path, kind),
                other => panic!("{other:?}"),
            }
            match space.delete(path) {
                Err(LockFileError::Invalid { why, .. }) => assert_not_a_file(&why, path, kind),
                other => panic!("{other:?}"),
            }
            assert!(fs::symlink_metadata(path).is_ok());
        }
    });
}

#[test]
fn what_is_no_file_is_refused_as_an_image() {
    let dir = folder();
    let locks = tempfile::tempdir().unwrap();
    let things = things(dir.path());
    undisturbed(Naming::md5(locks.path()), |space| {
        for (name, kind) in things.iter().filter(|(name, _)| *name != "symlink") {
            let path = dir.path().join(name);
            let link = dir.path().join("link");
            symlink(&path, &link).unwrap();
            for asked in [&path, &link] {
                for mode in BOTH {
                    let request = Request::new(mode, Target::image(asked)).auto_create();
                    let why = bad(refused(space, request), asked);
                    assert_not_a_file(&why, &fs::canonicalize(&path).unwrap(), kind);
                }
            }
            fs::remove_file(&link).unwrap();
        }
    });
    assert!(names_in(locks.path()).is_empty());
}

#[test]
fn a_symlink_to_a_file_is_an_image() {
    let dir = folder();
    things(dir.path());
    let locks = tempfile::tempdir().unwrap();
    for naming in [Naming::md5(locks.path()), Naming::in_memory()] {
        let space = LockSpace::open(naming).unwrap();
        let link = dir.path().join("symlink");
        let lease = granted(&space, Request::exclusive(Target::image(&link)).auto_create());
        let resolved = fs::canonicalize(dir.path().join("file")).unwrap();
        assert_eq!(lease.name(), resolved.as_os_str());
    }
}

#[test]
fn an_image_that_does_not_exist_is_not_found() {
    let dir = folder();
    let locks = tempfile::tempdir().unwrap();
    let dangling = dir.path().join("dangling");
    symlink("nothing", &dangling).unwrap();
    undisturbed(Naming::md5(locks.path()), |space| {
        for path in [&dir.path().join("missing"), &dir.path().join("no/folder"), &dangling] {
            for mode in BOTH {
                let request = Request::new(mode, Target::image(path)).auto_create();
                match refused(space, request) {
                    AcquireError::NotFound { name, path: at } => {
                        assert_eq!((name.as_os_str(), &at), (path.as_os_str(), path));
                    }
                    error => panic!("{error:?}"),
                }
            }
        }
    });
    assert!(names_in(locks.path()).is_empty());
}
