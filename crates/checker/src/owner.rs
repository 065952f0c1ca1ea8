//! Who may own a host cluster, and the places a finding can point at.

use std::fmt;

/// A kind of structure that references host clusters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// The header cluster.
    Header,
    /// The refcount table.
    Reftable,
    /// A refcount block.
    Refblock,
    /// The active L1 table.
    ActiveL1,
    /// A snapshot's L1 table.
    SnapshotL1,
    /// An L2 table.
    L2,
    /// The snapshot table.
    SnapshotTable,
    /// The bitmap directory.
    BitmapDirectory,
    /// A bitmap table.
    BitmapTable,
    /// Data of a bitmap.
    BitmapData,
    /// The LUKS header.
    Luks,
    /// A guest cluster (also a preallocated one that reads as zeroes).
    Data,
    /// Compressed guest clusters, several of which may lie in one host cluster.
    Compressed,
}

const OWNERS: [(Owner, &str); 13] = [
    (Owner::Header, "header"),
    (Owner::Reftable, "refcount table"),
    (Owner::Refblock, "refcount block"),
    (Owner::ActiveL1, "active L1 table"),
    (Owner::SnapshotL1, "snapshot L1 table"),
    (Owner::L2, "L2 table"),
    (Owner::SnapshotTable, "snapshot table"),
    (Owner::BitmapDirectory, "bitmap directory"),
    (Owner::BitmapTable, "bitmap table"),
    (Owner::BitmapData, "bitmap data"),
    (Owner::Luks, "LUKS header"),
    (Owner::Data, "data"),
    (Owner::Compressed, "compressed data"),
];

impl Owner {
    /// True if several references of this kind to one cluster are allowed: the refcount then says that
    /// a write must copy. All other structures are changed in place and must be alone.
    pub fn may_be_shared(self) -> bool {
        matches!(self, Owner::L2 | Owner::Data | Owner::Compressed)
    }
}

/// A set of [`Owner`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owners(u16);

impl Owners {
    /// True if nobody is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True if `owner` is in the set.
    pub fn contains(self, owner: Owner) -> bool {
        self.0 & Owners::from(owner).0 != 0
    }

    pub(crate) fn insert(&mut self, owner: Owner) {
        self.0 |= Owners::from(owner).0;
    }
}

impl From<Owner> for Owners {
    fn from(owner: Owner) -> Self {
        Owners(1u16.wrapping_shl(owner as u32))
    }
}

impl fmt::Display for Owners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (owner, name) in OWNERS {
            if self.contains(owner) {
                write!(f, "{separator}{name}")?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// A table that a finding points into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structure {
    /// The refcount table.
    Reftable,
    /// The active L1 table.
    ActiveL1,
    /// The L1 table of the snapshot with this index. When tables overlap, one that covers the entry.
    SnapshotL1(u32),
    /// An L2 table reachable from this entry of the active L1 table (the lowest one).
    ActiveL2 {
        /// Index into the active L1 table.
        l1_index: u32,
    },
    /// An L2 table reachable from snapshots only.
    SnapshotL2,
    /// The snapshot table.
    SnapshotTable,
    /// The bitmap directory.
    BitmapDirectory,
    /// The table of the bitmap with this index.
    BitmapTable(u32),
    /// The LUKS header.
    Luks,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Structure::Reftable => f.write_str("refcount table"),
            Structure::ActiveL1 => f.write_str("active L1 table"),
            Structure::SnapshotL1(index) => write!(f, "L1 table of snapshot {index}"),
            Structure::ActiveL2 { l1_index } => write!(f, "L2 table (l1_index {l1_index})"),
            Structure::SnapshotL2 => f.write_str("L2 table (snapshots only)"),
            Structure::SnapshotTable => f.write_str("snapshot table"),
            Structure::BitmapDirectory => f.write_str("bitmap directory"),
            Structure::BitmapTable(index) => write!(f, "table of bitmap {index}"),
            Structure::Luks => f.write_str("LUKS header"),
        }
    }
}

/// One entry of one table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which table.
    pub structure: Structure,
    /// Host offset of the table in bytes.
    pub table: u64,
    /// Index of the entry.
    pub index: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}, entry {}", self.structure, self.table, self.index)
    }
}
