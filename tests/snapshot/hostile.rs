//! State documents that are damaged, forged or out of date: each is refused with an error that
//! names the entry, and nothing at all has changed then.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::support::process::{
    Child, close_number, in_child, is_root, ofd_lock, record_lock, set_variable, unlock_ofd,
    unlock_record, unshare_mounts,
};
use crate::support::state::{
    Picture, at, closes_on_exec, descriptors, disown, is_good_state, leave_behind, name_of,
    numbers_in, restore, restore_what_verifies,
};
use lockspace::snapshot::{Document, InvalidEntry, RestoreError};
use lockspace::{ByteRange, LockSpace, Naming, OwnerId, Request, Wait};
use serde_json::{Value, json};
use tempfile::TempDir;

const ONE: OwnerId = OwnerId::new(1);
const TWO: OwnerId = OwnerId::new(2);

/// Three spaces that an exec has left behind, and their documents. Lives in a forked child.
struct World {
    dir: TempDir,
    documents: Value,
}

/// The documents, and the entries of the first, by what they are.
const DIRECTORY: usize = 0;
const DIRECT: usize = 1;
const IN_MEMORY: usize = 2;
const EXCLUSIVE: usize = 0;
const AUTO_CREATED: usize = 1;
const SHARED: usize = 2;

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let locks = LockSpace::open(Naming::md5(dir.path().join("locks"))).unwrap();
        let take = |space: &LockSpace, owner, request| {
            space.acquire(owner, request, Wait::NO).unwrap().keep();
        };
        locks.create("a").unwrap();
        take(&locks, ONE, Request::exclusive("a"));
        take(&locks, ONE, Request::exclusive("b").auto_create());
        for owner in [ONE, TWO, TWO] {
            take(&locks, owner, Request::shared("c").auto_create());
        }
        let direct = LockSpace::builder(Naming::direct());
        let direct = direct.range(ByteRange::WHOLE_FILE).open().unwrap();
        for image in ["d.raw", "e.raw"] {
            fs::write(dir.path().join(image), "precious").unwrap();
            take(&direct, ONE, Request::exclusive(dir.path().join(image)));
        }
        let memory = LockSpace::open(Naming::in_memory()).unwrap();
        take(&memory, ONE, Request::exclusive("m"));
        let documents = leave_behind(vec![locks, direct, memory], Vec::new());
        Self { dir, documents }
    }

    fn edited(&self, edit: impl FnOnce(&mut Value)) -> Value {
        let mut documents = self.documents.clone();
        edit(&mut documents);
        documents
    }

    fn number(&self, document: usize, entry: usize) -> i32 {
        let number = &self.documents[document]["resources"][entry]["fd"];
        number.as_i64().unwrap().try_into().unwrap()
    }

    fn path(&self, document: usize, entry: usize) -> PathBuf {
        self.documents[document]["resources"][entry]["path"].as_str().unwrap().into()
    }

    /// Fails unless the documents are refused for this reason, the error names this place, and
    /// nothing has changed.
    #[track_caller]
    fn refuses(
        &self,
        documents: &Value,
        (document, entry): (usize, Option<usize>),
        why: impl FnOnce(&InvalidEntry) -> bool,
    ) {
        let error = self.refused(documents).expect("it is adopted");
        assert!(why(&error.why), "for another reason: {error} ({error:?})");
        assert_names(&error, documents, document, entry);
    }

    /// As `refuses`, about one entry.
    #[track_caller]
    fn refuses_entry(
        &self,
        (document, entry): (usize, usize),
        edit: impl FnOnce(&mut Value),
        why: impl FnOnce(&InvalidEntry) -> bool,
    ) {
        let documents = self.edited(|all| edit(&mut all[document]["resources"][entry]));
        self.refuses(&documents, (document, Some(entry)), why);
    }

    /// As `refuses`, about a document itself.
    #[track_caller]
    fn refuses_document(
        &self,
        document: usize,
        edit: impl FnOnce(&mut Value),
        why: impl FnOnce(&InvalidEntry) -> bool,
    ) {
        let documents = self.edited(|all| edit(&mut all[document]));
        self.refuses(&documents, (document, None), why);
    }

    /// As `refuses_entry`, where a number takes the place of the entry's own.
    #[track_caller]
    fn refuses_number(&self, number: impl Into<Value>, why: impl FnOnce(&InvalidEntry) -> bool) {
        let number = number.into();
        self.refuses_entry((DIRECTORY, EXCLUSIVE), |entry| entry["fd"] = number, why);
    }

    /// The error, if there is one, once it is sure that nothing has changed.
    #[track_caller]
    fn refused(&self, documents: &Value) -> Option<RestoreError> {
        let before = Picture::take(self.dir.path());
        let restored = restore(documents);
        let error = restored.map(std::mem::forget).err()?;
        assert_eq!(Picture::take(self.dir.path()), before, "something has changed: {error}");
        Some(error)
    }

    /// What is left behind was good all the time: it is adopted.
    #[track_caller]
    fn adopt(self) {
        let spaces = restore(&self.documents).unwrap();
        let held: Vec<_> = spaces.iter().map(|space| space.list().len()).collect();
        assert_eq!(held, [3, 2, 1]);
        assert!(numbers_in(&self.documents).into_iter().all(closes_on_exec));
        drop(spaces);
        let left = fs::read_dir(self.dir.path().join("locks")).unwrap().count();
        assert_eq!(left, 1, "only `a` was there before");
    }
}

#[track_caller]
fn assert_names(error: &RestoreError, documents: &Value, document: usize, entry: Option<usize>) {
    assert_eq!((error.document, error.entry), (document, entry), "{error}");
    let place = entry.map(|entry| &documents[document]["resources"][entry]);
    let legible = |entry: &Value| Some(entry["name"].as_str()?.as_bytes().to_vec());
    let name = place.and_then(|entry| name_of(entry).or_else(|| legible(entry)));
    assert_eq!(error.name.as_ref().map(|name| name.as_bytes()), name.as_deref(), "{error}");
    assert_eq!(error.fd, place.and_then(|entry| entry["fd"].as_i64()), "{error}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("document {document}")), "{text}");
    assert!(entry.is_none_or(|entry| text.contains(&format!(", entry {entry}"))), "{text}");
}

/// Says `matches!` of a reason.
macro_rules! is {
    ($($pattern:tt)*) => { |why: &InvalidEntry| matches!(why, $($pattern)*) };
}

/// Runs a closure in a child with a world that is good before and after it.
#[track_caller]
fn in_world(work: impl FnOnce(&World)) {
    in_child(|| {
        let world = World::new();
        work(&world);
        world.adopt();
    });
}

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
        crate::support::process::unlock_record(at(a), 0, 0).unwrap();
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
            Child::fork(|| {
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
                ""
            })
        });
        let (mut unlocked, mut tries) = (0, 0);
        while tries < 4000 {
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

#[test]
fn documents_that_disagree_with_the_lock() {
    in_world(|world| {
        let exclusive = (DIRECTORY, EXCLUSIVE);
        world.refuses_entry(exclusive, |e| e["flags"] = 1.into(), is!(InvalidEntry::OtherLock));
        let shared = (DIRECTORY, SHARED);
        let alone = |e: &mut Value| {
            e["flags"] = 2.into();
            e["owners"] = json!([1]);
        };
        world.refuses_entry(shared, alone, is!(InvalidEntry::OtherLock));
        for range in [json!([0, 2]), json!([0, null]), json!([1, 1]), json!([100, 1])] {
            let other = |e: &mut Value| e["lockspace"]["range"] = range;
            world.refuses_entry(exclusive, other, is!(InvalidEntry::OtherLock));
        }
        for range in [json!([0, 0]), json!([u64::MAX, 2]), json!([5, u64::MAX]), json!([1])] {
            let odd = |e: &mut Value| e["lockspace"]["range"] = range;
            world.refuses_entry(exclusive, odd, is!(InvalidEntry::Malformed(_)));
        }
        let unheld = |e: &mut Value| e["lockHeld"] = false.into();
        world.refuses_entry(exclusive, unheld, is!(InvalidEntry::Malformed(_)));
    });
}

/// Who removes a file locks all of it but the very last byte, and nobody else may lock just that:
/// a hold of the last byte would not be met, and one of the removal's own range be waited for. Each
/// of these was locked so, so that only the range itself is wrong.
#[test]
fn ranges_that_no_request_can_have() {
    const LAST: i64 = i64::MAX;
    in_world(|world| {
        let a = world.number(DIRECTORY, EXCLUSIVE);
        unlock_ofd(at(a), 0, 1).unwrap();
        for (start, len, recorded) in [
            (LAST, 0, json!([LAST, null])),
            (LAST, 0, json!([LAST, 1])),
            (0, LAST, json!([0, LAST])),
        ] {
            ofd_lock(at(a), true, start, len).unwrap();
            let locked = |e: &mut Value| e["lockspace"]["range"] = recorded;
            let why = |why: &InvalidEntry| matches!(why, InvalidEntry::Malformed(w) if w.contains("range"));
            world.refuses_entry((DIRECTORY, EXCLUSIVE), locked, why);
            unlock_ofd(at(a), start, len).unwrap();
        }
        // The nearest ranges that there can be are others.
        for (start, len, recorded) in
            [(LAST, 0, json!([LAST - 1, null])), (0, LAST, json!([0, null]))]
        {
            ofd_lock(at(a), true, start, len).unwrap();
            let locked = |e: &mut Value| e["lockspace"]["range"] = recorded;
            world.refuses_entry((DIRECTORY, EXCLUSIVE), locked, is!(InvalidEntry::OtherLock));
            unlock_ofd(at(a), start, len).unwrap();
        }
        ofd_lock(at(a), true, 0, 1).unwrap();
        // Nor can a space have it, for its requests to come, nor what is held in memory.
        for range in [json!([LAST, null]), json!([LAST, 1]), json!([0, LAST])] {
            let space = |d: &mut Value| d["lockspace"]["range"] = range.clone();
            world.refuses_document(DIRECTORY, space, is!(InvalidEntry::Malformed(_)));
            let held = |e: &mut Value| e["lockspace"]["range"] = range.clone();
            world.refuses_entry((IN_MEMORY, 0), held, is!(InvalidEntry::Malformed(_)));
        }
    });
}

#[test]
fn owners_and_flags_that_cannot_be() {
    in_world(|world| {
        for document in [DIRECTORY, DIRECT, IN_MEMORY] {
            let entry = (document, 0);
            world.refuses_entry(entry, |e| e["owners"] = json!([]), is!(InvalidEntry::NoOwner));
            let two = |e: &mut Value| e["owners"] = json!([1, 2]);
            world.refuses_entry(entry, two, is!(InvalidEntry::ExclusiveOwners(2)));
            let twice = |e: &mut Value| e["owners"] = json!([1, 1]);
            world.refuses_entry(entry, twice, is!(InvalidEntry::ExclusiveOwners(2)));
            for flags in [4, 5, 8, 1 << 31, 1 << 63, u64::MAX] {
                let unknown = |e: &mut Value| e["flags"] = flags.into();
                let why = |why: &InvalidEntry| matches!(why, InvalidEntry::Flags(found) if *found == flags);
                world.refuses_entry(entry, unknown, why);
            }
        }
        for owner in [json!(-1), json!(0.5), json!("1"), json!(null), json!(1e30)] {
            let odd = |e: &mut Value| e["owners"] = json!([owner]);
            world.refuses_entry((DIRECTORY, SHARED), odd, is!(InvalidEntry::Malformed(_)));
        }
        // To say that it was auto-created would have the file removed in the end: the flag and
        // what we say ourselves must agree, and a direct space never creates.
        let would_unlink = |e: &mut Value| e["flags"] = 2.into();
        for entry in [(DIRECTORY, EXCLUSIVE), (DIRECT, 0), (IN_MEMORY, 0)] {
            world.refuses_entry(entry, would_unlink, is!(InvalidEntry::Malformed(_)));
        }
    });
}

#[test]
fn an_image_is_never_taken_for_an_auto_created_lock_file() {
    in_world(|world| {
        let ours = |e: &mut Value| {
            e["flags"] = 2.into();
            e["lockspace"]["origin"] = "auto-created".into();
        };
        world.refuses_entry((DIRECT, 0), ours, is!(InvalidEntry::Malformed(_)));
        // In a document of libvirt's, the flag alone says so.
        let libvirts = world.edited(|all| {
            all[DIRECT].as_object_mut().unwrap().remove("lockspace");
            let entry = &mut all[DIRECT]["resources"][0];
            entry["flags"] = 2.into();
            let range = entry["lockspace"]["range"].take();
            entry.as_object_mut().unwrap().remove("lockspace");
            assert_eq!(range, json!([0, null]));
        });
        ofd_lock_only(world.number(DIRECT, 0), 0, 1);
        world.refuses(&libvirts, (DIRECT, Some(0)), is!(InvalidEntry::Malformed(_)));
        ofd_lock_only(world.number(DIRECT, 0), 0, 0);
        assert_eq!(fs::read(world.path(DIRECT, 0)).unwrap(), b"precious");
    });
}

/// Gives the descriptor this lock, and no other.
fn ofd_lock_only(number: i32, start: i64, len: i64) {
    unlock_ofd(at(number), 0, 0).unwrap();
    ofd_lock(at(number), true, start, len).unwrap();
}

#[test]
fn names_and_paths_that_do_not_belong_together() {
    in_world(|world| {
        let a = (DIRECTORY, EXCLUSIVE);
        // The second of the name is the bad one, even if it is locked as well as the first.
        let path = world.path(DIRECTORY, SHARED);
        let file = File::options().read(true).write(true).open(path).unwrap();
        ofd_lock(&file, false, 0, 1).unwrap();
        let number = disown(file);
        let twice = world.edited(|all| {
            let entries = all[DIRECTORY]["resources"].as_array_mut().unwrap();
            entries.push(entries[SHARED].clone());
            entries[3]["fd"] = number.into();
        });
        world.refuses(&twice, (DIRECTORY, Some(3)), is!(InvalidEntry::DuplicateName));
        close_number(number);
        let other = |e: &mut Value| {
            e["name"] = "a".into();
            e["path"] = world.path(DIRECTORY, EXCLUSIVE).to_str().unwrap().into();
        };
        world.refuses_entry((DIRECTORY, AUTO_CREATED), other, is!(InvalidEntry::Replaced));
        world.refuses_entry((IN_MEMORY, 0), |e| e["name"] = "".into(), is!(InvalidEntry::Name(_)));
        world.refuses_entry(a, |e| e["name"] = "x\0".into(), is!(InvalidEntry::Name(_)));
        world.refuses_entry(a, |e| e["name"] = "x".repeat(5000).into(), is!(InvalidEntry::Name(_)));
        world.refuses_entry(
            (DIRECT, 0),
            |e| e["name"] = "d.raw".into(),
            is!(InvalidEntry::Name(_)),
        );
        for path in ["", "/etc/passwd", "/../locks/a", "a"] {
            world.refuses_entry(a, |e| e["path"] = path.into(), is!(InvalidEntry::Path));
        }
        world.refuses_entry(a, |e| e["name"] = "z".into(), is!(InvalidEntry::Path));
        let outside = |e: &mut Value| {
            e["name"] = "/etc/passwd".into();
            e["path"] = "/etc/passwd".into();
        };
        world.refuses_entry((DIRECT, 0), outside, is!(InvalidEntry::Replaced));
        let odd = |e: &mut Value| e["lockspace"]["hex"] = "6x".into();
        world.refuses_entry(a, odd, is!(InvalidEntry::Malformed(_)));
        let other = |e: &mut Value| e["lockspace"]["hex"] = "6162".into();
        world.refuses_entry(a, other, is!(InvalidEntry::Path));
    });
}

#[test]
fn the_same_name_twice_in_memory() {
    in_world(|world| {
        let documents = world.edited(|all| {
            let entry = all[IN_MEMORY]["resources"][0].clone();
            all[IN_MEMORY]["resources"].as_array_mut().unwrap().push(entry);
        });
        world.refuses(&documents, (IN_MEMORY, Some(1)), is!(InvalidEntry::DuplicateName));
        let number = |e: &mut Value| e["fd"] = world.number(DIRECT, 0).into();
        world.refuses_entry((IN_MEMORY, 0), number, is!(InvalidEntry::Number));
    });
}

#[test]
fn names_that_leave_the_directory() {
    in_child(|| {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let space = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
        let lease = space.acquire(ONE, Request::exclusive("a").auto_create(), Wait::NO).unwrap();
        let good = leave_behind(vec![space], vec![lease]);
        let world = World { dir, documents: good };
        fs::write(&outside, "precious").unwrap();
        let file = File::options().read(true).write(true).open(&outside).unwrap();
        ofd_lock(&file, true, 0, 1).unwrap();
        let number = disown(file);
        for (name, path) in [
            ("../outside", world.dir.path().join("locks/../outside")),
            (outside.to_str().unwrap(), outside.clone()),
            ("..", world.dir.path().to_owned()),
        ] {
            let escape = |e: &mut Value| {
                e["name"] = name.into();
                e["path"] = path.to_str().unwrap().into();
                e["fd"] = number.into();
                e.as_object_mut().unwrap().remove("lockspace");
            };
            world.refuses_entry((0, 0), escape, is!(InvalidEntry::Name(_)));
        }
        restore(&world.documents).unwrap();
        assert_eq!(fs::read(outside).unwrap(), b"precious");
    });
}

#[test]
fn documents_of_others_and_of_later_versions() {
    in_world(|world| {
        let started = world.documents[0]["lockspace"]["started"].as_u64().unwrap();
        for document in [DIRECTORY, DIRECT, IN_MEMORY] {
            let other = |d: &mut Value| d["lockspace"]["pid"] = 1.into();
            let why = is!(InvalidEntry::OtherProcess { pid: 1, .. });
            world.refuses_document(document, other, why);
            let earlier = |d: &mut Value| d["lockspace"]["started"] = (started - 1).into();
            let why = |why: &InvalidEntry| {
                let InvalidEntry::OtherProcess { pid, started: found } = why else { return false };
                (*pid, *found) == (std::process::id(), started - 1)
            };
            world.refuses_document(document, earlier, why);
            for version in [0, 2, 1 << 40] {
                let later = |d: &mut Value| d["lockspace"]["version"] = version.into();
                let why =
                    |why: &InvalidEntry| matches!(why, InvalidEntry::Version(v) if *v == version);
                world.refuses_document(document, later, why);
            }
            for naming in ["", "sha512", "MD5", "in_memory"] {
                let unknown = |d: &mut Value| d["lockspace"]["naming"] = naming.into();
                let why =
                    |why: &InvalidEntry| matches!(why, InvalidEntry::Naming(n) if n == naming);
                world.refuses_document(document, unknown, why);
            }
        }
        // A naming that needs a directory, or none.
        let direct = |d: &mut Value| d["lockspace"]["naming"] = "direct".into();
        world.refuses_document(DIRECTORY, direct, is!(InvalidEntry::Naming(_)));
        let md5 = |d: &mut Value| d["lockspace"]["naming"] = "md5".into();
        world.refuses_document(DIRECT, md5, is!(InvalidEntry::Naming(_)));
        // The naming of another document: the lock is not there.
        let verbatim = |d: &mut Value| d["lockspace"]["naming"] = "verbatim".into();
        let documents = world.edited(|all| verbatim(&mut all[DIRECTORY]));
        world.refuses(&documents, (DIRECTORY, Some(0)), is!(InvalidEntry::Path));
        // A document that a child of ours has, with our descriptors.
        in_child(|| {
            let why = is!(InvalidEntry::OtherProcess { .. });
            world.refuses(&world.documents, (DIRECTORY, None), why);
        });
    });
}

#[test]
fn directories_that_are_gone_or_others() {
    in_world(|world| {
        let (locks, away) = (world.dir.path().join("locks"), world.dir.path().join("away"));
        let refuses = |why: fn(&InvalidEntry) -> bool| {
            world.refuses(&world.documents, (DIRECTORY, None), why);
        };
        fs::rename(&locks, &away).unwrap();
        refuses(is!(InvalidEntry::Directory(_)));
        fs::write(&locks, "").unwrap();
        refuses(is!(InvalidEntry::Directory(_)));
        fs::remove_file(&locks).unwrap();
        fs::create_dir(&locks).unwrap();
        refuses(is!(InvalidEntry::DirectoryReplaced));
        fs::remove_dir(&locks).unwrap();
        fs::rename(&away, &locks).unwrap();
        let nowhere = |d: &mut Value| d["directory"] = "/no/such/directory".into();
        world.refuses_document(DIRECTORY, nowhere, is!(InvalidEntry::Directory(_)));
        assert!(!Path::new("/no").exists());
        for other in ["/", world.dir.path().to_str().unwrap()] {
            let other = |d: &mut Value| d["directory"] = other.into();
            world.refuses_document(DIRECTORY, other, is!(InvalidEntry::DirectoryReplaced));
        }
        for odd in [json!(1), json!(null), json!(["/"])] {
            let odd = |d: &mut Value| d["directory"] = odd;
            world.refuses_document(DIRECTORY, odd, is!(InvalidEntry::Malformed(_)));
        }
    });
}

#[test]
fn paths_that_lead_to_another_file_by_now() {
    in_world(|world| {
        for (document, entry) in [(DIRECTORY, EXCLUSIVE), (DIRECTORY, SHARED), (DIRECT, 0)] {
            let (path, away) = (world.path(document, entry), world.dir.path().join("away"));
            let refuses = || {
                let place = (document, Some(entry));
                world.refuses(&world.documents, place, is!(InvalidEntry::Replaced));
            };
            fs::rename(&path, &away).unwrap();
            refuses();
            fs::write(world.dir.path().join("new"), "").unwrap();
            fs::rename(world.dir.path().join("new"), &path).unwrap();
            refuses();
            fs::rename(&away, &path).unwrap();
        }
    });
}

#[test]
fn a_bad_entry_after_a_thousand_good_ones() {
    in_child(|| {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let limit = rustix::process::Rlimit { current: limit, maximum: limit };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let space = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
        let lock = |index| {
            let name = format!("{index:04}");
            space.acquire(ONE, Request::exclusive(&*name).auto_create(), Wait::NO).unwrap()
        };
        let leases: Vec<_> = (0..=1000).map(lock).collect();
        let documents = leave_behind(vec![space], leases);
        let world = World { dir, documents };
        let bad = (0, 1000);
        world.refuses_entry(bad, |e| e["fd"] = 0.into(), is!(InvalidEntry::Number));
        world.refuses_entry(bad, |e| e["flags"] = 8.into(), is!(InvalidEntry::Flags(8)));
        world.refuses_entry(bad, |e| *e = json!(null), is!(InvalidEntry::Malformed(_)));
        unlock_ofd(at(world.number(0, 1000)), 0, 1).unwrap();
        world.refuses(&world.documents, (0, Some(1000)), is!(InvalidEntry::Unlocked));
        // By choice, the good ones all the same.
        let (spaces, bad) = restore_what_verifies(&world.documents);
        assert_eq!((spaces[0].list().len(), bad.len()), (1000, 1));
        assert_names(&bad[0], &world.documents, 0, Some(1000));
    });
}

#[test]
fn a_file_that_is_mounted_on_one_of_a_hundred_names() {
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

    if !is_root() {
        return eprintln!("skipped: only root may mount");
    }
    in_child(|| {
        unshare_mounts().unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let space = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
        let lock = |index| {
            let name = format!("{index:03}");
            space.acquire(ONE, Request::exclusive(&*name).auto_create(), Wait::NO).unwrap()
        };
        let leases: Vec<_> = (0..100).map(lock).collect();
        let documents = leave_behind(vec![space], leases);
        let world = World { dir, documents };
        // The directory shows the inode beneath; who opens the name locks the other file.
        let (other, name) = (world.dir.path().join("other"), world.path(0, 42));
        fs::write(&other, "").unwrap();
        mount_bind(&other, &name).unwrap();
        world.refuses(&world.documents, (0, Some(42)), is!(InvalidEntry::Replaced));
        unmount(&name, UnmountFlags::empty()).unwrap();
        // One that has gone, and one that has taken another's place.
        let (a, b) = (world.path(0, 7), world.path(0, 8));
        fs::rename(&a, &other).unwrap();
        world.refuses(&world.documents, (0, Some(7)), is!(InvalidEntry::Replaced));
        fs::rename(&b, &a).unwrap();
        world.refuses(&world.documents, (0, Some(7)), is!(InvalidEntry::Replaced));
        fs::rename(&a, &b).unwrap();
        fs::rename(&other, &a).unwrap();
        // Where a mount is elsewhere below, each is looked up.
        fs::create_dir(world.dir.path().join("locks/below")).unwrap();
        mount_bind(world.dir.path(), world.dir.path().join("locks/below")).unwrap();
        assert_eq!(restore(&world.documents).unwrap()[0].list().len(), 100);
        unmount(world.dir.path().join("locks/below"), UnmountFlags::empty()).unwrap();
    });
}

/// A file in memory as an exec carries it over, if it is sealed.
fn memory_file(name: &str, content: &Value, sealed: bool) -> i32 {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::io::Write;

    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let mut file = File::from(fd);
    file.write_all(content.to_string().as_bytes()).unwrap();
    if sealed {
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&file, seals).unwrap();
    }
    disown(file)
}

#[test]
fn releases_that_the_program_before_has_not_deferred() {
    const NAME: &str = "lockspace-releases";
    const VARIABLE: &str = "LOCKSPACE_RELEASES";
    in_child(|| {
        let world = World::new();
        let ours = &world.documents[DIRECTORY]["lockspace"];
        // All three resources, by all their owners: "a", "b", "c".
        let all = json!({ "61": { "1": 1 }, "62": { "1": 1 }, "63": { "1": 1, "2": 2 } });
        let state = |releases: &Value| {
            let space = json!({ "document": world.documents[DIRECTORY], "releases": releases });
            json!({ "version": 1, "pid": ours["pid"], "started": ours["started"],
                "spaces": [space] })
        };
        let edited = |edit: fn(&mut Value)| {
            let mut state = state(&all);
            edit(&mut state);
            state
        };
        let held = |spaces: &[LockSpace]| -> Vec<_> {
            spaces.iter().map(|space| space.list().len()).collect()
        };
        // Which descriptors it has closed.
        let ignored = |number: &str| {
            set_variable(VARIABLE, number);
            let before = descriptors();
            let spaces = restore(&world.documents).unwrap();
            assert_eq!(held(&spaces), [3, 2, 1], "{number}");
            std::mem::forget(spaces);
            let after = descriptors();
            before.into_keys().filter(|number| !after.contains_key(number)).collect::<Vec<_>>()
        };
        let lock = world.number(DIRECTORY, EXCLUSIVE).to_string();
        for number in ["", "-1", "0", "1", "999", "x", "18446744073709551616", &lock] {
            assert!(ignored(number).is_empty());
        }
        // It is not understood, or another process's: it stays open, as what is not ours.
        for content in [
            edited(|state| state["version"] = 2.into()),
            edited(|state| state["pid"] = 1.into()),
            edited(|state| state["started"] = 1.into()),
            edited(|state| state["spaces"][0]["releases"]["61"] = json!({ "1": -1 })),
            edited(|state| state["spaces"] = json!(7)),
            json!([]),
            json!("x"),
        ] {
            let number = memory_file(NAME, &content, true);
            assert!(ignored(&number.to_string()).is_empty(), "{content}");
        }
        let path = world.dir.path().join("releases");
        fs::write(&path, state(&all).to_string()).unwrap();
        for number in [
            memory_file(NAME, &state(&all), false),
            memory_file("lockspace-state", &state(&all), true),
            disown(File::open(path).unwrap()),
        ] {
            assert!(ignored(&number.to_string()).is_empty());
        }
        // It is ours, and about other documents.
        for content in [
            edited(|state| state["spaces"][0]["document"]["resources"] = json!([])),
            edited(|state| state["spaces"][0]["document"] = json!(null)),
            edited(|state| state["spaces"] = json!([])),
        ] {
            let number = memory_file(NAME, &content, true);
            assert_eq!(ignored(&number.to_string()), [number], "{content}");
        }

        // What is ours releases nothing but what is held, and nothing at all before all is proven.
        let some = json!({ "63": { "2": u32::MAX, "9": 1 }, "6": { "1": 1 }, "7a": { "1": 1 } });
        let number = memory_file(NAME, &state(&some), true);
        set_variable(VARIABLE, &number.to_string());
        world.refuses_number(0, is!(InvalidEntry::Number));
        // Nor is it taken for a lock.
        world.refuses_number(number, is!(InvalidEntry::OtherFile));
        let spaces = restore(&world.documents).unwrap();
        assert_eq!(held(&spaces), [3, 2, 1]);
        assert!(!descriptors().contains_key(&number), "it is read, and closed");
        let shared = spaces[0].list().into_iter().find(|held| held.name == "c").unwrap();
        assert_eq!(shared.owners, [(ONE, 1)].into());
    });
}

#[test]
fn documents_cut_at_every_byte_are_no_json() {
    in_world(|world| {
        let before = Picture::take(world.dir.path());
        let text = world.documents.to_string();
        for at in 0..text.len() {
            let cut = text.get(..at).unwrap();
            serde_json::from_str::<Vec<Document>>(cut).expect_err("half a document");
            let single = &world.documents[at % 3].to_string();
            let cut = &single[..at.min(single.len() - 1)];
            serde_json::from_str::<Document>(cut).expect_err("half a document");
        }
        assert_eq!(Picture::take(world.dir.path()), before);
    });
}

#[test]
fn documents_cut_at_every_byte_and_closed_again() {
    in_world(|world| {
        // What a careless repair makes of it: all open strings, arrays and objects are closed.
        let text = world.documents.to_string();
        let (mut adopted, mut refused) = (0, 0);
        for at in 0..text.len() {
            let Some(documents) = closed(&text[..at]) else { continue };
            if documents == world.documents || !documents.is_array() {
                continue;
            }
            // Fewer documents, or fewer entries, are a smaller state, and a good one.
            let error = world.refused(&documents);
            let good = is_good_state(&documents, &world.documents);
            assert_eq!(error.is_none(), good, "{error:?}: {documents}");
            if good { adopted += 1 } else { refused += 1 }
        }
        assert!(refused > 200 && adopted > 1, "{refused} {adopted}");
    });
}

/// The text with everything closed that is open at its end, if that is JSON.
fn closed(cut: &str) -> Option<Value> {
    let (mut open, mut in_string, mut escaped) = (Vec::new(), false, false);
    for byte in cut.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' if !in_string => open.push('}'),
            b'[' if !in_string => open.push(']'),
            b'}' | b']' if !in_string => drop(open.pop()),
            _ => {}
        }
    }
    let quote = if in_string { "\"" } else { "" };
    let end: String = open.into_iter().rev().collect();
    serde_json::from_str(&format!("{}{quote}{end}", cut.trim_end_matches(','))).ok()
}

#[test]
fn every_value_missing_or_of_another_type() {
    in_world(|world| {
        let mut places = Vec::new();
        collect_places(&world.documents, String::new(), &mut places);
        assert!(places.len() > 100, "{}", places.len());
        let wrong = [
            json!(null),
            json!(true),
            json!(-1),
            json!(1.5),
            json!("x"),
            json!([]),
            json!([[]]),
            json!({}),
            json!(u64::MAX),
        ];
        let mut refused = 0;
        for place in &places {
            let (parent, key) = place.rsplit_once('/').unwrap();
            let without = world.edited(|all| match all.pointer_mut(parent).unwrap() {
                Value::Object(map) => drop(map.remove(key)),
                Value::Array(list) => drop(list.remove(key.parse().unwrap())),
                _ => unreachable!(),
            });
            let replaced = wrong
                .iter()
                .map(|wrong| world.edited(|all| *all.pointer_mut(place).unwrap() = wrong.clone()));
            for documents in replaced.chain([without]) {
                let error = world.refused(&documents);
                let good = is_good_state(&documents, &world.documents);
                assert_eq!(error.is_none(), good, "{place}: {error:?}: {documents}");
                let Some(error) = error else { continue };
                let mut parts = place.split('/').skip(1);
                let document = parts.next().unwrap().parse::<usize>().unwrap();
                assert_eq!(error.document, document, "{place}: {error}");
                if let (Some("resources"), Some(entry)) = (parts.next(), parts.next()) {
                    assert_eq!(error.entry, entry.parse().ok(), "{place}: {error}");
                }
                refused += 1;
            }
        }
        assert!(refused > 700, "{refused}");
    });
}

/// Every place in the tree below the root, as a JSON pointer.
fn collect_places(value: &Value, place: String, places: &mut Vec<String>) {
    let children: Vec<_> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        _ => Vec::new(),
    };
    for (key, value) in children {
        let place = format!("{place}/{key}");
        places.push(place.clone());
        collect_places(value, place, places);
    }
}

#[test]
fn deep_nesting() {
    in_world(|world| {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        serde_json::from_str::<Document>(&deep(100_000)).expect_err("too deep");
        let in_owner = |depth| format!(r#"{{"resources":[{{"owners":{}}}]}}"#, deep(depth));
        serde_json::from_str::<Document>(&in_owner(100_000)).expect_err("too deep");
        for depth in [1, 50, 100] {
            let value: Value = serde_json::from_str(&deep(depth)).unwrap();
            let owners = |e: &mut Value| e["owners"] = value.clone();
            world.refuses_entry((DIRECTORY, 0), owners, |why| {
                matches!(why, InvalidEntry::Malformed(_) | InvalidEntry::NoOwner)
            });
            let resources = |d: &mut Value| d["resources"] = json!([value]);
            let documents = world.edited(|all| resources(&mut all[DIRECTORY]));
            world.refuses(&documents, (DIRECTORY, Some(0)), is!(InvalidEntry::Malformed(_)));
            world.refuses_document(
                DIRECTORY,
                |d| *d = value.clone(),
                is!(InvalidEntry::Malformed(_)),
            );
        }
    });
}
