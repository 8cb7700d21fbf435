//! The example `who_holds`.

use std::fs;

use crate::programs::{Holding, Home, run, who_holds};

#[test]
fn who_holds_names_every_holder_of_every_image() {
    let home = Home::new();
    let (image, free) = (home.image(), home.path().join("free.img"));
    fs::write(&free, "").unwrap();
    let first = Holding::start(home.directly(["--shared", "--hold", "600"]));
    let second = Holding::start(home.directly(["--shared", "--hold", "600"]));

    let told = run(who_holds([&image, &free]));
    assert_eq!((told.code, &*told.err), (Some(0), ""), "{told:?}");
    let lines: Vec<_> = told.out.lines().collect();
    assert_eq!(lines.len(), 4, "{}", told.out);
    assert_eq!(lines[0], format!("{image:?}:"));
    for holder in [&first, &second] {
        let line = format!("  pid {} \"image_lock\" (shared, byte 0, OFD lock)", holder.pid());
        assert!(lines[1..3].contains(&&*line), "no {line:?} in:\n{}", told.out);
    }
    assert_eq!(lines[3], format!("{free:?}: no holders"));

    drop((first, second));
    let told = run(who_holds([&image]));
    assert_eq!((told.code, told.out), (Some(0), format!("{image:?}: no holders\n")));
}

#[test]
fn who_holds_goes_on_after_an_image_that_it_cannot_find() {
    let home = Home::new();
    let (image, missing) = (home.image(), home.path().join("missing.img"));
    let told = run(who_holds([&missing, &image]));
    assert_eq!((told.code, told.out), (Some(1), format!("{image:?}: no holders\n")));
    assert!(told.err.contains(&format!("{missing:?}: ")) && told.err.lines().count() == 1);

    let usage = run(who_holds([""; 0]));
    assert_eq!((usage.code, &*usage.out), (Some(2), ""));
    assert!(usage.err.starts_with("Usage: who_holds "));
}
