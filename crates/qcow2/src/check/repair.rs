//! Writes what a repair decided, past the caches, in an order that may be cut anywhere.
//!
//! ```text
//!   refcounts raised; barrier          never too low from here on
//!   leaked clusters given back to the host; refcounts lowered; barrier
//!   COPIED flags; barrier              they rely on exact refcounts
//!   the header's dirty and corrupt bits
//! ```
//!
//! Entries are changed where they lie: each lies within one sector, so a cut leaves it old or new.

use std::sync::Arc;

use cowbell_block::{Buf, Error, ErrorKind, Fix, Request, Result};

use super::compare::{Comparison, Mismatch};
use super::flags::WrongFlags;
use super::log::Log;
use super::scan::Pass;
use crate::engine::Engine;
use crate::geometry::HostOffset;
use crate::refcount;
use crate::table;

/// Bytes of the L1 table that are read and written together when entries of it change.
const L1_PIECE: u64 = 4096;

impl Pass {
    /// Makes the entries zero that a repair found unusable and without data.
    pub async fn mend_entries(&mut self, log: &mut Log) -> Result<()> {
        let mends = std::mem::take(&mut self.mends);
        if mends.is_empty() {
            return Ok(());
        }
        let bytes = self.format.geometry.l2_entry_bytes();
        for mend in mends {
            if !self.may_write(&mend.table) {
                log.error("ERROR: Overlap check failed".to_owned());
                return Err(ErrorKind::Io.into());
            }
            let at = mend.table.offset + u64::from(mend.index) * bytes;
            let old = self.engine.file.read(at, bytes as usize).await?;
            let mut entry = old.to_vec();
            table::make_zero(&mut entry);
            self.engine.file.write(at, Buf::copy_of(&entry)).await?;
            log.report.corruptions -= 1;
            log.report.corruptions_fixed += 1;
        }
        self.engine.barrier().await
    }

    /// Whether an L2 table's cluster is that and nothing else.
    fn may_write(&self, table: &super::walk::Table) -> bool {
        let cluster = self.format.geometry.host_cluster(HostOffset(table.offset)).0;
        self.is_sound_table(table) && self.counts.get(cluster) == table.times
    }

    /// Makes stored refcounts what was counted, as far as `fix` allows. Blocks exist for all of them.
    pub async fn fix_refcounts(&self, comparison: &Comparison, fix: Fix, leaks: Leaks) -> Result<()> {
        let geometry = self.format.geometry;
        let all = || comparison.mismatches(&self.counts, &geometry);
        if fix == Fix::All && set_refcounts(&self.engine, all().filter(|m| m.refcount < m.count)).await? {
            self.engine.barrier().await?;
        }
        let high = || all().filter(|m| m.refcount > m.count);
        if leaks == Leaks::GivenBack {
            self.give_back(high().filter(|m| m.count == 0)).await;
        }
        if set_refcounts(&self.engine, high()).await? {
            self.engine.barrier().await?;
        }
        Ok(())
    }

    /// Gives the storage of leaked clusters back to the host. Failure costs only space.
    async fn give_back(&self, leaks: impl Iterator<Item = Mismatch>) {
        let bits = self.format.geometry.cluster_bits;
        for leak in leaks {
            let end = (leak.clusters.end << bits).min(self.format.file_len);
            let start = leak.clusters.start << bits;
            if start < end {
                let request = Request::discard(start, end - start);
                let _space = self.engine.file.submit(request).finish().await;
            }
        }
    }

    /// Writes the flags right.
    pub async fn fix_flags(&self, log: &mut Log, wrong: &WrongFlags) -> Result<()> {
        let geometry = self.format.geometry;
        let mut fixed = 0;
        for piece in wrong.l1.chunk_by(|a, b| a.0 * 8 / L1_PIECE == b.0 * 8 / L1_PIECE) {
            let edits = piece.iter().map(|(index, raw)| (index * 8 % L1_PIECE, *raw));
            let base = self.header.l1_offset.0 + piece[0].0 * 8 / L1_PIECE * L1_PIECE;
            let len = L1_PIECE.min(u64::from(self.header.l1_entries) * 8 + self.header.l1_offset.0 - base);
            self.edit(base, len, edits).await?;
            fixed += piece.len() as u64;
        }
        for (table, edits) in wrong.l2.values() {
            if !geometry.is_aligned(HostOffset(table.offset)) {
                // What is there is no table: nothing is written to it.
                continue;
            }
            let cluster = geometry.host_cluster(HostOffset(table.offset)).0;
            if !self.is_sound_table(table) || self.counts.get(cluster) < u64::from(table.active) {
                log.error(
                    "ERROR: Could not write L2 table; metadata overlap check failed: Input/output error"
                        .to_owned(),
                );
                return Err(ErrorKind::Io.into());
            }
            let bytes = self.format.geometry.l2_entry_bytes();
            let edits_at = edits.iter().map(|(index, raw)| (u64::from(*index) * bytes, *raw));
            self.edit(table.offset, geometry.cluster_size(), edits_at).await?;
            fixed += edits.len() as u64;
        }
        log.report.corruptions += wrong.count - fixed;
        log.report.corruptions_fixed += fixed;
        self.engine.barrier().await
    }

    /// Changes entries of a table of which `len` bytes lie at `base`.
    async fn edit(&self, base: u64, len: u64, edits: impl Iterator<Item = (u64, u64)>) -> Result<()> {
        let mut content = self.engine.file.read(base, len as usize).await?;
        for (at, raw) in edits {
            content[at as usize..at as usize + 8].copy_from_slice(&raw.to_be_bytes());
        }
        self.engine.file.write(base, content).await
    }
}

/// What happens to the storage of clusters that nobody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaks {
    /// The host gets it back.
    GivenBack,
    /// Something may refer to it that could not be repaired.
    Kept,
}

/// Writes refcounts into their blocks, one block after the other; the list is in order. Returns whether there were any.
pub(super) async fn set_refcounts(
    engine: &Arc<Engine>,
    list: impl Iterator<Item = Mismatch>,
) -> Result<bool> {
    let geometry = engine.geometry;
    let (order, per_block) = (geometry.refcount_order, geometry.refblock_entries());
    let mut list = list.peekable();
    let mut at = 0;
    let has_any = list.peek().is_some();
    while let Some(first) = list.peek() {
        at = at.max(first.clusters.start);
        let index = at / per_block;
        let end = (index + 1) * per_block;
        let offset = block_offset(engine, index).await?;
        let mut block = engine.file.read(offset, geometry.cluster_size() as usize).await?;
        while let Some(run) = list.peek().filter(|run| run.clusters.start < end) {
            for cluster in run.clusters.start.max(at)..run.clusters.end.min(end) {
                refcount::put(&mut block, order, cluster % per_block, run.count);
            }
            if run.clusters.end > end {
                break;
            }
            list.next();
        }
        engine.file.write(offset, block).await?;
        at = end;
    }
    Ok(has_any)
}

/// Where the block with this number lies.
async fn block_offset(engine: &Arc<Engine>, index: u64) -> Result<u64> {
    let offset = engine.state.lock().header.reftable_offset.0 + index * 8;
    let raw = engine.file.read(offset, 8).await?;
    let raw = raw.first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
    match table::refblock_offset(raw) {
        Some(block) if engine.geometry.is_aligned(block) => Ok(block.0),
        _ => Err(Error::new(ErrorKind::Corrupt, NoBlock(index))),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("refcount block {0} cannot be used")]
struct NoBlock(u64);
