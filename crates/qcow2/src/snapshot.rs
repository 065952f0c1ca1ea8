//! The table of internal snapshots: read and kept.
//!
//! qcow2 specification, *Snapshots*. Limits are the reference's, so that images stay exchangeable.

use cowbell_block::{Child, Error, ErrorKind, Result, SnapshotInfo};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use crate::geometry::{Geometry, HostOffset};
use crate::header::{Header, L1_BYTES_MAX};

/// Most bytes of a snapshot table.
const TABLE_BYTES_MAX: u64 = 64 << 20;
/// Most bytes of extra data in one entry.
const EXTRA_BYTES_MAX: u32 = 1024;
/// Bytes of extra data that version 3 demands: VM state size and disk size.
const EXTRA_V3: u32 = 16;
/// Bytes read at once: most tables fit.
const PIECE_BYTES: usize = 64 << 10;

#[derive(FromBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RawEntry {
    l1_table_offset: U64,
    l1_size: U32,
    id_len: U16,
    name_len: U16,
    date_sec: U32,
    date_nsec: U32,
    vm_clock_nsec: U64,
    vm_state_size: U32,
    extra_len: U32,
}

const _: () = assert!(size_of::<RawEntry>() == 40);

/// One snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub info: SnapshotInfo,
    pub l1_offset: HostOffset,
    pub l1_entries: u32,
    /// Bytes of extra data; version 3 wants at least 16.
    pub extra_len: u32,
}

/// What is wrong with a snapshot, found when it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    L1Unaligned,
    L1TooLarge,
}

impl Snapshot {
    /// Whether the snapshot's L1 table can be read at all.
    pub fn fault(&self, geometry: &Geometry) -> Option<Fault> {
        if u64::from(self.l1_entries) * 8 > L1_BYTES_MAX {
            Some(Fault::L1TooLarge)
        } else if self.l1_offset.0 >= 1 << 62 || !geometry.is_aligned(self.l1_offset) {
            Some(Fault::L1Unaligned)
        } else {
            None
        }
    }

    /// Whether fields are missing that version 3 demands.
    pub fn is_incomplete(&self, version: u32) -> bool {
        version >= 3 && self.extra_len < EXTRA_V3
    }
}

/// All snapshots of an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotTable {
    pub entries: Vec<Snapshot>,
    /// Bytes of the table as stored.
    pub table_bytes: u64,
}

/// A snapshot table that breaks a rule.
#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error("Snapshot table too large")]
    TooLarge,
    #[error("Too much extra metadata in snapshot table entry {0}")]
    Extra(u32),
}

impl From<SnapshotError> for Error {
    fn from(e: SnapshotError) -> Self {
        Error::new(ErrorKind::TooLarge, e)
    }
}

impl SnapshotTable {
    /// Reads the table that the header names.
    ///
    /// # Errors
    /// The file's, or the limit that the table exceeds. What concerns one snapshot only is left to those who use it,
    /// so that the active disk of a damaged image can be read.
    pub async fn read(file: &Child, header: &Header) -> Result<Self> {
        let mut entries = Vec::new();
        let table_bytes = Self::scan(file, header, |entry| entries.push(entry)).await?;
        Ok(Self { entries, table_bytes })
    }

    /// Goes through the table without keeping anything; returns its length in bytes.
    ///
    /// # Errors
    /// As [`SnapshotTable::read`].
    pub async fn scan(file: &Child, header: &Header, mut each: impl FnMut(Snapshot)) -> Result<u64> {
        let mut input =
            Input { file, base: header.snapshots_offset.0, piece: Vec::new(), piece_at: 0, at: 0 };
        for index in 0..header.snapshot_count {
            let entry = read_entry(&mut input, index, header).await?;
            each(entry);
            input.at = input.at.next_multiple_of(8);
            if input.at > TABLE_BYTES_MAX {
                return Err(SnapshotError::TooLarge.into());
            }
        }
        Ok(input.at)
    }
}

async fn read_entry(input: &mut Input<'_>, index: u32, header: &Header) -> Result<Snapshot> {
    let bytes = input.take(size_of::<RawEntry>()).await?;
    let raw = RawEntry::read_from_bytes(&bytes).expect("taken in its length");
    let extra_len = raw.extra_len.get();
    if extra_len > EXTRA_BYTES_MAX {
        return Err(SnapshotError::Extra(index).into());
    }
    let extra = input.take(extra_len as usize).await?;
    let id = input.take(usize::from(raw.id_len.get())).await?;
    let name = input.take(usize::from(raw.name_len.get())).await?;
    let word = |at: usize| extra.get(at..at + 8)?.first_chunk().map(|b| u64::from_be_bytes(*b));
    let info = SnapshotInfo {
        id: String::from_utf8_lossy(&id).into_owned(),
        name: String::from_utf8_lossy(&name).into_owned(),
        vm_state_size: word(0).unwrap_or(u64::from(raw.vm_state_size.get())),
        date_sec: raw.date_sec.get(),
        date_nsec: raw.date_nsec.get(),
        vm_clock_nsec: raw.vm_clock_nsec.get(),
        icount: word(16).filter(|count| *count != u64::MAX),
        disk_size: word(8).unwrap_or(header.size),
    };
    let l1_offset = HostOffset(raw.l1_table_offset.get());
    Ok(Snapshot { info, l1_offset, l1_entries: raw.l1_size.get(), extra_len })
}

/// Reads the table front to back in large pieces.
struct Input<'a> {
    file: &'a Child,
    base: u64,
    piece: Vec<u8>,
    piece_at: u64,
    at: u64,
}

impl Input<'_> {
    async fn take(&mut self, len: usize) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(len);
        while out.len() < len {
            let inside = self.at.wrapping_sub(self.piece_at) as usize;
            if inside >= self.piece.len() {
                self.piece = self.file.read(self.base + self.at, PIECE_BYTES).await?.to_vec();
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
