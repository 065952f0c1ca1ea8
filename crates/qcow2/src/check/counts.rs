//! Reference counts per host cluster, in memory that follows what is referenced.
//!
//! With a count go two marks: whether an active mapping names the cluster with its COPIED flag, and whether one does
//! without. So one pass over the tables is enough to know that all flags are right.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::ops::Range;

use crate::cache::KeyHasher;

/// Clusters of one chunk: 16 KiB when it is dense.
pub(super) const CHUNK: u64 = 1 << 13;
/// Most clusters of a chunk that are kept one by one. A hostile image that names single clusters far apart costs a
/// few times its own size.
const SPARSE_MAX: usize = 64;
/// The bits that count; all of them set: the count is kept aside.
const COUNT: u16 = 0x3fff;

/// What an active mapping says about a cluster that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Mark {
    /// Nothing: not a mapping, or not an active one.
    None = 0,
    /// The flag is set.
    Copied = 0x4000,
    /// The flag is not set.
    Uncopied = 0x8000,
}

/// One cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    /// References.
    pub count: u64,
    marks: u16,
}

impl Cell {
    /// Whether a flag contradicts a refcount.
    pub fn has_wrong_flag(self, refcount: u64) -> bool {
        let wrong = if refcount == 1 { Mark::Uncopied } else { Mark::Copied };
        self.marks & wrong as u16 != 0
    }
}

enum Chunk {
    /// Pairs of index and cell, sorted.
    Sparse(Vec<(u16, u16)>),
    Dense(Box<[u16]>),
}

/// Counts references. Most clusters have few: a count that does not fit is kept aside.
pub(super) struct Counts {
    index: HashMap<u64, usize, BuildHasherDefault<KeyHasher>>,
    chunks: Vec<Chunk>,
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
    pub fn add(&mut self, cluster: u64, n: u64, mark: Mark) {
        let at = self.chunk_at(cluster / CHUNK);
        self.end = self.end.max(cluster + 1);
        let cell = self.chunks[at].cell((cluster % CHUNK) as usize);
        *cell |= mark as u16;
        let count = *cell & COUNT;
        let sum = u64::from(count).saturating_add(n);
        if sum < u64::from(COUNT) {
            *cell = *cell & !COUNT | sum as u16;
        } else {
            *cell |= COUNT;
            let kept = self.beyond.entry(cluster).or_insert(u64::from(count));
            *kept = kept.saturating_add(n);
        }
    }

    /// Adds references to each cluster of a range.
    pub fn add_range(&mut self, clusters: Range<u64>, n: u64, mark: Mark) {
        let mut at = clusters.start;
        while at < clusters.end {
            let end = ((at / CHUNK + 1) * CHUNK).min(clusters.end);
            let row = (at % CHUNK) as usize..(at % CHUNK + (end - at)) as usize;
            let chunk = self.chunk_at(at / CHUNK);
            let fits = |cells: &[u16]| cells.iter().all(|c| c & COUNT < COUNT / 2);
            match self.chunks[chunk].dense_for(row.len()) {
                Some(cells) if n < u64::from(COUNT / 2) && fits(&cells[row.clone()]) => {
                    cells[row].iter_mut().for_each(|c| *c = (*c + n as u16) | mark as u16);
                    self.end = self.end.max(end);
                }
                _ => (at..end).for_each(|cluster| self.add(cluster, n, mark)),
            }
            at = end;
        }
    }

    /// Forgets a cluster.
    pub fn clear(&mut self, cluster: u64) {
        let at = self.chunk_at(cluster / CHUNK);
        *self.chunks[at].cell((cluster % CHUNK) as usize) = 0;
        self.beyond.remove(&cluster);
    }

    fn chunk_at(&mut self, key: u64) -> usize {
        if self.recent.0 != key {
            let chunks = &mut self.chunks;
            let at = *self.index.entry(key).or_insert_with(|| {
                chunks.push(Chunk::Sparse(Vec::new()));
                chunks.len() - 1
            });
            self.recent = (key, at);
        }
        self.recent.1
    }

    /// References to one cluster.
    pub fn get(&self, cluster: u64) -> u64 {
        let Some(at) = self.index.get(&(cluster / CHUNK)) else { return 0 };
        let cell = match &self.chunks[*at] {
            Chunk::Dense(cells) => cells[(cluster % CHUNK) as usize],
            Chunk::Sparse(pairs) => find(pairs, (cluster % CHUNK) as u16).map_or(0, |i| pairs[i].1),
        };
        self.cell(cluster, cell).count
    }

    fn cell(&self, cluster: u64, cell: u16) -> Cell {
        let count = match cell & COUNT {
            COUNT => self.beyond.get(&cluster).copied().unwrap_or(u64::from(COUNT)),
            count => u64::from(count),
        };
        Cell { count, marks: cell & !COUNT }
    }

    /// Calls `f` with each cluster that was named inside a range which lies in one chunk.
    pub fn each_named(&self, clusters: Range<u64>, mut f: impl FnMut(u64, Cell)) {
        let Some(at) = self.index.get(&(clusters.start / CHUNK)) else { return };
        let base = clusters.start / CHUNK * CHUNK;
        let row = clusters.start - base..clusters.end - base;
        assert!(row.end <= CHUNK, "the range lies in one chunk");
        match &self.chunks[*at] {
            Chunk::Dense(cells) => {
                for (index, cell) in row.clone().zip(&cells[row.start as usize..row.end as usize]) {
                    if *cell != 0 {
                        f(base + index, self.cell(base + index, *cell));
                    }
                }
            }
            Chunk::Sparse(pairs) => {
                for (index, cell) in pairs.iter().filter(|(i, _)| row.contains(&u64::from(*i))) {
                    let cluster = base + u64::from(*index);
                    f(cluster, self.cell(cluster, *cell));
                }
            }
        }
    }

    /// Whether the clusters from `first` on, all in one chunk, are counted exactly as these 16-bit refcounts say and
    /// no flag contradicts them. `None` when that takes a closer look.
    pub fn agrees_with(&self, first: u64, refcounts: &[u8]) -> Option<bool> {
        let Some(at) = self.index.get(&(first / CHUNK)) else {
            return Some(refcounts.iter().all(|byte| *byte == 0));
        };
        let Chunk::Dense(cells) = &self.chunks[*at] else { return None };
        let start = (first % CHUNK) as usize;
        let cells = &cells[start..start + refcounts.len() / 2];
        let mut wrong = 0u16;
        for (cell, refcount) in cells.iter().zip(refcounts.chunks_exact(2)) {
            let refcount = u16::from_be_bytes([refcount[0], refcount[1]]);
            let count = cell & COUNT;
            let is_one = u16::from(count == 1);
            // The count; a COPIED mark without refcount 1; refcount 1 with an unset flag; a count kept aside.
            wrong |= count ^ refcount | (cell >> 14 & 1 & (is_one ^ 1)) | (cell >> 15 & is_one);
            wrong |= u16::from(count == COUNT);
        }
        (wrong == 0).then_some(true)
    }

    /// The chunks that name clusters, in order.
    pub fn chunk_keys(&self) -> Vec<u64> {
        let mut keys: Vec<u64> = self.index.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// Clusters with more than `max` references.
    pub fn above(&self, max: u64) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        if max < u64::from(COUNT) {
            for key in self.chunk_keys() {
                self.each_named(key * CHUNK..(key + 1) * CHUNK, |cluster, cell| {
                    if cell.count > max {
                        found.push((cluster, cell.count));
                    }
                });
            }
        } else {
            found.extend(self.beyond.iter().filter(|(_, n)| **n > max).map(|(c, n)| (*c, *n)));
        }
        found
    }

    /// One past the last cluster that was named.
    pub fn end(&self) -> u64 {
        self.end
    }
}

fn find(pairs: &[(u16, u16)], index: u16) -> Option<usize> {
    pairs.binary_search_by_key(&index, |(i, _)| *i).ok()
}

impl Chunk {
    /// The cell at an index, which exists from now on.
    fn cell(&mut self, index: usize) -> &mut u16 {
        if matches!(self, Self::Sparse(pairs) if pairs.len() >= SPARSE_MAX) {
            self.become_dense();
        }
        match self {
            Self::Dense(cells) => &mut cells[index],
            Self::Sparse(pairs) => {
                let at = match pairs.binary_search_by_key(&(index as u16), |(i, _)| *i) {
                    Ok(at) => at,
                    Err(at) => {
                        pairs.insert(at, (index as u16, 0));
                        at
                    }
                };
                &mut pairs[at].1
            }
        }
    }

    /// All cells, if there are to be so many that they are worth it.
    fn dense_for(&mut self, more: usize) -> Option<&mut [u16]> {
        if matches!(self, Self::Sparse(pairs) if pairs.len() + more > SPARSE_MAX) {
            self.become_dense();
        }
        match self {
            Self::Dense(cells) => Some(cells),
            Self::Sparse(_) => None,
        }
    }

    fn become_dense(&mut self) {
        if let Self::Sparse(pairs) = self {
            let mut cells: Box<[u16]> = vec![0; CHUNK as usize].into();
            pairs.iter().for_each(|(index, cell)| cells[usize::from(*index)] = *cell);
            *self = Self::Dense(cells);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(counts: &Counts) -> Vec<(u64, u64)> {
        let mut seen = Vec::new();
        for key in counts.chunk_keys() {
            counts.each_named(key * CHUNK..(key + 1) * CHUNK, |cluster, cell| {
                seen.push((cluster, cell.count));
            });
        }
        seen
    }

    #[test]
    fn large_counts_stay_exact() {
        let mut counts = Counts::new();
        counts.add(7, 16_382, Mark::None);
        counts.add(7, 1, Mark::Copied);
        counts.add(7, 100_000, Mark::None);
        counts.add(CHUNK * 1000, 3, Mark::None);
        assert_eq!((counts.get(7), counts.get(8), counts.get(CHUNK * 1000)), (116_383, 0, 3));
        assert_eq!(named(&counts), [(7, 116_383), (CHUNK * 1000, 3)]);
        assert_eq!(counts.end(), CHUNK * 1000 + 1);
        assert_eq!((counts.above(100), counts.above(200_000)), (vec![(7, 116_383)], vec![]));
    }

    #[test]
    fn sparse_and_dense_chunks_count_alike() {
        let (mut single, mut ranges) = (Counts::new(), Counts::new());
        for (start, len) in [(5, 3), (CHUNK - 40, 200), (6, 1), (4 * CHUNK, CHUNK + 1), (7, 90)] {
            ranges.add_range(start..start + len, 2, Mark::Uncopied);
            (start..start + len).for_each(|c| single.add(c, 2, Mark::Uncopied));
        }
        assert_eq!(named(&single), named(&ranges));
        assert_eq!(single.end(), ranges.end());
    }

    #[test]
    fn agreement_is_about_counts_and_flags() {
        let stored = |counts: &[u16]| counts.iter().flat_map(|c| c.to_be_bytes()).collect::<Vec<u8>>();
        let mut counts = Counts::new();
        counts.add_range(0..100, 1, Mark::Copied);
        counts.add(100, 2, Mark::Uncopied);
        let good: Vec<u16> = [1; 100].into_iter().chain([2, 0]).collect();
        assert_eq!(counts.agrees_with(0, &stored(&good)), Some(true));
        let mut low = good.clone();
        low[100] = 1;
        assert_eq!(counts.agrees_with(0, &stored(&low)), None);
        counts.add(50, 1, Mark::None);
        let mut shared = good.clone();
        shared[50] = 2;
        assert_eq!(counts.agrees_with(0, &stored(&shared)), None, "COPIED with refcount 2");
        counts.add(101, 1, Mark::Uncopied);
        assert_eq!(counts.agrees_with(CHUNK, &[0, 0]), Some(true));
        assert_eq!(counts.agrees_with(CHUNK, &[0, 1]), Some(false));
    }
}
