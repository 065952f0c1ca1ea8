//! The edge from a parent to a child node.
//!
//! Requests pass through it so that each is of a form the child accepts: limits are honoured here, by
//! splitting long requests, by bounce buffers for badly placed memory, and by read-modify-write for requests
//! that do not fall on the child's grain. A child without such limits costs one branch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::RwLock;

use crate::buf::Buf;
use crate::error::Result;
use crate::event::{DebugEvent, Suspension};
use crate::node::{Limits, Node};
use crate::orphans::{Abandoned, Orphans};
use crate::range_lock::{LockMode, RangeLock};
use crate::request::{Cause, Extent, Flags, Op, Operation, Request};
use crate::trace::{Trace, TraceEvent, Word};

mod fit;
mod told;

use fit::Fit;

/// What a child is for its parent, which decides what the parent lets others do to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EdgeKind {
    /// The parent passes requests on as they are.
    Filtered,
    /// The parent passes requests on into a part of it, so its length must stay.
    Window,
    /// The parent keeps its metadata here, and perhaps guest data.
    Storage,
    /// The parent keeps guest data here and no metadata.
    Data,
    /// The parent reads from here what it has not allocated.
    Backing,
}

/// One of a node's edges, with its name.
#[derive(Clone)]
pub struct NamedEdge {
    /// The child's role (`file`, `backing`, …).
    pub role: &'static str,
    /// What the child is for.
    pub kind: EdgeKind,
    /// The edge.
    pub child: Child,
}

/// An edge to a child. Cloning gives another handle on the same edge.
#[derive(Clone)]
pub struct Child(Arc<Edge>);

struct Edge {
    target: RwLock<Target>,
    /// [`LISTENS`] and [`TRACED`].
    watched: AtomicU8,
    /// Keeps read-modify-write cycles apart from every overlapping change. Unused when nothing needs aligning.
    serial: RangeLock,
    /// Changes that nobody waits for any more; what they locked stays locked until they have ended.
    orphans: Orphans,
}

/// Somebody below listens to debug events.
const LISTENS: u8 = 1;
/// What happens here is told.
const TRACED: u8 = 2;

struct Target {
    node: Arc<dyn Node>,
    limits: Limits,
    trace: Option<Trace>,
    /// Any request is fine as it is.
    plain: bool,
}

impl Target {
    fn new(node: Arc<dyn Node>) -> Self {
        let limits = node.limits();
        let plain = limits.request_alignment <= 1
            && limits.memory_alignment <= 1
            && limits.max_transfer == 0
            && limits.max_pieces == 0
            && limits.portions.is_none();
        let trace = node.trace();
        Self { node, limits, trace, plain }
    }

    fn watched(&self) -> u8 {
        let listens = if self.node.listens() { LISTENS } else { 0 };
        let traced = if self.trace.is_some() { TRACED } else { 0 };
        listens | traced
    }
}

impl Child {
    /// An edge to `node`.
    pub fn new(node: Arc<dyn Node>) -> Self {
        let target = Target::new(node);
        let watched = AtomicU8::new(target.watched());
        let (serial, orphans) = (RangeLock::new(), Orphans::default());
        Self(Arc::new(Edge { target: RwLock::new(target), watched, serial, orphans }))
    }

    /// The node at the other end.
    pub fn node(&self) -> Arc<dyn Node> {
        self.0.target.read().node.clone()
    }

    /// A number that no other edge has as long as this one lives, for logs.
    pub fn identity(&self) -> u64 {
        Arc::as_ptr(&self.0).addr() as u64
    }

    /// Points the edge to another node. The caller has drained the roots above, so nothing is in flight.
    pub fn replace(&self, node: Arc<dyn Node>) -> Arc<dyn Node> {
        let target = Target::new(node);
        self.0.watched.store(target.watched(), Ordering::Relaxed);
        std::mem::replace(&mut *self.0.target.write(), target).node
    }

    /// The child's length in bytes.
    pub fn len(&self) -> u64 {
        self.0.target.read().node.len()
    }

    /// Whether the child has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The child's limits.
    pub fn limits(&self) -> Limits {
        self.0.target.read().limits
    }

    /// Announces an event to whoever listens below.
    pub fn event(&self, event: DebugEvent, cause: Cause) -> Option<Suspension> {
        if self.0.watched.load(Ordering::Relaxed) & LISTENS == 0 {
            return None;
        }
        self.node().debug_event(event, cause)
    }

    /// Announces an event and waits if a breakpoint was hit.
    pub async fn announce(&self, event: DebugEvent, cause: Cause) {
        if let Some(suspension) = self.event(event, cause) {
            suspension.await;
        }
    }

    /// Starts a request, in a form that the child accepts.
    pub fn submit(&self, request: Request) -> Op {
        match self.0.watched.load(Ordering::Relaxed) {
            0 => self.submit_fitting(request),
            watched => {
                self.tell_of_zeroes(&request);
                self.submit_watched(watched, request)
            }
        }
    }

    /// Starts a request of the user of the graph that has this number; `added` is what its mode asks of requests.
    pub(crate) fn submit_for(&self, user: u64, request: Request, added: Flags) -> Op {
        match self.0.watched.load(Ordering::Relaxed) {
            0 => self.submit_fitting(request.with_flags(added)),
            watched => {
                self.tell_of_user(user, &request);
                self.submit_watched(watched, request.with_flags(added))
            }
        }
    }

    fn submit_watched(&self, watched: u8, request: Request) -> Op {
        if watched & TRACED != 0 {
            self.tell_of_request(&request);
        }
        match watched & LISTENS {
            0 => self.submit_fitting(request),
            _ => self.submit_announced(request),
        }
    }

    /// Whether what happens here is told.
    #[inline]
    pub fn is_traced(&self) -> bool {
        self.0.watched.load(Ordering::Relaxed) & TRACED != 0
    }

    /// Tells of an event, if anybody wants to know.
    #[inline]
    pub fn tell(&self, event: TraceEvent, words: &[Word<'_>]) {
        if self.is_traced()
            && let Some(trace) = &self.0.target.read().trace
        {
            trace.tell(event, words);
        }
    }

    /// Where events are told.
    pub fn trace(&self) -> Option<Trace> {
        if self.is_traced() { self.0.target.read().trace.clone() } else { None }
    }

    /// Starts a request below which somebody listens: the events that do not depend on the driver are announced.
    fn submit_announced(&self, request: Request) -> Op {
        let node = self.node();
        match request.op {
            Operation::Write | Operation::WriteZeroes => {}
            Operation::Flush => {
                // What the node keeps itself is written back before; what it keeps below it announces on its own.
                let Some(below) = node.primary() else { return self.submit_fitting(request) };
                let child = self.clone();
                return Op::wait(async move {
                    announce(&*below, DebugEvent::FlushToOs, request.cause).await;
                    child.submit_fitting(request).finish().await
                });
            }
            _ => return self.submit_fitting(request),
        }
        let (child, cause) = (self.clone(), request.cause);
        Op::wait(async move {
            if child.0.target.read().accepts(&request) {
                announce(&*node, write_event(&request), cause).await;
            }
            let completion = child.submit_fitting(request).finish().await;
            announce(&*node, DebugEvent::PwritevDone, cause).await;
            completion
        })
    }

    fn submit_fitting(&self, request: Request) -> Op {
        let target = self.0.target.read();
        if target.plain || target.accepts(&request) {
            let changes =
                matches!(request.op, Operation::Write | Operation::WriteZeroes | Operation::Discard);
            let tracked = target.limits.request_alignment > 1 && changes;
            if !tracked {
                return target.node.submit(request);
            }
            return self.submit_tracked(&target, request);
        }
        let (node, limits, serial) = (target.node.clone(), target.limits, self.0.serial.clone());
        let abandoned = match request.op {
            Operation::Write | Operation::WriteZeroes | Operation::Discard => Abandoned::Kept,
            _ => Abandoned::Dropped,
        };
        self.0.orphans.attend(Fit { node, limits, serial }.run(request), abandoned)
    }

    /// A change that fits, kept apart from writes that must be made to fit.
    fn submit_tracked(&self, target: &Target, request: Request) -> Op {
        let Edge { serial, orphans, .. } = &*self.0;
        let range = request.offset..request.end();
        if let Some(guard) = serial.try_lock(range.clone(), LockMode::Shared) {
            return match target.node.submit(request) {
                Op::Done(completion) => Op::Done(completion),
                Op::Wait(future) => orphans.attend_started(Box::pin(async move {
                    let completion = future.await;
                    drop(guard);
                    completion
                })),
            };
        }
        let (node, lock) = (target.node.clone(), serial.lock(range, LockMode::Shared));
        let work = async move {
            let _guard = lock.await;
            node.submit(request).finish().await
        };
        orphans.attend(work, Abandoned::Kept)
    }

    /// Announces an event, waits if a breakpoint was hit, and starts the request that it belongs to.
    pub fn submit_after(&self, event: DebugEvent, request: Request) -> Op {
        let Some(suspension) = self.event(event, request.cause) else { return self.submit(request) };
        let child = self.clone();
        Op::wait(async move {
            suspension.await;
            child.submit(request).finish().await
        })
    }

    /// Reads `len` bytes at `offset`.
    ///
    /// # Errors
    /// The child's error.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Buf> {
        let bufs = self.submit(Request::read(offset, Buf::scratch(len))).finish().await.into_bufs()?;
        Ok(bufs.to_contiguous_or_self())
    }

    /// Writes `buf` at `offset` and recycles it.
    ///
    /// # Errors
    /// The child's error.
    pub async fn write(&self, offset: u64, buf: Buf) -> Result<()> {
        self.submit(Request::write(offset, buf)).finish().await.into_bufs()?.recycle();
        Ok(())
    }

    /// Makes completed writes durable.
    ///
    /// # Errors
    /// The child's error.
    pub async fn flush(&self) -> Result<()> {
        self.submit(Request::flush()).finish().await.result.map(|_| ())
    }

    /// Asks about the extent at `offset`.
    ///
    /// # Errors
    /// The child's error.
    pub async fn status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.submit(Request::status(offset, len)).finish().await.into_extent()
    }
}

impl Target {
    fn accepts(&self, request: &Request) -> bool {
        let align = u64::from(self.limits.request_alignment.max(1));
        let aligned = (request.offset | request.len) & (align - 1) == 0;
        match request.op {
            Operation::Read | Operation::Write => {
                let memory = self.limits.memory_alignment.max(1) as usize;
                aligned
                    && within(request.len, self.limits.max_transfer)
                    && within(request.bufs.pieces().len() as u64, self.limits.max_pieces as u64)
                    && request
                        .bufs
                        .pieces()
                        .iter()
                        .all(|b| b.is_aligned(memory) && b.len() as u64 & (align - 1) == 0)
            }
            Operation::WriteZeroes => aligned && self.limits.portions.is_none(),
            Operation::Discard => self.limits.portions.is_none(),
            _ => true,
        }
    }
}

async fn announce(node: &dyn Node, event: DebugEvent, cause: Cause) {
    if let Some(suspension) = node.debug_event(event, cause) {
        suspension.await;
    }
}

fn write_event(request: &Request) -> DebugEvent {
    match request.op {
        Operation::WriteZeroes => DebugEvent::PwritevZero,
        _ => DebugEvent::Pwritev,
    }
}

fn within(value: u64, limit: u64) -> bool {
    limit == 0 || value <= limit
}
