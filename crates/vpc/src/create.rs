//! New images.

use cowbell_block::outside::Outside;
use cowbell_block::{Buf, Child, Preallocation, Request, Result};
use zerocopy::{FromZeros, IntoBytes};

use crate::SECTOR;
use crate::error::VpcError;
use crate::footer::{self, DiskType, EPOCH_SEC, FOOTER_BYTES, Footer, NO_HEADER, RawFooter};
use crate::geometry::{Chs, SECTORS_MAX, rounded};
use crate::header::{self, HEADER_BYTES, Header, RawHeader};
use crate::locator;

/// Bytes of data in a block of a new image: the format's default.
const BLOCK_BYTES: u32 = 2 << 20;
/// Bytes of the table written at once.
const TABLE_WRITE_BYTES: usize = 1 << 20;

/// What is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Subformat {
    /// Blocks come when they are written.
    #[default]
    Dynamic,
    /// The whole disk.
    Fixed,
}

/// What a differencing image is made on.
#[derive(Clone)]
pub struct Parent {
    /// Its name, as it is stored.
    pub name: String,
    /// Its footer.
    pub footer: Footer,
    /// Length of its disk in bytes.
    pub len: u64,
}

/// What to make.
#[derive(Clone, Default)]
pub struct CreateOptions {
    /// Length of the disk in bytes, rounded up to a geometry unless `exact`.
    pub size: u64,
    /// Fixed or dynamic.
    pub subformat: Subformat,
    /// The disk has the length that was asked for, in whole sectors, and no geometry.
    pub exact: bool,
    /// Makes a differencing image of the same length; the options above do not count.
    pub parent: Option<Parent>,
}

/// Makes an image in `file`, which is empty.
///
/// What it is recognised by is written last: an interrupted creation leaves no image.
///
/// # Errors
/// The disk is too large, or the file's error.
pub async fn create(file: &Child, options: &CreateOptions, outside: &dyn Outside) -> Result<()> {
    let mut raw = new_footer(options, outside)?;
    if options.parent.is_none() && options.subformat == Subformat::Fixed {
        raw.data_offset = NO_HEADER.into();
        let len = raw.current_size.get();
        let footer = Footer::new(raw, DiskType::Fixed);
        file.submit(Request::truncate(len + FOOTER_BYTES as u64, Preallocation::Off)).finish().await.result?;
        file.write(len, Buf::copy_of(footer.bytes())).await?;
        return file.flush().await;
    }
    let disk_type = if options.parent.is_some() { DiskType::Differencing } else { DiskType::Dynamic };
    let footer = Footer::new(raw, disk_type);
    let mut header = new_header(raw.current_size.get());
    let mut at = (FOOTER_BYTES + HEADER_BYTES) as u64;
    if let Some(parent) = &options.parent {
        at = write_parent(file, &mut header, parent, at).await?;
    }
    header.table_offset = at.into();
    let table_bytes = (u64::from(header.max_table_entries.get()) * 4).next_multiple_of(SECTOR);
    write_ones(file, at, table_bytes).await?;
    file.write(at + table_bytes, Buf::copy_of(footer.bytes())).await?;
    file.write(FOOTER_BYTES as u64, Buf::copy_of(Header::seal(header).as_bytes())).await?;
    file.flush().await?;
    file.write(0, Buf::copy_of(footer.bytes())).await?;
    file.flush().await
}

fn new_footer(options: &CreateOptions, outside: &dyn Outside) -> Result<RawFooter> {
    let (chs, len) = match &options.parent {
        Some(parent) => (parent.footer.chs(), parent.len),
        None if options.exact => {
            let len = options.size.checked_next_multiple_of(SECTOR).ok_or(VpcError::SizeTooLarge)?;
            (Chs::MAX, len)
        }
        None => rounded(options.size).ok_or(VpcError::SizeTooLarge)?,
    };
    if len / SECTOR > SECTORS_MAX {
        return Err(VpcError::SizeTooLarge.into());
    }
    let mut raw = RawFooter::new_zeroed();
    raw.cookie = footer::COOKIE;
    raw.features = 2.into();
    raw.version = 0x10000.into();
    raw.data_offset = (FOOTER_BYTES as u64).into();
    raw.timestamp = u32::try_from(outside.unix_sec().saturating_sub(EPOCH_SEC)).unwrap_or(u32::MAX).into();
    // The reference's names for who goes by the geometry and who by the length.
    raw.creator_app = if options.exact || options.parent.is_some() { *b"qem2" } else { *b"qemu" };
    raw.creator_version = 0x0005_0003.into();
    raw.creator_host = *b"Wi2k";
    raw.original_size = len.into();
    raw.current_size = len.into();
    (raw.cylinders, raw.heads, raw.sectors) = (chs.cylinders.into(), chs.heads, chs.sectors);
    outside.fill_random(&mut raw.unique_id)?;
    Ok(raw)
}

fn new_header(len: u64) -> RawHeader {
    let mut raw = RawHeader::new_zeroed();
    raw.cookie = header::COOKIE;
    raw.data_offset = u64::MAX.into();
    raw.version = 0x10000.into();
    raw.max_table_entries = (len.div_ceil(u64::from(BLOCK_BYTES)) as u32).into();
    raw.block_size = BLOCK_BYTES.into();
    raw
}

/// Puts the parent's names into the header and the file; returns where the next structure goes.
async fn write_parent(file: &Child, header: &mut RawHeader, parent: &Parent, at: u64) -> Result<u64> {
    let (platform, name) = locator::encode(&parent.name)?;
    header.parent_id = parent.footer.raw().unique_id;
    header.parent_timestamp = parent.footer.raw().timestamp;
    let bare = parent.name.rsplit('/').next().unwrap_or_default();
    for (unit, stored) in bare.encode_utf16().zip(&mut header.parent_name) {
        *stored = unit.into();
    }
    let space = locator::space(name.len());
    let locator = &mut header.locators[0];
    locator.platform = platform;
    locator.data_space = (space as u32).into();
    locator.data_len = (name.len() as u32).into();
    locator.data_offset = at.into();
    let mut sectors = Buf::zeroed(space as usize);
    sectors[..name.len()].copy_from_slice(&name);
    file.write(at, sectors).await?;
    Ok(at + space)
}

async fn write_ones(file: &Child, offset: u64, len: u64) -> Result<()> {
    let mut at = 0;
    while at < len {
        let n = (len - at).min(TABLE_WRITE_BYTES as u64);
        let mut ones = Buf::zeroed(n as usize);
        ones.fill(0xff);
        file.write(offset + at, ones).await?;
        at += n;
    }
    Ok(())
}
