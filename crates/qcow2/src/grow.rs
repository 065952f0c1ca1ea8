//! New refcount blocks, and a larger refcount table when the old one is full.
//!
//! A block that covers a part of the file in which nothing lies yet is put at the beginning of that part and
//! counts itself. A table that grows is written to new clusters, made durable, and switched by one write in
//! the header's first sector (rule R10).

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Buf, Cause, DebugEvent, Error, ErrorKind, Result};

use crate::engine::{Dropped, Engine, NO_CAUSE};
use crate::geometry::{HostCluster, HostOffset};
use crate::header::REFTABLE_BYTES_MAX;
use crate::meta::{Structure, TableKind};
use crate::refcount;
use crate::state::{Decision, Need, State};
use crate::table;

#[derive(Debug, thiserror::Error)]
#[error(
    "the refcount table would need {needed} bytes, more than the {REFTABLE_BYTES_MAX} that images may have"
)]
struct ReftableFull {
    needed: u64,
}

impl Engine {
    /// Clusters are about to be owned. The second event is the reference's look for their refcount block, which it announces
    /// whether or not there is one.
    pub(crate) async fn announce_allocation(&self, cause: Cause) {
        self.file.announce(DebugEvent::ClusterAlloc, cause).await;
        self.file.announce(DebugEvent::RefblockAlloc, cause).await;
    }

    /// Makes the refcount block with this number in the refcount table.
    pub(crate) async fn new_refblock(self: &Arc<Self>, index: u64, cause: Cause) -> Result<()> {
        let _turn = self.loading.grow.lock(0..1, LockMode::Exclusive).await;
        let raw = self.decide(cause, |state| state.reftable_entry(index)).await?;
        if table::refblock_offset(raw).is_some() {
            return Ok(());
        }
        let (entries, place) = {
            let state = self.state.lock();
            let entries = u64::from(state.header.reftable_clusters) * self.geometry.cluster_size() / 8;
            (entries, state.hint.max(index * self.geometry.refblock_entries()))
        };
        if index >= entries {
            return self.grow_reftable(index, place, cause).await;
        }
        self.file.announce(DebugEvent::RefblockAlloc, cause).await;
        self.decide(cause, |state| state.check_overlap(place..place + 1)).await?;
        self.file.announce(DebugEvent::RefblockAllocWrite, cause).await;
        let block = self.new_block(index, place..place + 1);
        // Only if a slice is a whole block.
        let cacheable = self.geometry.slices_per_cluster() == 1;
        let is_named =
            cacheable && self.decide(cause, |state| state.name_refblock(index, place, Some(&block))).await?;
        if is_named {
            block.recycle();
            return Ok(());
        }
        self.file.write(place << self.geometry.cluster_bits, block).await?;
        self.decide(cause, |state| state.name_refblock(index, place, None)).await.map(|_named| ())
    }

    /// Writes block `index` at cluster `place`, counting the clusters `used` once.
    async fn write_refblock(self: &Arc<Self>, index: u64, place: u64, used: Range<u64>) -> Result<()> {
        let block = self.new_block(index, used);
        self.file.write(place << self.geometry.cluster_bits, block).await
    }

    /// The content of a new block, with the clusters `used` counted once.
    fn new_block(&self, index: u64, used: Range<u64>) -> Buf {
        let (order, per_block) = (self.geometry.refcount_order, self.geometry.refblock_entries());
        let mut block = Buf::zeroed(self.geometry.cluster_size() as usize);
        let covered = index * per_block..(index + 1) * per_block;
        let (first, end) = (used.start.max(covered.start), used.end.min(covered.end));
        if first < end {
            refcount::fill(&mut block, order, first - covered.start..end - covered.start, 1);
        }
        block
    }

    /// Takes `count` free clusters in a row, also more than one refcount block counts. For tables that are stored
    /// in one piece; the caller holds the whole disk, so that nobody else allocates meanwhile.
    pub(crate) async fn take_contiguous(self: &Arc<Self>, count: u64) -> Result<Range<u64>> {
        self.satisfy(Need::Meta, NO_CAUSE).await?;
        let per_slice = self.geometry.refslice_entries();
        let (start, missing) = self.find_contiguous(count).await?;
        let taken = start..start + count;
        if let Some(block) = missing {
            let _turn = self.loading.grow.lock(0..1, LockMode::Exclusive).await;
            self.grow_reftable(block, taken.end, NO_CAUSE).await?;
        }
        self.decide(NO_CAUSE, |state| state.check_overlap(taken.clone())).await?;
        let mut at = taken.start;
        while at < taken.end {
            let end = ((at / per_slice + 1) * per_slice).min(taken.end);
            let marked = self.decide(NO_CAUSE, |state| state.set_refcounts(at..end, 1)).await;
            if let Err(e) = marked {
                self.state.lock().give_back_all(taken.start..at);
                return Err(e);
            }
            at = end;
        }
        let mut state = self.state.lock();
        state.hint = state.hint.max(taken.end);
        state.virgin_from = state.virgin_from.max(taken.end << self.geometry.cluster_bits);
        Ok(taken)
    }

    /// The first `count` free clusters in a row, and the first refcount block among those that are missing there.
    async fn find_contiguous(self: &Arc<Self>, count: u64) -> Result<(u64, Option<u64>)> {
        let per_block = self.geometry.refblock_entries();
        self.write_refcounts().await?;
        let (table, bytes) = {
            let state = self.state.lock();
            let bytes = u64::from(state.header.reftable_clusters) << self.geometry.cluster_bits;
            (state.header.reftable_offset, bytes)
        };
        let mut blocks_end = 0;
        self.each_entry(table, bytes, |index, raw| {
            blocks_end = table::refblock_offset(raw).map_or(blocks_end, |_| index + 1);
        })
        .await?;
        let mut start = self.state.lock().hint;
        let mut end = start;
        // From `blocks_end` on nothing is counted, and nothing lies there.
        while end < start + count && end < blocks_end * per_block {
            let wanted = start + count - end;
            let (free, used) = self
                .decide(NO_CAUSE, |state| match state.free_from(end, wanted)? {
                    // Where no block counts them, nothing lies, but nothing can be taken either: on to the next block.
                    0 => match state.used_from(end)? {
                        0 => Ok((0, per_block - end % per_block)),
                        used => Ok((0, used)),
                    },
                    free => Ok((free, 0)),
                })
                .await?;
            end += free + used;
            if used > 0 {
                start = end;
            }
        }
        let missing = (start + count > blocks_end * per_block).then_some(blocks_end);
        Ok((start, missing))
    }

    /// Makes a refcount table with room for block `index`; the table and the blocks that count it lie at `place`.
    async fn grow_reftable(self: &Arc<Self>, index: u64, place: u64, cause: Cause) -> Result<()> {
        self.file.announce(DebugEvent::ReftableGrow, cause).await;
        let geometry = self.geometry;
        let (old_offset, old_clusters) = {
            let state = self.state.lock();
            (state.header.reftable_offset, u64::from(state.header.reftable_clusters))
        };
        let per_block = geometry.refblock_entries();
        // The table must have entries for the blocks that count it: a little arithmetic until it does. Half as
        // much again as before keeps the number of such moves logarithmic (the reference's step).
        let largest = REFTABLE_BYTES_MAX >> geometry.cluster_bits;
        let (mut blocks, mut clusters) = (1, (old_clusters * 3).div_ceil(2).min(largest));
        loop {
            let last = (place + blocks + clusters - 1) / per_block;
            let needed = geometry.clusters_for((last + 1) * 8);
            if last + 1 - index <= blocks && needed <= clusters {
                break;
            }
            blocks = blocks.max(last + 1 - index);
            clusters = clusters.max(needed);
        }
        let bytes = clusters << geometry.cluster_bits;
        if bytes > REFTABLE_BYTES_MAX {
            return Err(Error::new(ErrorKind::TooLarge, ReftableFull { needed: bytes }));
        }
        let used = place..place + blocks + clusters;
        self.decide(cause, |state| state.check_overlap(used.clone())).await?;
        self.write_refcounts().await?;
        let mut table = Buf::zeroed(bytes as usize);
        let old = self.file.read(old_offset.0, (old_clusters << geometry.cluster_bits) as usize).await?;
        table[..old.len()].copy_from_slice(&old);
        old.recycle();
        self.file.announce(DebugEvent::RefblockAllocWriteBlocks, cause).await;
        for i in 0..blocks {
            self.write_refblock(index + i, place + i, used.clone()).await?;
            let offset = (place + i) << geometry.cluster_bits;
            let at = (index + i) as usize * 8;
            table[at..at + 8].copy_from_slice(&offset.to_be_bytes());
        }
        let offset = HostOffset((place + blocks) << geometry.cluster_bits);
        self.file.announce(DebugEvent::RefblockAllocWriteTable, cause).await;
        self.file.write(offset.0, table).await?;
        self.barrier().await?;
        self.file.announce(DebugEvent::RefblockAllocSwitchTable, cause).await;
        self.update_header(|header| {
            header.reftable_offset = offset;
            header.reftable_clusters = clusters as u32;
        })
        .await?;
        {
            let mut state = self.state.lock();
            state.reftable.forget(0..u64::MAX);
            state.hint = state.hint.max(used.end);
            state.virgin_from = state.virgin_from.max(used.end << geometry.cluster_bits);
            let old = geometry.host_cluster(old_offset).0;
            state.free_later(HostCluster(old)..HostCluster(old + old_clusters), Dropped::Replaced);
            if let Some(map) = state.meta.as_mut() {
                map.remove_fixed(Structure::RefcountTable);
                map.add_fixed(place + blocks..used.end, Structure::RefcountTable);
                (place..place + blocks).for_each(|block| {
                    map.add_table(TableKind::Refblock, block);
                });
            }
        }
        self.barrier().await
    }
}

impl State {
    /// Lets the refcount table name the new block `index` at cluster `place`. Its content goes into the cache, to be
    /// written with what it comes to count and before the table; without any it is in the file. Whether it was done: not
    /// if the cache has no room.
    fn name_refblock(&mut self, index: u64, place: u64, content: Option<&[u8]>) -> Decision<bool> {
        let per_slice = self.geometry.slice_entries();
        let slot = self.reftable.find(index / per_slice).ok_or(Need::Reftable(index / per_slice))?;
        let meta = self.meta.as_mut().ok_or(Need::Meta)?;
        let offset = place << self.geometry.cluster_bits;
        if let Some(content) = content {
            let Ok(block) = self.refblocks.insert(index, HostOffset(offset), content, true) else {
                return Ok(false);
            };
            self.refblocks.change(block, 0..content.len() as u32, |_as_it_is| ());
        }
        self.reftable.set_entry(slot, index % per_slice, offset);
        meta.add_table(TableKind::Refblock, place);
        self.hint = self.hint.max(place + 1);
        self.virgin_from = self.virgin_from.max(offset + self.geometry.cluster_size());
        Ok(true)
    }
}
