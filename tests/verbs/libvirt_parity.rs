//! What libvirt's own lockspace test shows, in its order, and what its verbs promise beside.

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::process::{held, held_at, in_child, open_numbers};
use lockspace::{
    AcquireError, Busy, ByteRange, Lease, LockFileError, LockSpace, Mode, Naming, OpenError,
    Origin, OwnerId, ReleaseError, Request, Wait,
};
use tempfile::TempDir;

const ONE: OwnerId = OwnerId::new(1);
const TWO: OwnerId = OwnerId::new(2);

fn verbatim() -> (TempDir, LockSpace) {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    (dir, space)
}

#[track_caller]
fn granted(space: &LockSpace, owner: OwnerId, request: Request<'_>) -> Lease {
    space.acquire(owner, request, Wait::NO).unwrap()
}

#[track_caller]
fn busy(space: &LockSpace, owner: OwnerId, request: Request<'_>) -> Busy {
    match space.acquire(owner, request, Wait::NO) {
        Err(AcquireError::Busy(busy)) => busy,
        other => panic!("not busy: {other:?}"),
    }
}

#[track_caller]
fn assert_not_held(result: Result<(), ReleaseError>, whose: OwnerId, what: &str) {
    match result {
        Err(ReleaseError::NotHeld { owner, name }) => {
            assert_eq!((owner, &*name), (whose, what.as_ref()));
        }
        other => panic!("{other:?}"),
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

fn owners_of(space: &LockSpace, name: &str) -> BTreeMap<OwnerId, u32> {
    let held = space.list().into_iter().find(|held| held.name == *name);
    held.map(|held| held.owners).unwrap_or_default()
}

// The space

#[test]
fn opening_a_space_makes_its_directory_for_its_user_alone() {
    let dir = tempfile::tempdir().unwrap();
    let locks = dir.path().join("locks");
    LockSpace::open(Naming::md5(&locks)).unwrap();
    assert_eq!(fs::metadata(&locks).unwrap().permissions().mode() & 0o7777, 0o700);
}

#[test]
fn the_builder_says_with_which_permissions_the_directory_and_the_files_are_made() {
    let dir = tempfile::tempdir().unwrap();
    let locks = dir.path().join("locks");
    let space = LockSpace::builder(Naming::verbatim(&locks)).dir_mode(0o500).file_mode(0o400);
    let space = space.open().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&locks), 0o500);
    fs::set_permissions(&locks, fs::Permissions::from_mode(0o700)).unwrap();
    space.create("a").unwrap();
    assert_eq!(mode(&locks.join("a")), 0o400);
    drop(space);
    let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
    space.create("b").unwrap();
    assert_eq!(mode(&locks.join("b")), 0o600);
}

#[test]
fn a_directory_that_is_there_is_used_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("a"), "kept").unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o7777, 0o755);
    let lease = granted(&space, ONE, Request::exclusive("a"));
    assert_eq!(fs::read(lease.path()).unwrap(), b"kept");
}

#[test]
fn missing_parents_of_the_directory_are_made_too() {
    let dir = tempfile::tempdir().unwrap();
    let locks = dir.path().join("run/vmm/locks");
    let space = LockSpace::open(Naming::verbatim(&locks)).unwrap();
    let lease = granted(&space, ONE, Request::exclusive("a").auto_create());
    assert_eq!(lease.path(), locks.join("a"));
    assert!(locks.join("a").exists());
}

#[test]
fn a_file_in_place_of_the_directory_is_an_error_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("locks");
    fs::write(&file, "kept").unwrap();
    match LockSpace::open(Naming::md5(&file)) {
        Err(OpenError::NotADirectory { path }) => assert_eq!(path, file),
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::read(&file).unwrap(), b"kept");
}

// A resource's life

#[test]
fn a_resource_is_created_and_deleted() {
    let (dir, space) = verbatim();
    let file = dir.path().join("a");
    space.create("a").unwrap();
    assert!(file.is_file());
    space.delete("a").unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn a_resource_that_nobody_holds_can_be_created_again_and_keeps_its_content() {
    let (dir, space) = verbatim();
    space.create("a").unwrap();
    fs::write(dir.path().join("a"), "kept").unwrap();
    space.create("a").unwrap();
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"kept");
}

#[test]
fn deleting_a_resource_that_is_not_there_says_so() {
    let (dir, space) = verbatim();
    match space.delete("a") {
        Err(LockFileError::Io(error)) => {
            assert_eq!(error.source.kind(), std::io::ErrorKind::NotFound);
            assert_eq!(error.path, dir.path().join("a"));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_resource_without_a_file_is_not_granted_unless_it_may_be_created() {
    let (dir, space) = verbatim();
    for request in [Request::exclusive("a"), Request::shared("a")] {
        match space.acquire(ONE, request, Wait::NO) {
            Err(AcquireError::NotFound { name, path }) => {
                assert_eq!((&*name, path), ("a".as_ref(), dir.path().join("a")));
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(is_empty(dir.path()));
    granted(&space, ONE, Request::exclusive("a").auto_create()).release().unwrap();
}

#[test]
fn a_held_resource_cannot_be_deleted() {
    let (dir, space) = verbatim();
    space.create("a").unwrap();
    for request in [Request::exclusive("a"), Request::shared("a")] {
        let lease = granted(&space, ONE, request);
        match space.delete("a") {
            Err(LockFileError::Busy(busy)) => {
                assert_eq!((busy.owners(), busy.held()), (&[ONE][..], Some(lease.mode())));
            }
            other => panic!("{other:?}"),
        }
        assert!(dir.path().join("a").exists());
        assert_eq!(held(lease.path()), Some(lease.mode()));
    }
    space.delete("a").unwrap();
}

#[test]
fn a_resource_that_another_space_holds_cannot_be_deleted() {
    let (dir, space) = verbatim();
    let other = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    space.create("a").unwrap();
    let far = ByteRange::new(100, std::num::NonZeroU64::MIN).unwrap();
    for request in [Request::exclusive("a"), Request::shared("a").range(far)] {
        let lease = granted(&other, ONE, request);
        match space.delete("a") {
            Err(LockFileError::Busy(busy)) => assert!(busy.owners().is_empty()),
            other => panic!("{other:?}"),
        }
        assert!(lease.path().exists());
    }
}

#[test]
fn a_held_resource_cannot_be_created_again() {
    let (_dir, space) = verbatim();
    for request in [Request::exclusive("a"), Request::shared("a")] {
        let lease = granted(&space, ONE, request.auto_create());
        match space.create("a") {
            Err(LockFileError::Busy(busy)) => assert_eq!(busy.owners(), [ONE]),
            other => panic!("{other:?}"),
        }
        lease.verify().unwrap();
    }
}

// Exclusive and shared

#[test]
fn an_exclusive_hold_excludes_everybody_its_own_owner_too() {
    let (dir, space) = verbatim();
    space.create("a").unwrap();
    let lease = granted(&space, ONE, Request::exclusive("a"));
    for owner in [ONE, TWO] {
        for (mode, request) in
            [(Mode::Exclusive, Request::exclusive("a")), (Mode::Shared, Request::shared("a"))]
        {
            let busy = busy(&space, owner, request);
            assert_eq!((busy.owners(), busy.held()), (&[ONE][..], Some(Mode::Exclusive)));
            assert_eq!((busy.name(), busy.path()), ("a".as_ref(), &*dir.path().join("a")));
            assert_eq!((busy.asked(), busy.waited().is_zero()), (mode, true));
        }
    }
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
    lease.release().unwrap();
    assert_eq!(held(&dir.path().join("a")), None);
    granted(&space, TWO, Request::exclusive("a")).release().unwrap();
    assert!(dir.path().join("a").exists(), "it was created by hand and stays");
}

#[test]
fn two_resources_are_held_side_by_side() {
    let (_dir, space) = verbatim();
    let leases =
        ["a", "b"].map(|name| granted(&space, ONE, Request::exclusive(name).auto_create()));
    assert_eq!(leases.each_ref().map(|lease| held(lease.path())), [Some(Mode::Exclusive); 2]);
}

#[test]
fn shared_holds_stand_side_by_side_and_keep_an_exclusive_one_out_until_the_last_is_gone() {
    let (dir, space) = verbatim();
    space.create("a").unwrap();
    let first = granted(&space, ONE, Request::shared("a"));
    let refused = busy(&space, TWO, Request::exclusive("a"));
    assert_eq!((refused.owners(), refused.held()), (&[ONE][..], Some(Mode::Shared)));
    let second = granted(&space, TWO, Request::shared("a"));
    assert_eq!(busy(&space, ONE, Request::exclusive("a")).owners(), [ONE, TWO]);

    first.release().unwrap();
    assert_eq!(busy(&space, ONE, Request::exclusive("a")).owners(), [TWO]);
    assert_eq!(held(second.path()), Some(Mode::Shared));
    second.release().unwrap();
    assert_eq!(held(&dir.path().join("a")), None);
    let _third = granted(&space, ONE, Request::exclusive("a"));
}

#[test]
fn an_auto_created_file_lives_as_long_as_its_exclusive_hold() {
    let (dir, space) = verbatim();
    let lease = granted(&space, ONE, Request::exclusive("a").auto_create());
    assert!(dir.path().join("a").is_file());
    busy(&space, ONE, Request::exclusive("a").auto_create());
    busy(&space, TWO, Request::exclusive("a").auto_create());
    assert!(dir.path().join("a").is_file());
    lease.release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn an_auto_created_file_lives_as_long_as_its_last_shared_hold() {
    let (dir, space) = verbatim();
    let first = granted(&space, ONE, Request::shared("a").auto_create());
    busy(&space, TWO, Request::exclusive("a").auto_create());
    let second = granted(&space, TWO, Request::shared("a").auto_create());
    first.release().unwrap();
    assert!(dir.path().join("a").is_file());
    assert_eq!(held(second.path()), Some(Mode::Shared));
    second.release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn an_auto_created_file_that_another_space_shares_stays_for_it() {
    let (dir, space) = verbatim();
    let other = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let ours = granted(&space, ONE, Request::shared("a").auto_create());
    let theirs = granted(&other, TWO, Request::shared("a").auto_create());
    ours.release().unwrap();
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Shared));
    theirs.release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn who_asked_for_auto_creation_removes_a_file_that_was_left_behind() {
    let (dir, space) = verbatim();
    File::create(dir.path().join("a")).unwrap();
    granted(&space, ONE, Request::exclusive("a").auto_create()).release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn a_direct_space_works_on_full_paths() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.raw");
    let space = LockSpace::open(Naming::direct()).unwrap();
    space.create(&image).unwrap();
    fs::write(&image, "content").unwrap();
    space.create(&image).unwrap();

    let lease = granted(&space, ONE, Request::exclusive(&image));
    assert_eq!((lease.name(), lease.path()), (image.as_os_str(), &*image));
    assert_eq!(held(&image), Some(Mode::Exclusive));
    assert!(matches!(space.create(&image), Err(LockFileError::Busy(_))));
    assert!(matches!(space.delete(&image), Err(LockFileError::Busy(_))));
    lease.release().unwrap();
    assert_eq!(held(&image), None);
    assert_eq!(fs::read(&image).unwrap(), b"content");

    space.delete(&image).unwrap();
    assert!(is_empty(dir.path()));
}

// Owners, kept holds and leases

#[test]
fn an_owner_that_holds_shared_twice_must_release_twice() {
    let (dir, space) = verbatim();
    for _ in 0..2 {
        granted(&space, ONE, Request::shared("a").auto_create()).keep();
    }
    assert_eq!(owners_of(&space, "a"), BTreeMap::from([(ONE, 2)]));
    space.release(ONE, "a").unwrap();
    assert_eq!(owners_of(&space, "a"), BTreeMap::from([(ONE, 1)]));
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Shared));
    space.release(ONE, "a").unwrap();
    assert!(is_empty(dir.path()));
    assert_not_held(space.release(ONE, "a"), ONE, "a");
}

#[test]
fn release_owner_ends_every_kept_hold_of_the_owner_double_ones_too() {
    let (dir, space) = verbatim();
    for name in ["a", "b", "b", "c", "c", "c"] {
        granted(&space, ONE, Request::shared(name).auto_create()).keep();
    }
    granted(&space, ONE, Request::exclusive("d").auto_create()).keep();
    let released = space.release_owner(ONE);
    assert_eq!((released.holds, released.leftovers.len()), (7, 0));
    assert!(is_empty(dir.path()));
    assert!(space.list().is_empty());
    assert_eq!(space.release_owner(ONE).holds, 0);
}

#[test]
fn release_owner_ends_nobody_elses_holds() {
    let (dir, space) = verbatim();
    let three = OwnerId::new(3);
    granted(&space, ONE, Request::shared("a").auto_create()).keep();
    granted(&space, TWO, Request::shared("a").auto_create()).keep();
    granted(&space, three, Request::shared("a").auto_create()).keep();
    granted(&space, ONE, Request::exclusive("b").auto_create()).keep();
    granted(&space, three, Request::exclusive("c").auto_create()).keep();
    assert_eq!(space.release_owner(TWO).holds, 1);
    assert_eq!(owners_of(&space, "a"), BTreeMap::from([(ONE, 1), (three, 1)]));
    assert_eq!(owners_of(&space, "b"), BTreeMap::from([(ONE, 1)]));
    assert_eq!(owners_of(&space, "c"), BTreeMap::from([(three, 1)]));
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Shared));
    assert_eq!(held(&dir.path().join("b")), Some(Mode::Exclusive));
}

#[test]
fn release_owner_leaves_leases_alone() {
    let (_dir, space) = verbatim();
    let leased = granted(&space, ONE, Request::shared("a").auto_create());
    granted(&space, ONE, Request::shared("a").auto_create()).keep();
    let other = granted(&space, ONE, Request::exclusive("b").auto_create());
    assert_eq!(space.release_owner(ONE).holds, 1);
    assert_eq!(owners_of(&space, "a"), BTreeMap::from([(ONE, 1)]));
    assert_eq!(held(leased.path()), Some(Mode::Shared));
    assert_eq!(held(other.path()), Some(Mode::Exclusive));
}

#[test]
fn a_lease_cannot_be_released_by_its_name() {
    let (_dir, space) = verbatim();
    let lease = granted(&space, ONE, Request::exclusive("a").auto_create());
    assert_not_held(space.release(ONE, "a"), ONE, "a");
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
}

#[test]
fn a_kept_hold_outlives_its_lease_until_it_is_released() {
    let (dir, space) = verbatim();
    granted(&space, ONE, Request::exclusive("a").auto_create()).keep();
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Exclusive));
    assert_eq!(busy(&space, TWO, Request::exclusive("a")).owners(), [ONE]);
    space.release(ONE, "a").unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn a_kept_hold_can_be_taken_back_as_a_lease() {
    let (dir, space) = verbatim();
    granted(&space, ONE, Request::exclusive("a").auto_create()).keep();
    let lease = space.retake(ONE, "a").unwrap();
    assert_eq!((lease.name(), lease.owner()), ("a".as_ref(), ONE));
    assert_eq!((lease.mode(), lease.path()), (Mode::Exclusive, &*dir.path().join("a")));
    assert_eq!(space.release_owner(ONE).holds, 0);
    assert_not_held(space.release(ONE, "a"), ONE, "a");
    assert_not_held(space.retake(ONE, "a").map(drop), ONE, "a");
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
    drop(lease);
    assert!(is_empty(dir.path()));
}

#[test]
fn of_two_kept_holds_one_can_be_taken_back() {
    let (_dir, space) = verbatim();
    for _ in 0..2 {
        granted(&space, ONE, Request::shared("a").auto_create()).keep();
    }
    let lease = space.retake(ONE, "a").unwrap();
    assert_eq!(space.release_owner(ONE).holds, 1);
    assert_eq!(held(lease.path()), Some(Mode::Shared));
}

#[test]
fn releasing_what_is_not_held_is_an_error_that_changes_nothing() {
    let (dir, space) = verbatim();
    granted(&space, ONE, Request::exclusive("a").auto_create()).keep();
    space.create("b").unwrap();
    assert_not_held(space.release(TWO, "a"), TWO, "a");
    assert_not_held(space.retake(TWO, "a").map(drop), TWO, "a");
    assert_not_held(space.release(ONE, "b"), ONE, "b");
    assert_not_held(space.release(ONE, "nothing"), ONE, "nothing");
    assert_eq!(space.release_owner(TWO).holds, 0);
    assert_eq!(owners_of(&space, "a"), BTreeMap::from([(ONE, 1)]));
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Exclusive));
    assert!(dir.path().join("b").exists());
    space.release(ONE, "a").unwrap();
}

#[test]
fn the_list_tells_all_that_is_held() {
    let (dir, space) = verbatim();
    assert!(space.list().is_empty());
    space.create("a").unwrap();
    let _leases = [
        granted(&space, ONE, Request::exclusive("a")),
        granted(&space, ONE, Request::shared("b").auto_create().range(ByteRange::WHOLE_FILE)),
        granted(&space, TWO, Request::shared("b").auto_create().range(ByteRange::WHOLE_FILE)),
    ];
    granted(&space, TWO, Request::shared("b").range(ByteRange::WHOLE_FILE)).keep();
    let mut list = space.list();
    list.sort_by(|a, b| a.name.cmp(&b.name));
    let [a, b] = &list[..] else { panic!("{list:?}") };

    assert_eq!((&*a.name, &*a.path), ("a".as_ref(), &*dir.path().join("a")));
    assert_eq!((a.mode, a.origin, a.range), (Mode::Exclusive, Origin::Existing, ByteRange::FIRST));
    assert_eq!(a.owners, BTreeMap::from([(ONE, 1)]));

    assert_eq!((&*b.name, &*b.path), ("b".as_ref(), &*dir.path().join("b")));
    assert_eq!((b.mode, b.origin), (Mode::Shared, Origin::AutoCreated));
    assert_eq!(b.range, ByteRange::WHOLE_FILE);
    assert_eq!(b.owners, BTreeMap::from([(ONE, 1), (TWO, 2)]));
}

#[test]
fn of_several_shared_holds_the_first_decides_whether_the_file_goes() {
    let (dir, space) = verbatim();
    space.create("a").unwrap();
    let first = granted(&space, ONE, Request::shared("a"));
    let second = granted(&space, TWO, Request::shared("a").auto_create());
    assert_eq!(space.list()[0].origin, Origin::Existing);
    drop((first, second));
    assert!(dir.path().join("a").exists());

    let first = granted(&space, ONE, Request::shared("a").auto_create());
    let second = granted(&space, TWO, Request::shared("a"));
    assert_eq!(space.list()[0].origin, Origin::AutoCreated);
    drop((first, second));
    assert!(is_empty(dir.path()));
}

#[test]
fn dropping_the_last_handle_releases_kept_holds() {
    let (dir, space) = verbatim();
    granted(&space, ONE, Request::exclusive("a").auto_create()).keep();
    granted(&space, ONE, Request::shared("b").auto_create()).keep();
    granted(&space, TWO, Request::shared("b").auto_create()).keep();
    let clone = space.clone();
    drop(space);
    assert_eq!(held(&dir.path().join("a")), Some(Mode::Exclusive));
    drop(clone);
    assert!(is_empty(dir.path()));
}

#[test]
fn dropping_the_last_handle_releases_kept_holds_although_a_lease_lives_on() {
    let (dir, space) = verbatim();
    granted(&space, ONE, Request::exclusive("a").auto_create()).keep();
    let lease = granted(&space, ONE, Request::exclusive("b").auto_create());
    drop(space);
    assert!(!dir.path().join("a").exists());
    assert_eq!(held(lease.path()), Some(Mode::Exclusive));
}

#[test]
fn a_lease_lives_on_when_the_last_handle_is_dropped() {
    let (dir, space) = verbatim();
    let lease = granted(&space, ONE, Request::shared("a").auto_create());
    granted(&space, ONE, Request::shared("a").auto_create()).keep();
    drop(space);
    assert_eq!(held(lease.path()), Some(Mode::Shared));
    lease.verify().unwrap();
    lease.release().unwrap();
    assert!(is_empty(dir.path()));
}

#[test]
fn the_space_says_which_bytes_are_locked_unless_the_request_does() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::builder(Naming::verbatim(dir.path())).range(ByteRange::WHOLE_FILE);
    let space = space.open().unwrap();
    let lease = granted(&space, ONE, Request::exclusive("a").auto_create());
    assert_eq!(
        [0, 1, i64::MAX - 1].map(|at| held_at(lease.path(), at)),
        [Some(Mode::Exclusive); 3]
    );
    let first = Request::exclusive("b").auto_create().range(ByteRange::FIRST);
    let lease = granted(&space, ONE, first);
    assert_eq!([0, 1].map(|at| held_at(lease.path(), at)), [Some(Mode::Exclusive), None]);
}

// Names

#[test]
fn in_memory_a_resource_has_no_file_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    in_child(|| {
        env::set_current_dir(dir.path()).unwrap();
        let space = LockSpace::open(Naming::in_memory()).unwrap();
        let before = open_numbers();
        space.create("a").unwrap();
        let lease = granted(&space, ONE, Request::exclusive("a"));
        assert_eq!(lease.path(), Path::new(""));
        let busy = busy(&space, TWO, Request::shared("a").auto_create());
        assert_eq!((busy.owners(), busy.path()), (&[ONE][..], Path::new("")));
        assert!(matches!(space.delete("a"), Err(LockFileError::Busy(_))));
        let held = &space.list()[0];
        assert_eq!((held.origin, &*held.path), (Origin::InMemory, Path::new("")));
        lease.verify().unwrap();
        assert_eq!(open_numbers(), before);
        assert!(is_empty(dir.path()));
        lease.release().unwrap();
        granted(&space, TWO, Request::exclusive("a").auto_create()).release().unwrap();
    });
}

#[test]
fn in_memory_a_resource_that_nobody_holds_can_be_deleted() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    space.create("a").unwrap();
    space.delete("a").unwrap();
}

#[test]
fn two_spaces_in_memory_are_strangers() {
    let [one, two] = [(); 2].map(|()| LockSpace::open(Naming::in_memory()).unwrap());
    let _first = granted(&one, ONE, Request::exclusive("a"));
    let _second = granted(&two, ONE, Request::exclusive("a"));
}

/// The one file in the directory of a space of this naming, while it holds `name`.
fn file_of(naming: impl Fn(&Path) -> Naming, name: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(naming(dir.path())).unwrap();
    let lease = granted(&space, ONE, Request::exclusive(name).auto_create());
    let files: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    assert_eq!(lease.path(), dir.path().join(file));
    file.to_str().unwrap().to_owned()
}

#[test]
fn verbatim_a_lock_file_is_named_as_the_resource() {
    assert_eq!(file_of(|dir| Naming::verbatim(dir), ".lxc container"), ".lxc container");
}

#[test]
fn by_md5_a_lock_file_has_the_name_that_md5sum_prints() {
    // printf %s /img/a.qcow2 | md5sum
    assert_eq!(file_of(|dir| Naming::md5(dir), "/img/a.qcow2"), "59037f137443e7768f03e6883a46ca61");
}

#[cfg(feature = "sha256")]
#[test]
fn by_sha256_a_lock_file_has_the_name_that_sha256sum_prints() {
    // printf %s /img/a.qcow2 | sha256sum
    let hash = "702c8ea5a72e95021434919a4e49fe0b2b5473d8c7f3a3e0bfe2c7e668c00596";
    assert_eq!(file_of(|dir| Naming::sha256(dir), "/img/a.qcow2"), hash);
}
