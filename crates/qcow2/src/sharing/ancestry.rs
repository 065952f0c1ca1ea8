//! Which snapshot a snapshot, or the disk, came from, as far as the clusters tell.
//!
//! The format stores no parents. But whatever a snapshot has in common with older ones it has by way of its parent, so
//! its parent holds all of that; and of several that do, the one with least that had to be overwritten since is the
//! nearest. A history that only ever adds, or overwrites the same clusters on both branches, leaves several that fit
//! equally: then the newest of them is taken, and it is said that the order decided.

use super::sets::Sets;
use super::{Evidence, Parent};

/// Most snapshots whose ancestry is looked for: 32 MiB of pairs.
pub(super) const SNAPSHOTS_MAX: usize = 2000;
/// Most pairs of runs of holders that are looked at: a second or so.
const PAIRS_MAX: u64 = 64 << 20;

/// Clusters that pairs of holders have in common.
pub(super) struct Common {
    holders: usize,
    pairs: Vec<u64>,
}

impl Common {
    /// Adds up the sets, of which there are so many clusters each. `None`: there are too many holders or pairs.
    pub fn of(sets: &Sets, counts: &[u64], holders: usize) -> Option<Self> {
        if holders > SNAPSHOTS_MAX + 1 {
            return None;
        }
        let held = || counts.iter().zip(0..).filter(|(n, _)| **n > 0).map(|(n, id)| (*n, sets.spans(id)));
        let work: u64 = held().map(|(_, spans)| (spans.len() * spans.len()) as u64).sum();
        if work > PAIRS_MAX {
            return None;
        }
        // Sums are wrapped on the way: a corner may be subtracted before it was added.
        let side = holders + 1;
        let mut corners = vec![0u64; side * side];
        for (n, spans) in held() {
            for a in spans {
                for b in spans {
                    let (a0, a1, b0, b1) = (a.0 as usize, a.1 as usize + 1, b.0 as usize, b.1 as usize + 1);
                    for (row, column, n) in
                        [(a0, b0, n), (a1, b0, n.wrapping_neg()), (a0, b1, n.wrapping_neg()), (a1, b1, n)]
                    {
                        let corner = &mut corners[row * side + column];
                        *corner = corner.wrapping_add(n);
                    }
                }
            }
        }
        for row in 0..side {
            for column in 1..side {
                corners[row * side + column] =
                    corners[row * side + column].wrapping_add(corners[row * side + column - 1]);
            }
        }
        for at in side..side * side {
            corners[at] = corners[at].wrapping_add(corners[at - side]);
        }
        Some(Self { holders: side, pairs: corners })
    }

    fn get(&self, a: usize, b: usize) -> u64 {
        self.pairs[a * self.holders + b]
    }

    /// Where holder `of` came from; `None` for the oldest one.
    pub fn parent(&self, of: usize) -> Option<Parent> {
        // Most in common, then least that is not, then the newest.
        let fit = |older: usize| {
            let common = self.get(of, older);
            (common, u64::MAX - (self.get(older, older) - common))
        };
        let best = (0..of).map(fit).max()?;
        let fitting = || (0..of).filter(|older| fit(*older) == best);
        let evidence = match (best.0, fitting().count()) {
            (0, _) => return after_the_one_before(of),
            (_, 1) => Evidence::Clusters,
            _ => Evidence::ClustersAndOrder,
        };
        fitting().next_back().map(|snapshot| Parent { snapshot: snapshot as u32, evidence })
    }
}

/// Where a holder came from, when only the order is known.
pub(super) fn after_the_one_before(of: usize) -> Option<Parent> {
    of.checked_sub(1).map(|before| Parent { snapshot: before as u32, evidence: Evidence::Order })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parents from the clusters that each holder has, in the order of creation.
    fn parents(holders: &[&[u32]]) -> Vec<Option<(u32, Evidence)>> {
        let mut sets = Sets::new(holders.len() as u32);
        let mut counts = Vec::new();
        for cluster in 0..64 {
            let spans: Vec<(u32, u32)> = (0u32..)
                .zip(holders)
                .filter(|(_, has)| has.contains(&cluster))
                .map(|(h, _)| (h, h))
                .collect();
            let set = sets.of(&spans) as usize;
            counts.resize(counts.len().max(set + 1), 0);
            counts[set] += u64::from(!spans.is_empty());
        }
        let common = Common::of(&sets, &counts, holders.len()).expect("few");
        for (a, b) in (0..holders.len()).flat_map(|a| (0..holders.len()).map(move |b| (a, b))) {
            let expected = holders[a].iter().filter(|c| holders[b].contains(c)).count() as u64;
            assert_eq!(common.get(a, b), expected, "{a} and {b}");
        }
        (0..holders.len()).map(|of| common.parent(of).map(|p| (p.snapshot, p.evidence))).collect()
    }

    #[test]
    fn a_line_is_told_from_branches() {
        use Evidence::{Clusters, ClustersAndOrder, Order};
        // Each overwrites something of the one before.
        let line: &[&[u32]] = &[&[1, 2, 3, 4], &[1, 2, 3, 5], &[1, 2, 6, 5], &[1, 7, 6, 5]];
        assert_eq!(parents(line), [None, Some((0, Clusters)), Some((1, Clusters)), Some((2, Clusters))]);
        // The third goes back to the first, the disk to the second.
        let back: &[&[u32]] = &[&[1, 2, 3, 4], &[1, 2, 3, 5], &[1, 2, 6, 4], &[1, 7, 3, 5]];
        assert_eq!(parents(back), [None, Some((0, Clusters)), Some((0, Clusters)), Some((1, Clusters))]);
        // One that only added: what goes on from it has more in common with it, what goes on from the first has not.
        let added: &[&[u32]] = &[&[1, 2], &[1, 2, 3], &[1, 4], &[1, 2, 3, 5]];
        assert_eq!(parents(added), [None, Some((0, Clusters)), Some((0, Clusters)), Some((1, Clusters))]);
        // Nothing in between, and nothing in common.
        let same: &[&[u32]] = &[&[1, 2], &[1, 2], &[1, 2, 3], &[9]];
        assert_eq!(parents(same), [None, Some((0, Clusters)), Some((1, ClustersAndOrder)), Some((2, Order))]);
    }
}
