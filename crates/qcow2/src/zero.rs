//! Writes of zeroes, and discards.
//!
//! Whole clusters change their mapping; the ends that are not cluster aligned are written (zeroes) or skipped
//! (discard).

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::chain::Chain;
use cowbell_block::range_lock::LockMode;
use cowbell_block::{Buf, Cause, Completion, ErrorKind, Flags, Op, Request, Result};

use crate::engine::{Discards, Dropped, Engine};
use crate::geometry::{DataPlace, GuestCluster, HostOffset};
use crate::map::Kind;
use crate::state::{Decision, State};
use crate::table::{Cell, Ownership, Storage};
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
    let (offset, len) = (request.offset, request.len);
    let work = work(engine.clone(), request);
    engine.keep(async move {
        let guard = turn.await;
        let result = match worker.note_change(offset, len).await {
            Ok(()) => work.await,
            Err(e) => Err(e),
        };
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
    let grain = geometry.subcluster_size();
    let from = offset.next_multiple_of(grain);
    // A cluster that the disk ends in counts as whole.
    let to = if end == size { end.next_multiple_of(geometry.cluster_size()) } else { end / grain * grain };
    let must_hold = flags.contains(Flags::WRITE_UNCHANGED);
    let capable = version >= 3 || (engine.backing.is_none() && !must_hold);
    // The first whole subcluster may lie beyond the end of the disk already.
    if from >= to.min(end) || !capable {
        return zero_ends(engine, offset, end, flags, cause).await;
    }
    zero_ends(engine, offset, from, flags, cause).await?;
    engine.zero_external(from, to.min(end) - from, flags, cause).await?;
    let unmap = if flags.contains(Flags::MAY_UNMAP) { Unmap::Allowed } else { Unmap::No };
    let mut at = from;
    while at < to {
        let next = ((at | (geometry.cluster_size() - 1)) + 1).min(to);
        if !engine.decide(cause, |state| state.zero_mapping(at..next, unmap)).await? {
            zero_ends(engine, at, next.min(end), flags, cause).await?;
        }
        engine.relieve().await?;
        at = next;
    }
    zero_ends(engine, to.min(end), end, flags, cause).await
}

/// Whether a write of zeroes may give storage up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unmap {
    No,
    Allowed,
}

impl Engine {
    /// An external file that is a raw image on its own must read as zeroes by itself.
    async fn zero_external(&self, at: u64, len: u64, flags: Flags, cause: Cause) -> Result<()> {
        let raw = self.state.lock().header.has_raw_data_file();
        let Some(file) = self.data_file.as_ref().filter(|_| raw) else { return Ok(()) };
        let request = Request::write_zeroes(at, len).with_flags(flags - Flags::FUA).caused_by(cause);
        file.submit(request).finish().await.result.map(drop)
    }
}

/// Zeroes a range whose subclusters cannot be zeroed as a whole: those that read as zeroes besides are, by their mapping; the
/// rest is written.
async fn zero_ends(engine: &Arc<Engine>, from: u64, to: u64, flags: Flags, cause: Cause) -> Result<()> {
    let (grain, cluster) = (engine.geometry.subcluster_size(), engine.geometry.cluster_size());
    let mut at = from;
    while at < to {
        let grain_end = (at | (grain - 1)) + 1;
        let is_part = !at.is_multiple_of(grain) || grain_end > to;
        let end = match is_part {
            true => grain_end.min(to),
            false => ((at | (cluster - 1)) + 1).min(to / grain * grain),
        };
        if !is_part || !zero_around(engine, at..end, cause).await? {
            write_out_zeroes(engine, at, end, flags, cause).await?;
        }
        at = end;
    }
    Ok(())
}

/// Makes the subcluster around a part of it read as zeroes, if the rest does already and nothing of it is stored. Says
/// whether it does now. Its cluster is held exclusively, and what lies below does not change.
async fn zero_around(engine: &Arc<Engine>, part: Range<u64>, cause: Cause) -> Result<bool> {
    let grain = engine.geometry.subcluster_size();
    let (version, raw, size) = {
        let state = engine.state.lock();
        (state.header.version, state.header.has_raw_data_file(), state.header.size)
    };
    // A file that is an image by itself is written to, whatever the tables say.
    if version < 3 || raw {
        return Ok(false);
    }
    let start = part.start / grain * grain;
    let end = start + grain;
    for rest in [start..part.start, part.end..end.min(size)] {
        if !engine.is_hollow(rest, cause).await? {
            return Ok(false);
        }
    }
    engine.decide(cause, |state| state.zero_hollow(start..end)).await
}

/// Writes zeroes where there are none. Those that the disk is to hold itself, because what lies below is about to change, are
/// written in any case.
async fn write_out_zeroes(
    engine: &Arc<Engine>,
    from: u64,
    to: u64,
    flags: Flags,
    cause: Cause,
) -> Result<()> {
    let mut at = from;
    while at < to {
        let n = (to - at).min(ZEROES_PIECE);
        if flags.contains(Flags::WRITE_UNCHANGED) || !engine.reads_as_zero(at, n, cause).await? {
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
    let (size, raw_external) = {
        let state = engine.state.lock();
        (state.header.size, state.header.has_raw_data_file())
    };
    let whole_end = if end == size { geometry.clusters_for(end) } else { end >> geometry.cluster_bits };
    let mut cluster = geometry.clusters_for(offset);
    if raw_external && cluster < whole_end {
        let from = cluster << geometry.cluster_bits;
        let to = (whole_end << geometry.cluster_bits).min(end);
        return write_zeroes(engine, from, to - from, Flags::MAY_UNMAP, cause).await;
    }
    while cluster < whole_end {
        let at = GuestCluster(cluster);
        let has_backing = engine.backing.is_some();
        let settled = engine.decide(cause, |state| state.discard_cluster(at, has_backing)).await?;
        engine.pass_discard(at, &settled, cause).await;
        cluster += settled.clusters;
        engine.relieve().await?;
    }
    Ok(())
}

/// What became of discarded clusters.
struct Settled {
    clusters: u64,
    /// Storage that one cluster keeps, or that nobody counts: its content is not needed any more.
    content: Option<HostOffset>,
}

impl Engine {
    /// Gives back storage that no refcount stands for. Its guest cluster is held exclusively and reads as zeroes, so
    /// whatever a cut leaves there is the old content or zeroes. A hole in an encrypted image would be noise until the
    /// entry is durable, so its storage stays. Failure costs only space.
    async fn pass_discard(&self, cluster: GuestCluster, settled: &Settled, cause: Cause) {
        let Some(host) = settled.content else { return };
        if self.state.lock().discards.contains(Discards::REQUEST) && !self.is_encrypted() {
            // The disk may end inside the cluster, and an external file with it.
            let rest = self.state.lock().header.size.saturating_sub(self.geometry.guest_offset(cluster));
            let len = match self.geometry.data_place {
                DataPlace::Image => self.geometry.cluster_size(),
                DataPlace::External => self.geometry.cluster_size().min(rest),
            };
            let request = Request::discard(host.0, len).caused_by(cause);
            let _ = self.data().submit(request).finish().await;
        }
    }
}

impl Engine {
    /// Whether a range reads as zeroes by the mapping alone, here and below.
    async fn is_hollow(self: &Arc<Self>, range: Range<u64>, cause: Cause) -> Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let run = self.decide(cause, |state| state.map_run(at, range.end - at)).await?;
            let below = self.backing.as_ref().filter(|backing| at < backing.len());
            at += match (run.kind, below) {
                (Kind::Data(_) | Kind::Compressed(_), _) => return Ok(false),
                (Kind::Unallocated(_), Some(backing)) => {
                    let extent = Chain::of(backing.node()).status(at, run.len).await?;
                    if !extent.is_zero() || extent.len == 0 {
                        return Ok(false);
                    }
                    extent.len
                }
                (Kind::Unallocated(_) | Kind::Zero(_), _) => run.len,
            };
        }
        Ok(true)
    }
}

impl State {
    /// Makes a subcluster read as zeroes that has nothing stored. Says whether that is so.
    fn zero_hollow(&mut self, subcluster: Range<u64>) -> Decision<bool> {
        let geometry = self.geometry;
        let cluster = geometry.guest_cluster(subcluster.start);
        let start = geometry.guest_offset(cluster);
        let mask = geometry.subclusters_of(subcluster.start - start..subcluster.end - start);
        if let Some(slot) = self.l2_slot(cluster)? {
            let old = self.cell(slot, cluster)?;
            if old.alloc & mask != 0 || old.zero & mask == mask {
                return Ok(old.zero & mask == mask);
            }
        }
        let slot = self.own_l2_slot(cluster)?;
        let old = self.cell(slot, cluster)?;
        self.unlink(cluster, Cell { zero: old.zero | mask, ..old }, Dropped::Discarded)?;
        Ok(true)
    }

    /// Makes a range of one cluster, whole subclusters, read as zeroes without writing data. Says whether that was
    /// possible: a part of a compressed cluster must be written.
    fn zero_mapping(&mut self, range: Range<u64>, unmap: Unmap) -> Decision<bool> {
        let geometry = self.geometry;
        let cluster = geometry.guest_cluster(range.start);
        let slot = self.own_l2_slot(cluster)?;
        let old = self.cell(slot, cluster)?;
        let start = geometry.guest_offset(cluster);
        let zeroed = geometry.subclusters_of(range.start - start..range.end - start);
        let all = geometry.all_subclusters();
        let keeps = unmap == Unmap::No || self.discards.contains(Discards::NO_UNREF);
        let new = match old.storage {
            _ if self.header.version < 3 => Cell::UNALLOCATED,
            Storage::Compressed(_) if zeroed != all => return Ok(false),
            Storage::Cluster(..) if zeroed != all || keeps => {
                Cell { storage: old.storage, alloc: old.alloc & !zeroed, zero: old.zero | zeroed }
            }
            Storage::None => Cell { zero: old.zero | zeroed, ..old },
            Storage::Cluster(..) | Storage::Compressed(_) => Cell::zeroes(&geometry),
        };
        self.unlink(cluster, new, Dropped::Discarded)?;
        Ok(true)
    }

    /// Drops one cluster's storage; says how many clusters this settles.
    fn discard_cluster(&mut self, cluster: GuestCluster, has_backing: bool) -> Decision<Settled> {
        let geometry = self.geometry;
        let all = geometry.all_subclusters();
        let settled = |clusters| Ok(Settled { clusters, content: None });
        let old = match self.l2_slot(cluster)? {
            Some(slot) => self.cell(slot, cluster)?,
            None if has_backing => Cell::UNALLOCATED,
            None => return settled(geometry.l2_entries() - cluster.0 % geometry.l2_entries()),
        };
        // Nothing to drop and nothing to hide: a shared table is not copied for that.
        if old.storage == Storage::None && (old.zero == all || !has_backing) {
            return settled(1);
        }
        let new = match old.storage {
            _ if self.header.version < 3 => Cell::UNALLOCATED,
            Storage::Cluster(..) if self.discards.contains(Discards::NO_UNREF) => {
                Cell { storage: old.storage, alloc: 0, zero: all }
            }
            _ => Cell::zeroes(&geometry),
        };
        self.unlink(cluster, new, Dropped::Discarded)?;
        let uncounted = new.storage == old.storage || geometry.data_place == DataPlace::External;
        let content = match old.storage {
            Storage::Cluster(host, Ownership::Private) if uncounted => Some(host),
            _ => None,
        };
        Ok(Settled { clusters: 1, content })
    }
}
