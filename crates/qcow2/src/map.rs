//! Plans: what host I/O serves a guest range, decided under the lock and carried out without it.

use std::ops::Range;

use cowbell_block::mutant;
use smallvec::SmallVec;

use crate::cache::Slot;
use crate::engine::Dropped;
use crate::geometry::{DataPlace, GuestCluster, HostCluster, HostOffset, L2Format};
use crate::state::{Decision, Need, State, Stop};
use crate::table::{Cell, Compressed, L1Entry, Ownership, Storage};

/// What a guest range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stored at this host offset.
    Data(HostOffset),
    /// Zeroes; a data cluster may be kept at this offset.
    Zero(Option<HostOffset>),
    /// The backing file's content, or zeroes; a data cluster may be there at this offset.
    Unallocated(Option<HostOffset>),
    /// One cluster, stored compressed.
    Compressed(Compressed),
}

/// A guest range of one kind that is contiguous on the host as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub kind: Kind,
    pub len: u64,
}

impl Run {
    /// Whether `next`, which follows in the guest, continues this run on the host.
    pub fn is_continued_by(&self, next: &Run) -> bool {
        let joined = |a: HostOffset, b: HostOffset| a.0.checked_add(self.len) == Some(b.0);
        match (self.kind, next.kind) {
            (Kind::Data(a), Kind::Data(b))
            | (Kind::Zero(Some(a)), Kind::Zero(Some(b)))
            | (Kind::Unallocated(Some(a)), Kind::Unallocated(Some(b))) => joined(a, b),
            (Kind::Zero(None), Kind::Zero(None)) | (Kind::Unallocated(None), Kind::Unallocated(None)) => true,
            _ => false,
        }
    }
}

/// Pieces of an overwrite in place: host offset and length.
pub(crate) type Pieces = SmallVec<[(HostOffset, u64); 4]>;

/// The beginning of a write and how its clusters get their storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WriteRun {
    /// Private storage is there and holds the content of each subcluster that is touched.
    InPlace { host: HostOffset, len: u64 },
    /// Private storage is there, but some subclusters do not use it yet: those are written whole, then the
    /// entries.
    Kept { host: HostOffset, clusters: u64 },
    /// Storage must be found.
    Fresh { clusters: u64 },
    /// Storage cannot move, and these guest bytes, whole blocks of one cluster, are partly published: all of them are to
    /// be, durably, before they change.
    Split { blocks: Range<u64> },
}

/// Bytes of the largest blocks that a guest may be given, of which a cut must show all or nothing (contract, G2).
const BLOCK_BYTES: u64 = 4096;

/// What is written for a run besides the data: the rest of subclusters, and content that moves to new storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    /// Guest bytes before the data.
    pub head: u64,
    /// Bytes of data.
    pub data: u64,
    /// Guest bytes after the data.
    pub tail: u64,
}

impl State {
    /// The longest run at guest `offset`, at most `len` bytes; it does not cross an L2 slice, unless no table is
    /// there. `len` is not zero and the range lies on the disk.
    pub fn map_run(&mut self, offset: u64, len: u64) -> Decision<Run> {
        let geometry = self.geometry;
        let cluster = geometry.guest_cluster(offset);
        let Some(slot) = self.l2_slot(cluster)? else {
            return Ok(Run { kind: Kind::Unallocated(None), len: self.unmapped_from(offset, len) });
        };
        self.entries(slot, cluster).run(offset, len)
    }

    /// See [`Entries::alike_after`]; `end` lies in the slice of `cluster`.
    pub fn alike_after(&self, slot: Slot, cluster: GuestCluster, end: u64) -> u64 {
        self.entries(slot, cluster).alike_after(cluster, end)
    }

    /// One past the last guest cluster of an L2 slice.
    pub fn slice_end(&self, cluster: GuestCluster) -> u64 {
        (self.geometry.l2_slice(cluster) + 1) * self.geometry.l2_slice_entries()
    }

    /// How much of a range, which starts in a part without L2 table, has none: as far as the L1 slice tells.
    fn unmapped_from(&mut self, offset: u64, len: u64) -> u64 {
        let geometry = self.geometry;
        let per_table = geometry.l2_entries() << geometry.cluster_bits;
        let mut index = geometry.l1_index(geometry.guest_cluster(offset)) + 1;
        let mut end = index * per_table;
        let slice = (index - 1) / geometry.slice_entries();
        while end < offset + len && index / geometry.slice_entries() == slice {
            if !matches!(self.l1_entry(index), Ok(L1Entry::Empty)) {
                break;
            }
            index += 1;
            end += per_table;
        }
        (end - offset).min(len)
    }

    /// Where an overwrite goes, if every subcluster of the range has private storage that holds its data.
    pub fn plan_overwrite(&mut self, offset: u64, len: u64) -> Decision<Option<Pieces>> {
        let mut pieces = Pieces::new();
        let mut at = offset;
        while at < offset + len {
            match self.plan_write(at, offset + len - at) {
                Ok(WriteRun::InPlace { host, len }) => {
                    match pieces.last_mut() {
                        Some((last, last_len)) if last.0 + *last_len == host.0 => *last_len += len,
                        _ => pieces.push((host, len)),
                    }
                    at += len;
                }
                Ok(_) | Err(Stop::Need(Need::OwnL2(_))) => return Ok(None),
                Err(stop) => return Err(stop),
            }
        }
        Ok(Some(pieces))
    }

    /// How the beginning of a write gets its storage; the run does not cross an L2 slice.
    pub fn plan_write(&mut self, offset: u64, len: u64) -> Decision<WriteRun> {
        let geometry = self.geometry;
        let cluster = geometry.guest_cluster(offset);
        let slot = self.own_l2_slot(cluster)?;
        let end = (geometry.guest_cluster(offset + len - 1).0 + 1).min(self.slice_end(cluster));
        let (first, start) = self.write_class(slot, cluster, offset, len)?;
        let mut clusters = 1;
        while cluster.0 + clusters < end {
            let follows = start.map(|h| HostOffset(h.0 + (clusters << geometry.cluster_bits)));
            let next = GuestCluster(cluster.0 + clusters);
            if first == Class::Split || self.write_class(slot, next, offset, len)? != (first, follows) {
                break;
            }
            clusters += 1;
        }
        if first == Class::Split {
            let blocks = self.split_blocks(self.cell(slot, cluster)?, cluster, offset..offset + len);
            return Ok(WriteRun::Split { blocks: blocks.expect("the class says so") });
        }
        let Some(start) = start else { return Ok(WriteRun::Fresh { clusters }) };
        if geometry.data_place == DataPlace::Image {
            let host_cluster = geometry.host_cluster(start).0;
            self.check_overlap(host_cluster..host_cluster + clusters)?;
        }
        if first == Class::Kept {
            return Ok(WriteRun::Kept { host: start, clusters });
        }
        let inside = geometry.in_cluster(offset);
        let len = len.min((clusters << geometry.cluster_bits) - inside);
        Ok(WriteRun::InPlace { host: HostOffset(start.0 + inside), len })
    }

    /// What a write of `offset..offset + len` finds in one of its clusters, and the storage that it may use there.
    fn write_class(
        &self,
        slot: Slot,
        cluster: GuestCluster,
        offset: u64,
        len: u64,
    ) -> Decision<(Class, Option<HostOffset>)> {
        let cell = self.cell(slot, cluster)?;
        let host = match cell.storage {
            Storage::Cluster(host, Ownership::Private) => host,
            // Nobody counts, and nobody shares, clusters of an external file.
            Storage::Cluster(host, _) if self.geometry.data_place == DataPlace::External => host,
            _ => return Ok((Class::Fresh, None)),
        };
        let touched = self.touched(cluster, offset..offset + len);
        if cell.alloc & touched == touched {
            return Ok((Class::InPlace, Some(host)));
        }
        if self.split_blocks(cell, cluster, offset..offset + len).is_none() {
            return Ok((Class::Kept, Some(host)));
        }
        // In other storage the blocks are published by the cluster's entry, which no cut tears.
        Ok(match self.geometry.data_place {
            DataPlace::Image => (Class::Fresh, None),
            DataPlace::External => (Class::Split, Some(host)),
        })
    }

    /// The blocks of a cluster that a write covers whole and that have storage in some of their subclusters only, with
    /// what lies between them. Written where they are, one part would be seen at once and the other with the entry.
    fn split_blocks(&self, cell: Cell, cluster: GuestCluster, range: Range<u64>) -> Option<Range<u64>> {
        let geometry = &self.geometry;
        let size = geometry.subcluster_size();
        if geometry.l2_format == L2Format::Standard
            || size >= BLOCK_BYTES
            || mutant::is_active("blocks-split")
        {
            return None;
        }
        let start = geometry.guest_offset(cluster);
        let inside = range.start.saturating_sub(start)..(range.end - start).min(geometry.cluster_size());
        let block = |index: u64| index * BLOCK_BYTES..(index + 1) * BLOCK_BYTES;
        let is_split = |index: &u64| {
            let all = geometry.subclusters_of(block(*index));
            !matches!(cell.alloc & all, stored if stored == 0 || stored == all)
        };
        let covered = inside.start.div_ceil(BLOCK_BYTES)..inside.end / BLOCK_BYTES;
        let first = covered.clone().find(is_split)?;
        let last = covered.rev().find(is_split)?;
        Some(start + block(first).start..start + block(last).end)
    }

    /// The subclusters of a cluster that a guest range touches; the range does touch the cluster.
    fn touched(&self, cluster: GuestCluster, range: Range<u64>) -> u32 {
        let start = self.geometry.guest_offset(cluster);
        let end = (range.end - start).min(self.geometry.cluster_size());
        self.geometry.subclusters_of(range.start.saturating_sub(start)..end)
    }

    /// What a write of `data` guest bytes at `at` must store around them, when its clusters use kept storage or get
    /// fresh one. The caller holds the clusters exclusively; they lie in one L2 slice.
    pub fn span(&mut self, at: u64, data: u64, kept: KeptStorage) -> Decision<Span> {
        let geometry = self.geometry;
        let (first, last) = (geometry.guest_cluster(at), geometry.guest_cluster(at + data - 1));
        let slot = self.own_l2_slot(first)?;
        let needed = |cluster| {
            let cell = self.cell(slot, cluster)?;
            let touched = self.touched(cluster, at..at + data);
            Decision::Ok(match kept {
                // What is stored stays where it is: only the rest of subclusters that begin to use the storage.
                KeptStorage::Yes => (touched, cell.alloc),
                KeptStorage::No => (touched | cell.alloc, 0),
            })
        };
        let size = geometry.subcluster_size();
        let (mask, stays) = needed(first)?;
        let lowest = mask.trailing_zeros();
        let inside = geometry.in_cluster(at);
        let head = if stays >> lowest & 1 != 0 { 0 } else { inside - u64::from(lowest) * size };
        let (mask, stays) = needed(last)?;
        let highest = u32::BITS - 1 - mask.leading_zeros();
        let end = geometry.in_cluster(at + data - 1) + 1;
        let tail = if stays >> highest & 1 != 0 { 0 } else { u64::from(highest + 1) * size - end };
        Ok(Span { head, data, tail })
    }

    /// The L2 slice of a cluster in a table that may be changed in place.
    pub fn own_l2_slot(&mut self, cluster: GuestCluster) -> Decision<Slot> {
        if self.meta.is_none() {
            return Err(Need::Meta.into());
        }
        match self.l2_slot(cluster)? {
            Some(slot) if self.l2.is_private(slot) => Ok(slot),
            _ => Err(Need::OwnL2(self.geometry.l1_index(cluster)).into()),
        }
    }

    /// Publishes new storage: the guest range `stored` lies at `host` from now on, where `host` is the place of the
    /// range's first cluster. What its clusters referred to before is dropped later.
    pub fn link_data(&mut self, stored: Range<u64>, host: HostOffset) -> Decision<()> {
        let geometry = self.geometry;
        assert!(geometry.is_aligned(host), "storage starts at a cluster");
        assert!(host.0 != 0 || geometry.data_place == DataPlace::External, "the header lies there");
        let first = geometry.guest_cluster(stored.start);
        let end = geometry.clusters_for(stored.end);
        let slot = self.own_l2_slot(first)?;
        assert!(end <= self.slice_end(first), "a run stays inside its slice");
        for cluster in (first.0..end).map(GuestCluster) {
            let at = HostOffset(host.0 + ((cluster.0 - first.0) << geometry.cluster_bits));
            let old = self.cell(slot, cluster)?;
            let new = self.touched(cluster, stored.clone());
            let kept = matches!(old.storage, Storage::Cluster(kept, _) if kept == at);
            assert!(kept || old.alloc & !new == 0, "what was stored moved to the new storage");
            let storage = Storage::Cluster(at, Ownership::Private);
            let alloc = if kept { old.alloc | new } else { new };
            self.set_cell(slot, cluster, Cell { storage, alloc, zero: old.zero & !new });
            if !kept {
                self.drop_storage(old.storage, Dropped::Replaced);
            }
        }
        self.entries_need_barrier = true;
        Ok(())
    }

    /// Replaces the mapping of one cluster by one that has no new storage, dropping what it had.
    pub fn unlink(&mut self, cluster: GuestCluster, new: Cell, why: Dropped) -> Decision<()> {
        let slot = self.own_l2_slot(cluster)?;
        let old = self.cell(slot, cluster)?;
        if old == new {
            return Ok(());
        }
        self.set_cell(slot, cluster, new);
        if old.storage != new.storage {
            assert!(new.storage == Storage::None, "no new storage");
            self.drop_storage(old.storage, why);
        }
        Ok(())
    }

    fn drop_storage(&mut self, old: Storage, why: Dropped) {
        match old {
            Storage::None => {}
            // An external file counts nothing.
            Storage::Cluster(..) if self.geometry.data_place == DataPlace::External => {}
            Storage::Cluster(host, _) => {
                let cluster = self.geometry.host_cluster(host);
                self.free_later(cluster..HostCluster(cluster.0 + 1), why);
            }
            Storage::Compressed(compressed) => {
                let clusters = compressed.clusters(&self.geometry);
                // Others may share these host clusters: only the refcount tells.
                self.free_later(HostCluster(clusters.start)..HostCluster(clusters.end), Dropped::Replaced);
            }
        }
    }
}

/// How a cluster takes a write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    InPlace,
    Kept,
    Fresh,
    Split,
}

/// Whether a write goes into storage that its clusters have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeptStorage {
    Yes,
    No,
}
