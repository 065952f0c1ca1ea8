//! Entries of the snapshot table, kept byte for byte: what this version does not know survives a rewrite.
//!
//! The table is read and written as a stream, so that its 65,536 entries and 64 MiB take no memory.

use cowbell_block::{Buf, Child, Result, SnapshotInfo, names};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::{Excess, Snapshot, SnapshotError, TABLE_BYTES_MAX};
use crate::geometry::HostOffset;
use crate::header::Header;

/// Most bytes of extra data in one entry.
pub(crate) const EXTRA_BYTES_MAX: u32 = 1024;
/// Bytes of extra data that version 3 demands: VM state size and disk size.
pub(super) const EXTRA_V3: u32 = 16;
/// Bytes of extra data that writers store: the instruction count as well.
const EXTRA_WRITTEN: usize = 24;
/// Bytes read or written at once: most tables fit.
const PIECE_BYTES: usize = 64 << 10;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone)]
#[repr(C)]
pub(super) struct RawEntry {
    /// Host offset of the snapshot's L1 table.
    pub l1_table_offset: U64,
    /// Its entries.
    pub l1_size: U32,
    id_len: U16,
    name_len: U16,
    pub date_sec: U32,
    pub date_nsec: U32,
    pub vm_clock_nsec: U64,
    /// The low half of the VM state's size, for readers that know no extra data.
    pub vm_state_size: U32,
    extra_len: U32,
}

const _: () = assert!(size_of::<RawEntry>() == 40);

/// An entry as stored.
#[derive(Clone)]
pub(super) struct Row {
    pub raw: RawEntry,
    /// VM state size, disk size, instruction count, and whatever follows them.
    pub extra: Vec<u8>,
    pub id: Vec<u8>,
    pub name: Vec<u8>,
}

impl Row {
    /// An entry with this id; its other fields are zero.
    pub fn new(id: u64, name: &str) -> Self {
        Self {
            raw: RawEntry::new_zeroed(),
            extra: vec![0; EXTRA_WRITTEN],
            id: id.to_string().into_bytes(),
            name: names::to_bytes(name).into_owned(),
        }
    }

    /// Sets the fields of the extra data.
    pub fn set_extra(&mut self, vm_state_size: u64, disk_size: u64, icount: Option<u64>) {
        self.raw.vm_state_size = (u32::try_from(vm_state_size).unwrap_or(0)).into();
        let words = [vm_state_size, disk_size, icount.unwrap_or(u64::MAX)];
        for (place, word) in self.extra.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
    }

    /// What the entry says; an old one without a disk size means the disk as it is.
    pub fn snapshot(&self, disk_size: u64) -> Snapshot {
        // As the reference reads them: up to the first NUL.
        let text =
            |bytes: &[u8]| names::from_bytes(bytes.split(|byte| *byte == 0).next().unwrap_or_default());
        let info = SnapshotInfo {
            id: text(&self.id),
            name: text(&self.name),
            vm_state_size: self.word(0).unwrap_or(u64::from(self.raw.vm_state_size.get())),
            date_sec: self.raw.date_sec.get(),
            date_nsec: self.raw.date_nsec.get(),
            vm_clock_nsec: self.raw.vm_clock_nsec.get(),
            icount: self.word(16).filter(|count| *count != u64::MAX),
            disk_size: self.word(8).unwrap_or(disk_size),
        };
        Snapshot {
            info,
            l1_offset: HostOffset(self.raw.l1_table_offset.get()),
            l1_entries: self.raw.l1_size.get(),
            extra_len: self.extra.len() as u32,
        }
    }

    fn word(&self, at: usize) -> Option<u64> {
        self.extra.get(at..at + 8)?.first_chunk().map(|b| u64::from_be_bytes(*b))
    }

    /// The number that the id begins with.
    pub fn number(&self) -> u64 {
        let digits = self.id.iter().take_while(|b| b.is_ascii_digit());
        digits.fold(0u64, |n, b| n.saturating_mul(10).saturating_add(u64::from(b - b'0')))
    }

    /// The entry with all the fields that writers store today; `disk_size` is the disk's as it is.
    pub fn completed(mut self, disk_size: u64) -> Self {
        if self.extra.len() < EXTRA_WRITTEN {
            let info = self.snapshot(disk_size).info;
            let known = self.extra.len();
            self.extra.resize(EXTRA_WRITTEN, 0);
            let words = [info.vm_state_size, info.disk_size, info.icount.unwrap_or(u64::MAX)];
            for (i, word) in words.into_iter().enumerate().filter(|(i, _)| i * 8 + 8 > known) {
                self.extra[i * 8..i * 8 + 8].copy_from_slice(&word.to_be_bytes());
            }
        }
        self
    }

    /// Bytes of the entry in a table, with the padding before the next one.
    pub fn stored_len(&self) -> u64 {
        let len = size_of::<RawEntry>() + self.extra.len() + self.id.len() + self.name.len();
        len.next_multiple_of(8) as u64
    }

    fn write_to(&self, out: &mut Vec<u8>) {
        let mut raw = self.raw.clone();
        raw.id_len = (self.id.len() as u16).into();
        raw.name_len = (self.name.len() as u16).into();
        raw.extra_len = (self.extra.len() as u32).into();
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(&self.extra);
        out.extend_from_slice(&self.id);
        out.extend_from_slice(&self.name);
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

/// Reads the table front to back in large pieces.
pub(super) struct Input<'a> {
    file: &'a Child,
    base: u64,
    index: u32,
    count: u32,
    piece: Vec<u8>,
    piece_at: u64,
    at: u64,
    /// What a repair leaves out; `None` when limits hold.
    excess: Option<Vec<Excess>>,
}

impl<'a> Input<'a> {
    pub fn new(file: &'a Child, header: &Header) -> Self {
        let (base, count) = (header.snapshots_offset.0, header.snapshot_count);
        Self { file, base, index: 0, count, piece: Vec::new(), piece_at: 0, at: 0, excess: None }
    }

    /// Leaves out what exceeds a limit, and remembers it.
    pub fn for_repair(file: &'a Child, header: &Header) -> Self {
        Self { excess: Some(Vec::new()), ..Self::new(file, header) }
    }

    /// What was left out since the last call.
    pub fn take_excess(&mut self) -> Vec<Excess> {
        self.excess.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The next entry, if there is one.
    ///
    /// # Errors
    /// The file's, or the limit that is exceeded.
    pub async fn next(&mut self) -> Result<Option<Row>> {
        if self.index == self.count {
            return Ok(None);
        }
        let start = self.at;
        let bytes = self.take(size_of::<RawEntry>()).await?;
        let raw = RawEntry::read_from_bytes(&bytes).expect("taken in its length");
        let extra_len = raw.extra_len.get();
        let extra = self.take(extra_len.min(EXTRA_BYTES_MAX) as usize).await?;
        if extra_len > EXTRA_BYTES_MAX {
            let excess = self.excess.as_mut().ok_or(SnapshotError::Extra(self.index))?;
            excess.push(Excess::Extra { index: self.index, bytes: extra_len });
            self.at += u64::from(extra_len - EXTRA_BYTES_MAX);
        }
        if self.at > TABLE_BYTES_MAX {
            // Nothing is looked for that far behind.
            return self.end_before(start);
        }
        let id = self.take(usize::from(raw.id_len.get())).await?;
        let name = self.take(usize::from(raw.name_len.get())).await?;
        if self.at > TABLE_BYTES_MAX {
            return self.end_before(start);
        }
        self.at = self.at.next_multiple_of(8);
        self.index += 1;
        Ok(Some(Row { raw, extra, id, name }))
    }

    /// The entry that begins here, and all behind it, would make the table too long.
    fn end_before(&mut self, start: u64) -> Result<Option<Row>> {
        let rest = self.count - self.index;
        self.excess.as_mut().ok_or(SnapshotError::TooBig(rest))?.push(Excess::Snapshots(rest));
        (self.count, self.at) = (self.index, start);
        Ok(None)
    }

    /// Bytes gone through.
    pub fn table_bytes(&self) -> u64 {
        self.at
    }

    async fn take(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let inside = self.at.wrapping_sub(self.piece_at) as usize;
            if inside >= self.piece.len() {
                let piece = self.file.read(self.base + self.at, PIECE_BYTES).await?;
                self.piece.clear();
                self.piece.extend_from_slice(&piece);
                piece.recycle();
                self.piece_at = self.at;
                continue;
            }
            let n = (len - out.len()).min(self.piece.len() - inside);
            out.extend_from_slice(&self.piece[inside..inside + n]);
            self.at += n as u64;
        }
        Ok(out)
    }
}

/// Writes a table front to back in large pieces.
pub(super) struct Output<'a> {
    file: &'a Child,
    at: u64,
    piece: Vec<u8>,
}

impl<'a> Output<'a> {
    pub fn new(file: &'a Child, place: HostOffset) -> Self {
        Self { file, at: place.0, piece: Vec::new() }
    }

    /// Adds an entry.
    pub async fn put(&mut self, row: &Row) -> Result<()> {
        row.write_to(&mut self.piece);
        if self.piece.len() >= PIECE_BYTES { self.finish().await } else { Ok(()) }
    }

    /// Writes what is not written yet.
    pub async fn finish(&mut self) -> Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        self.file.write(self.at, Buf::copy_of(&self.piece)).await?;
        self.at += self.piece.len() as u64;
        self.piece.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        let mut row = Row::new(17, "name");
        row.raw.vm_clock_nsec = 5.into();
        row.set_extra(1 << 40, 3 << 20, None);
        row
    }

    #[test]
    fn unknown_extra_data_is_kept() {
        let mut row = row();
        row.extra.extend_from_slice(b"later");
        let mut bytes = Vec::new();
        row.write_to(&mut bytes);
        assert_eq!(bytes.len() as u64, row.stored_len());
        let completed = row.clone().completed(99);
        assert_eq!(completed.extra, row.extra);
    }

    #[test]
    fn short_entries_are_completed_with_what_they_mean() {
        let mut old = row();
        old.extra.truncate(0);
        old.raw.vm_state_size = 77.into();
        let info = old.completed(4096).snapshot(1).info;
        assert_eq!((info.vm_state_size, info.disk_size, info.icount), (77, 4096, None));
        let mut half = row();
        half.extra.truncate(16);
        let info = half.completed(4096).snapshot(1).info;
        assert_eq!((info.vm_state_size, info.disk_size, info.icount), (1 << 40, 3 << 20, None));
    }

    #[test]
    fn ids_that_are_no_numbers_count_as_zero() {
        let mut row = row();
        for (id, number) in [("17", 17), ("17x", 17), ("x", 0), ("", 0), ("99999999999999999999", u64::MAX)] {
            row.id = id.into();
            assert_eq!(row.number(), number, "{id}");
        }
    }
}
