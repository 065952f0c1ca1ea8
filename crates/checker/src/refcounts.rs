//! The refcount structures, and their comparison with the references counted.

use crate::cells::{
    ACTIVE_TWICE, COUNTED, Cell, OVERLAP, SEEN_COPIED, SEEN_UNCOPIED, WRONGLY_COPIED, WRONGLY_UNCOPIED,
};
use crate::checker::{Run, State, report_faults};
use crate::entry::{EntryFault, Faults, nonzero_refcounts};
use crate::error::CheckError;
use crate::finding::Finding;
use crate::image::{Reader, nonzero_entries};
use crate::owner::{Owner, Owners, Place, Structure};

impl Run<'_> {
    /// Reads the refcount table; the blocks are read by [`compare_refcounts`](Self::compare_refcounts).
    pub(crate) fn read_reftable(&mut self) -> Result<(), CheckError> {
        let (table, bytes) = (self.header.reftable_offset, self.header.reftable_bytes());
        self.claim(Owner::Reftable, Structure::Reftable, table, bytes)?;
        let (geometry, len) = (self.geometry, self.reader.len());
        let State { cells, report, blocks, buf, .. } = &mut *self.state;
        self.reader.scan(table, bytes, buf, &mut |at, piece| {
            nonzero_entries::<8>(piece, |index, raw| {
                let index = (at / 8).saturating_add(index);
                let value = u64::from_be_bytes(*raw);
                let place = Place { structure: Structure::Reftable, table, index };
                let entry = geometry.reftable_entry(value);
                report_faults(report, entry.faults, place, value);
                let Some(offset) = entry.target() else { return Ok(()) };
                let block = Owner::Refblock;
                let twice =
                    cells.get_mut(geometry.cluster(offset)).is_some_and(|cell| cell.owners.contains(block));
                cells.add(geometry.cluster(offset), block, 1)?;
                if offset >= len {
                    report.add(Finding::TableBeyondEof { owner: block, place, offset });
                } else if twice {
                    let mut faults = Faults::default();
                    faults.add_if(true, EntryFault::RefblockTwice);
                    report_faults(report, faults, place, value);
                } else {
                    blocks.push((index, offset));
                }
                Ok(())
            })
        })
    }

    /// Compares each refcount with the references, then looks at what the references say by themselves.
    pub(crate) fn compare_refcounts(&mut self) -> Result<(), CheckError> {
        let (geometry, len, order) = (self.geometry, self.reader.len(), self.header.refcount_order);
        let block_bytes = geometry.cluster_size();
        let per_block = entries_per_block(geometry.cluster_bits, order);
        let mut end = 0;
        let State { cells, report, blocks, buf, copied_wrong, .. } = &mut *self.state;
        for (block_index, block) in blocks.iter() {
            let block_first = block_index.saturating_mul(per_block);
            self.reader.scan(*block, block_bytes, buf, &mut |at, piece| {
                let first = block_first.saturating_add(at.saturating_mul(8).wrapping_shr(order));
                nonzero_refcounts(piece, order, |index, refcount| {
                    let cluster = first.saturating_add(index);
                    end = cluster.saturating_add(1).max(end);
                    let mut nobody = Cell::default();
                    let cell = cells.get_mut(cluster).unwrap_or(&mut nobody);
                    cell.flags |= COUNTED;
                    if let Some(finding) = judge(cell, cluster, geometry.offset(cluster), refcount, len) {
                        report.add(finding);
                    }
                    *copied_wrong |= mark_copied(cell, refcount);
                    Ok(())
                })
            })?;
        }
        report.summary.image_end_offset = geometry.offset(end);
        cells.for_each(|cluster, cell| {
            let offset = geometry.offset(cluster);
            let (references, owners) = (cell.references, cell.owners);
            if cell.flags & COUNTED == 0 {
                report.add(Finding::RefcountTooLow { cluster, offset, refcount: 0, references, owners });
                *copied_wrong |= mark_copied(cell, 0);
            }
            if cell.flags & OVERLAP != 0 {
                report.add(Finding::Overlap { cluster, offset, references, owners });
            } else if cell.flags & ACTIVE_TWICE != 0 {
                report.add(Finding::SharedInActive { cluster, offset, owners });
            }
        });
        Ok(())
    }
}

/// Refcount against references.
fn judge(cell: &Cell, cluster: u64, offset: u64, refcount: u64, len: u64) -> Option<Finding> {
    let (references, owners): (u64, Owners) = (cell.references, cell.owners);
    if refcount < references {
        Some(Finding::RefcountTooLow { cluster, offset, refcount, references, owners })
    } else if refcount == references {
        None
    } else if offset >= len {
        Some(Finding::LeakBeyondEof { cluster, offset, refcount, references })
    } else {
        Some(Finding::Leak { cluster, offset, refcount, references })
    }
}

/// Marks a cluster whose COPIED flags contradict the refcount; true if they do.
fn mark_copied(cell: &mut Cell, refcount: u64) -> bool {
    let wrong = if refcount == 1 {
        if cell.flags & SEEN_UNCOPIED != 0 { WRONGLY_UNCOPIED } else { 0 }
    } else if cell.flags & SEEN_COPIED != 0 {
        WRONGLY_COPIED
    } else {
        0
    };
    cell.flags |= wrong;
    wrong != 0
}

/// The refcount of one cluster, for the text of a finding.
pub(crate) fn lookup(
    reader: &Reader<'_>,
    blocks: &[(u64, u64)],
    cluster_bits: u32,
    order: u32,
    cluster: u64,
) -> Result<u64, CheckError> {
    let per_block = entries_per_block(cluster_bits, order);
    let block_index = cluster.checked_div(per_block).unwrap_or(0);
    let Ok(slot) = blocks.binary_search_by_key(&block_index, |block| block.0) else { return Ok(0) };
    let Some((_, block)) = blocks.get(slot) else { return Ok(0) };
    let bit = (cluster & per_block.wrapping_sub(1)).wrapping_shl(order);
    let word = reader.word(block.saturating_add((bit / 8) & !7))?;
    let mut found = 0;
    let wanted = (bit & 63).wrapping_shr(order);
    nonzero_refcounts(&word.to_be_bytes(), order, |index, refcount| {
        if index == wanted {
            found = refcount;
        }
        Ok(())
    })?;
    Ok(found)
}

/// Refcounts in a block, a power of two.
fn entries_per_block(cluster_bits: u32, order: u32) -> u64 {
    1u64.wrapping_shl(cluster_bits.wrapping_add(3).wrapping_sub(order))
}
