//! Bitmaps of a disk that changes its length.
//!
//! ```text
//!   stored; bits beyond the old end cleared
//!   in use set, barrier        where the table needs another length: old and new disk differ in what is valid
//!   [the disk changes its length]
//!   new tables and directory, switched
//! ```
//!
//! Most changes of length need no other table, and then the bitmaps are good before and after. The part that a disk
//! grows by is clear, as in the reference.

use std::sync::Arc;

use cowbell_block::{Buf, Result};

use super::directory::{self, Entry, Flags};
use super::edit::{Change, is_storable};
use super::shape::{Shape, TableEntry};
use super::table::{Content, Table, is_private};
use super::{BitmapError, bits};
use crate::engine::Engine;

/// Bitmaps whose tables are about to be replaced.
#[must_use = "bitmaps stay marked in use until this is finished"]
pub(crate) struct BitmapResize {
    /// All bitmaps as they were, in order.
    entries: Vec<Entry>,
    /// Whether any is marked in use.
    marked: bool,
}

impl Engine {
    /// Prepares the bitmaps for a disk of `size` bytes. The caller holds the whole disk.
    ///
    /// # Errors
    /// A bitmap is inconsistent or cannot cover such a disk; or the file's.
    pub(crate) async fn prepare_bitmaps(self: &Arc<Self>, size: u64) -> Result<BitmapResize> {
        self.store_bitmaps().await?;
        let header = self.state.lock().header.clone();
        let entries = directory::read(&self.file, &header, &self.geometry).await?;
        if let Some(entry) = entries.iter().find(|entry| entry.flags.contains(Flags::IN_USE)) {
            return Err(BitmapError::Inconsistent(entry.text()).into());
        }
        if size == 0 && !entries.is_empty() {
            return Err(BitmapError::DiskEmpty.into());
        }
        let new_shape = |entry: &Entry| entry.shape(&self.geometry, size);
        if let Some(entry) = entries.iter().find(|entry| !is_storable(new_shape(entry))) {
            return Err(BitmapError::DiskTooLarge(entry.text()).into());
        }
        if size > header.size {
            for entry in &entries {
                self.clear_beyond_end(entry, entry.shape(&self.geometry, header.size)).await?;
            }
        }
        let moves = |entry: &&Entry| new_shape(entry).entries() != u64::from(entry.table_entries);
        let mut marked = false;
        for entry in entries.iter().filter(moves) {
            self.write_bitmap_flags(entry.flags_at(), entry.flags | Flags::IN_USE).await?;
            marked = true;
        }
        if marked {
            self.barrier().await?;
        }
        Ok(BitmapResize { entries, marked })
    }

    /// Brings the bitmaps in line with the disk's length, whichever it has now. The caller still holds the whole disk.
    ///
    /// # Errors
    /// The file's; bitmaps that were marked stay so.
    pub(crate) async fn finish_bitmaps(self: &Arc<Self>, prepared: BitmapResize) -> Result<()> {
        if !prepared.marked {
            return Ok(());
        }
        let size = self.state.lock().header.size;
        let mut change = Change::new(self);
        let mut entries = Vec::with_capacity(prepared.entries.len());
        for entry in prepared.entries {
            let shape = entry.shape(&self.geometry, size);
            entries.push(match shape.entries() == u64::from(entry.table_entries) {
                true => entry,
                false => change.table(entry.clone(), Some(&entry), shape, None).await?,
            });
        }
        change.publish(entries).await
    }

    /// Clears what the last cluster of bits holds beyond the disk's end: it is to mean something. Until then it means
    /// nothing, so this needs no order but that of allocation.
    async fn clear_beyond_end(self: &Arc<Self>, entry: &Entry, shape: Shape) -> Result<()> {
        let last = shape.entries() - 1;
        let window = shape.bits_of(last);
        let valid = window.end - window.start;
        if valid == shape.bits_per_entry() {
            return Ok(());
        }
        let mut table = Table::new(self.clone(), entry.table, shape.entries(), Content::Stored);
        let old = table.get(last).await?;
        let cluster = self.geometry.cluster_size() as usize;
        let mut bytes = match old {
            TableEntry::Zeros => return Ok(()),
            TableEntry::Ones => Buf::zeroed(cluster),
            TableEntry::Data(host) => self.file.read(host.0, cluster).await?,
        };
        let all = shape.bits_per_entry();
        match old {
            TableEntry::Data(_) if bits::next_set(&bytes, valid..all) == all => return Ok(()),
            TableEntry::Data(_) => bits::clear(&mut bytes, valid..all),
            _ => bits::set(&mut bytes, 0..valid),
        }
        if let TableEntry::Data(host) = old
            && is_private(self, self.geometry.host_cluster(host).0).await?
        {
            // The byte with the last valid bits lies in one sector, and keeps them.
            let from = (valid / 8) as usize;
            return self.file.write(host.0 + from as u64, Buf::copy_of(&bytes[from..])).await;
        }
        table.require_private().await?;
        let (host, owned) = self.write_bits(bytes).await?;
        table.replace(last, old, TableEntry::Data(host), Some(owned)).await?;
        table.write_back().await
    }
}
