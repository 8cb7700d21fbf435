//! Runs this program under `valgrind --tool=callgrind`, and reads what was counted.
//!
//! The program under callgrind calls [`in_profile`] once for each thing to count. Callgrind sets its
//! counters to zero where [`count_from_here`] begins, and writes them to a file of their own where
//! [`in_profile`] ends. (Two functions, as callgrind heeds only one option for each function.)

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::CHILD;

/// Counts what `times` calls of `once` do, in all threads.
#[inline(never)]
pub(crate) fn in_profile(times: u64, once: &mut dyn FnMut()) {
    count_from_here(times, once);
    // The call above must not become a jump: callgrind would miss the end of this function.
    black_box(());
}

#[inline(never)]
fn count_from_here(times: u64, once: &mut dyn FnMut()) {
    for _ in 0..times {
        once();
    }
    black_box(());
}

/// What happened in one call of [`in_profile`].
pub(crate) struct Profile {
    /// In user space.
    pub(crate) instructions: u64,
    pub(crate) system_calls: u64,
    /// The functions of `src/` that ran, each with the first of its lines that did.
    pub(crate) functions: BTreeMap<Function, usize>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Function {
    /// Below this crate's folder.
    pub(crate) file: PathBuf,
    pub(crate) name: String,
}

/// One for each call of [`in_profile`] by this program as the child `what`, in their order.
pub(crate) fn profiles(what: &str) -> Result<Vec<Profile>, Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet", "--collect-systime=yes"])
        .args(["--compress-strings=no", "--compress-pos=no"])
        .args(["--zero-before=*count_from_here*", "--dump-after=*in_profile*"])
        .arg(format!("--callgrind-out-file={}", directory.path().join("out").display()))
        .arg(std::env::current_exe()?)
        .args([CHILD, what])
        // It would ask servers for the debug information of the C library.
        .env_remove("DEBUGINFOD_URLS")
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("valgrind: {}\n{said}", output.status).into());
    }
    let mut profiles = Vec::new();
    loop {
        let path = directory.path().join(format!("out.{}", profiles.len() + 1));
        if !path.exists() {
            return Ok(profiles);
        }
        profiles.push(Profile::parse(&String::from_utf8_lossy(&std::fs::read(path)?))?);
    }
}

impl Profile {
    fn parse(text: &str) -> Result<Self, Box<dyn Error>> {
        let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key));
        let events = line("events: ").ok_or("callgrind did not say what it counted")?;
        let totals = line("summary: ").ok_or("callgrind did not say how many it counted")?;
        // Zeros at the end are left out.
        let total = |event: &str| -> Result<u64, Box<dyn Error>> {
            let column = events.split_whitespace().position(|name| name == event);
            let column = column.ok_or_else(|| format!("callgrind did not count {event}"))?;
            Ok(totals.split_whitespace().nth(column).map_or(Ok(0), str::parse)?)
        };
        let (instructions, system_calls) = (total("Ir")?, total("sysCount")?);
        Ok(Self { instructions, system_calls, functions: functions(text) })
    }
}

/// The functions of `src/` in callgrind's format. Each begins with `fl=FILE`, unless that is the
/// file of the one before, and `fn=NAME`; then comes `LINE COST ..` for each of its lines. `fi=FILE`
/// and `fe=FILE` say that lines of another file follow, which were inlined.
fn functions(text: &str) -> BTreeMap<Function, usize> {
    let own = |path| Path::new(path).strip_prefix(env!("CARGO_MANIFEST_DIR")).ok();
    let mut functions = BTreeMap::new();
    let (mut file, mut file_of_line, mut name) = (None, None, "");
    for line in text.lines() {
        if let Some(path) = line.strip_prefix("fl=") {
            (file, file_of_line) = (own(path), own(path));
        } else if let Some(path) = line.strip_prefix("fi=").or(line.strip_prefix("fe=")) {
            file_of_line = own(path);
        } else if let Some(of) = line.strip_prefix("fn=") {
            (name, file_of_line) = (outermost(of), file);
        } else if let (Some(number), Some(file)) = (line_number(line), file)
            && file_of_line == Some(file)
            && file.starts_with("src")
        {
            let function = Function { file: file.to_owned(), name: name.to_owned() };
            let first = functions.entry(function).or_insert(number);
            *first = number.min(*first);
        }
    }
    functions
}

/// Of `LINE COST ..`. Code that belongs to no line has 0.
fn line_number(line: &str) -> Option<usize> {
    line.split(' ').next()?.parse().ok().filter(|number| *number > 0)
}

/// A closure counts as the function that it is written in, and so does what is made of a generic one
/// for some type, and each level of a recursion, which callgrind marks by an apostrophe and a number.
fn outermost(name: &str) -> &str {
    let name = ["::{{closure}}", "::{closure#"]
        .iter()
        .find_map(|closure| name.split_once(closure))
        .map_or(name, |(function, _)| function);
    let name = match name.rsplit_once('\'') {
        Some((function, level)) if level.parse::<u32>().is_ok() => function,
        _ => name,
    };
    match name.rsplit_once("::<") {
        Some((function, types)) if types.ends_with('>') => function,
        _ => name,
    }
}
