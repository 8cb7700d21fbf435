//! A held lock, with all the owners that hold it.

use super::owners::{Owners, TooManyHolds};
use super::{Admission, Claim, LockedFile};
use crate::types::{ByteRange, InvalidRequest, Mode, Origin};

/// One held lock, with the holds of all its owners.
#[derive(Debug)]
pub(crate) struct Hold<F> {
    backing: Backing<F>,
    mode: Mode,
    origin: Origin,
    pub(super) owners: Owners,
}

/// What carries the lock.
#[derive(Debug)]
enum Backing<F> {
    File(F),
    /// No file: the space is in memory, or the file is with the thread that converts its lock.
    NoFile(ByteRange),
}

impl<F> Hold<F> {
    /// `file` is `None` for a space in memory.
    pub(crate) fn new(
        file: Option<F>,
        range: ByteRange,
        mode: Mode,
        origin: Origin,
        owners: Owners,
    ) -> Self {
        Self { backing: file.map_or(Backing::NoFile(range), Backing::File), mode, origin, owners }
    }

    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    pub(crate) fn owners(&self) -> &Owners {
        &self.owners
    }

    /// The file that carries the lock; `None` in memory, and while the lock is being converted.
    pub(crate) fn file(&self) -> Option<&F> {
        match &self.backing {
            Backing::File(file) => Some(file),
            Backing::NoFile(_) => None,
        }
    }

    /// What carries the lock, for the thread that releases it.
    pub(crate) fn into_file(self) -> Option<F> {
        match self.backing {
            Backing::File(file) => Some(file),
            Backing::NoFile(_) => None,
        }
    }
}

impl<F: LockedFile> Hold<F> {
    /// The bytes that are locked.
    pub(crate) fn range(&self) -> ByteRange {
        match &self.backing {
            Backing::File(file) => file.range(),
            Backing::NoFile(range) => *range,
        }
    }

    /// Takes the file out; `None` in memory.
    pub(super) fn take_file(&mut self) -> Option<F> {
        let without = Backing::NoFile(self.range());
        match std::mem::replace(&mut self.backing, without) {
            Backing::File(file) => Some(file),
            Backing::NoFile(_) => None,
        }
    }

    /// Puts the file back, and sets the mode if the lock was converted.
    pub(super) fn put_file(&mut self, file: F, converted_to: Option<Mode>) {
        self.backing = Backing::File(file);
        self.set_mode(converted_to.unwrap_or(self.mode));
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// Adds a leased hold of the claim's owner. The caller has checked that the modes are
    /// compatible.
    pub(super) fn join(&mut self, claim: &Claim) -> Admission {
        let held = self.range();
        if held != claim.range {
            let asked = claim.range;
            return Admission::Invalid(InvalidRequest::OtherRange { held, asked });
        }
        // With descriptors of callers, one name can mean two files.
        if claim.opened || self.origin == Origin::Opened {
            match (claim.file, self.file()) {
                (None, _) => return Admission::NeedsFileId,
                (Some(id), Some(file)) if file.id() == id => {}
                _ => return Admission::Invalid(InvalidRequest::OtherFile),
            }
        }
        match self.owners.add(claim.owner) {
            Ok(()) => Admission::Joined,
            Err(TooManyHolds) => Admission::Invalid(InvalidRequest::TooManyHolds),
        }
    }
}
