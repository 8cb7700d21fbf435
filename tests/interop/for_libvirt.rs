//! What a virtlockd must not be given is refused by name.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::num::NonZeroU64;
use std::os::unix::ffi::OsStrExt;

use crate::support::locks::open;
use crate::virtlockd::{CLIENT, keep};
use lockspace::snapshot::{Document, InvalidEntry, LibvirtLimit, Snapshot};
use lockspace::{ByteRange, InvalidRequest, LockSpace, Naming, OwnerId, Request, Target, Wait};
use serde_json::{Value, json};

/// Why the document of this space is not for libvirt, and of which resource.
fn refusal_of(space: &LockSpace) -> (Option<OsString>, LibvirtLimit) {
    let snapshot = Snapshot::take([space]).unwrap();
    let error = snapshot.documents()[0].for_libvirt().expect_err("it is taken");
    let named = error.name.as_ref().map_or("the document".to_owned(), |name| format!("{name:?}"));
    assert!(error.to_string().contains(&named), "{error}");
    assert!(error.to_string().contains(&error.why.to_string()), "{error}");
    assert_eq!(error.name.is_some(), error.entry.is_some());
    (error.name, error.why)
}

fn is_for_libvirt(space: &LockSpace) {
    let snapshot = Snapshot::take([space]).unwrap();
    let document = &snapshot.documents()[0];
    assert_eq!(document.for_libvirt().unwrap(), document);
}

macro_rules! assert_refused {
    ($space:expr, $name:expr, $why:pat $(if $when:expr)?) => {
        let name: Option<&OsStr> = $name;
        let (named, why) = refusal_of($space);
        assert_eq!(named.as_deref(), name, "{why}");
        assert!(matches!(why, $why $(if $when)?), "{why}");
    };
}

#[test]
fn owners_that_libvirt_would_cut_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let last = OwnerId::new(i32::MAX.unsigned_abs().into());
    for owner in [OwnerId::new(1), last] {
        space.acquire(owner, Request::shared("a").auto_create(), Wait::NO).unwrap().keep();
    }
    is_for_libvirt(&space);
    for owner in [0, 1 << 31, 1 << 32, (1 << 32) + 4711, u64::MAX].map(OwnerId::new) {
        let request = Request::shared("b").auto_create();
        let lease = space.acquire(owner, request, Wait::NO).unwrap();
        assert_refused!(&space, Some("b".as_ref()), LibvirtLimit::Owner(id) if id == owner);
        drop(lease);
    }
    is_for_libvirt(&space);
}

#[test]
fn a_hold_in_memory_is_refused_by_name() {
    for name in ["a", "/img/a"] {
        let space = LockSpace::open(Naming::in_memory()).unwrap();
        is_for_libvirt(&space);
        keep(&space, CLIENT, Request::shared(name));
        assert_refused!(&space, Some(name.as_ref()), LibvirtLimit::InMemory);
    }
}

#[test]
fn what_is_not_utf_8_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let odd = OsStr::from_bytes(b"a\xff");
    let space = LockSpace::open(Naming::verbatim(dir.path().join("locks"))).unwrap();
    // A stranger's, whose name is as the other is written.
    keep(&space, CLIENT, Request::exclusive("a\u{fffd}").auto_create());
    is_for_libvirt(&space);
    keep(&space, CLIENT, Request::exclusive(odd).auto_create());
    assert_refused!(&space, Some(odd), LibvirtLimit::NotUtf8);

    let image = dir.path().join(odd);
    fs::write(&image, "").unwrap();
    let direct = LockSpace::open(Naming::direct()).unwrap();
    keep(&direct, CLIENT, Request::exclusive(&*image));
    assert_refused!(&direct, Some(image.as_os_str()), LibvirtLimit::NotUtf8);

    // Also with nothing in it yet: the daemon would believe in another directory.
    let space =
        LockSpace::open(Naming::verbatim(dir.path().join(OsStr::from_bytes(b"\xff")))).unwrap();
    assert_refused!(&space, None, LibvirtLimit::Directory);
    keep(&space, CLIENT, Request::exclusive("a").auto_create());
    assert_refused!(&space, None, LibvirtLimit::Directory);
}

#[test]
fn names_that_are_not_where_libvirt_looks_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    fs::write(&image, "").unwrap();
    let md5 = LockSpace::open(Naming::md5(dir.path().join("md5"))).unwrap();
    keep(&md5, CLIENT, Request::exclusive("a").auto_create());
    assert_refused!(&md5, Some("a".as_ref()), LibvirtLimit::Path);

    let open = open(&image);
    for naming in
        [Naming::direct(), Naming::verbatim(dir.path().join("locks")), Naming::in_memory()]
    {
        let space = LockSpace::open(naming).unwrap();
        let name = "/disk";
        let request = Request::exclusive(Target::opened(name, &open));
        let lease = space.acquire(CLIENT.into(), request, Wait::NO).unwrap();
        let (named, why) = refusal_of(&space);
        assert_eq!(named.as_deref(), Some(name.as_ref()));
        let of_no_file = LibvirtLimit::Entry(InvalidEntry::Name(InvalidRequest::NotOneComponent));
        let whys = [LibvirtLimit::Path.to_string(), of_no_file.to_string()];
        assert!(whys.contains(&why.to_string()), "{why}");
        lease.release().unwrap();
    }
    // The file's own path is what its clients ask for.
    let direct = LockSpace::open(Naming::direct()).unwrap();
    keep(&direct, CLIENT, Request::exclusive(Target::opened(&image, &open)));
    is_for_libvirt(&direct);
}

#[test]
fn locks_beside_libvirts_byte_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let space = LockSpace::open(Naming::verbatim(dir.path())).unwrap();
    let range = |start, len| ByteRange::new(start, NonZeroU64::new(len).unwrap()).unwrap();
    for wide in [ByteRange::FIRST, ByteRange::WHOLE_FILE, range(0, 200)] {
        let request = Request::exclusive("wide").auto_create().range(wide);
        let lease = space.acquire(CLIENT.into(), request, Wait::NO).unwrap();
        is_for_libvirt(&space);
        lease.release().unwrap();
    }
    let beside = range(100, 4);
    keep(&space, CLIENT, Request::exclusive("beside").auto_create().range(beside));
    assert_refused!(&space, Some("beside".as_ref()), LibvirtLimit::Range(range) if range == beside);
}

/// Documents that no snapshot writes.
#[test]
fn what_the_daemon_would_misread_is_refused_by_name() {
    let good = json!({ "directory": "/locks", "resources": [
        { "name": "a", "path": "/locks/a", "fd": 14, "lockHeld": true, "flags": 2, "owners": [7] },
        { "name": "b", "path": "/locks/b", "fd": 15, "lockHeld": true, "flags": 1, "owners": [7, 7] },
    ] });
    let why = |edit: &dyn Fn(&mut Value)| {
        let mut document = good.clone();
        edit(&mut document);
        let document: Document = serde_json::from_value(document).unwrap();
        document.for_libvirt().map(|_| ()).map_err(|error| error.why)
    };
    assert!(why(&|_| {}).is_ok());
    assert!(why(&|d| d["later"] = 1.into()).is_ok());
    assert!(why(&|d| d["resources"] = json!([])).is_ok());
    macro_rules! refused {
        ($key:literal = $value:tt, $why:pat) => {
            let edited = why(&|d| d["resources"][1][$key] = json!($value));
            assert!(matches!(edited, Err($why)), "{} {}: {edited:?}", $key, json!($value));
        };
    }
    use LibvirtLimit::Entry;
    refused!("fd" = (-1), LibvirtLimit::InMemory);
    refused!("fd" = (-2), Entry(InvalidEntry::Number));
    refused!("fd" = 2, Entry(InvalidEntry::Number));
    refused!("fd" = 0x8000_0000_u32, Entry(InvalidEntry::Number));
    refused!("fd" = "15", Entry(InvalidEntry::Malformed(_)));
    refused!("fd" = 14, Entry(InvalidEntry::DuplicateDescriptor));
    refused!("lockHeld" = false, Entry(InvalidEntry::Unlocked));
    refused!("flags" = 4, Entry(InvalidEntry::Flags(4)));
    refused!("flags" = 0, Entry(InvalidEntry::ExclusiveOwners(2)));
    refused!("owners" = [], Entry(InvalidEntry::NoOwner));
    refused!("owners" = [7, -1], Entry(InvalidEntry::Malformed(_)));
    refused!("owners" = [7, 0], LibvirtLimit::Owner(_));
    refused!("path" = "/locks/a", LibvirtLimit::Path);
    refused!("path" = "b", LibvirtLimit::Path);
    refused!("path" = "/locksb", LibvirtLimit::Path);
    refused!("path" = "/locks/b\0", LibvirtLimit::Path);
    refused!("path" = null, Entry(InvalidEntry::Malformed(_)));
    for (name, path) in
        [("../b", "/locks/../b"), ("..", "/locks/.."), ("", "/locks/"), ("b\0", "/locks/b\0")]
    {
        let edited = why(&|d| {
            d["resources"][1]["name"] = name.into();
            d["resources"][1]["path"] = path.into();
        });
        assert!(matches!(edited, Err(Entry(InvalidEntry::Name(_)))), "{name}: {edited:?}");
    }
    let twice = why(&|d| {
        d["resources"][1]["name"] = "a".into();
        d["resources"][1]["path"] = "/locks/a".into();
    });
    assert!(matches!(twice, Err(Entry(InvalidEntry::DuplicateName))), "{twice:?}");
    for directory in [json!("locks"), json!(""), json!(7), json!(null), json!("/locks\0")] {
        let edited = why(&|d| d["directory"] = directory.clone());
        assert!(matches!(edited, Err(LibvirtLimit::Directory)), "{directory}: {edited:?}");
    }
    // Without one, names are paths, and to unlink one would be to unlink an image.
    let direct = |name: &str, flags: u64| {
        why(&|d| {
            d.as_object_mut().unwrap().remove("directory");
            let entry = json!({ "name": name, "path": name, "fd": 14, "lockHeld": true,
                "flags": flags, "owners": [7] });
            d["resources"] = json!([entry]);
        })
    };
    assert!(direct("/img/a", 0).is_ok());
    assert!(matches!(direct("/img/a", 2), Err(Entry(InvalidEntry::Malformed(_)))));
    assert!(matches!(direct("img/a", 0), Err(Entry(InvalidEntry::Name(InvalidRequest::Relative)))));
    for odd in [json!(null), json!({}), json!([[]]), json!([null])] {
        let edited = why(&|d| d["resources"] = odd.clone());
        assert!(matches!(edited, Err(Entry(InvalidEntry::Malformed(_)))), "{odd}: {edited:?}");
    }
    assert!(matches!(why(&|d| *d = json!([])), Err(Entry(InvalidEntry::Malformed(_)))));
    let later = why(&|d| d["lockspace"] = json!({ "version": 2 }));
    assert!(matches!(later, Err(Entry(InvalidEntry::Version(2)))), "{later:?}");
    let long = why(&|d| d["resources"][1]["owners"] = vec![1_000_000_000; 1 << 20].into());
    assert!(matches!(long, Err(LibvirtLimit::TooLong(len)) if len > 10 << 20), "{long:?}");
}
