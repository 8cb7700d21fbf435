//! What is held by one name is refused by any other.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;

use super::{aliases, spellings};
use crate::support::forked::in_child;
use crate::support::locks::held;
use crate::support::spaces::{A, B, BOTH, bad, busy, direct, granted, image, verbatim};
use lockspace::{ByteRange, LockFileError, LockSpace, Mode, Naming, Request, Target, Wait};

#[test]
fn in_a_direct_space_an_alias_of_a_held_image_is_refused_and_names_the_owner() {
    let (dir, image) = image();
    let space = direct();
    let aliases = aliases(dir.path());
    let _lease = granted(&space, A, Request::exclusive(&image));
    for alias in &aliases {
        for mode in BOTH {
            let busy = busy(&space, B, Request::new(mode, alias));
            assert_eq!((busy.owners(), busy.held()), (&[A][..], Some(Mode::Exclusive)));
            assert_eq!((busy.name(), busy.path()), (alias.as_os_str(), &**alias));
        }
    }
    assert_eq!(space.list().len(), 1);
}

#[test]
fn an_alias_is_refused_to_the_owner_of_the_hold_too() {
    let (dir, image) = image();
    let space = direct();
    let _lease = granted(&space, A, Request::exclusive(&image));
    for alias in &aliases(dir.path()) {
        busy(&space, A, Request::exclusive(alias));
    }
}

#[test]
fn an_image_that_is_held_by_an_alias_is_refused_by_its_own_name() {
    let (dir, image) = image();
    for alias in &aliases(dir.path()) {
        let space = direct();
        let _lease = granted(&space, A, Request::exclusive(alias));
        assert_eq!(busy(&space, B, Request::exclusive(&image)).owners(), [A]);
    }
}

#[test]
fn shared_holds_by_two_names_keep_an_exclusive_one_out_by_any_name() {
    let (dir, image) = image();
    let space = direct();
    let aliases = aliases(dir.path());
    let by_name = granted(&space, A, Request::shared(&image));
    let by_alias = granted(&space, B, Request::shared(&aliases[0]));
    for name in aliases.iter().chain([&image]) {
        busy(&space, A, Request::exclusive(name));
    }
    by_name.release().unwrap();
    assert_eq!(busy(&space, A, Request::exclusive(&image)).owners(), [B]);
    assert_eq!(held(&image), Some(Mode::Shared));
    by_alias.release().unwrap();
    let _lease = granted(&space, A, Request::exclusive(&image));
}

#[test]
fn a_second_space_in_the_process_is_refused_and_says_held_outside() {
    let (dir, image) = image();
    let (space, second) = (direct(), direct());
    let aliases = aliases(dir.path());
    let _lease = granted(&space, A, Request::exclusive(&image));
    for name in aliases.iter().chain([&image]) {
        for mode in BOTH {
            let busy = busy(&second, A, Request::new(mode, name));
            assert_eq!((busy.owners(), busy.held()), (&[][..], None));
        }
    }
    assert!(second.list().is_empty());
}

#[test]
fn a_second_space_on_another_spelling_of_the_directory_is_refused() {
    let (dir, space) = verbatim();
    let _lease = granted(&space, A, Request::exclusive("a").auto_create());
    let elsewhere = tempfile::tempdir().unwrap();
    let link = elsewhere.path().join("link");
    symlink(dir.path(), &link).unwrap();
    for other in [dir.path().to_owned(), link, dir.path().join(".")] {
        let second = LockSpace::open(Naming::verbatim(other)).unwrap();
        assert!(busy(&second, A, Request::exclusive("a").auto_create()).owners().is_empty());
    }
}

#[test]
fn refused_calls_do_not_weaken_what_is_held() {
    let (dir, image) = image();
    let (space, second) = (direct(), direct());
    let aliases = aliases(dir.path());
    let file = File::options().read(true).write(true).open(&image).unwrap();
    for held_as in BOTH {
        let lease = granted(&space, A, Request::new(held_as, &image));
        // What is refused beside a shared hold is exclusive.
        let asked = if held_as == Mode::Shared { &BOTH[..1] } else { &BOTH[..] };
        for name in aliases.iter().chain([&image]) {
            for space in [&space, &second] {
                for &mode in asked {
                    busy(space, B, Request::new(mode, name));
                    busy(space, B, Request::new(mode, name).range(ByteRange::WHOLE_FILE));
                    busy(space, B, Request::new(mode, Target::opened("opened", &file)));
                }
                assert!(matches!(space.delete(name), Err(LockFileError::Busy(_))));
                bad(space, B, Request::exclusive("relative"));
                let missing = dir.path().join("missing");
                space.acquire(B, Request::exclusive(&missing), Wait::NO).unwrap_err();
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
    let lease = granted(&direct(), A, Request::exclusive(&image));
    in_child(|| {
        let space = direct();
        for name in aliases.iter().chain([&image]) {
            assert!(busy(&space, A, Request::exclusive(name)).owners().is_empty());
        }
    });
    lease.verify().unwrap();
}

#[test]
fn files_that_are_opened_and_closed_elsewhere_in_the_process_take_nothing_away() {
    let (dir, image) = image();
    let alias = dir.path().join("hard");
    fs::hard_link(&image, &alias).unwrap();
    let lease = granted(&direct(), A, Request::exclusive(&image));
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
    let lease = granted(&space, A, Request::exclusive(Target::image(&image)).auto_create());
    assert_eq!(lease.name(), resolved.as_os_str());
    for alias in spellings(dir.path()).iter().chain([&link]) {
        let request = Request::exclusive(Target::image(alias)).auto_create();
        let busy = busy(&space, B, request);
        assert_eq!((busy.owners(), busy.name()), (&[A][..], resolved.as_os_str()));
        assert_eq!(fs::read_dir(locks.path()).unwrap().count(), 1);
    }
    lease.release().unwrap();
    let lease = granted(&space, A, Request::exclusive(Target::image(&link)).auto_create());
    assert_eq!(lease.name(), resolved.as_os_str());
}

#[test]
fn an_image_is_one_resource_by_whatever_spelling_in_a_direct_space() {
    let (dir, image) = image();
    let resolved = fs::canonicalize(&image).unwrap();
    let space = direct();
    let aliases = aliases(dir.path());
    for alias in &aliases[1..] {
        granted(&space, A, Request::shared(Target::image(alias))).keep();
    }
    let [held] = &space.list()[..] else { panic!("{:?}", space.list()) };
    assert_eq!(held.name, resolved.as_os_str());
    assert_eq!(held.owners[&A] as usize, aliases.len() - 1);
}

#[test]
fn names_are_taken_byte_by_byte_where_no_image_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::md5(dir.path())).unwrap();
    let _leases = ["/img/a", "/img//a", "/img/./a", "/img/a/"]
        .map(|name| granted(&space, A, Request::exclusive(name).auto_create()));
    assert_eq!(space.list().len(), 4);
}
