//! The test is tested, by crates of a few lines.

use super::{Rules, Source, circle};

const RULES: Rules =
    Rules { layers: &["low", "sys", "high"], linux_elsewhere: &[("high", &["libc"])] };

const LIB: &str = "
    //! # Layers
    //! ```text
    //! high   what users call
    //! sys    Linux
    //! low    values
    //! ```
    //! # More
    //! ```text
    //! else
    //! ```
    mod high; mod low; mod sys;
    pub use high::{Top, parts::{Bolt, Nut as Screw}};
    pub use low::{Value, part::{self}};
";

/// What is wrong with a crate in which this text replaces, or adds to, what is right.
fn faults(path: &str, text: &str) -> Vec<String> {
    let right = [("high/mod.rs", ""), ("lib.rs", LIB), ("low.rs", ""), ("sys/fd.rs", "")];
    let rest = right.into_iter().filter(|(other, _)| *other != path);
    let all = rest.chain([(path, text)]);
    let sources: Vec<Source> = all.map(|(path, text)| (path.into(), text.into())).collect();
    RULES.faults(&sources)
}

#[track_caller]
fn passes(path: &str, text: &str) {
    assert_eq!(faults(path, text), Vec::<String>::new(), "{text}");
}

/// One fault, which is told so.
#[track_caller]
fn fails(path: &str, text: &str, told: &str) {
    assert_eq!(faults(path, text), [told], "{text}");
}

#[test]
fn a_layer_uses_itself_and_what_is_below() {
    passes("high/mod.rs", "use crate::low::Value; use crate::{high::part::X, sys::{self, fd}};");
    passes("high/part/mod.rs", "use super::Top; use super::super::low::Value;");
    passes("sys/fd.rs", "use super::Other; fn f() -> crate::Value { crate::sys::fd::make() }");
    passes("sys/fd.rs", "mod tests { use super::*; fn f() { { super::super::other() } } }");
}

#[test]
fn a_layer_does_not_use_one_above() {
    let told = "src/low.rs:2: crate::high::Top: low is below high, so it must not use it";
    fails("low.rs", "\nuse crate::high::Top;", told);
    fails("low.rs", "\nfn f() { crate::high::Top::<u8>::new() }", told);
}

#[test]
fn no_form_of_a_path_hides_it() {
    let told = |line, path: &str, above| {
        format!("src/low.rs:{line}: {path}: low is below {above}, so it must not use it")
    };
    let tree = "use crate::{low::a, sys::{fd::{self as x, y}}};";
    let of_tree = ["crate::sys::fd::self", "crate::sys::fd::y"].map(|path| told(1, path, "sys"));
    assert_eq!(faults("low.rs", tree), of_tree);
    fails("low.rs", "use super::sys::fd;", &told(1, "super::sys::fd", "sys"));
    fails("low.rs", "use self::super::sys;", &told(1, "self::super::sys", "sys"));
    fails("low.rs", "use {std::fmt, crate::sys};", &told(1, "crate::sys", "sys"));
    fails("low.rs", "m! { $crate::sys::f() }", &told(1, "crate::sys::f", "sys"));
    fails("low.rs", "use crate::sys::*;", &told(1, "crate::sys::*", "sys"));
    let nested = "mod a { mod b { fn f() { super::super::super::high::g() } } }";
    fails("low.rs", nested, &told(1, "super::super::super::high::g", "high"));
}

#[test]
fn a_module_that_has_ended_is_no_longer_in_the_way() {
    let text = "mod a { fn f() {} }\nuse super::high::X;";
    let told = "src/low.rs:2: super::high::X: low is below high, so it must not use it";
    fails("low.rs", text, told);
}

#[test]
fn a_reexport_counts_as_the_layer_that_defines_it() {
    passes("low.rs", "use crate::{Value, part::Part};");
    for name in ["Top", "Bolt", "Screw"] {
        let told = "it: low is below high, so it must not use it";
        let told = told.replace("it:", &format!("src/low.rs:1: crate::{name}:"));
        fails("low.rs", &format!("use crate::{name};"), &told);
        passes("high/mod.rs", &format!("use crate::{name};"));
    }
    let told = "src/high/mod.rs:1: crate::Nut: Nut is no layer, and lib.rs re-exports none such";
    fails("high/mod.rs", "use crate::Nut;", told);
    let told = "src/lib.rs:13: name what of high is re-exported";
    fails("lib.rs", &LIB.replace("high::{Top, parts::{Bolt, Nut as Screw}}", "high::*"), told);
}

#[test]
fn a_path_says_what_it_uses() {
    let told = "src/low.rs:1: super::*: names the whole crate: name what is meant";
    fails("low.rs", "use super::*;", told);
    let told = "src/low.rs:1: crate::*: names the whole crate: name what is meant";
    fails("low.rs", "use crate::*;", told);
}

#[test]
fn comments_and_strings_are_no_paths() {
    passes("low.rs", "// crate::high::X\n/* a /* crate::high */ crate::high */ /// crate::high");
    passes("low.rs", r###"f("crate::high", r#"" crate::high"#, b"\" crate::high", '"', '\'');"###);
    passes("low.rs", "fn f<'a>(a: &'a str) -> char { '\"' } // crate::high \"");
    let told = "src/low.rs:3: crate::high: low is below high, so it must not use it";
    fails("low.rs", "/* \n */ // \"\n'x'; b'\"'; '\\''; \"\\\\\"; crate::high;", told);
    let told = told.replace(":3:", ":1:");
    fails("low.rs", r"'\''+'\u{22}'+'\\'+'x'; crate::high", &told);
    fails("low.rs", r#"'\''+'"'; crate::high; "" "#, &told);
}

#[test]
fn linux_is_in_sys() {
    let text = "use rustix::fs; use libc; fn f() { unsafe { ::libc::g(\"/proc/locks\") } }";
    passes("sys/fd.rs", text);
    let told = ["rustix", "libc", "unsafe", "libc", "/proc"];
    assert_eq!(faults("low.rs", text), told.map(|it| format!("src/low.rs:1: {it} outside of sys")));
    passes("high/mod.rs", "use libc::off_t;");
    passes("low.rs", "// unsafe, rustix::fs\nuse crate::low::libc::T; fn unsafe_name(libc: u8) {}");
}

#[test]
fn every_layer_is_in_the_list_and_every_entry_in_src() {
    fails("other/mod.rs", "", "src/other/mod.rs: the list of layers has no other");
    let sources = ["lib.rs", "low.rs", "high.rs", "high/sys.rs"]
        .map(|path| (path.to_owned(), if path == "lib.rs" { LIB } else { "" }.to_owned()));
    assert_eq!(RULES.faults(&sources), ["the list of layers has sys, and src has not"]);
}

#[test]
fn the_docs_show_the_list() {
    let swapped = LIB.replace("! low", "! x").replace("! sys", "! low").replace("! x", "! sys");
    let told = r#"src/lib.rs shows ["sys", "low", "high"], lowest first: not the list of layers"#;
    fails("lib.rs", &swapped, told);
    let told = "src/lib.rs shows [], lowest first: not the list of layers";
    fails("lib.rs", "pub use high::{Top};", told);
}

#[track_caller]
fn is_circle(sources: &[(&str, &str)], expected: &[&str]) {
    let sources: Vec<Source> =
        sources.iter().map(|(path, text)| ((*path).into(), (*text).into())).collect();
    assert_eq!(circle(&sources), expected);
}

const BOTH: [&str; 2] = ["high/a.rs uses high/b.rs", "high/b.rs uses high/a.rs"];

#[test]
fn a_circle_of_imports_is_found() {
    let (a, b) = ("use super::b::B;", "use crate::high::a::A;");
    is_circle(&[("high/a.rs", a), ("high/b.rs", b)], &BOTH);
    is_circle(&[("high/a.rs", a), ("high/b.rs", "use crate::low::A;")], &[]);
    // A longer one, with files that lead there and away.
    let circle = [
        ("a.rs", "use crate::b;"),
        ("b.rs", "fn f() { crate::c::g() }"),
        ("c.rs", "use crate::{d, e};"),
        ("d.rs", "mod part { use super::super::b; }"),
        ("e.rs", "mod tests { use crate::b; }"),
    ];
    is_circle(&circle, &["b.rs uses c.rs", "c.rs uses d.rs", "d.rs uses b.rs"]);
}

#[test]
fn a_reexport_does_not_hide_a_circle() {
    let folder = "mod a; mod b; pub(crate) use a::A; use self::b::{B as Other};";
    let (a, b) = (("high/a.rs", "use super::Other;"), ("high/b.rs", "use crate::high::A;"));
    is_circle(&[("high/mod.rs", folder), a, b], &BOTH);
    let (b, lib) = (("high/b.rs", "use crate::A;"), ("lib.rs", "mod high; pub use high::A;"));
    is_circle(&[("high/mod.rs", folder), a, b, lib], &BOTH);
}

#[test]
fn a_folder_and_its_files_may_know_each_other() {
    is_circle(&[("high/mod.rs", "use self::a::A;"), ("high/a.rs", "use super::B;")], &[]);
}
