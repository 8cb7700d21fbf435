//! Restores state documents that the fuzzer has edited, with real descriptors behind them.
//!
//! What is refused must have changed nothing: no descriptor, flag, lock or file. What is adopted
//! must be a good state, by another reading of the format than the crate's.
//!
//! An input is either JSON, whole, or a list of edits of the good documents: which place of the
//! tree, and what becomes of it.
#![no_main]

#[path = "../../tests/support/state.rs"]
mod state;

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use lockspace::{ByteRange, LockSpace, Naming, OwnerId, Request, Wait};
use serde_json::{Value, json};
use state::{Picture, is_good_state, leave_behind, numbers_in, restore};

struct World {
    dir: PathBuf,
    good: Value,
    /// Numbers that an edit can name: of locks, and of other things.
    numbers: Vec<i32>,
    /// Two numbers of one lock: the one in the good documents, and its duplicate.
    same: (i32, i32),
}

static WORLD: OnceLock<World> = OnceLock::new();

fn world() -> &'static World {
    WORLD.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap().keep();
        let take = |space: &LockSpace, owner, request| {
            space.acquire(OwnerId::new(owner), request, Wait::NO).unwrap().keep();
        };
        let [md5, verbatim] =
            [Naming::md5(dir.join("md5")), Naming::verbatim(dir.join("verbatim"))].map(|naming| {
                let space = LockSpace::open(naming).unwrap();
                space.create("existing").unwrap();
                take(&space, 1, Request::exclusive("existing"));
                take(&space, 1, Request::exclusive("made").auto_create());
                for owner in [1, 2, 2] {
                    take(&space, owner, Request::shared("shared").auto_create());
                }
                space
            });
        let direct = LockSpace::builder(Naming::direct()).range(ByteRange::WHOLE_FILE);
        let direct = direct.open().unwrap();
        for image in ["a.raw", "b.raw"] {
            fs::write(dir.join(image), "precious").unwrap();
            take(&direct, 1, Request::exclusive(dir.join(image)));
        }
        let memory = LockSpace::open(Naming::in_memory()).unwrap();
        take(&memory, 1, Request::exclusive("m"));
        let good = leave_behind(vec![md5, verbatim, direct, memory], Vec::new());
        let mut numbers = numbers_in(&good);
        let duplicate = state::disown(state::at(numbers[0]).try_clone_to_owned().unwrap());
        let same = (numbers[0], duplicate);
        let image = fs::File::open(dir.join("a.raw")).unwrap();
        let folder = fs::File::open(&dir).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        numbers.extend([duplicate, state::disown(image), state::disown(folder)]);
        numbers.extend([state::disown(reader), state::disown(writer)]);
        World { dir, good, numbers, same }
    })
}

fuzz_target!(|bytes: &[u8]| {
    let world = world();
    let documents = match bytes.split_first() {
        Some((0, text)) => match serde_json::from_slice(text) {
            Ok(documents @ Value::Array(_)) => documents,
            _ => return,
        },
        _ => edited(world, bytes),
    };
    let before = Picture::take(&world.dir);
    let restored = restore(&documents);
    let good = is_good_state(&by_originals(world, &documents), &world.good);
    match restored {
        Ok(spaces) => {
            // They go back to nobody, as they were.
            std::mem::forget(spaces);
            assert!(good, "adopted: {documents}");
        }
        Err(error) => {
            assert!(!good, "refused, {error}: {documents}");
            assert!(error.document < documents.as_array().unwrap().len());
            let entry = error.entry.map(|entry| &documents[error.document]["resources"][entry]);
            assert!(entry.is_none_or(|entry| error.fd == entry["fd"].as_i64()));
            let _ = error.to_string();
        }
    }
    close_others(&before, world);
    assert_eq!(Picture::take(&world.dir), before, "something has changed: {documents}");
});

/// The documents with the duplicate's number replaced by its original's: either is as good, but not
/// both, and then one number is there twice.
fn by_originals(world: &World, documents: &Value) -> Value {
    let mut documents = documents.clone();
    let (original, duplicate) = world.same;
    let all = documents.as_array_mut().into_iter().flatten();
    let entries = all.filter_map(|document| document.get_mut("resources")?.as_array_mut());
    for number in entries.flatten().filter_map(|entry| entry.get_mut("fd")) {
        if number.as_i64() == Some(duplicate.into()) {
            *number = original.into();
        }
    }
    documents
}

/// What adopted spaces have opened for themselves: their directories.
fn close_others(before: &Picture, world: &World) {
    for number in Picture::take(&world.dir).numbers() {
        if !before.numbers().any(|known| known == number) {
            state::close(number);
        }
    }
}

/// The good documents, with an edit for every few bytes.
fn edited(world: &World, mut bytes: &[u8]) -> Value {
    let mut documents = world.good.clone();
    let mut next = || {
        let (&first, rest) = bytes.split_first()?;
        bytes = rest;
        Some(first)
    };
    for _ in 0..16 {
        let (Some(how), Some(high), Some(low)) = (next(), next(), next()) else { break };
        let mut places = Vec::new();
        collect_places(&documents, String::new(), &mut places);
        if places.is_empty() {
            break;
        }
        let pick = |at: u8| &places[(usize::from(high) << 8 | usize::from(at)) % places.len()];
        let place = pick(low).clone();
        let value = match how % 16 {
            0 => None,
            1 => Some(json!(null)),
            2 => Some(json!(i64::from(next().unwrap_or(0)))),
            3 => Some(json!(-i64::from(next().unwrap_or(0)))),
            4 => Some(json!(u64::MAX >> (next().unwrap_or(0) % 64))),
            5 => Some(json!(world.numbers[usize::from(next().unwrap_or(0)) % world.numbers.len()])),
            6 => Some(json!(
                ["", "/", ".", "..", "a", "6d", "opened", "direct"]
                    [usize::from(next().unwrap_or(0)) % 8]
            )),
            7 => Some(json!([])),
            8 => Some(json!({})),
            // What stands at another place.
            9..=12 => documents.pointer(pick(next().unwrap_or(0))).cloned(),
            13 => {
                // A place twice.
                let copy = documents.pointer(&place).cloned();
                let parent = place.rsplit_once('/').map_or("", |(parent, _)| parent);
                if let (Some(copy), Some(Value::Array(list))) =
                    (copy, documents.pointer_mut(parent))
                {
                    list.push(copy);
                }
                continue;
            }
            14 => Some(json!(true)),
            _ => Some(json!(1.5)),
        };
        match value {
            Some(value) => *documents.pointer_mut(&place).unwrap() = value,
            None => {
                let (parent, key) = place.rsplit_once('/').unwrap();
                match documents.pointer_mut(parent).unwrap() {
                    Value::Object(map) => drop(map.remove(key)),
                    Value::Array(list) => drop(list.remove(key.parse().unwrap())),
                    _ => {}
                }
            }
        }
    }
    documents
}

fn collect_places(value: &Value, place: String, places: &mut Vec<String>) {
    let children: Vec<_> = match value {
        Value::Object(map) => map.iter().map(|(key, value)| (key.clone(), value)).collect(),
        Value::Array(list) => list.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        _ => Vec::new(),
    };
    for (key, value) in children {
        let place = format!("{place}/{key}");
        places.push(place.clone());
        collect_places(value, place, places);
    }
}
