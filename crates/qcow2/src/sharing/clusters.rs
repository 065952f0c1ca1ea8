//! Who holds which host cluster, in bounded memory.
//!
//! Kept in chunks made on first touch. When they would take more than allowed, the upper half is given up and the
//! *window* ends below it: the caller counts what the window holds, moves it on, and looks at the tables again. All
//! but the largest images are gone through once.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::ops::Range;

use super::sets::{NOBODY, SetId, Sets};
use crate::cache::KeyHasher;

/// Clusters of one chunk: 4 KiB when it is dense.
const CHUNK: u64 = 1 << 10;
/// Most clusters of a chunk that are kept one by one: an image that names single clusters far apart stays cheap.
const SPARSE_MAX: usize = 32;
/// Bytes that a chunk takes whatever it holds, roughly.
const CHUNK_BYTES: u64 = 64;
/// Bytes of a chunk with clusters one by one, and of a dense one.
const SPARSE_BYTES: u64 = CHUNK_BYTES + SPARSE_MAX as u64 * 8;
const DENSE_BYTES: u64 = CHUNK_BYTES + CHUNK * 4;
/// Bytes kept at once: 8 million clusters in a row.
const BYTES_MAX: u64 = 34 << 20;

enum Chunk {
    /// Pairs of index and set, sorted.
    Sparse(Vec<(u16, SetId)>),
    Dense(Box<[SetId]>),
}

/// See the module.
pub(super) struct Clusters {
    index: HashMap<u64, usize, BuildHasherDefault<KeyHasher>>,
    chunks: Vec<(u64, Chunk)>,
    /// The chunk used last: references come in runs.
    recent: (u64, usize),
    window: Range<u64>,
    bytes: u64,
    bytes_max: u64,
}

impl Clusters {
    /// Nobody holds anything.
    pub fn new() -> Self {
        Self::with_memory(BYTES_MAX)
    }

    fn with_memory(bytes_max: u64) -> Self {
        Self {
            index: HashMap::default(),
            chunks: Vec::new(),
            recent: (u64::MAX, 0),
            window: 0..u64::MAX,
            bytes: 0,
            // A window always moves on.
            bytes_max: bytes_max.max(2 * DENSE_BYTES),
        }
    }

    /// Adds holders to each cluster of a range.
    pub fn add(&mut self, clusters: Range<u64>, set: SetId, sets: &mut Sets) {
        let mut at = clusters.start.max(self.window.start);
        while at < clusters.end.min(self.window.end) {
            let end = ((at / CHUNK + 1) * CHUNK).min(clusters.end);
            let row = (at % CHUNK) as usize..(at % CHUNK + (end - at)) as usize;
            if let Some(chunk) = self.chunk(at / CHUNK, row.len()) {
                chunk.add(row, set, sets);
            }
            at = end;
        }
    }

    /// The chunk with this key, ready for so many more clusters. `None`: it is behind the window now.
    fn chunk(&mut self, key: u64, more: usize) -> Option<&mut Chunk> {
        if self.recent.0 != key {
            let at = match self.index.get(&key) {
                Some(at) => *at,
                None => self.make(key)?,
            };
            self.recent = (key, at);
        }
        if self.chunks[self.recent.1].1.becomes_dense(more) {
            self.make_room(DENSE_BYTES - SPARSE_BYTES);
            if key * CHUNK >= self.window.end {
                return None;
            }
            self.recent = (key, self.index[&key]);
            self.chunks[self.recent.1].1.make_dense();
            self.bytes += DENSE_BYTES - SPARSE_BYTES;
        }
        Some(&mut self.chunks[self.recent.1].1)
    }

    fn make(&mut self, key: u64) -> Option<usize> {
        self.make_room(SPARSE_BYTES);
        if key * CHUNK >= self.window.end {
            return None;
        }
        self.bytes += SPARSE_BYTES;
        self.index.insert(key, self.chunks.len());
        self.chunks.push((key, Chunk::Sparse(Vec::new())));
        Some(self.chunks.len() - 1)
    }

    /// Gives up the upper half when there is no room for `more` bytes.
    fn make_room(&mut self, more: u64) {
        if self.bytes + more <= self.bytes_max {
            return;
        }
        self.chunks.sort_unstable_by_key(|(key, _)| *key);
        let half = self.bytes / 2;
        let mut kept = 0;
        let keep = self.chunks.iter().take_while(|(_, chunk)| {
            kept += chunk.bytes();
            kept <= half
        });
        let keep = keep.count().max(1);
        self.chunks.truncate(keep);
        self.bytes = self.chunks.iter().map(|(_, chunk)| chunk.bytes()).sum();
        let last = self.chunks.last().map_or(self.window.start / CHUNK, |(key, _)| *key);
        self.window.end = (last + 1) * CHUNK;
        self.index = self.chunks.iter().enumerate().map(|(at, (key, _))| (*key, at)).collect();
        self.recent = (u64::MAX, 0);
    }

    /// Counts the clusters of the window by the set that holds them.
    pub fn tally(&self, counts: &mut [u64]) {
        for (_, chunk) in &self.chunks {
            match chunk {
                Chunk::Sparse(pairs) => pairs.iter().for_each(|(_, set)| counts[*set as usize] += 1),
                Chunk::Dense(cells) => {
                    cells.iter().filter(|set| **set != NOBODY).for_each(|set| counts[*set as usize] += 1);
                }
            }
        }
    }

    /// Forgets this window and moves on to what lies behind it; false at the end.
    pub fn next_window(&mut self) -> bool {
        self.index.clear();
        self.chunks.clear();
        self.recent = (u64::MAX, 0);
        self.bytes = 0;
        self.window = self.window.end..u64::MAX;
        self.window.start < u64::MAX
    }
}

impl Chunk {
    fn bytes(&self) -> u64 {
        match self {
            Self::Sparse(_) => SPARSE_BYTES,
            Self::Dense(_) => DENSE_BYTES,
        }
    }

    fn becomes_dense(&self, more: usize) -> bool {
        matches!(self, Self::Sparse(pairs) if pairs.len() + more > SPARSE_MAX)
    }

    fn make_dense(&mut self) {
        if let Self::Sparse(pairs) = self {
            let mut cells: Box<[SetId]> = vec![NOBODY; CHUNK as usize].into();
            pairs.iter().for_each(|(index, set)| cells[usize::from(*index)] = *set);
            *self = Self::Dense(cells);
        }
    }

    fn add(&mut self, row: Range<usize>, set: SetId, sets: &mut Sets) {
        match self {
            Self::Dense(cells) => {
                // Neighbours are mostly held alike.
                let mut last = (NOBODY, set);
                for cell in &mut cells[row] {
                    if *cell != last.0 {
                        last = (*cell, sets.union(*cell, set));
                    }
                    *cell = last.1;
                }
            }
            Self::Sparse(pairs) => {
                for index in row {
                    match pairs.binary_search_by_key(&(index as u16), |(i, _)| *i) {
                        Ok(at) => pairs[at].1 = sets.union(pairs[at].1, set),
                        Err(at) => pairs.insert(at, (index as u16, set)),
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What is added: ranges of clusters and holders.
    fn ranges(seed: u64) -> Vec<(Range<u64>, u32)> {
        let mut state = seed;
        let mut below = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        (0..400)
            .map(|_| {
                let start = if below(2) == 0 { below(40 * CHUNK) } else { below(1 << 30) };
                let most = if below(4) == 0 { 3 * CHUNK } else { 5 };
                (start..start + 1 + below(most), below(9) as u32)
            })
            .collect()
    }

    fn counted(all: &[(Range<u64>, u32)], bytes_max: u64) -> (BTreeMap<Vec<(u32, u32)>, u64>, u32) {
        let (mut sets, mut clusters, mut windows) = (Sets::new(9), Clusters::with_memory(bytes_max), 0);
        let mut counts = Vec::new();
        loop {
            for (range, holder) in all {
                clusters.add(range.clone(), Sets::single(*holder), &mut sets);
            }
            counts.resize(sets.len(), 0);
            clusters.tally(&mut counts);
            windows += 1;
            if !clusters.next_window() {
                break;
            }
        }
        let named = counts.iter().zip(0..).filter(|(n, _)| **n > 0);
        (named.map(|(n, id)| (sets.spans(id).to_vec(), *n)).collect(), windows)
    }

    #[test]
    fn little_memory_counts_as_much() {
        for seed in 1..6 {
            let all = ranges(seed);
            let mut model: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
            for (range, holder) in &all {
                range.clone().for_each(|cluster| model.entry(cluster).or_default().push(*holder));
            }
            let mut expected: BTreeMap<Vec<(u32, u32)>, u64> = BTreeMap::new();
            for holders in model.values() {
                let mut sets = Sets::new(9);
                let mut spans: Vec<_> = holders.iter().map(|h| (*h, *h)).collect();
                spans.sort_unstable();
                let id = sets.of(&spans);
                *expected.entry(sets.spans(id).to_vec()).or_default() += 1;
            }
            let (whole, once) = counted(&all, BYTES_MAX);
            let (parts, often) = counted(&all, 3 * DENSE_BYTES);
            assert_eq!((whole == expected, parts == expected, once), (true, true, 1));
            assert!(often > 5, "{often}");
        }
    }
}
