//! Whether two images have the same content.
//!
//! The allocation of both is walked side by side; only ranges that are stored in at least one are read. The
//! shorter image is taken to go on with zeroes.

use std::sync::Arc;

use cowbell_block::buf::is_zero;
use cowbell_block::{Buf, Bufs, ExtentFlags, Node, Request, Root};
use futures_util::future::join;

use crate::error::{Error, Result};
use crate::layers::{self, Layered, Reach};
use crate::progress::Progress;

/// Bytes read from each image at once: both pieces stay in the cache until they are compared.
const STEP: u64 = 256 << 10;
/// Differences between stored data are located to a sector.
const SECTOR: u64 = 512;

/// How much must be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What the guest reads.
    Content,
    /// Size and allocation as well.
    Strict,
}

/// Which of the two images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

/// What the comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing differs (the sizes may, unless strict).
    Identical,
    /// Content differs, first here.
    ContentDiffers {
        /// The byte, or the first byte of its sector.
        offset: u64,
    },
    /// Allocation differs (strict).
    StatusDiffers {
        /// First byte of the range.
        offset: u64,
    },
    /// Sizes differ (strict).
    SizeDiffers,
}

/// A failure, and the image it happened with.
#[derive(Debug)]
pub struct Failure {
    /// The image.
    pub side: Side,
    /// What failed.
    pub error: Error,
}

/// Compares `a` with `b`. `on_sizes_differ` is called once, before the rest of the longer one is looked at.
///
/// # Errors
/// What could not be read or asked, and of which image.
pub async fn compare(
    a: &Root,
    b: &Root,
    mode: Mode,
    progress: &dyn Progress,
    on_sizes_differ: impl FnOnce(),
) -> std::result::Result<Verdict, Failure> {
    let (len_a, len_b) = (a.node().len(), b.node().len());
    if mode == Mode::Strict && len_a != len_b {
        return Ok(Verdict::SizeDiffers);
    }
    let (common, total) = (len_a.min(len_b), len_a.max(len_b));
    let (node_a, node_b) = (a.node(), b.node());
    let mut at = 0;
    while at < common {
        cancelled(progress)?;
        let (in_a, in_b) = join(ask(&node_a, at, common - at), ask(&node_b, at, common - at)).await;
        let (in_a, in_b) = (on(Side::A, in_a)?, on(Side::B, in_b)?);
        let len = in_a.len.min(in_b.len);
        if mode == Mode::Strict && kind(&in_a) != kind(&in_b) {
            return Ok(Verdict::StatusDiffers { offset: at });
        }
        let zero = |extent: &Layered| extent.flags.contains(ExtentFlags::ZERO);
        let found = match (zero(&in_a), zero(&in_b)) {
            (true, true) => None,
            (false, true) => nonzero(a, Side::A, at, at + len, progress, total).await?,
            (true, false) => nonzero(b, Side::B, at, at + len, progress, total).await?,
            (false, false) => differing(a, b, at, at + len, progress, total).await?,
        };
        if let Some(offset) = found {
            return Ok(Verdict::ContentDiffers { offset });
        }
        at += len;
        progress.advanced(at, total);
    }
    if len_a == len_b {
        return Ok(Verdict::Identical);
    }
    on_sizes_differ();
    let (longer, node, side) = if len_a > len_b { (a, node_a, Side::A) } else { (b, node_b, Side::B) };
    while at < total {
        let extent = on(side, ask(&node, at, total - at).await)?;
        if !extent.flags.contains(ExtentFlags::ZERO)
            && let Some(offset) = nonzero(longer, side, at, at + extent.len, progress, total).await?
        {
            return Ok(Verdict::ContentDiffers { offset });
        }
        at += extent.len;
        progress.advanced(at, total);
    }
    Ok(Verdict::Identical)
}

fn on<T>(side: Side, result: Result<T>) -> std::result::Result<T, Failure> {
    result.map_err(|error| Failure { side, error })
}

fn cancelled(progress: &dyn Progress) -> std::result::Result<(), Failure> {
    match progress.is_cancelled() {
        true => Err(Failure { side: Side::A, error: Error::Cancelled }),
        false => Ok(()),
    }
}

/// What strict mode compares of an extent.
fn kind(extent: &Layered) -> (ExtentFlags, bool) {
    (extent.flags & !ExtentFlags::EOF, extent.map.is_some())
}

async fn ask(node: &Arc<dyn Node>, at: u64, len: u64) -> Result<Layered> {
    layers::status(node, Reach::Chain, at, len).await.map_err(|source| Error::Status { offset: at, source })
}

async fn read(root: &Root, at: u64, len: u64) -> Result<Bufs> {
    // Always the same memory, whatever the length.
    let mut buf = Buf::scratch(STEP as usize);
    buf.truncate(len as usize);
    let request = Request::read(at, buf);
    root.submit(request).finish().await.into_bufs().map_err(|source| Error::Read { offset: at, source })
}

/// The first byte of `at..end` that is not zero.
async fn nonzero(
    root: &Root,
    side: Side,
    mut at: u64,
    end: u64,
    progress: &dyn Progress,
    total: u64,
) -> std::result::Result<Option<u64>, Failure> {
    while at < end {
        cancelled(progress)?;
        let len = STEP.min(end - at);
        let bufs = on(side, read(root, at, len).await)?;
        let mut from = at;
        for piece in bufs.pieces() {
            if !is_zero(piece) {
                let index = piece.iter().position(|byte| *byte != 0).expect("a byte is not zero");
                let offset = from + index as u64;
                // Counted in sectors, as where both are read.
                return Ok(Some((offset / SECTOR * SECTOR).max(at)));
            }
            from += piece.len() as u64;
        }
        bufs.recycle();
        at += len;
        progress.advanced(at, total);
    }
    Ok(None)
}

/// The first sector of `at..end` that differs.
async fn differing(
    a: &Root,
    b: &Root,
    mut at: u64,
    end: u64,
    progress: &dyn Progress,
    total: u64,
) -> std::result::Result<Option<u64>, Failure> {
    while at < end {
        cancelled(progress)?;
        let len = STEP.min(end - at);
        let (in_a, in_b) = join(read(a, at, len), read(b, at, len)).await;
        let in_a = on(Side::A, in_a)?.to_contiguous_or_self();
        let in_b = on(Side::B, in_b)?.to_contiguous_or_self();
        if in_a[..] != in_b[..] {
            let index = in_a.iter().zip(in_b.iter()).position(|(x, y)| x != y).expect("they differ") as u64;
            return Ok(Some(at + index / SECTOR * SECTOR));
        }
        in_a.recycle();
        in_b.recycle();
        at += len;
        progress.advanced(at, total);
    }
    Ok(None)
}
