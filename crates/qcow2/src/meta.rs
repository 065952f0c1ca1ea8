//! Where the metadata of an image lies, for the check before each write.
//!
//! An image whose refcounts are wrong could make the allocator hand out a cluster that holds a table, and a
//! hostile one could point guest data there. Both are found here, before anything is written
//! (qcow2's `overlap-check=cached`). Cost: one bit per metadata cluster, compressed.

use std::ops::Range;

use roaring::RoaringTreemap;

/// The clusters of an image that hold metadata.
#[derive(Default)]
pub(crate) struct MetaMap {
    /// Ranges of host clusters with the name of their structure: few.
    fixed: Vec<(Range<u64>, &'static str)>,
    l2_tables: RoaringTreemap,
    refblocks: RoaringTreemap,
}

/// The kinds of tables whose number is not bounded by the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableKind {
    L2,
    Refblock,
}

pub(crate) const HEADER: &str = "qcow2_header";
pub(crate) const ACTIVE_L1: &str = "active L1 table";
pub(crate) const REFTABLE: &str = "refcount table";
pub(crate) const SNAPSHOT_TABLE: &str = "snapshot table";
pub(crate) const BITMAP_DIRECTORY: &str = "bitmap directory";
pub(crate) const INACTIVE_L1: &str = "inactive L1 table";

impl MetaMap {
    /// Adds the clusters of a structure that exists once or a few times.
    pub fn add_fixed(&mut self, clusters: Range<u64>, name: &'static str) {
        if !clusters.is_empty() {
            self.fixed.push((clusters, name));
        }
    }

    /// Forgets the structures of this name.
    pub fn remove_fixed(&mut self, name: &'static str) {
        self.fixed.retain(|(_, n)| *n != name);
    }

    /// Adds a table.
    pub fn add_table(&mut self, kind: TableKind, cluster: u64) {
        self.tables(kind).insert(cluster);
    }

    /// Forgets a table.
    pub fn remove_table(&mut self, kind: TableKind, cluster: u64) {
        self.tables(kind).remove(cluster);
    }

    /// The name of a structure that lies in one of these clusters.
    #[inline]
    pub fn overlap(&self, clusters: Range<u64>) -> Option<&'static str> {
        let fixed = self.fixed.iter().find(|(r, _)| r.start < clusters.end && clusters.start < r.end);
        if let Some((_, name)) = fixed {
            return Some(name);
        }
        let holds = |map: &RoaringTreemap| match clusters.end - clusters.start {
            1 => map.contains(clusters.start),
            _ => map.range_cardinality(clusters.clone()) > 0,
        };
        if holds(&self.l2_tables) {
            Some("active L2 table")
        } else if holds(&self.refblocks) {
            Some("refcount block")
        } else {
            None
        }
    }

    fn tables(&mut self, kind: TableKind) -> &mut RoaringTreemap {
        match kind {
            TableKind::L2 => &mut self.l2_tables,
            TableKind::Refblock => &mut self.refblocks,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_named() {
        let mut map = MetaMap::default();
        map.add_fixed(0..1, HEADER);
        map.add_fixed(3..5, ACTIVE_L1);
        map.add_table(TableKind::L2, 9);
        assert_eq!(map.overlap(0..1), Some(HEADER));
        assert_eq!(map.overlap(4..9), Some(ACTIVE_L1));
        assert_eq!(map.overlap(5..10), Some("active L2 table"));
        assert_eq!(map.overlap(5..9), None);
        map.remove_table(TableKind::L2, 9);
        assert_eq!(map.overlap(5..10), None);
    }
}
