//! Ranges of a file that may overlap, cut into segments that each have one multiplicity.
//!
//! A hostile image has 65536 snapshots whose L1 tables lie on top of each other. Every byte below them is
//! read once, with the number of tables that cover it.

/// A range of bytes with the index of the thing that occupies it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) id: u32,
}

/// A piece of the file covered by the same ranges throughout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// How many ranges cover it.
    pub(crate) times: u64,
    /// One of them, the one that reaches farthest.
    pub(crate) range: Range,
}

/// Cuts `ranges` into `segments`, ascending. Empty ranges vanish. `ranges` is left sorted by start.
pub(crate) fn sweep(ranges: &mut [Range], segments: &mut Vec<Segment>) {
    segments.clear();
    ranges.sort_unstable_by_key(|range| (range.start, range.id));
    let mut ends: Vec<u64> =
        ranges.iter().filter(|range| range.start < range.end).map(|range| range.end).collect();
    ends.sort_unstable();
    let mut starts = ranges.iter().filter(|range| range.start < range.end).peekable();
    let mut ends = ends.into_iter().peekable();
    let mut times: u64 = 0;
    let mut at: u64 = 0;
    let mut farthest: Option<Range> = None;
    // Every range that starts also ends, so the ends run out last.
    while let Some(end) = ends.peek().copied() {
        let next = starts.peek().map_or(end, |range| range.start.min(end));
        if let (1.., true, Some(range)) = (times, at < next, farthest) {
            segments.push(Segment { start: at, end: next, times, range });
        }
        at = next;
        while let Some(range) = starts.next_if(|range| range.start == at) {
            times = times.saturating_add(1);
            if farthest.is_none_or(|best| best.end < range.end) {
                farthest = Some(*range);
            }
        }
        while ends.next_if_eq(&at).is_some() {
            times = times.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ranges: &[(u64, u64)], expect: &[(u64, u64, u64)]) {
        let mut ranges: Vec<Range> =
            ranges.iter().zip(0..).map(|(&(start, end), id)| Range { start, end, id }).collect();
        let mut segments = Vec::new();
        sweep(&mut ranges, &mut segments);
        let found: Vec<_> =
            segments.iter().map(|segment| (segment.start, segment.end, segment.times)).collect();
        assert_eq!(found, expect);
        for segment in segments {
            assert!(segment.range.start <= segment.start && segment.end <= segment.range.end);
        }
    }

    #[test]
    fn segments_carry_their_multiplicity() {
        check(&[], &[]);
        check(&[(5, 5)], &[]);
        check(&[(0, 8)], &[(0, 8, 1)]);
        check(&[(0, 8), (8, 16)], &[(0, 8, 1), (8, 16, 1)]);
        check(&[(0, 8), (16, 24)], &[(0, 8, 1), (16, 24, 1)]);
        check(&[(0, 8), (0, 8), (0, 8)], &[(0, 8, 3)]);
        check(&[(0, 32), (8, 16), (8, 40)], &[(0, 8, 1), (8, 16, 3), (16, 32, 2), (32, 40, 1)]);
    }
}
