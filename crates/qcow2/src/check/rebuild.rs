//! A new refcount structure beside the old one, from what was counted.
//!
//! Blocks and table lie in clusters that nothing refers to and that the old structure does not name either. They are
//! written, made durable, and switched to by one write in the header's first sector; until then the old structure
//! stands as it was. What the old one occupied is a leak afterwards, which the next step of the repair lowers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use cowbell_block::{Buf, Error, ErrorKind, Result};

use super::counts::{CHUNK, Counts, Mark};
use super::scan::Pass;
use crate::geometry::{Geometry, HostCluster};
use crate::header::REFTABLE_BYTES_MAX;
use crate::refcount;

/// Bytes written at once where blocks lie side by side.
const PIECE_BYTES: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
#[error(
    "the refcount table would need {needed} bytes, more than the {REFTABLE_BYTES_MAX} that images may have"
)]
struct TooLarge {
    needed: u64,
}

/// Where a new structure lies.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The cluster of each block, by its number.
    blocks: BTreeMap<u64, u64>,
    /// The clusters of the table.
    table: Range<u64>,
}

impl Pass {
    /// Writes a new structure and switches to it. `named` are clusters of the old one.
    pub async fn rebuild(&mut self, named: &[u64]) -> Result<()> {
        let geometry = self.format.geometry;
        let mut taken = std::mem::take(&mut self.beyond);
        taken.extend(named.iter().map(|cluster| *cluster..cluster + 1));
        let plan = plan(&mut self.counts, &geometry, &merged(taken))?;
        self.write_blocks(&plan).await?;
        let clusters = plan.table.end - plan.table.start;
        let mut table = Buf::zeroed((clusters << geometry.cluster_bits) as usize);
        for (index, cluster) in &plan.blocks {
            let at = *index as usize * 8;
            table[at..at + 8].copy_from_slice(&(cluster << geometry.cluster_bits).to_be_bytes());
        }
        let offset = geometry.host_offset(HostCluster(plan.table.start));
        self.engine.file.write(offset.0, table).await?;
        self.engine.barrier().await?;
        self.engine
            .update_header(|header| {
                header.reftable_offset = offset;
                header.reftable_clusters = clusters as u32;
            })
            .await?;
        self.engine.barrier().await
    }

    async fn write_blocks(&self, plan: &Plan) -> Result<()> {
        let geometry = self.format.geometry;
        let size = geometry.cluster_size() as usize;
        let mut by_place: Vec<(u64, u64)> =
            plan.blocks.iter().map(|(index, cluster)| (*cluster, *index)).collect();
        by_place.sort_unstable();
        let most = (PIECE_BYTES / size).max(1);
        let mut at = 0;
        while at < by_place.len() {
            let first = by_place[at].0;
            let row = by_place[at..].iter().zip(first..).take(most).take_while(|(b, c)| b.0 == *c).count();
            let mut piece = Buf::zeroed(row * size);
            for ((_, index), block) in by_place[at..at + row].iter().zip(piece.chunks_exact_mut(size)) {
                fill(&self.counts, &geometry, *index, block);
            }
            self.engine.file.write(first << geometry.cluster_bits, piece).await?;
            at += row;
        }
        Ok(())
    }
}

/// Writes the counts of one block into its bytes.
fn fill(counts: &Counts, geometry: &Geometry, index: u64, block: &mut [u8]) {
    let (order, max) = (geometry.refcount_order, geometry.refcount_max());
    let first = index * geometry.refblock_entries();
    let mut at = first;
    while at < first + geometry.refblock_entries() {
        let end = ((at / CHUNK + 1) * CHUNK).min(first + geometry.refblock_entries());
        counts.each_named(at..end, |cluster, cell| {
            refcount::put(block, order, cluster - first, cell.count.min(max));
        });
        at = end;
    }
}

/// Finds room for the blocks and the table, and counts them.
fn plan(counts: &mut Counts, geometry: &Geometry, taken: &[Range<u64>]) -> Result<Plan> {
    let mut room = Room { counts, taken, first_free: 0 };
    let mut blocks = BTreeMap::new();
    let mut wanted = room.blocks_in_use(geometry);
    room.place_blocks(geometry, &mut wanted, &mut blocks);
    loop {
        let entries = blocks.keys().next_back().map_or(1, |last| last + 1);
        let clusters = geometry.clusters_for(entries * 8);
        if clusters << geometry.cluster_bits > REFTABLE_BYTES_MAX {
            let needed = clusters << geometry.cluster_bits;
            return Err(Error::new(ErrorKind::TooLarge, TooLarge { needed }));
        }
        room.first_free = 0;
        let table = room.take(clusters);
        let per_block = geometry.refblock_entries();
        let mut wanted: BTreeSet<u64> = (table.start / per_block..=(table.end - 1) / per_block).collect();
        room.place_blocks(geometry, &mut wanted, &mut blocks);
        let entries = blocks.keys().next_back().map_or(1, |last| last + 1);
        if geometry.clusters_for(entries * 8) <= clusters {
            return Ok(Plan { blocks, table });
        }
        // The table must be longer: what was taken for it is free again.
        room.release(table);
    }
}

/// Free clusters, as counted.
struct Room<'a> {
    counts: &'a mut Counts,
    /// Clusters to keep clear of, in order.
    taken: &'a [Range<u64>],
    /// Nothing is free before this one.
    first_free: u64,
}

impl Room<'_> {
    /// Numbers of the blocks that count something.
    fn blocks_in_use(&self, geometry: &Geometry) -> BTreeSet<u64> {
        let per_block = geometry.refblock_entries();
        let (mut found, mut last) = (BTreeSet::new(), u64::MAX);
        for key in self.counts.chunk_keys() {
            self.counts.each_named(key * CHUNK..(key + 1) * CHUNK, |cluster, cell| {
                if cell.count > 0 && cluster / per_block != last {
                    last = cluster / per_block;
                    found.insert(last);
                }
            });
        }
        found
    }

    /// Gives each block that is wanted a cluster, in the part that it counts if there is room, and the blocks that
    /// count those clusters in turn. The reference places them alike.
    fn place_blocks(
        &mut self,
        geometry: &Geometry,
        wanted: &mut BTreeSet<u64>,
        blocks: &mut BTreeMap<u64, u64>,
    ) {
        let per_block = geometry.refblock_entries();
        while let Some(index) = wanted.pop_first() {
            if blocks.contains_key(&index) {
                continue;
            }
            self.first_free = self.first_free.max(index * per_block);
            let cluster = self.take(1).start;
            blocks.insert(index, cluster);
            wanted.insert(cluster / per_block);
        }
    }

    /// Takes the first free clusters in a row.
    fn take(&mut self, count: u64) -> Range<u64> {
        let mut start = self.first_free;
        let mut end = start;
        while end - start < count {
            let at = self.taken.partition_point(|range| range.end <= end);
            let taken = self.taken.get(at).is_some_and(|range| range.contains(&end));
            let used = taken || self.counts.get(end) != 0;
            end += 1;
            if used {
                start = end;
            }
        }
        if count == 1 {
            self.first_free = end;
        }
        self.counts.add_range(start..end, 1, Mark::None);
        start..end
    }

    fn release(&mut self, clusters: Range<u64>) {
        clusters.for_each(|cluster| self.counts.clear(cluster));
    }
}

/// The same clusters as ranges in order that do not touch.
pub(super) fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, kept| {
        let touches = next.start <= kept.end;
        if touches {
            kept.end = kept.end.max(next.end);
        }
        touches
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(used: &[Range<u64>], taken: &[Range<u64>], geometry: &Geometry) -> (Plan, Counts) {
        let mut counts = Counts::new();
        used.iter().for_each(|r| counts.add_range(r.clone(), 1, Mark::None));
        let plan = plan(&mut counts, geometry, taken).expect("fits");
        (plan, counts)
    }

    #[test]
    fn a_structure_counts_itself() {
        // 64 refcounts of 64 bits in a block of 512 bytes.
        let geometry = Geometry::new(9, 6, 512);
        let (plan, counts) = planned(&[0..64, 130..131], std::slice::from_ref(&(64..65)), &geometry);
        // Block 0 finds its part full; the cluster that the old structure names is left alone.
        assert_eq!(plan.blocks, BTreeMap::from([(0, 65), (1, 66), (2, 128)]));
        assert_eq!(plan.table, 67..68);
        let all: Vec<u64> = plan.blocks.values().copied().chain(plan.table.clone()).collect();
        assert!(all.iter().all(|cluster| counts.get(*cluster) == 1));
        assert!(all.iter().all(|cluster| plan.blocks.contains_key(&(cluster / 64))));
    }

    #[test]
    fn a_table_that_needs_more_entries_for_itself_grows() {
        let geometry = Geometry::new(9, 6, 512);
        // 63 blocks and a bit: the table's own clusters need the block that makes it longer.
        let (plan, _) = planned(std::slice::from_ref(&(0..64 * 64 - 64)), &[], &geometry);
        let entries = plan.blocks.keys().next_back().expect("blocks") + 1;
        assert!((plan.table.end - plan.table.start) * 64 >= entries);
        assert!((plan.table.start..plan.table.end).all(|c| plan.blocks.contains_key(&(c / 64))));
    }
}
