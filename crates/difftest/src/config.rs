//! Which image a sequence works on.

use crate::lab::{Lab, Side};
use crate::model::Model;
use cowbell_difftest::rng::Rng;

/// Name of the image.
pub const IMAGE: &str = "img.qcow2";

/// Where the disk's first content comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// An empty image.
    Empty,
    /// Compressed clusters, made by the reference.
    Compressed,
    /// A raw backing file.
    RawBacking,
    /// A qcow2 backing file, perhaps compressed.
    Qcow2Backing,
}

/// An image as the format allows it.
#[derive(Clone, Debug)]
pub struct Config {
    /// Version 2 or 3.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster: u64,
    refcount_bits: u32,
    lazy: bool,
    zstd: bool,
    start: Start,
    /// Bytes of the disk.
    pub size: u64,
    backing_size: u64,
    /// How many internal snapshots are made on the way.
    pub snapshots: u32,
}

impl Config {
    /// One of them all.
    pub fn random(rng: &mut Rng) -> Self {
        let version = if rng.percent(25) { 2 } else { 3 };
        let cluster: u64 = 1 << rng.pick(&[9, 9, 9, 10, 12, 12, 14, 16, 16, 16, 16, 21]);
        let v3 = version == 3;
        // Around an L2 boundary where that is affordable: one L2 table covers cluster / 8 clusters.
        let clusters = match cluster {
            512 => 40 + rng.below(200),
            1024..=4096 => 20 + rng.below(500),
            ..=65536 => 4 + rng.below(40),
            _ => 2 + rng.below(4),
        };
        let odd = if rng.percent(40) { rng.below(cluster / 512) * 512 } else { 0 };
        let size = clusters * cluster + odd;
        let start = rng.pick(&[
            Start::Empty,
            Start::Empty,
            Start::Compressed,
            Start::RawBacking,
            Start::RawBacking,
            Start::Qcow2Backing,
            Start::Qcow2Backing,
        ]);
        let backing_size = match rng.below(3) {
            0 => size,
            1 => (size / 512 * (10 + rng.below(80)) / 100).max(1) * 512,
            _ => size + (1 + rng.below(size / 512)) * 512,
        };
        let refcount_bits = if v3 { rng.pick(&[16, 16, 16, 1, 2, 4, 8, 32, 64]) } else { 16 };
        let snapshots = match (refcount_bits, start) {
            (1, _) | (..16, Start::Compressed) => 0,
            _ => rng.pick(&[0, 0, 1, 2]),
        };
        Self {
            version,
            cluster,
            refcount_bits,
            lazy: v3 && rng.percent(25),
            zstd: v3 && rng.percent(40),
            start,
            size,
            backing_size,
            snapshots,
        }
    }

    /// Whether another image lies below.
    pub fn has_backing(&self) -> bool {
        matches!(self.start, Start::RawBacking | Start::Qcow2Backing)
    }

    /// Whether the disk may grow: version 2 has no zero clusters to hide a longer backing file with, and cannot
    /// grow with snapshots.
    pub fn may_grow(&self) -> bool {
        self.version == 3 || !self.has_backing() && self.snapshots == 0
    }

    fn options(&self) -> String {
        let compat = if self.version == 2 { "0.10" } else { "1.1" };
        let mut options = format!("compat={compat},cluster_size={}", self.cluster);
        if self.version == 3 {
            let lazy = if self.lazy { "on" } else { "off" };
            options += &format!(",refcount_bits={},lazy_refcounts={lazy}", self.refcount_bits);
        }
        if self.zstd {
            options += ",compression_type=zstd";
        }
        options
    }

    /// Makes the image and what lies below it; returns what it reads as.
    pub fn make(&self, lab: &mut Lab<'_>, side: Side, rng: &mut Rng) -> Result<Model, String> {
        let options = self.options();
        match self.start {
            Start::Empty => {
                let size = self.size.to_string();
                let args = ["create", "-q", "-f", "qcow2", "-o", &options, IMAGE, &size];
                lab.img(side, &args)?.ok("create")?;
                Ok(Model::new(self.size))
            }
            Start::Compressed => {
                let content = content(self.size, self.cluster, rng);
                lab.write("source.raw", &content)?;
                let args = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, "source.raw", IMAGE];
                lab.img(Side::Theirs, &args)?.ok("convert -c")?;
                Ok(Model::over(&content, self.size))
            }
            Start::RawBacking | Start::Qcow2Backing => {
                let content = content(self.backing_size, self.cluster, rng);
                lab.write("base.raw", &content)?;
                let mut backing = "base.raw";
                let mut format = "raw";
                if self.start == Start::Qcow2Backing {
                    (backing, format) = ("base.qcow2", "qcow2");
                    // The backing file has clusters of its own size.
                    let options = format!("cluster_size={}", 1u64 << rng.pick(&[9, 12, 16]));
                    let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &options];
                    if rng.percent(50) {
                        args.push("-c");
                    }
                    args.extend(["base.raw", backing]);
                    lab.img(Side::Theirs, &args)?.ok("convert")?;
                }
                let size = self.size.to_string();
                let args = [
                    "create", "-q", "-f", "qcow2", "-o", &options, "-b", backing, "-F", format, IMAGE, &size,
                ];
                lab.img(side, &args)?.ok("create")?;
                Ok(Model::over(&content, self.size))
            }
        }
    }
}

/// Content with holes, long runs, and clusters that compress little.
fn content(size: u64, cluster: u64, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; size as usize];
    for piece in bytes.chunks_mut(cluster as usize) {
        match rng.below(5) {
            0 => {}
            1 | 2 => piece.fill(1 + rng.below(255) as u8),
            3 => {
                let at = rng.below(piece.len() as u64 / 512) as usize * 512;
                let end = (at + 512).min(piece.len());
                piece[at..end].fill(1 + rng.below(255) as u8);
            }
            _ => {
                for word in piece.chunks_mut(8) {
                    let value = rng.number().to_le_bytes();
                    word.copy_from_slice(&value[..word.len()]);
                }
            }
        }
    }
    bytes
}
