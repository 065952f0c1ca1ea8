//! What the persistent bitmaps of an image say, read as the specification lays them out (*Bitmaps extension*).
//!
//! Sharing no code with the engine, and trusting nothing: whatever cannot be read counts as not consistent, and the
//! checker says what is wrong with it.

use crate::pool::SECTOR;
use crate::subject::{ImageBytes, SectorSet};

const BITMAPS_EXTENSION: u32 = 0x2385_2875;
/// Autoclear feature bit: the bitmaps extension is consistent with the image.
const AUTOCLEAR_BITMAPS: u64 = 1;
/// Directory flag: the bitmap was not saved rightly.
const IN_USE: u32 = 1;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

struct Bytes<'a, 'b>(&'a ImageBytes<'b>);

impl Bytes<'_, '_> {
    fn u32(&self, at: u64) -> u32 {
        let mut raw = [0; 4];
        self.0.read(at, &mut raw);
        u32::from_be_bytes(raw)
    }

    fn u64(&self, at: u64) -> u64 {
        let mut raw = [0; 8];
        self.0.read(at, &mut raw);
        u64::from_be_bytes(raw)
    }
}

/// The sectors that the first bitmap records; `None` if there is none that calls itself consistent.
pub fn read(image: &ImageBytes<'_>) -> Option<SectorSet> {
    let bytes = Bytes(image);
    if bytes.u64(88) & AUTOCLEAR_BITMAPS == 0 {
        return None;
    }
    let cluster = 1u64 << bytes.u32(20);
    let mut at = u64::from(bytes.u32(100));
    let directory = loop {
        let (kind, len) = (bytes.u32(at), u64::from(bytes.u32(at + 4)));
        match kind {
            BITMAPS_EXTENSION => break bytes.u64(at + 24),
            0 => return None,
            _ => at += 8 + len.next_multiple_of(8),
        }
        if at > cluster {
            return None;
        }
    };
    let (table, entries) = (bytes.u64(directory), u64::from(bytes.u32(directory + 8)));
    if bytes.u32(directory + 12) & IN_USE != 0 {
        return None;
    }
    let mut kind = [0; 2];
    image.read(directory + 16, &mut kind);
    let granularity = 1u64 << kind[1];
    let mut recorded = SectorSet::default();
    let sectors = bytes.u64(24) / SECTOR as u64;
    for sector in 0..sectors {
        let bit = sector * SECTOR as u64 / granularity;
        let (entry, within) = (bit / (cluster * 8), bit % (cluster * 8));
        if entry >= entries {
            return None;
        }
        let raw = bytes.u64(table + entry * 8);
        let set = match raw & OFFSET_MASK {
            0 => raw & 1 == 1,
            offset => {
                let mut byte = [0];
                image.read(offset + within / 8, &mut byte);
                byte[0] >> (within % 8) & 1 == 1
            }
        };
        if set {
            recorded.insert(sector as u32);
        }
    }
    Some(recorded)
}
