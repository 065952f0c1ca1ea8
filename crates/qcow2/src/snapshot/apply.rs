//! Makes the disk what it was when a snapshot was taken.
//!
//! Tables that the disk shares with the snapshot still are left alone. All that the new disk refers to belongs to the
//! snapshot as well, so none of its tables has a COPIED flag; other writers leave some in tables of snapshots, and
//! such a table is copied for the disk.

use std::sync::Arc;

use cowbell_block::{Result, SnapshotName};

use super::shadow::{Shadow, Switch};
use super::tables::{L1Place, TableRef, clear_flags, encode_l1, pieces, read_batch};
use super::{Snapshot, SnapshotError, SnapshotTable};
use crate::engine::{Dropped, Engine};
use crate::geometry::HostCluster;
use crate::header::L1_BYTES_MAX;
use crate::table::{L1Entry, Ownership};

/// Applies a snapshot.
pub(super) async fn apply(engine: &Arc<Engine>, which: &SnapshotName) -> Result<()> {
    let header = engine.state.lock().header.clone();
    // They would have to tell all differences; like the reference, this leaves it to the user to remove them.
    if header.has_bitmaps() {
        return Err(SnapshotError::Bitmaps.into());
    }
    let (_, snapshot) = SnapshotTable::find(&engine.file, &header, which).await?;
    snapshot.check(&engine.geometry)?;
    let size = snapshot.info.disk_size - snapshot.info.disk_size % 512;
    let too_large = SnapshotError::DiskTooLarge(size);
    if size > i64::MAX as u64 || engine.geometry.l1_entries_for(size) * 8 > L1_BYTES_MAX {
        return Err(too_large.into());
    }
    let mut shadow = Shadow::new(engine, Dropped::WithSnapshot);
    let done = run(&mut shadow, &snapshot, size).await;
    if done.is_err() {
        shadow.abandon().await;
    }
    done
}

async fn run(shadow: &mut Shadow, snapshot: &Snapshot, size: u64) -> Result<()> {
    let engine = shadow.engine.clone();
    let geometry = engine.geometry;
    let old = L1Place::active(&engine);
    let from = L1Place { offset: snapshot.l1_offset, entries: u64::from(snapshot.l1_entries) };
    let entries = geometry.l1_entries_for(size).max(from.entries);
    let l1 = shadow.own(geometry.clusters_for(entries * 8), 1).await?;
    shadow.drop_structure(old.offset, old.entries * 8);
    loop {
        for piece in pieces(entries.max(old.entries)) {
            let len = piece.end - piece.start;
            let was = old.read(&engine, piece.start, len).await?;
            let mut becomes = from.read(&engine, piece.start, len).await?;
            let changes = (piece.start..).zip(was.into_iter().zip(&becomes));
            let tables =
                changes.flat_map(|(l1_index, (was, becomes))| table_changes(l1_index, was, *becomes));
            let flagged = shadow.count_tables(tables.flatten().collect()).await?;
            if !shadow.deltas.is_first_window() {
                continue;
            }
            becomes.iter_mut().for_each(share);
            unshare(shadow, &flagged, &mut becomes, piece.start).await?;
            becomes.truncate(entries.saturating_sub(piece.start) as usize);
            if !becomes.is_empty() {
                shadow.write_sparse(l1, piece.start * 8, encode_l1(&becomes)).await?;
            }
        }
        shadow.copy_blocks().await?;
        if !shadow.deltas.next_window() {
            break;
        }
    }
    shadow.cover(l1.first..l1.first + geometry.clusters_for(entries * 8)).await?;
    let offset = geometry.host_offset(HostCluster(l1.first));
    shadow.commit(Switch { l1: Some((offset, entries as u32)), size: Some(size), snapshots: None }).await
}

/// The tables that lose and that gain a reference when an L1 entry is replaced.
fn table_changes(l1_index: u64, was: L1Entry, becomes: L1Entry) -> [Option<TableRef>; 2] {
    let table = |entry: L1Entry, change| match entry {
        L1Entry::Table(offset, _) => Some(TableRef { offset, l1_index, change }),
        L1Entry::Empty => None,
    };
    let pair = [table(was, -1), table(becomes, 1)];
    match pair {
        [Some(a), Some(b)] if a.offset == b.offset => [None, None],
        pair => pair,
    }
}

fn share(entry: &mut L1Entry) {
    if let L1Entry::Table(_, ownership) = entry {
        *ownership = Ownership::Shared;
    }
}

/// Gives the disk copies, without flags, of these tables.
async fn unshare(
    shadow: &mut Shadow,
    tables: &[TableRef],
    entries: &mut [L1Entry],
    first: u64,
) -> Result<()> {
    let engine = shadow.engine.clone();
    let geometry = engine.geometry;
    let place = shadow.own(tables.len() as u64, 1).await?;
    for (used, table) in (0..).zip(tables) {
        let mut content = read_batch(&engine, std::slice::from_ref(table)).await?;
        clear_flags(&mut content, &geometry);
        shadow.write_sparse(place.skip(used), 0, content).await?;
        let copy = geometry.host_offset(HostCluster(place.first + used));
        entries[(table.l1_index - first) as usize] = L1Entry::Table(copy, Ownership::Private);
    }
    shadow.cover(place.first..place.first + tables.len() as u64).await
}
