//! Resident memory, each time measured in a process of its own.

use std::process::Command;

use lockspace::{LockSpace, Naming, OwnerId, Request, Wait};

use crate::works::{LIBVIRT, OURS, Place, held_by_libvirt, make_files, name};

const OWNER: OwnerId = OwnerId::new(1);

/// What a child measures: [`OURS`], [`LIBVIRT`], or one of these.
pub(crate) const LEASES: &str = "leases";
pub(crate) const GROWTH: &str = "growth";

/// Runs this program once more; `None` if it could not measure.
pub(crate) fn measure(what: &str, place: &Place, count: usize) -> Option<f64> {
    let program = std::env::current_exe().expect("this program");
    let mut command = Command::new(program);
    command.args(["--child", what, "--count", &count.to_string(), "--root"]).arg(&place.root);
    let output = command.output().expect("a child");
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.trim().parse().ok();
    if number.is_none() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
    }
    number
}

/// In the child: bytes for each that is held, or, of growth, bytes altogether.
pub(crate) fn child(what: &str, place: &Place, count: usize) -> Option<f64> {
    // The first resources pay for what is made once.
    let first = count / 20;
    match what {
        OURS => {
            // Files are made first; their names do not stay in memory.
            let directory = place.fresh();
            make_files(directory.path(), count);
            let space = LockSpace::open(Naming::verbatim(directory.path())).expect("a space");
            let take = |number| {
                let request = Request::exclusive(name(number));
                space.acquire(OWNER, request, Wait::NO).expect("acquire").keep();
            };
            (0..first).for_each(take);
            let before = resident();
            (first..count).for_each(take);
            Some((resident() - before) / (count - first) as f64)
        }
        LEASES => {
            let directory = place.fresh();
            make_files(directory.path(), count);
            let space = LockSpace::open(Naming::verbatim(directory.path())).expect("a space");
            let mut leases = Vec::with_capacity(count);
            let take = |number| {
                let request = Request::exclusive(name(number));
                space.acquire(OWNER, request, Wait::NO).expect("acquire")
            };
            leases.extend((0..first).map(take));
            let before = resident();
            leases.extend((first..count).map(take));
            Some((resident() - before) / (count - first) as f64)
        }
        LIBVIRT => {
            let (_directory, few) = held_by_libvirt(place, first)?;
            let before = resident();
            let (_other, many) = held_by_libvirt(place, count - first)?;
            let grown = (resident() - before) / (count - first) as f64;
            drop((few, many));
            Some(grown)
        }
        GROWTH => {
            const HELD: usize = 100;
            let directory = place.fresh();
            let space = LockSpace::open(Naming::md5(directory.path())).expect("a space");
            let mut held = std::collections::VecDeque::with_capacity(HELD);
            let mut before = 0.0;
            for number in 0..count {
                if held.len() == HELD {
                    held.pop_front();
                }
                let request = Request::exclusive(format!("/img/{number}.qcow2")).auto_create();
                let lease = space.acquire(OWNER, request, Wait::NO).expect("acquire");
                // Of each ten, one is kept and released by its owner.
                if number % 10 == 0 {
                    lease.keep();
                    assert_eq!(space.release_owner(OWNER).holds, 1);
                } else {
                    held.push_back(lease);
                }
                if number == 10_000.min(count / 2) {
                    before = resident();
                }
            }
            Some(resident() - before)
        }
        _ => None,
    }
}

/// Bytes, counted page by page (`statm` may be behind).
fn resident() -> f64 {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").expect("smaps_rollup");
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).expect("Rss");
    let kilobytes = line.trim().trim_end_matches("kB").trim();
    kilobytes.parse::<f64>().expect("a number") * 1024.0
}
