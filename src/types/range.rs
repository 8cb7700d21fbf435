//! The bytes of a file that a lock covers.

use std::fmt;
use std::num::NonZeroU64;

/// The bytes of a file that a lock covers.
///
/// Two locks exclude each other only where their ranges overlap. The bytes need not exist: a
/// lock file is empty.
///
/// ```
/// use lockspace::ByteRange;
/// use std::num::NonZeroU64;
///
/// let ten = ByteRange::new(100, NonZeroU64::new(10).unwrap()).unwrap();
/// assert_eq!(ten.to_string(), "bytes 100-109");
/// assert!(ten.overlaps(ByteRange::WHOLE_FILE));
/// assert!(!ten.overlaps(ByteRange::FIRST));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "l_start")]
#[doc(alias = "l_len")]
pub struct ByteRange {
    start: u64,
    /// `None`: to the end of the file, however far it grows.
    len: Option<NonZeroU64>,
}

impl ByteRange {
    /// Byte 0 alone, the default: what libvirt's lock daemon locks. QEMU's own locks (bytes 100
    /// to 103 and 200 to 203) stay clear of it.
    pub const FIRST: Self = Self { start: 0, len: NonZeroU64::new(1) };

    /// The whole file, however far it grows: what LXC locks, and Cloud Hypervisor by choice.
    ///
    /// An *exclusive* hold of it and a running QEMU exclude each other, whichever comes first. A
    /// *shared* one does not keep a QEMU out that runs already: QEMU's own locks are shared, also
    /// those of a QEMU that writes, and so it is granted beside them. (A QEMU that starts later is
    /// refused, and one that only reads, too: it takes the hold for a program that shares nothing.)
    /// On an image that QEMU may have open, a shared hold of the whole file so proves nothing.
    pub const WHOLE_FILE: Self = Self { start: 0, len: None };

    /// Every byte but the last that an offset can name. Only a remover locks this range, just before
    /// it unlinks the file: a call that meets such a lock knows that it ends in a moment.
    pub(crate) const REMOVAL: Self = Self { start: 0, len: NonZeroU64::new(Self::LAST_BYTE) };

    /// The last byte that the kernel's signed 64-bit offsets can name.
    const LAST_BYTE: u64 = i64::MAX as u64;

    /// `len` bytes from byte `start` on; `None` where the range would pass the largest file
    /// offset, 2^63 - 1. A range that ends there reaches to the end of the file, whatever that is;
    /// one that begins there is `None`, since no file has that byte. A range of all bytes but that
    /// one becomes [`WHOLE_FILE`](Self::WHOLE_FILE).
    ///
    /// ```
    /// use lockspace::ByteRange;
    /// use std::num::NonZeroU64;
    ///
    /// let one = NonZeroU64::MIN;
    /// assert!(ByteRange::new(i64::MAX as u64 - 1, one).is_some());
    /// assert!(ByteRange::new(u64::MAX, one).is_none());
    /// ```
    #[must_use]
    pub const fn new(start: u64, len: NonZeroU64) -> Option<Self> {
        match Self::exactly(start, Some(len)) {
            Some(range) if range.is_removal() => Some(Self::WHOLE_FILE),
            range => range,
        }
    }

    /// A range as a state document has it, which is never rounded: it must be the one that the
    /// descriptor is locked on. `None` for what [`new`](Self::new) would not make.
    #[cfg(feature = "snapshot")]
    pub(crate) fn recorded(start: u64, len: Option<NonZeroU64>) -> Option<Self> {
        Self::exactly(start, len).filter(|range| !range.is_removal())
    }

    /// The bytes from `start` to `last`, both included, as the kernel tells a range or is asked for
    /// one; `last` is `None` for "to the end of the file". Of other programs' locks this may also
    /// be what none of ours can be: see [`lockable`](Self::lockable).
    pub(crate) fn between(start: u64, last: Option<u64>) -> Option<Self> {
        match last {
            None if start == Self::LAST_BYTE => Some(Self { start, len: None }),
            None => Self::exactly(start, None),
            Some(last) => {
                let len = last.checked_sub(start)?.checked_add(1)?;
                Self::exactly(start, Some(NonZeroU64::new(len)?))
            }
        }
    }

    /// The check that every range passes: it ends at the largest offset at most, and covers more
    /// than that one byte, which [`REMOVAL`](Self::REMOVAL) leaves out. A hold of that byte alone
    /// would not be met by a remover.
    const fn exactly(start: u64, len: Option<NonZeroU64>) -> Option<Self> {
        if start >= Self::LAST_BYTE {
            return None;
        }
        let Some(len) = len else { return Some(Self { start, len: None }) };
        match start.checked_add(len.get() - 1) {
            // As the kernel has it, whose tables show no other end then.
            Some(Self::LAST_BYTE) => Some(Self { start, len: None }),
            Some(last) if last < Self::LAST_BYTE => Some(Self { start, len: Some(len) }),
            _ => None,
        }
    }

    const fn is_removal(self) -> bool {
        matches!(self, Self { start: 0, len: Some(len) } if len.get() == Self::LAST_BYTE)
    }

    /// The nearest range, not smaller, that a request may have: what a caller is shown of a lock is
    /// a value that it can ask for in turn.
    pub(crate) const fn lockable(self) -> Self {
        match self {
            Self { start: Self::LAST_BYTE, .. } => Self { start: Self::LAST_BYTE - 1, len: None },
            range if range.is_removal() => Self::WHOLE_FILE,
            range => range,
        }
    }

    /// The first byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// How many bytes; `None` to the end of the file, however far it grows.
    #[must_use]
    pub const fn len(self) -> Option<NonZeroU64> {
        self.len
    }

    /// Whether the two ranges have a byte in common, so that locks on them can exclude each other.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }

    /// Whether every byte of the other range is one of this.
    pub(crate) fn contains(self, other: Self) -> bool {
        self.start <= other.start && other.last() <= self.last()
    }

    fn last(self) -> u64 {
        match self.len {
            Some(len) => self.start + (len.get() - 1),
            None => Self::LAST_BYTE,
        }
    }
}

impl Default for ByteRange {
    fn default() -> Self {
        Self::FIRST
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.start, self.len.map(NonZeroU64::get)) {
            (0, None) => f.write_str("the whole file"),
            (start, None) => write!(f, "bytes {start} to the end"),
            (start, Some(1)) => write!(f, "byte {start}"),
            (start, Some(_)) => write!(f, "bytes {start}-{}", self.last()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_overlap_where_they_share_a_byte() {
        let range = |start, len| ByteRange::new(start, NonZeroU64::new(len).unwrap()).unwrap();
        assert_eq!(range(0, 1 << 63), ByteRange::WHOLE_FILE);
        assert!(range(0, 10).overlaps(range(9, 1)));
        assert!(!range(0, 10).overlaps(range(10, 1)));
        assert!(range(i64::MAX as u64 - 1, 1).overlaps(ByteRange::WHOLE_FILE));
    }

    #[test]
    fn a_range_past_the_largest_offset_is_none() {
        let max = i64::MAX as u64;
        assert!(ByteRange::new(max, NonZeroU64::new(2).unwrap()).is_none());
        assert!(ByteRange::new(1, NonZeroU64::MAX).is_none());
        assert!(ByteRange::new(max, NonZeroU64::MIN).is_none());
        assert_eq!(ByteRange::between(5, Some(4)), None);
        assert_eq!(ByteRange::between(0, None), Some(ByteRange::WHOLE_FILE));
        assert_eq!(ByteRange::between(0, Some(0)), Some(ByteRange::FIRST));
        assert_eq!(ByteRange::between(max + 1, None), None);
    }

    /// Whatever the kernel tells of others, what is shown of it can be asked for.
    #[test]
    fn a_lock_that_none_of_ours_can_be_is_shown_as_one_that_can() {
        let max = i64::MAX as u64;
        let last_byte = ByteRange::between(max, None).unwrap();
        let removal = ByteRange::between(0, Some(max - 1)).unwrap();
        assert_eq!(removal, ByteRange::REMOVAL);
        assert_eq!(removal.lockable(), ByteRange::WHOLE_FILE);
        assert_eq!(Some(last_byte.lockable()), ByteRange::between(max - 1, None));
        assert!(last_byte.lockable().overlaps(last_byte));
        let usual = [ByteRange::FIRST, ByteRange::WHOLE_FILE, last_byte.lockable()];
        assert_eq!(usual.map(ByteRange::lockable), usual);
        #[cfg(feature = "snapshot")]
        for range in [last_byte, removal] {
            assert_eq!(ByteRange::recorded(range.start(), range.len()), None);
        }
    }
}
