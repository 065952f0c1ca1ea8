//! Moves metadata into the file in an order that is safe to cut anywhere, and makes it durable.
//!
//! ```text
//!   refcounts (always safe: only ever too high)      } group A, together with guest data and new
//!   [barrier, refcount table entries of new blocks]  } tables, which were written as they came
//!   barrier             only if an entry points to something new
//!   L2 and L1 entries                                group B
//!   barrier
//!   freed clusters: hole punched, refcount lowered   rides in group A of the next flush
//! ```
//!
//! L1 entries ride with L2 entries: a table's own clusters are written whole before its L1 entry changes in
//! memory, so either may become durable first. One barrier when nothing was allocated since the last flush, two in
//! the steady case, three when a refcount block was added (one before the refcount table names it). Only for that
//! is the design's third group needed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowbell_block::buf::BUF_ALIGN;
use cowbell_block::range_lock::LockMode;
use cowbell_block::{Bufs, DebugEvent, Error, ErrorKind, Request, Result, TraceEvent, mutant};

use crate::cache::{TableCache, WriteBack};
use crate::engine::{Engine, NO_CAUSE};
use crate::header::Incompatible;
use crate::read::Gather;
use crate::state::{Freed, State};

/// Which tables a write-back belongs to.
#[derive(Clone, Copy)]
enum Tables {
    L1,
    L2,
    Reftable,
    Refblocks,
}

impl Tables {
    fn cache(self, state: &mut State) -> &mut TableCache {
        match self {
            Self::L1 => &mut state.l1,
            Self::L2 => &mut state.l2,
            Self::Reftable => &mut state.reftable,
            Self::Refblocks => &mut state.refblocks,
        }
    }

    fn event(self) -> DebugEvent {
        match self {
            Self::L1 => DebugEvent::L1Update,
            Self::L2 => DebugEvent::L2Update,
            Self::Reftable => DebugEvent::ReftableUpdate,
            Self::Refblocks => DebugEvent::RefblockUpdatePart,
        }
    }

    /// Which cache it is for the field's events, if it is one there.
    fn number(self) -> Option<u64> {
        match self {
            Self::L2 => Some(1),
            Self::Refblocks => Some(0),
            Self::L1 | Self::Reftable => None,
        }
    }

    fn copies(self, writes: Vec<WriteBack>) -> Vec<(Tables, WriteBack)> {
        writes.into_iter().map(|w| (self, w)).collect()
    }
}

/// Slices side by side are written together up to about this many bytes.
const ROW_BYTES: u64 = 256 << 10;

impl Engine {
    /// Makes every write that completed before this call durable.
    ///
    /// # Errors
    /// The file's error. Unless the host was merely out of space, later writes and flushes fail as well: what the
    /// file holds is unknown (rule G9).
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<()> {
        let arrived_after = self.state.lock().flush_started;
        let _turn = self.flushing.lock(0..1, LockMode::Exclusive).await;
        self.check_poison()?;
        if self.state.lock().flush_covered > arrived_after {
            return Ok(());
        }
        self.flush_now().await
    }

    fn check_poison(&self) -> Result<()> {
        match self.poisoned.load(Ordering::SeqCst) {
            true => Err(ErrorKind::Poisoned.into()),
            false => Ok(()),
        }
    }

    /// The same, for who has the turn of the flushes.
    pub(crate) async fn flush_now(self: &Arc<Self>) -> Result<()> {
        let (number, mut entries, depends, mut freed) = {
            let mut state = self.state.lock();
            state.flush_started += 1;
            let entries = state.take_entries(self.file.limits().request_alignment);
            let depends = std::mem::take(&mut state.entries_need_barrier);
            let freed = std::mem::take(&mut state.freed);
            if !freed.is_empty() {
                state.epochs.advance();
            }
            (state.flush_started, entries, depends, freed)
        };
        self.trace(TraceEvent::Qcow2CacheFlush, [NO_CAUSE.request, 1]);
        self.trace(TraceEvent::Qcow2CacheFlush, [NO_CAUSE.request, 0]);
        let result = self.write_in_order(&mut entries, depends).await;
        {
            let mut state = self.state.lock();
            if let Err(e) = result {
                for (tables, write) in entries {
                    tables.cache(&mut state).not_written(write.key);
                }
                state.entries_need_barrier |= depends;
                freed.append(&mut state.freed);
                state.freed = freed;
                return Err(e);
            }
            state.flush_covered = number;
            state.released.append(&mut freed);
        }
        self.reclaim().await;
        Ok(())
    }

    /// Groups A and B with their barriers. What arrived is taken out of `entries`.
    async fn write_in_order(
        self: &Arc<Self>,
        entries: &mut Vec<(Tables, WriteBack)>,
        depends: bool,
    ) -> Result<()> {
        if mutant::is_active("reference-before-refcount") {
            self.write_all(entries).await?;
            self.barrier().await?;
        }
        let lazy = self.state.lock().lazy;
        if lazy {
            if !entries.is_empty() && !mutant::is_active("dirty-bit-unset") {
                self.set_dirty_bit().await?;
            }
        } else {
            self.write_refcounts().await?;
        }
        if !entries.is_empty() {
            if depends && !mutant::is_active("barrier-before-entries") {
                self.barrier().await?;
            }
            self.write_all(entries).await?;
        }
        if mutant::is_active("barrier-after-entries") {
            return Ok(());
        }
        // Not for the barriers between the groups: the event is one of the guest's flush.
        self.file.announce(DebugEvent::FlushToDisk, NO_CAUSE).await;
        self.barrier().await
    }

    /// Makes all that was written durable, in the file with the guest's data as well: what the image says about data
    /// must not outlive it. A failure is final.
    pub(crate) async fn barrier(self: &Arc<Self>) -> Result<()> {
        let _turn = self.barriers.lock(0..1, LockMode::Exclusive).await;
        self.check_poison()?;
        let data = match &self.data_file {
            Some(data) if !mutant::is_active("data-file-unsettled") => data.flush().await,
            _ => Ok(()),
        };
        let result = data.and(self.file.flush().await);
        if result.is_err() {
            self.poisoned.store(true, Ordering::SeqCst);
        }
        result
    }

    /// Writes refcounts that are newer than the file; safe at any time, since a refcount is raised before its
    /// reference exists and lowered after it is durably gone.
    pub(crate) async fn write_refcounts(self: &Arc<Self>) -> Result<()> {
        let _turn = self.refcounting.lock(0..1, LockMode::Exclusive).await;
        let align = self.file.limits().request_alignment;
        let (mut blocks, mut table) = {
            let mut state = self.state.lock();
            let table = Tables::Reftable.copies(state.reftable.take_dirty(align));
            (Tables::Refblocks.copies(state.refblocks.take_dirty(align)), table)
        };
        let mut result = self.write_all(&mut blocks).await;
        if !table.is_empty() && result.is_ok() {
            // The block must be readable before the table names it.
            if !mutant::is_active("barrier-before-reftable") {
                result = self.barrier().await;
            }
            self.file.announce(DebugEvent::RefblockAllocHookup, NO_CAUSE).await;
            if result.is_ok() {
                result = self.write_all(&mut table).await;
            }
            // That the table names it before anything relies on its refcounts is the next barrier's doing: whoever
            // writes entries that point to something new has one before them.
        }
        if result.is_err() {
            let mut state = self.state.lock();
            for (tables, write) in blocks.into_iter().chain(table) {
                tables.cache(&mut state).not_written(write.key);
            }
        }
        result
    }

    /// Writes all copies side by side, taking out those that arrived.
    ///
    /// Those that did not are dirty as before, and the next flush writes them again: any part of a group may be in the
    /// file, so a failure leaves nothing unknown.
    async fn write_all(self: &Arc<Self>, writes: &mut Vec<(Tables, WriteBack)>) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        let mut gather = Gather::default();
        let mut keys = Vec::with_capacity(writes.len());
        // Slices that lie side by side go as one.
        let (mut start, mut row) = (0, Bufs::none());
        for (tables, write) in writes.drain(..) {
            self.file.announce(tables.event(), NO_CAUSE).await;
            if let Some(is_l2) = tables.number() {
                self.trace(TraceEvent::Qcow2CacheEntryFlush, [NO_CAUSE.request, is_l2, write.key]);
            }
            keys.push((tables, write.key));
            let len = row.len() as u64;
            if len > 0 && (start + len != write.host.0 || len >= ROW_BYTES) {
                gather.add(self.file.submit(Request::write(start, std::mem::take(&mut row))));
            }
            if row.is_empty() {
                start = write.host.0;
            }
            row.append(write.bytes.into());
        }
        gather.add(self.file.submit(Request::write(start, row)));
        let (bufs, result) = gather.finish().await;
        bufs.recycle();
        let mut state = self.state.lock();
        for (tables, key) in keys {
            match result {
                Ok(()) => tables.cache(&mut state).written(key),
                Err(_) => tables.cache(&mut state).not_written(key),
            }
        }
        result.map(drop)
    }

    /// What the file holds is unknown from now on (rule R9).
    pub(crate) fn poison(&self, e: Error) -> Error {
        self.poisoned.store(true, Ordering::SeqCst);
        e
    }

    /// A full host may get room again; any other failure leaves the file's content unknown.
    pub(crate) fn write_failed(&self, e: Error) -> Error {
        if e.kind() == ErrorKind::NoSpace { e } else { self.poison(e) }
    }

    /// Gives released clusters back: hole first, then the refcount, so that nobody can own them meanwhile.
    ///
    /// What the flush promised is kept by now, so a failure here does not fail it: the clusters stay released
    /// and the next flush tries again.
    pub(crate) async fn reclaim(self: &Arc<Self>) {
        self.end_rests().await;
        loop {
            let next = {
                let mut state = self.state.lock();
                let oldest = state.epochs.oldest_running();
                let ready = |f: &Freed| f.epoch < oldest || mutant::is_active("no-epochs");
                let index = state.released.iter().position(ready);
                index.map(|i| state.released.swap_remove(i))
            };
            let Some(mut freed) = next else { return };
            if freed.punch && !mutant::is_active("punch-after-free") {
                self.punch(&freed).await;
            }
            let all = freed.clone();
            while !freed.clusters.is_empty() {
                let dropped =
                    self.decide(NO_CAUSE, |state| state.drop_references(freed.clusters.clone())).await;
                match dropped {
                    Ok(count) => freed.clusters.start += count,
                    // Reported, and the image is refused from now on.
                    Err(e) if e.kind() == ErrorKind::Corrupt => freed.clusters.start += 1,
                    Err(_) => {
                        self.state.lock().released.push(freed);
                        return;
                    }
                }
            }
            if all.punch && mutant::is_active("punch-after-free") {
                self.punch(&all).await;
            }
        }
    }

    /// Returns the storage of clusters that lose their only reference to the host. Failure costs only space.
    async fn punch(self: &Arc<Self>, freed: &Freed) {
        let size = self.geometry.cluster_size();
        let mut rest = freed.clusters.clone();
        let mut hole = rest.start..rest.start;
        while !rest.is_empty() {
            // What cannot be looked up is left alone.
            let looked = self.decide(NO_CAUSE, |state| state.single_run(rest.clone())).await;
            let (last, len) = looked.unwrap_or((false, 1));
            rest.start += len;
            if last {
                hole.end = rest.start;
            }
            if !last || rest.is_empty() {
                if !hole.is_empty() {
                    let request = Request::discard(hole.start * size, (hole.end - hole.start) * size);
                    let _ = self.file.submit(request).finish().await;
                }
                hole = rest.start..rest.start;
            }
        }
    }

    /// With lazy refcounts the image must say so before an entry relies on a refcount that is not written.
    async fn set_dirty_bit(self: &Arc<Self>) -> Result<()> {
        if self.state.lock().header.incompatible.contains(Incompatible::DIRTY) {
            return Ok(());
        }
        // The barrier before the entries makes it durable. Without one, no entry points to anything new: refcounts
        // in the file are too high at worst, and nothing relies on the bit.
        self.update_header(|header| header.incompatible |= Incompatible::DIRTY).await
    }

    /// Makes refcounts exact again and clears the dirty bit, in this order.
    pub(crate) async fn settle_refcounts(self: &Arc<Self>) -> Result<()> {
        self.flush().await?;
        // Clusters freed by that flush are counted down now; written here, made durable below.
        self.write_refcounts().await?;
        if !mutant::is_active("dirty-bit-cleared-early") {
            self.barrier().await?;
        }
        if self.state.lock().header.incompatible.contains(Incompatible::DIRTY) {
            self.update_header(|header| header.incompatible -= Incompatible::DIRTY).await?;
            self.barrier().await?;
        }
        Ok(())
    }
}

/// Most ranges that wait for a flush before one is started: bounds the memory of a long discard.
const FREED_RANGES_MAX: usize = 16384;
/// Most bytes of L2 slices that wait for a flush: a flush writes copies of them, so this bounds its memory. They map
/// 64 GiB at the usual cluster size.
const DIRTY_BYTES_MAX: u64 = 8 << 20;

impl Engine {
    /// Flushes when so much waits for a flush that memory is at stake.
    pub(crate) async fn relieve(self: &Arc<Self>) -> Result<()> {
        let crowded = {
            let state = self.state.lock();
            // A copy of a small slice takes a whole page.
            let copy = self.slice_bytes().max(BUF_ALIGN as u64);
            let dirty_bytes = state.l2.dirty_count() as u64 * copy;
            state.freed.len() >= FREED_RANGES_MAX || dirty_bytes > DIRTY_BYTES_MAX
        };
        if crowded { self.flush().await } else { Ok(()) }
    }
}

impl State {
    /// Copies of the L2 and L1 entries that are newer than the file.
    fn take_entries(&mut self, align: u32) -> Vec<(Tables, WriteBack)> {
        let mut entries = Tables::L2.copies(self.l2.take_dirty(align));
        entries.extend(Tables::L1.copies(self.l1.take_dirty(align)));
        entries
    }
}
