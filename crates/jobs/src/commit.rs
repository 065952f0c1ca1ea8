//! Moving what the upper layers of a backing chain hold down into one of the layers below.
//!
//! Nothing above the base changes: until the caller empties the overlay, which it may do only after this has
//! succeeded, every layer above reads as before, whatever ends the job. Done again, it goes on to the same result.
//!
//! Ranges are taken as the layers above the base have them: neighbours with data in one request, whichever layer
//! and place they come from; zeroes without data.

use std::sync::atomic::{AtomicU64, Ordering};

use cowbell_block::chain::Chain;
use cowbell_block::{Buf, ErrorKind, Flags, Preallocation, Request, Root, mutant};
use futures_util::lock::Mutex;

use crate::crew::{self, DATA_BYTES_MAX, Step, Stop, Work, ZERO_BYTES_MAX};
use crate::error::{Error, Result};
use crate::joined::{Joined, Walk, Way};
use crate::progress::{Pace, Progress};

/// Requests in flight: as many as `convert` has by default.
const PARALLEL: usize = 8;

/// What was done, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Written as data.
    pub data: u64,
    /// Written as zeroes without data.
    pub zeroes: u64,
    /// Added to the base's length.
    pub grown: u64,
}

/// Copies what the layers from `top` down to, and without, `base` hold into `base`, and makes it durable. A base
/// that is shorter than `top` grows first; one that is longer keeps the rest.
///
/// `top` must not change meanwhile, and `base` only by this.
///
/// # Errors
/// The first failure, or [`Error::Cancelled`].
///
/// # Panics
/// If `base` is not below `top`.
pub async fn commit(top: &Root, base: &Root, progress: &dyn Progress, pace: &dyn Pace) -> Result<Committed> {
    let chain = Chain::above(top.node(), &base.node()).expect("the base is below");
    let total = chain.len();
    progress.advanced(0, total);
    let mut sum = Committed { grown: grow(base, total).await?, ..Committed::default() };
    let stop = Stop::default();
    let walk = Mutex::new(Walk::new(Above(chain), total));
    let job = Job { top, base, progress, pace, walk, done: AtomicU64::new(0), total };
    for part in crew::run(&job, &stop, PARALLEL).await? {
        sum.data += part.data;
        sum.zeroes += part.zeroes;
    }
    if mutant::is_active("commit-unsettled") {
        return Ok(sum);
    }
    let flushed = base.submit(Request::flush()).finish().await.result;
    flushed.map_err(|source| Error::Flush { source })?;
    Ok(sum)
}

/// Makes `base` at least `len` bytes long; returns how many are new.
async fn grow(base: &Root, len: u64) -> Result<u64> {
    let old = base.node().len();
    if old >= len {
        return Ok(0);
    }
    let grown = base.submit(Request::truncate(len, Preallocation::Off)).finish().await.result;
    grown.map_err(|source| Error::Grow { len, source })?;
    Ok(len - old)
}

/// The layers above the base.
struct Above(Chain);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Zero,
    /// The base has it already.
    Below,
}

type Piece = Joined<Kind>;

impl Way for Above {
    type Kind = Kind;

    async fn ask(&mut self, at: u64) -> Result<(u64, Kind)> {
        let extent = self.0.status(at, self.0.len() - at).await;
        let extent = extent.map_err(|source| Error::Status { offset: at, source })?;
        let kind = match (extent.is_allocated(), extent.is_zero()) {
            (false, _) => Kind::Below,
            (true, true) => Kind::Zero,
            (true, false) => Kind::Data,
        };
        Ok((at + extent.len, kind))
    }
}

/// Most bytes of a range that is dealt with at once.
fn most(kind: Kind) -> u64 {
    match kind {
        Kind::Data => DATA_BYTES_MAX,
        Kind::Zero | Kind::Below => ZERO_BYTES_MAX,
    }
}

struct Job<'a> {
    top: &'a Root,
    base: &'a Root,
    progress: &'a dyn Progress,
    pace: &'a dyn Pace,
    walk: Mutex<Walk<Above>>,
    done: AtomicU64,
    total: u64,
}

impl Work for Job<'_> {
    type Tally = Committed;

    async fn step(&self, tally: &mut Committed) -> Result<Step> {
        if self.progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let Some(piece) = self.walk.lock().await.next(most).await? else { return Ok(Step::NothingLeft) };
        match piece.kind {
            Kind::Data => {
                self.copy(&piece).await?;
                tally.data += piece.len;
            }
            Kind::Zero => {
                self.zero(&piece).await?;
                tally.zeroes += piece.len;
            }
            Kind::Below => {}
        }
        let done = self.done.fetch_add(piece.len, Ordering::Relaxed) + piece.len;
        self.progress.advanced(done, self.total);
        Ok(Step::Done)
    }
}

impl Job<'_> {
    async fn copy(&self, piece: &Piece) -> Result<()> {
        let Piece { offset, len, .. } = *piece;
        let request = Request::read(offset, crew::buffer(len));
        let read = self.top.submit(request).finish().await.into_bufs();
        let data = read.map_err(|source| Error::Read { offset, source })?;
        self.wait_for_pace(len).await;
        let written = self.base.submit(Request::write(offset, data)).finish().await.into_bufs();
        written.map_err(|source| Error::Write { offset, source })?.recycle();
        Ok(())
    }

    async fn zero(&self, piece: &Piece) -> Result<()> {
        let Piece { offset, len, .. } = *piece;
        let request = Request::write_zeroes(offset, len).with_flags(Flags::MAY_UNMAP);
        match self.base.submit(request).finish().await.result {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::Unsupported => self.write_zeroes_as_data(offset, len).await,
            Err(source) => Err(Error::Write { offset, source }),
        }
    }

    async fn write_zeroes_as_data(&self, offset: u64, len: u64) -> Result<()> {
        let mut at = 0;
        while at < len {
            let (offset, n) = (offset + at, DATA_BYTES_MAX.min(len - at));
            self.wait_for_pace(n).await;
            let request = Request::write(offset, Buf::zeroed(n as usize));
            let written = self.base.submit(request).finish().await.into_bufs();
            written.map_err(|source| Error::Write { offset, source })?.recycle();
            at += n;
        }
        Ok(())
    }

    async fn wait_for_pace(&self, bytes: u64) {
        if let Some(wait) = self.pace.take(bytes) {
            wait.await;
        }
    }
}
