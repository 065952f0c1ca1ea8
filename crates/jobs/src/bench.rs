//! Many requests of one kind, a number of them in flight, for somebody with a clock.

use cowbell_block::{Buf, Bufs, Completion, Op, Request, Result};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Reads.
    Read,
    /// Writes of bytes of this value.
    Write {
        /// The byte.
        pattern: u8,
    },
}

/// Whether a flush waits until nothing is in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// It waits, and so do the requests after it.
    Yes,
    /// It is sent beside them.
    No,
}

/// Flushes among the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flushes {
    /// After how many requests, at least 1.
    pub every: u64,
    /// What they wait for.
    pub drain: Drain,
}

/// The requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Reads or writes.
    pub direction: Direction,
    /// How many, in all.
    pub count: u64,
    /// How many in flight, at least 1.
    pub depth: u64,
    /// Where the first one begins, in bytes.
    pub offset: u64,
    /// Bytes of each.
    pub len: u64,
    /// Bytes from the beginning of one to that of the next; at the image's end it goes on from the beginning.
    pub step: u64,
    /// Flushes, if there are any.
    pub flushes: Option<Flushes>,
}

/// Sends the requests of `plan` through `submit`, for an image of `image_len` bytes.
///
/// # Errors
/// The first request that fails. Others may be in flight then; dropping their futures stops the waiting only.
pub async fn bench(submit: impl Fn(Request) -> Op, image_len: u64, plan: &Plan) -> Result<()> {
    let mut bench = Bench { submit, plan, offset: plan.offset, spare: Vec::new() };
    let mut waiting = FuturesUnordered::new();
    let mut left = plan.count;
    while left > 0 {
        while waiting.len() as u64 >= plan.depth {
            let done = waiting.next().await.expect("something is in flight");
            bench.take_back(done)?;
        }
        match bench.next(image_len) {
            Op::Done(done) => bench.take_back(done)?,
            Op::Wait(future) => waiting.push(future),
        }
        left -= 1;
        let Some(flushes) = plan.flushes.filter(|flushes| left.is_multiple_of(flushes.every)) else {
            continue;
        };
        if flushes.drain == Drain::Yes {
            while let Some(done) = waiting.next().await {
                bench.take_back(done)?;
            }
        }
        match (bench.submit)(Request::flush()) {
            Op::Done(done) => done.result.map(drop)?,
            Op::Wait(flush) if flushes.drain == Drain::Yes => flush.await.result.map(drop)?,
            Op::Wait(flush) => waiting.push(flush),
        }
    }
    while let Some(done) = waiting.next().await {
        bench.take_back(done)?;
    }
    Ok(())
}

struct Bench<'a, F> {
    submit: F,
    plan: &'a Plan,
    offset: u64,
    /// Memory of requests that have ended.
    spare: Vec<Bufs>,
}

impl<F: Fn(Request) -> Op> Bench<'_, F> {
    fn next(&mut self, image_len: u64) -> Op {
        let bufs = self.spare.pop().unwrap_or_else(|| self.memory());
        let offset = self.offset;
        self.offset = offset.saturating_add(self.plan.step).checked_rem(image_len).unwrap_or(0);
        (self.submit)(match self.plan.direction {
            Direction::Read => Request::read(offset, bufs),
            Direction::Write { .. } => Request::write(offset, bufs),
        })
    }

    fn memory(&self) -> Bufs {
        let mut buf = Buf::zeroed(self.plan.len as usize);
        if let Direction::Write { pattern } = self.plan.direction {
            buf.fill(pattern);
        }
        buf.into()
    }

    fn take_back(&mut self, done: Completion) -> Result<()> {
        done.result?;
        // A flush brings none.
        if done.bufs.len() as u64 == self.plan.len {
            self.spare.push(done.bufs);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use cowbell_block::Operation;

    use super::*;

    /// What was submitted: `r`, `w` or `f` with the offset. Each waits for a turn.
    fn log(plan: Plan, image_len: u64) -> Vec<String> {
        let log = RefCell::new(Vec::new());
        let submit = |request: Request| {
            log.borrow_mut().push(match request.op {
                Operation::Flush => "f".to_owned(),
                Operation::Write => format!("w{}", request.offset),
                _ => format!("r{}", request.offset),
            });
            let mut waited = false;
            Op::wait(async move {
                std::future::poll_fn(|cx| match std::mem::replace(&mut waited, true) {
                    true => Poll::Ready(()),
                    false => {
                        cx.waker().wake_by_ref();
                        Poll::Pending
                    }
                })
                .await;
                Completion::done(request.bufs)
            })
        };
        {
            let mut future = pin!(bench(submit, image_len, &plan));
            let mut cx = Context::from_waker(Waker::noop());
            while future.as_mut().poll(&mut cx).is_pending() {}
        }
        log.into_inner()
    }

    const PLAN: Plan = Plan {
        direction: Direction::Write { pattern: 7 },
        count: 5,
        depth: 2,
        offset: 512,
        len: 256,
        step: 512,
        flushes: None,
    };

    #[test]
    fn requests_go_round_the_image() {
        assert_eq!(log(PLAN, 2048), ["w512", "w1024", "w1536", "w0", "w512"]);
        let read = Plan { direction: Direction::Read, step: 4096, ..PLAN };
        assert_eq!(log(read, 1000), ["r512", "r608", "r704", "r800", "r896"]);
    }

    #[test]
    fn flushes_come_in_between() {
        let flushes = |drain| Plan { flushes: Some(Flushes { every: 2, drain }), ..PLAN };
        let expect = ["w512", "f", "w1024", "w1536", "f", "w0", "w512", "f"];
        assert_eq!(log(flushes(Drain::Yes), 2048), expect);
        assert_eq!(log(flushes(Drain::No), 2048), expect);
    }
}
