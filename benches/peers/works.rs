//! The works, and everyone who can do them.

use std::collections::HashMap;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{File, TryLockError};
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};
use rustix::thread::{CpuSet, sched_setaffinity};
use tempfile::TempDir;

use crate::libvirt::{AUTO_CREATE, Libvirt, LibvirtSpace, SHARED};
use crate::raw::{self, Registry, Way};

pub(crate) const OURS: &str = "ours";
pub(crate) const LIBVIRT: &str = "libvirt";
pub(crate) const FLOOR: &str = "raw";
/// The floor with the least bookkeeping: what no lockspace can be faster than.
pub(crate) const BOUND: &str = "raw in a map";

const ONE: OwnerId = OwnerId::new(1);
const TWO: OwnerId = OwnerId::new(2);

/// Somebody who does a work: so many times, and tells how long that took.
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) run: Box<dyn FnMut(u64) -> Duration>,
}

/// One work, in one file system.
pub(crate) struct Work {
    pub(crate) title: &'static str,
    pub(crate) contenders: Vec<Contender>,
    /// How often it is done in one round.
    pub(crate) ops: u64,
}

/// Where files are made.
pub(crate) struct Place {
    pub(crate) file_system: String,
    pub(crate) root: PathBuf,
    pub(crate) libvirt: Option<Arc<Libvirt>>,
}

impl Place {
    /// A fresh directory: what a file costs to create varies with its directory's history.
    pub(crate) fn fresh(&self) -> TempDir {
        tempfile::tempdir_in(&self.root).expect("a temporary directory")
    }
}

pub(crate) fn timed(mut once: impl FnMut() + 'static) -> Box<dyn FnMut(u64) -> Duration> {
    Box::new(move |times| {
        let begun = Instant::now();
        for _ in 0..times {
            once();
        }
        begun.elapsed()
    })
}

pub(crate) fn contender(name: impl Into<String>, once: impl FnMut() + 'static) -> Contender {
    Contender { name: name.into(), run: timed(once) }
}

/// Like the MD5 of a name, which is what a directory's files are called.
pub(crate) fn name(number: usize) -> String {
    format!(
        "{:032x}",
        (number as u128 + 1) * 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835 % (1 << 127)
    )
}

fn c(path: impl AsRef<OsStr>) -> CString {
    CString::new(path.as_ref().as_bytes()).expect("no NUL")
}

fn open_directory(path: &Path) -> OwnedFd {
    File::open(path).expect("the directory").into()
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).expect("open")
}

pub(crate) fn make_files(directory: &Path, count: usize) {
    for number in 0..count {
        File::create(directory.join(name(number))).expect("create");
    }
}

/// Acquire and release where the lock file is there.
pub(crate) fn in_directory(place: &Place) -> Work {
    let mut contenders = Vec::new();
    let (ours, file) = one_file(place);
    let space = LockSpace::open(Naming::verbatim(ours.path())).expect("a space");
    contenders.push(contender(OURS, move || {
        let _keep = &ours;
        let lease = space.acquire(ONE, Request::exclusive(&file), Wait::NO).expect("acquire");
        lease.release().expect("release");
    }));
    if let Some(libvirt) = &place.libvirt {
        let (theirs, file) = one_file(place);
        let (space, file) = (libvirt.space(Some(&c(theirs.path()))), c(file));
        contenders.push(contender(LIBVIRT, move || {
            let _keep = &theirs;
            assert!(space.acquire(&file, 1, 0));
            space.release(&file, 1);
        }));
    }
    for (name, way) in RAW {
        let (theirs, file) = one_file(place);
        let (fd, path) = (open_directory(theirs.path()), c(theirs.path().join(&file)));
        let file = c(file);
        contenders.push(contender(name, move || {
            let _keep = &theirs;
            raw::end(way, raw::in_directory(way, fd.as_fd(), &file, &path));
        }));
    }
    let (theirs, file) = one_file(place);
    let registry = Registry::new(theirs.path().join("").as_os_str().as_bytes());
    let fd = open_directory(theirs.path());
    contenders.push(contender(BOUND, move || {
        let _keep = &theirs;
        let begin =
            |file: &CStr, path: &CStr| raw::in_directory(Way::Assembly, fd.as_fd(), file, path);
        registry.cycle(file.as_bytes(), begin, |fd| raw::end(Way::Assembly, fd));
    }));
    contenders.extend(others(place));
    Work { title: "acquire and release in a directory", contenders, ops: 400 }
}

/// The same where this crate makes the file's name from the resource's, and libvirt's caller has.
pub(crate) fn hashed(place: &Place) -> Work {
    let mut work = in_directory(place);
    let directory = place.fresh();
    let space = LockSpace::open(Naming::md5(directory.path())).expect("a space");
    let image = "/var/lib/images/a.qcow2";
    space.create(image).expect("create");
    work.title = "the same, named by MD5 here";
    work.contenders[0] = contender(OURS, move || {
        let _keep = &directory;
        let lease = space.acquire(ONE, Request::exclusive(image), Wait::NO).expect("acquire");
        lease.release().expect("release");
    });
    work.contenders.truncate(work.contenders.len() - OTHERS);
    work
}

/// Acquire and release on the path of an image.
pub(crate) fn direct(place: &Place) -> Work {
    let mut contenders = Vec::new();
    let (ours, file) = one_file(place);
    let path = ours.path().join(file);
    let space = LockSpace::open(Naming::direct()).expect("a space");
    contenders.push(contender(OURS, move || {
        let _keep = &ours;
        let lease = space.acquire(ONE, Request::exclusive(&path), Wait::NO).expect("acquire");
        lease.release().expect("release");
    }));
    if let Some(libvirt) = &place.libvirt {
        let (theirs, file) = one_file(place);
        let (space, path) = (libvirt.space(None), c(theirs.path().join(file)));
        contenders.push(contender(LIBVIRT, move || {
            let _keep = &theirs;
            assert!(space.acquire(&path, 1, 0));
            space.release(&path, 1);
        }));
    }
    for (name, way) in RAW {
        let (theirs, file) = one_file(place);
        let path = c(theirs.path().join(file));
        contenders.push(contender(name, move || {
            let _keep = &theirs;
            raw::end(way, raw::direct(way, &path));
        }));
    }
    let (theirs, file) = one_file(place);
    let (path, registry) = (theirs.path().join(file), Registry::new(b""));
    contenders.push(contender(BOUND, move || {
        let _keep = &theirs;
        let begin = |_: &CStr, path: &CStr| raw::direct(Way::Assembly, path);
        registry.cycle(path.as_os_str().as_bytes(), begin, |fd| raw::end(Way::Assembly, fd));
    }));
    contenders.extend(others(place));
    Work { title: "acquire and release on a direct path", contenders, ops: 400 }
}

const RAW: [(&str, Way); 3] =
    [(FLOOR, Way::Assembly), ("raw with libc's fcntl", Way::Rustix), ("raw by libc", Way::Libc)];

fn one_file(place: &Place) -> (TempDir, String) {
    let directory = place.fresh();
    make_files(directory.path(), 1);
    (directory, name(0))
}

const OTHERS: usize = 6;

/// The crates that lock a file, and the standard library. None looks whether the name still leads
/// to what it has locked, and most leave the unlock to the close.
fn others(place: &Place) -> [Contender; OTHERS] {
    let path = || {
        let (directory, file) = one_file(place);
        let path = directory.path().join(file);
        (directory, path)
    };
    let std = {
        let (keep, path) = path();
        contender("std", move || {
            let _keep = &keep;
            open(&path).try_lock().expect("lock");
        })
    };
    let fd_lock = {
        let (keep, path) = path();
        contender("fd-lock", move || {
            let _keep = &keep;
            let mut lock = fd_lock::RwLock::new(open(&path));
            drop(black_box(lock.try_write().expect("lock")));
        })
    };
    let fs4 = {
        let (keep, path) = path();
        contender("fs4", move || {
            let _keep = &keep;
            let file = open(&path);
            fs4::FileExt::try_lock(&file).expect("lock");
        })
    };
    let fslock = {
        let (keep, path) = path();
        contender("fslock", move || {
            let _keep = &keep;
            let mut lock = fslock::LockFile::open(&path).expect("open");
            assert!(lock.try_lock().expect("lock"));
        })
    };
    let named_lock = {
        let (keep, path) = path();
        contender("named-lock", move || {
            let _keep = &keep;
            let lock = named_lock::NamedLock::with_path(&path).expect("open");
            drop(lock.try_lock().expect("lock"));
        })
    };
    let file_guard = {
        let (keep, path) = path();
        contender("file-guard", move || {
            let _keep = &keep;
            let file = open(&path);
            let kind = file_guard::Lock::Exclusive;
            drop(file_guard::try_lock(&file, kind, 0, 1).expect("lock"));
        })
    };
    [std, fd_lock, fs4, fslock, named_lock, file_guard]
}

/// Acquire creates the lock file, and release removes it.
pub(crate) fn auto_create(place: &Place) -> Work {
    let mut contenders = Vec::new();
    let file = name(0);
    {
        let (directory, file) = (place.fresh(), file.clone());
        let space = LockSpace::open(Naming::verbatim(directory.path())).expect("a space");
        contenders.push(contender(OURS, move || {
            let _keep = &directory;
            let request = Request::exclusive(&file).auto_create();
            space.acquire(ONE, request, Wait::NO).expect("acquire").release().expect("release");
        }));
    }
    if let Some(libvirt) = &place.libvirt {
        let (directory, file) = (place.fresh(), c(&file));
        let space = libvirt.space(Some(&c(directory.path())));
        contenders.push(contender(LIBVIRT, move || {
            let _keep = &directory;
            assert!(space.acquire(&file, 1, AUTO_CREATE));
            space.release(&file, 1);
        }));
    }
    for (name, way) in RAW {
        let directory = place.fresh();
        let path = c(directory.path().join(&file));
        let (fd, file) = (open_directory(directory.path()), c(&file));
        contenders.push(contender(name, move || {
            let _keep = &directory;
            raw::remove(way, fd.as_fd(), &file, raw::created(way, fd.as_fd(), &file, &path));
        }));
    }
    let directory = place.fresh();
    let registry = Registry::new(directory.path().join("").as_os_str().as_bytes());
    let (fd, name) = (open_directory(directory.path()), c(&file));
    contenders.push(contender(BOUND, move || {
        let _keep = &directory;
        let begin = |file: &CStr, path: &CStr| raw::created(Way::Assembly, fd.as_fd(), file, path);
        let end = |file| raw::remove(Way::Assembly, fd.as_fd(), &name, file);
        registry.cycle(name.as_bytes(), begin, end);
    }));
    let directory = place.fresh();
    let path = directory.path().join(&file);
    contenders.push(contender("std", move || {
        let _keep = &directory;
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).open(&path).expect("open");
        file.try_lock().expect("lock");
        std::fs::remove_file(&path).expect("unlink");
    }));
    Work { title: "auto-create and unlink", contenders, ops: 100 }
}

/// A try meets what this process holds.
pub(crate) fn refusal(place: &Place) -> Work {
    let mut contenders = Vec::new();
    {
        let (directory, file) = one_file(place);
        let space = LockSpace::open(Naming::verbatim(directory.path())).expect("a space");
        let lease = space.acquire(ONE, Request::exclusive(&file), Wait::NO).expect("acquire");
        contenders.push(contender(OURS, move || {
            let _keep = (&directory, &lease);
            let refused = space.acquire(TWO, Request::exclusive(&file), Wait::NO);
            assert!(black_box(refused).is_err());
        }));
    }
    if let Some(libvirt) = &place.libvirt {
        let (directory, file) = one_file(place);
        let (space, file) = (libvirt.space(Some(&c(directory.path()))), c(file));
        assert!(space.acquire(&file, 1, 0));
        contenders.push(contender(LIBVIRT, move || {
            let _keep = &directory;
            assert!(!space.acquire(&file, 2, 0));
        }));
    }
    let map: Mutex<HashMap<OsString, u64>> = Mutex::new(HashMap::from([(name(0).into(), 1)]));
    let key = OsString::from(name(0));
    contenders.push(contender(FLOOR, move || {
        let map = black_box(&map).lock().expect("unpoisoned");
        assert!(map.get(black_box(&*key)).is_some());
    }));
    {
        let (directory, file) = one_file(place);
        let held = open(&directory.path().join(&file));
        held.try_lock().expect("lock");
        let second = open(&directory.path().join(&file));
        contenders.push(contender("std", move || {
            let _keep = (&directory, &held);
            assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
        }));
    }
    {
        let (directory, file) = one_file(place);
        let held = open(&directory.path().join(&file));
        held.try_lock().expect("lock");
        let mut second = fd_lock::RwLock::new(open(&directory.path().join(&file)));
        contenders.push(contender("fd-lock", move || {
            let _keep = (&directory, &held);
            assert!(second.try_write().is_err());
        }));
    }
    {
        let (directory, file) = one_file(place);
        let held = open(&directory.path().join(&file));
        held.try_lock().expect("lock");
        let second = open(&directory.path().join(&file));
        contenders.push(contender("fs4", move || {
            let _keep = (&directory, &held);
            assert!(fs4::FileExt::try_lock(&second).is_err());
        }));
    }
    Work { title: "refusing what this process holds", contenders, ops: 4000 }
}

/// A second shared owner comes and goes.
pub(crate) fn join(place: &Place) -> Work {
    let mut contenders = Vec::new();
    {
        let (directory, file) = one_file(place);
        let space = LockSpace::open(Naming::verbatim(directory.path())).expect("a space");
        let lease = space.acquire(ONE, Request::shared(&file), Wait::NO).expect("acquire");
        contenders.push(contender(OURS, move || {
            let _keep = (&directory, &lease);
            let second = space.acquire(TWO, Request::shared(&file), Wait::NO).expect("join");
            black_box(second).release().expect("leave");
        }));
    }
    if let Some(libvirt) = &place.libvirt {
        let (directory, file) = one_file(place);
        let (space, file) = (libvirt.space(Some(&c(directory.path()))), c(file));
        assert!(space.acquire(&file, 1, SHARED));
        contenders.push(contender(LIBVIRT, move || {
            let _keep = &directory;
            assert!(space.acquire(&file, 2, SHARED));
            space.release(&file, 2);
        }));
    }
    let map: Mutex<HashMap<OsString, u64>> = Mutex::new(HashMap::from([(name(0).into(), 1)]));
    let key = OsString::from(name(0));
    contenders.push(contender(FLOOR, move || {
        for change in [1, u64::MAX] {
            let mut map = black_box(&map).lock().expect("unpoisoned");
            let count = map.get_mut(black_box(&*key)).expect("there");
            *count = count.wrapping_add(change);
        }
    }));
    {
        let (directory, file) = one_file(place);
        let [first, second] = [(); 2].map(|()| open(&directory.path().join(&file)));
        first.try_lock_shared().expect("lock");
        contenders.push(contender("std", move || {
            let _keep = (&directory, &first);
            second.try_lock_shared().expect("lock");
            second.unlock().expect("unlock");
        }));
    }
    {
        let (directory, file) = one_file(place);
        let [first, second] = [(); 2].map(|()| open(&directory.path().join(&file)));
        first.try_lock_shared().expect("lock");
        let second = fd_lock::RwLock::new(second);
        contenders.push(contender("fd-lock", move || {
            let _keep = (&directory, &first);
            drop(black_box(second.try_read().expect("lock")));
        }));
    }
    Work { title: "a second shared owner joins and leaves", contenders, ops: 4000 }
}

/// How many an owner holds whose holds are all released.
const TEN: usize = 10;

/// A space that holds many resources, and what is done in it: one more is acquired and released,
/// and all of an owner of ten.
fn our_crowd(place: &Place, size: usize) -> [Contender; 2] {
    let directory = Rc::new(place.fresh());
    make_files(directory.path(), size + 1);
    let names: Rc<[String]> = (0..=size).map(name).collect();
    let space = LockSpace::open(Naming::verbatim(directory.path())).expect("a space");
    let keep = |space: &LockSpace, owner, name: &String| {
        space.acquire(owner, Request::exclusive(name), Wait::NO).expect("acquire").keep();
    };
    names[TEN..size].iter().for_each(|name| keep(&space, ONE, name));
    let (in_space, one_more, held) = (space.clone(), names[size].clone(), directory.clone());
    let acquire = contender(OURS, move || {
        let _keep = &held;
        let request = Request::exclusive(&one_more);
        in_space.acquire(ONE, request, Wait::NO).expect("acquire").release().expect("release");
    });
    let run = move |times| {
        let _keep = &directory;
        let mut total = Duration::ZERO;
        for _ in 0..times {
            names[..TEN].iter().for_each(|name| keep(&space, TWO, name));
            let begun = Instant::now();
            let released = space.release_owner(TWO);
            total += begun.elapsed();
            assert_eq!((released.holds, released.leftovers.len()), (TEN, 0));
        }
        total
    };
    [acquire, Contender { name: OURS.to_owned(), run: Box::new(run) }]
}

fn libvirts_crowd(place: &Place, size: usize) -> Option<[Contender; 2]> {
    let libvirt = place.libvirt.as_ref()?;
    let directory = Rc::new(place.fresh());
    make_files(directory.path(), size + 1);
    let names: Rc<[CString]> = (0..=size).map(|number| c(name(number))).collect();
    let space = Rc::new(libvirt.space(Some(&c(directory.path()))));
    names[TEN..size].iter().for_each(|name| assert!(space.acquire(name, 1, 0)));
    let (in_space, one_more, held) = (space.clone(), names[size].clone(), directory.clone());
    let acquire = contender(LIBVIRT, move || {
        let _keep = &held;
        assert!(in_space.acquire(&one_more, 1, 0));
        in_space.release(&one_more, 1);
    });
    let run = move |times| {
        let _keep = &directory;
        let mut total = Duration::ZERO;
        for _ in 0..times {
            names[..TEN].iter().for_each(|name| assert!(space.acquire(name, 2, 0)));
            let begun = Instant::now();
            let released = space.release_owner(2);
            total += begun.elapsed();
            assert_eq!(released, TEN as i32);
        }
        total
    };
    Some([acquire, Contender { name: LIBVIRT.to_owned(), run: Box::new(run) }])
}

/// Ten times unlock and close, beside nothing.
fn ten_raw(place: &Place) -> Contender {
    let directory = place.fresh();
    make_files(directory.path(), TEN);
    let paths: Vec<_> = (0..TEN).map(|number| c(directory.path().join(name(number)))).collect();
    let run = move |times| {
        let _keep = &directory;
        let mut total = Duration::ZERO;
        for _ in 0..times {
            let files: Vec<_> = paths.iter().map(|path| raw::locked(Way::Assembly, path)).collect();
            let begun = Instant::now();
            for fd in files {
                raw::end(Way::Assembly, fd);
            }
            total += begun.elapsed();
        }
        total
    };
    Contender { name: FLOOR.to_owned(), run: Box::new(run) }
}

/// A work that needs so many descriptors that each contender has a process of its own.
#[derive(Clone, Copy)]
pub(crate) enum Large {
    Acquire,
    ReleaseOwner,
    #[cfg(feature = "snapshot")]
    Snapshot,
    #[cfg(feature = "snapshot")]
    Restore,
}

impl Large {
    pub(crate) const ALL: &[Self] = &[
        Self::Acquire,
        Self::ReleaseOwner,
        #[cfg(feature = "snapshot")]
        Self::Snapshot,
        #[cfg(feature = "snapshot")]
        Self::Restore,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Acquire => "acquire and release, beside others",
            Self::ReleaseOwner => "release all of an owner of 10",
            #[cfg(feature = "snapshot")]
            Self::Snapshot => "snapshot, with its text",
            #[cfg(feature = "snapshot")]
            Self::Restore => "restore, from its text",
        }
    }

    /// Those who can do it, beside so many that are held.
    pub(crate) fn who(self, place: &Place) -> Vec<&'static str> {
        let libvirt = place.libvirt.as_ref().map(|_| LIBVIRT);
        let floor = match self {
            Self::ReleaseOwner => Some(FLOOR),
            #[cfg(feature = "snapshot")]
            Self::Restore => Some(FLOOR),
            _ => None,
        };
        [Some(OURS), libvirt, floor].into_iter().flatten().collect()
    }

    /// One of them.
    pub(crate) fn contender(self, who: &str, place: &Place, size: usize) -> Option<Contender> {
        match (self, who) {
            (Self::Acquire, OURS) => our_crowd(place, size).into_iter().next(),
            (Self::Acquire, LIBVIRT) => libvirts_crowd(place, size)?.into_iter().next(),
            (Self::ReleaseOwner, OURS) => our_crowd(place, size).into_iter().nth(1),
            (Self::ReleaseOwner, LIBVIRT) => libvirts_crowd(place, size)?.into_iter().nth(1),
            (Self::ReleaseOwner, _) => Some(ten_raw(place)),
            #[cfg(feature = "snapshot")]
            (Self::Snapshot, OURS) => Some(our_snapshot(place, size)),
            #[cfg(feature = "snapshot")]
            (Self::Snapshot, _) => libvirts_snapshot(place, size),
            #[cfg(feature = "snapshot")]
            (Self::Restore, OURS) => Some(our_restore(place, size)),
            #[cfg(feature = "snapshot")]
            (Self::Restore, FLOOR) => Some(raw_restore(place, size)),
            #[cfg(feature = "snapshot")]
            (Self::Restore, _) => libvirts_restore(place, size),
            _ => None,
        }
    }

    pub(crate) fn ops(self) -> u64 {
        match self {
            Self::Acquire => 50,
            Self::ReleaseOwner => 4,
            #[cfg(feature = "snapshot")]
            Self::Snapshot | Self::Restore => 1,
        }
    }
}

pub(crate) const THREADS: [usize; 4] = [1, 2, 4, 8];

/// So many threads, each with a resource of its own, all of one space.
pub(crate) fn threads(place: &Place) -> Work {
    let mut contenders = Vec::new();
    for count in THREADS {
        let most = *THREADS.last().expect("some");
        let directory = place.fresh();
        make_files(directory.path(), most);
        let space = LockSpace::open(Naming::verbatim(directory.path())).expect("a space");
        contenders.push(in_threads(format!("{OURS} {count}"), count, move |number| {
            let _keep = &directory;
            let name = name(number);
            let space = space.clone();
            Box::new(move || {
                let lease = space.acquire(ONE, Request::exclusive(&name), Wait::NO);
                lease.expect("acquire").release().expect("release");
            })
        }));
        if let Some(libvirt) = &place.libvirt {
            let directory = place.fresh();
            make_files(directory.path(), most);
            let space: Arc<LibvirtSpace> = Arc::new(libvirt.space(Some(&c(directory.path()))));
            contenders.push(in_threads(format!("{LIBVIRT} {count}"), count, move |number| {
                let _keep = &directory;
                let (space, name) = (Arc::clone(&space), c(name(number)));
                Box::new(move || {
                    assert!(space.acquire(&name, 1, 0));
                    space.release(&name, 1);
                })
            }));
        }
        let directory = place.fresh();
        make_files(directory.path(), most);
        let fd = Arc::new(open_directory(directory.path()));
        contenders.push(in_threads(format!("{FLOOR} {count}"), count, move |number| {
            let (file, path) = (c(name(number)), c(directory.path().join(name(number))));
            let fd = Arc::clone(&fd);
            Box::new(move || {
                let way = Way::Assembly;
                raw::end(way, raw::in_directory(way, fd.as_fd(), &file, &path));
            })
        }));
    }
    Work { title: "threads on different resources", contenders, ops: 400 }
}

type Once = Box<dyn FnMut() + Send>;

/// Spreads threads evenly over the cores: the scheduler needs longer for that than they run.
fn stay_on_core(number: usize) {
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let mut core = CpuSet::new();
    core.set(number % cores);
    // Where these are not the first cores, it is left to the scheduler.
    let _ = sched_setaffinity(None, &core);
}

/// Each thread does the work so often; what is told is the time for each, of all threads.
fn in_threads(
    name: String,
    count: usize,
    mut make: impl FnMut(usize) -> Once + 'static,
) -> Contender {
    let run = move |times| {
        let barrier = Barrier::new(count);
        let works: Vec<_> = (0..count).map(&mut make).collect();
        let spans: Vec<_> = std::thread::scope(|scope| {
            let threads = works.into_iter().enumerate().map(|(number, mut once)| {
                let barrier = &barrier;
                scope.spawn(move || {
                    stay_on_core(number);
                    barrier.wait();
                    let begun = Instant::now();
                    for _ in 0..times {
                        once();
                    }
                    (begun, Instant::now())
                })
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let begun = spans.iter().map(|span| span.0).min().expect("a thread");
        let ended = spans.iter().map(|span| span.1).max().expect("a thread");
        (ended - begun) / count as u32
    };
    Contender { name, run: Box::new(run) }
}

/// Writes down, as text, what is held.
#[cfg(feature = "snapshot")]
fn our_snapshot(place: &Place, count: usize) -> Contender {
    use lockspace::snapshot::Snapshot;

    let (directory, space) = held_by_us(place, count);
    contender(OURS, move || {
        let _keep = &directory;
        let snapshot = Snapshot::take([&space]).expect("a snapshot");
        black_box(serde_json::to_string(snapshot.documents()).expect("text"));
    })
}

fn libvirts_snapshot(place: &Place, count: usize) -> Option<Contender> {
    let (directory, space) = held_by_libvirt(place, count)?;
    Some(contender(LIBVIRT, move || {
        let _keep = &directory;
        black_box(space.snapshot());
    }))
}

/// From the text to the space.
#[cfg(feature = "snapshot")]
fn our_restore(place: &Place, count: usize) -> Contender {
    use std::mem::{forget, take};

    use lockspace::snapshot::{self, Document, Snapshot};

    let (directory, space) = held_by_us(place, count);
    let snapshot = Snapshot::take([&space]).expect("a snapshot");
    let text = serde_json::to_string(snapshot.documents()).expect("text");
    forget(snapshot);
    let mut restored = vec![space];
    let run = move |times| {
        let _keep = &directory;
        let mut total = Duration::ZERO;
        for _ in 0..times {
            // As an exec would leave them: open, and nobody's.
            forget(take(&mut restored));
            let begun = Instant::now();
            let documents: Vec<Document> = serde_json::from_str(&text).expect("documents");
            // SAFETY: their owner has just been forgotten, and no other thread runs.
            restored = unsafe { snapshot::restore(&documents) }.expect("restored");
            total += begun.elapsed();
        }
        total
    };
    Contender { name: OURS.to_owned(), run: Box::new(run) }
}

/// What a restore cannot do without: the text is parsed, and the kernel is asked about each name and
/// each descriptor. Nothing is compared, kept or allocated but the parsed entries.
#[cfg(feature = "snapshot")]
fn raw_restore(place: &Place, count: usize) -> Contender {
    use std::os::fd::BorrowedFd;

    use lockspace::snapshot::Snapshot;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct State<'a> {
        #[serde(borrow)]
        resources: Vec<Entry<'a>>,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Entry<'a> {
        name: &'a str,
        path: &'a str,
        fd: i32,
        lock_held: bool,
        flags: u64,
        owners: [u64; 1],
        lockspace: More<'a>,
    }

    #[derive(Deserialize)]
    struct More<'a> {
        range: (u64, Option<u64>),
        device: u64,
        inode: u64,
        origin: &'a str,
    }

    let (directory, space) = held_by_us(place, count);
    let snapshot = Snapshot::take([&space]).expect("a snapshot");
    let text = serde_json::to_string(snapshot.documents()).expect("text");
    std::mem::forget(snapshot);
    contender(FLOOR, move || {
        let _keep = (&directory, &space);
        let states: [State; 1] = serde_json::from_str(&text).expect("documents");
        let (mut first, mut last) = (i32::MAX, 0);
        for entry in black_box(&states[0].resources) {
            let Entry { name, path, fd, lock_held, flags, owners, lockspace } = entry;
            let More { range, device, inode, origin } = lockspace;
            black_box((name, path, lock_held, flags, owners, range, device, origin));
            assert_eq!(rustix::fs::lstat(*path).expect("the file").st_ino, *inode);
            // SAFETY: the space has it, and lives.
            assert_eq!(raw::proven(unsafe { BorrowedFd::borrow_raw(*fd) }), *inode);
            (first, last) = (first.min(*fd), last.max(*fd));
        }
        raw::close_on_exec(first, last);
    })
}

fn libvirts_restore(place: &Place, count: usize) -> Option<Contender> {
    use std::mem::{forget, replace};

    let libvirt = place.libvirt.clone()?;
    let (directory, mut restored) = held_by_libvirt(place, count)?;
    let text = restored.snapshot();
    let run = move |times| {
        let _keep = &directory;
        let mut total = Duration::ZERO;
        for _ in 0..times {
            let begun = Instant::now();
            let space = libvirt.restored(&text);
            total += begun.elapsed();
            forget(replace(&mut restored, space));
        }
        total
    };
    Some(Contender { name: LIBVIRT.to_owned(), run: Box::new(run) })
}

/// A space that keeps so many, and no descriptor beside them.
pub(crate) fn held_by_us(place: &Place, count: usize) -> (TempDir, LockSpace) {
    let directory = place.fresh();
    make_files(directory.path(), count);
    let space = LockSpace::open(Naming::verbatim(directory.path())).expect("a space");
    for number in 0..count {
        let request = Request::exclusive(name(number));
        space.acquire(ONE, request, Wait::NO).expect("acquire").keep();
    }
    (directory, space)
}

pub(crate) fn held_by_libvirt(place: &Place, count: usize) -> Option<(TempDir, LibvirtSpace)> {
    let libvirt = place.libvirt.as_ref()?;
    let directory = place.fresh();
    make_files(directory.path(), count);
    let space = libvirt.space(Some(&c(directory.path())));
    for number in 0..count {
        assert!(space.acquire(&c(name(number)), 1, 0));
    }
    Some((directory, space))
}
