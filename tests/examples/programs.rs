//! How the examples are run: real processes, their output and their exit codes.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

/// The built example: `cargo test` puts it beside the folder of this test. A lone `--test examples`
/// builds none, and would run old ones: `cargo build --examples` first, with the same features.
pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: `cargo build --examples`", path.display());
    path
}

pub(crate) fn image_lock(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(example("image_lock"));
    command.args(args);
    command
}

pub(crate) fn who_holds(args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
    let mut command = Command::new(example("who_holds"));
    command.args(args);
    command
}

/// What a process said, and how it ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

pub(crate) fn run(mut command: Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// An `image_lock --hold` that has said that it holds. It is killed when dropped.
pub(crate) struct Holding {
    pub(crate) process: Child,
    pub(crate) said: String,
    _out: BufReader<ChildStdout>,
}

impl Holding {
    pub(crate) fn start(command: Command) -> Self {
        Self::start_with(command, 1)
    }

    /// One that holds so many images.
    pub(crate) fn start_with(mut command: Command, images: usize) -> Self {
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        Self::of(process, out, images)
    }

    pub(crate) fn of(process: Child, mut out: BufReader<ChildStdout>, images: usize) -> Self {
        let mut said = String::new();
        for _ in 0..images {
            out.read_line(&mut said).unwrap();
        }
        let holding = Self { process, said, _out: out };
        let locked = holding.said.lines().filter(|line| line.starts_with("locked "));
        assert_eq!(locked.count(), images, "it said {:?}", holding.said);
        holding
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it said that it has locked, and as which file.
    pub(crate) fn locked(&self) -> (&Path, &Path) {
        let line = self.said.trim_end_matches('\n').strip_prefix("locked ").unwrap();
        let (image, file) = line.split_once(" as ").unwrap();
        (Path::new(image), Path::new(file))
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A folder with an image and a place for lock files.
pub(crate) struct Home {
    pub(crate) dir: TempDir,
}

impl Home {
    pub(crate) fn new() -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(home.image(), "an image").unwrap();
        home
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.path().join("a.img")
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.path().join("locks")
    }

    pub(crate) fn lock_files(&self) -> usize {
        fs::read_dir(self.locks()).unwrap().count()
    }

    /// `image_lock --dir LOCKS ... IMAGE`
    pub(crate) fn by_directory<const N: usize>(&self, options: [&str; N]) -> Command {
        let mut command = image_lock(["--dir"]);
        command.arg(self.locks()).args(options).arg(self.image());
        command
    }

    /// `image_lock --direct ... IMAGE`
    pub(crate) fn directly<const N: usize>(&self, options: [&str; N]) -> Command {
        let mut command = image_lock(["--direct"]);
        command.args(options).arg(self.image());
        command
    }
}
