//! What a snapshot writes down.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::support::forked::in_child;
use crate::support::locks::{held, held_at, ofd_lock, record_lock, unlock_ofd, unlock_record};
use crate::support::spaces::{A, B, hold_as, space_in};
use crate::support::state::{leave_behind, numbers_in, restore};
use lockspace::snapshot::{Document, InvalidEntry, Snapshot};
use lockspace::{
    ByteRange, Lease, LockSpace, Mode, Naming, Origin, OwnerId, Request, Target, Wait,
};
use serde_json::{Value, json};

#[test]
fn documents_have_libvirts_shape() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    space.create("existing").unwrap();
    let _existing = space.acquire(A, Request::exclusive("existing"), Wait::NO).unwrap();
    let _made = hold_as(&space, A, Mode::Exclusive, "made");
    let _shared: Vec<_> =
        [B, A, B].into_iter().map(|owner| hold_as(&space, owner, Mode::Shared, "shared")).collect();
    let image = dir.path().join("image");
    fs::write(&image, "").unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();
    let _image = direct.acquire(A, Request::shared(&image), Wait::NO).unwrap();
    let memory = LockSpace::open(Naming::in_memory()).unwrap();
    let snapshot = Snapshot::take([&space, &direct, &memory]).unwrap();

    let mut documents = json!(snapshot.documents());
    // What libvirt's own writes, and nothing else but our one key.
    let ours: Vec<_> = documents
        .as_array_mut()
        .unwrap()
        .iter_mut()
        .map(|document| {
            let entries = document["resources"].as_array_mut().unwrap().iter_mut();
            let entries: Vec<_> = entries.map(|entry| without(entry, "lockspace")).collect();
            (without(document, "lockspace"), entries)
        })
        .collect();
    let numbers: Vec<_> = numbers_in(&documents);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let entry = |name: String, path: String, fd: i32, flags: u32, owners: &[u64]| json!({ "name": name, "path": path, "fd": fd, "lockHeld": true, "flags": flags, "owners": owners });
    let expected = json!([
        {
            "directory": dir.path(),
            "resources": [
                entry("existing".into(), path("existing"), numbers[0], 0, &[1]),
                entry("made".into(), path("made"), numbers[1], 2, &[1]),
                entry("shared".into(), path("shared"), numbers[2], 3, &[1, 2, 2]),
            ],
        },
        { "resources": [entry(path("image"), path("image"), numbers[3], 1, &[1])] },
        { "resources": [] },
    ]);
    assert_eq!(documents, expected);
    let namings: Vec<_> = ours.iter().map(|(space, _)| space["naming"].clone()).collect();
    assert_eq!(namings, ["verbatim", "direct", "in-memory"]);
    assert_eq!(ours[0].0["version"], 1);
    assert_eq!(ours[0].0["pid"], std::process::id());
    let origins: Vec<_> = ours[0].1.iter().map(|entry| entry["origin"].clone()).collect();
    assert_eq!(origins, ["existing", "auto-created", "auto-created"]);
    // The keys are in libvirt's order, too, as people read them.
    let text = serde_json::to_string(&snapshot.documents()[0]).unwrap();
    let order = ["directory", "resources", "name", "path", "fd", "lockHeld", "flags", "owners"];
    let places: Vec<_> =
        order.iter().map(|key| text.find(&format!("\"{key}\":")).unwrap()).collect();
    assert!(places.is_sorted(), "{text}");
}

fn without(object: &mut Value, key: &str) -> Value {
    object.as_object_mut().unwrap().remove(key).unwrap()
}

#[test]
fn a_document_that_is_read_again_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let space = space_in(dir.path());
    let _lease =
        hold_as(&space, OwnerId::new(u64::MAX), Mode::Exclusive, "a \"b\"\n\u{1}\u{10FFFF}");
    let snapshot = Snapshot::take([&space]).unwrap();
    let document = &snapshot.documents()[0];
    let text = serde_json::to_string(document).unwrap();
    let again: Document = serde_json::from_str(&text).unwrap();
    assert_eq!(&again, document);
    assert_eq!(again.clone(), again);
    let values: (Value, Value) = (serde_json::from_str(&text).unwrap(), json!(again));
    assert_eq!(values.0, values.1);
    let other: Document =
        serde_json::from_str(&text.replacen("18446744073709551615", "5", 1)).unwrap();
    assert_ne!(&other, document);
    // What a later version adds is not lost on the way.
    let later = r#"{"resources":[],"later":{"x":[1,2.5,null]}}"#;
    let document: Document = serde_json::from_str(later).unwrap();
    assert_eq!(json!(document), serde_json::from_str::<Value>(later).unwrap());
}

#[test]
fn names_that_are_no_utf8_survive() {
    let dir = tempfile::tempdir().unwrap();
    in_child(|| {
        let folder = dir.path().join(OsStr::from_bytes(b"locks\xff"));
        let names = [&b"\xff"[..], b"a\xfe", b"\xef\xbf\xbd", b"\xff\xff"].map(OsStr::from_bytes);
        let spaces = [Naming::verbatim(&folder), Naming::md5(&folder)].map(|naming| {
            let space = LockSpace::open(naming).unwrap();
            for name in names {
                let request = Request::exclusive(name).auto_create();
                space.acquire(A, request, Wait::NO).unwrap().keep();
            }
            space
        });
        let documents = leave_behind(spaces.to_vec(), Vec::new());
        spaces.into_iter().for_each(std::mem::forget);
        let mut expected = names.map(OsStr::to_owned);
        expected.sort();
        for space in restore(&documents).unwrap() {
            let mut found: Vec<OsString> = space.list().into_iter().map(|held| held.name).collect();
            found.sort();
            assert_eq!(found, expected);
            for held in space.list() {
                assert_eq!(held.path.parent(), Some(&*folder));
                space.retake(A, &held.name).unwrap().verify().unwrap();
            }
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    });
}

#[test]
fn open_descriptors_survive_with_their_names() {
    let dir = tempfile::tempdir().unwrap();
    in_child(|| {
        let path = dir.path().join("a.raw");
        let file = File::create_new(&path).unwrap();
        let space = LockSpace::open(Naming::direct()).unwrap();
        let request = Request::exclusive(Target::opened("disk", &file));
        let lease = space.acquire(A, request, Wait::NO).unwrap();
        drop(file);
        // Its name in the file system does not matter.
        fs::rename(&path, dir.path().join("b.raw")).unwrap();
        let documents = leave_behind(vec![space], vec![lease]);
        let space = restore(&documents).unwrap().remove(0);
        let listed = &space.list()[0];
        assert_eq!((&*listed.name, listed.origin), ("disk".as_ref(), Origin::Opened));
        assert_eq!(held(&dir.path().join("b.raw")), Some(Mode::Exclusive));
        space.release(A, "disk").unwrap();
        assert_eq!(held(&dir.path().join("b.raw")), None);
    });
}

/// What others have locked through the same open file, as a QEMU does that was given it.
const OTHERS: [i64; 3] = [100, 101, 203];

#[track_caller]
fn assert_others(path: &Path) {
    for at in OTHERS {
        assert_eq!(held_at(path, at), Some(Mode::Shared), "byte {at}");
    }
}

/// An open file, held in this mode on this byte, with the locks of others on it.
fn open_file_with_others(path: &Path, mode: Mode, at: u64) -> (File, LockSpace, Lease) {
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let (file, space) = (file.unwrap(), LockSpace::open(Naming::direct()).unwrap());
    let range = ByteRange::new(at, NonZeroU64::MIN).unwrap();
    let request = Request::new(mode, Target::opened("disk", &file)).range(range);
    let lease = space.acquire(A, request, Wait::NO).unwrap();
    OTHERS.iter().for_each(|&at| ofd_lock(&file, false, at, 1).unwrap());
    (file, space, lease)
}

#[test]
fn the_other_locks_of_an_open_descriptor_survive_a_snapshot_and_a_restore() {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("a.raw");
    // Byte 99 of a shared hold is one lock with its neighbours.
    for (mode, at) in [Mode::Exclusive, Mode::Shared].into_iter().flat_map(|m| [(m, 0), (m, 99)]) {
        in_child(|| {
            let (_file, space, lease) = open_file_with_others(path, mode, at);
            let snapshot = Snapshot::take([&space]).unwrap();
            drop(lease);
            assert_eq!(held_at(path, at as i64), Some(mode), "it is put off");
            drop(snapshot);
            assert_eq!(held_at(path, at as i64), None);
            assert_others(path);
        });
        in_child(|| {
            let (_file, space, lease) = open_file_with_others(path, mode, at);
            let documents = leave_behind(vec![space], vec![lease]);
            let space = restore(&documents).unwrap().remove(0);
            let lease = space.retake(A, "disk").unwrap();
            lease.verify().unwrap();
            assert_eq!(held_at(path, at as i64), Some(mode));
            assert_others(path);
            lease.release().unwrap();
            assert_eq!(held_at(path, at as i64), None);
            assert_others(path);
        });
    }
}

#[test]
fn an_open_descriptor_that_has_lost_its_lock_is_not_restored_for_the_locks_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = &dir.path().join("a.raw");
    in_child(|| {
        for at in [0, 99] {
            let (file, space, lease) = open_file_with_others(path, Mode::Shared, at);
            let documents = leave_behind(vec![space], vec![lease]);
            let refuses = |expected: fn(&InvalidEntry) -> bool| {
                let error = restore(&documents).expect_err("it has lost its lock");
                assert!(expected(&error.why), "{error}");
                assert_others(path);
            };
            unlock_ofd(&file, at as i64, 1).unwrap();
            refuses(|why| matches!(why, InvalidEntry::OtherLock));
            // In another mode than it was.
            ofd_lock(&file, true, at as i64, 1).unwrap();
            refuses(|why| matches!(why, InvalidEntry::OtherLock));
            assert_eq!(held_at(path, at as i64), Some(Mode::Exclusive));
            ofd_lock(&file, false, at as i64, 1).unwrap();
            // One that the first close of any descriptor would drop.
            record_lock(&file, true, 300, 1).unwrap();
            refuses(|why| matches!(why, InvalidEntry::RecordLock));
            unlock_record(&file, 300, 1).unwrap();
            restore(&documents).unwrap();
            unlock_ofd(&file, 0, 0).unwrap();
        }
    });
}
