//! What guests write: sectors that say who wrote them, so that a wrong read names its origin.

use crate::pool::{Content, NOISE, Pool, SECTOR, ZERO};
use crate::rng::mix;

const MAGIC: u32 = 0xc0_bb_e1_15;
/// Bytes of a stamp.
const HEAD: usize = 32;

/// The origin of a sector of guest data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Seed of the run.
    pub seed: u64,
    /// Number of the operation in the workload.
    pub operation: u32,
    /// The guest sector it was written for.
    pub sector: u64,
    /// How often the guest was restarted before.
    pub generation: u32,
}

impl Stamp {
    /// The sector's bytes: 32 bytes of stamp and a fill that depends on all of it.
    pub fn bytes(&self) -> [u8; SECTOR] {
        let mut out = [0; SECTOR];
        out[..HEAD].copy_from_slice(&self.head());
        let mut word = self.hash() | 1;
        // A Weyl sequence: distinct words, no repeating pattern, one addition each. Data that was there before
        // the run, or is written compressed, repeats one word.
        let step = if self.operation < COMPRESSIBLE { 0x9e37_79b9_7f4a_7c15 } else { 0 };
        for chunk in out[HEAD..].as_chunks_mut::<8>().0 {
            word = word.wrapping_add(step);
            *chunk = word.to_le_bytes();
        }
        out
    }

    /// The first bytes of the sector, which tell one stamp from every other.
    pub fn head(&self) -> [u8; HEAD] {
        let mut out = [0; HEAD];
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4..12].copy_from_slice(&self.seed.to_le_bytes());
        out[12..16].copy_from_slice(&self.operation.to_le_bytes());
        out[16..24].copy_from_slice(&self.sector.to_le_bytes());
        out[24..28].copy_from_slice(&self.generation.to_le_bytes());
        out[28..32].copy_from_slice(&(self.hash() as u32).to_le_bytes());
        out
    }

    /// A hash of the stamp.
    pub fn hash(&self) -> u64 {
        let operation = u64::from(self.operation) << 32 | u64::from(self.generation);
        mix(self.seed ^ mix(self.sector ^ mix(operation)))
    }

    /// The stamp of a sector, if it carries a whole one.
    pub fn parse(bytes: &[u8; SECTOR]) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().expect("inside a sector"));
        let u64_at = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().expect("inside a sector"));
        let stamp =
            Self { seed: u64_at(4), operation: u32_at(12), sector: u64_at(16), generation: u32_at(24) };
        (u32_at(0) == MAGIC && stamp.bytes() == *bytes).then_some(stamp)
    }
}

/// Says in words what a content is.
pub fn describe(pool: &Pool, content: Content) -> String {
    if content == ZERO {
        return "zeroes".into();
    }
    if content == NOISE {
        return "noise".into();
    }
    let bytes = pool.bytes(content);
    match Stamp::parse(bytes) {
        Some(s) if s.operation >= BACKING => format!("the backing file's sector {}", s.sector),
        Some(s) if s.operation >= PRESTATE => format!("the initial data of sector {}", s.sector),
        Some(s) if s.generation > 0 => {
            format!(
                "operation {}'s data for sector {} (after restart {})",
                s.operation & !COMPRESSIBLE,
                s.sector,
                s.generation
            )
        }
        Some(s) => format!("operation {}'s data for sector {}", s.operation & !COMPRESSIBLE, s.sector),
        None if bytes[..4] == MAGIC.to_le_bytes() => "a torn stamp".into(),
        None => format!("foreign bytes {:02x?}…", &bytes[..16]),
    }
}

/// Operation numbers from here on are of data that compresses well.
pub const COMPRESSIBLE: u32 = 0x8000_0000;
/// Sector numbers from here on mean the VM state area.
pub const STATE: u64 = 1 << 40;
/// Operation numbers from here on mean data that was in the image before the run.
pub const PRESTATE: u32 = 0xf000_0000;
/// Operation numbers from here on mean the backing file.
pub const BACKING: u32 = 0xff00_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_survive_and_torn_ones_show() {
        let stamp = Stamp { seed: 9, operation: 5, sector: 128, generation: 1 };
        let mut bytes = stamp.bytes();
        assert_eq!(Stamp::parse(&bytes), Some(stamp));
        bytes[500] ^= 1;
        assert_eq!(Stamp::parse(&bytes), None);
        let mut pool = Pool::default();
        let id = pool.intern(&bytes);
        assert_eq!(describe(&pool, id), "a torn stamp");
    }
}
