//! What waiting costs, beside the kernel's own blocking lock call in the same run.
//!
//! ```sh
//! cargo bench --bench waiting                          # everything, about four minutes
//! cargo bench --bench waiting -- wake threads          # some parts
//! cargo bench --bench waiting -- --seconds 2 fairness  # shorter
//! ```
//!
//! Parts: `wake`, `threads`, `deadline`, `fairness`, `cost`, `opposite`. Two engines take turns:
//! *ours* is this crate, *kernel* is `F_OFD_SETLKW` on the same file, which has no deadline and no
//! order, and keeps nobody from a file that has lost its name. A ratio is ours to the kernel's.
//!
//! Every contender is a process of its own, forked from this one, which has no threads. A busy
//! machine makes both engines worse, and the ratios less certain.

#[path = "../tests/support/mod.rs"]
mod support;

use std::error::Error;
use std::fmt::{self, Display};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use lockspace::{AcquireError, LockSpace, Mode, Naming, OwnerId, Request, Wait};
use parking_lot::{Condvar, Mutex};
use tempfile::TempDir;

use support::forked::{Forked, Gate, fork, shared_memory};
use support::hung_fs::HungFs;
use support::locks::open;

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse()?;
    let bench = Bench { home: tempfile::tempdir()?, start: Instant::now(), options };
    let load = || std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("load before: {}", load().trim());
    for (part, run) in PARTS {
        if bench.options.wants(part) {
            run(&bench);
        }
    }
    println!("\nload after: {}", load().trim());
    Ok(())
}

type Part = (&'static str, fn(&Bench));

const PARTS: [Part; 6] = [
    ("wake", wake),
    ("threads", threads),
    ("deadline", deadline),
    ("fairness", fairness),
    ("cost", cost),
    ("opposite", opposite),
];

struct Options {
    parts: Vec<String>,
    handoffs: usize,
    seconds: f64,
    opposite: f64,
}

impl Options {
    fn parse() -> Result<Self, lexopt::Error> {
        use lexopt::prelude::*;
        // `cargo bench` says `--bench`. Without it, as by `cargo test --benches`, this only shows
        // that everything runs.
        let benches = std::env::args_os().any(|arg| arg == "--bench");
        let mut options = match benches {
            true => Self { parts: Vec::new(), handoffs: 2000, seconds: 10.0, opposite: 60.0 },
            false => Self { parts: Vec::new(), handoffs: 20, seconds: 0.2, opposite: 0.2 },
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(arg) = parser.next()? {
            match arg {
                Long("bench") => {}
                Long("handoffs") => options.handoffs = parser.value()?.parse()?,
                Long("seconds") => options.seconds = parser.value()?.parse()?,
                Long("opposite") => options.opposite = parser.value()?.parse()?,
                Value(part) if PARTS.iter().any(|(name, _)| part == **name) => {
                    options.parts.push(part.string()?);
                }
                arg => return Err(arg.unexpected()),
            }
        }
        Ok(options)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }
}

struct Bench {
    home: TempDir,
    /// One clock for all processes: a forked child's copy of it means the same moment.
    start: Instant,
    options: Options,
}

impl Bench {
    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn seconds(&self) -> Duration {
        Duration::from_secs_f64(self.options.seconds)
    }

    /// A new lock file, which stays.
    fn file(&self, name: &str) -> PathBuf {
        let path = self.home.path().join(name);
        File::create(&path).expect("a file");
        path
    }

    fn space(&self) -> LockSpace {
        LockSpace::open(Naming::verbatim(self.home.path())).expect("a space")
    }
}

/// Whose waiting is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Engine {
    Kernel,
    Ours,
}

const ENGINES: [Engine; 2] = [Engine::Kernel, Engine::Ours];

/// Longer than anything here takes, so that every wait of ours has a deadline.
const LONG: Duration = Duration::from_secs(600);

/// How long a waiter has to fall asleep.
const SETTLE: Duration = Duration::from_millis(2);

/// The same within a process. Each twentieth of a second it leaves the lock to others for a
/// millisecond: one handoff in some two hundred at this pace.
const SETTLE_IN_PROCESS: Duration = Duration::from_micros(200);

/// The engines take turns after this many handoffs.
const BLOCK: usize = 100;

/// What keeps a resource, whichever engine got it.
type Hold = Box<dyn Send>;

/// Waits for byte 0 of the file, as the kernel does it.
fn by_kernel(path: &Path, mode: Mode) -> File {
    let file = open(path);
    kernel::lock_and_wait(&file, mode);
    file
}

/// The same where the holder unlinks the file: who has the lock of a file without a name has
/// nothing.
fn by_kernel_creating(path: &Path) -> File {
    loop {
        let opened = File::options().read(true).write(true).create(true).truncate(false).open(path);
        let file = opened.expect("it can be created");
        kernel::lock_and_wait(&file, Mode::Exclusive);
        let (Ok(ours), Ok(named)) = (file.metadata(), path.metadata()) else { continue };
        if (ours.dev(), ours.ino()) == (named.dev(), named.ino()) {
            return file;
        }
    }
}

// --- Wake-ups.

/// A process that waits for a lock when it is told to.
struct Waiter {
    go: Gate,
    done: Gate,
    /// Whether it has begun to wait, and when it had the lock.
    said: &'static [AtomicU64; 2],
    _child: Forked,
}

impl Waiter {
    fn start<F: FnMut() -> Hold>(bench: &Bench, make: impl FnOnce() -> F) -> Self {
        let (go, done, said) = (Gate::new(), Gate::new(), shared_memory::<2>());
        let child = fork(|| {
            kernel::no_alarm();
            let mut acquire = make();
            loop {
                go.wait();
                said[0].store(1, SeqCst);
                let hold = acquire();
                said[1].store(bench.now(), SeqCst);
                drop(hold);
                done.open();
            }
        });
        Self { go, done, said, _child: child }
    }

    /// From just before `release` until the waiter has it.
    fn handoff(&self, bench: &Bench, release: impl FnOnce()) -> u64 {
        self.said[0].store(0, SeqCst);
        self.go.open();
        while self.said[0].load(SeqCst) == 0 {
            thread::yield_now();
        }
        thread::sleep(SETTLE);
        let before = bench.now();
        release();
        self.done.wait();
        self.said[1].load(SeqCst) - before
    }
}

/// `count` handoffs by each engine, in turns.
fn in_turns(count: usize, mut handoff: impl FnMut(Engine) -> u64) -> [Times; 2] {
    let mut times = [Vec::new(), Vec::new()];
    while times[1].len() < count {
        for (engine, times) in ENGINES.into_iter().zip(&mut times) {
            times.extend((0..BLOCK.min(count - times.len())).map(|_| handoff(engine)));
        }
    }
    times.map(Times::new)
}

fn wake(bench: &Bench) {
    let count = bench.options.handoffs;
    println!("\nWake-up between processes, one waiter, {count} handoffs by each engine, in turns");
    Times::head();

    let path = bench.file("wake");
    let waiters = waiters(bench, "wake", false);
    let times = in_turns(count, |engine| {
        let file = by_kernel(&path, Mode::Exclusive);
        waiters[engine as usize].handoff(bench, || drop(file))
    });
    Times::row("the holder closes", &times, Some(2.0));

    let space = bench.space();
    let times = in_turns(count, |engine| {
        let request = Request::exclusive("wake");
        let lease = space.acquire(OwnerId::new(1), request, Wait::NO).expect("it is free");
        waiters[engine as usize].handoff(bench, || drop(lease))
    });
    // It unlocks before it closes. That wakes the kernel's waiter, and the close wakes ours.
    Times::row("a lease is dropped", &times, None);

    let times = in_turns(count, |engine| {
        let holds = Gate::new();
        let holder = fork(|| {
            let _file = by_kernel(&path, Mode::Exclusive);
            holds.open();
            thread::sleep(LONG);
        });
        holds.wait();
        waiters[engine as usize].handoff(bench, || holder.kill())
    });
    Times::row("the holder is killed", &times, Some(4.0));

    let waiters = self::waiters(bench, "created", true);
    let times = in_turns(count, |engine| {
        let request = Request::exclusive("created").auto_create();
        let lease = space.acquire(OwnerId::new(1), request, Wait::NO).expect("it is free");
        waiters[engine as usize].handoff(bench, || drop(lease))
    });
    Times::row("an auto-created file goes", &times, Some(4.0));
}

/// A waiter of each engine for a file.
fn waiters(bench: &Bench, name: &'static str, creating: bool) -> [Waiter; 2] {
    let path = bench.home.path().join(name);
    let kernels = Waiter::start(bench, || {
        move || -> Hold {
            Box::new(match creating {
                false => by_kernel(&path, Mode::Exclusive),
                true => {
                    let file = by_kernel_creating(&path);
                    std::fs::remove_file(&path).expect("it is ours");
                    file
                }
            })
        }
    });
    let ours = Waiter::start(bench, || {
        let space = bench.space();
        move || -> Hold {
            let request = match creating {
                false => Request::exclusive(name),
                true => Request::exclusive(name).auto_create(),
            };
            let lease = space.acquire(OwnerId::new(2), request, Wait::within(LONG));
            Box::new(lease.expect("a lease"))
        }
    });
    [kernels, ours]
}

/// How long handoffs took, in order of length, in nanoseconds.
#[derive(Clone, Debug)]
struct Times(Vec<u64>);

impl Times {
    fn new(mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The length that this part of all does not exceed.
    fn part(&self, part: f64) -> f64 {
        self.0[((self.0.len() - 1) as f64 * part).round() as usize] as f64 / 1000.0
    }

    fn head() {
        println!(
            "{:<28}{:>24}{:>24}{:>16}  target",
            "", "kernel p50 / p99, us", "ours p50 / p99, us", "ratio"
        );
    }

    /// One line. Where there is no target, the ratio is only told.
    fn row(what: &str, [kernel, ours]: &[Self; 2], target: Option<f64>) {
        let ratios = [0.5, 0.99].map(|part| ours.part(part) / kernel.part(part));
        let met = target.map_or("-".to_owned(), |target| {
            let met = verdict(ratios.iter().all(|ratio| *ratio <= target));
            format!("<= {target} {met}")
        });
        println!(
            "{what:<28}{:>24}{:>24}{:>16}  {met}",
            format!("{:.0} / {:.0}", kernel.part(0.5), kernel.part(0.99)),
            format!("{:.0} / {:.0}", ours.part(0.5), ours.part(0.99)),
            format!("{:.2} / {:.2}", ratios[0], ratios[1]),
        );
    }
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

// --- Threads of one process.

fn threads(bench: &Bench) {
    let count = bench.options.handoffs;
    println!("\nHandoff between threads of one process, {count} of each, in turns");
    println!("('kernel' is a bare parking_lot condition variable here)");
    Times::head();
    bench.file("threads");
    for (what, naming) in
        [("a lock file", Naming::verbatim(bench.home.path())), ("in memory", Naming::in_memory())]
    {
        let child = fork(|| {
            kernel::no_alarm();
            let space = LockSpace::open(naming).expect("a space");
            let times = between_threads(bench, &space, count);
            Times::row(what, &times, Some(3.0));
        });
        child.join();
    }
}

fn between_threads(bench: &Bench, space: &LockSpace, count: usize) -> [Times; 2] {
    let bare = (Mutex::new(false), Condvar::new());
    let waits = AtomicU64::new(0);
    let (go, told) = mpsc::channel();
    let (done, got) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            for engine in told {
                waits.store(1, SeqCst);
                match engine {
                    Engine::Kernel => {
                        let mut set = bare.0.lock();
                        while !std::mem::take(&mut *set) {
                            bare.1.wait(&mut set);
                        }
                        drop(set);
                        done.send(bench.now()).expect("the receiver lives");
                    }
                    Engine::Ours => {
                        let request = Request::exclusive("threads");
                        let lease = space.acquire(OwnerId::new(2), request, Wait::within(LONG));
                        let now = bench.now();
                        drop(lease.expect("a lease"));
                        done.send(now).expect("the receiver lives");
                    }
                }
            }
        });
        let times = in_turns(count, |engine| {
            let request = Request::exclusive("threads");
            let lease = (engine == Engine::Ours)
                .then(|| space.acquire(OwnerId::new(1), request, Wait::NO).expect("it is free"));
            waits.store(0, SeqCst);
            go.send(engine).expect("the thread lives");
            while waits.load(SeqCst) == 0 {
                thread::yield_now();
            }
            thread::sleep(SETTLE_IN_PROCESS);
            let before = bench.now();
            match lease {
                Some(lease) => drop(lease),
                None => {
                    *bare.0.lock() = true;
                    bare.1.notify_one();
                }
            }
            got.recv().expect("the thread lives") - before
        });
        drop(go);
        times
    })
}

// --- Deadlines.

fn deadline(bench: &Bench) {
    const WAIT: Duration = Duration::from_millis(5);
    const COUNT: usize = 1000;
    let count = bench.options.handoffs.min(COUNT);
    println!("\nDeadlines: {count} waits of {WAIT:?} that end at theirs");
    println!("{:<40}{:>8}{:>26}  target", "", "early", "late p50 / p99, us");
    let late = |what: &str, wait: &dyn Fn(usize, Instant)| {
        let mut early = 0;
        let times = Times::new(
            (0..count)
                .map(|number| {
                    let until = Instant::now() + WAIT;
                    wait(number, until);
                    let now = Instant::now();
                    early += u64::from(now < until);
                    now.saturating_duration_since(until).as_nanos() as u64
                })
                .collect(),
        );
        let (half, most) = (times.part(0.5), times.part(0.99));
        let met = verdict(early == 0 && most < 2000.0);
        println!("{what:<40}{early:>8}{:>26}  < 2000 {met}", format!("{half:.0} / {most:.0}"));
    };
    let path = bench.file("deadline");
    let _held = by_kernel(&path, Mode::Exclusive);
    let in_child = fork(|| {
        kernel::no_alarm();
        let (mutex, condvar) = (Mutex::new(()), Condvar::new());
        late("a bare condition variable", &|_, until| {
            while !condvar.wait_until(&mut mutex.lock(), until).timed_out() {}
        });
        let space = bench.space();
        late("held by another process", &|_, until| {
            let request = Request::exclusive("deadline");
            let refused = space.acquire(OwnerId::new(1), request, Wait::until(until));
            assert!(matches!(refused, Err(AcquireError::Busy(_))), "{refused:?}");
        });
        let memory = LockSpace::open(Naming::in_memory()).expect("a space");
        let _held = memory.acquire(OwnerId::new(1), Request::exclusive("a"), Wait::NO);
        late("held by this process", &|_, until| {
            let request = Request::exclusive("a");
            let refused = memory.acquire(OwnerId::new(2), request, Wait::until(until));
            assert!(matches!(refused, Err(AcquireError::Busy(_))), "{refused:?}");
        });
    });
    in_child.join();
    let in_child = fork(|| {
        kernel::no_alarm();
        let hung = match HungFs::mount() {
            Ok(hung) => hung,
            Err(why) => return println!("a file system that hangs in open: skipped: {why}"),
        };
        let space = LockSpace::open(Naming::direct()).expect("a space");
        let wait_for = |path: &Path, until| {
            let request = Request::exclusive(path);
            let refused = space.acquire(OwnerId::new(1), request, Wait::until(until));
            assert!(matches!(refused, Err(AcquireError::Unresponsive { .. })), "{refused:?}");
        };
        late("an open that hangs, a new file each time", &|number, until| {
            wait_for(&hung.path().join(format!("{number}")), until);
        });
        let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
        println!("{:<40}threads of the process then: {threads}", "");
    });
    in_child.join();
}

// --- Fairness.

fn fairness(bench: &Bench) {
    const X: Mode = Mode::Exclusive;
    const S: Mode = Mode::Shared;
    let seconds = bench.seconds();
    println!("\nFairness: without pause, each holds 1 ms, {seconds:?} for each engine");
    println!(
        "{:<22}{:>8}{:>10}{:>10}{:>12}{:>16}  target",
        "", "", "least", "most", "least/most", "longest wait"
    );
    let alone = [X].as_slice();
    for engine in ENGINES {
        let served = contend(bench, engine, &[alone; 8]);
        Served::equals_row("8 processes", engine, &served);
    }
    for engine in ENGINES {
        let served = contend(bench, engine, &[&[X; 8]]);
        Served::equals_row("8 threads", engine, &served);
    }
    println!(
        "{:<36}{:>8}{:>10}{:>10}{:>11}{:>18}  target",
        "", "", "stream", "other", "its share", "its longest wait"
    );
    let (threads_and_one, readers_and_one) = ([[X; 4].as_slice(), alone], [[S, S, S, X]]);
    for (what, parties) in [
        ("4 threads, 1 other process", threads_and_one.as_slice()),
        ("3 shared, 1 exclusive, one process", &[&readers_and_one[0]]),
    ] {
        for engine in ENGINES {
            let served = contend(bench, engine, parties);
            let (other, stream) = served.split_last().expect("the other comes last");
            let stream: u64 = stream.iter().map(|one| one.times).sum();
            println!(
                "{what:<36}{engine:>8}{stream:>10}{:>10}{:>10.1}%{:>15.0} ms{}",
                other.times,
                100.0 * other.times as f64 / (stream + other.times) as f64,
                other.longest.as_secs_f64() * 1000.0,
                match engine {
                    Engine::Kernel => String::new(),
                    Engine::Ours => format!("  > 0 {}", verdict(other.times > 0)),
                }
            );
        }
    }
}

impl Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kernel => "kernel",
            Self::Ours => "ours",
        })
    }
}

/// How a contender has fared.
#[derive(Debug)]
struct Served {
    times: u64,
    longest: Duration,
}

impl Served {
    fn equals_row(what: &str, engine: Engine, served: &[Self]) {
        let least = served.iter().map(|one| one.times).min().unwrap_or(0);
        let most = served.iter().map(|one| one.times).max().unwrap_or(0);
        let longest = served.iter().map(|one| one.longest).max().unwrap_or_default();
        let share = least as f64 / most as f64;
        println!(
            "{what:<22}{engine:>8}{least:>10}{most:>10}{share:>12.2}{:>13.0} ms{}",
            longest.as_secs_f64() * 1000.0,
            match engine {
                Engine::Kernel => String::new(),
                Engine::Ours => format!("  >= 0.5 {}", verdict(share >= 0.5)),
            }
        );
    }
}

/// Each party is a process, with a thread for each of these modes; all want one file.
fn contend(bench: &Bench, engine: Engine, parties: &[&[Mode]]) -> Vec<Served> {
    const MOST: usize = 16;
    let path = bench.file("fairness");
    let said = shared_memory::<{ 2 * MOST }>();
    let (ready, go) = (Gate::new(), Gate::new());
    let mut children = Vec::new();
    let mut first = 0;
    for &modes in parties {
        let said = &said[2 * first..];
        let child = fork(|| {
            kernel::no_alarm();
            let space = bench.space();
            thread::scope(|scope| {
                for (index, &mode) in modes.iter().enumerate() {
                    let (space, path, ready, go) = (&space, &path, &ready, &go);
                    scope.spawn(move || {
                        ready.open();
                        go.wait();
                        let owner = OwnerId::new(index as u64);
                        let served = take_turns(bench.seconds(), || match engine {
                            Engine::Kernel => Box::new(by_kernel(path, mode)),
                            Engine::Ours => {
                                let request = Request::new(mode, "fairness");
                                let lease = space.acquire(owner, request, Wait::within(LONG));
                                Box::new(lease.expect("a lease"))
                            }
                        });
                        said[2 * index].store(served.times, SeqCst);
                        said[2 * index + 1].store(served.longest.as_nanos() as u64, SeqCst);
                    });
                }
            });
        });
        children.push(child);
        first += modes.len();
    }
    assert!(first <= MOST, "more memory");
    (0..first).for_each(|_| ready.wait());
    (0..first).for_each(|_| go.open());
    children.into_iter().for_each(Forked::join);
    let served = said[..2 * first].chunks(2).map(|one| Served {
        times: one[0].load(SeqCst),
        longest: Duration::from_nanos(one[1].load(SeqCst)),
    });
    served.collect()
}

fn take_turns(time: Duration, acquire: impl Fn() -> Hold) -> Served {
    let end = Instant::now() + time;
    let mut served = Served { times: 0, longest: Duration::ZERO };
    loop {
        let began = Instant::now();
        if began >= end {
            return served;
        }
        let hold = acquire();
        served.longest = served.longest.max(began.elapsed());
        // Who comes after the end counts as a long wait, not as a turn.
        served.times += u64::from(Instant::now() < end);
        thread::sleep(Duration::from_millis(1));
        drop(hold);
    }
}

// --- Cost.

fn cost(bench: &Bench) {
    let seconds = bench.seconds().min(Duration::from_secs(5));
    println!("\nCost of one waiter for a holder in another process, over {seconds:?}");
    let path = bench.file("cost");
    for engine in ENGINES {
        let held = by_kernel(&path, Mode::Exclusive);
        let (measured, said) = (Gate::new(), shared_memory::<1>());
        let child = fork(|| {
            kernel::no_alarm();
            let space = bench.space();
            thread::scope(|scope| {
                scope.spawn(|| -> Hold {
                    match engine {
                        Engine::Kernel => Box::new(by_kernel(&path, Mode::Exclusive)),
                        Engine::Ours => {
                            let request = Request::exclusive("cost");
                            let lease = space.acquire(OwnerId::new(1), request, Wait::within(LONG));
                            Box::new(lease.expect("a lease"))
                        }
                    }
                });
                thread::sleep(Duration::from_millis(100));
                let before = kernel::cpu_time();
                thread::sleep(seconds);
                let used = kernel::cpu_time() - before;
                said[0].store(used.as_nanos() as u64, SeqCst);
                measured.open();
            });
        });
        measured.wait();
        // Before the holder closes: the child has the holder's descriptor, too.
        drop(child);
        drop(held);
        let used = Duration::from_nanos(said[0].load(SeqCst)).as_secs_f64();
        let part = 100.0 * used / seconds.as_secs_f64();
        println!(
            "{engine:>8}: {:.0} us of CPU per second, {part:.3} % of a core{}",
            1e6 * used / seconds.as_secs_f64(),
            match engine {
                Engine::Kernel => String::new(),
                Engine::Ours => format!("  < 1 % {}", verdict(part < 1.0)),
            }
        );
    }
}

// --- Opposite orders.

fn opposite(bench: &Bench) {
    let deadline = Duration::from_secs(1);
    let time = Duration::from_secs_f64(bench.options.opposite);
    println!("\nTwo processes, two disks, without pause, {time:?} (kernel: a sixth of it)");
    println!("(ours: opposite orders, acquire_all within {deadline:?}; kernel: one order, or it");
    println!("would deadlock)");
    println!(
        "{:>8}{:>8}{:>14}{:>14}{:>10}{:>18}",
        "", "holds", "first got", "second got", "refused", "longest wait"
    );
    let paths = ["first", "second"].map(|name| bench.file(name));
    for hold in [Duration::ZERO, Duration::from_millis(1)] {
        for engine in ENGINES {
            let time = if engine == Engine::Kernel { time / 6 } else { time };
            let said = shared_memory::<8>();
            let children = [0, 1].map(|index| {
                let said = &said[4 * index..];
                fork(|| {
                    kernel::no_alarm();
                    let space = bench.space();
                    let end = Instant::now() + time;
                    let add = |which: usize, number| said[which].fetch_add(number, SeqCst);
                    while Instant::now() < end {
                        let began = Instant::now();
                        let got: Option<Hold> = match engine {
                            Engine::Kernel => Some(Box::new(
                                paths.each_ref().map(|path| by_kernel(path, Mode::Exclusive)),
                            )),
                            Engine::Ours => {
                                let mut requests = ["first", "second"].map(Request::exclusive);
                                if index == 1 {
                                    requests.reverse();
                                }
                                let owner = OwnerId::new(index as u64);
                                let wait = Wait::within(deadline);
                                match space.acquire_all(owner, requests, wait) {
                                    Ok(leases) => Some(Box::new(leases)),
                                    Err(AcquireError::Busy(_)) => None,
                                    Err(error) => panic!("{error}"),
                                }
                            }
                        };
                        add(if got.is_some() { 0 } else { 1 }, 1);
                        said[2].fetch_max(began.elapsed().as_micros() as u64, SeqCst);
                        if got.is_some() && !hold.is_zero() {
                            thread::sleep(hold);
                        }
                    }
                })
            });
            children.into_iter().for_each(Forked::join);
            let said = said.each_ref().map(|said| said.load(SeqCst));
            println!(
                "{engine:>8}{:>8}{:>14}{:>14}{:>10}{:>15.0} ms{}",
                format!("{hold:?}"),
                format!("{:.0}/s", said[0] as f64 / time.as_secs_f64()),
                format!("{:.0}/s", said[4] as f64 / time.as_secs_f64()),
                said[1] + said[5],
                said[2].max(said[6]) as f64 / 1000.0,
                match engine {
                    Engine::Kernel => String::new(),
                    Engine::Ours =>
                        format!("  both progress {}", verdict(said[0] > 0 && said[4] > 0)),
                }
            );
        }
    }
}

// --- What rustix has no function for.

mod kernel {
    #![allow(unsafe_code, reason = "three calls of libc")]

    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::time::Duration;

    use lockspace::Mode;

    /// Waits for an OFD lock on byte 0.
    pub(crate) fn lock_and_wait(file: &File, mode: Mode) {
        let kind = match mode {
            Mode::Exclusive => libc::F_WRLCK,
            Mode::Shared => libc::F_RDLCK,
        };
        let lock = libc::flock64 {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: the descriptor is open, and `lock` lives through the call, which reads it.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLKW, &raw const lock) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }

    /// This child may take longer than those of the tests.
    pub(crate) fn no_alarm() {
        // SAFETY: an integer.
        unsafe { libc::alarm(0) };
    }

    /// What this process has used, all threads together.
    pub(crate) fn cpu_time() -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` lives through the call, which writes it.
        let result = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
    }
}
