//! Through how many functions and files of `src/` two calls go.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use lockspace::{Lease, LockSpace, Naming, OwnerId, Request, Wait};
use rustix::thread::{Pid, gettid};

use crate::CHILD;
use crate::callgrind::{Function, Profile, in_profile};
use crate::table::{Figures, Row};

const WAYS: [(&str, Figures); 2] = [
    ("a try of a free name", Figures { first: 20, second: Some(8) }),
    (
        "a wait that meets a holder in another process, and then gets it",
        Figures { first: 40, second: Some(12) },
    ),
];

const OWNER: OwnerId = OwnerId::new(1);
const NAME: &str = "a";

/// Longer than anything takes here.
const LONG: Duration = Duration::from_secs(60);

/// Under callgrind: goes each way. It has gone it once before, so that what is made once for a
/// process is not counted.
pub(crate) fn run() {
    let directory = tempfile::tempdir().expect("a directory");
    File::create(directory.path().join(NAME)).expect("create");
    let space = LockSpace::open(Naming::verbatim(directory.path())).expect("a space");

    let uncounted = |once: &mut dyn FnMut()| once();
    let counted = |once: &mut dyn FnMut()| in_profile(1, once);
    try_free(&space, uncounted);
    try_free(&space, counted);
    wait_for_holder(&space, directory.path(), uncounted);
    wait_for_holder(&space, directory.path(), counted);
}

fn acquire(space: &LockSpace, wait: Wait) -> Lease {
    space.acquire(OWNER, Request::exclusive(NAME), wait).expect("it is free, in the end")
}

fn try_free(space: &LockSpace, run: impl FnOnce(&mut dyn FnMut())) {
    let mut lease = None;
    run(&mut || lease = Some(acquire(space, Wait::NO)));
    // Its release is not counted.
    drop(lease);
}

fn wait_for_holder(space: &LockSpace, directory: &Path, run: impl FnOnce(&mut dyn FnMut())) {
    let mut holder = Command::new(std::env::current_exe().expect("this program"))
        .args([CHILD, HOLDER])
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a holder");
    let mut said = String::new();
    let output = holder.stdout.take().expect("it is piped");
    BufReader::new(output).read_line(&mut said).expect("its word");
    assert_eq!(said, HELD);

    let waiter = gettid();
    let end = holder.stdin.take().expect("it is piped");
    thread::scope(|scope| {
        scope.spawn(move || {
            until_asleep(waiter);
            drop(end);
        });
        let mut lease = None;
        run(&mut || lease = Some(acquire(space, Wait::within(LONG))));
    });
    assert!(holder.wait().expect("its end").success());
}

/// Until the waiter sleeps for an event of the file, which is when it has met the holder.
fn until_asleep(waiter: Pid) {
    let path = format!("/proc/self/task/{}/syscall", waiter.as_raw_nonzero());
    let asleep = format!("{} ", libc::SYS_ppoll);
    let begun = Instant::now();
    while !std::fs::read_to_string(&path).expect("it lives").starts_with(&asleep) {
        assert!(begun.elapsed() < LONG, "the waiter does not sleep in ppoll");
        thread::yield_now();
    }
}

/// The child that holds what is waited for.
pub(crate) const HOLDER: &str = "holder";
/// What it says then.
const HELD: &str = "held\n";

/// In that child: not under callgrind, which does not follow a program to those that it starts.
pub(crate) fn hold() {
    let space = LockSpace::open(Naming::verbatim(".")).expect("a space");
    let lease = acquire(&space, Wait::NO);
    let mut output = std::io::stdout();
    output.write_all(HELD.as_bytes()).and_then(|()| output.flush()).expect("its parent listens");
    // Until the parent closes it.
    let _ = std::io::stdin().read(&mut [0]);
    drop(lease);
}

/// Outside: prints each way, and a row for it.
///
/// A function counts if its body has more than one line: what an accessor, a constructor or a
/// derived method does is read where it is called. A file counts for any function.
pub(crate) fn rows(profiles: &[Profile]) -> Result<Vec<Row>, Box<dyn Error>> {
    if profiles.len() != WAYS.len() {
        return Err(format!("{} ways, and {} profiles", WAYS.len(), profiles.len()).into());
    }
    let mut rows = Vec::new();
    for ((title, at_most), Profile { functions, .. }) in WAYS.into_iter().zip(profiles) {
        if functions.is_empty() {
            return Err("no function of src/ was found: build with debug information".into());
        }
        let mut files: BTreeMap<&Path, [Vec<&str>; 2]> = BTreeMap::new();
        for (Function { file, name }, line) in functions {
            let source = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file))?;
            let is_short = lines_of_body(&source, name, *line) <= 1;
            files.entry(file).or_default()[usize::from(is_short)].push(name);
        }
        let long = files.values().map(|[long, _]| long.len()).sum::<usize>();
        let short = functions.len() - long;
        println!("{title}: {long} functions, and {short} of one line, in {} files", files.len());
        for (file, [long, short]) in &files {
            println!("  {}", file.display());
            long.iter().for_each(|name| println!("    {name}"));
            short.iter().for_each(|name| println!("    ({name})"));
        }
        println!();
        let figures = Figures { first: long as u64, second: Some(files.len() as u64) };
        rows.push(Row { title, figures, at_most: Some(at_most) });
    }
    Ok(rows)
}

/// How many lines rustfmt gives to the body of this function, of which this line (from 1) is one; 0
/// if it is not written as a function.
fn lines_of_body(source: &str, name: &str, line: usize) -> usize {
    let lines: Vec<_> = source.lines().collect();
    let name = name.rsplit("::").next().unwrap_or(name);
    let begins = |line: &&str| {
        let after = line.split_once("fn ").and_then(|(_, after)| after.strip_prefix(name));
        after.is_some_and(|after| after.starts_with(['(', '<']))
    };
    let Some(first) = lines[..line].iter().rposition(begins) else { return 0 };
    let indent = lines[first].len() - lines[first].trim_start().len();
    let ends = |line: &str| line.len() > indent && line[indent..].starts_with('}');
    // The header may have several lines; its last ends with the brace.
    let Some(header) = lines[first..].iter().position(|line| line.contains('{')) else { return 0 };
    if lines[first + header].ends_with('}') {
        return 1;
    }
    let body = &lines[first + header + 1..];
    body.iter().position(|line| ends(line)).unwrap_or(body.len())
}
