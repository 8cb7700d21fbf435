//! Documents of others, of later versions, and of files and directories that are gone by now.

use std::fs;
use std::path::Path;

use super::{DIRECT, DIRECTORY, EXCLUSIVE, IN_MEMORY, SHARED, World, assert_names, in_world};
use crate::support::alone::alone_in_child;
use crate::support::forked::in_child;
use crate::support::interop::skip_or_fail;
use crate::support::locks::unlock_ofd;
use crate::support::process::{is_root, unshare_mounts};
use crate::support::spaces::A;
use crate::support::state::{at, leave_behind, restore, restore_what_verifies};
use lockspace::snapshot::InvalidEntry;
use lockspace::{LockSpace, Naming, Request, Wait};
use serde_json::{Value, json};

#[test]
fn documents_of_others_and_of_later_versions() {
    in_world(|world| {
        let started = world.documents[0]["lockspace"]["started"].as_u64().unwrap();
        for document in [DIRECTORY, DIRECT, IN_MEMORY] {
            let other = |d: &mut Value| d["lockspace"]["pid"] = 1.into();
            let why = is!(InvalidEntry::OtherProcess { pid: 1, .. });
            world.refuses_document(document, other, why);
            let earlier = |d: &mut Value| d["lockspace"]["started"] = (started - 1).into();
            let why = |why: &InvalidEntry| {
                let InvalidEntry::OtherProcess { pid, started: found } = why else { return false };
                (*pid, *found) == (std::process::id(), started - 1)
            };
            world.refuses_document(document, earlier, why);
            for version in [0, 2, 1 << 40] {
                let later = |d: &mut Value| d["lockspace"]["version"] = version.into();
                let why =
                    |why: &InvalidEntry| matches!(why, InvalidEntry::Version(v) if *v == version);
                world.refuses_document(document, later, why);
            }
            for naming in ["", "sha512", "MD5", "in_memory"] {
                let unknown = |d: &mut Value| d["lockspace"]["naming"] = naming.into();
                let why =
                    |why: &InvalidEntry| matches!(why, InvalidEntry::Naming(n) if n == naming);
                world.refuses_document(document, unknown, why);
            }
        }
        // A naming that needs a directory, or none.
        let direct = |d: &mut Value| d["lockspace"]["naming"] = "direct".into();
        world.refuses_document(DIRECTORY, direct, is!(InvalidEntry::Naming(_)));
        let md5 = |d: &mut Value| d["lockspace"]["naming"] = "md5".into();
        world.refuses_document(DIRECT, md5, is!(InvalidEntry::Naming(_)));
        // The naming of another document: the lock is not there.
        let verbatim = |d: &mut Value| d["lockspace"]["naming"] = "verbatim".into();
        let documents = world.edited(|all| verbatim(&mut all[DIRECTORY]));
        world.refuses(&documents, (DIRECTORY, Some(0)), is!(InvalidEntry::Path));
        // A document that a child of ours has, with our descriptors.
        in_child(|| {
            let why = is!(InvalidEntry::OtherProcess { .. });
            world.refuses(&world.documents, (DIRECTORY, None), why);
        });
    });
}

#[test]
fn directories_that_are_gone_or_others() {
    in_world(|world| {
        let (locks, away) = (world.dir.path().join("locks"), world.dir.path().join("away"));
        let refuses = |why: fn(&InvalidEntry) -> bool| {
            world.refuses(&world.documents, (DIRECTORY, None), why);
        };
        fs::rename(&locks, &away).unwrap();
        refuses(is!(InvalidEntry::Directory(_)));
        fs::write(&locks, "").unwrap();
        refuses(is!(InvalidEntry::Directory(_)));
        fs::remove_file(&locks).unwrap();
        fs::create_dir(&locks).unwrap();
        refuses(is!(InvalidEntry::DirectoryReplaced));
        fs::remove_dir(&locks).unwrap();
        fs::rename(&away, &locks).unwrap();
        let nowhere = |d: &mut Value| d["directory"] = "/no/such/directory".into();
        world.refuses_document(DIRECTORY, nowhere, is!(InvalidEntry::Directory(_)));
        assert!(!Path::new("/no").exists());
        for other in ["/", world.dir.path().to_str().unwrap()] {
            let other = |d: &mut Value| d["directory"] = other.into();
            world.refuses_document(DIRECTORY, other, is!(InvalidEntry::DirectoryReplaced));
        }
        for odd in [json!(1), json!(null), json!(["/"])] {
            let odd = |d: &mut Value| d["directory"] = odd;
            world.refuses_document(DIRECTORY, odd, is!(InvalidEntry::Malformed(_)));
        }
    });
}

#[test]
fn paths_that_lead_to_another_file_by_now() {
    in_world(|world| {
        for (document, entry) in [(DIRECTORY, EXCLUSIVE), (DIRECTORY, SHARED), (DIRECT, 0)] {
            let (path, away) = (world.path(document, entry), world.dir.path().join("away"));
            let refuses = || {
                let place = (document, Some(entry));
                world.refuses(&world.documents, place, is!(InvalidEntry::Replaced));
            };
            fs::rename(&path, &away).unwrap();
            refuses();
            fs::write(world.dir.path().join("new"), "").unwrap();
            fs::rename(world.dir.path().join("new"), &path).unwrap();
            refuses();
            fs::rename(&away, &path).unwrap();
        }
    });
}

#[test]
fn a_bad_entry_after_a_thousand_good_ones() {
    alone_in_child(|| {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let limit = rustix::process::Rlimit { current: limit, maximum: limit };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let space = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
        let lock = |index| {
            let name = format!("{index:04}");
            space.acquire(A, Request::exclusive(&*name).auto_create(), Wait::NO).unwrap()
        };
        let leases: Vec<_> = (0..=1000).map(lock).collect();
        let documents = leave_behind(vec![space], leases);
        let world = World { dir, documents };
        let bad = (0, 1000);
        world.refuses_entry(bad, |e| e["fd"] = 0.into(), is!(InvalidEntry::Number));
        world.refuses_entry(bad, |e| e["flags"] = 8.into(), is!(InvalidEntry::Flags(8)));
        world.refuses_entry(bad, |e| *e = json!(null), is!(InvalidEntry::Malformed(_)));
        unlock_ofd(at(world.number(0, 1000)), 0, 1).unwrap();
        world.refuses(&world.documents, (0, Some(1000)), is!(InvalidEntry::Unlocked));
        // By choice, the good ones all the same.
        let (spaces, bad) = restore_what_verifies(&world.documents);
        assert_eq!((spaces[0].list().len(), bad.len()), (1000, 1));
        assert_names(&bad[0], &world.documents, 0, Some(1000));
    });
}

#[test]
fn a_file_that_is_mounted_on_one_of_a_hundred_names() {
    use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_bind, mount_change, unmount};

    if !is_root() {
        return skip_or_fail("mounts of our own", "only root may mount");
    }
    alone_in_child(|| {
        unshare_mounts().unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let space = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
        let lock = |index| {
            let name = format!("{index:03}");
            space.acquire(A, Request::exclusive(&*name).auto_create(), Wait::NO).unwrap()
        };
        let leases: Vec<_> = (0..100).map(lock).collect();
        let documents = leave_behind(vec![space], leases);
        let world = World { dir, documents };
        // The directory shows the inode beneath; who opens the name locks the other file.
        let (other, name) = (world.dir.path().join("other"), world.path(0, 42));
        fs::write(&other, "").unwrap();
        mount_bind(&other, &name).unwrap();
        world.refuses(&world.documents, (0, Some(42)), is!(InvalidEntry::Replaced));
        unmount(&name, UnmountFlags::empty()).unwrap();
        // One that has gone, and one that has taken another's place.
        let (a, b) = (world.path(0, 7), world.path(0, 8));
        fs::rename(&a, &other).unwrap();
        world.refuses(&world.documents, (0, Some(7)), is!(InvalidEntry::Replaced));
        fs::rename(&b, &a).unwrap();
        world.refuses(&world.documents, (0, Some(7)), is!(InvalidEntry::Replaced));
        fs::rename(&a, &b).unwrap();
        fs::rename(&other, &a).unwrap();
        // Where a mount is elsewhere below, each is looked up.
        fs::create_dir(world.dir.path().join("locks/below")).unwrap();
        mount_bind(world.dir.path(), world.dir.path().join("locks/below")).unwrap();
        assert_eq!(restore(&world.documents).unwrap()[0].list().len(), 100);
        unmount(world.dir.path().join("locks/below"), UnmountFlags::empty()).unwrap();
    });
}
