//! The state machine by itself.
//!
//! What can happen to a resource is an [`Event`]. A [`driver`] lets it happen to the table, a
//! [`model`] of plain code to itself, and both say in the same words what comes out and what the
//! resource is like afterwards:
//!
//! ```text
//! held S by 1 1k (2), turn since 5 <- X3 S4#9
//! ```
//!
//! reads: held shared by owner 1, once by a lease and once in the space's care, and by owner 2,
//! whose hold ends once nothing is frozen any more; this process has had it since 5 ms; owner 3
//! waits to have it exclusively, and behind it owner 4 to share it, by call 9 (the others' numbers
//! are their owners'). `!X1` is a wait of owner 1 to make its shared hold exclusive.
//!
//! [`states`] is the table of every state and event, [`random`] compares table and model over random
//! sequences. By default those are 256; `PROPTEST_CASES=100000 cargo test --release --lib table`
//! runs as many as it says.

mod describe;
mod driver;
mod model;
mod random;
mod states;

use std::sync::Arc;

use super::fairness::MAX_TURN;
use super::{Claim, HoldKind, LockedFile};
#[cfg(feature = "snapshot")]
use super::{Hold, Owners};
#[cfg(feature = "snapshot")]
use crate::types::Origin;
use crate::types::{ByteRange, FileId, Mode, OwnerId};
use driver::Driver;

/// The number of a resource's name.
type NameId = usize;

/// The number of a call that waits.
type CallId = u64;

/// Milliseconds since the beginning.
type Moment = u64;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ask {
    owner: u64,
    mode: Mode,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    ByName,
    /// Other bytes of the file.
    OtherRange,
    /// By a descriptor of this file that the caller has open.
    Opened(u64),
}

/// The file that a name leads to, where that is asked.
const FILE_BY_NAME: u64 = 0;

impl Ask {
    const fn new(owner: u64, mode: Mode) -> Self {
        Self { owner, mode, how: How::ByName }
    }

    fn range(self) -> ByteRange {
        match self.how {
            How::OtherRange => ByteRange::WHOLE_FILE,
            _ => ByteRange::FIRST,
        }
    }

    fn opened(self) -> Option<u64> {
        match self.how {
            How::Opened(file) => Some(file),
            _ => None,
        }
    }

    fn claim(self) -> Claim {
        Claim {
            owner: OwnerId::new(self.owner),
            mode: self.mode,
            range: self.range(),
            file: self.opened().map(file_id),
            opened: self.opened().is_some(),
        }
    }
}

/// What happens to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A call asks that does not wait, or one that waits, which queues where it is refused.
    Try(Ask),
    Wait(CallId, Ask),
    /// A call that waits in the queue looks at what it was granted.
    TakeGrant(CallId),
    /// It leaves the queue.
    Leave(CallId),
    /// The thread that acquires has met somebody outside of the space.
    Contend,
    /// It makes system calls again.
    Resume,
    /// It has left without an answer of the file system.
    Unresponsive,
    /// It releases the file that was handed over to it.
    GiveFileBack,
    /// It holds the lock. What was handed over to it carries it, else a new file of this kind.
    EndInHold(Carrier, Turn),
    /// The thread that acquires, or changes, ends its transition in nothing.
    EndInNothing,
    /// Somebody creates or deletes the file.
    Change,
    Release(u64, HoldKind),
    /// All that an owner keeps is noted, to be released one by one.
    NoteKept(u64),
    ReleaseNoted,
    SetKind(u64, HoldKind),
    Convert(u64, Mode),
    /// The kernel has granted a conversion, or not.
    EndConversion {
        granted: bool,
    },
    WaitToUpgrade(CallId, u64),
    Freeze,
    Thaw,
    Pass(Moment),
}

/// What carries a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    Memory,
    ReadOnly,
    Writable,
}

/// Whether the lock counts for this process's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Counts,
    DoesNotCount,
}

/// A file that the table holds a lock by. It notes its own existence.
#[derive(Debug)]
struct FakeFile {
    number: u64,
    range: ByteRange,
    writable: bool,
    _exists: std::rc::Rc<()>,
}

impl LockedFile for FakeFile {
    fn id(&self) -> FileId {
        file_id(self.number)
    }

    fn range(&self) -> ByteRange {
        self.range
    }

    fn is_writable(&self) -> bool {
        self.writable
    }
}

fn file_id(number: u64) -> FileId {
    FileId { dev: 1, ino: number }
}

/// The events that lead to a queue behind an exclusive hold, which counts as a turn since 0 ms.
const QUEUE: [Event; 4] = [
    Event::Try(Ask::new(1, Mode::Exclusive)),
    Event::EndInHold(Carrier::Writable, Turn::Counts),
    Event::Wait(2, Ask::new(2, Mode::Exclusive)),
    Event::Wait(3, Ask::new(3, Mode::Exclusive)),
];

#[test]
fn a_queue_passes_the_lock_on_for_a_turn_and_then_leaves_it_to_others() {
    let mut driver = Driver::new();
    for event in QUEUE {
        driver.apply(0, event);
    }
    driver.apply(0, Event::Pass(MAX_TURN.as_millis() as Moment - 1));
    let mut expect = |event, outcome| assert_eq!(driver.apply(0, event), outcome, "{event:?}");
    expect(Event::Release(1, HoldKind::Leased), "released, 2 takes over X");
    expect(Event::TakeGrant(2), "takes over X");
    // The turn goes on, although this hold would count from now on.
    expect(Event::EndInHold(Carrier::Writable, Turn::Counts), "holds");
    expect(Event::Pass(1), "passes");
    expect(Event::Release(2, HoldKind::Leased), "released, the last one");
    expect(Event::EndInNothing, "ends, and a turn since 0, 3 acquires");
    assert_eq!(driver.describe(0), "acquiring X by 3");
}

#[test]
fn who_waits_gets_what_nobody_holds_by_the_name_of_the_one_before_or_by_its_own() {
    let mut driver = Driver::new();
    for event in QUEUE {
        driver.apply(0, event);
    }
    driver.apply(0, Event::Release(1, HoldKind::Leased));
    let slot = driver.find(0).expect("it is not absent");
    let before = Arc::clone(driver.table.resource(slot).name());
    let own = driver::full_name(0);
    driver.table.set_name(slot, Arc::clone(&own));
    let after = driver.table.resource(slot).name();
    assert!(Arc::ptr_eq(after, &own) && !Arc::ptr_eq(after, &before));
    assert_eq!(driver.find(0), Some(slot));
}

#[cfg(feature = "snapshot")]
#[test]
fn what_is_restored_is_kept_by_its_owners() {
    let mut driver = Driver::new();
    let holds = [(0, Mode::Shared, vec![2, 1, 1]), (1, Mode::Exclusive, vec![2])];
    let holds = holds.map(|(name, mode, owners)| {
        let ask = Ask::new(owners[0], mode);
        let file = driver.new_file(ask, Carrier::Writable);
        let owners = Owners::kept(owners.into_iter().map(OwnerId::new));
        let hold = Hold::new(Some(file), ask.range(), mode, Origin::Existing, owners);
        (driver::full_name(name), hold)
    });
    driver.table.restore(holds.into_iter());
    assert_eq!(driver.describe(0), "held S by 1k 1k 2k");
    assert_eq!(driver.describe(1), "held X by 2k");
    assert_eq!(driver.apply(0, Event::NoteKept(1)), "keeps: 0");
    assert_eq!(driver.apply(0, Event::ReleaseNoted), "released 2");
    assert_eq!(driver.apply(0, Event::NoteKept(2)), "keeps: 0 1");
    assert_eq!(driver.apply(0, Event::ReleaseNoted), "released 1, the last one");
    assert_eq!(driver.apply(1, Event::ReleaseNoted), "released 1, the last one");
}
