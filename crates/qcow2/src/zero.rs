//! Writes of zeroes, and discards.
//!
//! Whole clusters change their mapping; the ends that are not cluster aligned are written (zeroes) or skipped
//! (discard).

use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Buf, Cause, Completion, ErrorKind, Flags, Op, Request, Result};

use crate::engine::{Discard, Engine};
use crate::geometry::GuestCluster;
use crate::state::{Decision, State};
use crate::table::{L1Entry, L2Entry};
use crate::write;

/// Largest piece of zeroes written as data.
const ZEROES_PIECE: u64 = 1 << 20;

/// Starts a write of zeroes.
pub(crate) fn submit_zeroes(engine: &Arc<Engine>, request: Request) -> Op {
    start(engine, request, |engine, request| async move {
        let flags = request.flags;
        write_zeroes(&engine, request.offset, request.len, flags, request.cause).await
    })
}

/// Starts a discard.
pub(crate) fn submit_discard(engine: &Arc<Engine>, request: Request) -> Op {
    // Without zero clusters, what the backing file holds would reappear.
    if engine.backing.is_some() && engine.state.lock().header.version < 3 {
        return Op::failed(request.bufs, ErrorKind::Unsupported);
    }
    start(engine, request, |engine, request| async move {
        discard(&engine, request.offset, request.len, request.cause).await
    })
}

fn start<F>(engine: &Arc<Engine>, request: Request, work: impl FnOnce(Arc<Engine>, Request) -> F) -> Op
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    if let Err(e) = engine.check_writable() {
        return Op::failed(request.bufs, e);
    }
    if request.len == 0 {
        return Op::done(request.bufs);
    }
    if engine.state.lock().is_beyond_end(request.offset, request.len) {
        return Op::failed(request.bufs, ErrorKind::Io);
    }
    let clusters = engine.clusters_of(request.offset, request.len);
    let turn = engine.ranges.lock(clusters, LockMode::Exclusive);
    let (worker, fua) = (engine.clone(), request.flags.contains(Flags::FUA));
    // A write that was found to be zeroes brings its buffers; they go back to its submitter.
    let mut request = request;
    let bufs = std::mem::take(&mut request.bufs);
    let work = work(engine.clone(), request);
    engine.keep(async move {
        let guard = turn.await;
        let result = work.await;
        drop(guard);
        match result {
            Ok(()) if fua => worker.flush_for(Completion::done(bufs)).await,
            Ok(()) => Completion::done(bufs),
            Err(e) => Completion::failed(bufs, e),
        }
    })
}

/// Zeroes a range whose clusters the caller holds exclusively.
pub(crate) async fn write_zeroes(
    engine: &Arc<Engine>,
    offset: u64,
    len: u64,
    flags: Flags,
    cause: Cause,
) -> Result<()> {
    let geometry = engine.geometry;
    let (version, size) = {
        let state = engine.state.lock();
        (state.header.version, state.header.size)
    };
    let end = offset + len;
    // A cluster that the disk ends in counts as whole.
    let whole_end = if end == size { geometry.clusters_for(end) } else { end >> geometry.cluster_bits };
    let whole = geometry.clusters_for(offset)..whole_end.max(geometry.clusters_for(offset));
    let capable = version >= 3 || engine.backing.is_none();
    if whole.is_empty() || !capable {
        return zero_ends(engine, offset, end, flags, cause).await;
    }
    let (from, to) = (whole.start << geometry.cluster_bits, (whole.end << geometry.cluster_bits).min(end));
    zero_ends(engine, offset, from, flags, cause).await?;
    let unmap = flags.contains(Flags::MAY_UNMAP);
    for cluster in whole {
        let cluster = GuestCluster(cluster);
        engine.decide(cause, |state| state.zero_cluster(cluster, unmap, engine.discard)).await?;
        engine.relieve().await?;
    }
    zero_ends(engine, to, end, flags, cause).await
}

/// Zeroes a range that no change of mapping can zero: skips what is zero already, writes the rest.
async fn zero_ends(engine: &Arc<Engine>, from: u64, to: u64, flags: Flags, cause: Cause) -> Result<()> {
    let mut at = from;
    while at < to {
        let cluster_end = (at | (engine.geometry.cluster_size() - 1)) + 1;
        let n = (cluster_end - at).min(to - at).min(ZEROES_PIECE);
        if !engine.reads_as_zero(at, n, cause).await? {
            if flags.contains(Flags::NO_FALLBACK) {
                return Err(ErrorKind::Unsupported.into());
            }
            let zeroes = Buf::zeroed(n as usize);
            write::write(engine, at, zeroes.into(), cause).await.into_bufs()?.recycle();
        }
        at += n;
    }
    Ok(())
}

async fn discard(engine: &Arc<Engine>, offset: u64, len: u64, cause: Cause) -> Result<()> {
    let geometry = engine.geometry;
    let end = offset + len;
    let size = engine.state.lock().header.size;
    let whole_end = if end == size { geometry.clusters_for(end) } else { end >> geometry.cluster_bits };
    let mut cluster = geometry.clusters_for(offset);
    while cluster < whole_end {
        let at = GuestCluster(cluster);
        let has_backing = engine.backing.is_some();
        let skip =
            engine.decide(cause, |state| state.discard_cluster(at, has_backing, engine.discard)).await?;
        cluster += skip;
        engine.relieve().await?;
    }
    Ok(())
}

impl State {
    /// Makes one cluster read as zeroes without writing data.
    fn zero_cluster(&mut self, cluster: GuestCluster, unmap: bool, discard: Discard) -> Decision<()> {
        let old = self.own_entry(cluster)?;
        let punch = discard == Discard::Unmap;
        let new = match old {
            _ if self.header.version < 3 => L2Entry::Unallocated,
            L2Entry::Normal(host, ownership) | L2Entry::ZeroAllocated(host, ownership) if !unmap => {
                L2Entry::ZeroAllocated(host, ownership)
            }
            _ => L2Entry::ZeroPlain,
        };
        self.unlink(cluster, new, punch)
    }

    /// Drops one cluster's storage; returns how many clusters this settles.
    fn discard_cluster(
        &mut self,
        cluster: GuestCluster,
        has_backing: bool,
        discard: Discard,
    ) -> Decision<u64> {
        let per_table = self.geometry.l2_entries();
        if !has_backing && self.l1_entry(self.geometry.l1_index(cluster))? == L1Entry::Empty {
            return Ok(per_table - cluster.0 % per_table);
        }
        let version = self.header.version;
        // Nothing to drop and nothing to hide: a shared table is not copied for that.
        let settled = match self.map_run(self.geometry.guest_offset(cluster), 1)?.kind {
            crate::map::Kind::Unallocated => !has_backing,
            crate::map::Kind::Zero(None) => true,
            _ => false,
        };
        if settled {
            return Ok(1);
        }
        let new = if version < 3 { L2Entry::Unallocated } else { L2Entry::ZeroPlain };
        self.unlink(cluster, new, discard == Discard::Unmap)?;
        Ok(1)
    }

    fn own_entry(&mut self, cluster: GuestCluster) -> Decision<L2Entry> {
        let slot = self.own_l2_slot(cluster)?;
        let raw = self.l2.entry(slot, cluster.0 % self.geometry.slice_entries());
        Ok(L2Entry::decode(raw, &self.geometry))
    }
}
