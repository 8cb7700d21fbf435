//! Every document that this crate ever wrote is restored.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::support::forked::in_child;
use crate::support::locks::{ofd_lock, open};
use crate::support::state::{fixture, put_at, restore};
use lockspace::snapshot::Snapshot;
use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
use serde_json::{Value, json};

/// Every `state-v*.json`: arrays of documents, as the version that wrote them did, where processes,
/// files, paths and numbers stand as the placeholders that are filled in here.
#[test]
fn every_document_that_this_crate_ever_wrote_is_restored() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let names = fs::read_dir(fixtures).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.into_string().unwrap());
    let names: Vec<_> = names.filter(|name| name.starts_with("state-v")).collect();
    assert!(names.contains(&"state-v1.json".to_owned()));
    for name in names {
        let dir = tempfile::tempdir().unwrap();
        in_child(|| is_restored(fixture(&name), dir.path()));
    }
}

fn is_restored(mut documents: Value, dir: &Path) {
    // The same process, of another time.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let started = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap();
    let started: u64 = started.parse().unwrap();
    #[cfg(not(feature = "sha256"))]
    documents
        .as_array_mut()
        .unwrap()
        .retain(|document| document["lockspace"]["naming"] != "sha256");
    let below = |path: &Value| dir.join(path.as_str().unwrap().trim_start_matches('/'));
    let mut number = 200;
    for document in documents.as_array_mut().unwrap() {
        document["lockspace"]["pid"] = std::process::id().into();
        document["lockspace"]["started"] = started.into();
        if document.get("directory").is_some() {
            let path = below(&document["directory"]);
            fs::create_dir_all(&path).unwrap();
            let meta = fs::metadata(&path).unwrap();
            document["directory"] = path.to_str().unwrap().into();
            document["lockspace"]["directory"] = json!([meta.dev(), meta.ino()]);
        }
        for entry in document["resources"].as_array_mut().unwrap() {
            if entry["fd"] == -1 {
                continue;
            }
            let path = below(&entry["path"]);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let file = File::create_new(&path).unwrap();
            let meta = file.metadata().unwrap();
            let range = entry["lockspace"]["range"].as_array().unwrap();
            let (start, len) = (range[0].as_i64().unwrap(), range[1].as_i64().unwrap_or(0));
            ofd_lock(&file, entry["flags"].as_i64().unwrap() & 1 == 0, start, len).unwrap();
            put_at(file, number);
            if entry["name"] == entry["path"] {
                entry["name"] = path.to_str().unwrap().into();
            }
            entry["path"] = path.to_str().unwrap().into();
            entry["fd"] = number.into();
            entry["lockspace"]["device"] = meta.dev().into();
            entry["lockspace"]["inode"] = meta.ino().into();
            number += 1;
        }
    }
    let spaces = restore(&documents).unwrap();
    for (space, document) in spaces.iter().zip(documents.as_array().unwrap()) {
        let entries = document["resources"].as_array().unwrap();
        let held = space.list();
        assert_eq!(held.len(), entries.len());
        for entry in entries {
            let held =
                held.iter().find(|held| held.path.to_str() == entry["path"].as_str()).unwrap();
            let owners: Vec<u64> = serde_json::from_value(entry["owners"].clone()).unwrap();
            let found = held.owners.iter().flat_map(|(id, n)| (0..*n).map(|_| id.get()));
            assert_eq!(found.collect::<Vec<_>>(), owners);
        }
        assert_eq!(Some(space.stale_retries()), document["lockspace"]["staleRetries"].as_u64());
    }
    // What this version writes of it is what stood there, but for the names that libvirt knows by
    // their SHA-256.
    #[cfg(feature = "sha256")]
    for document in documents.as_array_mut().unwrap() {
        if document["lockspace"]["naming"] == "sha256" {
            document["resources"].as_array_mut().unwrap().iter_mut().for_each(hash_the_name);
        }
    }
    let snapshot = Snapshot::take(&spaces).unwrap();
    assert_eq!(json!(snapshot.documents()), documents);
}

/// As this version writes it.
#[cfg(feature = "sha256")]
fn hash_the_name(entry: &mut Value) {
    let name = entry["name"].as_str().unwrap();
    if entry["lockspace"].get("hex").is_none() {
        let hex: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
        let file = Path::new(entry["path"].as_str().unwrap()).file_name().unwrap();
        let file = file.to_str().unwrap().to_owned();
        entry["lockspace"]["hex"] = hex.into();
        entry["name"] = file.into();
    }
}

/// How `state-v1.json` was written; `cargo test -- --ignored` writes it anew, for a new version
/// under a new name.
#[test]
#[ignore = "writes a fixture"]
fn write_the_fixture() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let take = |space: &LockSpace, owner, request| {
        space.acquire(OwnerId::new(owner), request, Wait::NO).unwrap().keep();
    };
    let namings = [
        Naming::md5(path("md5")),
        Naming::verbatim(path("verbatim")),
        #[cfg(feature = "sha256")]
        Naming::sha256(path("sha256")),
    ];
    let mut spaces: Vec<_> = namings.into_iter().map(|n| LockSpace::open(n).unwrap()).collect();
    for space in &spaces {
        space.create("existing").unwrap();
        take(space, 1, Request::exclusive("existing"));
        take(
            space,
            1,
            Request::exclusive("made").auto_create().range(lockspace::ByteRange::WHOLE_FILE),
        );
        for owner in [1, 2, 2, u64::MAX] {
            take(space, owner, Request::shared("shared").auto_create());
        }
    }
    let direct = LockSpace::open(Naming::direct()).unwrap();
    for name in ["exclusive.raw", "shared.raw", "opened.raw"] {
        fs::write(path(name), "").unwrap();
    }
    take(&direct, 1, Request::exclusive(path("exclusive.raw")));
    take(&direct, 1, Request::shared(path("shared.raw")));
    let opened = open(path("opened.raw"));
    take(&direct, 1, Request::exclusive(lockspace::Target::opened("opened", &opened)));
    let memory = LockSpace::open(Naming::in_memory()).unwrap();
    take(&memory, 1, Request::exclusive("exclusive"));
    take(&memory, 1, Request::shared("shared"));
    spaces.extend([direct, memory]);
    let snapshot = Snapshot::take(&spaces).unwrap();
    let text = serde_json::to_string_pretty(snapshot.documents()).unwrap();
    let text = text.replace(dir.path().to_str().unwrap(), "/locks") + "\n";
    fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/state-v1.json"), text).unwrap();
}
