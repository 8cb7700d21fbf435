//! The bytes that are locked, up to the last that there can be.

use std::fs::File;
use std::num::NonZeroU64;

use crate::support::locks::ofd_lock;
use crate::support::spaces::{A, B, NAME, expect_busy, granted, image_in, space_in};
use lockspace::{ByteRange, LockFileError, LockSpace, Naming, Request, Wait, holders_of};
use tempfile::TempDir;

/// Promise 1, one holder: what ends at the last offset excludes others, deletes among them.
#[test]
fn nobody_can_ask_for_the_range_that_only_removers_lock() {
    let all_but_the_last = NonZeroU64::new(i64::MAX as u64).unwrap();
    assert_eq!(ByteRange::new(0, all_but_the_last), Some(ByteRange::WHOLE_FILE));
    let less = NonZeroU64::new(i64::MAX as u64 - 1).unwrap();
    assert_eq!(ByteRange::new(0, less).unwrap().len(), Some(less));
}

#[test]
fn a_range_that_ends_at_the_last_offset_has_one_holder() {
    const LAST: u64 = i64::MAX as u64;
    let dir = TempDir::new().unwrap();
    let (space, other) = (space_in(dir.path()), space_in(dir.path()));
    let mut ranges = 0;
    for (start, len) in [(LAST, 1), (LAST - 1, 1), (LAST - 1, 2), (5, LAST - 4), (0, LAST + 1)] {
        // No file has the very last byte: that there is no such range is right.
        let Some(range) = ByteRange::new(start, NonZeroU64::new(len).unwrap()) else { continue };
        let request = || Request::exclusive(NAME).auto_create().range(range);
        let lease = space.acquire(A, request(), Wait::NO).unwrap();
        let deleted = other.delete(NAME);
        expect_busy(other.acquire(B, request(), Wait::NO));
        assert!(matches!(deleted, Err(LockFileError::Busy(_))), "{range:?}: {deleted:?}");
        lease.release().unwrap();
        ranges += 1;
    }
    assert_eq!(ranges, 4, "all but the very last byte are ranges");
}

/// Promise 2, nothing lost: a hold on a range that ends at the last offset is found to be held.
#[test]
fn a_hold_up_to_the_last_offset_verifies() {
    const LAST: u64 = i64::MAX as u64;
    let dir = TempDir::new().unwrap();
    let space = space_in(dir.path());
    for (start, len) in [(0, LAST + 1), (5, LAST - 4), (LAST - 1, 2), (LAST - 1, 1)] {
        let range = ByteRange::new(start, NonZeroU64::new(len).unwrap()).unwrap();
        let request = Request::exclusive(NAME).auto_create().range(range);
        let lease = space.acquire(A, request, Wait::NO).unwrap();
        lease.verify().unwrap_or_else(|error| panic!("{range:?}: {error}"));
    }
}

/// What is shown of another program's lock can be asked for in turn; that never makes a hold that a
/// `delete` does not meet, nor one that is taken for a `delete`.
#[test]
fn no_range_that_is_shown_makes_a_hold_that_a_delete_passes() {
    for (start, len) in [(i64::MAX, 0), (i64::MAX, 1), (0, i64::MAX)] {
        let dir = tempfile::tempdir().unwrap();
        let image = image_in(dir.path());
        let foreign = File::options().read(true).write(true).open(&image).unwrap();
        ofd_lock(&foreign, true, start, len).unwrap();
        let shown = holders_of(&image).unwrap();
        let [holder] = &shown[..] else { panic!("{shown:?}") };

        let locks = dir.path().join("locks");
        let builder = LockSpace::builder(Naming::verbatim(&locks)).range(holder.range);
        let [by_builder, elsewhere] = [builder.open(), LockSpace::open(Naming::verbatim(&locks))];
        let (by_builder, elsewhere) = (by_builder.unwrap(), elsewhere.unwrap());
        for (name, request) in [
            ("a", Request::exclusive("a").range(holder.range).auto_create()),
            ("b", Request::shared("b").auto_create()),
        ] {
            let lease = granted(&by_builder, A, request);
            assert!(matches!(elsewhere.delete(name), Err(LockFileError::Busy(_))), "{holder}");
            assert!(locks.join(name).exists());
            drop(lease);
        }
    }
}
