//! The two halves of a check: counting references, and comparing them with the refcounts.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Buf, Result};

use super::Pass;
use super::entries::Entries;
use crate::engine::Engine;
use crate::geometry::{Geometry, HostCluster, HostOffset};
use crate::refcount;
use crate::snapshot::{Fault, Snapshot, SnapshotTable};
use crate::table::{self, L1Entry, Ownership};

/// Bytes read at once where tables lie side by side.
const PIECE_BYTES: u64 = 4 << 20;

/// A table of the active image or of a snapshot.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Active,
    Snapshot,
}

/// An L2 table to be read: where, for which L1 index, in how many L1 tables.
pub(super) struct Table {
    pub offset: HostOffset,
    pub l1_index: u64,
    pub raw: u64,
    pub active: bool,
    pub times: u32,
}

impl Pass {
    /// Counts every reference.
    pub(super) async fn scan(&mut self, engine: &Arc<Engine>) -> Result<()> {
        let geometry = engine.geometry;
        let header = engine.state.lock().header.clone();
        let snapshots = SnapshotTable::read(&engine.file, &header).await?;
        self.report.total_clusters = geometry.clusters_for(header.size);
        self.counts.add(0, 1);
        self.count_bytes(&geometry, header.snapshots_offset, snapshots.table_bytes);
        let reftable_bytes = u64::from(header.reftable_clusters) << geometry.cluster_bits;
        let mut tables = Vec::new();
        let l1_bytes = u64::from(header.l1_entries) * 8;
        self.count_bytes(&geometry, header.l1_offset, l1_bytes);
        self.collect(engine, header.l1_offset, l1_bytes, Owner::Active, &mut tables).await?;
        for (index, snapshot) in snapshots.entries.iter().enumerate() {
            if snapshot.is_incomplete(header.version) {
                self.corruption(format!("ERROR snapshot table entry {index} is incomplete"));
            }
            if let Some(fault) = snapshot.fault(&geometry) {
                self.corruption(describe(snapshot, fault));
                continue;
            }
            let bytes = u64::from(snapshot.l1_entries) * 8;
            self.count_bytes(&geometry, snapshot.l1_offset, bytes);
            self.collect(engine, snapshot.l1_offset, bytes, Owner::Snapshot, &mut tables).await?;
        }
        self.count_bytes(&geometry, header.reftable_offset, reftable_bytes);
        self.scan_tables(engine, tables).await?;
        if let Some(extension) = header.crypto() {
            self.count_bytes(&geometry, extension.offset, extension.len);
        }
        self.scan_bitmaps(engine, &header).await?;
        self.scan_reftable(engine, header.reftable_offset, reftable_bytes).await
    }

    pub(super) fn count_bytes(&mut self, geometry: &Geometry, offset: HostOffset, bytes: u64) {
        let first = geometry.host_cluster(offset).0;
        self.counts.add_range(first..first + geometry.clusters_for(bytes), 1);
    }

    /// Reads an L1 table and notes the L2 tables that it names.
    async fn collect(
        &mut self,
        engine: &Arc<Engine>,
        offset: HostOffset,
        bytes: u64,
        owner: Owner,
        tables: &mut Vec<Table>,
    ) -> Result<()> {
        let geometry = engine.geometry;
        let file_len = engine.file.len();
        let mut broken = Vec::new();
        engine
            .each_entry(offset, bytes, |l1_index, raw| {
                if L1Entry::has_reserved_bits(raw) {
                    broken.push(format!("ERROR found L1 entry with reserved bits set: {raw:x}"));
                }
                if let L1Entry::Table(offset, _) = L1Entry::decode(raw) {
                    if !geometry.is_aligned(offset) {
                        broken.push(format!(
                            "ERROR l2_offset={:x}: Table is not cluster aligned; L1 entry corrupted",
                            offset.0
                        ));
                    } else if offset.0 >= file_len {
                        broken.push(format!(
                            "ERROR l2_offset={:x}: Table is outside the image file; L1 entry corrupted",
                            offset.0
                        ));
                    } else {
                        tables.push(Table {
                            offset,
                            l1_index,
                            raw,
                            active: owner == Owner::Active,
                            times: 1,
                        });
                    }
                }
            })
            .await?;
        broken.into_iter().for_each(|line| self.corruption(line));
        Ok(())
    }

    /// Reads each distinct L2 table once, in file order.
    async fn scan_tables(&mut self, engine: &Arc<Engine>, mut tables: Vec<Table>) -> Result<()> {
        tables.sort_by_key(|t| (t.offset, !t.active, t.l1_index));
        tables.dedup_by(|next, kept| {
            let same = next.offset == kept.offset;
            if same {
                kept.times += next.times;
            }
            same
        });
        let size = engine.geometry.cluster_size();
        let mut at = 0;
        while at < tables.len() {
            let start = tables[at].offset.0;
            let mut end = at + 1;
            while end < tables.len()
                && tables[end].offset.0 == start + (end - at) as u64 * size
                && (end - at) as u64 * size < PIECE_BYTES
            {
                end += 1;
            }
            let piece = engine.file.read(start, (end - at) * size as usize).await?;
            for (i, table) in tables[at..end].iter().enumerate() {
                let bytes = &piece[i * size as usize..(i + 1) * size as usize];
                self.scan_table(engine, table, bytes).await?;
            }
            piece.recycle();
            at = end;
        }
        Ok(())
    }

    async fn scan_table(&mut self, engine: &Arc<Engine>, table: &Table, bytes: &[u8]) -> Result<()> {
        let cluster = engine.geometry.host_cluster(table.offset).0;
        self.counts.add(cluster, table.times);
        if table.active {
            self.check_copied_table(engine, table, cluster).await?;
        }
        let mut entries = Entries::new(engine, table, bytes);
        while let Some(cluster) = self.scan_entries(&mut entries) {
            self.stored.load(engine, cluster).await?;
        }
        Ok(())
    }

    async fn check_copied_table(&mut self, engine: &Arc<Engine>, table: &Table, cluster: u64) -> Result<()> {
        let refcount = self.stored_refcount(engine, cluster).await?;
        let flagged = matches!(L1Entry::decode(table.raw), L1Entry::Table(_, Ownership::Private));
        if flagged != (refcount == 1) {
            self.wrong_flag(format!(
                "ERROR OFLAG_COPIED L2 cluster: l1_index={} l1_entry={:x} refcount={refcount}",
                table.l1_index, table.raw
            ));
        }
        Ok(())
    }

    async fn stored_refcount(&mut self, engine: &Arc<Engine>, cluster: u64) -> Result<u64> {
        match self.stored.get(cluster) {
            Some(refcount) => Ok(refcount),
            None => self.stored.load(engine, cluster).await,
        }
    }

    /// Counts the refcount blocks themselves.
    async fn scan_reftable(&mut self, engine: &Arc<Engine>, offset: HostOffset, bytes: u64) -> Result<()> {
        let geometry = engine.geometry;
        let file_len = engine.file.len();
        let mut lines = Vec::new();
        let counts = &mut self.counts;
        let mut doubled = Vec::new();
        engine
            .each_entry(offset, bytes, |index, raw| {
                if table::reftable_has_reserved_bits(raw) {
                    lines.push(format!("ERROR refcount table entry {index} has reserved bits set"));
                }
                let Some(block) = table::refblock_offset(raw) else { return };
                if !geometry.is_aligned(block) {
                    lines.push(format!(
                        "ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted"
                    ));
                } else if block.0 >= file_len {
                    lines.push(format!("ERROR refcount block {index} is outside image"));
                } else {
                    let cluster = geometry.host_cluster(block).0;
                    counts.add(cluster, 1);
                    doubled.push((index, cluster));
                }
            })
            .await?;
        for (index, cluster) in doubled {
            let count = self.counts.get(cluster);
            if count != 1 {
                lines.push(format!("ERROR refcount block {index} refcount={count}"));
            }
        }
        lines.into_iter().for_each(|line| self.corruption(line));
        Ok(())
    }

    /// Compares the counts with the refcounts, block by block.
    pub(super) async fn compare(&mut self, engine: &Arc<Engine>) -> Result<()> {
        let geometry = engine.geometry;
        let per_block = geometry.refblock_entries();
        let end = self.counts.end();
        let mut end_in_use = end;
        let mut next = 0;
        for (index, block) in self.stored.places() {
            let first = index * per_block;
            self.missing(next..first.min(end));
            next = first + per_block;
            let content = engine.file.read(block.0, geometry.cluster_size() as usize).await?;
            end_in_use = end_in_use.max(self.compare_block(&geometry, first, &content));
            content.recycle();
        }
        self.missing(next..end);
        self.report.image_end_offset = geometry.host_offset(HostCluster(end_in_use)).0;
        Ok(())
    }

    /// Clusters that no refcount block covers.
    fn missing(&mut self, clusters: Range<u64>) {
        if clusters.is_empty() {
            return;
        }
        let mut found = Vec::new();
        self.counts.each_referenced(clusters, |cluster, count| found.push((cluster, count)));
        found.into_iter().for_each(|(cluster, count)| self.mismatch(cluster, 0, count));
    }

    /// Compares one block; returns one past the last cluster that it counts.
    fn compare_block(&mut self, geometry: &Geometry, first: u64, content: &Buf) -> u64 {
        let order = geometry.refcount_order;
        let (mut end, mut wrong) = (0, Vec::new());
        self.counts.each(first..first + geometry.refblock_entries(), |cluster, count| {
            let refcount = refcount::get(content, order, cluster - first);
            if refcount != 0 {
                end = cluster + 1;
            }
            if refcount != count {
                wrong.push((cluster, refcount, count));
            }
        });
        wrong.into_iter().for_each(|(cluster, refcount, count)| self.mismatch(cluster, refcount, count));
        end
    }

    fn mismatch(&mut self, cluster: u64, refcount: u64, count: u64) {
        if refcount > count {
            self.report.leaks += 1;
            match self.too_high.last_mut() {
                Some((run, value)) if run.end == cluster && *value == count => run.end += 1,
                _ => self.too_high.push((cluster..cluster + 1, count)),
            }
            self.find(format!("Leaked cluster {cluster} refcount={refcount} reference={count}"));
        } else if count > self.refcount_max {
            let offset = cluster << self.cluster_bits;
            self.corruption(format!("ERROR: overflow cluster offset={offset:#x}"));
        } else {
            self.too_low.push((cluster, count));
            self.corruption(format!("ERROR cluster {cluster} refcount={refcount} reference={count}"));
        }
    }
}

fn describe(snapshot: &Snapshot, fault: Fault) -> String {
    let (id, name) = (&snapshot.info.id, &snapshot.info.name);
    let what = match fault {
        Fault::L1Unaligned => {
            format!("l1_offset={:#x}: L1 table is not cluster aligned", snapshot.l1_offset.0)
        }
        Fault::L1TooLarge => format!("l1_size={:#x}: L1 table is too large", snapshot.l1_entries),
    };
    format!("ERROR snapshot {id} ({name}) {what}; snapshot table entry corrupted")
}
