//! A bounded cache of table slices.
//!
//! One cache holds slices of one kind of table (L1, L2, refcount table, refcount blocks), keyed by the slice's
//! number in that table; so a lookup in a cached L2 slice needs no L1 lookup. A slice remembers which of its
//! bytes are newer than the file. Slices are found by handle for the length of one short lock and never held
//! across a wait (rule R8): between waits they may be evicted.
//!
//! Eviction takes clean slices only, the least recently used first as far as one reference bit tells. When all
//! are dirty the caller writes back first; the cache never grows beyond its capacity.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use cowbell_block::Buf;

use crate::geometry::HostOffset;

/// A cached slice; valid until the lock under which it was found is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot(usize);

/// See the module.
pub(crate) struct TableCache {
    index: HashMap<u64, usize, BuildHasherDefault<KeyHasher>>,
    slices: Vec<Slice>,
    capacity: usize,
    hand: usize,
    dirty_count: usize,
    writing_count: usize,
    age: u64,
    /// The slice found last: requests come in runs.
    recent: (u64, usize),
}

struct Slice {
    key: u64,
    host: HostOffset,
    /// Not aligned like buffers for I/O: an allocator would spend as much again on the alignment.
    data: Box<[u8]>,
    /// Bytes newer than the file; empty when clean.
    dirty: Range<u32>,
    referenced: bool,
    /// A copy is on its way to the file; not to be evicted and read back before it arrived.
    writing: bool,
    /// The table may be changed in place (its own entry has the COPIED flag).
    private: bool,
}

/// All slices are dirty or being written.
#[derive(Debug)]
pub(crate) struct Full;

/// Bytes to be written back: a copy, so that the slice may change meanwhile.
pub(crate) struct WriteBack {
    pub key: u64,
    pub host: HostOffset,
    pub bytes: Buf,
}

impl TableCache {
    /// A cache of at most `capacity` slices; memory is taken as slices come.
    pub fn new(capacity: usize) -> Self {
        Self {
            index: HashMap::default(),
            slices: Vec::new(),
            capacity: capacity.max(2),
            hand: 0,
            dirty_count: 0,
            writing_count: 0,
            age: 0,
            recent: (u64::MAX, 0),
        }
    }

    /// The slice with this number, if cached.
    #[inline]
    pub fn find(&mut self, key: u64) -> Option<Slot> {
        if self.recent.0 == key {
            return Some(Slot(self.recent.1));
        }
        let at = *self.index.get(&key)?;
        self.slices[at].referenced = true;
        self.recent = (key, at);
        Some(Slot(at))
    }

    /// The slice's bytes.
    #[inline]
    pub fn bytes(&self, slot: Slot) -> &[u8] {
        &self.slices[slot.0].data
    }

    /// The 8-byte entry `index` of a slice.
    #[inline]
    pub fn entry(&self, slot: Slot, index: u64) -> u64 {
        let at = index as usize * 8;
        let bytes = self.slices[slot.0].data[at..at + 8].first_chunk().expect("eight bytes");
        u64::from_be_bytes(*bytes)
    }

    /// Changes the 8-byte entry `index` of a slice.
    pub fn set_entry(&mut self, slot: Slot, index: u64, value: u64) {
        let at = index as u32 * 8;
        self.change(slot, at..at + 8, |bytes| bytes.copy_from_slice(&value.to_be_bytes()));
    }

    /// Where the slice lies in the file.
    pub fn host(&self, slot: Slot) -> HostOffset {
        self.slices[slot.0].host
    }

    /// Changes some bytes of a slice.
    pub fn change(&mut self, slot: Slot, range: Range<u32>, f: impl FnOnce(&mut [u8])) {
        self.age += 1;
        let slice = &mut self.slices[slot.0];
        f(&mut slice.data[range.start as usize..range.end as usize]);
        if slice.dirty.is_empty() {
            self.dirty_count += 1;
            slice.dirty = range;
        } else {
            slice.dirty = slice.dirty.start.min(range.start)..slice.dirty.end.max(range.end);
        }
    }

    /// Sets 8-byte entries, at least one: the first to `raw`, each other to `step` more than the one before it.
    pub fn set_entries(&mut self, slot: Slot, indices: Range<u64>, raw: u64, step: u64) {
        self.change(slot, indices.start as u32 * 8..indices.end as u32 * 8, |bytes| {
            let mut next = raw;
            for entry in bytes.chunks_exact_mut(8) {
                entry.copy_from_slice(&next.to_be_bytes());
                next = next.wrapping_add(step);
            }
        });
    }

    /// Whether the slice's table may be changed in place.
    #[inline]
    pub fn is_private(&self, slot: Slot) -> bool {
        self.slices[slot.0].private
    }

    /// Puts a slice in, evicting a clean one if need be.
    ///
    /// # Errors
    /// [`Full`] when there is none; the caller writes back and tries again.
    pub fn insert(&mut self, key: u64, host: HostOffset, data: &[u8], private: bool) -> Result<Slot, Full> {
        assert!(!self.index.contains_key(&key), "slice {key} is loaded once");
        let slice = |data| Slice { key, host, data, dirty: 0..0, referenced: true, writing: false, private };
        let at = if self.slices.len() < self.capacity {
            self.slices.push(slice(data.into()));
            self.slices.len() - 1
        } else {
            let at = self.victim().ok_or(Full)?;
            self.index.remove(&self.slices[at].key);
            let mut reused = std::mem::take(&mut self.slices[at].data);
            if reused.len() == data.len() {
                reused.copy_from_slice(data);
            } else {
                reused = data.into();
            }
            self.slices[at] = slice(reused);
            at
        };
        self.index.insert(key, at);
        self.recent = (key, at);
        Ok(Slot(at))
    }

    fn victim(&mut self) -> Option<usize> {
        for _ in 0..self.slices.len() * 2 {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slices.len();
            let slice = &mut self.slices[at];
            if !slice.dirty.is_empty() || slice.writing {
                continue;
            }
            // The second chance does not apply to a cache so small that it would defeat progress.
            if std::mem::take(&mut slice.referenced) {
                continue;
            }
            return Some(at);
        }
        None
    }

    /// Forgets the clean slices that nobody found since the last call.
    pub fn forget_unused(&mut self) {
        self.recent = (u64::MAX, 0);
        let unused = |s: &mut Slice| !std::mem::take(&mut s.referenced) && s.dirty.is_empty() && !s.writing;
        let gone: Vec<u64> = self.slices.iter_mut().filter_map(|s| unused(s).then_some(s.key)).collect();
        gone.into_iter().for_each(|key| self.forget_one(key));
    }

    /// Forgets the clean slices with these numbers; the table behind them moved.
    ///
    /// # Panics
    /// If one of them is dirty: its changes would be lost.
    pub fn forget(&mut self, keys: Range<u64>) {
        self.age += 1;
        self.recent = (u64::MAX, 0);
        if keys.end - keys.start > self.slices.len() as u64 {
            let gone: Vec<u64> = self.slices.iter().map(|s| s.key).filter(|k| keys.contains(k)).collect();
            gone.into_iter().for_each(|key| self.forget_one(key));
        } else {
            keys.for_each(|key| self.forget_one(key));
        }
    }

    fn forget_one(&mut self, key: u64) {
        let Some(at) = self.index.remove(&key) else { return };
        let gone = self.slices.swap_remove(at);
        assert!(gone.dirty.is_empty() && !gone.writing, "a table that moves has no unwritten changes");
        if let Some(moved) = self.slices.get(at) {
            self.index.insert(moved.key, at);
        }
        self.hand = 0;
    }

    /// Changes whenever a slice is changed, or tables behind slices are, cached or not.
    pub fn age(&self) -> u64 {
        self.age
    }

    /// Whether the file has all that the slices have.
    pub fn is_written(&self) -> bool {
        self.dirty_count == 0 && self.writing_count == 0
    }

    /// Number of slices with unwritten changes.
    pub fn dirty_count(&self) -> usize {
        self.dirty_count
    }

    /// Copies what is newer than the file, widened to `align`, and marks it as being written.
    pub fn take_dirty(&mut self, align: u32) -> Vec<WriteBack> {
        if self.dirty_count == 0 {
            return Vec::new();
        }
        self.dirty_count = 0;
        let mut taken = Vec::new();
        for slice in self.slices.iter_mut().filter(|s| !s.dirty.is_empty()) {
            assert!(!slice.writing, "write-backs are one after the other");
            let range = std::mem::replace(&mut slice.dirty, 0..0);
            let start = range.start / align * align;
            let end = range.end.next_multiple_of(align).min(slice.data.len() as u32);
            let host = HostOffset(slice.host.0 + u64::from(start));
            let bytes = Buf::copy_of(&slice.data[start as usize..end as usize]);
            slice.writing = true;
            taken.push(WriteBack { key: slice.key, host, bytes });
        }
        self.writing_count += taken.len();
        taken.sort_by_key(|w| w.host);
        taken
    }

    /// The copy of slice `key` arrived.
    pub fn written(&mut self, key: u64) {
        let at = self.index[&key];
        self.slices[at].writing = false;
        self.writing_count -= 1;
    }

    /// The copy of slice `key` did not arrive, or not surely: all of it counts as dirty again.
    pub fn not_written(&mut self, key: u64) {
        let at = self.index[&key];
        let slice = &mut self.slices[at];
        slice.writing = false;
        self.writing_count -= 1;
        if slice.dirty.is_empty() {
            self.dirty_count += 1;
        }
        slice.dirty = 0..slice.data.len() as u32;
    }
}

/// Keys are small consecutive numbers from the image's geometry: one multiplication spreads them.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache_with(keys: &[u64]) -> TableCache {
        let mut cache = TableCache::new(2);
        for key in keys {
            cache.insert(*key, HostOffset(key * 512), &[0; 512], true).unwrap();
        }
        cache
    }

    #[test]
    fn clean_slices_make_room_dirty_ones_do_not() {
        let mut cache = cache_with(&[1, 2]);
        let slot = cache.find(1).unwrap();
        cache.set_entry(slot, 3, 77);
        cache.insert(5, HostOffset(0), &[0; 512], true).unwrap();
        assert!(cache.find(2).is_none());
        let kept = cache.find(1).unwrap();
        assert_eq!(cache.entry(kept, 3), 77);
        let slot = cache.find(5).unwrap();
        cache.set_entry(slot, 0, 1);
        assert!(cache.insert(6, HostOffset(0), &[0; 512], true).is_err());
    }

    #[test]
    fn write_back_takes_what_changed_and_keeps_later_changes() {
        let mut cache = cache_with(&[1]);
        let slot = cache.find(1).unwrap();
        cache.set_entry(slot, 10, 1);
        let taken = cache.take_dirty(1);
        assert_eq!((taken.len(), taken[0].host, taken[0].bytes.len()), (1, HostOffset(512 + 80), 8));
        cache.set_entry(slot, 12, 2);
        cache.written(1);
        assert_eq!(cache.dirty_count, 1);
        assert_eq!(cache.take_dirty(512)[0].bytes.len(), 512);
        cache.not_written(1);
        assert_eq!(cache.dirty_count, 1);
    }

    #[test]
    fn what_is_not_used_between_two_cleanings_is_forgotten() {
        let mut cache = TableCache::new(8);
        for key in 0..4 {
            cache.insert(key, HostOffset(key), &[0; 512], true).unwrap();
        }
        cache.forget_unused();
        cache.find(0);
        cache.find(2);
        let slot = cache.find(1).unwrap();
        cache.set_entry(slot, 0, 1);
        cache.slices[slot.0].referenced = false;
        cache.forget_unused();
        let left: Vec<u64> = (0..4).filter(|k| cache.find(*k).is_some()).collect();
        assert_eq!(left, [0, 1, 2], "used or not yet written");
    }

    #[test]
    fn forgetting_keeps_the_index_right() {
        let mut cache = TableCache::new(8);
        for key in 0..6 {
            cache.insert(key, HostOffset(key), &[0; 512], false).unwrap();
        }
        cache.forget(1..4);
        let found: Vec<u64> = (0..6).filter(|k| cache.find(*k).is_some()).collect();
        assert_eq!(found, [0, 4, 5]);
        let slot = cache.find(5).unwrap();
        assert_eq!(cache.bytes(slot).len(), 512);
    }
}
