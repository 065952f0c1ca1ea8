//! Where the structures of an image lie: just enough of the format to damage one on purpose.

use crate::rng::Rng;

/// A field of an image.
#[derive(Clone, Debug)]
pub struct Field {
    /// Which structure it is of.
    pub name: &'static str,
    /// Where it lies in the file.
    pub offset: u64,
    /// Its width in bytes.
    pub width: usize,
}

/// An image's bytes, with its structures found.
#[derive(Debug)]
pub struct Layout<'a> {
    bytes: &'a [u8],
    /// Bytes of a cluster.
    pub cluster: u64,
    l1: Vec<u64>,
    l1_offset: u64,
    table_offset: u64,
    table_entries: u64,
    snapshots_offset: u64,
    /// Number of snapshots.
    pub snapshots: u64,
}

/// Fields of the header: name, offset, width.
const HEADER: [(&str, u64, usize); 18] = [
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing-offset", 8, 8),
    ("backing-length", 16, 4),
    ("cluster-bits", 20, 4),
    ("size", 24, 8),
    ("crypt-method", 32, 4),
    ("l1-size", 36, 4),
    ("l1-offset", 40, 8),
    ("reftable-offset", 48, 8),
    ("reftable-clusters", 56, 4),
    ("snapshot-count", 60, 4),
    ("snapshot-offset", 64, 8),
    ("incompatible", 72, 8),
    ("compatible", 80, 8),
    ("autoclear", 88, 8),
    ("refcount-order", 96, 4),
    ("header-length", 100, 4),
];

/// Bits of an entry that hold an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

impl<'a> Layout<'a> {
    /// Finds the structures of a valid image.
    pub fn of(bytes: &'a [u8]) -> Self {
        let cluster = 1 << get(bytes, 20, 4);
        let l1_offset = get(bytes, 40, 8);
        let l1 = (0..get(bytes, 36, 4)).map(|i| get(bytes, l1_offset + 8 * i, 8)).collect();
        Self {
            bytes,
            cluster,
            l1,
            l1_offset,
            table_offset: get(bytes, 48, 8),
            table_entries: get(bytes, 56, 4) * cluster / 8,
            snapshots_offset: get(bytes, 64, 8),
            snapshots: get(bytes, 60, 4),
        }
    }

    /// The fields of the header.
    pub fn header(&self) -> Vec<Field> {
        // Version 2 ends after the snapshots.
        let fields = if get(self.bytes, 4, 4) == 2 { 13 } else { HEADER.len() };
        HEADER[..fields].iter().map(|&(name, offset, width)| Field { name, offset, width }).collect()
    }

    /// Entries of the L1 table.
    pub fn l1_entries(&self) -> Vec<Field> {
        let offsets = (0..self.l1.len() as u64).map(|i| self.l1_offset + 8 * i);
        offsets.map(|offset| Field { name: "l1-entry", offset, width: 8 }).collect()
    }

    /// Entries in use of the L2 tables, and an unused one of each.
    pub fn l2_entries(&self) -> Vec<Field> {
        let tables = self.l1.iter().map(|entry| entry & OFFSET).filter(|offset| *offset != 0);
        let mut fields = Vec::new();
        for table in tables {
            let mut unused = None;
            for offset in (table..table + self.cluster).step_by(8) {
                let entry = get(self.bytes, offset, 8);
                match entry {
                    0 => unused = unused.or(Some(offset)),
                    _ if entry >> 62 & 1 == 1 => {
                        fields.push(Field { name: "l2-compressed", offset, width: 8 });
                    }
                    _ => fields.push(Field { name: "l2-entry", offset, width: 8 }),
                }
            }
            fields.extend(unused.map(|offset| Field { name: "l2-unused", offset, width: 8 }));
        }
        fields
    }

    /// Entries of the refcount table that are in use, and the first that is not.
    pub fn reftable_entries(&self) -> Vec<Field> {
        let offsets = (0..self.table_entries).map(|i| self.table_offset + 8 * i);
        let used = offsets.clone().filter(|offset| get(self.bytes, *offset, 8) != 0);
        let unused = offsets.clone().find(|offset| get(self.bytes, *offset, 8) == 0);
        used.chain(unused).map(|offset| Field { name: "reftable-entry", offset, width: 8 }).collect()
    }

    /// Bytes of refcount blocks that cover the file.
    pub fn refcounts(&self) -> Vec<Field> {
        let bits = if get(self.bytes, 4, 4) == 2 { 16 } else { 1 << get(self.bytes, 96, 4) };
        let clusters = self.bytes.len() as u64 / self.cluster;
        let block = get(self.bytes, self.table_offset, 8) & !511;
        let bytes = (clusters * bits).div_ceil(8).min(self.cluster);
        (block..block.saturating_add(bytes))
            .map(|offset| Field { name: "refcount", offset, width: 1 })
            .collect()
    }

    /// Fields of the first entry of the snapshot table.
    pub fn snapshot_fields(&self) -> Vec<Field> {
        const FIELDS: [(&str, u64, usize); 6] = [
            ("snapshot-l1-offset", 0, 8),
            ("snapshot-l1-size", 8, 4),
            ("snapshot-id-length", 12, 2),
            ("snapshot-name-length", 14, 2),
            ("snapshot-vm-size", 32, 4),
            ("snapshot-extra-size", 36, 4),
        ];
        if self.snapshots == 0 {
            return Vec::new();
        }
        let mut fields: Vec<Field> = FIELDS
            .iter()
            .map(|&(name, offset, width)| Field { name, offset: self.snapshots_offset + offset, width })
            .collect();
        let l1 = get(self.bytes, self.snapshots_offset, 8);
        fields.push(Field { name: "snapshot-l1-entry", offset: l1, width: 8 });
        fields
    }

    /// Offsets of structures, to point other structures at.
    pub fn landmarks(&self) -> Vec<u64> {
        let mut marks = vec![self.cluster, self.l1_offset, self.table_offset, self.snapshots_offset];
        marks.push(get(self.bytes, self.table_offset, 8) & !511);
        marks.extend(self.l1.iter().map(|entry| entry & OFFSET));
        marks.extend(self.l2_entries().iter().take(4).map(|f| get(self.bytes, f.offset, 8) & OFFSET));
        marks.retain(|mark| *mark != 0);
        marks
    }

    /// A field to damage, its new value, and what kind of value that is.
    pub fn damage(&self, rng: &mut Rng) -> Option<(Field, u64, &'static str)> {
        let fields = match rng.below(20) {
            0..4 => self.header(),
            4..7 => self.l1_entries(),
            7..12 => self.l2_entries(),
            12..14 => self.reftable_entries(),
            14..17 => self.refcounts(),
            _ => self.snapshot_fields(),
        };
        let field = fields.get(rng.below(fields.len() as u64) as usize)?.clone();
        let old = self.value(&field);
        let landmarks = self.landmarks();
        let (value, how) = match (field.width, rng.below(8)) {
            (8, 0) => (old.wrapping_add(512), "misaligned"),
            (8, 1) => (old & 0xff00_0000_0000_01ff | 1 << 40, "outside"),
            (8, 2 | 3) => (old & 0xff00_0000_0000_01ff | rng.pick(&landmarks), "elsewhere"),
            (8, 4) => (old ^ 1 << 63, "copied"),
            (8, 5) => (old ^ 1 << (56 + rng.below(6)), "reserved"),
            (_, 6) => (0, "zero"),
            (_, 7) => (u64::MAX, "ones"),
            (1, _) => (rng.below(256), "random"),
            (width, _) => (old ^ 1 << rng.below(8 * width as u64), "flip"),
        };
        Some((field, value, how))
    }

    /// The value of a field.
    pub fn value(&self, field: &Field) -> u64 {
        get(self.bytes, field.offset, field.width)
    }
}

/// A big-endian number; zero beyond the end.
pub fn get(bytes: &[u8], offset: u64, width: usize) -> u64 {
    let start = offset as usize;
    let field = bytes.get(start..start.saturating_add(width)).unwrap_or_default();
    field.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// Overwrites a field; nothing happens beyond the end.
pub fn put(bytes: &mut [u8], field: &Field, value: u64) {
    let start = field.offset as usize;
    if let Some(place) = bytes.get_mut(start..start.saturating_add(field.width)) {
        place.copy_from_slice(&value.to_be_bytes()[8 - field.width..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_and_written_big_endian() {
        let mut bytes = vec![0; 16];
        let field = Field { name: "x", offset: 4, width: 4 };
        put(&mut bytes, &field, 0x0102_0304);
        assert_eq!(bytes[4..8], [1, 2, 3, 4]);
        assert_eq!(get(&bytes, 4, 4), 0x0102_0304);
        assert_eq!(get(&bytes, 14, 4), 0);
    }
}
