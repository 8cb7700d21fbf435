//! What cannot be locked, and files that carry a lock already.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{exclusive, opened, shared};
use crate::support::forked::in_child;
use crate::support::locks::{held, held_at, locks_shown, ofd_lock, open, record_lock, unlock_ofd};
use crate::support::process::open_numbers;
use crate::support::rounds::rounds;
use crate::support::spaces::{A, B, BOTH, bad, busy, byte, direct, granted, image};
use lockspace::{AcquireError, ByteRange, InvalidRequest, Mode, Wait};
use rustix::fs::OFlags;

#[test]
fn a_file_that_is_not_open_for_what_the_mode_needs_is_refused() {
    let (_dir, image) = image();
    let space = direct();
    let reading = File::open(&image).unwrap();
    let writing = OpenOptions::new().write(true).open(&image).unwrap();
    let wrong = |needs| InvalidRequest::WrongAccess { needs };
    assert_eq!(bad(&space, B, exclusive("disk", &reading)), wrong("writing"));
    assert_eq!(bad(&space, B, shared("disk", &writing)), wrong("reading"));
    assert_eq!([&reading, &writing].map(locks_shown), [0, 0]);
    granted(&space, A, shared("disk", &reading)).release().unwrap();
    granted(&space, A, exclusive("disk", &writing)).release().unwrap();
}

#[test]
fn a_descriptor_that_is_only_a_path_is_refused() {
    let (_dir, image) = image();
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let path = rustix::fs::open(&image, flags, rustix::fs::Mode::empty()).unwrap();
    let space = direct();
    for (mode, needs) in [(Mode::Exclusive, "writing"), (Mode::Shared, "reading")] {
        assert_eq!(
            bad(&space, B, opened(mode, "disk", &path)),
            InvalidRequest::WrongAccess { needs }
        );
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
        match bad(&space, B, opened(*mode, "disk", fd)) {
            InvalidRequest::NotAFile { kind, .. } => assert_eq!(kind, *what),
            why => panic!("{why}"),
        }
    }
    assert!(space.list().is_empty());
}

#[test]
fn what_has_no_path_is_not_told_as_if_it_had_one() {
    let (read, _write) = std::io::pipe().unwrap();
    let error = direct().acquire(A, shared("disk", &read), Wait::NO).unwrap_err().to_string();
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
        let lease = granted(&space, A, exclusive("disk", &file));
        let before = open_numbers();
        busy(&space, B, exclusive("disk", &file));
        busy(&space, B, exclusive("other", &other));
        bad(&space, B, exclusive("other", &file));
        bad(&space, B, exclusive("other", &reading));
        bad(&space, B, shared("other", &read));
        assert_eq!(open_numbers(), before);
        lease.release().unwrap();
        assert_eq!(open_numbers().len(), before.len() - 1);
    });
}

#[test]
fn a_file_that_carries_an_ofd_lock_is_refused_and_the_lock_is_untouched() {
    let (_dir, image) = image();
    let space = direct();
    for (theirs, at) in [(Mode::Exclusive, 0), (Mode::Shared, 0), (Mode::Exclusive, 100)] {
        let file = open(&image);
        ofd_lock(&file, theirs == Mode::Exclusive, at, 1).unwrap();
        for mode in BOTH {
            assert_eq!(bad(&space, B, opened(mode, "disk", &file)), InvalidRequest::CarriesLock);
            let request = opened(mode, "disk", &file).range(ByteRange::WHOLE_FILE);
            assert_eq!(bad(&space, B, request), InvalidRequest::CarriesLock);
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
        assert_eq!(bad(&space, B, opened(mode, "disk", &file)), InvalidRequest::CarriesLock);
    }
}

#[test]
fn a_record_lock_on_a_file_that_is_refused_for_it_is_untouched() {
    let (_dir, image) = image();
    let file = open(&image);
    record_lock(&file, true, 100, 1).unwrap();
    bad(&direct(), B, exclusive("disk", &file));
    assert_eq!(held_at(&image, 100), Some(Mode::Exclusive));
}

#[test]
fn one_open_file_is_not_held_under_two_names() {
    let (_dir, image) = image();
    let (space, second) = (direct(), direct());
    let file = open(&image);
    let duplicate = file.try_clone().unwrap();
    for mode in BOTH {
        let lease = granted(&space, A, opened(mode, "disk", &file));
        for file in [&file, &duplicate] {
            for asked in BOTH {
                assert_eq!(
                    bad(&space, B, opened(asked, "other", file)),
                    InvalidRequest::CarriesLock
                );
                assert_eq!(
                    bad(&second, B, opened(asked, "disk", file)),
                    InvalidRequest::CarriesLock
                );
                let elsewhere = opened(asked, "other", file).range(byte(100));
                assert_eq!(bad(&space, B, elsewhere), InvalidRequest::CarriesLock);
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
        let busy = busy(&space, A, opened(mode, "disk", &file));
        assert_eq!((busy.owners(), busy.held()), (&[][..], None));
    }
    assert_eq!(held(&image), Some(Mode::Exclusive));
    assert_eq!([&theirs, &file].map(locks_shown), [1, 0]);
}

#[test]
fn of_many_threads_that_lock_one_open_file_under_names_of_their_own_one_wins() {
    let rounds = rounds(1500) as usize;
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
                for round in 1..=rounds {
                    barrier.wait();
                    let lease = space.acquire(A, exclusive(&name, &mine), Wait::NO);
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
    assert_eq!((wins.into_inner(), odd.into_inner()), (rounds, 0));
}
