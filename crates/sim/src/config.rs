//! What a world is made of: geometry, caches, backing file, what the image held before, and the host's habits.

mod kinds;

use cowbell_block::Preallocation;

use kinds::{BACKINGS, CRYPTS, DATA_PLACES, FORMATS, PREALLOCATIONS, PRESTATES};
pub use kinds::{Backing, Crypt, DataPlace, Format, Prestate};

use crate::disk::{Atom, Discards, HostConfig};
use crate::rng::Rng;

/// Bits of [`Config::discard`]: what is given back to the host, and that discarded clusters keep their storage.
pub const GIVEN_BACK: u8 = 7;
const KEPT: u8 = 8;

/// One configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The image's.
    pub format: Format,
    /// 2 or 3.
    pub version: u32,
    /// Logarithm of the cluster size.
    pub cluster_bits: u32,
    /// Logarithm of a refcount's width in bits.
    pub refcount_order: u32,
    /// Length of the guest's disk in sectors.
    pub sectors: u64,
    /// Lazy refcounts.
    pub lazy: bool,
    /// What lies behind.
    pub backing: Backing,
    /// What the image holds.
    pub prestate: Prestate,
    /// Whether compressed clusters are Zstandard's.
    pub zstd: bool,
    /// Whether L2 entries are extended: each cluster has 32 subclusters.
    pub extended: bool,
    /// Whether a persistent bitmap records what changes.
    pub bitmaps: bool,
    /// Bytes of the L2 cache.
    pub l2_cache_bytes: u64,
    /// Bytes of one entry of the L2 cache.
    pub l2_slice_bytes: u64,
    /// Bytes of the refcount cache.
    pub refcount_cache_bytes: u64,
    /// Which storage is given back to the file and which is not, as the engine's bits.
    pub discard: u8,
    /// Where the guest's data is.
    pub data: DataPlace,
    /// How much of new space gets storage at once, at creation and growth.
    pub preallocation: Preallocation,
    /// How the guest's data is encrypted.
    pub crypt: Crypt,
    /// Whether the VM state area is used and looked at.
    pub vm_state: bool,
    /// The host's habits.
    pub host: HostConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            format: Format::Qcow2,
            version: 3,
            cluster_bits: 10,
            refcount_order: 4,
            sectors: 264,
            lazy: false,
            backing: Backing::None,
            prestate: Prestate::Fresh,
            zstd: false,
            extended: false,
            bitmaps: false,
            l2_cache_bytes: 1 << 20,
            l2_slice_bytes: 4096,
            refcount_cache_bytes: 1 << 18,
            discard: GIVEN_BACK,
            data: DataPlace::Inside,
            preallocation: Preallocation::Off,
            crypt: Crypt::None,
            vm_state: false,
            host: HostConfig::default(),
        }
    }
}

impl Config {
    /// A random configuration.
    pub fn random(rng: &mut Rng) -> Self {
        let version = if rng.one_in(4) { 2 } else { 3 };
        let cluster_bits =
            if rng.one_in(200) { 21 } else { *rng.pick(&[9, 9, 9, 10, 10, 10, 10, 12, 12, 12, 16, 16]) };
        let refcount_order = if version == 2 { 4 } else { *rng.pick(&[0, 1, 2, 3, 4, 4, 4, 5, 6]) };
        let mut config = Self { version, cluster_bits, refcount_order, ..Self::default() };
        config.sectors = match cluster_bits {
            9 => *rng.pick(&[16, 72]),
            10 => *rng.pick(&[32, 264, 263]),
            12 => *rng.pick(&[96, 93]),
            16 => *rng.pick(&[768, 760]),
            _ => 2 * 4096 + 5,
        };
        if version == 3 && rng.one_in(6) {
            (config.extended, config.cluster_bits) = (true, *rng.pick(&[14, 14, 16]));
            config.sectors = *rng.pick(&[5, 10]) * config.cluster_sectors() - rng.below(2) * 9;
        }
        config.lazy = version == 3 && rng.one_in(4);
        config.backing = match rng.below(2) {
            0 => Backing::None,
            _ => rng.pick(&BACKINGS[1..]).0,
        };
        config.zstd = version == 3 && rng.one_in(3);
        config.bitmaps = version == 3 && rng.one_in(4);
        config.prestate = *rng.pick(&[
            Prestate::Fresh,
            Prestate::Created,
            Prestate::Half,
            Prestate::Full,
            Prestate::Snapshot,
            Prestate::Shared,
            Prestate::Mixed,
            Prestate::Mixed,
        ]);
        if rng.one_in(2) {
            // Two slices and four blocks: everything is evicted before it is used.
            config.l2_slice_bytes = 512;
            config.l2_cache_bytes = 2 * config.l2_slice_bytes;
            config.refcount_cache_bytes = 4 << config.cluster_bits;
        }
        config.discard = match rng.below(6) {
            0..3 => GIVEN_BACK,
            3 | 4 => 0,
            _ => rng.below(u64::from(2 * KEPT)) as u8,
        };
        if rng.one_in(6) {
            config.data = rng.pick(&DATA_PLACES[1..]).0;
        }
        if rng.one_in(8) {
            config.preallocation = rng.pick(&PREALLOCATIONS[1..]).0;
        }
        config.vm_state = rng.one_in(6);
        if rng.one_in(12) {
            config.crypt = if rng.one_in(3) { Crypt::Luks } else { Crypt::Aes };
        }
        config.host = HostConfig {
            alignment: *rng.pick(&[1, 1, 1, 512, 4096]),
            atom: rng.pick(&Atom::ALL).0,
            done_one_in: *rng.pick(&[0, 0, 2, 8]),
            discards: if rng.one_in(2) { Discards::Zero } else { rng.pick(&Discards::ALL).0 },
            no_fast_zeroes: rng.one_in(8),
            dirty_holes: rng.one_in(4),
            growth_swallows: rng.one_in(4),
        };
        if rng.one_in(2) {
            config.host.atom = Atom::Sector;
        }
        config.legalise();
        let block_clusters = (8u64 << config.cluster_bits) >> config.refcount_order;
        let plain = config.data == DataPlace::Inside && config.crypt == Crypt::None;
        if block_clusters <= 256 && plain && rng.one_in(4) {
            config = config.near_boundary(block_clusters == 64 && rng.one_in(3));
        }
        config
    }

    /// Takes back what the format does not allow together.
    pub fn legalise(&mut self) {
        use Prestate::{Compressed, Mixed, Shared, Snapshot};
        let shares = matches!(self.prestate, Snapshot | Mixed | Shared | Compressed);
        if shares && self.refcount_order < 2 {
            // Shared clusters and packed compressed ones need refcounts of at least two or three.
            self.refcount_order = 2;
        }
        if self.version == 2 {
            (self.refcount_order, self.lazy, self.zstd, self.bitmaps) = (4, false, false, false);
        }
        self.extended &= self.version == 3 && self.cluster_bits >= 14;
        if self.crypt != Crypt::None {
            if self.data == DataPlace::Raw {
                // A file that reads like the disk is not encrypted.
                self.data = DataPlace::Inside;
            }
            self.preallocation = Preallocation::Off;
            self.prestate = Prestate::Half;
        }
        self.vm_state &= self.data == DataPlace::Inside;
        if self.crypt == Crypt::Luks {
            // Its header takes half a megabyte.
            self.cluster_bits = self.cluster_bits.clamp(12, 16);
        }
        if self.data != DataPlace::Inside {
            if self.version == 2 || self.cluster_bits > 16 {
                self.data = DataPlace::Inside;
            } else {
                // Made by the engine: empty, or with data in every second cluster. There are no snapshots.
                self.prestate =
                    if self.prestate == Prestate::Fresh { Prestate::Created } else { Prestate::Half };
            }
        }
        if self.data == DataPlace::Raw {
            self.backing = Backing::None;
        }
        if self.backing != Backing::None || self.data != DataPlace::Inside {
            self.preallocation = Preallocation::Off;
        }
        self.sectors = self.sectors.next_multiple_of(self.grain());
    }

    /// The same with just so much data that the next few allocations need a new refcount block, or with
    /// `whole_table` a larger refcount table. For small clusters; elsewhere it takes too large an image.
    #[must_use]
    pub fn near_boundary(mut self, whole_table: bool) -> Self {
        let per_block = (8 << self.cluster_bits) >> self.refcount_order;
        let blocks = if whole_table { self.l2_entries() } else { 1 };
        let capacity: u64 = per_block * blocks;
        let l1 = |clusters: u64| (clusters.div_ceil(self.l2_entries()) * 8).div_ceil(1 << self.cluster_bits);
        let used = |clusters: u64| {
            clusters.div_ceil(2) + clusters.div_ceil(self.l2_entries()) + l1(clusters) + 2 + blocks
        };
        let fitting = (1..2 * capacity).take_while(|clusters| used(*clusters) + 3 <= capacity).last();
        self.prestate = Prestate::Half;
        self.sectors = fitting.unwrap_or(1) * self.cluster_sectors();
        self
    }

    /// Sectors in a cluster.
    pub fn cluster_sectors(&self) -> u64 {
        1 << (self.cluster_bits - 9)
    }

    /// Guest clusters, the last one perhaps not whole.
    pub fn clusters(&self) -> u64 {
        self.sectors.div_ceil(self.cluster_sectors())
    }

    /// Guest clusters that one L2 table maps.
    pub fn l2_entries(&self) -> u64 {
        1 << (self.cluster_bits - if self.extended { 4 } else { 3 })
    }

    /// Clusters that one refcount block counts.
    pub fn refblock_entries(&self) -> u64 {
        (8 << self.cluster_bits) >> self.refcount_order
    }

    /// L2 tables of a disk with so many sectors.
    pub fn tables(&self, sectors: u64) -> u64 {
        sectors.div_ceil(self.cluster_sectors()).div_ceil(self.l2_entries())
    }

    /// Clusters of the L1 table of a disk with so many sectors.
    pub fn l1_clusters(&self, sectors: u64) -> u64 {
        (self.tables(sectors) * 8).div_ceil(1 << self.cluster_bits)
    }

    /// Length of the backing file's disk in sectors, if there is one.
    pub fn backing_sectors(&self) -> Option<u64> {
        match self.backing {
            Backing::None => None,
            Backing::Raw | Backing::Qcow2 => Some(self.sectors),
            Backing::Shorter | Backing::Qcow2Shorter => Some((self.sectors / 2) | 1),
            Backing::Longer | Backing::Qcow2Longer => Some(self.sectors + 9),
        }
    }

    /// The image that lies behind, if it is one: clusters of another size, of every kind.
    pub fn backing_image(&self) -> Option<Self> {
        let config = Self {
            cluster_bits: if self.cluster_bits > 9 { self.cluster_bits - 1 } else { 10 },
            sectors: self.backing_sectors()?,
            prestate: Prestate::Mixed,
            zstd: self.zstd,
            lazy: self.backing == Backing::Qcow2Longer,
            ..Self::default()
        };
        self.backing.is_qcow2().then_some(config)
    }

    /// Sectors of the guest's blocks: what is written in one piece is never seen in two. Larger than one where the
    /// host keeps larger blocks whole and is asked for nothing smaller.
    pub fn grain(&self) -> u64 {
        // Smaller clusters have an entry each, and a block's entries may be cut apart. And blocks of VHD images lie wherever
        // a sector does.
        let blocks = self.format == Format::Qcow2
            && self.host.alignment == 4096
            && self.host.atom != Atom::Sector
            && self.cluster_bits >= 12;
        if blocks { 8 } else { 1 }
    }

    /// One line of `key=value`, without what has its default.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        let default = Self::default();
        for (key, value) in self.fields() {
            let standard = default.fields().into_iter().find(|(k, _)| *k == key);
            if standard.is_none_or(|(_, v)| v != value) {
                out.push_str(&format!(" {key}={value}"));
            }
        }
        out.trim_start().to_owned()
    }

    fn fields(&self) -> Vec<(&'static str, String)> {
        let bit = |value: bool| u8::from(value).to_string();
        vec![
            ("format", name_of(&FORMATS, self.format)),
            ("version", self.version.to_string()),
            ("cluster_bits", self.cluster_bits.to_string()),
            ("refcount_order", self.refcount_order.to_string()),
            ("sectors", self.sectors.to_string()),
            ("lazy", bit(self.lazy)),
            ("backing", name_of(&BACKINGS, self.backing)),
            ("prestate", name_of(&PRESTATES, self.prestate)),
            ("zstd", bit(self.zstd)),
            ("extended", bit(self.extended)),
            ("bitmaps", bit(self.bitmaps)),
            ("l2_cache_bytes", self.l2_cache_bytes.to_string()),
            ("l2_slice_bytes", self.l2_slice_bytes.to_string()),
            ("refcount_cache_bytes", self.refcount_cache_bytes.to_string()),
            ("discard", self.discard.to_string()),
            ("data", name_of(&DATA_PLACES, self.data)),
            ("preallocation", name_of(&PREALLOCATIONS, self.preallocation)),
            ("crypt", name_of(&CRYPTS, self.crypt)),
            ("vm_state", bit(self.vm_state)),
            ("alignment", self.host.alignment.to_string()),
            ("done_one_in", self.host.done_one_in.to_string()),
            ("atom", name_of(&Atom::ALL, self.host.atom)),
            ("discards", name_of(&Discards::ALL, self.host.discards)),
            ("no_fast_zeroes", bit(self.host.no_fast_zeroes)),
            ("dirty_holes", bit(self.host.dirty_holes)),
            ("growth_swallows", bit(self.host.growth_swallows)),
        ]
    }

    /// The value of one key, as in the text form.
    pub fn value_of(&self, key: &str) -> String {
        self.fields().into_iter().find(|(k, _)| *k == key).map_or_else(String::new, |(_, value)| value)
    }

    /// Reads what [`Config::to_text`] wrote.
    ///
    /// # Errors
    /// The item that makes no sense.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut config = Self::default();
        for item in text.split_whitespace() {
            config.set(item).ok_or_else(|| format!("bad configuration item {item:?}"))?;
        }
        Ok(config)
    }

    fn set(&mut self, item: &str) -> Option<()> {
        let (key, value) = item.split_once('=')?;
        let number = || value.parse::<u64>().ok();
        match key {
            "format" => self.format = by_name(&FORMATS, value)?,
            "version" => self.version = number()? as u32,
            "cluster_bits" => self.cluster_bits = number()? as u32,
            "refcount_order" => self.refcount_order = number()? as u32,
            "sectors" => self.sectors = number()?,
            "lazy" => self.lazy = number()? != 0,
            "backing" => self.backing = by_name(&BACKINGS, value)?,
            "prestate" => self.prestate = by_name(&PRESTATES, value)?,
            "zstd" => self.zstd = number()? != 0,
            "extended" => self.extended = number()? != 0,
            "bitmaps" => self.bitmaps = number()? != 0,
            "l2_cache_bytes" => self.l2_cache_bytes = number()?,
            "l2_slice_bytes" => self.l2_slice_bytes = number()?,
            "refcount_cache_bytes" => self.refcount_cache_bytes = number()?,
            "discard" => self.discard = number()? as u8,
            "data" => self.data = by_name(&DATA_PLACES, value)?,
            "preallocation" => self.preallocation = by_name(&PREALLOCATIONS, value)?,
            "crypt" => self.crypt = by_name(&CRYPTS, value)?,
            "vm_state" => self.vm_state = number()? != 0,
            "alignment" => self.host.alignment = number()? as u32,
            "done_one_in" => self.host.done_one_in = number()?,
            "atom" => self.host.atom = by_name(&Atom::ALL, value)?,
            "discards" => self.host.discards = by_name(&Discards::ALL, value)?,
            "no_fast_zeroes" => self.host.no_fast_zeroes = number()? != 0,
            "dirty_holes" => self.host.dirty_holes = number()? != 0,
            "growth_swallows" => self.host.growth_swallows = number()? != 0,
            _ => return None,
        }
        Some(())
    }
}

fn name_of<T: PartialEq>(table: &[(T, &str)], value: T) -> String {
    table.iter().find(|(v, _)| *v == value).map_or_else(String::new, |(_, name)| (*name).to_owned())
}

fn by_name<T: Copy>(table: &[(T, &str)], name: &str) -> Option<T> {
    table.iter().find(|(_, n)| *n == name).map(|(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mut rng = Rng::new(4);
        for _ in 0..100 {
            let config = Config::random(&mut rng);
            assert_eq!(Config::parse(&config.to_text()), Ok(config));
        }
        assert_eq!(Config::default().to_text(), "");
    }
}
