//! libvirt's faults are absent: one file by two names, a file that comes and goes, an image that a
//! release removes.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::support::process::{held, held_at, in_child, is_root, unshare_mounts};
use crate::support::waits::{LONG, start};
use lockspace::{
    AcquireError, Busy, ByteRange, HeldBy, InvalidRequest, Lease, LockFileError, LockSpace, Mode,
    Naming, OwnerId, Request, Target, VerifyError, Wait,
};
use tempfile::TempDir;

const ONE: OwnerId = OwnerId::new(1);
const TWO: OwnerId = OwnerId::new(2);
const BOTH: [Mode; 2] = [Mode::Exclusive, Mode::Shared];

fn direct() -> LockSpace {
    LockSpace::open(Naming::direct()).unwrap()
}

fn verbatim() -> (TempDir, LockSpace) {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    (dir, space)
}

/// An image with a content.
fn image() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("a.qcow2");
    fs::write(&image, "content").unwrap();
    (dir, image)
}

/// Other names of `a.qcow2` in this directory: links and spellings.
fn aliases(dir: &Path) -> Vec<PathBuf> {
    let image = dir.join("a.qcow2");
    let [hard, soft, folder] = ["hard", "soft", "folder"].map(|name| dir.join(name));
    fs::hard_link(&image, &hard).unwrap();
    symlink(&image, &soft).unwrap();
    fs::create_dir(&folder).unwrap();
    let mut aliases = vec![hard, soft];
    aliases.extend(spellings(dir));
    aliases
}

/// Other spellings of `a.qcow2`, in a directory that has a `folder`.
fn spellings(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.to_str().unwrap();
    ["//a.qcow2", "/./a.qcow2", "/folder/../a.qcow2", "/folder/..//./a.qcow2"]
        .map(|tail| format!("{dir}{tail}").into())
        .to_vec()
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
fn bad(space: &LockSpace, request: Request<'_>) -> InvalidRequest {
    match space.acquire(TWO, request, Wait::NO) {
        Err(AcquireError::Invalid { why, .. }) => why,
        other => panic!("not bad: {other:?}"),
    }
}

fn is_empty(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().next().is_none()
}

// One file by many names

#[test]
fn in_a_direct_space_an_alias_of_a_held_image_is_refused_and_names_the_owner() {
    let (dir, image) = image();
    let space = direct();
    let aliases = aliases(dir.path());
    let _lease = granted(&space, ONE, Request::exclusive(&image));
    for alias in &aliases {
        for mode in BOTH {
            let busy = busy(&space, TWO, Request::new(mode, alias));
            assert_eq!((busy.owners(), busy.held()), (&[ONE][..], Some(Mode::Exclusive)));
            assert_eq!((busy.name(), busy.path()), (alias.as_os_str(), &**alias));
        }
    }
    assert_eq!(space.list().len(), 1);
}

#[test]
fn an_alias_is_refused_to_the_owner_of_the_hold_too() {
    let (dir, image) = image();
    let space = direct();
    let _lease = granted(&space, ONE, Request::exclusive(&image));
    for alias in &aliases(dir.path()) {
        busy(&space, ONE, Request::exclusive(alias));
    }
}

#[test]
fn an_image_that_is_held_by_an_alias_is_refused_by_its_own_name() {
    let (dir, image) = image();
    for alias in &aliases(dir.path()) {
        let space = direct();
        let _lease = granted(&space, ONE, Request::exclusive(alias));
        assert_eq!(busy(&space, TWO, Request::exclusive(&image)).owners(), [ONE]);
    }
}

#[test]
fn shared_holds_by_two_names_keep_an_exclusive_one_out_by_any_name() {
    let (dir, image) = image();
    let space = direct();
    let aliases = aliases(dir.path());
    let by_name = granted(&space, ONE, Request::shared(&image));
    let by_alias = granted(&space, TWO, Request::shared(&aliases[0]));
    for name in aliases.iter().chain([&image]) {
        busy(&space, ONE, Request::exclusive(name));
    }
    by_name.release().unwrap();
    assert_eq!(busy(&space, ONE, Request::exclusive(&image)).owners(), [TWO]);
    assert_eq!(held(&image), Some(Mode::Shared));
    by_alias.release().unwrap();
    let _lease = granted(&space, ONE, Request::exclusive(&image));
}

#[test]
fn a_second_space_in_the_process_is_refused_and_says_held_outside() {
    let (dir, image) = image();
    let (space, second) = (direct(), direct());
    let aliases = aliases(dir.path());
    let _lease = granted(&space, ONE, Request::exclusive(&image));
    for name in aliases.iter().chain([&image]) {
        for mode in BOTH {
            let busy = busy(&second, ONE, Request::new(mode, name));
            assert_eq!((busy.owners(), busy.held()), (&[][..], None));
        }
    }
    assert!(second.list().is_empty());
}

#[test]
fn a_second_space_on_another_spelling_of_the_directory_is_refused() {
    let (dir, space) = verbatim();
    let _lease = granted(&space, ONE, Request::exclusive("a").auto_create());
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link");
    symlink(dir.path(), &link).unwrap();
    for other in [dir.path().to_owned(), link, dir.path().join(".")] {
        let second = LockSpace::open(Naming::verbatim(other)).unwrap();
        assert!(busy(&second, ONE, Request::exclusive("a").auto_create()).owners().is_empty());
    }
}

#[test]
fn refused_calls_do_not_weaken_what_is_held() {
    let (dir, image) = image();
    let (space, second) = (direct(), direct());
    let aliases = aliases(dir.path());
    let file = File::options().read(true).write(true).open(&image).unwrap();
    for held_as in BOTH {
        let lease = granted(&space, ONE, Request::new(held_as, &image));
        // What is refused beside a shared hold is exclusive.
        let asked = if held_as == Mode::Shared { &BOTH[..1] } else { &BOTH[..] };
        for name in aliases.iter().chain([&image]) {
            for space in [&space, &second] {
                for &mode in asked {
                    busy(space, TWO, Request::new(mode, name));
                    busy(space, TWO, Request::new(mode, name).range(ByteRange::WHOLE_FILE));
                    busy(space, TWO, Request::new(mode, Target::opened("opened", &file)));
                }
                assert!(matches!(space.delete(name), Err(LockFileError::Busy(_))));
                bad(space, Request::exclusive("relative"));
                let missing = dir.path().join("missing");
                space.acquire(TWO, Request::exclusive(&missing), Wait::NO).unwrap_err();
            }
            assert_eq!(held(&image), Some(held_as), "after calls on {}", name.display());
        }
        lease.verify().unwrap();
        assert_eq!(fs::read(&image).unwrap(), b"content");
    }
    assert_eq!(held(&image), None);
}

#[test]
fn another_process_is_refused_by_any_name() {
    let (dir, image) = image();
    let aliases = aliases(dir.path());
    let lease = granted(&direct(), ONE, Request::exclusive(&image));
    in_child(|| {
        let space = direct();
        for name in aliases.iter().chain([&image]) {
            assert!(busy(&space, ONE, Request::exclusive(name)).owners().is_empty());
        }
    });
    lease.verify().unwrap();
}

#[test]
fn files_that_are_opened_and_closed_elsewhere_in_the_process_take_nothing_away() {
    let (dir, image) = image();
    let alias = dir.path().join("hard");
    fs::hard_link(&image, &alias).unwrap();
    let lease = granted(&direct(), ONE, Request::exclusive(&image));
    for path in [&image, &alias] {
        drop(File::open(path).unwrap());
        drop(File::options().read(true).write(true).open(path).unwrap());
        File::open(path).unwrap().read_to_string(&mut String::new()).unwrap();
        fs::write(path, "new content").unwrap();
        assert_eq!(held(&image), Some(Mode::Exclusive));
    }
    lease.verify().unwrap();
}

#[test]
fn an_image_is_one_resource_by_whatever_spelling_in_a_space_of_hashed_names() {
    let (dir, image) = image();
    let resolved = fs::canonicalize(&image).unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    let link = dir.path().join("link");
    symlink(&image, &link).unwrap();
    let locks = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    let lease = granted(&space, ONE, Request::exclusive(Target::image(&image)).auto_create());
    assert_eq!(lease.name(), resolved.as_os_str());
    for alias in spellings(dir.path()).iter().chain([&link]) {
        let request = Request::exclusive(Target::image(alias)).auto_create();
        let busy = busy(&space, TWO, request);
        assert_eq!((busy.owners(), busy.name()), (&[ONE][..], resolved.as_os_str()));
        assert_eq!(fs::read_dir(locks.path()).unwrap().count(), 1);
    }
    lease.release().unwrap();
    let lease = granted(&space, ONE, Request::exclusive(Target::image(&link)).auto_create());
    assert_eq!(lease.name(), resolved.as_os_str());
}

#[test]
fn an_image_is_one_resource_by_whatever_spelling_in_a_direct_space() {
    let (dir, image) = image();
    let resolved = fs::canonicalize(&image).unwrap();
    let space = direct();
    let aliases = aliases(dir.path());
    for alias in &aliases[1..] {
        granted(&space, ONE, Request::shared(Target::image(alias))).keep();
    }
    let [held] = &space.list()[..] else { panic!("{:?}", space.list()) };
    assert_eq!(held.name, resolved.as_os_str());
    assert_eq!(held.owners[&ONE] as usize, aliases.len() - 1);
}

#[test]
fn names_are_taken_byte_by_byte_where_no_image_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::md5(dir.path())).unwrap();
    let _leases = ["/img/a", "/img//a", "/img/./a", "/img/a/"]
        .map(|name| granted(&space, ONE, Request::exclusive(name).auto_create()));
    assert_eq!(space.list().len(), 4);
}

// An image that is yet to be made

/// A folder `real`, a symlink `link` to it, and the ways that lead to `new.qcow2` in it.
fn ways_to_new(dir: &Path) -> (PathBuf, Vec<PathBuf>) {
    let dir = fs::canonicalize(dir).unwrap();
    fs::create_dir(dir.join("real")).unwrap();
    symlink("real", dir.join("link")).unwrap();
    let text = dir.to_str().unwrap();
    let ways = ["real", "link", "real/../link", "link/../real", "real/.", "link//"]
        .map(|folder| PathBuf::from(format!("{text}/{folder}/new.qcow2")));
    (dir.join("real/new.qcow2"), ways.to_vec())
}

#[test]
fn a_new_image_is_one_resource_before_and_after_it_is_made() {
    let locks = tempfile::tempdir().unwrap();
    for naming in [Naming::md5(locks.path()), Naming::in_memory()] {
        let dir = tempfile::tempdir().unwrap();
        let (resolved, ways) = ways_to_new(dir.path());
        let space = LockSpace::open(naming).unwrap();
        for way in &ways {
            let new = |way| Request::exclusive(Target::new_image(way)).auto_create();
            let lease = granted(&space, ONE, new(way));
            assert_eq!(lease.name(), resolved.as_os_str());
            let refuses = |request| {
                let busy = busy(&space, TWO, request);
                assert_eq!((busy.owners(), busy.name()), (&[ONE][..], resolved.as_os_str()));
            };
            ways.iter().for_each(|other| refuses(new(other)));
            fs::write(&resolved, "").unwrap();
            for other in &ways {
                refuses(new(other));
                refuses(Request::exclusive(Target::image(other)).auto_create());
                let holders = space.holders(Target::new_image(other)).unwrap();
                assert_eq!(holders[0].by, HeldBy::Owners(vec![ONE]));
                assert_eq!(space.holders(Target::image(other)).unwrap(), holders);
            }
            lease.keep();
            space.release(ONE, &resolved).unwrap();
            // Now that it is there, too.
            let lease = granted(&space, ONE, new(way));
            assert_eq!(lease.name(), resolved.as_os_str());
            fs::remove_file(&resolved).unwrap();
            ways.iter().for_each(|other| refuses(new(other)));
        }
        assert_eq!(fs::read_dir(locks.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_new_image_by_a_relative_path_is_the_same() {
    let (dir, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (resolved, _) = ways_to_new(dir.path());
    in_child(|| {
        let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
        std::env::set_current_dir(dir.path().join("link")).unwrap();
        for way in ["new.qcow2", "./new.qcow2", "../link/new.qcow2"] {
            let request = Request::exclusive(Target::new_image(way)).auto_create();
            assert_eq!(granted(&space, ONE, request).name(), resolved.as_os_str());
        }
        let request = Request::exclusive(Target::new_image("/new.qcow2")).auto_create();
        assert_eq!(granted(&space, ONE, request).name(), "/new.qcow2");
        fs::remove_dir(dir.path().join("real")).unwrap();
        let why = bad(&space, Request::exclusive(Target::new_image("new.qcow2")).auto_create());
        assert_eq!(why, InvalidRequest::NoFolder { folder: ".".into() });
    });
}

#[test]
fn waits_for_a_new_image_meet_by_whatever_spelling() {
    let (dir, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (resolved, ways) = ways_to_new(dir.path());
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    let wait = |owner, way: &Path| {
        let (space, way) = (space.clone(), way.to_owned());
        start(move || {
            let request = Request::exclusive(Target::new_image(&way)).auto_create();
            space.acquire(owner, request, Wait::within(LONG)).unwrap()
        })
    };
    let mut lease = wait(ONE, &ways[0]).join();
    for (way, owner) in ways[1..].iter().zip(2..) {
        // In the queue of the hold, as its name is the same, and not before a file.
        let waiting = wait(OwnerId::new(owner), way).sleeps_for_others();
        lease.release().unwrap();
        lease = waiting.join();
        assert_eq!((lease.name(), space.list().len()), (resolved.as_os_str(), 1));
    }
}

#[test]
fn a_new_image_that_two_requests_name_is_refused() {
    let (dir, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_, ways) = ways_to_new(dir.path());
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    for wait in [Wait::NO, Wait::within(LONG)] {
        let requests = [&ways[0], &ways[1]]
            .map(|way| Request::exclusive(Target::new_image(way)).auto_create());
        match space.acquire_all(ONE, requests, wait) {
            Err(AcquireError::Invalid { why: InvalidRequest::Twice { .. }, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn in_a_direct_space_a_new_image_must_be_there() {
    let dir = tempfile::tempdir().unwrap();
    let (resolved, ways) = ways_to_new(dir.path());
    let space = direct();
    for wait in [Wait::NO, Wait::within(LONG)] {
        for way in &ways {
            let request = || Request::exclusive(Target::new_image(way));
            match space.acquire(ONE, request(), wait.clone()) {
                Err(AcquireError::NotFound { name, path }) => {
                    assert_eq!((name, path), (resolved.clone().into(), resolved.clone()));
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(bad(&space, request().auto_create()), InvalidRequest::AutoCreateInDirect);
            assert!(!resolved.exists());
            fs::write(&resolved, "content").unwrap();
            let lease = space.acquire(ONE, request(), wait.clone()).unwrap();
            assert_eq!(
                (lease.name(), held(&resolved)),
                (resolved.as_os_str(), Some(Mode::Exclusive))
            );
            lease.release().unwrap();
            fs::remove_file(&resolved).unwrap();
        }
    }
}

#[test]
fn what_cannot_be_a_new_image_is_refused() {
    let (dir, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (resolved, ways) = ways_to_new(dir.path());
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a.qcow2"), "").unwrap();
    fs::hard_link(path("a.qcow2"), path("hard")).unwrap();
    for (target, link) in
        [("a.qcow2", "good"), ("missing", "dangling"), ("dangling", "twice"), ("loop", "loop")]
    {
        symlink(target, path(link)).unwrap();
    }
    let namings = [Naming::md5(locks.path()), Naming::in_memory(), Naming::direct()];
    for space in namings.map(|naming| LockSpace::open(naming).unwrap()) {
        let why = |path: &Path| bad(&space, Request::exclusive(Target::new_image(path)));
        for end in ["/", "//", "/.", "/..", "/./", "/../"] {
            let mut way = ways[0].clone().into_os_string();
            way.push(end);
            assert_eq!(why(way.as_ref()), InvalidRequest::NoFileName, "{way:?}");
        }
        for way in ["/", ".", "..", "./", "../"] {
            assert_eq!(why(way.as_ref()), InvalidRequest::NoFileName, "{way:?}");
        }
        assert_eq!(why("".as_ref()), InvalidRequest::Empty);
        assert_eq!(why("/a\0b".as_ref()), InvalidRequest::Nul);
        // Also where the file that it leads to could be made.
        assert_eq!(why(&path("dangling")), InvalidRequest::DanglingSymlink);
        assert_eq!(why(&path("twice")), InvalidRequest::DanglingSymlink);
        let folder = path("nowhere");
        assert_eq!(why(&folder.join("new")), InvalidRequest::NoFolder { folder });
        assert!(matches!(why(&path("real")), InvalidRequest::NotAFile { kind: "a directory", .. }));
        assert!(matches!(why(&path("link")), InvalidRequest::NotAFile { kind: "a directory", .. }));
        let hard = path("hard");
        let request = Request::exclusive(Target::new_image(&hard)).refuse_hard_links();
        assert_eq!(bad(&space, request), InvalidRequest::HardLinks { links: 2 });
        for (way, call) in [("loop", "realpath"), ("a.qcow2/new", "lstat")] {
            let way = path(way);
            let request = Request::exclusive(Target::new_image(&way));
            match space.acquire(ONE, request, Wait::NO) {
                Err(AcquireError::Io(error)) => assert_eq!(error.call, call, "{error}"),
                other => panic!("{other:?}"),
            }
        }
        assert!(space.list().is_empty());
    }
    // A symlink to what is there is resolved.
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    let target = path("good");
    let request = Request::exclusive(Target::new_image(&target)).auto_create();
    let lease = granted(&space, ONE, request);
    assert_eq!(lease.name(), fs::canonicalize(path("a.qcow2")).unwrap().as_os_str());
    assert!(!resolved.exists());
}

/// What the documentation says of bind mounts.
#[test]
fn through_a_bind_mount_an_image_is_two_resources_in_a_directory_and_one_in_a_direct_space() {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};

    if !is_root() {
        return eprintln!("skipped: only root may mount");
    }
    let (dir, image) = image();
    let (other, locks) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    in_child(|| {
        unshare_mounts().unwrap();
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount_change("/", private).unwrap();
        mount_bind(dir.path(), other.path()).unwrap();
        let bound = other.path().join("a.qcow2");
        let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
        let request = |path| Request::exclusive(Target::image(path));
        let _first = granted(&space, ONE, request(&image).auto_create());
        let _second = granted(&space, TWO, request(&bound).auto_create());
        let space = direct();
        let _first = granted(&space, ONE, request(&image));
        assert_eq!(busy(&space, TWO, request(&bound)).owners(), [ONE]);
    });
}

// A way out of the directory

#[test]
fn a_name_that_leads_out_of_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
    let outside = dir.path().join("x");
    for there in [false, true] {
        if there {
            fs::write(&outside, "content").unwrap();
        }
        for mode in BOTH {
            let request = Request::new(mode, "../x").auto_create();
            assert_eq!(bad(&space, request), InvalidRequest::NotOneComponent);
        }
        assert!(matches!(space.create("../x"), Err(LockFileError::Invalid { .. })));
        assert!(matches!(space.delete("../x"), Err(LockFileError::Invalid { .. })));
        assert_eq!(outside.exists(), there);
    }
    assert_eq!(fs::read(&outside).unwrap(), b"content");
}

#[test]
fn a_symlink_in_the_directory_does_not_lead_out_of_it() {
    let (_elsewhere, image) = image();
    let (dir, space) = verbatim();
    symlink(&image, dir.path().join("a")).unwrap();
    for mode in BOTH {
        let why = bad(&space, Request::new(mode, "a").auto_create());
        assert!(matches!(why, InvalidRequest::NotAFile { kind: "a symbolic link", .. }), "{why}");
    }
    assert!(space.delete("a").is_err());
    assert_eq!(fs::read(&image).unwrap(), b"content");
}

// The user's image

#[test]
fn auto_create_in_a_direct_space_is_refused_and_the_image_survives() {
    let (dir, image) = image();
    let space = direct();
    for mode in BOTH {
        let request = Request::new(mode, &image).auto_create();
        assert_eq!(bad(&space, request), InvalidRequest::AutoCreateInDirect);
        let request = Request::new(mode, Target::image(&image)).auto_create();
        assert_eq!(bad(&space, request), InvalidRequest::AutoCreateInDirect);
        let missing = dir.path().join("missing");
        let request = Request::new(mode, &missing).auto_create();
        assert_eq!(bad(&space, request), InvalidRequest::AutoCreateInDirect);
        assert!(!missing.exists());
    }
    assert!(space.list().is_empty());
    assert_eq!(fs::read(&image).unwrap(), b"content");
}

#[test]
fn auto_create_in_a_direct_space_is_refused_beside_a_shared_hold_too() {
    let (_dir, image) = image();
    let space = direct();
    let _lease = granted(&space, ONE, Request::shared(&image));
    let request = Request::shared(&image).auto_create();
    assert_eq!(bad(&space, request), InvalidRequest::AutoCreateInDirect);
}

#[test]
fn releases_in_a_direct_space_leave_the_image_with_its_content() {
    let (_dir, image) = image();
    let space = direct();
    for mode in BOTH {
        granted(&space, ONE, Request::new(mode, &image)).release().unwrap();
        granted(&space, ONE, Request::new(mode, &image)).keep();
        assert_eq!(space.release_owner(ONE).holds, 1);
    }
    assert_eq!(fs::read(&image).unwrap(), b"content");
}

#[test]
fn an_image_gets_no_hold_in_a_space_of_hashed_names_that_touches_it() {
    let (_dir, image) = image();
    let locks = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    let request = Request::exclusive(Target::image(&image)).auto_create();
    let lease = granted(&space, ONE, request);
    assert_eq!(held(&image), None);
    lease.release().unwrap();
    assert!(is_empty(locks.path()));
    assert_eq!(fs::read(&image).unwrap(), b"content");
}

// A file that comes and goes

/// Holds `a`, auto-created, while `meanwhile` puts another file there; the other file must stay.
fn release_after(meanwhile: impl Fn(&Path)) {
    let (dir, space) = verbatim();
    let file = dir.path().join("a");
    for mode in BOTH {
        let lease = granted(&space, ONE, Request::new(mode, "a").auto_create());
        meanwhile(&file);
        assert!(matches!(lease.verify(), Err(VerifyError::Replaced { .. })));
        lease.release().unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"theirs");
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn a_release_does_not_remove_a_file_that_was_renamed_over_the_lock_file() {
    release_after(|file| {
        let new = file.with_extension("new");
        fs::write(&new, "theirs").unwrap();
        fs::rename(&new, file).unwrap();
    });
}

#[test]
fn a_release_does_not_remove_a_file_that_was_made_after_the_lock_file_was_unlinked() {
    release_after(|file| {
        fs::remove_file(file).unwrap();
        fs::write(file, "theirs").unwrap();
    });
}

#[test]
fn a_release_after_the_lock_file_was_unlinked_by_hand_is_no_error() {
    let (dir, space) = verbatim();
    for mode in BOTH {
        let lease = granted(&space, ONE, Request::new(mode, "a").auto_create());
        fs::remove_file(lease.path()).unwrap();
        lease.release().unwrap();
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn a_release_does_not_remove_a_file_of_which_somebody_else_holds_other_bytes() {
    let (dir, space) = verbatim();
    let other = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let far = ByteRange::new(100, std::num::NonZeroU64::MIN).unwrap();
    for mode in BOTH {
        let ours = granted(&space, ONE, Request::new(mode, "a").auto_create());
        let theirs = granted(&other, TWO, Request::new(mode, "a").auto_create().range(far));
        ours.release().unwrap();
        assert_eq!(held_at(theirs.path(), 100), Some(mode));
        theirs.verify().unwrap();
        theirs.release().unwrap();
        assert!(is_empty(dir.path()));
    }
}

#[test]
fn a_file_that_is_deleted_and_made_anew_under_way_is_never_held_twice() {
    const ROUNDS: usize = 300_000;
    const ENOUGH: u64 = 100;
    let dir = tempfile::tempdir().unwrap();
    let spaces = [(); 3].map(|()| LockSpace::open(Naming::verbatim(dir.path())).unwrap());
    let stale = || spaces.iter().map(LockSpace::stale_retries).sum::<u64>();
    let (holders, held, twice) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let hold = |space: &LockSpace, request: fn() -> Request<'static>| {
        for _ in 0..ROUNDS {
            match space.acquire(ONE, request(), Wait::NO) {
                Ok(lease) => {
                    if holders.fetch_add(1, Ordering::SeqCst) != 0 {
                        twice.store(true, Ordering::SeqCst);
                    }
                    held.fetch_add(1, Ordering::SeqCst);
                    thread::yield_now();
                    holders.fetch_sub(1, Ordering::SeqCst);
                    lease.release().unwrap();
                }
                Err(AcquireError::Busy(_) | AcquireError::NotFound { .. }) => {}
                Err(error) => panic!("{error}"),
            }
            let seen = stale() >= ENOUGH && held.load(Ordering::SeqCst) >= 1000;
            if seen || twice.load(Ordering::SeqCst) {
                break;
            }
        }
    };
    thread::scope(|scope| {
        let [creating, finding, deleting] = &spaces;
        let first = scope.spawn(|| hold(creating, || Request::exclusive("a").auto_create()));
        let second = scope.spawn(|| hold(finding, || Request::exclusive("a")));
        while !first.is_finished() || !second.is_finished() {
            deleting.create("a").unwrap();
            match deleting.delete("a") {
                Ok(()) | Err(LockFileError::Busy(_)) => {}
                Err(LockFileError::Io(e)) if e.source.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert!(!twice.load(Ordering::SeqCst), "two held it exclusively");
    assert!(stale() > 0, "nobody met a file that had lost its name, so nothing was shown");
}

#[test]
fn the_last_two_shared_holders_leave_no_file() {
    const ROUNDS: usize = 3000;
    let dir = tempfile::tempdir().unwrap();
    let (held, released) = (Barrier::new(2), Barrier::new(3));
    let (arrived, refused, left) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
                for round in 1..=ROUNDS {
                    let lease = space.acquire(ONE, Request::shared("a").auto_create(), Wait::NO);
                    held.wait();
                    // A barrier wakes one after the other: this lines them up.
                    arrived.fetch_add(1, Ordering::SeqCst);
                    for spins in 0.. {
                        if arrived.load(Ordering::SeqCst) >= 2 * round {
                            break;
                        }
                        if spins > 1000 { thread::yield_now() } else { std::hint::spin_loop() }
                    }
                    // No panic here: the others would wait for ever.
                    if !lease.is_ok_and(|lease| lease.release().is_ok()) {
                        refused.fetch_add(1, Ordering::SeqCst);
                    }
                    released.wait();
                    released.wait();
                }
            });
        }
        for _ in 0..ROUNDS {
            released.wait();
            if fs::remove_file(dir.path().join("a")).is_ok() {
                left.fetch_add(1, Ordering::SeqCst);
            }
            released.wait();
        }
    });
    assert_eq!(refused.into_inner(), 0, "shared holds that were refused, or not released");
    assert_eq!(left.into_inner(), 0, "files that were left");
}

#[test]
fn shared_holders_who_come_and_go_never_refuse_each_other() {
    const ROUNDS: usize = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let refused = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
                for _ in 0..ROUNDS {
                    match space.acquire(ONE, Request::shared("a").auto_create(), Wait::NO) {
                        Ok(lease) => lease.release().unwrap(),
                        Err(AcquireError::Busy(_)) => {
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    let refused = refused.into_inner();
    assert_eq!(refused, 0, "shared tries that were refused, though nobody asked for exclusive");
}

// Hard links

#[test]
fn a_file_with_two_names_is_refused_where_the_request_says_so() {
    let (dir, image) = image();
    let space = direct();
    let hard = dir.path().join("hard");
    fs::hard_link(&image, &hard).unwrap();
    for mode in BOTH {
        for name in [&image, &hard] {
            let request = Request::new(mode, name).refuse_hard_links();
            assert_eq!(bad(&space, request), InvalidRequest::HardLinks { links: 2 });
        }
    }
    assert_eq!(held(&image), None);
    granted(&space, ONE, Request::exclusive(&image)).release().unwrap();
    fs::remove_file(&hard).unwrap();
    granted(&space, ONE, Request::exclusive(&image).refuse_hard_links()).release().unwrap();
}

#[test]
fn an_image_with_two_names_is_refused_behind_hashed_names() {
    let (dir, image) = image();
    let locks = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::md5(locks.path())).unwrap();
    fs::hard_link(&image, dir.path().join("hard")).unwrap();
    for mode in BOTH {
        let request = Request::new(mode, Target::image(&image)).auto_create().refuse_hard_links();
        assert_eq!(bad(&space, request), InvalidRequest::HardLinks { links: 2 });
    }
    assert!(is_empty(locks.path()));
}

#[test]
fn an_open_file_with_two_names_is_refused_where_the_request_says_so() {
    let (dir, image) = image();
    fs::hard_link(&image, dir.path().join("hard")).unwrap();
    let file = File::options().read(true).write(true).open(&image).unwrap();
    let request = Request::exclusive(Target::opened("disk", &file)).refuse_hard_links();
    assert_eq!(bad(&direct(), request), InvalidRequest::HardLinks { links: 2 });
}

#[test]
fn a_file_with_two_names_is_refused_beside_a_shared_hold_too() {
    let (dir, image) = image();
    fs::hard_link(&image, dir.path().join("hard")).unwrap();
    let space = direct();
    let _lease = granted(&space, ONE, Request::shared(&image));
    let request = Request::shared(&image).refuse_hard_links();
    assert_eq!(bad(&space, request), InvalidRequest::HardLinks { links: 2 });
}
