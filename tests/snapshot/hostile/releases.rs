//! Releases that the program before has not deferred, or not for these documents.

use std::fs::{self, File};

use super::{DIRECTORY, EXCLUSIVE, World};
use crate::support::alone::alone_in_child;
use crate::support::process::set_variable;
use crate::support::spaces::A;
use crate::support::state::{descriptors, disown, restore};
use lockspace::LockSpace;
use lockspace::snapshot::InvalidEntry;
use serde_json::{Value, json};

/// A file in memory as an exec carries it over, if it is sealed.
fn memory_file(name: &str, content: &Value, sealed: bool) -> i32 {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::io::Write;

    let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let mut file = File::from(fd);
    file.write_all(content.to_string().as_bytes()).unwrap();
    if sealed {
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        fcntl_add_seals(&file, seals).unwrap();
    }
    disown(file)
}

#[test]
fn releases_that_the_program_before_has_not_deferred() {
    const NAME: &str = "lockspace-releases";
    const VARIABLE: &str = "LOCKSPACE_RELEASES";
    alone_in_child(|| {
        let world = World::new();
        let ours = &world.documents[DIRECTORY]["lockspace"];
        // All three resources, by all their owners: "a", "b", "c".
        let all = json!({ "61": { "1": 1 }, "62": { "1": 1 }, "63": { "1": 1, "2": 2 } });
        let state = |releases: &Value| {
            let space = json!({ "document": world.documents[DIRECTORY], "releases": releases });
            json!({ "version": 1, "pid": ours["pid"], "started": ours["started"],
                "spaces": [space] })
        };
        let edited = |edit: fn(&mut Value)| {
            let mut state = state(&all);
            edit(&mut state);
            state
        };
        let held = |spaces: &[LockSpace]| -> Vec<_> {
            spaces.iter().map(|space| space.list().len()).collect()
        };
        // Which descriptors it has closed.
        let ignored = |number: &str| {
            set_variable(VARIABLE, number);
            let before = descriptors();
            let spaces = restore(&world.documents).unwrap();
            assert_eq!(held(&spaces), [3, 2, 1], "{number}");
            std::mem::forget(spaces);
            let after = descriptors();
            before.into_keys().filter(|number| !after.contains_key(number)).collect::<Vec<_>>()
        };
        let lock = world.number(DIRECTORY, EXCLUSIVE).to_string();
        for number in ["", "-1", "0", "1", "999", "x", "18446744073709551616", &lock] {
            assert!(ignored(number).is_empty());
        }
        // It is not understood, or another process's: it stays open, as what is not ours.
        for content in [
            edited(|state| state["version"] = 2.into()),
            edited(|state| state["pid"] = 1.into()),
            edited(|state| state["started"] = 1.into()),
            edited(|state| state["spaces"][0]["releases"]["61"] = json!({ "1": -1 })),
            edited(|state| state["spaces"] = json!(7)),
            json!([]),
            json!("x"),
        ] {
            let number = memory_file(NAME, &content, true);
            assert!(ignored(&number.to_string()).is_empty(), "{content}");
        }
        let path = world.dir.path().join("releases");
        fs::write(&path, state(&all).to_string()).unwrap();
        for number in [
            memory_file(NAME, &state(&all), false),
            memory_file("lockspace-state", &state(&all), true),
            disown(File::open(path).unwrap()),
        ] {
            assert!(ignored(&number.to_string()).is_empty());
        }
        // It is ours, and about other documents.
        for content in [
            edited(|state| state["spaces"][0]["document"]["resources"] = json!([])),
            edited(|state| state["spaces"][0]["document"] = json!(null)),
            edited(|state| state["spaces"] = json!([])),
        ] {
            let number = memory_file(NAME, &content, true);
            assert_eq!(ignored(&number.to_string()), [number], "{content}");
        }

        // What is ours releases nothing but what is held, and nothing at all before all is proven.
        let some = json!({ "63": { "2": u32::MAX, "9": 1 }, "6": { "1": 1 }, "7a": { "1": 1 } });
        let number = memory_file(NAME, &state(&some), true);
        set_variable(VARIABLE, &number.to_string());
        world.refuses_number(0, is!(InvalidEntry::Number));
        // Nor is it taken for a lock.
        world.refuses_number(number, is!(InvalidEntry::OtherFile));
        let spaces = restore(&world.documents).unwrap();
        assert_eq!(held(&spaces), [3, 2, 1]);
        assert!(!descriptors().contains_key(&number), "it is read, and closed");
        let shared = spaces[0].list().into_iter().find(|held| held.name == "c").unwrap();
        assert_eq!(shared.owners, [(A, 1)].into());
    });
}
