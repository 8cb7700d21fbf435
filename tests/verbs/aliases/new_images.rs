//! An image that is yet to be made.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::forked::in_child;
use crate::support::locks::held;
use crate::support::process::{is_root, unshare_mounts};
use crate::support::spaces::{A, B, bad, busy, direct, granted, image};
use crate::support::waits::{LONG, start};
use lockspace::{
    AcquireError, HeldBy, InvalidRequest, LockSpace, Mode, Naming, OwnerId, Request, Target, Wait,
};

/// A folder `real`, a symlink `link` to it, and the ways that lead to `new.qcow2` in it.
fn ways_to_new(dir: &Path) -> (PathBuf, Vec<PathBuf>) {
    let dir = fs::canonicalize(dir).unwrap();
    fs::create_dir(dir.join("real")).unwrap();
    symlink("real", dir.join("link")).unwrap();
    let text = dir.to_str().unwrap();
    let ways = ["real", "link", "real/../link", "link/../real", "real/.", "link//"]
        .map(|folder| PathBuf::from(format!("{text}/{folder}/new.qcow2")));
    (dir.join("real/new.qcow2"), ways.to_vec())
}

#[test]
fn a_new_image_is_one_resource_before_and_after_it_is_made() {
    let locks = tempfile::tempdir().unwrap();
    for naming in [Naming::md5(locks.path()), Naming::in_memory()] {
        let dir = tempfile::tempdir().unwrap();
        let (resolved, ways) = ways_to_new(dir.path());
        let space = LockSpace::open(naming).unwrap();
        for way in &ways {
            let new = |way| Request::exclusive(Target::new_image(way)).auto_create();
            let lease = granted(&space, A, new(way));
            assert_eq!(lease.name(), resolved.as_os_str());
            let refuses = |request| {
                let busy = busy(&space, B, request);
                assert_eq!((busy.owners(), busy.name()), (&[A][..], resolved.as_os_str()));
            };
            ways.iter().for_each(|other| refuses(new(other)));
            fs::write(&resolved, "").unwrap();
            for other in &ways {
                refuses(new(other));
                refuses(Request::exclusive(Target::image(other)).auto_create());
                let holders = space.holders(Target::new_image(other)).unwrap();
                assert_eq!(holders[0].by, HeldBy::Owners(vec![A]));
                assert_eq!(space.holders(Target::image(other)).unwrap(), holders);
            }
            lease.keep();
            space.release(A, &resolved).unwrap();
            // Now that it is there, too.
            let lease = granted(&space, A, new(way));
            assert_eq!(lease.name(), resolved.as_os_str());
            fs::remove_file(&resolved).unwrap();
            ways.iter().for_each(|other| refuses(new(other)));
        }
        assert_eq!(fs::read_dir(locks.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_new_image_by_a_relative_path_is_the_same() {
    let (dir, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (resolved, _) = ways_to_new(dir.path());
    in_child(|| {
        let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
        std::env::set_current_dir(dir.path().join("link")).unwrap();
        for way in ["new.qcow2", "./new.qcow2", "../link/new.qcow2"] {
            let request = Request::exclusive(Target::new_image(way)).auto_create();
            assert_eq!(granted(&space, A, request).name(), resolved.as_os_str());
        }
        let request = Request::exclusive(Target::new_image("/new.qcow2")).auto_create();
        assert_eq!(granted(&space, A, request).name(), "/new.qcow2");
        fs::remove_dir(dir.path().join("real")).unwrap();
        let why = bad(&space, B, Request::exclusive(Target::new_image("new.qcow2")).auto_create());
        assert_eq!(why, InvalidRequest::NoFolder { folder: ".".into() });
    });
}

#[test]
fn waits_for_a_new_image_meet_by_whatever_spelling() {
    let (dir, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (resolved, ways) = ways_to_new(dir.path());
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    let wait = |owner, way: &Path| {
        let (space, way) = (space.clone(), way.to_owned());
        start(move || {
            let request = Request::exclusive(Target::new_image(&way)).auto_create();
            space.acquire(owner, request, Wait::within(LONG)).unwrap()
        })
    };
    let mut lease = wait(A, &ways[0]).join();
    for (way, owner) in ways[1..].iter().zip(2..) {
        // In the queue of the hold, as its name is the same, and not before a file.
        let waiting = wait(OwnerId::new(owner), way).sleeps_for_others();
        lease.release().unwrap();
        lease = waiting.join();
        assert_eq!((lease.name(), space.list().len()), (resolved.as_os_str(), 1));
    }
}

#[test]
fn a_new_image_that_two_requests_name_is_refused() {
    let (dir, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, ways) = ways_to_new(dir.path());
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    for wait in [Wait::NO, Wait::within(LONG)] {
        let requests = [&ways[0], &ways[1]]
            .map(|way| Request::exclusive(Target::new_image(way)).auto_create());
        match space.acquire_all(A, requests, wait) {
            Err(AcquireError::Invalid { why: InvalidRequest::Twice { .. }, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn in_a_direct_space_a_new_image_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let (resolved, ways) = ways_to_new(dir.path());
    let space = direct();
    for wait in [Wait::NO, Wait::within(LONG)] {
        for way in &ways {
            let request = || Request::exclusive(Target::new_image(way));
            match space.acquire(A, request(), wait.clone()) {
                Err(AcquireError::NotFound { name, path }) => {
                    assert_eq!((name, path), (resolved.clone().into(), resolved.clone()));
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(bad(&space, B, request().auto_create()), InvalidRequest::AutoCreateInDirect);
            assert!(!resolved.exists());
            fs::write(&resolved, "content").unwrap();
            let lease = space.acquire(A, request(), wait.clone()).unwrap();
            assert_eq!(
                (lease.name(), held(&resolved)),
                (resolved.as_os_str(), Some(Mode::Exclusive))
            );
            lease.release().unwrap();
            fs::remove_file(&resolved).unwrap();
        }
    }
}

#[test]
fn what_cannot_be_a_new_image_is_refused() {
    let (dir, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (resolved, ways) = ways_to_new(dir.path());
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a.raw"), "").unwrap();
    fs::hard_link(path("a.raw"), path("hard")).unwrap();
    for (target, link) in
        [("a.raw", "good"), ("missing", "dangling"), ("dangling", "twice"), ("loop", "loop")]
    {
        symlink(target, path(link)).unwrap();
    }
    let namings = [Naming::md5(locks.path()), Naming::in_memory(), Naming::direct()];
    for space in namings.map(|naming| LockSpace::open(naming).unwrap()) {
        let why = |path: &Path| bad(&space, B, Request::exclusive(Target::new_image(path)));
        for end in ["/", "//", "/.", "/..", "/./", "/../"] {
            let mut way = ways[0].clone().into_os_string();
            way.push(end);
            assert_eq!(why(way.as_ref()), InvalidRequest::NoFileName, "{way:?}");
        }
        for way in ["/", ".", "..", "./", "../"] {
            assert_eq!(why(way.as_ref()), InvalidRequest::NoFileName, "{way:?}");
        }
        assert_eq!(why("".as_ref()), InvalidRequest::Empty);
        assert_eq!(why("/a\0b".as_ref()), InvalidRequest::Nul);
        // Also where the file that it leads to could be made.
        assert_eq!(why(&path("dangling")), InvalidRequest::DanglingSymlink);
        assert_eq!(why(&path("twice")), InvalidRequest::DanglingSymlink);
        let folder = path("nowhere");
        assert_eq!(why(&folder.join("new")), InvalidRequest::NoFolder { folder });
        assert!(matches!(why(&path("real")), InvalidRequest::NotAFile { kind: "a directory", .. }));
        assert!(matches!(why(&path("link")), InvalidRequest::NotAFile { kind: "a directory", .. }));
        let hard = path("hard");
        let request = Request::exclusive(Target::new_image(&hard)).refuse_hard_links();
        assert_eq!(bad(&space, B, request), InvalidRequest::HardLinks { links: 2 });
        for (way, call) in [("loop", "realpath"), ("a.raw/new", "lstat")] {
            let way = path(way);
            let request = Request::exclusive(Target::new_image(&way));
            match space.acquire(A, request, Wait::NO) {
                Err(AcquireError::Io(error)) => assert_eq!(error.call, call, "{error}"),
                other => panic!("{other:?}"),
            }
        }
        assert!(space.list().is_empty());
    }
    // A symlink to what is there is resolved.
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    let target = path("good");
    let request = Request::exclusive(Target::new_image(&target)).auto_create();
    let lease = granted(&space, A, request);
    assert_eq!(lease.name(), fs::canonicalize(path("a.raw")).unwrap().as_os_str());
    assert!(!resolved.exists());
}

/// What the documentation says of bind mounts.
#[test]
fn through_a_bind_mount_an_image_is_two_resources_in_a_directory_and_one_in_a_direct_space() {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

    if !is_root() {
        return eprintln!("skipped: only root may mount");
    }
    let (dir, image) = image();
    let (other, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    in_child(|| {
        unshare_mounts().unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        mount_bind(dir.path(), other.path()).unwrap();
        let bound = other.path().join("a.raw");
        let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
        let request = |path| Request::exclusive(Target::image(path));
        let _first = granted(&space, A, request(&image).auto_create());
        let _second = granted(&space, B, request(&bound).auto_create());
        let space = direct();
        let _first = granted(&space, A, request(&image));
        assert_eq!(busy(&space, B, request(&bound)).owners(), [A]);
    });
}
