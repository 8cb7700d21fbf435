//! A test of the shape of `src`: what may use what, and where Linux is.
//!
//! It reads the source as text. Comments are no source; a path in a macro or a test is one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use self::source::{
    Kind, Leaf, Token, Use, absolute, is_led_to, is_of_word, leads_on, leaves, tokens, uses,
};

mod source;
mod tests;

/// The layers, lowest first: each is a folder or a file of `src`, and uses itself and those before
/// it. `lib.rs` shows the same list, highest first, in the block ` ```text ` of its section "Layers".
const LAYERS: &[&str] = &[
    "types", "sys", "sync", "engine", "error", "table", "wait", "core", "acquire", "transfer",
    "api", "snapshot",
];

/// What is in `src`, and no layer.
const NO_LAYERS: &[&str] = &["lib", "architecture"];

/// What belongs into `sys` alone.
const LINUX: &[&str] = &["rustix", "libc", "unsafe", "/proc"];

/// Who else may have which of it. The shorter, the better.
const LINUX_ELSEWHERE: &[(&str, &[&str])] = &[
    ("snapshot", &["unsafe"]), // the contract of a restore
];

#[test]
fn every_layer_uses_those_below_it_only() {
    let rules = Rules { layers: LAYERS, linux_elsewhere: LINUX_ELSEWHERE };
    let faults = rules.faults(&sources());
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    let circle = circle(&sources());
    assert!(circle.is_empty(), "\n{}", circle.join("\n"));
}

/// Path below `src`, and text, of every source file.
type Source = (String, String);

fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    let mut folders = vec![src.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path: PathBuf = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(&src).expect("it is below");
                let text = fs::read_to_string(&path).expect("text");
                sources.push((below.to_str().expect("UTF-8").to_owned(), text));
            }
        }
    }
    sources.sort();
    sources
}

struct Rules {
    layers: &'static [&'static str],
    linux_elsewhere: &'static [(&'static str, &'static [&'static str])],
}

impl Rules {
    /// A line for each breach.
    fn faults(&self, sources: &[Source]) -> Vec<String> {
        let mut faults = Vec::new();
        let lib = sources.iter().find(|(path, _)| path == "lib.rs");
        let lib = lib.map_or("", |(_, text)| text.as_str());
        let reexports = reexports(lib, &mut faults);
        for (path, text) in sources {
            let module = module_of(path);
            let layer = module.first().map_or("lib", String::as_str);
            if NO_LAYERS.contains(&layer) {
                continue;
            }
            if !self.layers.contains(&layer) {
                faults.push(format!("src/{path}: the list of layers has no {layer}"));
                continue;
            }
            let tokens = tokens(text);
            for Use { line, written, to } in uses(&tokens, &module) {
                if let Err(why) = self.check_use(layer, &to, &reexports) {
                    faults.push(format!("src/{path}:{line}: {written}: {why}"));
                }
            }
            for (line, what) in linux(&tokens) {
                if !self.may_have(layer, what) {
                    faults.push(format!("src/{path}:{line}: {what} outside of sys"));
                }
            }
        }
        let there = |layer: &&&str| {
            sources.iter().any(|(path, _)| module_of(path).first().is_some_and(|it| it == **layer))
        };
        for layer in self.layers.iter().filter(|layer| !there(layer)) {
            faults.push(format!("the list of layers has {layer}, and src has not"));
        }
        let mut shown = layers_shown(lib);
        shown.reverse();
        if shown != self.layers {
            faults
                .push(format!("src/lib.rs shows {shown:?}, lowest first: not the list of layers"));
        }
        faults
    }

    /// `to` is a path from the crate's root.
    fn check_use(
        &self,
        from: &str,
        to: &[String],
        reexports: &BTreeMap<String, String>,
    ) -> Result<(), String> {
        let Some(first) = to.first().filter(|first| *first != "*") else {
            return Err("names the whole crate: name what is meant".to_owned());
        };
        let layer = if self.layers.contains(&first.as_str()) {
            first
        } else {
            let defined = reexports.get(first);
            defined
                .ok_or_else(|| format!("{first} is no layer, and lib.rs re-exports none such"))?
        };
        let height = |layer: &str| self.layers.iter().position(|other| *other == layer);
        if height(layer) > height(from) {
            return Err(format!("{from} is below {layer}, so it must not use it"));
        }
        Ok(())
    }

    fn may_have(&self, layer: &str, what: &str) -> bool {
        let allows = |(other, whats): &(&str, &[&str])| *other == layer && whats.contains(&what);
        layer == "sys" || self.linux_elsewhere.iter().any(allows)
    }
}

/// `engine/file/mod.rs` and `engine/file.rs` are `engine::file`; `lib.rs` is the root, which has no
/// name.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').filter(|name| *name != "lib").map(str::to_owned).collect()
}

/// The imports that are part of a circle of files. A folder's `mod.rs` and its files may know each
/// other.
fn circle(sources: &[Source]) -> Vec<String> {
    let files: BTreeMap<_, _> = sources
        .iter()
        .map(|(path, text)| (module_of(path), (path.as_str(), tokens(text))))
        .collect();
    let imports: BTreeMap<_, _> =
        files.iter().map(|(module, (_, tokens))| (module, imports(tokens, module))).collect();
    let mut arrows = BTreeSet::new();
    for (module, (path, tokens)) in &files {
        // A file's own tests stand at its end, and may use whom they like.
        let is_tests = |pair: &[Token<'_>]| {
            [pair[0].kind, pair[1].kind] == [Kind::Word("mod"), Kind::Word("tests")]
        };
        let end = tokens.windows(2).position(is_tests).unwrap_or(tokens.len());
        for Use { to, .. } in uses(&tokens[..end], module) {
            let Some(to) = defining_file(to, &imports) else { continue };
            if !to.starts_with(module) && !module.starts_with(to) {
                arrows.insert((*path, files[to].0));
            }
        }
    }
    let is_in_circle = |(from, to): &&(&str, &str)| reached(to, &arrows).contains(from);
    arrows.iter().filter(is_in_circle).map(|(from, to)| format!("{from} uses {to}")).collect()
}

/// Where the arrows lead from here, by any number of them.
fn reached<'a>(from: &'a str, arrows: &BTreeSet<(&'a str, &'a str)>) -> BTreeSet<&'a str> {
    let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(from) = next.pop() {
        if reached.insert(from) {
            next.extend(arrows.iter().filter(|arrow| arrow.0 == from).map(|arrow| arrow.1));
        }
    }
    reached
}

/// The module, of those with a file, that defines what a path from the crate's root names.
fn defining_file<'a>(
    mut path: Vec<String>,
    imports: &'a BTreeMap<&Vec<String>, BTreeMap<String, Vec<String>>>,
) -> Option<&'a Vec<String>> {
    let mut file = None;
    // No name is imported by so many, one from the other.
    for _ in 0..10 {
        let longest = (0..=path.len()).rev().map(|length| path[..length].to_vec());
        let (module, names) = longest.into_iter().find_map(|m| imports.get_key_value(&m))?;
        file = Some(*module);
        let imported = path.get(module.len()).and_then(|name| names.get(name));
        let Some(imported) = imported else { break };
        path = [imported, &path[module.len() + 1..]].concat();
    }
    file
}

/// What a module imports, by name: a path from the crate's root, or from that of another crate.
fn imports(tokens: &[Token<'_>], module: &[String]) -> BTreeMap<String, Vec<String>> {
    let begins = |at: &usize| tokens[*at].kind == Kind::Word("use");
    let trees = (0..tokens.len()).filter(begins).flat_map(|at| leaves(tokens, at + 1));
    let own = |word: &str| {
        let declared = [Kind::Word("mod"), Kind::Word(word)];
        tokens.windows(2).any(|pair| [pair[0].kind, pair[1].kind] == declared)
    };
    let import = |Leaf { path, name }: Leaf<'_>| {
        let path = if path.first().is_some_and(|first| own(first)) {
            [&["self"], &*path].concat()
        } else {
            path
        };
        (name.to_owned(), absolute(module, &path))
    };
    trees.map(import).collect()
}

/// What `lib.rs` imports, and so everybody can name as the crate's own: name and layer.
fn reexports(lib: &str, faults: &mut Vec<String>) -> BTreeMap<String, String> {
    let tokens = tokens(lib);
    let mut reexports = BTreeMap::new();
    for at in 0..tokens.len() {
        if tokens[at].kind != Kind::Word("use") {
            continue;
        }
        for Leaf { path, name } in leaves(&tokens, at + 1) {
            let path = absolute(&[], &path);
            match path.first() {
                Some(layer) if name == "*" => {
                    let line = tokens[at].line;
                    faults.push(format!("src/lib.rs:{line}: name what of {layer} is re-exported"));
                }
                Some(layer) => drop(reexports.insert(name.to_owned(), layer.clone())),
                None => {}
            }
        }
    }
    reexports
}

/// The first words of the lines that the section "Layers" of the crate's docs has in its block.
fn layers_shown(lib: &str) -> Vec<&str> {
    let docs = lib.lines().filter_map(|line| line.trim_start().strip_prefix("//!")).map(str::trim);
    let section = docs.skip_while(|line| *line != "# Layers").skip(1);
    let section = section.take_while(|line| !line.starts_with("# "));
    let block = section.skip_while(|line| *line != "```text").skip(1);
    let block = block.take_while(|line| !line.starts_with("```"));
    block
        .filter_map(|line| line.split(|c: char| !is_of_word(c)).find(|word| !word.is_empty()))
        .collect()
}

/// Where something of [`LINUX`] is.
fn linux<'a>(tokens: &'a [Token<'a>]) -> impl Iterator<Item = (usize, &'static str)> + 'a {
    tokens.iter().enumerate().filter_map(|(at, token)| {
        let is_it = |what: &&&str| match token.kind {
            Kind::Word("unsafe") => **what == "unsafe",
            Kind::Word(word) => {
                let is_path = leads_on(tokens, at) && !is_led_to(tokens, at);
                let is_imported = at > 0 && tokens[at - 1].kind == Kind::Word("use");
                word == **what && (is_path || is_imported)
            }
            Kind::Text(text) => **what == "/proc" && text.contains("/proc"),
            Kind::Sign(_) => false,
        };
        Some((token.line, *LINUX.iter().find(is_it)?))
    })
}
