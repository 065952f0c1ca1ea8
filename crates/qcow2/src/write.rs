//! Writes: in place where the storage is private, otherwise allocate, copy, publish.
//!
//! A write that changes a mapping holds its guest clusters exclusively from the look at the old entries to the
//! new ones (rule R6), so two writes into one fresh cluster never copy side by side. A write in place holds
//! them shared: it must not run beside a change of the mapping under it, but beside other writes in place it
//! may.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::range_lock::{LockMode, RangeGuard};
use cowbell_block::{
    Buf, Bufs, Cause, Child, Completion, DebugEvent, ErrorKind, Flags, Op, Request, Result, TraceEvent,
    mutant,
};

use crate::bitmap::Mode;
use crate::engine::Engine;
use crate::geometry::{DataPlace, HostOffset};
use crate::map::{KeptStorage, Kind, Pieces, Span, WriteRun};
use crate::pack;
use crate::read::{self, Gather};

/// What the field's events call a place that nobody has asked for.
const NOWHERE: u64 = u64::MAX;

/// Starts a write. Without a wait when it goes in place, the mapping is cached and the file takes it at once.
pub(crate) fn submit(engine: &Arc<Engine>, request: Request) -> Op {
    if let Err(e) = engine.check_writable() {
        return Op::failed(request.bufs, e);
    }
    if request.flags.contains(Flags::COMPRESSED) && engine.is_encrypted() {
        // The format has no clusters that are both, and nobody wants them stored plain.
        return Op::failed(request.bufs, ErrorKind::Unsupported);
    }
    if request.flags.contains(Flags::COMPRESSED) {
        return pack::submit(engine, request);
    }
    if request.len == 0 {
        return Op::done(request.bufs);
    }
    if engine.state.lock().is_beyond_end(request.offset, request.len) {
        return Op::failed(request.bufs, ErrorKind::Io);
    }
    let clusters = engine.clusters_of(request.offset, request.len);
    let simple = !request.flags.contains(Flags::FUA) && engine.orphans.is_empty();
    if simple && let Some(guard) = engine.ranges.try_lock(clusters.clone(), LockMode::Shared) {
        let mode = engine.bitmaps.mode();
        let pieces = match mode {
            Mode::Armed => None,
            Mode::Off | Mode::Live => {
                engine.state.lock().plan_overwrite(request.offset, request.len).ok().flatten()
            }
        };
        if let Some(pieces) = pieces {
            if mode == Mode::Live {
                engine.bitmaps.note(request.offset..request.end());
            }
            return overwrite(engine, guard, &pieces, request);
        }
    }
    // The place in the line is taken now: overlapping requests run in the order of their submission.
    let mode = if mutant::is_active("cow-side-by-side") { LockMode::Shared } else { LockMode::Exclusive };
    let turn = engine.ranges.lock(clusters, mode);
    let worker = engine.clone();
    engine.keep(async move {
        let guard = turn.await;
        if let Err(e) = worker.note_change(request.offset, request.len).await {
            return Completion::failed(request.bufs, e);
        }
        let completion = write(&worker, request.offset, request.bufs, request.cause).await;
        drop(guard);
        if completion.result.is_ok() && request.flags.contains(Flags::FUA) {
            return worker.flush_for(completion).await;
        }
        completion
    })
}

impl Engine {
    /// The guest clusters that a range touches.
    pub(crate) fn clusters_of(&self, offset: u64, len: u64) -> Range<u64> {
        self.geometry.guest_cluster(offset).0..self.geometry.clusters_for(offset + len)
    }

    /// Flushes on behalf of a write that must be durable at its completion.
    pub(crate) async fn flush_for(self: &Arc<Self>, completion: Completion) -> Completion {
        match self.flush().await {
            Ok(()) => completion,
            Err(e) => Completion::failed(completion.bufs, e),
        }
    }
}

/// Writes into storage that is there already. The clusters stay held until the I/O has ended, also when nobody waits
/// for it any more: otherwise their storage could be freed and owned by others under it.
fn overwrite(engine: &Arc<Engine>, guard: RangeGuard, pieces: &Pieces, mut request: Request) -> Op {
    let cause = request.cause;
    if let Some(suspension) = engine.file.event(DebugEvent::WriteAio, cause) {
        let (worker, pieces) = (engine.clone(), pieces.clone());
        return engine.keep_started(async move {
            suspension.await;
            let started = start_pieces(&worker, &pieces, request.offset, &mut request.bufs, cause);
            let completion = finish_pieces(started).await;
            drop(guard);
            completion
        });
    }
    if let [(host, _)] = pieces[..] {
        return match engine.write_stored(request.offset, host, request.bufs, cause) {
            Op::Done(completion) => Op::Done(completion),
            Op::Wait(future) => engine.keep_started(async move {
                let completion = future.await;
                drop(guard);
                completion
            }),
        };
    }
    let started = start_pieces(engine, pieces, request.offset, &mut request.bufs, cause);
    engine.keep_started(async move {
        let completion = finish_pieces(started).await;
        drop(guard);
        completion
    })
}

fn start_pieces(engine: &Engine, pieces: &Pieces, guest: u64, bufs: &mut Bufs, cause: Cause) -> Gather {
    let mut gather = Gather::default();
    let mut at = guest;
    for (host, len) in pieces {
        let part = bufs.split_to(*len as usize);
        gather.add(engine.write_stored(at, *host, part, cause));
        at += len;
    }
    gather
}

async fn finish_pieces(gather: Gather) -> Completion {
    match gather.finish().await {
        (bufs, Ok(())) => Completion::done(bufs),
        (bufs, Err(e)) => Completion::failed(bufs, e),
    }
}

/// Writes any range whose clusters the caller holds exclusively.
pub(crate) async fn write(engine: &Arc<Engine>, offset: u64, mut bufs: Bufs, cause: Cause) -> Completion {
    let end = offset + bufs.len() as u64;
    let (mut at, mut done) = (offset, Bufs::none());
    let mut may_recover = true;
    while at < end {
        match write_run(engine, at, &mut bufs, cause).await {
            Ok(part) => {
                at += part.len() as u64;
                done.append(part);
                if let Err(e) = engine.relieve().await {
                    done.append(bufs);
                    return Completion::failed(done, e);
                }
            }
            Err(e) => {
                let full = e.kind() == ErrorKind::NoSpace && std::mem::take(&mut may_recover);
                if full && matches!(engine.recover_space().await, Ok(true)) {
                    continue;
                }
                done.append(bufs);
                return Completion::failed(done, e);
            }
        }
    }
    Completion::done(done)
}

/// Writes the beginning of `bufs` that is of one kind; returns the part that was written.
async fn write_run(engine: &Arc<Engine>, at: u64, bufs: &mut Bufs, cause: Cause) -> Result<Bufs> {
    let len = bufs.len() as u64;
    engine.trace(TraceEvent::Qcow2AllocClustersOffset, [cause.request, at, len]);
    let run = engine.decide(cause, |state| state.plan_write(at, len)).await?;
    match run {
        WriteRun::InPlace { host, len } => {
            engine.trace(TraceEvent::Qcow2HandleCopied, [cause.request, at, host.0, len]);
            let part = bufs.split_to(len as usize);
            engine.file.announce(DebugEvent::WriteAio, cause).await;
            let completion = engine.write_stored(at, host, part, cause).finish().await;
            hand_back(completion, bufs)
        }
        WriteRun::Kept { host, clusters } => {
            let fill = Fill::plan(engine, at, clusters, bufs, KeptStorage::Yes, cause).await?;
            fill.write(engine, host, StaleContent::Possible, bufs, cause).await
        }
        WriteRun::Fresh { clusters } if engine.geometry.data_place == DataPlace::External => {
            let start = engine.geometry.guest_offset(engine.geometry.guest_cluster(at));
            let fill = Fill::plan(engine, at, clusters, bufs, KeptStorage::No, cause).await?;
            let beyond = start >= engine.data().len();
            let stale =
                if beyond && !engine.is_encrypted() { StaleContent::None } else { StaleContent::Possible };
            fill.write(engine, HostOffset(start), stale, bufs, cause).await
        }
        WriteRun::Fresh { clusters } => {
            engine.announce_allocation(cause).await;
            engine.trace(TraceEvent::Qcow2HandleAlloc, [cause.request, at, NOWHERE, len]);
            engine.trace(TraceEvent::Qcow2DoAllocClustersOffset, [cause.request, at, NOWHERE, clusters]);
            engine.trace(TraceEvent::Qcow2ClusterAllocPhys, [cause.request]);
            let owned = engine.decide(cause, |state| state.allocate(clusters)).await?;
            let host = HostOffset(owned.first << engine.geometry.cluster_bits);
            let stale = if owned.virgin && !engine.is_encrypted() {
                StaleContent::None
            } else {
                StaleContent::Possible
            };
            let written = match Fill::plan(engine, at, owned.count, bufs, KeptStorage::No, cause).await {
                Ok(fill) => fill.write(engine, host, stale, bufs, cause).await,
                Err(e) => Err(e),
            };
            if written.is_err() {
                engine.state.lock().give_back(owned);
            }
            written
        }
        WriteRun::Split { blocks } => {
            publish(engine, blocks, cause).await?;
            Ok(Bufs::none())
        }
    }
}

/// Gives storage to all of some blocks of a cluster whose storage cannot move, with the content that they have, and makes
/// that durable: afterwards they are overwritten in place, in one piece.
pub(crate) async fn publish(engine: &Arc<Engine>, blocks: Range<u64>, cause: Cause) -> Result<()> {
    let geometry = &engine.geometry;
    let room = Bufs::from(Buf::scratch((blocks.end - blocks.start) as usize));
    let mut content = read::read(engine, blocks.start, room, cause).await.into_bufs()?;
    let host = HostOffset(geometry.guest_offset(geometry.guest_cluster(blocks.start)));
    let fill = Fill::plan(engine, blocks.start, 1, &content, KeptStorage::Yes, cause).await?;
    fill.write(engine, host, StaleContent::Possible, &mut content, cause).await?.recycle();
    engine.flush().await
}

impl Engine {
    /// The host is full: makes clusters free that wait in quarantine, and lets the search begin anew. Says whether
    /// there is hope.
    pub(crate) async fn recover_space(self: &Arc<Self>) -> Result<bool> {
        let waiting = {
            let mut state = self.state.lock();
            state.hint = 0;
            !state.freed.is_empty() || !state.released.is_empty()
        };
        if waiting {
            self.flush().await?;
        }
        Ok(waiting)
    }
}

/// On failure the part goes back to the front, so that the completion returns all buffers.
fn hand_back(completion: Completion, rest: &mut Bufs) -> Result<Bufs> {
    match completion.result {
        Ok(_) => Ok(completion.bufs),
        Err(e) => {
            let tail = std::mem::take(rest);
            *rest = completion.bufs;
            rest.append(tail);
            Err(e)
        }
    }
}

/// Whether new storage may hold bytes of an earlier owner.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StaleContent {
    None,
    Possible,
}

/// Clusters of one run, of which a request writes a part.
struct Fill {
    /// First byte of the data on the guest's disk.
    at: u64,
    span: Span,
}

impl Fill {
    async fn plan(
        engine: &Arc<Engine>,
        at: u64,
        clusters: u64,
        bufs: &Bufs,
        kept: KeptStorage,
        cause: Cause,
    ) -> Result<Self> {
        let geometry = &engine.geometry;
        let room = (clusters << geometry.cluster_bits) - geometry.in_cluster(at);
        let data = room.min(bufs.len() as u64);
        let span = engine.decide(cause, |state| state.span(at, data, kept)).await?;
        Ok(Self { at, span })
    }

    /// Fills the storage whose first cluster is at `host` with the data and what surrounds it, then publishes it.
    async fn write(
        &self,
        engine: &Arc<Engine>,
        host: HostOffset,
        stale: StaleContent,
        bufs: &mut Bufs,
        cause: Cause,
    ) -> Result<Bufs> {
        let Span { head, data, tail } = self.span;
        let start = self.at - head;
        let stored = start..self.at + data + tail;
        let host_start = host.0 + engine.geometry.in_cluster(start);
        let head_content = self.surrounding(engine, start, head, stale, cause).await?;
        let tail_content = self.surrounding(engine, self.at + data, tail, stale, cause).await?;
        let part = bufs.split_to(data as usize);
        let skipped = if head_content.is_none() { head } else { 0 };
        let head_len = head_content.as_ref().map_or(0, |b| b.len());
        if head_len > 0 || tail_content.is_some() {
            engine.file.announce(DebugEvent::CowWrite, cause).await;
        }
        let mut all: Bufs = head_content.into_iter().collect();
        all.append(part);
        all.append(tail_content.into_iter().collect());
        engine.file.announce(DebugEvent::WriteAio, cause).await;
        let first = HostOffset(host_start + skipped);
        let mut completion = engine.write_stored(start + skipped, first, all, cause).finish().await;
        completion.bufs.split_to(head_len).recycle();
        let part = completion.bufs.split_to(data as usize);
        completion.bufs.recycle();
        completion.bufs = part;
        let part = hand_back(completion, bufs)?;
        if engine.file.is_traced() {
            let clusters = engine.clusters_of(stored.start, stored.end - stored.start);
            let count = clusters.end - clusters.start;
            if skipped > 0 {
                let first = engine.geometry.guest_offset(engine.geometry.guest_cluster(start));
                engine.trace(TraceEvent::Qcow2SkipCow, [cause.request, first, count]);
            }
            engine.trace(TraceEvent::Qcow2ClusterLinkL2, [cause.request, count]);
        }
        let linked = engine.decide(cause, |state| state.link_data(stored.clone(), host)).await;
        match linked {
            Ok(()) => Ok(part),
            Err(e) => {
                let tail = std::mem::replace(bufs, part);
                bufs.append(tail);
                Err(e)
            }
        }
    }

    /// The guest's content of a range that new storage must hold besides the data; `None` if there is nothing to
    /// write, because the range is empty or zero where the storage is.
    async fn surrounding(
        &self,
        engine: &Arc<Engine>,
        at: u64,
        len: u64,
        stale: StaleContent,
        cause: Cause,
    ) -> Result<Option<Buf>> {
        if len == 0 {
            return Ok(None);
        }
        // The last cluster may reach beyond the disk's end. Behind it the VM state begins, over no backing file.
        let (on_disk, over) = {
            let state = engine.state.lock();
            match at < state.vm_state_start() {
                true => (state.header.size.saturating_sub(at).min(len), engine.backing_len()),
                false => (len, 0),
            }
        };
        let zero = on_disk == 0 || engine.reads_as_zero_over(over, at, on_disk, cause).await?;
        if zero {
            return Ok((stale == StaleContent::Possible).then(|| Buf::zeroed(len as usize)));
        }
        engine.file.announce(DebugEvent::CowRead, cause).await;
        let mut content = Buf::scratch(len as usize);
        content[on_disk as usize..].fill(0);
        let mut bufs = Bufs::from(content);
        let part = bufs.split_to(on_disk as usize);
        let mut part = read::read(engine, at, part, cause).await.into_bufs()?;
        part.append(bufs);
        Ok(Some(part.to_contiguous_or_self()))
    }
}

impl Engine {
    /// Whether a range reads as zeroes without storage or backing file.
    pub(crate) async fn reads_as_zero(self: &Arc<Self>, at: u64, len: u64, cause: Cause) -> Result<bool> {
        self.reads_as_zero_over(self.backing_len(), at, len, cause).await
    }

    fn backing_len(&self) -> u64 {
        self.backing.as_ref().map_or(0, Child::len)
    }

    /// The same when the backing file shows as many bytes.
    async fn reads_as_zero_over(
        self: &Arc<Self>,
        backing_len: u64,
        at: u64,
        len: u64,
        cause: Cause,
    ) -> Result<bool> {
        let end = at + len;
        let mut at = at;
        while at < end {
            let run = self.decide(cause, |state| state.map_run(at, end - at)).await?;
            let zero = match run.kind {
                Kind::Zero(_) => true,
                Kind::Unallocated(_) => at >= backing_len,
                Kind::Data(_) | Kind::Compressed(_) => false,
            };
            if !zero {
                return Ok(false);
            }
            at += run.len;
        }
        Ok(true)
    }
}
