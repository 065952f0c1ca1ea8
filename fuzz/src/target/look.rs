//! Opening and reading.

use cowbell_block::{Access, Buf, ExtentFlags, Node, Request};
use cowbell_qcow2::OpenOptions;

use super::{drive, must_be_untouched, opened, wait};
use crate::choices::Choices;
use crate::file::CountingFile;

/// Extents that are asked for at most; a disk of many is looked at only in part.
const EXTENTS_MAX: u32 = 2_000;
/// Bytes that are read of each extent.
const READ_MAX: u64 = 64 << 10;
/// Bytes that are read at most in all.
const READ_TOTAL_MAX: u64 = 8 << 20;

/// Opening and `info` change nothing. Of what is encrypted, and asks for a key, the metadata opens.
pub fn open(file: &CountingFile, _: &mut Choices<'_>) -> Result<(), String> {
    let metadata = OpenOptions { metadata_only: true, ..OpenOptions::default() };
    let image = match opened(file, Access::ReadOnly, OpenOptions::default())? {
        Some(image) => Some(image),
        None => opened(file, Access::ReadOnly, metadata)?,
    };
    if let Some(image) = image {
        let _ = wait("info", image.info())?;
        let _ = wait("close", image.close())?;
    }
    must_be_untouched(file)
}

/// Extents cover the disk, zeroes read as zeroes, and data reads as what lies where the map says.
pub fn read(file: &CountingFile, _: &mut Choices<'_>) -> Result<(), String> {
    let Some(image) = opened(file, Access::ReadOnly, OpenOptions::default())? else { return Ok(()) };
    let (mut at, mut total) = (0, 0);
    for _ in 0..EXTENTS_MAX {
        if at >= image.len() {
            break;
        }
        let Ok(extent) = drive(image.submit(Request::status(at, image.len() - at))).into_extent() else {
            // Damaged: it cannot be read here either. Look further on.
            let _ = drive(image.submit(Request::read(at, Buf::zeroed(512.min(image.len() - at) as usize))));
            at += 64 << 10;
            continue;
        };
        if extent.len == 0 || extent.len > image.len() - at {
            return Err(format!("an extent of wrong length [{} at {at}]", extent.len));
        }
        let len = extent.len.min(READ_MAX);
        if total < READ_TOTAL_MAX {
            total += len;
            read_extent(file, &*image, at, len, &extent)?;
        }
        at += extent.len;
    }
    let _ = wait("close", image.close())?;
    must_be_untouched(file)
}

fn read_extent(
    file: &CountingFile,
    image: &dyn Node,
    at: u64,
    len: u64,
    extent: &cowbell_block::Extent,
) -> Result<(), String> {
    let completion = drive(image.submit(Request::read(at, Buf::zeroed(len as usize))));
    let Ok(bufs) = completion.into_bufs() else { return Ok(()) };
    let got = bufs.to_contiguous();
    if extent.flags.contains(ExtentFlags::ZERO) && !bufs.is_zero() {
        return Err(format!("zeroes are mapped and data is read [{at:#x}]"));
    }
    let plain = extent.flags.contains(ExtentFlags::DATA) && !extent.flags.contains(ExtentFlags::COMPRESSED);
    if let (true, Some(map)) = (plain, &extent.map) {
        let there = drive(file.memory().submit(Request::read(map.offset, Buf::zeroed(len as usize))));
        if let Ok(there) = there.into_bufs()
            && there.to_contiguous()[..] != got[..]
        {
            return Err(format!("the map names another place than the data's [{at:#x}]"));
        }
    }
    Ok(())
}
