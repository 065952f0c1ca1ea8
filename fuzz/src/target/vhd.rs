//! VHD images: opened, read, written, closed, whatever they say.

use std::sync::Arc;

use cowbell_block::{Access, Buf, Child, MemNode, Node, Request};
use cowbell_vpc::footer::FOOTER_BYTES;
use cowbell_vpc::node::Metadata;
use cowbell_vpc::{OpenOptions, SizeRule, Vpc};

use super::{drive, wait};

/// Longest request: an image may say that its disk has 2 TiB.
const REQUEST_BYTES_MAX: u64 = 64 << 10;

/// What was written is read back, now and after the image was opened again.
pub fn vpc(bytes: &[u8]) -> Result<(), String> {
    used(bytes)?;
    // Few damages leave the checksum right.
    used(&with_checksum(bytes))
}

fn used(bytes: &[u8]) -> Result<(), String> {
    let file = MemNode::with_content(bytes);
    let Some(disk) = opened(&file, Access::ReadOnly)? else { return Ok(()) };
    let _ = wait("info", disk.info())?;
    let len = disk.len();
    for at in [0, len / 2, len.saturating_sub(REQUEST_BYTES_MAX)] {
        let at = at / 512 * 512;
        let n = REQUEST_BYTES_MAX.min(len - at);
        let _ = drive(disk.submit(Request::read(at, Buf::zeroed(n as usize))));
        let _ = drive(disk.submit(Request::status(at, len - at)));
    }
    let _ = wait("close", disk.close())?;
    let Some(disk) = opened(&file, Access::ReadWrite)? else { return Ok(()) };
    let places: Vec<u64> = [0, len / 3, len.saturating_sub(4096)].map(|at| at / 512 * 512).into();
    let mut written = Vec::new();
    for (at, byte) in places.into_iter().zip(1..) {
        let n = 4096.min(len - at);
        let write = Request::write(at, Buf::copy_of(&vec![byte; n as usize]));
        if drive(disk.submit(write)).result.is_ok() {
            written.retain(|(start, _, _)| at >= start + 4096 || *start >= at + 4096);
            written.push((at, n, byte));
        }
    }
    check(&disk, &written)?;
    if wait("close", disk.close())?.is_ok()
        && let Some(again) = opened(&file, Access::ReadWrite)?
    {
        check(&again, &written)?;
    }
    Ok(())
}

fn opened(file: &MemNode, access: Access) -> Result<Option<Vpc>, String> {
    let file: Arc<dyn Node> = Arc::new(file.clone());
    let opening = async {
        let metadata = Metadata::read(&Child::new(file.clone()), SizeRule::Creator).await?;
        Vpc::open(file, metadata, None, OpenOptions { access, ..OpenOptions::default() }).await
    };
    Ok(wait("open", opening)?.ok())
}

fn check(disk: &dyn Node, written: &[(u64, u64, u8)]) -> Result<(), String> {
    for (at, n, byte) in written {
        let done = drive(disk.submit(Request::read(*at, Buf::zeroed(*n as usize))));
        let bufs = done.into_bufs().map_err(|e| format!("what was written cannot be read [{e}]"))?;
        if bufs.to_contiguous().iter().any(|got| got != byte) {
            return Err(format!("what was written reads otherwise [at {at}]"));
        }
    }
    Ok(())
}

fn with_checksum(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if let Some(footer) = bytes.get_mut(..FOOTER_BYTES) {
        footer[64..68].fill(0);
        let sum = footer.iter().fold(0u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    }
    bytes
}
