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
/// Directory flag: it records changes.
const AUTO: u32 = 2;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;

struct Bytes<'a, 'b>(&'a ImageBytes<'b>);

impl Bytes<'_, '_> {
    fn u16(&self, at: u64) -> u16 {
        let mut raw = [0; 2];
        self.0.read(at, &mut raw);
        u16::from_be_bytes(raw)
    }

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

/// A bitmap as the file has it.
#[derive(Clone, Debug, Default)]
pub struct Recorded {
    /// Its name.
    pub name: String,
    /// Whether it calls itself consistent.
    pub consistent: bool,
    /// Whether it records changes.
    pub recording: bool,
    /// The sectors that it records as changed, if it is consistent.
    pub sectors: SectorSet,
}

/// The bitmaps of an image; `None` if the image says nothing about them that counts.
pub fn read(image: &ImageBytes<'_>) -> Option<Vec<Recorded>> {
    let bytes = Bytes(image);
    if bytes.u32(4) < 3 || bytes.u64(88) & AUTOCLEAR_BITMAPS == 0 {
        return None;
    }
    let cluster = 1u64 << bytes.u32(20);
    let mut at = u64::from(bytes.u32(100));
    loop {
        let (kind, len) = (bytes.u32(at), u64::from(bytes.u32(at + 4)));
        match kind {
            BITMAPS_EXTENSION => break,
            0 => return None,
            _ => at += 8 + len.next_multiple_of(8),
        }
        if at > cluster {
            return None;
        }
    }
    let (count, mut entry) = (bytes.u32(at + 8), bytes.u64(at + 24));
    let mut out = Vec::new();
    for _ in 0..count.min(100) {
        let (name_len, extra) = (u64::from(bytes.u16(entry + 18)), u64::from(bytes.u32(entry + 20)));
        let mut name = vec![0; name_len as usize];
        image.read(entry + 24 + extra, &mut name);
        let flags = bytes.u32(entry + 12);
        let sectors = (flags & IN_USE == 0).then(|| bits(&bytes, entry, cluster)).flatten();
        out.push(Recorded {
            name: String::from_utf8_lossy(&name).into_owned(),
            consistent: sectors.is_some(),
            recording: flags & AUTO != 0,
            sectors: sectors.unwrap_or_default(),
        });
        entry += (24 + extra + name_len).next_multiple_of(8);
    }
    Some(out)
}

/// The sectors whose bits are set; `None` when the table does not reach them all.
fn bits(bytes: &Bytes<'_, '_>, entry: u64, cluster: u64) -> Option<SectorSet> {
    let (table, entries) = (bytes.u64(entry), u64::from(bytes.u32(entry + 8)));
    let granularity = 1u64 << (bytes.u16(entry + 16) & 0xff);
    let mut recorded = SectorSet::default();
    for sector in 0..bytes.u64(24) / SECTOR as u64 {
        let bit = sector * SECTOR as u64 / granularity;
        let (index, within) = (bit / (cluster * 8), bit % (cluster * 8));
        if index >= entries {
            return None;
        }
        let raw = bytes.u64(table + index * 8);
        let set = match raw & OFFSET_MASK {
            0 => raw & 1 == 1,
            offset => {
                let mut byte = [0];
                bytes.0.read(offset + within / 8, &mut byte);
                byte[0] >> (within % 8) & 1 == 1
            }
        };
        if set {
            recorded.insert(sector as u32);
        }
    }
    Some(recorded)
}
