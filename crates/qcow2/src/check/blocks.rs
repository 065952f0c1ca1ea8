//! The refcount structure: where its blocks lie, and what is wrong with the table that names them.

use cowbell_block::{Finding, Fix, Result, Topic};

use super::counts::Mark;
use super::log::Log;
use super::scan::Pass;
use super::topics;
use crate::table;

/// The refcount blocks as the table names them.
#[derive(Default)]
pub(super) struct Blocks {
    /// Blocks that can be read: number and offset, in order. Beyond the end of the file they are zeroes.
    pub readable: Vec<(u64, u64)>,
    /// Numbers of blocks that no refcount can be looked up in.
    pub unreadable: Vec<(u64, u64)>,
    /// Clusters that the table names in whatever way: a new structure keeps clear of them.
    pub named: Vec<u64>,
    /// Nothing but a new structure helps.
    pub rebuild: bool,
}

impl Blocks {
    /// Whether a refcount in the block with this number can be changed where it is.
    pub fn can_count(&self, index: u64, file_len: u64) -> bool {
        let at = self.readable.binary_search_by_key(&index, |(index, _)| *index);
        at.is_ok_and(|at| self.readable[at].1 < file_len)
    }

    /// One past the last block's number.
    pub fn end(&self) -> u64 {
        self.readable.last().map_or(0, |(index, _)| index + 1)
    }
}

impl Pass {
    /// Reads the refcount table, counts the blocks that it names, and judges its entries.
    pub async fn scan_blocks(&mut self, log: &mut Log) -> Result<Blocks> {
        let geometry = self.format.geometry;
        let bytes = u64::from(self.header.reftable_clusters) << geometry.cluster_bits;
        let bytes = bytes.min(self.format.file_len.saturating_sub(self.header.reftable_offset.0));
        let mut entries = Vec::new();
        let engine = self.engine.clone();
        let bytes = bytes.next_multiple_of(8);
        engine.each_entry(self.header.reftable_offset, bytes, |i, raw| entries.push((i, raw))).await?;
        let mut blocks = Blocks::default();
        for (index, raw) in entries {
            self.scan_block(log, &mut blocks, index, raw);
        }
        Ok(blocks)
    }

    fn scan_block(&mut self, log: &mut Log, blocks: &mut Blocks, index: u64, raw: u64) {
        let geometry = self.format.geometry;
        let reserved = table::reftable_has_reserved_bits(raw);
        if reserved {
            let line = format!("ERROR refcount table entry {index} has reserved bits set");
            log.corruption(self.about_entry(topics::REFCOUNT_TABLE, index, line));
            blocks.rebuild = true;
        }
        let Some(block) = table::refblock_offset(raw) else { return };
        let cluster = geometry.host_cluster(block).0;
        blocks.named.extend([cluster, cluster + 1]);
        match geometry.is_aligned(block) {
            true => blocks.readable.push((index, block.0)),
            false => blocks.unreadable.push((index, block.0)),
        }
        if reserved {
            return;
        }
        if !geometry.is_aligned(block) {
            let line = format!(
                "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
            );
            log.corruption(self.about_entry(topics::REFCOUNT_TABLE, index, line));
            blocks.rebuild = true;
        } else if cluster >= self.clusters_known() {
            self.block_outside(log, blocks, index);
        } else {
            self.counts.add(cluster, 1, Mark::None);
            let count = self.counts.get(cluster);
            // Also where a refcount cannot hold more than 1: nothing may be written to such a block.
            blocks.rebuild |= count != 1;
            let count = count.min(geometry.refcount_max());
            if count != 1 {
                let line = format!("ERROR refcount block {index} refcount={count}");
                log.corruption(
                    Finding::new(topics::REFCOUNT_BLOCK, line).in_file(block.0, geometry.cluster_size()),
                );
            }
        }
    }

    /// A block beyond the end of the file. The reference makes the file so long; a new structure is as good and cannot
    /// be made to fill a disk.
    fn block_outside(&mut self, log: &mut Log, blocks: &mut Blocks, index: u64) {
        if self.fix == Fix::All {
            let line = format!("Repairing refcount block {index} is outside image");
            log.line(self.about_entry(topics::REFCOUNT_TABLE, index, line));
            log.report.corruptions_fixed += 1;
            blocks.rebuild = true;
        } else {
            let line = format!("ERROR refcount block {index} is outside image");
            log.corruption(self.about_entry(topics::REFCOUNT_TABLE, index, line));
        }
    }

    /// A finding about an entry of the refcount table.
    fn about_entry(&self, topic: &'static Topic, index: u64, line: String) -> Finding {
        Finding::new(topic, line).in_file(self.header.reftable_offset.0 + index * 8, 8)
    }

    /// Clusters of the file, or up to the last one referenced.
    pub fn clusters_known(&self) -> u64 {
        self.format.geometry.clusters_for(self.format.file_len).max(self.counts.end())
    }

    /// Says which clusters have more references than a refcount can hold. The counts stay as they are.
    pub fn tell_overflows(&self, log: &mut Log) {
        let max = self.format.geometry.refcount_max();
        for (cluster, count) in self.counts.above(max) {
            let times = count - max;
            log.report.corruptions = log.report.corruptions.saturating_add(times);
            let offset = cluster << self.format.geometry.cluster_bits;
            let size = self.format.geometry.cluster_size();
            log.line_with(|| {
                let line = format!("ERROR: overflow cluster offset=0x{offset:x}");
                Finding::new(topics::REFCOUNT_OVERFLOW, line).in_file(offset, size)
            });
            log.line_with(|| {
                "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if \
                 the image cannot be opened for writing"
                    .to_owned()
                    .into()
            });
        }
    }
}
