//! New tables and refcounts beside the old ones, switched by one write.
//!
//! ```text
//!   own clusters        counted once in the old refcounts: a cut leaks them, a failure gives them back
//!   write tables        L1, L2, snapshot table: nobody refers to them yet
//!   copy refcount blocks whose counts change, with the changes (module `blocks`)
//!   mark                what is new counts its references, what is replaced loses one; in the copies
//!   barrier, header, barrier
//!   forget caches; what is free now is found by the next allocation
//! ```
//!
//! Clusters of the disk that became free rest until no plan runs that may still read them, see
//! [`State::rest`](crate::state::State).

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Buf, Flags, Request, Result, mutant};
use roaring::RoaringTreemap;

use super::SnapshotError;
use super::blocks::Blocks;
use super::deltas::Deltas;
use super::tables::{PAGE, is_zero};

use crate::engine::{Dropped, Engine, NO_CAUSE};
use crate::geometry::{HostCluster, HostOffset};
use crate::header::{Header, Incompatible};
use crate::state::Need;

/// Clusters of a structure and what happens to their refcount.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub clusters: Range<u64>,
    pub change: Change,
}

/// How a mark changes a refcount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// The structure is new and has as many references.
    Set(u64),
    /// The structure has one reference less.
    Drop,
}

/// Clusters for something new.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub first: u64,
    /// Never written since the file began: reads as zeroes.
    pub virgin: bool,
}

impl Place {
    /// The place `clusters` further on.
    pub fn skip(self, clusters: u64) -> Self {
        Self { first: self.first + clusters, ..self }
    }
}

/// An operation on the whole image under way. Dropping it without [`Shadow::abandon`] leaks what it owns until the
/// image is checked.
#[must_use = "either committed or abandoned"]
pub(super) struct Shadow {
    pub engine: Arc<Engine>,
    pub deltas: Deltas,
    pub blocks: Blocks,
    /// What was taken from the allocator.
    owned: Vec<Range<u64>>,
    pub marks: Vec<Mark>,
    /// Clusters whose last reference goes.
    pub freed: RoaringTreemap,
    /// Why, which says what happens to their storage.
    why: Dropped,
    /// The lowest cluster of a structure that goes.
    pub lowest_dropped: u64,
    /// Counted more than once in place, before the switch.
    raised: Vec<Range<u64>>,
    /// Some refcount became 1: a COPIED flag may have to be set.
    pub became_one: bool,
}

/// What the switch changes in the header.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Switch {
    /// The active L1 table: place and entries.
    pub l1: Option<(HostOffset, u32)>,
    /// The snapshot table: place and number of snapshots.
    pub snapshots: Option<(HostOffset, u32)>,
    /// The disk's length.
    pub size: Option<u64>,
}

impl Engine {
    /// Moves everything into the file and makes refcounts exact. The caller holds the range lock of everything and
    /// the turn of the flushes, so from here on the file says all there is to know.
    pub(crate) async fn bring_up_to_date(self: &Arc<Self>) -> Result<()> {
        self.flush_now().await?;
        self.write_refcounts().await?;
        if self.state.lock().header.incompatible.contains(Incompatible::DIRTY) {
            // Refcounts must be durable before the bit goes; its removal, before anything that is done next.
            self.barrier().await?;
            self.update_header(|header| header.incompatible -= Incompatible::DIRTY).await?;
            self.barrier().await?;
        }
        self.satisfy(Need::Meta, NO_CAUSE).await
    }
}

impl Shadow {
    /// Nothing is done yet; what will be freed is freed for this reason.
    pub fn new(engine: &Arc<Engine>, why: Dropped) -> Self {
        Self {
            engine: engine.clone(),
            deltas: Deltas::new(engine.around.work_bytes),
            blocks: Blocks::new(engine.geometry),
            owned: Vec::new(),
            marks: Vec::new(),
            freed: RoaringTreemap::new(),
            why,
            lowest_dropped: u64::MAX,
            raised: Vec::new(),
            became_one: false,
        }
    }

    /// Takes `count` clusters in a row for a structure with `references`.
    pub async fn own(&mut self, count: u64, references: u64) -> Result<Place> {
        if count == 0 {
            return Ok(Place { first: 0, virgin: false });
        }
        let max = self.engine.geometry.refcount_max();
        if references > max {
            return Err(SnapshotError::RefcountTooLarge { wanted: references, max }.into());
        }
        let written_to = self.engine.state.lock().virgin_from;
        let taken = self.engine.take_contiguous(count).await?;
        self.owned.push(taken.clone());
        let virgin = taken.start << self.engine.geometry.cluster_bits >= written_to;
        let first = taken.start;
        self.marks.push(Mark { clusters: taken, change: Change::Set(references) });
        Ok(Place { first, virgin })
    }

    /// Takes `count` clusters in a row for copies of tables. Most pages of most tables are empty: a place that was
    /// used before is cleared as a whole where the host can, so that they need not be written.
    pub async fn own_cleared(&mut self, count: u64, references: u64) -> Result<Place> {
        let place = self.own(count, references).await?;
        if place.virgin || count == 0 {
            return Ok(place);
        }
        let bits = self.engine.geometry.cluster_bits;
        let flags = Flags::MAY_UNMAP | Flags::NO_FALLBACK;
        let clear = Request::write_zeroes(place.first << bits, count << bits).with_flags(flags);
        let virgin = self.engine.file.submit(clear).finish().await.result.is_ok();
        Ok(Place { virgin, ..place })
    }

    /// Makes the file cover clusters of which the last pages were left out.
    pub async fn cover(&self, clusters: Range<u64>) -> Result<()> {
        let end = clusters.end << self.engine.geometry.cluster_bits;
        if clusters.is_empty() || self.engine.file.len() >= end {
            return Ok(());
        }
        // What lies before the file's end may have been written.
        let start = self.engine.file.len().max(end - SECTOR);
        self.engine.file.write(start, Buf::zeroed((end - start) as usize)).await
    }

    /// A table that the header, or the snapshot table, will not name any more.
    pub fn drop_structure(&mut self, offset: HostOffset, bytes: u64) {
        let geometry = &self.engine.geometry;
        let first = geometry.host_cluster(offset).0;
        let clusters = first..first + geometry.clusters_for(bytes);
        if !clusters.is_empty() {
            self.marks.push(Mark { clusters, change: Change::Drop });
        }
    }

    /// Gives up the last clusters of a place that was taken; they are not needed.
    pub fn disown(&mut self, clusters: Range<u64>) {
        if clusters.is_empty() {
            return;
        }
        let taken = self.marks.iter_mut().rfind(|m| !m.clusters.is_empty() && m.clusters.end == clusters.end);
        let taken = taken.expect("only what was taken is given up");
        assert!(taken.clusters.start <= clusters.start && taken.change != Change::Drop, "a part of it");
        taken.clusters.end = clusters.start;
        self.marks.push(Mark { clusters, change: Change::Set(0) });
    }

    /// Makes the new state the image's, in one step.
    ///
    /// # Errors
    /// Before the switch: the image is as it was, and the caller abandons the shadow. From the switch on a failure
    /// poisons the image: nobody knows which of both the file holds (rule R9).
    pub async fn commit(&mut self, switch: Switch) -> Result<()> {
        let engine = self.engine.clone();
        let reftable = self.write_reftable().await?;
        let released = self.settle_marks().await?;
        engine.write_refcounts().await?;
        if !mutant::is_active("shadow-unsettled") {
            engine.barrier().await?;
        }
        engine.update_header(|header| apply_switch(header, &switch, reftable)).await?;
        self.owned.clear();
        self.raised.clear();
        {
            let mut state = engine.state.lock();
            state.l1.forget(0..u64::MAX);
            state.l2.forget(0..u64::MAX);
            state.reftable.forget(0..u64::MAX);
            state.refblocks.forget(0..u64::MAX);
            // Found anew, and looked at for overlaps, before the next allocation.
            state.meta = None;
        }
        engine.barrier().await?;
        self.release(released);
        engine.reclaim().await;
        Ok(())
    }

    /// The old state is durably gone: hands what is free now to the allocator.
    fn release(&mut self, released: Vec<Range<u64>>) {
        let freed = std::mem::take(&mut self.freed);
        let mut state = self.engine.state.lock();
        let lowest = freed.min().unwrap_or(u64::MAX).min(self.lowest_dropped);
        state.hint = state.hint.min(lowest);
        state.stop_packing(&(0..u64::MAX));
        released.into_iter().for_each(|clusters| state.give_back_all(clusters));
        let punch = state.discards.passes(self.why);
        state.rest(freed, punch);
    }

    /// Gives back what was taken; the image is as it was. A refcount that cannot be lowered any more is a leak, no
    /// more.
    pub async fn abandon(mut self) {
        let engine = self.engine.clone();
        for cluster in std::mem::take(&mut self.raised).into_iter().flatten() {
            let _ = engine.decide(NO_CAUSE, |state| state.set_refcount(cluster, 1)).await;
        }
        let mut state = engine.state.lock();
        self.owned.drain(..).for_each(|clusters| state.give_back_all(clusters));
    }

    /// Writes the refcount table with the places of the new blocks; `None` when no block moved.
    async fn write_reftable(&mut self) -> Result<Option<HostOffset>> {
        if self.blocks.is_empty() {
            return Ok(None);
        }
        let engine = self.engine.clone();
        let table = || {
            let state = engine.state.lock();
            (state.header.reftable_offset, u64::from(state.header.reftable_clusters))
        };
        let place = loop {
            let (_, clusters) = table();
            let place = self.own(clusters, 1).await?;
            if table().1 == clusters {
                break place;
            }
            // It grew for its own copy.
            self.disown(place.first..place.first + clusters);
        };
        let (old, bytes) = (table().0, table().1 << engine.geometry.cluster_bits);
        engine.write_refcounts().await?;
        let mut content = engine.file.read(old.0, bytes as usize).await?;
        self.blocks.name_in(&mut content);
        let offset = engine.geometry.host_offset(HostCluster(place.first));
        engine.file.write(offset.0, content).await?;
        self.drop_structure(old, bytes);
        Ok(Some(offset))
    }

    /// Counts what is new and what goes: in the copies of refcount blocks where there are any, otherwise in place.
    /// Returns what must be lowered in place, once the old tables are durably gone.
    async fn settle_marks(&mut self) -> Result<Vec<Range<u64>>> {
        let engine = self.engine.clone();
        let per_block = engine.geometry.refblock_entries();
        let mut marks = std::mem::take(&mut self.marks);
        marks.sort_by_key(|mark| mark.clusters.start);
        let mut released = Vec::new();
        let mut inside: Vec<Mark> = Vec::new();
        for mark in marks {
            let mut at = mark.clusters.start;
            while at < mark.clusters.end {
                let end = ((at / per_block + 1) * per_block).min(mark.clusters.end);
                if self.blocks.has_moved(at / per_block) {
                    inside.push(Mark { clusters: at..end, change: mark.change });
                } else {
                    match mark.change {
                        Change::Drop | Change::Set(0) => released.push(at..end),
                        // Counted when it was taken.
                        Change::Set(1) => {}
                        Change::Set(n) => {
                            self.raised.push(at..end);
                            for cluster in at..end {
                                engine.decide(NO_CAUSE, |state| state.set_refcount(cluster, n)).await?;
                            }
                        }
                    }
                }
                at = end;
            }
        }
        self.patch_blocks(&inside).await?;
        Ok(released)
    }

    /// Writes `table` to `place`, leaving out what reads as zeroes anyway.
    pub async fn write_sparse(&self, place: Place, at: u64, mut table: Buf) -> Result<()> {
        let mut at = (place.first << self.engine.geometry.cluster_bits) + at;
        if !place.virgin {
            return self.engine.file.write(at, table).await;
        }
        while !table.is_empty() {
            let (zeroes, data) = first_run(&table);
            table.split_to(zeroes).recycle();
            at += zeroes as u64;
            if data > 0 {
                self.engine.file.write(at, table.split_to(data)).await?;
                at += data as u64;
            }
        }
        Ok(())
    }
}

/// Bytes that make the file cover a table.
const SECTOR: u64 = 512;

/// The lengths of the zeroes that a table begins with, and of what follows them, in whole pages.
fn first_run(table: &[u8]) -> (usize, usize) {
    let len_while = |from: usize, zero: bool| {
        let pages = table[from..].chunks(PAGE).take_while(|page| is_zero(page) == zero);
        pages.map(<[u8]>::len).sum::<usize>()
    };
    let zeroes = len_while(0, true);
    (zeroes, len_while(zeroes, false))
}

fn apply_switch(header: &mut Header, switch: &Switch, reftable: Option<HostOffset>) {
    if let Some((offset, entries)) = switch.l1 {
        header.l1_offset = offset;
        header.l1_entries = entries;
    }
    if let Some((offset, count)) = switch.snapshots {
        header.snapshots_offset = offset;
        header.snapshot_count = count;
    }
    if let Some(offset) = reftable {
        header.reftable_offset = offset;
    }
    header.size = switch.size.unwrap_or(header.size);
}
