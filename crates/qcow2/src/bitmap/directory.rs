//! The bitmap directory: entries as stored, and checked on their way in.
//!
//! qcow2 specification, *Bitmap directory*. Limits and refusals are the reference's.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use cowbell_block::{Buf, Child, Result, names};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::shape::Shape;
use super::{BitmapError, GRANULARITY_BITS_MAX, GRANULARITY_BITS_MIN, NAME_BYTES_MAX, PHYSICAL_BYTES_MAX};
use crate::geometry::{Geometry, HostOffset};
use crate::header::{BitmapsExtension, Header};

/// An entry as stored, without its name.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RawEntry {
    /// Where the bitmap table lies.
    table_offset: U64,
    /// Its entries.
    table_entries: U32,
    /// See [`Flags`].
    flags: U32,
    /// 1: tracks changes.
    kind: u8,
    /// Log2 of the bytes that a bit stands for.
    granularity_bits: u8,
    /// Bytes of the name.
    name_len: U16,
    /// Bytes of extra data before the name.
    extra_len: U32,
}

/// Bytes of an entry before extra data and name.
const ENTRY_BYTES: usize = 24;
const _: () = assert!(size_of::<RawEntry>() == ENTRY_BYTES);
/// Where the flags lie in an entry.
const FLAGS_AT: u64 = 12;
/// The only type of bitmap.
const DIRTY_TRACKING: u8 = 1;
/// Bytes of the directory read at once; any entry fits.
const PIECE_BYTES: u64 = 64 << 10;

bitflags::bitflags! {
    /// Flags of a directory entry.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Flags: u32 {
        /// Not stored since it was last changed, or being changed now: its content means nothing.
        const IN_USE = 1;
        /// Records changes.
        const AUTO = 2;
    }
}

/// A bitmap as the directory describes it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Where the entry itself lies; 0 while it is not stored.
    pub at: HostOffset,
    pub name: Vec<u8>,
    pub table: HostOffset,
    pub table_entries: u32,
    pub flags: Flags,
    pub granularity_bits: u32,
}

impl Entry {
    /// The name for people.
    pub fn text(&self) -> String {
        names::from_bytes(&self.name)
    }

    /// What it covers on a disk of `size` bytes.
    pub fn shape(&self, geometry: &Geometry, size: u64) -> Shape {
        Shape { size, granularity_bits: self.granularity_bits, cluster_bits: geometry.cluster_bits }
    }

    /// Where its flags lie in the file.
    pub fn flags_at(&self) -> HostOffset {
        assert!(self.at.0 != 0, "the entry is stored");
        HostOffset(self.at.0 + FLAGS_AT)
    }

    /// Bytes in the directory.
    pub fn stored_bytes(&self) -> u64 {
        entry_bytes(self.name.len())
    }

    fn decode(raw: &RawEntry, at: HostOffset, name: &[u8], geometry: &Geometry, size: u64) -> Result<Self> {
        let broken = || BitmapError::Constraints(names::from_bytes(name));
        let flags = Flags::from_bits(raw.flags.get()).ok_or_else(broken)?;
        let entry = Self {
            at,
            name: name.to_vec(),
            table: HostOffset(raw.table_offset.get()),
            table_entries: raw.table_entries.get(),
            flags,
            granularity_bits: u32::from(raw.granularity_bits),
        };
        let physical = u64::from(entry.table_entries) << geometry.cluster_bits;
        let valid = raw.kind == DIRTY_TRACKING
            && !name.is_empty()
            && name.len() <= NAME_BYTES_MAX
            && !name.contains(&0)
            && (GRANULARITY_BITS_MIN..=GRANULARITY_BITS_MAX).contains(&entry.granularity_bits)
            && entry.table.0 != 0
            && entry.table.0 < 1 << 56
            && geometry.is_aligned(entry.table)
            && (1..=PHYSICAL_BYTES_MAX).contains(&physical);
        if !valid {
            return Err(broken().into());
        }
        // A bitmap in use may be of a disk that was about to change its size.
        if !flags.contains(Flags::IN_USE) {
            let needed = entry.shape(geometry, size).entries();
            if u64::from(entry.table_entries) < needed {
                return Err(broken().into());
            }
            if u64::from(entry.table_entries) != needed {
                return Err(BitmapError::Unreadable(entry.text()).into());
            }
        }
        Ok(entry)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        let raw = RawEntry {
            table_offset: self.table.0.into(),
            table_entries: self.table_entries.into(),
            flags: self.flags.bits().into(),
            kind: DIRTY_TRACKING,
            granularity_bits: self.granularity_bits as u8,
            name_len: (self.name.len() as u16).into(),
            extra_len: 0.into(),
        };
        out.extend_from_slice(raw.as_bytes());
        out.extend_from_slice(&self.name);
        out.resize(out.len().next_multiple_of(8), 0);
    }
}

/// Bytes of an entry with a name of this length.
pub(crate) fn entry_bytes(name_len: usize) -> u64 {
    ((ENTRY_BYTES + name_len) as u64).next_multiple_of(8)
}

/// The directory with these entries.
pub(crate) fn encode(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    entries.iter().for_each(|entry| entry.encode(&mut out));
    out
}

/// Reads all entries; none when the image has no bitmaps that are consistent with it.
///
/// # Errors
/// As [`scan`].
pub(crate) async fn read(file: &Child, header: &Header, geometry: &Geometry) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    scan(file, header, geometry, |entry| entries.push(entry)).await?;
    Ok(entries)
}

/// Goes through the directory without keeping anything but a number for each name.
///
/// # Errors
/// The file's, or the first rule that an entry breaks.
pub(crate) async fn scan(
    file: &Child,
    header: &Header,
    geometry: &Geometry,
    mut each: impl FnMut(Entry),
) -> Result<()> {
    let Some(BitmapsExtension { count, directory_bytes, directory }) = header.bitmaps() else {
        return Ok(());
    };
    if directory_bytes == 0 {
        return Err(BitmapError::DirectoryEmpty.into());
    }
    let mut names = BTreeSet::new();
    let mut window = Window { file, directory, bytes: directory_bytes, piece: Buf::zeroed(0), piece_at: 0 };
    let (mut at, mut found) = (0, 0);
    while at < directory_bytes {
        let fixed = window.get(at, ENTRY_BYTES as u64).await?.ok_or(BitmapError::Directory)?;
        let raw = RawEntry::read_from_bytes(fixed).expect("the length was asked for");
        found += 1;
        if found > count {
            return Err(BitmapError::MoreThanCounted.into());
        }
        let name_len = u64::from(raw.name_len.get());
        let end = at + (ENTRY_BYTES as u64 + u64::from(raw.extra_len.get()) + name_len).next_multiple_of(8);
        if end > directory_bytes {
            return Err(BitmapError::Directory.into());
        }
        if raw.extra_len.get() != 0 {
            return Err(BitmapError::ExtraData.into());
        }
        let name = window.get(at + ENTRY_BYTES as u64, name_len).await?.ok_or(BitmapError::Directory)?;
        let entry = Entry::decode(&raw, HostOffset(directory.0 + at), name, geometry, header.size)?;
        let mut hasher = DefaultHasher::new();
        entry.name.hash(&mut hasher);
        if !names.insert(hasher.finish()) {
            return Err(BitmapError::Exists(entry.text()).into());
        }
        each(entry);
        at = end;
    }
    if found != count {
        return Err(BitmapError::FewerThanCounted.into());
    }
    Ok(())
}

/// A part of the directory in memory.
struct Window<'a> {
    file: &'a Child,
    directory: HostOffset,
    bytes: u64,
    piece: Buf,
    piece_at: u64,
}

impl Window<'_> {
    /// `len` bytes from `at` on; `None` beyond the directory's end.
    async fn get(&mut self, at: u64, len: u64) -> Result<Option<&[u8]>> {
        if len > PIECE_BYTES || at + len > self.bytes {
            return Ok(None);
        }
        if at < self.piece_at || at + len > self.piece_at + self.piece.len() as u64 {
            let n = PIECE_BYTES.min(self.bytes - at);
            self.piece = self.file.read(self.directory.0 + at, n as usize).await?;
            self.piece_at = at;
        }
        let from = (at - self.piece_at) as usize;
        Ok(self.piece.get(from..from + len as usize))
    }
}
