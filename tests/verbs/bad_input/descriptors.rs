//! Where no descriptor is to be had, or only one of standard input, output or error.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use super::{VM, assert_io, assert_io_error, file, folder, granted, refused, undisturbed};
use crate::support::alone::alone;
use crate::support::forked::in_child;
use crate::support::locks::held;
use crate::support::process::{close_number, exhaust_descriptors, open_numbers};
use crate::support::spaces::{BOTH, names_in};
use lockspace::{AcquireError, LockFileError, LockSpace, Naming, OpenError, Request, Target, Wait};
use rustix::io::Errno;

pub(super) const LIMIT: u64 = 64;

#[track_caller]
fn assert_exhausted(error: AcquireError, at: &Path) {
    match error {
        AcquireError::Io(error) => {
            assert_eq!(Errno::from_io_error(&error.source), Some(Errno::MFILE), "{error}");
            assert_eq!(error.path, at, "{error}");
        }
        error => panic!("{error:?}"),
    }
}

/// Asks with no descriptor left, with one, and so on, until it is granted.
#[track_caller]
fn until_granted(naming: Naming, request: impl Fn() -> Request<'static>, at: &Path, dir: &Path) {
    let before = names_in(dir);
    undisturbed(naming, |space| {
        let mut taken = exhaust_descriptors(LIMIT);
        let mut refusals = 0;
        let lease = loop {
            let open = open_numbers();
            match space.acquire(VM, request(), Wait::NO) {
                Ok(lease) => break lease,
                Err(error) => assert_exhausted(error, at),
            }
            assert_eq!(open_numbers(), open);
            assert_eq!(space.list().len(), 1);
            refusals += 1;
            taken.pop().expect("it is granted in the end");
        };
        // Without a single descriptor to spare, a release still does all that it has to.
        taken.extend(exhaust_descriptors(LIMIT));
        lease.release().unwrap();
        drop(taken);
        assert!(refusals > 0);
        assert_eq!(names_in(dir), before);
    });
    assert_eq!(names_in(dir), before);
}

#[test]
fn without_descriptors_a_lock_file_is_refused_with_its_path_and_none_is_left() {
    alone(|| {
        let dir = folder();
        let (naming, path) = (Naming::verbatim(dir.path()), dir.path().join("a"));
        until_granted(naming, || Request::exclusive("a").auto_create(), &path, dir.path());
    });
}

#[test]
fn without_descriptors_an_image_is_refused_with_its_path() {
    alone(|| {
        let dir = folder();
        let path = file(fs::canonicalize(dir.path()).unwrap().join("a"), 0o600);
        let name = path.clone();
        until_granted(Naming::direct(), || Request::shared(name.clone()), &path, dir.path());
    });
}

#[test]
fn without_descriptors_an_open_file_is_refused_with_its_path_and_stays_unlocked() {
    alone(|| {
        let dir = folder();
        let path = file(fs::canonicalize(dir.path()).unwrap().join("a"), 0o600);
        let open: &'static File =
            Box::leak(Box::new(File::options().read(true).write(true).open(&path).unwrap()));
        let request = || Request::exclusive(Target::opened("disk", open));
        until_granted(Naming::direct(), request, &path, dir.path());
        assert_eq!(held(&path), None);
    });
}

#[test]
fn without_descriptors_no_space_is_opened_and_the_error_has_its_path() {
    alone(|| {
        let dir = folder();
        in_child(|| {
            let taken = exhaust_descriptors(LIMIT);
            match LockSpace::open(Naming::md5(dir.path())) {
                Err(OpenError::Io(error)) => {
                    assert_io_error(&error, "openat", dir.path(), Errno::MFILE);
                }
                other => panic!("{other:?}"),
            }
            drop(taken);
            LockSpace::open(Naming::md5(dir.path())).unwrap();
        });
    });
}

#[test]
fn a_file_that_was_made_for_a_descriptor_that_cannot_be_moved_up_is_removed() {
    alone(|| {
        let dir = folder();
        let path = dir.path().join("a");
        undisturbed(Naming::verbatim(dir.path()), |space| {
            let taken = exhaust_descriptors(LIMIT);
            // The one number that is free is that of standard input, which no lock may have.
            assert_eq!(rustix::io::dup(&taken[0]).unwrap_err(), Errno::MFILE);
            close_number(0);
            let open = open_numbers();
            for mode in BOTH {
                let error = refused(space, Request::new(mode, "a").auto_create());
                assert_io(error, "fcntl", &path, Errno::MFILE);
            }
            match space.create("a") {
                Err(LockFileError::Io(error)) => {
                    assert_io_error(&error, "fcntl", &path, Errno::MFILE)
                }
                other => panic!("{other:?}"),
            }
            assert!(!path.exists());
            assert_eq!(open_numbers(), open);
            // As it was, for the comparison.
            std::mem::forget(rustix::io::dup(&taken[0]).unwrap());
            drop(taken);
        });
        assert!(names_in(dir.path()).is_empty());
    });
}

#[test]
fn no_lock_has_the_number_of_standard_input_output_or_error() {
    let dir = folder();
    let image = file(dir.path().join("image"), 0o600);
    let open = File::options().read(true).write(true).open(&image).unwrap();
    let locks = dir.path().join("locks");
    in_child(|| {
        (0..=2).for_each(close_number);
        let standard = || open_numbers().into_iter().filter(|number| *number <= 2).count();
        let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
        assert_eq!(standard(), 0, "the directory");
        let lease = granted(&space, Request::exclusive("a").auto_create());
        assert_eq!(standard(), 0, "a lock file that was made");
        let shared = granted(&space, Request::shared("b").auto_create());
        assert_eq!(standard(), 0, "a shared lock file");
        drop(shared);
        fs::write(locks.join("b"), "").unwrap();
        let wait = Wait::within(Duration::from_secs(60));
        let shared = space.acquire(VM, Request::shared("b"), wait).unwrap();
        assert_eq!(standard(), 0, "a lock file that was waited for");
        let by_descriptor = granted(&space, Request::exclusive(Target::opened("c", &open)));
        assert_eq!(standard(), 0, "an open file");
        by_descriptor.release().unwrap();
        let direct = LockSpace::open(Naming::direct()).unwrap();
        let by_path = granted(&direct, Request::exclusive(&image));
        assert_eq!(standard(), 0, "an image");
        for lease in [&lease, &shared, &by_path] {
            assert_eq!(held(lease.path()), Some(lease.mode()));
        }
        assert!(!Path::new("/proc/self/fd/1").exists());
    });
}
