//! Documents of libvirt's lock daemon, read; ours, given to a real one; and every document that
//! this crate ever wrote.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::forked::{fork, is_free_for_others};
use crate::support::interop::{require_tool, skip_or_fail};
use crate::support::process::{held, in_child, is_root, ofd_lock, record_lock, unshare_mounts};
use crate::support::state::{Picture, put_at, restore};
use lockspace::snapshot::{Document, InvalidEntry, LibvirtLimit, Snapshot};
use lockspace::{
    ByteRange, InvalidRequest, LockSpace, Mode, Naming, Origin, OwnerId, Request, Target, Wait,
};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde_json::{Value, json};

fn fixture(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

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
    for name in ["virtlockd-2012.json", "virtlockd-9.0.0.json"] {
        let dir = tempfile::tempdir().unwrap();
        in_child(|| {
            let mut document = fixture(name)["defaultLockspace"].clone();
            // Put in place by dup2, whose close would drop the lock: locked afterwards.
            put_in_place(&mut document, dir.path(), |_, _| {});
            for entry in document["resources"].as_array().unwrap() {
                let number = i32::try_from(entry["fd"].as_i64().unwrap()).unwrap();
                record_lock(crate::support::state::at(number), entry["flags"] == 0, 0, 1).unwrap();
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
}

// --- What this crate wrote.

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
    let opened = crate::support::forked::open(path("opened.raw"));
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

// --- A real virtlockd.

/// The state of the daemon around ours, in the shape of 9.0.0: two servers that listen, nobody
/// connected.
fn daemon_document(sockets: [i32; 2], default: Value, others: Value) -> Value {
    let mut document = fixture("virtlockd-9.0.0.json");
    for (server, socket) in ["virtlockd", "admin"].into_iter().zip(sockets) {
        let server = &mut document["daemon"]["servers"][server];
        server["services"][0]["socks"][0]["fd"] = socket.into();
        server["clients"] = json!([]);
    }
    document["defaultLockspace"] = default;
    document["lockspaces"] = others;
    document["magic"] = std::process::id().to_string().into();
    document
}

/// An owner, as a pid that no process has.
const CLIENT: u32 = 99_999_999;

/// The daemon, if it is here and may have a `/run` of its own.
fn real_virtlockd() -> Option<PathBuf> {
    let virtlockd = require_tool("virtlockd")?;
    if !is_root() {
        skip_or_fail("virtlockd", "only root may give it a /run of its own");
        return None;
    }
    Some(virtlockd)
}

fn keep(space: &LockSpace, owner: u32, request: Request<'_>) {
    space.acquire(owner.into(), request, Wait::NO).unwrap().keep();
}

#[test]
fn a_real_virtlockd_holds_what_we_held() {
    let Some(virtlockd) = real_virtlockd() else { return };
    let dir = tempfile::tempdir().unwrap();
    let [a, shared, made] = ["a.raw", "shared.raw", "locks/made"].map(|name| dir.path().join(name));
    fs::write(&a, "precious").unwrap();
    fs::write(&shared, "").unwrap();
    let daemon = fork(|| {
        let direct = LockSpace::open(Naming::direct()).unwrap();
        keep(&direct, CLIENT, Request::exclusive(&*a));
        for owner in [CLIENT, CLIENT + 1, CLIENT] {
            keep(&direct, owner, Request::shared(&*shared));
        }
        let locks = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
        keep(&locks, CLIENT, Request::exclusive("made").auto_create());
        become_virtlockd(&virtlockd, &[direct, locks], |snapshot| {
            snapshot.documents().iter().map(|state| json!(state.for_libvirt().unwrap())).collect()
        })
    });
    let run = PathBuf::from(format!("/proc/{}/root/run", daemon.pid()));

    // It serves its socket, which was ours, once it has read everything.
    let mut client = Client::connect(&run.join("libvirt/virtlockd-sock"));
    client.register(CLIENT);
    assert!(!run.join("virtlockd-restart-exec.json").exists(), "it is read, and unlinked");
    let program = fs::read_link(format!("/proc/{}/exe", daemon.pid())).unwrap();
    assert_eq!(program.file_name(), virtlockd.file_name());
    for (path, mode) in [(&a, "WRITE"), (&shared, "READ"), (&made, "WRITE")] {
        assert_eq!(locks_of(daemon.pid(), path), [format!("OFDLCK ADVISORY {mode} 0 0")]);
        assert!(!is_free_for_others(path));
    }
    // It knows whose they are: what its client does not hold it refuses, what it holds it ends.
    assert!(client.release("", &a), "held once");
    assert!(!client.release("", &a), "and no more");
    assert!(is_free_for_others(&a));
    assert_eq!(fs::read(&a).unwrap(), b"precious");
    // Shared twice by this owner, once by another.
    assert!(client.release("", &shared));
    assert!(client.release("", &shared));
    assert!(!client.release("", &shared));
    assert_eq!(held(&shared), Some(Mode::Shared));
    // By its directory; the file goes, since it was auto-created.
    let locks = dir.path().join("locks");
    assert!(client.release(locks.to_str().unwrap(), Path::new("made")));
    assert!(!made.exists());
    daemon.kill();
    assert!(is_free_for_others(&shared));
}

/// In a `file_lockspace_dir`, libvirt's clients send the SHA-256 of a disk's path.
#[cfg(feature = "sha256")]
#[test]
fn a_real_virtlockd_knows_the_names_of_a_sha256_space() {
    const DISK: &str = "/var/lib/images/a.qcow2";
    // By sha256sum.
    const HASH: &str = "c294c881d15385b999870f80674c107a616a0379ede84fe32abec903fb314642";
    let Some(virtlockd) = real_virtlockd() else { return };
    let dir = tempfile::tempdir().unwrap();
    let locks = dir.path().join("locks");
    // A name that is not UTF-8, since only its hash is told.
    let odd = OsStr::from_bytes(b"/img/\xff");
    let daemon = fork(|| {
        let space = LockSpace::open(Naming::sha256(&locks)).unwrap();
        keep(&space, CLIENT, Request::exclusive(DISK).auto_create());
        keep(&space, CLIENT, Request::exclusive(odd).auto_create());
        keep(&space, CLIENT, Request::shared("/img/base").auto_create());
        let direct = LockSpace::open(Naming::direct()).unwrap();
        become_virtlockd(&virtlockd, &[direct, space], |snapshot| {
            snapshot.documents().iter().map(|state| json!(state.for_libvirt().unwrap())).collect()
        })
    });
    let run = PathBuf::from(format!("/proc/{}/root/run", daemon.pid()));
    let mut client = Client::connect(&run.join("libvirt/virtlockd-sock"));
    client.register(CLIENT);
    let files = || fs::read_dir(&locks).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(files().count(), 3);
    let path = locks.to_str().unwrap();
    assert!(!client.release(path, Path::new(DISK)), "not by the name itself");
    assert!(client.release(path, Path::new(HASH)));
    let left: Vec<_> = files().collect();
    assert!(left.len() == 2 && !left.contains(&HASH.into()), "{left:?}");
    for name in left {
        let shared = held(&locks.join(&name)) == Some(Mode::Shared);
        assert!(!is_free_for_others(&locks.join(&name)));
        assert!(client.release(path, Path::new(&name)));
        assert!(!shared || is_free_for_others(&locks.join(&name)));
        // The record lock, by which it would see that nobody else shares it, our lock refuses.
        assert_eq!(locks.join(&name).exists(), shared);
    }
    daemon.kill();
}

/// What is refused is refused for a reason: the daemon ends at it, and every lock is gone.
#[test]
fn a_real_virtlockd_ends_at_what_is_refused() {
    let Some(virtlockd) = real_virtlockd() else { return };
    for case in ["nothing is wrong", "in memory", "twice", "of no number", "too long"] {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("a.raw");
        fs::write(&image, "precious").unwrap();
        let executed = dir.path().join("executed");
        let daemon = fork(|| {
            let memory = LockSpace::open(Naming::in_memory()).unwrap();
            if case == "in memory" {
                keep(&memory, CLIENT, Request::exclusive("/img/a"));
            }
            let direct = LockSpace::open(Naming::direct()).unwrap();
            keep(&direct, CLIENT, Request::exclusive(&*image));
            become_virtlockd(&virtlockd, &[direct, memory], |snapshot| {
                let mut states = json!(snapshot.documents());
                let entries = states[0]["resources"].as_array_mut().unwrap();
                match case {
                    "twice" => entries.push(entries[0].clone()),
                    "of no number" => entries[0]["fd"] = (1_i64 << 31).into(),
                    "too long" => entries[0]["owners"] = vec![CLIENT; 1_200_000].into(),
                    _ => {}
                }
                if case == "too long" {
                    entries[0]["flags"] = 1.into();
                }
                let states: Vec<Document> = serde_json::from_value(states).unwrap();
                let good = states.iter().all(|state| state.for_libvirt().is_ok());
                assert_eq!(good, case == "nothing is wrong");
                fs::write(&executed, "").unwrap();
                states.into_iter().map(|state| json!(state)).collect()
            })
        });
        if case == "nothing is wrong" {
            let run = PathBuf::from(format!("/proc/{}/root/run", daemon.pid()));
            Client::connect(&run.join("libvirt/virtlockd-sock")).register(CLIENT);
            assert!(!is_free_for_others(&image));
            daemon.kill();
            continue;
        }
        assert_ne!(daemon.join_code(), 0, "{case}");
        assert!(executed.exists(), "it was the daemon that failed");
        assert!(is_free_for_others(&image), "{case}");
    }
}

// --- What it must not be given.

/// Why the document of this space is not for libvirt, and of which resource.
fn refusal_of(space: &LockSpace) -> (Option<OsString>, LibvirtLimit) {
    let snapshot = Snapshot::take([space]).unwrap();
    let error = snapshot.documents()[0].for_libvirt().expect_err("it is taken");
    let named = error.name.as_ref().map_or("the document".to_owned(), |name| format!("{name:?}"));
    assert!(error.to_string().contains(&named), "{error}");
    assert!(error.to_string().contains(&error.why.to_string()), "{error}");
    assert_eq!(error.name.is_some(), error.entry.is_some());
    (error.name, error.why)
}

fn is_for_libvirt(space: &LockSpace) {
    let snapshot = Snapshot::take([space]).unwrap();
    let document = &snapshot.documents()[0];
    assert_eq!(document.for_libvirt().unwrap(), document);
}

macro_rules! assert_refused {
    ($space:expr, $name:expr, $why:pat $(if $when:expr)?) => {
        let name: Option<&OsStr> = $name;
        let (named, why) = refusal_of($space);
        assert_eq!(named.as_deref(), name, "{why}");
        assert!(matches!(why, $why $(if $when)?), "{why}");
    };
}

#[test]
fn owners_that_libvirt_would_cut_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let last = OwnerId::new(i32::MAX.unsigned_abs().into());
    for owner in [OwnerId::new(1), last] {
        space.acquire(owner, Request::shared("a").auto_create(), Wait::NO).unwrap().keep();
    }
    is_for_libvirt(&space);
    for owner in [0, 1 << 31, 1 << 32, (1 << 32) + 4711, u64::MAX].map(OwnerId::new) {
        let request = Request::shared("b").auto_create();
        let lease = space.acquire(owner, request, Wait::NO).unwrap();
        assert_refused!(&space, Some("b".as_ref()), LibvirtLimit::Owner(id) if id == owner);
        drop(lease);
    }
    is_for_libvirt(&space);
}

#[test]
fn a_hold_in_memory_is_refused_by_name() {
    for name in ["a", "/img/a"] {
        let space = LockSpace::open(Naming::in_memory()).unwrap();
        is_for_libvirt(&space);
        keep(&space, CLIENT, Request::shared(name));
        assert_refused!(&space, Some(name.as_ref()), LibvirtLimit::InMemory);
    }
}

#[test]
fn what_is_not_utf_8_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let odd = OsStr::from_bytes(b"a\xff");
    let space = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
    // A stranger's, whose name is as the other is written.
    keep(&space, CLIENT, Request::exclusive("a\u{fffd}").auto_create());
    is_for_libvirt(&space);
    keep(&space, CLIENT, Request::exclusive(odd).auto_create());
    assert_refused!(&space, Some(odd), LibvirtLimit::NotUtf8);

    let image = dir.path().join(odd);
    fs::write(&image, "").unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();
    keep(&direct, CLIENT, Request::exclusive(&*image));
    assert_refused!(&direct, Some(image.as_os_str()), LibvirtLimit::NotUtf8);

    // Also with nothing in it yet: the daemon would believe in another directory.
    let space =
        LockSpace::open(Naming::verbatim(dir.path().join(OsStr::from_bytes(b"\xff")))).unwrap();
    assert_refused!(&space, None, LibvirtLimit::Directory);
    keep(&space, CLIENT, Request::exclusive("a").auto_create());
    assert_refused!(&space, None, LibvirtLimit::Directory);
}

#[test]
fn names_that_are_not_where_libvirt_looks_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, "").unwrap();
    let md5 = LockSpace::open(Naming::md5(dir.path().join("md5"))).unwrap();
    keep(&md5, CLIENT, Request::exclusive("a").auto_create());
    assert_refused!(&md5, Some("a".as_ref()), LibvirtLimit::Path);

    let open = crate::support::forked::open(&image);
    for naming in
        [Naming::direct(), Naming::verbatim(dir.path().join("locks")), Naming::in_memory()]
    {
        let space = LockSpace::open(naming).unwrap();
        let name = "/disk";
        let request = Request::exclusive(Target::opened(name, &open));
        let lease = space.acquire(CLIENT.into(), request, Wait::NO).unwrap();
        let (named, why) = refusal_of(&space);
        assert_eq!(named.as_deref(), Some(name.as_ref()));
        let of_no_file = LibvirtLimit::Entry(InvalidEntry::Name(InvalidRequest::NotOneComponent));
        let whys = [LibvirtLimit::Path.to_string(), of_no_file.to_string()];
        assert!(whys.contains(&why.to_string()), "{why}");
        lease.release().unwrap();
    }
    // The file's own path is what its clients ask for.
    let direct = LockSpace::open(Naming::direct()).unwrap();
    keep(&direct, CLIENT, Request::exclusive(Target::opened(&image, &open)));
    is_for_libvirt(&direct);
}

#[test]
fn locks_beside_libvirts_byte_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let range = |start, len| ByteRange::new(start, NonZeroU64::new(len).unwrap()).unwrap();
    for wide in [ByteRange::FIRST, ByteRange::WHOLE_FILE, range(0, 200)] {
        let request = Request::exclusive("wide").auto_create().range(wide);
        let lease = space.acquire(CLIENT.into(), request, Wait::NO).unwrap();
        is_for_libvirt(&space);
        lease.release().unwrap();
    }
    let beside = range(100, 4);
    keep(&space, CLIENT, Request::exclusive("beside").auto_create().range(beside));
    assert_refused!(&space, Some("beside".as_ref()), LibvirtLimit::Range(range) if range == beside);
}

/// Documents that no snapshot writes.
#[test]
fn what_the_daemon_would_misread_is_refused_by_name() {
    let good = json!({ "directory": "/locks", "resources": [
        { "name": "a", "path": "/locks/a", "fd": 14, "lockHeld": true, "flags": 2, "owners": [7] },
        { "name": "b", "path": "/locks/b", "fd": 15, "lockHeld": true, "flags": 1, "owners": [7, 7] },
    ] });
    let why = |edit: &dyn Fn(&mut Value)| {
        let mut document = good.clone();
        edit(&mut document);
        let document: Document = serde_json::from_value(document).unwrap();
        document.for_libvirt().map(|_| ()).map_err(|error| error.why)
    };
    assert!(why(&|_| {}).is_ok());
    assert!(why(&|d| d["later"] = 1.into()).is_ok());
    assert!(why(&|d| d["resources"] = json!([])).is_ok());
    macro_rules! refused {
        ($key:literal = $value:tt, $why:pat) => {
            let edited = why(&|d| d["resources"][1][$key] = json!($value));
            assert!(matches!(edited, Err($why)), "{} {}: {edited:?}", $key, json!($value));
        };
    }
    use LibvirtLimit::Entry;
    refused!("fd" = (-1), LibvirtLimit::InMemory);
    refused!("fd" = (-2), Entry(InvalidEntry::Number));
    refused!("fd" = 2, Entry(InvalidEntry::Number));
    refused!("fd" = 0x8000_0000_u32, Entry(InvalidEntry::Number));
    refused!("fd" = "15", Entry(InvalidEntry::Malformed(_)));
    refused!("fd" = 14, Entry(InvalidEntry::DuplicateDescriptor));
    refused!("lockHeld" = false, Entry(InvalidEntry::Unlocked));
    refused!("flags" = 4, Entry(InvalidEntry::Flags(4)));
    refused!("flags" = 0, Entry(InvalidEntry::ExclusiveOwners(2)));
    refused!("owners" = [], Entry(InvalidEntry::NoOwner));
    refused!("owners" = [7, -1], Entry(InvalidEntry::Malformed(_)));
    refused!("owners" = [7, 0], LibvirtLimit::Owner(_));
    refused!("path" = "/locks/a", LibvirtLimit::Path);
    refused!("path" = "b", LibvirtLimit::Path);
    refused!("path" = "/locksb", LibvirtLimit::Path);
    refused!("path" = "/locks/b\0", LibvirtLimit::Path);
    refused!("path" = null, Entry(InvalidEntry::Malformed(_)));
    for (name, path) in
        [("../b", "/locks/../b"), ("..", "/locks/.."), ("", "/locks/"), ("b\0", "/locks/b\0")]
    {
        let edited = why(&|d| {
            d["resources"][1]["name"] = name.into();
            d["resources"][1]["path"] = path.into();
        });
        assert!(matches!(edited, Err(Entry(InvalidEntry::Name(_)))), "{name}: {edited:?}");
    }
    let twice = why(&|d| {
        d["resources"][1]["name"] = "a".into();
        d["resources"][1]["path"] = "/locks/a".into();
    });
    assert!(matches!(twice, Err(Entry(InvalidEntry::DuplicateName))), "{twice:?}");
    for directory in [json!("locks"), json!(""), json!(7), json!(null), json!("/locks\0")] {
        let edited = why(&|d| d["directory"] = directory.clone());
        assert!(matches!(edited, Err(LibvirtLimit::Directory)), "{directory}: {edited:?}");
    }
    // Without one, names are paths, and to unlink one would be to unlink an image.
    let direct = |name: &str, flags: u64| {
        why(&|d| {
            d.as_object_mut().unwrap().remove("directory");
            let entry = json!({ "name": name, "path": name, "fd": 14, "lockHeld": true,
                "flags": flags, "owners": [7] });
            d["resources"] = json!([entry]);
        })
    };
    assert!(direct("/img/a", 0).is_ok());
    assert!(matches!(direct("/img/a", 2), Err(Entry(InvalidEntry::Malformed(_)))));
    assert!(matches!(direct("img/a", 0), Err(Entry(InvalidEntry::Name(InvalidRequest::Relative)))));
    for odd in [json!(null), json!({}), json!([[]]), json!([null])] {
        let edited = why(&|d| d["resources"] = odd.clone());
        assert!(matches!(edited, Err(Entry(InvalidEntry::Malformed(_)))), "{odd}: {edited:?}");
    }
    assert!(matches!(why(&|d| *d = json!([])), Err(Entry(InvalidEntry::Malformed(_)))));
    let later = why(&|d| d["lockspace"] = json!({ "version": 2 }));
    assert!(matches!(later, Err(Entry(InvalidEntry::Version(2)))), "{later:?}");
    let long = why(&|d| d["resources"][1]["owners"] = vec![1_000_000_000; 1 << 20].into());
    assert!(matches!(long, Err(LibvirtLimit::TooLong(len)) if len > 10 << 20), "{long:?}");
}

/// Executes the daemon with a state of ours, which `documents` makes: the default space's first,
/// then those of the others. Never returns.
fn become_virtlockd(
    program: &Path,
    spaces: &[LockSpace],
    documents: impl FnOnce(&Snapshot) -> Vec<Value>,
) {
    // A /run that nobody else sees.
    unshare_mounts().unwrap();
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).unwrap();
    mount("none", "/run", "tmpfs", MountFlags::empty(), None).unwrap();
    fs::create_dir("/run/libvirt").unwrap();
    let sockets = ["virtlockd-sock", "virtlockd-admin-sock"]
        .map(|name| UnixListener::bind(Path::new("/run/libvirt").join(name)).unwrap());
    for socket in &sockets {
        rustix::io::fcntl_setfd(socket, rustix::io::FdFlags::empty()).unwrap();
    }
    let snapshot = Snapshot::take(spaces).unwrap();
    let mut states = documents(&snapshot).into_iter();
    let (default, others) = (states.next().unwrap(), states.collect());
    let state = daemon_document(sockets.each_ref().map(AsRawFd::as_raw_fd), default, others);
    fs::write("/run/virtlockd-restart-exec.json", state.to_string()).unwrap();
    panic!("{}", snapshot.exec(&mut Command::new(program)));
}

/// The lock lines of a process's descriptor of a file, without numbers.
fn locks_of(pid: u32, path: &Path) -> Vec<String> {
    let mut locks = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        if fs::read_link(entry.path()).is_ok_and(|link| link == path) {
            let number = entry.file_name().into_string().unwrap();
            let info = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).unwrap();
            for line in info.lines().filter(|line| line.starts_with("lock:")) {
                let words: Vec<_> = line.split_whitespace().collect();
                let [.., start, end] = words[..] else { panic!("{line}") };
                locks.push(format!("{} {start} {end}", words[2..5].join(" ")));
            }
        }
    }
    locks
}

/// Speaks the lock daemon's protocol, as far as this needs it: XDR, one call after the other.
struct Client {
    socket: UnixStream,
    serial: u32,
}

impl Client {
    fn connect(socket: &Path) -> Self {
        let patience = Instant::now() + Duration::from_secs(60);
        let socket = loop {
            match UnixStream::connect(socket) {
                Ok(socket) => break socket,
                Err(error) => assert!(Instant::now() < patience, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self { socket, serial: 0 }
    }

    /// Whether the answer is a good one.
    fn call(&mut self, procedure: u32, body: &[u8]) -> bool {
        const PROGRAM: u32 = 0x0EA7_BEEF;
        self.serial += 1;
        let length = u32::try_from(28 + body.len()).unwrap();
        let head = [length, PROGRAM, 1, procedure, 0, self.serial, 0];
        let mut message: Vec<u8> = head.into_iter().flat_map(u32::to_be_bytes).collect();
        message.extend(body);
        self.socket.write_all(&message).unwrap();
        let mut head = [0; 28];
        self.socket.read_exact(&mut head).unwrap();
        let word = |at: usize| u32::from_be_bytes(head[4 * at..][..4].try_into().unwrap());
        let mut rest = vec![0; word(0) as usize - 28];
        self.socket.read_exact(&mut rest).unwrap();
        assert_eq!((word(3), word(4), word(5)), (procedure, 1, self.serial));
        word(6) == 0
    }

    fn register(&mut self, pid: u32) {
        let mut body = vec![7; 16];
        push_string(&mut body, "guest");
        body.extend([1, pid, 0].into_iter().flat_map(u32::to_be_bytes));
        assert!(self.call(1, &body), "REGISTER");
    }

    fn release(&mut self, space: &str, name: &Path) -> bool {
        let mut body = Vec::new();
        push_string(&mut body, space);
        push_string(&mut body, name.to_str().unwrap());
        body.extend(0_u32.to_be_bytes());
        self.call(7, &body)
    }
}

fn push_string(body: &mut Vec<u8>, text: &str) {
    body.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    body.extend(text.as_bytes());
    body.resize(body.len().next_multiple_of(4), 0);
}
