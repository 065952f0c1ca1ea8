//! Stores what changed into the bitmaps of the file.
//!
//! ```text
//!   bits: in place where the cluster is the bitmap's alone, otherwise to a new cluster
//!   refcounts, barrier      only when clusters were allocated
//!   table entries           in place
//!   barrier
//!   `in use` cleared        in place, four bytes each
//!   barrier
//! ```
//!
//! Until its flag is cleared a bitmap means nothing, so any mix of these writes may be cut. Those that do not change
//! are not looked at.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Buf, Result, mutant};

use super::bits;
use super::directory::{Entry, Flags};
use super::dirty::DirtySet;
use super::shape::{Shape, TableEntry};
use super::table::{Content, Table, is_private};
use super::tracker::{Mode, Noted};
use crate::alloc::Owned;
use crate::engine::{Engine, NO_CAUSE};
use crate::geometry::HostOffset;

/// Bytes of a sector: what is written in place is cut at these.
const SECTOR: usize = 512;

/// What a cluster of bits becomes.
pub(super) enum Combined {
    /// What it was.
    Same,
    /// All bits are set.
    Ones,
    /// These bytes, of which the range differs from what was there.
    Bytes(Buf, Range<usize>),
}

impl Engine {
    /// Brings all that is noted into the file; the bitmaps are consistent then. The caller holds the whole disk.
    ///
    /// # Errors
    /// The file's. The bitmaps stay marked in use, and what is noted is kept for another attempt.
    pub(crate) async fn store_bitmaps(self: &Arc<Self>) -> Result<()> {
        if self.bitmaps.mode() != Mode::Live {
            return Ok(());
        }
        let noted = self.bitmaps.take();
        match self.store_noted(&noted).await {
            Ok(()) => {
                self.bitmaps.restart(noted.recording);
                Ok(())
            }
            Err(e) => {
                self.bitmaps.put_back(noted);
                Err(e)
            }
        }
    }

    async fn store_noted(self: &Arc<Self>, noted: &Noted) -> Result<()> {
        let size = self.state.lock().header.size;
        for entry in &noted.recording {
            let shape = entry.shape(&self.geometry, size);
            let unit = Shape { granularity_bits: noted.granularity_bits, ..shape };
            self.store_one(entry, shape, &noted.dirty, unit).await?;
        }
        self.write_refcounts().await?;
        if !mutant::is_active("bitmap-flags-beside-bits") {
            self.barrier().await?;
        }
        for entry in &noted.recording {
            // Some may be cleared and some not: only an image that is opened anew knows (rule R9).
            self.write_bitmap_flags(entry.flags_at(), Flags::AUTO).await.map_err(|e| self.poison(e))?;
        }
        self.barrier().await
    }

    /// Adds `dirty`, whose bits are `unit`'s, to one bitmap.
    async fn store_one(
        self: &Arc<Self>,
        entry: &Entry,
        shape: Shape,
        dirty: &DirtySet,
        unit: Shape,
    ) -> Result<()> {
        let mut table = Table::new(self.clone(), entry.table, shape.entries(), Content::Stored);
        let mut next = dirty.next_run(0);
        if next.is_some() {
            table.require_private().await?;
        }
        while let Some(run) = next {
            let index =
                (run.start << unit.granularity_bits >> shape.granularity_bits) / shape.bits_per_entry();
            let window = shape.bits_of(index);
            let mut mask = Buf::zeroed(self.geometry.cluster_size() as usize);
            let end = unit.bits_for(shape.bytes_of(window.clone())).end;
            next = Some(run);
            while let Some(run) = next.take_if(|run| run.start < end) {
                let part = shape.bits_for(unit.bytes_of(run.start..run.end.min(end)));
                bits::set(&mut mask, part.start - window.start..part.end - window.start);
                next = dirty.next_run(run.end.min(end));
            }
            self.store_window(&mut table, index, mask, window.end - window.start).await?;
        }
        table.write_back().await
    }

    /// Adds the bits of `mask` to the cluster of bits that table entry `index` names.
    async fn store_window(
        self: &Arc<Self>,
        table: &mut Table,
        index: u64,
        mask: Buf,
        valid: u64,
    ) -> Result<()> {
        let old = table.get(index).await?;
        match combine(self, old, mask, valid).await? {
            Combined::Same => Ok(()),
            Combined::Ones => table.replace(index, old, TableEntry::Ones, None).await,
            Combined::Bytes(bytes, changed) => {
                if let TableEntry::Data(host) = old
                    && is_private(self, self.geometry.host_cluster(host).0).await?
                {
                    let part = Buf::copy_of(&bytes[changed.clone()]);
                    return self.file.write(host.0 + changed.start as u64, part).await;
                }
                let (host, owned) = self.write_bits(bytes).await?;
                table.replace(index, old, TableEntry::Data(host), Some(owned)).await
            }
        }
    }

    /// Writes a cluster of bits to new storage.
    pub(super) async fn write_bits(self: &Arc<Self>, bytes: Buf) -> Result<(HostOffset, Owned)> {
        let owned = self.decide(NO_CAUSE, |state| state.allocate(1)).await?;
        let host = HostOffset(owned.first << self.geometry.cluster_bits);
        match self.file.write(host.0, bytes).await {
            Ok(()) => Ok((host, owned)),
            Err(e) => {
                self.state.lock().give_back(owned);
                Err(e)
            }
        }
    }
}

/// What a cluster of bits becomes when those of `mask` are set in it, of which `valid` count.
pub(super) async fn combine(
    engine: &Arc<Engine>,
    old: TableEntry,
    mut mask: Buf,
    valid: u64,
) -> Result<Combined> {
    if old == TableEntry::Ones || bits::next_set(&mask, 0..valid) == valid {
        return Ok(Combined::Same);
    }
    if bits::next_clear(&mask, 0..valid) == valid {
        return Ok(Combined::Ones);
    }
    let TableEntry::Data(host) = old else {
        let all = 0..mask.len();
        return Ok(Combined::Bytes(mask, all));
    };
    let stored = engine.file.read(host.0, mask.len()).await?;
    mask.iter_mut().zip(stored.iter()).for_each(|(new, old)| *new |= old);
    let all = mask.len() as u64 * 8;
    bits::clear(&mut mask, valid..all);
    let differs = |sector: &usize| mask[sector * SECTOR..][..SECTOR] != stored[sector * SECTOR..][..SECTOR];
    let mut sectors = (0..mask.len() / SECTOR).filter(differs);
    let Some(first) = sectors.next() else { return Ok(Combined::Same) };
    let last = sectors.next_back().unwrap_or(first);
    Ok(Combined::Bytes(mask, first * SECTOR..(last + 1) * SECTOR))
}
