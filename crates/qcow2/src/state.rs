//! What the engine knows under its one short lock: header, caches, allocator, quarantine.
//!
//! Functions here and in `map` and `alloc` decide; they never wait. What they lack they name as a [`Need`],
//! which the caller satisfies without the lock (module `load`) before it asks again.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::cache::{Slot, TableCache};
use crate::engine::{Discards, Dropped};
use crate::entries::Entries;
use crate::geometry::{Geometry, GuestCluster, HostCluster, L2Format};
use crate::header::Header;
use crate::meta::{MetaMap, OverlapChecks, Structure};
use crate::pack::Pack;
use crate::rest::Resting;
use crate::table::{self, Cell, L1Entry};

/// What a decision lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// A slice of the L1 table.
    L1(u64),
    /// A slice of the L2 tables, by its number over the whole disk.
    L2(u64),
    /// A slice of the refcount table.
    Reftable(u64),
    /// A slice of the refcount blocks, by its number over the whole file.
    Refblock(u64),
    /// The map of all metadata clusters.
    Meta,
    /// A refcount block that does not exist yet.
    NewRefblock(u64),
    /// A private L2 table for this L1 index: none exists, or it is shared.
    OwnL2(u64),
}

/// Metadata that contradicts the format, found while it was used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Corruption {
    #[error("Preventing invalid write on metadata (overlaps with {0})")]
    Overlap(Structure),
    #[error("L2 table offset {offset:#x} unaligned (L1 index: {})", Hex(*index))]
    L2TableUnaligned { offset: u64, index: u64 },
    #[error("L2 table offset {offset:#x} outside the image file (L1 index: {})", Hex(*index))]
    L2TableOutside { offset: u64, index: u64 },
    #[error("Cluster allocation offset {offset:#x} unaligned ({at})")]
    ClusterUnaligned { offset: u64, at: EntryPlace },
    #[error("Preallocated zero cluster offset {offset:#x} unaligned ({at})")]
    ZeroClusterUnaligned { offset: u64, at: EntryPlace },
    #[error("Zero cluster entry found in pre-v3 image ({0})")]
    ZeroInVersion2(EntryPlace),
    #[error("Invalid cluster entry found ({0})")]
    EntryInvalid(EntryPlace),
    #[error(
        "External data file host cluster {} does not match guest cluster offset: {} ({at})",
        Hex(*offset),
        Hex(*guest)
    )]
    ExternalMisplaced { offset: u64, guest: u64, at: EntryPlace },
    #[error("Refblock offset {offset:#x} unaligned (reftable index: {})", Hex(*index))]
    RefblockUnaligned { offset: u64, index: u64 },
    #[error("Refblock offset {offset:#x} outside the image file (reftable index: {})", Hex(*index))]
    RefblockOutside { offset: u64, index: u64 },
    #[error("table at {offset:#x} overlaps with {other}")]
    TableOverlaps { offset: u64, other: Structure },
    #[error("{name} overlaps with {other}")]
    StructuresOverlap { name: Structure, other: Structure },
    #[error("refcount of the cluster at {offset:#x} is 0 although it is referenced")]
    RefcountUnderflow { offset: u64 },
    #[error("no host cluster is left below offset {limit:#x}")]
    NoAddressSpace { limit: u64 },
    #[error("compressed cluster at {offset:#x} (guest offset: {guest:#x}) cannot be decoded")]
    Compressed { offset: u64, guest: u64 },
}

/// A number as C prints it with `%#x`: zero has no prefix.
pub(crate) struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("0"),
            value => write!(f, "{value:#x}"),
        }
    }
}

/// Where an L2 entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryPlace {
    /// Byte offset of its table.
    pub table: u64,
    pub index: u64,
}

impl fmt::Display for EntryPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L2 offset: {:#x}, L2 index: {}", self.table, Hex(self.index))
    }
}

/// Why a decision could not be made.
#[derive(Debug)]
pub(crate) enum Stop {
    Need(Need),
    Corrupt(Corruption),
}

impl From<Need> for Stop {
    fn from(need: Need) -> Self {
        Self::Need(need)
    }
}

impl From<Corruption> for Stop {
    fn from(corruption: Corruption) -> Self {
        Self::Corrupt(corruption)
    }
}

/// The result of a decision.
pub(crate) type Decision<T> = Result<T, Stop>;

/// The generation of clusters that no plan ever knew.
pub(crate) const NOBODY: u64 = 0;

/// Host clusters that lost a reference; see `alloc` for their way back.
#[derive(Clone, Debug)]
pub(crate) struct Freed {
    pub clusters: Range<u64>,
    pub epoch: u64,
    /// Give the storage back to the host on the way.
    pub punch: bool,
}

/// Generations of plans. A plan pins the current one; a freed cluster waits until no plan of its own
/// generation, or an older one, runs.
pub(crate) struct Epochs {
    current: Arc<u64>,
    older: VecDeque<Arc<u64>>,
}

/// Keeps host clusters that a plan relies on from being reused.
pub(crate) type EpochPin = Arc<u64>;

impl Epochs {
    fn new() -> Self {
        Self { current: Arc::new(NOBODY + 1), older: VecDeque::new() }
    }

    pub fn pin(&self) -> EpochPin {
        self.current.clone()
    }

    pub fn current(&self) -> u64 {
        *self.current
    }

    /// Starts a new generation.
    pub fn advance(&mut self) {
        let next = Arc::new(*self.current + 1);
        self.older.push_back(std::mem::replace(&mut self.current, next));
    }

    /// The oldest generation in which a plan may still run.
    pub fn oldest_running(&mut self) -> u64 {
        while self.older.front().is_some_and(|e| Arc::strong_count(e) == 1) {
            self.older.pop_front();
        }
        self.older.front().map_or(*self.current, |e| **e)
    }
}

/// See the module.
pub(crate) struct State {
    pub geometry: Geometry,
    pub header: Header,
    pub l1: TableCache,
    pub l2: TableCache,
    pub reftable: TableCache,
    pub refblocks: TableCache,
    /// Where metadata lies; present before the first allocation.
    pub meta: Option<MetaMap>,
    /// Where the next search for a free cluster starts.
    pub hint: u64,
    /// Where the next compressed cluster goes.
    pub pack: Pack,
    /// From here on the file was never written: it reads as zeroes.
    pub virgin_from: u64,
    pub epochs: Epochs,
    /// Lost a reference in memory; the file still has it.
    pub freed: Vec<Freed>,
    /// Lost a reference in the file, durably; waiting for old plans.
    pub released: Vec<Freed>,
    /// Free in the file, but not to be reused yet; see `rest`.
    pub resting: Vec<Resting>,
    /// Entries that point to data or tables written since the last barrier.
    pub entries_need_barrier: bool,
    /// Refcounts are written at close only.
    pub lazy: bool,
    pub discards: Discards,
    pub overlap_checks: OverlapChecks,
    /// When unused slices were last forgotten, by the clock.
    pub cleaned_at: u64,
    pub flush_started: u64,
    pub flush_covered: u64,
}

/// What the user chose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub lazy: bool,
    pub discards: Discards,
    pub overlap_checks: OverlapChecks,
}

/// Capacities of the caches, in slices.
pub(crate) struct Capacities {
    pub l1: usize,
    pub l2: usize,
    pub reftable: usize,
    pub refblocks: usize,
}

impl State {
    pub fn new(
        header: Header,
        geometry: Geometry,
        file_len: u64,
        settings: Settings,
        caches: &Capacities,
    ) -> Self {
        Self {
            geometry,
            l1: TableCache::new(caches.l1),
            l2: TableCache::new(caches.l2),
            reftable: TableCache::new(caches.reftable),
            refblocks: TableCache::new(caches.refblocks),
            meta: None,
            hint: 0,
            pack: Pack::default(),
            virgin_from: file_len.next_multiple_of(geometry.cluster_size()),
            epochs: Epochs::new(),
            freed: Vec::new(),
            released: Vec::new(),
            resting: Vec::new(),
            entries_need_barrier: false,
            lazy: settings.lazy,
            discards: settings.discards,
            overlap_checks: settings.overlap_checks,
            cleaned_at: 0,
            flush_started: 0,
            flush_covered: 0,
            header,
        }
    }

    /// The L1 entry of an L2 table.
    pub fn l1_entry(&mut self, index: u64) -> Decision<L1Entry> {
        if index >= u64::from(self.header.l1_entries) {
            return Ok(L1Entry::Empty);
        }
        let per_slice = self.geometry.slice_entries();
        let key = index / per_slice;
        let slot = self.l1.find(key).ok_or(Need::L1(key))?;
        Ok(L1Entry::decode(self.l1.entry(slot, index % per_slice)))
    }

    /// Changes an L1 entry. The slice is cached: the caller just looked at the entry.
    pub fn set_l1_entry(&mut self, index: u64, entry: L1Entry) -> Decision<()> {
        let per_slice = self.geometry.slice_entries();
        let key = index / per_slice;
        let slot = self.l1.find(key).ok_or(Need::L1(key))?;
        self.l1.set_entry(slot, index % per_slice, entry.encode());
        self.entries_need_barrier = true;
        Ok(())
    }

    /// The L2 slice that maps a guest cluster; `None` when no L2 table covers it.
    pub fn l2_slot(&mut self, cluster: GuestCluster) -> Decision<Option<Slot>> {
        let key = self.geometry.l2_slice(cluster);
        if let Some(slot) = self.l2.find(key) {
            return Ok(Some(slot));
        }
        match self.l1_entry(self.geometry.l1_index(cluster))? {
            L1Entry::Empty => Ok(None),
            L1Entry::Table(..) => Err(Need::L2(key).into()),
        }
    }

    /// The entries of the slice that maps a guest cluster.
    #[inline]
    pub fn entries(&self, slot: Slot, cluster: GuestCluster) -> Entries<'_> {
        let per_slice = self.geometry.l2_slice_entries();
        Entries {
            bytes: self.l2.bytes(slot),
            first: GuestCluster(cluster.0 / per_slice * per_slice),
            host: self.l2.host(slot),
            geometry: &self.geometry,
            version: self.header.version,
        }
    }

    /// The mapping of a guest cluster, from its slice.
    #[inline]
    pub fn cell(&self, slot: Slot, cluster: GuestCluster) -> Decision<Cell> {
        self.entries(slot, cluster).cell(cluster)
    }

    /// Changes whenever a mapping may have changed, in memory or in the file.
    pub fn mapping_age(&self) -> (u64, u64) {
        (self.l1.age(), self.l2.age())
    }

    /// Whether all mappings known here are in the file.
    pub fn is_mapping_written(&self) -> bool {
        self.l1.is_written() && self.l2.is_written()
    }

    /// Changes the mapping of a guest cluster in its slice.
    pub fn set_cell(&mut self, slot: Slot, cluster: GuestCluster, cell: Cell) {
        let geometry = &self.geometry;
        let index = cluster.0 % geometry.l2_slice_entries();
        let (raw, bitmap) = cell.encode(geometry);
        match geometry.l2_format {
            L2Format::Standard => self.l2.set_entry(slot, index, raw),
            L2Format::Extended => {
                let at = index as u32 * 16;
                self.l2.change(slot, at..at + 16, |bytes| {
                    bytes[..8].copy_from_slice(&raw.to_be_bytes());
                    bytes[8..].copy_from_slice(&bitmap.to_be_bytes());
                });
            }
        }
    }

    /// The slice of a refcount block that counts a host cluster; `None` when no refcount block covers it.
    pub fn refblock_slot(&mut self, cluster: u64) -> Decision<Option<Slot>> {
        let key = cluster / self.geometry.refslice_entries();
        if let Some(slot) = self.refblocks.find(key) {
            return Ok(Some(slot));
        }
        let raw = self.reftable_entry(cluster / self.geometry.refblock_entries())?;
        match table::refblock_offset(raw) {
            None => Ok(None),
            Some(_) => Err(Need::Refblock(key).into()),
        }
    }

    /// The raw refcount table entry `index`; 0 beyond the table.
    pub fn reftable_entry(&mut self, index: u64) -> Decision<u64> {
        let per_slice = self.geometry.slice_entries();
        let entries = u64::from(self.header.reftable_clusters) * self.geometry.cluster_size() / 8;
        if index >= entries {
            return Ok(0);
        }
        let key = index / per_slice;
        let slot = self.reftable.find(key).ok_or(Need::Reftable(key))?;
        Ok(self.reftable.entry(slot, index % per_slice))
    }

    /// Where the VM state begins among guest offsets: behind the last L2 table that the disk needs.
    pub fn vm_state_start(&self) -> u64 {
        let per_table = self.geometry.l2_entries() << self.geometry.cluster_bits;
        self.geometry.l1_entries_for(self.header.size).saturating_mul(per_table)
    }

    /// The guest's offset is beyond the disk.
    pub fn is_beyond_end(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_none_or(|end| end > self.header.size)
    }

    /// Looks whether `clusters` touches metadata.
    pub fn check_overlap(&self, clusters: Range<u64>) -> Decision<()> {
        let meta = self.meta.as_ref().ok_or(Need::Meta)?;
        match meta.overlap(clusters) {
            Some(structure) => Err(Corruption::Overlap(structure).into()),
            None => Ok(()),
        }
    }

    /// Drops one reference to each of `clusters`, once the file no longer has it.
    pub fn free_later(&mut self, clusters: Range<HostCluster>, why: Dropped) {
        let punch = self.discards.passes(why);
        let clusters = clusters.start.0..clusters.end.0;
        self.stop_packing(&clusters);
        if cowbell_block::mutant::is_active("no-quarantine") {
            clusters.for_each(|cluster| drop(self.drop_reference(cluster)));
            return;
        }
        let epoch = self.epochs.current();
        if let Some(last) = self.freed.last_mut()
            && last.epoch == epoch
            && last.punch == punch
            && last.clusters.end == clusters.start
        {
            last.clusters.end = clusters.end;
            return;
        }
        self.freed.push(Freed { clusters, epoch, punch });
    }
}
