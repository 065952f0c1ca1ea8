//! Hands out host clusters and takes them back.
//!
//! ```text
//!   free (refcount 0) ── allocate ──> owned (refcount 1) ── link ──> referenced
//!     ^                                  │ failed before link            │ unlink (in memory)
//!     │                                  v                               v
//!     └───────────── give_back ──────────┘                            freed
//!     ^                                                                  │ pointer removal durable (flush)
//!     │                                                                  v
//!     └── refcount - 1 ── hole punched ── old plans finished ──────── released
//! ```
//!
//! Allocation follows the reference: the search goes on where the last one ended, and starts again lower when
//! a cluster below becomes free, so that layouts come out alike.

use std::ops::Range;

use crate::cache::Slot;
use crate::geometry::HostCluster;
use crate::refcount;
use crate::state::{Corruption, Decision, Freed, NOBODY, Need, State};

/// Host data offsets stay below 2^56 (qcow2 specification, *Cluster mapping*).
const HOST_OFFSET_BITS: u32 = 56;

/// Clusters that were handed out and are not referenced yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "clusters that are neither linked nor given back leak"]
pub(crate) struct Owned {
    pub first: u64,
    pub count: u64,
    /// Never written since the file began: reads as zeroes.
    pub virgin: bool,
}

impl Owned {
    fn clusters(&self) -> Range<u64> {
        self.first..self.first + self.count
    }
}

impl State {
    /// Finds `count` free clusters in a row, or fewer when a refcount slice ends, and takes them.
    pub fn allocate(&mut self, count: u64) -> Decision<Owned> {
        assert!(count > 0, "nothing to allocate");
        if self.meta.is_none() {
            return Err(Need::Meta.into());
        }
        let run = self.find_free(count)?;
        self.check_overlap(run.clone())?;
        self.set_refcounts(run.clone(), 1)?;
        self.hint = run.end;
        let cluster_size = self.geometry.cluster_size();
        let virgin = run.start * cluster_size >= self.virgin_from;
        self.virgin_from = self.virgin_from.max(run.end * cluster_size);
        Ok(Owned { first: run.start, count: run.end - run.start, virgin })
    }

    /// Takes back clusters that nothing refers to: their use failed half way. When their refcounts are not at hand
    /// any more, the next flush does it.
    pub fn give_back(&mut self, owned: Owned) {
        if self.refblock_slot(owned.first).is_ok() {
            // They lie in one slice, see `allocate`.
            let freed = self.set_refcounts(owned.clusters(), 0).is_ok();
            assert!(freed, "the slice of refcounts was just found");
            self.hint = self.hint.min(owned.first);
        } else {
            self.give_back_all(owned.clusters());
        }
    }

    /// Takes back any clusters that nothing refers to, at the next flush.
    pub fn give_back_all(&mut self, clusters: Range<u64>) {
        self.released.push(Freed { clusters, epoch: NOBODY, punch: false });
    }

    /// How many clusters are free from this one on, in its slice of refcounts, counted up to `most`. Where no block
    /// counts them, none is.
    pub fn free_from(&mut self, cluster: u64, most: u64) -> Decision<u64> {
        let Some(slot) = self.refblock_slot(cluster)? else { return Ok(0) };
        let per_slice = self.geometry.refslice_entries();
        let first = cluster % per_slice;
        let rest = first..per_slice.min(first.saturating_add(most));
        let free = refcount::run_of(self.refblocks.bytes(slot), self.geometry.refcount_order, rest, 0);
        if self.resting.is_empty() {
            return Ok(free);
        }
        Ok((cluster..cluster + free).take_while(|cluster| !self.is_resting(*cluster)).count() as u64)
    }

    /// How many clusters are in use from this one on, in its slice of refcounts. Where no block counts them, none is.
    pub fn used_from(&mut self, cluster: u64) -> Decision<u64> {
        let per_slice = self.geometry.refslice_entries();
        let Some(slot) = self.refblock_slot(cluster)? else { return Ok(0) };
        let (block, order) = (self.refblocks.bytes(slot), self.geometry.refcount_order);
        let rest = cluster % per_slice..per_slice;
        let used = |index: &u64| {
            let cluster = cluster / per_slice * per_slice + index;
            refcount::get(block, order, *index) != 0 || self.is_resting(cluster)
        };
        Ok(rest.take_while(used).count() as u64)
    }

    fn find_free(&mut self, count: u64) -> Decision<Range<u64>> {
        let per_slice = self.geometry.refslice_entries();
        let limit = 1 << (HOST_OFFSET_BITS - self.geometry.cluster_bits);
        let mut start = self.hint;
        let mut end = start;
        while end < start + count {
            if end >= limit {
                return Err(Corruption::NoAddressSpace { limit: 1 << HOST_OFFSET_BITS }.into());
            }
            if end > start && end.is_multiple_of(per_slice) {
                break;
            }
            if self.refblock_slot(end)?.is_none() {
                return Err(Need::NewRefblock(end / self.geometry.refblock_entries()).into());
            }
            end += self.free_from(end, start + count - end)?;
            if end < start + count && !end.is_multiple_of(per_slice) || end == start {
                end += self.used_from(end)?;
                start = end;
                // Remembered, so that a search which has to wait does not begin anew.
                self.hint = start;
            }
        }
        Ok(start..end)
    }

    /// The refcount of a host cluster; 0 where no refcount block covers it.
    pub fn refcount(&mut self, cluster: u64) -> Decision<u64> {
        let Some(slot) = self.refblock_slot(cluster)? else { return Ok(0) };
        let index = cluster % self.geometry.refslice_entries();
        Ok(refcount::get(self.refblocks.bytes(slot), self.geometry.refcount_order, index))
    }

    /// Sets the refcount of a host cluster that a refcount block covers.
    pub fn set_refcount(&mut self, cluster: u64, value: u64) -> Decision<()> {
        self.set_refcounts(cluster..cluster + 1, value)
    }

    /// The same for clusters, at least one, that one slice of refcounts covers.
    pub fn set_refcounts(&mut self, clusters: Range<u64>, value: u64) -> Decision<()> {
        assert!(value <= self.geometry.refcount_max(), "the width was checked");
        let block = clusters.start / self.geometry.refblock_entries();
        let slot = self.refblock_slot(clusters.start)?.ok_or(Need::NewRefblock(block))?;
        self.fill_refcounts(slot, clusters, value);
        Ok(())
    }

    fn fill_refcounts(&mut self, slot: Slot, clusters: Range<u64>, value: u64) {
        let (order, per_slice) = (self.geometry.refcount_order, self.geometry.refslice_entries());
        let (first, last) = (clusters.start % per_slice, (clusters.end - 1) % per_slice);
        let bytes = refcount::bytes_of(order, first).start..refcount::bytes_of(order, last).end;
        // Entries are numbered from the first whole byte that is changed.
        let skipped = (u64::from(bytes.start) * 8) >> order;
        let indices = first - skipped..last + 1 - skipped;
        self.refblocks.change(slot, bytes, |part| refcount::fill(part, order, indices, value));
    }

    /// Drops one reference to a host cluster whose pointer is durably gone.
    pub fn drop_reference(&mut self, cluster: u64) -> Decision<()> {
        self.drop_references(cluster..cluster + 1).map(|_one| ())
    }

    /// Drops one reference to each of the first of `clusters`, whose pointers are durably gone: to as many as have
    /// equally many and are counted in one slice. Returns their number, at least 1.
    pub fn drop_references(&mut self, clusters: Range<u64>) -> Decision<u64> {
        let first = clusters.start;
        let offset = self.geometry.host_offset(HostCluster(first)).0;
        let per_slice = self.geometry.refslice_entries();
        let order = self.geometry.refcount_order;
        let slot = self.refblock_slot(first)?.ok_or(Corruption::RefcountUnderflow { offset })?;
        let block = self.refblocks.bytes(slot);
        let index = first % per_slice;
        let count = refcount::get(block, order, index);
        if count == 0 {
            return Err(Corruption::RefcountUnderflow { offset }.into());
        }
        let most = per_slice.min(index + (clusters.end - first));
        let alike = refcount::run_of(block, order, index..most, count);
        if count == 1 {
            self.stop_packing(&(first..first + alike));
            if !cowbell_block::mutant::is_active("freed-not-found") {
                self.hint = self.hint.min(first);
            }
        }
        self.fill_refcounts(slot, first..first + alike, count - 1);
        Ok(alike)
    }

    /// Whether the first of `clusters` has exactly one reference, and how many from it on are the same in that, as far
    /// as its slice of refcounts tells.
    pub fn single_run(&mut self, clusters: Range<u64>) -> Decision<(bool, u64)> {
        let per_slice = self.geometry.refslice_entries();
        let end = clusters.end.min((clusters.start / per_slice + 1) * per_slice);
        let Some(slot) = self.refblock_slot(clusters.start)? else {
            return Ok((false, end - clusters.start));
        };
        let (block, order) = (self.refblocks.bytes(slot), self.geometry.refcount_order);
        let base = clusters.start - clusters.start % per_slice;
        let single = refcount::run_of(block, order, clusters.start - base..end - base, 1);
        if single > 0 {
            return Ok((true, single));
        }
        let others = (clusters.start - base..end - base)
            .take_while(|index| refcount::get(block, order, *index) != 1)
            .count();
        Ok((false, others as u64))
    }

    /// The last cluster with a refcount in a slice of refcounts, by its number.
    pub fn last_used_in(&mut self, slice: u64) -> Decision<Option<u64>> {
        let per_slice = self.geometry.refslice_entries();
        let Some(slot) = self.refblock_slot(slice * per_slice)? else { return Ok(None) };
        let (block, order) = (self.refblocks.bytes(slot), self.geometry.refcount_order);
        let last = (0..per_slice).rev().find(|index| refcount::get(block, order, *index) != 0);
        Ok(last.map(|index| slice * per_slice + index))
    }
}
