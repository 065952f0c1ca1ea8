//! Address spaces of an image, and the one value that converts between them.
//!
//! A guest offset (a plain `u64` of a request) falls into a [`GuestCluster`], which an L2 entry maps to a
//! [`HostOffset`]. Refcounts are kept per [`HostCluster`]. All conversions live on [`Geometry`].

use std::fmt;
use std::ops::Range;

/// Smallest `cluster_bits` of the format: 512 bytes (qcow2 specification, header).
pub const CLUSTER_BITS_MIN: u32 = 9;
/// Largest `cluster_bits` that the reference accepts: 2 MiB.
pub const CLUSTER_BITS_MAX: u32 = 21;
/// Bytes of one cached slice of a table, unless the cluster is smaller: small enough that a random read brings
/// in little, large enough for one host I/O.
pub const SLICE_BYTES: u32 = 4096;

/// Subclusters of a cluster with extended L2 entries.
pub const SUBCLUSTERS: u32 = 32;

/// Number of a cluster of the guest's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestCluster(pub u64);

/// Byte offset in the image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostOffset(pub u64);

/// Number of a cluster of the image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostCluster(pub u64);

impl fmt::Display for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The sizes an image's header fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Log2 of the bits of one refcount, 0 to 6.
    pub refcount_order: u32,
    /// Bytes of a cached table slice: a power of two of at most one cluster.
    pub slice_bytes: u32,
    /// What an L2 entry says.
    pub l2_format: L2Format,
    /// Where the guest's data lies.
    pub data_place: DataPlace,
}

/// The two forms of L2 entries (qcow2 specification, *L2 table entry* and *Extended L2 Entries*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Format {
    /// 8 bytes; a cluster is of one kind.
    Standard,
    /// 16 bytes with a bitmap; each of 32 subclusters has its kind.
    Extended,
}

/// Which file holds the guest's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlace {
    /// The image file, where refcounts tell what is free.
    Image,
    /// Another file, each cluster at its guest offset; no refcounts.
    External,
}

impl Geometry {
    /// The first byte of the disk that an entry of the L2 table with this L1 index maps; more than a disk can have where
    /// a damaged table says so.
    pub fn guest_of_entry(&self, l1_index: u32, entry: u32) -> u64 {
        let per_table = self.cluster_size() / self.l2_entry_bytes();
        (u64::from(l1_index) * per_table + u64::from(entry)).saturating_mul(self.cluster_size())
    }

    /// The geometry of an image; `slice_bytes` is brought into `512..=cluster_size`.
    pub fn new(cluster_bits: u32, refcount_order: u32, slice_bytes: u32) -> Self {
        assert!((CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&cluster_bits), "the header parser checks");
        assert!(refcount_order <= 6, "the header parser checks");
        let slice_bytes = slice_bytes.clamp(512, 1 << cluster_bits).next_power_of_two();
        let (l2_format, data_place) = (L2Format::Standard, DataPlace::Image);
        Self { cluster_bits, refcount_order, slice_bytes, l2_format, data_place }
    }

    /// The same with L2 entries of this form.
    #[must_use]
    pub fn with_l2(self, l2_format: L2Format) -> Self {
        assert!(l2_format == L2Format::Standard || self.cluster_bits >= 14, "the header parser checks");
        Self { l2_format, ..self }
    }

    /// The same with refcounts of `2^order` bits.
    #[must_use]
    pub fn with_refcounts(self, refcount_order: u32) -> Self {
        assert!(refcount_order <= 6, "the width was checked");
        Self { refcount_order, ..self }
    }

    /// The same with data in this place.
    #[must_use]
    pub fn with_data(self, data_place: DataPlace) -> Self {
        Self { data_place, ..self }
    }

    /// Bytes of one L2 entry.
    pub fn l2_entry_bytes(&self) -> u64 {
        match self.l2_format {
            L2Format::Standard => 8,
            L2Format::Extended => 16,
        }
    }

    /// Subclusters of a cluster: 1 with standard entries, where the cluster is the grain.
    pub fn subclusters(&self) -> u32 {
        match self.l2_format {
            L2Format::Standard => 1,
            L2Format::Extended => SUBCLUSTERS,
        }
    }

    /// Bytes of a subcluster.
    pub fn subcluster_size(&self) -> u64 {
        self.cluster_size() / u64::from(self.subclusters())
    }

    /// A bit for each of a cluster's subclusters.
    pub fn all_subclusters(&self) -> u32 {
        u32::MAX >> (SUBCLUSTERS - self.subclusters())
    }

    /// The subclusters that a range touches, which lies inside one cluster and is not empty; as bits.
    pub fn subclusters_of(&self, inside: Range<u64>) -> u32 {
        let size = self.subcluster_size();
        let (first, last) = (inside.start / size, (inside.end - 1) / size);
        (u32::MAX >> (u64::from(SUBCLUSTERS) - 1 - last)) & (u32::MAX << first)
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Position inside its cluster of any offset.
    pub fn in_cluster(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// The guest cluster of a guest offset.
    pub fn guest_cluster(&self, guest: u64) -> GuestCluster {
        GuestCluster(guest >> self.cluster_bits)
    }

    /// First guest offset of a cluster.
    pub fn guest_offset(&self, cluster: GuestCluster) -> u64 {
        cluster.0 << self.cluster_bits
    }

    /// The host cluster that holds a host offset.
    pub fn host_cluster(&self, host: HostOffset) -> HostCluster {
        HostCluster(host.0 >> self.cluster_bits)
    }

    /// First host offset of a cluster.
    pub fn host_offset(&self, cluster: HostCluster) -> HostOffset {
        HostOffset(cluster.0 << self.cluster_bits)
    }

    /// Clusters needed for `bytes`.
    pub fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// Whether a host offset is the beginning of a cluster.
    pub fn is_aligned(&self, host: HostOffset) -> bool {
        self.in_cluster(host.0) == 0
    }

    /// Entries of one L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() / self.l2_entry_bytes()
    }

    /// Entries of one slice of an L2 table.
    pub fn l2_slice_entries(&self) -> u64 {
        u64::from(self.slice_bytes) / self.l2_entry_bytes()
    }

    /// Entries of one slice of an L1 or refcount table, 8 bytes each.
    pub fn slice_entries(&self) -> u64 {
        u64::from(self.slice_bytes) / 8
    }

    /// Slices of one L2 table or refcount block.
    pub fn slices_per_cluster(&self) -> u64 {
        self.cluster_size() / u64::from(self.slice_bytes)
    }

    /// The L1 index that covers a guest cluster.
    pub fn l1_index(&self, cluster: GuestCluster) -> u64 {
        cluster.0 / self.l2_entries()
    }

    /// The number of the L2 slice that covers a guest cluster, counted over the whole disk.
    pub fn l2_slice(&self, cluster: GuestCluster) -> u64 {
        cluster.0 / self.l2_slice_entries()
    }

    /// L1 entries needed for a disk of `size` bytes.
    pub fn l1_entries_for(&self, size: u64) -> u64 {
        self.clusters_for(size).div_ceil(self.l2_entries())
    }

    /// Refcounts in one refcount block.
    pub fn refblock_entries(&self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// Refcounts in one slice of a refcount block.
    pub fn refslice_entries(&self) -> u64 {
        (u64::from(self.slice_bytes) * 8) >> self.refcount_order
    }

    /// Largest refcount the width can hold.
    pub fn refcount_max(&self) -> u64 {
        match self.refcount_order {
            6 => u64::MAX,
            order => (1 << (1u32 << order)) - 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_geometry_matches_the_format() {
        let g = Geometry::new(16, 4, SLICE_BYTES);
        assert_eq!((g.l2_entries(), g.slice_entries(), g.slices_per_cluster()), (8192, 512, 16));
        assert_eq!((g.refblock_entries(), g.refslice_entries(), g.refcount_max()), (32768, 2048, 65535));
        assert_eq!(g.l1_entries_for(512 << 20), 1);
        assert_eq!(g.l1_entries_for((512 << 20) + 1), 2);
    }

    #[test]
    fn subclusters_are_bits_of_their_cluster() {
        let g = Geometry::new(16, 4, SLICE_BYTES).with_l2(L2Format::Extended);
        assert_eq!((g.l2_entries(), g.l2_slice_entries(), g.subcluster_size()), (4096, 256, 2048));
        assert_eq!(g.subclusters_of(0..65536), u32::MAX);
        assert_eq!(g.subclusters_of(2047..2049), 0b11);
        assert_eq!(g.subclusters_of(63488..63489), 1 << 31);
        let standard = Geometry::new(16, 4, SLICE_BYTES);
        assert_eq!((standard.subclusters_of(5..600), standard.all_subclusters()), (1, 1));
    }

    #[test]
    fn slices_never_exceed_a_cluster() {
        let g = Geometry::new(9, 6, SLICE_BYTES);
        assert_eq!((g.slice_bytes, g.slices_per_cluster(), g.refblock_entries()), (512, 1, 64));
        assert_eq!(Geometry::new(9, 0, SLICE_BYTES).refblock_entries(), 4096);
    }
}
