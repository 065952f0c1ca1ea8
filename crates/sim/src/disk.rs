//! The simulated disk: a protocol node on which every request goes submitted, applied, completed, each when the
//! scheduler says so.
//!
//! *Applied* is when reads see it (it is in the host's cache), *completed* is when the submitter hears of it, and
//! *durable* it is when a flush submitted after its completion is applied. What is applied and not durable may or
//! may not survive a power cut, sector by sector; see [`crate::crash`], which replays the history kept here.

mod history;
mod host;
mod medium;
mod node;

use std::sync::Arc;
use std::task::Waker;

use cowbell_block::node::Node;
use cowbell_block::request::{Completion, Flags, Request};
use cowbell_block::{Bufs, DebugEvent, ErrorKind, Result};
use parking_lot::Mutex;

pub use history::{Clock, History, Io, IoKind, IoStep};
pub use host::{Atom, Discards, HostConfig};

use crate::exec::Granularity;
use crate::faults::{Fault, Faults};
use crate::pool::{Content, SECTOR, SharedPool, ZERO};
use crate::rng::{Rng, mix};
use crate::subject::SectorSet;

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
    /// Events announced since the last submission.
    announced: Vec<DebugEvent>,
    events: Vec<u32>,
    /// Sectors written since the last flush.
    dirty: SectorSet,
    read_only: bool,
    /// Mutations that were asked for although the disk is read-only.
    forbidden: u64,
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
            announced: Vec::new(),
            events: vec![0; DebugEvent::ALL.len()],
            dirty: SectorSet::default(),
            read_only: false,
            forbidden: 0,
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

    /// For each event, how many faults struck the first I/O after it.
    pub fn events_struck(&self) -> Vec<u32> {
        self.0.state.lock().faults.events_struck().to_vec()
    }

    /// How many mutations were asked for although the disk is read-only (O9).
    pub fn forbidden(&self) -> u64 {
        self.0.state.lock().forbidden
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

    fn refusal(&mut self, request: &Request, kind: IoKind) -> Option<ErrorKind> {
        let align = u64::from(self.host.alignment.max(1));
        let misaligned = (request.offset | request.len) & (align - 1) != 0;
        match kind {
            IoKind::Flush | IoKind::Read | IoKind::Status => {}
            _ if self.read_only => {
                self.forbidden += 1;
                return Some(ErrorKind::ReadOnly);
            }
            _ => {}
        }
        match kind {
            IoKind::Read | IoKind::Write if misaligned => Some(ErrorKind::InvalidInput),
            IoKind::WriteZeroes if request.flags.contains(Flags::NO_FALLBACK) && self.host.no_fast_zeroes => {
                Some(ErrorKind::Unsupported)
            }
            IoKind::Discard if self.host.discards == Discards::Unsupported => Some(ErrorKind::Unsupported),
            _ => None,
        }
    }
}
