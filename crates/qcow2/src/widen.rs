//! Refcounts of another width: a whole new structure behind everything else in the file.
//!
//! ```text
//!   everything in use | new blocks | new table
//! ```
//!
//! The new structure counts itself, and no longer the blocks and the table in use. Until the header names it nothing
//! refers to it, so a cut before that leaves a file that is longer than need be.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Buf, DebugEvent, Error, ErrorKind, Result};

use crate::engine::{Engine, NO_CAUSE};
use crate::geometry::{Geometry, HostCluster, HostOffset};
use crate::header::REFTABLE_BYTES_MAX;
use crate::refcount;
use crate::table;

/// A refcount table that is in the file, and not in use.
pub(crate) struct NewRefcounts {
    pub offset: HostOffset,
    pub clusters: u32,
}

/// Refcounts that cannot be kept in another width.
#[derive(Debug, thiserror::Error)]
enum WidthError {
    #[error(
        "Cannot decrease refcount entry width to {bits} bits: Cluster at offset {offset:#x} has a refcount of {count}"
    )]
    TooNarrow { bits: u32, offset: u64, count: u64 },
    #[error(
        "the refcount table would need {0} bytes, more than the {REFTABLE_BYTES_MAX} that images may have"
    )]
    TableTooLarge(u64),
}

/// Where the new structure lies.
struct Layout {
    geometry: Geometry,
    /// The blocks that exist, by their number in the table.
    blocks: BTreeSet<u64>,
    /// Clusters of the blocks and, behind them, of the table.
    own: Range<u64>,
    table_clusters: u64,
    /// Clusters of the structure in use, which loses them.
    old: BTreeSet<u64>,
}

impl Engine {
    /// Writes refcounts with entries of `2^order` bits. The caller holds the whole disk, and all refcounts are in the
    /// file.
    ///
    /// # Errors
    /// A refcount does not fit the width: nothing refers to what was written. Or the file's.
    pub(crate) async fn build_refcounts(self: &Arc<Self>, order: u32) -> Result<NewRefcounts> {
        let layout = self.lay_out(self.geometry.with_refcounts(order)).await?;
        let geometry = &layout.geometry;
        let first = layout.own.start;
        let mut table = Buf::zeroed((layout.table_clusters << geometry.cluster_bits) as usize);
        self.file.announce(DebugEvent::RefblockAllocWriteBlocks, NO_CAUSE).await;
        for (i, index) in layout.blocks.iter().enumerate() {
            let place = geometry.host_offset(HostCluster(first + i as u64));
            let block = self.fill_block(&layout, *index).await?;
            self.file.write(place.0, block).await?;
            let at = *index as usize * 8;
            table[at..at + 8].copy_from_slice(&place.0.to_be_bytes());
        }
        let offset = geometry.host_offset(HostCluster(first + layout.blocks.len() as u64));
        self.file.announce(DebugEvent::RefblockAllocWriteTable, NO_CAUSE).await;
        self.file.write(offset.0, table).await?;
        self.barrier().await?;
        Ok(NewRefcounts { offset, clusters: layout.table_clusters as u32 })
    }

    async fn lay_out(self: &Arc<Self>, geometry: Geometry) -> Result<Layout> {
        let (offset, clusters) = {
            let header = &self.state.lock().header;
            (header.reftable_offset, u64::from(header.reftable_clusters))
        };
        let first = geometry.host_cluster(offset).0;
        let mut old: BTreeSet<u64> = (first..first + clusters).collect();
        let (old_span, new_span) = (self.geometry.refblock_entries(), geometry.refblock_entries());
        let mut blocks = BTreeSet::new();
        self.each_entry(offset, clusters << geometry.cluster_bits, |index, raw| {
            if let Some(block) = table::refblock_offset(raw) {
                old.insert(geometry.host_cluster(block).0);
                blocks.extend(index * old_span / new_span..=((index + 1) * old_span - 1) / new_span);
            }
        })
        .await?;
        let start = geometry.clusters_for(self.file.len());
        let mut table_clusters = 1;
        loop {
            let end = start + blocks.len() as u64 + table_clusters;
            let before = (blocks.len(), table_clusters);
            blocks.extend(start / new_span..=(end - 1) / new_span);
            let entries = blocks.last().map_or(1, |last| last + 1);
            table_clusters = table_clusters.max(geometry.clusters_for(entries * 8));
            if before == (blocks.len(), table_clusters) {
                break;
            }
        }
        let bytes = table_clusters << geometry.cluster_bits;
        if bytes > REFTABLE_BYTES_MAX {
            return Err(Error::new(ErrorKind::TooLarge, WidthError::TableTooLarge(bytes)));
        }
        let own = start..start + blocks.len() as u64 + table_clusters;
        Ok(Layout { geometry, blocks, own, table_clusters, old })
    }

    async fn fill_block(self: &Arc<Self>, layout: &Layout, index: u64) -> Result<Buf> {
        let geometry = &layout.geometry;
        let (order, span) = (geometry.refcount_order, geometry.refblock_entries());
        let mut block = Buf::zeroed(geometry.cluster_size() as usize);
        for entry in 0..span {
            let cluster = index * span + entry;
            let count = match cluster {
                _ if layout.own.contains(&cluster) => 1,
                _ if layout.old.contains(&cluster) => 0,
                _ => self.decide(NO_CAUSE, |state| state.refcount(cluster)).await?,
            };
            if count > geometry.refcount_max() {
                let offset = geometry.host_offset(HostCluster(cluster)).0;
                let error = WidthError::TooNarrow { bits: 1 << order, offset, count };
                return Err(Error::new(ErrorKind::InvalidInput, error));
            }
            if count > 0 {
                let bytes = refcount::bytes_of(order, entry);
                refcount::set(&mut block[bytes.start as usize..bytes.end as usize], order, entry, count);
            }
        }
        Ok(block)
    }
}
