//! Finds the L2 tables that all L1 tables name, and has each read and digested once, in the order of the file, on
//! all cores.
//!
//! Memory follows what the L1 tables really name: tables named many times are merged as they come, and L1 tables of
//! snapshots that lie upon each other are read once with their multiplicity. So what a header or a snapshot table
//! claims costs nothing.

use std::collections::VecDeque;
use std::sync::Arc;

use cowbell_block::spawn::{self, Running};
use cowbell_block::{Child, Result};

use super::digest::{Digest, Format};
use crate::engine::Engine;

/// Bytes of tables that are digested as one task.
const BATCH_BYTES: u64 = 1 << 20;
/// Tables below this are not worth a thread.
const SPAWN_BYTES: u64 = 4 << 20;
/// Most tasks under way, for memory's sake.
const TASKS_MAX: usize = 8;
/// Tables that are collected before they are merged for the first time.
const MERGE_FIRST: usize = 1 << 16;

/// Something about an L2 table, which lies at an offset of the file.
pub(crate) trait AtOffset {
    /// Where the table lies.
    fn offset(&self) -> u64;
}

/// An L2 table that is named at least once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub offset: u64,
    /// L1 entries that name it.
    pub times: u64,
    /// Those of the active L1 table.
    pub active: u32,
    /// The L1 table that names it first: 0 is the active one.
    pub owner: u32,
    /// The entry there.
    pub l1_index: u32,
}

impl AtOffset for Table {
    fn offset(&self) -> u64 {
        self.offset
    }
}

/// The tables named, merged.
#[derive(Default)]
pub(super) struct Tables {
    list: Vec<Table>,
    /// Length at which the list is merged next.
    merge_at: usize,
}

impl Tables {
    pub fn add(&mut self, table: Table) {
        if self.list.len() >= self.merge_at.max(MERGE_FIRST) {
            self.merge();
            self.merge_at = self.list.len() * 2;
        }
        self.list.push(table);
    }

    /// The tables in the order of the file, each once.
    pub fn finish(mut self) -> Vec<Table> {
        self.merge();
        self.list
    }

    fn merge(&mut self) {
        self.list.sort_unstable_by_key(|t| (t.offset, t.owner, t.l1_index));
        self.list.dedup_by(|next, kept| {
            let same = next.offset == kept.offset;
            if same {
                kept.times = kept.times.saturating_add(next.times);
                kept.active = kept.active.saturating_add(next.active);
            }
            same
        });
    }
}

/// Tables that are being digested.
type Batch<'a, T> = (&'a [T], Running<Result<Vec<Digest>>>);

/// Reads and digests the tables, and calls `take` with each in their order.
pub(crate) async fn each_table<T: AtOffset>(
    engine: &Arc<Engine>,
    format: Format,
    tables: &[T],
    mut take: impl FnMut(&T, Digest),
) -> Result<()> {
    let size = format.geometry.cluster_size();
    let per_batch = (BATCH_BYTES / size).max(1) as usize;
    let mut batches = tables.chunks(per_batch);
    let offsets = |batch: &[T]| batch.iter().map(T::offset).collect::<Vec<u64>>();
    let spawner = engine.around.spawn.as_ref();
    let spawner = spawner.filter(|s| tables.len() as u64 * size >= SPAWN_BYTES && s.width() > 1);
    let Some(spawner) = spawner else {
        for batch in batches {
            let digests = digest_all(&engine.file, format, offsets(batch)).await?;
            batch.iter().zip(digests).for_each(|(table, digest)| take(table, digest));
        }
        return Ok(());
    };
    let in_flight = (spawner.width() + 1).min(TASKS_MAX);
    let mut running: VecDeque<Batch<T>> = VecDeque::new();
    loop {
        while running.len() < in_flight
            && let Some(batch) = batches.next()
        {
            let (file, offsets) = (engine.file.clone(), offsets(batch));
            let task = spawn::run(&**spawner, async move { digest_all(&file, format, offsets).await });
            running.push_back((batch, task));
        }
        let Some((batch, task)) = running.pop_front() else { return Ok(()) };
        batch.iter().zip(task.await?).for_each(|(table, digest)| take(table, digest));
    }
}

/// Digests of the tables at these offsets; tables side by side are read at once.
async fn digest_all(file: &Child, format: Format, offsets: Vec<u64>) -> Result<Vec<Digest>> {
    let size = format.geometry.cluster_size();
    let mut digests = Vec::with_capacity(offsets.len());
    let mut at = 0;
    while at < offsets.len() {
        let start = offsets[at];
        let in_a_row = offsets[at..].iter().zip(0..).take_while(|(o, i)| **o == start + i * size).count();
        // What lies beyond the end of the file reads as zeroes, and refers to nothing.
        if start >= format.file_len {
            digests.extend((0..in_a_row).map(|_| Digest::default()));
        } else {
            let piece = file.read(start, in_a_row * size as usize).await?;
            digests.extend(piece.chunks_exact(size as usize).map(|table| format.digest(table)));
            piece.recycle();
        }
        at += in_a_row;
    }
    Ok(digests)
}
