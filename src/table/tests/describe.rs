//! The words in which table and model are described: see the [tests](super).

use std::fmt::{self, Display};

use super::{CallId, Carrier, FILE_BY_NAME, FakeFile, Moment, NameId};
use crate::error::{Blockers, DeadlockCause};
use crate::table::HoldKind;
use crate::table::queue::{Grant, HandedOver};
use crate::types::{InvalidRequest, Mode, Origin};

/// What is seen of a resource that is not absent.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) phase: &'static str,
    /// `None` while it is changing.
    pub(super) mode: Option<Mode>,
    pub(super) holds: Vec<SeenHold>,
    pub(super) carrier: Option<Carrier>,
    pub(super) is_on_other_bytes: bool,
    pub(super) opened: Option<u64>,
    pub(super) turn: Option<Moment>,
    pub(super) waiters: Vec<SeenWaiter>,
}

pub(super) struct SeenHold {
    pub(super) owner: u64,
    pub(super) kind: HoldKind,
    /// It ends with the freeze.
    pub(super) has_ended: bool,
}

pub(super) struct SeenWaiter {
    pub(super) call: CallId,
    pub(super) mode: Mode,
    pub(super) owner: u64,
    pub(super) upgrades: bool,
}

impl Display for SeenHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = if self.kind == HoldKind::Kept { "k" } else { "" };
        match self.has_ended {
            true => write!(f, "({}{kept})", self.owner),
            false => write!(f, "{}{kept}", self.owner),
        }
    }
}

impl Display for SeenWaiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let upgrades = if self.upgrades { "!" } else { "" };
        write!(f, "{upgrades}{}{}", letter(self.mode), self.owner)?;
        // The number of its call, where it is not that of its owner.
        if self.call == self.owner { Ok(()) } else { write!(f, "#{}", self.call) }
    }
}

impl Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phase)?;
        if let Some(mode) = self.mode {
            write!(f, " {} by {}", letter(mode), list(&self.holds))?;
        }
        match self.carrier {
            Some(Carrier::Memory) => f.write_str(" in memory")?,
            Some(Carrier::ReadOnly) => f.write_str(" read-only")?,
            _ => {}
        }
        if self.is_on_other_bytes {
            f.write_str(" on other bytes")?;
        }
        if let Some(file) = self.opened {
            write!(f, " of the open file {file}")?;
        }
        if let Some(turn) = self.turn {
            write!(f, ", turn since {turn}")?;
        }
        match &self.waiters[..] {
            [] => Ok(()),
            waiters => write!(f, " <- {}", list(waiters)),
        }
    }
}

pub(super) fn letter(mode: Mode) -> &'static str {
    match mode {
        Mode::Exclusive => "X",
        Mode::Shared => "S",
    }
}

pub(super) fn list<T: Display>(all: impl IntoIterator<Item = T>) -> String {
    all.into_iter().map(|each| each.to_string()).collect::<Vec<_>>().join(" ")
}

pub(super) fn refused(held: Mode, owners: impl IntoIterator<Item = u64>) -> String {
    format!("refused: {} by {}", letter(held), list(owners))
}

pub(super) fn refused_by(held: Mode, owners: &Blockers) -> String {
    let owners = match owners {
        Blockers::One(one) => &one[..],
        Blockers::Many(many) => many,
    };
    refused(held, owners.iter().map(|owner| owner.get()))
}

pub(super) fn deadlock(why: &DeadlockCause) -> String {
    match why {
        DeadlockCause::OwnHold { held } => format!("deadlock: own hold {}", letter(*held)),
        DeadlockCause::OwnWait { asked } => format!("deadlock: own wait {}", letter(*asked)),
        DeadlockCause::OtherOwnHold => "deadlock: other own hold".to_owned(),
        DeadlockCause::Upgrade { other } => format!("deadlock: upgrade by {other}"),
    }
}

pub(super) fn invalid(why: &InvalidRequest) -> String {
    match why {
        InvalidRequest::OtherRange { .. } => "invalid: other bytes".to_owned(),
        InvalidRequest::OtherFile => "invalid: other file".to_owned(),
        other => format!("invalid: {other}"),
    }
}

pub(super) fn granted(grant: &Grant<FakeFile>) -> String {
    match grant {
        Grant::Joined => "joins".to_owned(),
        Grant::Acquire(HandedOver::File(file, mode, origin)) => {
            assert_eq!((*origin, file.number), (Origin::Existing, FILE_BY_NAME));
            format!("takes over {}", letter(*mode))
        }
        Grant::Acquire(HandedOver::Nothing) => "acquires".to_owned(),
        Grant::AskAgain => "asks again".to_owned(),
        Grant::Invalid(why) => invalid(why),
        Grant::HeldByItself(..) => panic!("no space has told of one"),
    }
}

pub(super) fn thawed(last_ended: &[NameId]) -> String {
    match last_ended {
        [] => "thaws".to_owned(),
        names => format!("thaws, releases the last hold of {}", list(names)),
    }
}

/// What was found out, and then who is woken, by what.
pub(super) fn with_woken(mut outcome: String, woken: &[String], watchers_woken: bool) -> String {
    for each in woken {
        outcome = outcome + ", " + each;
    }
    if watchers_woken { outcome + ", who watches is woken" } else { outcome }
}
