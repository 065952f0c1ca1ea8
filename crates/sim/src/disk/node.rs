//! The simulated disk as a node of the block layer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use cowbell_block::node::{ImageInfo, Limits, Node};
use cowbell_block::request::{BoxFuture, Cause, Completion, Flags, Op, Request};
use cowbell_block::{DebugEvent, ErrorKind, Result};

use super::{Io, IoKind, Pending, SimDisk};
use crate::faults::Member;
use crate::rng::mix;

impl Node for SimDisk {
    fn submit(&self, request: Request) -> Op {
        let Some(kind) = IoKind::of(&request.op) else {
            return Op::failed(request.bufs, ErrorKind::Unsupported);
        };
        let mut state = self.0.state.lock();
        let announced = std::mem::take(&mut state.announced);
        // What the format is about, not what the layer between says of every write.
        let is_general = |event: &DebugEvent| {
            matches!(event, DebugEvent::Pwritev | DebugEvent::PwritevZero | DebugEvent::PwritevDone)
        };
        let tag =
            announced.iter().rev().copied().find(|event| !is_general(event)).unwrap_or(DebugEvent::None);
        if let Some(kind) = state.refusal(&request, kind) {
            return Op::failed(request.bufs, kind);
        }
        // A step of its own, so that what completed before is always strictly earlier.
        self.0.clock.tick();
        let now = self.0.clock.now();
        let growth = request.end().saturating_sub(state.len);
        let growth = if kind == IoKind::Flush { 0 } else { growth };
        let fault = state.faults.strike(kind, &announced, growth);
        let (offset, len) = match kind {
            IoKind::Flush => (0, 0),
            IoKind::Truncate => (request.offset, 0),
            _ => (request.offset, request.len),
        };
        let io = state.history.ios.len() as u32;
        let eof = (state.len, state.history.writes.len() as u32);
        state.history.ios.push(Io {
            file: Member::Image,
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
            eof,
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
        state.announced.push(event);
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
