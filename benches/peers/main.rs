//! This crate beside what its users would pick instead, and beside the bare system calls.
//!
//! `cargo bench --bench peers -- --table` prints a line for each work; without `--table`, criterion
//! measures the same works. See README.md in `benches`.
#![allow(unsafe_code, reason = "libvirt's functions, and system calls with nothing around them")]
#![allow(clippy::incompatible_msrv, reason = "a rival is newer than the oldest Rust of this crate")]
#![cfg_attr(not(feature = "snapshot"), allow(dead_code, reason = "nothing is written down"))]

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::libvirt::Libvirt;
use crate::table::{Row, Target, measure};
#[cfg(feature = "snapshot")]
use crate::works::Contender;
use crate::works::{FLOOR, LIBVIRT, Large, OURS, Place, Work};

mod libvirt;
mod memory;
mod plot;
mod raw;
mod remote;
mod table;
mod works;

/// How much is measured.
#[derive(Clone, Copy)]
struct Effort {
    rounds: usize,
    /// Rounds of works that take milliseconds.
    long_rounds: usize,
    crowd: &'static [usize],
    memory: usize,
    names: usize,
    snapshot: usize,
}

impl Effort {
    const FULL: Self = Self {
        rounds: 101,
        long_rounds: 31,
        crowd: &[100, 1000, 10_000, 19_000],
        memory: 20_000,
        names: 1_000_000,
        snapshot: 10_000,
    };
    /// Whether all of it works, not how well.
    const QUICK: Self = Self {
        rounds: 5,
        long_rounds: 3,
        crowd: &[20, 100],
        memory: 1000,
        names: 20_000,
        snapshot: 100,
    };
}

#[derive(Default)]
struct Arguments {
    table: bool,
    quick: bool,
    rounds: Option<usize>,
    only: Option<String>,
    plot: Option<PathBuf>,
    child: Option<String>,
    large: Option<String>,
    who: String,
    count: usize,
    root: PathBuf,
}

impl Arguments {
    /// `None` if they are criterion's.
    fn parse() -> Option<Self> {
        use lexopt::prelude::*;

        let mut arguments = Self::default();
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next().ok()? {
            match argument {
                Long("bench" | "test") => {}
                Long("table") => arguments.table = true,
                Long("quick") => arguments.quick = true,
                Long("rounds") => arguments.rounds = parser.value().ok()?.parse().ok(),
                Long("only") => arguments.only = parser.value().ok()?.into_string().ok(),
                Long("plot") => arguments.plot = Some(parser.value().ok()?.into()),
                Long("child") => arguments.child = parser.value().ok()?.into_string().ok(),
                Long("large") => arguments.large = parser.value().ok()?.into_string().ok(),
                Long("who") => arguments.who = parser.value().ok()?.into_string().ok()?,
                Long("count") => arguments.count = parser.value().ok()?.parse().ok()?,
                Long("root") => arguments.root = parser.value().ok()?.into(),
                _ => return None,
            }
        }
        let ours = arguments.table || arguments.child.is_some() || arguments.large.is_some();
        ours.then_some(arguments)
    }
}

fn main() {
    let descriptors = raise_descriptors();
    let Some(arguments) = Arguments::parse() else { return by_criterion() };
    if let Some(title) = &arguments.large {
        let place = place(arguments.root.clone());
        let large = Large::ALL.iter().find(|large| large.title() == title);
        let contender =
            large.and_then(|large| large.contender(&arguments.who, &place, arguments.count));
        return remote::serve(contender.expect("a known work"));
    }
    if let Some(what) = &arguments.child {
        let place = place(arguments.root.clone());
        match memory::child(what, &place, arguments.count) {
            Some(bytes) => println!("{bytes}"),
            None => std::process::exit(1),
        }
        return;
    }
    let mut effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    if let Some(rounds) = arguments.rounds {
        (effort.rounds, effort.long_rounds) = (rounds, rounds);
    }
    let table = Table { effort, descriptors, only: arguments.only };
    let mut rows = Vec::new();
    for place in places() {
        table.fill(&place, &mut rows);
    }
    if let Some(directory) = &arguments.plot {
        plot::write(directory, &rows).expect("the plots");
    }
}

struct Table {
    effort: Effort,
    descriptors: usize,
    only: Option<String>,
}

impl Table {
    fn wants(&self, title: &str) -> bool {
        self.only.as_ref().is_none_or(|only| title.contains(only.as_str()))
    }

    fn fill(&self, place: &Place, rows: &mut Vec<Row>) {
        use Target::{AtLeast, AtMost, Floor, Libvirt};

        let effort = self.effort;
        let skipped = match &place.libvirt {
            Some(_) => Vec::new(),
            None => vec![(LIBVIRT, "libvirt.so.0 is not installed")],
        };
        let mut add = |work: String, unit, results, targets: &[Target]| {
            let (file_system, targets) = (place.file_system.clone(), targets.to_vec());
            let skipped = skipped.clone();
            let row = Row { work, file_system, unit, results, skipped, targets };
            row.print();
            rows.push(row);
        };

        type Make = fn(&Place) -> Work;
        let simple: [(&str, Make, &[Target]); 6] = [
            ("in a directory", works::in_directory, &[Libvirt(0.88), Floor(1.05)]),
            ("named by MD5", works::hashed, &[Libvirt(0.88), Floor(1.05)]),
            ("direct path", works::direct, &[Floor(1.05)]),
            ("auto-create", works::auto_create, &[Libvirt(0.92)]),
            ("refusing", works::refusal, &[AtMost(60.0), Libvirt(0.15)]),
            ("joins", works::join, &[Libvirt(0.85)]),
        ];
        for (key, make, targets) in simple {
            if self.wants(key) {
                let mut work = make(place);
                let results = measure(&mut work, effort.rounds);
                add(work.title.to_owned(), "ns", results, targets);
            }
        }

        if self.wants("crowd") {
            let fits = |size: &usize| size + 100 < self.descriptors;
            let sizes: Vec<_> = effort.crowd.iter().copied().filter(fits).collect();
            if sizes.len() < effort.crowd.len() {
                println!("(descriptors are limited to {}: sizes {sizes:?})", self.descriptors);
            }
            for (large, floor, flat) in
                [(Large::ReleaseOwner, Some(Floor(1.3)), 1.2), (Large::Acquire, None, 1.1)]
            {
                let mut contenders = Vec::new();
                for who in large.who(place) {
                    let sizes = if who == FLOOR { &sizes[..1] } else { &sizes[..] };
                    let at = |&size: &usize| remote::contender(large, who, place, size);
                    contenders.extend(sizes.iter().map(at));
                }
                let (title, ops) = (large.title(), large.ops());
                let results = measure(&mut Work { title, contenders, ops }, effort.rounds);
                let at = |who: &str, size: usize| {
                    let size = if who == FLOOR { *sizes.first()? } else { size };
                    let name = format!("{who} at {size}");
                    results.iter().find(|(other, _)| *other == name).map(|result| result.1)
                };
                for &size in &sizes {
                    let all = large.who(place).into_iter();
                    let all = all.filter_map(|who| Some((who.to_owned(), at(who, size)?)));
                    let targets: Vec<_> = floor.into_iter().collect();
                    add(format!("{title}, {size} held"), "ns", all.collect(), &targets);
                }
                let spread = |who: &str| {
                    let times = sizes.iter().filter_map(|&size| at(who, size));
                    let (least, most) = times.fold((f64::MAX, 0.0), |(least, most), time| {
                        (f64::min(least, time), f64::max(most, time))
                    });
                    (most > 0.0).then(|| (who.to_owned(), most / least))
                };
                let spreads = [OURS, LIBVIRT].into_iter().filter_map(spread).collect();
                add(format!("{title}, slowest to fastest size"), "", spreads, &[AtMost(flat)]);
            }
        }

        if self.wants("memory") {
            let count = effort.memory.min(self.descriptors * 9 / 10);
            let kept = [OURS, LIBVIRT]
                .into_iter()
                .filter_map(|who| Some((who.to_owned(), memory::measure(who, place, count)?)));
            add("memory for each held resource".to_owned(), "B", kept.collect(), &[AtMost(220.0)]);
            let leases = memory::measure(memory::LEASES, place, count);
            let leases = leases.map(|bytes| (OURS.to_owned(), bytes)).into_iter().collect();
            add("the same, with its lease".to_owned(), "B", leases, &[]);
        }

        #[cfg(feature = "snapshot")]
        if self.wants("snapshot") {
            let count = effort.snapshot.min(self.descriptors.saturating_sub(100));
            // A restore happens once an upgrade: it must not be felt, and need not be the fastest.
            for (large, target) in
                [(Large::Snapshot, Libvirt(0.35)), (Large::Restore, AtMost(100e6))]
            {
                let contender = |who: &str| Contender {
                    name: who.to_owned(),
                    ..remote::contender(large, who, place, count)
                };
                let contenders = large.who(place).into_iter().map(contender).collect();
                let (title, ops) = (large.title(), large.ops());
                let results = measure(&mut Work { title, contenders, ops }, effort.long_rounds);
                add(format!("{title}, of {count}"), "ns", results, &[target]);
            }
        }
        #[cfg(not(feature = "snapshot"))]
        if self.wants("snapshot") {
            println!("(snapshot and restore skipped: build with --features snapshot)");
        }

        if self.wants("threads") {
            let mut work = works::threads(place);
            let results = measure(&mut work, effort.long_rounds);
            let of = |who: &str, count: usize| {
                let name = format!("{who} {count}");
                results.iter().find(|(other, _)| *other == name).map(|result| result.1)
            };
            for count in works::THREADS {
                let scale = |who: &str| Some(of(who, 1)? / of(who, count)?);
                let scales = [OURS, LIBVIRT, FLOOR].into_iter();
                let scales: Vec<_> =
                    scales.filter_map(|who| Some((who.to_owned(), scale(who)?))).collect();
                let floor = scale(FLOOR).unwrap_or(1.0);
                let least = (0.95 * floor * 1000.0).round() / 1000.0;
                let title = format!("{}: {count}, times the rate of one", work.title);
                add(title, "", scales, &[AtLeast(least)]);
            }
        }

        if self.wants("growth") {
            let grown = memory::measure(memory::GROWTH, place, effort.names);
            let grown = grown.map(|bytes| (OURS.to_owned(), bytes)).into_iter().collect();
            let title = format!("memory, grown over {} names after the first 10k", effort.names);
            // A page or two for the allocator; a byte for each name would be a megabyte.
            add(title, "B", grown, &[AtMost(65536.0)]);
        }
    }
}

/// A directory on a disk, where this program was built, and one in memory.
fn places() -> Vec<Place> {
    let built = std::env::current_exe().expect("this program");
    let built = built.parent().expect("its directory").to_owned();
    [built, PathBuf::from("/dev/shm")].into_iter().filter(|root| root.is_dir()).map(place).collect()
}

fn place(root: PathBuf) -> Place {
    Place { file_system: file_system(&root), root, libvirt: Libvirt::load().ok() }
}

fn file_system(path: &Path) -> String {
    #[allow(clippy::unnecessary_cast)] // its type differs by target
    match rustix::fs::statfs(path).map_or(0, |fs| fs.f_type as u64 & 0xffff_ffff) {
        0xef53 => "ext4".to_owned(),
        0x0102_1994 => "tmpfs".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683e => "btrfs".to_owned(),
        0x794c_7630 => "overlay".to_owned(),
        other => format!("{other:#x}"),
    }
}

/// As many descriptors as this process may have; tells how many.
fn raise_descriptors() -> usize {
    const ENOUGH: u64 = 131_072;
    let now = getrlimit(Resource::Nofile);
    // Who may raise the hard limit, does.
    let raised = Rlimit { current: Some(ENOUGH), maximum: Some(ENOUGH) };
    if now.maximum.is_some_and(|most| most < ENOUGH) && setrlimit(Resource::Nofile, raised).is_err()
        || now.maximum.is_none_or(|most| most >= ENOUGH)
    {
        let raised = Rlimit { current: now.maximum.or(Some(ENOUGH)), maximum: now.maximum };
        let _ = setrlimit(Resource::Nofile, raised);
    }
    getrlimit(Resource::Nofile).current.unwrap_or(ENOUGH) as usize
}

fn by_criterion() {
    let mut criterion = criterion::Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    for place in places() {
        if place.libvirt.is_none() {
            println!("libvirt skipped: libvirt.so.0 is not installed");
        }
        let makes: [fn(&Place) -> Work; 7] = [
            works::in_directory,
            works::hashed,
            works::direct,
            works::auto_create,
            works::refusal,
            works::join,
            works::threads,
        ];
        for make in makes {
            by_criterion_one(&mut criterion, &place, make(&place));
        }
        for &large in Large::ALL {
            let contenders =
                large.who(&place).into_iter().filter_map(|who| large.contender(who, &place, 1000));
            let contenders = contenders.collect();
            let work = Work { title: large.title(), contenders, ops: large.ops() };
            by_criterion_one(&mut criterion, &place, work);
        }
    }
    criterion.final_summary();
}

fn by_criterion_one(criterion: &mut criterion::Criterion, place: &Place, work: Work) {
    let title = format!("{}, {}", work.title, place.file_system);
    let mut group = criterion.benchmark_group(title);
    for mut contender in work.contenders {
        group.bench_function(contender.name, |bencher| bencher.iter_custom(&mut contender.run));
    }
    group.finish();
}
