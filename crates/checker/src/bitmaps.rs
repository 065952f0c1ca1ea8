//! The bitmap directory, the bitmap tables and the clusters of the bitmaps.

use crate::checker::{Run, State, report_faults};
use crate::error::CheckError;
use crate::finding::{BitmapFault, Finding};
use crate::header::BitmapsExtension;
use crate::image::{be16, be32, be64, nonzero_entries};
use crate::owner::{Owner, Place, Structure};
use crate::snapshots::round_to_clusters;
use crate::sweep::{Range, Segment, sweep};

/// Entries of a bitmap table; the reference's bound.
const TABLE_ENTRIES_MAX: u32 = 1 << 27;
const FLAG_IN_USE: u32 = 1;
const FLAGS_KNOWN: u32 = 7;
const TYPE_DIRTY: u8 = 1;

impl Run<'_> {
    /// Reads everything about persistent bitmaps.
    pub(crate) fn read_bitmaps(&mut self) -> Result<(), CheckError> {
        let Some(extension) = self.header.bitmaps else { return Ok(()) };
        let (offset, bytes) = (extension.directory_offset, extension.directory_bytes);
        self.claim(Owner::BitmapDirectory, Structure::BitmapDirectory, offset, bytes)?;
        self.read_directory(extension)?;
        self.scan_bitmap_tables()
    }

    fn read_directory(&mut self, extension: BitmapsExtension) -> Result<(), CheckError> {
        let mut at = extension.directory_offset;
        let end = at.saturating_add(extension.directory_bytes);
        for index in 0..extension.bitmaps {
            let mut raw = [0; 24];
            let left = end.saturating_sub(at);
            self.reader.exact(at, &mut raw)?;
            let bytes = 24u64
                .saturating_add(u64::from(be32(&raw, 20)))
                .saturating_add(u64::from(be16(&raw, 18)))
                .next_multiple_of(8);
            if left < bytes {
                self.bitmap_fault(index, at, BitmapFault::DirectorySize);
                return Ok(());
            }
            self.check_bitmap(index, at, &raw);
            at = at.saturating_add(bytes);
        }
        if at != end {
            self.bitmap_fault(extension.bitmaps, at, BitmapFault::DirectorySize);
        }
        Ok(())
    }

    fn check_bitmap(&mut self, index: u32, at: u64, raw: &[u8; 24]) {
        let (table, entries, flags) = (be64(raw, 0), be32(raw, 8), be32(raw, 12));
        let [kind, granularity_bits] = be16(raw, 16).to_be_bytes();
        let name_bytes = be16(raw, 18);
        let known = flags & !FLAGS_KNOWN == 0 && kind == TYPE_DIRTY;
        if !known || granularity_bits > 63 || name_bytes == 0 {
            self.bitmap_fault(index, at, BitmapFault::Malformed);
        }
        let table_bytes = u64::from(entries).saturating_mul(8);
        if entries > TABLE_ENTRIES_MAX || !self.header.usable(table, table_bytes) {
            self.bitmap_fault(index, at, BitmapFault::Table);
            return;
        }
        let bits = self.header.virtual_size.div_ceil(1u64.wrapping_shl(granularity_bits.into()));
        let needed = bits.div_ceil(8).div_ceil(self.geometry.cluster_size());
        if u64::from(entries) < needed && flags & FLAG_IN_USE == 0 {
            self.bitmap_fault(index, at, BitmapFault::TableTooShort);
        }
        let structure = Structure::BitmapTable(index);
        if let Some(last_byte) = table_bytes.checked_sub(1).map(|rest| table.saturating_add(rest)) {
            self.check_beyond_eof(Owner::BitmapTable, structure, table, last_byte);
        }
        let end = table.saturating_add(table_bytes);
        self.state.ranges.push(Range { start: table, end, id: index });
    }

    fn bitmap_fault(&mut self, index: u32, offset: u64, fault: BitmapFault) {
        self.state.report.add(Finding::Bitmap { index, offset, fault });
    }

    fn scan_bitmap_tables(&mut self) -> Result<(), CheckError> {
        let mut ranges = std::mem::take(&mut self.state.ranges);
        let mut segments = std::mem::take(&mut self.state.segments);
        sweep(&mut ranges, &mut segments);
        for segment in &segments {
            self.scan_bitmap_table(segment)?;
        }
        round_to_clusters(&mut ranges, self.geometry);
        sweep(&mut ranges, &mut segments);
        for segment in &segments {
            let last = self.geometry.cluster(segment.end.saturating_sub(1));
            for cluster in self.geometry.cluster(segment.start)..=last {
                self.state.cells.add(cluster, Owner::BitmapTable, segment.times)?;
            }
        }
        ranges.clear();
        self.state.ranges = ranges;
        self.state.segments = segments;
        Ok(())
    }

    fn scan_bitmap_table(&mut self, segment: &Segment) -> Result<(), CheckError> {
        let (geometry, len) = (self.geometry, self.reader.len());
        let structure = Structure::BitmapTable(segment.range.id);
        let table = segment.range.start;
        let first = segment.start.saturating_sub(table) / 8;
        let bytes = segment.end.saturating_sub(segment.start);
        let State { cells, report, buf, .. } = &mut *self.state;
        self.reader.scan(segment.start, bytes, buf, &mut |at, piece| {
            nonzero_entries::<8>(piece, |index, raw| {
                let value = u64::from_be_bytes(*raw);
                let index = first.saturating_add(at / 8).saturating_add(index);
                let place = Place { structure, table, index };
                let entry = geometry.bitmap_entry(value);
                report_faults(report, entry.faults, place, value);
                let Some(target) = entry.target() else { return Ok(()) };
                if target >= len {
                    let owner = Owner::BitmapData;
                    report.add(Finding::TableBeyondEof { owner, place, offset: target });
                }
                cells.add(geometry.cluster(target), Owner::BitmapData, segment.times)?;
                Ok(())
            })
        })
    }
}
