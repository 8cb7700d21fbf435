//! Storage for the resources: each is found by its name or by its slot.
//!
//! Each hold and each wait stores the slot of its resource, so that a release need not hash the
//! name.

use hashbrown::HashTable;
use slab::Slab;

use super::resource::Resource;
use crate::engine::Key;

/// The place of a resource, until the resource is absent. A later resource in the same place has
/// another generation, and so another slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Slot {
    index: u32,
    generation: u32,
}

/// The resources that are not absent.
#[derive(Debug)]
pub(super) struct Slots<F> {
    resources: Slab<Resource<F>>,
    by_name: HashTable<Slot>,
    /// Counts insertions, to tell apart the resources that have been in one place. It wraps: a
    /// stale slot could be mistaken for a live one only after 2^32 insertions.
    generation: u32,
}

impl Slot {
    /// Its place: no other slot in use has the same.
    pub(super) fn index(self) -> u32 {
        self.index
    }
}

impl<F> Default for Slots<F> {
    fn default() -> Self {
        Self { resources: Slab::new(), by_name: HashTable::new(), generation: 0 }
    }
}

impl<F> Slots<F> {
    #[inline]
    pub(super) fn find(&self, key: Key<'_>) -> Option<Slot> {
        let is_it = |slot: &Slot| self.at(*slot).name().text() == key.text();
        self.by_name.find(key.hash(), is_it).copied()
    }

    /// Makes room for `count` more.
    #[cfg(feature = "snapshot")]
    pub(super) fn reserve(&mut self, count: usize) {
        let resources = &self.resources;
        self.by_name.reserve(count, |slot| resources[slot.index as usize].hash());
        self.resources.reserve(count);
    }

    /// Adds the resource that `make` returns for a generation. No stored resource may have its
    /// name.
    #[inline]
    pub(super) fn insert(&mut self, make: impl FnOnce(u32) -> Resource<F>) -> Slot {
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let resource = make(generation);
        let hash = resource.hash();
        let index = self.resources.insert(resource);
        let index = u32::try_from(index).expect("memory is exhausted before the slots are");
        let (resources, slot) = (&self.resources, Slot { index, generation });
        self.by_name.insert_unique(hash, slot, |slot| resources[slot.index as usize].hash());
        slot
    }

    #[inline]
    pub(super) fn remove(&mut self, slot: Slot) -> Resource<F> {
        let resource = self.resources.remove(slot.index as usize);
        let found = self.by_name.find_entry(resource.hash(), |other| *other == slot);
        if let Ok(entry) = found {
            entry.remove();
        }
        resource
    }

    /// The resource in a slot that is in use: the caller holds it, waits for it, or has its
    /// transition.
    pub(super) fn at(&self, slot: Slot) -> &Resource<F> {
        &self.resources[slot.index as usize]
    }

    /// As [`at`](Self::at).
    pub(super) fn at_mut(&mut self, slot: Slot) -> &mut Resource<F> {
        &mut self.resources[slot.index as usize]
    }

    /// As [`get_mut`](Self::get_mut).
    #[cfg(feature = "tracing")]
    pub(super) fn get(&self, slot: Slot) -> Option<&Resource<F>> {
        let resource = self.resources.get(slot.index as usize)?;
        (resource.generation() == slot.generation).then_some(resource)
    }

    /// The resource in a slot that may be absent by now.
    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Resource<F>> {
        let resource = self.resources.get_mut(slot.index as usize)?;
        (resource.generation() == slot.generation).then_some(resource)
    }

    /// The slot with this index, which is in use.
    pub(super) fn slot(&self, index: u32) -> Slot {
        Slot { index, generation: self.resources[index as usize].generation() }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Resource<F>> {
        self.resources.iter().map(|(_, resource)| resource)
    }

    #[cfg(feature = "snapshot")]
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Resource<F>> {
        self.resources.iter_mut().map(|(_, resource)| resource)
    }
}
