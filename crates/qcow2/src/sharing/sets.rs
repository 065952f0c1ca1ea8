//! Sets of holders, each made once and named by a number.
//!
//! Holders are numbered in the order of their creation, and what a history leaves behind is held by runs of them. So
//! a set is a list of runs, and there are far fewer sets than clusters. Where a damaged or hostile image makes too
//! many, further ones become [`MANY`]: held by several, of whom nothing more is known.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use crate::cache::KeyHasher;

/// The number of a set.
pub(super) type SetId = u32;

/// Held by nobody.
pub(super) const NOBODY: SetId = 0;
/// Held by several, unknown who.
pub(super) const MANY: SetId = 1;
/// The set with holder 0 alone; those of the other holders follow.
const FIRST_SINGLE: SetId = 2;

/// Most runs in all sets together: 32 MiB of them.
const SPANS_MAX: usize = 4 << 20;
/// Unions that are remembered at once: 16 MiB of them.
const UNIONS_MAX: usize = 1 << 20;

/// Holders in a row, the first and the last.
pub(super) type Span = (u32, u32);

/// See the module.
pub(super) struct Sets {
    /// `NOBODY` and `MANY` are empty here.
    list: Vec<Arc<[Span]>>,
    known: BTreeMap<Arc<[Span]>, SetId>,
    unions: HashMap<u64, SetId, BuildHasherDefault<KeyHasher>>,
    spans_left: usize,
}

impl Sets {
    /// The sets of one holder each.
    pub fn new(holders: u32) -> Self {
        Self::with_room(holders, SPANS_MAX)
    }

    fn with_room(holders: u32, spans_left: usize) -> Self {
        let none: Arc<[Span]> = Arc::new([]);
        let mut list = vec![none.clone(), none];
        list.extend((0..holders).map(|holder| -> Arc<[Span]> { Arc::new([(holder, holder)]) }));
        let known = list.iter().cloned().zip(0..).skip(FIRST_SINGLE as usize).collect();
        Self { list, known, unions: HashMap::default(), spans_left }
    }

    /// The set of this holder alone.
    pub fn single(holder: u32) -> SetId {
        FIRST_SINGLE + holder
    }

    /// How many sets there are, `NOBODY` and `MANY` among them.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The runs of a set, in order and with gaps between them.
    pub fn spans(&self, id: SetId) -> &[Span] {
        &self.list[id as usize]
    }

    /// The set with these runs, sorted; they may touch and overlap.
    pub fn of(&mut self, spans: &[Span]) -> SetId {
        let mut merged: Vec<Span> = Vec::with_capacity(spans.len());
        for span in spans {
            match merged.last_mut() {
                Some(last) if span.0 <= last.1.saturating_add(1) => last.1 = last.1.max(span.1),
                _ => merged.push(*span),
            }
        }
        if merged.is_empty() {
            return NOBODY;
        }
        if let Some(id) = self.known.get(&merged[..]) {
            return *id;
        }
        if self.spans_left < merged.len() {
            return MANY;
        }
        self.spans_left -= merged.len();
        let (set, id): (Arc<[Span]>, _) = (merged.into(), self.list.len() as SetId);
        self.list.push(set.clone());
        self.known.insert(set, id);
        id
    }

    /// All who are in one of the two.
    #[inline]
    pub fn union(&mut self, a: SetId, b: SetId) -> SetId {
        match (a, b) {
            (NOBODY, other) | (other, NOBODY) => other,
            (MANY, _) | (_, MANY) => MANY,
            _ if a == b => a,
            _ => self.union_of_different(a.min(b), a.max(b)),
        }
    }

    fn union_of_different(&mut self, a: SetId, b: SetId) -> SetId {
        let key = u64::from(a) << 32 | u64::from(b);
        if let Some(id) = self.unions.get(&key) {
            return *id;
        }
        let mut spans = [self.spans(a), self.spans(b)].concat();
        spans.sort_unstable();
        let id = self.of(&spans);
        if self.unions.len() >= UNIONS_MAX {
            self.unions.clear();
        }
        self.unions.insert(key, id);
        id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_one_number_however_it_is_made() {
        let mut sets = Sets::new(10);
        let (a, b) = (sets.of(&[(1, 3)]), sets.of(&[(4, 4), (6, 6)]));
        let both = sets.union(a, b);
        assert_eq!(sets.spans(both), [(1, 4), (6, 6)]);
        assert_eq!((sets.of(&[(1, 2), (2, 4), (6, 6)]), sets.union(b, a)), (both, both));
        assert_eq!(sets.union(both, a), both);
        assert_eq!((sets.union(NOBODY, a), sets.union(MANY, a), sets.of(&[])), (a, MANY, NOBODY));
        assert_eq!((sets.of(&[(7, 7)]), sets.spans(Sets::single(7))), (Sets::single(7), &[(7, 7)][..]));
    }

    #[test]
    fn too_many_sets_become_one() {
        let mut sets = Sets::with_room(100, 3);
        let (pair, three) = (sets.of(&[(1, 2)]), sets.of(&[(1, 1), (3, 3), (5, 5)]));
        assert!(pair > MANY && three == MANY);
        assert_eq!((sets.of(&[(1, 2)]), sets.union(pair, Sets::single(9))), (pair, sets.len() as SetId - 1));
        assert_eq!(sets.union(Sets::single(20), Sets::single(40)), MANY);
        assert_eq!(sets.of(&[(50, 50)]), Sets::single(50), "one holder is always known");
    }
}
