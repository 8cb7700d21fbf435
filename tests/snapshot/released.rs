//! What is released before an exec, and while it is made.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;

use crate::generations::{Role, role, run, the_end};
use crate::support::locks::is_free_for_others;
use crate::support::spaces::{A, B};
use crate::support::waits::{eventually, start};
use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
use serde_json::Value;

/// What each resource of a space is held by.
fn held_in(space: &LockSpace) -> BTreeMap<OsString, BTreeMap<OwnerId, u32>> {
    space.list().into_iter().map(|held| (held.name, held.owners)).collect()
}

#[test]
fn what_is_released_before_the_exec_is_released_after_it() {
    if let Some(role) = role() {
        return release_before_the_exec(&role);
    }
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
}

fn release_before_the_exec(role: &Role) {
    let locks = |name: &str| role.folder.join("locks").join(name);
    let image = role.folder.join("image.raw");
    let odd = OsStr::from_bytes(b"odd\xff");
    let expected = |shared: u32| {
        let of = |name: &str, owners: &[(OwnerId, u32)]| {
            (OsString::from(name), owners.iter().copied().collect::<BTreeMap<_, _>>())
        };
        BTreeMap::from([of("shared", &[(A, shared), (B, 1)]), of("stays", &[(A, 1)])])
    };
    if role.generation == 0 {
        let space = LockSpace::open(Naming::verbatim(role.folder.join("locks"))).unwrap();
        let take = |space: &LockSpace, owner, request: Request<'_>| {
            space.acquire(owner, request, Wait::NO).unwrap()
        };
        let made = |name| Request::exclusive(name).auto_create();
        let mut leases = vec![take(&space, A, made(OsStr::new("leased")))];
        leases.push(take(&space, A, made(odd)));
        take(&space, A, made("kept".as_ref())).keep();
        take(&space, A, made("stays".as_ref())).keep();
        for owner in [A, A, A, B] {
            take(&space, owner, Request::shared("shared").auto_create()).keep();
        }
        leases.push(take(&space, A, Request::shared("shared").auto_create()));
        // All that an owner keeps, and one of its leases beside them.
        let client = OwnerId::new(3);
        for name in ["client 1", "client 2"] {
            take(&space, client, Request::shared(name).auto_create()).keep();
        }
        leases.push(take(&space, client, Request::shared("client 2").auto_create()));
        fs::write(&image, "precious").unwrap();
        let direct = LockSpace::open(Naming::direct()).unwrap();
        leases.push(take(&direct, A, Request::shared(&image)));
        // Two spaces whose documents are equal: only in the second is it released.
        let [memory, other] = [0, 1].map(|_| LockSpace::open(Naming::in_memory()).unwrap());
        take(&memory, A, Request::exclusive("m")).keep();
        leases.push(take(&other, A, Request::exclusive("m")));
        let spaces = [&space, &memory, &other, &direct];
        role.go_on_after(spaces, Value::Null, |_| {
            space.release(A, "kept").unwrap();
            space.release(A, "shared").unwrap();
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
        role.go_on(&spaces, Value::Null);
    }
    assert!(std::env::var_os("LOCKSPACE_RELEASES").is_none());
    the_end();
}

#[test]
fn a_release_during_the_exec_does_not_return() {
    if let Some(role) = role() {
        return release_during_the_exec(&role);
    }
    let folder = tempfile::tempdir().unwrap();
    run(folder.path());
}

fn release_during_the_exec(role: &Role) {
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
        space.acquire(A, request, Wait::NO).unwrap()
    });
    let mut late = Some(late);
    role.go_on_after([&space], Value::Null, |command| {
        drop(early);
        let last_thing = move || {
            let (late, returned) = (late.take().unwrap(), returned.clone());
            let release = start(move || {
                late.release().unwrap();
                fs::write(returned, "").unwrap();
            });
            eventually("it waits", || release.is_finished() || release.is_asleep());
            Ok(())
        };
        // SAFETY: it runs in this process, whose other threads go on.
        #[allow(unsafe_code, reason = "what is done right before an exec")]
        unsafe {
            command.pre_exec(last_thing)
        };
    });
}
