//! All resources of a space: found by name, or by the slot that each has.
//!
//! Whoever holds a resource, or waits for it, keeps it in its slot: so a release, or the end of a
//! transition, finds it without a look at its name.

use hashbrown::HashTable;
use slab::Slab;

use crate::engine::Key;
use crate::table::Resource;

/// Where a resource is, until it is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slot(u32);

/// The resources that are not absent.
#[derive(Debug, Default)]
pub(crate) struct Resources {
    slots: Slab<Resource>,
    by_name: HashTable<Slot>,
}

impl Slot {
    fn index(self) -> usize {
        self.0 as usize
    }
}

impl Resources {
    #[inline]
    pub(crate) fn find(&self, name: Key<'_>) -> Option<Slot> {
        let is_it = |slot: &Slot| self.slots[slot.index()].name.text() == name.text();
        self.by_name.find(name.hash(), is_it).copied()
    }

    /// Makes room for so many.
    #[cfg(feature = "snapshot")]
    pub(crate) fn reserve(&mut self, count: usize) {
        let slots = &self.slots;
        let hash_of = |slot: &Slot| slots[slot.index()].hash;
        self.by_name.reserve(count, hash_of);
        self.slots.reserve(count);
    }

    /// Adds one whose name is not there.
    pub(crate) fn insert(&mut self, resource: Resource) -> Slot {
        let hash = resource.hash;
        let index = self.slots.insert(resource);
        let slot = Slot(u32::try_from(index).expect("memory ends before slots do"));
        let slots = &self.slots;
        let hash_of = |slot: &Slot| slots[slot.index()].hash;
        self.by_name.insert_unique(hash, slot, hash_of);
        slot
    }

    /// It is absent from now on.
    pub(crate) fn remove(&mut self, slot: Slot) -> Resource {
        let resource = self.slots.remove(slot.index());
        if let Ok(entry) = self.by_name.find_entry(resource.hash, |other| *other == slot) {
            entry.remove();
        }
        resource
    }

    /// What is in a slot. The caller knows that something is.
    pub(crate) fn at(&mut self, slot: Slot) -> &mut Resource {
        &mut self.slots[slot.index()]
    }

    /// What is in a slot now, if anything is.
    pub(crate) fn get(&mut self, slot: Slot) -> Option<&mut Resource> {
        self.slots.get_mut(slot.index())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Resource> {
        self.slots.iter().map(|(_, resource)| resource)
    }

    #[cfg(feature = "snapshot")]
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Resource> {
        self.slots.iter_mut().map(|(_, resource)| resource)
    }
}
