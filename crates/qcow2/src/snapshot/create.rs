//! Keeps the disk as it is now.
//!
//! Afterwards every cluster of the disk is shared, so no table of it may have a COPIED flag. Tables that have some
//! are copied without them; both the disk and the snapshot use the copies, and the old tables are free.

use std::sync::Arc;

use cowbell_block::{Buf, NewSnapshot, Result, names};

use super::rows::{Input, Output, Row};
use super::shadow::{Place, Shadow, Switch};
use super::tables::{
    Entries, L1Place, TableRef, batch_end, clear_flags, encode_l1, has_flags, pieces, read_batch,
};
use super::{SNAPSHOTS_MAX, SnapshotError, TABLE_BYTES_MAX};
use crate::engine::{Dropped, Engine};
use crate::geometry::{HostCluster, HostOffset};
use crate::header::Header;
use crate::table::{L1Entry, Ownership};

/// Makes a snapshot.
pub(super) async fn create(engine: &Arc<Engine>, new: &NewSnapshot) -> Result<()> {
    let header = engine.state.lock().header.clone();
    if header.snapshot_count >= SNAPSHOTS_MAX {
        return Err(SnapshotError::TooMany.into());
    }
    let bytes = names::to_bytes(&new.name).len();
    if bytes > usize::from(u16::MAX) {
        return Err(SnapshotError::NameTooLong(bytes).into());
    }
    let (mut row, table_bytes) = new_row(engine, &header, new).await?;
    let mut shadow = Shadow::new(engine, Dropped::Replaced);
    let made = Creation::new(engine, &header, new).run(&mut shadow, &header, &mut row, table_bytes).await;
    if made.is_err() {
        shadow.abandon().await;
    }
    made
}

/// The entry, but for its L1 table, and the length of the table with it.
async fn new_row(engine: &Arc<Engine>, header: &Header, new: &NewSnapshot) -> Result<(Row, u64)> {
    let (mut last, mut bytes) = (0, 0);
    let mut input = Input::new(&engine.file, header);
    while let Some(row) = input.next().await? {
        last = last.max(row.number());
        bytes += row.completed(header.size).stored_len();
    }
    let id = last.checked_add(1).ok_or(SnapshotError::IdTaken(last))?;
    let mut row = Row::new(id, &new.name);
    row.raw.date_sec = new.date_sec.into();
    row.raw.date_nsec = new.date_nsec.into();
    row.raw.vm_clock_nsec = new.vm_clock_nsec.into();
    row.set_extra(new.vm_state_size, header.size, new.icount);
    bytes += row.stored_len();
    if bytes > TABLE_BYTES_MAX {
        return Err(SnapshotError::TooLarge.into());
    }
    Ok((row, bytes))
}

/// What is decided before the first window.
struct Creation {
    l1: L1Place,
    /// From this L1 entry on the tables are the snapshot's alone: its VM state.
    own_from: u64,
    snapshot_l1: Place,
    active_l1: Option<Place>,
}

impl Creation {
    fn new(engine: &Arc<Engine>, header: &Header, new: &NewSnapshot) -> Self {
        let vm_state = engine.geometry.l1_entries_for(header.size);
        let own_from = if new.vm_state_size > 0 { vm_state } else { u64::MAX };
        let nowhere = Place { first: 0, virgin: false };
        Self { l1: L1Place::active(engine), own_from, snapshot_l1: nowhere, active_l1: None }
    }

    async fn run(
        mut self,
        shadow: &mut Shadow,
        header: &Header,
        row: &mut Row,
        table_bytes: u64,
    ) -> Result<()> {
        let engine = shadow.engine.clone();
        let geometry = engine.geometry;
        let l1_clusters = geometry.clusters_for(self.l1.entries * 8);
        self.snapshot_l1 = shadow.own(l1_clusters, 1).await?;
        if self.active_changes(&engine).await? {
            self.active_l1 = Some(shadow.own(l1_clusters, 1).await?);
            shadow.drop_structure(self.l1.offset, self.l1.entries * 8);
        }
        loop {
            for piece in pieces(self.l1.entries) {
                self.piece(shadow, piece.start, piece.end - piece.start).await?;
            }
            shadow.copy_blocks().await?;
            if !shadow.deltas.next_window() {
                break;
            }
        }
        for l1 in [Some(self.snapshot_l1), self.active_l1].into_iter().flatten() {
            shadow.cover(l1.first..l1.first + l1_clusters).await?;
        }
        row.raw.l1_table_offset = geometry.host_offset(HostCluster(self.snapshot_l1.first)).0.into();
        row.raw.l1_size = (self.l1.entries as u32).into();
        let snapshots = write_table(shadow, header, table_bytes, row).await?;
        let entries = self.l1.entries as u32;
        let l1 = self.active_l1.map(|place| (geometry.host_offset(HostCluster(place.first)), entries));
        shadow.commit(Switch { l1, snapshots: Some(snapshots), size: None }).await
    }

    /// Whether the active L1 table will differ.
    async fn active_changes(&self, engine: &Arc<Engine>) -> Result<bool> {
        for piece in pieces(self.l1.entries) {
            let entries = self.l1.read(engine, piece.start, piece.end - piece.start).await?;
            let changes = |(index, entry): (u64, &L1Entry)| match entry {
                L1Entry::Empty => false,
                L1Entry::Table(_, ownership) => *ownership == Ownership::Private || index >= self.own_from,
            };
            if (piece.start..).zip(&entries).any(changes) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Counts what a piece of the L1 table refers to and, the first time, copies its tables.
    async fn piece(&self, shadow: &mut Shadow, first: u64, len: u64) -> Result<()> {
        let engine = shadow.engine.clone();
        let mut entries = self.l1.read(&engine, first, len).await?;
        let mut tables = Vec::new();
        let mut private = 0;
        for (index, entry) in (first..self.own_from).zip(&entries) {
            if let L1Entry::Table(offset, ownership) = *entry {
                private += u64::from(ownership == Ownership::Private);
                tables.push(TableRef { offset, l1_index: index, change: 1 });
            }
        }
        tables.sort_unstable_by_key(|table| (table.offset, table.l1_index));
        let is_first = shadow.deltas.is_first_window();
        let place = match is_first {
            true => shadow.own_cleared(private, 2).await?,
            false => Place { first: 0, virgin: false },
        };
        let mut copies = Copies { place, used: 0, is_first };
        let mut at = 0;
        while at < tables.len() {
            let end = batch_end(&tables, at, &engine.geometry);
            copies.batch(shadow, &tables[at..end], &mut entries[..], first).await?;
            at = end;
        }
        if !is_first {
            return Ok(());
        }
        shadow.disown(place.first + copies.used..place.first + private);
        shadow.cover(place.first..place.first + copies.used).await?;
        self.write_piece(shadow, first, entries).await
    }

    async fn write_piece(&self, shadow: &Shadow, first: u64, mut entries: Vec<L1Entry>) -> Result<()> {
        for entry in &mut entries {
            if let L1Entry::Table(_, ownership) = entry {
                *ownership = Ownership::Shared;
            }
        }
        shadow.write_sparse(self.snapshot_l1, first * 8, encode_l1(&entries)).await?;
        let Some(active) = self.active_l1 else { return Ok(()) };
        let kept = self.own_from.saturating_sub(first).min(entries.len() as u64);
        entries[kept as usize..].fill(L1Entry::Empty);
        shadow.write_sparse(active, first * 8, encode_l1(&entries)).await
    }
}

/// Clusters for the copies of one piece's tables.
struct Copies {
    place: Place,
    used: u64,
    is_first: bool,
}

impl Copies {
    /// Deals with tables that lie side by side.
    async fn batch(
        &mut self,
        shadow: &mut Shadow,
        batch: &[TableRef],
        entries: &mut [L1Entry],
        first: u64,
    ) -> Result<()> {
        let engine = shadow.engine.clone();
        let geometry = engine.geometry;
        let size = geometry.cluster_size() as usize;
        let mut content = read_batch(&engine, batch).await?;
        let mut run: Option<(u64, usize)> = None;
        let mut passed = 0;
        for (i, table) in batch.iter().enumerate() {
            let bytes = &mut content[(i - passed) * size..][..size];
            let counted = Entries::new(bytes, geometry).references(|run| shadow.deltas.add_range(run, 1));
            if let Err(broken) = counted {
                return Err(engine.report(broken.corruption(table.offset)).await);
            }
            let entry = &mut entries[(table.l1_index - first) as usize];
            let cluster = geometry.host_cluster(table.offset).0;
            let is_private = matches!(entry, L1Entry::Table(_, Ownership::Private));
            if !is_private || !has_flags(bytes, &geometry) {
                shadow.deltas.add(cluster, 1);
                self.write_run(shadow, &mut content, run.take(), &mut passed, i, size).await?;
                continue;
            }
            shadow.deltas.add(cluster, -1);
            if self.is_first {
                clear_flags(bytes, &geometry);
                run.get_or_insert((self.used, i));
                let copy = HostCluster(self.place.first + self.used);
                *entry = L1Entry::Table(geometry.host_offset(copy), Ownership::Shared);
                self.used += 1;
            }
        }
        self.write_run(shadow, &mut content, run, &mut passed, batch.len(), size).await?;
        content.recycle();
        Ok(())
    }

    /// Writes copies that lie side by side: the tables from the run's first one to `end`, both counted in the batch,
    /// of which the first `passed` are taken out of `content` already.
    async fn write_run(
        &self,
        shadow: &Shadow,
        content: &mut Buf,
        run: Option<(u64, usize)>,
        passed: &mut usize,
        end: usize,
        size: usize,
    ) -> Result<()> {
        let Some((used, start)) = run else { return Ok(()) };
        content.split_to((start - *passed) * size).recycle();
        let copies = content.split_to((end - start) * size);
        *passed = end;
        shadow.write_sparse(self.place.skip(used), 0, copies).await
    }
}

/// Writes the table of snapshots with one more; returns its place and count.
async fn write_table(
    shadow: &mut Shadow,
    header: &Header,
    table_bytes: u64,
    row: &Row,
) -> Result<(HostOffset, u32)> {
    let engine = shadow.engine.clone();
    let place = shadow.own(engine.geometry.clusters_for(table_bytes), 1).await?;
    let offset = engine.geometry.host_offset(HostCluster(place.first));
    let mut input = Input::new(&engine.file, header);
    let mut output = Output::new(&engine.file, offset);
    while let Some(old) = input.next().await? {
        output.put(&old.completed(header.size)).await?;
    }
    output.put(row).await?;
    output.finish().await?;
    shadow.drop_structure(header.snapshots_offset, input.table_bytes());
    Ok((offset, header.snapshot_count + 1))
}
