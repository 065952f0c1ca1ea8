//! Table entries decoded by the specification. Bit masks of entries do not leave this module.

use crate::error::CheckError;
use crate::header::Header;
use crate::image::nonzero_entries;

const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const BITMAP_RESERVED: u64 = 0xff00_0000_0000_01fe;
const REFTABLE_RESERVED: u64 = 0x1ff;

/// A rule that one table entry breaks by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryFault {
    /// The offset is not a multiple of the cluster size.
    Unaligned,
    /// Reserved bits are set.
    ReservedBits,
    /// The zero flag is set in a version 2 image.
    ZeroInV2,
    /// The zero flag is set in an extended L2 entry.
    ZeroInExtended,
    /// A subcluster is both allocated and reads as zeroes.
    SubclusterBoth,
    /// A subcluster is allocated but there is no host cluster.
    SubclusterWithoutHost,
    /// A compressed cluster has a subcluster bitmap.
    CompressedWithSubclusters,
    /// COPIED is set for a compressed cluster.
    CompressedCopied,
    /// A compressed cluster in an image with an external data file.
    CompressedInDataFile,
    /// COPIED is set, but there is no cluster it could speak of.
    CopiedUnallocated,
    /// The offset in the external data file is not the guest offset.
    DataFileOffset,
    /// A refcount block that another entry of the refcount table names already. It is not followed.
    RefblockTwice,
}

/// A small set of [`EntryFault`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Faults(u16);

impl Faults {
    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn contains(self, fault: EntryFault) -> bool {
        self.0 & bit(fault) != 0
    }

    pub(crate) fn add_if(&mut self, condition: bool, fault: EntryFault) {
        if condition {
            self.0 |= bit(fault);
        }
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = EntryFault> {
        const ALL: [EntryFault; 12] = [
            EntryFault::Unaligned,
            EntryFault::ReservedBits,
            EntryFault::ZeroInV2,
            EntryFault::ZeroInExtended,
            EntryFault::SubclusterBoth,
            EntryFault::SubclusterWithoutHost,
            EntryFault::CompressedWithSubclusters,
            EntryFault::CompressedCopied,
            EntryFault::CompressedInDataFile,
            EntryFault::CopiedUnallocated,
            EntryFault::DataFileOffset,
            EntryFault::RefblockTwice,
        ];
        ALL.into_iter().filter(move |fault| self.contains(*fault))
    }

    /// The fault that makes the content of the guest cluster undefined, if there is one. Reserved bits
    /// and wrong COPIED flags do not, nor a zero flag where the subcluster bitmap decides.
    pub(crate) fn undefined(self) -> Option<EntryFault> {
        self.iter().find(|fault| {
            matches!(
                fault,
                EntryFault::Unaligned
                    | EntryFault::ZeroInV2
                    | EntryFault::SubclusterBoth
                    | EntryFault::SubclusterWithoutHost
                    | EntryFault::CompressedInDataFile
            )
        })
    }
}

fn bit(fault: EntryFault) -> u16 {
    1u16.wrapping_shl(fault as u32)
}

/// What the entries of an image depend on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Geometry {
    pub(crate) cluster_bits: u32,
    pub(crate) extended: bool,
    pub(crate) data_file: bool,
    v2: bool,
}

impl Geometry {
    pub(crate) fn new(header: &Header) -> Self {
        Geometry {
            cluster_bits: header.cluster_bits,
            extended: header.has_extended_l2(),
            data_file: header.has_data_file(),
            v2: header.version == 2,
        }
    }

    pub(crate) fn cluster_size(self) -> u64 {
        1u64.wrapping_shl(self.cluster_bits)
    }

    /// Position of `offset` within its cluster.
    pub(crate) fn within(self, offset: u64) -> u64 {
        offset & self.cluster_size().wrapping_sub(1)
    }

    /// Number of the cluster that `offset` lies in.
    pub(crate) fn cluster(self, offset: u64) -> u64 {
        offset.wrapping_shr(self.cluster_bits)
    }

    /// Where cluster number `cluster` starts, saturating.
    pub(crate) fn offset(self, cluster: u64) -> u64 {
        cluster.saturating_mul(self.cluster_size())
    }

    /// Log2 of the number of entries in an L2 table.
    pub(crate) fn l2_bits(self) -> u32 {
        self.cluster_bits.wrapping_sub(if self.extended { 4 } else { 3 })
    }

    /// L1 entries needed for `size` bytes of guest disk.
    pub(crate) fn l1_entries(self, size: u64) -> u64 {
        size.div_ceil(1u64.wrapping_shl(self.cluster_bits.wrapping_add(self.l2_bits())))
    }

    pub(crate) fn l1_entry(self, raw: u64) -> PointerEntry {
        let mut faults = Faults::default();
        let offset = raw & OFFSET_MASK;
        let copied = raw & COPIED != 0;
        faults.add_if(raw & L1_RESERVED != 0, EntryFault::ReservedBits);
        faults.add_if(self.within(offset) != 0, EntryFault::Unaligned);
        faults.add_if(offset == 0 && copied, EntryFault::CopiedUnallocated);
        PointerEntry { offset, copied, faults }
    }

    pub(crate) fn reftable_entry(self, raw: u64) -> PointerEntry {
        let mut faults = Faults::default();
        let offset = raw & !REFTABLE_RESERVED;
        faults.add_if(raw & REFTABLE_RESERVED != 0, EntryFault::ReservedBits);
        faults.add_if(self.within(offset) != 0, EntryFault::Unaligned);
        PointerEntry { offset, copied: false, faults }
    }

    pub(crate) fn bitmap_entry(self, raw: u64) -> PointerEntry {
        let mut faults = Faults::default();
        let offset = raw & OFFSET_MASK;
        faults.add_if(raw & BITMAP_RESERVED != 0 || (offset != 0 && raw & 1 != 0), EntryFault::ReservedBits);
        faults.add_if(self.within(offset) != 0, EntryFault::Unaligned);
        PointerEntry { offset, copied: false, faults }
    }

    /// Decodes an L2 entry; `bitmap` is the second word of an extended one, zero otherwise.
    pub(crate) fn l2_entry(self, raw: u64, bitmap: u64) -> L2Entry {
        if raw & COMPRESSED != 0 {
            return self.compressed_entry(raw, bitmap);
        }
        let mut faults = Faults::default();
        let copied = raw & COPIED != 0;
        let offset = raw & OFFSET_MASK;
        // With a data file, host offset 0 is valid and COPIED tells it from "unallocated".
        let host = if offset != 0 || (self.data_file && copied) { Some(offset) } else { None };
        let zero_flag = raw & ZERO != 0;
        faults.add_if(raw & L2_RESERVED != 0, EntryFault::ReservedBits);
        faults.add_if(self.within(offset) != 0, EntryFault::Unaligned);
        faults.add_if(copied && host.is_none(), EntryFault::CopiedUnallocated);
        let mapping = if self.extended {
            faults.add_if(zero_flag, EntryFault::ZeroInExtended);
            let (zero, allocated) = (high32(bitmap), low32(bitmap));
            faults.add_if(zero & allocated != 0, EntryFault::SubclusterBoth);
            faults.add_if(allocated != 0 && host.is_none(), EntryFault::SubclusterWithoutHost);
            Mapping::Subclusters { host, allocated, zero }
        } else if zero_flag {
            faults.add_if(self.v2, EntryFault::ZeroInV2);
            Mapping::Zero { host }
        } else {
            host.map_or(Mapping::Unallocated, |host| Mapping::Data { host })
        };
        L2Entry { mapping, copied, faults }
    }

    fn compressed_entry(self, raw: u64, bitmap: u64) -> L2Entry {
        let mut faults = Faults::default();
        // Bits of the offset field; above them, up to bit 61, the number of additional sectors.
        let offset_bits = 70u32.wrapping_sub(self.cluster_bits);
        let field = raw & (COMPRESSED - 1);
        let host = field & 1u64.wrapping_shl(offset_bits).wrapping_sub(1);
        let sectors = field.wrapping_shr(offset_bits);
        let bytes = sectors.wrapping_add(1).wrapping_mul(512).wrapping_sub(host & 511);
        faults.add_if(host.wrapping_shr(56) != 0, EntryFault::ReservedBits);
        faults.add_if(raw & COPIED != 0, EntryFault::CompressedCopied);
        faults.add_if(bitmap != 0, EntryFault::CompressedWithSubclusters);
        faults.add_if(self.data_file, EntryFault::CompressedInDataFile);
        L2Entry { mapping: Mapping::Compressed { host, bytes }, copied: false, faults }
    }
}

/// An entry that only points: L1 table, refcount table, bitmap table. Offset 0 points nowhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PointerEntry {
    pub(crate) offset: u64,
    pub(crate) copied: bool,
    pub(crate) faults: Faults,
}

impl PointerEntry {
    /// The offset if it can be followed.
    pub(crate) fn target(self) -> Option<u64> {
        (self.offset != 0 && !self.faults.contains(EntryFault::Unaligned)).then_some(self.offset)
    }
}

/// A decoded L2 entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct L2Entry {
    pub(crate) mapping: Mapping,
    pub(crate) copied: bool,
    pub(crate) faults: Faults,
}

impl L2Entry {
    /// The whole host cluster this entry references, if it can be followed.
    pub(crate) fn host_cluster(self) -> Option<u64> {
        let host = match self.mapping {
            Mapping::Data { host } => Some(host),
            Mapping::Zero { host } | Mapping::Subclusters { host, .. } => host,
            Mapping::Unallocated | Mapping::Compressed { .. } => None,
        };
        host.filter(|_| !self.faults.contains(EntryFault::Unaligned))
    }
}

/// Where the content of a guest cluster is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mapping {
    Unallocated,
    Zero { host: Option<u64> },
    Data { host: u64 },
    Subclusters { host: Option<u64>, allocated: u32, zero: u32 },
    Compressed { host: u64, bytes: u64 },
}

/// Calls `each` with every refcount that is not zero among those stored in `piece`, with its index.
/// Entries of less than a byte start in the low bits.
pub(crate) fn nonzero_refcounts(
    piece: &[u8],
    order: u32,
    mut each: impl FnMut(u64, u64) -> Result<(), CheckError>,
) -> Result<(), CheckError> {
    let per_word = 64u64.wrapping_shr(order);
    nonzero_entries::<8>(piece, |word_index, word| {
        let mut index = word_index.wrapping_mul(per_word);
        if order >= 3 {
            for entry in word.chunks(1usize.wrapping_shl(order.wrapping_sub(3))) {
                let refcount = entry.iter().fold(0u64, |all, byte| all.wrapping_shl(8) | u64::from(*byte));
                if refcount != 0 {
                    each(index, refcount)?;
                }
                index = index.wrapping_add(1);
            }
            return Ok(());
        }
        // Little-endian puts entry i of the word at bit i * width.
        let mut rest = u64::from_le_bytes(*word);
        let width = 1u32.wrapping_shl(order);
        let mask = 1u64.wrapping_shl(width).wrapping_sub(1);
        while rest != 0 {
            if rest & mask != 0 {
                each(index, rest & mask)?;
            }
            rest = rest.wrapping_shr(width);
            index = index.wrapping_add(1);
        }
        Ok(())
    })
}

fn high32(word: u64) -> u32 {
    u32::try_from(word >> 32).unwrap_or(0)
}

fn low32(word: u64) -> u32 {
    u32::try_from(word & 0xffff_ffff).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(cluster_bits: u32) -> Geometry {
        Geometry { cluster_bits, extended: false, data_file: false, v2: false }
    }

    fn refcounts(bytes: &[u8], order: u32) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        nonzero_refcounts(bytes, order, |index, refcount| {
            found.push((index, refcount));
            Ok(())
        })
        .unwrap();
        found
    }

    #[test]
    fn refcounts_of_every_width() {
        let bytes = [0x81, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x10];
        assert_eq!(refcounts(&bytes, 0), [(0, 1), (7, 1), (56, 1), (124, 1)]);
        assert_eq!(refcounts(&bytes, 1), [(0, 1), (3, 2), (28, 1), (62, 1)]);
        assert_eq!(refcounts(&bytes, 2), [(0, 1), (1, 8), (14, 1), (31, 1)]);
        assert_eq!(refcounts(&bytes, 3), [(0, 0x81), (7, 1), (15, 0x10)]);
        assert_eq!(refcounts(&bytes, 4), [(0, 0x8100), (3, 1), (7, 0x10)]);
        assert_eq!(refcounts(&bytes, 5), [(0, 0x8100_0000), (1, 1), (3, 0x10)]);
        assert_eq!(refcounts(&bytes, 6), [(0, 0x8100_0000_0000_0001), (1, 0x10)]);
    }

    #[test]
    fn compressed_descriptor_fields_move_with_the_cluster_size() {
        // 64 KiB: 54 bits of offset, 8 bits of sectors.
        let entry = geometry(16).l2_entry(COMPRESSED | (3 << 54) | 0x5_0123, 0);
        assert!(
            matches!(entry.mapping, Mapping::Compressed { host: 0x5_0123, bytes } if bytes == 2048 - 0x123)
        );
        // 512 bytes: 61 bits of offset, of which the upper five must be clear, and one bit of sectors.
        let entry = geometry(9).l2_entry(COMPRESSED | (1 << 61) | 0x600, 0);
        assert!(matches!(entry.mapping, Mapping::Compressed { host: 0x600, bytes: 1024 }));
        assert!(entry.faults.is_empty());
        let entry = geometry(9).l2_entry(COMPRESSED | (1 << 57), 0);
        assert!(entry.faults.contains(EntryFault::ReservedBits));
    }
}
