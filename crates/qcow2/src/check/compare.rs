//! Whether the refcount blocks say what was counted.
//!
//! Memory follows what the blocks have on disk: wrong refcounts are kept as runs of clusters that are wrong in the
//! same way, and where a block has so many runs that they would take more than itself, the block is kept instead and
//! compared again when its runs are asked for. So a hostile image cannot make the list longer than its file.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Buf, Finding, Fix, Result};

use super::blocks::Blocks;
use super::counts::{CHUNK, Cell, Counts};
use super::log::Log;
use super::scan::Pass;
use super::topics;
use crate::geometry::Geometry;
use crate::refcount;
use crate::state::Hex;

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
    /// Some flag contradicts its refcount.
    pub wrong_flags: bool,
    /// Some cluster is referenced and counted by no block.
    pub uncounted: bool,
    /// Some refcounts were repaired.
    pub fixed: bool,
    /// In order, except those in `whole`.
    runs: Vec<Mismatch>,
    /// Blocks with too many runs, by number: as stored.
    whole: Vec<(u64, Arc<[u8]>)>,
    /// The stored content of blocks that are kept, by offset: a table may name one again and again.
    kept: BTreeMap<u64, Arc<[u8]>>,
    /// One past the last cluster in use.
    end: u64,
    /// Nothing is looked at from here on.
    limit: u64,
    /// Clusters with a refcount that is too high, too low, and 0 where there are references.
    high: u64,
    low: u64,
    lost: u64,
    /// What has been repaired.
    repaired: Fix,
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

/// The key of what stands in for missing blocks among those that are kept.
const BLANK: u64 = u64::MAX;

/// A block as it is compared.
#[derive(Clone, Copy)]
struct Stored<'a> {
    index: u64,
    offset: u64,
    content: &'a [u8],
}

impl Pass {
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
        let mut last: Option<(u64, Buf)> = None;
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
            self.compare_block(&mut found, Stored { index: *index, offset: *offset, content });
        }
        self.compare_rest(&mut found, &blank, next..u64::MAX);
        found.kept.clear();
        Ok(found)
    }

    /// Compares clusters that no block counts.
    fn compare_rest(&self, found: &mut Comparison, blank: &Blank, clusters: Range<u64>) {
        let per_block = self.format.geometry.refblock_entries();
        let before = found.lost;
        let mut done = clusters.start;
        let from = blank.keys.partition_point(|key| (key + 1) * CHUNK <= clusters.start);
        let touched = blank.keys[from..].iter().take_while(|key| **key * CHUNK < clusters.end);
        for chunk in touched.map(|key| key * CHUNK..(key + 1) * CHUNK) {
            let first = chunk.start.max(done) / per_block;
            for index in first..chunk.end.min(clusters.end).div_ceil(per_block) {
                if index * per_block >= done {
                    self.compare_block(found, Stored { index, offset: BLANK, content: &blank.zeroes });
                    done = (index + 1) * per_block;
                }
            }
        }
        found.uncounted |= found.lost > before;
    }

    fn compare_block(&self, found: &mut Comparison, stored: Stored) {
        let geometry = self.format.geometry;
        let (order, per_block) = (geometry.refcount_order, geometry.refblock_entries());
        let block = stored.index * per_block;
        if found.is_unreadable(block) {
            return;
        }
        let before = (found.runs.len(), found.runs.last().cloned());
        let mut at = block;
        while at < (block + per_block).min(found.limit) {
            let end = ((at / CHUNK + 1) * CHUNK).min(block + per_block).min(found.limit);
            let bytes = &stored.content[bytes_for(order, at - block)..bytes_up_to(order, end - block)];
            let agrees = (order == 4).then(|| self.counts.agrees_with(at, bytes)).flatten();
            match agrees {
                Some(true) => found.extend_end(order, at, bytes),
                _ => self.compare_closely(found, order, at..end, bytes, &stored, &before),
            }
            at = end;
        }
    }

    fn compare_closely(
        &self,
        found: &mut Comparison,
        order: u32,
        clusters: Range<u64>,
        bytes: &[u8],
        stored: &Stored,
        before: &(usize, Option<Mismatch>),
    ) {
        let max = self.format.geometry.refcount_max();
        let first = clusters.start;
        let unnamed = |found: &mut Comparison, range: Range<u64>| {
            let part = bytes_for(order, range.start - first)..bytes_for(order, range.end - first);
            if order >= 3 && bytes[part].iter().all(|byte| *byte == 0) {
                return;
            }
            for cluster in range {
                found.judge(cluster, refcount::get(bytes, order, cluster - first), 0, stored.index);
            }
        };
        let mut next = first;
        self.counts.each_named(clusters.clone(), |cluster, cell: Cell| {
            unnamed(found, next..cluster);
            next = cluster + 1;
            let refcount = refcount::get(bytes, order, cluster - first);
            found.wrong_flags |= cell.has_wrong_flag(refcount);
            found.judge(cluster, refcount, cell.count.min(max), stored.index);
        });
        unnamed(found, next..clusters.end);
        found.keep_shorter(stored, before);
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

    /// Finds the last cluster in use among those that agree.
    fn extend_end(&mut self, order: u32, first: u64, bytes: &[u8]) {
        if let Some(last) = bytes.iter().rposition(|byte| *byte != 0) {
            self.end = self.end.max(first + ((last as u64 * 8) >> order) + 1);
        }
    }

    /// Notes a cluster of the block with this number.
    fn judge(&mut self, cluster: u64, refcount: u64, count: u64, block: u64) {
        if refcount | count != 0 {
            self.end = self.end.max(cluster + 1);
        }
        if refcount == count {
            return;
        }
        self.high += u64::from(refcount > count);
        self.low += u64::from(refcount < count);
        self.lost += u64::from(refcount == 0);
        if self.whole.last().is_some_and(|(index, _)| *index == block) {
            return;
        }
        match self.runs.last_mut() {
            Some(run) if run.clusters.end == cluster && (run.refcount, run.count) == (refcount, count) => {
                run.clusters.end += 1;
            }
            _ => self.runs.push(Mismatch { clusters: cluster..cluster + 1, refcount, count }),
        }
    }

    /// Keeps the block instead of its runs if that is shorter. `before` is where the runs ended before the block.
    fn keep_shorter(&mut self, stored: &Stored, before: &(usize, Option<Mismatch>)) {
        let (len, last) = before;
        let bytes = (self.runs.len() - len) * size_of::<Mismatch>();
        if bytes <= stored.content.len().max(RUNS_BYTES_MIN) {
            return;
        }
        self.runs.truncate(*len);
        if let (Some(place), Some(last)) = (self.runs.last_mut(), last) {
            place.clone_from(last);
        }
        let content = self.kept.entry(stored.offset).or_insert_with(|| stored.content.into()).clone();
        self.whole.push((stored.index, content));
    }

    /// The wrong refcounts that are left, in order.
    pub fn mismatches<'a>(&'a self, counts: &'a Counts, geometry: &'a Geometry) -> Mismatches<'a> {
        Mismatches { comparison: self, counts, geometry, run: 0, whole: 0, inside: None }
    }

    /// Whether a cluster that is referenced has refcount 0. The reference makes all blocks anew then; we do so only if
    /// there is none that could count the cluster, since that leaves the old ones as leaks if it is cut.
    pub fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// The stored refcount of a cluster, given how often it is referenced; `None` where it cannot be read.
    pub fn refcount(&self, cluster: u64, count: u64, geometry: &Geometry) -> Option<u64> {
        if self.is_unreadable(cluster) {
            return None;
        }
        let per_block = geometry.refblock_entries();
        if let Ok(at) = self.whole.binary_search_by_key(&(cluster / per_block), |(index, _)| *index) {
            let refcount = refcount::get(&self.whole[at].1, geometry.refcount_order, cluster % per_block);
            return Some(if self.is_left(refcount, count) { refcount } else { count });
        }
        let at = self.runs.partition_point(|m| m.clusters.end <= cluster);
        let mismatch = self.runs.get(at).filter(|m| m.clusters.contains(&cluster));
        Some(mismatch.filter(|m| self.is_left(m.refcount, m.count)).map_or(count, |m| m.refcount))
    }

    /// Whether a refcount that is stored so, and counted so, is wrong still.
    fn is_left(&self, refcount: u64, count: u64) -> bool {
        match self.repaired {
            Fix::None => refcount != count,
            Fix::Leaks => refcount < count,
            Fix::All => false,
        }
    }

    /// The mismatches that `fix` covers are repaired.
    pub fn forget_fixed(&mut self, fix: Fix) {
        self.repaired = fix;
        self.fixed |= self.high > 0 && fix != Fix::None || self.low > 0 && fix == Fix::All;
    }

    /// Counts and tells the mismatches; those that `fix` covers as repaired.
    pub fn tell(&self, log: &mut Log, fix: Fix, counts: &Counts, geometry: &Geometry) {
        let bits = geometry.cluster_bits;
        self.tell_unreadable(log, bits);
        let report = &mut log.report;
        match fix {
            Fix::None => report.leaks += self.high,
            _ => report.leaks_fixed += self.high,
        }
        match fix {
            Fix::All => report.corruptions_fixed += self.low,
            _ => report.corruptions += self.low,
        }
        let mut untold = self.high + self.low;
        for Mismatch { clusters, refcount, count } in self.mismatches(counts, geometry) {
            let word = match (refcount > count, fix) {
                (true, Fix::None) => "Leaked",
                (true, _) | (false, Fix::All) => "Repairing",
                (false, _) => "ERROR",
            };
            let tail = format!(" refcount={refcount} reference={count}");
            for cluster in clusters {
                if log.is_full() {
                    log.report.findings_omitted += untold;
                    return;
                }
                // There may be one for each cluster of an image: pieces are put together faster than formatted.
                let mut line = String::with_capacity(64);
                line.push_str(word);
                line.push_str(" cluster ");
                push_number(&mut line, cluster);
                line.push_str(&tail);
                let topic = if refcount > count { topics::LEAK } else { topics::REFCOUNT_LOW };
                log.line(Finding::new(topic, line).in_file(cluster << bits, 1 << bits));
                untold -= 1;
            }
        }
    }

    fn tell_unreadable(&self, log: &mut Log, bits: u32) {
        if let Some((index, offset)) = self.unreadable_first {
            let index = Hex(index);
            log.line(format!(
                "qcow2: Image is corrupt: Refblock offset {offset:#x} unaligned (reftable index: {index}); \
                 further non-fatal corruption events will be suppressed"
            ));
        }
        for clusters in &self.unreadable {
            log.report.check_errors += clusters.end - clusters.start;
            for cluster in clusters.clone() {
                if log.is_full() {
                    log.report.findings_omitted += clusters.end - cluster;
                    break;
                }
                let line = format!("Can't get refcount for cluster {cluster}: Input/output error");
                log.line(Finding::new(topics::REFCOUNT_UNREADABLE, line).in_file(cluster << bits, 1 << bits));
            }
        }
    }

    /// One past the last cluster in use, at least the header's.
    pub fn end(&self) -> u64 {
        self.end.max(1)
    }
}

/// Appends a number.
fn push_number(text: &mut String, number: u64) {
    let mut digits = [0; 20];
    let (mut at, mut rest) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    digits[at..].iter().for_each(|digit| text.push(char::from(*digit)));
}

/// Fewer bytes of runs are never worth a block.
const RUNS_BYTES_MIN: usize = 4096;

/// Goes through the wrong refcounts that are left.
pub(super) struct Mismatches<'a> {
    comparison: &'a Comparison,
    counts: &'a Counts,
    geometry: &'a Geometry,
    run: usize,
    whole: usize,
    /// The next cluster of the block that is being gone through.
    inside: Option<u64>,
}

impl Iterator for Mismatches<'_> {
    type Item = Mismatch;

    fn next(&mut self) -> Option<Mismatch> {
        loop {
            let found = self.next_of_any()?;
            if self.comparison.is_left(found.refcount, found.count) {
                return Some(found);
            }
        }
    }
}

impl Mismatches<'_> {
    fn next_of_any(&mut self) -> Option<Mismatch> {
        loop {
            if let Some(at) = self.inside {
                if let Some(found) = self.next_inside(at) {
                    return Some(found);
                }
                self.whole += 1;
                self.inside = None;
            }
            let run = self.comparison.runs.get(self.run);
            let block = self.comparison.whole.get(self.whole);
            let first = block.map(|(index, _)| index * self.geometry.refblock_entries());
            match (run, first) {
                (Some(run), first) if first.is_none_or(|first| run.clusters.start < first) => {
                    self.run += 1;
                    return Some(run.clone());
                }
                (_, Some(first)) => self.inside = Some(first),
                (_, None) => return None,
            }
        }
    }

    /// The next mismatch of the block that is kept, from a cluster on.
    fn next_inside(&mut self, from: u64) -> Option<Mismatch> {
        let (index, content) = self.comparison.whole.get(self.whole)?;
        let (order, per_block) = (self.geometry.refcount_order, self.geometry.refblock_entries());
        let end = ((index + 1) * per_block).min(self.comparison.limit);
        let max = self.geometry.refcount_max();
        let pair = |cluster: u64| {
            let refcount = refcount::get(content, order, cluster % per_block);
            (refcount, self.counts.get(cluster).min(max))
        };
        let start = (from..end).find(|cluster| pair(*cluster).0 != pair(*cluster).1)?;
        let (refcount, count) = pair(start);
        let stop = (start + 1..end).find(|cluster| pair(*cluster) != (refcount, count)).unwrap_or(end);
        self.inside = Some(stop);
        Some(Mismatch { clusters: start..stop, refcount, count })
    }
}
