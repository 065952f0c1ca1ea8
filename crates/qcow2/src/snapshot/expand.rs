//! What other versions want of snapshots: no zero clusters in their tables for version 2, all fields for version 3.
//!
//! Entries are replaced where they lie. The content stays the same whether a table has the old ones or the new ones, so
//! a cut may leave any mix; the order keeps refcounts from being too low:
//!
//! ```text
//!   zeroes in new clusters, counted as often as the table is; barrier
//!   the table; barrier
//!   references to what zero clusters had in reserve go
//! ```

use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Buf, Result};

use super::rename;
use super::rows::Input;
use super::shadow::Shadow;
use super::tables::{L1Place, TableRef, pieces, read_batch};
use super::{SnapshotError, SnapshotTable};
use crate::engine::{Dropped, Engine, NO_CAUSE};
use crate::geometry::{Geometry, HostCluster};
use crate::table::{L1Entry, L2Entry, Ownership};

/// Gives all entries of the snapshot table the fields that version 3 demands. The caller holds the whole disk.
///
/// # Errors
/// The file's: nothing has changed, unless the switch itself failed.
pub(crate) async fn complete(engine: &Arc<Engine>) -> Result<()> {
    let _flushes = engine.flushing.lock(0..1, LockMode::Exclusive).await;
    engine.bring_up_to_date().await?;
    let header = engine.state.lock().header.clone();
    let mut shadow = Shadow::new(engine, Dropped::Replaced);
    let done = rename::rewrite(&mut shadow, &header, |_, _| {}).await;
    if done.is_err() {
        shadow.abandon().await;
    }
    done
}

/// Whether version 2 can say what the snapshots of an image with a disk of `size` bytes are: it knows neither another
/// size nor a VM state of more than 4 GiB.
pub(crate) fn fit_version_2(snapshots: &SnapshotTable, size: u64) -> bool {
    let fits = |info: &cowbell_block::SnapshotInfo| {
        info.vm_state_size <= u64::from(u32::MAX) && info.disk_size == size
    };
    snapshots.entries.iter().all(|snapshot| fits(&snapshot.info))
}

/// Replaces zero clusters in the tables of all snapshots: by nothing where no backing file shows through, otherwise
/// by data. The caller holds the whole disk.
///
/// # Errors
/// A snapshot that cannot be read, or the file's error. What was replaced until then shows the same.
pub(crate) async fn expand_zero_clusters(engine: &Arc<Engine>) -> Result<()> {
    if engine.has_views() {
        return Err(SnapshotError::InUse.into());
    }
    let _flushes = engine.flushing.lock(0..1, LockMode::Exclusive).await;
    engine.bring_up_to_date().await?;
    let header = engine.state.lock().header.clone();
    let mut input = Input::new(&engine.file, &header);
    let mut done = Ok(());
    while let Some(row) = input.next().await? {
        let snapshot = row.snapshot(header.size);
        snapshot.check(&engine.geometry)?;
        let l1 = L1Place { offset: snapshot.l1_offset, entries: u64::from(snapshot.l1_entries) };
        done = expand_l1(engine, l1).await;
        if done.is_err() {
            break;
        }
    }
    // The disk may share tables that changed.
    engine.state.lock().l2.forget(0..u64::MAX);
    done
}

async fn expand_l1(engine: &Arc<Engine>, l1: L1Place) -> Result<()> {
    for piece in pieces(l1.entries) {
        let entries = l1.read(engine, piece.start, piece.end - piece.start).await?;
        for (l1_index, entry) in (piece.start..).zip(entries) {
            if let L1Entry::Table(offset, _) = entry {
                expand_table(engine, TableRef { offset, l1_index, change: 0 }).await?;
            }
        }
    }
    Ok(())
}

async fn expand_table(engine: &Arc<Engine>, table: TableRef) -> Result<()> {
    let geometry = engine.geometry;
    let mut content = read_batch(engine, std::slice::from_ref(&table)).await?;
    let zeroes = zero_entries(&content, &geometry);
    if zeroes.is_empty() {
        content.recycle();
        return Ok(());
    }
    let table_cluster = geometry.host_cluster(table.offset).0;
    let references = engine.decide(NO_CAUSE, |state| state.refcount(table_cluster)).await?;
    let new = match engine.backing.is_some() {
        true => Some(engine.take_contiguous(zeroes.len() as u64).await?),
        false => None,
    };
    let written = match &new {
        Some(clusters) => write_zeroes(engine, table, &zeroes, clusters.start, references).await,
        None => Ok(()),
    };
    if let (Err(_), Some(clusters)) = (&written, new.clone()) {
        for cluster in clusters.clone() {
            // What cannot be lowered any more is a leak.
            let _ = engine.decide(NO_CAUSE, |state| state.set_refcount(cluster, 1)).await;
        }
        engine.state.lock().give_back_all(clusters);
    }
    written?;
    let ownership = if references == 1 { Ownership::Private } else { Ownership::Shared };
    for (number, (index, _)) in (0..).zip(&zeroes) {
        let raw = new.as_ref().map_or(0, |clusters| {
            let place = geometry.host_offset(HostCluster(clusters.start + number));
            L2Entry::with_copied_flag(place.0, ownership)
        });
        content[index * 8..index * 8 + 8].copy_from_slice(&raw.to_be_bytes());
    }
    engine.write_refcounts().await?;
    engine.barrier().await?;
    engine.file.write(table.offset.0, content).await?;
    engine.barrier().await?;
    for cluster in zeroes.iter().filter_map(|(_, reserve)| *reserve) {
        for _ in 0..references {
            engine.decide(NO_CAUSE, |state| state.drop_reference(cluster)).await?;
        }
    }
    engine.write_refcounts().await
}

/// The entries of a table that read as zeroes, by index, with the clusters that they have in reserve.
fn zero_entries(content: &[u8], geometry: &Geometry) -> Vec<(usize, Option<u64>)> {
    let raw = content.chunks_exact(8).map(|b| u64::from_be_bytes(*b.first_chunk().expect("eight bytes")));
    raw.enumerate()
        .filter_map(|(index, raw)| match L2Entry::decode(raw, geometry) {
            L2Entry::ZeroPlain => Some((index, None)),
            L2Entry::ZeroAllocated(host, _) => Some((index, Some(geometry.host_cluster(host).0))),
            _ => None,
        })
        .collect()
}

/// Writes zeroes for these entries to clusters from `first` on, and counts them `references` times.
async fn write_zeroes(
    engine: &Arc<Engine>,
    table: TableRef,
    zeroes: &[(usize, Option<u64>)],
    first: u64,
    references: u64,
) -> Result<()> {
    let geometry = engine.geometry;
    let per_table = geometry.cluster_size() / geometry.l2_entry_bytes();
    for (cluster, (index, _)) in (first..).zip(zeroes) {
        let guest = (table.l1_index * per_table + *index as u64) << geometry.cluster_bits;
        let host = geometry.host_offset(HostCluster(cluster));
        let zeroes = Buf::zeroed(geometry.cluster_size() as usize);
        let written = engine.write_stored(guest, host, zeroes.into(), NO_CAUSE).finish().await;
        written.into_bufs()?.recycle();
        engine.decide(NO_CAUSE, |state| state.set_refcount(cluster, references)).await?;
    }
    Ok(())
}
