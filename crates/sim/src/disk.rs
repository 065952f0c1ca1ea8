//! The simulated disk: a protocol node on which every request goes submitted, applied, completed, each when the
//! scheduler says so.
//!
//! *Applied* is when reads see it (it is in the host's cache), *completed* is when the submitter hears of it, and
//! *durable* it is when a flush submitted after its completion is applied. What is applied and not durable may or
//! may not survive a power cut, sector by sector; see [`crate::crash`], which replays the history kept here.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use cowbell_block::node::{ImageInfo, Limits, Node};
use cowbell_block::request::{
    BoxFuture, Cause, Completion, Extent, ExtentFlags, Flags, Mapping, Op, Operation, Request,
};
use cowbell_block::{Bufs, DebugEvent, ErrorKind, Result};
use parking_lot::Mutex;

use crate::exec::Granularity;
use crate::faults::{Fault, FaultKind, Faults};
use crate::pool::{Content, SECTOR, SharedPool, ZERO};
use crate::rng::{Rng, mix};

/// The steps of a world. Shared by its disks; only the executor moves it.
#[derive(Clone, Default)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    /// The number of the current step.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// The next step begins.
    pub fn tick(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// What the scheduler may do to an I/O, by its number in the disk's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoStep {
    /// Let it take effect.
    Apply(u32),
    /// Report it.
    Complete(u32),
    /// Both at once.
    Finish(u32),
}

impl IoStep {
    /// The I/O's number.
    pub fn io(self) -> u32 {
        match self {
            Self::Apply(io) | Self::Complete(io) | Self::Finish(io) => io,
        }
    }
}

/// What an I/O does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names of the operations")]
pub enum IoKind {
    Read,
    Write,
    WriteZeroes,
    Discard,
    Flush,
    Status,
    Truncate,
}

impl IoKind {
    /// The name in logs and scenario files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::WriteZeroes => "zero",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Status => "status",
            Self::Truncate => "truncate",
        }
    }

    fn of(op: &Operation) -> Option<Self> {
        Some(match op {
            Operation::Read => Self::Read,
            Operation::Write => Self::Write,
            Operation::WriteZeroes => Self::WriteZeroes,
            Operation::Discard => Self::Discard,
            Operation::Flush => Self::Flush,
            Operation::Status => Self::Status,
            Operation::Truncate(_) => Self::Truncate,
            _ => return None,
        })
    }
}

/// One I/O in the history of a disk.
#[derive(Clone, Debug)]
pub struct Io {
    /// What it does.
    pub kind: IoKind,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// Durable at completion.
    pub fua: bool,
    /// The event announced just before it.
    pub tag: DebugEvent,
    /// The guest request responsible for it.
    pub cause: u64,
    /// Step of its submission.
    pub submitted: u64,
    /// Step at which it took effect.
    pub applied: Option<u64>,
    /// Step at which the submitter heard of it.
    pub completed: Option<u64>,
    /// The fault that strikes it.
    pub fault: Option<FaultKind>,
    /// The sectors it changed: a range of [`History::writes`].
    pub writes: (u32, u32),
    /// The file's length after it, if it changed it.
    pub new_len: Option<u64>,
}

impl Io {
    /// Whether it changes what is stored.
    pub fn is_mutation(&self) -> bool {
        matches!(self.kind, IoKind::Write | IoKind::WriteZeroes | IoKind::Discard | IoKind::Truncate)
    }
}

/// Everything that happened to a disk since its content was last set.
#[derive(Clone, Default)]
pub struct History {
    /// Content at the beginning, all durable.
    pub base: Vec<Content>,
    /// Length at the beginning.
    pub base_len: u64,
    /// The I/Os in order of submission.
    pub ios: Vec<Io>,
    /// Sector writes in order of application: sector and content.
    pub writes: Vec<(u32, Content)>,
}

/// How the simulated host behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Grain of requests in bytes, 1 or a power of two.
    pub alignment: u32,
    /// One in so many requests is answered at once instead of being made to wait; 0 for none.
    pub done_one_in: u64,
    /// A discard leaves the old data in place.
    pub discard_keeps_data: bool,
    /// A discard fails as unsupported.
    pub no_discard: bool,
    /// A write of zeroes without fallback fails as unsupported.
    pub no_fast_zeroes: bool,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            alignment: 1,
            done_one_in: 0,
            discard_keeps_data: false,
            no_discard: false,
            no_fast_zeroes: false,
        }
    }
}

/// A simulated disk. Cloning gives another handle on the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Shared>);

struct Shared {
    name: &'static str,
    clock: Clock,
    pool: SharedPool,
    state: Mutex<State>,
}

struct State {
    host: HostConfig,
    rng: Rng,
    faults: Faults,
    cached: Vec<Content>,
    len: u64,
    history: History,
    pending: Vec<Pending>,
    tag: DebugEvent,
    events: Vec<u32>,
    read_only: bool,
    hash: u64,
}

struct Pending {
    io: u32,
    bufs: Bufs,
    result: Option<Result<Completion>>,
    applied: bool,
    completed: bool,
    waker: Option<Waker>,
    abandoned: bool,
}

impl SimDisk {
    /// A disk with this content; `len` is in bytes.
    pub fn new(
        name: &'static str,
        pool: &SharedPool,
        clock: &Clock,
        content: &[Content],
        len: u64,
        host: HostConfig,
        rng: Rng,
    ) -> Self {
        let mut base = content.to_vec();
        base.resize(len.div_ceil(SECTOR as u64) as usize, ZERO);
        let state = State {
            host,
            rng,
            faults: Faults::default(),
            cached: base.clone(),
            len,
            history: History { base, base_len: len, ..History::default() },
            pending: Vec::new(),
            tag: DebugEvent::None,
            events: vec![0; DebugEvent::ALL.len()],
            read_only: false,
            hash: 0,
        };
        let shared = Shared { name, clock: clock.clone(), pool: pool.clone(), state: Mutex::new(state) };
        Self(Arc::new(shared))
    }

    /// Refuses mutations, as a file opened for reading does.
    pub fn set_read_only(&self) {
        self.0.state.lock().read_only = true;
    }

    /// Arms faults; counting starts now.
    pub fn set_faults(&self, rules: Vec<Fault>) {
        self.0.state.lock().faults = Faults::new(rules);
    }

    /// Removes all faults. What a failed flush dropped stays dropped.
    pub fn heal(&self) {
        self.0.state.lock().faults.disarm();
    }

    /// How often each fault struck, all together.
    pub fn faults_struck(&self) -> u64 {
        self.0.state.lock().faults.struck()
    }

    /// The world's clock.
    pub fn clock(&self) -> Clock {
        self.0.clock.clone()
    }

    /// The disk as a node.
    pub fn node(&self) -> Arc<dyn Node> {
        Arc::new(self.clone())
    }

    /// Looks at the history.
    pub fn with_history<T>(&self, look: impl FnOnce(&History) -> T) -> T {
        look(&self.0.state.lock().history)
    }

    /// Takes the history away, at the end of the world.
    pub fn end_history(&self) -> History {
        std::mem::take(&mut self.0.state.lock().history)
    }

    /// The content as reads see it, and its length in bytes.
    pub fn content(&self) -> (Vec<Content>, u64) {
        let state = self.0.state.lock();
        (state.cached.clone(), state.len)
    }

    /// The content of one sector as reads see it.
    pub fn content_at(&self, sector: u64) -> Content {
        self.0.state.lock().cached.get(sector as usize).copied().unwrap_or(ZERO)
    }

    /// A hash over every step so far: equal for equal runs (O10).
    pub fn trace_hash(&self) -> u64 {
        self.0.state.lock().hash
    }

    /// How often each event was announced, in the standard order.
    pub fn event_counts(&self) -> Vec<u32> {
        self.0.state.lock().events.clone()
    }

    /// I/Os in flight.
    pub fn in_flight(&self) -> usize {
        self.0.state.lock().pending.len()
    }

    /// Appends the steps that may be taken now, oldest I/O first.
    pub fn enabled(&self, granularity: Granularity, out: &mut Vec<IoStep>) {
        let state = self.0.state.lock();
        for pending in state.pending.iter().filter(|p| !p.completed) {
            match granularity {
                Granularity::Full if pending.applied => out.push(IoStep::Complete(pending.io)),
                Granularity::Full => out.push(IoStep::Apply(pending.io)),
                Granularity::IoPoints => {
                    out.push(IoStep::Finish(pending.io));
                    if !pending.applied && state.has_conflict(pending.io) {
                        out.push(IoStep::Apply(pending.io));
                    }
                }
            }
        }
    }

    /// Takes one step.
    pub fn step(&self, step: IoStep) {
        let now = self.0.clock.now();
        let waker = {
            let mut state = self.0.state.lock();
            let at =
                state.pending.iter().position(|p| p.io == step.io()).expect("only enabled steps are taken");
            if !matches!(step, IoStep::Complete(_)) && !state.pending[at].applied {
                self.apply(&mut state, at, now);
            }
            if matches!(step, IoStep::Apply(_)) {
                return;
            }
            state.complete(at, now)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn apply(&self, state: &mut State, at: usize, now: u64) {
        let io = state.pending[at].io as usize;
        let mut bufs = std::mem::take(&mut state.pending[at].bufs);
        let first_write = state.history.writes.len() as u32;
        let outcome = self.effect(state, io, &mut bufs);
        let entry = &mut state.history.ios[io];
        entry.applied = Some(now);
        entry.writes = (first_write, state.history.writes.len() as u32);
        let mut hash = mix(state.hash ^ mix(1 << 40 | io as u64));
        hash = mix(hash ^ entry.offset) ^ mix(entry.len << 8 | entry.kind as u64);
        let pool = self.0.pool.lock();
        for (sector, content) in &state.history.writes[first_write as usize..] {
            hash = mix(hash ^ pool.hash(*content) ^ u64::from(*sector));
        }
        state.hash = hash;
        let pending = &mut state.pending[at];
        pending.applied = true;
        pending.result = Some(match outcome {
            Ok(None) => Ok(Completion::done(bufs)),
            Ok(Some(extent)) => Ok(Completion::extent(extent)),
            Err(error) => {
                pending.bufs = bufs;
                Err(error)
            }
        });
    }

    /// Does what an I/O does to the cached content.
    fn effect(&self, state: &mut State, io: usize, bufs: &mut Bufs) -> Result<Option<Extent>> {
        let Io { kind, offset, len, fault, .. } = state.history.ios[io];
        let mut len = len;
        match fault {
            None => {}
            Some(FaultKind::Short) if len > SECTOR as u64 => {
                // The first half happens, then the host gives up.
                len = (len / 2).next_multiple_of(SECTOR as u64).min(len);
            }
            Some(kind) => return Err(kind.error()),
        }
        match kind {
            IoKind::Read => self.read(state, offset, len, bufs)?,
            IoKind::Write => self.store(state, io, offset, len, Some(bufs)),
            IoKind::WriteZeroes => self.store(state, io, offset, len, None),
            IoKind::Discard if state.host.discard_keeps_data => {}
            IoKind::Discard => {
                let end = offset.saturating_add(len).min(state.len);
                self.store(state, io, offset.min(end), end - offset.min(end), None);
            }
            IoKind::Flush => {}
            IoKind::Status => return Ok(Some(self.status(state, offset, len))),
            IoKind::Truncate => state.truncate(io, offset, &self.0.pool),
        }
        match fault {
            Some(kind) => Err(kind.error()),
            None => Ok(None),
        }
    }

    fn read(&self, state: &State, offset: u64, len: u64, bufs: &mut Bufs) -> Result<()> {
        let pool = self.0.pool.lock();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let within = (at % SECTOR as u64) as usize;
            let n = (SECTOR - within).min((end - at) as usize);
            let sector = (at / SECTOR as u64) as usize;
            let content = state.cached.get(sector).copied().unwrap_or(ZERO);
            bufs.write_at((at - offset) as usize, &pool.bytes(content)[within..within + n]);
            at += n as u64;
        }
        Ok(())
    }

    /// Stores buffers, or zeroes.
    fn store(&self, state: &mut State, io: usize, offset: u64, len: u64, bufs: Option<&Bufs>) {
        let mut pool = self.0.pool.lock();
        let (mut at, end) = (offset, offset + len);
        if end > state.len && len > 0 {
            state.len = end;
            state.history.ios[io].new_len = Some(end);
            state.cached.resize(end.div_ceil(SECTOR as u64) as usize, ZERO);
        }
        while at < end {
            let within = (at % SECTOR as u64) as usize;
            let n = (SECTOR - within).min((end - at) as usize);
            let sector = (at / SECTOR as u64) as usize;
            let content = match bufs {
                None if n == SECTOR => ZERO,
                _ => {
                    let mut bytes = if n == SECTOR { [0; SECTOR] } else { *pool.bytes(state.cached[sector]) };
                    match bufs {
                        Some(bufs) => bufs.read_at((at - offset) as usize, &mut bytes[within..within + n]),
                        None => bytes[within..within + n].fill(0),
                    }
                    pool.intern(&bytes)
                }
            };
            state.cached[sector] = content;
            state.history.writes.push((sector as u32, content));
            at += n as u64;
        }
    }

    fn status(&self, state: &State, offset: u64, len: u64) -> Extent {
        let end = offset.saturating_add(len).min(state.len);
        if offset >= end {
            return Extent { len: 0, flags: ExtentFlags::EOF | ExtentFlags::ZERO, map: None };
        }
        let kind = |at: u64| state.cached.get((at / SECTOR as u64) as usize).copied().unwrap_or(ZERO) == ZERO;
        let zero = kind(offset);
        let mut to = offset;
        while to < end && kind(to) == zero {
            to = (to / SECTOR as u64 + 1) * SECTOR as u64;
        }
        let to = to.min(end);
        let mut flags = if zero { ExtentFlags::ZERO } else { ExtentFlags::DATA } | ExtentFlags::ALLOCATED;
        flags.set(ExtentFlags::EOF, to == state.len);
        let map = Some(Mapping { node: self.node(), offset });
        Extent { len: to - offset, flags, map }
    }
}

impl State {
    /// Whether an unfinished I/O overlaps this one and one of the two mutates.
    fn has_conflict(&self, io: u32) -> bool {
        let this = &self.history.ios[io as usize];
        self.pending.iter().filter(|p| p.io != io && !p.completed).any(|p| {
            let other = &self.history.ios[p.io as usize];
            let overlap = this.offset < other.offset + other.len && other.offset < this.offset + this.len;
            let whole = |io: &Io| matches!(io.kind, IoKind::Truncate);
            (overlap || whole(this) || whole(other)) && (this.is_mutation() || other.is_mutation())
        })
    }

    fn complete(&mut self, at: usize, now: u64) -> Option<Waker> {
        let io = self.pending[at].io;
        self.history.ios[io as usize].completed = Some(now);
        self.hash = mix(self.hash ^ mix(2 << 40 | u64::from(io)));
        self.pending[at].completed = true;
        if self.pending[at].abandoned {
            self.pending.remove(at);
            return None;
        }
        self.pending[at].waker.take()
    }

    fn truncate(&mut self, io: usize, len: u64, pool: &SharedPool) {
        let sectors = len.div_ceil(SECTOR as u64) as usize;
        for sector in sectors..self.cached.len() {
            self.history.writes.push((sector as u32, ZERO));
        }
        self.cached.resize(sectors, ZERO);
        let tail = (len % SECTOR as u64) as usize;
        if len < self.len && tail != 0 {
            let mut pool = pool.lock();
            let mut bytes = *pool.bytes(self.cached[sectors - 1]);
            bytes[tail..].fill(0);
            let content = pool.intern(&bytes);
            self.cached[sectors - 1] = content;
            self.history.writes.push((sectors as u32 - 1, content));
        }
        self.len = len;
        self.history.ios[io].new_len = Some(len);
    }

    fn refusal(&self, request: &Request, kind: IoKind) -> Option<ErrorKind> {
        let align = u64::from(self.host.alignment.max(1));
        let misaligned = (request.offset | request.len) & (align - 1) != 0;
        match kind {
            IoKind::Flush | IoKind::Read | IoKind::Status => {}
            _ if self.read_only => return Some(ErrorKind::ReadOnly),
            _ => {}
        }
        match kind {
            IoKind::Read | IoKind::Write if misaligned => Some(ErrorKind::InvalidInput),
            IoKind::WriteZeroes if request.flags.contains(Flags::NO_FALLBACK) && self.host.no_fast_zeroes => {
                Some(ErrorKind::Unsupported)
            }
            IoKind::Discard if self.host.no_discard => Some(ErrorKind::Unsupported),
            _ => None,
        }
    }
}

impl Node for SimDisk {
    fn submit(&self, request: Request) -> Op {
        let Some(kind) = IoKind::of(&request.op) else {
            return Op::failed(request.bufs, ErrorKind::Unsupported);
        };
        let mut state = self.0.state.lock();
        let tag = std::mem::replace(&mut state.tag, DebugEvent::None);
        if let Some(kind) = state.refusal(&request, kind) {
            return Op::failed(request.bufs, kind);
        }
        // A step of its own, so that what completed before is always strictly earlier.
        self.0.clock.tick();
        let now = self.0.clock.now();
        let growth = request.end().saturating_sub(state.len);
        let fault = state.faults.strike(kind, tag, if kind == IoKind::Flush { 0 } else { growth });
        let (offset, len) = match kind {
            IoKind::Flush => (0, 0),
            IoKind::Truncate => (request.offset, 0),
            _ => (request.offset, request.len),
        };
        let io = state.history.ios.len() as u32;
        state.history.ios.push(Io {
            kind,
            offset,
            len,
            fua: request.flags.contains(Flags::FUA),
            tag,
            cause: request.cause.request,
            submitted: now,
            applied: None,
            completed: None,
            fault,
            writes: (0, 0),
            new_len: None,
        });
        state.hash = mix(state.hash ^ mix(offset ^ mix(len ^ (kind as u64) << 32 ^ (tag as u64) << 48)));
        let at = state.pending.len();
        state.pending.push(Pending {
            io,
            bufs: request.bufs,
            result: None,
            applied: false,
            completed: false,
            waker: None,
            abandoned: false,
        });
        if state.host.done_one_in != 0 {
            let one_in = state.host.done_one_in;
            if state.rng.one_in(one_in) {
                self.0.clock.tick();
                self.apply(&mut state, at, now + 1);
                self.0.clock.tick();
                state.complete(at, now + 2);
                return Op::Done(take_result(state.pending.remove(at)));
            }
        }
        Op::Wait(Box::pin(Waiting { disk: Some(self.clone()), io }))
    }

    fn driver(&self) -> &'static str {
        "sim"
    }

    fn len(&self) -> u64 {
        self.0.state.lock().len
    }

    fn limits(&self) -> Limits {
        Limits { request_alignment: self.0.state.lock().host.alignment.max(1), ..Limits::default() }
    }

    fn is_read_only(&self) -> bool {
        self.0.state.lock().read_only
    }

    fn starts_as_zero(&self) -> bool {
        true
    }

    fn filename(&self) -> String {
        self.0.name.to_owned()
    }

    fn debug_event(&self, event: DebugEvent, _: Cause) -> Option<cowbell_block::event::Suspension> {
        let mut state = self.0.state.lock();
        state.tag = event;
        state.events[event as usize] += 1;
        None
    }

    fn listens(&self) -> bool {
        true
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let virtual_size = self.len();
        Box::pin(std::future::ready(Ok(ImageInfo { format: "sim", virtual_size, ..ImageInfo::default() })))
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

fn take_result(pending: Pending) -> Completion {
    match pending.result.expect("a completed I/O has a result") {
        Ok(completion) => completion,
        Err(error) => Completion::failed(pending.bufs, error),
    }
}

/// Waits for one I/O. Dropping it stops the waiting, not the I/O.
struct Waiting {
    disk: Option<SimDisk>,
    io: u32,
}

impl Future for Waiting {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completion> {
        let io = self.io;
        let disk = self.disk.as_ref().expect("not polled after its end");
        let mut state = disk.0.state.lock();
        let at = state.pending.iter().position(|p| p.io == io).expect("an awaited I/O is kept");
        if !state.pending[at].completed {
            state.pending[at].waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let pending = state.pending.remove(at);
        drop(state);
        self.disk = None;
        Poll::Ready(take_result(pending))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(disk) = &self.disk else { return };
        let mut state = disk.0.state.lock();
        let Some(at) = state.pending.iter().position(|p| p.io == self.io) else { return };
        if state.pending[at].completed {
            state.pending.remove(at);
        } else {
            state.pending[at].abandoned = true;
        }
    }
}
