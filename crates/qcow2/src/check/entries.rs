//! The entries of one L2 table: what they refer to, counted and judged.
//!
//! Synchronous, since there are many; it stops where a refcount is not at hand and goes on from there.

use super::Pass;
use super::scan::Table;
use crate::engine::Engine;
use crate::geometry::{DataPlace, Geometry, HostOffset, L2Format};
use crate::table::{Cell, Compressed, L2Entry};

/// A pass over one table.
pub(super) struct Entries<'a> {
    table: &'a Table,
    bytes: &'a [u8],
    geometry: Geometry,
    version: u32,
    file_len: u64,
    index: usize,
    /// Where the next data cluster would lie in a row. The reference starts anew with each table.
    expected: Option<u64>,
}

impl<'a> Entries<'a> {
    pub fn new(engine: &Engine, table: &'a Table, bytes: &'a [u8]) -> Self {
        let version = engine.state.lock().header.version;
        let file_len = engine.file.len();
        Self { table, bytes, geometry: engine.geometry, version, file_len, index: 0, expected: None }
    }

    fn raw(&self, index: usize) -> Option<u64> {
        self.word(index * self.geometry.l2_entry_bytes() as usize)
    }

    /// The bitmap beside an extended entry.
    fn bitmap(&self, index: usize) -> u64 {
        match self.geometry.l2_format {
            L2Format::Standard => 0,
            L2Format::Extended => self.word(index * 16 + 8).unwrap_or(0),
        }
    }

    fn word(&self, at: usize) -> Option<u64> {
        self.bytes.get(at..at + 8)?.first_chunk().map(|b| u64::from_be_bytes(*b))
    }

    /// Clusters of private data in a row, from the current entry on.
    fn run(&self, first: u64) -> usize {
        let size = self.geometry.cluster_size();
        let mut len = 1;
        while self.raw(self.index + len) == Some(first + len as u64 * size) {
            len += 1;
        }
        len
    }
}

impl Pass {
    /// Goes on with a table; returns a cluster whose refcount must be brought, or `None` at the end.
    pub(super) fn scan_entries(&mut self, entries: &mut Entries<'_>) -> Option<u64> {
        while let Some(raw) = entries.raw(entries.index) {
            if raw == 0 && entries.bitmap(entries.index) == 0 {
                entries.index += 1;
                continue;
            }
            let step = self.scan_run(entries, raw).and_then(|n| match n {
                0 => self.scan_entry(entries, raw).map(|()| 1),
                n => Ok(n),
            });
            match step {
                Ok(n) => entries.index += n,
                Err(cluster) => return Some(cluster),
            }
        }
        None
    }

    /// Takes a run of private data clusters at once if nothing is wrong with any of them; 0 if it is no such run.
    fn scan_run(&mut self, entries: &mut Entries<'_>, raw: u64) -> Result<usize, u64> {
        let Some(host) = L2Entry::private_data(raw) else { return Ok(0) };
        let geometry = entries.geometry;
        if (geometry.l2_format, geometry.data_place) != (L2Format::Standard, DataPlace::Image) {
            return Ok(0);
        }
        let len = entries.run(raw);
        let first = geometry.host_cluster(host).0;
        let inside = host.0 + ((len as u64 - 1) << geometry.cluster_bits) < entries.file_len;
        if !geometry.is_aligned(host) || !inside {
            return Ok(0);
        }
        let clusters = first..first + len as u64;
        if entries.table.active && !self.stored.all_one(clusters.clone())? {
            return Ok(0);
        }
        self.counts.add_range(clusters, entries.table.times);
        if !entries.table.active {
            return Ok(len);
        }
        self.report.allocated_clusters += len as u64;
        self.report.fragmented_clusters += u64::from(entries.expected.is_some_and(|e| e != host.0));
        entries.expected = Some(host.0 + ((len as u64) << geometry.cluster_bits));
        Ok(len)
    }

    /// Takes one entry. Nothing is counted before the refcount that it needs is at hand.
    fn scan_entry(&mut self, entries: &mut Entries<'_>, raw: u64) -> Result<(), u64> {
        let geometry = entries.geometry;
        let entry = L2Entry::decode(raw, &geometry);
        if let L2Entry::Normal(host, _) | L2Entry::ZeroAllocated(host, _) = entry {
            self.scan_data(entries, raw, host)?;
        }
        if L2Entry::has_reserved_bits(raw, &geometry) {
            self.corruption(format!("ERROR found l2 entry with reserved bits set: {raw:x}"));
        }
        let bitmap = entries.bitmap(entries.index);
        if Cell::decode(raw, bitmap, &geometry).is_none()
            || (bitmap != 0 && matches!(entry, L2Entry::Compressed(_)))
        {
            self.corruption(format!(
                "ERROR l2 entry {raw:x} does not allow the subcluster bitmap {bitmap:016x}"
            ));
        }
        if entries.version < 3 && entry.is_zero() {
            let cluster = entries.table.l1_index * geometry.l2_entries() + entries.index as u64;
            let guest = cluster << geometry.cluster_bits;
            self.corruption(format!(
                "ERROR: zero cluster entry in a version 2 image (guest offset {guest:#x})"
            ));
        }
        if let L2Entry::Compressed(compressed) = entry {
            self.scan_compressed(entries, raw, compressed);
        }
        Ok(())
    }

    fn scan_data(&mut self, entries: &mut Entries<'_>, raw: u64, host: HostOffset) -> Result<(), u64> {
        let (geometry, table) = (entries.geometry, entries.table);
        let cluster = geometry.host_cluster(host).0;
        if geometry.data_place == DataPlace::External {
            // Another file, and nobody counts there.
        } else if !geometry.is_aligned(host) {
            self.corruption(format!(
                "ERROR offset={:x}: Data cluster is not properly aligned; L2 entry corrupted.",
                host.0
            ));
        } else if host.0 >= entries.file_len {
            self.beyond_end(host, geometry.cluster_size());
        } else {
            let refcount = if table.active { self.stored.get(cluster).ok_or(cluster)? } else { 0 };
            self.counts.add(cluster, table.times);
            if table.active && L2Entry::copied_flag(raw) != (refcount == 1) {
                self.wrong_flag(format!(
                    "ERROR OFLAG_COPIED data cluster: l2_entry={raw:x} refcount={refcount}"
                ));
            }
        }
        if table.active {
            self.report.allocated_clusters += 1;
            self.report.fragmented_clusters += u64::from(entries.expected.is_some_and(|e| e != host.0));
            entries.expected = Some(host.0.saturating_add(geometry.cluster_size()));
        }
        Ok(())
    }

    fn scan_compressed(&mut self, entries: &Entries<'_>, raw: u64, compressed: Compressed) {
        if L2Entry::copied_flag(raw) {
            self.corruption(format!(
                "ERROR: coffset=0x{:x}: copied flag must never be set for compressed clusters",
                compressed.offset.0
            ));
        }
        let clusters = compressed.clusters(&entries.geometry);
        if clusters.start << entries.geometry.cluster_bits >= entries.file_len {
            self.beyond_end(compressed.offset, compressed.len);
            return;
        }
        self.counts.add_range(clusters, entries.table.times);
        if entries.table.active {
            self.report.allocated_clusters += 1;
            self.report.compressed_clusters += 1;
            // A compressed image is fragmented by nature: the reference counts each one.
            self.report.fragmented_clusters += 1;
        }
    }

    fn beyond_end(&mut self, offset: HostOffset, bytes: u64) {
        self.corruption(format!(
            "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset \
             0x{:x} size 0x{bytes:x}",
            offset.0
        ));
    }
}
