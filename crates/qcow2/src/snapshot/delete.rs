//! Forgets a snapshot.

use std::sync::Arc;

use cowbell_block::{Result, SnapshotName};

use super::rows::{Input, Output};
use super::shadow::{Shadow, Switch};
use super::tables::{L1Place, TableRef, pieces};
use super::{Snapshot, SnapshotError, SnapshotTable, flags};
use crate::engine::{Dropped, Engine};
use crate::geometry::{HostCluster, HostOffset};
use crate::header::Header;
use crate::table::L1Entry;

/// Deletes a snapshot.
pub(super) async fn delete(engine: &Arc<Engine>, which: &SnapshotName) -> Result<()> {
    let header = engine.state.lock().header.clone();
    let (index, snapshot) = SnapshotTable::find(&engine.file, &header, which).await?;
    snapshot.check(&engine.geometry)?;
    if engine.has_views() {
        return Err(SnapshotError::InUse.into());
    }
    let mut shadow = Shadow::new(engine, Dropped::WithSnapshot);
    let done = run(&mut shadow, &header, index, &snapshot).await;
    if done.is_err() {
        shadow.abandon().await;
    }
    done
}

async fn run(shadow: &mut Shadow, header: &Header, index: u32, snapshot: &Snapshot) -> Result<()> {
    let engine = shadow.engine.clone();
    let l1 = L1Place { offset: snapshot.l1_offset, entries: u64::from(snapshot.l1_entries) };
    loop {
        for piece in pieces(l1.entries) {
            let entries = l1.read(&engine, piece.start, piece.end - piece.start).await?;
            let tables = (piece.start..).zip(entries).filter_map(|(l1_index, entry)| match entry {
                L1Entry::Table(offset, _) => Some(TableRef { offset, l1_index, change: -1 }),
                L1Entry::Empty => None,
            });
            shadow.count_tables(tables.collect()).await?;
        }
        shadow.copy_blocks().await?;
        if !shadow.deltas.next_window() {
            break;
        }
    }
    let active = if shadow.became_one { flags::refresh(shadow).await? } else { None };
    let snapshots = write_table(shadow, header, index).await?;
    shadow.drop_structure(l1.offset, l1.entries * 8);
    shadow.commit(Switch { l1: active, snapshots: Some(snapshots), size: None }).await
}

/// Writes the table of snapshots without one; returns its place and count.
async fn write_table(shadow: &mut Shadow, header: &Header, without: u32) -> Result<(HostOffset, u32)> {
    let engine = shadow.engine.clone();
    let kept = |index: u32| index != without;
    let mut bytes = 0;
    let mut input = Input::new(&engine.file, header);
    let mut index = 0;
    while let Some(row) = input.next().await? {
        bytes += if kept(index) { row.completed(header.size).stored_len() } else { 0 };
        index += 1;
    }
    shadow.drop_structure(header.snapshots_offset, input.table_bytes());
    let place = shadow.own(engine.geometry.clusters_for(bytes), 1).await?;
    let offset = engine.geometry.host_offset(HostCluster(place.first));
    let mut input = Input::new(&engine.file, header);
    let mut output = Output::new(&engine.file, offset);
    let mut index = 0;
    while let Some(row) = input.next().await? {
        if kept(index) {
            output.put(&row.completed(header.size)).await?;
        }
        index += 1;
    }
    output.finish().await?;
    Ok((offset, header.snapshot_count - 1))
}
