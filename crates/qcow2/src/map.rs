//! Plans: what host I/O serves a guest range, decided under the lock and carried out without it.

use smallvec::SmallVec;

use crate::geometry::{GuestCluster, HostCluster, HostOffset};
use crate::state::{Corruption, Decision, Need, State};
use crate::table::{Compressed, L1Entry, L2Entry, Ownership};

/// What a guest range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stored at this host offset.
    Data(HostOffset),
    /// Zeroes; a data cluster may be kept at this offset.
    Zero(Option<HostOffset>),
    /// The backing file's content, or zeroes.
    Unallocated,
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
            (Kind::Data(a), Kind::Data(b)) | (Kind::Zero(Some(a)), Kind::Zero(Some(b))) => joined(a, b),
            (Kind::Zero(None), Kind::Zero(None)) | (Kind::Unallocated, Kind::Unallocated) => true,
            _ => false,
        }
    }
}

/// Pieces of an overwrite in place: host offset and length.
pub(crate) type Pieces = SmallVec<[(HostOffset, u64); 4]>;

/// The beginning of a write and how its clusters get their storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteRun {
    /// Private storage is there.
    InPlace { host: HostOffset, len: u64 },
    /// Private storage is there but reads as zeroes: the whole clusters are written, then the entries.
    Kept { host: HostOffset, clusters: u64 },
    /// Storage must be found.
    Fresh { clusters: u64 },
}

impl State {
    /// The longest run at guest `offset`, at most `len` bytes; it does not cross an L2 slice, unless no table is
    /// there. `len` is not zero and the range lies on the disk.
    pub fn map_run(&mut self, offset: u64, len: u64) -> Decision<Run> {
        let geometry = self.geometry;
        let cluster = geometry.guest_cluster(offset);
        let Some(slot) = self.l2_slot(cluster)? else {
            return Ok(Run { kind: Kind::Unallocated, len: self.unmapped_from(offset, len) });
        };
        let per_slice = geometry.slice_entries();
        let first = cluster.0 % per_slice;
        let inside = geometry.in_cluster(offset);
        let mut run =
            Run { kind: self.kind_of(slot, first, cluster)?, len: geometry.cluster_size() - inside };
        run.kind = match run.kind {
            Kind::Data(host) => Kind::Data(HostOffset(host.0 + inside)),
            Kind::Zero(Some(host)) => Kind::Zero(Some(HostOffset(host.0 + inside))),
            other => other,
        };
        for index in first + 1..per_slice {
            if run.len >= len {
                break;
            }
            let kind = self.kind_of(slot, index, GuestCluster(cluster.0 + index - first))?;
            let next = Run { kind, len: geometry.cluster_size() };
            if !run.is_continued_by(&next) {
                break;
            }
            run.len += next.len;
        }
        run.len = run.len.min(len);
        Ok(run)
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

    fn kind_of(&self, slot: crate::cache::Slot, index: u64, cluster: GuestCluster) -> Decision<Kind> {
        let guest = || self.geometry.guest_offset(cluster);
        let aligned = |host: HostOffset| match self.geometry.is_aligned(host) {
            true => Ok(host),
            false => Err(Corruption::ClusterUnaligned { offset: host.0, guest: guest() }),
        };
        Ok(match L2Entry::decode(self.l2.entry(slot, index), &self.geometry) {
            L2Entry::Unallocated => Kind::Unallocated,
            L2Entry::Normal(host, _) => Kind::Data(aligned(host)?),
            L2Entry::Compressed(compressed) => Kind::Compressed(compressed),
            zero if self.header.version < 3 && zero.is_zero() => {
                return Err(Corruption::ZeroInVersion2 { guest: guest() }.into());
            }
            L2Entry::ZeroPlain => Kind::Zero(None),
            L2Entry::ZeroAllocated(host, _) => Kind::Zero(Some(aligned(host)?)),
        })
    }

    /// Where an overwrite goes, if every cluster of the range has private storage that holds its data.
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
                Ok(_) | Err(crate::state::Stop::Need(Need::OwnL2(_))) => return Ok(None),
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
        let per_slice = geometry.slice_entries();
        let first = cluster.0 % per_slice;
        let last = (geometry.guest_cluster(offset + len - 1).0 - cluster.0 + first).min(per_slice - 1);
        let class = |index: u64| match L2Entry::decode(self.l2.entry(slot, index), &geometry) {
            L2Entry::Normal(host, Ownership::Private) => (0, Some(host)),
            L2Entry::ZeroAllocated(host, Ownership::Private) => (1, Some(host)),
            _ => (2, None),
        };
        let (kind, start) = class(first);
        let mut clusters = 1;
        while first + clusters <= last {
            let follows = start.map(|h| HostOffset(h.0 + (clusters << geometry.cluster_bits)));
            if class(first + clusters) != (kind, follows) {
                break;
            }
            clusters += 1;
        }
        let Some(start) = start else { return Ok(WriteRun::Fresh { clusters }) };
        if !geometry.is_aligned(start) {
            let guest = geometry.guest_offset(cluster);
            return Err(Corruption::ClusterUnaligned { offset: start.0, guest }.into());
        }
        let host_cluster = geometry.host_cluster(start).0;
        self.check_overlap(host_cluster..host_cluster + clusters)?;
        if kind == 1 {
            return Ok(WriteRun::Kept { host: start, clusters });
        }
        let inside = geometry.in_cluster(offset);
        let len = len.min((clusters << geometry.cluster_bits) - inside);
        Ok(WriteRun::InPlace { host: HostOffset(start.0 + inside), len })
    }

    /// The L2 slice of a cluster in a table that may be changed in place.
    pub fn own_l2_slot(&mut self, cluster: GuestCluster) -> Decision<crate::cache::Slot> {
        if self.meta.is_none() {
            return Err(Need::Meta.into());
        }
        match self.l2_slot(cluster)? {
            Some(slot) if self.l2.is_private(slot) => Ok(slot),
            _ => Err(Need::OwnL2(self.geometry.l1_index(cluster)).into()),
        }
    }

    /// Publishes new storage: `clusters` guest clusters from `first` on are stored at `host` from now on. What
    /// they referred to before is dropped later.
    pub fn link_data(&mut self, first: GuestCluster, clusters: u64, host: HostOffset) -> Decision<()> {
        let slot = self.own_l2_slot(first)?;
        let index = first.0 % self.geometry.slice_entries();
        assert!(index + clusters <= self.geometry.slice_entries(), "a run stays inside its slice");
        assert!(self.geometry.is_aligned(host) && host.0 != 0, "storage starts at a cluster");
        for i in 0..clusters {
            let at = HostOffset(host.0 + (i << self.geometry.cluster_bits));
            let old = L2Entry::decode(self.l2.entry(slot, index + i), &self.geometry);
            let new = L2Entry::Normal(at, Ownership::Private).encode(&self.geometry);
            self.l2.set_entry(slot, index + i, new);
            if !matches!(old, L2Entry::ZeroAllocated(kept, _) if kept == at) {
                self.drop_storage(old, false);
            }
        }
        self.entries_need_barrier = true;
        Ok(())
    }

    /// Replaces the mapping of one cluster by one that has no new storage, dropping what it had.
    pub fn unlink(&mut self, cluster: GuestCluster, new: L2Entry, punch: bool) -> Decision<()> {
        let slot = self.own_l2_slot(cluster)?;
        let index = cluster.0 % self.geometry.slice_entries();
        let old = L2Entry::decode(self.l2.entry(slot, index), &self.geometry);
        if old == new {
            return Ok(());
        }
        self.l2.set_entry(slot, index, new.encode(&self.geometry));
        let keeps = matches!((old, new), (
            L2Entry::Normal(a, _) | L2Entry::ZeroAllocated(a, _),
            L2Entry::Normal(b, _) | L2Entry::ZeroAllocated(b, _),
        ) if a == b);
        if !keeps {
            self.drop_storage(old, punch);
        }
        Ok(())
    }

    fn drop_storage(&mut self, old: L2Entry, punch: bool) {
        match old {
            L2Entry::Unallocated | L2Entry::ZeroPlain => {}
            L2Entry::Normal(host, _) | L2Entry::ZeroAllocated(host, _) => {
                let cluster = self.geometry.host_cluster(host);
                self.free_later(cluster..HostCluster(cluster.0 + 1), punch);
            }
            L2Entry::Compressed(compressed) => {
                let clusters = compressed.clusters(&self.geometry);
                // Others may share these host clusters: only the refcount tells.
                self.free_later(HostCluster(clusters.start)..HostCluster(clusters.end), false);
            }
        }
    }
}
