//! Reads the set bits of a stored bitmap as ranges of the disk.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Buf, Result};

use super::bits;
use super::directory::Entry;
use super::shape::{Shape, TableEntry};
use super::table::{Content, Table};
use crate::engine::Engine;
use crate::geometry::HostOffset;
use crate::state::EpochPin;

/// A bitmap that is being read. Holds one cluster of bits and a piece of the table in memory.
pub struct BitmapReader {
    engine: Arc<Engine>,
    shape: Shape,
    table: Table,
    /// The cluster of bits read last, and the table entry it belongs to.
    data: Option<(u64, Buf)>,
    /// What the bitmap gives up while it is read stays as it is.
    _pin: EpochPin,
}

impl BitmapReader {
    pub(super) fn new(engine: Arc<Engine>, entry: &Entry, size: u64, pin: EpochPin) -> Self {
        let shape = entry.shape(&engine.geometry, size);
        let table = Table::new(engine.clone(), entry.table, shape.entries(), Content::Stored);
        Self { engine, shape, table, data: None, _pin: pin }
    }

    /// Length of the disk in bytes.
    pub fn disk_size(&self) -> u64 {
        self.shape.size
    }

    /// Bytes that one bit stands for.
    pub fn granularity(&self) -> u64 {
        1 << self.shape.granularity_bits
    }

    /// The next dirty bytes at or after `from`, cut at `from`; `None` when there are none. A run may be told in several
    /// parts, each following the other without a gap.
    ///
    /// # Errors
    /// The file's, or the rule that the bitmap breaks.
    pub async fn next_dirty(&mut self, from: u64) -> Result<Option<Range<u64>>> {
        let bits = self.shape.bits();
        let mut bit = from >> self.shape.granularity_bits;
        while from < self.shape.size && bit < bits {
            let index = bit / self.shape.bits_per_entry();
            let window = self.shape.bits_of(index);
            let run = match self.table.get(index).await? {
                TableEntry::Zeros => window.end..window.end,
                TableEntry::Ones => bit..window.end,
                TableEntry::Data(host) => {
                    let bytes = self.cluster(index, host).await?;
                    let inside = |bit: u64| bit - window.start;
                    let start = bits::next_set(bytes, inside(bit)..inside(window.end));
                    let end = bits::next_clear(bytes, start..inside(window.end));
                    window.start + start..window.start + end
                }
            };
            if !run.is_empty() {
                let dirty = self.shape.bytes_of(run);
                return Ok(Some(dirty.start.max(from)..dirty.end));
            }
            bit = window.end;
        }
        Ok(None)
    }

    async fn cluster(&mut self, index: u64, host: HostOffset) -> Result<&[u8]> {
        if self.data.as_ref().is_none_or(|(at, _)| *at != index) {
            let bytes = self.engine.file.read(host.0, self.engine.geometry.cluster_size() as usize).await?;
            self.data = Some((index, bytes));
        }
        Ok(&self.data.as_ref().expect("just read").1)
    }
}
