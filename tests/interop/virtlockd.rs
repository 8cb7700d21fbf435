//! A real virtlockd, which is given our documents.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::forked::fork;
use crate::support::interop::{require_tool, skip_or_fail};
use crate::support::locks::{held, is_free_for_others};
use crate::support::process::{is_root, unshare_mounts};
use crate::support::state::fixture;
use lockspace::snapshot::{Document, Snapshot};
use lockspace::{LockSpace, Mode, Naming, Request, Wait};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use serde_json::{Value, json};

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
pub(crate) const CLIENT: u32 = 99_999_999;

/// The daemon, if it is here and may have a `/run` of its own.
fn real_virtlockd() -> Option<PathBuf> {
    let virtlockd = require_tool("virtlockd")?;
    if !is_root() {
        skip_or_fail("virtlockd", "only root may give it a /run of its own");
        return None;
    }
    Some(virtlockd)
}

pub(crate) fn keep(space: &LockSpace, owner: u32, request: Request<'_>) {
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
