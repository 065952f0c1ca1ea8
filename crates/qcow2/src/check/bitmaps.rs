//! What persistent bitmaps refer to: counted, so that they are not taken for leaks.
//!
//! qcow2 specification, *Bitmaps extension*. Their content is not looked at: this version does not maintain it.

use cowbell_block::{Finding, Result};

use super::counts::Mark;
use super::log::Log;
use super::scan::Pass;
use super::topics;
use crate::bitmap::TableEntry;
use crate::geometry::HostOffset;
use crate::header::{BitmapsExtension, Header};

/// Most bytes of a bitmap directory (the reference's limit).
const DIRECTORY_BYTES_MAX: u64 = 65535 * 1024;
/// Fixed part of a directory entry.
const ENTRY_BYTES: usize = 24;

impl Pass {
    /// Counts the directory, the tables and the data of all bitmaps.
    pub(super) async fn scan_bitmaps(&mut self, log: &mut Log) -> Result<()> {
        let Some(extension) = self.header.bitmaps() else { return Ok(()) };
        let BitmapsExtension { count, directory_bytes, directory } = extension;
        if directory_bytes > DIRECTORY_BYTES_MAX || !self.format.geometry.is_aligned(directory) {
            let line = format!("ERROR bitmap directory at {directory} ({directory_bytes} bytes) is invalid");
            log.corruption(Finding::new(topics::BITMAP, line));
            return Ok(());
        }
        if self.format.is_outside(directory.0, directory_bytes) {
            self.count_region(log, directory.0, directory_bytes);
            return Ok(());
        }
        self.count_region(log, directory.0, directory_bytes);
        let bytes = self.engine.file.read(directory.0, directory_bytes as usize).await?;
        let mut rest = &bytes[..];
        // Tables do not overlap in a sound image, so all of them together are shorter than the file. Without this a
        // small image could name one large table many times.
        let mut room = self.format.file_len;
        for index in 0..count {
            let Some((entry, len)) = Entry::parse(rest) else {
                let line = format!("ERROR bitmap directory entry {index} is invalid");
                log.corruption(Finding::new(topics::BITMAP, line).in_file(directory.0, directory_bytes));
                return Ok(());
            };
            match room.checked_sub(u64::from(entry.table_entries) * 8) {
                Some(left) => room = left,
                None => {
                    let line = format!("ERROR bitmap {index}: its table does not fit the file");
                    log.corruption(Finding::new(topics::BITMAP, line));
                    return Ok(());
                }
            }
            self.scan_bitmap(log, index, &entry).await?;
            rest = &rest[len..];
        }
        Ok(())
    }

    async fn scan_bitmap(&mut self, log: &mut Log, index: u32, entry: &Entry) -> Result<()> {
        let geometry = self.format.geometry;
        let bytes = u64::from(entry.table_entries) * 8;
        if !geometry.is_aligned(entry.table) || entry.table.0 >= 1 << 56 {
            let line = format!("ERROR bitmap {index}: table at {} is invalid", entry.table);
            log.corruption(Finding::new(topics::BITMAP, line));
            return Ok(());
        }
        self.count_region(log, entry.table.0, bytes);
        if self.format.is_outside(entry.table.0, bytes) {
            return Ok(());
        }
        let (mut data, mut reserved) = (Vec::new(), Vec::new());
        let engine = self.engine.clone();
        let each = |_, raw| {
            let host = Header::bitmap_data(raw);
            data.extend(host);
            // Data out of line is told below.
            if host.is_none_or(|host| geometry.is_aligned(host))
                && TableEntry::decode(raw, &geometry).is_err()
            {
                reserved.push(raw);
            }
        };
        engine.each_entry(entry.table, bytes, each).await?;
        for raw in reserved {
            let line = format!("ERROR bitmap {index}: table entry {raw:#x} has reserved bits set");
            log.corruption(Finding::new(topics::BITMAP, line).in_file(entry.table.0, bytes));
        }
        for host in data {
            if !geometry.is_aligned(host) {
                let line = format!("ERROR bitmap {index}: data at {host} is not cluster aligned");
                log.corruption(Finding::new(topics::BITMAP, line).in_file(entry.table.0, bytes));
            } else if self.format.is_outside(host.0, geometry.cluster_size()) {
                self.count_region(log, host.0, geometry.cluster_size());
            } else {
                self.counts.add(geometry.host_cluster(host).0, 1, Mark::None);
            }
        }
        Ok(())
    }
}

struct Entry {
    table: HostOffset,
    table_entries: u32,
}

impl Entry {
    /// The first entry of `bytes` and its length with padding.
    fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let fixed = bytes.get(..ENTRY_BYTES)?;
        let word = |at: usize| fixed[at..at + 4].first_chunk().map_or(0, |b| u32::from_be_bytes(*b));
        let name_len = usize::from(u16::from_be_bytes([fixed[18], fixed[19]]));
        let len = (ENTRY_BYTES + word(20) as usize + name_len).next_multiple_of(8);
        let table = HostOffset(u64::from(word(0)) << 32 | u64::from(word(4)));
        (len <= bytes.len()).then_some((Self { table, table_entries: word(8) }, len))
    }
}
