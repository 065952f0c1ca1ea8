//! A set of bits in memory that follows what is in it: what changed since the bitmaps were last stored.
//!
//! Bits are kept in chunks; runs of full chunks take one entry however long they are, so that a discard of the
//! whole disk, or writing it from end to end, costs nothing.

use std::collections::BTreeMap;
use std::ops::Range;

use super::bits;

/// Bits of one chunk: 4 KiB when it is mixed.
const CHUNK: u64 = 1 << 15;
/// Bytes of memory that a mixed chunk takes with its place in the tree.
const MIXED_BYTES: usize = CHUNK as usize / 8 + 64;
/// Bytes of memory of a run of full chunks.
const RUN_BYTES: usize = 64;

/// See the module.
#[derive(Default)]
pub(super) struct DirtySet {
    /// Runs of full chunks: first chunk → one past the last. They do not touch.
    full: BTreeMap<u64, u64>,
    /// Chunks with some bits set and some clear.
    mixed: BTreeMap<u64, Mixed>,
}

struct Mixed {
    bytes: Box<[u8; CHUNK as usize / 8]>,
    /// Number of set bits.
    ones: u64,
}

impl DirtySet {
    /// Adds a range of bits.
    pub fn insert(&mut self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let chunk = at / CHUNK;
            let end = ((chunk + 1) * CHUNK).min(range.end);
            if end - at < CHUNK {
                self.insert_part(chunk, at % CHUNK..at % CHUNK + (end - at));
                at = end;
            } else {
                let whole = chunk..range.end / CHUNK;
                at = whole.end * CHUNK;
                self.insert_full(whole);
            }
        }
    }

    fn insert_part(&mut self, chunk: u64, part: Range<u64>) {
        if self.full_run(chunk).is_some() {
            return;
        }
        let empty = || Mixed { bytes: Box::new([0; CHUNK as usize / 8]), ones: 0 };
        let mixed = self.mixed.entry(chunk).or_insert_with(empty);
        let mut at = part.start;
        // Only clear bits are counted.
        while at < part.end {
            let from = bits::next_clear(&mixed.bytes[..], at..part.end);
            at = bits::next_set(&mixed.bytes[..], from..part.end);
            bits::set(&mut mixed.bytes[..], from..at);
            mixed.ones += at - from;
        }
        if mixed.ones == CHUNK {
            self.insert_full(chunk..chunk + 1);
        }
    }

    fn insert_full(&mut self, mut run: Range<u64>) {
        while let Some(chunk) = self.mixed.range(run.clone()).next().map(|(chunk, _)| *chunk) {
            self.mixed.remove(&chunk);
        }
        // Runs that overlap or touch become one.
        while let Some((start, end)) = self.full.range(..=run.end).next_back().map(|(s, e)| (*s, *e)) {
            if end < run.start {
                break;
            }
            self.full.remove(&start);
            run = start.min(run.start)..end.max(run.end);
        }
        self.full.insert(run.start, run.end);
    }

    /// The run of full chunks that `chunk` lies in.
    fn full_run(&self, chunk: u64) -> Option<Range<u64>> {
        let (start, end) = self.full.range(..=chunk).next_back()?;
        (chunk < *end).then_some(*start..*end)
    }

    /// The next run of set bits that does not end before `from`, cut there. A run may be told in several parts.
    pub fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let mut from = from;
        loop {
            let chunk = from / CHUNK;
            if let Some(run) = self.full_run(chunk) {
                return Some(from..run.end * CHUNK);
            }
            if let Some(mixed) = self.mixed.get(&chunk) {
                let start = bits::next_set(&mixed.bytes[..], from % CHUNK..CHUNK);
                if start < CHUNK {
                    let end = bits::next_clear(&mixed.bytes[..], start..CHUNK);
                    return Some(chunk * CHUNK + start..chunk * CHUNK + end);
                }
            }
            let later_full = self.full.range(chunk + 1..).next().map(|(start, _)| *start);
            let later_mixed = self.mixed.range(chunk + 1..).next().map(|(chunk, _)| *chunk);
            from = later_full.into_iter().chain(later_mixed).min()? * CHUNK;
        }
    }

    /// About how much memory it takes.
    pub fn bytes(&self) -> usize {
        self.full.len() * RUN_BYTES + self.mixed.len() * MIXED_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(set: &DirtySet) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut from = 0;
        while let Some(run) = set.next_run(from) {
            from = run.end;
            match runs.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => runs.push(run),
            }
        }
        runs
    }

    fn check(inserted: &[(u64, u64)], expect: &[(u64, u64)]) {
        let mut set = DirtySet::default();
        inserted.iter().for_each(|(start, end)| set.insert(*start..*end));
        let found: Vec<(u64, u64)> = runs(&set).into_iter().map(|run| (run.start, run.end)).collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn ranges_are_joined() {
        check(&[(5, 9), (9, 12), (7, 10)], &[(5, 12)]);
        check(&[(CHUNK - 1, CHUNK + 1)], &[(CHUNK - 1, CHUNK + 1)]);
        check(&[(0, CHUNK), (2 * CHUNK, 3 * CHUNK), (10, 2 * CHUNK + 5)], &[(0, 3 * CHUNK)]);
        check(&[(3 * CHUNK + 7, 9 * CHUNK + 1), (0, 1)], &[(0, 1), (3 * CHUNK + 7, 9 * CHUNK + 1)]);
    }

    #[test]
    fn any_order_of_random_ranges_gives_the_same_set() {
        let mut seed = 0x1234_5678_9abc_def1u64;
        let mut below = |n: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % n
        };
        for _ in 0..50 {
            let mut model = vec![false; 6 * CHUNK as usize];
            let mut set = DirtySet::default();
            for _ in 0..20 {
                let start = below(6 * CHUNK);
                let end = (start + 1 + below(CHUNK * 2)).min(6 * CHUNK);
                model[start as usize..end as usize].fill(true);
                set.insert(start..end);
            }
            let mut expect: Vec<Range<u64>> = Vec::new();
            for (i, _) in model.iter().enumerate().filter(|(_, b)| **b) {
                match expect.last_mut() {
                    Some(last) if last.end == i as u64 => last.end += 1,
                    _ => expect.push(i as u64..i as u64 + 1),
                }
            }
            assert_eq!(runs(&set), expect);
        }
    }

    #[test]
    fn long_runs_take_no_memory() {
        let mut set = DirtySet::default();
        set.insert(1..1 << 50);
        assert!(set.bytes() <= MIXED_BYTES + RUN_BYTES);
        for i in 0..1000 {
            set.insert(i * CHUNK / 2..(i + 1) * CHUNK / 2);
        }
        assert_eq!(set.bytes(), RUN_BYTES, "what was filled piece by piece is a run as well");
    }
}
