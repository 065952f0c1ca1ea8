//! Making an overlay independent of what differs between its old backing file and a new one.
//!
//! ```text
//!   range of the overlay        old backing      new backing      written to the overlay
//!   has it itself               –                –                nothing
//!   reads from below            the same place   the same place   nothing, unread
//!                               zeroes           zeroes           nothing, unread
//!                               zeroes           data             zeroes where the new has none
//!                               data             zeroes, none     the old's data where it is not zero
//!                               data             data             the old's where they differ
//! ```
//!
//! What is written is what the overlay reads as anyway, in whole clusters of it. So the overlay keeps its meaning
//! until the caller gives it the new backing file, which it may do only after this has succeeded: a job that was
//! interrupted costs space, and can be done again.

mod piece;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowbell_block::{Buf, ErrorKind, Flags, Node, Request, Root};
use futures_util::future::join;
use futures_util::lock::Mutex;

use crate::crew::{self, DATA_BYTES_MAX, Step, Stop, Work};
use crate::error::{Error, Result};
use crate::joined::Walk;
use crate::progress::Progress;
use piece::{Content, Kind, Layers, Piece, runs};

/// Requests in flight: as many as `convert` has by default.
const PARALLEL: usize = 8;

/// How the overlay stores what it has to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Store {
    /// As it is.
    #[default]
    Plain,
    /// Compressed, where a whole cluster is stored.
    Compressed,
}

/// What an overlay is to be based on.
pub struct NewBacking<'a> {
    /// The image, open for reading; `None`: nothing.
    pub root: Option<&'a Root>,
    /// The same image in the overlay's backing chain as it is: what no layer above it has is the same afterwards.
    pub below: Option<Arc<dyn Node>>,
}

/// What was written to the overlay, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rebased {
    /// As data.
    pub data: u64,
    /// As zeroes.
    pub zeroes: u64,
}

/// Writes to `top` what it would not read any more with another backing file, and makes it durable.
///
/// Nothing else writes to `top` meanwhile, and nothing to its backing files, old or new.
///
/// # Errors
/// The first failure, or [`Error::Cancelled`].
pub async fn rebase(
    top: &Root,
    new: NewBacking<'_>,
    store: Store,
    progress: &dyn Progress,
) -> Result<Rebased> {
    let (node, stop) = (top.node(), Stop::default());
    let grain = node.limits().preferred_write.max(1);
    let total = node.len();
    let job = Job {
        top,
        new: new.root,
        store,
        grain,
        progress,
        total,
        walk: Mutex::new(Walk::new(Layers::new(node, new, grain), total)),
        done: AtomicU64::new(0),
    };
    progress.advanced(0, job.total);
    let mut sum = Rebased::default();
    for part in crew::run(&job, &stop, PARALLEL).await? {
        sum.data += part.data;
        sum.zeroes += part.zeroes;
    }
    let flushed = top.submit(Request::flush()).finish().await.result;
    flushed.map_err(|source| Error::Flush { source })?;
    Ok(sum)
}

struct Job<'a> {
    top: &'a Root,
    new: Option<&'a Root>,
    store: Store,
    grain: u64,
    progress: &'a dyn Progress,
    total: u64,
    walk: Mutex<Walk<Layers>>,
    done: AtomicU64,
}

impl Work for Job<'_> {
    type Tally = Rebased;

    async fn step(&self, tally: &mut Rebased) -> Result<Step> {
        if self.progress.is_cancelled() {
            return Err(Error::Cancelled);
        }
        let Some(piece) = self.walk.lock().await.next(Layers::most(self.grain)).await? else {
            return Ok(Step::NothingLeft);
        };
        self.settle(&piece, tally).await?;
        let done = self.done.fetch_add(piece.len, Ordering::Relaxed) + piece.len;
        self.progress.advanced(done, self.total);
        Ok(Step::Done)
    }
}

impl Job<'_> {
    async fn settle(&self, piece: &Piece, tally: &mut Rebased) -> Result<()> {
        let (old, new) = match piece.kind {
            Kind::Settled => return Ok(()),
            Kind::Differs { old, new } => {
                let read_old = async {
                    match old {
                        Content::Zero => Ok(None),
                        Content::Data => self.read_old(piece).await.map(Some),
                    }
                };
                let read_new = async {
                    match new {
                        Content::Zero => Ok(None),
                        Content::Data => self.read_new(piece).await.map(Some),
                    }
                };
                join(read_old, read_new).await
            }
        };
        let (old, new) = (old?, new?);
        let mut at = 0;
        let mut left = old;
        for run in runs(left.as_deref(), new.as_deref(), piece.offset, piece.len, self.grain) {
            let offset = piece.offset + at;
            // Taken off the front, so that a piece that is written as a whole is not copied.
            let data = left.as_mut().map(|left| left.split_to(run.len as usize));
            match (run.kind, data) {
                (piece::RunKind::Data, Some(data)) => {
                    self.write(offset, data).await?;
                    tally.data += run.len;
                }
                (piece::RunKind::Zero, _) => {
                    self.write_zeroes(offset, run.len).await?;
                    tally.zeroes += run.len;
                }
                (_, data) => drop(data),
            }
            at += run.len;
        }
        // Nothing is left of the old data but its memory.
        [left, new].into_iter().flatten().for_each(Buf::recycle);
        Ok(())
    }

    /// What the overlay reads as: it has nothing of its own there.
    async fn read_old(&self, piece: &Piece) -> Result<Buf> {
        let offset = piece.offset;
        let request = Request::read(offset, crew::buffer(piece.len));
        let read = self.top.submit(request).finish().await.into_bufs();
        Ok(read.map_err(|source| Error::Read { offset, source })?.to_contiguous_or_self())
    }

    async fn read_new(&self, piece: &Piece) -> Result<Buf> {
        let offset = piece.offset;
        let real = |root: &Root| root.node().len().saturating_sub(offset).min(piece.len) as usize;
        let Some((root, real)) = self.new.map(|root| (root, real(root))).filter(|(_, real)| *real > 0) else {
            return Ok(Buf::zeroed(piece.len as usize));
        };
        let read = root.submit(Request::read(offset, crew::buffer(real as u64))).finish().await.into_bufs();
        let data = read.map_err(|source| Error::ReadNew { offset, source })?.to_contiguous_or_self();
        if real as u64 == piece.len {
            return Ok(data);
        }
        let mut whole = Buf::zeroed(piece.len as usize);
        whole[..real].copy_from_slice(&data);
        data.recycle();
        Ok(whole)
    }

    async fn write(&self, offset: u64, data: Buf) -> Result<()> {
        let end = offset + data.len() as u64;
        let whole =
            offset.is_multiple_of(self.grain) && (end.is_multiple_of(self.grain) || end == self.total);
        let flags = match self.store {
            Store::Compressed if whole => Flags::COMPRESSED,
            _ => Flags::empty(),
        };
        let request = Request::write(offset, data).with_flags(flags | Flags::WRITE_UNCHANGED);
        let written = self.top.submit(request).finish().await.into_bufs();
        written.map_err(|source| Error::Write { offset, source })?.recycle();
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        let request = Request::write_zeroes(offset, len).with_flags(Flags::WRITE_UNCHANGED);
        match self.top.submit(request).finish().await.result {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                let mut at = 0;
                while at < len {
                    let n = DATA_BYTES_MAX.min(len - at);
                    self.write(offset + at, Buf::zeroed(n as usize)).await?;
                    at += n;
                }
                Ok(())
            }
            Err(source) => Err(Error::Write { offset, source }),
        }
    }
}
