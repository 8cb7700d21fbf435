//! Documents of libvirt's lock daemon, read; ours, given to a real one; and every document that
//! this crate ever wrote.
#![cfg(feature = "snapshot")]

mod common {
    pub(crate) mod forked;
    pub(crate) mod interop;
    pub(crate) mod process;
    pub(crate) mod state;
}

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::forked::{fork, is_free_for_others};
use common::interop::{require_tool, skip_or_fail};
use common::process::{held, in_child, is_root, ofd_lock, record_lock, unshare_mounts};
use common::state::{Picture, put_at, restore};
use lockspace::snapshot::{BadEntry, Snapshot};
use lockspace::{LockSpace, Mode, Naming, Origin, OwnerId, Request, Wait};
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
                record_lock(common::state::at(number), entry["flags"] == 0, 0, 1).unwrap();
            }
            let before = Picture::take(dir.path());
            let error = restore(&json!([document])).unwrap_err();
            assert!(matches!(error.why, BadEntry::RecordLock), "{error}");
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
    // What this version writes of it is what stood there.
    let snapshot = Snapshot::take(&spaces).unwrap();
    assert_eq!(json!(snapshot.documents()), documents);
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
    let opened = common::forked::open(path("opened.raw"));
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

#[test]
fn a_real_virtlockd_holds_what_we_held() {
    let Some(virtlockd) = require_tool("virtlockd") else { return };
    if !is_root() {
        return skip_or_fail("virtlockd", "only root may give it a /run of its own");
    }
    let dir = tempfile::tempdir().unwrap();
    let [a, shared, made] = ["a.raw", "shared.raw", "locks/made"].map(|name| dir.path().join(name));
    fs::write(&a, "precious").unwrap();
    fs::write(&shared, "").unwrap();
    let daemon = fork(|| become_virtlockd(&virtlockd, dir.path(), [&a, &shared]));
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

#[test]
fn owners_that_libvirt_would_cut_are_refused_by_name() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    let last = OwnerId::new(i32::MAX.unsigned_abs().into());
    for owner in [OwnerId::new(0), last] {
        space.acquire(owner, Request::shared("a"), Wait::NO).unwrap().keep();
    }
    let snapshot = Snapshot::take([&space]).unwrap();
    assert_eq!(snapshot.documents()[0].for_libvirt().unwrap(), &snapshot.documents()[0]);
    drop(snapshot);
    for owner in [1 << 31, 1 << 32, (1 << 32) + 4711, u64::MAX].map(OwnerId::new) {
        let lease = space.acquire(owner, Request::shared("b"), Wait::NO).unwrap();
        let snapshot = Snapshot::take([&space]).unwrap();
        let error = snapshot.documents()[0].for_libvirt().unwrap_err();
        assert_eq!((&*error.name, error.owner), ("b".as_ref(), owner));
        assert!(error.to_string().contains(&owner.to_string()));
        drop((snapshot, lease));
    }
}

/// Executes the daemon with a state of ours. Never returns.
fn become_virtlockd(program: &Path, dir: &Path, [a, shared]: [&Path; 2]) {
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
    let (client, other) = (OwnerId::from(CLIENT), OwnerId::from(CLIENT + 1));
    let take = |space: &LockSpace, owner, request| {
        space.acquire(owner, request, Wait::NO).unwrap().keep();
    };
    let direct = LockSpace::open(Naming::direct()).unwrap();
    take(&direct, client, Request::exclusive(a));
    for owner in [client, other, client] {
        take(&direct, owner, Request::shared(shared));
    }
    let locks = LockSpace::open(Naming::verbatim(dir.join("locks"))).unwrap();
    take(&locks, client, Request::exclusive("made").auto_create());

    let snapshot = Snapshot::take([&direct, &locks]).unwrap();
    let numbers = sockets.each_ref().map(AsRawFd::as_raw_fd);
    let [default, other] = [0, 1].map(|index| json!(snapshot.documents()[index]));
    let state = daemon_document(numbers, default, json!([other]));
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
