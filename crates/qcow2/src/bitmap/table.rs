//! A bitmap table, read and written in pieces.
//!
//! Entries of a table that is in the file are changed in place, one by one: its bitmap is in use, or the new entry
//! means the same, so any mix of old and new sectors is valid (rule R12). New clusters are durable before an entry
//! names them.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Buf, Result, mutant};

use super::BitmapError;
use super::shape::TableEntry;
use crate::alloc::Owned;
use crate::engine::{Dropped, Engine, NO_CAUSE};
use crate::geometry::{HostCluster, HostOffset};

/// Entries in memory at once: 64 KiB.
const PIECE_ENTRIES: u64 = 8192;

/// What the clusters of a table hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A table that bitmaps refer to.
    Stored,
    /// Nothing yet: reads as zeroes, is written whole, in order.
    Fresh,
}

/// See the module.
pub(super) struct Table {
    engine: Arc<Engine>,
    offset: HostOffset,
    entries: u64,
    content: Content,
    piece: Option<Piece>,
    /// Allocated for entries that are not in the file yet.
    owned: Vec<Owned>,
    /// Named by entries of the file that are replaced in memory.
    replaced: Vec<HostOffset>,
}

struct Piece {
    first: u64,
    bytes: Buf,
    /// Entries newer than the file, relative to the piece.
    changed: Range<u64>,
}

impl Table {
    pub fn new(engine: Arc<Engine>, offset: HostOffset, entries: u64, content: Content) -> Self {
        Self { engine, offset, entries, content, piece: None, owned: Vec::new(), replaced: Vec::new() }
    }

    /// Makes sure that nothing but its bitmap owns the table's clusters: they are about to be changed in place.
    pub async fn require_private(&self) -> Result<()> {
        let engine = &self.engine;
        let first = engine.geometry.host_cluster(self.offset).0;
        for cluster in first..first + engine.geometry.clusters_for(self.entries * 8) {
            if !is_private(engine, cluster).await? {
                return Err(BitmapError::TableShared(self.offset.0).into());
            }
        }
        Ok(())
    }

    /// Entry `index`.
    pub async fn get(&mut self, index: u64) -> Result<TableEntry> {
        assert!(index < self.entries, "inside the table");
        self.load(index).await?;
        let piece = self.piece.as_ref().expect("just loaded");
        let at = (index - piece.first) as usize * 8;
        let raw = u64::from_be_bytes(*piece.bytes[at..at + 8].first_chunk().expect("eight bytes"));
        Ok(TableEntry::decode(raw, &self.engine.geometry)?)
    }

    /// Sets entry `index`, in memory until the piece is left.
    pub async fn set(&mut self, index: u64, entry: TableEntry) -> Result<()> {
        assert!(index < self.entries, "inside the table");
        self.load(index).await?;
        let piece = self.piece.as_mut().expect("just loaded");
        let inside = index - piece.first;
        let at = inside as usize * 8;
        piece.bytes[at..at + 8].copy_from_slice(&entry.encode().to_be_bytes());
        piece.changed = match piece.changed.is_empty() {
            true => inside..inside + 1,
            false => piece.changed.start.min(inside)..piece.changed.end.max(inside + 1),
        };
        Ok(())
    }

    /// Changes entry `index` of a stored table from `old` to `new`, which may name `owned`. What `old` names is given
    /// back once the file no longer does, and `owned` when the file never will.
    pub async fn replace(
        &mut self,
        index: u64,
        old: TableEntry,
        new: TableEntry,
        owned: Option<Owned>,
    ) -> Result<()> {
        // Loading another piece writes this one back, so what is kept belongs to entries of the piece at hand.
        let loaded = self.load(index).await;
        self.owned.extend(owned);
        loaded?;
        if let TableEntry::Data(host) = old {
            self.replaced.push(host);
        }
        self.set(index, new).await
    }

    async fn load(&mut self, index: u64) -> Result<()> {
        let first = index / PIECE_ENTRIES * PIECE_ENTRIES;
        if self.piece.as_ref().is_some_and(|piece| piece.first == first) {
            return Ok(());
        }
        self.write_back().await?;
        let n = PIECE_ENTRIES.min(self.entries - first);
        let (bytes, changed) = match self.content {
            Content::Stored => {
                (self.engine.file.read(self.offset.0 + first * 8, n as usize * 8).await?, 0..0)
            }
            Content::Fresh => (Buf::zeroed(n as usize * 8), 0..n),
        };
        self.piece = Some(Piece { first, bytes, changed });
        Ok(())
    }

    /// Brings changed entries into the file. Not durable before the next barrier.
    pub async fn write_back(&mut self) -> Result<()> {
        let Some(piece) = self.piece.take_if(|piece| !piece.changed.is_empty()) else { return Ok(()) };
        if !self.owned.is_empty() {
            self.engine.write_refcounts().await?;
            if !mutant::is_active("bitmap-entries-beside-refcounts") {
                self.engine.barrier().await?;
            }
        }
        let bytes = &piece.bytes[piece.changed.start as usize * 8..piece.changed.end as usize * 8];
        let at = self.offset.0 + (piece.first + piece.changed.start) * 8;
        // From here on the file may name them.
        self.owned.clear();
        let replaced = std::mem::take(&mut self.replaced);
        self.engine.file.write(at, Buf::copy_of(bytes)).await.map_err(|e| match self.content {
            Content::Stored => self.engine.poison(e),
            Content::Fresh => e,
        })?;
        let mut state = self.engine.state.lock();
        for host in replaced {
            let cluster = self.engine.geometry.host_cluster(host);
            state.free_later(cluster..HostCluster(cluster.0 + 1), Dropped::Replaced);
        }
        Ok(())
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let mut state = self.engine.state.lock();
        self.owned.drain(..).for_each(|owned| state.give_back(owned));
    }
}

/// Whether a cluster is no metadata and has one owner.
pub(super) async fn is_private(engine: &Arc<Engine>, cluster: u64) -> Result<bool> {
    engine
        .decide(NO_CAUSE, |state| {
            state.check_overlap(cluster..cluster + 1)?;
            Ok(state.refcount(cluster)? == 1)
        })
        .await
}
