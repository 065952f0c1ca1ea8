//! The header of images that grow, 1024 bytes: where their table lies, and whose difference they are.

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::SECTOR;
use crate::error::VpcError;
use crate::footer::checksum;

/// What a header begins with.
pub const COOKIE: [u8; 8] = *b"cxsparse";
/// Length in bytes.
pub const HEADER_BYTES: usize = 1024;
/// Most blocks of an image that is opened: their table takes 16 MiB. Blocks of 2 MiB need a quarter of it for the largest
/// disk.
pub const BLOCKS_MAX: u64 = 4 << 20;
/// Entries that the reference counts at most.
const ENTRIES_MAX: u32 = (i32::MAX / 4) as u32;

/// One place where the parent's name is found.
#[derive(Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RawLocator {
    /// How the name is written: `W2ru`, `W2ku`, `MacX`, or zero for none.
    pub platform: [u8; 4],
    /// Room for it.
    pub data_space: U32,
    /// Its length in bytes.
    pub data_len: U32,
    /// Zero.
    pub reserved: U32,
    /// Where it lies in the file.
    pub data_offset: U64,
}

/// A header as it is stored.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RawHeader {
    /// [`COOKIE`].
    pub cookie: [u8; 8],
    /// Unused: all ones.
    pub data_offset: U64,
    /// Where the table lies.
    pub table_offset: U64,
    /// 0x10000.
    pub version: U32,
    /// Entries of the table.
    pub max_table_entries: U32,
    /// Bytes of data in a block.
    pub block_size: U32,
    /// One's complement of the sum of all other bytes.
    pub checksum: U32,
    /// The parent's id.
    pub parent_id: [u8; 16],
    /// When the parent was changed last, in seconds after the year 2000 began.
    pub parent_timestamp: U32,
    /// Zero.
    pub reserved: U32,
    /// The parent's file name.
    pub parent_name: [U16; 256],
    /// Where its name is found.
    pub locators: [RawLocator; 8],
    /// Zeroes.
    pub reserved_end: [u8; 256],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// A header that keeps the format's rules, for a disk of a given length.
#[derive(Clone, Copy)]
pub struct Header {
    raw: RawHeader,
    blocks: u32,
}

impl Header {
    /// What a header says that has these bytes, of a disk of `disk_len` bytes.
    ///
    /// Its checksum is not looked at, as by the reference.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(bytes: &[u8; HEADER_BYTES], disk_len: u64) -> Result<Self, VpcError> {
        let raw: RawHeader = zerocopy::transmute!(*bytes);
        if raw.cookie != COOKIE {
            return Err(VpcError::HeaderMagic);
        }
        let (block_size, entries) = (raw.block_size.get(), raw.max_table_entries.get());
        if !block_size.is_power_of_two() || u64::from(block_size) < SECTOR {
            return Err(VpcError::BlockSize(block_size));
        }
        if entries > ENTRIES_MAX {
            return Err(VpcError::EntriesTooMany(entries));
        }
        let blocks = disk_len.div_ceil(u64::from(block_size));
        if blocks > u64::from(entries) {
            return Err(VpcError::TableTooSmall);
        }
        if blocks > BLOCKS_MAX {
            return Err(VpcError::TableTooLarge { blocks, max: BLOCKS_MAX });
        }
        Ok(Self { raw, blocks: blocks as u32 })
    }

    /// A new header, with its checksum.
    pub fn seal(mut raw: RawHeader) -> RawHeader {
        raw.checksum = 0.into();
        raw.checksum = checksum(raw.as_bytes(), 0).into();
        raw
    }

    /// As it is stored.
    pub fn raw(&self) -> &RawHeader {
        &self.raw
    }

    /// Blocks of the disk: entries of the table that count.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Bytes of data in a block.
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.raw.block_size.get())
    }

    /// Bytes of a block's bitmap, which lies before its data.
    pub fn bitmap_bytes(&self) -> u64 {
        bitmap_bytes(self.block_bytes())
    }

    /// Where the table lies.
    pub fn table_offset(&self) -> u64 {
        self.raw.table_offset.get()
    }

    /// First byte behind the table, in whole sectors. `None`: beyond all files.
    pub fn table_end(&self) -> Option<u64> {
        let bytes = u64::from(self.raw.max_table_entries.get()) * 4;
        self.table_offset().checked_add(bytes)?.checked_next_multiple_of(SECTOR)
    }
}

/// Bytes of the bitmap of a block of so many bytes: a bit for each sector, in whole sectors.
pub fn bitmap_bytes(block_bytes: u64) -> u64 {
    (block_bytes / SECTOR).div_ceil(8).next_multiple_of(SECTOR)
}
