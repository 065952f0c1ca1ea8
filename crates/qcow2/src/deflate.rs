//! Writing raw deflate streams (RFC 1951) with a window of 4 KiB.
//!
//! The format asks for a window of 2^12 bytes (its readers need not keep more), which no fast library offers: they
//! compile their window in. A cluster is compressed at once, from memory to memory, so there is no stream state
//! here: matches are found by hash chains with one step of lookahead, and every block gets its own Huffman codes.
//!
//! Where nothing is found for a while, fewer and fewer places are looked at: data that does not compress costs little
//! more than counting its bytes.

mod huffman;

use std::ops::Range;

use huffman::{Code, Codes};

/// Bytes that a match may lie back.
const WINDOW: usize = 1 << 12;
const HASH_BITS: u32 = 13;
pub(crate) const MATCH_MIN: usize = 3;
const MATCH_MAX: usize = 258;
/// The hash covers four bytes, so shorter matches are met only by chance.
const HASHED: usize = 4;
/// Candidates looked at for one match, and for its successor.
const DEPTH: u32 = 12;
const DEPTH_LAZY: u32 = 6;
/// A match of this length ends the search for a longer one.
const NICE: usize = 64;
/// Behind a match of this length nothing better is looked for.
const LAZY: usize = 20;
/// Tokens of one block: beyond that, codes made for it fit less than new ones.
const BLOCK_TOKENS: usize = 16384;
/// Places without a match, as a power of two, before the steps grow by one.
const PATIENCE: u32 = 6;
const STEP_MAX: usize = 16;
/// Bits of a match besides those of its distance, about.
const MATCH_BITS: u32 = 9;
/// Literal costs are counted in parts of a bit.
const PARTS: u32 = 8;

/// Memory that is used again for the next cluster.
pub(crate) struct Encoder {
    /// The last place with a hash, counted over all clusters so that nothing has to be cleared.
    head: Box<[u32; 1 << HASH_BITS]>,
    /// The place before with the same hash, by place modulo window.
    previous: Box<[u32; WINDOW]>,
    /// Place of the first byte of the current cluster.
    base: u32,
    tokens: Vec<Token>,
    codes: Codes,
}

/// Bytes as they are, then a match, unless its length is 0.
#[derive(Clone, Copy)]
struct Token {
    literals: u32,
    len: u16,
    distance: u16,
}

#[derive(Clone, Copy, Default)]
struct Match {
    len: usize,
    distance: usize,
}

impl Encoder {
    pub(crate) fn new() -> Self {
        let base = WINDOW as u32 + 1;
        Self {
            head: Box::new([0; 1 << HASH_BITS]),
            previous: Box::new([0; WINDOW]),
            base,
            tokens: Vec::with_capacity(BLOCK_TOKENS + 1),
            codes: Codes::new(),
        }
    }

    /// Compresses `plain`, which is not empty, into `out`; the length, or `None` if it does not fit.
    pub(crate) fn deflate(&mut self, plain: &[u8], out: &mut [u8]) -> Option<usize> {
        if u64::from(self.base) + (plain.len() + WINDOW) as u64 > u64::from(u32::MAX) {
            self.head.fill(0);
            self.previous.fill(0);
            self.base = WINDOW as u32 + 1;
        }
        let mut writer = Bits::new(out);
        let cost = literal_cost(plain);
        let mut at = 0;
        while at < plain.len() {
            let start = at;
            at = self.parse(plain, start, cost);
            let last = at == plain.len();
            if self.write_block(&mut writer, &plain[start..at], last).is_none() {
                self.base += (plain.len() + WINDOW) as u32;
                return None;
            }
        }
        self.base += (plain.len() + WINDOW) as u32;
        writer.finish()
    }

    /// Turns `plain` from `start` on into the tokens of one block; returns where it ends.
    fn parse(&mut self, plain: &[u8], start: usize, cost: u32) -> usize {
        self.tokens.clear();
        self.codes.start();
        let searchable = plain.len().saturating_sub(HASHED + 4);
        // Up to here everything is in tokens.
        let mut told = start;
        let mut at = start;
        let mut symbols = 0;
        let mut misses = 0usize;
        while at < searchable && symbols + (at - told) < BLOCK_TOKENS {
            let mut found = self.find(plain, at, DEPTH, 0);
            if !pays(found, cost) {
                misses += 1;
                at += (1 + (misses >> PATIENCE)).min(STEP_MAX).min(searchable - at);
                continue;
            }
            misses = 0;
            // Places from here on are not in the table.
            let mut unknown = at + 1;
            while found.len < LAZY && at + 1 < searchable {
                let next = self.find(plain, at + 1, DEPTH_LAZY, found.len);
                unknown = at + 2;
                if next.len <= found.len || !pays(next, cost) {
                    break;
                }
                at += 1;
                found = next;
            }
            symbols += at - told + 1;
            self.push(plain, told..at, found);
            at += found.len;
            told = at;
            for place in unknown..at.min(searchable) {
                self.insert(plain, place);
            }
        }
        let end = if at >= searchable { plain.len() } else { at };
        self.push(plain, told..end, Match::default());
        end
    }

    fn push(&mut self, plain: &[u8], literals: Range<usize>, found: Match) {
        let (count, len, distance) = (literals.len() as u32, found.len as u16, found.distance as u16);
        self.tokens.push(Token { literals: count, len, distance });
        self.codes.count_literals(&plain[literals]);
        if found.len > 0 {
            self.codes.count_match(found.len - MATCH_MIN, found.distance);
        }
    }

    #[inline]
    fn insert(&mut self, plain: &[u8], at: usize) -> u32 {
        let place = self.base + at as u32;
        let slot = &mut self.head[hash(word(plain, at))];
        let before = std::mem::replace(slot, place);
        self.previous[place as usize % WINDOW] = before;
        before
    }

    /// The longest match at `at` that is longer than `than`, and puts the place into the table.
    #[inline]
    fn find(&mut self, plain: &[u8], at: usize, depth: u32, than: usize) -> Match {
        let place = self.base + at as u32;
        let mut candidate = self.insert(plain, at);
        let mut best = Match { len: than, distance: 0 };
        let most = MATCH_MAX.min(plain.len() - at);
        let here = word(plain, at);
        for _ in 0..depth {
            let distance = (place - candidate) as usize;
            if distance > WINDOW {
                break;
            }
            let other = at - distance;
            let ahead = best.len.min(most - 1);
            if word(plain, other) == here && plain[other + ahead] == plain[at + ahead] {
                let len = common(&plain[other..], &plain[at..at + most]);
                if len > best.len {
                    best = Match { len, distance };
                    if len >= NICE.min(most) {
                        break;
                    }
                }
            }
            candidate = self.previous[candidate as usize % WINDOW];
        }
        if best.distance == 0 { Match::default() } else { best }
    }

    fn write_block(&mut self, writer: &mut Bits<'_>, mut plain: &[u8], last: bool) -> Option<()> {
        self.codes.build();
        writer.put(u32::from(last), 1);
        self.codes.write_header(writer)?;
        for token in &self.tokens {
            let (literals, rest) = plain.split_at(token.literals as usize);
            // Three codes of at most 15 bits stay below what may be held.
            for few in literals.chunks(3) {
                few.iter().for_each(|byte| writer.code(self.codes.literal(*byte)));
                writer.flush()?;
            }
            plain = rest;
            if token.len > 0 {
                plain = &rest[usize::from(token.len)..];
                let (code, extra, bits) = self.codes.len(usize::from(token.len) - MATCH_MIN);
                writer.code(code);
                writer.put(extra, bits);
                let (code, extra, bits) = self.codes.distance(usize::from(token.distance));
                writer.code(code);
                writer.put(extra, bits);
                writer.flush()?;
            }
        }
        writer.code(self.codes.end());
        writer.flush()
    }
}

/// Whether a match is shorter than its literals would be.
#[inline]
fn pays(found: Match, cost: u32) -> bool {
    found.len >= HASHED && found.len as u32 * cost >= (MATCH_BITS + found.distance.ilog2()) * PARTS
}

/// Parts of a bit that a literal of this data costs, about.
fn literal_cost(plain: &[u8]) -> u32 {
    let mut counts = [0u32; 256];
    let sample = plain.chunks(1024).flat_map(|chunk| chunk.iter().take(256));
    let mut all = 0u32;
    for byte in sample {
        counts[usize::from(*byte)] += 1;
        all += 1;
    }
    let cost_of = |n: u32| ((all / n).ilog2() * PARTS).max(1);
    let used = counts.into_iter().filter(|n| *n > 0);
    let parts: u64 = used.map(|n| u64::from(n) * u64::from(cost_of(n))).sum();
    (parts / u64::from(all.max(1))).clamp(1, u64::from(8 * PARTS)) as u32
}

#[inline]
fn word(plain: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*plain[at..].first_chunk().expect("places near the end are not searched"))
}

#[inline]
fn hash(word: u32) -> usize {
    (word.wrapping_mul(0x9e37_79b1) >> (32 - HASH_BITS)) as usize
}

/// How many bytes of `b` those of `a` begin with.
#[inline]
fn common(a: &[u8], b: &[u8]) -> usize {
    let a = &a[..b.len()];
    let mut len = 0;
    for (x, y) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        let x = u64::from_le_bytes(*x.first_chunk().expect("eight bytes"));
        let y = u64::from_le_bytes(*y.first_chunk().expect("eight bytes"));
        if x != y {
            return len + ((x ^ y).trailing_zeros() / 8) as usize;
        }
        len += 8;
    }
    len + a[len..].iter().zip(&b[len..]).take_while(|(x, y)| x == y).count()
}

/// Bits on their way into memory, the first one lowest.
pub(crate) struct Bits<'a> {
    out: &'a mut [u8],
    at: usize,
    held: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    fn new(out: &'a mut [u8]) -> Self {
        Self { out, at: 0, held: 0, count: 0 }
    }

    /// Adds up to 16 bits; at most 48 between two flushes.
    #[inline]
    pub(crate) fn put(&mut self, bits: u32, count: u32) {
        self.held |= u64::from(bits) << self.count;
        self.count += count;
    }

    #[inline]
    pub(crate) fn code(&mut self, code: Code) {
        self.put(u32::from(code.bits), u32::from(code.len));
    }

    /// Moves whole bytes out; `None` when there is no room.
    #[inline]
    pub(crate) fn flush(&mut self) -> Option<()> {
        let bytes = self.count / 8;
        if let Some(place) = self.out.get_mut(self.at..self.at + 8) {
            place.copy_from_slice(&self.held.to_le_bytes());
        } else {
            let place = self.out.get_mut(self.at..self.at + bytes as usize)?;
            place.copy_from_slice(&self.held.to_le_bytes()[..bytes as usize]);
        }
        self.at += bytes as usize;
        self.held = self.held.checked_shr(bytes * 8).unwrap_or(0);
        self.count -= bytes * 8;
        Some(())
    }

    fn finish(mut self) -> Option<usize> {
        self.count = self.count.next_multiple_of(8);
        self.flush()?;
        Some(self.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(plain: &[u8]) -> usize {
        let mut out = vec![0; plain.len() * 2 + 200];
        let mut encoder = Encoder::new();
        let len = encoder.deflate(plain, &mut out).expect("room for everything");
        let again = encoder.deflate(plain, &mut vec![0; len]);
        assert_eq!(again, Some(len), "places of an earlier cluster are not found again");
        assert_eq!(encoder.deflate(plain, &mut vec![0; len - 1]), None, "one byte too few");
        let mut back = vec![0; plain.len()];
        let decoded = libdeflater::Decompressor::new().deflate_decompress(&out[..len], &mut back);
        assert_eq!(decoded, Ok(plain.len()));
        assert!(back == plain, "{} bytes come back differently", plain.len());
        len
    }

    fn noise(len: usize, seed: u64, mask: u8) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8 & mask
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn everything_comes_back() {
        for len in [1, 2, 3, 7, 8, 9, 300, 512, 4096, 65536, 200_000] {
            for mask in [0, 1, 3, 15, 127, 255] {
                round_trip(&noise(len, len as u64 + u64::from(mask), mask));
            }
            let text: Vec<u8> =
                (0..len).map(|i| b"the same words, again and again"[i * i / 7 % 31]).collect();
            round_trip(&text);
        }
    }

    #[test]
    fn lengths_and_distances_of_all_classes() {
        for distance in (1..64).chain((64..=WINDOW).step_by(61)).chain([WINDOW, WINDOW + 1]) {
            let unit = noise(distance, distance as u64, 255);
            let plain: Vec<u8> = unit.iter().cycle().take(distance + 3 + distance % 300).copied().collect();
            round_trip(&plain);
        }
    }

    #[test]
    fn matches_stay_within_the_window() {
        let unit = noise(WINDOW, 5, 255);
        let near = round_trip(&[&unit[..], &unit].concat());
        let far = round_trip(&[&unit[..], &[1], &unit].concat());
        assert!(near < WINDOW + 400 && far > 2 * WINDOW, "{near} {far}");
    }

    #[test]
    fn skewed_counts_do_not_make_codes_too_long() {
        // Fibonacci counts: the deepest tree there is.
        let (mut plain, mut counts) = (Vec::new(), (1usize, 1usize));
        for byte in 0..22u8 {
            plain.extend(std::iter::repeat_n(byte * 3, counts.0));
            counts = (counts.1, counts.0 + counts.1);
        }
        // In an order without matches.
        let mut numbers = noise(plain.len() * 4, 9, 255)
            .chunks_exact(4)
            .map(|n| u32::from_le_bytes([n[0], n[1], n[2], n[3]]))
            .collect::<Vec<_>>()
            .into_iter();
        for at in (1..plain.len()).rev() {
            plain.swap(at, numbers.next().expect("enough") as usize % (at + 1));
        }
        round_trip(&plain);
    }

    #[test]
    fn places_start_anew_before_they_run_out() {
        let mut encoder = Encoder::new();
        encoder.base = u32::MAX - 70_000;
        let plain: Vec<u8> = (0..65536u32).map(|i| (i / 9) as u8).collect();
        let mut out = vec![0; 65536];
        for _ in 0..3 {
            let len = encoder.deflate(&plain, &mut out).expect("fits");
            let mut back = vec![0; plain.len()];
            libdeflater::Decompressor::new().deflate_decompress(&out[..len], &mut back).expect("sound");
            assert!(back == plain);
        }
    }
}
