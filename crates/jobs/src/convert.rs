//! Copying the content of one or several images into another.
//!
//! A crew of workers takes the source piece by piece (the walk decides what is data, zero, or left to the target's
//! backing file), reads it, waits for its turn unless order does not matter, and writes what is not zero.

mod copy;
mod turn;
mod walk;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cowbell_block::{Request, Root};
use futures_util::lock::Mutex;

use crate::crew::{self, Step, Stop, Work};
use crate::error::{Error, Result};
use crate::progress::{Pace, Progress, Silent};
use turn::Turns;
use walk::Walk;

/// In which order the target is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum WriteOrder {
    /// From the beginning to the end, so that the target's clusters lie in order.
    #[default]
    Ascending,
    /// As reads complete.
    Any,
}

/// What reads of the target return where nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TargetStart {
    /// Anything: zeroes are written too.
    #[default]
    Unknown,
    /// Zeroes: they are left out.
    Zero,
    /// A backing file of this many bytes, which holds what the sources' top layers do not.
    Backing {
        /// Length of the backing file in bytes.
        len: u64,
    },
}

/// What to do when the source cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnReadError {
    /// Fail.
    #[default]
    Stop,
    /// Put zeroes in place of the sectors that cannot be read, and report them.
    Salvage,
}

/// How data passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Transfer {
    /// Through our memory.
    #[default]
    Buffers,
    /// By the host's own copying where both sides allow it, else through our memory.
    Offload,
}

/// How the target stores data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Store {
    /// As it is.
    #[default]
    Plain,
    /// Compressed, in whole clusters of this many bytes, a power of two.
    Compressed {
        /// Bytes of a cluster of the target.
        cluster: u64,
    },
}

/// A range of a source, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The first byte.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

/// How to convert.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Workers, at least one.
    pub parallel: usize,
    /// The order of writes.
    pub order: WriteOrder,
    /// Runs of zeroes of at least this many bytes are not stored as data; 0 stores everything.
    pub sparse_bytes: u64,
    /// The target before the copy.
    pub start: TargetStart,
    /// Unreadable sources.
    pub on_read_error: OnReadError,
    /// The way of the data.
    pub transfer: Transfer,
    /// Its form in the target.
    pub store: Store,
    /// Which part of the sources is copied, counted from the beginning of the first; `None`: everything.
    pub part: Option<Part>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            // The reference's defaults: scripts compare the results.
            parallel: 8,
            order: WriteOrder::default(),
            sparse_bytes: 4096,
            start: TargetStart::default(),
            on_read_error: OnReadError::default(),
            transfer: Transfer::default(),
            store: Store::default(),
            part: None,
        }
    }
}

/// What was done, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Stored as data.
    pub data: u64,
    /// Written as zeroes without data.
    pub zeroes: u64,
    /// Left out, since the target reads right already.
    pub skipped: u64,
    /// Of `data`: copied by the host itself.
    pub offloaded: u64,
    /// Of the sources: unreadable, replaced by zeroes.
    pub unreadable: u64,
}

/// Length of the sources put one after the other, each rounded up to a sector.
pub fn total_len(sources: &[Root]) -> u64 {
    sources.iter().map(|root| walk::rounded(root.node().len())).sum()
}

/// Says which ranges of the target will get data from `sources`, in ascending order, so far as tables tell; `visit` may
/// end it. Whether it came to the end.
///
/// # Errors
/// A source does not say what it holds.
pub async fn announce_data(
    sources: &[Root],
    options: &Options,
    mut visit: impl FnMut(Range<u64>) -> bool,
) -> Result<bool> {
    let mut walk = Walk::new(sources, options);
    while let Some((_, piece)) = walk.next(&Silent).await? {
        if matches!(piece.kind, walk::Kind::Data(_))
            && !visit(piece.target_offset..piece.target_offset + piece.len)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Copies `sources`, one after the other, or a part of them, to the beginning of `target`, and flushes it.
///
/// The target is at least [`total_len`], or the part's length, long.
///
/// # Errors
/// The first failure, or [`Error::Cancelled`]. The target's content is incomplete then.
///
/// # Panics
/// If `options.parallel` is zero.
pub async fn convert(
    sources: &[Root],
    target: &Root,
    options: &Options,
    progress: &dyn Progress,
    pace: &dyn Pace,
) -> Result<Copied> {
    assert!(options.parallel > 0, "a conversion needs a worker");
    let stop = Stop::default();
    let job = Job {
        stop: &stop,
        sources,
        target,
        options,
        progress,
        pace,
        grain: grain(target, options),
        walk: Mutex::new(Walk::new(sources, options)),
        turns: Turns::new(),
        offload: AtomicBool::new(options.transfer == Transfer::Offload),
        done: AtomicU64::new(0),
        total: options.part.map_or_else(|| total_len(sources), |part| part.len),
    };
    progress.advanced(0, job.total);
    let mut sum = Copied::default();
    crew::run(&job, &stop, options.parallel).await?.into_iter().for_each(|part| sum.add(part));
    let flushed = target.submit(Request::flush()).finish().await.result;
    flushed.map_err(|source| Error::Flush { source })?;
    Ok(sum)
}

/// The grain at which zeroes are looked for: a target that allocates clusters gains nothing from less, and
/// whole clusters spare it the filling of the rest.
fn grain(target: &Root, options: &Options) -> u64 {
    if let Store::Compressed { cluster } = options.store {
        // Compressed clusters are written once and whole.
        return if options.sparse_bytes > 0 { cluster } else { 0 };
    }
    let limits = target.node().limits();
    match options.start {
        _ if options.sparse_bytes == 0 => 0,
        TargetStart::Zero => options.sparse_bytes.max(limits.preferred_write),
        // What the target would have to fill up, it is given.
        _ => options.sparse_bytes.max(u64::from(limits.request_alignment)),
    }
}

impl Copied {
    fn add(&mut self, other: Self) {
        self.data += other.data;
        self.zeroes += other.zeroes;
        self.skipped += other.skipped;
        self.offloaded += other.offloaded;
        self.unreadable += other.unreadable;
    }
}

/// What the workers share.
struct Job<'a> {
    sources: &'a [Root],
    target: &'a Root,
    options: &'a Options,
    progress: &'a dyn Progress,
    pace: &'a dyn Pace,
    grain: u64,
    walk: Mutex<Walk>,
    turns: Turns,
    stop: &'a Stop,
    offload: AtomicBool,
    done: AtomicU64,
    total: u64,
}

impl Job<'_> {
    fn pass_turn(&self) {
        if self.options.order == WriteOrder::Ascending {
            self.turns.pass();
        }
    }
}

impl Work for Job<'_> {
    type Tally = Copied;

    fn release_all(&self) {
        self.turns.release_all();
    }

    async fn step(&self, copied: &mut Copied) -> Result<Step> {
        if self.progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let next = self.walk.lock().await.next(self.progress).await?;
        let Some((number, piece)) = next else { return Ok(Step::NothingLeft) };
        let loaded = self.load(&piece, copied).await?;
        if self.options.order == WriteOrder::Ascending {
            self.turns.wait(number).await;
        }
        if self.stop.is_set() {
            return Err(Error::Cancelled);
        }
        let len = piece.len;
        match (self.options.store, loaded) {
            // The target keeps the order of submission, so that the next piece is compressed beside this one.
            (Store::Compressed { .. }, Some(data)) => {
                let writes = self.start_compressed(&piece, data, copied).await?;
                self.pass_turn();
                self.finish_all(writes).await?;
            }
            (_, loaded) => {
                self.store(piece, loaded, copied).await?;
                self.pass_turn();
            }
        }
        let done = self.done.fetch_add(len, Ordering::Relaxed) + len;
        self.progress.advanced(done, self.total);
        Ok(Step::Done)
    }
}
