//! Locks disk images.
//!
//! Without arguments it shows what a lockspace is for, on images that it makes itself:
//!
//! ```sh
//! cargo run --example image_lock
//! ```
//!
//! With arguments it is a small tool. In one terminal, then in another:
//!
//! ```sh
//! cargo run --example image_lock -- --hold 60 IMAGE
//! cargo run --example image_lock -- --wait 30 IMAGE
//! ```

use std::error::Error;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use lockspace::{
    AcquireError, HeldBy, Leases, LockSpace, Mode, Naming, OwnerId, Request, Target, Wait,
};

const USAGE: &str = "\
Usage: image_lock [--shared] [--dir DIR | --direct] [--sha256] [--owner N] [--wait SECONDS]
                  [--hold SECONDS] IMAGE...
       image_lock

Locks disk images, all or none, prints `locked IMAGE as LOCKFILE` for each, and releases them again.
If one is held, tells who holds it. Without arguments: a show, on images of its own.

  --shared        beside other shared holds, for an image that is only read
  --dir DIR       lock files in DIR, instead of a directory of this user's own (/run/lockspace of root's,
                  else lockspace in $XDG_RUNTIME_DIR, else one in /tmp, which cleaners may sweep)
  --direct        lock the images themselves, without a lock file
  --sha256        name the lock files as libvirt does, instead of by MD5 (feature `sha256`)
  --owner N       hold them for owner N, instead of for this process
  --wait SECONDS  wait that long for what is held, and tell on standard error, once a second, who
                  holds it; 0, as without this, tries once
  --hold SECONDS  hold them that long, or until killed

Programs exclude each other only if they lock the same file: same --dir and naming, or --direct.

Exit status: 0 all were locked, 1 none was, 2 wrong usage.";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let mut out = io::stdout();
    let ended = match Task::parse(args) {
        Ok(Task::Show) => show(&mut out).map(|()| ExitCode::SUCCESS),
        Ok(Task::Help) => writeln!(out, "{USAGE}").map(|()| ExitCode::SUCCESS).map_err(Into::into),
        Ok(Task::Lock(options)) => lock(&options, &mut out),
        Err(error) => {
            eprintln!("image_lock: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    ended.unwrap_or_else(|error| {
        eprintln!("image_lock: {error}");
        ExitCode::FAILURE
    })
}

// --- The tool.

/// What the arguments ask for.
enum Task {
    Show,
    Help,
    Lock(Options),
}

struct Options {
    place: Place,
    sha256: bool,
    mode: Mode,
    owner: OwnerId,
    wait: Option<Duration>,
    hold: Option<Duration>,
    images: Vec<PathBuf>,
}

/// Which file is locked for an image.
enum Place {
    OwnDirectory,
    Directory(PathBuf),
    Direct,
}

/// Locks, says so, holds; or tells who is in the way.
fn lock(options: &Options, out: &mut impl Write) -> Result<ExitCode, Box<dyn Error>> {
    let space = options.open_space()?;
    let leases = match options.acquire(&space) {
        Ok(leases) => leases,
        Err(AcquireError::Busy(busy)) => {
            writeln!(out, "{busy}")?;
            for holder in space.holders(busy.name())? {
                writeln!(out, "  {holder}")?;
            }
            return Ok(ExitCode::FAILURE);
        }
        Err(error) => return Err(error.into()),
    };
    for lease in &leases {
        writeln!(out, "locked {} as {}", shown(Path::new(lease.name())), shown(lease.path()))?;
    }
    // Whoever reads this through a pipe must see it while the images are held.
    out.flush()?;
    if let Some(time) = options.hold {
        thread::sleep(time);
    }
    for lease in leases {
        lease.release()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells once a second who is in the way, until `waiting` ends.
fn tell_who_holds(space: &LockSpace, images: &[PathBuf], waiting: &mpsc::Receiver<()>) {
    let began = Instant::now();
    while let Err(RecvTimeoutError::Timeout) = waiting.recv_timeout(Duration::from_secs(1)) {
        for image in images {
            // A look at one moment: it may be free by now, or not to be seen.
            let holders = space.holders(Target::image(image)).unwrap_or_default();
            // What this program has itself it has for a moment, while it tries all at once.
            for holder in holders.iter().filter(|holder| !matches!(holder.by, HeldBy::Owners(_))) {
                eprintln!("waiting, {:.0?}: {} is held by {holder}", began.elapsed(), shown(image));
            }
        }
    }
}

impl Options {
    fn open_space(&self) -> Result<LockSpace, Box<dyn Error>> {
        let naming = match &self.place {
            Place::Direct => Naming::direct(),
            Place::Directory(directory) => self.hashed(directory),
            Place::OwnDirectory => self.hashed(&own_directory()?),
        };
        Ok(LockSpace::open(naming)?)
    }

    fn hashed(&self, directory: &Path) -> Naming {
        match self.sha256 {
            #[cfg(feature = "sha256")]
            true => Naming::sha256(directory),
            // Without the feature, `Task::parse` has refused `--sha256`.
            _ => Naming::md5(directory),
        }
    }

    /// All images or none.
    fn acquire(&self, space: &LockSpace) -> Result<Leases, AcquireError> {
        let requests = || self.images.iter().map(|image| self.request(image));
        let Some(time) = self.wait else {
            return space.acquire_all(self.owner, requests(), Wait::NO);
        };
        let deadline = Instant::now().checked_add(time);
        let wait = || deadline.map_or(Wait::FOREVER, Wait::until);
        thread::scope(|scope| {
            let (done, waiting) = mpsc::channel::<()>();
            let waiter = thread::Builder::new().spawn_scoped(scope, move || {
                let _done = done; // dropped when the wait ends, however it ends
                space.acquire_all(self.owner, requests(), wait())
            });
            match waiter {
                Ok(waiter) => {
                    tell_who_holds(space, &self.images, &waiting);
                    waiter.join().expect("the waiter does not panic")
                }
                Err(error) => {
                    eprintln!("waiting without telling who holds: no thread for it: {error}");
                    space.acquire_all(self.owner, requests(), wait())
                }
            }
        })
    }

    fn request<'a>(&self, image: &'a Path) -> Request<'a> {
        let request = Request::new(self.mode, Target::image(image));
        match self.place {
            Place::Direct => request,
            Place::OwnDirectory | Place::Directory(_) => request.auto_create(),
        }
    }
}

impl Task {
    fn parse(args: Vec<OsString>) -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;

        if args.is_empty() {
            return Ok(Self::Show);
        }
        let (mut directory, mut direct, mut sha256) = (None, false, false);
        let (mut mode, mut owner) = (Mode::Exclusive, OwnerId::this_process());
        let (mut wait, mut hold, mut images) = (None, None, Vec::new());
        let mut parser = lexopt::Parser::from_args(args);
        while let Some(arg) = parser.next()? {
            match arg {
                Long("help") | Short('h') => return Ok(Self::Help),
                Long("shared") => mode = Mode::Shared,
                Long("dir") => directory = Some(PathBuf::from(parser.value()?)),
                Long("direct") => direct = true,
                Long("sha256") => sha256 = true,
                Long("owner") => owner = OwnerId::new(parser.value()?.parse()?),
                Long("wait") => wait = Some(parser.value()?.parse_with(seconds)?),
                Long("hold") => hold = Some(parser.value()?.parse_with(seconds)?),
                Value(path) => images.push(PathBuf::from(path)),
                arg => return Err(arg.unexpected()),
            }
        }
        let place = match (directory, direct) {
            (Some(_), true) => return Err("--dir and --direct exclude each other".into()),
            (None, true) if sha256 => return Err("--direct needs no names for lock files".into()),
            (None, true) => Place::Direct,
            (Some(directory), false) => Place::Directory(directory),
            (None, false) => Place::OwnDirectory,
        };
        if sha256 && !cfg!(feature = "sha256") {
            return Err("--sha256: built without the feature `sha256`".into());
        }
        if images.is_empty() {
            return Err("no image is named".into());
        }
        Ok(Self::Lock(Options { place, sha256, mode, owner, wait, hold, images }))
    }
}

/// A number of seconds, with or without a fraction.
fn seconds(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}

/// A directory for lock files that this user alone can change: others could make every lock
/// worthless there.
///
/// Each user has one, so this keeps a user's programs apart, not those of several users. Root's
/// does not depend on the environment: a service and a login must meet in it.
fn own_directory() -> Result<PathBuf, Box<dyn Error>> {
    let user = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let directory = match runtime.filter(|path| path.is_absolute()) {
        _ if user == 0 => PathBuf::from("/run/lockspace"),
        Some(runtime) => runtime.join("lockspace"),
        None => PathBuf::from(format!("/tmp/lockspace-{user}")),
    };
    let in_it = |error| format!("{}: {error}", shown(&directory));
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made.map_err(in_it)?,
    }
    // In /tmp, anybody may have been first, also with a symbolic link. What is ours there, and
    // closed to others, nobody else can replace.
    let found = fs::symlink_metadata(&directory).map_err(in_it)?;
    if !found.is_dir() || found.uid() != user || found.mode() & 0o077 != 0 {
        let path = shown(&directory);
        return Err(
            format!("{path} is not a directory of this user alone: name one by --dir").into()
        );
    }
    Ok(directory)
}

/// A path as it is, or quoted where a character in it could forge a line.
fn shown(path: &Path) -> String {
    match path.to_str() {
        Some(text) if !text.contains(char::is_control) => text.to_owned(),
        _ => format!("{path:?}"),
    }
}

// --- The show.

/// Two virtual machines that want one disk, and one base image that both may read.
fn show(out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let home = tempfile::tempdir()?;
    let (disk, base) = (home.path().join("disk.qcow2"), home.path().join("base.qcow2"));
    fs::write(&disk, "")?;
    fs::write(&base, "")?;
    let locks = home.path().join("locks");

    let space = LockSpace::open(Naming::md5(&locks))?;
    let (vm1, vm2) = (OwnerId::new(101), OwnerId::new(102));
    let write = |image| Request::exclusive(Target::image(image)).auto_create();
    let read = |image| Request::shared(Target::image(image)).auto_create();

    writeln!(out, "1. Two VMs, one disk: {}", disk.display())?;
    let disk_of_vm1 = space.acquire(vm1, write(&disk), Wait::NO)?;
    writeln!(out, "   VM {vm1} locks it to write")?;
    writeln!(out, "      granted: its lock file is {}", disk_of_vm1.path().display())?;
    writeln!(out, "   VM {vm2} locks it to write")?;
    writeln!(out, "      refused: {}", refusal(space.acquire(vm2, write(&disk), Wait::NO)))?;

    writeln!(out, "\n2. One base image that both read: {}", base.display())?;
    let base_of_vm1 = space.acquire(vm1, read(&base), Wait::NO)?;
    let base_of_vm2 = space.acquire(vm2, read(&base), Wait::NO)?;
    for holder in space.holders(base_of_vm1.name())? {
        writeln!(out, "   held by {holder}")?;
    }
    let backup = OwnerId::new(900);
    writeln!(out, "   Owner {backup} locks it to write")?;
    writeln!(out, "      refused: {}", refusal(space.acquire(backup, write(&base), Wait::NO)))?;

    writeln!(out, "\n3. VM {vm2} waits for the disk, ten seconds at most, while VM {vm1} stops")?;
    let disk_of_vm2 = thread::scope(|scope| {
        let wait = Wait::within(Duration::from_secs(10));
        let waiter = thread::Builder::new()
            .spawn_scoped(scope, || space.acquire(vm2, write(&disk), wait))?;
        disk_of_vm1.release()?;
        base_of_vm1.release()?;
        let waited = waiter.join().expect("the waiter does not panic");
        Ok::<_, Box<dyn Error>>(waited?)
    })?;
    writeln!(out, "      granted: VM {} has {}", disk_of_vm2.owner(), disk.display())?;

    writeln!(out, "\n4. VM {vm2} stops, too")?;
    disk_of_vm2.release()?;
    base_of_vm2.release()?;
    writeln!(
        out,
        "   held: {}, lock files left: {}",
        space.list().len(),
        fs::read_dir(locks)?.count()
    )?;

    writeln!(
        out,
        "\nNow with real processes. In one terminal, then, while it holds, in another:\n  \
         cargo run --example image_lock -- --hold 60 IMAGE\n  \
         cargo run --example image_lock -- --wait 30 IMAGE"
    )?;
    Ok(())
}

/// What was said to a request that must not be granted.
fn refusal<T>(answer: Result<T, AcquireError>) -> String {
    match answer {
        Ok(_) => panic!("granted twice"),
        Err(error) => error.to_string(),
    }
}
