//! The edge from a parent to a child node.
//!
//! Requests pass through it so that each is of a form the child accepts: limits are honoured here, by
//! splitting long requests, by bounce buffers for badly placed memory, and by read-modify-write for requests
//! that do not fall on the child's grain. A child without such limits costs one branch.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::buf::{Buf, Bufs};
use crate::error::Result;
use crate::event::{DebugEvent, Suspension};
use crate::node::{Limits, Node};
use crate::range_lock::{LockMode, RangeLock};
use crate::request::{Cause, Completion, Extent, Flags, Op, Operation, Request};

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
    listens: AtomicBool,
    /// Keeps read-modify-write cycles apart from every overlapping write. Unused when nothing needs aligning.
    serial: RangeLock,
}

struct Target {
    node: Arc<dyn Node>,
    limits: Limits,
    /// Any request is fine as it is.
    plain: bool,
}

impl Target {
    fn new(node: Arc<dyn Node>) -> Self {
        let limits = node.limits();
        let plain = limits.request_alignment <= 1
            && limits.memory_alignment <= 1
            && limits.max_transfer == 0
            && limits.max_pieces == 0;
        Self { node, limits, plain }
    }
}

impl Child {
    /// An edge to `node`.
    pub fn new(node: Arc<dyn Node>) -> Self {
        let listens = AtomicBool::new(node.listens());
        Self(Arc::new(Edge { target: RwLock::new(Target::new(node)), listens, serial: RangeLock::new() }))
    }

    /// The node at the other end.
    pub fn node(&self) -> Arc<dyn Node> {
        self.0.target.read().node.clone()
    }

    /// Points the edge to another node. The caller has drained the roots above, so nothing is in flight.
    pub fn replace(&self, node: Arc<dyn Node>) -> Arc<dyn Node> {
        self.0.listens.store(node.listens(), Ordering::Relaxed);
        std::mem::replace(&mut *self.0.target.write(), Target::new(node)).node
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
        if !self.0.listens.load(Ordering::Relaxed) {
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
        let target = self.0.target.read();
        if target.plain || target.accepts(&request) {
            let tracked = target.limits.request_alignment > 1 && matches!(request.op, Operation::Write);
            if !tracked {
                return target.node.submit(request);
            }
            return submit_tracked(&self.0.serial, &target, request);
        }
        let (node, limits, serial) = (target.node.clone(), target.limits, self.0.serial.clone());
        Op::wait(async move { Fit { node, limits, serial }.run(request).await })
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
            Operation::WriteZeroes => aligned,
            _ => true,
        }
    }
}

fn within(value: u64, limit: u64) -> bool {
    limit == 0 || value <= limit
}

fn submit_tracked(serial: &RangeLock, target: &Target, request: Request) -> Op {
    let range = request.offset..request.end();
    if let Some(guard) = serial.try_lock(range.clone(), LockMode::Shared) {
        return match target.node.submit(request) {
            Op::Done(completion) => Op::Done(completion),
            Op::Wait(future) => Op::wait(async move {
                let completion = future.await;
                drop(guard);
                completion
            }),
        };
    }
    let (node, lock) = (target.node.clone(), serial.lock(range, LockMode::Shared));
    Op::wait(async move {
        let _guard = lock.await;
        node.submit(request).finish().await
    })
}

/// Fits one request to the limits of a node.
struct Fit {
    node: Arc<dyn Node>,
    limits: Limits,
    serial: RangeLock,
}

impl Fit {
    async fn run(self, mut request: Request) -> Completion {
        match request.op {
            Operation::Read => self.read(request).await,
            Operation::Write => self.write(request).await,
            Operation::WriteZeroes if request.flags.contains(Flags::NO_FALLBACK) => {
                Completion::failed(request.bufs, crate::error::ErrorKind::Unsupported)
            }
            Operation::WriteZeroes => {
                // Rare and short: a range that misses the grain. The aligned middle stays a write of zeroes.
                let align = u64::from(self.limits.request_alignment);
                let start = request.offset.next_multiple_of(align).min(request.end());
                let end = (request.end() & !(align - 1)).max(start);
                let parts = [(request.offset, start, false), (start, end, true), (end, request.end(), false)];
                for (from, to, aligned) in parts {
                    if from == to {
                        continue;
                    }
                    let part = if aligned {
                        Request::write_zeroes(from, to - from).with_flags(request.flags)
                    } else {
                        Request::write(from, Buf::zeroed((to - from) as usize))
                    };
                    let part = part.caused_by(request.cause);
                    let done =
                        if aligned { self.node.submit(part).finish().await } else { self.write(part).await };
                    if let Err(e) = done.result {
                        return Completion::failed(std::mem::take(&mut request.bufs), e);
                    }
                }
                Completion::done(request.bufs)
            }
            _ => self.node.submit(request).finish().await,
        }
    }

    /// The range widened to the grain.
    fn widen(&self, offset: u64, len: u64) -> (u64, u64) {
        let align = u64::from(self.limits.request_alignment.max(1));
        let start = offset & !(align - 1);
        let end = offset.saturating_add(len).checked_next_multiple_of(align).unwrap_or(!(align - 1));
        (start, end - start)
    }

    /// Largest piece for one transfer.
    fn step(&self) -> u64 {
        let align = u64::from(self.limits.request_alignment.max(1));
        match self.limits.max_transfer {
            0 => 1 << 20,
            max => (max & !(align - 1)).max(align),
        }
    }

    async fn read(&self, mut request: Request) -> Completion {
        let (start, len) = self.widen(request.offset, request.len);
        let mut at = start;
        while at < start + len {
            let n = self.step().min(start + len - at);
            let bounce = Request::read(at, Buf::scratch(n as usize)).caused_by(request.cause);
            let bounce = match self.node.submit(bounce).finish().await.into_bufs() {
                Ok(bufs) => bufs,
                Err(e) => return Completion::failed(request.bufs, e),
            };
            let from = request.offset.max(at);
            let to = request.end().min(at + n);
            let piece = &bounce.pieces()[0][(from - at) as usize..(to - at) as usize];
            request.bufs.write_at((from - request.offset) as usize, piece);
            bounce.recycle();
            at += n;
        }
        Completion::done(request.bufs)
    }

    async fn write(&self, request: Request) -> Completion {
        let (start, len) = self.widen(request.offset, request.len);
        let whole = (start, len) == (request.offset, request.len);
        let mode = if whole { LockMode::Shared } else { LockMode::Exclusive };
        let _guard = self.serial.lock(start..start + len, mode).await;
        let mut at = start;
        while at < start + len {
            let n = self.step().min(start + len - at);
            if let Err(e) = self.write_piece(&request, at, n).await {
                return Completion::failed(request.bufs, e);
            }
            at += n;
        }
        Completion::done(request.bufs)
    }

    /// Writes the grain-aligned window `at..at + n`, reading what the request does not cover.
    async fn write_piece(&self, request: &Request, at: u64, n: u64) -> Result<()> {
        let align = u64::from(self.limits.request_alignment.max(1));
        let from = request.offset.max(at);
        let to = request.end().min(at + n);
        let mut bounce = Buf::scratch(n as usize);
        let cause = request.cause;
        if from > at {
            self.announce(DebugEvent::PwritevRmwHead, cause).await;
            self.fill(&mut bounce, at, at, align, cause).await?;
            self.announce(DebugEvent::PwritevRmwAfterHead, cause).await;
        }
        let tail = at + n - align;
        if to < at + n && !(from > at && tail == at) {
            self.announce(DebugEvent::PwritevRmwTail, cause).await;
            self.fill(&mut bounce, at, tail, align, cause).await?;
            self.announce(DebugEvent::PwritevRmwAfterTail, cause).await;
        }
        let window = (from - at) as usize..(to - at) as usize;
        request.bufs.read_at((from - request.offset) as usize, &mut bounce[window]);
        let write = Request::write(at, bounce).with_flags(request.flags).caused_by(cause);
        self.node.submit(write).finish().await.into_bufs()?.recycle();
        Ok(())
    }

    async fn fill(&self, bounce: &mut Buf, base: u64, at: u64, n: u64, cause: Cause) -> Result<()> {
        let read = Request::read(at, Buf::scratch(n as usize)).caused_by(cause);
        let got: Bufs = self.node.submit(read).finish().await.into_bufs()?;
        got.read_at(0, &mut bounce[(at - base) as usize..(at - base + n) as usize]);
        got.recycle();
        Ok(())
    }

    async fn announce(&self, event: DebugEvent, cause: Cause) {
        if let Some(suspension) = self.node.debug_event(event, cause) {
            suspension.await;
        }
    }
}

impl Bufs {
    /// The only piece, or a copy of all pieces.
    pub fn to_contiguous_or_self(mut self) -> Buf {
        match self.pieces().len() {
            1 => std::mem::replace(&mut self.pieces_mut()[0], Buf::zeroed(0)),
            _ => self.to_contiguous(),
        }
    }
}
