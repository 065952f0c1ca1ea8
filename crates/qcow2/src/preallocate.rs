//! Storage for guest clusters before anything is written to them.
//!
//! What the range reads as does not change. Without a backing file that is zeroes: a cluster that nobody ever
//! wrote becomes a plain data cluster over a hole; one that may hold an earlier owner's bytes is zeroed first.
//! With extended entries no subcluster uses its storage yet, so whatever is below still shows.

use std::ops::Range;
use std::sync::Arc;

use cowbell_block::range_lock::LockMode;
use cowbell_block::{Buf, DebugEvent, Error, ErrorKind, Preallocation, Request, Result};

use crate::alloc::Owned;
use crate::engine::{Engine, NO_CAUSE};
use crate::geometry::{DataPlace, Geometry, GuestCluster, HostOffset, L2Format};
use crate::state::{Decision, State};
use crate::table::{Cell, L1Entry, Ownership, Storage};

/// Storage that nobody wrote to is no zeroes in an encrypted image.
#[derive(Debug, thiserror::Error)]
#[error("preallocation of encrypted images needs compatibility level 1.1 or above, which has zero clusters")]
struct NoZeroClusters;

/// Largest piece of zeroes written at once.
const PIECE_BYTES: u64 = 2 << 20;

/// What storage reads as that nobody wrote to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Unused {
    Zeroes,
    /// It is decrypted: the entries must say that it is not in use yet.
    Noise,
}

/// Guest clusters in a row without storage, inside one L2 slice; or with it, to be skipped.
struct Stretch {
    clusters: u64,
    has_storage: bool,
}

impl Engine {
    /// Gives the clusters of a guest range storage, as far as they have none. The caller holds the whole disk.
    ///
    /// # Errors
    /// The file's; what was allocated until then is referenced.
    pub(crate) async fn preallocate(self: &Arc<Self>, range: Range<u64>, mode: Preallocation) -> Result<()> {
        let geometry = self.geometry;
        if self.is_encrypted() && self.state.lock().header.version < 3 {
            return Err(Error::new(ErrorKind::Unsupported, NoZeroClusters));
        }
        let end = geometry.clusters_for(range.end);
        let hides_backing = self.backing.is_some() && geometry.l2_format == L2Format::Standard;
        let mut at = match hides_backing {
            // A cluster in which the range only begins may show the backing file in its first part.
            true => geometry.clusters_for(range.start),
            false => range.start >> geometry.cluster_bits,
        };
        while at < end {
            if let Some(clusters) = self.without_table(GuestCluster(at), end - at).await? {
                self.give_table(GuestCluster(at), clusters, mode).await?;
                at += clusters;
                continue;
            }
            let stretch = self.decide(NO_CAUSE, |state| state.stretch(GuestCluster(at), end - at)).await?;
            at += match stretch.has_storage {
                true => stretch.clusters,
                false => self.give_storage(GuestCluster(at), stretch.clusters, mode).await?,
            };
            self.relieve().await?;
        }
        self.cover_file().await
    }

    fn unused(&self) -> Unused {
        if self.is_encrypted() { Unused::Noise } else { Unused::Zeroes }
    }

    /// How many clusters from this one on, at most `max`, would share an L2 table that is not there yet.
    async fn without_table(self: &Arc<Self>, first: GuestCluster, max: u64) -> Result<Option<u64>> {
        let index = self.geometry.l1_index(first);
        let is_here = self.geometry.data_place == DataPlace::Image;
        if !is_here || self.decide_l1(index).await? != L1Entry::Empty {
            return Ok(None);
        }
        Ok(Some(((index + 1) * self.geometry.l2_entries() - first.0).min(max)))
    }

    /// Gives clusters storage that share a table which is not there yet, and writes it whole. Nothing refers to it
    /// before its L1 entry does, which becomes durable after it.
    async fn give_table(
        self: &Arc<Self>,
        first: GuestCluster,
        clusters: u64,
        mode: Preallocation,
    ) -> Result<()> {
        let index = self.geometry.l1_index(first);
        let _turn = self.loading.tables.lock(index..index + 1, LockMode::Exclusive).await;
        let mut taken = Vec::new();
        let given = self.write_table(first, clusters, mode, &mut taken).await;
        if given.is_err() {
            let mut state = self.state.lock();
            taken.into_iter().for_each(|owned| state.give_back(owned));
        }
        given
    }

    /// See [`Engine::give_table`]. What was taken until an error is in `taken`.
    async fn write_table(
        self: &Arc<Self>,
        first: GuestCluster,
        clusters: u64,
        mode: Preallocation,
        taken: &mut Vec<Owned>,
    ) -> Result<()> {
        let geometry = self.geometry;
        let index = geometry.l1_index(first);
        let table = self.decide(NO_CAUSE, |state| state.allocate(1)).await?;
        let place = HostOffset(table.first << geometry.cluster_bits);
        taken.push(table);
        let mut content = Buf::zeroed(geometry.cluster_size() as usize);
        let entry = geometry.l2_entry_bytes();
        let mut at = (first.0 % geometry.l2_entries() * entry) as usize;
        let mut left = clusters;
        while left > 0 {
            let owned = self.take_storage(left, mode).await?;
            let host = HostOffset(owned.first << geometry.cluster_bits);
            let cell = unused_cell(&geometry, Cell::UNALLOCATED, host, self.unused());
            let end = at + (owned.count * entry) as usize;
            fill_entries(&geometry, &mut content[at..end], cell);
            (at, left) = (end, left - owned.count);
            taken.push(owned);
        }
        self.file.announce(DebugEvent::L2AllocWrite, NO_CAUSE).await;
        if !cowbell_block::mutant::is_active("l2-table-unwritten") {
            self.file.write(place.0, content).await?;
        }
        self.link_table(index, place, None, NO_CAUSE).await
    }

    /// Gives at most `clusters` clusters storage, which lie in one slice of a table; returns how many got it.
    async fn give_storage(
        self: &Arc<Self>,
        first: GuestCluster,
        clusters: u64,
        mode: Preallocation,
    ) -> Result<u64> {
        let (geometry, unused) = (self.geometry, self.unused());
        if geometry.data_place == DataPlace::External {
            let host = HostOffset(geometry.guest_offset(first));
            self.decide(NO_CAUSE, |state| state.link_storage(first, clusters, host, unused)).await?;
            return Ok(clusters);
        }
        let owned = self.take_storage(clusters, mode).await?;
        let host = HostOffset(owned.first << geometry.cluster_bits);
        let linked =
            self.decide(NO_CAUSE, |state| state.link_storage(first, owned.count, host, unused)).await;
        match linked {
            Ok(()) => Ok(owned.count),
            Err(e) => {
                self.state.lock().give_back(owned);
                Err(e)
            }
        }
    }

    /// Takes at most `clusters` clusters that read as zeroes, unless they are decrypted.
    async fn take_storage(self: &Arc<Self>, clusters: u64, mode: Preallocation) -> Result<Owned> {
        let bits = self.geometry.cluster_bits;
        self.announce_allocation(NO_CAUSE).await;
        let owned = self.decide(NO_CAUSE, |state| state.allocate(clusters)).await?;
        let (host, len) = (owned.first << bits, owned.count << bits);
        let filled = match (mode, owned.virgin) {
            (Preallocation::Full, _) => self.write_zero_data(HostOffset(host), len).await,
            (Preallocation::Falloc, _) | (_, false) => {
                self.file.submit(Request::write_zeroes(host, len)).finish().await.result.map(drop)
            }
            (Preallocation::Off | Preallocation::Metadata, true) => Ok(()),
        };
        if let Err(e) = filled {
            self.state.lock().give_back(owned);
            return Err(e);
        }
        Ok(owned)
    }

    async fn write_zero_data(&self, host: HostOffset, len: u64) -> Result<()> {
        let mut at = 0;
        while at < len {
            let n = PIECE_BYTES.min(len - at);
            self.file.write(host.0 + at, Buf::zeroed(n as usize)).await?;
            at += n;
        }
        Ok(())
    }

    /// Makes the file as long as what it holds: clusters over holes at its end read as zeroes to everybody.
    async fn cover_file(&self) -> Result<()> {
        let end = self.state.lock().virgin_from;
        if end > self.file.len() && self.geometry.data_place == DataPlace::Image {
            let longer = Request::truncate(end, Preallocation::Off);
            self.file.submit(longer).finish().await.result?;
        }
        Ok(())
    }
}

impl State {
    /// The stretch of clusters that begins at `first`, at most `max` long.
    fn stretch(&mut self, first: GuestCluster, max: u64) -> Decision<Stretch> {
        let slot = self.own_l2_slot(first)?;
        let end = self.slice_end(first).min(first.0 + max);
        let has_storage = |cell: Cell| cell.storage != Storage::None;
        let wanted = has_storage(self.cell(slot, first)?);
        let mut clusters = 1;
        loop {
            clusters += self.alike_after(slot, GuestCluster(first.0 + clusters - 1), end);
            if first.0 + clusters >= end
                || has_storage(self.cell(slot, GuestCluster(first.0 + clusters))?) != wanted
            {
                break;
            }
            clusters += 1;
        }
        Ok(Stretch { clusters, has_storage: wanted })
    }

    /// Publishes storage for clusters that have none.
    fn link_storage(
        &mut self,
        first: GuestCluster,
        clusters: u64,
        host: HostOffset,
        unused: Unused,
    ) -> Decision<()> {
        let slot = self.own_l2_slot(first)?;
        self.entries_need_barrier = true;
        let is_empty = self.cell(slot, first)? == Cell::UNALLOCATED
            && self.alike_after(slot, first, first.0 + clusters) + 1 == clusters;
        if is_empty && self.geometry.l2_format == L2Format::Standard && unused == Unused::Zeroes {
            let (raw, _) =
                unused_cell(&self.geometry, Cell::UNALLOCATED, host, unused).encode(&self.geometry);
            let index = first.0 % self.geometry.l2_slice_entries();
            self.l2.set_entries(slot, index..index + clusters, raw, self.geometry.cluster_size());
            return Ok(());
        }
        for i in 0..clusters {
            let cluster = GuestCluster(first.0 + i);
            let old = self.cell(slot, cluster)?;
            assert!(old.storage == Storage::None, "the caller looked");
            let at = HostOffset(host.0 + (i << self.geometry.cluster_bits));
            let cell = unused_cell(&self.geometry, old, at, unused);
            self.set_cell(slot, cluster, cell);
        }
        Ok(())
    }
}

/// What a cluster without storage becomes when it gets some that nobody wrote to.
fn unused_cell(geometry: &Geometry, old: Cell, host: HostOffset, unused: Unused) -> Cell {
    let storage = Storage::Cluster(host, Ownership::Private);
    match geometry.l2_format {
        L2Format::Standard if unused == Unused::Noise => {
            Cell { storage, alloc: 0, zero: geometry.all_subclusters() }
        }
        // The storage reads as zeroes, as the cluster did.
        L2Format::Standard if old.zero == 0 => Cell { storage, alloc: 1, zero: 0 },
        _ => Cell { storage, ..old },
    }
}

/// Writes entries as stored: the first for `cell`, the others alike, each with the next cluster.
fn fill_entries(geometry: &Geometry, bytes: &mut [u8], cell: Cell) {
    let (mut raw, bitmap) = cell.encode(geometry);
    for entry in bytes.chunks_exact_mut(geometry.l2_entry_bytes() as usize) {
        let (word, rest) = entry.split_at_mut(8);
        word.copy_from_slice(&raw.to_be_bytes());
        if !rest.is_empty() {
            rest.copy_from_slice(&bitmap.to_be_bytes());
        }
        raw += geometry.cluster_size();
    }
}
