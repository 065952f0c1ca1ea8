//! `preallocate`: a filter that gives a growing file storage in advance, in large steps.
//!
//! ```text
//!   0 ─────────── guest data ──────────┬─────── storage in advance ───────┐
//!                                   data_end                           file_end
//! ```
//!
//! A write beyond `file_end` first has zeroes written from there to a step ahead, which a file system turns into one
//! extent. To those above, the node ends at `data_end`; what lies beyond reads as zeroes from `zero_start` on, so that
//! a write of zeroes there is done already. The file is cut back to `data_end` when it is closed, or turns read-only.
//!
//! Invariant: storage is made in advance by one request at a time, and nobody writes beyond `file_end` meanwhile.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Deserialize;

use crate::child::Child;
use crate::context::OpenContext;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{self, Filter, FilterNode, completed};
use crate::graph::{Needs, Permissions};
use crate::node::{Access, Node};
use crate::options::{ChildRef, OptionTree, SizeOpt, parse};
use crate::orphans::{Abandoned, Orphans};
use crate::range_lock::{LockMode, RangeLock};
use crate::registry::{Driver, Role};
use crate::request::{
    BoxFuture, Completion, Extent, ExtentFlags, Flags, Op, Operation, Preallocation, Request,
};

const NAME: &str = "preallocate";
/// The reference's defaults, in bytes.
const ALIGN_DEFAULT: u64 = 1 << 20;
const SIZE_DEFAULT: u64 = 128 << 20;
/// Longest file: the reference's limit on all nodes.
const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Steps that cannot be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PreallocateError {
    /// Disks are counted in sectors.
    #[error("prealloc-align parameter of preallocate filter is not aligned to 512")]
    AlignUnaligned,
    /// Less than the child can write.
    #[error(
        "prealloc-align parameter of preallocate filter is not aligned to underlying node request alignment ({0})"
    )]
    AlignBelowChild(u32),
}

impl From<PreallocateError> for Error {
    fn from(e: PreallocateError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// The driver of [`Preallocate`].
pub struct PreallocateDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct PreallocateOptions {
    #[serde(default)]
    file: ChildRef,
    prealloc_align: Option<SizeOpt>,
    prealloc_size: Option<SizeOpt>,
}

impl Driver for PreallocateDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn role(&self) -> Role {
        Role::Filter
    }

    fn open(&self, tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let options: PreallocateOptions = parse(NAME, Role::Filter, tree)?;
            let step = Step {
                align: options.prealloc_align.map_or(ALIGN_DEFAULT, u64::from),
                size: options.prealloc_size.map_or(SIZE_DEFAULT, u64::from),
            };
            let cx = cx.clone().with_needs(alone(cx.needs()));
            let child = filter::open_child(&cx, options.file).await?;
            Ok(Arc::new(FilterNode::new(Preallocate::new(child, step)?)) as Arc<dyn Node>)
        })
    }
}

/// Who may grow the file is the only one who does.
fn alone(needs: Needs) -> Needs {
    let growing = Permissions::WRITE | Permissions::RESIZE;
    match needs.required.contains(growing) {
        true => Needs { shared: needs.shared - growing, ..needs },
        false => needs,
    }
}

/// How far ahead storage is made, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Both ends of what is made are multiples of this. 0 counts as 1.
    pub align: u64,
    /// What is made beyond what is needed.
    pub size: u64,
}

impl Default for Step {
    fn default() -> Self {
        Self { align: ALIGN_DEFAULT, size: SIZE_DEFAULT }
    }
}

/// Makes storage for a file before it is needed.
pub struct Preallocate {
    child: Child,
    step: Step,
    /// `None` until something is written: the child's own length counts.
    ends: Mutex<Option<Ends>>,
    /// Held while storage is made and while the length changes.
    growing: RangeLock,
    orphans: Orphans,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    data_end: u64,
    /// From here on the file reads as zeroes.
    zero_start: u64,
    file_end: u64,
}

impl Ends {
    fn at(len: u64) -> Self {
        Self { data_end: len, zero_start: len, file_end: len }
    }

    /// Moves the ends that a request inside of the file moves.
    fn note(&mut self, request: &Request) {
        self.data_end = self.data_end.max(request.end());
        if !merges(request) {
            self.zero_start = self.zero_start.max(request.end());
        }
    }
}

impl Preallocate {
    /// Storage for `child` in steps.
    ///
    /// # Errors
    /// [`PreallocateError`].
    pub fn new(child: Child, step: Step) -> std::result::Result<Self, PreallocateError> {
        let request_alignment = child.limits().request_alignment.max(1);
        if !step.align.is_multiple_of(512) {
            return Err(PreallocateError::AlignUnaligned);
        }
        if !step.align.is_multiple_of(u64::from(request_alignment)) {
            return Err(PreallocateError::AlignBelowChild(request_alignment));
        }
        Ok(Self {
            child,
            step,
            ends: Mutex::new(None),
            growing: RangeLock::new(),
            orphans: Orphans::default(),
        })
    }

    /// What is to be done for a write or a write of zeroes. The ends are moved as it will move them.
    fn look(&self, request: &Request) -> Next {
        let mut known = self.ends.lock();
        let ends = known.get_or_insert_with(|| Ends::at(self.child.len()));
        if request.len == 0 {
            return Next::Write;
        }
        if request.end() > ends.file_end {
            return Next::Grow(*ends);
        }
        let done = merges(request) && request.offset >= ends.zero_start && request.end() > ends.data_end;
        ends.note(request);
        if done { Next::Nothing } else { Next::Write }
    }

    fn write(self: &Arc<Self>, request: Request) -> Op {
        if self.child.node().is_read_only() || request.end() > FILE_BYTES_MAX {
            return self.child.submit(request);
        }
        match self.look(&request) {
            Next::Nothing => return Op::done(request.bufs),
            Next::Write => return self.child.submit(request),
            Next::Grow(_) => {}
        }
        let filter = self.clone();
        let work = async move {
            match filter.grow(&request).await {
                Next::Nothing => Completion::done(request.bufs),
                Next::Write | Next::Grow(_) => filter.child.submit(request).finish().await,
            }
        };
        self.orphans.attend(work, Abandoned::Kept)
    }

    /// Makes storage for a request beyond the file's end, and for more to come.
    async fn grow(&self, request: &Request) -> Next {
        let _turn = self.growing.lock(0..1, LockMode::Exclusive).await;
        let before = match self.look(request) {
            Next::Grow(ends) => ends,
            // Somebody else made it while we waited.
            other => return other,
        };
        let merges = merges(request);
        let from = if merges { request.offset.min(before.file_end) } else { before.file_end };
        let made = self.make(from, request).await;
        let mut known = self.ends.lock();
        let ends = known.get_or_insert(before);
        // Where making it failed, the file grows by the write itself.
        ends.file_end = ends.file_end.max(request.end());
        let mut next = Next::Write;
        if let Some(made) = made {
            ends.file_end = ends.file_end.max(made.end);
            if merges && made.start <= request.offset {
                next = Next::Nothing;
            }
        }
        ends.note(request);
        next
    }

    /// Has zeroes written from `from`, rounded up, to a step beyond the request. `None`: they are not there.
    async fn make(&self, from: u64, request: &Request) -> Option<Range<u64>> {
        let align = self.step.align.max(1);
        let start = from.checked_next_multiple_of(align)?;
        let end = start.max(request.end()).saturating_add(self.step.size).checked_next_multiple_of(align)?;
        if start >= end || end > FILE_BYTES_MAX {
            return None;
        }
        let zeroes = Request::write_zeroes(start, end - start).with_flags(Flags::NO_FALLBACK);
        self.child.submit(zeroes.caused_by(request.cause)).finish().await.result.ok()?;
        Some(start..end)
    }

    fn truncate(self: &Arc<Self>, request: Request, preallocation: Preallocation) -> Op {
        let filter = self.clone();
        let work = async move {
            let _turn = filter.growing.lock(0..1, LockMode::Exclusive).await;
            let bufs = request.bufs;
            let change = Request::truncate(request.offset, preallocation);
            let change = change.with_flags(request.flags).caused_by(request.cause);
            completed(bufs, filter.set_len(change, preallocation).await)
        };
        self.orphans.attend(work, Abandoned::Kept)
    }

    /// Storage made in advance becomes storage that was asked for; otherwise it goes first, so that the length
    /// changes as it would without this filter.
    async fn set_len(&self, change: Request, preallocation: Preallocation) -> Result<()> {
        let len = change.offset;
        if len > self.length() {
            if preallocation == Preallocation::Falloc && self.has(len) {
                return Ok(());
            }
            self.cut_back().await?;
        }
        let result = self.child.submit(change).finish().await.result;
        // Whatever came of it, what the child says is true.
        *self.ends.lock() = None;
        result.map(drop)
    }

    /// Whether there is storage up to `len`; if so, that is where the data ends now.
    fn has(&self, len: u64) -> bool {
        let mut known = self.ends.lock();
        match &mut *known {
            Some(ends) if len <= ends.file_end => {
                ends.data_end = len;
                true
            }
            _ => false,
        }
    }

    /// Takes the storage back that nobody used.
    async fn cut_back(&self) -> Result<()> {
        let Some(ends) = *self.ends.lock() else { return Ok(()) };
        if ends.file_end > ends.data_end && self.child.len() > ends.data_end {
            let change = Request::truncate(ends.data_end, Preallocation::Off);
            self.child.submit(change).finish().await.result?;
        }
        *self.ends.lock() = None;
        Ok(())
    }

    fn status(&self, mut request: Request) -> Op {
        let end = self.length();
        if request.offset >= end {
            let flags = ExtentFlags::EOF | ExtentFlags::ALLOCATED;
            return Op::Done(Completion::extent(Extent { len: 0, flags, map: None }));
        }
        request.len = request.len.min(end - request.offset);
        self.child.submit(request)
    }
}

/// What remains to be done for a request.
enum Next {
    /// Nothing: it is a write of zeroes, and they are there.
    Nothing,
    Write,
    /// Storage is to be made first; these are the ends before it.
    Grow(Ends),
}

/// Whether a request is a write of zeroes that storage in advance can stand for.
fn merges(request: &Request) -> bool {
    matches!(request.op, Operation::WriteZeroes) && (request.flags - Flags::NO_FALLBACK).is_empty()
}

impl Filter for Preallocate {
    const NAME: &'static str = NAME;

    fn child(&self) -> &Child {
        &self.child
    }

    fn submit(self: &Arc<Self>, request: Request) -> Op {
        match request.op {
            Operation::Write | Operation::WriteZeroes => self.write(request),
            Operation::Truncate(preallocation) => self.truncate(request, preallocation),
            Operation::Status => self.status(request),
            _ => filter::pass(&self.child, request),
        }
    }

    fn length(&self) -> u64 {
        self.ends.lock().map_or_else(|| self.child.len(), |ends| ends.data_end)
    }

    fn needs(&self, needs: Needs) -> Needs {
        alone(needs)
    }

    fn reopening(self: Arc<Self>, access: Access) -> BoxFuture<Result<()>> {
        match access {
            Access::ReadOnly => self.finish(),
            Access::ReadWrite => Box::pin(std::future::ready(Ok(()))),
        }
    }

    fn finish(self: Arc<Self>) -> BoxFuture<Result<()>> {
        Box::pin(async move {
            self.orphans.settle().await;
            let _turn = self.growing.lock(0..1, LockMode::Exclusive).await;
            match self.child.node().is_read_only() {
                true => Ok(()),
                false => self.cut_back().await,
            }
        })
    }
}

#[cfg(test)]
mod tests;
