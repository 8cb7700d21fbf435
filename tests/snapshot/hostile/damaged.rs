//! Documents that are cut, or of which any value is missing or another.

use super::{DIRECTORY, in_world};
use crate::support::state::{Picture, is_good_state};
use lockspace::snapshot::{Document, InvalidEntry};
use serde_json::{Value, json};

#[test]
fn documents_cut_at_every_byte_are_no_json() {
    in_world(|world| {
        let before = Picture::take(world.dir.path());
        let text = world.documents.to_string();
        for at in 0..text.len() {
            let cut = text.get(..at).unwrap();
            serde_json::from_str::<Vec<Document>>(cut).expect_err("half a document");
            let single = &world.documents[at % 3].to_string();
            let cut = &single[..at.min(single.len() - 1)];
            serde_json::from_str::<Document>(cut).expect_err("half a document");
        }
        assert_eq!(Picture::take(world.dir.path()), before);
    });
}

#[test]
fn documents_cut_at_every_byte_and_closed_again() {
    in_world(|world| {
        // What a careless repair makes of it: all open strings, arrays and objects are closed.
        let text = world.documents.to_string();
        let (mut adopted, mut refused) = (0, 0);
        for at in 0..text.len() {
            let Some(documents) = closed(&text[..at]) else { continue };
            if documents == world.documents || !documents.is_array() {
                continue;
            }
            // Fewer documents, or fewer entries, are a smaller state, and a good one.
            let error = world.refused(&documents);
            let good = is_good_state(&documents, &world.documents);
            assert_eq!(error.is_none(), good, "{error:?}: {documents}");
            if good { adopted += 1 } else { refused += 1 }
        }
        assert!(refused > 200 && adopted > 1, "{refused} {adopted}");
    });
}

/// The text with everything closed that is open at its end, if that is JSON.
fn closed(cut: &str) -> Option<Value> {
    let (mut open, mut in_string, mut escaped) = (Vec::new(), false, false);
    for byte in cut.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' if !in_string => open.push('}'),
            b'[' if !in_string => open.push(']'),
            b'}' | b']' if !in_string => drop(open.pop()),
            _ => {}
        }
    }
    let quote = if in_string { "\"" } else { "" };
    let end: String = open.into_iter().rev().collect();
    serde_json::from_str(&format!("{}{quote}{end}", cut.trim_end_matches(','))).ok()
}

#[test]
fn every_value_missing_or_of_another_type() {
    in_world(|world| {
        let mut places = Vec::new();
        collect_places(&world.documents, String::new(), &mut places);
        assert!(places.len() > 100, "{}", places.len());
        let wrong = [
            json!(null),
            json!(true),
            json!(-1),
            json!(1.5),
            json!("x"),
            json!([]),
            json!([[]]),
            json!({}),
            json!(u64::MAX),
        ];
        let mut refused = 0;
        for place in &places {
            let (parent, key) = place.rsplit_once('/').unwrap();
            let without = world.edited(|all| match all.pointer_mut(parent).unwrap() {
                Value::Object(map) => drop(map.remove(key)),
                Value::Array(list) => drop(list.remove(key.parse().unwrap())),
                _ => unreachable!(),
            });
            let replaced = wrong
                .iter()
                .map(|wrong| world.edited(|all| *all.pointer_mut(place).unwrap() = wrong.clone()));
            for documents in replaced.chain([without]) {
                let error = world.refused(&documents);
                let good = is_good_state(&documents, &world.documents);
                assert_eq!(error.is_none(), good, "{place}: {error:?}: {documents}");
                let Some(error) = error else { continue };
                let mut parts = place.split('/').skip(1);
                let document = parts.next().unwrap().parse::<usize>().unwrap();
                assert_eq!(error.document, document, "{place}: {error}");
                if let (Some("resources"), Some(entry)) = (parts.next(), parts.next()) {
                    assert_eq!(error.entry, entry.parse().ok(), "{place}: {error}");
                }
                refused += 1;
            }
        }
        assert!(refused > 700, "{refused}");
    });
}

/// Every place in the tree below the root, as a JSON pointer.
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

#[test]
fn deep_nesting() {
    in_world(|world| {
        let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        serde_json::from_str::<Document>(&deep(100_000)).expect_err("too deep");
        let in_owner = |depth| format!(r#"{{"resources":[{{"owners":{}}}]}}"#, deep(depth));
        serde_json::from_str::<Document>(&in_owner(100_000)).expect_err("too deep");
        for depth in [1, 50, 100] {
            let value: Value = serde_json::from_str(&deep(depth)).unwrap();
            let owners = |e: &mut Value| e["owners"] = value.clone();
            world.refuses_entry((DIRECTORY, 0), owners, |why| {
                matches!(why, InvalidEntry::Malformed(_) | InvalidEntry::NoOwner)
            });
            let resources = |d: &mut Value| d["resources"] = json!([value]);
            let documents = world.edited(|all| resources(&mut all[DIRECTORY]));
            world.refuses(&documents, (DIRECTORY, Some(0)), is!(InvalidEntry::Malformed(_)));
            world.refuses_document(
                DIRECTORY,
                |d| *d = value.clone(),
                is!(InvalidEntry::Malformed(_)),
            );
        }
    });
}
