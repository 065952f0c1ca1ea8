//! What is known of each host cluster: how often it is referenced, and by whom.
//!
//! Cells live in leaves of 64 that come into being on first touch, below two levels of index, so memory
//! follows the referenced clusters and not the file length. Everything is kept for the next check;
//! clearing costs as much as was touched.

use std::collections::BTreeMap;

use crate::error::CheckError;
use crate::owner::{Owner, Owners};

const LEAF_BITS: u32 = 6;
const MID_BITS: u32 = 9;
const LEAF: usize = 1 << LEAF_BITS;
const MID: usize = 1 << MID_BITS;
const LEAF_MASK: u64 = (1 << LEAF_BITS) - 1;
const MID_MASK: u64 = (1 << MID_BITS) - 1;
/// Mids found by direct index: 2^31 clusters, 1 TiB at 512 bytes. Those above are in a map.
const NEAR_MAX: usize = 1 << 16;
/// Leaves kept between checks; a huge image does not pin its memory for ever.
const LEAVES_KEPT_MAX: usize = 1 << 14;

/// What is known of one host cluster.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cell {
    /// References, saturating.
    pub(crate) references: u64,
    pub(crate) owners: Owners,
    pub(crate) flags: u16,
}

/// Two owners that may not share a cluster.
pub(crate) const OVERLAP: u16 = 1 << 0;
/// An entry of the active tables with COPIED set points here.
pub(crate) const SEEN_COPIED: u16 = 1 << 1;
/// An entry of the active tables with COPIED clear points here.
pub(crate) const SEEN_UNCOPIED: u16 = 1 << 2;
/// Exactly one entry of the active tables pointed here so far, or more.
pub(crate) const ACTIVE: u16 = 1 << 3;
/// Two or more entries of the active tables point here.
pub(crate) const ACTIVE_TWICE: u16 = 1 << 4;
/// The refcount is known and not zero.
pub(crate) const COUNTED: u16 = 1 << 5;
/// COPIED is set in some active entry though the refcount is not one.
pub(crate) const WRONGLY_COPIED: u16 = 1 << 6;
/// COPIED is clear in some active entry though the refcount is one.
pub(crate) const WRONGLY_UNCOPIED: u16 = 1 << 7;

/// The cells of an image.
#[derive(Debug)]
pub(crate) struct Cells {
    /// Index of mids, plus one; zero is none.
    near: Vec<u32>,
    far: BTreeMap<u64, u32>,
    mids: Vec<[u32; MID]>,
    mid_keys: Vec<u64>,
    leaves: Vec<[Cell; LEAF]>,
    leaf_keys: Vec<u64>,
    leaves_max: usize,
}

impl Cells {
    pub(crate) fn new(memory_bytes_max: u64) -> Self {
        let per_leaf = u64::try_from(size_of::<[Cell; LEAF]>()).unwrap_or(1024).max(1);
        let leaves_max = memory_bytes_max.checked_div(per_leaf).unwrap_or(0);
        Cells {
            near: Vec::new(),
            far: BTreeMap::new(),
            mids: Vec::new(),
            mid_keys: Vec::new(),
            leaves: Vec::new(),
            leaf_keys: Vec::new(),
            leaves_max: usize::try_from(leaves_max).unwrap_or(usize::MAX),
        }
    }

    /// Forgets everything, keeps the memory.
    pub(crate) fn clear(&mut self) {
        for key in &self.mid_keys {
            if let Some(slot) = usize::try_from(*key).ok().and_then(|key| self.near.get_mut(key)) {
                *slot = 0;
            }
        }
        self.far.clear();
        for mid in self.mids.iter_mut().take(self.mid_keys.len()) {
            mid.fill(0);
        }
        for leaf in self.leaves.iter_mut().take(self.leaf_keys.len()) {
            leaf.fill(Cell::default());
        }
        self.mid_keys.clear();
        self.leaf_keys.clear();
        if self.leaves.len() > LEAVES_KEPT_MAX {
            self.leaves = Vec::new();
            self.mids = Vec::new();
        }
    }

    /// The cell of a cluster that was touched before.
    pub(crate) fn get_mut(&mut self, cluster: u64) -> Option<&mut Cell> {
        let leaf = self.leaf(cluster)?;
        self.leaves.get_mut(leaf)?.get_mut(cell_index(cluster))
    }

    /// The flags of a cluster, zero if it was never touched.
    pub(crate) fn flags(&self, cluster: u64) -> u16 {
        self.leaf(cluster)
            .and_then(|leaf| self.leaves.get(leaf)?.get(cell_index(cluster)))
            .map_or(0, |cell| cell.flags)
    }

    /// Counts `references` by `owner` and returns the cell. Owners that may not share mark it.
    pub(crate) fn add(
        &mut self,
        cluster: u64,
        owner: Owner,
        references: u64,
    ) -> Result<&mut Cell, CheckError> {
        let cell = self.touch(cluster)?;
        let shared = references > 1 || !cell.owners.is_empty();
        let others = !cell.owners.is_empty() && cell.owners != owner.into();
        if others || (shared && !owner.may_be_shared()) {
            cell.flags |= OVERLAP;
        }
        cell.owners.insert(owner);
        cell.references = cell.references.saturating_add(references);
        Ok(cell)
    }

    /// Calls `each` with every referenced cluster in ascending order.
    pub(crate) fn for_each(&mut self, mut each: impl FnMut(u64, &mut Cell)) {
        let mut order: Vec<(u64, usize)> = self.leaf_keys.iter().copied().zip(0..).collect();
        order.sort_unstable();
        for (key, leaf) in order {
            let Some(cells) = self.leaves.get_mut(leaf) else { continue };
            let mut cluster = key.wrapping_shl(LEAF_BITS);
            for cell in cells {
                if cell.references > 0 {
                    each(cluster, cell);
                }
                cluster = cluster.wrapping_add(1);
            }
        }
    }

    fn touch(&mut self, cluster: u64) -> Result<&mut Cell, CheckError> {
        let leaf = match self.leaf(cluster) {
            Some(leaf) => leaf,
            None => self.new_leaf(cluster)?,
        };
        self.leaves
            .get_mut(leaf)
            .and_then(|leaf| leaf.get_mut(cell_index(cluster)))
            .ok_or(CheckError::MemoryLimit)
    }

    fn leaf(&self, cluster: u64) -> Option<usize> {
        let mid = self.mid(cluster.wrapping_shr(LEAF_BITS + MID_BITS))?;
        slot(*self.mids.get(mid)?.get(mid_index(cluster))?)
    }

    fn mid(&self, key: u64) -> Option<usize> {
        match usize::try_from(key) {
            Ok(near) if near < NEAR_MAX => slot(*self.near.get(near)?),
            _ => slot(*self.far.get(&key)?),
        }
    }

    fn new_leaf(&mut self, cluster: u64) -> Result<usize, CheckError> {
        // Index memory counts too: a mid is worth two leaves.
        let used = self.leaf_keys.len().saturating_add(self.mid_keys.len().saturating_mul(2));
        if used >= self.leaves_max {
            return Err(CheckError::MemoryLimit);
        }
        let key = cluster.wrapping_shr(LEAF_BITS + MID_BITS);
        let mid = match self.mid(key) {
            Some(mid) => mid,
            None => self.new_mid(key)?,
        };
        let leaf = self.leaf_keys.len();
        if leaf == self.leaves.len() {
            self.leaves.push([Cell::default(); LEAF]);
        }
        self.leaf_keys.push(cluster.wrapping_shr(LEAF_BITS));
        if let Some(entry) = self.mids.get_mut(mid).and_then(|mid| mid.get_mut(mid_index(cluster))) {
            *entry = number(leaf)?;
        }
        Ok(leaf)
    }

    fn new_mid(&mut self, key: u64) -> Result<usize, CheckError> {
        let mid = self.mid_keys.len();
        if mid == self.mids.len() {
            self.mids.push([0; MID]);
        }
        self.mid_keys.push(key);
        let number = number(mid)?;
        match usize::try_from(key) {
            Ok(near) if near < NEAR_MAX => {
                if near >= self.near.len() {
                    self.near.resize(near.saturating_add(1), 0);
                }
                if let Some(entry) = self.near.get_mut(near) {
                    *entry = number;
                }
            }
            _ => {
                self.far.insert(key, number);
            }
        }
        Ok(mid)
    }
}

fn cell_index(cluster: u64) -> usize {
    usize::try_from(cluster & LEAF_MASK).unwrap_or(0)
}

fn mid_index(cluster: u64) -> usize {
    usize::try_from(cluster.wrapping_shr(LEAF_BITS) & MID_MASK).unwrap_or(0)
}

fn slot(number: u32) -> Option<usize> {
    usize::try_from(number.checked_sub(1)?).ok()
}

fn number(slot: usize) -> Result<u32, CheckError> {
    u32::try_from(slot.saturating_add(1)).map_err(|_| CheckError::MemoryLimit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_near_and_far_are_found_again_in_order() {
        let mut cells = Cells::new(1 << 20);
        let clusters = [1u64 << 54, 3, 1 << 31, 0, 64, 1 << 20];
        for round in 1..=2 {
            for cluster in clusters {
                cells.add(cluster, Owner::Data, round).unwrap();
            }
            let mut seen = Vec::new();
            cells.for_each(|cluster, cell| seen.push((cluster, cell.references)));
            let mut expect = clusters.map(|cluster| (cluster, round)).to_vec();
            expect.sort_unstable();
            assert_eq!(seen, expect);
            cells.clear();
            assert!(cells.get_mut(3).is_none());
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut cells = Cells::new(100 << 10);
        let error = (0..1000).find_map(|step| cells.add(step << 40, Owner::Data, 1).err());
        assert!(matches!(error, Some(CheckError::MemoryLimit)));
    }

    #[test]
    fn only_mapped_clusters_may_be_shared() {
        let mut cells = Cells::new(1 << 20);
        assert_eq!(cells.add(1, Owner::Data, 2).unwrap().flags, 0);
        assert_eq!(cells.add(1, Owner::Data, 1).unwrap().flags, 0);
        assert_eq!(cells.add(1, Owner::Compressed, 1).unwrap().flags, OVERLAP);
        assert_eq!(cells.add(2, Owner::ActiveL1, 2).unwrap().flags, OVERLAP);
        assert_eq!(cells.add(3, Owner::Refblock, 1).unwrap().flags, 0);
        assert_eq!(cells.add(3, Owner::Refblock, 1).unwrap().flags, OVERLAP);
    }
}
