//! Reference counts per host cluster, in memory that follows what is referenced.

use std::collections::BTreeMap;
use std::ops::Range;

/// Clusters of one chunk: 64 KiB of counts.
const CHUNK: u64 = 1 << 14;

/// Counts references.
pub(super) struct Counts {
    chunks: BTreeMap<u64, Box<[u32]>>,
}

impl Counts {
    pub fn new() -> Self {
        Self { chunks: BTreeMap::new() }
    }

    /// Adds `n` references to one cluster.
    pub fn add(&mut self, cluster: u64, n: u32) {
        let chunk = self.chunks.entry(cluster / CHUNK).or_insert_with(|| vec![0; CHUNK as usize].into());
        let count = &mut chunk[(cluster % CHUNK) as usize];
        *count = count.saturating_add(n);
    }

    /// Adds a reference to each cluster of a range.
    pub fn add_range(&mut self, clusters: Range<u64>, n: u32) {
        clusters.for_each(|cluster| self.add(cluster, n));
    }

    /// References to one cluster.
    pub fn get(&self, cluster: u64) -> u64 {
        let chunk = self.chunks.get(&(cluster / CHUNK));
        chunk.map_or(0, |c| u64::from(c[(cluster % CHUNK) as usize]))
    }

    /// The counts of `CHUNK`-aligned runs that hold any, with their first cluster.
    pub fn chunks_in(&self, clusters: Range<u64>) -> impl Iterator<Item = (u64, &[u32])> {
        let first = clusters.start / CHUNK;
        let chunks = self.chunks.range(first..clusters.end.div_ceil(CHUNK).max(first));
        chunks.map(|(index, counts)| (index * CHUNK, &counts[..]))
    }

    /// One past the last cluster with a reference.
    pub fn end(&self) -> u64 {
        self.chunks.iter().next_back().map_or(0, |(index, counts)| {
            let last = counts.iter().rposition(|c| *c != 0).map_or(0, |i| i as u64 + 1);
            index * CHUNK + last
        })
    }
}
