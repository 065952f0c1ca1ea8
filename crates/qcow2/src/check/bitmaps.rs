//! What persistent bitmaps refer to: counted, so that they are not taken for leaks.
//!
//! qcow2 specification, *Bitmaps extension*. Their content is not looked at: this version does not maintain it.

use std::sync::Arc;

use cowbell_block::Result;

use super::Pass;
use crate::engine::Engine;
use crate::geometry::HostOffset;
use crate::header::{BitmapsExtension, Header};

/// Most bytes of a bitmap directory (the reference's limit).
const DIRECTORY_BYTES_MAX: u64 = 65535 * 1024;
/// Fixed part of a directory entry.
const ENTRY_BYTES: usize = 24;

impl Pass {
    /// Counts the directory, the tables and the data of all bitmaps.
    pub(super) async fn scan_bitmaps(&mut self, engine: &Arc<Engine>, header: &Header) -> Result<()> {
        let Some(extension) = header.bitmaps() else { return Ok(()) };
        let BitmapsExtension { count, directory_bytes, directory } = extension;
        if directory_bytes > DIRECTORY_BYTES_MAX || !engine.geometry.is_aligned(directory) {
            self.corruption(format!(
                "ERROR bitmap directory at {directory} ({directory_bytes} bytes) is invalid"
            ));
            return Ok(());
        }
        self.count_bytes(&engine.geometry, directory, directory_bytes);
        let bytes = engine.file.read(directory.0, directory_bytes as usize).await?;
        let mut rest = &bytes[..];
        // Tables do not overlap in a sound image, so all of them together are shorter than the file. Without this a
        // small image could name one large table many times.
        let mut room = engine.file.len();
        for index in 0..count {
            let Some((entry, len)) = Entry::parse(rest) else {
                self.corruption(format!("ERROR bitmap directory entry {index} is invalid"));
                return Ok(());
            };
            match room.checked_sub(u64::from(entry.table_entries) * 8) {
                Some(left) => room = left,
                None => {
                    self.corruption(format!("ERROR bitmap {index}: its table does not fit the file"));
                    return Ok(());
                }
            }
            self.scan_bitmap(engine, index, &entry).await?;
            rest = &rest[len..];
        }
        Ok(())
    }

    async fn scan_bitmap(&mut self, engine: &Arc<Engine>, index: u32, entry: &Entry) -> Result<()> {
        let geometry = engine.geometry;
        let bytes = u64::from(entry.table_entries) * 8;
        if !geometry.is_aligned(entry.table) || entry.table.0 >= 1 << 56 {
            self.corruption(format!("ERROR bitmap {index}: table at {} is invalid", entry.table));
            return Ok(());
        }
        self.count_bytes(&geometry, entry.table, bytes);
        let mut data = Vec::new();
        engine.each_entry(entry.table, bytes, |_, raw| data.extend(Header::bitmap_data(raw))).await?;
        for host in data {
            if geometry.is_aligned(host) {
                self.counts.add(geometry.host_cluster(host).0, 1);
            } else {
                self.corruption(format!("ERROR bitmap {index}: data at {host} is not cluster aligned"));
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
