//! `copy-on-read`: a filter that writes into the image what it had to read from its backing file.
//!
//! With `bottom`, only what comes from the layers down to that node is copied; what lies further below is read and
//! left there.
//!
//! Invariant: between the look that finds a range unallocated and the end of the write that fills it, no other request
//! changes the range: everything that changes it holds it shared, a copy holds it alone. So a guest's write is never
//! replaced by what the backing file had. The child orders overlapping requests that it has begun, also those whose
//! futures are dropped, as every format with a backing file does.

use std::sync::Arc;

use serde::Deserialize;

use crate::buf::{Buf, Bufs};
use crate::chain::Chain;
use crate::child::Child;
use crate::context::OpenContext;
use crate::error::{Error, ErrorKind, Result};
use crate::event::DebugEvent;
use crate::filter::{self, Filter, FilterNode};
use crate::graph::{Needs, Permissions};
use crate::node::{Access, Node};
use crate::options::{ChildRef, OptionTree, parse};
use crate::range_lock::{LockMode, RangeLock};
use crate::registry::{Driver, Role};
use crate::request::{BoxFuture, Completion, ExtentFlags, Flags, Op, Operation, Request};
use crate::trace::{TraceEvent, Word};

const NAME: &str = "copy-on-read";
/// Most bytes copied at once, unless a cluster is larger: what one request keeps in memory.
const COPY_BYTES_MAX: u64 = 2 << 20;

/// Why copies cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CopyOnReadError {
    /// The image must take what is copied.
    #[error("Block node is read-only")]
    ReadOnly,
    /// It must take them as long as it is open.
    #[error("Can't set the image to r/o with copy-on-read enabled")]
    StaysWritable,
    /// No node has the name.
    #[error("Bottom node '{0}' not found")]
    NoBottom(String),
    /// The node is no layer of the image's chain.
    #[error("Bottom node '{0}' is not in the backing chain of the image")]
    BottomElsewhere(String),
}

impl From<CopyOnReadError> for Error {
    fn from(e: CopyOnReadError) -> Self {
        let kind = match e {
            CopyOnReadError::ReadOnly | CopyOnReadError::StaysWritable => ErrorKind::PermissionDenied,
            CopyOnReadError::NoBottom(_) => ErrorKind::NotFound,
            CopyOnReadError::BottomElsewhere(_) => ErrorKind::InvalidInput,
        };
        Error::new(kind, e)
    }
}

/// The driver of [`CopyOnRead`].
pub struct CopyOnReadDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CopyOnReadOptions {
    #[serde(default)]
    file: ChildRef,
    bottom: Option<String>,
}

impl Driver for CopyOnReadDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn role(&self) -> Role {
        Role::Filter
    }

    fn open(&self, tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let options: CopyOnReadOptions = parse(NAME, Role::Filter, tree)?;
            let cx = cx.clone().with_needs(copying(cx.needs()));
            let child = filter::open_child(&cx, options.file).await?;
            let bottom = match options.bottom {
                None => None,
                Some(name) => Some(find_bottom(&cx, &child, name)?),
            };
            Ok(Arc::new(FilterNode::new(CopyOnRead::new(child, bottom)?)) as Arc<dyn Node>)
        })
    }
}

fn copying(needs: Needs) -> Needs {
    Needs { required: needs.required | Permissions::WRITE_UNCHANGED, ..needs }
}

fn find_bottom(cx: &OpenContext, child: &Child, name: String) -> Result<Bottom> {
    let node = cx.graph.as_ref().and_then(|graph| graph.node(&name));
    let Some(node) = node else { return Err(CopyOnReadError::NoBottom(name).into()) };
    let bottom = Bottom { node, name };
    match bottom.depth_below(&child.node()) {
        Some(_) => Ok(bottom),
        None => Err(CopyOnReadError::BottomElsewhere(bottom.name).into()),
    }
}

/// The last layer that is copied from.
pub struct Bottom {
    node: Arc<dyn Node>,
    name: String,
}

impl Bottom {
    /// How many layers it lies below `top`. Filters count as the layer that they filter.
    fn depth_below(&self, top: &Arc<dyn Node>) -> Option<usize> {
        let is_it = |layer: &Arc<dyn Node>| {
            let mut at = layer.clone();
            loop {
                if Arc::ptr_eq(&at, &self.node) {
                    return true;
                }
                match at.primary() {
                    Some(below) => at = below,
                    None => return false,
                }
            }
        };
        Chain::of(top.clone()).layers().iter().position(is_it)
    }
}

/// Copies into the child what reads bring from below it.
pub struct CopyOnRead {
    child: Child,
    bottom: Option<Bottom>,
    ranges: RangeLock,
}

impl CopyOnRead {
    /// Over an image that can be written; `bottom` limits what is copied.
    ///
    /// # Errors
    /// [`CopyOnReadError::ReadOnly`].
    pub fn new(child: Child, bottom: Option<Bottom>) -> std::result::Result<Self, CopyOnReadError> {
        match child.node().is_read_only() {
            true => Err(CopyOnReadError::ReadOnly),
            false => Ok(Self { child, bottom, ranges: RangeLock::new() }),
        }
    }

    /// A request that changes its range, or may: kept apart from copies.
    fn change(self: &Arc<Self>, request: Request) -> Op {
        let (range, mode) = match request.op {
            Operation::Truncate(_) => (0..u64::MAX, LockMode::Exclusive),
            _ => (request.offset..request.end(), LockMode::Shared),
        };
        let Some(guard) = self.ranges.try_lock(range.clone(), mode) else {
            let (filter, lock) = (self.clone(), self.ranges.lock(range, mode));
            return Op::wait(async move {
                let _guard = lock.await;
                filter.child.submit(request).finish().await
            });
        };
        match self.child.submit(request) {
            Op::Done(completion) => Op::Done(completion),
            Op::Wait(future) => Op::wait(async move {
                let completion = future.await;
                drop(guard);
                completion
            }),
        }
    }

    /// A read of what the image has goes on as it is.
    fn read(self: &Arc<Self>, request: Request) -> Op {
        if request.end() > self.child.len() {
            return self.child.submit(request);
        }
        let status = Request::status(request.offset, request.len).caused_by(request.cause);
        if let Op::Done(completion) = self.child.submit(status)
            && let Ok(extent) = completion.into_extent()
            && extent.len >= request.len
            && extent.flags.contains(ExtentFlags::ALLOCATED)
        {
            return self.child.submit(request);
        }
        let filter = self.clone();
        Op::wait(async move { filter.read_pieces(request).await })
    }

    async fn read_pieces(&self, mut request: Request) -> Completion {
        let mut at = request.offset;
        while at < request.end() {
            let step = match self.source(at, request.end() - at).await {
                Ok((Source::AsIt, len)) => self.read_piece(&mut request, at, len).await.map(|()| len),
                Ok((Source::Copied, len)) => self.copy(&mut request, at, len).await,
                Err(e) => Err(e),
            };
            match step {
                Ok(done) => at += done,
                Err(e) => return Completion::failed(request.bufs, e),
            }
        }
        Completion::done(request.bufs)
    }

    /// What is to be done with the beginning of a range, and how long that beginning is.
    async fn source(&self, at: u64, len: u64) -> Result<(Source, u64)> {
        let top = self.child.status(at, len).await?;
        let len = top.len.clamp(1, len);
        if top.flags.contains(ExtentFlags::ALLOCATED) {
            return Ok((Source::AsIt, len));
        }
        let Some(bottom) = &self.bottom else { return Ok((Source::Copied, len)) };
        let node = self.child.node();
        let (Some(next), Some(depth)) = (node.backing(), bottom.depth_below(&node)) else {
            return Ok((Source::AsIt, len));
        };
        let layers = match bottom.node.backing() {
            Some(base) if depth > 0 => Chain::above(next.clone(), &base).unwrap_or_else(|| Chain::of(next)),
            // The image itself limits nothing, as with the reference.
            _ => Chain::of(next),
        };
        let (allocated, len_below) = layers.is_allocated(at, len).await?;
        let len = if len_below == 0 { len } else { len_below.min(len) };
        Ok((if allocated { Source::Copied } else { Source::AsIt }, len))
    }

    async fn read_piece(&self, request: &mut Request, at: u64, len: u64) -> Result<()> {
        if request.flags.contains(Flags::PREFETCH) {
            return Ok(());
        }
        let buf = Buf::scratch(len as usize);
        let read = Request::read(at, buf).with_flags(request.flags).caused_by(request.cause);
        let got = self.child.submit(read).finish().await.into_bufs()?;
        deliver(request, at, &got);
        got.recycle();
        Ok(())
    }

    /// Copies the clusters around the beginning of `at..at + len` and gives the request its part. Returns the length
    /// of that beginning.
    async fn copy(&self, request: &mut Request, at: u64, len: u64) -> Result<u64> {
        let limits = self.child.limits();
        let grain = limits.preferred_write.max(u64::from(limits.request_alignment)).max(1);
        let start = at - at % grain;
        let wanted = at.saturating_add(len).checked_next_multiple_of(grain).unwrap_or(u64::MAX);
        let most = start.saturating_add(COPY_BYTES_MAX.max(grain) / grain * grain);
        let end = wanted.min(most).min(self.child.len());
        if at >= end {
            // The image became shorter meanwhile.
            return Err(ErrorKind::Io.into());
        }
        let words = [self.child.node().identity(), at, len, start, end - start].map(Word::Number);
        self.child.tell(TraceEvent::BdrvCoDoCopyOnReadv, &words);
        let _alone = self.ranges.lock(start..end, LockMode::Exclusive).await;
        let mut from = start;
        while from < end {
            // Somebody may have filled it before we were alone.
            let extent = self.child.status(from, end - from).await?;
            let n = extent.len.clamp(1, end - from);
            if extent.flags.contains(ExtentFlags::ALLOCATED) {
                self.read_overlap(request, (at, at + len), (from, from + n)).await?;
            } else {
                self.copy_run(request, from, n).await?;
            }
            from += n;
        }
        Ok(end.min(at + len) - at)
    }

    /// Reads what the request wants of `run` and has not got otherwise.
    async fn read_overlap(&self, request: &mut Request, wanted: (u64, u64), run: (u64, u64)) -> Result<()> {
        let (from, to) = (wanted.0.max(run.0), wanted.1.min(run.1));
        if from >= to {
            return Ok(());
        }
        self.read_piece(request, from, to - from).await
    }

    async fn copy_run(&self, request: &mut Request, from: u64, len: u64) -> Result<()> {
        let cause = request.cause;
        let read = Request::read(from, Buf::scratch(len as usize)).caused_by(cause);
        let got = self.child.submit(read).finish().await.into_bufs()?;
        deliver(request, from, &got);
        self.child.announce(DebugEvent::CorWrite, cause).await;
        let write = match got.is_zero() {
            true => Request::write_zeroes(from, len),
            false => Request::write(from, got),
        };
        let write = write.with_flags(Flags::WRITE_UNCHANGED).caused_by(cause);
        self.child.submit(write).finish().await.into_bufs()?.recycle();
        Ok(())
    }
}

/// What becomes of a range that is read.
enum Source {
    /// It is read where it is.
    AsIt,
    /// It is copied.
    Copied,
}

/// Gives the request its part of what was read from `at` on.
fn deliver(request: &mut Request, at: u64, got: &Bufs) {
    if request.flags.contains(Flags::PREFETCH) {
        return;
    }
    let mut start = at;
    for piece in got.pieces() {
        let end = start + piece.len() as u64;
        let (from, to) = (start.max(request.offset), end.min(request.end()));
        if from < to {
            let bytes = &piece[(from - start) as usize..(to - start) as usize];
            request.bufs.write_at((from - request.offset) as usize, bytes);
        }
        start = end;
    }
}

impl Filter for CopyOnRead {
    const NAME: &'static str = NAME;

    fn child(&self) -> &Child {
        &self.child
    }

    fn submit(self: &Arc<Self>, request: Request) -> Op {
        match request.op {
            Operation::Read => self.read(request),
            Operation::Write | Operation::WriteZeroes | Operation::Discard | Operation::Truncate(_) => {
                self.change(request)
            }
            _ => filter::pass(&self.child, request),
        }
    }

    fn own_options(&self) -> OptionTree {
        let mut own = OptionTree::new();
        if let Some(bottom) = &self.bottom {
            own.insert("bottom".to_owned(), bottom.name.as_str().into());
        }
        own
    }

    fn compresses(&self) -> bool {
        self.child.node().compresses()
    }

    fn needs(&self, needs: Needs) -> Needs {
        copying(needs)
    }

    fn reopening(self: Arc<Self>, access: Access) -> BoxFuture<Result<()>> {
        Box::pin(std::future::ready(match access {
            Access::ReadOnly => Err(CopyOnReadError::StaysWritable.into()),
            Access::ReadWrite => Ok(()),
        }))
    }
}

#[cfg(test)]
mod tests;
