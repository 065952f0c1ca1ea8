//! The guest's mapping: L1 tables and L2 tables, active and of snapshots.
//!
//! L1 tables are read first and yield a list of L2 tables. Each distinct L2 table is then read once and its
//! references count as often as L1 entries name it.

use crate::cells::{
    ACTIVE, ACTIVE_TWICE, Cells, SEEN_COPIED, SEEN_UNCOPIED, WRONGLY_COPIED, WRONGLY_UNCOPIED,
};
use crate::checker::{Run, State, report_faults};
use crate::entry::{EntryFault, Faults, L2Entry, Mapping};
use crate::error::CheckError;
use crate::finding::Finding;
use crate::image::{be64, nonzero_entries};
use crate::owner::{Owner, Place, Structure};
use crate::report::Report;

/// An L2 table and who names it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TableRef {
    /// Host offset.
    table: u64,
    /// Number of L1 entries that name it.
    total: u64,
    /// Number of those in the active L1 table.
    active: u64,
    /// The lowest index of those in the active L1 table.
    l1_index: u32,
    /// `SEEN_COPIED`, `SEEN_UNCOPIED`.
    flags: u16,
}

/// L2 references gathered before duplicates are merged for the first time: 160 KiB.
pub(crate) const COMPACT_MIN: usize = 4096;

impl Run<'_> {
    /// Reads the active L1 table.
    pub(crate) fn scan_active_l1(&mut self) -> Result<(), CheckError> {
        let bytes = u64::from(self.header.l1_entries).saturating_mul(8);
        let offset = self.header.l1_offset;
        self.claim(Owner::ActiveL1, Structure::ActiveL1, offset, bytes)?;
        self.scan_l1(offset, bytes, Structure::ActiveL1, offset, L1Kind::Active)
    }

    /// Reads a stretch of L1 entries from `start`; `table` is where the table they belong to starts.
    pub(crate) fn scan_l1(
        &mut self,
        start: u64,
        bytes: u64,
        structure: Structure,
        table: u64,
        kind: L1Kind,
    ) -> Result<(), CheckError> {
        let (geometry, len) = (self.geometry, self.reader.len());
        let State { report, tables, tables_max, compact_at, buf, .. } = &mut *self.state;
        let first = start.saturating_sub(table) / 8;
        self.reader.scan(start, bytes, buf, &mut |at, piece| {
            nonzero_entries::<8>(piece, |index, raw| {
                let value = u64::from_be_bytes(*raw);
                let index = first.saturating_add(at / 8).saturating_add(index);
                let place = Place { structure, table, index };
                let entry = geometry.l1_entry(value);
                report_faults(report, entry.faults, place, value);
                let Some(target) = entry.target() else { return Ok(()) };
                if target >= len {
                    report.add(Finding::TableBeyondEof { owner: Owner::L2, place, offset: target });
                }
                if tables.len() >= *compact_at {
                    compact(tables);
                    *compact_at = COMPACT_MIN.max(tables.len().saturating_mul(2));
                    if tables.len() >= *tables_max {
                        return Err(CheckError::MemoryLimit);
                    }
                }
                tables.push(kind.table_ref(target, index, entry.copied));
                Ok(())
            })
        })
    }

    /// Reads every L2 table found.
    pub(crate) fn scan_l2_tables(&mut self) -> Result<(), CheckError> {
        let mut tables = std::mem::take(&mut self.state.tables);
        compact(&mut tables);
        self.state.report.summary.l2_tables = u64::try_from(tables.len()).unwrap_or(u64::MAX);
        for table in &tables {
            let cluster = self.geometry.cluster(table.table);
            let cell = self.state.cells.add(cluster, Owner::L2, table.total)?;
            cell.flags |= table.flags;
            cell.flags |= if table.active > 1 { ACTIVE_TWICE } else { 0 };
            self.scan_l2(table)?;
        }
        self.state.tables = tables;
        Ok(())
    }

    fn scan_l2(&mut self, table: &TableRef) -> Result<(), CheckError> {
        let State { cells, report, buf, .. } = &mut *self.state;
        let mut sink = L2Sink { geometry: self.geometry, len: self.reader.len(), table, cells, report };
        let bytes = self.geometry.cluster_size();
        if self.geometry.extended {
            self.reader.scan(table.table, bytes, buf, &mut |at, piece| {
                nonzero_entries::<16>(piece, |index, raw| {
                    sink.entry((at / 16).saturating_add(index), be64(raw, 0), be64(raw, 8))
                })
            })
        } else {
            self.reader.scan(table.table, bytes, buf, &mut |at, piece| {
                nonzero_entries::<8>(piece, |index, raw| {
                    sink.entry((at / 8).saturating_add(index), u64::from_be_bytes(*raw), 0)
                })
            })
        }
    }

    /// Names the entries whose COPIED flag contradicts the refcount. The comparison has marked the
    /// clusters concerned; only if there are any the active tables are read once more.
    pub(crate) fn locate_copied(&mut self) -> Result<(), CheckError> {
        if !self.state.copied_wrong {
            return Ok(());
        }
        let bytes = u64::from(self.header.l1_entries).saturating_mul(8);
        self.locate_copied_in(Structure::ActiveL1, self.header.l1_offset, bytes)?;
        let tables = std::mem::take(&mut self.state.tables);
        for table in tables.iter().filter(|table| table.active > 0) {
            let structure = Structure::ActiveL2 { l1_index: table.l1_index };
            self.locate_copied_in(structure, table.table, self.geometry.cluster_size())?;
        }
        self.state.tables = tables;
        Ok(())
    }

    fn locate_copied_in(&mut self, structure: Structure, table: u64, bytes: u64) -> Result<(), CheckError> {
        let (geometry, is_l1) = (self.geometry, structure == Structure::ActiveL1);
        let entry_bytes: u64 = if geometry.extended && !is_l1 { 16 } else { 8 };
        let (reader, order) = (self.reader, self.header.refcount_order);
        let State { cells, report, buf, blocks, .. } = &mut *self.state;
        reader.scan(table, bytes, buf, &mut |at, piece| {
            nonzero_entries::<8>(piece, |word, raw| {
                let at = at.saturating_add(word.saturating_mul(8));
                if at & entry_bytes.wrapping_sub(1) != 0 {
                    return Ok(());
                }
                let value = u64::from_be_bytes(*raw);
                let (target, copied) = if is_l1 {
                    let entry = geometry.l1_entry(value);
                    (entry.target(), entry.copied)
                } else {
                    let entry = geometry.l2_entry(value, 0);
                    (entry.host_cluster(), entry.copied)
                };
                let Some(target) = target else { return Ok(()) };
                let cluster = geometry.cluster(target);
                let wrong = if copied { WRONGLY_COPIED } else { WRONGLY_UNCOPIED };
                if cells.flags(cluster) & wrong == 0 {
                    return Ok(());
                }
                let place = Place { structure, table, index: at.wrapping_shr(entry_bytes.ilog2()) };
                report.add(if copied {
                    let refcount =
                        crate::refcounts::lookup(reader, blocks, geometry.cluster_bits, order, cluster)?;
                    Finding::CopiedSet { place, target, refcount }
                } else {
                    Finding::CopiedClear { place, target }
                });
                Ok(())
            })
        })
    }
}

/// Which L1 table entries come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum L1Kind {
    Active,
    /// That many snapshots share the stretch.
    Snapshots(u64),
}

impl L1Kind {
    fn table_ref(self, table: u64, index: u64, copied: bool) -> TableRef {
        match self {
            L1Kind::Active => TableRef {
                table,
                total: 1,
                active: 1,
                l1_index: u32::try_from(index).unwrap_or(u32::MAX),
                flags: if copied { SEEN_COPIED } else { SEEN_UNCOPIED },
            },
            L1Kind::Snapshots(total) => TableRef { table, total, active: 0, l1_index: u32::MAX, flags: 0 },
        }
    }
}

/// Sorts by table and merges the references to each.
fn compact(tables: &mut Vec<TableRef>) {
    tables.sort_unstable_by_key(|table| table.table);
    tables.dedup_by(|next, kept| {
        let same = next.table == kept.table;
        if same {
            kept.total = kept.total.saturating_add(next.total);
            kept.active = kept.active.saturating_add(next.active);
            kept.l1_index = kept.l1_index.min(next.l1_index);
            kept.flags |= next.flags;
        }
        same
    });
}

/// Takes in the entries of one L2 table.
struct L2Sink<'a> {
    geometry: crate::entry::Geometry,
    len: u64,
    table: &'a TableRef,
    cells: &'a mut Cells,
    report: &'a mut Report,
}

impl L2Sink<'_> {
    fn entry(&mut self, index: u64, value: u64, bitmap: u64) -> Result<(), CheckError> {
        let entry = self.geometry.l2_entry(value, bitmap);
        if !entry.faults.is_empty() {
            report_faults(self.report, entry.faults, self.place(index), value);
        }
        if let Mapping::Compressed { host, bytes } = entry.mapping {
            return self.compressed(index, host, bytes);
        }
        let Some(host) = entry.host_cluster() else { return Ok(()) };
        let summary = &mut self.report.summary;
        summary.data_entries = summary.data_entries.saturating_add(1);
        if self.geometry.data_file {
            self.in_data_file(index, value, host, &entry);
            return Ok(());
        }
        if host >= self.len {
            self.report.add(Finding::DataBeyondEof { place: self.place(index), offset: host });
        }
        let cell = self.cells.add(self.geometry.cluster(host), Owner::Data, self.table.total)?;
        if self.table.active > 0 {
            let again = self.table.active > 1 || cell.flags & ACTIVE != 0;
            cell.flags |= ACTIVE;
            cell.flags |= if again { ACTIVE_TWICE } else { 0 };
            cell.flags |= if entry.copied { SEEN_COPIED } else { SEEN_UNCOPIED };
        }
        Ok(())
    }

    fn compressed(&mut self, index: u64, host: u64, bytes: u64) -> Result<(), CheckError> {
        let summary = &mut self.report.summary;
        summary.compressed_entries = summary.compressed_entries.saturating_add(1);
        if self.geometry.data_file {
            return Ok(());
        }
        let first = self.geometry.cluster(host);
        let last = self.geometry.cluster(host.saturating_add(bytes.saturating_sub(1)));
        for cluster in first..=last {
            let offset = self.geometry.offset(cluster);
            if offset >= self.len {
                self.report.add(Finding::DataBeyondEof { place: self.place(index), offset });
            }
            self.cells.add(cluster, Owner::Compressed, self.table.total)?;
        }
        Ok(())
    }

    /// Clusters in the data file have no refcount; the offset must be the guest's, and with it no L2 table
    /// can serve two L1 entries.
    fn in_data_file(&mut self, index: u64, value: u64, host: u64, entry: &L2Entry) {
        let place = self.place(index);
        let guest = u64::from(self.table.l1_index)
            .wrapping_shl(self.geometry.l2_bits())
            .saturating_add(index)
            .saturating_mul(self.geometry.cluster_size());
        let mut faults = Faults::default();
        let misplaced = self.table.active > 1 || (self.table.active == 1 && host != guest);
        faults.add_if(misplaced, EntryFault::DataFileOffset);
        report_faults(self.report, faults, place, value);
        if !entry.copied && self.table.active > 0 {
            self.report.add(Finding::CopiedClear { place, target: host });
        }
    }

    fn place(&self, index: u64) -> Place {
        let structure = if self.table.active > 0 {
            Structure::ActiveL2 { l1_index: self.table.l1_index }
        } else {
            Structure::SnapshotL2
        };
        Place { structure, table: self.table.table, index }
    }
}
