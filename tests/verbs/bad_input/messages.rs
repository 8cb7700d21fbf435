//! What errors say.

use std::fs;
use std::io;

use super::descriptors::LIMIT;
use super::{VM, file, folder, granted, refused};
use crate::support::alone::alone;
use crate::support::forked::ask_child;
use crate::support::process::exhaust_descriptors;
use crate::support::spaces::B;
use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};

#[test]
fn a_busy_resource_is_told_with_its_holders_and_its_lock_file() {
    let dir = folder();
    let space = LockSpace::open(Naming::md5(dir.path())).unwrap();
    let second = LockSpace::open(Naming::md5(dir.path())).unwrap();
    let name = "/img/a.qcow2";
    let lease = granted(&space, Request::exclusive(name).auto_create());
    let file = lease.path().display().to_string();
    let said =
        |space: &LockSpace, request| space.acquire(B, request, Wait::NO).unwrap_err().to_string();
    assert_eq!(
        said(&space, Request::shared(name)),
        format!(
            r#""/img/a.qcow2" is busy: held exclusive by owner 4711; asked for shared ({file})"#
        )
    );
    assert_eq!(
        said(&second, Request::exclusive(name)),
        format!(
            r#""/img/a.qcow2" is busy: held outside this lock space, exclusive on byte 0; asked for exclusive ({file})"#
        )
    );
    drop(lease);

    let first = granted(&space, Request::shared(name).auto_create());
    let said_one = said(&space, Request::exclusive(name));
    let more = space.acquire(OwnerId::new(5000), Request::shared(name), Wait::NO).unwrap();
    assert_eq!(
        [said_one, said(&space, Request::exclusive(name))],
        ["", " and 1 more"].map(|more| format!(
            r#""/img/a.qcow2" is busy: held shared by owner 4711{more}; asked for exclusive ({file})"#
        ))
    );
    drop((first, more));
}

#[test]
fn a_missing_file_is_told_with_what_to_do() {
    let dir = folder();
    let said = |naming, request| refused(&LockSpace::open(naming).unwrap(), request).to_string();
    // printf 'a\n' | md5sum
    let hash = dir.path().join("60b725f10c9c85c70d97880dfe8191b3");
    assert_eq!(
        said(Naming::md5(dir.path()), Request::exclusive("a\n")),
        format!(
            r#""a\n" has no lock file {}: create it, or ask with auto_create()"#,
            hash.display()
        )
    );
    assert_eq!(
        said(Naming::verbatim(dir.path()), Request::exclusive("a")),
        format!(
            r#""a" has no lock file {}/a: create it, or ask with auto_create()"#,
            dir.path().display()
        )
    );
    assert_eq!(said(Naming::direct(), Request::shared("/no/a")), r#""/no/a" does not exist"#);
}

#[test]
fn a_failed_system_call_is_told_with_the_path_and_the_kernels_answer() {
    alone(|| {
        let dir = folder();
        let image = file(dir.path().join("a"), 0o600);
        let said = ask_child(|| {
            let space = LockSpace::open(Naming::direct()).unwrap();
            let _taken = exhaust_descriptors(LIMIT);
            refused(&space, Request::exclusive(&image))
        });
        let image = image.display();
        assert_eq!(said, format!("openat {image}: Too many open files (os error 24)"));
    });
}

#[test]
fn what_is_wrong_with_a_request_is_told() {
    let dir = folder();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();
    let said = |space: &LockSpace, name: &str| {
        refused(space, Request::exclusive(name).auto_create()).to_string()
    };
    assert_eq!(said(&space, ""), r#""" cannot be locked: the name is empty"#);
    assert_eq!(
        said(&space, "../x"),
        r#""../x" cannot be locked: the name is not one path component"#
    );
    assert_eq!(
        said(&direct, "/img/a"),
        r#""/img/a" cannot be locked: a direct space does not create files"#
    );
    assert_eq!(
        refused(&direct, Request::exclusive("/dev/null")).to_string(),
        r#""/dev/null" cannot be locked: /dev/null is a character device, neither a regular file nor a block device"#
    );
}

#[test]
fn a_line_break_in_a_name_or_a_path_forges_no_line() {
    const EVIL: &str = "a\n\"b\" is free\u{1b}[2K";
    let folder = folder();
    let dir = folder.path().join(EVIL);
    fs::create_dir(&dir).unwrap();
    let evil_file = file(dir.join("file\n"), 0o600);
    fs::create_dir(dir.join("directory\n")).unwrap();
    let space = LockSpace::open(Naming::verbatim(&dir)).unwrap();
    let second = LockSpace::open(Naming::verbatim(&dir)).unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();

    let mut said = vec![refused(&space, Request::exclusive(EVIL)).to_string()];
    let lease = granted(&space, Request::exclusive(EVIL).auto_create());
    said.extend([
        refused(&space, Request::exclusive(EVIL)).to_string(),
        refused(&second, Request::exclusive(EVIL)).to_string(),
        space.delete(EVIL).unwrap_err().to_string(),
        space.create(EVIL).unwrap_err().to_string(),
        space.release(VM, EVIL).unwrap_err().to_string(),
        refused(&space, Request::exclusive("directory\n")).to_string(),
        refused(&direct, Request::exclusive(dir.join("missing"))).to_string(),
        refused(&direct, Request::exclusive(evil_file.join("below"))).to_string(),
        refused(&direct, Request::exclusive(EVIL)).to_string(),
        space.delete("missing\n").unwrap_err().to_string(),
        space.delete("directory\n").unwrap_err().to_string(),
        LockSpace::open(Naming::md5(&evil_file)).unwrap_err().to_string(),
    ]);
    fs::rename(lease.path(), dir.join("away")).unwrap();
    said.push(lease.verify().unwrap_err().to_string());
    fs::rename(&dir, folder.path().join("elsewhere")).unwrap();
    said.push(refused(&space, Request::exclusive("other\n").auto_create()).to_string());
    for line in said {
        assert!(!line.contains(char::is_control), "{line:?}");
        assert!(!line.contains("\"b\" is free"), "an unescaped quote: {line}");
    }
}

#[test]
fn an_error_has_its_cause_as_source() {
    use std::error::Error;
    let direct = LockSpace::open(Naming::direct()).unwrap();
    let error = refused(&direct, Request::exclusive("/dev/null/a"));
    let cause = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    assert_eq!(cause.map(io::Error::kind), Some(io::ErrorKind::NotADirectory));
}
