//! Workers side by side in one future.
//!
//! Each worker takes the next piece of the work, deals with it, and comes back for more. Where no request has to
//! wait, the first worker does everything with buffers that stay in the cache; the others come in only when there
//! is waiting to fill. After an error the workers finish the requests they have begun and start no others.

use std::sync::atomic::{AtomicBool, Ordering};

use cowbell_block::Buf;
use futures_util::future::join_all;

use crate::error::{Error, Result};

/// Most bytes of data in one piece: large enough that the cost per request vanishes, small enough that eight
/// of them stay in a few megabytes of memory.
pub(crate) const DATA_BYTES_MAX: u64 = 2 << 20;
/// Most bytes without data in one piece: progress and cancellation are looked at between pieces.
pub(crate) const ZERO_BYTES_MAX: u64 = 1 << 30;

/// Bytes of data that stay in the cache between being read and being looked at.
pub(crate) const CACHED_BYTES_MAX: u64 = 128 << 10;

/// Memory for `len` bytes, at most [`DATA_BYTES_MAX`], to be overwritten: of one of two sizes, so that there are few
/// of them and they are used again.
pub(crate) fn buffer(len: u64) -> Buf {
    let size = if len <= CACHED_BYTES_MAX { CACHED_BYTES_MAX } else { DATA_BYTES_MAX };
    let mut buf = Buf::scratch(size as usize);
    buf.truncate(len as usize);
    buf
}

/// Whether there was a piece left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// One was dealt with.
    Done,
    /// There was none.
    NothingLeft,
}

/// What a crew works on.
pub(crate) trait Work: Sync {
    /// What a worker did.
    type Tally: Default + Send;

    /// Deals with the next piece.
    fn step(&self, tally: &mut Self::Tally) -> impl Future<Output = Result<Step>> + Send;

    /// Somebody failed: whoever waits for others has to be let go.
    fn release_all(&self) {}
}

/// Tells the workers to stop.
#[derive(Debug, Default)]
pub(crate) struct Stop(AtomicBool);

impl Stop {
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Has `count` workers do `work`, and returns what each did.
///
/// # Errors
/// The first failure; that workers were told to stop counts only when there is no other.
pub(crate) async fn run<W: Work>(work: &W, stop: &Stop, count: usize) -> Result<Vec<W::Tally>> {
    let results = join_all((0..count).map(|_| worker(work, stop))).await;
    let mut tallies = Vec::with_capacity(count);
    let mut failure = None;
    for result in results {
        match result {
            Ok(tally) => tallies.push(tally),
            Err(Error::Cancelled) => failure = failure.or(Some(Error::Cancelled)),
            Err(e) => match failure {
                None | Some(Error::Cancelled) => failure = Some(e),
                Some(_) => {}
            },
        }
    }
    match failure {
        None => Ok(tallies),
        Some(e) => Err(e),
    }
}

async fn worker<W: Work>(work: &W, stop: &Stop) -> Result<W::Tally> {
    let mut tally = W::Tally::default();
    while !stop.is_set() {
        match work.step(&mut tally).await {
            Ok(Step::Done) => {}
            Ok(Step::NothingLeft) => break,
            Err(e) => {
                stop.0.store(true, Ordering::Relaxed);
                work.release_all();
                return Err(e);
            }
        }
    }
    Ok(tally)
}
