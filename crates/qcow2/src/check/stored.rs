//! The refcounts as the file has them, read block by block past the engine's caches.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Buf, Result};

use crate::cache::KeyHasher;
use crate::engine::Engine;
use crate::geometry::{Geometry, HostOffset};
use crate::refcount;
use crate::table;

/// Most bytes of refcount blocks kept.
const BYTES_MAX: usize = 4 << 20;

/// Looks refcounts up; blocks are kept up to a limit, oldest dropped first.
pub(super) struct Stored {
    geometry: Geometry,
    /// Where each block lies that can be read, by its number.
    places: Vec<(u64, HostOffset)>,
    index: HashMap<u64, usize, BuildHasherDefault<KeyHasher>>,
    blocks: Vec<(u64, Buf)>,
    capacity: usize,
    next: usize,
    recent: (u64, usize),
}

impl Stored {
    /// Reads the refcount table.
    pub async fn open(engine: &Arc<Engine>) -> Result<Self> {
        let geometry = engine.geometry;
        let (offset, bytes) = {
            let state = engine.state.lock();
            let bytes = u64::from(state.header.reftable_clusters) << geometry.cluster_bits;
            (state.header.reftable_offset, bytes)
        };
        let file_len = engine.file.len();
        let mut places = Vec::new();
        engine
            .each_entry(offset, bytes, |index, raw| {
                let block = table::refblock_offset(raw);
                places
                    .extend(block.filter(|b| geometry.is_aligned(*b) && b.0 < file_len).map(|b| (index, b)));
            })
            .await?;
        let capacity = (BYTES_MAX >> geometry.cluster_bits).max(2);
        Ok(Self {
            geometry,
            places,
            index: HashMap::default(),
            blocks: Vec::new(),
            capacity,
            next: 0,
            recent: (u64::MAX, 0),
        })
    }

    /// The blocks that can be read, by their number, in order.
    pub fn places(&self) -> Vec<(u64, HostOffset)> {
        self.places.clone()
    }

    /// The refcount of a cluster if its block is at hand.
    pub fn get(&mut self, cluster: u64) -> Option<u64> {
        let order = self.geometry.refcount_order;
        let index = cluster % self.geometry.refblock_entries();
        self.block(cluster).map(|block| refcount::get(block, order, index))
    }

    /// Whether all these clusters have refcount 1.
    ///
    /// # Errors
    /// The first cluster whose block is not at hand.
    pub fn all_one(&mut self, clusters: Range<u64>) -> std::result::Result<bool, u64> {
        let (order, per_block) = (self.geometry.refcount_order, self.geometry.refblock_entries());
        let mut at = clusters.start;
        while at < clusters.end {
            let end = ((at / per_block + 1) * per_block).min(clusters.end);
            let block = self.block(at).ok_or(at)?;
            let (from, to) = (at % per_block, at % per_block + (end - at));
            let ones = match order {
                4 => block[from as usize * 2..to as usize * 2].chunks_exact(2).all(|c| c == [0, 1]),
                _ => (from..to).all(|i| refcount::get(block, order, i) == 1),
            };
            if !ones {
                return Ok(false);
            }
            at = end;
        }
        Ok(true)
    }

    #[inline]
    fn block(&mut self, cluster: u64) -> Option<&[u8]> {
        let number = cluster / self.geometry.refblock_entries();
        if self.recent.0 != number {
            self.recent = (number, *self.index.get(&number)?);
        }
        Some(&self.blocks[self.recent.1].1)
    }

    /// Brings the block that counts a cluster, and says the cluster's refcount. Where no block can be read every
    /// refcount is 0.
    pub async fn load(&mut self, engine: &Arc<Engine>, cluster: u64) -> Result<u64> {
        let number = cluster / self.geometry.refblock_entries();
        let size = self.geometry.cluster_size() as usize;
        let block = match self.places.binary_search_by_key(&number, |(n, _)| *n) {
            Ok(place) => engine.file.read(self.places[place].1.0, size).await?,
            Err(_) => Buf::zeroed(size),
        };
        if self.blocks.len() < self.capacity {
            self.index.insert(number, self.blocks.len());
            self.blocks.push((number, block));
        } else {
            let at = self.next;
            self.next = (at + 1) % self.capacity;
            let (gone, old) = std::mem::replace(&mut self.blocks[at], (number, block));
            old.recycle();
            self.index.remove(&gone);
            self.index.insert(number, at);
        }
        self.recent = (u64::MAX, 0);
        Ok(self.get(cluster).expect("just loaded"))
    }
}
