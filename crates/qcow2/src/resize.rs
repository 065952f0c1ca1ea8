//! Changes the length of the disk.
//!
//! Growing may need a larger L1 table. It is written to new clusters, made durable, and switched together with
//! the length by one write in the header's first sector (rules R10 and M3): a cut leaves the old disk or the
//! new one.

mod empty;
mod tail;

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{
    Buf, Bufs, Child, Completion, DebugEvent, Error, ErrorKind, Flags, Op, Preallocation, Request, Result,
};

use crate::engine::{Dropped, Engine, NO_CAUSE};
use crate::geometry::{HostCluster, HostOffset};
use crate::header::L1_BYTES_MAX;
use crate::meta::Structure;
use crate::state::{Decision, State};
use crate::table::{self, Cell, L1Entry};
use crate::zero;

pub(crate) use empty::submit as submit_empty;

/// Beyond the end of any disk.
const END_MAX: u64 = 1 << 62;

/// Most unused clusters at the end of the file that are looked at to shorten it: a quarter of a second.
const TAIL_CLUSTERS_MAX: u64 = 1 << 22;

/// A length that the image cannot get.
#[derive(Debug, thiserror::Error)]
enum ResizeError {
    #[error("The new size must be a multiple of 512")]
    Unaligned,
    #[error("Failed to grow the L1 table: File too large")]
    TooLarge,
    #[error("Can't resize a v2 image which has snapshots")]
    SnapshotsInVersion2,
    #[error("Preallocation can't be used for shrinking an image")]
    PreallocatedShrink,
}

/// Starts a change of length.
pub(crate) fn submit(engine: &Arc<Engine>, request: &Request, preallocation: Preallocation) -> Op {
    if let Err(e) = engine.check_writable() {
        return Op::failed(Bufs::none(), e);
    }
    let size = request.offset;
    let turn = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive);
    let worker = engine.clone();
    engine.keep(async move {
        let _whole = turn.await;
        match resize(&worker, size, preallocation).await {
            Ok(()) => Completion::done(Bufs::none()),
            Err(e) => Completion::failed(Bufs::none(), e),
        }
    })
}

/// Changes the length of the disk, of which the caller holds all, and of its bitmaps.
pub(crate) async fn resize(engine: &Arc<Engine>, size: u64, preallocation: Preallocation) -> Result<()> {
    // It may have been amended while we waited for our turn.
    engine.check_writable()?;
    let bitmaps = engine.prepare_bitmaps(size).await?;
    let resized = resize_disk(engine, size, preallocation).await;
    // Also after a failure: they are marked in use.
    resized.and(engine.finish_bitmaps(bitmaps).await)
}

async fn resize_disk(engine: &Arc<Engine>, size: u64, preallocation: Preallocation) -> Result<()> {
    if !size.is_multiple_of(512) {
        return Err(Error::new(ErrorKind::InvalidInput, ResizeError::Unaligned));
    }
    let (old, has_old_snapshots) = {
        let header = &engine.state.lock().header;
        (header.size, header.version < 3 && header.snapshot_count > 0)
    };
    if has_old_snapshots {
        return Err(Error::new(ErrorKind::Unsupported, ResizeError::SnapshotsInVersion2));
    }
    if size < old {
        return match preallocation {
            Preallocation::Off => shrink(engine, size).await,
            _ => Err(Error::new(ErrorKind::InvalidInput, ResizeError::PreallocatedShrink)),
        };
    }
    grow(engine, old, size, preallocation).await
}

async fn grow(engine: &Arc<Engine>, old: u64, size: u64, preallocation: Preallocation) -> Result<()> {
    let needed = engine.geometry.l1_entries_for(size);
    if needed * 8 > L1_BYTES_MAX {
        return Err(Error::new(ErrorKind::TooLarge, ResizeError::TooLarge));
    }
    // Remains of a shrinking that was cut, and the VM state, which ends where it begins.
    engine.unmap_beyond(old, END_MAX).await?;
    if needed > u64::from(engine.state.lock().header.l1_entries) {
        engine.grow_l1(needed, None).await?;
    }
    // What lies behind the old end in its last cluster, or in a longer backing file, must not appear.
    let tail = old.next_multiple_of(engine.geometry.cluster_size());
    let hidden = engine.backing.as_ref().map_or(0, |b| b.len()).max(tail).min(size);
    if hidden > old && !engine.reads_as_zero(old, hidden - old, NO_CAUSE).await? {
        zero::write_zeroes(engine, old, hidden - old, Flags::empty(), NO_CAUSE).await?;
    }
    if let Some(file) = engine.external_to_resize(preallocation) {
        let outside = match preallocation {
            Preallocation::Metadata => Preallocation::Off,
            other => other,
        };
        // Remains of a shrinking that was cut before it came to this file.
        let stale = file.len().min(size).saturating_sub(old);
        if stale > 0 {
            let zeroes = Request::write_zeroes(old, stale).with_flags(Flags::MAY_UNMAP);
            file.submit(zeroes).finish().await.result?;
        }
        file.submit(Request::truncate(size, outside)).finish().await.result?;
    }
    let raw_external = engine.state.lock().header.has_raw_data_file();
    if preallocation != Preallocation::Off || raw_external {
        engine.preallocate(old..size, preallocation).await?;
    }
    engine.flush().await?;
    engine.update_header(|header| header.size = size).await?;
    engine.barrier().await
}

/// The new end first, by one write; what lies beyond it is taken away only then. A cut in between leaves the
/// shorter disk and clusters that nobody sees, which the next growth removes.
async fn shrink(engine: &Arc<Engine>, size: u64) -> Result<()> {
    engine.flush().await?;
    engine.update_header(|header| header.size = size).await?;
    engine.barrier().await?;
    engine.cut_off(size).await?;
    engine.settle_refcounts().await?;
    if let Some(file) = engine.external_to_resize(Preallocation::Off) {
        file.submit(Request::truncate(size, Preallocation::Off)).finish().await.result?;
    }
    engine.cut_file().await
}

impl Engine {
    /// Replaces the L1 table by one of `entries`, and sets the disk's length with it if one is given.
    pub(crate) async fn grow_l1(self: &Arc<Self>, entries: u64, size: Option<u64>) -> Result<()> {
        let geometry = self.geometry;
        let clusters = geometry.clusters_for(entries * 8);
        self.file.announce(DebugEvent::L1GrowAllocTable, NO_CAUSE).await;
        // The old table's latest entries must be in the file before they are copied from there.
        self.flush().await?;
        let (old_offset, old_entries) = {
            let state = self.state.lock();
            (state.header.l1_offset, u64::from(state.header.l1_entries))
        };
        let taken = self.take_contiguous(clusters).await?;
        let first = taken.start;
        let offset = HostOffset(first << geometry.cluster_bits);
        if let Err(e) = self.copy_l1(old_offset, old_entries, offset, entries).await {
            self.state.lock().give_back_all(taken);
            return Err(e);
        }
        self.file.announce(DebugEvent::L1GrowActivateTable, NO_CAUSE).await;
        self.update_header(|header| {
            header.l1_offset = offset;
            header.l1_entries = entries as u32;
            header.size = size.unwrap_or(header.size);
        })
        .await?;
        // Memory follows the header at once, whatever becomes of the barrier (rule R9).
        {
            let mut state = self.state.lock();
            state.l1.forget(0..u64::MAX);
            if let Some(map) = state.meta.as_mut() {
                map.remove_fixed(Structure::ActiveL1);
                map.add_fixed(first..first + clusters, Structure::ActiveL1);
            }
            if old_entries > 0 {
                let old = geometry.host_cluster(old_offset).0;
                let end = old + geometry.clusters_for(old_entries * 8);
                state.free_later(HostCluster(old)..HostCluster(end), Dropped::Replaced);
            }
        }
        self.barrier().await
    }
}

impl Engine {
    /// Writes a longer L1 table that begins as the old one does, and makes it and its refcounts durable.
    async fn copy_l1(
        self: &Arc<Self>,
        old_offset: HostOffset,
        old_entries: u64,
        offset: HostOffset,
        entries: u64,
    ) -> Result<()> {
        let mut table = Buf::zeroed((entries * 8) as usize);
        if old_entries > 0 {
            let old = self.file.read(old_offset.0, (old_entries * 8) as usize).await?;
            table[..old.len()].copy_from_slice(&old);
        }
        self.file.announce(DebugEvent::L1GrowWriteTable, NO_CAUSE).await;
        self.file.write(offset.0, table).await?;
        self.write_refcounts().await?;
        self.barrier().await
    }
}

impl Engine {
    /// The external data file, when it must follow a change of the disk's length.
    fn external_to_resize(&self, preallocation: Preallocation) -> Option<&Child> {
        let raw = self.state.lock().header.has_raw_data_file();
        let wanted = raw || preallocation != Preallocation::Off;
        self.data_file.as_ref().filter(|_| wanted)
    }

    /// Removes mappings of whole clusters behind the disk's end: between `from` and `to`.
    async fn unmap_beyond(self: &Arc<Self>, from: u64, to: u64) -> Result<()> {
        let geometry = self.geometry;
        let per_table = geometry.l2_entries() << geometry.cluster_bits;
        let start = from.next_multiple_of(geometry.cluster_size());
        let end = to.next_multiple_of(geometry.cluster_size());
        for index in self.tables_among(start / per_table..end.div_ceil(per_table)).await? {
            let mut at = start.max(index * per_table);
            let end = end.min((index + 1).saturating_mul(per_table));
            while at < end {
                at += self.decide(NO_CAUSE, |state| state.unmap_behind_end(at, end - at)).await?;
                self.relieve().await?;
            }
        }
        Ok(())
    }

    /// The L1 indices of a range that have a table. The L1 table is read in large pieces; afterwards no slice has changes
    /// that are not in the file.
    async fn tables_among(self: &Arc<Self>, indices: Range<u64>) -> Result<Vec<u64>> {
        self.flush().await?;
        let (table, entries) = {
            let header = &self.state.lock().header;
            (header.l1_offset, u64::from(header.l1_entries))
        };
        let (first, end) = (indices.start.min(entries), indices.end.min(entries));
        let mut found = Vec::new();
        self.each_entry(HostOffset(table.0 + first * 8), (end - first.min(end)) * 8, |i, raw| {
            if L1Entry::decode(raw) != L1Entry::Empty {
                found.push(first + i);
            }
        })
        .await?;
        Ok(found)
    }

    /// Shortens the file to what it holds. Failure costs only space.
    async fn cut_file(self: &Arc<Self>) -> Result<()> {
        let waits = {
            let state = self.state.lock();
            !state.freed.is_empty() || !state.released.is_empty()
        };
        if waits {
            // Somebody still reads what is no longer needed.
            return Ok(());
        }
        let Some(end) = self.end_of_use().await? else { return Ok(()) };
        let len = end << self.geometry.cluster_bits;
        if len < self.file.len() {
            let shorter = Request::truncate(len, Preallocation::Off);
            if self.file.submit(shorter).finish().await.result.is_ok() {
                let mut state = self.state.lock();
                state.virgin_from = state.virgin_from.min(len);
                state.hint = state.hint.min(end);
            }
        }
        Ok(())
    }
}

impl Engine {
    /// One past the last cluster with a refcount; `None` when it is not found within [`TAIL_CLUSTERS_MAX`]. Looks only
    /// where refcount blocks are: a sparse file may be longer than anything in it.
    async fn end_of_use(self: &Arc<Self>) -> Result<Option<u64>> {
        let (table, bytes) = {
            let header = &self.state.lock().header;
            (header.reftable_offset, u64::from(header.reftable_clusters) << self.geometry.cluster_bits)
        };
        let mut blocks = Vec::new();
        self.each_entry(table, bytes, |index, raw| {
            blocks.extend(table::refblock_offset(raw).map(|_| index));
        })
        .await?;
        let (per_block, per_slice) = (self.geometry.refblock_entries(), self.geometry.refslice_entries());
        let mut looked_at = 0;
        for index in blocks.into_iter().rev() {
            for slice in (index * per_block / per_slice..(index + 1) * per_block / per_slice).rev() {
                let last = self.decide(NO_CAUSE, |state| state.last_used_in(slice)).await?;
                if let Some(cluster) = last {
                    return Ok(Some(cluster + 1));
                }
                looked_at += per_slice;
                if looked_at >= TAIL_CLUSTERS_MAX {
                    return Ok(None);
                }
            }
        }
        Ok(None)
    }
}

impl State {
    /// Removes the mapping of the cluster at guest `offset`, behind the disk's end; returns the bytes settled.
    fn unmap_behind_end(&mut self, offset: u64, len: u64) -> Decision<u64> {
        let cluster = self.geometry.guest_cluster(offset);
        let Some(slot) = self.l2_slot(cluster)? else { return self.map_run(offset, len).map(|run| run.len) };
        let size = self.geometry.cluster_size();
        if self.cell(slot, cluster)? != Cell::UNALLOCATED {
            self.unlink(cluster, Cell::UNALLOCATED, Dropped::CutOff)?;
        }
        Ok(size)
    }
}
