//! Sets of numbers as ranges: as large as they are scattered, not as what they count.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of numbers. Its ranges neither touch nor overlap.
#[derive(Default)]
pub(super) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Those that overlap or touch become part of it.
        while let Some((&from, &to)) = self.0.range(..=end).next_back().filter(|(_, to)| **to >= start) {
            self.0.remove(&from);
            start = start.min(from);
            end = end.max(to);
        }
        self.0.insert(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&from, &to)) =
            self.0.range(..range.end).next_back().filter(|(_, to)| **to > range.start)
        {
            self.0.remove(&from);
            if from < range.start {
                self.0.insert(from, range.start);
            }
            if to > range.end {
                self.0.insert(range.end, to);
            }
        }
    }

    /// The first part of `range` that is not in the set.
    pub fn gap(&self, range: Range<u64>) -> Option<Range<u64>> {
        let covering = self.0.range(..=range.start).next_back().filter(|(_, to)| **to > range.start);
        let start = covering.map_or(range.start, |(_, to)| *to);
        if start >= range.end {
            return None;
        }
        let next = self.0.range(start..range.end).next();
        Some(start..next.map_or(range.end, |(from, _)| *from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Chance;

    #[test]
    fn random_changes_against_a_plain_list() {
        let chance = Chance::new(7);
        for _ in 0..300 {
            let (mut set, mut plain) = (Ranges::default(), [false; 40]);
            for _ in 0..30 {
                let start = chance.below(40);
                let range = start..start + chance.below(41 - start);
                let add = chance.below(3) > 0;
                if add {
                    set.insert(range.clone())
                } else {
                    set.remove(range.clone())
                }
                plain[range.start as usize..range.end as usize].fill(add);
                let from = chance.below(40);
                let first = (from..40).find(|n| !plain[*n as usize]);
                let expect = first.map(|first| first..(first..40).find(|n| plain[*n as usize]).unwrap_or(40));
                assert_eq!(set.gap(from..40), expect);
                let all: Vec<_> = set.0.iter().collect();
                assert!(all.windows(2).all(|two| two[0].1 < two[1].0), "ranges touch");
            }
        }
    }
}
