//! Refcounts of every width, inside the bytes of a refcount block.
//!
//! qcow2 specification, *Refcount block entry*: widths of 8 bits and more are big endian; smaller ones are
//! packed with entry 0 in the least significant bits of the first byte.

use std::ops::Range;

/// Reads entry `index` of `block`, whose entries have `2^order` bits.
#[inline]
pub(crate) fn get(block: &[u8], order: u32, index: u64) -> u64 {
    let i = index as usize;
    match order {
        0..=2 => {
            let (byte, shift, mask) = packed(order, i);
            u64::from((block[byte] >> shift) & mask)
        }
        3 => u64::from(block[i]),
        4 => u64::from(u16::from_be_bytes([block[2 * i], block[2 * i + 1]])),
        5 => block[4 * i..4 * i + 4].first_chunk().map_or(0, |b| u64::from(u32::from_be_bytes(*b))),
        _ => block[8 * i..8 * i + 8].first_chunk().map_or(0, |b| u64::from_be_bytes(*b)),
    }
}

/// Entries of `block` that are not zero.
pub(crate) fn used(block: &[u8], order: u32) -> u64 {
    fn whole<const BYTES: usize>(block: &[u8]) -> u64 {
        block.as_chunks::<BYTES>().0.iter().filter(|entry| **entry != [0; BYTES]).count() as u64
    }
    match order {
        0..=2 => {
            (0..(block.len() as u64 * 8) >> order).filter(|index| get(block, order, *index) != 0).count()
                as u64
        }
        3 => whole::<1>(block),
        4 => whole::<2>(block),
        5 => whole::<4>(block),
        _ => whole::<8>(block),
    }
}

/// How many entries of `block`, from the first of `indices` on, are `value`.
pub(crate) fn run_of(block: &[u8], order: u32, indices: Range<u64>, value: u64) -> u64 {
    fn whole<const BYTES: usize>(block: &[u8], indices: Range<u64>, value: [u8; BYTES]) -> u64 {
        let entries = &block.as_chunks::<BYTES>().0[indices.start as usize..indices.end as usize];
        entries.iter().take_while(|entry| **entry == value).count() as u64
    }
    match order {
        0..=2 => indices.take_while(|index| get(block, order, *index) == value).count() as u64,
        3 => whole(block, indices, (value as u8).to_be_bytes()),
        4 => whole(block, indices, (value as u16).to_be_bytes()),
        5 => whole(block, indices, (value as u32).to_be_bytes()),
        _ => whole(block, indices, value.to_be_bytes()),
    }
}

/// Stores `value` as each of these entries of `block`.
pub(crate) fn fill(block: &mut [u8], order: u32, indices: Range<u64>, value: u64) {
    fn whole<const BYTES: usize>(block: &mut [u8], indices: Range<u64>, value: [u8; BYTES]) {
        block.as_chunks_mut::<BYTES>().0[indices.start as usize..indices.end as usize].fill(value);
    }
    match order {
        0..=2 => indices.for_each(|index| put(block, order, index, value)),
        3 => whole(block, indices, (value as u8).to_be_bytes()),
        4 => whole(block, indices, (value as u16).to_be_bytes()),
        5 => whole(block, indices, (value as u32).to_be_bytes()),
        _ => whole(block, indices, value.to_be_bytes()),
    }
}

/// Stores entry 0 of `bytes`, which [`bytes_of`] located, or the packed entry `index`.
pub(crate) fn set(bytes: &mut [u8], order: u32, index: u64, value: u64) {
    match order {
        0..=2 => {
            let (_, shift, mask) = packed(order, index as usize);
            bytes[0] = bytes[0] & !(mask << shift) | ((value as u8) << shift);
        }
        3 => bytes[0] = value as u8,
        4 => bytes.copy_from_slice(&(value as u16).to_be_bytes()),
        5 => bytes.copy_from_slice(&(value as u32).to_be_bytes()),
        _ => bytes.copy_from_slice(&value.to_be_bytes()),
    }
}

/// Stores entry `index` of `block`, whose entries have `2^order` bits.
pub(crate) fn put(block: &mut [u8], order: u32, index: u64, value: u64) {
    let bytes = bytes_of(order, index);
    set(&mut block[bytes.start as usize..bytes.end as usize], order, index, value);
}

/// The bytes of a block in which entry `index` lies.
pub(crate) fn bytes_of(order: u32, index: u64) -> Range<u32> {
    let start = match order {
        0..=2 => packed(order, index as usize).0 as u64,
        _ => index << (order - 3),
    };
    let len = 1u32 << order.saturating_sub(3);
    start as u32..start as u32 + len
}

/// Byte, shift and mask of a packed entry.
fn packed(order: u32, index: usize) -> (usize, u32, u8) {
    let per_byte = 8usize >> order;
    let width = 1u32 << order;
    (index / per_byte, (index % per_byte) as u32 * width, ((1u16 << width) - 1) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_width_stores_what_it_reads() {
        for order in 0..=6 {
            let mut block = [0u8; 64];
            let max = if order == 6 { u64::MAX } else { (1 << (1u32 << order)) - 1 };
            let entries = (64 * 8) >> order;
            let value = |index: u64| if index.is_multiple_of(2) { max } else { 0 };
            for index in 0..entries {
                let range = bytes_of(order, index);
                let bytes = &mut block[range.start as usize..range.end as usize];
                set(bytes, order, index, value(index));
            }
            for index in 0..entries {
                assert_eq!(get(&block, order, index), value(index), "order {order} index {index}");
            }
        }
    }

    #[test]
    fn entries_in_bulk_are_the_single_ones() {
        for order in 0..=6 {
            let mut block = [0u8; 64];
            let entries = (64 * 8) >> order;
            fill(&mut block, order, 3..entries - 2, 1);
            let ones: Vec<u64> = (0..entries).filter(|index| get(&block, order, *index) == 1).collect();
            assert_eq!(ones, (3..entries - 2).collect::<Vec<u64>>(), "order {order}");
            assert_eq!(used(&block, order), entries - 5);
            assert_eq!(run_of(&block, order, 0..entries, 0), 3);
            assert_eq!(run_of(&block, order, 4..entries, 1), entries - 6);
            assert_eq!(run_of(&block, order, 4..7, 1), 3.min(entries - 6));
        }
    }

    #[test]
    fn narrow_widths_start_at_the_low_bits() {
        let mut block = [0u8; 1];
        set(&mut block, 0, 0, 1);
        set(&mut block, 0, 7, 1);
        assert_eq!(block, [0x81]);
    }
}
