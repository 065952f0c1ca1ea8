//! Builds images byte by byte for the tests of this crate.

/// Header and tables of a small image. Offsets below are in clusters.
///
/// Layout: 0 header, 1 refcount table, 2 refcount block, 3 active L1, 4 first L2, data from 5.
pub(crate) struct TestImage {
    pub(crate) bytes: Vec<u8>,
    pub(crate) cluster_bits: u32,
    pub(crate) order: u32,
    pub(crate) extended: bool,
}

pub(crate) const COPIED: u64 = 1 << 63;
pub(crate) const COMPRESSED: u64 = 1 << 62;

impl TestImage {
    /// A sound image: version 3, 16-bit refcounts, 512-byte clusters, a disk of two L2 tables of which the
    /// first exists with two data clusters (guest clusters 0 and 2 in host clusters 5 and 6).
    pub(crate) fn new() -> Self {
        Self::with(3, 9, 4, false)
    }

    pub(crate) fn with(version: u32, cluster_bits: u32, order: u32, extended: bool) -> Self {
        let cluster = 1usize << cluster_bits;
        let mut image = TestImage { bytes: vec![0; 7 * cluster], cluster_bits, order, extended };
        let entries = (cluster / if extended { 16 } else { 8 }) as u64;
        image.put32(0, 0x5146_49fb);
        image.put32(4, version);
        image.put32(20, cluster_bits);
        image.put64(24, (2 * entries) << cluster_bits);
        image.put32(36, 2);
        image.put64(40, image.at(3));
        image.put64(48, image.at(1));
        image.put32(56, 1);
        if version == 3 {
            image.put64(72, if extended { 16 } else { 0 });
            image.put32(96, order);
            image.put32(100, 104);
        }
        image.put64(image.at(1), image.at(2));
        image.put64(image.at(3), image.at(4) | COPIED);
        image.set_l2(0, image.at(5) | COPIED, 0xffff_ffff);
        image.set_l2(2, image.at(6) | COPIED, 0xffff_ffff);
        for used in 0..7 {
            image.set_refcount(used, 1);
        }
        image
    }

    /// Host offset of a cluster.
    pub(crate) fn at(&self, cluster: u64) -> u64 {
        cluster << self.cluster_bits
    }

    pub(crate) fn put64(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn put32(&mut self, at: u64, value: u32) {
        self.put(at, &value.to_be_bytes());
    }

    pub(crate) fn put(&mut self, at: u64, value: &[u8]) {
        let at = at as usize;
        if self.bytes.len() < at + value.len() {
            self.bytes.resize(at + value.len(), 0);
        }
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    /// Makes the file long enough for `clusters` whole clusters.
    pub(crate) fn grow(&mut self, clusters: u64) {
        self.bytes.resize((clusters << self.cluster_bits) as usize, 0);
    }

    /// Sets an entry of the L2 table in cluster 4; `bitmap` counts with extended entries only.
    pub(crate) fn set_l2(&mut self, index: u64, value: u64, bitmap: u64) {
        let table = self.at(4);
        if self.extended {
            self.put64(table + index * 16, value);
            self.put64(table + index * 16 + 8, bitmap);
        } else {
            self.put64(table + index * 8, value);
        }
    }

    /// Sets a refcount in the first refcount block.
    pub(crate) fn set_refcount(&mut self, cluster: u64, refcount: u64) {
        let block = self.at(2) as usize;
        let bits = 1usize << self.order;
        let index = cluster as usize;
        if bits >= 8 {
            let bytes = bits / 8;
            let value = &refcount.to_be_bytes()[8 - bytes..];
            self.bytes[block + index * bytes..][..bytes].copy_from_slice(value);
        } else {
            let shift = index * bits % 8;
            let byte = &mut self.bytes[block + index * bits / 8];
            *byte &= !((((1u32 << bits) - 1) as u8) << shift);
            *byte |= (refcount as u8) << shift;
        }
    }

    /// Appends a header extension at `at`; returns where the next one goes.
    pub(crate) fn extension(&mut self, at: u64, kind: u32, data: &[u8]) -> u64 {
        self.put32(at, kind);
        self.put32(at + 4, data.len() as u32);
        self.put(at + 8, data);
        at + 8 + (data.len() as u64).next_multiple_of(8)
    }

    /// Adds a snapshot of the active mapping: table in cluster 7, L1 in cluster 8; counts agree.
    pub(crate) fn add_snapshot(&mut self) {
        self.grow(9);
        let (table, l1) = (self.at(7), self.at(8));
        self.put32(60, 1);
        self.put64(64, table);
        self.put64(table, l1);
        self.put32(table + 8, 2);
        self.put(table + 12, &[0, 1, 0, 1]);
        self.put32(table + 36, 16);
        let size = u64::from_be_bytes(self.bytes[24..32].try_into().unwrap());
        self.put64(table + 48, size);
        self.put(table + 56, b"1s");
        self.put64(l1, self.at(4));
        self.put64(self.at(3), self.at(4));
        self.set_l2(0, self.at(5), 0xffff_ffff);
        self.set_l2(2, self.at(6), 0xffff_ffff);
        for shared in 4..7 {
            self.set_refcount(shared, 2);
        }
        self.set_refcount(7, 1);
        self.set_refcount(8, 1);
    }
}
