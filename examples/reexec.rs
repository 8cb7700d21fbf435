//! Re-executes itself, again and again, and never lets go of a lock.
//!
//! ```sh
//! cargo run --example reexec --features snapshot -- --locks 1000 --times 100
//! ```
//!
//! It is what a daemon does for an upgrade: it freezes its lock space, writes down what it holds,
//! and executes its program anew in the same process; the new one proves every lock and takes it
//! over. All the while a second process tries to take each of the locks, without pause.
#![allow(unsafe_code, reason = "descriptors that an exec has carried over")]

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use lockspace::snapshot::{self, Document, Snapshot};
use lockspace::{AcquireError, Lease, LockSpace, Mode, Naming, OwnerId, Request, Wait};
use rustix::io::FdFlags;
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, getrlimit, setrlimit, waitpid};
use serde_json::{Value, json};

const USAGE: &str = "\
Usage: reexec [--dir DIR] [--locks N] [--times M] [--shared]

Holds N resources, half of them with lock files that it made, re-executes itself M times in the same
process, and releases them. A second process tries to take each of them all the time.

  --dir DIR   lock files in DIR, instead of a directory that is removed in the end
  --locks N   hold so many, instead of 100
  --times M   re-execute so many times, instead of 10
  --shared    hold them shared, instead of exclusively

Exit status: 0 nothing was lost, 1 something was, 2 wrong usage.";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let task = match Task::parse(args) {
        Ok(task) => task,
        Err(error) => {
            eprintln!("reexec: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let ended = match task {
        Task::Help => writeln!(io::stdout(), "{USAGE}").map_err(Into::into),
        Task::Begin(plan) => Generation::first(plan).and_then(Generation::run),
        Task::GoOn(carried) => Generation::next(carried).and_then(Generation::run),
        Task::Rival(plan) => rival(&plan),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reexec: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What the arguments ask for.
enum Task {
    Help,
    Begin(Plan),
    /// Take over what the program before this one has carried here.
    GoOn(u32),
    /// Be the second process.
    Rival(Plan),
}

struct Plan {
    /// `None`: one of our own.
    directory: Option<PathBuf>,
    locks: usize,
    times: u64,
    mode: Mode,
}

impl Task {
    fn parse(args: Vec<OsString>) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;

        let mut plan = Plan { directory: None, locks: 100, times: 10, mode: Mode::Exclusive };
        let mut rival = false;
        let mut parser = lexopt::Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("help") | Short('h') => return Ok(Self::Help),
                Long("dir") => plan.directory = Some(PathBuf::from(parser.value()?)),
                Long("locks") => plan.locks = parser.value()?.parse()?,
                Long("times") => plan.times = parser.value()?.parse()?,
                Long("shared") => plan.mode = Mode::Shared,
                // These two are for this program only.
                Long("carried") => return Ok(Self::GoOn(parser.value()?.parse()?)),
                Long("rival") => rival = true,
                arg => return Err(arg.unexpected()),
            }
        }
        Ok(if rival { Self::Rival(plan) } else { Self::Begin(plan) })
    }
}

/// The program, between two times that it is executed.
struct Generation {
    number: u64,
    times: u64,
    locks: usize,
    /// Where the program is. Not `/proc/self/exe`, which would be the old one after an upgrade.
    program: PathBuf,
    directory: PathBuf,
    /// The directory goes in the end.
    is_ours: bool,
    rival: Rival,
    space: LockSpace,
    leases: Vec<Lease>,
}

impl Generation {
    fn first(plan: Plan) -> Result<Self, Box<dyn Error>> {
        allow_descriptors()?;
        // It goes with an error; and if all goes well, with the last generation.
        let ours = plan.directory.is_none().then(tempfile::tempdir).transpose()?;
        let directory = match (&plan.directory, &ours) {
            (Some(directory), _) => directory.clone(),
            (None, ours) => ours.as_ref().ok_or("no directory")?.path().to_owned(),
        };
        let program = std::env::current_exe()?;
        let space = LockSpace::open(Naming::md5(&directory))?;
        let lock = |index| {
            let name = name(index);
            let request = Request::new(plan.mode, &name);
            let request = match is_existing(index) {
                true => {
                    space.create(&name)?;
                    request
                }
                false => request.auto_create(),
            };
            let lease = space.acquire(OwnerId::this_process(), request, Wait::NO)?;
            Ok::<_, Box<dyn Error>>(lease)
        };
        let leases: Vec<_> = (0..plan.locks).map(lock).collect::<Result<_, _>>()?;
        let rival = Rival::spawn(&program, &directory, &plan)?;
        let (number, times, locks) = (0, plan.times, plan.locks);
        let is_ours = ours.map(tempfile::TempDir::keep).is_some();
        Ok(Self { number, times, locks, program, directory, is_ours, rival, space, leases })
    }

    /// Takes over from the program before.
    fn next(carried: u32) -> Result<Self, Box<dyn Error>> {
        let state: Value = serde_json::from_slice(&snapshot::carried(carried)?)?;
        let document = serde_json::from_value::<Document>(state["lockspace"].clone())?;
        // SAFETY: this is the first thing that the program does, and it has no other thread. The
        // rival's socket, which comes next, is no lock.
        let space = unsafe { snapshot::restore([&document]) }?.remove(0);
        let number = |key: &str| state[key].as_u64().ok_or(format!("the state has no {key}"));
        let socket = RawFd::try_from(number("rivalSocket")?)?;
        // SAFETY: the program before this one left it open, and nobody else knows of it.
        let socket = UnixStream::from(unsafe { OwnedFd::from_raw_fd(socket) });
        close_on_exec(&socket, true)?;
        let rival = Rival { pid: i32::try_from(number("rivalPid")?)?, socket };
        // Leases are kept holds now.
        let held = space.list();
        let leases = held.iter().flat_map(|held| {
            let each = held.owners.iter().flat_map(|(id, n)| (0..*n).map(|_| *id));
            each.map(|owner| space.retake(owner, &held.name))
        });
        Ok(Self {
            leases: leases.collect::<Result<_, _>>()?,
            number: number("generation")? + 1,
            times: number("times")?,
            locks: usize::try_from(number("locks")?)?,
            program: path(&state["program"])?,
            directory: path(&state["directory"])?,
            is_ours: state["isOurs"] == true,
            rival,
            space,
        })
    }

    fn run(mut self) -> Result<(), Box<dyn Error>> {
        let seen = match self.look() {
            Ok(_) if self.number < self.times => Err(self.execute()),
            seen => seen,
        };
        // What it holds for a moment, once nothing is held here, is none of ours.
        self.rival.end();
        let done = seen.and_then(|tries| self.release(tries));
        // If not for an error, nothing is held any more.
        self.leases.clear();
        if self.is_ours {
            std::fs::remove_dir_all(&self.directory)?;
        }
        done
    }

    /// Whether everything is held; how often the rival has tried in vain.
    fn look(&mut self) -> Result<u64, Box<dyn Error>> {
        let held = self.space.list().len();
        let mut out = io::stdout();
        writeln!(out, "generation {} pid {} held {held}", self.number, std::process::id())?;
        out.flush()?;
        let lost = self.leases.iter().find_map(|lease| lease.verify().err());
        let (tries, taken) = self.rival.ask()?;
        match lost {
            Some(error) => Err(error.into()),
            None if (held, self.leases.len(), taken) == (self.locks, self.locks, 0) => Ok(tries),
            None => Err(format!("lost: {taken} tries of the other process were granted").into()),
        }
    }

    /// Returns only if it failed. A daemon would go on then, with every lock.
    fn execute(&self) -> Box<dyn Error> {
        let prepare = || -> Result<(Snapshot, u32), Box<dyn Error>> {
            let mut snapshot = Snapshot::take([&self.space])?;
            let state = json!({
                "generation": self.number,
                "times": self.times,
                "locks": self.locks,
                "program": self.program.as_os_str().as_bytes(),
                "directory": self.directory.as_os_str().as_bytes(),
                "isOurs": self.is_ours,
                "rivalPid": self.rival.pid,
                "rivalSocket": self.rival.socket.as_raw_fd(),
                "lockspace": snapshot.documents()[0],
            });
            let carried = snapshot.carry(&serde_json::to_vec(&state)?)?;
            close_on_exec(&self.rival.socket, false)?;
            Ok((snapshot, carried))
        };
        prepare().map_or_else(
            |error| error,
            |(snapshot, carried)| {
                let mut command = Command::new(&self.program);
                snapshot.exec(command.arg("--carried").arg(carried.to_string())).into()
            },
        )
    }

    /// Releases everything, and says what was seen.
    fn release(&mut self, tries: u64) -> Result<(), Box<dyn Error>> {
        for lease in self.leases.drain(..) {
            lease.release()?;
        }
        for index in 0..self.locks {
            // Fails if the lock file is there that should have gone, or the other way round.
            let name = name(index);
            let wanted = if is_existing(index) { "" } else { "not " };
            let there = self.space.delete(&name).is_ok();
            if there != is_existing(index) {
                return Err(format!("the lock file of {name} should {wanted}be there").into());
            }
        }
        let Self { locks, times, .. } = self;
        let pid = std::process::id();
        writeln!(
            io::stdout(),
            "summary: pid {pid} held {locks} locks over {times} re-executions; another process \
             tried {tries} times to take one, and got none"
        )?;
        Ok(())
    }
}

/// The second process, and the socket to it.
struct Rival {
    pid: i32,
    socket: UnixStream,
}

impl Rival {
    fn spawn(program: &Path, directory: &Path, plan: &Plan) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let mut command = Command::new(program);
        command.arg("--rival").arg("--dir").arg(directory);
        command.args(["--locks", &plan.locks.to_string()]);
        if plan.mode == Mode::Shared {
            command.arg("--shared");
        }
        let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn()?;
        let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
        Ok(Self { pid, socket })
    }

    /// Lets it try each lock once more; how often it has tried since it began, and how many of
    /// these tries were not refused.
    fn ask(&mut self) -> Result<(u64, u64), Box<dyn Error>> {
        self.socket.write_all(b"?")?;
        let mut answer = String::new();
        BufReader::new(&self.socket).read_line(&mut answer)?;
        let (tries, taken) = answer.trim_end().split_once(' ').ok_or("the rival has ended")?;
        Ok((tries.parse()?, taken.parse()?))
    }

    /// It ends when the socket does.
    fn end(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
        let _ = waitpid(Pid::from_raw(self.pid), WaitOptions::empty());
    }
}

/// The second process: tries each lock, again and again.
fn rival(plan: &Plan) -> Result<(), Box<dyn Error>> {
    let directory = plan.directory.as_ref().ok_or("no directory")?;
    let space = LockSpace::open(Naming::md5(directory))?;
    // Beside shared holds, only an exclusive one is refused.
    let mode = match plan.mode {
        Mode::Exclusive => Mode::Shared,
        Mode::Shared => Mode::Exclusive,
    };
    let names: Vec<_> = (0..plan.locks).map(name).collect();
    // Its standard input is the socket.
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (mut tries, mut taken) = (0_u64, 0_u64);
    let mut try_all = || {
        for name in &names {
            let tried = space.acquire(OwnerId::this_process(), Request::new(mode, name), Wait::NO);
            tries += 1;
            // A lock file that is missing is one that was lost.
            if !matches!(tried, Err(AcquireError::Busy(_))) {
                taken += 1;
            }
        }
        (tries, taken)
    };
    loop {
        try_all();
        socket.set_nonblocking(true)?;
        let asked = socket.read(&mut [0]);
        socket.set_nonblocking(false)?;
        match asked {
            Ok(0) => return Ok(()),
            Ok(_) => {
                let (tries, taken) = try_all();
                writeln!(socket, "{tries} {taken}")?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Room for as many descriptors as the system allows.
fn allow_descriptors() -> io::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}

fn close_on_exec(socket: &UnixStream, yes: bool) -> io::Result<()> {
    let flags = if yes { FdFlags::CLOEXEC } else { FdFlags::empty() };
    Ok(rustix::io::fcntl_setfd(socket, flags)?)
}

fn name(index: usize) -> String {
    format!("disk-{index}")
}

/// Every other lock file is there before, and stays.
fn is_existing(index: usize) -> bool {
    index.is_multiple_of(2)
}

/// A path, which JSON can hold as bytes only.
fn path(bytes: &Value) -> Result<PathBuf, serde_json::Error> {
    serde_json::from_value(bytes.clone())
        .map(|bytes: Vec<u8>| PathBuf::from(OsString::from_vec(bytes)))
}
