//! L1 and L2 tables read past the caches, in large pieces and in the order of the file.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::{Buf, Result};

use super::shadow::Shadow;
use super::sparse;
use crate::engine::Engine;
use crate::geometry::{Geometry, HostOffset};
use crate::state::{Corruption, EntryPlace};
use crate::table::{L1Entry, L2Entry, Ownership};

/// Entries of an L1 table that are dealt with at once: 512 KiB of it.
pub(super) const L1_PIECE: u64 = 64 << 10;
/// Bytes of L2 tables that are read at once.
const L2_PIECE_BYTES: u64 = 4 << 20;

/// Bytes of a page of the host: smaller pieces of zeroes are not worth leaving out.
pub(super) const PAGE: usize = 4096;
/// Bytes that are looked at together where entries are scattered.
const LINE: usize = 64;
static ZEROES: [u8; PAGE] = [0; PAGE];

/// Whether all bytes of a page, or of less, are zero.
#[inline]
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    *bytes == ZEROES[..bytes.len()]
}

/// An L1 table in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct L1Place {
    pub offset: HostOffset,
    pub entries: u64,
}

impl L1Place {
    /// The active one.
    pub fn active(engine: &Engine) -> Self {
        let state = engine.state.lock();
        Self { offset: state.header.l1_offset, entries: u64::from(state.header.l1_entries) }
    }

    /// Its entries from `first` on, as many as `len`; empty ones beyond its end.
    pub async fn read(&self, engine: &Engine, first: u64, len: u64) -> Result<Vec<L1Entry>> {
        let here = self.entries.saturating_sub(first).min(len);
        let mut entries = Vec::with_capacity(len as usize);
        if here > 0 {
            let bytes = engine.file.read(self.offset.0 + first * 8, here as usize * 8).await?;
            let raw = bytes.chunks_exact(8).map(|b| u64::from_be_bytes(*b.first_chunk().expect("eight")));
            entries.extend(raw.map(L1Entry::decode));
            bytes.recycle();
        }
        entries.resize(len as usize, L1Entry::Empty);
        Ok(entries)
    }
}

/// The pieces that cover a table of `entries`.
pub(super) fn pieces(entries: u64) -> impl Iterator<Item = Range<u64>> {
    (0..entries.div_ceil(L1_PIECE)).map(move |i| i * L1_PIECE..((i + 1) * L1_PIECE).min(entries))
}

/// The bytes of L1 entries.
pub(super) fn encode_l1(entries: &[L1Entry]) -> Buf {
    let mut bytes = Buf::scratch(entries.len() * 8);
    for (place, entry) in bytes.chunks_exact_mut(8).zip(entries) {
        place.copy_from_slice(&entry.encode().to_be_bytes());
    }
    bytes
}

/// An L2 table to be looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct TableRef {
    pub offset: HostOffset,
    /// The L1 entry that names it.
    pub l1_index: u64,
    /// By how many its references, and those of its entries, change.
    pub change: i32,
}

/// Ends of the batches that a sorted list of tables is read in: tables that lie side by side.
pub(super) fn batch_end(tables: &[TableRef], at: usize, geometry: &Geometry) -> usize {
    let size = geometry.cluster_size();
    let start = tables[at].offset.0;
    let mut end = at + 1;
    while end < tables.len()
        && tables[end].offset.0 == start + (end - at) as u64 * size
        && (end - at) as u64 * size < L2_PIECE_BYTES
    {
        end += 1;
    }
    end
}

/// Reads the tables of a batch, which lie side by side.
pub(super) async fn read_batch(engine: &Arc<Engine>, batch: &[TableRef]) -> Result<Buf> {
    let size = engine.geometry.cluster_size() as usize;
    for table in batch {
        engine.check_table(table.offset, table.l1_index).await?;
    }
    sparse::read(&engine.file, batch[0].offset.0, batch.len() * size, size as u64).await
}

/// The entries of one L2 table as bytes.
#[derive(Clone, Copy)]
pub(crate) struct Entries<'a> {
    bytes: &'a [u8],
    /// Bytes from one entry to the next; the reference is in the first eight.
    stride: usize,
    geometry: Geometry,
}

/// A data cluster's offset that is no multiple of the cluster size: where, and at which entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unaligned {
    offset: u64,
    index: u64,
}

impl Unaligned {
    /// What to report, for the table at this offset.
    pub fn corruption(&self, table: HostOffset) -> Corruption {
        let at = EntryPlace { table: table.0, index: self.index };
        Corruption::ClusterUnaligned { offset: self.offset, at }
    }
}

/// Bytes of an L2 entry.
fn stride(geometry: &Geometry) -> usize {
    geometry.l2_entry_bytes() as usize
}

impl<'a> Entries<'a> {
    pub fn new(bytes: &'a [u8], geometry: Geometry) -> Self {
        Self { bytes, stride: stride(&geometry), geometry }
    }

    pub fn len(&self) -> usize {
        self.bytes.len() / self.stride
    }

    pub fn raw(&self, index: usize) -> u64 {
        let at = index * self.stride;
        self.bytes[at..at + 8].first_chunk().map_or(0, |b| u64::from_be_bytes(*b))
    }

    /// The first entry from `index` on that is not empty.
    pub fn next(&self, mut index: usize) -> Option<usize> {
        let len = self.len();
        while index < len {
            let at = index * self.stride;
            // Most of most tables is empty: whole pages first, then lines of the cache.
            let skipped = [PAGE, LINE]
                .into_iter()
                .find(|size| at.is_multiple_of(*size) && self.bytes.get(at..at + size).is_some_and(is_zero));
            match skipped {
                Some(size) => index += size / self.stride,
                None if self.raw(index) == 0 => index += 1,
                None => return Some(index),
            }
        }
        None
    }

    /// How many entries from `index` on continue it on the host: the same but for the offset.
    pub fn run(&self, index: usize, raw: u64) -> usize {
        let size = self.geometry.cluster_size();
        let mut len = 1;
        while index + len < self.len() && self.raw(index + len) == raw.wrapping_add(len as u64 * size) {
            len += 1;
        }
        len
    }

    /// Calls `f` with each run of host clusters that the entries refer to. A cluster that holds several compressed
    /// ones comes as often as they touch it.
    ///
    /// # Errors
    /// At the first entry that no reader could follow.
    pub fn references(&self, mut f: impl FnMut(Range<u64>)) -> std::result::Result<(), Unaligned> {
        let mut at = 0;
        while let Some(index) = self.next(at) {
            let raw = self.raw(index);
            at = index + 1;
            match L2Entry::decode(raw, &self.geometry) {
                L2Entry::Normal(host, _) | L2Entry::ZeroAllocated(host, _) => {
                    if !self.geometry.is_aligned(host) {
                        return Err(Unaligned { offset: host.0, index: index as u64 });
                    }
                    let len = self.run(index, raw);
                    let first = self.geometry.host_cluster(host).0;
                    f(first..first + len as u64);
                    at = index + len;
                }
                L2Entry::Compressed(compressed) => f(compressed.clusters(&self.geometry)),
                L2Entry::Unallocated | L2Entry::ZeroPlain => {}
            }
        }
        Ok(())
    }
}

/// Whether a table has a COPIED flag anywhere.
pub(super) fn has_flags(bytes: &[u8], geometry: &Geometry) -> bool {
    let flagged = |page: &[u8]| page.chunks_exact(stride(geometry)).any(|entry| entry[0] & 0x80 != 0);
    bytes.chunks(PAGE).any(|page| !is_zero(page) && flagged(page))
}

/// Clears all COPIED flags of a table.
pub(super) fn clear_flags(bytes: &mut [u8], geometry: &Geometry) {
    for page in bytes.chunks_mut(PAGE).filter(|page| !is_zero(page)) {
        for entry in page.chunks_exact_mut(stride(geometry)) {
            if entry[0] & 0x80 != 0 {
                set_flag(entry, Ownership::Shared);
            }
        }
    }
}

/// Sets or clears the COPIED flag of an entry.
pub(super) fn set_flag(entry: &mut [u8], ownership: Ownership) {
    let raw = entry[..8].first_chunk().map_or(0, |b| u64::from_be_bytes(*b));
    entry[..8].copy_from_slice(&L2Entry::with_copied_flag(raw, ownership).to_be_bytes());
}

/// The bytes of entry `index` in a table that is being changed.
pub(super) fn entry_mut<'a>(bytes: &'a mut [u8], index: usize, geometry: &Geometry) -> &'a mut [u8] {
    let stride = stride(geometry);
    &mut bytes[index * stride..(index + 1) * stride]
}

impl Shadow {
    /// Counts how the references of tables and of what they name change, in this window. Returns the tables that
    /// gain a reference and have COPIED flags: they are not counted themselves, since their new user must not have
    /// them as they are.
    pub async fn count_tables(&mut self, mut tables: Vec<TableRef>) -> Result<Vec<TableRef>> {
        let engine = self.engine.clone();
        let geometry = engine.geometry;
        let size = geometry.cluster_size() as usize;
        tables.sort_unstable_by_key(|table| (table.offset, table.l1_index));
        let (mut flagged, mut at) = (Vec::new(), 0);
        while at < tables.len() {
            let end = batch_end(&tables, at, &geometry);
            let content = read_batch(&engine, &tables[at..end]).await?;
            for (table, bytes) in tables[at..end].iter().zip(content.chunks_exact(size)) {
                let count = |run| self.deltas.add_range(run, table.change);
                if let Err(broken) = Entries::new(bytes, geometry).references(count) {
                    return Err(engine.report(broken.corruption(table.offset)).await);
                }
                if table.change > 0 && has_flags(bytes, &geometry) {
                    flagged.push(*table);
                } else {
                    self.deltas.add(geometry.host_cluster(table.offset).0, table.change);
                }
            }
            content.recycle();
            at = end;
        }
        Ok(flagged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::L2Format;
    use crate::table::{Cell, Compressed, Storage};

    fn table(geometry: &Geometry, entries: &[(usize, Cell)]) -> Vec<u8> {
        let mut bytes = vec![0; geometry.cluster_size() as usize];
        for (index, cell) in entries {
            let (raw, bitmap) = cell.encode(geometry);
            let entry = entry_mut(&mut bytes, *index, geometry);
            entry[..8].copy_from_slice(&raw.to_be_bytes());
            if geometry.l2_format == L2Format::Extended {
                entry[8..].copy_from_slice(&bitmap.to_be_bytes());
            }
        }
        bytes
    }

    fn found(bytes: &[u8], geometry: Geometry) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        Entries::new(bytes, geometry).references(|run| runs.push(run)).expect("aligned");
        runs
    }

    fn cluster(geometry: &Geometry, number: u64, ownership: Ownership) -> Cell {
        let host = HostOffset(number << geometry.cluster_bits);
        let all = geometry.all_subclusters();
        Cell { storage: Storage::Cluster(host, ownership), alloc: all, zero: 0 }
    }

    #[test]
    fn runs_of_references_are_found_whatever_their_kind() {
        let standard = Geometry::new(14, 4, 4096);
        for geometry in [standard, standard.with_l2(L2Format::Extended)] {
            let all = geometry.all_subclusters();
            let data = |number, ownership| cluster(&geometry, number, ownership);
            let kept = Cell { alloc: 0, zero: all, ..data(20, Ownership::Private) };
            let packed = Compressed { offset: HostOffset((40 << 14) - 100), len: 612 - 100 };
            let packed = Cell { storage: Storage::Compressed(packed), alloc: all, zero: 0 };
            let mut bytes = table(
                &geometry,
                &[
                    (3, data(10, Ownership::Private)),
                    (4, data(11, Ownership::Private)),
                    (5, data(12, Ownership::Shared)),
                    (100, kept),
                    (101, Cell::zeroes(&geometry)),
                    (511, packed),
                ],
            );
            assert_eq!(found(&bytes, geometry), [10..12, 12..13, 20..21, 39..41]);
            assert!(has_flags(&bytes, &geometry));
            clear_flags(&mut bytes, &geometry);
            assert!(!has_flags(&bytes, &geometry));
            assert_eq!(found(&bytes, geometry), [10..13, 20..21, 39..41]);
        }
    }

    #[test]
    fn references_between_clusters_are_refused() {
        let geometry = Geometry::new(12, 4, 4096);
        let mut bytes = table(&geometry, &[(9, cluster(&geometry, 1, Ownership::Private))]);
        bytes[9 * 8 + 6] = 0x12;
        let mut seen = 0;
        let broken = Entries::new(&bytes, geometry).references(|_| seen += 1).expect_err("unaligned");
        assert_eq!((seen, broken.offset, broken.index), (0, 0x1200, 9));
    }
}
