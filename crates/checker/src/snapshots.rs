//! The snapshot table and the L1 tables it names.

use crate::checker::Run;
use crate::entry::Geometry;
use crate::error::CheckError;
use crate::finding::{Finding, SnapshotFault};
use crate::header::{Header, L1_BYTES_MAX};
use crate::image::{Reader, be16, be32, be64};
use crate::mapping::L1Kind;
use crate::owner::{Owner, Structure};
use crate::sweep::{Range, sweep};

/// Bytes of a snapshot table; the reference's bound.
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of extra data in an entry; the reference's bound.
const EXTRA_BYTES_MAX: u32 = 1024;

/// One entry of the snapshot table, as far as it matters here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapshotEntry {
    pub(crate) l1_offset: u64,
    pub(crate) l1_entries: u32,
    /// Size of the disk in bytes, if the entry says it.
    pub(crate) disk_bytes: Option<u64>,
    extra_bytes: u32,
    /// Bytes to the next entry.
    bytes: u64,
}

impl SnapshotEntry {
    /// Reads the entry at `offset`.
    pub(crate) fn read(reader: &Reader<'_>, offset: u64) -> Result<Self, CheckError> {
        let mut raw = [0; 56];
        reader.exact(offset, &mut raw)?;
        let extra_bytes = be32(&raw, 36);
        let names = u64::from(be16(&raw, 12)).saturating_add(u64::from(be16(&raw, 14)));
        let bytes = u64::from(extra_bytes).saturating_add(names).saturating_add(40);
        Ok(SnapshotEntry {
            l1_offset: be64(&raw, 0),
            l1_entries: be32(&raw, 8),
            disk_bytes: (extra_bytes >= 16).then(|| be64(&raw, 48)),
            extra_bytes,
            bytes: bytes.next_multiple_of(8),
        })
    }

    /// Bytes of the L1 table.
    pub(crate) fn l1_bytes(&self) -> u64 {
        u64::from(self.l1_entries).saturating_mul(8)
    }

    /// True if the L1 table can be followed.
    pub(crate) fn is_usable(&self, header: &Header) -> bool {
        self.l1_bytes() <= L1_BYTES_MAX && header.usable(self.l1_offset, self.l1_bytes())
    }
}

/// The entry of the snapshot with this index.
pub(crate) fn find(reader: &Reader<'_>, header: &Header, index: u32) -> Result<SnapshotEntry, CheckError> {
    let mut at = header.snapshots_offset;
    if index >= header.snapshots {
        return Err(CheckError::NoSuchSnapshot { index });
    }
    for _ in 0..index {
        at = at.saturating_add(SnapshotEntry::read(reader, at)?.bytes);
    }
    let entry = SnapshotEntry::read(reader, at)?;
    if at >= reader.len() || !entry.is_usable(header) {
        return Err(CheckError::NoSuchSnapshot { index });
    }
    Ok(entry)
}

impl Run<'_> {
    /// Reads the snapshot table and gathers the ranges of the L1 tables it names.
    pub(crate) fn read_snapshots(&mut self) -> Result<(), CheckError> {
        let start = self.header.snapshots_offset;
        let mut at = start;
        for index in 0..self.header.snapshots {
            let entry = SnapshotEntry::read(self.reader, at)?;
            let end = at.saturating_add(entry.bytes);
            // Padding after the last entry need not be in the file.
            let file_end = self.reader.len().next_multiple_of(8);
            if end > file_end || end.saturating_sub(start) > TABLE_BYTES_MAX {
                self.snapshot_fault(index, at, SnapshotFault::Truncated);
                break;
            }
            self.check_snapshot(index, at, &entry);
            at = end;
        }
        self.claim(Owner::SnapshotTable, Structure::SnapshotTable, start, at.saturating_sub(start))
    }

    fn check_snapshot(&mut self, index: u32, at: u64, entry: &SnapshotEntry) {
        if self.header.version >= 3 && entry.extra_bytes < 16 {
            self.snapshot_fault(index, at, SnapshotFault::ExtraTooShort);
        }
        if entry.extra_bytes > EXTRA_BYTES_MAX {
            self.snapshot_fault(index, at, SnapshotFault::ExtraTooLong);
        }
        if !entry.is_usable(self.header) {
            self.snapshot_fault(index, at, SnapshotFault::L1Table);
            return;
        }
        let needed = self.geometry.l1_entries(entry.disk_bytes.unwrap_or(0));
        let entries = u64::from(entry.l1_entries);
        let structure = Structure::SnapshotL1(index);
        if entries < needed {
            self.state.report.add(Finding::L1TooShort { structure, entries, needed });
        }
        let (start, bytes) = (entry.l1_offset, entry.l1_bytes());
        if let Some(last_byte) = bytes.checked_sub(1).map(|rest| start.saturating_add(rest)) {
            self.check_beyond_eof(Owner::SnapshotL1, structure, start, last_byte);
        }
        let end = start.saturating_add(bytes);
        self.state.ranges.push(Range { start, end, id: index });
    }

    fn snapshot_fault(&mut self, index: u32, offset: u64, fault: SnapshotFault) {
        self.state.report.add(Finding::Snapshot { index, offset, fault });
    }

    /// Counts the clusters of the snapshots' L1 tables and reads each of their entries once.
    pub(crate) fn scan_snapshot_l1s(&mut self) -> Result<(), CheckError> {
        let mut ranges = std::mem::take(&mut self.state.ranges);
        let mut segments = std::mem::take(&mut self.state.segments);
        sweep(&mut ranges, &mut segments);
        for segment in &segments {
            let structure = Structure::SnapshotL1(segment.range.id);
            let bytes = segment.end.saturating_sub(segment.start);
            let kind = L1Kind::Snapshots(segment.times);
            self.scan_l1(segment.start, bytes, structure, segment.range.start, kind)?;
        }
        round_to_clusters(&mut ranges, self.geometry);
        sweep(&mut ranges, &mut segments);
        for segment in &segments {
            let last = self.geometry.cluster(segment.end.saturating_sub(1));
            for cluster in self.geometry.cluster(segment.start)..=last {
                self.state.cells.add(cluster, Owner::SnapshotL1, segment.times)?;
            }
        }
        ranges.clear();
        self.state.ranges = ranges;
        self.state.segments = segments;
        Ok(())
    }
}

/// Makes every range that is not empty end at a cluster boundary.
pub(crate) fn round_to_clusters(ranges: &mut [Range], geometry: Geometry) {
    for range in ranges.iter_mut().filter(|range| range.start < range.end) {
        let last = geometry.cluster(range.end.saturating_sub(1));
        range.end = geometry.offset(last.saturating_add(1));
    }
}
