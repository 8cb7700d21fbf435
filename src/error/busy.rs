//! A lock that somebody else holds, and who.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::engine::Name;
use crate::types::{DisplayPath, FileId, Mode, Outside, OwnerId};

/// Who stands in the way.
///
/// Cheap to build and to drop: it copies no string and makes no system call.
///
/// It holds no lock, but it keeps the space's lock directory open while it lives, by the one
/// descriptor that the space has for it.
///
/// ```
/// use lockspace::{AcquireError, LockSpace, Mode, Naming, OwnerId, Request, Wait};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let space = LockSpace::open(Naming::in_memory())?;
/// let _lease = space.acquire(OwnerId::new(4711), Request::exclusive("a"), Wait::NO)?;
///
/// let refused = space.acquire(OwnerId::new(7), Request::shared("a"), Wait::NO);
/// let Err(AcquireError::Busy(busy)) = refused else { panic!("granted twice") };
/// assert_eq!(busy.owners(), [OwnerId::new(4711)]);
/// assert_eq!(busy.held(), Some(Mode::Exclusive));
/// assert_eq!(
///     busy.to_string(),
///     r#""a" is busy: held exclusive by owner 4711; asked for shared"#
/// );
/// # Ok(())
/// # }
/// ```
pub struct Busy {
    name: Arc<Name>,
    /// Written out when somebody asks for it. Boxed twice, as hardly anybody does.
    path: OnceLock<Box<PathBuf>>,
    owners: Blockers,
    asked: Mode,
    held: Option<Mode>,
    behind_waiter: bool,
    /// What a refusal without a system call and without a wait does not have.
    more: Option<Box<More>>,
}

/// What only some refusals tell.
#[derive(Debug, Default)]
struct More {
    file: Option<FileId>,
    outside: Option<Outside>,
    leased: bool,
    waited: Duration,
}

/// The owners who stand in the way. One, as nearly always, needs no allocation.
#[derive(Debug)]
pub(crate) enum Blockers {
    One([OwnerId; 1]),
    Many(Box<[OwnerId]>),
}

impl Blockers {
    fn none() -> Self {
        Self::Many(Box::default())
    }

    fn as_slice(&self) -> &[OwnerId] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }
}

impl From<OwnerId> for Blockers {
    #[inline]
    fn from(owner: OwnerId) -> Self {
        Self::One([owner])
    }
}

impl From<Vec<OwnerId>> for Blockers {
    fn from(owners: Vec<OwnerId>) -> Self {
        match owners[..] {
            [one] => Self::One([one]),
            _ => Self::Many(owners.into()),
        }
    }
}

impl Busy {
    /// Held in this space, by these owners.
    #[inline]
    pub(crate) fn inside(name: Arc<Name>, asked: Mode, held: Mode, owners: Blockers) -> Self {
        Self::new(name, asked, Some(held), owners)
    }

    /// Held by somebody who is not in this space, in this way if the kernel was asked and has told.
    pub(crate) fn outside_by(name: Arc<Name>, asked: Mode, outside: Option<Outside>) -> Self {
        let mut busy = Self::new(name, asked, None, Blockers::none());
        if outside.is_some() {
            busy.more_mut().outside = outside;
        }
        busy
    }

    /// Not opened, as somebody who is not in this space has a lease on the file.
    pub(crate) fn leased(name: Arc<Name>, asked: Mode) -> Self {
        let mut busy = Self::new(name, asked, None, Blockers::none());
        busy.more_mut().leased = true;
        busy
    }

    #[inline]
    fn new(name: Arc<Name>, asked: Mode, held: Option<Mode>, owners: Blockers) -> Self {
        let path = OnceLock::new();
        Self { name, path, owners, asked, held, behind_waiter: false, more: None }
    }

    /// The same, for a shared request that could join, were it not for an exclusive one that waits.
    pub(crate) fn behind_waiter(self) -> Self {
        Self { behind_waiter: true, ..self }
    }

    /// The same, by the kernel's word on this file.
    pub(crate) fn on(mut self, file: FileId) -> Self {
        self.more_mut().file = Some(file);
        self
    }

    /// The same, after a wait.
    pub(crate) fn after(mut self, waited: Duration) -> Self {
        self.more_mut().waited = waited;
        self
    }

    fn more_mut(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }

    /// The file on which the kernel refused the lock, if it was asked.
    pub(crate) fn file(&self) -> Option<FileId> {
        self.more.as_ref()?.file
    }

    /// The resource.
    #[must_use]
    pub fn name(&self) -> &OsStr {
        self.name.text()
    }

    /// Its lock file; empty where there is none.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.path.get_or_init(|| Box::new(self.name.path()))
    }

    /// The mode that was asked for.
    #[must_use]
    pub fn asked(&self) -> Mode {
        self.asked
    }

    /// The mode that it is held in within this space; `None` where the holder is elsewhere.
    #[must_use]
    pub fn held(&self) -> Option<Mode> {
        self.held
    }

    /// Who holds it within this space, or is about to; empty where the holder is elsewhere.
    /// [`LockSpace::holders`](crate::LockSpace::holders) asks the kernel too.
    #[must_use]
    pub fn owners(&self) -> &[OwnerId] {
        self.owners.as_slice()
    }

    /// The lock in the way, where its holder is not in this space and the kernel has told of it;
    /// `None` where the holder is in this space, where the lock was gone when the kernel was asked,
    /// and where another call of this space waits for the resource, which alone asks the kernel.
    ///
    /// ```
    /// # use lockspace::Busy;
    /// fn whom_to_ask(busy: &Busy) -> Option<u32> {
    ///     busy.outside()?.pid
    /// }
    /// ```
    #[must_use]
    pub fn outside(&self) -> Option<&Outside> {
        self.more.as_ref()?.outside.as_ref()
    }

    /// Whether nobody's lock is in the way, but a lease (`F_SETLEASE`) of another program, as file
    /// servers take them on files that their clients have open: a file cannot be opened beside one.
    /// The kernel has asked the program to give it up, which it has to do within
    /// `/proc/sys/fs/lease-break-time`, usually 45 s; a wait tries until then.
    ///
    /// ```
    /// # use lockspace::Busy;
    /// fn will_be_free_soon(busy: &Busy) -> bool {
    ///     busy.is_leased()
    /// }
    /// ```
    #[must_use]
    #[doc(alias = "F_SETLEASE")]
    pub fn is_leased(&self) -> bool {
        self.more.as_ref().is_some_and(|more| more.leased)
    }

    /// How long the call waited before it gave up; zero where it was told not to wait.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.more.as_ref().map_or(Duration::ZERO, |more| more.waited)
    }
}

impl fmt::Debug for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Busy")
            .field("name", &self.name())
            .field("path", &self.path())
            .field("asked", &self.asked)
            .field("held", &self.held)
            .field("owners", &self.owners())
            .field("behind_waiter", &self.behind_waiter)
            .field("outside", &self.outside())
            .field("is_leased", &self.is_leased())
            .field("waited", &self.waited())
            .finish()
    }
}

impl fmt::Display for Busy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is busy: ", self.name())?;
        match (self.held, self.owners()) {
            (Some(mode), [first, more @ ..]) => {
                write!(f, "held {mode} by owner {first}")?;
                if !more.is_empty() {
                    write!(f, " and {} more", more.len())?;
                }
            }
            (Some(mode), []) => {
                write!(f, "held {mode} by a call that creates or deletes its file")?;
            }
            _ if self.is_leased() => f.write_str("leased by another program")?,
            _ => f.write_str("held outside this lock space")?,
        }
        if let Some(outside) = self.outside() {
            write!(f, ", {outside}")?;
        }
        if self.behind_waiter {
            f.write_str(", and an exclusive request waits")?;
        }
        write!(f, "; asked for {}", self.asked)?;
        if !self.waited().is_zero() {
            write!(f, ", waited {:.1?}", self.waited())?;
        }
        match self.path() {
            path if path.as_os_str().is_empty() => Ok(()),
            path => write!(f, " ({})", DisplayPath(path)),
        }
    }
}

impl std::error::Error for Busy {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::OpenNaming;
    use crate::types::ByteRange;
    use std::num::NonZeroU64;

    fn name() -> Arc<Name> {
        OpenNaming::Direct.name(OsStr::new("/img/a")).unwrap()
    }

    fn owners(ids: &[u64]) -> Blockers {
        ids.iter().copied().map(OwnerId::new).collect::<Vec<_>>().into()
    }

    #[test]
    fn a_lock_outside_is_told_as_far_as_it_is_known() {
        let bytes = ByteRange::new(100, NonZeroU64::new(4).unwrap()).unwrap();
        let record = Outside { mode: Mode::Shared, range: ByteRange::FIRST, pid: Some(77) };
        let ofd = Outside { mode: Mode::Exclusive, range: bytes, pid: None };
        for (outside, how) in [
            (None, ""),
            (Some(ofd), ", exclusive on bytes 100-103"),
            (Some(record), ", shared on byte 0, by a record lock of process 77"),
        ] {
            let busy = Busy::outside_by(name(), Mode::Exclusive, outside);
            let said = r#""/img/a" is busy: held outside this lock space"#;
            assert_eq!(busy.to_string(), format!("{said}{how}; asked for exclusive (/img/a)"));
            assert_eq!(busy.outside(), outside.as_ref());
            assert_eq!((busy.held(), busy.owners()), (None, &[][..]));
            // What is added later takes nothing away.
            let busy = busy.on(FileId { dev: 1, ino: 2 }).after(Duration::from_secs(5));
            assert_eq!(busy.outside(), outside.as_ref());
            assert_eq!(busy.file(), Some(FileId { dev: 1, ino: 2 }));
            assert_eq!(busy.waited(), Duration::from_secs(5));
            let said = format!("{said}{how}; asked for exclusive, waited 5.0s (/img/a)");
            assert_eq!(busy.to_string(), said);
        }
    }

    #[test]
    fn a_lease_is_told_from_a_lock() {
        let busy = Busy::leased(name(), Mode::Exclusive);
        let said = r#""/img/a" is busy: leased by another program; asked for exclusive (/img/a)"#;
        assert_eq!((busy.to_string().as_str(), busy.is_leased()), (said, true));
        assert!(!Busy::outside_by(name(), Mode::Exclusive, None).is_leased());
    }

    #[test]
    fn a_change_of_the_file_is_nobodys_hold() {
        let busy = Busy::inside(name(), Mode::Shared, Mode::Exclusive, owners(&[]));
        assert_eq!(
            busy.to_string(),
            r#""/img/a" is busy: held exclusive by a call that creates or deletes its file; asked for shared (/img/a)"#
        );
    }

    #[test]
    fn a_request_that_waits_is_told_only_by_who_knows_of_it() {
        let busy = || Busy::inside(name(), Mode::Shared, Mode::Shared, owners(&[1, 2]));
        let (held, asked) = ("held shared by owner 1 and 1 more", "; asked for shared (/img/a)");
        assert_eq!(busy().to_string(), format!(r#""/img/a" is busy: {held}{asked}"#));
        assert_eq!(
            busy().behind_waiter().to_string(),
            format!(r#""/img/a" is busy: {held}, and an exclusive request waits{asked}"#)
        );
    }

    #[test]
    fn one_owner_in_the_way_is_told_without_an_allocation() {
        for ids in [&[][..], &[4711], &[1, 2], &[1, 2, 3]] {
            let blockers = owners(ids);
            assert_eq!(matches!(blockers, Blockers::One(_)), ids.len() == 1);
            let expected: Vec<_> = ids.iter().copied().map(OwnerId::new).collect();
            assert_eq!(blockers.as_slice(), expected);
        }
        let busy = Busy::inside(name(), Mode::Shared, Mode::Exclusive, OwnerId::new(4711).into());
        assert!(busy.more.is_none() && busy.path.get().is_none());
        // A refusal is moved through several calls.
        assert!(size_of::<Busy>() <= 56, "{}", size_of::<Busy>());
    }
}
