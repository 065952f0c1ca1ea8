//! Entries of the L1, L2 and refcount tables, as enums; bit masks do not leave this module.
//!
//! qcow2 specification, *Cluster mapping* and *Refcount table*.

use std::ops::Range;

use crate::geometry::{DataPlace, Geometry, HostOffset, L2Format};

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const REFTABLE_OFFSET: u64 = 0xffff_ffff_ffff_fe00;

/// Whether a cluster is referenced exactly once, so that it may be written in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Refcount 1: the COPIED flag is set.
    Private,
    /// Possibly shared: copy before write.
    Shared,
}

impl Ownership {
    fn of(raw: u64) -> Self {
        if raw & COPIED != 0 { Self::Private } else { Self::Shared }
    }

    fn bit(self) -> u64 {
        match self {
            Self::Private => COPIED,
            Self::Shared => 0,
        }
    }
}

/// An entry of the L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L1Entry {
    /// No L2 table: everything it would cover is unallocated.
    Empty,
    /// The L2 table at this offset.
    Table(HostOffset, Ownership),
}

impl L1Entry {
    /// Decodes an entry; reserved bits are ignored here and reported by `check`.
    pub fn decode(raw: u64) -> Self {
        match raw & OFFSET_MASK {
            0 => Self::Empty,
            offset => Self::Table(HostOffset(offset), Ownership::of(raw)),
        }
    }

    /// The entry as stored.
    pub fn encode(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Table(offset, ownership) => offset.0 | ownership.bit(),
        }
    }

    /// Whether bits are set that the format reserves.
    pub fn has_reserved_bits(raw: u64) -> bool {
        raw & L1_RESERVED != 0
    }
}

/// Where a compressed cluster's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// First byte, at any alignment.
    pub offset: HostOffset,
    /// Bytes that may belong to it: up to the end of its last 512-byte sector.
    pub len: u64,
}

/// What an L2 entry refers to, without the bitmap of extended entries: for passes over references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Entry {
    /// Content comes from the backing file, or is zero.
    Unallocated,
    /// Reads as zeroes without storage.
    ZeroPlain,
    /// Reads as zeroes; a data cluster is kept for it.
    ZeroAllocated(HostOffset, Ownership),
    /// Stored as it is.
    Normal(HostOffset, Ownership),
    /// Stored compressed.
    Compressed(Compressed),
}

impl L2Entry {
    /// Decodes an entry; reserved bits are ignored here and reported by `check`.
    pub fn decode(raw: u64, geometry: &Geometry) -> Self {
        if raw & COMPRESSED != 0 {
            return Self::Compressed(Compressed::decode(raw, geometry));
        }
        let offset = HostOffset(raw & OFFSET_MASK);
        let stored = offset.0 != 0 || is_external_start(raw, geometry);
        let zero = raw & ZERO != 0 && geometry.l2_format == L2Format::Standard;
        match (stored, zero) {
            (false, false) => Self::Unallocated,
            (false, true) => Self::ZeroPlain,
            (true, true) => Self::ZeroAllocated(offset, Ownership::of(raw)),
            (true, false) => Self::Normal(offset, Ownership::of(raw)),
        }
    }

    /// Whether bits are set that the format reserves.
    pub fn has_reserved_bits(raw: u64, geometry: &Geometry) -> bool {
        let reserved = match geometry.l2_format {
            L2Format::Standard => L2_RESERVED,
            L2Format::Extended => L2_RESERVED | ZERO,
        };
        raw & COMPRESSED == 0 && raw & reserved != 0
    }

    /// Whether the COPIED flag is set, whatever the entry is.
    pub fn copied_flag(raw: u64) -> bool {
        raw & COPIED != 0
    }

    /// The raw entry with the COPIED flag set or cleared.
    pub fn with_copied_flag(raw: u64, ownership: Ownership) -> u64 {
        (raw & !COPIED) | ownership.bit()
    }

    /// Whether the entry is valid and reads as zeroes in a version that has no zero clusters.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::ZeroPlain | Self::ZeroAllocated(..))
    }
}

/// Offset 0 of an external data file is a place like any other; the flag tells it from no place at all.
fn is_external_start(raw: u64, geometry: &Geometry) -> bool {
    geometry.data_place == DataPlace::External && raw & COPIED != 0
}

/// Where a guest cluster's stored content lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Nowhere.
    None,
    /// In a host cluster.
    Cluster(HostOffset, Ownership),
    /// Compressed.
    Compressed(Compressed),
}

/// All that the tables say about one guest cluster, to the grain of subclusters. With standard entries the
/// cluster is its only subcluster.
///
/// Subclusters in neither mask come from the backing file, or are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// The cluster's storage; it may be kept although no subcluster uses it.
    pub storage: Storage,
    /// Subclusters whose content is in the storage; all of them if it is compressed.
    pub alloc: u32,
    /// Subclusters that read as zeroes.
    pub zero: u32,
}

impl Cell {
    /// Nothing is known here: the backing file shows.
    pub const UNALLOCATED: Self = Self { storage: Storage::None, alloc: 0, zero: 0 };

    /// Reads as zeroes, without storage.
    pub fn zeroes(geometry: &Geometry) -> Self {
        Self { storage: Storage::None, alloc: 0, zero: geometry.all_subclusters() }
    }

    /// Decodes an entry and, with extended entries, its bitmap; `None` when they contradict each other.
    pub fn decode(raw: u64, bitmap: u64, geometry: &Geometry) -> Option<Self> {
        let all = geometry.all_subclusters();
        let (storage, zero) = match L2Entry::decode(raw, geometry) {
            L2Entry::Unallocated => (Storage::None, 0),
            L2Entry::ZeroPlain => (Storage::None, all),
            L2Entry::ZeroAllocated(host, ownership) => (Storage::Cluster(host, ownership), all),
            L2Entry::Normal(host, ownership) => (Storage::Cluster(host, ownership), 0),
            L2Entry::Compressed(compressed) => {
                let storage = Storage::Compressed(compressed);
                return Some(Self { storage, alloc: all, zero: 0 });
            }
        };
        if geometry.l2_format == L2Format::Standard {
            let alloc = if matches!(storage, Storage::Cluster(..)) { all & !zero } else { 0 };
            return Some(Self { storage, alloc, zero });
        }
        let (alloc, zero) = (bitmap as u32, (bitmap >> 32) as u32);
        let sound = alloc & zero == 0 && (alloc == 0 || storage != Storage::None) && raw & ZERO == 0;
        sound.then_some(Self { storage, alloc, zero })
    }

    /// The entry and its bitmap as stored; the bitmap is not stored with standard entries.
    pub fn encode(self, geometry: &Geometry) -> (u64, u64) {
        let entry = match self.storage {
            Storage::None => 0,
            Storage::Cluster(host, ownership) => host.0 | ownership.bit(),
            Storage::Compressed(compressed) => return (compressed.encode(geometry), 0),
        };
        match geometry.l2_format {
            L2Format::Standard => {
                assert!(self.storage == Storage::None || self.alloc | self.zero == 1, "stored or zero");
                (entry | u64::from(self.zero), 0)
            }
            L2Format::Extended => (entry, u64::from(self.alloc) | u64::from(self.zero) << 32),
        }
    }
}

impl Compressed {
    /// Bits of the descriptor that hold the offset (specification: x = 62 - (cluster_bits - 8)).
    fn offset_bits(geometry: &Geometry) -> u32 {
        62 - (geometry.cluster_bits - 8)
    }

    /// One byte past the last that a descriptor can name.
    pub fn offset_limit(geometry: &Geometry) -> u64 {
        (1 << Self::offset_bits(geometry)).min(1 << 56)
    }

    fn decode(raw: u64, geometry: &Geometry) -> Self {
        let bits = Self::offset_bits(geometry);
        let offset = raw & ((1 << bits) - 1);
        let sectors = (raw >> bits) & ((1 << (62 - bits)) - 1);
        Self { offset: HostOffset(offset), len: (sectors + 1) * 512 - (offset & 511) }
    }

    fn encode(self, geometry: &Geometry) -> u64 {
        let bits = Self::offset_bits(geometry);
        let sectors = ((self.offset.0 & 511) + self.len - 1) / 512;
        COMPRESSED | (sectors << bits) | self.offset.0
    }

    /// The host clusters that it touches.
    pub fn clusters(self, geometry: &Geometry) -> Range<u64> {
        let last = HostOffset(self.offset.0 + self.len - 1);
        geometry.host_cluster(self.offset).0..geometry.host_cluster(last).0 + 1
    }
}

/// Makes an L2 entry as stored, of 8 bytes or of 16 with a bitmap, read as zeroes without storage. Subclusters that
/// came from the backing file go on doing so.
pub fn make_zero(entry: &mut [u8]) {
    let Some((word, bitmap)) = entry.split_first_chunk_mut::<8>() else { return };
    match bitmap.first_chunk_mut::<8>() {
        None => *word = ZERO.to_be_bytes(),
        Some(bitmap) => {
            let old = u64::from_be_bytes(*bitmap);
            *word = [0; 8];
            *bitmap = ((old | old << 32) & !u64::from(u32::MAX)).to_be_bytes();
        }
    }
}

/// Decodes an entry of the refcount table: where the refcount block lies.
pub fn refblock_offset(raw: u64) -> Option<HostOffset> {
    match raw & REFTABLE_OFFSET {
        0 => None,
        offset => Some(HostOffset(offset)),
    }
}

/// Whether a refcount table entry sets bits that the format reserves.
pub fn reftable_has_reserved_bits(raw: u64) -> bool {
    raw & !REFTABLE_OFFSET != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_survive_a_round_trip() {
        let standard = Geometry::new(16, 4, 4096);
        let extended = standard.with_l2(L2Format::Extended);
        let at = Storage::Cluster(HostOffset(0x5_0000), Ownership::Private);
        let cell = |storage, alloc, zero| Cell { storage, alloc, zero };
        for (cell, g) in [
            (Cell::UNALLOCATED, standard),
            (Cell::UNALLOCATED, extended),
            (Cell::zeroes(&standard), standard),
            (Cell::zeroes(&extended), extended),
            (cell(at, 1, 0), standard),
            (cell(Storage::Cluster(HostOffset(0x5_0000), Ownership::Shared), 1, 0), standard),
            (cell(at, 0, 1), standard),
            (cell(at, 0x8000_0001, 0x70), extended),
            (cell(at, 0, 0), extended),
            (cell(Storage::None, 0, 5), extended),
        ] {
            let (raw, bitmap) = cell.encode(&g);
            assert_eq!(Cell::decode(raw, bitmap, &g), Some(cell));
        }
    }

    #[test]
    fn contradictory_subclusters_are_refused() {
        let g = Geometry::new(16, 4, 4096).with_l2(L2Format::Extended);
        assert_eq!(Cell::decode(0x5_0000, 1 | 1 << 32, &g), None, "stored and zero");
        assert_eq!(Cell::decode(0, 1, &g), None, "stored nowhere");
        assert_eq!(Cell::decode(1, 0, &g), None, "the zero flag of standard entries");
    }

    #[test]
    fn the_start_of_an_external_file_is_a_place() {
        let g = Geometry::new(16, 4, 4096).with_data(DataPlace::External);
        let (raw, bitmap) =
            Cell { storage: Storage::Cluster(HostOffset(0), Ownership::Private), alloc: 1, zero: 0 }
                .encode(&g);
        assert_eq!(Cell::decode(raw, bitmap, &g).map(|c| c.alloc), Some(1));
        assert_eq!(Cell::decode(0, 0, &g), Some(Cell::UNALLOCATED));
    }

    #[test]
    fn compressed_descriptor_of_every_cluster_size() {
        for bits in 9..=21 {
            let g = Geometry::new(bits, 4, 4096);
            let longest = Compressed { offset: HostOffset(511), len: g.cluster_size() + 512 - 511 };
            assert_eq!(L2Entry::decode(longest.encode(&g), &g), L2Entry::Compressed(longest), "{bits}");
        }
    }
}
