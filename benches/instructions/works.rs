//! The works whose instructions are counted.

use std::cell::Cell;
use std::error::Error;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::hint::black_box;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
use tempfile::TempDir;

use crate::callgrind::{Profile, in_profile};
use crate::raw::{self, Registry, Way};
use crate::table::{Figures, Row};

const ONE: OwnerId = OwnerId::new(1);
const TWO: OwnerId = OwnerId::new(2);

/// What is done once, or, where it says so, for several resources.
type Once = Box<dyn FnMut()>;

struct Work {
    title: &'static str,
    make: fn(&Place) -> Once,
    /// How many resources one call is for.
    resources: u64,
    at_most: Option<Figures>,
}

const fn work(title: &'static str, make: fn(&Place) -> Once) -> Work {
    Work { title, make, resources: 1, at_most: None }
}

impl Work {
    const fn at_most(mut self, instructions: u64, system_calls: u64) -> Self {
        self.at_most = Some(Figures { first: instructions, second: Some(system_calls) });
        self
    }

    const fn of(mut self, resources: u64) -> Self {
        self.resources = resources;
        self
    }
}

const WORKS: [Work; 10] = [
    work("try and release, existing file in a directory, verbatim name of 32 bytes", in_directory)
        .at_most(2000, 6),
    work("the same on a direct path", direct).at_most(2000, 7),
    work("the same in memory", in_memory).at_most(1350, 0),
    work("refused by what this process holds, error built and dropped", refused).at_most(300, 0),
    work("a second shared owner joins and leaves", joins).at_most(650, 0),
    work("try, keep, and the share of one in `release_owner` of 10", kept)
        .of(KEPT as u64)
        .at_most(2800, 6),
    work("the bare calls, in a directory", bare_in_directory),
    work("the bare calls, on a direct path", bare_direct),
    work("raw in a map, in a directory", map_in_directory),
    work("raw in a map, in memory", map_in_memory),
];

/// How often a work is done while instructions are counted, and before, so that what is allocated
/// once is there.
const TIMES: u64 = 1000;
const BEFORE: usize = 20;

/// Under callgrind: a loop around nothing, and then each work.
pub(crate) fn run() {
    let place = Place::new();
    count(Box::new(|| {
        black_box(());
    }));
    for work in &WORKS {
        count((work.make)(&place));
    }
}

fn count(mut once: Once) {
    for _ in 0..BEFORE {
        once();
    }
    in_profile(TIMES, &mut once);
}

/// Outside: a row for each work, without what the loop itself takes.
pub(crate) fn rows(profiles: &[Profile]) -> Result<Vec<Row>, Box<dyn Error>> {
    let [nothing, profiles @ ..] = profiles else { return Err("callgrind counted nothing".into()) };
    if profiles.len() != WORKS.len() {
        return Err(format!("{} works, and {} profiles", WORKS.len(), profiles.len()).into());
    }
    let row = |(work, profile): (&Work, &Profile)| {
        let each = |all: u64| {
            let divisor = TIMES * work.resources;
            (all + divisor / 2) / divisor
        };
        let figures = Figures {
            first: each(profile.instructions - nothing.instructions),
            second: Some(each(profile.system_calls)),
        };
        Row { title: work.title, figures, at_most: work.at_most }
    };
    Ok(WORKS.iter().zip(profiles).map(row).collect())
}

/// A directory with lock files.
struct Place {
    directory: TempDir,
    name: String,
}

impl Place {
    /// Its path is equally long everywhere: it is copied and looked through.
    fn new() -> Self {
        let mut builder = tempfile::Builder::new();
        let directory = builder.prefix("lockspace-").rand_bytes(6).tempdir_in("/tmp");
        let place = Self { directory: directory.expect("a directory in /tmp"), name: name(0) };
        place.make_file(&place.name);
        place
    }

    fn make_file(&self, name: &str) {
        File::create(self.directory.path().join(name)).expect("create");
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(&self.name)
    }

    fn space(&self) -> LockSpace {
        LockSpace::open(Naming::verbatim(self.directory.path())).expect("a space")
    }

    fn registry(&self) -> std::sync::Arc<Registry> {
        Registry::new(self.directory.path().join("").as_os_str().as_bytes())
    }

    fn open(&self) -> OwnedFd {
        File::open(self.directory.path()).expect("the directory").into()
    }
}

/// 32 bytes.
fn name(number: usize) -> String {
    format!("a lock file of 32 bytes no. {number:04}")
}

fn c(path: impl AsRef<Path>) -> CString {
    CString::new(path.as_ref().as_os_str().as_bytes()).expect("no NUL")
}

fn try_and_release(space: &LockSpace, request: Request<'_>) {
    space.acquire(ONE, request, Wait::NO).expect("it is free").release().expect("release");
}

fn in_directory(place: &Place) -> Once {
    let (space, name) = (place.space(), place.name.clone());
    Box::new(move || try_and_release(&space, Request::exclusive(&name)))
}

fn direct(place: &Place) -> Once {
    let (space, path) = (LockSpace::open(Naming::direct()).expect("a space"), place.path());
    Box::new(move || try_and_release(&space, Request::exclusive(&path)))
}

fn in_memory(place: &Place) -> Once {
    let space = LockSpace::open(Naming::in_memory()).expect("a space");
    let name = place.name.clone();
    Box::new(move || try_and_release(&space, Request::exclusive(&name)))
}

fn refused(place: &Place) -> Once {
    let (space, name) = (place.space(), place.name.clone());
    let lease = space.acquire(ONE, Request::exclusive(&name), Wait::NO).expect("it is free");
    Box::new(move || {
        let _keep = &lease;
        let refused = space.acquire(TWO, Request::exclusive(&name), Wait::NO);
        assert!(black_box(refused).is_err());
    })
}

fn joins(place: &Place) -> Once {
    let (space, name) = (place.space(), place.name.clone());
    let lease = space.acquire(ONE, Request::shared(&name), Wait::NO).expect("it is free");
    Box::new(move || {
        let _keep = &lease;
        let second = space.acquire(TWO, Request::shared(&name), Wait::NO).expect("join");
        black_box(second).release().expect("leave");
    })
}

/// How many are kept, and released together.
const KEPT: usize = 10;

/// Each name is a `String` of its own, as a daemon has it from a message.
fn kept(place: &Place) -> Once {
    let names: Vec<_> = (0..KEPT).map(name).collect();
    names.iter().for_each(|name| place.make_file(name));
    let space = place.space();
    Box::new(move || {
        for name in &names {
            let request = Request::exclusive(name.clone());
            space.acquire(ONE, request, Wait::NO).expect("it is free").keep();
        }
        assert_eq!(space.release_owner(ONE).holds, KEPT);
    })
}

fn bare_in_directory(place: &Place) -> Once {
    let (fd, file, path) = (place.open(), c(&place.name), c(place.path()));
    let way = Way::Assembly;
    Box::new(move || raw::end(way, raw::in_directory(way, fd.as_fd(), &file, &path)))
}

fn bare_direct(place: &Place) -> Once {
    let (way, path) = (Way::Assembly, c(place.path()));
    Box::new(move || raw::end(way, raw::direct(way, &path)))
}

fn map_in_directory(place: &Place) -> Once {
    let (way, fd) = (Way::Assembly, place.open());
    let (registry, name) = (place.registry(), place.name.clone());
    Box::new(move || {
        let begin = |file: &CStr, path: &CStr| raw::in_directory(way, fd.as_fd(), file, path);
        registry.cycle(name.as_bytes(), begin, |fd| raw::end(way, fd));
    })
}

/// The same without its system calls: one descriptor is held again and again.
fn map_in_memory(place: &Place) -> Once {
    let (registry, name) = (place.registry(), place.name.clone());
    let fd = Cell::new(Some(place.open()));
    Box::new(move || {
        let begin = |_: &CStr, _: &CStr| fd.take().expect("it is back");
        registry.cycle(name.as_bytes(), begin, |held| fd.set(Some(held)));
    })
}

/// As many as the usual limit of 1024 descriptors lets a process hold. Tables grow by doubling, so
/// another number has another share of what they do not use.
const HELD: usize = 1000;

/// The bytes that a kept hold takes from the allocator, with the allocator's own for each.
pub(crate) fn memory_for_each() -> u64 {
    let place = Place::new();
    (0..HELD).for_each(|number| place.make_file(&name(number)));
    let space = place.space();
    let keep = |number| {
        let request = Request::exclusive(name(number));
        space.acquire(ONE, request, Wait::NO).expect("it is free").keep();
    };
    // The first pay for what is made once.
    let first = HELD / 20;
    (0..first).for_each(keep);
    let before = allocated();
    (first..HELD).for_each(keep);
    let (bytes, holds) = (allocated() - before, HELD - first);
    ((bytes + holds / 2) / holds) as u64
}

/// By the allocator's own books: one that counts for itself would add its instructions to all else.
fn allocated() -> usize {
    // SAFETY: it takes nothing and returns numbers.
    let books = unsafe { libc::mallinfo2() };
    books.uordblks + books.hblkhd
}
