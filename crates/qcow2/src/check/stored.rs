//! The refcounts as the file has them, read block by block past the engine's caches.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use cowbell_block::{Buf, Result};

use crate::cache::KeyHasher;
use crate::engine::Engine;
use crate::geometry::HostOffset;
use crate::refcount;
use crate::table;

/// Most bytes of refcount blocks kept.
const BYTES_MAX: usize = 4 << 20;

/// Looks refcounts up; blocks are kept up to a limit, oldest dropped first.
pub(super) struct Stored {
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
                Ok(())
            })
            .await?;
        let capacity = (BYTES_MAX >> geometry.cluster_bits).max(2);
        Ok(Self {
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
    #[inline]
    pub fn get(&mut self, engine: &Engine, cluster: u64) -> Option<u64> {
        let per_block = engine.geometry.refblock_entries();
        let number = cluster / per_block;
        if self.recent.0 != number {
            self.recent = (number, *self.index.get(&number)?);
        }
        let block = &self.blocks[self.recent.1].1;
        Some(refcount::get(block, engine.geometry.refcount_order, cluster % per_block))
    }

    /// The refcount of a cluster; 0 where no block can be read.
    pub async fn load(&mut self, engine: &Arc<Engine>, cluster: u64) -> Result<u64> {
        let number = cluster / engine.geometry.refblock_entries();
        let Ok(place) = self.places.binary_search_by_key(&number, |(n, _)| *n) else { return Ok(0) };
        let size = engine.geometry.cluster_size() as usize;
        let block = engine.file.read(self.places[place].1.0, size).await?;
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
        Ok(self.get(engine, cluster).expect("just loaded"))
    }
}
