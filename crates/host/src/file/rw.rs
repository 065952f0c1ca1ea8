//! Reading and writing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowbell_block::{Bufs, Completion, Flags, Op, Request};
use rustix::io::{Errno, ReadWriteFlags};

use crate::error::os;
use crate::file::Shared;
use crate::lane::{self, Call, Durability, Finished, Job};

/// How far a transfer got without waiting.
enum Progress {
    /// To its end.
    Whole,
    /// So many bytes; the rest would wait.
    Waits(usize),
    Failed(Errno),
}

/// Starts a read; completes at once when the page cache has everything.
pub(crate) fn read(shared: &Arc<Shared>, mut request: Request) -> Op {
    if request.len == 0 {
        return Op::done(request.bufs);
    }
    let mut done = 0;
    if !shared.never_inline() {
        match read_now(shared, &mut request.bufs, request.len as usize, request.offset) {
            Progress::Whole => return Op::done(request.bufs),
            Progress::Waits(n) => done = n,
            Progress::Failed(errno) => return Op::failed(request.bufs, os(errno)),
        }
    }
    let transfer = Transfer::new(shared, request, Call::Read, done);
    Op::wait(transfer.read())
}

fn read_now(shared: &Shared, bufs: &mut Bufs, len: usize, offset: u64) -> Progress {
    let mode = &shared.inline_read;
    let flags = match (mode.in_memory, mode.refused.load(Ordering::Relaxed)) {
        (true, _) => ReadWriteFlags::empty(),
        (false, false) => ReadWriteFlags::NOWAIT,
        (false, true) => return Progress::Waits(0),
    };
    let mut done = 0;
    while done < len {
        match lane::read_some(&shared.handle, bufs, done, offset + done as u64, flags) {
            // The end of the file; what is missing reads as zeroes.
            Ok(0) => {
                bufs.fill(done, len - done, 0);
                return Progress::Whole;
            }
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Progress::Waits(done),
            Err(Errno::OPNOTSUPP) if !mode.in_memory => {
                mode.refused.store(true, Ordering::Relaxed);
                return Progress::Waits(done);
            }
            Err(errno) => return Progress::Failed(errno),
        }
    }
    Progress::Whole
}

/// Starts a write; completes at once when it goes to the page cache.
pub(crate) fn write(shared: &Arc<Shared>, request: Request) -> Op {
    if request.len == 0 {
        return Op::done(request.bufs);
    }
    let fua = request.flags.contains(Flags::FUA) && !shared.mode.ignores_flush();
    let durable = fua || shared.mode.writes_through();
    let durability = if durable { Durability::Durable } else { Durability::Volatile };
    if !durable && !shared.never_inline() {
        return match write_now(shared, &request.bufs, request.len as usize, request.offset) {
            Ok(()) => Op::done(request.bufs),
            Err(errno) => Op::failed(request.bufs, os(errno)),
        };
    }
    let transfer = Transfer::new(shared, request, Call::Write(durability), 0);
    Op::wait(transfer.write())
}

fn write_now(shared: &Shared, bufs: &Bufs, len: usize, offset: u64) -> Result<(), Errno> {
    let mut done = 0;
    let result = loop {
        if done == len {
            break Ok(());
        }
        match lane::write_some(&shared.handle, bufs, done, offset + done as u64, ReadWriteFlags::empty()) {
            Ok(0) => break Err(Errno::NOSPC),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(errno) => break Err(errno),
        }
    };
    if done > 0 {
        shared.grown_to(offset + done as u64);
        shared.touched();
    }
    result
}

/// A read or write that goes on elsewhere.
struct Transfer {
    shared: Arc<Shared>,
    call: Call,
    offset: u64,
    len: usize,
    done: usize,
    /// The first call, started when the request was submitted.
    first: crate::slot::Receipt<Finished>,
}

impl Transfer {
    fn new(shared: &Arc<Shared>, request: Request, call: Call, done: usize) -> Self {
        let job = Job {
            file: shared.handle.clone(),
            call,
            bufs: request.bufs,
            skip: done,
            offset: request.offset + done as u64,
        };
        let first = lane::start(job, shared.lane);
        Self { shared: shared.clone(), call, offset: request.offset, len: request.len as usize, done, first }
    }

    async fn read(self) -> Completion {
        let Self { shared, offset, len, mut done, first, .. } = self;
        let mut finished = first.await;
        loop {
            match finished.result {
                Ok(0) => {
                    finished.bufs.fill(done, len - done, 0);
                    return Completion::done(finished.bufs);
                }
                Ok(n) => done += n,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Completion::failed(finished.bufs, os(errno)),
            }
            if done >= len {
                return Completion::done(finished.bufs);
            }
            let grain = shared.mode.request_alignment() as usize;
            if !done.is_multiple_of(grain) {
                // Direct I/O stopped inside a grain: at the end of the file, or at a place to read again.
                if offset + done as u64 >= shared.length_now() {
                    finished.bufs.fill(done, len - done, 0);
                    return Completion::done(finished.bufs);
                }
                done -= done % grain;
            }
            finished = again(&shared, self.call, finished.bufs, offset, done).await;
        }
    }

    async fn write(self) -> Completion {
        let Self { shared, offset, len, mut done, first, .. } = self;
        let mut finished = first.await;
        loop {
            match finished.result {
                Ok(0) => return Completion::failed(finished.bufs, os(Errno::NOSPC)),
                Ok(n) => done += n,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(errno) => return Completion::failed(finished.bufs, os(errno)),
            }
            shared.grown_to(offset + done as u64);
            shared.touched();
            if done >= len {
                return Completion::done(finished.bufs);
            }
            done -= done % shared.mode.request_alignment() as usize;
            finished = again(&shared, self.call, finished.bufs, offset, done).await;
        }
    }
}

async fn again(shared: &Arc<Shared>, call: Call, bufs: Bufs, offset: u64, done: usize) -> Finished {
    let job = Job { file: shared.handle.clone(), call, bufs, skip: done, offset: offset + done as u64 };
    lane::start(job, shared.lane).await
}
