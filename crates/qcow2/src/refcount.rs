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
    fn narrow_widths_start_at_the_low_bits() {
        let mut block = [0u8; 1];
        set(&mut block, 0, 0, 1);
        set(&mut block, 0, 7, 1);
        assert_eq!(block, [0x81]);
    }
}
