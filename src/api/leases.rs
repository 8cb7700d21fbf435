//! Several leases.

use super::Lease;

/// Several leases, in the order of their requests; see
/// [`LockSpace::acquire_all`](crate::LockSpace::acquire_all). Dropping this value releases them
/// all.
#[derive(Debug)]
#[must_use = "leases that are dropped at once protect nothing"]
pub struct Leases(Vec<Lease>);

impl Leases {
    pub(super) fn new(leases: Vec<Lease>) -> Self {
        Self(leases)
    }

    /// Iterates over the leases.
    pub fn iter(&self) -> std::slice::Iter<'_, Lease> {
        self.0.iter()
    }

    /// Turns all of them into kept holds; see [`Lease::keep`].
    pub fn keep(self) {
        self.0.into_iter().for_each(Lease::keep);
    }
}

impl IntoIterator for Leases {
    type Item = Lease;
    type IntoIter = std::vec::IntoIter<Lease>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a Leases {
    type Item = &'a Lease;
    type IntoIter = std::slice::Iter<'a, Lease>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
