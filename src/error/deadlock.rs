//! Waits that would never end.

use std::ffi::{OsStr, OsString};
use std::fmt;

use crate::types::{Mode, OwnerId};

/// Why a wait would never end: see [`AcquireError::Deadlock`](crate::AcquireError::Deadlock).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeadlockCause {
    /// The owner that asks holds it already, in a mode that excludes what it asks for.
    OwnHold {
        /// The mode that it holds it in.
        held: Mode,
    },
    /// The owner that asks for its hold to become exclusive has another hold of it.
    OtherOwnHold,
    /// Another call of the owner, which came first, asks for it too, and will hold it in a mode that
    /// excludes this one.
    OwnWait {
        /// The mode that the other call asked for.
        asked: Mode,
    },
    /// Both hold it shared, and both wait to be the only one and so to become exclusive.
    Upgrade {
        /// The owner that asked first.
        other: OwnerId,
    },
}

/// One sentence that names the owners, the resource, and who is in whose way.
pub(super) struct DeadlockMessage<'a> {
    pub(super) name: &'a OsStr,
    pub(super) owner: OwnerId,
    pub(super) alias: &'a Option<OsString>,
    pub(super) why: &'a DeadlockCause,
}

impl fmt::Display for DeadlockMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, owner, alias, why } = self;
        match why {
            DeadlockCause::OwnHold { held } => {
                write!(f, "owner {owner} would wait for itself: it already holds {name:?} {held}")?;
            }
            DeadlockCause::OtherOwnHold => write!(
                f,
                "owner {owner} would wait for itself: it has another hold of {name:?}, and only a \
                 sole hold can become exclusive"
            )?,
            DeadlockCause::OwnWait { asked } => write!(
                f,
                "owner {owner} would wait for itself: another call of it already asks for \
                 {name:?} ({asked})"
            )?,
            DeadlockCause::Upgrade { other } => write!(
                f,
                "owner {owner} and owner {other} would wait for each other: both hold {name:?} \
                 shared and wait to hold it exclusive"
            )?,
        }
        match alias {
            Some(alias) => write!(f, " ({alias:?} is the same file)"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::AcquireError;

    fn said(alias: Option<&str>, why: DeadlockCause) -> String {
        let (name, owner) = ("/img/a\n".into(), OwnerId::new(4711));
        AcquireError::Deadlock { name, owner, alias: alias.map(OsString::from), why }.to_string()
    }

    #[test]
    fn a_wait_that_would_never_end_is_told_with_who_is_in_whose_way() {
        let itself = "owner 4711 would wait for itself:";
        for (why, sentence) in [
            (
                DeadlockCause::OwnHold { held: Mode::Exclusive },
                format!(r#"{itself} it already holds "/img/a\n" exclusive"#),
            ),
            (
                DeadlockCause::OwnWait { asked: Mode::Shared },
                format!(r#"{itself} another call of it already asks for "/img/a\n" (shared)"#),
            ),
            (
                DeadlockCause::OtherOwnHold,
                format!(
                    r#"{itself} it has another hold of "/img/a\n", and only a sole hold can become exclusive"#
                ),
            ),
            (
                DeadlockCause::Upgrade { other: OwnerId::new(7) },
                r#"owner 4711 and owner 7 would wait for each other: both hold "/img/a\n" shared and wait to hold it exclusive"#.into(),
            ),
        ] {
            assert_eq!(said(None, why), sentence);
            let by_alias = format!(r#"{sentence} ("/img/b" is the same file)"#);
            assert_eq!(said(Some("/img/b"), why), by_alias);
        }
    }
}
