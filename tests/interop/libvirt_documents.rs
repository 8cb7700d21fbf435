//! Documents of libvirt's lock daemon, read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use crate::support::alone::alone;
use crate::support::forked::in_child;
use crate::support::locks::{held, is_free_for_others, ofd_lock, record_lock};
use crate::support::state::{Picture, at, fixture, put_at, restore};
use lockspace::snapshot::InvalidEntry;
use lockspace::{Mode, Origin, OwnerId};
use serde_json::{Value, json};

/// Puts a file with its lock at each number that the document names, below `dir` instead of below
/// the root, and makes the document say so.
fn put_in_place(document: &mut Value, dir: &Path, lock: impl Fn(&File, bool)) {
    for entry in document["resources"].as_array_mut().unwrap() {
        let path = entry["path"].as_str().unwrap().trim_start_matches('/');
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create_new(&path).unwrap();
        lock(&file, entry["flags"] == 0);
        let number = 200 + entry["fd"].as_i64().unwrap();
        put_at(file, number.try_into().unwrap());
        entry["fd"] = number.into();
        entry["path"] = path.to_str().unwrap().into();
        entry["name"] = path.to_str().unwrap().into();
    }
}

/// Of a document of the lock daemon's: its lockspace, restored from OFD-locked descriptors.
fn reads(name: &str, expected: &[(&str, Mode, &[u64])]) {
    let dir = tempfile::tempdir().unwrap();
    in_child(|| {
        let mut document = fixture(name)["defaultLockspace"].clone();
        put_in_place(&mut document, dir.path(), |file, exclusive| {
            // As the daemon leaves them, but for the kind.
            ofd_lock(file, exclusive, 0, 1).unwrap();
        });
        let space = restore(&json!([document])).unwrap().remove(0);
        let mut found = BTreeMap::new();
        for held in space.list() {
            let owners: Vec<_> = held.owners.iter().map(|(id, n)| (id.get(), *n)).collect();
            assert_eq!(
                (held.origin, held.name.as_ref()),
                (Origin::Existing, held.path.as_os_str())
            );
            found.insert(held.path, (held.mode, owners));
        }
        for (path, mode, owners) in expected {
            let path = dir.path().join(path.trim_start_matches('/'));
            let owners = owners.iter().map(|owner| (*owner, 1)).collect();
            assert_eq!(found.remove(&path), Some((*mode, owners)));
            assert_eq!(held(&path), Some(*mode));
        }
        assert!(found.is_empty(), "{found:?}");
        // A full space: one owner ends, another goes on, and no image is removed.
        let (first, path) = (expected[0].2[0], dir.path().join(&expected[0].0[1..]));
        assert!(space.release_owner(OwnerId::new(first)).holds > 0);
        assert!(is_free_for_others(&path) && path.exists());
        drop(space);
        assert!(expected.iter().all(|(path, ..)| is_free_for_others(&dir.path().join(&path[1..]))));
    });
}

#[test]
fn the_document_of_2012_is_read() {
    reads(
        "virtlockd-2012.json",
        &[
            ("/var/lib/libvirt/images/f16x86_64.raw", Mode::Exclusive, &[1784]),
            ("/var/lib/libvirt/images/shared.img", Mode::Shared, &[1722, 1784]),
            ("/var/lib/libvirt/images/f18x86_64.img", Mode::Exclusive, &[1722]),
        ],
    );
}

#[test]
fn the_document_of_9_0_0_is_read() {
    reads(
        "virtlockd-9.0.0.json",
        &[
            ("/var/lib/images/a.qcow2", Mode::Exclusive, &[9258]),
            ("/var/lib/images/c.qcow2", Mode::Exclusive, &[9274]),
            ("/var/lib/images/shared.raw", Mode::Shared, &[9258, 9274]),
        ],
    );
}

#[test]
fn the_record_locks_of_a_real_one_are_refused_by_name() {
    alone(|| {
        for name in ["virtlockd-2012.json", "virtlockd-9.0.0.json"] {
            let dir = tempfile::tempdir().unwrap();
            in_child(|| {
                let mut document = fixture(name)["defaultLockspace"].clone();
                // Put in place by dup2, whose close would drop the lock: locked afterwards.
                put_in_place(&mut document, dir.path(), |_, _| {});
                for entry in document["resources"].as_array().unwrap() {
                    let number = i32::try_from(entry["fd"].as_i64().unwrap()).unwrap();
                    record_lock(at(number), entry["flags"] == 0, 0, 1).unwrap();
                }
                let before = Picture::take(dir.path());
                let error = restore(&json!([document])).unwrap_err();
                assert!(matches!(error.why, InvalidEntry::RecordLock), "{error}");
                assert_eq!((error.document, error.entry), (0, Some(0)));
                assert_eq!(
                    error.name.as_deref(),
                    document["resources"][0]["name"].as_str().map(AsRef::as_ref)
                );
                assert!(error.to_string().contains("POSIX"), "{error}");
                // Were a file opened and closed to look at it, the lock would be gone.
                assert_eq!(Picture::take(dir.path()), before);
                for entry in document["resources"].as_array().unwrap() {
                    assert!(!is_free_for_others(Path::new(entry["path"].as_str().unwrap())));
                }
            });
        }
    });
}
