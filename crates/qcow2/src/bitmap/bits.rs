//! Bits in bytes, as bitmaps are stored: bit `n` is bit `n % 8` of byte `n / 8`, the least significant first.

use std::ops::Range;

/// Bytes looked at together; buffers are multiples of it (clusters are).
const WORD: usize = 8;

/// Sets a range of bits.
pub(super) fn set(bytes: &mut [u8], bits: Range<u64>) {
    change(bits, |at, mask| bytes[at] |= mask);
}

/// Clears a range of bits.
pub(super) fn clear(bytes: &mut [u8], bits: Range<u64>) {
    change(bits, |at, mask| bytes[at] &= !mask);
}

fn change(bits: Range<u64>, mut f: impl FnMut(usize, u8)) {
    let mut at = bits.start;
    while at < bits.end {
        let inside = at % 8;
        let n = (8 - inside).min(bits.end - at);
        let mask = (0xffu16 >> (8 - n)) << inside;
        f((at / 8) as usize, mask as u8);
        at += n;
    }
}

/// The first set bit of a range, or its end.
pub(super) fn next_set(bytes: &[u8], bits: Range<u64>) -> u64 {
    find(bytes, bits, 0)
}

/// The first clear bit of a range, or its end.
pub(super) fn next_clear(bytes: &[u8], bits: Range<u64>) -> u64 {
    find(bytes, bits, u64::MAX)
}

/// The first bit that is set once `flip` is applied to each word.
fn find(bytes: &[u8], bits: Range<u64>, flip: u64) -> u64 {
    assert!(bytes.len().is_multiple_of(WORD), "clusters are whole words");
    let mut at = bits.start;
    while at < bits.end {
        let start = (at / 64) as usize * WORD;
        let word = u64::from_le_bytes(*bytes[start..start + WORD].first_chunk().expect("a whole word"));
        let rest = (word ^ flip) >> (at % 64);
        if rest != 0 {
            return (at + u64::from(rest.trailing_zeros())).min(bits.end);
        }
        at = (at / 64 + 1) * 64;
    }
    bits.end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_found_where_they_were_set() {
        let mut bytes = [0; 64];
        for range in [3..5, 8..16, 62..131, 200..201, 511..512] {
            set(&mut bytes, range.clone());
            assert_eq!(next_set(&bytes, range.start.saturating_sub(1)..512), range.start);
            assert_eq!(next_clear(&bytes, range.start..512), range.end);
            clear(&mut bytes, range);
            assert_eq!(next_set(&bytes, 0..512), 512);
        }
        assert_eq!(next_set(&bytes, 5..100), 100, "nothing there");
        bytes.fill(0xff);
        assert_eq!(next_clear(&bytes, 17..333), 333);
    }
}
