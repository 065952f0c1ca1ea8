//! Counts every reference: the first half of a check.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Finding, Fix, Result, Topic};

use super::counts::{Counts, Mark};
use super::digest::{self, Digest, Format, Lie, Problem};
use super::log::{Log, Place, Unsorted};
use super::snapshots::Snapshots;
use super::topics;
use super::walk::{self, Table, Tables};
use crate::engine::Engine;
use crate::geometry::HostOffset;
use crate::header::Header;
use crate::snapshot::{Fault, Snapshot};
use crate::table::{L1Entry, L2Entry, Ownership};

/// One look at everything.
pub(super) struct Pass {
    pub engine: Arc<Engine>,
    pub header: Header,
    pub snapshots: Snapshots,
    pub format: Format,
    pub fix: Fix,
    pub counts: Counts,
    /// Flags of the active mapping that are wrong whatever the refcounts say.
    pub wrong_flags: bool,
    /// L2 entries that a repair makes zero.
    pub mends: Vec<Mend>,
    /// Clusters beyond the end of the file that something refers to. A repair that makes the file longer puts
    /// nothing of its own there.
    pub beyond: Vec<Range<u64>>,
}

/// An L2 entry that becomes zero.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mend {
    pub table: Table,
    pub index: u32,
}

impl Pass {
    /// Prepares a look at the image as the file has it, with these snapshots.
    pub fn new(engine: &Arc<Engine>, fix: Fix, snapshots: Snapshots) -> Self {
        let header = engine.state.lock().header.clone();
        Self {
            engine: engine.clone(),
            format: Format::new(engine.geometry, &header, engine.file.len()),
            header,
            snapshots,
            fix,
            counts: Counts::new(),
            wrong_flags: false,
            mends: Vec::new(),
            beyond: Vec::new(),
        }
    }

    /// Counts what everything but the refcount blocks refers to.
    pub async fn scan(&mut self, log: &mut Log) -> Result<()> {
        let geometry = self.format.geometry;
        log.report.total_clusters = geometry.clusters_for(self.header.size);
        self.count_region(log, 0, geometry.cluster_size());
        let mut unsorted = Unsorted::default();
        let tables = self.collect(log, &mut unsorted).await?;
        self.scan_tables(log, &tables, &mut unsorted).await?;
        unsorted.tell(log);
        let reftable_bytes = u64::from(self.header.reftable_clusters) << geometry.cluster_bits;
        self.count_region(log, self.header.snapshots_offset.0, self.snapshots.table_bytes);
        if let Some(moved) = self.snapshots.moved.clone() {
            self.counts.add_range(moved, 1, Mark::None);
        }
        self.count_region(log, self.header.reftable_offset.0, reftable_bytes);
        if let Some(extension) = self.header.crypto() {
            self.count_region(log, extension.offset.0, extension.len);
        }
        self.scan_bitmaps(log).await
    }

    /// Counts a region of the file, in one go, if it lies there.
    pub fn count_region(&mut self, log: &mut Log, offset: u64, bytes: u64) {
        if let Some(line) = self.count_or_say(offset, bytes, 1) {
            log.corruption(Finding::new(topics::OUTSIDE, line).in_file(offset, bytes));
        }
    }

    /// Counts a region `times` times, or says what is wrong with it.
    fn count_or_say(&mut self, offset: u64, bytes: u64, times: u64) -> Option<String> {
        if bytes == 0 {
            return None;
        }
        if self.format.is_outside(offset, bytes) {
            self.keep_clear(offset, bytes);
            return Some(digest::outside(offset, bytes));
        }
        let bits = self.format.geometry.cluster_bits;
        self.counts.add_range(offset >> bits..((offset + bytes - 1) >> bits) + 1, times, Mark::None);
        None
    }

    fn keep_clear(&mut self, offset: u64, bytes: u64) {
        if self.fix == Fix::All {
            let bits = self.format.geometry.cluster_bits;
            self.beyond.push(offset >> bits..(offset.saturating_add(bytes - 1) >> bits) + 1);
        }
    }

    /// Reads all L1 tables; the L2 tables that they name.
    async fn collect(&mut self, log: &mut Log, unsorted: &mut Unsorted) -> Result<Vec<Table>> {
        let mut tables = Tables::default();
        let active = Region {
            owner: 0,
            offset: self.header.l1_offset.0,
            bytes: u64::from(self.header.l1_entries) * 8,
            times: 1,
        };
        let mut regions = vec![];
        self.note_region(log, unsorted, active);
        let snapshots = std::mem::take(&mut self.snapshots.entries);
        for (number, snapshot) in (1u32..).zip(&snapshots) {
            let place = Place { owner: number, l1_index: 0, entry: 0 };
            if let Some(fault) = snapshot.fault(&self.format.geometry) {
                log.report.corruptions += 1;
                unsorted.add(place, 1, &|| describe(number, snapshot, fault));
                continue;
            }
            let region = Region {
                owner: number,
                offset: snapshot.l1_offset.0,
                bytes: u64::from(snapshot.l1_entries) * 8,
                times: 1,
            };
            self.note_region(log, unsorted, region);
            regions.push(region);
        }
        self.snapshots.entries = snapshots;
        self.read_l1(log, unsorted, active, &mut tables).await?;
        for region in split(regions) {
            self.read_l1(log, unsorted, region, &mut tables).await?;
        }
        Ok(tables.finish())
    }

    fn note_region(&mut self, log: &mut Log, unsorted: &mut Unsorted, region: Region) {
        if let Some(line) = self.count_or_say(region.offset, region.bytes, 1) {
            log.report.corruptions += 1;
            let place = Place { owner: region.owner, l1_index: 0, entry: 0 };
            unsorted.add(place, 1, &|| {
                let found = Finding::new(topics::OUTSIDE, line.clone());
                found.in_file(region.offset, region.bytes).of_snapshot(region.owner)
            });
        }
    }

    async fn read_l1(
        &mut self,
        log: &mut Log,
        unsorted: &mut Unsorted,
        region: Region,
        tables: &mut Tables,
    ) -> Result<()> {
        // What lies beyond the end of the file names nothing.
        let bytes = region.bytes.min(self.format.file_len.saturating_sub(region.offset)).next_multiple_of(8);
        let mut entries = Vec::new();
        let engine = self.engine.clone();
        let mut at = 0;
        while at < bytes {
            let piece = bytes.min(at + L1_PIECE) - at;
            let offset = HostOffset(region.offset + at);
            engine.each_entry(offset, piece, |i, raw| entries.push((at / 8 + i, raw))).await?;
            for (index, raw) in entries.drain(..) {
                self.take_l1_entry(log, unsorted, region, index as u32, raw, tables);
            }
            at += piece;
        }
        Ok(())
    }

    fn take_l1_entry(
        &mut self,
        log: &mut Log,
        unsorted: &mut Unsorted,
        region: Region,
        l1_index: u32,
        raw: u64,
        tables: &mut Tables,
    ) {
        let Region { owner, times, .. } = region;
        let place = Place { owner, l1_index, entry: 0 };
        let geometry = self.format.geometry;
        let entry_offset = region.offset + u64::from(l1_index) * 8;
        let mut wrong = |topic: &'static Topic, line: String| {
            log.report.corruptions += times;
            unsorted.add(place, times, &|| {
                Finding::new(topic, line.clone())
                    .in_file(entry_offset, 8)
                    .on_disk(geometry.guest_of_entry(l1_index, 0))
                    .of_snapshot(owner)
            });
        };
        if L1Entry::has_reserved_bits(raw) {
            wrong(topics::RESERVED_BITS, format!("ERROR found L1 entry with reserved bits set: {raw:x}"));
        }
        let (offset, mark) = match L1Entry::decode(raw) {
            L1Entry::Empty => (HostOffset(0), Mark::None),
            L1Entry::Table(offset, _) if owner != 0 => (offset, Mark::None),
            L1Entry::Table(offset, Ownership::Private) => (offset, Mark::Copied),
            L1Entry::Table(offset, Ownership::Shared) => (offset, Mark::Uncopied),
        };
        match self.count_or_say(offset.0, geometry.cluster_size(), times) {
            // Whoever looks its refcount up finds none.
            Some(line) => {
                wrong(topics::OUTSIDE, line);
                self.wrong_flags |= mark == Mark::Copied;
            }
            None => self.counts.add(geometry.host_cluster(offset).0, 0, mark),
        }
        if !geometry.is_aligned(offset) {
            let line =
                format!("ERROR l2_offset={:x}: Table is not cluster aligned; L1 entry corrupted", offset.0);
            wrong(topics::TABLE_UNALIGNED, line);
        }
        let active = u32::from(owner == 0);
        tables.add(Table { offset: offset.0, times, active, owner, l1_index });
    }

    async fn scan_tables(&mut self, log: &mut Log, tables: &[Table], unsorted: &mut Unsorted) -> Result<()> {
        let (engine, format) = (self.engine.clone(), self.format);
        walk::each_table(&engine, format, tables, |table, digest| {
            self.take_table(log, table, digest, unsorted);
        })
        .await
    }

    fn take_table(&mut self, log: &mut Log, table: &Table, digest: Digest, unsorted: &mut Unsorted) {
        let mended = |index: u32| {
            self.fix == Fix::All && digest.problems.iter().any(|(i, p)| *i == index && p.is_mended_by_zero())
        };
        let geometry = self.format.geometry;
        for run in &digest.runs {
            let clusters = run.first_cluster(&geometry)..run.first_cluster(&geometry) + u64::from(run.len);
            let mark = match (table.active, L2Entry::copied_flag(run.raw)) {
                (0, _) => Mark::None,
                // An L1 entry without an offset is no table to those who look at flags.
                _ if table.offset == 0 => Mark::None,
                (_, true) => Mark::Copied,
                (_, false) => Mark::Uncopied,
            };
            match run.lie {
                Lie::Inside => self.counts.add_range(clusters, table.times, mark),
                Lie::Straddling if mended(run.index) => {}
                Lie::Straddling => {
                    self.counts.add(clusters.start, table.times, mark);
                    self.counts.add(clusters.start + 1, table.times, Mark::None);
                }
                // Whoever looks the refcount up finds none.
                Lie::Outside => self.wrong_flags |= mark == Mark::Copied,
                // Such a cluster is private by definition.
                Lie::Elsewhere => self.wrong_flags |= mark == Mark::Uncopied,
            }
        }
        for (_, compressed) in &digest.compressed {
            self.counts.add_range(compressed.clusters(&geometry), table.times, Mark::None);
        }
        let active = u64::from(table.active);
        log.report.allocated_clusters += digest.allocated * active;
        log.report.fragmented_clusters += digest.fragmented * active;
        log.report.compressed_clusters += digest.compressed_count * active;
        for (index, problem) in digest.problems {
            self.take_problem(log, table, index, problem, unsorted);
        }
    }

    fn take_problem(
        &mut self,
        log: &mut Log,
        table: &Table,
        index: u32,
        problem: Problem,
        unsorted: &mut Unsorted,
    ) {
        let mends = self.fix == Fix::All && problem.is_mended_by_zero();
        let (verb, times) = if mends { ("Repairing", 1) } else { ("ERROR", table.times) };
        log.report.corruptions = log.report.corruptions.saturating_add(times);
        let place = Place { owner: table.owner, l1_index: table.l1_index, entry: index + 1 };
        let geometry = self.format.geometry;
        unsorted.add(place, times, &|| {
            Finding::new(problem.topic(), problem.line(verb, index))
                .in_file(
                    table.offset + u64::from(index) * geometry.l2_entry_bytes(),
                    geometry.l2_entry_bytes(),
                )
                .on_disk(geometry.guest_of_entry(table.l1_index, index))
                .of_snapshot(table.owner)
        });
        if let Problem::Outside { offset, bytes } = problem {
            self.keep_clear(offset, bytes);
        }
        if mends {
            self.mends.push(Mend { table: *table, index });
        }
    }
}

/// Bytes of an L1 table whose entries are kept at once.
const L1_PIECE: u64 = 1 << 20;

/// Part of one or more L1 tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    owner: u32,
    offset: u64,
    bytes: u64,
    times: u64,
}

/// Cuts regions that lie upon each other into pieces that do not, with their multiplicity.
fn split(regions: Vec<Region>) -> Vec<Region> {
    let mut edges: Vec<(u64, i64, u32)> = Vec::with_capacity(regions.len() * 2);
    for region in regions.iter().filter(|r| r.bytes > 0) {
        edges.push((region.offset, 1, region.owner));
        edges.push((region.offset.saturating_add(region.bytes), -1, region.owner));
    }
    edges.sort_unstable();
    let (mut pieces, mut depth, mut owner) = (Vec::new(), 0i64, 0);
    for (at, pair) in edges.iter().zip(edges.iter().skip(1)) {
        depth += at.1;
        owner = if at.1 > 0 { at.2 } else { owner };
        if depth > 0 && pair.0 > at.0 {
            pieces.push(Region { owner, offset: at.0, bytes: pair.0 - at.0, times: depth as u64 });
        }
    }
    pieces
}

fn describe(number: u32, snapshot: &Snapshot, fault: Fault) -> Finding {
    let (id, name) = (&snapshot.info.id, &snapshot.info.name);
    let what = match fault {
        Fault::L1Unaligned => {
            format!("l1_offset={:#x}: L1 table is not cluster aligned", snapshot.l1_offset.0)
        }
        Fault::L1TooLarge => format!("l1_size={:#x}: L1 table is too large", snapshot.l1_entries),
    };
    let line = format!("ERROR snapshot {id} ({name}) {what}; snapshot table entry corrupted");
    Finding::new(topics::SNAPSHOT_L1, line).of_snapshot(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_upon_each_other_are_read_once() {
        let region = |owner, offset, bytes, times| Region { owner, offset, bytes, times };
        let all = vec![region(1, 0, 80, 1), region(2, 0, 80, 1), region(3, 40, 80, 1), region(4, 200, 8, 1)];
        let pieces: Vec<(u64, u64, u64)> = split(all).iter().map(|r| (r.offset, r.bytes, r.times)).collect();
        assert_eq!(pieces, [(0, 40, 2), (40, 40, 3), (80, 40, 1), (200, 8, 1)]);
    }
}
