//! The Huffman codes of one block: made from counts, described in the block's header.

use super::{Bits, MATCH_MIN};

const LITERALS: usize = 286;
const DISTANCES: usize = 30;
const END: usize = 256;
/// Longest codes, in bits: of the alphabets, and of the lengths of their codes.
const LEN_MAX: usize = 15;
const LEN_OF_LEN_MAX: usize = 7;
/// The order in which lengths of code lengths are stored (RFC 1951, 3.2.7).
const ORDER: [usize; 19] = [16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15];

/// A code as it is written: first bit lowest.
#[derive(Clone, Copy, Default)]
pub(crate) struct Code {
    pub bits: u16,
    pub len: u8,
}

/// Symbol of a length or distance, and how many bits follow.
#[derive(Clone, Copy)]
struct Class {
    symbol: u16,
    base: u16,
    extra: u8,
}

pub(crate) struct Codes {
    literal_counts: [u32; LITERALS],
    distance_counts: [u32; DISTANCES],
    literals: [Code; LITERALS],
    distances: [Code; DISTANCES],
    /// By length above the least.
    lens: [Class; 256],
}

impl Codes {
    pub(crate) fn new() -> Self {
        Self {
            literal_counts: [0; LITERALS],
            distance_counts: [0; DISTANCES],
            literals: [Code::default(); LITERALS],
            distances: [Code::default(); DISTANCES],
            lens: std::array::from_fn(len_class),
        }
    }

    pub(crate) fn start(&mut self) {
        self.literal_counts = [0; LITERALS];
        self.distance_counts = [0; DISTANCES];
    }

    #[inline]
    pub(crate) fn count_literals(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.literal_counts[usize::from(*byte)] += 1;
        }
    }

    #[inline]
    pub(crate) fn count_match(&mut self, len: usize, distance: usize) {
        self.literal_counts[usize::from(self.lens[len].symbol)] += 1;
        self.distance_counts[usize::from(distance_class(distance).symbol)] += 1;
    }

    #[inline]
    pub(crate) fn literal(&self, byte: u8) -> Code {
        self.literals[usize::from(byte)]
    }

    pub(crate) fn end(&self) -> Code {
        self.literals[END]
    }

    /// Code, following bits and their number for a length above the least.
    #[inline]
    pub(crate) fn len(&self, len: usize) -> (Code, u32, u32) {
        let class = self.lens[len];
        let rest = (len + MATCH_MIN) as u32 - u32::from(class.base);
        (self.literals[usize::from(class.symbol)], rest, u32::from(class.extra))
    }

    #[inline]
    pub(crate) fn distance(&self, distance: usize) -> (Code, u32, u32) {
        let class = distance_class(distance);
        let rest = distance as u32 - u32::from(class.base);
        (self.distances[usize::from(class.symbol)], rest, u32::from(class.extra))
    }

    /// Makes the codes from the counts.
    pub(crate) fn build(&mut self) {
        self.literal_counts[END] = 1;
        make(&mut self.literal_counts, LEN_MAX, &mut self.literals);
        make(&mut self.distance_counts, LEN_MAX, &mut self.distances);
    }

    /// Writes the block's type and the lengths of all codes (RFC 1951, 3.2.7).
    pub(crate) fn write_header(&self, writer: &mut Bits<'_>) -> Option<()> {
        let used = |codes: &[Code], least: usize| {
            codes.iter().rposition(|code| code.len > 0).map_or(least, |last| (last + 1).max(least))
        };
        let (literals, distances) = (used(&self.literals, END + 1), used(&self.distances, 1));
        let lens = self.literals[..literals].iter().chain(&self.distances[..distances]);
        let lens: Vec<u8> = lens.map(|code| code.len).collect();
        let runs = runs(&lens);
        let mut counts = [0; 19];
        runs.iter().for_each(|run| counts[usize::from(run.symbol)] += 1);
        let mut codes = [Code::default(); 19];
        make(&mut counts, LEN_OF_LEN_MAX, &mut codes);
        let stored =
            ORDER.iter().rposition(|symbol| codes[*symbol].len > 0).map_or(4, |last| (last + 1).max(4));
        writer.put(2, 2);
        writer.put((literals - END - 1) as u32, 5);
        writer.put((distances - 1) as u32, 5);
        writer.put((stored - 4) as u32, 4);
        writer.flush()?;
        for symbol in &ORDER[..stored] {
            writer.put(u32::from(codes[*symbol].len), 3);
            writer.flush()?;
        }
        for run in runs {
            writer.code(codes[usize::from(run.symbol)]);
            writer.put(u32::from(run.extra), u32::from(run.bits));
            writer.flush()?;
        }
        Some(())
    }
}

/// A code length, or a repetition of one.
struct Run {
    symbol: u8,
    extra: u8,
    bits: u8,
}

fn runs(lens: &[u8]) -> Vec<Run> {
    let mut runs = Vec::with_capacity(lens.len());
    let mut at = 0;
    while at < lens.len() {
        let len = lens[at];
        let mut same = lens[at..].iter().take_while(|other| **other == len).count();
        at += same;
        if len > 0 {
            runs.push(Run { symbol: len, extra: 0, bits: 0 });
            same -= 1;
        }
        while same >= 3 {
            let run = match len {
                0 if same >= 11 => Run { symbol: 18, extra: (same.min(138) - 11) as u8, bits: 7 },
                0 => Run { symbol: 17, extra: (same.min(10) - 3) as u8, bits: 3 },
                _ => Run { symbol: 16, extra: (same.min(6) - 3) as u8, bits: 2 },
            };
            same -= usize::from(run.extra) + if run.symbol == 18 { 11 } else { 3 };
            runs.push(run);
        }
        runs.extend((0..same).map(|_| Run { symbol: len, extra: 0, bits: 0 }));
    }
    runs
}

/// Makes the canonical codes of symbols that occur so often, none longer than `max` bits.
fn make(counts: &mut [u32], max: usize, codes: &mut [Code]) {
    // Some readers want two codes in each set.
    for symbol in 0..2 {
        if counts.iter().filter(|n| **n > 0).count() < 2 && counts[symbol] == 0 {
            counts[symbol] = 1;
        }
    }
    codes.fill(Code::default());
    let mut used: Vec<(u32, u16)> =
        counts.iter().zip(0..).filter(|(n, _)| **n > 0).map(|(n, symbol)| (*n, symbol)).collect();
    used.sort_unstable();
    let mut by_len = depths(&used, max);
    limit(&mut by_len, max);
    // The rarest symbols get the longest codes.
    let mut rest = used.iter();
    for len in (1..=max).rev() {
        for (_, symbol) in rest.by_ref().take(by_len[len] as usize) {
            codes[usize::from(*symbol)].len = len as u8;
        }
    }
    let mut next = [0u16; LEN_MAX + 2];
    let mut code = 0u16;
    for len in 1..=max {
        next[len] = code;
        code = (code + by_len[len] as u16) << 1;
    }
    for code in codes.iter_mut().filter(|code| code.len > 0) {
        let len = usize::from(code.len);
        code.bits = next[len].reverse_bits() >> (16 - len);
        next[len] += 1;
    }
}

/// How many symbols have each depth in a Huffman tree over `used`, which is sorted; `max` stands for all deeper ones.
fn depths(used: &[(u32, u16)], max: usize) -> [u32; LEN_MAX + 2] {
    let n = used.len();
    // Two queues: leaves in order, and the inner nodes made of them, which come in order too.
    let mut weights: Vec<u32> = used.iter().map(|(count, _)| *count).collect();
    let mut parents = vec![0usize; 2 * n - 1];
    let (mut leaf, mut inner) = (0, n);
    for node in n..2 * n - 1 {
        let mut sum = 0;
        for _ in 0..2 {
            let pick = if leaf < n && (inner >= node || weights[leaf] <= weights[inner]) {
                leaf += 1;
                leaf - 1
            } else {
                inner += 1;
                inner - 1
            };
            sum += weights[pick];
            parents[pick] = node;
        }
        weights.push(sum);
    }
    let mut depth = vec![0u8; 2 * n - 1];
    let mut by_len = [0; LEN_MAX + 2];
    for node in (0..2 * n - 2).rev() {
        depth[node] = depth[parents[node]].saturating_add(1);
        if node < n {
            by_len[usize::from(depth[node]).min(max)] += 1;
        }
    }
    by_len
}

/// Restores the sum of a prefix code after the deepest leaves were lifted to `max`.
fn limit(by_len: &mut [u32; LEN_MAX + 2], max: usize) {
    let mut sum: u32 = (1..=max).map(|len| by_len[len] << (max - len)).sum();
    while sum > 1 << max {
        // A leaf of the deepest level takes the place of one further up, which moves down beside it.
        by_len[max] -= 1;
        let up = (1..max).rev().find(|len| by_len[*len] > 0).expect("an overfull code has shorter ones");
        by_len[up] -= 1;
        by_len[up + 1] += 2;
        sum -= 1;
    }
}

fn len_class(len: usize) -> Class {
    let len = len as u16;
    match len {
        0..8 => Class { symbol: 257 + len, base: len + 3, extra: 0 },
        255 => Class { symbol: 285, base: 258, extra: 0 },
        _ => {
            let extra = len.ilog2() - 2;
            let quarter = (len >> extra) & 3;
            let symbol = 257 + 4 * (extra as u16 + 1) + quarter;
            Class { symbol, base: ((4 + quarter) << extra) + 3, extra: extra as u8 }
        }
    }
}

#[inline]
fn distance_class(distance: usize) -> Class {
    let back = distance as u16 - 1;
    if back < 4 {
        return Class { symbol: back, base: back + 1, extra: 0 };
    }
    let extra = back.ilog2() - 1;
    let half = (back >> extra) & 1;
    Class { symbol: 2 * (extra as u16 + 1) + half, base: ((2 + half) << extra) + 1, extra: extra as u8 }
}
