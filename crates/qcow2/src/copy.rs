//! Copies from another node into the image without the data passing through our memory.
//!
//! Whole clusters are copied below us and published like those of a write; what is less than a cluster is read and
//! written.

use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Bufs, Cause, Child, Completion, ErrorKind, Flags, Node, Op, Operation, Request, Result};

use crate::engine::Engine;
use crate::geometry::{DataPlace, HostOffset};
use crate::map::WriteRun;
use crate::write;

/// Where the bytes come from.
struct Source {
    node: Arc<dyn Node>,
    offset: u64,
}

/// Starts a copy.
pub(crate) fn submit(engine: &Arc<Engine>, request: Request) -> Op {
    let Operation::CopyFrom { source, source_offset } = request.op else {
        unreachable!("the caller looked at the operation")
    };
    if let Err(e) = engine.check_writable() {
        return Op::failed(request.bufs, e);
    }
    if engine.is_encrypted() {
        return Op::failed(request.bufs, ErrorKind::Unsupported);
    }
    if request.len == 0 {
        return Op::done(Bufs::none());
    }
    if engine.state.lock().is_beyond_end(request.offset, request.len) {
        return Op::failed(request.bufs, ErrorKind::Io);
    }
    let turn = engine.ranges.lock(engine.clusters_of(request.offset, request.len), LockMode::Exclusive);
    let (worker, source) = (engine.clone(), Source { node: source, offset: source_offset });
    let (offset, len, fua, cause) =
        (request.offset, request.len, request.flags.contains(Flags::FUA), request.cause);
    engine.keep(async move {
        let guard = turn.await;
        let result = match worker.note_change(offset, len).await {
            Ok(()) => copy(&worker, offset, len, &source, cause).await,
            Err(e) => Err(e),
        };
        drop(guard);
        match result {
            Ok(()) if fua => worker.flush_for(Completion::done(Bufs::none())).await,
            Ok(()) => Completion::done(Bufs::none()),
            Err(e) => Completion::failed(Bufs::none(), e),
        }
    })
}

/// Copies into a range whose clusters the caller holds exclusively.
async fn copy(engine: &Arc<Engine>, offset: u64, len: u64, source: &Source, cause: Cause) -> Result<()> {
    let geometry = engine.geometry;
    let (mut at, end) = (offset, offset + len);
    while at < end {
        let inside = geometry.in_cluster(at);
        let whole = (end - at) >> geometry.cluster_bits << geometry.cluster_bits;
        let from = source.offset + (at - offset);
        at += match inside == 0 && whole > 0 {
            true => copy_run(engine, at, whole, source, from, cause).await?,
            false => {
                let n = (geometry.cluster_size() - inside).min(end - at);
                let data = Child::new(source.node.clone()).read(from, n as usize).await?;
                write::write(engine, at, data.into(), cause).await.into_bufs()?.recycle();
                n
            }
        };
        engine.relieve().await?;
    }
    Ok(())
}

/// Copies the beginning of a range of whole clusters; returns its length.
async fn copy_run(
    engine: &Arc<Engine>,
    at: u64,
    len: u64,
    source: &Source,
    from: u64,
    cause: Cause,
) -> Result<u64> {
    let geometry = engine.geometry;
    let place = |host: HostOffset, len: u64| {
        let op = Operation::CopyFrom { source: source.node.clone(), source_offset: from };
        let request = Request { op, offset: host.0, len, ..Request::default() };
        engine.data().submit(request.caused_by(cause)).finish()
    };
    let run = engine.decide(cause, |state| state.plan_write(at, len)).await?;
    match run {
        WriteRun::InPlace { host, len } => {
            place(host, len).await.result?;
            Ok(len)
        }
        WriteRun::Kept { host, clusters } => {
            let len = clusters << geometry.cluster_bits;
            place(host, len).await.result?;
            engine.decide(cause, |state| state.link_data(at..at + len, host)).await?;
            Ok(len)
        }
        WriteRun::Fresh { clusters } if geometry.data_place == DataPlace::External => {
            let len = clusters << geometry.cluster_bits;
            place(HostOffset(at), len).await.result?;
            engine.decide(cause, |state| state.link_data(at..at + len, HostOffset(at))).await?;
            Ok(len)
        }
        WriteRun::Fresh { clusters } => {
            engine.announce_allocation(cause).await;
            let owned = engine.decide(cause, |state| state.allocate(clusters)).await?;
            let host = HostOffset(owned.first << geometry.cluster_bits);
            let len = owned.count << geometry.cluster_bits;
            let done = match place(host, len).await.result {
                Ok(_) => engine.decide(cause, |state| state.link_data(at..at + len, host)).await,
                Err(e) => Err(e),
            };
            if let Err(e) = done {
                engine.state.lock().give_back(owned);
                return Err(e);
            }
            Ok(len)
        }
        WriteRun::Split { blocks } => {
            write::publish(engine, blocks, cause).await?;
            Ok(0)
        }
    }
}
