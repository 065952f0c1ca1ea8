//! A disk of the machine, over a root of the block graph.
//!
//! A request starts when it is submitted, unless it overlaps one that is not finished and either of them changes
//! something: then it starts after it. So overlapping requests take effect in the order the guest submitted them,
//! which is what makes the contents a function of the guest alone; all others run side by side. Whatever a host does
//! with a discard, the guest must not see it: a discard either does nothing or makes zeroes.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use cowbell_block::Root;
use cowbell_block::buf::Buf;
use cowbell_block::request::{BoxFuture, Cause, Completion, Flags, Op, Request};
use cowbell_machine::port::{Disk, DiskOp, DiskReply, DiskRequest};
use parking_lot::Mutex;

/// What becomes of a guest's discards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discards {
    /// They do nothing.
    #[default]
    Ignore,
    /// The range reads as zeroes from then on, and its storage is released where that can be done.
    Unmap,
}

/// An image in use as a disk.
#[derive(Clone)]
pub struct Drive {
    /// Where its requests go in.
    pub root: Root,
    /// How messages name it.
    pub name: String,
    /// Each write is durable before it completes.
    pub write_through: bool,
    /// Discards.
    pub discards: Discards,
}

/// Told about requests that the host failed: the guest sees an I/O error, the user the reason.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// The disk: the machine has one handle to it, and whoever drives the machine another.
#[derive(Clone)]
pub struct BlockDisk {
    drive: Drive,
    state: Arc<Mutex<State>>,
    notice: Notice,
}

#[derive(Default)]
struct State {
    /// Not started yet, in the order of submission.
    waiting: VecDeque<(u64, DiskRequest)>,
    running: Vec<Running>,
    replies: BTreeMap<u64, DiskReply>,
    failures: u64,
}

/// Failed requests of a disk that are told one by one.
const TOLD_MAX: u64 = 20;

struct Running {
    token: u64,
    what: What,
    future: BoxFuture<Completion>,
}

/// What must be known of a request while it runs.
struct What {
    op: DiskOp,
    start: u64,
    end: u64,
}

impl What {
    fn of(request: &DiskRequest) -> What {
        let start = request.offset;
        What { op: request.op, start, end: start.saturating_add(request.len) }
    }

    fn must_not_pass(&self, earlier: &What) -> bool {
        let overlap = self.start < earlier.end && earlier.start < self.end;
        overlap && !(self.op == DiskOp::Read && earlier.op == DiskOp::Read)
    }
}

impl BlockDisk {
    /// A disk over `drive`.
    pub fn new(drive: Drive, notice: Notice) -> BlockDisk {
        BlockDisk { drive, state: Arc::default(), notice }
    }

    /// Requests that are not finished.
    pub fn in_flight(&self) -> usize {
        let state = self.state.lock();
        state.waiting.len() + state.running.len()
    }

    /// Resolves when no request is in flight.
    pub async fn quiet(&self) {
        poll_fn(|cx| {
            while self.poll_running(cx) {}
            if self.in_flight() == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Polls what runs; whether anything finished. What was started meanwhile is to be polled again.
    pub(crate) fn poll_running(&self, cx: &mut Context<'_>) -> bool {
        let mut state = self.state.lock();
        let mut finished = false;
        let mut index = 0;
        while let Some(running) = state.running.get_mut(index) {
            match running.future.as_mut().poll(cx) {
                Poll::Pending => index += 1,
                Poll::Ready(completion) => {
                    let Running { token, what, .. } = state.running.swap_remove(index);
                    self.finish(&mut state, token, &what, completion);
                    finished = true;
                }
            }
        }
        if finished {
            self.start_waiting(&mut state);
        }
        finished
    }

    /// Starts what had to wait and need not any more, in order. What does not finish at once is polled by the next
    /// [`Self::poll_running`].
    fn start_waiting(&self, state: &mut State) {
        let mut still = VecDeque::new();
        while let Some((token, request)) = state.waiting.pop_front() {
            let what = What::of(&request);
            let held = |earlier: &What| what.must_not_pass(earlier);
            let behind_running = state.running.iter().any(|running| held(&running.what));
            if behind_running || still.iter().any(|(_, earlier)| held(&What::of(earlier))) {
                still.push_back((token, request));
            } else {
                self.start(state, token, request);
            }
        }
        state.waiting = still;
    }

    fn start(&self, state: &mut State, token: u64, request: DiskRequest) {
        let what = What::of(&request);
        let op = match self.translate(request) {
            Some(request) => self.drive.root.submit(request),
            None => Op::done(cowbell_block::buf::Bufs::none()),
        };
        match op {
            Op::Done(completion) => self.finish(state, token, &what, completion),
            // The first poll sets it going; nobody waits for it yet.
            Op::Wait(mut future) => match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(completion) => self.finish(state, token, &what, completion),
                Poll::Pending => state.running.push(Running { token, what, future }),
            },
        }
    }

    /// The block layer's request; `None` when there is nothing to do.
    fn translate(&self, request: DiskRequest) -> Option<Request> {
        let DiskRequest { op, offset, len, data, origin } = request;
        let translated = match op {
            DiskOp::Read => Request::read(offset, Buf::scratch(len as usize)),
            DiskOp::Write => Request::write(offset, Buf::copy_of(&data)),
            DiskOp::Flush => Request::flush(),
            DiskOp::Discard if self.drive.discards == Discards::Ignore => return None,
            DiskOp::Discard => Request::write_zeroes(offset, len).with_flags(Flags::MAY_UNMAP),
            DiskOp::WriteZeroes if self.drive.discards == Discards::Unmap => {
                Request::write_zeroes(offset, len).with_flags(Flags::MAY_UNMAP)
            }
            DiskOp::WriteZeroes => Request::write_zeroes(offset, len),
        };
        let translated = translated.caused_by(Cause { request: 0, origin });
        let durable = self.drive.write_through && translated.op.is_mutation();
        Some(if durable { translated.with_flags(Flags::FUA) } else { translated })
    }

    fn finish(&self, state: &mut State, token: u64, what: &What, completion: Completion) {
        let ok = match completion.result {
            Ok(_) => true,
            Err(error) => {
                state.failures += 1;
                self.tell(state.failures, what, &error);
                false
            }
        };
        let mut data = Vec::new();
        if what.op == DiskOp::Read && ok {
            data.resize(completion.bufs.len(), 0);
            completion.bufs.read_at(0, &mut data);
        }
        completion.bufs.recycle();
        state.replies.insert(token, DiskReply { data, ok });
    }
}

impl BlockDisk {
    /// The guest sees an I/O error; the user is told which it was, as long as that can be read.
    fn tell(&self, failures: u64, what: &What, error: &cowbell_block::Error) {
        let Drive { name, .. } = &self.drive;
        let (op, start, len) = (op_name(what.op), what.start, what.end - what.start);
        if failures <= TOLD_MAX {
            (self.notice)(&format!("{name}: {op} of {len} bytes at offset {start}: {error}"));
        }
        if failures == TOLD_MAX {
            (self.notice)(&format!("{name}: further failures are not shown"));
        }
    }
}

const fn op_name(op: DiskOp) -> &'static str {
    match op {
        DiskOp::Read => "read",
        DiskOp::Write => "write",
        DiskOp::Flush => "flush",
        DiskOp::Discard => "discard",
        DiskOp::WriteZeroes => "write of zeroes",
    }
}

impl Disk for BlockDisk {
    fn len(&self) -> u64 {
        self.drive.root.node().len()
    }

    fn read_only(&self) -> bool {
        self.drive.root.node().is_read_only()
    }

    fn submit(&mut self, token: u64, request: DiskRequest) {
        let mut state = self.state.lock();
        state.waiting.push_back((token, request));
        self.start_waiting(&mut state);
    }

    fn poll(&mut self, token: u64) -> Option<DiskReply> {
        self.state.lock().replies.remove(&token)
    }
}
