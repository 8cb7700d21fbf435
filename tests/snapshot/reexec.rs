//! Locks through `exec`, in real processes: the test binary executes itself.
//!
//! A test starts this binary again with the name of one test and a role in the environment; that
//! process executes itself anew, generation after generation, and what it asserts there is its exit
//! code. What a generation tells the next stands beside the documents in what is carried.
#![allow(unsafe_code, reason = "restoring what an exec has carried over")]

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::forked::{
    Forked, Kind, Lock, fork, is_free_for_others, open, set_lock, shared_memory,
};
use crate::support::waits;
use lockspace::snapshot::{self, Document, Snapshot};
use lockspace::{ByteRange, LockSpace, Mode, Naming, Origin, OwnerId, ReleaseError, Request, Wait};
use serde_json::{Value, json};

const ONE: OwnerId = OwnerId::new(1);
const TWO: OwnerId = OwnerId::new(2);

/// Where a generation finds what the one before has carried.
const CARRIED: &str = "LOCKSPACE_TEST_CARRIED";
/// The folder of a process that re-executes itself; without it, a test is a test.
const FOLDER: &str = "LOCKSPACE_TEST_FOLDER";

// --- Processes that re-execute themselves.

/// Starts this binary again as the process of a test, which finds [`role`] then.
fn start(test: &str, folder: &Path) -> Command {
    let mut command = this_program(test);
    command.env(FOLDER, folder).env_remove(CARRIED).stdin(Stdio::null());
    command
}

fn this_program(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1", "-q"]);
    command
}

#[track_caller]
fn run(test: &str, folder: &Path) -> Output {
    let output = start(test, folder).output().unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    assert!(out.contains("the end of the last generation"), "it ended early: {out}{err}");
    output
}

/// What this process is, if it is one that a test has started.
struct Role {
    folder: PathBuf,
    /// Counted from 0.
    generation: u64,
    documents: Vec<Document>,
    /// Whatever the generation before has noted.
    notes: Value,
}

fn role() -> Option<Role> {
    let folder = PathBuf::from(std::env::var_os(FOLDER)?);
    let Some(number) = std::env::var_os(CARRIED) else {
        return Some(Role { folder, generation: 0, documents: Vec::new(), notes: Value::Null });
    };
    let state = snapshot::carried(number.to_str().unwrap().parse().unwrap()).unwrap();
    let mut state: Value = serde_json::from_slice(&state).unwrap();
    Some(Role {
        folder,
        generation: state["generation"].as_u64().unwrap(),
        documents: serde_json::from_value(state["documents"].take()).unwrap(),
        notes: state["notes"].take(),
    })
}

impl Role {
    fn restore(&self) -> Vec<LockSpace> {
        // SAFETY: nobody in this process knows of an inherited descriptor.
        unsafe { snapshot::restore(&self.documents) }.unwrap()
    }

    /// Executes the next generation. Never returns.
    fn go_on<'a>(
        &self,
        test: &str,
        spaces: impl IntoIterator<Item = &'a LockSpace>,
        notes: Value,
    ) -> ! {
        self.go_on_after(test, spaces, notes, |_| {});
    }

    /// The same, with something that is done when the documents are written.
    fn go_on_after<'a>(
        &self,
        test: &str,
        spaces: impl IntoIterator<Item = &'a LockSpace>,
        notes: Value,
        frozen: impl FnOnce(&mut Command),
    ) -> ! {
        let mut snapshot = Snapshot::take(spaces).unwrap();
        let generation = self.generation + 1;
        let state =
            json!({ "generation": generation, "documents": snapshot.documents(), "notes": notes });
        let carried = snapshot.carry(state.to_string().as_bytes()).unwrap();
        let mut command = this_program(test);
        frozen(&mut command);
        let error = snapshot.exec(command.env(CARRIED, carried.to_string()));
        panic!("{error}");
    }
}

fn the_end() {
    println!("the end of the last generation");
}

/// Room for thousands of descriptors, here and in what is executed.
fn allow_descriptors() {
    let maximum = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let limit = rustix::process::Rlimit { current: maximum, maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
}

/// A child that tries all of the files without pause, until it is dropped: how often it tried, and
/// how often it was not refused.
struct Rival {
    _child: Forked,
    counts: &'static [AtomicU64; 2],
}

fn rival(files: &[PathBuf]) -> Rival {
    let counts = shared_memory::<2>();
    let child = fork(|| {
        // The files stay open: what is asked is whether the locks on them are ever gone.
        let opened: Vec<_> = files.iter().map(open).collect();
        loop {
            for kind in [Kind::Ofd, Kind::Record] {
                for file in &opened {
                    // Only an exclusive lock refuses a shared one: nothing is easier to get.
                    let got = set_lock(file, kind, Lock::Shared, 0, 1).unwrap();
                    counts[0].fetch_add(1, Ordering::Relaxed);
                    counts[1].fetch_add(u64::from(got), Ordering::Relaxed);
                }
            }
        }
    });
    Rival { _child: child, counts }
}

// --- The tests.

#[test]
fn a_thousand_locks_outlive_a_hundred_programs() {
    const TEST: &str = "reexec::a_thousand_locks_outlive_a_hundred_programs";
    const LOCKS: usize = 1000;
    const TIMES: u64 = 100;
    let Some(role) = role() else {
        allow_descriptors();
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..LOCKS).map(|i| folder.path().join(format!("locks/{i}"))).collect();
        let (ready, go) = (folder.path().join("ready"), folder.path().join("go"));
        let process =
            start(TEST, folder.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let process = process.unwrap();
        wait_for(&ready);
        let rival = rival(&files);
        fs::write(go, "").unwrap();
        let [tries, taken] = rival.counts;
        wait_for(&folder.path().join("done"));
        let (tries, taken) = (tries.load(Ordering::Relaxed), taken.load(Ordering::Relaxed));
        drop(rival);
        fs::write(folder.path().join("end"), "").unwrap();
        let output = process.wait_with_output().unwrap();
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}{err}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(taken, 0, "of {tries} tries");
        assert!(tries > 100_000, "only {tries} tries");
        // Half of them were auto-created.
        assert_eq!(fs::read_dir(folder.path().join("locks")).unwrap().count(), LOCKS / 2);
        return;
    };
    let pid = std::process::id();
    let space = if role.generation == 0 {
        let space = LockSpace::open(Naming::verbatim(role.folder.join("locks"))).unwrap();
        for index in 0..LOCKS {
            let name = index.to_string();
            let request = Request::exclusive(&name);
            let request = match index % 2 {
                0 => request.auto_create(),
                _ => {
                    space.create(&name).unwrap();
                    request
                }
            };
            space.acquire(ONE, request, Wait::NO).unwrap().keep();
        }
        fs::write(role.folder.join("ready"), "").unwrap();
        wait_for(&role.folder.join("go"));
        space
    } else {
        role.restore().remove(0)
    };
    assert_eq!(space.list().len(), LOCKS);
    let count = fs::read_dir("/proc/self/fd").unwrap().count();
    let mut notes = json!({ "pid": pid, "count": count });
    if role.generation > 0 {
        assert_eq!(role.notes["pid"], pid);
    }
    if role.generation > 2 {
        notes["count"] = role.notes["count"].clone();
        assert_eq!(role.notes["count"], count, "descriptors, since generation 2");
    }
    if role.generation < TIMES {
        role.go_on(TEST, [&space], notes);
    }
    fs::write(role.folder.join("done"), "").unwrap();
    wait_for(&role.folder.join("end"));
    let released = space.release_owner(ONE);
    assert_eq!((released.holds, released.leftovers.len()), (LOCKS, 0));
    the_end();
}

/// Waits for another process's file, for a minute.
#[track_caller]
fn wait_for(path: &Path) {
    for _ in 0..6000 {
        if path.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("no {}", path.display());
}

#[test]
fn exec_from_another_thread_while_others_are_busy() {
    const TEST: &str = "reexec::exec_from_another_thread_while_others_are_busy";
    let Some(role) = role() else {
        let folder = tempfile::tempdir().unwrap();
        run(TEST, folder.path());
        // What the threads were just making may stay, as after a kill, and blocks nobody.
        let space = LockSpace::open(Naming::md5(folder.path().join("locks"))).unwrap();
        for index in 0..100 {
            let name = format!("held-{index}");
            let request = Request::exclusive(&name).auto_create();
            space.acquire(TWO, request, Wait::NO).unwrap().release().unwrap();
        }
        return;
    };
    let space = if role.generation == 0 {
        let space = LockSpace::open(Naming::md5(role.folder.join("locks"))).unwrap();
        for index in 0..100 {
            let name = format!("held-{index}");
            space.acquire(ONE, Request::exclusive(&name).auto_create(), Wait::NO).unwrap().keep();
        }
        space
    } else {
        role.restore().remove(0)
    };
    // What the threads held at the snapshot is kept now.
    for held in space.list().iter().filter(|held| held.owners.contains_key(&TWO)) {
        assert!(!is_free_for_others(&held.path), "{:?}", held.name);
    }
    space.release_owner(TWO);
    let held = space.list();
    assert_eq!(held.len(), 100);
    for held in &held {
        space.retake(ONE, &held.name).unwrap().verify().unwrap();
    }
    if role.generation == 20 {
        return the_end();
    }
    // `verify` took the holds as leases, and released them: they are taken again.
    for index in 0..100 {
        let name = format!("held-{index}");
        space.acquire(ONE, Request::exclusive(&name).auto_create(), Wait::NO).unwrap().keep();
    }
    let cycles: Vec<_> = (0..2).map(|_| AtomicU64::new(0)).collect();
    let commands = AtomicU64::new(0);
    thread::scope(|scope| {
        for (thread, count) in cycles.iter().enumerate() {
            let space = &space;
            scope.spawn(move || {
                loop {
                    let name = format!("busy-{thread}");
                    let request = Request::exclusive(&name).auto_create();
                    let soon = Wait::within(Duration::from_secs(60));
                    drop(space.acquire(TWO, request, soon).unwrap());
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            loop {
                // Its end is of no interest: the program may be replaced meanwhile.
                let _ = Command::new("true").stdin(Stdio::null()).status();
                commands.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            let busy = || cycles.iter().all(|count| count.load(Ordering::Relaxed) > 3);
            while !busy() || commands.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            role.go_on(TEST, [&space], Value::Null);
        });
    });
}

#[test]
fn restored_spaces_are_full_ones() {
    const TEST: &str = "reexec::restored_spaces_are_full_ones";
    let Some(role) = role() else {
        let folder = tempfile::tempdir().unwrap();
        run(TEST, folder.path());
        return;
    };
    let namings = |dir: &Path| {
        Vec::from([
            Naming::md5(dir.join("0")),
            Naming::verbatim(dir.join("1")),
            #[cfg(feature = "sha256")]
            Naming::sha256(dir.join("2")),
        ])
    };
    let image = role.folder.join("image.raw");
    let range = ByteRange::new(100, std::num::NonZeroU64::new(4).unwrap()).unwrap();
    let one_of_each = |space: &LockSpace| {
        space.create("existing").unwrap();
        let take = |owner, request| space.acquire(owner, request, Wait::NO).unwrap();
        take(ONE, Request::exclusive("existing").range(range)).keep();
        take(ONE, Request::exclusive("made").auto_create()).keep();
        for owner in [ONE, TWO, TWO] {
            take(owner, Request::shared("shared").auto_create()).keep();
        }
        // A lease that is alive at the snapshot, and a second hold of its owner that is kept.
        take(ONE, Request::shared("leased").auto_create()).keep();
        take(ONE, Request::shared("leased").auto_create())
    };
    if role.generation == 0 {
        let mut spaces: Vec<_> = namings(&role.folder)
            .into_iter()
            .map(|naming| LockSpace::builder(naming).file_mode(0o640).open().unwrap())
            .collect();
        let leases: Vec<_> = spaces.iter().map(one_of_each).collect();
        make_stale(&spaces[0], &role.folder.join("0"));
        let stale = spaces[0].stale_retries();
        fs::write(&image, "precious").unwrap();
        let direct = LockSpace::builder(Naming::direct()).range(ByteRange::WHOLE_FILE);
        spaces.push(direct.open().unwrap());
        let request = Request::shared(&image).upgradable();
        spaces.last().unwrap().acquire(ONE, request, Wait::NO).unwrap().keep();
        spaces.push(LockSpace::open(Naming::in_memory()).unwrap());
        spaces.last().unwrap().acquire(ONE, Request::exclusive("m"), Wait::NO).unwrap().keep();
        spaces.push(LockSpace::open(Naming::md5(role.folder.join("empty"))).unwrap());
        role.go_on(TEST, &spaces, json!({ "stale": stale, "leases": leases.len() }));
    }
    let mut spaces = role.restore();
    if role.generation == 1 {
        // Once more, so that what was restored is itself written down.
        role.go_on(TEST, &spaces, role.notes.clone());
    }
    assert_eq!(role.notes["stale"], spaces[0].stale_retries());
    assert!(spaces[0].stale_retries() > 0);
    let empty = spaces.pop().unwrap();
    let memory = spaces.pop().unwrap();
    let direct = spaces.pop().unwrap();
    assert_eq!(spaces.len(), namings(&role.folder).len());

    for space in &spaces {
        let held: BTreeMap<_, _> =
            space.list().into_iter().map(|held| (held.name.clone(), held)).collect();
        let about = |name: &str| {
            let held = &held[OsStr::new(name)];
            let owners: Vec<_> = held.owners.iter().map(|(id, n)| (id.get(), *n)).collect();
            (held.mode, held.origin, held.range, owners)
        };
        let first = ByteRange::FIRST;
        let (exclusive, shared) = (Mode::Exclusive, Mode::Shared);
        let made = Origin::AutoCreated;
        assert_eq!(about("existing"), (exclusive, Origin::Existing, range, vec![(1, 1)]));
        assert_eq!(about("made"), (exclusive, made, first, vec![(1, 1)]));
        assert_eq!(about("shared"), (shared, made, first, vec![(1, 1), (2, 2)]));
        assert_eq!(about("leased"), (shared, made, first, vec![(1, 2)]));
        assert_eq!(held.len(), 4);
        // The naming leads to the same files as before, also for a name that is new.
        let path = |name: &str| held[OsStr::new(name)].path.clone();
        for name in ["made", "shared", "leased"] {
            assert!(!is_free_for_others(&path(name)), "{name}");
        }
        assert!(is_free_for_others(&path("existing")), "byte 0 was never locked");
        assert_eq!(crate::support::process::held_at(&path("existing"), 100), Some(Mode::Exclusive));
        let new = space.acquire(ONE, Request::exclusive("new").auto_create(), Wait::NO).unwrap();
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(new.path()).unwrap());
        assert_eq!(mode & 0o777, 0o640 & !umask());
        new.release().unwrap();
        // Kept holds of their owners, one for each: retaken, released, counted.
        let mut lease = space.retake(ONE, "leased").unwrap();
        lease.verify().unwrap();
        space.release(ONE, "leased").unwrap();
        let nothing = space.release(ONE, "leased");
        assert!(matches!(nothing, Err(ReleaseError::NotHeld { .. })), "{nothing:?}");
        lease.upgrade(Wait::NO).unwrap();
        lease.downgrade().unwrap();
        let leased = lease.path().to_owned();
        drop(lease);
        assert!(!leased.exists(), "the last hold of an auto-created file removes it");
        space.release(TWO, "shared").unwrap();
        assert!(space.acquire(OwnerId::new(3), Request::shared("shared"), Wait::NO).is_ok());
        assert_eq!(space.release_owner(TWO).holds, 1);
        assert!(path("shared").exists());
        let released = space.release_owner(ONE);
        assert_eq!((released.holds, released.leftovers.len()), (3, 0));
        assert!(!path("shared").exists() && !path("made").exists() && path("existing").exists());
        assert!(space.list().is_empty());
    }
    // Shared but open to be written, as was asked.
    let mut lease = direct.retake(ONE, &image).unwrap();
    lease.upgrade(Wait::NO).unwrap();
    assert_eq!(direct.list()[0].range, ByteRange::WHOLE_FILE);
    lease.release().unwrap();
    assert_eq!(fs::read(&image).unwrap(), b"precious");
    let lease = direct.acquire(ONE, Request::exclusive(&image), Wait::NO).unwrap();
    assert_eq!(direct.list()[0].range, ByteRange::WHOLE_FILE, "the space's own range");
    lease.release().unwrap();
    assert!(memory.acquire(TWO, Request::shared("m"), Wait::NO).is_err());
    memory.release(ONE, "m").unwrap();
    assert!(empty.list().is_empty());
    empty.acquire(ONE, Request::exclusive("a").auto_create(), Wait::NO).unwrap().release().unwrap();
    the_end();
}

/// Makes the space find a file stale: another thread moves it away, again and again.
fn make_stale(space: &LockSpace, dir: &Path) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let other = LockSpace::open(Naming::md5(dir)).unwrap();
            while !done.load(Ordering::Relaxed) {
                let request = Request::exclusive("churn").auto_create();
                let _ = other.acquire(TWO, request, Wait::NO);
            }
        });
        while space.stale_retries() == 0 {
            let _ = space.acquire(ONE, Request::exclusive("churn").auto_create(), Wait::NO);
        }
        done.store(true, Ordering::Relaxed);
    });
}

fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u32::from_str_radix(umask.trim(), 8).unwrap()
}

// --- The example.

/// The built example: `cargo test` puts it beside the folder of this test. A lone `--test reexec`
/// builds none: `cargo build --examples` first, with the same features.
fn example(args: &[&str]) -> Output {
    Command::new(path_of_example()).args(args).stdin(Stdio::null()).output().unwrap()
}

fn path_of_example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples/reexec");
    assert!(path.exists(), "{} is missing: `cargo build --examples`", path.display());
    path
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_example_holds_on() {
    for shared in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let locks = dir.path().join("locks");
        let mut args = vec!["--dir", locks.to_str().unwrap(), "--locks", "50", "--times", "5"];
        args.extend(shared.then_some("--shared"));
        let output = example(&args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status.code(), &*err), (Some(0), ""), "{out}");
        let lines: Vec<_> = out.lines().collect();
        let pid = lines[0].split(' ').nth(3).unwrap();
        for (number, line) in lines[..6].iter().enumerate() {
            assert_eq!(*line, format!("generation {number} pid {pid} held 50"));
        }
        let summary = format!("summary: pid {pid} held 50 locks over 5 re-executions; ");
        assert!(
            lines[6].starts_with(&summary) && lines[6].ends_with("and got none"),
            "{}",
            lines[6]
        );
        assert_eq!(lines.len(), 7);
        assert_eq!(fs::read_dir(&locks).unwrap().count(), 0);
    }
}

#[test]
fn the_example_says_what_is_wrong() {
    for args in [&["--locks"][..], &["--times", "x"], &["--locks", "-1"], &["image"], &["--lock"]] {
        let output = example(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("Usage: reexec"), "{args:?}");
    }
    let help = example(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("--times M"));
    let output = example(&["--dir", "/dev/null", "--locks", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/dev/null"));
}

#[test]
fn the_example_leaves_nothing_where_it_cannot_begin() {
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 20 && exec \"$0\" --locks 50"]).arg(path_of_example());
    let output = shell.env("TMPDIR", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("Too many open files"), "{}", text(&output.stderr));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_example_ends_with_1_where_something_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let locks = dir.path().join("locks");
    let args = ["--dir", locks.to_str().unwrap(), "--locks", "20", "--times", "100000"];
    let meanwhile = thread::spawn({
        let locks = locks.clone();
        move || {
            // By hand, as nobody should: a lock file goes, and the name is free for others.
            while fs::read_dir(&locks).map_or(0, Iterator::count) < 20 {
                thread::yield_now();
            }
            let first = fs::read_dir(&locks).unwrap().next().unwrap().unwrap();
            fs::remove_file(first.path()).unwrap();
        }
    });
    let output = example(&args);
    meanwhile.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(!text(&output.stdout).contains("summary:"));
    assert!(text(&output.stderr).starts_with("reexec: "), "{}", text(&output.stderr));
}

/// What each resource of a space is held by.
fn held_in(space: &LockSpace) -> BTreeMap<OsString, BTreeMap<OwnerId, u32>> {
    space.list().into_iter().map(|held| (held.name, held.owners)).collect()
}

#[test]
fn what_is_released_before_the_exec_is_released_after_it() {
    const TEST: &str = "reexec::what_is_released_before_the_exec_is_released_after_it";
    let Some(role) = role() else {
        let folder = tempfile::tempdir().unwrap();
        run(TEST, folder.path());
        return;
    };
    let locks = |name: &str| role.folder.join("locks").join(name);
    let image = role.folder.join("image.raw");
    let odd = OsStr::from_bytes(b"odd\xff");
    let expected = |shared: u32| {
        let of = |name: &str, owners: &[(OwnerId, u32)]| {
            (OsString::from(name), owners.iter().copied().collect::<BTreeMap<_, _>>())
        };
        BTreeMap::from([of("shared", &[(ONE, shared), (TWO, 1)]), of("stays", &[(ONE, 1)])])
    };
    if role.generation == 0 {
        let space = LockSpace::open(Naming::verbatim(role.folder.join("locks"))).unwrap();
        let take = |space: &LockSpace, owner, request: Request<'_>| {
            space.acquire(owner, request, Wait::NO).unwrap()
        };
        let made = |name| Request::exclusive(name).auto_create();
        let mut leases = vec![take(&space, ONE, made(OsStr::new("leased")))];
        leases.push(take(&space, ONE, made(odd)));
        take(&space, ONE, made("kept".as_ref())).keep();
        take(&space, ONE, made("stays".as_ref())).keep();
        for owner in [ONE, ONE, ONE, TWO] {
            take(&space, owner, Request::shared("shared").auto_create()).keep();
        }
        leases.push(take(&space, ONE, Request::shared("shared").auto_create()));
        // All that an owner keeps, and one of its leases beside them.
        let client = OwnerId::new(3);
        for name in ["client 1", "client 2"] {
            take(&space, client, Request::shared(name).auto_create()).keep();
        }
        leases.push(take(&space, client, Request::shared("client 2").auto_create()));
        fs::write(&image, "precious").unwrap();
        let direct = LockSpace::open(Naming::direct()).unwrap();
        leases.push(take(&direct, ONE, Request::shared(&image)));
        // Two spaces whose documents are equal: only in the second is it released.
        let [memory, other] = [0, 1].map(|_| LockSpace::open(Naming::in_memory()).unwrap());
        take(&memory, ONE, Request::exclusive("m")).keep();
        leases.push(take(&other, ONE, Request::exclusive("m")));
        let spaces = [&space, &memory, &other, &direct];
        role.go_on_after(TEST, spaces, Value::Null, |_| {
            space.release(ONE, "kept").unwrap();
            space.release(ONE, "shared").unwrap();
            assert_eq!(space.release_owner(client).holds, 2);
            leases.into_iter().for_each(|lease| lease.release().unwrap());
            // It is released, so it may be removed.
            fs::remove_file(&image).unwrap();
            assert_eq!(space.list().len(), 7, "they are put off");
        });
    }
    let spaces = role.restore();
    let held: Vec<_> = spaces.iter().map(held_in).collect();
    assert_eq!(held[0], expected(2));
    assert_eq!([held[1].len(), held[2].len(), held[3].len()], [1, 0, 0]);
    for name in ["leased", "kept", "client 1", "client 2"] {
        assert!(!locks(name).exists(), "{name} was auto-created");
    }
    assert!(!role.folder.join("locks").join(odd).exists());
    for name in ["shared", "stays"] {
        assert!(!is_free_for_others(&locks(name)), "{name}");
    }
    // A file of the releases is neither left open nor told of to those to whom nothing is released.
    let open: Vec<_> = fs::read_dir("/proc/self/fd").unwrap().collect();
    let links = open.iter().filter_map(|fd| fs::read_link(fd.as_ref().unwrap().path()).ok());
    let links: Vec<_> = links.filter(|link| link.to_string_lossy().contains("lockspace")).collect();
    assert!(links.is_empty(), "{links:?}");
    if role.generation == 1 {
        assert!(std::env::var_os("LOCKSPACE_RELEASES").is_some());
        role.go_on(TEST, &spaces, Value::Null);
    }
    assert!(std::env::var_os("LOCKSPACE_RELEASES").is_none());
    the_end();
}

#[test]
fn a_release_during_the_exec_does_not_return() {
    const TEST: &str = "reexec::a_release_during_the_exec_does_not_return";
    let Some(role) = role() else {
        let folder = tempfile::tempdir().unwrap();
        run(TEST, folder.path());
        return;
    };
    let returned = role.folder.join("returned");
    if role.generation > 0 {
        let space = role.restore().remove(0);
        // Who was told that it is released must not find it held.
        assert_eq!(held_in(&space).contains_key(OsStr::new("late")), !returned.exists());
        assert_eq!(space.list().len(), 1);
        return the_end();
    }
    let space = LockSpace::open(Naming::verbatim(role.folder.join("locks"))).unwrap();
    let [early, late] = ["early", "late"].map(|name| {
        let request = Request::exclusive(name).auto_create();
        space.acquire(ONE, request, Wait::NO).unwrap()
    });
    let mut late = Some(late);
    role.go_on_after(TEST, [&space], Value::Null, |command| {
        drop(early);
        let last_thing = move || {
            let (late, returned) = (late.take().unwrap(), returned.clone());
            let release = waits::start(move || {
                late.release().unwrap();
                fs::write(returned, "").unwrap();
            });
            waits::eventually("it waits", || release.is_finished() || release.is_asleep());
            Ok(())
        };
        // SAFETY: it runs in this process, whose other threads go on.
        unsafe { command.pre_exec(last_thing) };
    });
}
