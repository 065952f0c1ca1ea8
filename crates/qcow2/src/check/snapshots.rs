//! The snapshot table of a check: what exceeds a limit or lacks a field is told, and a repair writes the table anew.
//!
//! ```text
//!   header: fewer snapshots; barrier          only where some exceed a limit: what they had are leaks from here on
//!   new table, where nobody has anything      read before anything else of the repair changes the file
//!   refcounts, flags (modules `repair`, `rebuild`), with the new table counted; barrier
//!   header: the new table; barrier
//!   refcounts of the old table lowered; barrier
//! ```
//!
//! The old table stays as it is until the header names the new one, so a cut at any write leaves one of the two.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Error, ErrorKind, Finding, Fix, Result, mutant};

use super::blocks::Blocks;
use super::compare::{Comparison, Mismatch};
use super::log::Log;
use super::rebuild::merged;
use super::repair::set_refcounts;
use super::scan::Pass;
use super::topics;
use crate::engine::Engine;
use crate::geometry::{HostCluster, HostOffset};
use crate::header::Header;
use crate::snapshot::{EXTRA_BYTES_MAX, Excess, SNAPSHOTS_MAX, Snapshot, SnapshotTable};

/// Why the snapshots cannot be looked at, which ends the check.
#[derive(Debug, thiserror::Error)]
enum TableError {
    #[error(
        "snapshot table too large\nYou can force-remove all {0} overhanging snapshots with qemu-img check -r all"
    )]
    TooMany(u32),
    #[error("snapshot table offset invalid")]
    Offset,
    #[error("failed to read the snapshot table: {0}")]
    Unreadable(Error),
}

impl From<TableError> for Error {
    fn from(e: TableError) -> Self {
        let kind = match &e {
            TableError::TooMany(_) => ErrorKind::TooLarge,
            TableError::Offset => ErrorKind::InvalidInput,
            TableError::Unreadable(cause) => cause.kind(),
        };
        Error::new(kind, e)
    }
}

/// The snapshots of an image under check.
pub(super) struct Snapshots {
    pub entries: Vec<Snapshot>,
    /// Bytes of the table as stored.
    pub table_bytes: u64,
    /// Entries that a rewrite of the table mends.
    pub wrong: u64,
    /// The clusters that have the table as it should be, if it has been written.
    pub moved: Option<Range<u64>>,
    /// The header as it was when the table was read, without what was left out.
    header: Header,
    /// Bytes of the table as it should be.
    rewritten_bytes: u64,
}

impl Snapshots {
    /// Reads and judges the table, and tells what is wrong with it. A repair drops what exceeds a limit.
    ///
    /// # Errors
    /// The file's; or a table that cannot be read without a repair.
    pub async fn read(engine: &Arc<Engine>, fix: Fix, log: &mut Log) -> Result<Self> {
        let mut header = engine.state.lock().header.clone();
        let stored = header.snapshot_count;
        let overhang = stored.saturating_sub(SNAPSHOTS_MAX);
        if overhang > 0 {
            if fix != Fix::All {
                return Err(TableError::TooMany(overhang).into());
            }
            let line = format!("Discarding {overhang} overhanging snapshots");
            log.line(Finding::new(topics::SNAPSHOT_COUNT, line));
            header.snapshot_count = SNAPSHOTS_MAX;
        }
        if !header.can_place_snapshots() {
            return Err(TableError::Offset.into());
        }
        let mut wrong = 0;
        let unreadable = |e| Error::from(TableError::Unreadable(e));
        let (table, rewritten_bytes) = match fix {
            // A repair reads what it can, and knows how much it is.
            Fix::All => SnapshotTable::read_for_repair(&engine.file, &header, |excess| {
                wrong += tell_excess(log, excess);
            })
            .await
            .map_err(unreadable)?,
            _ => (SnapshotTable::read(&engine.file, &header).await.map_err(unreadable)?, 0),
        };
        let SnapshotTable { mut entries, table_bytes } = table;
        header.snapshot_count = entries.len() as u32;
        if header.snapshot_count < stored {
            let count = header.snapshot_count;
            engine.update_header(|header| header.snapshot_count = count).await?;
            engine.barrier().await?;
            log.report.corruptions_fixed += u64::from(stored - count);
        }
        let verb = if fix == Fix::All { "Repairing" } else { "ERROR" };
        for (index, _) in entries.iter().enumerate().filter(|(_, s)| s.is_incomplete(header.version)) {
            log.line_with(|| {
                let line = format!("{verb} snapshot table entry {index} is incomplete");
                Finding::new(topics::SNAPSHOT_ENTRY, line).of_snapshot(index as u32 + 1)
            });
            wrong += 1;
        }
        // Names serve the lines about snapshots that cannot be used; all of them may take a lot.
        for sound in entries.iter_mut().filter(|s| s.fault(&engine.geometry).is_none()) {
            (sound.info.id, sound.info.name) = (String::new(), String::new());
        }
        Ok(Self { entries, table_bytes, wrong, moved: None, header, rewritten_bytes })
    }
}

impl Snapshots {
    /// Whether the table lies in the header, so that what it says changes with the place of the refcount table.
    pub fn lie_in_header(&self) -> bool {
        !self.entries.is_empty() && self.header.snapshots_offset == HostOffset(0)
    }
}

/// Tells what a repair leaves out; how many entries need a rewrite for it.
fn tell_excess(log: &mut Log, excess: Excess) -> u64 {
    match excess {
        Excess::Extra { index, bytes } => {
            log.line_with(|| {
                let line = format!(
                    "Discarding too much extra metadata in snapshot table entry {index} \
                     ({bytes} > {EXTRA_BYTES_MAX})"
                );
                Finding::new(topics::SNAPSHOT_ENTRY, line).of_snapshot(index + 1)
            });
            1
        }
        Excess::Snapshots(count) => {
            let line = format!("Discarding {count} overhanging snapshots (snapshot table is too big)");
            log.line(Finding::new(topics::SNAPSHOT_COUNT, line));
            // The count in the header says so.
            0
        }
    }
}

/// Whether the refcount structure as it is can count something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Its blocks count those clusters.
    Counted,
    /// A new structure must.
    Uncounted,
}

impl Pass {
    /// Writes the table as it should be where nobody has anything, and counts it.
    pub async fn write_snapshots(
        &mut self,
        blocks: &Blocks,
        comparison: &Comparison,
        wanted: Room,
    ) -> Result<Room> {
        let geometry = self.format.geometry;
        let count = geometry.clusters_for(self.snapshots.rewritten_bytes);
        let mut taken = self.beyond.clone();
        taken.extend(blocks.named.iter().map(|cluster| *cluster..cluster + 1));
        let taken = merged(taken);
        let per_block = geometry.refblock_entries();
        let is_free = |cluster: u64| self.counts.get(cluster) == 0;
        let is_counted = |cluster: u64| {
            let free = is_free(cluster) && comparison.refcount(cluster, 0, &geometry) == Some(0);
            free && blocks.can_count(cluster / per_block, self.format.file_len)
        };
        let end = blocks.end() * per_block;
        let found = match wanted {
            Room::Counted => first_run(count, end, &taken, is_counted),
            Room::Uncounted => None,
        };
        let room = if found.is_some() { Room::Counted } else { Room::Uncounted };
        let place = found.or_else(|| first_run(count, u64::MAX, &taken, is_free));
        let place = place.ok_or(ErrorKind::NoSpace)?;
        let offset = geometry.host_offset(HostCluster(place.start));
        SnapshotTable::rewrite(&self.engine.file, &self.snapshots.header, offset).await?;
        self.counts.add_range(place.clone(), 1, super::counts::Mark::None);
        self.snapshots.moved = Some(place);
        Ok(room)
    }

    /// Makes the new table the image's, and gives up the old one. Returns whether something else lies in the old one's
    /// clusters: their refcounts are lower now, which may concern flags.
    pub async fn switch_snapshots(&mut self, place: Range<u64>) -> Result<bool> {
        let geometry = self.format.geometry;
        if !place.is_empty() {
            let counted = Mismatch { clusters: place.clone(), refcount: 0, count: 1 };
            set_refcounts(&self.engine, [counted].into_iter()).await?;
        }
        if !mutant::is_active("snapshot-table-unsettled") {
            self.engine.barrier().await?;
        }
        let count = self.snapshots.entries.len() as u32;
        let offset = match place.is_empty() {
            true => HostOffset(0),
            false => geometry.host_offset(HostCluster(place.start)),
        };
        let change = |header: &mut Header| (header.snapshots_offset, header.snapshot_count) = (offset, count);
        self.engine.update_header(change).await?;
        self.engine.barrier().await?;
        let first = geometry.host_cluster(self.snapshots.header.snapshots_offset).0;
        let max = geometry.refcount_max();
        let clusters = first..first + geometry.clusters_for(self.snapshots.table_bytes);
        let lowered = clusters.filter_map(|cluster| {
            let refcount = self.counts.get(cluster);
            let count = refcount.checked_sub(1).filter(|count| *count < max)?;
            Some(Mismatch { clusters: cluster..cluster + 1, refcount, count })
        });
        let is_shared = lowered.clone().any(|m| m.count > 0);
        set_refcounts(&self.engine, lowered).await?;
        self.engine.barrier().await?;
        Ok(is_shared)
    }
}

/// The first `count` clusters in a row before `end` that are free and outside `taken`, which is in order.
fn first_run(
    count: u64,
    end: u64,
    taken: &[Range<u64>],
    is_free: impl Fn(u64) -> bool,
) -> Option<Range<u64>> {
    let (mut start, mut at) = (0, 0);
    while at - start < count {
        if at >= end {
            return None;
        }
        let behind = taken.partition_point(|range| range.end <= at);
        match taken.get(behind).filter(|range| range.contains(&at)) {
            Some(range) => (start, at) = (range.end, range.end),
            None if is_free(at) => at += 1,
            None => (start, at) = (at + 1, at + 1),
        }
    }
    Some(start..at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_keeps_clear_of_what_is_taken_or_used() {
        let used = |cluster: u64| !(cluster == 0 || cluster == 4);
        let taken = [2..3, 7..9];
        assert_eq!(first_run(1, 100, &taken, used), Some(1..2));
        assert_eq!(first_run(2, 100, &taken, used), Some(5..7));
        assert_eq!(first_run(3, 100, &taken, used), Some(9..12));
        assert_eq!(first_run(3, 11, &taken, used), None);
        assert_eq!(first_run(0, 100, &taken, used), Some(0..0));
    }
}
