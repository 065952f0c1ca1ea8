//! Entries of the L1, L2 and refcount tables, as enums; bit masks do not leave this module.
//!
//! qcow2 specification, *Cluster mapping* and *Refcount table*.

use std::ops::Range;

use crate::geometry::{Geometry, HostOffset};

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

/// A standard L2 entry.
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
        match (offset.0 != 0, raw & ZERO != 0) {
            (false, false) => Self::Unallocated,
            (false, true) => Self::ZeroPlain,
            (true, true) => Self::ZeroAllocated(offset, Ownership::of(raw)),
            (true, false) => Self::Normal(offset, Ownership::of(raw)),
        }
    }

    /// The entry as stored.
    pub fn encode(self, geometry: &Geometry) -> u64 {
        match self {
            Self::Unallocated => 0,
            Self::ZeroPlain => ZERO,
            Self::ZeroAllocated(offset, ownership) => offset.0 | ownership.bit() | ZERO,
            Self::Normal(offset, ownership) => offset.0 | ownership.bit(),
            Self::Compressed(compressed) => compressed.encode(geometry),
        }
    }

    /// Whether bits are set that the format reserves.
    pub fn has_reserved_bits(raw: u64) -> bool {
        raw & COMPRESSED == 0 && raw & L2_RESERVED != 0
    }

    /// Whether the COPIED flag is set, whatever the entry is.
    pub fn copied_flag(raw: u64) -> bool {
        raw & COPIED != 0
    }

    /// The raw entry with the COPIED flag set or cleared.
    pub fn with_copied_flag(raw: u64, ownership: Ownership) -> u64 {
        (raw & !COPIED) | ownership.bit()
    }

    /// Where the cluster lies, if the entry says nothing but that it is private data. For passes over many entries.
    #[inline]
    pub fn private_data(raw: u64) -> Option<HostOffset> {
        let offset = raw & OFFSET_MASK;
        (raw == offset | COPIED && offset != 0).then_some(HostOffset(offset))
    }

    /// Whether the entry is valid and reads as zeroes in a version that has no zero clusters.
    pub fn is_zero(self) -> bool {
        matches!(self, Self::ZeroPlain | Self::ZeroAllocated(..))
    }
}

impl Compressed {
    /// Bits of the descriptor that hold the offset (specification: x = 62 - (cluster_bits - 8)).
    fn offset_bits(geometry: &Geometry) -> u32 {
        62 - (geometry.cluster_bits - 8)
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
    fn entries_survive_a_round_trip() {
        let g = Geometry::new(16, 4, 4096);
        let at = HostOffset(0x5_0000);
        for entry in [
            L2Entry::Unallocated,
            L2Entry::ZeroPlain,
            L2Entry::ZeroAllocated(at, Ownership::Private),
            L2Entry::Normal(at, Ownership::Shared),
            L2Entry::Normal(at, Ownership::Private),
            L2Entry::Compressed(Compressed { offset: HostOffset(0x5_0123), len: 512 * 3 - 0x123 }),
        ] {
            assert_eq!(L2Entry::decode(entry.encode(&g), &g), entry);
        }
    }

    #[test]
    fn compressed_descriptor_of_every_cluster_size() {
        for bits in 9..=21 {
            let g = Geometry::new(bits, 4, 4096);
            let longest = Compressed { offset: HostOffset(511), len: g.cluster_size() + 512 - 511 };
            let raw = L2Entry::Compressed(longest).encode(&g);
            assert_eq!(L2Entry::decode(raw, &g), L2Entry::Compressed(longest), "{bits}");
        }
    }
}
