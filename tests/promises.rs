//! The promise, as `src/lib.rs` gives it: one short test for each part of a sentence, and where the
//! deep tests of it are.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use lockspace::{HeldBy, LockSpace, Mode, Naming, OwnerId, Request, Wait, holders_of};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use support::alone::alone;
use support::forked::{Gate, ask_child, copy_in_child, fork, in_child, shared_memory};
use support::hung_fs::hung_fs;
use support::interop::skip_or_fail;
use support::locks::{held, ofd_lock, open, record_lock};
use support::process::{become_nobody, is_root};
use support::spaces::{
    A, B, BOTH, HoldingChild, NAME, auto, busy, direct, granted, hold, image, is_empty, lock_file,
    refused, space_in, verbatim, wait_for,
};
use support::waits::eventually;

// One holder.

/// > **One holder.** While an exclusive hold lasts, nobody else gets the resource: no thread,
///
/// tests/verbs/modes.rs, tests/waiting/queue.rs, tests/waiting/under_fire.rs
#[test]
fn no_other_thread_gets_it() {
    let (_dir, space) = verbatim();
    let _lease = hold(&space, NAME);
    thread::scope(|scope| {
        for owner in [A, B] {
            for mode in BOTH {
                let space = &space;
                scope.spawn(move || busy(space, owner, Request::new(mode, NAME)));
            }
        }
    });
}

/// > no other `LockSpace` in the process,
///
/// tests/verbs/aliases/held.rs
#[test]
fn no_other_space_of_the_process_gets_it() {
    let (dir, space) = verbatim();
    let _lease = hold(&space, NAME);
    for mode in BOTH {
        busy(&space_in(dir.path()), A, Request::new(mode, NAME));
    }
}

/// > no other process that takes record or OFD locks on an overlapping range of the file,
///
/// tests/interop/coexistence.rs, tests/processes/churn.rs, tests/verbs/ranges.rs
#[test]
fn no_other_process_gets_it() {
    let (dir, space) = verbatim();
    let lease = hold(&space, NAME);
    in_child(|| {
        let file = open(lease.path());
        for exclusive in [true, false] {
            ofd_lock(&file, exclusive, 0, 1).unwrap_err();
            record_lock(&file, exclusive, 0, 0).unwrap_err();
        }
        busy(&space_in(dir.path()), B, Request::shared(NAME));
    });
}

/// > and in a direct space no other name of the file (hard link, symlink, `a//b`).
///
/// tests/verbs/aliases/, tests/verbs/opened/meetings.rs
#[test]
fn no_other_name_of_the_file_gets_it() {
    let (dir, image) = image();
    let [hard, soft] = ["hard", "soft"].map(|name| dir.path().join(name));
    fs::hard_link(&image, &hard).unwrap();
    symlink(&image, &soft).unwrap();
    let spelled = format!("{}//a.raw", dir.path().display());
    let space = direct();
    let _lease = granted(&space, A, Request::exclusive(&image));
    for name in [&*hard, &soft, Path::new(&spelled)] {
        busy(&space, B, Request::shared(name));
    }
}

// Nothing lost.

/// > **Nothing lost.** No refused or failed call, bad input,
///
/// tests/verbs/bad_input/, tests/verbs/aliases/held.rs, tests/verbs/convert.rs
#[test]
fn no_refused_call_weakens_it() {
    let (dir, space) = verbatim();
    let lease = hold(&space, NAME);
    busy(&space, B, Request::shared(NAME));
    space.delete(NAME).unwrap_err();
    for name in ["", "..", "a/b", "missing"] {
        refused(&space, B, Request::exclusive(name));
    }
    assert_eq!(held(&dir.path().join(NAME)), Some(Mode::Exclusive));
    lease.verify().unwrap();
}

/// > fork,
///
/// tests/processes/fork.rs
#[test]
fn no_fork_weakens_it() {
    let (_dir, space) = verbatim();
    let lease = hold(&space, NAME);
    in_child(|| drop((copy_in_child(&lease), copy_in_child(&space))));
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
    lease.verify().unwrap();
}

/// > failed exec,
///
/// tests/snapshot/failed_exec.rs
#[cfg(feature = "snapshot")]
#[test]
fn no_failed_exec_weakens_it() {
    let (_dir, space) = verbatim();
    let lease = hold(&space, NAME);
    let snapshot = lockspace::snapshot::Snapshot::take([&space]).unwrap();
    let _failed = snapshot.exec(&mut std::process::Command::new("/no/such/program"));
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
    lease.verify().unwrap();
}

/// > panic in a caller's thread,
///
/// tests/verbs/lifetimes.rs
#[test]
fn no_panic_of_another_caller_weakens_it() {
    let (_dir, space) = verbatim();
    let lease = hold(&space, NAME);
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _other = hold(&space, "other");
        panic!("as a caller's bug would");
    }));
    assert!(panicked.is_err());
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
    lease.verify().unwrap();
    hold(&space, "other").release().unwrap();
}

/// > or descriptor closed elsewhere weakens a hold that was granted.
///
/// tests/verbs/aliases/held.rs, tests/verbs/opened/locked.rs
#[test]
fn no_descriptor_that_is_closed_elsewhere_weakens_it() {
    let (_dir, space) = verbatim();
    let lease = hold(&space, NAME);
    drop(File::open(lease.path()).unwrap());
    drop(open(lease.path()));
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
    lease.verify().unwrap();
}

// Nothing left.

/// > **Nothing left.** After the last owner's release the next acquire succeeds at once, though
/// > forked children still have the descriptor.
///
/// tests/processes/ghosts.rs, tests/verbs/owners.rs, tests/waiting/left_behind.rs
#[test]
fn what_is_released_is_free_at_once_though_a_child_has_the_descriptor() {
    let (dir, space) = verbatim();
    space.create(NAME).unwrap();
    let leases = [A, B].map(|owner| granted(&space, owner, Request::shared(NAME)));
    let never = Gate::new();
    let _child = fork(|| never.wait());
    drop(leases);
    hold(&space_in(dir.path()), NAME).release().unwrap();
    assert!(is_empty(dir.path()));
}

/// > After SIGKILL it succeeds as soon as no process shares the descriptor; `LockSpace::holders`
/// > names those that do.
///
/// tests/processes/churn.rs, tests/processes/holders.rs, tests/waiting/granted.rs
#[test]
fn what_a_killed_process_held_is_free_once_nobody_shares_the_descriptor() {
    let (dir, space) = verbatim();
    let [sharer] = shared_memory::<1>();
    let (ready, never) = (Gate::new(), Gate::new());
    let holder = fork(|| {
        let _lease = hold(&space_in(dir.path()), NAME);
        let _child = fork(|| {
            // Else it would be killed with its parent.
            set_parent_process_death_signal(None).unwrap();
            sharer.store(std::process::id().into(), SeqCst);
            ready.open();
            never.wait();
        });
        never.wait();
    });
    ready.wait();
    holder.kill();
    busy(&space, B, auto(NAME));
    let pid = u32::try_from(sharer.load(SeqCst)).unwrap();
    let holders = space.holders(NAME).unwrap();
    let HeldBy::Processes(sharing) = &holders[0].by else { panic!("{holders:?}") };
    assert_eq!(sharing.iter().map(|process| process.pid).collect::<Vec<_>>(), [pid]);

    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    eventually("nobody shares it", || space.acquire(B, auto(NAME), Wait::NO).is_ok());
    assert!(is_empty(dir.path()));
}

/// > A lock file that was left behind blocks nobody.
///
/// tests/processes/churn.rs, tests/verbs/leftovers.rs, tests/verbs/stale_files.rs
#[test]
fn a_lock_file_that_was_left_behind_blocks_nobody() {
    let (dir, path) = lock_file();
    let space = space_in(dir.path());
    for mode in BOTH {
        granted(&space, A, Request::new(mode, NAME)).release().unwrap();
        assert!(path.exists());
    }
    hold(&space, NAME).release().unwrap();
    assert!(is_empty(dir.path()));
}

// One resource never stalls another.

/// > **One resource never stalls another.** A file system that gives no answer delays the callers
/// > that ask for its files, and nobody else.
///
/// tests/waiting/hung.rs, tests/waiting/hung_deadlines.rs
#[test]
fn a_file_system_that_gives_no_answer_delays_nobody_else() {
    alone(|| {
        let (_dir, image) = image();
        let Some(hung) = hung_fs() else { return };
        let space = direct();
        let stuck = wait_for(&space, A, Mode::Exclusive, hung.path().join("a"), Wait::FOREVER);
        hung.wait_for_open(1);
        for wait in [Wait::NO, Wait::FOREVER] {
            space.acquire(B, Request::exclusive(&image), wait).unwrap().release().unwrap();
        }
        assert!(!stuck.is_finished());
        hung.answer_all();
        drop(stuck.join().unwrap());
    });
}

// Every refusal explains itself.

/// > **Every refusal explains itself:** which resource, which file, which mode, who holds it as
/// > far as that can be known,
///
/// tests/verbs/bad_input/messages.rs, tests/verbs/errors.rs, tests/processes/holders.rs
#[test]
fn a_refusal_tells_the_resource_the_file_the_mode_and_the_holder() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::md5(dir.path())).unwrap();
    let lease = granted(&space, OwnerId::new(4711), auto("/img/a"));
    let said = refused(&space, B, Request::shared("/img/a")).to_string();
    let file = lease.path().display();
    let expected =
        format!(r#""/img/a" is busy: held exclusive by owner 4711; asked for shared ({file})"#);
    assert_eq!(said, expected);
}

/// > and "outside this lock space"
///
/// tests/interop/coexistence.rs, tests/verbs/bad_input/messages.rs
#[test]
fn who_holds_outside_is_told_to_be_outside() {
    let (dir, space) = verbatim();
    let holder = HoldingChild::start(dir.path(), auto(NAME), drop);
    let refusal = busy(&space, B, Request::exclusive(NAME));
    assert_eq!((refusal.held(), refusal.owners()), (None, &[][..]));
    assert!(refusal.to_string().contains("held outside this lock space"), "{refusal}");
    let holders = space.holders(NAME).unwrap();
    assert!(holders[0].to_string().starts_with(&format!("pid {} ", holder.child.pid())));
}

/// > or "unknown" where it cannot.
///
/// tests/processes/holders.rs, tests/processes/main_thread.rs
#[test]
fn who_cannot_be_known_is_told_to_be_unknown() {
    if !is_root() {
        return skip_or_fail("another user", "this is not root");
    }
    let (dir, path) = lock_file();
    let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(dir.path(), anybody).unwrap();
    let _holder = HoldingChild::start(dir.path(), Request::exclusive(NAME), drop);
    let told = ask_child(|| {
        become_nobody();
        holders_of(&path).unwrap()[0].to_string()
    });
    assert_eq!(told, "an unknown process (exclusive, byte 0, OFD lock)");
}

// The index.

/// The words of the promise, without their marks.
fn words(text: &str) -> String {
    let text = text.replace("[`LockSpace::holders`]", "`LockSpace::holders`");
    let text = text.replace("[direct](Naming::direct)", "direct");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn every_sentence_of_the_promise_is_here_and_every_file_that_is_named() {
    let promise = include_str!("../src/lib.rs").lines().skip_while(|l| *l != "//! # The promise");
    let promise = promise.skip(1).take_while(|line| !line.starts_with("//! The promise ends"));
    let numbers = |line: &str| ["1. ", "2. ", "3. ", "4. ", "5. "].iter().any(|n| line.contains(n));
    let promise: Vec<_> = promise
        .map(|line| line.trim_start_matches("//!"))
        .map(|line| if numbers(line) { line.split_once(". ").unwrap().1 } else { line })
        .collect();
    let this = include_str!("promises.rs");
    let quoted: Vec<_> = this.lines().filter_map(|line| line.strip_prefix("/// > ")).collect();
    assert_eq!(words(&quoted.join(" ")), words(&promise.join(" ")));

    let named = this.lines().filter_map(|line| line.strip_prefix("/// tests/"));
    let named =
        named.flat_map(|line| line.split(", ")).map(|name| name.trim_start_matches("tests/"));
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let missing: Vec<_> = named.filter(|name| !tests.join(name).exists()).collect();
    assert_eq!(missing, [""; 0]);
}
