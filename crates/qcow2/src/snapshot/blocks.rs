//! Refcount blocks of a shadow: copies with the changes in them.
//!
//! A block whose counts change is copied as a whole: the table of the old blocks stays valid until the switch. What
//! is allocated after a copy was made is added to it by [`Shadow::patch_blocks`].

use std::sync::Arc;

use cowbell_block::{Buf, Result};

use super::SnapshotError;
use super::shadow::{Change, Mark, Shadow};
use crate::engine::Engine;
use crate::geometry::{Geometry, HostCluster, HostOffset};
use crate::refcount;
use crate::state::Corruption;
use crate::table;

/// Bytes of blocks that are read at once.
const PIECE_BYTES: u64 = 4 << 20;
/// Slices of refcounts that are kept for looking up.
const SLICES: usize = 1024;

/// Where blocks were copied to, and a look into them.
pub(super) struct Blocks {
    geometry: Geometry,
    /// Number of each copied block and the cluster of its copy; ascending.
    moved: Vec<(u64, u64)>,
    /// The refcount table while it is looked at.
    reftable: Vec<u8>,
    /// Slices by their number, each in the place that its number gives.
    slices: Vec<Option<(u64, Buf)>>,
}

/// A slice of refcounts that must be loaded first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing(pub u64);

impl Blocks {
    pub fn new(geometry: Geometry) -> Self {
        let mut slices = Vec::new();
        slices.resize_with(SLICES, || None);
        Self { geometry, moved: Vec::new(), reftable: Vec::new(), slices }
    }

    pub fn is_empty(&self) -> bool {
        self.moved.is_empty()
    }

    /// Whether a block was copied.
    pub fn has_moved(&self, block: u64) -> bool {
        self.copy_of(block).is_some()
    }

    fn copy_of(&self, block: u64) -> Option<HostOffset> {
        let at = self.moved.binary_search_by_key(&block, |(number, _)| *number).ok()?;
        Some(self.geometry.host_offset(HostCluster(self.moved[at].1)))
    }

    /// Where a block lies in the file as it is.
    fn stored(&self, block: u64) -> Option<HostOffset> {
        let at = block as usize * 8;
        let raw = self.reftable.get(at..at + 8)?.first_chunk()?;
        table::refblock_offset(u64::from_be_bytes(*raw))
    }

    /// Enters the copies' places into a refcount table.
    pub fn name_in(&self, table: &mut [u8]) {
        for (block, place) in &self.moved {
            let offset = self.geometry.host_offset(HostCluster(*place)).0;
            table[*block as usize * 8..][..8].copy_from_slice(&offset.to_be_bytes());
        }
    }

    /// The refcount of a cluster as it will be.
    ///
    /// # Errors
    /// The slice to be loaded first.
    #[inline]
    pub fn refcount(&self, cluster: u64) -> std::result::Result<u64, Missing> {
        let per_slice = self.geometry.refslice_entries();
        let number = cluster / per_slice;
        match &self.slices[number as usize % SLICES] {
            Some((cached, slice)) if *cached == number => {
                Ok(refcount::get(slice, self.geometry.refcount_order, cluster % per_slice))
            }
            _ => Err(Missing(number)),
        }
    }

    /// The refcount of a cluster as it will be, and how many from it on, of at most `len`, have the same.
    ///
    /// # Errors
    /// The slice to be loaded first.
    pub fn run_of(&self, first: u64, len: u64) -> std::result::Result<(u64, u64), Missing> {
        let count = self.refcount(first)?;
        let per_slice = self.geometry.refslice_entries();
        let end = (first + len).min((first / per_slice + 1) * per_slice);
        let alike = (first + 1..end).take_while(|cluster| self.refcount(*cluster) == Ok(count)).count();
        Ok((count, 1 + alike as u64))
    }

    /// Brings a slice.
    pub async fn load(&mut self, engine: &Arc<Engine>, missing: &Missing) -> Result<()> {
        let Missing(number) = *missing;
        let per_block = self.geometry.slices_per_cluster();
        let block = number / per_block;
        let len = self.geometry.slice_bytes as usize;
        let content = match self.copy_of(block).or_else(|| self.stored(block)) {
            Some(place) => engine.file.read(place.0 + number % per_block * len as u64, len).await?,
            None => Buf::zeroed(len),
        };
        if let Some((_, old)) = self.slices[number as usize % SLICES].replace((number, content)) {
            old.recycle();
        }
        Ok(())
    }
}

impl Shadow {
    /// Copies the blocks whose counts change in this window, with the changes.
    pub async fn copy_blocks(&mut self) -> Result<()> {
        let engine = self.engine.clone();
        let numbers = self.deltas.blocks(engine.geometry.refblock_entries());
        if numbers.is_empty() {
            return self.read_reftable().await;
        }
        let place = self.own(numbers.len() as u64, 1).await?;
        engine.write_refcounts().await?;
        self.read_reftable().await?;
        let copies: Vec<(u64, u64)> = numbers.into_iter().zip(place.first..).collect();
        let mut at = 0;
        while at < copies.len() {
            let end = self.run_of_blocks(&copies, at).await?;
            self.copy_run(&copies[at..end]).await?;
            at = end;
        }
        self.blocks.moved.extend(copies);
        Ok(())
    }

    /// Reads the refcount table, to find blocks by.
    async fn read_reftable(&mut self) -> Result<()> {
        let (offset, bytes) = {
            let state = self.engine.state.lock();
            let bytes = u64::from(state.header.reftable_clusters) << self.engine.geometry.cluster_bits;
            (state.header.reftable_offset, bytes)
        };
        let table = self.engine.file.read(offset.0, bytes as usize).await?;
        self.blocks.reftable.clear();
        self.blocks.reftable.extend_from_slice(&table);
        table.recycle();
        Ok(())
    }

    /// The end of the copies that can be read in one piece, from `at` on.
    async fn run_of_blocks(&self, copies: &[(u64, u64)], at: usize) -> Result<usize> {
        let size = self.engine.geometry.cluster_size();
        let first = self.place_of(copies[at].0).await?;
        let mut end = at + 1;
        while end < copies.len() && (end - at) as u64 * size < PIECE_BYTES {
            let next = self.place_of(copies[end].0).await?;
            if next.0 != first.0 + (end - at) as u64 * size {
                break;
            }
            end += 1;
        }
        Ok(end)
    }

    /// Where a block lies that must be there: something refers to the clusters that it counts.
    async fn place_of(&self, block: u64) -> Result<HostOffset> {
        let engine = &self.engine;
        let corruption = match self.blocks.stored(block) {
            None => {
                let cluster = HostCluster(block * engine.geometry.refblock_entries());
                Corruption::RefcountUnderflow { offset: engine.geometry.host_offset(cluster).0 }
            }
            Some(place) if !engine.geometry.is_aligned(place) => {
                Corruption::RefblockUnaligned { offset: place.0, index: block }
            }
            Some(place) if place.0 >= engine.file.len() => {
                Corruption::RefblockOutside { offset: place.0, index: block }
            }
            Some(place) => return Ok(place),
        };
        Err(engine.report(corruption).await)
    }

    /// Copies blocks that lie side by side, old and new.
    async fn copy_run(&mut self, copies: &[(u64, u64)]) -> Result<()> {
        let engine = self.engine.clone();
        let size = engine.geometry.cluster_size();
        let old = self.place_of(copies[0].0).await?;
        let mut content = engine.file.read(old.0, copies.len() * size as usize).await?;
        for ((number, _), block) in copies.iter().zip(content.chunks_exact_mut(size as usize)) {
            if let Err(broken) = self.change_block(*number, block) {
                content.recycle();
                return Err(broken.told(&engine).await);
            }
        }
        let place = engine.geometry.host_offset(HostCluster(copies[0].1));
        engine.file.write(place.0, content).await?;
        self.drop_structure(old, copies.len() as u64 * size);
        Ok(())
    }

    /// Applies this window's changes to one block.
    fn change_block(&mut self, number: u64, block: &mut [u8]) -> std::result::Result<(), Broken> {
        let geometry = self.engine.geometry;
        let (order, per_block, max) =
            (geometry.refcount_order, geometry.refblock_entries(), geometry.refcount_max());
        let first = number * per_block;
        let (freed, became_one) = (&mut self.freed, &mut self.became_one);
        self.deltas.each(first..first + per_block, |cluster, change| {
            let before = refcount::get(block, order, cluster - first);
            let offset = geometry.host_offset(HostCluster(cluster)).0;
            let after = before.checked_add_signed(change).filter(|_| before != 0);
            let Some(after) = after else { return Err(Broken::Underflow { offset }) };
            if after > max {
                return Err(Broken::TooLarge { wanted: after, max });
            }
            match after {
                0 => drop(freed.insert(cluster)),
                1 => *became_one = true,
                _ => {}
            }
            set(block, order, cluster - first, after);
            Ok(())
        })
    }

    /// Applies marks, sorted, to the copies.
    pub async fn patch_blocks(&mut self, marks: &[Mark]) -> Result<()> {
        let engine = self.engine.clone();
        let per_block = engine.geometry.refblock_entries();
        let order = engine.geometry.refcount_order;
        let number = |mark: &Mark| mark.clusters.start / per_block;
        for marks in marks.chunk_by(|a, b| number(a) == number(b)) {
            let (block, first) = (number(&marks[0]), number(&marks[0]) * per_block);
            let Some(place) = self.blocks.copy_of(block) else { continue };
            let last = marks.iter().map(|mark| mark.clusters.end).max().unwrap_or(first) - 1 - first;
            let start = refcount::bytes_of(order, marks[0].clusters.start - first).start;
            let bytes = start..refcount::bytes_of(order, last).end;
            let base = place.0 + u64::from(bytes.start);
            let mut part = engine.file.read(base, (bytes.end - bytes.start) as usize).await?;
            // Entries are numbered from the first whole byte that was read.
            let skipped = (u64::from(start) * 8) >> order;
            for mark in marks {
                for cluster in mark.clusters.clone() {
                    let index = cluster - first - skipped;
                    let before = refcount::get(&part, order, index);
                    let after = match mark.change {
                        Change::Set(n) => n,
                        Change::Drop if before == 0 => {
                            let offset = engine.geometry.host_offset(HostCluster(cluster)).0;
                            return Err(engine.report(Corruption::RefcountUnderflow { offset }).await);
                        }
                        Change::Drop => before - 1,
                    };
                    if after == 0 {
                        self.lowest_dropped = self.lowest_dropped.min(cluster);
                    }
                    set(&mut part, order, index, after);
                }
            }
            engine.file.write(base, part).await?;
        }
        Ok(())
    }
}

fn set(block: &mut [u8], order: u32, index: u64, value: u64) {
    let bytes = refcount::bytes_of(order, index);
    refcount::set(&mut block[bytes.start as usize..bytes.end as usize], order, index, value);
}

/// A count that cannot be.
enum Broken {
    /// Below what refers to the cluster.
    Underflow { offset: u64 },
    /// More than its width holds.
    TooLarge { wanted: u64, max: u64 },
}

impl Broken {
    async fn told(self, engine: &Arc<Engine>) -> cowbell_block::Error {
        match self {
            Self::Underflow { offset } => engine.report(Corruption::RefcountUnderflow { offset }).await,
            Self::TooLarge { wanted, max } => SnapshotError::RefcountTooLarge { wanted, max }.into(),
        }
    }
}
