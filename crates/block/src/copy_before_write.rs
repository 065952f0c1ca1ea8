//! `copy-before-write`: a filter that keeps what its disk was, in a second image, before it lets a change through.
//!
//! The earlier state is that of the moment when the filter was opened. What has not been changed since is read from
//! the disk itself, the rest from the target; `snapshot-access` shows it. With a bitmap only what the bitmap calls
//! dirty is kept, and can be read.
//!
//! Invariants:
//! - Of each cluster (a unit of copying) that can be read, the old content is in the disk or `done`: in the target.
//! - A change holds its clusters exclusively until all of them are done; a reader of the earlier state holds its
//!   clusters shared. So nobody reads from the disk what changes under him.
//! - A change that nobody waits for any more goes on: what it holds is let go of when it has ended.

use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;

use crate::buf::Buf;
use crate::child::{Child, EdgeKind, NamedEdge};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{self, Filter};
use crate::options::OptionTree;
use crate::orphans::{Abandoned, Orphans};
use crate::outside::Time;
use crate::range_lock::{LockMode, RangeLock};
use crate::request::{BoxFuture, Cause, Completion, ExtentFlags, Op, Operation, Request};
use crate::trace::{TraceEvent, Word};

mod driver;
mod ranges;

pub use driver::{CopyBeforeWriteDriver, CopyBeforeWriteError};
use ranges::Ranges;

const NAME: &str = "copy-before-write";
/// Unit of copying unless the target's clusters are larger, in bytes: the reference's.
const GRAIN_DEFAULT: u64 = 64 << 10;
/// Most bytes copied at once: what one change keeps in memory.
const COPY_BYTES_MAX: u64 = 1 << 20;
/// The host's code for work that took too long.
const ETIMEDOUT: i32 = 110;

/// What a copy that fails breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum OnError {
    /// The change that needed it: it fails, and the disk stays as it is.
    #[default]
    BreakGuestWrite,
    /// The earlier state: it cannot be read from then on, and nothing more is copied.
    BreakSnapshot,
}

/// How the filter works.
#[derive(Clone, Default)]
pub struct CopyBeforeWriteOptions {
    /// What a copy that fails breaks.
    pub on_error: OnError,
    /// How long copying for one change may take, and who tells. `None`: for ever.
    pub timeout: Option<(Duration, Arc<dyn Time>)>,
    /// Least unit of copying in bytes, a power of two, or 0.
    pub grain_min: u64,
    /// What is kept, in bytes of the disk. `None`: all.
    pub areas: Option<Vec<Range<u64>>>,
}

/// The filter.
pub struct CopyBeforeWrite {
    child: Child,
    target: Child,
    /// Bytes of a cluster.
    grain: u64,
    /// Bytes of the earlier disk.
    len: u64,
    options: CopyBeforeWriteOptions,
    kept: Mutex<Kept>,
    ranges: RangeLock,
    orphans: Orphans,
}

/// What is known of the earlier state, in clusters.
#[derive(Default)]
struct Kept {
    /// In the target.
    done: Ranges,
    /// Not to be read, and not to be copied.
    denied: Ranges,
    /// A copy failed: nothing can be read any more.
    broken: bool,
}

/// Where a part of the earlier state lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Disk,
    Target,
}

impl CopyBeforeWrite {
    /// Keeps in `target` what `child` is now.
    ///
    /// # Errors
    /// The target is too small or read-only, or an option is out of range.
    pub fn new(
        child: Child,
        target: Child,
        options: CopyBeforeWriteOptions,
    ) -> std::result::Result<Self, CopyBeforeWriteError> {
        let (len, room) = (child.len(), target.len());
        if room < len {
            return Err(CopyBeforeWriteError::TargetTooSmall { room, len });
        }
        if target.node().is_read_only() {
            return Err(CopyBeforeWriteError::ReadOnly);
        }
        if options.grain_min != 0 && !options.grain_min.is_power_of_two() {
            return Err(CopyBeforeWriteError::GrainNoPowerOfTwo);
        }
        let wanted = target.limits().preferred_write.max(GRAIN_DEFAULT).max(options.grain_min);
        let grain = wanted.checked_next_power_of_two().ok_or(CopyBeforeWriteError::GrainTooLarge(wanted))?;
        Ok(Self::with_grain(child, target, options, grain))
    }

    fn with_grain(child: Child, target: Child, options: CopyBeforeWriteOptions, grain: u64) -> Self {
        let len = child.len();
        let mut kept = Kept::default();
        if let Some(areas) = &options.areas {
            kept.denied.insert(0..len.div_ceil(grain));
            for area in areas {
                kept.denied.remove(area.start / grain..area.end.min(len).div_ceil(grain));
            }
        }
        let (ranges, orphans) = (RangeLock::new(), Orphans::default());
        Self { child, target, grain, len, options, kept: Mutex::new(kept), ranges, orphans }
    }

    /// The clusters that a part of the disk touches, as far as the earlier disk has them.
    fn clusters(&self, offset: u64, end: u64) -> Range<u64> {
        let end = end.min(self.len);
        if offset >= end { 0..0 } else { offset / self.grain..end.div_ceil(self.grain) }
    }

    /// The first part of `clusters` that is to be copied before it changes.
    fn next_to_copy(&self, clusters: &Range<u64>) -> Option<Range<u64>> {
        let kept = self.kept.lock();
        if kept.broken {
            return None;
        }
        let mut at = clusters.start;
        while at < clusters.end {
            let done = kept.done.gap(at..clusters.end)?;
            let both = kept.denied.gap(done.clone());
            if let Some(both) = both {
                return Some(both);
            }
            at = done.end;
        }
        None
    }

    /// A change of the disk: what it replaces is copied first.
    fn change(self: &Arc<Self>, request: Request) -> Op {
        let touched = match request.op {
            // What is cut off is gone.
            Operation::Truncate(_) => self.clusters(request.offset, u64::MAX),
            _ => self.clusters(request.offset, request.end()),
        };
        if self.next_to_copy(&touched).is_none() {
            return self.child.submit(request);
        }
        let filter = self.clone();
        let turn = self.ranges.lock(touched.clone(), LockMode::Exclusive);
        let work = async move {
            let guard = turn.await;
            if let Err(e) = filter.copy_in_time(&touched, request.cause).await {
                match filter.options.on_error {
                    OnError::BreakGuestWrite => return Completion::failed(request.bufs, e),
                    OnError::BreakSnapshot => filter.kept.lock().broken = true,
                }
            }
            // Readers find the old content in the target from now on.
            drop(guard);
            filter.child.submit(request).finish().await
        };
        self.orphans.attend(work, Abandoned::Kept)
    }

    async fn copy_in_time(&self, clusters: &Range<u64>, cause: Cause) -> Result<()> {
        let mut copy = Box::pin(self.copy(clusters, cause));
        let Some((limit, time)) = &self.options.timeout else { return copy.await };
        let limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        let mut alarm = time.sleep_until(time.now_ns().saturating_add(limit_ns));
        // A copy that is given up writes what the disk still holds, so it does no harm when it arrives later.
        std::future::poll_fn(|cx| match copy.as_mut().poll(cx) {
            Poll::Ready(copied) => Poll::Ready(copied),
            Poll::Pending => alarm.as_mut().poll(cx).map(|()| Err(Error::from_errno(ETIMEDOUT))),
        })
        .await
    }

    /// Copies what is not done of `clusters`, which the caller holds exclusively.
    async fn copy(&self, clusters: &Range<u64>, cause: Cause) -> Result<()> {
        while let Some(part) = self.next_to_copy(clusters) {
            let most = (COPY_BYTES_MAX / self.grain).max(1);
            let part = part.start..part.end.min(part.start + most);
            let mut at = part.start * self.grain;
            let end = (part.end * self.grain).min(self.len);
            self.tell(TraceEvent::BlockCopyProcess, at, None);
            while at < end {
                at += self.copy_piece(at, (end - at).min(COPY_BYTES_MAX), cause).await?;
            }
            self.kept.lock().done.insert(part);
        }
        Ok(())
    }

    /// Copies the beginning of a part; says how long that is.
    async fn copy_piece(&self, at: u64, len: u64, cause: Cause) -> Result<u64> {
        let extent = self.child.status(at, len).await?;
        let len = extent.len.clamp(1, len);
        let write = match extent.flags.contains(ExtentFlags::ZERO) {
            true => Request::write_zeroes(at, len),
            false => {
                let read = Request::read(at, Buf::scratch(len as usize)).caused_by(cause);
                let got = self.child.submit(read).finish().await.into_bufs();
                let got = got.inspect_err(|e| self.tell(TraceEvent::BlockCopyReadFail, at, Some(e)))?;
                Request::write(at, got)
            }
        };
        let written = self.target.submit(write.caused_by(cause)).finish().await.into_bufs();
        written.inspect_err(|e| self.tell(TraceEvent::BlockCopyWriteFail, at, Some(e)))?.recycle();
        Ok(len)
    }

    fn tell(&self, event: TraceEvent, at: u64, error: Option<&Error>) {
        if self.child.is_traced() {
            let this = std::ptr::from_ref(self).addr() as u64;
            match error {
                None => self.child.tell(event, &[this.into(), at.into()]),
                Some(e) => {
                    let result = Word::Result(-i64::from(e.errno()));
                    self.child.tell(event, &[this.into(), at.into(), result]);
                }
            }
        }
    }

    /// Where the earlier content of a range lies: the place of its beginning, and how far that reaches.
    fn place(&self, at: u64, end: u64) -> Result<(Place, u64)> {
        let clusters = self.clusters(at, end);
        let kept = self.kept.lock();
        let readable = kept.denied.gap(clusters.clone()).filter(|gap| gap.start == clusters.start);
        let (Some(readable), false) = (readable, kept.broken) else {
            return Err(Error::from_errno(EACCES));
        };
        let (place, reach) = match kept.done.gap(readable.clone()) {
            Some(gap) if gap.start == readable.start => (Place::Disk, gap.end),
            Some(gap) => (Place::Target, gap.start),
            None => (Place::Target, readable.end),
        };
        Ok((place, reach.saturating_mul(self.grain).min(end) - at))
    }

    fn child_at(&self, place: Place) -> &Child {
        match place {
            Place::Disk => &self.child,
            Place::Target => &self.target,
        }
    }

    /// A request to the earlier state.
    fn earlier(self: &Arc<Self>, request: Request) -> Op {
        if request.end() > self.len {
            return Op::failed(request.bufs, ErrorKind::Io);
        }
        if request.len == 0 {
            return Op::done(request.bufs);
        }
        let filter = self.clone();
        let clusters = self.clusters(request.offset, request.end());
        match request.op {
            Operation::Read => {
                let turn = self.ranges.lock(clusters, LockMode::Shared);
                let work = async move {
                    let _held = turn.await;
                    filter.read_earlier(request).await
                };
                self.orphans.attend(work, Abandoned::Dropped)
            }
            Operation::Status => {
                let work = async move { filter.status_earlier(request).await };
                self.orphans.attend(work, Abandoned::Dropped)
            }
            Operation::Discard => {
                let turn = self.ranges.lock(clusters, LockMode::Exclusive);
                let work = async move {
                    let _held = turn.await;
                    filter.discard_earlier(request).await
                };
                self.orphans.attend(work, Abandoned::Kept)
            }
            _ => Op::failed(request.bufs, ErrorKind::Unsupported),
        }
    }

    async fn read_earlier(&self, mut request: Request) -> Completion {
        let (mut at, end) = (request.offset, request.end());
        let mut rest = std::mem::take(&mut request.bufs);
        let mut done = crate::buf::Bufs::none();
        while at < end {
            let (place, len) = match self.place(at, end) {
                Ok(found) => found,
                Err(e) => {
                    done.append(rest);
                    return Completion::failed(done, e);
                }
            };
            let read = Request::read(at, rest.split_to(len as usize)).caused_by(request.cause);
            let completion = self.child_at(place).submit(read).finish().await;
            done.append(completion.bufs);
            if let Err(e) = completion.result {
                done.append(rest);
                return Completion::failed(done, e);
            }
            at += len;
        }
        Completion::done(done)
    }

    async fn status_earlier(&self, request: Request) -> Completion {
        let asked = match self.place(request.offset, request.end()) {
            Ok((place, len)) => {
                let question = Request { len, ..request };
                self.child_at(place).submit(question).finish().await.into_extent()
            }
            Err(e) => Err(e),
        };
        match asked {
            Ok(mut extent) => {
                extent.flags.set(ExtentFlags::EOF, extent.len > 0 && request.offset + extent.len >= self.len);
                Completion::extent(extent)
            }
            Err(e) => Completion::failed(crate::buf::Bufs::none(), e),
        }
    }

    /// Whole clusters are not needed any more. The rest of the range is left alone.
    async fn discard_earlier(&self, request: Request) -> Completion {
        let first = request.offset.div_ceil(self.grain);
        let last = match request.end() == self.len {
            true => self.len.div_ceil(self.grain),
            false => request.end() / self.grain,
        };
        if first >= last {
            return Completion::done(request.bufs);
        }
        self.kept.lock().denied.insert(first..last);
        let (from, to) = (first * self.grain, (last * self.grain).min(self.len));
        let discard = Request::discard(from, to - from).caused_by(request.cause);
        let result = self.target.submit(discard).finish().await.result;
        match result {
            Err(e) if e.kind() != ErrorKind::Unsupported => Completion::failed(request.bufs, e),
            _ => Completion::done(request.bufs),
        }
    }
}

/// The host's code for what is there and not to be had.
const EACCES: i32 = 13;

impl Filter for CopyBeforeWrite {
    const NAME: &'static str = NAME;

    fn child(&self) -> &Child {
        &self.child
    }

    fn submit(self: &Arc<Self>, request: Request) -> Op {
        match request.op {
            Operation::Write | Operation::WriteZeroes | Operation::Discard | Operation::Truncate(_) => {
                self.change(request)
            }
            _ => filter::pass(&self.child, request),
        }
    }

    fn submit_earlier(self: &Arc<Self>, request: Request) -> Op {
        self.earlier(request)
    }

    fn more_edges(&self) -> Vec<NamedEdge> {
        vec![NamedEdge { role: driver::TARGET, kind: EdgeKind::Data, child: self.target.clone() }]
    }

    fn own_options(&self) -> OptionTree {
        driver::own_options(&self.options, &self.target)
    }

    fn finish(self: Arc<Self>) -> BoxFuture<Result<()>> {
        Box::pin(async move {
            self.orphans.settle().await;
            self.target.node().close().await
        })
    }
}

#[cfg(test)]
mod tests;
