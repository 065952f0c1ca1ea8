//! The refcount structure: where its blocks lie, and whether they say what was counted.

use std::ops::Range;

use cowbell_block::{Fix, Result};

use super::counts::{CHUNK, Cell, Mark};
use super::log::Log;
use super::scan::Pass;
use crate::refcount;
use crate::table;

/// The refcount blocks as the table names them.
#[derive(Default)]
pub(super) struct Blocks {
    /// Blocks that can be read: number and offset, in order. Beyond the end of the file they are zeroes.
    readable: Vec<(u64, u64)>,
    /// Numbers of blocks that no refcount can be looked up in.
    unreadable: Vec<(u64, u64)>,
    /// Clusters that the table names in whatever way: a new structure keeps clear of them.
    pub named: Vec<u64>,
    /// Nothing but a new structure helps.
    pub rebuild: bool,
}

/// Clusters in a row whose refcount is wrong in the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    pub clusters: Range<u64>,
    /// As stored.
    pub refcount: u64,
    /// As counted.
    pub count: u64,
}

/// What comes out of comparing.
#[derive(Default)]
pub(super) struct Comparison {
    pub mismatches: Vec<Mismatch>,
    /// Some flag contradicts its refcount.
    pub wrong_flags: bool,
    /// Some cluster is referenced and counted by no block.
    pub uncounted: bool,
    /// Some refcounts were repaired.
    pub fixed: bool,
    /// One past the last cluster in use.
    end: u64,
    /// Nothing is looked at from here on.
    limit: u64,
    /// Clusters with a wrong refcount.
    wrong: u64,
    /// Clusters whose refcount cannot be read.
    unreadable: Vec<Range<u64>>,
    /// The number and the offset of the first such block.
    unreadable_first: Option<(u64, u64)>,
}

/// What stands in for blocks that are not there.
struct Blank {
    zeroes: Vec<u8>,
    /// The chunks of clusters that are referenced, in order.
    keys: Vec<u64>,
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
            log.corruption(format!("ERROR refcount table entry {index} has reserved bits set"));
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
            log.corruption(format!(
                "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
            ));
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
                log.corruption(format!("ERROR refcount block {index} refcount={count}"));
            }
        }
    }

    /// A block beyond the end of the file. The reference makes the file so long; a new structure is as good and cannot
    /// be made to fill a disk.
    fn block_outside(&mut self, log: &mut Log, blocks: &mut Blocks, index: u64) {
        if self.fix == Fix::All {
            log.line(format!("Repairing refcount block {index} is outside image"));
            log.report.corruptions_fixed += 1;
            blocks.rebuild = true;
        } else {
            log.corruption(format!("ERROR refcount block {index} is outside image"));
        }
    }

    /// Clusters of the file, or up to the last one referenced.
    fn clusters_known(&self) -> u64 {
        self.format.geometry.clusters_for(self.format.file_len).max(self.counts.end())
    }

    /// Says which clusters have more references than a refcount can hold. The counts stay as they are.
    pub fn tell_overflows(&self, log: &mut Log) {
        let max = self.format.geometry.refcount_max();
        for (cluster, count) in self.counts.above(max) {
            let times = count - max;
            log.report.corruptions = log.report.corruptions.saturating_add(times);
            let offset = cluster << self.format.geometry.cluster_bits;
            log.line_with(|| format!("ERROR: overflow cluster offset=0x{offset:x}"));
            log.line_with(|| {
                "Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if \
                 the image cannot be opened for writing"
                    .to_owned()
            });
        }
    }

    /// Compares what was counted with what the blocks say. Looks beyond the end of the file as well, unless the
    /// structure is so broken that what it says there is noise.
    pub async fn compare(&mut self, blocks: &Blocks) -> Result<Comparison> {
        let geometry = self.format.geometry;
        let (per_block, size) = (geometry.refblock_entries(), geometry.cluster_size());
        let mut found = Comparison::default();
        let known = self.clusters_known();
        found.limit = if blocks.rebuild { known } else { u64::MAX };
        for (index, offset) in &blocks.unreadable {
            let clusters = index * per_block..((index + 1) * per_block).min(known);
            if !clusters.is_empty() {
                found.unreadable.push(clusters);
                found.unreadable_first.get_or_insert((*index, *offset));
            }
        }
        let blank = Blank { zeroes: vec![0; size as usize], keys: self.counts.chunk_keys() };
        let mut next = 0;
        let mut last: Option<(u64, cowbell_block::Buf)> = None;
        let limit = found.limit;
        for (index, offset) in blocks.readable.iter().filter(|(i, _)| i * per_block < limit) {
            self.compare_rest(&mut found, &blank, next..index * per_block);
            next = (index + 1) * per_block;
            if *offset >= self.format.file_len {
                self.compare_rest(&mut found, &blank, index * per_block..next);
                continue;
            }
            // A hostile table may name one block again and again.
            if last.as_ref().is_none_or(|(at, _)| at != offset) {
                if let Some((_, old)) = last.take() {
                    old.recycle();
                }
                last = Some((*offset, self.engine.file.read(*offset, size as usize).await?));
            }
            let (_, content) = last.as_ref().expect("just read");
            self.compare_block(&mut found, *index, content);
        }
        self.compare_rest(&mut found, &blank, next..u64::MAX);
        Ok(found)
    }

    /// Compares clusters that no block counts.
    fn compare_rest(&self, found: &mut Comparison, blank: &Blank, clusters: Range<u64>) {
        let per_block = self.format.geometry.refblock_entries();
        let before = found.wrong;
        let mut done = clusters.start;
        let from = blank.keys.partition_point(|key| (key + 1) * CHUNK <= clusters.start);
        let touched = blank.keys[from..].iter().take_while(|key| **key * CHUNK < clusters.end);
        for chunk in touched.map(|key| key * CHUNK..(key + 1) * CHUNK) {
            let first = chunk.start.max(done) / per_block;
            for index in first..chunk.end.min(clusters.end).div_ceil(per_block) {
                if index * per_block >= done {
                    self.compare_block(found, index, &blank.zeroes);
                    done = (index + 1) * per_block;
                }
            }
        }
        found.uncounted |= found.wrong > before;
    }

    fn compare_block(&self, found: &mut Comparison, index: u64, content: &[u8]) {
        let geometry = self.format.geometry;
        let (order, per_block) = (geometry.refcount_order, geometry.refblock_entries());
        let block = index * per_block;
        if found.is_unreadable(block) {
            return;
        }
        let mut at = block;
        while at < (block + per_block).min(found.limit) {
            let end = ((at / CHUNK + 1) * CHUNK).min(block + per_block).min(found.limit);
            let bytes = &content[bytes_for(order, at - block)..bytes_up_to(order, end - block)];
            let agrees = (order == 4).then(|| self.counts.agrees_with(at, bytes)).flatten();
            match agrees {
                Some(true) => self.extend_end(found, order, at, bytes),
                _ => self.compare_closely(found, order, at..end, bytes),
            }
            at = end;
        }
    }

    /// Finds the last cluster in use among those that agree.
    fn extend_end(&self, found: &mut Comparison, order: u32, first: u64, bytes: &[u8]) {
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            found.end = found.end.max(first + ((last as u64 * 8) >> order) + 1);
        }
    }

    fn compare_closely(&self, found: &mut Comparison, order: u32, clusters: Range<u64>, bytes: &[u8]) {
        let max = self.format.geometry.refcount_max();
        let first = clusters.start;
        let unnamed = |found: &mut Comparison, range: Range<u64>| {
            let stored = bytes_for(order, range.start - first)..bytes_for(order, range.end - first);
            if order >= 3 && bytes[stored].iter().all(|byte| *byte == 0) {
                return;
            }
            for cluster in range {
                found.judge(cluster, refcount::get(bytes, order, cluster - first), 0);
            }
        };
        let mut next = first;
        self.counts.each_named(clusters.clone(), |cluster, cell: Cell| {
            unnamed(found, next..cluster);
            next = cluster + 1;
            let refcount = refcount::get(bytes, order, cluster - first);
            found.wrong_flags |= cell.has_wrong_flag(refcount);
            found.judge(cluster, refcount, cell.count.min(max));
        });
        unnamed(found, next..clusters.end);
    }
}

/// The byte of a block in which an entry begins.
fn bytes_for(order: u32, entry: u64) -> usize {
    ((entry << order) / 8) as usize
}

/// One past the last byte of so many entries.
fn bytes_up_to(order: u32, entries: u64) -> usize {
    (entries << order).div_ceil(8) as usize
}

impl Comparison {
    fn is_unreadable(&self, cluster: u64) -> bool {
        let at = self.unreadable.partition_point(|clusters| clusters.end <= cluster);
        self.unreadable.get(at).is_some_and(|clusters| clusters.contains(&cluster))
    }

    fn judge(&mut self, cluster: u64, refcount: u64, count: u64) {
        if refcount | count != 0 {
            self.end = self.end.max(cluster + 1);
        }
        if refcount == count {
            return;
        }
        self.wrong += 1;
        match self.mismatches.last_mut() {
            Some(run) if run.clusters.end == cluster && (run.refcount, run.count) == (refcount, count) => {
                run.clusters.end += 1;
            }
            _ => self.mismatches.push(Mismatch { clusters: cluster..cluster + 1, refcount, count }),
        }
    }

    /// Whether a cluster that is referenced has refcount 0. The reference makes all blocks anew then; we do so only if
    /// there is none that could count the cluster, since that leaves the old ones as leaks if it is cut.
    pub fn has_lost(&self) -> bool {
        self.mismatches.iter().any(|m| m.refcount == 0)
    }

    /// The stored refcount of a cluster, given how often it is referenced; `None` where it cannot be read.
    pub fn refcount(&self, cluster: u64, count: u64) -> Option<u64> {
        if self.is_unreadable(cluster) {
            return None;
        }
        let at = self.mismatches.partition_point(|m| m.clusters.end <= cluster);
        let mismatch = self.mismatches.get(at).filter(|m| m.clusters.contains(&cluster));
        Some(mismatch.map_or(count, |m| m.refcount))
    }

    /// Takes the mismatches out that are repaired.
    pub fn forget_fixed(&mut self, fix: Fix) {
        let before = self.mismatches.len();
        self.mismatches.retain(|m| m.refcount < m.count && fix != Fix::All);
        self.fixed |= self.mismatches.len() < before;
    }

    /// Counts and tells the mismatches; those that `fix` covers as repaired.
    pub fn tell(&self, log: &mut Log, fix: Fix) {
        self.tell_unreadable(log);
        for Mismatch { clusters, refcount, count } in &self.mismatches {
            let n = clusters.end - clusters.start;
            let report = &mut log.report;
            let (word, counter) = match (refcount > count, fix) {
                (true, Fix::None) => ("Leaked", &mut report.leaks),
                (true, _) => ("Repairing", &mut report.leaks_fixed),
                (false, Fix::All) => ("Repairing", &mut report.corruptions_fixed),
                (false, _) => ("ERROR", &mut report.corruptions),
            };
            *counter = counter.saturating_add(n);
            for cluster in clusters.clone() {
                log.line_with(|| format!("{word} cluster {cluster} refcount={refcount} reference={count}"));
            }
        }
    }

    fn tell_unreadable(&self, log: &mut Log) {
        if let Some((index, offset)) = self.unreadable_first {
            let zero = if index == 0 { "" } else { "0x" };
            log.line(format!(
                "qcow2: Image is corrupt: Refblock offset {offset:#x} unaligned (reftable index: {zero}{index:x}); \
                 further non-fatal corruption events will be suppressed"
            ));
        }
        for clusters in &self.unreadable {
            log.report.check_errors += clusters.end - clusters.start;
            for cluster in clusters.clone() {
                log.line_with(|| format!("Can't get refcount for cluster {cluster}: Input/output error"));
            }
        }
    }

    /// One past the last cluster in use, at least the header's.
    pub fn end(&self) -> u64 {
        self.end.max(1)
    }
}
