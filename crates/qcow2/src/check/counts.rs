//! Reference counts per host cluster, in memory that follows what is referenced.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::ops::Range;

use crate::cache::KeyHasher;

/// Clusters of one chunk: 32 KiB of counts.
const CHUNK: u64 = 1 << 14;

/// Counts references. Most clusters have few: a count that does not fit is kept aside.
pub(super) struct Counts {
    index: HashMap<u64, usize, BuildHasherDefault<KeyHasher>>,
    chunks: Vec<Box<[u16]>>,
    beyond: BTreeMap<u64, u64>,
    /// The chunk used last: references come in runs.
    recent: (u64, usize),
    end: u64,
}

impl Counts {
    pub fn new() -> Self {
        Self {
            index: HashMap::default(),
            chunks: Vec::new(),
            beyond: BTreeMap::new(),
            recent: (u64::MAX, 0),
            end: 0,
        }
    }

    /// Adds `n` references to one cluster.
    #[inline]
    pub fn add(&mut self, cluster: u64, n: u32) {
        let key = cluster / CHUNK;
        if self.recent.0 != key {
            let chunks = &mut self.chunks;
            let at = *self.index.entry(key).or_insert_with(|| {
                chunks.push(vec![0; CHUNK as usize].into());
                chunks.len() - 1
            });
            self.recent = (key, at);
        }
        self.end = self.end.max(cluster + 1);
        let count = &mut self.chunks[self.recent.1][(cluster % CHUNK) as usize];
        let sum = u64::from(*count) + u64::from(n);
        if sum < u64::from(u16::MAX) {
            *count = sum as u16;
        } else {
            *self.beyond.entry(cluster).or_insert(u64::from(*count)) += u64::from(n);
            *count = u16::MAX;
        }
    }

    /// Adds references to each cluster of a range.
    pub fn add_range(&mut self, clusters: Range<u64>, n: u32) {
        let mut at = clusters.start;
        while at < clusters.end {
            let end = ((at / CHUNK + 1) * CHUNK).min(clusters.end);
            // Finds the chunk; what follows in it is next to it.
            self.add(at, n);
            let row = (at % CHUNK) as usize + 1..(at % CHUNK + (end - at)) as usize;
            let row = &mut self.chunks[self.recent.1][row];
            if n < u32::from(u16::MAX / 2) && row.iter().all(|c| *c < u16::MAX / 2) {
                row.iter_mut().for_each(|c| *c += n as u16);
            } else {
                (at + 1..end).for_each(|cluster| self.add(cluster, n));
            }
            self.end = self.end.max(end);
            at = end;
        }
    }

    /// References to one cluster.
    pub fn get(&self, cluster: u64) -> u64 {
        let chunk = self.chunk(cluster);
        chunk.map_or(0, |c| self.exact(cluster, c[(cluster % CHUNK) as usize]))
    }

    fn chunk(&self, cluster: u64) -> Option<&[u16]> {
        self.index.get(&(cluster / CHUNK)).map(|at| &self.chunks[*at][..])
    }

    fn exact(&self, cluster: u64, count: u16) -> u64 {
        match count {
            u16::MAX => self.beyond.get(&cluster).copied().unwrap_or(u64::from(u16::MAX)),
            count => u64::from(count),
        }
    }

    /// Calls `f` with each cluster of a range and its references.
    pub fn each(&self, clusters: Range<u64>, mut f: impl FnMut(u64, u64)) {
        let mut at = clusters.start;
        while at < clusters.end {
            let end = ((at / CHUNK + 1) * CHUNK).min(clusters.end);
            match self.chunk(at) {
                Some(chunk) => (at..end).for_each(|c| f(c, self.exact(c, chunk[(c % CHUNK) as usize]))),
                None => (at..end).for_each(|c| f(c, 0)),
            }
            at = end;
        }
    }

    /// Calls `f` with each cluster of a range that has references.
    pub fn each_referenced(&self, clusters: Range<u64>, mut f: impl FnMut(u64, u64)) {
        let mut keys: Vec<u64> = self.index.keys().copied().collect();
        keys.sort_unstable();
        let keys = keys.into_iter().filter(|k| (k + 1) * CHUNK > clusters.start && k * CHUNK < clusters.end);
        for key in keys {
            let part = (key * CHUNK).max(clusters.start)..((key + 1) * CHUNK).min(clusters.end);
            self.each(part, |cluster, count| {
                if count != 0 {
                    f(cluster, count);
                }
            });
        }
    }

    /// One past the last cluster with a reference.
    pub fn end(&self) -> u64 {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_counts_stay_exact() {
        let mut counts = Counts::new();
        counts.add(7, 65_534);
        counts.add(7, 1);
        counts.add(7, 100_000);
        counts.add(CHUNK * 1000, 3);
        assert_eq!((counts.get(7), counts.get(8), counts.get(CHUNK * 1000)), (165_535, 0, 3));
        let mut seen = Vec::new();
        counts.each_referenced(1..u64::MAX / 2, |cluster, count| seen.push((cluster, count)));
        assert_eq!(seen, [(7, 165_535), (CHUNK * 1000, 3)]);
        assert_eq!(counts.end(), CHUNK * 1000 + 1);
    }
}
