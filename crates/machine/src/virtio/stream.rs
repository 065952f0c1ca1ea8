//! The console and the entropy device: bytes in, bytes out.

use std::collections::VecDeque;

/// Bytes of input held for a guest that gives no buffers.
const INPUT_MAX: usize = 64 << 10;

/// State of the console device. Queue 0 receives, queue 1 transmits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VirtioConsole {
    /// Input not yet given to the guest.
    pub input: VecDeque<u8>,
}

impl VirtioConsole {
    /// Bytes arrive from outside; what does not fit is dropped.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.input.extend(&bytes[..bytes.len().min(self.room())]);
    }

    /// Bytes that still fit.
    pub fn room(&self) -> usize {
        INPUT_MAX.saturating_sub(self.input.len())
    }
}

/// State of the entropy device: a seeded generator, so that runs repeat. It keeps no secrets.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entropy {
    state: u64,
}

impl Entropy {
    /// A generator for a seed.
    pub const fn new(seed: u64) -> Entropy {
        Entropy { state: seed }
    }

    /// The next bytes (SplitMix64).
    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.state;
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            bytes.extend((z ^ z >> 31).to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entropy_repeats_with_its_seed() {
        assert_eq!(Entropy::new(0).take(8), 0xe220_a839_7b1d_cdaf_u64.to_le_bytes());
        assert_eq!(Entropy::new(7).take(13), Entropy::new(7).take(13));
        assert_ne!(Entropy::new(7).take(8), Entropy::new(8).take(8));
    }
}
