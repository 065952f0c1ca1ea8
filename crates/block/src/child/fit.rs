//! Fitting a request to the limits of a node: splitting, bounce buffers, read-modify-write, portions.

use std::sync::Arc;

use super::announce;
use crate::buf::{Buf, Bufs};
use crate::error::{ErrorKind, Result};
use crate::event::DebugEvent;
use crate::node::{Limits, Node};
use crate::range_lock::{LockMode, RangeLock};
use crate::request::{Cause, Completion, Flags, Operation, Request};

/// Fits one request to the limits of a node.
pub(super) struct Fit {
    pub(super) node: Arc<dyn Node>,
    pub(super) limits: Limits,
    pub(super) serial: RangeLock,
}

impl Fit {
    pub(super) async fn run(self, mut request: Request) -> Completion {
        match request.op {
            Operation::Read => self.read(request).await,
            Operation::Write => self.write(request).await,
            Operation::WriteZeroes
                if request.flags.contains(Flags::NO_FALLBACK) && self.misses_grain(&request) =>
            {
                Completion::failed(request.bufs, ErrorKind::Unsupported)
            }
            Operation::WriteZeroes => match self.zeroes(&request).await {
                Ok(()) => Completion::done(std::mem::take(&mut request.bufs)),
                Err(e) => Completion::failed(std::mem::take(&mut request.bufs), e),
            },
            Operation::Discard => match self.discard(&request).await {
                Ok(()) => Completion::done(std::mem::take(&mut request.bufs)),
                Err(e) => Completion::failed(std::mem::take(&mut request.bufs), e),
            },
            _ => self.node.submit(request).finish().await,
        }
    }

    fn misses_grain(&self, request: &Request) -> bool {
        let align = u64::from(self.limits.request_alignment.max(1));
        !(request.offset | request.len).is_multiple_of(align)
    }

    /// The aligned middle stays a write of zeroes; what misses the grain becomes data.
    async fn zeroes(&self, request: &Request) -> Result<()> {
        let align = u64::from(self.limits.request_alignment.max(1));
        let start = request.offset.next_multiple_of(align).min(request.end());
        let end = (request.end() & !(align - 1)).max(start);
        for (from, to, aligned) in
            [(request.offset, start, false), (start, end, true), (end, request.end(), false)]
        {
            if from == to {
                continue;
            }
            if aligned {
                let _guard = self.serial.lock(from..to, LockMode::Shared).await;
                if self.misses_grain(request) || self.limits.portions.is_some() {
                    self.announce(DebugEvent::PwritevZero, request.cause).await;
                }
                self.aligned_zeroes(from, to, request).await?;
                continue;
            }
            let part = Request::write(from, Buf::zeroed((to - from) as usize)).caused_by(request.cause);
            self.write(part).await.result?;
        }
        Ok(())
    }

    /// In the portions that the node asks for; where it has no answer to one, zeroes are written as data.
    async fn aligned_zeroes(&self, from: u64, to: u64, request: &Request) -> Result<()> {
        let part =
            |at, len| Request::write_zeroes(at, len).with_flags(request.flags).caused_by(request.cause);
        let Some(portions) = self.limits.portions else {
            return self.node.submit(part(from, to - from)).finish().await.result.map(drop);
        };
        let mut at = from;
        while at < to {
            let mut len = portion(at, to, portions.zeroes_grain, portions.zeroes_max);
            if !at.is_multiple_of(portions.zeroes_grain.max(1)) {
                len = len.min(self.step());
            }
            match self.node.submit(part(at, len)).finish().await.result {
                Err(e)
                    if e.kind() == ErrorKind::Unsupported && !request.flags.contains(Flags::NO_FALLBACK) =>
                {
                    len = len.min(self.step());
                    let flags = request.flags & Flags::FUA;
                    let data = Request::write(at, Buf::zeroed(len as usize)).with_flags(flags);
                    self.node.submit(data.caused_by(request.cause)).finish().await.into_bufs()?.recycle();
                }
                result => drop(result?),
            }
            at += len;
        }
        Ok(())
    }

    /// In the portions that the node asks for; parts that it cannot discard stay as they are.
    async fn discard(&self, request: &Request) -> Result<()> {
        let _guard = self.serial.lock(request.offset..request.end(), LockMode::Shared).await;
        let Some(portions) = self.limits.portions else {
            let whole = Request::discard(request.offset, request.len).with_flags(request.flags);
            return self.node.submit(whole.caused_by(request.cause)).finish().await.result.map(drop);
        };
        let mut at = request.offset;
        while at < request.end() {
            let len = portion(at, request.end(), portions.discard_grain, portions.discard_max);
            let part = Request::discard(at, len).with_flags(request.flags).caused_by(request.cause);
            match self.node.submit(part).finish().await.result {
                Err(e) if e.kind() != ErrorKind::Unsupported => return Err(e),
                _ => {}
            }
            at += len;
        }
        Ok(())
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
        if from == request.offset {
            self.announce(DebugEvent::Pwritev, cause).await;
        }
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
        announce(&*self.node, event, cause).await;
    }
}

/// Length of the next portion of `at..to`: up to the first multiple of `grain`, then whole multiples, then the rest.
fn portion(at: u64, to: u64, grain: u64, max: u64) -> u64 {
    let (left, grain) = (to - at, grain.max(1));
    let (head, tail) = (at % grain, to % grain);
    let len = match head {
        0 if tail != 0 && left > grain => left - tail,
        0 => left,
        head => left.min(grain - head),
    };
    match max {
        0 => len,
        max => len.min((max / grain * grain).max(grain)),
    }
}
