//! The example `reexec`.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::thread;

fn example(args: &[&str]) -> Output {
    Command::new(path_of_example()).args(args).stdin(Stdio::null()).output().unwrap()
}

fn path_of_example() -> PathBuf {
    crate::programs::example("reexec")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_example_holds_on() {
    for shared in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let locks = dir.path().join("locks");
        let mut args = vec!["--dir", locks.to_str().unwrap(), "--locks", "50", "--times", "5"];
        args.extend(shared.then_some("--shared"));
        let output = example(&args);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!((output.status.code(), &*err), (Some(0), ""), "{out}");
        let lines: Vec<_> = out.lines().collect();
        let pid = lines[0].split(' ').nth(3).unwrap();
        for (number, line) in lines[..6].iter().enumerate() {
            assert_eq!(*line, format!("generation {number} pid {pid} held 50"));
        }
        let summary = format!("summary: pid {pid} held 50 locks over 5 re-executions; ");
        assert!(
            lines[6].starts_with(&summary) && lines[6].ends_with("and got none"),
            "{}",
            lines[6]
        );
        assert_eq!(lines.len(), 7);
        assert_eq!(fs::read_dir(&locks).unwrap().count(), 0);
    }
}

#[test]
fn the_example_says_what_is_wrong() {
    for args in [&["--locks"][..], &["--times", "x"], &["--locks", "-1"], &["image"], &["--lock"]] {
        let output = example(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).contains("Usage: reexec"), "{args:?}");
    }
    let help = example(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    assert!(text(&help.stdout).contains("--times M"));
    let output = example(&["--dir", "/dev/null", "--locks", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/dev/null"));
}

#[test]
fn the_example_leaves_nothing_where_it_cannot_begin() {
    let dir = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 20 && exec \"$0\" --locks 50"]).arg(path_of_example());
    let output = shell.env("TMPDIR", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("Too many open files"), "{}", text(&output.stderr));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn the_example_ends_with_1_where_something_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let locks = dir.path().join("locks");
    let args = ["--dir", locks.to_str().unwrap(), "--locks", "20", "--times", "100000"];
    let meanwhile = thread::spawn({
        let locks = locks.clone();
        move || {
            // By hand, as nobody should: a lock file goes, and the name is free for others.
            while fs::read_dir(&locks).map_or(0, Iterator::count) < 20 {
                thread::yield_now();
            }
            let first = fs::read_dir(&locks).unwrap().next().unwrap().unwrap();
            fs::remove_file(first.path()).unwrap();
        }
    });
    let output = example(&args);
    meanwhile.join().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    assert!(!text(&output.stdout).contains("summary:"));
    assert!(text(&output.stderr).starts_with("reexec: "), "{}", text(&output.stderr));
}
