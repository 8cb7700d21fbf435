//! The figures in `README.md`, and how new ones compare with them.

use std::error::Error;
use std::ffi::CStr;
use std::fmt::Write;
use std::io::ErrorKind;
use std::process::Command;

/// By how much the first figure of a row may grow. The second may not grow.
pub(crate) const GROWTH: f64 = 0.03;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/README.md");

/// What was counted: the two columns of a table.
#[derive(Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) first: u64,
    /// `None` where it means nothing.
    pub(crate) second: Option<u64>,
}

pub(crate) struct Row {
    pub(crate) title: &'static str,
    pub(crate) figures: Figures,
    /// Where it should be, which the comparison only tells.
    pub(crate) at_most: Option<Figures>,
}

/// New figures, and where the old ones are in `README.md`.
pub(crate) struct Table {
    /// The text between `<!-- MARK -->` and `<!-- end of MARK -->` is this table's.
    pub(crate) mark: &'static str,
    pub(crate) columns: [&'static str; 3],
    /// What makes it.
    pub(crate) command: &'static str,
    pub(crate) rows: Vec<Row>,
}

impl Table {
    /// Tells the figures, and writes them down or compares them with those that are; `false` if one
    /// has grown too much.
    pub(crate) fn settle(&self, tools: &str, update: bool) -> Result<bool, Box<dyn Error>> {
        let readme =
            std::fs::read_to_string(README).map_err(|error| format!("{README}: {error}"))?;
        let (before, old, after) = self.find(&readme)?;
        println!("{}", self.text(tools));
        if update {
            std::fs::write(README, format!("{before}{}{after}", self.text(tools)))?;
            println!("Written to benches/README.md.");
            return Ok(true);
        }
        let Changes { grown, shrunk } = self.changes(old);
        grown.iter().chain(&shrunk).for_each(|change| println!("{change}"));
        if grown.is_empty() && shrunk.is_empty() {
            println!("Nothing differs from benches/README.md by more than may be.");
            return Ok(true);
        }
        println!("If that is meant, write it down: {} -- --update", self.command);
        let comparable = old.lines().any(|line| line == counted_with(tools));
        if !comparable {
            println!("(benches/README.md was written with other tools: nothing fails.)");
        }
        Ok(grown.is_empty() || !comparable)
    }

    /// What stands before this table in `README.md`, the table, and what stands after it.
    fn find<'a>(&self, readme: &'a str) -> Result<(&'a str, &'a str, &'a str), Box<dyn Error>> {
        let (from, to) =
            (format!("<!-- {} -->\n", self.mark), format!("<!-- end of {}", self.mark));
        let missing = || format!("{README} has no {} and {}", from.trim(), to);
        let begin = readme.find(&from).ok_or_else(missing)? + from.len();
        let end = readme[begin..].find(&to).ok_or_else(missing)? + begin;
        Ok((&readme[..begin], &readme[begin..end], &readme[end..]))
    }

    fn text(&self, tools: &str) -> String {
        let [title, first, second] = self.columns;
        let mut text = counted_with(tools);
        let _ = write!(text, "\n\n| {title} | {first} | {second} | at most |\n|---|---|---|---|\n");
        for Row { title, figures, at_most } in &self.rows {
            let second = figures.second.map_or("-".to_owned(), |second| second.to_string());
            let at_most =
                at_most.map_or("-".to_owned(), |Figures { first, second }| match second {
                    Some(second) => format!("{first}, {second}"),
                    None => first.to_string(),
                });
            let _ = writeln!(text, "| {title} | {} | {second} | {at_most} |", figures.first);
        }
        text
    }

    fn changes(&self, old: &str) -> Changes {
        let mut changes = Changes::default();
        for Row { title, figures: new, .. } in &self.rows {
            let Some(old) = figures_of(title, old) else {
                changes.grown.push(format!("{title}: not in benches/README.md"));
                continue;
            };
            let [_, first, second] = self.columns;
            changes.add(title, first, GROWTH, [old.first, new.first]);
            if let (Some(old), Some(new)) = (old.second, new.second) {
                changes.add(title, second, 0.0, [old, new]);
            }
        }
        changes
    }
}

/// A sentence for each figure that is another than before.
#[derive(Default)]
struct Changes {
    grown: Vec<String>,
    shrunk: Vec<String>,
}

impl Changes {
    fn add(&mut self, title: &str, column: &str, may: f64, [old, new]: [u64; 2]) {
        let (low, high) = (old as f64 * (1.0 - may), old as f64 * (1.0 + may));
        if new as f64 > high {
            self.grown.push(format!("{title}: {column} grew from {old} to {new}"));
        } else if (new as f64) < low {
            self.shrunk.push(format!("{title}: {column} shrank from {old} to {new}"));
        }
    }
}

/// The figures of the row of this title.
fn figures_of(title: &str, table: &str) -> Option<Figures> {
    table.lines().find_map(|line| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        if cells.next() != Some(title) {
            return None;
        }
        let mut figure = || cells.next()?.parse().ok();
        Some(Figures { first: figure()?, second: figure() })
    })
}

fn counted_with(tools: &str) -> String {
    format!("Counted with {tools}:")
}

/// All that figures depend on beside the source; `None` without valgrind.
pub(crate) fn tools() -> Result<Option<String>, Box<dyn Error>> {
    let Some(valgrind) = version_of("valgrind", "--version")? else { return Ok(None) };
    // Cargo gives its own compiler to what it runs, or rustup knows which it is.
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let rustc = version_of(&rustc, "--version")?.ok_or("rustc is not installed")?;
    // SAFETY: it takes nothing and returns a static string.
    let libc = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    let (libc, arch) = (libc.to_string_lossy(), std::env::consts::ARCH);
    let all = cfg!(all(feature = "sha256", feature = "snapshot", feature = "tracing"));
    let features = if all { "all features" } else { "not all features" };
    Ok(Some(format!("{rustc} on {arch}, glibc {libc}, {valgrind}, {features}")))
}

/// What a program says of its version; `None` if it is not installed.
fn version_of(program: &str, option: &str) -> Result<Option<String>, Box<dyn Error>> {
    match Command::new(program).arg(option).output() {
        Ok(output) => Ok(Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{program}: {error}").into()),
    }
}
