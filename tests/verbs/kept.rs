//! What owners keep, beside a model of it: whatever is kept, released, taken back and released all
//! at once, in any order, the space holds what the model holds.

use std::collections::BTreeMap;
use std::ffi::OsString;

use crate::support::random::Random;
use crate::support::rounds::rounds;
use lockspace::{Lease, LockSpace, Naming, OwnerId, ReleaseError, Request, Wait};
use tempfile::TempDir;

/// How many holds each owner has of each resource: by leases, and kept.
type Model = BTreeMap<(OwnerId, usize), (Vec<Lease>, u32)>;

fn name(number: usize) -> OsString {
    format!("disk-{number}").into()
}

fn run(space: &LockSpace, steps: usize, seed: u64) {
    const OWNERS: usize = 4;
    const NAMES: usize = 12;
    let mut random = Random(seed);
    let mut model = Model::new();
    for step in 0..steps {
        let owner = OwnerId::new(random.below(OWNERS as u64) as usize as u64);
        let number = random.below(NAMES as u64) as usize;
        let (leases, kept) = model.entry((owner, number)).or_default();
        match random.below(12) as usize {
            0..4 => {
                let request = Request::shared(name(number)).auto_create();
                leases.push(space.acquire(owner, request, Wait::NO).unwrap());
            }
            4..7 => {
                if let Some(lease) = leases.pop() {
                    lease.keep();
                    *kept += 1;
                }
            }
            7 => drop(leases.pop()),
            8 => match space.retake(owner, name(number)) {
                Ok(lease) => {
                    assert!(*kept > 0, "step {step}: {lease:?} came from nowhere");
                    *kept -= 1;
                    leases.push(lease);
                }
                Err(error) => assert_eq!(*kept, 0, "step {step}: {error}"),
            },
            9 | 10 => match space.release(owner, name(number)) {
                Ok(()) => {
                    assert!(*kept > 0, "step {step}: {number} was kept by nobody");
                    *kept -= 1;
                }
                Err(error) => {
                    assert!(matches!(error, ReleaseError::NotHeld { .. }), "{error}");
                    assert_eq!(*kept, 0, "step {step}: {error}");
                }
            },
            _ => {
                let released = space.release_owner(owner);
                let mut expected = 0;
                for ((other, _), (_, kept)) in &mut model {
                    if *other == owner {
                        expected += std::mem::take(kept) as usize;
                    }
                }
                assert_eq!((released.holds, released.leftovers.len()), (expected, 0), "{step}");
            }
        }
        let mut expected: BTreeMap<OsString, BTreeMap<OwnerId, u32>> = BTreeMap::new();
        for (&(owner, number), (leases, kept)) in &model {
            let count = leases.len() as u32 + kept;
            if count > 0 {
                expected.entry(name(number)).or_default().insert(owner, count);
            }
        }
        let held = space.list().into_iter().map(|held| (held.name, held.owners));
        assert_eq!(held.collect::<BTreeMap<_, _>>(), expected, "step {step}");
    }
    drop(model);
    (0..OWNERS).for_each(|owner| drop(space.release_owner(OwnerId::new(owner as u64))));
    assert_eq!(space.list(), []);
}

#[test]
fn a_space_in_memory_holds_what_the_model_holds() {
    let space = LockSpace::open(Naming::in_memory()).unwrap();
    (0..rounds(20)).for_each(|seed| run(&space, 2000, seed));
}

#[test]
fn a_space_in_a_directory_holds_what_the_model_holds() {
    let dir = TempDir::new().unwrap();
    let space = LockSpace::open(Naming::md5(dir.path())).unwrap();
    (0..rounds(4)).for_each(|seed| run(&space, 2000, seed));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "lock files are left");
}
