//! Whatever is asked, and wherever: a typed error that names it, nothing held is lost, nothing is
//! left open or behind.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::interop::skip_or_fail;
use crate::support::process::{
    ask_child, become_nobody, close_number, exhaust_descriptors, held, in_child, is_root, ofd_lock,
    open_numbers, unshare_mounts,
};
use lockspace::{
    AcquireError, InvalidRequest, IoError, Lease, LockFileError, LockSpace, Mode, Naming,
    OpenError, OwnerId, ReleaseError, Request, Target, Wait, holders_of,
};
use rustix::fs::{CWD, FileType, makedev, mknodat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change, mount_remount};
use tempfile::TempDir;

const ONE: OwnerId = OwnerId::new(4711);
const TWO: OwnerId = OwnerId::new(2);
const BOTH: [Mode; 2] = [Mode::Exclusive, Mode::Shared];

/// What is shown of another program's lock can be asked for in turn; that never makes a hold that a
/// `delete` does not meet, nor one that is taken for a `delete`.
#[test]
fn no_range_that_is_shown_makes_a_hold_that_a_delete_passes() {
    for (start, len) in [(i64::MAX, 0), (i64::MAX, 1), (0, i64::MAX)] {
        let dir = folder();
        let image = file(dir.path().join("image"), 0o600);
        let foreign = File::options().read(true).write(true).open(&image).unwrap();
        ofd_lock(&foreign, true, start, len).unwrap();
        let shown = holders_of(&image).unwrap();
        let [holder] = &shown[..] else { panic!("{shown:?}") };

        let locks = dir.path().join("locks");
        let builder = LockSpace::builder(Naming::verbatim(&locks)).range(holder.range);
        let [by_builder, elsewhere] = [builder.open(), LockSpace::open(Naming::verbatim(&locks))];
        let (by_builder, elsewhere) = (by_builder.unwrap(), elsewhere.unwrap());
        for (name, request) in [
            ("a", Request::exclusive("a").range(holder.range).auto_create()),
            ("b", Request::shared("b").auto_create()),
        ] {
            let lease = granted(&by_builder, request);
            assert!(matches!(elsewhere.delete(name), Err(LockFileError::Busy(_))), "{holder}");
            assert!(locks.join(name).exists());
            drop(lease);
        }
    }
}

/// A directory that every user may enter, so that `nobody` meets what the test is about.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    allow(dir.path(), 0o755);
    dir
}

fn allow(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn file(path: PathBuf, mode: u32) -> PathBuf {
    fs::write(&path, "content").unwrap();
    allow(&path, mode);
    path
}

fn names_in(dir: &Path) -> BTreeSet<OsString> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[track_caller]
fn granted(space: &LockSpace, request: Request<'_>) -> Lease {
    space.acquire(ONE, request, Wait::NO).unwrap()
}

#[track_caller]
fn refused(space: &LockSpace, request: Request<'_>) -> AcquireError {
    match space.acquire(ONE, request, Wait::NO) {
        Err(error) => error,
        Ok(lease) => panic!("granted: {lease:?}"),
    }
}

#[track_caller]
fn bad(error: AcquireError, named: impl AsRef<OsStr>) -> InvalidRequest {
    assert_eq!(error.name(), Some(named.as_ref()));
    match error {
        AcquireError::Invalid { why, .. } => why,
        error => panic!("not bad: {error:?}"),
    }
}

#[track_caller]
fn assert_io(error: AcquireError, call: &str, path: &Path, errno: Errno) {
    match error {
        AcquireError::Io(error) => assert_io_error(&error, call, path, errno),
        error => panic!("no I/O error: {error:?}"),
    }
}

#[track_caller]
fn assert_io_error(error: &IoError, call: &str, path: &Path, errno: Errno) {
    assert_eq!((error.call, &*error.path), (call, path), "{error}");
    assert_eq!(Errno::from_io_error(&error.source), Some(errno), "{error}");
}

/// Runs `work` in a child, on a space that holds something. Afterwards that must still be held, and
/// nothing else, and the same descriptors must be open.
#[track_caller]
fn undisturbed(naming: Naming, work: impl FnOnce(&LockSpace)) {
    let bystander = tempfile::NamedTempFile::new().unwrap();
    in_child(|| {
        let space = LockSpace::open(naming).unwrap();
        let lease = granted(&space, Request::exclusive(Target::opened("bystander", &bystander)));
        let before = open_numbers();
        work(&space);
        assert_eq!(open_numbers(), before, "descriptors leaked, or were closed");
        assert_eq!(space.list().len(), 1);
        lease.verify().unwrap();
        assert_eq!(held(bystander.path()), Some(Mode::Exclusive));
    });
}

// Names

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
        match space.release(ONE, name) {
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

// What is no file

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
                let waited = space.acquire(ONE, request, wait).unwrap_err();
                assert_eq!(waited.to_string(), tried.to_string());
            }
        }
    }
    let missing = || Request::exclusive("missing");
    let waited = space.acquire(ONE, missing(), Wait::within(Duration::from_secs(60)));
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

// Directories

#[test]
fn a_file_on_the_way_is_told_with_the_path() {
    let dir = folder();
    let image = file(dir.path().join("a"), 0o600);
    let below = image.join("b");
    match LockSpace::open(Naming::md5(&below)) {
        Err(OpenError::NotADirectory { path }) => assert_eq!(path, below),
        other => panic!("{other:?}"),
    }
    undisturbed(Naming::direct(), |space| {
        for mode in BOTH {
            assert_io(refused(space, Request::new(mode, &below)), "stat", &below, Errno::NOTDIR);
            let error = refused(space, Request::new(mode, Target::image(&below)));
            assert_io(error, "realpath", &below, Errno::NOTDIR);
        }
    });
}

#[test]
fn a_missing_directory_on_the_way_to_an_image_is_not_found() {
    let dir = folder();
    let path = dir.path().join("missing/a");
    undisturbed(Naming::direct(), |space| {
        for mode in BOTH {
            match refused(space, Request::new(mode, &path)) {
                AcquireError::NotFound { path: at, .. } => assert_eq!(at, path),
                error => panic!("{error:?}"),
            }
        }
        match space.create(&path) {
            Err(LockFileError::Io(error)) => assert_io_error(&error, "openat", &path, Errno::NOENT),
            other => panic!("{other:?}"),
        }
    });
    assert!(names_in(dir.path()).is_empty());
}

#[test]
fn a_directory_that_a_dangling_symlink_stands_for_is_an_error() {
    let dir = folder();
    let link = dir.path().join("locks");
    symlink("nothing", &link).unwrap();
    match LockSpace::open(Naming::md5(&link)) {
        Err(OpenError::Io(error)) => assert_io_error(&error, "openat", &link, Errno::NOENT),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_directory_that_was_removed_under_the_space_is_told() {
    let dir = folder();
    let locks = dir.path().join("locks");
    undisturbed(Naming::verbatim(&locks), |space| {
        fs::remove_dir(&locks).unwrap();
        for mode in BOTH {
            for request in [Request::new(mode, "a"), Request::new(mode, "a").auto_create()] {
                match refused(space, request) {
                    AcquireError::DirectoryReplaced { name, directory } => {
                        assert_eq!((&*name, directory), ("a".as_ref(), locks.clone()));
                    }
                    error => panic!("{error:?}"),
                }
            }
        }
        assert!(matches!(space.create("a"), Err(LockFileError::DirectoryReplaced { .. })));
        assert!(matches!(space.delete("a"), Err(LockFileError::DirectoryReplaced { .. })));
    });
    assert!(names_in(dir.path()).is_empty());
}

// Permissions

/// Runs in a child that is no root.
#[track_caller]
fn as_nobody(work: impl FnOnce()) {
    in_child(|| {
        if is_root() {
            become_nobody();
        }
        work();
    });
}

#[test]
fn a_file_that_can_only_be_read_is_held_shared_and_explained_otherwise() {
    let dir = folder();
    let image = file(dir.path().join("a"), 0o444);
    as_nobody(|| {
        let space = LockSpace::open(Naming::direct()).unwrap();
        let before = open_numbers();
        for request in [Request::exclusive(&image), Request::shared(&image).upgradable()] {
            assert_eq!(bad(refused(&space, request), &image), InvalidRequest::ReadOnly);
        }
        assert_eq!(open_numbers(), before);
        let lease = granted(&space, Request::shared(&image));
        let request = Request::exclusive(&image);
        assert!(matches!(refused(&space, request), AcquireError::Busy(_)));
        lease.verify().unwrap();
        lease.release().unwrap();
    });
}

#[test]
fn a_file_without_permission_is_told_with_the_path() {
    let dir = folder();
    let image = file(dir.path().join("a"), 0o000);
    let hidden = dir.path().join("hidden");
    fs::create_dir(&hidden).unwrap();
    let inside = file(hidden.join("b"), 0o666);
    allow(&hidden, 0o000);
    as_nobody(|| {
        let space = LockSpace::open(Naming::direct()).unwrap();
        let before = open_numbers();
        for mode in BOTH {
            let error = refused(&space, Request::new(mode, &image));
            assert_io(error, "openat", &image, Errno::ACCESS);
            let error = refused(&space, Request::new(mode, &inside));
            assert_io(error, "stat", &inside, Errno::ACCESS);
            let error = refused(&space, Request::new(mode, Target::image(&inside)));
            assert_io(error, "realpath", &inside, Errno::ACCESS);
        }
        assert_eq!(open_numbers(), before);
    });
    allow(&hidden, 0o700);
}

#[test]
fn a_lock_file_without_permission_is_told_with_the_path() {
    let dir = folder();
    let locks = dir.path().join("locks");
    fs::create_dir(&locks).unwrap();
    let theirs = file(locks.join("theirs"), 0o000);
    allow(&locks, 0o555);
    as_nobody(|| {
        let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
        let before = open_numbers();
        for mode in BOTH {
            let error = refused(&space, Request::new(mode, "theirs").auto_create());
            assert_io(error, "openat", &theirs, Errno::ACCESS);
            let error = refused(&space, Request::new(mode, "new").auto_create());
            assert_io(error, "openat", &locks.join("new"), Errno::ACCESS);
        }
        match space.create("new") {
            Err(LockFileError::Io(error)) => {
                assert_io_error(&error, "openat", &locks.join("new"), Errno::ACCESS);
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(open_numbers(), before);
        assert_eq!(names_in(&locks), ["theirs".into()].into());
    });
    allow(&locks, 0o700);
}

#[test]
fn a_directory_without_permission_is_told_with_the_path() {
    let dir = folder();
    let locks = dir.path().join("locks");
    fs::create_dir(&locks).unwrap();
    allow(&locks, 0o000);
    as_nobody(|| {
        let before = open_numbers();
        match LockSpace::open(Naming::md5(&locks)) {
            Err(OpenError::Io(error)) => assert_io_error(&error, "openat", &locks, Errno::ACCESS),
            other => panic!("{other:?}"),
        }
        assert_eq!(open_numbers(), before);
    });
    allow(&locks, 0o700);
}

#[test]
fn a_file_that_cannot_be_removed_stays_where_delete_was_asked() {
    let dir = folder();
    let locks = dir.path().join("locks");
    fs::create_dir(&locks).unwrap();
    let lock_file = file(locks.join("a"), 0o666);
    allow(&locks, 0o555);
    as_nobody(|| {
        let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
        match space.delete("a") {
            Err(LockFileError::Io(e)) => assert_io_error(&e, "unlinkat", &lock_file, Errno::ACCESS),
            other => panic!("{other:?}"),
        }
        granted(&space, Request::exclusive("a")).release().unwrap();
    });
    allow(&locks, 0o700);
}

/// Runs `work` in a child, on a file system that can only be read, mounted at the path that it
/// gets, and on which there is a file `a`, and a directory `locks` with a file `b`.
fn on_a_read_only_file_system(work: impl FnOnce(&Path)) {
    if !is_root() {
        return skip_or_fail("a read-only file system", "only root may mount");
    }
    let dir = folder();
    let at = dir.path();
    let why = ask_child(|| {
        let mounted = unshare_mounts().and_then(|()| {
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            mount("tmpfs", at, "tmpfs", MountFlags::empty(), None)?;
            Ok(())
        });
        if let Err(error) = mounted {
            return format!("mount: {error}");
        }
        file(at.join("a"), 0o666);
        fs::create_dir(at.join("locks")).unwrap();
        file(at.join("locks/b"), 0o666);
        mount_remount(at, MountFlags::RDONLY, "").unwrap();
        assert!(fs::write(at.join("c"), "").is_err(), "the file system is not read-only");
        work(at);
        String::new()
    });
    if !why.is_empty() {
        skip_or_fail("a read-only file system", &why);
    }
}

#[test]
fn on_a_read_only_file_system_an_image_is_held_shared_and_explained_otherwise() {
    on_a_read_only_file_system(|at| {
        let space = LockSpace::open(Naming::direct()).unwrap();
        let image = at.join("a");
        let before = open_numbers();
        for request in [Request::exclusive(&image), Request::shared(&image).upgradable()] {
            assert_eq!(bad(refused(&space, request), &image), InvalidRequest::ReadOnly);
        }
        assert_eq!(open_numbers(), before);
        let lease = granted(&space, Request::shared(&image));
        lease.verify().unwrap();
        lease.release().unwrap();
    });
}

#[test]
fn on_a_read_only_file_system_a_lock_file_is_told_with_the_path() {
    on_a_read_only_file_system(|at| {
        let locks = at.join("locks");
        let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
        let before = open_numbers();
        for mode in BOTH {
            for name in ["b", "new"] {
                let error = refused(&space, Request::new(mode, name).auto_create());
                assert_io(error, "openat", &locks.join(name), Errno::ROFS);
            }
        }
        assert_eq!(open_numbers(), before);
        let missing = at.join("missing");
        match LockSpace::open(Naming::md5(&missing)) {
            Err(OpenError::Io(error)) => assert_io_error(&error, "mkdir", &missing, Errno::ROFS),
            other => panic!("{other:?}"),
        }
    });
}

// Descriptors

const LIMIT: u64 = 64;

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
            match space.acquire(ONE, request(), Wait::NO) {
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
    let dir = folder();
    let (naming, path) = (Naming::verbatim(dir.path()), dir.path().join("a"));
    until_granted(naming, || Request::exclusive("a").auto_create(), &path, dir.path());
}

#[test]
fn without_descriptors_an_image_is_refused_with_its_path() {
    let dir = folder();
    let path = file(fs::canonicalize(dir.path()).unwrap().join("a"), 0o600);
    let name = path.clone();
    until_granted(Naming::direct(), || Request::shared(name.clone()), &path, dir.path());
}

#[test]
fn without_descriptors_an_open_file_is_refused_with_its_path_and_stays_unlocked() {
    let dir = folder();
    let path = file(fs::canonicalize(dir.path()).unwrap().join("a"), 0o600);
    let open: &'static File =
        Box::leak(Box::new(File::options().read(true).write(true).open(&path).unwrap()));
    let request = || Request::exclusive(Target::opened("disk", open));
    until_granted(Naming::direct(), request, &path, dir.path());
    assert_eq!(held(&path), None);
}

#[test]
fn without_descriptors_no_space_is_opened_and_the_error_has_its_path() {
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
}

#[test]
fn a_file_that_was_made_for_a_descriptor_that_cannot_be_moved_up_is_removed() {
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
            Err(LockFileError::Io(error)) => assert_io_error(&error, "fcntl", &path, Errno::MFILE),
            other => panic!("{other:?}"),
        }
        assert!(!path.exists());
        assert_eq!(open_numbers(), open);
        // As it was, for the comparison.
        std::mem::forget(rustix::io::dup(&taken[0]).unwrap());
        drop(taken);
    });
    assert!(names_in(dir.path()).is_empty());
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
        let shared = space.acquire(ONE, Request::shared("b"), wait).unwrap();
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

// Messages

#[test]
fn a_busy_resource_is_told_with_its_holders_and_its_lock_file() {
    let dir = folder();
    let space = LockSpace::open(Naming::md5(dir.path())).unwrap();
    let second = LockSpace::open(Naming::md5(dir.path())).unwrap();
    let name = "/img/a.qcow2";
    let lease = granted(&space, Request::exclusive(name).auto_create());
    let file = lease.path().display().to_string();
    let said =
        |space: &LockSpace, request| space.acquire(TWO, request, Wait::NO).unwrap_err().to_string();
    assert_eq!(
        said(&space, Request::shared(name)),
        format!(
            r#""/img/a.qcow2" is busy: held exclusive by owner 4711; asked for shared ({file})"#
        )
    );
    assert_eq!(
        said(&second, Request::exclusive(name)),
        format!(
            r#""/img/a.qcow2" is busy: held outside this lock space, exclusive on byte 0; asked for exclusive ({file})"#
        )
    );
    drop(lease);

    let first = granted(&space, Request::shared(name).auto_create());
    let said_one = said(&space, Request::exclusive(name));
    let more = space.acquire(OwnerId::new(5000), Request::shared(name), Wait::NO).unwrap();
    assert_eq!(
        [said_one, said(&space, Request::exclusive(name))],
        ["", " and 1 more"].map(|more| format!(
            r#""/img/a.qcow2" is busy: held shared by owner 4711{more}; asked for exclusive ({file})"#
        ))
    );
    drop((first, more));
}

#[test]
fn a_missing_file_is_told_with_what_to_do() {
    let dir = folder();
    let said = |naming, request| refused(&LockSpace::open(naming).unwrap(), request).to_string();
    // printf 'a\n' | md5sum
    let hash = dir.path().join("60b725f10c9c85c70d97880dfe8191b3");
    assert_eq!(
        said(Naming::md5(dir.path()), Request::exclusive("a\n")),
        format!(
            r#""a\n" has no lock file {}: create it, or ask with auto_create()"#,
            hash.display()
        )
    );
    assert_eq!(
        said(Naming::verbatim(dir.path()), Request::exclusive("a")),
        format!(
            r#""a" has no lock file {}/a: create it, or ask with auto_create()"#,
            dir.path().display()
        )
    );
    assert_eq!(said(Naming::direct(), Request::shared("/no/a")), r#""/no/a" does not exist"#);
}

#[test]
fn a_failed_system_call_is_told_with_the_path_and_the_kernels_answer() {
    let dir = folder();
    let image = file(dir.path().join("a"), 0o600);
    let said = ask_child(|| {
        let space = LockSpace::open(Naming::direct()).unwrap();
        let _taken = exhaust_descriptors(LIMIT);
        refused(&space, Request::exclusive(&image))
    });
    let image = image.display();
    assert_eq!(said, format!("openat {image}: Too many open files (os error 24)"));
}

#[test]
fn what_is_wrong_with_a_request_is_told() {
    let dir = folder();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();
    let said = |space: &LockSpace, name: &str| {
        refused(space, Request::exclusive(name).auto_create()).to_string()
    };
    assert_eq!(said(&space, ""), r#""" cannot be locked: the name is empty"#);
    assert_eq!(
        said(&space, "../x"),
        r#""../x" cannot be locked: the name is not one path component"#
    );
    assert_eq!(
        said(&direct, "/img/a"),
        r#""/img/a" cannot be locked: a direct space does not create files"#
    );
    assert_eq!(
        refused(&direct, Request::exclusive("/dev/null")).to_string(),
        r#""/dev/null" cannot be locked: /dev/null is a character device, neither a regular file nor a block device"#
    );
}

#[test]
fn a_line_break_in_a_name_or_a_path_forges_no_line() {
    const EVIL: &str = "a\n\"b\" is free\u{1b}[2K";
    let folder = folder();
    let dir = folder.path().join(EVIL);
    fs::create_dir(&dir).unwrap();
    let evil_file = file(dir.join("file\n"), 0o600);
    fs::create_dir(dir.join("directory\n")).unwrap();
    let space = LockSpace::open(Naming::verbatim(&dir)).unwrap();
    let second = LockSpace::open(Naming::verbatim(&dir)).unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();

    let mut said = vec![refused(&space, Request::exclusive(EVIL)).to_string()];
    let lease = granted(&space, Request::exclusive(EVIL).auto_create());
    said.extend([
        refused(&space, Request::exclusive(EVIL)).to_string(),
        refused(&second, Request::exclusive(EVIL)).to_string(),
        space.delete(EVIL).unwrap_err().to_string(),
        space.create(EVIL).unwrap_err().to_string(),
        space.release(ONE, EVIL).unwrap_err().to_string(),
        refused(&space, Request::exclusive("directory\n")).to_string(),
        refused(&direct, Request::exclusive(dir.join("missing"))).to_string(),
        refused(&direct, Request::exclusive(evil_file.join("below"))).to_string(),
        refused(&direct, Request::exclusive(EVIL)).to_string(),
        space.delete("missing\n").unwrap_err().to_string(),
        space.delete("directory\n").unwrap_err().to_string(),
        LockSpace::open(Naming::md5(&evil_file)).unwrap_err().to_string(),
    ]);
    fs::rename(lease.path(), dir.join("away")).unwrap();
    said.push(lease.verify().unwrap_err().to_string());
    fs::rename(&dir, folder.path().join("elsewhere")).unwrap();
    said.push(refused(&space, Request::exclusive("other\n").auto_create()).to_string());
    for line in said {
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(!line.contains("\"b\" is free"), "an unescaped quote: {line}");
    }
}

#[test]
fn an_error_has_its_cause_as_source() {
    use std::error::Error;
    let direct = LockSpace::open(Naming::direct()).unwrap();
    let error = refused(&direct, Request::exclusive("/dev/null/a"));
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::NotADirectory));
}
