//! Reads and status.

use std::sync::Arc;
use std::task::Poll;

use cowbell_block::{
    BoxFuture, Bufs, Cause, Child, Completion, DebugEvent, Error, ErrorKind, Extent, ExtentFlags, Flags,
    Mapping, Op, Request, Result,
};

use crate::engine::Engine;
use crate::geometry::HostOffset;
use crate::map::{Kind, Run};
use crate::state::{Corruption, EpochPin};
use crate::told::{Task, cluster_type};
use crate::{compress, hollow};

/// Starts a read. Without a wait when the mapping is cached and the file answers at once.
pub(crate) fn submit(engine: &Arc<Engine>, request: Request) -> Op {
    if let Err(e) = engine.check_usable() {
        return Op::failed(request.bufs, e);
    }
    if request.len == 0 {
        return Op::done(request.bufs);
    }
    let mut state = engine.state.lock();
    if state.is_beyond_end(request.offset, request.len) {
        return Op::failed(request.bufs, ErrorKind::Io);
    }
    let whole = match state.map_run(request.offset, request.len) {
        Ok(run) if run.len == request.len && engine.orphans.is_empty() => Some((run, state.epochs.pin())),
        _ => None,
    };
    drop(state);
    match whole {
        Some((run, pin)) if !matches!(run.kind, Kind::Compressed(_)) => {
            start_piece(engine, run, pin, request.offset, request.bufs, request.cause)
        }
        _ => {
            let worker = engine.clone();
            engine.wait(async move { read(&worker, request.offset, request.bufs, request.cause).await })
        }
    }
}

/// Reads any range of the disk; the clusters need not be cached.
pub(crate) async fn read(engine: &Arc<Engine>, offset: u64, mut bufs: Bufs, cause: Cause) -> Completion {
    let mut parts = Gather::default();
    let mut at = offset;
    let end = offset + bufs.len() as u64;
    while at < end {
        let planned =
            engine.decide(cause, |state| Ok((state.map_run(at, end - at)?, state.epochs.pin()))).await;
        let (run, pin) = match planned {
            Ok(planned) => planned,
            Err(e) => {
                let (mut done, _) = parts.finish().await;
                done.append(bufs);
                return Completion::failed(done, e);
            }
        };
        let part = bufs.split_to(run.len as usize);
        parts.add(match run.kind {
            Kind::Compressed(_) => Op::Done(read_compressed(engine, run, &pin, at, part, cause).await),
            _ => start_piece(engine, run, pin, at, part, cause),
        });
        at += run.len;
    }
    let (bufs, result) = parts.finish().await;
    match result {
        Ok(()) => Completion::done(bufs),
        Err(e) => Completion::failed(bufs, e),
    }
}

/// Starts the I/O for one run that is not compressed.
fn start_piece(
    engine: &Arc<Engine>,
    run: Run,
    pin: EpochPin,
    guest: u64,
    mut bufs: Bufs,
    cause: Cause,
) -> Op {
    let task = |cluster_type, host| Task { what: "read", cluster_type, host, guest, len: run.len };
    let (child, offset, event) = match run.kind {
        Kind::Data(host) if engine.is_encrypted() => {
            return engine.read_stored(guest, host, pin, bufs, cause);
        }
        Kind::Data(host) => {
            engine.tell_task(task(cluster_type::NORMAL, host.0), cause);
            (engine.data(), host.0, DebugEvent::ReadAio)
        }
        Kind::Unallocated(_) if engine.backing.is_some() => {
            let backing = engine.backing.as_ref().expect("just asked");
            engine.tell_task(task(cluster_type::UNALLOCATED, 0), cause);
            // It ends with the disk: the VM state behind is not its.
            let visible = backing.len().min(engine.state.lock().header.size);
            let have = visible.saturating_sub(guest).min(run.len);
            if have < run.len {
                let engine = engine.clone();
                return Op::wait(async move { read_short_backing(&engine, guest, have, bufs, cause).await });
            }
            (backing, guest, DebugEvent::ReadBackingAio)
        }
        _ => {
            bufs.fill(0, run.len as usize, 0);
            return Op::done(bufs);
        }
    };
    let request = Request::read(offset, bufs).caused_by(cause);
    let suspension = engine.file.event(event, cause);
    if suspension.is_none() {
        return match child.submit(request) {
            Op::Done(completion) => Op::Done(completion),
            Op::Wait(future) => Op::wait(async move {
                let completion = future.await;
                drop(pin);
                completion
            }),
        };
    }
    let child = child.clone();
    Op::wait(async move {
        if let Some(suspension) = suspension {
            suspension.await;
        }
        let completion = child.submit(request).finish().await;
        drop(pin);
        completion
    })
}

/// The backing file ends inside the range: zeroes follow.
async fn read_short_backing(
    engine: &Arc<Engine>,
    guest: u64,
    have: u64,
    mut bufs: Bufs,
    cause: Cause,
) -> Completion {
    let mut head = bufs.split_to(have as usize);
    let rest = bufs.len();
    bufs.fill(0, rest, 0);
    let mut result = Ok(());
    if have > 0 {
        let backing = engine.backing.as_ref().expect("the caller asked");
        engine.file.announce(DebugEvent::ReadBackingAio, cause).await;
        let completion = backing.submit(Request::read(guest, head).caused_by(cause)).finish().await;
        head = completion.bufs;
        result = completion.result.map(|_| ());
    }
    head.append(bufs);
    match result {
        Ok(()) => Completion::done(head),
        Err(e) => Completion::failed(head, e),
    }
}

async fn read_compressed(
    engine: &Arc<Engine>,
    run: Run,
    _pin: &EpochPin,
    guest: u64,
    mut bufs: Bufs,
    cause: Cause,
) -> Completion {
    let Kind::Compressed(descriptor) = run.kind else { unreachable!("the caller asked") };
    let compression = engine.state.lock().header.compression;
    let (cluster_type, host) = (cluster_type::COMPRESSED, descriptor.offset.0);
    engine.tell_task(Task { what: "read", cluster_type, host, guest, len: run.len }, cause);
    engine.file.announce(DebugEvent::ReadCompressed, cause).await;
    let stored = match engine.file.read(descriptor.offset.0, descriptor.len as usize).await {
        Ok(stored) => stored,
        Err(e) => return Completion::failed(bufs, e),
    };
    let cluster = compress::decompress(compression, &stored, engine.geometry.cluster_size() as usize);
    stored.recycle();
    match cluster {
        Some(cluster) => {
            let inside = engine.geometry.in_cluster(guest) as usize;
            bufs.write_at(0, &cluster[inside..inside + run.len as usize]);
            cluster.recycle();
            Completion::done(bufs)
        }
        None => {
            // Damaged content, not damaged metadata: the reference fails the read and goes on.
            let corruption = Corruption::Compressed { offset: descriptor.offset.0, guest };
            Completion::failed(bufs, Error::new(ErrorKind::Io, corruption))
        }
    }
}

/// What the beginning of a range is, merged as far as it is alike.
pub(crate) async fn status(
    engine: &Arc<Engine>,
    offset: u64,
    len: u64,
    flags: Flags,
    cause: Cause,
) -> Result<Extent> {
    engine.check_usable()?;
    let (size, len) = {
        let state = engine.state.lock();
        (state.header.size, len.min(state.header.size.saturating_sub(offset)))
    };
    if len == 0 {
        return Ok(Extent { len: 0, flags: ExtentFlags::EOF, map: None });
    }
    let mut run = engine.next_run(offset, len, cause).await?;
    while run.len < len && !matches!(run.kind, Kind::Compressed(_)) {
        match engine.next_run(offset + run.len, len - run.len, cause).await {
            Ok(next) if run.is_continued_by(&next) => run.len += next.len,
            // What is wrong there is told to who asks there.
            Ok(_) | Err(_) => break,
        }
    }
    let mut extent = extent(engine.data(), engine.backing.is_some(), run, offset + run.len == size);
    if engine.is_encrypted() {
        // What lies there is of no use to others, and a hole there is no hole here.
        extent.map = None;
    } else if flags.contains(Flags::PRECISE) {
        hollow::look_below(engine, &mut extent).await;
    }
    Ok(extent)
}

/// Answers a status question without a wait, if the mapping is cached and the answer is complete.
pub(crate) fn submit_status(engine: &Arc<Engine>, request: &Request) -> Op {
    let (offset, len, flags, cause) = (request.offset, request.len, request.flags, request.cause);
    let worker = engine.clone();
    engine.wait(async move {
        match status(&worker, offset, len, flags, cause).await {
            Ok(extent) => Completion::extent(extent),
            Err(e) => Completion::failed(Bufs::none(), e),
        }
    })
}

fn extent(file: &Child, has_backing: bool, run: Run, eof: bool) -> Extent {
    let place = |host: HostOffset| Some(Mapping { node: file.node(), offset: host.0 });
    let (mut flags, map) = match run.kind {
        Kind::Data(host) => (ExtentFlags::DATA | ExtentFlags::ALLOCATED, place(host)),
        Kind::Zero(host) => (ExtentFlags::ZERO | ExtentFlags::ALLOCATED, host.and_then(place)),
        Kind::Compressed(_) => (ExtentFlags::DATA | ExtentFlags::ALLOCATED | ExtentFlags::COMPRESSED, None),
        Kind::Unallocated(host) if has_backing => (ExtentFlags::empty(), host.and_then(place)),
        Kind::Unallocated(host) => (ExtentFlags::ZERO, host.and_then(place)),
    };
    flags.set(ExtentFlags::EOF, eof);
    Extent { len: run.len, flags, map }
}

/// The pieces of one request, some finished, some on their way; finished in order.
#[derive(Default)]
pub(crate) struct Gather(Vec<Part>);

enum Part {
    Finished(Completion),
    Waiting(BoxFuture<Completion>),
}

impl Gather {
    /// Adds the next piece.
    pub fn add(&mut self, op: Op) {
        self.0.push(match op {
            Op::Done(completion) => Part::Finished(completion),
            Op::Wait(future) => Part::Waiting(future),
        });
    }

    /// Waits for all pieces; the buffers in order and the first failure.
    pub async fn finish(mut self) -> (Bufs, Result<()>) {
        std::future::poll_fn(|cx| {
            let mut pending = false;
            for part in &mut self.0 {
                if let Part::Waiting(future) = part {
                    match future.as_mut().poll(cx) {
                        Poll::Ready(completion) => *part = Part::Finished(completion),
                        Poll::Pending => pending = true,
                    }
                }
            }
            if pending { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
        let (mut bufs, mut result) = (Bufs::none(), Ok(()));
        for part in self.0 {
            let Part::Finished(completion) = part else { unreachable!("all pieces are finished") };
            bufs.append(completion.bufs);
            if let (Ok(()), Err(e)) = (&result, completion.result) {
                result = Err(e);
            }
        }
        (bufs, result)
    }
}
