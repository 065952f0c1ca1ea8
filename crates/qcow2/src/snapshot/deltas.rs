//! How references to host clusters change, in bounded memory.
//!
//! Changes are kept in chunks made on first touch. When there would be more chunks than allowed, the upper half is
//! given up and the *window* ends below it: the caller deals with what the window holds, moves it on, and looks at
//! the tables again. So memory is bounded for any image, and all but the largest images are gone through once.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::ops::Range;

use crate::cache::KeyHasher;

/// Clusters of one chunk: 2 KiB of changes.
const CHUNK: u64 = 1 << 10;
/// Stands for a change that does not fit; it is kept aside.
const WIDE: i16 = i16::MIN;
/// Fewest chunks that make sense: a window always moves on.
const CHUNKS_MIN: usize = 2;

/// See the module.
pub(super) struct Deltas {
    index: HashMap<u64, usize, BuildHasherDefault<KeyHasher>>,
    chunks: Vec<(u64, Box<[i16]>)>,
    wide: BTreeMap<u64, i64>,
    /// The chunk used last: references come in runs.
    recent: (u64, usize),
    window: Range<u64>,
    chunks_max: usize,
}

impl Deltas {
    /// No changes; at most `bytes_max` bytes of them will be kept.
    pub fn new(bytes_max: u64) -> Self {
        Self {
            index: HashMap::default(),
            chunks: Vec::new(),
            wide: BTreeMap::new(),
            recent: (u64::MAX, 0),
            window: 0..u64::MAX,
            chunks_max: ((bytes_max / (CHUNK * 2)) as usize).max(CHUNKS_MIN),
        }
    }

    /// Whether this is the first window: the clusters from the first one on.
    pub fn is_first_window(&self) -> bool {
        self.window.start == 0
    }

    /// Forgets this window's changes and moves on to what lies behind it; false at the end.
    pub fn next_window(&mut self) -> bool {
        self.index.clear();
        self.chunks.clear();
        self.wide.clear();
        self.recent = (u64::MAX, 0);
        self.window = self.window.end..u64::MAX;
        self.window.start < u64::MAX
    }

    /// Adds `n` references to one cluster, or takes them away.
    #[inline]
    pub fn add(&mut self, cluster: u64, n: i32) {
        let key = cluster / CHUNK;
        if !self.window.contains(&cluster) || (self.recent.0 != key && !self.find_or_make(key)) {
            return;
        }
        let cell = &mut self.chunks[self.recent.1].1[(cluster % CHUNK) as usize];
        let sum = i64::from(*cell) + i64::from(n);
        if *cell != WIDE && sum > i64::from(WIDE) && sum <= i64::from(i16::MAX) {
            *cell = sum as i16;
        } else {
            let before = if *cell == WIDE { 0 } else { i64::from(*cell) };
            *self.wide.entry(cluster).or_insert(before) += i64::from(n);
            *cell = WIDE;
        }
    }

    /// Adds to each cluster of a range.
    pub fn add_range(&mut self, clusters: Range<u64>, n: i32) {
        clusters.for_each(|cluster| self.add(cluster, n));
    }

    fn find_or_make(&mut self, key: u64) -> bool {
        if let Some(at) = self.index.get(&key) {
            self.recent = (key, *at);
            return true;
        }
        if self.chunks.len() == self.chunks_max {
            self.shrink();
            if key * CHUNK >= self.window.end {
                return false;
            }
        }
        self.index.insert(key, self.chunks.len());
        self.recent = (key, self.chunks.len());
        self.chunks.push((key, vec![0; CHUNK as usize].into()));
        true
    }

    /// Gives up the upper half.
    fn shrink(&mut self) {
        self.chunks.sort_unstable_by_key(|(key, _)| *key);
        self.chunks.truncate(self.chunks.len() / 2);
        let last = self.chunks.last().map_or(self.window.start / CHUNK, |(key, _)| *key);
        self.window.end = (last + 1) * CHUNK;
        self.wide.split_off(&self.window.end);
        self.index = self.chunks.iter().enumerate().map(|(at, (key, _))| (*key, at)).collect();
        self.recent = (u64::MAX, 0);
    }

    /// Numbers of the refcount blocks, of `per_block` clusters each, with changes; ascending.
    pub fn blocks(&mut self, per_block: u64) -> Vec<u64> {
        let mut keys: Vec<u64> = self.index.keys().copied().collect();
        keys.sort_unstable();
        let mut blocks: Vec<u64> = Vec::new();
        for key in keys {
            let mut at = key * CHUNK;
            while at < (key + 1) * CHUNK {
                let (block, end) = (at / per_block, (at / per_block + 1) * per_block);
                let end = end.min((key + 1) * CHUNK);
                let cells = &self.chunks[self.index[&key]].1;
                let touched = cells[(at % CHUNK) as usize..][..(end - at) as usize].iter().any(|c| *c != 0);
                if touched && blocks.last() != Some(&block) {
                    blocks.push(block);
                }
                at = end;
            }
        }
        blocks
    }

    /// Calls `f` with each cluster of a range whose references change, ascending, and by how many.
    ///
    /// # Errors
    /// The first of `f`.
    pub fn each<E>(
        &self,
        clusters: Range<u64>,
        mut f: impl FnMut(u64, i64) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut at = clusters.start;
        while at < clusters.end {
            let end = ((at / CHUNK + 1) * CHUNK).min(clusters.end);
            if let Some(chunk) = self.index.get(&(at / CHUNK)) {
                let cells = &self.chunks[*chunk].1[(at % CHUNK) as usize..][..(end - at) as usize];
                for (cluster, cell) in (at..end).zip(cells) {
                    match *cell {
                        0 => {}
                        WIDE => match self.wide[&cluster] {
                            0 => {}
                            n => f(cluster, n)?,
                        },
                        n => f(cluster, i64::from(n))?,
                    }
                }
            }
            at = end;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(deltas: &Deltas, end: u64) -> Vec<(u64, i64)> {
        let mut found = Vec::new();
        let keep = |cluster, n| {
            found.push((cluster, n));
            Ok::<(), ()>(())
        };
        deltas.each(0..end, keep).unwrap();
        found
    }

    #[test]
    fn changes_of_any_size_stay_exact() {
        let mut deltas = Deltas::new(1 << 20);
        deltas.add_range(3..5, 1);
        deltas.add(4, -1);
        (0..3).for_each(|_| deltas.add(9, 30_000));
        (0..3).for_each(|_| deltas.add(10, -30_000));
        deltas.add(11, 40_000);
        deltas.add(11, -40_000);
        assert_eq!(all(&deltas, 4096), [(3, 1), (9, 90_000), (10, -90_000)]);
        assert_eq!(deltas.blocks(8), [0, 1]);
        assert_eq!(deltas.blocks(32_768), [0]);
    }

    #[test]
    fn windows_see_every_cluster_once() {
        let mut deltas = Deltas::new(0);
        let mut seen = BTreeMap::new();
        let mut windows = 0;
        loop {
            for i in (0..100u64).rev() {
                deltas.add(i * 777, i as i32 + 1);
            }
            for (cluster, n) in all(&deltas, 100 * 777) {
                assert_eq!(seen.insert(cluster, n), None, "{cluster} twice");
            }
            windows += 1;
            if !deltas.next_window() {
                break;
            }
        }
        assert!(windows > 10, "{windows} windows");
        assert!((0..100).all(|i| seen[&(i * 777)] == i as i64 + 1));
    }
}
