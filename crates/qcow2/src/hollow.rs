//! Holes of the file below clusters that the tables call data.
//!
//! An image made with `preallocation=metadata` maps every guest cluster before anything was written to it. Its tables know
//! no zeroes; the file does. So precise questions go on to the file, but only in images that look like this: in all
//! others the tables know best, and asking twice would cost for nothing.
//!
//! An image looks preallocated when clearly more clusters are counted than the file holds: a tenth more, and at least two.
//! That is the reference's measure, but for one point. It compares with the bytes stored, and fills up each cluster that a
//! guest writes a part of; we leave the rest a hole, so here a cluster is held if any of it is. Both then draw the same map
//! of what they made. It is a guess, and nothing but the effort depends on it: what the file then says is true in any case.

use std::sync::Arc;

use cowbell_block::{Extent, ExtentFlags, Result};

use crate::engine::Engine;
use crate::{refcount, table};

/// Most bytes of the refcount table read at once.
const PIECE: u64 = 64 << 10;
/// Bytes of refcount blocks that are read in any file.
const READ_AT_LEAST: u64 = 4 << 20;
/// How many more are read for each byte that the file stores: a block can be a hole but for a few of its sectors.
const READ_PER_STORED: u64 = 16;

/// Adds to an extent with data what the file knows of its first part: a hole, or none.
pub(crate) async fn look_below(engine: &Arc<Engine>, extent: &mut Extent) {
    let Some(map) = extent.map.as_ref().filter(|_| extent.flags.contains(ExtentFlags::DATA)) else { return };
    let offset = map.offset;
    if !looks_preallocated(engine).await {
        return;
    }
    // An error only means that nothing more is known.
    let Ok(below) = engine.data().status(offset, extent.len).await else { return };
    let is_hole = below.flags.contains(ExtentFlags::ZERO);
    let is_beyond_file = below.flags.contains(ExtentFlags::EOF) && (below.len == 0 || is_hole);
    extent.flags.set(ExtentFlags::ZERO, is_hole || is_beyond_file);
    if !is_beyond_file && below.len < extent.len {
        extent.len = below.len;
        extent.flags.remove(ExtentFlags::EOF);
    }
}

/// Found out once for an open image.
async fn looks_preallocated(engine: &Arc<Engine>) -> bool {
    if let Some(known) = engine.preallocated.get() {
        return *known;
    }
    // What cannot be read is left to those who need it.
    let found = counts_more_than_is_there(engine).await.unwrap_or(false);
    *engine.preallocated.get_or_init(|| found)
}

async fn counts_more_than_is_there(engine: &Engine) -> Result<bool> {
    let geometry = engine.geometry;
    let Some(stored) = engine.file.node().info().await?.actual_size else { return Ok(false) };
    let clusters = geometry.clusters_for(engine.file.len());
    if clusters < clearly_more_than(stored / geometry.cluster_size()) {
        return Ok(false);
    }
    let many = clearly_more_than(clusters_held(engine).await?);
    Ok(clusters >= many && count_up_to(engine, clusters, many, stored).await?)
}

fn clearly_more_than(clusters: u64) -> u64 {
    (clusters + clusters / 9).max(clusters + 2)
}

/// Clusters of the file of which at least a part is no hole.
async fn clusters_held(engine: &Engine) -> Result<u64> {
    let (bits, end) = (engine.geometry.cluster_bits, engine.file.len());
    let (mut at, mut held, mut next) = (0, 0, 0);
    while at < end {
        let extent = engine.file.status(at, end - at).await?;
        if extent.len == 0 {
            break;
        }
        if !extent.flags.contains(ExtentFlags::ZERO) {
            let (first, last) = ((at >> bits).max(next), (at + extent.len - 1) >> bits);
            held += (last + 1).saturating_sub(first);
            next = last + 1;
        }
        at += extent.len;
    }
    Ok(held)
}

/// Whether at least `many` of the file's first `clusters` have a refcount. Blocks that count lie in storage, so what is
/// read is bounded by the `stored` bytes of the file, whatever its tables claim.
async fn count_up_to(engine: &Engine, clusters: u64, many: u64, stored: u64) -> Result<bool> {
    let geometry = engine.geometry;
    let (start, entries) = {
        let header = &engine.state.lock().header;
        (header.reftable_offset.0, u64::from(header.reftable_clusters) * geometry.cluster_size() / 8)
    };
    let blocks = entries.min(clusters.div_ceil(geometry.refblock_entries()));
    let mut counted = 0;
    let mut left = READ_AT_LEAST.saturating_add(stored.saturating_mul(READ_PER_STORED));
    let mut at = 0;
    while at < blocks {
        let take = (blocks - at).min(PIECE / 8);
        let piece = engine.file.read(start + at * 8, (take * 8) as usize).await?;
        for raw in piece.chunks_exact(8).filter_map(|raw| raw.first_chunk()) {
            let Some(block) = table::refblock_offset(u64::from_be_bytes(*raw)) else { continue };
            let Some(rest) = left.checked_sub(geometry.cluster_size()) else { return Ok(false) };
            left = rest;
            let bytes = engine.file.read(block.0, geometry.cluster_size() as usize).await?;
            counted += refcount::used(&bytes, geometry.refcount_order);
            bytes.recycle();
            if counted >= many {
                return Ok(true);
            }
        }
        at += take;
        piece.recycle();
    }
    Ok(false)
}
