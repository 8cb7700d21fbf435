//! The caller's own open file, locked through its descriptor.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Seek, Write};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::support::process::{
    become_nobody, held, held_at, in_child, is_root, locks_shown, ofd_lock, open_numbers,
    record_lock, unlock_ofd,
};
use crate::support::waits::{LONG, start};
use lockspace::{
    AcquireError, Busy, ByteRange, Cancel, InvalidRequest, Lease, LockSpace, Mode, Naming, Origin,
    OwnerId, Request, Target, VerifyError, Wait,
};
use rustix::fs::OFlags;
use tempfile::TempDir;

const ONE: OwnerId = OwnerId::new(1);
const TWO: OwnerId = OwnerId::new(2);
const BOTH: [Mode; 2] = [Mode::Exclusive, Mode::Shared];

fn direct() -> LockSpace {
    LockSpace::open(Naming::direct()).unwrap()
}

/// An image, its path free of symlinks.
fn image() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let image = fs::canonicalize(dir.path()).unwrap().join("a.raw");
    fs::write(&image, "content").unwrap();
    (dir, image)
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn byte(at: u64) -> ByteRange {
    ByteRange::new(at, NonZeroU64::MIN).unwrap()
}

fn opened<'a>(mode: Mode, name: &'a str, file: &'a impl AsFd) -> Request<'a> {
    Request::new(mode, Target::opened(name, file))
}

fn exclusive<'a>(name: &'a str, file: &'a impl AsFd) -> Request<'a> {
    opened(Mode::Exclusive, name, file)
}

fn shared<'a>(name: &'a str, file: &'a impl AsFd) -> Request<'a> {
    opened(Mode::Shared, name, file)
}

#[track_caller]
fn granted(space: &LockSpace, owner: OwnerId, request: Request<'_>) -> Lease {
    space.acquire(owner, request, Wait::NO).unwrap()
}

#[track_caller]
fn busy(space: &LockSpace, owner: OwnerId, request: Request<'_>) -> Busy {
    match space.acquire(owner, request, Wait::NO) {
        Err(AcquireError::Busy(busy)) => busy,
        other => panic!("not busy: {other:?}"),
    }
}

#[track_caller]
fn bad(space: &LockSpace, request: Request<'_>) -> InvalidRequest {
    match space.acquire(TWO, request, Wait::NO) {
        Err(AcquireError::Invalid { why, .. }) => why,
        other => panic!("not bad: {other:?}"),
    }
}

// What can be locked

#[test]
fn an_open_file_is_locked_itself() {
    let (_dir, image) = image();
    let space = direct();
    for mode in BOTH {
        let file = open(&image);
        let lease = granted(&space, ONE, opened(mode, "disk", &file));
        assert_eq!((lease.name(), lease.path()), (OsStr::new("disk"), &*image));
        assert_eq!((lease.owner(), lease.mode()), (ONE, mode));
        assert_eq!(held(&image), Some(mode));
        lease.verify().unwrap();
        lease.release().unwrap();
        assert_eq!(held(&image), None);
    }
}

#[test]
fn the_caller_may_close_its_descriptor() {
    let (_dir, image) = image();
    let space = direct();
    let file = open(&image);
    let lease = granted(&space, ONE, exclusive("disk", &file));
    drop(file);
    assert_eq!(held(&image), Some(Mode::Exclusive));
    lease.verify().unwrap();
    lease.release().unwrap();
    assert_eq!(held(&image), None);
}

#[test]
fn every_naming_takes_an_open_file_and_makes_none_of_its_own() {
    let (_dir, image) = image();
    let locks = tempfile::tempdir().unwrap();
    let namings = [Naming::md5(locks.path()), Naming::verbatim(locks.path()), Naming::in_memory()];
    for naming in namings {
        let space = LockSpace::open(naming).unwrap();
        // A slash is no matter: it is no file's name.
        let file = open(&image);
        let lease = granted(&space, ONE, exclusive("/a/disk", &file).auto_create());
        assert_eq!(held(&image), Some(Mode::Exclusive));
        assert_eq!(fs::read_dir(locks.path()).unwrap().count(), 0);
        lease.release().unwrap();
    }
}

#[test]
fn an_open_file_is_locked_though_it_could_not_be_opened_again() {
    let (dir, image) = image();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    in_child(|| {
        let file = open(&image);
        // Root's own file, and for who is not root, a file that nobody may open.
        fs::set_permissions(&image, Permissions::from_mode(0o000)).unwrap();
        if is_root() {
            become_nobody();
        }
        let space = direct();
        for mode in BOTH {
            match space.acquire(ONE, Request::new(mode, &image), Wait::NO) {
                Err(AcquireError::Io(error)) => assert_eq!(error.path, image),
                other => panic!("{other:?}"),
            }
            let lease = granted(&space, ONE, opened(mode, "disk", &file));
            assert_eq!(locks_shown(&file), 1);
            lease.verify().unwrap();
            lease.release().unwrap();
            assert_eq!(locks_shown(&file), 0);
        }
    });
}

#[test]
fn an_open_file_without_a_name_is_locked() {
    let (_dir, image) = image();
    let file = open(&image);
    fs::remove_file(&image).unwrap();
    let lease = granted(&direct(), ONE, exclusive("disk", &file));
    assert_eq!(locks_shown(&file), 1);
    lease.verify().unwrap();
    lease.release().unwrap();
    assert_eq!(locks_shown(&file), 0);
}

#[test]
fn the_bytes_that_were_asked_for_are_locked() {
    let (_dir, image) = image();
    let file = open(&image);
    let lease = granted(&direct(), ONE, exclusive("disk", &file).range(byte(7)));
    let seen = [6, 7, 8].map(|at| held_at(&image, at));
    assert_eq!(seen, [None, Some(Mode::Exclusive), None]);
    lease.verify().unwrap();
}

// What cannot

#[test]
fn a_file_that_is_not_open_for_what_the_mode_needs_is_refused() {
    let (_dir, image) = image();
    let space = direct();
    let reading = File::open(&image).unwrap();
    let writing = OpenOptions::new().write(true).open(&image).unwrap();
    let wrong = |needs| InvalidRequest::WrongAccess { needs };
    assert_eq!(bad(&space, exclusive("disk", &reading)), wrong("writing"));
    assert_eq!(bad(&space, shared("disk", &writing)), wrong("reading"));
    assert_eq!([&reading, &writing].map(locks_shown), [0, 0]);
    granted(&space, ONE, shared("disk", &reading)).release().unwrap();
    granted(&space, ONE, exclusive("disk", &writing)).release().unwrap();
}

#[test]
fn a_descriptor_that_is_only_a_path_is_refused() {
    let (_dir, image) = image();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let path = rustix::fs::open(&image, flags, rustix::fs::Mode::empty()).unwrap();
    let space = direct();
    for (mode, needs) in [(Mode::Exclusive, "writing"), (Mode::Shared, "reading")] {
        assert_eq!(bad(&space, opened(mode, "disk", &path)), InvalidRequest::WrongAccess { needs });
    }
}

#[test]
fn a_pipe_a_socket_a_directory_and_a_device_are_refused() {
    let (dir, _image) = image();
    let space = direct();
    let (read, write) = std::io::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let directory = File::open(dir.path()).unwrap();
    let device = open(Path::new("/dev/null"));
    let descriptors: [(OwnedFd, &str, Mode); 6] = [
        (read.into(), "a FIFO", Mode::Shared),
        (write.into(), "a FIFO", Mode::Exclusive),
        (socket.into(), "a socket", Mode::Exclusive),
        (directory.into(), "a directory", Mode::Shared),
        (device.try_clone().unwrap().into(), "a character device", Mode::Exclusive),
        (device.into(), "a character device", Mode::Shared),
    ];
    for (fd, what, mode) in &descriptors {
        match bad(&space, opened(*mode, "disk", fd)) {
            InvalidRequest::NotAFile { kind, .. } => assert_eq!(kind, *what),
            why => panic!("{why}"),
        }
    }
    assert!(space.list().is_empty());
}

#[test]
fn what_has_no_path_is_not_told_as_if_it_had_one() {
    let (read, _write) = std::io::pipe().unwrap();
    let error = direct().acquire(ONE, shared("disk", &read), Wait::NO).unwrap_err().to_string();
    assert!(error.starts_with(r#""disk" cannot be locked: "#), "{error}");
    assert!(!error.contains("  "), "a hole where the path would be: {error}");
}

#[test]
fn a_refusal_leaves_no_descriptor_open() {
    let (_dir, image) = image();
    in_child(|| {
        let space = direct();
        let (file, other, reading) = (open(&image), open(&image), File::open(&image).unwrap());
        let (read, _write) = std::io::pipe().unwrap();
        let lease = granted(&space, ONE, exclusive("disk", &file));
        let before = open_numbers();
        busy(&space, TWO, exclusive("disk", &file));
        busy(&space, TWO, exclusive("other", &other));
        bad(&space, exclusive("other", &file));
        bad(&space, exclusive("other", &reading));
        bad(&space, shared("other", &read));
        assert_eq!(open_numbers(), before);
        lease.release().unwrap();
        assert_eq!(open_numbers().len(), before.len() - 1);
    });
}

// A lock that is there already

#[test]
fn a_file_that_carries_an_ofd_lock_is_refused_and_the_lock_is_untouched() {
    let (_dir, image) = image();
    let space = direct();
    for (theirs, at) in [(Mode::Exclusive, 0), (Mode::Shared, 0), (Mode::Exclusive, 100)] {
        let file = open(&image);
        ofd_lock(&file, theirs == Mode::Exclusive, at, 1).unwrap();
        for mode in BOTH {
            assert_eq!(bad(&space, opened(mode, "disk", &file)), InvalidRequest::CarriesLock);
            let request = opened(mode, "disk", &file).range(ByteRange::WHOLE_FILE);
            assert_eq!(bad(&space, request), InvalidRequest::CarriesLock);
        }
        assert_eq!(held_at(&image, at), Some(theirs));
        assert_eq!(locks_shown(&file), 1);
        // Not by the close alone: a child of another test may share the descriptor.
        unlock_ofd(&file, 0, 0).unwrap();
    }
}

#[test]
fn a_file_that_carries_a_record_lock_is_refused() {
    let (_dir, image) = image();
    let space = direct();
    for mode in BOTH {
        let file = open(&image);
        record_lock(&file, true, 100, 1).unwrap();
        assert_eq!(bad(&space, opened(mode, "disk", &file)), InvalidRequest::CarriesLock);
    }
}

#[test]
fn a_record_lock_on_a_file_that_is_refused_for_it_is_untouched() {
    let (_dir, image) = image();
    let file = open(&image);
    record_lock(&file, true, 100, 1).unwrap();
    bad(&direct(), exclusive("disk", &file));
    assert_eq!(held_at(&image, 100), Some(Mode::Exclusive));
}

#[test]
fn one_open_file_is_not_held_under_two_names() {
    let (_dir, image) = image();
    let (space, second) = (direct(), direct());
    let file = open(&image);
    let duplicate = file.try_clone().unwrap();
    for mode in BOTH {
        let lease = granted(&space, ONE, opened(mode, "disk", &file));
        for file in [&file, &duplicate] {
            for asked in BOTH {
                assert_eq!(bad(&space, opened(asked, "other", file)), InvalidRequest::CarriesLock);
                assert_eq!(bad(&second, opened(asked, "disk", file)), InvalidRequest::CarriesLock);
                let elsewhere = opened(asked, "other", file).range(byte(100));
                assert_eq!(bad(&space, elsewhere), InvalidRequest::CarriesLock);
            }
        }
        assert_eq!(held(&image), Some(mode));
        assert_eq!(locks_shown(&file), 1);
        lease.verify().unwrap();
        lease.release().unwrap();
        assert_eq!(held(&image), None);
    }
}

#[test]
fn a_file_that_another_open_file_has_locked_is_busy() {
    let (_dir, image) = image();
    let space = direct();
    let theirs = open(&image);
    ofd_lock(&theirs, true, 0, 1).unwrap();
    let file = open(&image);
    for mode in BOTH {
        let busy = busy(&space, ONE, opened(mode, "disk", &file));
        assert_eq!((busy.owners(), busy.held()), (&[][..], None));
    }
    assert_eq!(held(&image), Some(Mode::Exclusive));
    assert_eq!([&theirs, &file].map(locks_shown), [1, 0]);
}

#[test]
fn of_many_threads_that_lock_one_open_file_under_names_of_their_own_one_wins() {
    const ROUNDS: usize = 1500;
    const THREADS: usize = 4;
    let (_dir, image) = image();
    let file = open(&image);
    let (space, barrier) = (direct(), Barrier::new(THREADS));
    let (wins, odd) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (space, barrier, wins, odd) = (&space, &barrier, &wins, &odd);
            let mine = file.try_clone().unwrap();
            scope.spawn(move || {
                let name = thread.to_string();
                for round in 1..=ROUNDS {
                    barrier.wait();
                    let lease = space.acquire(ONE, exclusive(&name, &mine), Wait::NO);
                    // No panic here: the others would wait for ever.
                    match &lease {
                        Ok(_) => {
                            wins.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(AcquireError::Invalid { why: InvalidRequest::CarriesLock, .. }) => {}
                        Err(_) => {
                            odd.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                    barrier.wait();
                    if wins.load(Ordering::SeqCst) != round {
                        odd.fetch_add(1, Ordering::SeqCst);
                    }
                    // Nobody lets go before all have counted.
                    barrier.wait();
                    drop(lease);
                }
            });
        }
    });
    assert_eq!((wins.into_inner(), odd.into_inner()), (ROUNDS, 0));
}

// Who meets whom

#[test]
fn two_opens_of_one_file_share_one_name() {
    let (_dir, image) = image();
    let space = direct();
    let (one, two) = (open(&image), File::open(&image).unwrap());
    let first = granted(&space, ONE, shared("disk", &one));
    let second = granted(&space, TWO, shared("disk", &two));
    assert_eq!(space.list()[0].owners, BTreeMap::from([(ONE, 1), (TWO, 1)]));
    assert_eq!(busy(&space, ONE, exclusive("disk", &one)).owners(), [ONE, TWO]);
    first.release().unwrap();
    assert_eq!(held(&image), Some(Mode::Shared));
    second.release().unwrap();
    assert_eq!(held(&image), None);
}

#[test]
fn another_file_under_the_same_name_is_refused() {
    let (dir, image) = image();
    let other = dir.path().join("other");
    fs::write(&other, "").unwrap();
    let space = direct();
    let (file, other) = (open(&image), open(&other));
    let _lease = granted(&space, ONE, shared("disk", &file));
    assert_eq!(bad(&space, shared("disk", &other)), InvalidRequest::OtherFile);
    assert_eq!(locks_shown(&other), 0);
    assert_eq!(held(&image), Some(Mode::Shared));
}

#[test]
fn an_exclusive_hold_by_descriptor_keeps_out_who_comes_by_path() {
    let (_dir, image) = image();
    let space = direct();
    let file = open(&image);
    for name in ["disk", image.to_str().unwrap()] {
        let _lease = granted(&space, ONE, exclusive(name, &file));
        for mode in BOTH {
            let busy = busy(&space, TWO, Request::new(mode, &image));
            assert_eq!((busy.owners(), busy.held()), (&[ONE][..], Some(Mode::Exclusive)));
        }
    }
}

#[test]
fn an_exclusive_hold_by_path_keeps_out_who_comes_by_descriptor() {
    let (_dir, image) = image();
    let space = direct();
    let file = open(&image);
    let _lease = granted(&space, ONE, Request::exclusive(&image));
    for name in ["disk", image.to_str().unwrap()] {
        for mode in BOTH {
            let busy = busy(&space, TWO, opened(mode, name, &file));
            assert_eq!((busy.owners(), busy.held()), (&[ONE][..], Some(Mode::Exclusive)));
        }
    }
}

#[test]
fn shared_holds_by_path_and_by_descriptor_are_one_in_a_direct_space() {
    let (_dir, image) = image();
    let (space, name) = (direct(), image.to_str().unwrap());
    let file = open(&image);
    let by_path = || Request::shared(&image);
    let by_descriptor = || shared(name, &file);
    for (first, second, origin) in [
        (by_path(), by_descriptor(), Origin::Existing),
        (by_descriptor(), by_path(), Origin::Opened),
    ] {
        let first = granted(&space, ONE, first);
        let second = granted(&space, TWO, second);
        let [held_here] = &space.list()[..] else { panic!("{:?}", space.list()) };
        assert_eq!(held_here.origin, origin);
        assert_eq!(held_here.owners, BTreeMap::from([(ONE, 1), (TWO, 1)]));
        first.release().unwrap();
        assert_eq!(held(&image), Some(Mode::Shared));
        second.release().unwrap();
        assert_eq!(held(&image), None);
    }
}

#[test]
fn a_path_that_leads_elsewhere_does_not_meet_a_descriptor_under_its_name() {
    let (dir, image) = image();
    let (space, name) = (direct(), image.to_str().unwrap());
    let file = open(&image);
    let _lease = granted(&space, ONE, shared(name, &file));
    fs::rename(&image, dir.path().join("away")).unwrap();
    let missing = space.acquire(TWO, Request::shared(&image), Wait::NO);
    assert!(matches!(missing, Err(AcquireError::NotFound { .. })), "{missing:?}");
    fs::write(&image, "another").unwrap();
    assert_eq!(bad(&space, Request::shared(&image)), InvalidRequest::OtherFile);
    assert_eq!(held(&image), None);
}

#[test]
fn a_lock_file_does_not_meet_a_descriptor_under_its_name() {
    let (_dir, image) = image();
    let locks = tempfile::tempdir().unwrap();
    let file = open(&image);
    for naming in [Naming::md5(locks.path()), Naming::in_memory()] {
        let space = LockSpace::open(naming).unwrap();
        let by_name = || Request::shared("disk").auto_create();
        let lease = granted(&space, ONE, by_name());
        assert_eq!(bad(&space, shared("disk", &file)), InvalidRequest::OtherFile);
        drop(lease);
        let _lease = granted(&space, ONE, shared("disk", &file));
        assert_eq!(bad(&space, by_name()), InvalidRequest::OtherFile);
        assert_eq!(fs::read_dir(locks.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_shared_hold_is_joined_on_its_own_bytes_only() {
    let (_dir, image) = image();
    let space = direct();
    let (one, two) = (open(&image), open(&image));
    let _lease = granted(&space, ONE, shared("disk", &one).range(byte(5)));
    assert_eq!(
        bad(&space, shared("disk", &two)),
        InvalidRequest::OtherRange { held: byte(5), asked: ByteRange::FIRST }
    );
    granted(&space, TWO, shared("disk", &two).range(byte(5))).release().unwrap();
}

#[test]
fn two_opens_hold_two_ranges_of_one_file_under_two_names() {
    let (_dir, image) = image();
    let space = direct();
    let (one, two) = (open(&image), open(&image));
    let first = granted(&space, ONE, exclusive("left", &one).range(byte(5)));
    let second = granted(&space, ONE, exclusive("right", &two).range(byte(6)));
    first.release().unwrap();
    assert_eq!([5, 6].map(|at| held_at(&image, at)), [None, Some(Mode::Exclusive)]);
    second.verify().unwrap();
}

// The end

#[test]
fn a_release_removes_no_file() {
    let (dir, image) = image();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    for mode in BOTH {
        let file = open(&image);
        // Even where its name is that of a lock file, and it was asked for.
        let lease = granted(&space, ONE, opened(mode, "a.raw", &file).auto_create());
        assert_eq!(space.list()[0].origin, Origin::Opened);
        lease.release().unwrap();
        assert_eq!(fs::read(&image).unwrap(), b"content");
    }
}

#[test]
fn the_callers_descriptor_stays_usable_and_carries_no_lock_afterwards() {
    let (_dir, image) = image();
    let mut file = open(&image);
    let flags = rustix::fs::fcntl_getfl(&file).unwrap();
    let lease = granted(&direct(), ONE, exclusive("disk", &file));
    let use_it = |file: &mut File| {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        file.write_all(b"+").unwrap();
        text
    };
    assert_eq!(use_it(&mut file), "content");
    assert_eq!(locks_shown(&file), 1);
    lease.release().unwrap();
    assert_eq!(locks_shown(&file), 0);
    assert_eq!(use_it(&mut file), "content+");
    assert_eq!(rustix::fs::fcntl_getfl(&file).unwrap(), flags);
    assert_eq!(held(&image), None);
    ofd_lock(&file, true, 0, 1).unwrap();
}

#[test]
fn a_kept_hold_by_descriptor_is_released_by_its_name() {
    let (_dir, image) = image();
    let space = direct();
    let file = open(&image);
    granted(&space, ONE, exclusive("disk", &file)).keep();
    drop(file);
    assert_eq!(held(&image), Some(Mode::Exclusive));
    space.release(ONE, "disk").unwrap();
    assert_eq!(held(&image), None);
}

#[test]
fn a_lock_that_the_caller_takes_away_through_its_descriptor_is_found_out() {
    let (_dir, image) = image();
    let file = open(&image);
    let lease = granted(&direct(), ONE, exclusive("disk", &file));
    crate::support::process::unlock_ofd(&file, 0, 1).unwrap();
    assert!(matches!(lease.verify(), Err(VerifyError::Unlocked { .. })));
}

// Other locks of the same open file

/// What a QEMU that writes locks through the descriptor that it was given: shared, byte by byte.
const QEMUS: [i64; 5] = [100, 101, 103, 201, 203];

fn lock_as_qemu(file: &File) {
    QEMUS.iter().for_each(|&at| ofd_lock(file, false, at, 1).unwrap());
}

#[track_caller]
fn assert_qemus(image: &Path) {
    for at in QEMUS {
        assert_eq!(held_at(image, at), Some(Mode::Shared), "byte {at}");
    }
    assert_eq!(held_at(image, 102), None);
    assert_eq!(held_at(image, 200), None);
}

/// Not by the close alone: a child of another test may share the descriptor.
fn unlock_all(file: &File) {
    unlock_ofd(file, 0, 0).unwrap();
}

#[test]
fn the_end_of_a_hold_leaves_what_others_have_locked_through_the_same_open_file() {
    let (_dir, image) = image();
    type End = fn(LockSpace, Lease);
    let ends: [End; 5] = [
        |_, lease| lease.release().unwrap(),
        |_, lease| drop(lease),
        |space, lease| {
            lease.keep();
            space.release(ONE, "disk").unwrap();
        },
        |space, lease| {
            lease.keep();
            assert_eq!(space.release_owner(ONE).holds, 1);
        },
        |space, lease| {
            lease.keep();
            drop(space);
        },
    ];
    // Far from QEMU's bytes, and their neighbours: the kernel makes one lock of those.
    for (at, end) in [0, 99, 104].into_iter().flat_map(|at| ends.map(|end| (at, end))) {
        for mode in BOTH {
            let (space, file) = (direct(), open(&image));
            let request = opened(mode, "disk", &file).range(byte(at));
            let lease = granted(&space, ONE, request);
            lock_as_qemu(&file);
            lease.verify().unwrap();
            assert_eq!(held_at(&image, at as i64), Some(mode));
            end(space, lease);
            assert_eq!(held_at(&image, at as i64), None);
            assert_qemus(&image);
            unlock_all(&file);
        }
    }
}

#[test]
fn a_hold_that_lost_its_byte_is_found_out_beside_others_locks() {
    let (_dir, image) = image();
    for mode in BOTH {
        let file = open(&image);
        let lease = granted(&direct(), ONE, opened(mode, "disk", &file).range(byte(99)));
        lock_as_qemu(&file);
        lease.verify().unwrap();
        unlock_ofd(&file, 99, 1).unwrap();
        assert!(matches!(lease.verify(), Err(VerifyError::Unlocked { .. })));
        drop(lease);
        assert_qemus(&image);
        unlock_all(&file);
    }
}

#[test]
fn a_conversion_leaves_the_other_locks_of_the_open_file() {
    let (_dir, image) = image();
    let (space, other, file) = (direct(), direct(), open(&image));
    let mut lease = granted(&space, ONE, shared("disk", &file).range(byte(99)));
    lock_as_qemu(&file);
    // Refused, at once and after a wait.
    let theirs = granted(&other, TWO, Request::shared(&image).range(byte(99)));
    for wait in [Wait::NO, Wait::within(std::time::Duration::from_millis(20))] {
        assert!(matches!(lease.upgrade(wait), Err(AcquireError::Busy(_))));
        assert_eq!(held_at(&image, 99), Some(Mode::Shared));
        assert_qemus(&image);
    }
    drop(theirs);
    for _ in 0..2 {
        lease.upgrade(Wait::NO).unwrap();
        lease.verify().unwrap();
        assert_eq!(held_at(&image, 99), Some(Mode::Exclusive));
        assert_qemus(&image);
        lease.downgrade().unwrap();
        lease.verify().unwrap();
        assert_eq!(held_at(&image, 99), Some(Mode::Shared));
        assert_qemus(&image);
    }
    drop(lease);
    assert_eq!(held_at(&image, 99), None);
    assert_qemus(&image);
    unlock_all(&file);
}

#[test]
fn a_refusal_leaves_the_other_locks_of_the_open_file() {
    let (_dir, image) = image();
    let (space, file) = (direct(), open(&image));
    lock_as_qemu(&file);
    for mode in BOTH {
        for wait in [Wait::NO, Wait::within(LONG)] {
            let requests = || [Request::shared(&image).range(byte(7)), opened(mode, "disk", &file)];
            let [_, alone] = requests();
            for refused in [
                space.acquire(ONE, alone, wait.clone()).map(drop),
                space.acquire_all(ONE, requests(), wait).map(drop),
            ] {
                let why = match refused {
                    Err(AcquireError::Invalid { why, .. }) => why,
                    other => panic!("not bad: {other:?}"),
                };
                assert_eq!(why, InvalidRequest::CarriesLock);
                assert_qemus(&image);
            }
        }
    }
    unlock_all(&file);
}

#[test]
fn several_that_are_given_back_leave_the_other_locks_of_the_open_file() {
    let (dir, image) = image();
    let second = dir.path().join("b.raw");
    fs::write(&second, "").unwrap();
    let (space, other, file) = (direct(), direct(), open(&image));
    let _theirs = granted(&other, TWO, Request::exclusive(&second));
    let _ours = granted(&space, ONE, shared("disk", &file));
    lock_as_qemu(&file);
    let requests = || [shared("disk", &file), Request::exclusive(&second)];
    for wait in [Wait::NO, Wait::within(std::time::Duration::from_millis(20))] {
        let refused = space.acquire_all(TWO, requests(), wait);
        assert!(matches!(refused, Err(AcquireError::Busy(_))), "{refused:?}");
        assert_eq!(held(&image), Some(Mode::Shared));
        assert_qemus(&image);
    }
    unlock_ofd(&file, 100, 0).unwrap();
}

#[test]
fn a_wait_in_vain_leaves_what_others_have_locked_through_the_same_open_file_meanwhile() {
    let (_dir, image) = image();
    for cancelled in [true, false] {
        let (space, other) = (direct(), direct());
        let file = open(&image);
        let theirs = granted(&other, TWO, Request::exclusive(&image));
        let (cancel, duplicate) = (Cancel::new(), file.try_clone().unwrap());
        let wait = Wait::within(LONG).unless(&cancel);
        let waiting = start(move || space.acquire(ONE, exclusive("disk", &duplicate), wait));
        let waiting = waiting.watches();
        lock_as_qemu(&file);
        if cancelled {
            cancel.cancel();
        } else {
            // What is free now would be a second hold on a description that carries a lock.
            theirs.release().unwrap();
        }
        match waiting.join() {
            Err(AcquireError::Invalid { why: InvalidRequest::CarriesLock, .. }) => {}
            // Unless it has looked again since.
            Err(AcquireError::Cancelled { .. }) if cancelled => {}
            ended => panic!("{ended:?}"),
        }
        assert_qemus(&image);
        unlock_all(&file);
    }
}
