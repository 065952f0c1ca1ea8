//! Where the metadata of an image lies, for the check before each write.
//!
//! An image whose refcounts are wrong could make the allocator hand out a cluster that holds a table, and a
//! hostile one could point guest data there. Both are found here, before anything is written
//! (qcow2's `overlap-check=cached`). Cost: one bit per metadata cluster, compressed.

use std::fmt;
use std::ops::Range;

use bitflags::bitflags;
use roaring::RoaringTreemap;

bitflags! {
    /// Structures that no write may hit (option `overlap-check`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct OverlapChecks: u16 {
        /// The header's cluster.
        const MAIN_HEADER = 1;
        /// The L1 table in use.
        const ACTIVE_L1 = 1 << 1;
        /// Its L2 tables.
        const ACTIVE_L2 = 1 << 2;
        /// The refcount table.
        const REFCOUNT_TABLE = 1 << 3;
        /// Its blocks.
        const REFCOUNT_BLOCK = 1 << 4;
        /// The table of snapshots.
        const SNAPSHOT_TABLE = 1 << 5;
        /// The snapshots' L1 tables.
        const INACTIVE_L1 = 1 << 6;
        /// Their L2 tables: they are read for this when writing begins.
        const INACTIVE_L2 = 1 << 7;
        /// The directory of bitmaps.
        const BITMAP_DIRECTORY = 1 << 8;
    }
}

impl OverlapChecks {
    /// What lies at a place that the header tells (template `constant`).
    pub const CONSTANT: Self = Self::MAIN_HEADER
        .union(Self::ACTIVE_L1)
        .union(Self::REFCOUNT_TABLE)
        .union(Self::SNAPSHOT_TABLE)
        .union(Self::BITMAP_DIRECTORY);
    /// And what the tables in use tell (template `cached`).
    pub const CACHED: Self =
        Self::CONSTANT.union(Self::ACTIVE_L2).union(Self::REFCOUNT_BLOCK).union(Self::INACTIVE_L1);
}

impl Default for OverlapChecks {
    fn default() -> Self {
        Self::CACHED
    }
}

/// The clusters of an image that hold metadata.
#[derive(Default)]
pub(crate) struct MetaMap {
    checks: OverlapChecks,
    /// L1 tables of snapshots: there may be thousands.
    inactive_l1: RoaringTreemap,
    /// Ranges of host clusters with their structure: few.
    fixed: Vec<(Range<u64>, Structure)>,
    l2_tables: RoaringTreemap,
    refblocks: RoaringTreemap,
    inactive_l2_tables: RoaringTreemap,
}

/// The kinds of tables whose number is not bounded by the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableKind {
    L2,
    Refblock,
    InactiveL2,
}

/// What metadata is; shown as in the reference's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Structure {
    Header,
    ActiveL1,
    ActiveL2,
    RefcountTable,
    RefcountBlock,
    SnapshotTable,
    InactiveL1,
    InactiveL2,
    BitmapDirectory,
    CryptoHeader,
}

impl Structure {
    fn check(self) -> OverlapChecks {
        match self {
            // The reference has no class for it.
            Self::Header | Self::CryptoHeader => OverlapChecks::MAIN_HEADER,
            Self::ActiveL1 => OverlapChecks::ACTIVE_L1,
            Self::ActiveL2 => OverlapChecks::ACTIVE_L2,
            Self::RefcountTable => OverlapChecks::REFCOUNT_TABLE,
            Self::RefcountBlock => OverlapChecks::REFCOUNT_BLOCK,
            Self::SnapshotTable => OverlapChecks::SNAPSHOT_TABLE,
            Self::InactiveL1 => OverlapChecks::INACTIVE_L1,
            Self::InactiveL2 => OverlapChecks::INACTIVE_L2,
            Self::BitmapDirectory => OverlapChecks::BITMAP_DIRECTORY,
        }
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Header => "qcow2_header",
            Self::ActiveL1 => "active L1 table",
            Self::ActiveL2 => "active L2 table",
            Self::RefcountTable => "refcount table",
            Self::RefcountBlock => "refcount block",
            Self::SnapshotTable => "snapshot table",
            Self::InactiveL1 => "inactive L1 table",
            Self::InactiveL2 => "inactive L2 table",
            Self::BitmapDirectory => "bitmap directory",
            Self::CryptoHeader => "encryption header",
        })
    }
}

impl MetaMap {
    /// An empty map in which only these structures count.
    pub fn new(checks: OverlapChecks) -> Self {
        Self { checks, ..Self::default() }
    }

    /// Whether the tables of snapshots must be read.
    pub fn wants_inactive_l2(&self) -> bool {
        self.checks.contains(OverlapChecks::INACTIVE_L2)
    }

    /// Adds the clusters of a structure that is named by the header or by an entry of the snapshot table.
    pub fn add_fixed(&mut self, clusters: Range<u64>, structure: Structure) {
        if structure == Structure::InactiveL1 {
            self.inactive_l1.insert_range(clusters);
        } else if !clusters.is_empty() {
            self.fixed.push((clusters, structure));
        }
    }

    /// The clusters of what the header names.
    pub fn fixed(&self) -> impl Iterator<Item = Range<u64>> {
        self.fixed.iter().map(|(clusters, _)| clusters.clone())
    }

    /// Forgets the structures of this kind.
    pub fn remove_fixed(&mut self, structure: Structure) {
        self.fixed.retain(|(_, s)| *s != structure);
    }

    /// Adds a table.
    pub fn add_table(&mut self, kind: TableKind, cluster: u64) {
        self.tables(kind).insert(cluster);
    }

    /// Forgets a table.
    pub fn remove_table(&mut self, kind: TableKind, cluster: u64) {
        self.tables(kind).remove(cluster);
    }

    /// A structure that lies in one of these clusters and must not be hit.
    #[inline]
    pub fn overlap(&self, clusters: Range<u64>) -> Option<Structure> {
        let counts = |structure: Structure| self.checks.contains(structure.check());
        let fixed =
            self.fixed.iter().find(|(r, s)| r.start < clusters.end && clusters.start < r.end && counts(*s));
        if let Some((_, structure)) = fixed {
            return Some(*structure);
        }
        let holds = |map: &RoaringTreemap| match clusters.end - clusters.start {
            1 => map.contains(clusters.start),
            _ => map.range_cardinality(clusters.clone()) > 0,
        };
        [
            (Structure::ActiveL2, &self.l2_tables),
            (Structure::RefcountBlock, &self.refblocks),
            (Structure::InactiveL1, &self.inactive_l1),
            (Structure::InactiveL2, &self.inactive_l2_tables),
        ]
        .into_iter()
        .find_map(|(structure, map)| (counts(structure) && holds(map)).then_some(structure))
    }

    fn tables(&mut self, kind: TableKind) -> &mut RoaringTreemap {
        match kind {
            TableKind::L2 => &mut self.l2_tables,
            TableKind::Refblock => &mut self.refblocks,
            TableKind::InactiveL2 => &mut self.inactive_l2_tables,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_named() {
        let mut map = MetaMap::default();
        map.add_fixed(0..1, Structure::Header);
        map.add_fixed(3..5, Structure::ActiveL1);
        map.add_table(TableKind::L2, 9);
        assert_eq!(map.overlap(0..1), Some(Structure::Header));
        assert_eq!(map.overlap(4..9), Some(Structure::ActiveL1));
        assert_eq!(map.overlap(5..10), Some(Structure::ActiveL2));
        assert_eq!(map.overlap(5..9), None);
        map.remove_table(TableKind::L2, 9);
        assert_eq!(map.overlap(5..10), None);
        map.add_fixed(20..22, Structure::InactiveL1);
        assert_eq!(map.overlap(21..30), Some(Structure::InactiveL1));
        map.add_table(TableKind::InactiveL2, 9);
        assert_eq!(map.overlap(9..10), None, "not among the checks by default");
    }

    #[test]
    fn only_what_is_checked_counts() {
        let mut map = MetaMap::new(OverlapChecks::INACTIVE_L2);
        map.add_fixed(0..1, Structure::Header);
        map.add_table(TableKind::InactiveL2, 9);
        assert_eq!((map.overlap(0..5), map.overlap(5..10)), (None, Some(Structure::InactiveL2)));
    }
}
