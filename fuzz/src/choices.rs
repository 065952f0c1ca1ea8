//! Decisions of a target: from a seed, or byte by byte from an input, so that whoever mutates the input decides.

use cowbell_difftest::rng::Rng;

/// A source of decisions.
pub enum Choices<'a> {
    /// Endless, the same for the same seed.
    Seed(Rng),
    /// These bytes; when they are used up, every decision is 0.
    Bytes(&'a [u8]),
}

impl Choices<'_> {
    /// A number below `end`; 0 when `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        match self {
            Self::Seed(rng) => rng.below(end),
            Self::Bytes(bytes) => {
                let wanted = (u64::BITS - end.saturating_sub(1).leading_zeros()).div_ceil(8) as usize;
                let (now, rest) = bytes.split_at(wanted.min(bytes.len()));
                *bytes = rest;
                let number = now.iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
                number.checked_rem(end).unwrap_or(0)
            }
        }
    }

    /// Whether an event of this chance in a hundred happens.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of the values.
    pub fn pick<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    /// Whether nothing is left to decide with.
    pub fn is_over(&self) -> bool {
        matches!(self, Self::Bytes([]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_decide_until_they_are_used_up() {
        let mut choices = Choices::Bytes(&[7, 1, 2, 3]);
        assert_eq!((choices.below(10), choices.below(1 << 16)), (7, 0x0102));
        assert!(!choices.is_over());
        assert_eq!((choices.below(1), choices.below(2), choices.below(100)), (0, 1, 0));
        assert!(choices.is_over() && choices.below(0) == 0);
    }
}
