//! Entries that disagree with the lock, with each other, or with themselves.

use std::fs::{self, File};

use super::{
    AUTO_CREATED, DIRECT, DIRECTORY, EXCLUSIVE, IN_MEMORY, SHARED, World, in_world, ofd_lock_only,
};
use crate::support::alone::alone_in_child;
use crate::support::locks::{ofd_lock, unlock_ofd};
use crate::support::process::close_number;
use crate::support::spaces::A;
use crate::support::state::{at, disown, leave_behind, restore};
use lockspace::snapshot::InvalidEntry;
use lockspace::{LockSpace, Naming, Request, Wait};
use serde_json::{Value, json};

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
    alone_in_child(|| {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        let space = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
        let lease = space.acquire(A, Request::exclusive("a").auto_create(), Wait::NO).unwrap();
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
