//! Raw bytes from a pipe, whose number nobody knows before they end, into an image.

use std::io::Read;

use anyhow::{Result, anyhow};
use cowbell_block::{Buf, ErrorKind, Preallocation, Request};
use cowbell_jobs::convert::Copied;

use super::PIECE_BYTES;
use crate::img::Interrupted;
use crate::open::{Image, reason};

/// A disk is a whole number of these, in bytes.
const SECTOR: u64 = 512;
/// An image grows by at least as much as it has, and by this many bytes, so that growing takes no time.
const GROWTH_BYTES_MIN: u64 = 64 << 20;

/// Fills `target`, which has no bytes yet, with what comes from standard input; its length is that of what came. Runs
/// of zeroes as long as a piece of `sparse` bytes are left out, unless that is 0.
///
/// # Errors
/// Standard input cannot be read, the target takes no more, or the user ended it.
pub(in crate::img) async fn pour(target: &Image, sparse: u64, advanced: impl Fn(u64)) -> Result<Copied> {
    let mut copied = Copied::default();
    let mut at = 0;
    loop {
        let piece = read_piece()?;
        let len = piece.len() as u64;
        if len == 0 {
            break;
        }
        if cowbell_host::signal::is_interrupted() {
            return Err(Interrupted.into());
        }
        make_room(target, at, len).await?;
        store(target, at, piece, sparse, &mut copied).await?;
        at += len;
        advanced(at);
    }
    set_len(target, at.next_multiple_of(SECTOR)).await?;
    target.submit(Request::flush()).finish().await.result.map_err(|e| anyhow!("error while writing: {e}"))?;
    Ok(copied)
}

/// The next bytes, as many as a piece has unless they end.
fn read_piece() -> Result<Vec<u8>> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    let read = std::io::stdin().lock().take(PIECE_BYTES as u64).read_to_end(&mut piece);
    read.map_err(|e| anyhow!("error while reading standard input: {}", reason(&e)))?;
    Ok(piece)
}

async fn make_room(target: &Image, at: u64, len: u64) -> Result<()> {
    let have = target.node().len();
    if at + len <= have {
        return Ok(());
    }
    let comfortable = have.saturating_mul(2).max(have.saturating_add(GROWTH_BYTES_MIN));
    match set_len(target, comfortable.next_multiple_of(SECTOR)).await {
        Ok(()) => Ok(()),
        // A little less may still fit.
        Err(_) => set_len(target, (at + len).next_multiple_of(SECTOR)).await,
    }
}

async fn set_len(target: &Image, len: u64) -> Result<()> {
    if target.node().len() == len {
        return Ok(());
    }
    let request = Request::truncate(len, Preallocation::Off);
    let result = target.submit(request).finish().await.result;
    result.map(drop).map_err(|e| match e.kind() {
        ErrorKind::Unsupported => anyhow!("the output cannot grow while it is written: {e}"),
        _ => anyhow!("error while growing the output to {len} bytes: {e}"),
    })
}

/// Stores one piece, without the parts of it that are zeroes.
async fn store(target: &Image, at: u64, piece: Vec<u8>, sparse: u64, copied: &mut Copied) -> Result<()> {
    let grain = match sparse {
        0 => PIECE_BYTES as u64,
        // Whole clusters, so that nothing has to be filled up.
        sparse => sparse.max(target.node().limits().preferred_write).min(PIECE_BYTES as u64),
    };
    let is_zero = |part: &[u8]| sparse > 0 && part.iter().all(|byte| *byte == 0);
    let parts: Vec<&[u8]> = piece.chunks(grain as usize).collect();
    let mut from = 0;
    while from < parts.len() {
        let zero = is_zero(parts[from]);
        let to = (from..parts.len()).find(|n| is_zero(parts[*n]) != zero).unwrap_or(parts.len());
        let bytes = &piece[from * grain as usize..(to * grain as usize).min(piece.len())];
        match zero {
            true => copied.skipped += bytes.len() as u64,
            false => {
                let offset = at + from as u64 * grain;
                let write = Request::write(offset, Buf::copy_of(bytes));
                let written = target.submit(write).finish().await.into_bufs();
                written.map_err(|e| anyhow!("error while writing at byte {offset}: {e}"))?.recycle();
                copied.data += bytes.len() as u64;
            }
        }
        from = to;
    }
    Ok(())
}
