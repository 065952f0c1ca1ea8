//! What the disk and each snapshot hold of the image file: alone, and together with others.
//!
//! | module | duty |
//! |---|---|
//! | `sets` | sets of holders, each made once |
//! | `clusters` | the set that holds each cluster, in bounded memory |
//! | `ancestry` | who came from whom |
//!
//! A cluster belongs to a holder that refers to it: its L1 table, its L2 tables, what they map, the VM state among
//! it. One that has a single holder is what deleting this holder would free; the table of snapshots is nobody's.
//! Each L1 table is read once; each L2 table is digested once, whoever and how many name it (as in a check), unless the
//! file is so large that memory wants several windows. Nothing is written.

mod ancestry;
mod clusters;
mod sets;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Error, ErrorKind, Result};

use crate::check::digest::{Digest, Format, Lie};
use crate::check::walk::{self, AtOffset};
use crate::engine::Engine;
use crate::geometry::HostOffset;
use crate::snapshot::SnapshotTable;
use crate::table::L1Entry;
use ancestry::Common;
use clusters::Clusters;
use sets::{MANY, SetId, Sets, Span};

/// Who holds what of an image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// The disk as it is now.
    pub disk: Holder,
    /// The snapshots, in the order of their table, which is the order of their creation.
    pub snapshots: Vec<Holder>,
    /// Bytes held by several of whom it is not known who, in an image with too many different mixtures: shares may be
    /// larger by up to this.
    pub unattributed: u64,
    /// References that lead nowhere: the image is damaged, and what it holds is more than could be seen.
    pub broken: u64,
}

/// What one of them holds, in bytes of whole clusters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holder {
    /// Held by nobody else: what would be free without it.
    pub exclusive: u64,
    /// Held by others as well.
    pub shared: u64,
    /// Where it came from; `None` for the oldest one.
    pub parent: Option<Parent>,
}

/// Where a snapshot, or the disk, came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The snapshot, counted from 0 in the order of the table.
    pub snapshot: u32,
    /// How that is known.
    pub evidence: Evidence,
}

/// How a parent is known, which the format does not store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// No other one has as much in common.
    Clusters,
    /// Others have as much in common; this is the newest of them.
    ClustersAndOrder,
    /// There is nothing in common with any, or too much to look at: it is the one made before.
    Order,
}

#[derive(Debug, thiserror::Error)]
#[error("the L1 tables of the snapshots lie upon each other, so nobody's share can be told; see check")]
struct TablesOverlap;

/// An L2 table and who names it.
#[derive(Clone, Copy)]
struct Table {
    offset: u64,
    holders: SetId,
}

impl AtOffset for Table {
    fn offset(&self) -> u64 {
        self.offset
    }
}

/// An L1 table.
#[derive(Clone, Copy)]
struct Mapping {
    offset: HostOffset,
    entries: u64,
}

/// Looks at all tables.
///
/// # Errors
/// The file's; or L1 tables that lie upon each other.
pub(crate) async fn sharing(engine: &Arc<Engine>) -> Result<Sharing> {
    engine.check_usable()?;
    let _whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
    if engine.writable.load(Ordering::SeqCst) && !engine.corrupt.load(Ordering::SeqCst) {
        engine.flush().await?;
        engine.write_refcounts().await?;
    }
    let header = engine.state.lock().header.clone();
    let format = Format::new(engine.geometry, &header, engine.file.len());
    let mut look = Look { engine: engine.clone(), format, mappings: Vec::new(), broken: 0 };
    let snapshots = SnapshotTable::read(&engine.file, &header).await?.entries;
    for snapshot in &snapshots {
        let damaged = snapshot.fault(&engine.geometry).is_some();
        look.broken += u64::from(damaged);
        let entries = if damaged { 0 } else { u64::from(snapshot.l1_entries) };
        look.mappings.push(Mapping { offset: snapshot.l1_offset, entries });
    }
    look.mappings.push(Mapping { offset: header.l1_offset, entries: u64::from(header.l1_entries) });
    look.require_apart()?;
    let mut sets = Sets::new(look.mappings.len() as u32);
    let tables = look.tables(&mut sets).await?;
    let counts = look.count(&tables, &mut sets).await?;
    Ok(sum_up(&look, &sets, &counts))
}

struct Look {
    engine: Arc<Engine>,
    format: Format,
    /// The snapshots', then the disk's: holders by number.
    mappings: Vec<Mapping>,
    broken: u64,
}

impl Look {
    /// Bytes of an L1 table that the file has.
    fn bytes_of(&self, mapping: &Mapping) -> u64 {
        let there = self.format.file_len.saturating_sub(mapping.offset.0);
        (mapping.entries * 8).min(there).next_multiple_of(8)
    }

    /// Fails if L1 tables are upon each other: a small file could name a large table many times.
    fn require_apart(&self) -> Result<()> {
        let mut places: Vec<(u64, u64)> =
            self.mappings.iter().map(|m| (m.offset.0, self.bytes_of(m))).filter(|p| p.1 > 0).collect();
        places.sort_unstable();
        let apart = places.iter().zip(places.iter().skip(1)).all(|(a, b)| a.0 + a.1 <= b.0);
        apart.then_some(()).ok_or_else(|| Error::new(ErrorKind::Corrupt, TablesOverlap))
    }

    /// Reads all L1 tables; the L2 tables in the order of the file, with those who name them.
    async fn tables(&mut self, sets: &mut Sets) -> Result<Vec<Table>> {
        let mut names = Names::default();
        let mut broken = 0;
        for (holder, mapping) in (0u32..).zip(&self.mappings) {
            let bytes = self.bytes_of(mapping);
            let format = self.format;
            self.engine
                .each_entry(mapping.offset, bytes, |index, raw| match L1Entry::decode(raw) {
                    L1Entry::Table(offset, _) if format.geometry.is_aligned(offset) => {
                        names.add(index as usize, offset.0, holder);
                    }
                    L1Entry::Table(..) => broken += 1,
                    L1Entry::Empty => {}
                })
                .await?;
        }
        self.broken += broken;
        Ok(names.finish(sets))
    }

    /// Counts the clusters of each set.
    async fn count(&mut self, tables: &[Table], sets: &mut Sets) -> Result<Vec<u64>> {
        let geometry = self.format.geometry;
        let mut clusters = Clusters::new();
        let mut counts = Vec::new();
        let mut broken;
        loop {
            broken = 0;
            for (holder, mapping) in (0u32..).zip(&self.mappings) {
                let first = geometry.host_cluster(mapping.offset).0;
                let len = geometry.clusters_for(self.bytes_of(mapping));
                clusters.add(first..first + len, Sets::single(holder), sets);
            }
            walk::each_table(&self.engine, self.format, tables, |table, digest| {
                broken += digest.problems.len() as u64;
                self.take(table, &digest, &mut clusters, sets);
            })
            .await?;
            counts.resize(sets.len(), 0);
            clusters.tally(&mut counts);
            if !clusters.next_window() {
                break;
            }
        }
        self.broken += broken;
        Ok(counts)
    }

    fn take(&self, table: &Table, digest: &Digest, clusters: &mut Clusters, sets: &mut Sets) {
        let geometry = self.format.geometry;
        let own = geometry.host_cluster(HostOffset(table.offset)).0;
        clusters.add(own..own + 1, table.holders, sets);
        for run in &digest.runs {
            let first = run.first_cluster(&geometry);
            let len = match run.lie {
                Lie::Inside => u64::from(run.len),
                Lie::Straddling => 2,
                Lie::Outside | Lie::Elsewhere => continue,
            };
            clusters.add(first..first + len, table.holders, sets);
        }
        for (_, compressed) in &digest.compressed {
            clusters.add(compressed.clusters(&geometry), table.holders, sets);
        }
    }
}

/// L2 tables by who names them. An L1 entry that stays the same from one holder to the next costs nothing.
#[derive(Default)]
struct Names {
    /// By L1 index: the table that the entry named last, by whom in a row.
    open: Vec<(u64, Span)>,
    named: Vec<(u64, Span)>,
    merge_at: usize,
}

/// Names that are collected before they are merged for the first time.
const MERGE_FIRST: usize = 1 << 16;

impl Names {
    fn add(&mut self, index: usize, offset: u64, holder: u32) {
        if self.open.len() <= index {
            self.open.resize(index + 1, (0, (0, 0)));
        }
        let entry = &mut self.open[index];
        if entry.0 == offset && entry.1.1 + 1 >= holder {
            entry.1.1 = holder;
            return;
        }
        let before = std::mem::replace(entry, (offset, (holder, holder)));
        if before.0 != 0 {
            self.named.push(before);
        }
        if self.named.len() >= self.merge_at.max(MERGE_FIRST) {
            self.merge();
            self.merge_at = self.named.len() * 2;
        }
    }

    /// Joins what touches.
    fn merge(&mut self) {
        self.named.sort_unstable();
        self.named.dedup_by(|next, kept| {
            let same = next.0 == kept.0 && next.1.0 <= kept.1.1.saturating_add(1);
            if same {
                kept.1.1 = kept.1.1.max(next.1.1);
            }
            same
        });
    }

    fn finish(mut self, sets: &mut Sets) -> Vec<Table> {
        self.named.extend(std::mem::take(&mut self.open).into_iter().filter(|open| open.0 != 0));
        self.merge();
        let of_one_table = self.named.chunk_by(|a, b| a.0 == b.0);
        let mut spans: Vec<Span> = Vec::new();
        of_one_table
            .map(|names| {
                spans.clear();
                spans.extend(names.iter().map(|(_, span)| *span));
                Table { offset: names[0].0, holders: sets.of(&spans) }
            })
            .collect()
    }
}

fn sum_up(look: &Look, sets: &Sets, counts: &[u64]) -> Sharing {
    let holders = look.mappings.len();
    let size = look.format.geometry.cluster_size();
    let in_all = held_by(sets, counts, holders);
    let common = Common::of(sets, counts, holders);
    let parent = |of: usize| match &common {
        Some(common) => common.parent(of),
        None => ancestry::after_the_one_before(of),
    };
    let holder = |number: usize| {
        let alone = counts.get(Sets::single(number as u32) as usize).copied().unwrap_or(0);
        Holder { exclusive: alone * size, shared: (in_all[number] - alone) * size, parent: parent(number) }
    };
    Sharing {
        disk: holder(holders - 1),
        snapshots: (0..holders - 1).map(holder).collect(),
        unattributed: counts.get(MANY as usize).copied().unwrap_or(0) * size,
        broken: look.broken,
    }
}

/// Clusters that each holder has.
fn held_by(sets: &Sets, counts: &[u64], holders: usize) -> Vec<u64> {
    let mut edges = vec![0u64; holders + 1];
    for (n, id) in counts.iter().zip(0..) {
        for span in sets.spans(id) {
            edges[span.0 as usize] = edges[span.0 as usize].wrapping_add(*n);
            edges[span.1 as usize + 1] = edges[span.1 as usize + 1].wrapping_sub(*n);
        }
    }
    let mut sum = 0u64;
    edges[..holders]
        .iter()
        .map(|edge| {
            sum = sum.wrapping_add(*edge);
            sum
        })
        .collect()
}
