//! Gives up all that a disk has of its own, after a commit.
//!
//! Where nothing but the disk refers to its clusters, they are not looked at:
//!
//! ```text
//!   L1 table cleared in place        any part of it may become durable first: each says that a range
//!   barrier                          is to be read from the backing file, which holds the same by now
//!   refcount table without the blocks that count nothing that stays; barrier
//!   the other blocks written anew: header, L1 table, refcount table and blocks count 1, all else 0
//!   barrier, file cut behind the last cluster in use
//! ```
//!
//! So it takes no room, hardly any reading, and a cut anywhere leaves clusters that nobody uses at worst. A disk
//! with snapshots or bitmaps loses its clusters one by one, like the part of a disk that is cut off.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Buf, Bufs, Completion, DebugEvent, Op, Preallocation, Request, Result};
use roaring::RoaringTreemap;

use crate::engine::{Dropped, Engine, NO_CAUSE};
use crate::geometry::{Geometry, HostCluster, HostOffset};
use crate::meta::OverlapChecks;
use crate::refcount;
use crate::state::Corruption;
use crate::table;

/// Bytes of a table that are written at once.
const PIECE_BYTES: u64 = 1 << 20;

/// Starts to give up all that the disk has of its own; see [`Node::make_empty`](cowbell_block::Node::make_empty).
pub(crate) fn submit(engine: &Arc<Engine>) -> Op {
    if let Err(e) = engine.check_writable() {
        return Op::failed(Bufs::none(), e);
    }
    let turn = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive);
    let worker = engine.clone();
    engine.keep(async move {
        let _whole = turn.await;
        match empty(&worker).await {
            Ok(()) => Completion::done(Bufs::none()),
            Err(e) => Completion::failed(Bufs::none(), e),
        }
    })
}

async fn empty(engine: &Arc<Engine>) -> Result<()> {
    engine.check_writable()?;
    engine.file.announce(DebugEvent::EmptyImagePrepare, NO_CAUSE).await;
    let is_alone = {
        let state = engine.state.lock();
        let header = &state.header;
        // Tables are written where they lie, so that they overlap with nothing must have been looked at.
        let is_checked = state.overlap_checks.contains(OverlapChecks::CACHED);
        is_checked && header.snapshot_count == 0 && !header.has_bitmaps()
    };
    if is_alone && engine.empty_at_once().await? {
        return Ok(());
    }
    engine.cut_off(0).await?;
    engine.settle_refcounts().await?;
    engine.cut_file().await
}

/// What stays of the file.
struct Kept {
    clusters: RoaringTreemap,
    /// Refcount blocks: number and cluster.
    blocks: Vec<(u64, u64)>,
    /// Numbers of blocks that go.
    gone: Vec<u64>,
}

impl Kept {
    /// Of these refcount blocks, those that count one of `clusters`, or a block that does.
    fn new(geometry: &Geometry, mut clusters: RoaringTreemap, mut blocks: Vec<(u64, u64)>) -> Self {
        let per_block = geometry.refblock_entries();
        let mut kept = Vec::new();
        loop {
            let counts = |(number, _): &mut (u64, u64)| {
                clusters.range_cardinality(*number * per_block..(*number + 1) * per_block) > 0
            };
            let found: Vec<_> = blocks.extract_if(.., counts).collect();
            if found.is_empty() {
                break;
            }
            clusters.extend(found.iter().map(|(_, cluster)| *cluster));
            kept.extend(found);
        }
        Self { clusters, blocks: kept, gone: blocks.into_iter().map(|(number, _)| number).collect() }
    }

    /// The content of a block.
    fn block(&self, geometry: &Geometry, number: u64) -> Buf {
        let mut content = Buf::zeroed(geometry.cluster_size() as usize);
        let first = number * geometry.refblock_entries();
        let mut counted = RoaringTreemap::new();
        counted.insert_range(first..first + geometry.refblock_entries());
        counted &= &self.clusters;
        for cluster in counted {
            refcount::put(&mut content, geometry.refcount_order, cluster - first, 1);
        }
        content
    }
}

impl Engine {
    /// Empties a disk that shares nothing; `false` if clusters are on their way back that running plans may still
    /// read, so that nothing was done.
    async fn empty_at_once(self: &Arc<Self>) -> Result<bool> {
        let _flushes = self.flushing.lock(0..1, LockMode::Exclusive).await;
        self.bring_up_to_date().await?;
        {
            let state = self.state.lock();
            if !state.freed.is_empty() || !state.released.is_empty() {
                return Ok(false);
            }
        }
        let kept = self.kept().await?;
        let result = match self.clear_l1().await {
            Ok(()) => self.rewrite_refcounts(&kept).await,
            failed => failed,
        };
        if result.is_err() {
            // What the tables in the file are now, nobody knows (rule R9).
            self.poisoned.store(true, Ordering::SeqCst);
        }
        result?;
        self.give_up_all_but(&kept).await;
        Ok(true)
    }

    async fn kept(self: &Arc<Self>) -> Result<Kept> {
        let (table, bytes, mut clusters) = {
            let state = self.state.lock();
            let bytes = u64::from(state.header.reftable_clusters) << self.geometry.cluster_bits;
            let mut clusters = RoaringTreemap::new();
            for range in state.meta.iter().flat_map(|meta| meta.fixed()) {
                clusters.insert_range(range);
            }
            (state.header.reftable_offset, bytes, clusters)
        };
        clusters.insert(0);
        let (mut blocks, mut broken) = (Vec::new(), None);
        self.each_entry(table, bytes, |index, raw| {
            let Some(block) = table::refblock_offset(raw) else { return };
            if !self.geometry.is_aligned(block) {
                broken.get_or_insert(Corruption::RefblockUnaligned { offset: block.0, index });
            } else if block.0 >= self.file.len() {
                broken.get_or_insert(Corruption::RefblockOutside { offset: block.0, index });
            }
            blocks.push((index, self.geometry.host_cluster(block).0));
        })
        .await?;
        if let Some(corruption) = broken {
            return Err(self.report(corruption).await);
        }
        Ok(Kept::new(&self.geometry, clusters, blocks))
    }

    /// From here on nothing is mapped. Reads that load a slice meanwhile wait.
    async fn clear_l1(self: &Arc<Self>) -> Result<()> {
        let _loads = self.loading.l1.lock(0..u64::MAX, LockMode::Exclusive).await;
        let (table, bytes) = {
            let header = &self.state.lock().header;
            (header.l1_offset, u64::from(header.l1_entries) * 8)
        };
        self.file.announce(DebugEvent::L1Update, NO_CAUSE).await;
        let mut at = 0;
        while at < bytes {
            let len = PIECE_BYTES.min(bytes - at);
            self.file.write(table.0 + at, Buf::zeroed(len as usize)).await?;
            at += len;
        }
        {
            let mut state = self.state.lock();
            state.l1.forget(0..u64::MAX);
            state.l2.forget(0..u64::MAX);
        }
        self.barrier().await
    }

    async fn rewrite_refcounts(self: &Arc<Self>, kept: &Kept) -> Result<()> {
        if !kept.gone.is_empty() {
            self.drop_blocks(&kept.gone).await?;
            // A block must not count 0 while the table still names it.
            self.barrier().await?;
        }
        for (number, cluster) in &kept.blocks {
            self.file.announce(DebugEvent::RefblockUpdatePart, NO_CAUSE).await;
            let place = self.geometry.host_offset(HostCluster(*cluster));
            self.file.write(place.0, kept.block(&self.geometry, *number)).await?;
        }
        self.barrier().await?;
        let mut state = self.state.lock();
        state.reftable.forget(0..u64::MAX);
        state.refblocks.forget(0..u64::MAX);
        // Found anew before the next allocation.
        state.meta = None;
        state.stop_packing(&(0..u64::MAX));
        state.hint = 0;
        Ok(())
    }

    /// Takes refcount blocks, ascending, out of the table.
    async fn drop_blocks(self: &Arc<Self>, numbers: &[u64]) -> Result<()> {
        self.file.announce(DebugEvent::ReftableUpdate, NO_CAUSE).await;
        let HostOffset(table) = self.state.lock().header.reftable_offset;
        let per_piece = PIECE_BYTES / 8;
        for piece in numbers.chunk_by(|a, b| a / per_piece == b / per_piece) {
            let (first, last) = (piece[0], piece[piece.len() - 1]);
            let place = table + first * 8;
            let mut entries = self.file.read(place, ((last - first + 1) * 8) as usize).await?;
            for number in piece {
                let at = (number - first) as usize * 8;
                entries[at..at + 8].fill(0);
            }
            self.file.write(place, entries).await?;
        }
        Ok(())
    }

    /// The old state is durably gone: cuts the file, and hands what lies between to the allocator. Failure costs
    /// only space.
    async fn give_up_all_but(self: &Arc<Self>, kept: &Kept) {
        let bits = self.geometry.cluster_bits;
        let nobody_reads = {
            let mut state = self.state.lock();
            let epoch = state.epochs.current();
            state.epochs.advance();
            state.epochs.oldest_running() > epoch
        };
        let mut end = self.file.len().div_ceil(self.geometry.cluster_size());
        let needed = kept.clusters.max().map_or(1, |last| last + 1);
        if nobody_reads && needed < end {
            let shorter = Request::truncate(needed << bits, Preallocation::Off);
            if self.file.submit(shorter).finish().await.result.is_ok() {
                end = needed;
                let mut state = self.state.lock();
                state.virgin_from = state.virgin_from.min(needed << bits);
            }
        }
        if let Some(data) = self.data_file.as_ref().filter(|_| nobody_reads) {
            let _ = data.submit(Request::discard(0, data.len())).finish().await;
        }
        let mut freed = RoaringTreemap::new();
        freed.insert_range(0..end);
        freed -= &kept.clusters;
        {
            let mut state = self.state.lock();
            let punch = state.discards.passes(Dropped::WithSnapshot);
            state.rest(freed, punch);
        }
        self.reclaim().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_stays_that_counts_what_stays() {
        // 8 clusters in a block of 512 bytes with 64-bit counts: 64 per block.
        let geometry = Geometry::new(9, 6, 512);
        assert_eq!(geometry.refblock_entries(), 64);
        let clusters = RoaringTreemap::from_iter([0, 1, 2, 70]);
        // Block 1 lies in the range of block 3, which stays for it; 2 counts only itself and goes.
        let kept = Kept::new(&geometry, clusters, vec![(0, 3), (1, 200), (2, 130), (3, 201), (9, 4)]);
        assert_eq!(kept.blocks, [(0, 3), (1, 200), (3, 201)]);
        assert_eq!(kept.gone, [2, 9]);
        let block = kept.block(&geometry, 3);
        let counts = (0..64).filter(|i| refcount::get(&block, 6, *i) != 0);
        assert_eq!(counts.collect::<Vec<_>>(), [200 - 192, 201 - 192]);
    }
}
