//! What one bitmap covers, and the entries of its table.

use std::ops::Range;

use crate::geometry::{Geometry, HostOffset};

use super::BitmapError;

/// How a disk's bytes become bits, and bits clusters of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Length of the disk in bytes.
    pub size: u64,
    /// Log2 of the bytes that a bit stands for, 9 to 31.
    pub granularity_bits: u32,
    /// Log2 of the cluster size.
    pub cluster_bits: u32,
}

impl Shape {
    /// Bits of the whole disk; the last one may stand for less.
    pub fn bits(&self) -> u64 {
        self.size.div_ceil(1 << self.granularity_bits)
    }

    /// Entries of the table.
    pub fn entries(&self) -> u64 {
        self.bits().div_ceil(self.bits_per_entry())
    }

    /// Bits in one cluster.
    pub fn bits_per_entry(&self) -> u64 {
        8 << self.cluster_bits
    }

    /// The bits of table entry `index`, as far as the disk goes.
    pub fn bits_of(&self, index: u64) -> Range<u64> {
        let start = index * self.bits_per_entry();
        start..(start + self.bits_per_entry()).min(self.bits())
    }

    /// The bits that a range of bytes touches.
    pub fn bits_for(&self, bytes: Range<u64>) -> Range<u64> {
        bytes.start >> self.granularity_bits..bytes.end.div_ceil(1 << self.granularity_bits)
    }

    /// The bytes of the disk that a range of bits stands for.
    pub fn bytes_of(&self, bits: Range<u64>) -> Range<u64> {
        bits.start << self.granularity_bits..(bits.end << self.granularity_bits).min(self.size)
    }
}

/// An entry of a bitmap table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TableEntry {
    /// All bits are clear.
    Zeros,
    /// All bits are set.
    Ones,
    /// The bits lie in this cluster.
    Data(HostOffset),
}

/// Bits 9 to 55: where the cluster lies.
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
/// Without an offset: all bits are set.
const ALL_ONES: u64 = 1;

impl TableEntry {
    /// The entry stored as `raw`.
    ///
    /// # Errors
    /// Reserved bits, or an offset that is no cluster's.
    pub fn decode(raw: u64, geometry: &Geometry) -> Result<Self, BitmapError> {
        let host = HostOffset(raw & OFFSET_MASK);
        match (raw & !OFFSET_MASK, host.0) {
            (0, 0) => Ok(Self::Zeros),
            (ALL_ONES, 0) => Ok(Self::Ones),
            (0, _) if geometry.is_aligned(host) => Ok(Self::Data(host)),
            _ => Err(BitmapError::TableEntry(raw)),
        }
    }

    /// As stored.
    pub fn encode(self) -> u64 {
        match self {
            Self::Zeros => 0,
            Self::Ones => ALL_ONES,
            Self::Data(host) => host.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bits_end_with_the_disk() {
        let shape = Shape { size: (10 << 20) + 512, granularity_bits: 16, cluster_bits: 9 };
        assert_eq!((shape.bits(), shape.entries()), (161, 1));
        assert_eq!(shape.bits_of(0), 0..161);
        assert_eq!(shape.bytes_of(160..161), 10 << 20..(10 << 20) + 512);
        assert_eq!(shape.bits_for(65535..65537), 0..2);
        let fine = Shape { granularity_bits: 9, ..shape };
        assert_eq!((fine.entries(), fine.bits_of(4).clone()), (6, 16384..20480));
    }

    #[test]
    fn entries_survive_a_round_trip_and_others_are_refused() {
        let geometry = Geometry::new(16, 4, 4096);
        for entry in [TableEntry::Zeros, TableEntry::Ones, TableEntry::Data(HostOffset(0x50000))] {
            assert_eq!(TableEntry::decode(entry.encode(), &geometry).unwrap(), entry);
        }
        for raw in [3, 0x10002, 0x90001, 0x200, 1 << 60] {
            assert!(TableEntry::decode(raw, &geometry).is_err(), "{raw:#x}");
        }
    }
}
