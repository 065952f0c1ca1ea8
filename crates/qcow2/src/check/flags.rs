//! The COPIED flags of the active mapping, one by one: only when the pass over the counts found that some are wrong,
//! or when refcounts changed.

use std::collections::BTreeMap;

use cowbell_block::{Finding, Result};

use super::compare::Comparison;
use super::digest::Lie;
use super::log::{Log, Place, Unsorted};
use super::scan::Pass;
use super::topics;
use super::walk::{self, Table, Tables};
use crate::geometry::HostOffset;
use crate::table::{L1Entry, L2Entry, Ownership};

/// Entries whose flag is wrong, and their right values.
#[derive(Default)]
pub(super) struct WrongFlags {
    /// By index.
    pub l1: Vec<(u64, u64)>,
    /// By table; entries by index.
    pub l2: BTreeMap<u64, (Table, Vec<(u32, u64)>)>,
    pub count: u64,
}

/// What becomes of wrong flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// They are told, as often as an L1 entry leads to them.
    Tell,
    /// They are set right, and told once.
    Repair,
}

impl Pass {
    /// Finds the wrong flags and tells them.
    pub async fn check_flags(
        &mut self,
        log: &mut Log,
        comparison: &Comparison,
        then: Then,
    ) -> Result<WrongFlags> {
        let verb = if then == Then::Repair { "Repairing" } else { "ERROR" };
        let (engine, format) = (self.engine.clone(), self.format);
        let geometry = format.geometry;
        let refcount = |cluster: u64| {
            let count = self.counts.get(cluster).min(geometry.refcount_max());
            comparison.refcount(cluster, count, &geometry)
        };
        let (mut wrong, mut unsorted, mut tables) =
            (WrongFlags::default(), Unsorted::default(), Tables::default());
        let l1_offset = self.header.l1_offset.0;
        let l1_bytes = u64::from(self.header.l1_entries) * 8;
        let in_file = l1_bytes.min(format.file_len.saturating_sub(self.header.l1_offset.0));
        let each = |index: u64, raw: u64| {
            let L1Entry::Table(offset, _) = L1Entry::decode(raw) else { return };
            let (l1_index, place) = (index as u32, Place { owner: 0, l1_index: index as u32, entry: 0 });
            tables.add(Table { offset: offset.0, times: 1, active: 1, owner: 0, l1_index });
            let Some(refcount) = refcount(geometry.host_cluster(offset).0) else { return };
            if let Some(right) = corrected(raw, refcount) {
                wrong.l1.push((index, right));
                wrong.count += 1;
                unsorted.add(place, 1, &|| {
                    let line = format!(
                        "{verb} OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={raw:x} refcount={refcount}"
                    );
                    Finding::new(topics::COPIED_FLAG, line)
                        .in_file(l1_offset + index * 8, 8)
                        .on_disk(geometry.guest_of_entry(l1_index, 0))
                });
            }
        };
        engine.each_entry(self.header.l1_offset, in_file.next_multiple_of(8), each).await?;
        walk::each_table(&engine, format, &tables.finish(), |table, digest| {
            for run in digest.runs {
                let first = run.first_cluster(&geometry);
                for ((index, raw), cluster) in run.entries(&geometry).zip(first..) {
                    let found = if run.lie == Lie::Elsewhere { Some(1) } else { refcount(cluster) };
                    let Some((found, right)) = found.and_then(|n| Some((n, corrected(raw, n)?))) else {
                        continue;
                    };
                    wrong.l2.entry(table.offset).or_insert((*table, Vec::new())).1.push((index, right));
                    let times = if then == Then::Repair { 1 } else { u64::from(table.active) };
                    wrong.count = wrong.count.saturating_add(times);
                    let place = Place { owner: 0, l1_index: table.l1_index, entry: index + 1 };
                    unsorted.add(place, times, &|| {
                        let line =
                            format!("{verb} OFLAG_COPIED data cluster: l2_entry={raw:x} refcount={found}");
                        Finding::new(topics::COPIED_FLAG, line)
                            .in_file(table.offset + u64::from(index) * geometry.l2_entry_bytes(), 8)
                            .on_disk(geometry.guest_of_entry(table.l1_index, index))
                    });
                }
            }
        })
        .await?;
        unsorted.tell(log);
        Ok(wrong)
    }

    /// Whether a table lies where one can lie, and not upon something else of the image's frame.
    pub fn is_sound_table(&self, table: &Table) -> bool {
        let geometry = self.format.geometry;
        let cluster = geometry.host_cluster(HostOffset(table.offset)).0;
        let frame = [
            (HostOffset(0), geometry.cluster_size()),
            (self.header.l1_offset, u64::from(self.header.l1_entries) * 8),
            (self.header.reftable_offset, u64::from(self.header.reftable_clusters) << geometry.cluster_bits),
            (self.header.snapshots_offset, self.snapshots.table_bytes),
        ];
        let upon = |(offset, bytes): &(HostOffset, u64)| {
            let first = geometry.host_cluster(*offset).0;
            (first..first + geometry.clusters_for(*bytes)).contains(&cluster)
        };
        geometry.is_aligned(HostOffset(table.offset))
            && !self.format.is_outside(table.offset, geometry.cluster_size())
            && !frame.iter().any(upon)
    }
}

/// The entry with its flag as the refcount wants it, if that is a change.
fn corrected(raw: u64, refcount: u64) -> Option<u64> {
    let ownership = if refcount == 1 { Ownership::Private } else { Ownership::Shared };
    let right = L2Entry::with_copied_flag(raw, ownership);
    (right != raw).then_some(right)
}
