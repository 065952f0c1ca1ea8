//! Builds qcow2 images byte by byte, so that worlds can begin with clusters of every kind.
//!
//! Written from the format's specification and sharing no code with the engine: what the engine finds in these
//! images was not put there by itself.

use crate::config::{Backing, Config, DataPlace, Prestate};
use crate::disk::{Clock, HostConfig, SimDisk};
use crate::pool::{Content, Pool, SECTOR, SharedPool, ZERO};
use crate::rng::Rng;
use crate::stamp::{BACKING, PRESTATE, Stamp};
use crate::timeline::Image;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO_FLAG: u64 = 1;
/// Subclusters of a cluster with extended L2 entries.
const SUBCLUSTERS: u64 = 32;
/// Extended L2 entries: all subclusters have data.
const ALL_DATA: u64 = 0xffff_ffff;
/// Extended L2 entries: all subclusters read as zeroes.
const ALL_ZERO: u64 = ALL_DATA << 32;

/// What a guest cluster is at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterKind {
    /// Not in the image.
    Unallocated,
    /// Plain data of its own.
    Data,
    /// Data that a snapshot uses too.
    Shared,
    /// Reads as zeroes, no storage.
    Zero,
    /// Reads as zeroes, with storage.
    ZeroAllocated,
    /// Compressed.
    Compressed,
    /// With extended L2 entries: of three subclusters one has data, one reads as zeroes, and one is not in the image.
    Partial,
}

/// An image and what a guest sees in it.
#[derive(Clone, Debug, Default)]
pub struct Built {
    /// The file.
    pub image: Image,
    /// What the guest reads, sector by sector.
    pub guest: Vec<Content>,
    /// What the guest of each snapshot reads.
    pub snapshots: Vec<Vec<Content>>,
    /// What the backing file's guest reads, if there is one.
    pub backing: Option<Vec<Content>>,
    /// The backing file itself.
    pub backing_file: Image,
}

impl Built {
    /// A disk that holds the backing file, if there is one; it refuses to be changed.
    pub fn backing_disk(
        &self,
        pool: &SharedPool,
        clock: &Clock,
        host: &HostConfig,
        rng: Rng,
    ) -> Option<SimDisk> {
        self.backing.as_ref()?;
        let Image { sectors, len, .. } = &self.backing_file;
        let host = HostConfig { alignment: 1, ..host.clone() };
        let disk = SimDisk::new("backing", pool, clock, sectors, *len, host, rng);
        disk.set_read_only();
        Some(disk)
    }
}

/// A disk that holds the data file of an image, if it has one.
pub fn data_disk(
    image: &Image,
    config: &Config,
    pool: &SharedPool,
    clock: &Clock,
    host: &HostConfig,
    rng: Rng,
) -> Option<SimDisk> {
    let (_, data) = image.parts(config.data);
    let len = image.data_len;
    let data = &data[..data.len().min(len.div_ceil(SECTOR as u64) as usize)];
    let there = config.data != DataPlace::Inside;
    there.then(|| SimDisk::new("data", pool, clock, data, len, host.clone(), rng))
}

/// The kinds of the guest clusters of a configuration.
pub fn kinds(config: &Config) -> Vec<ClusterKind> {
    use ClusterKind::{Compressed, Data, Partial, Shared, Unallocated, Zero, ZeroAllocated};
    let of = |cluster: u64| match config.prestate {
        Prestate::Fresh | Prestate::Created => Unallocated,
        Prestate::Half | Prestate::Snapshot if cluster % 2 == 1 => Unallocated,
        Prestate::Half | Prestate::Full | Prestate::Snapshot => Data,
        Prestate::Zero => Zero,
        Prestate::ZeroAllocated => ZeroAllocated,
        Prestate::Shared => Shared,
        Prestate::Compressed => Compressed,
        Prestate::Mixed if config.version == 2 => {
            [Unallocated, Data, Shared, Compressed, Compressed][cluster as usize % 5]
        }
        Prestate::Mixed if config.extended => {
            [Partial, Data, Zero, Partial, Shared, ZeroAllocated, Compressed, Unallocated]
                [cluster as usize % 8]
        }
        Prestate::Mixed => {
            [Unallocated, Data, Zero, Shared, ZeroAllocated, Compressed, Compressed][cluster as usize % 7]
        }
    };
    (0..config.clusters()).map(of).collect()
}

/// Builds the image of a configuration.
pub fn build(config: &Config, pool: &mut Pool) -> Built {
    build_kinds(config, &kinds(config), pool)
}

/// Builds an image with these guest clusters; `config.prestate` only says whether a snapshot shares the tables.
pub fn build_kinds(config: &Config, kinds: &[ClusterKind], pool: &mut Pool) -> Built {
    let (backing, backing_file) = build_backing(config, pool);
    let behind = |sector: u64| backing.as_ref().and_then(|b| b.get(sector as usize)).copied().unwrap_or(ZERO);
    let per = config.cluster_sectors();
    let mut guest = Vec::new();
    for sector in 0..config.sectors {
        guest.push(match kinds[(sector / per) as usize] {
            ClusterKind::Unallocated => behind(sector),
            ClusterKind::Zero | ClusterKind::ZeroAllocated => ZERO,
            ClusterKind::Partial if sector % per * SUBCLUSTERS / per % 3 == 1 => ZERO,
            ClusterKind::Partial if sector % per * SUBCLUSTERS / per % 3 == 2 => behind(sector),
            _ => pool.intern(&initial(PRESTATE, sector).bytes()),
        });
    }
    let whole = config.prestate == Prestate::Snapshot;
    let mut snapshots = Vec::new();
    if whole {
        snapshots.push(guest.clone());
    } else if kinds.contains(&ClusterKind::Shared) {
        let of = |sector: u64| match kinds[(sector / per) as usize] {
            ClusterKind::Shared => guest[sector as usize],
            _ => behind(sector),
        };
        snapshots.push((0..config.sectors).map(of).collect());
    }
    let image = Writer::new(config, PRESTATE).image(kinds, pool);
    Built { image, guest, snapshots, backing, backing_file }
}

/// What lies behind: what its guest reads, and the file.
pub(crate) fn build_backing(config: &Config, pool: &mut Pool) -> (Option<Vec<Content>>, Image) {
    let Some(sectors) = config.backing_sectors() else { return (None, Image::default()) };
    let mut guest: Vec<Content> =
        (0..sectors).map(|sector| pool.intern(&initial(BACKING, sector).bytes())).collect();
    let Some(inner) = config.backing_image() else {
        let file = Image { sectors: guest.clone(), len: sectors * SECTOR as u64, data_len: 0 };
        return (Some(guest), file);
    };
    let kinds = kinds(&inner);
    for (sector, content) in (0..).zip(&mut guest) {
        if let ClusterKind::Unallocated | ClusterKind::Zero | ClusterKind::ZeroAllocated =
            kinds[(sector / inner.cluster_sectors()) as usize]
        {
            *content = ZERO;
        }
    }
    let file = Writer::new(&inner, BACKING).image(&kinds, pool);
    (Some(guest), file)
}

pub(crate) fn initial(operation: u32, sector: u64) -> Stamp {
    Stamp { seed: 0, operation, sector, generation: 0 }
}

struct Writer<'a> {
    config: &'a Config,
    /// Whose data it is.
    owner: u32,
    file: Vec<u8>,
    refcounts: Vec<u64>,
    /// Where the next compressed cluster goes, if there is room in a started host cluster.
    packed: Option<u64>,
}

impl<'a> Writer<'a> {
    fn new(config: &'a Config, owner: u32) -> Self {
        Self { config, owner, file: Vec::new(), refcounts: Vec::new(), packed: None }
    }

    fn image(self, kinds: &[ClusterKind], pool: &mut Pool) -> Image {
        let whole = self.config.prestate == Prestate::Snapshot;
        let bytes = self.finish(kinds, whole, kinds.contains(&ClusterKind::Shared));
        Image { sectors: pool.intern_all(&bytes), len: bytes.len() as u64, data_len: 0 }
    }

    fn cluster(&self) -> u64 {
        1 << self.config.cluster_bits
    }

    fn alloc(&mut self, clusters: u64) -> u64 {
        let offset = self.file.len() as u64;
        self.file.resize((offset + clusters * self.cluster()) as usize, 0);
        self.refcounts.resize(self.refcounts.len() + clusters as usize, 1);
        offset
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        self.file[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn put64(&mut self, offset: u64, value: u64) {
        self.put(offset, &value.to_be_bytes());
    }

    fn add_ref(&mut self, offset: u64) {
        let cluster = (offset >> self.config.cluster_bits) as usize;
        self.refcounts[cluster] += 1;
    }

    fn finish(mut self, kinds: &[ClusterKind], whole: bool, shared: bool) -> Vec<u8> {
        let l1_entries = self.config.clusters().div_ceil(self.config.l2_entries()).max(1);
        let l1_clusters = (l1_entries * 8).div_ceil(self.cluster());
        let _header = self.alloc(1);
        let reftable = self.alloc(1);
        let l1 = self.alloc(l1_clusters);
        let mut snapshot_l1 = 0;
        let mut snapshot_table = 0;
        if whole || shared {
            snapshot_l1 = self.alloc(l1_clusters);
            snapshot_table = self.alloc(1);
        }
        for (index, part) in (0..).zip(kinds.chunks(self.config.l2_entries() as usize)) {
            self.l2_table(index, part, whole, l1, snapshot_l1);
        }
        if snapshot_table != 0 {
            self.snapshot_entry(snapshot_table, snapshot_l1, l1_entries);
        }
        self.refcount_blocks(reftable);
        self.header(l1, l1_entries, reftable, snapshot_table);
        self.file
    }

    fn l2_table(&mut self, index: u64, kinds: &[ClusterKind], whole: bool, l1: u64, snapshot_l1: u64) {
        if kinds.iter().all(|k| *k == ClusterKind::Unallocated) {
            return;
        }
        let table = self.alloc(1);
        if whole {
            self.put64(l1 + index * 8, table);
            self.put64(snapshot_l1 + index * 8, table);
            self.add_ref(table);
        } else {
            self.put64(l1 + index * 8, table | COPIED);
        }
        let copied = if whole { 0 } else { COPIED };
        let mut snapshot_l2 = None;
        for (slot, kind) in (0..).zip(kinds) {
            let cluster = index * self.config.l2_entries() + slot;
            let zero_flag = if self.config.extended { 0 } else { ZERO_FLAG };
            let entry = match kind {
                ClusterKind::Unallocated => 0,
                ClusterKind::Zero => zero_flag,
                ClusterKind::ZeroAllocated => self.data(cluster) | zero_flag | copied,
                ClusterKind::Data | ClusterKind::Partial => self.data(cluster) | copied,
                ClusterKind::Shared => {
                    let data = self.data(cluster);
                    self.add_ref(data);
                    let l2 = *snapshot_l2.get_or_insert_with(|| self.alloc(1));
                    self.put64(snapshot_l1 + index * 8, l2 | COPIED);
                    self.put_entry(l2, slot, data, *kind);
                    data
                }
                ClusterKind::Compressed => self.compressed(cluster),
            };
            self.put_entry(table, slot, entry, *kind);
            let host = entry & 0x00ff_ffff_ffff_fe00;
            if whole && host != 0 && entry & COMPRESSED == 0 {
                // A cluster named by one shared table has one reference per user of the table.
                self.add_ref(host);
            }
        }
    }

    /// Writes an L2 entry, with its bitmap of subclusters if there are any.
    fn put_entry(&mut self, table: u64, slot: u64, entry: u64, kind: ClusterKind) {
        if !self.config.extended {
            return self.put64(table + slot * 8, entry);
        }
        let third = |n: u64| (0..SUBCLUSTERS).filter(|bit| bit % 3 == n).fold(0, |bits, bit| bits | 1 << bit);
        let bitmap = match kind {
            ClusterKind::Unallocated | ClusterKind::Compressed => 0,
            ClusterKind::Zero | ClusterKind::ZeroAllocated => ALL_ZERO,
            ClusterKind::Data | ClusterKind::Shared => ALL_DATA,
            ClusterKind::Partial => third(0) | third(1) << 32,
        };
        self.put64(table + slot * 16, entry);
        self.put64(table + slot * 16 + 8, bitmap);
    }

    fn content(&self, cluster: u64) -> Vec<u8> {
        let per = self.config.cluster_sectors();
        let sectors = cluster * per..(cluster + 1) * per;
        let bytes = |sector: u64| {
            // What lies beyond the end of the guest's disk is never seen and is zero.
            if sector < self.config.sectors { initial(self.owner, sector).bytes() } else { [0; SECTOR] }
        };
        sectors.flat_map(bytes).collect()
    }

    fn data(&mut self, cluster: u64) -> u64 {
        let offset = self.alloc(1);
        let content = self.content(cluster);
        self.put(offset, &content);
        offset
    }

    fn compressed(&mut self, cluster: u64) -> u64 {
        let content = self.content(cluster);
        let mut out = vec![0; self.cluster() as usize * 2];
        let len = if self.config.zstd {
            zstd_safe::compress(&mut out[..], &content, 3).expect("the buffer is large enough")
        } else {
            let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
            compressor.deflate_compress(&content, &mut out).expect("the buffer is large enough")
        };
        let size = self.cluster();
        let offset = match self.packed {
            // Few share a host cluster, so that narrow refcounts suffice.
            Some(at) if at % size + len as u64 <= size && self.refcounts[(at / size) as usize] < 3 => {
                self.add_ref(at);
                at
            }
            _ => self.alloc(1),
        };
        if len as u64 > size {
            let _more = self.alloc((len as u64).div_ceil(size) - 1);
        }
        self.put(offset, &out[..len]);
        let end = offset + len as u64;
        self.packed = (!end.is_multiple_of(size) && len as u64 <= size).then_some(end);
        let additional = (end - 1) / 512 - offset / 512;
        let shift = 62 - (self.config.cluster_bits - 8);
        COMPRESSED | additional << shift | offset
    }

    fn snapshot_entry(&mut self, table: u64, l1: u64, l1_entries: u64) {
        let extra: u32 = if self.config.version == 3 { 16 } else { 0 };
        let mut entry = Vec::new();
        entry.extend_from_slice(&l1.to_be_bytes());
        entry.extend_from_slice(&(l1_entries as u32).to_be_bytes());
        entry.extend_from_slice(&1u16.to_be_bytes());
        entry.extend_from_slice(&4u16.to_be_bytes());
        entry.extend_from_slice(&[0; 16]);
        entry.extend_from_slice(&0u32.to_be_bytes());
        entry.extend_from_slice(&extra.to_be_bytes());
        if extra > 0 {
            entry.extend_from_slice(&0u64.to_be_bytes());
            entry.extend_from_slice(&(self.config.sectors * 512).to_be_bytes());
        }
        entry.extend_from_slice(b"1snap");
        self.put(table, &entry);
    }

    /// Allocates refcount blocks until they cover themselves, then writes them.
    fn refcount_blocks(&mut self, reftable: u64) {
        let bits = 1u64 << self.config.refcount_order;
        let per_block = self.cluster() * 8 / bits;
        let mut blocks = Vec::new();
        while (blocks.len() as u64) < (self.refcounts.len() as u64).div_ceil(per_block) {
            blocks.push(self.alloc(1));
        }
        for (index, block) in (0..).zip(&blocks) {
            self.put64(reftable + index * 8, *block);
        }
        for cluster in 0..self.refcounts.len() as u64 {
            let value = self.refcounts[cluster as usize];
            assert!(bits == 64 || value < 1 << bits, "refcount {value} in {bits} bits");
            let block = blocks[(cluster / per_block) as usize];
            let bit = cluster % per_block * bits;
            if bits < 8 {
                self.file[(block + bit / 8) as usize] |= (value << (bit % 8)) as u8;
            } else {
                let bytes = value.to_be_bytes();
                self.put(block + bit / 8, &bytes[8 - bits as usize / 8..]);
            }
        }
    }

    fn header(&mut self, l1: u64, l1_entries: u64, reftable: u64, snapshot_table: u64) {
        let config = self.config;
        let name: &[u8] = if config.backing == Backing::None { b"" } else { b"backing" };
        let header_len = match config.version {
            2 => 72u64,
            _ if config.zstd => 112,
            _ => 104,
        };
        // Extensions: the backing format, then the end marker.
        let mut extensions = Vec::new();
        if !name.is_empty() {
            extensions.extend_from_slice(&0xe279_2acau32.to_be_bytes());
            let format: &[u8; 8] = if config.backing.is_qcow2() { b"qcow2\0\0\0" } else { b"raw\0\0\0\0\0" };
            let len = format.iter().take_while(|byte| **byte != 0).count() as u32;
            extensions.extend_from_slice(&len.to_be_bytes());
            extensions.extend_from_slice(format);
        }
        extensions.extend_from_slice(&[0; 8]);
        let name_at = header_len + extensions.len() as u64;
        let mut header = Vec::new();
        header.extend_from_slice(b"QFI\xfb");
        header.extend_from_slice(&config.version.to_be_bytes());
        header.extend_from_slice(&(if name.is_empty() { 0 } else { name_at }).to_be_bytes());
        header.extend_from_slice(&(name.len() as u32).to_be_bytes());
        header.extend_from_slice(&config.cluster_bits.to_be_bytes());
        header.extend_from_slice(&(config.sectors * 512).to_be_bytes());
        header.extend_from_slice(&0u32.to_be_bytes());
        header.extend_from_slice(&(l1_entries as u32).to_be_bytes());
        header.extend_from_slice(&l1.to_be_bytes());
        header.extend_from_slice(&reftable.to_be_bytes());
        header.extend_from_slice(&1u32.to_be_bytes());
        header.extend_from_slice(&u32::from(snapshot_table != 0).to_be_bytes());
        header.extend_from_slice(&snapshot_table.to_be_bytes());
        if config.version == 3 {
            // A backing file with lazy refcounts was not shut down cleanly: nobody may repair it.
            let dirty = config.lazy && self.owner == BACKING;
            let incompatible =
                u64::from(dirty) | u64::from(config.zstd) << 3 | u64::from(config.extended) << 4;
            header.extend_from_slice(&incompatible.to_be_bytes());
            header.extend_from_slice(&u64::from(config.lazy).to_be_bytes());
            header.extend_from_slice(&0u64.to_be_bytes());
            header.extend_from_slice(&config.refcount_order.to_be_bytes());
            header.extend_from_slice(&(header_len as u32).to_be_bytes());
        }
        if config.zstd {
            header.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        }
        header.extend_from_slice(&extensions);
        header.extend_from_slice(name);
        self.put(0, &header);
    }
}
