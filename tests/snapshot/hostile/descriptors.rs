//! Numbers that are no descriptor of the lock.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{AUTO_CREATED, DIRECT, DIRECTORY, EXCLUSIVE, in_world};
use crate::support::forked::fork;
use crate::support::locks::{ofd_lock, record_lock, unlock_ofd, unlock_record};
use crate::support::process::close_number;
use crate::support::rounds::rounds;
use crate::support::state::{at, disown, restore};
use lockspace::snapshot::InvalidEntry;
use serde_json::{Value, json};

#[test]
fn numbers_that_are_no_descriptor_of_a_lock() {
    in_world(|world| {
        for number in [-1, -2, 0, 1, 2, i64::from(i32::MIN), 1 << 31, 1 << 40, i64::MIN, i64::MAX] {
            world.refuses_number(number, is!(InvalidEntry::Number));
        }
        for number in [json!(u64::MAX), json!(5.5), json!("5"), json!(null), json!([5])] {
            world.refuses_number(number, is!(InvalidEntry::Malformed(_)));
        }
        for closed in [800, 1_000_000, i32::MAX] {
            world.refuses_number(closed, is!(InvalidEntry::NotOpen));
        }
    });
}

#[test]
fn descriptors_of_what_is_no_lock_file() {
    in_world(|world| {
        let (reader, writer) = std::io::pipe().unwrap();
        let (socket, _other) = UnixStream::pair().unwrap();
        let directory = disown(File::open(world.dir.path()).unwrap());
        world.refuses_number(directory, is!(InvalidEntry::NotAFile("a directory")));
        for pipe in [disown(reader), disown(writer)] {
            world.refuses_number(pipe, is!(InvalidEntry::NotAFile("a pipe")));
        }
        world.refuses_number(disown(socket), is!(InvalidEntry::NotAFile("a socket")));
        let null = disown(File::open("/dev/null").unwrap());
        world.refuses_number(null, is!(InvalidEntry::NotAFile(_)));
        // The very file, but without the right to use it.
        let path = world.path(DIRECTORY, EXCLUSIVE);
        let flags = rustix::fs::OFlags::PATH;
        let only_path = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
        world.refuses_number(disown(only_path), is!(InvalidEntry::Unlocked));
    });
}

#[test]
fn descriptors_of_another_file() {
    in_world(|world| {
        let locked = |path: &Path| {
            let file = File::create_new(path).unwrap();
            ofd_lock(&file, true, 0, 1).unwrap();
            disown(file)
        };
        let other = locked(&world.dir.path().join("other"));
        world.refuses_number(other, is!(InvalidEntry::OtherFile));
        // Of another entry, which is closed in turn: no number is there twice.
        let (d, e) = (world.number(DIRECT, 0), world.number(DIRECT, 1));
        let swapped = world.edited(|all| {
            all[DIRECT]["resources"][0]["fd"] = e.into();
            all[DIRECT]["resources"][1]["fd"] = d.into();
        });
        world.refuses(&swapped, (DIRECT, Some(0)), is!(InvalidEntry::OtherFile));
        // The recorded file, as the document has it: forged to fit the descriptor.
        let (device, inode) = {
            use std::os::unix::fs::MetadataExt;
            let meta = fs::metadata(world.dir.path().join("other")).unwrap();
            (meta.dev(), meta.ino())
        };
        let forged = |entry: &mut Value| {
            entry["fd"] = other.into();
            entry["lockspace"]["device"] = device.into();
            entry["lockspace"]["inode"] = inode.into();
        };
        world.refuses_entry((DIRECTORY, EXCLUSIVE), forged, is!(InvalidEntry::Replaced));
        // As libvirt's, an entry has no file recorded.
        let libvirts = |entry: &mut Value| {
            entry["fd"] = other.into();
            entry.as_object_mut().unwrap().remove("lockspace");
        };
        world.refuses_entry((DIRECTORY, EXCLUSIVE), libvirts, is!(InvalidEntry::Replaced));
    });
}

#[test]
fn one_descriptor_or_one_description_twice() {
    in_world(|world| {
        let (a, b) = (world.number(DIRECTORY, EXCLUSIVE), world.number(DIRECTORY, AUTO_CREATED));
        let twice = |entry: &mut Value| entry["fd"] = a.into();
        world.refuses_entry(
            (DIRECTORY, AUTO_CREATED),
            twice,
            is!(InvalidEntry::DuplicateDescriptor),
        );
        // In another document.
        world.refuses_entry((DIRECT, 0), twice, is!(InvalidEntry::DuplicateDescriptor));
        assert_ne!(a, b);
        // A duplicate shows the same lock, and to unlock it would unlock the original. In one
        // document the name would be there twice, so it is in another one.
        let duplicate = disown(at(a).try_clone_to_owned().unwrap());
        let documents = world.edited(|all| {
            let mut copy = all[DIRECTORY].clone();
            let entry = copy["resources"][EXCLUSIVE].clone();
            copy["resources"] = json!([entry]);
            copy["resources"][0]["fd"] = duplicate.into();
            all.as_array_mut().unwrap().push(copy);
        });
        let same =
            |why: &InvalidEntry| matches!(why, InvalidEntry::SameDescription(other) if *other == a);
        world.refuses(&documents, (3, Some(0)), same);
        close_number(duplicate);
        // The same document twice.
        let documents = world.edited(|all| {
            let copy = all[DIRECTORY].clone();
            all.as_array_mut().unwrap().push(copy);
        });
        world.refuses(&documents, (3, Some(0)), is!(InvalidEntry::DuplicateDescriptor));
        // Under two names, in a space where names lead nowhere else to.
        let mut hard_link = world.documents.clone();
        let link = world.dir.path().join("link.raw");
        fs::hard_link(world.path(DIRECT, 0), &link).unwrap();
        let duplicate = disown(at(world.number(DIRECT, 0)).try_clone_to_owned().unwrap());
        let mut entry = hard_link[DIRECT]["resources"][0].clone();
        entry["name"] = link.to_str().unwrap().into();
        entry["path"] = link.to_str().unwrap().into();
        entry["fd"] = duplicate.into();
        hard_link[DIRECT]["resources"].as_array_mut().unwrap().push(entry);
        world.refuses(&hard_link, (DIRECT, Some(2)), is!(InvalidEntry::SameDescription(_)));
        fs::remove_file(link).unwrap();
        close_number(duplicate);
    });
}

#[test]
fn descriptors_that_are_not_locked_as_they_should_be() {
    in_world(|world| {
        let a = world.number(DIRECTORY, EXCLUSIVE);
        let refuses = |why: fn(&InvalidEntry) -> bool| {
            world.refuses(&world.documents, (DIRECTORY, Some(EXCLUSIVE)), why);
        };
        unlock_ofd(at(a), 0, 1).unwrap();
        refuses(is!(InvalidEntry::Unlocked));
        // Another mode, another range, one range more.
        ofd_lock(at(a), false, 0, 1).unwrap();
        refuses(is!(InvalidEntry::OtherLock));
        unlock_ofd(at(a), 0, 1).unwrap();
        ofd_lock(at(a), true, 1, 1).unwrap();
        refuses(is!(InvalidEntry::OtherLock));
        ofd_lock(at(a), true, 0, 2).unwrap();
        refuses(is!(InvalidEntry::OtherLock));
        ofd_lock(at(a), true, 0, 0).unwrap();
        refuses(is!(InvalidEntry::OtherLock));
        unlock_ofd(at(a), 0, 0).unwrap();
        ofd_lock(at(a), true, 0, 1).unwrap();
        ofd_lock(at(a), true, 7, 1).unwrap();
        refuses(is!(InvalidEntry::OtherLock));
        unlock_ofd(at(a), 0, 0).unwrap();
        // Another kind, alone and beside the right one.
        record_lock(at(a), true, 0, 1).unwrap();
        refuses(is!(InvalidEntry::RecordLock));
        ofd_lock(at(a), true, 5, 1).unwrap();
        refuses(|why| matches!(why, InvalidEntry::RecordLock | InvalidEntry::OtherLock));
        unlock_record(at(a), 0, 0).unwrap();
        unlock_ofd(at(a), 0, 0).unwrap();
        rustix::fs::flock(at(a), rustix::fs::FlockOperation::LockExclusive).unwrap();
        refuses(is!(InvalidEntry::Unlocked));
        // As it was; a flock excludes none of ours, and does not matter.
        ofd_lock(at(a), true, 0, 1).unwrap();
    });
}

/// What another process does to the file at the same time must not look like a lock of ours.
#[test]
fn an_unlocked_descriptor_beside_a_rival_that_toggles_the_same_lock() {
    in_world(|world| {
        let (a, path) = (world.number(DIRECTORY, EXCLUSIVE), world.path(DIRECTORY, EXCLUSIVE));
        unlock_ofd(at(a), 0, 1).unwrap();
        let (mut shared, own) = (world.documents.clone(), rustix::process::getpid());
        shared[DIRECTORY]["resources"][EXCLUSIVE]["flags"] = 1.into();
        let stop = world.dir.path().join("stop");
        let rivals = [(true, true), (false, true), (true, false)].map(|(exclusive, ofd)| {
            fork(|| {
                let file = File::options().read(true).write(true).open(&path).unwrap();
                while rustix::process::getppid() == Some(own) && !stop.exists() {
                    for _ in 0..1000 {
                        // Refused where another rival has it.
                        if ofd {
                            let _ = ofd_lock(&file, exclusive, 0, 1);
                            unlock_ofd(&file, 0, 1).unwrap();
                        } else {
                            let _ = record_lock(&file, exclusive, 0, 1);
                            unlock_record(&file, 0, 1).unwrap();
                        }
                    }
                }
            })
        });
        let (mut unlocked, mut tries) = (0, 0);
        while tries < rounds(4000) as usize {
            for documents in [&world.documents, &shared] {
                let error = restore(documents).map(std::mem::forget).expect_err("it has no lock");
                assert_eq!((error.document, error.entry), (DIRECTORY, Some(EXCLUSIVE)), "{error}");
                unlocked += usize::from(matches!(error.why, InvalidEntry::Unlocked));
                tries += 1;
            }
        }
        assert_eq!(unlocked, tries);
        fs::write(&stop, "").unwrap();
        for rival in rivals {
            rival.join();
        }
        fs::remove_file(&stop).unwrap();
        ofd_lock(at(a), true, 0, 1).unwrap();
    });
}
