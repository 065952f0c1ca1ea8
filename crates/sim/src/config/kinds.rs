//! The alternatives that a world is made of, with their names in scenario files.

use cowbell_block::Preallocation;

/// What kind of image it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// qcow2.
    Qcow2,
    /// VHD: dynamic, or differencing if something lies behind. A cluster is a block.
    Vhd,
}

pub(super) const FORMATS: [(Format, &str); 2] = [(Format::Qcow2, "qcow2"), (Format::Vhd, "vhd")];

/// What lies behind the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing.
    None,
    /// A raw file as long as the guest's disk.
    Raw,
    /// A raw file that ends inside a cluster, half way.
    Shorter,
    /// A raw file that goes on after the guest's disk.
    Longer,
    /// A qcow2 image with clusters of another size, as long as the guest's disk.
    Qcow2,
    /// A qcow2 image that ends inside a cluster, half way.
    Qcow2Shorter,
    /// A qcow2 image that goes on after the guest's disk, and was not shut down cleanly.
    Qcow2Longer,
}

impl Backing {
    /// Whether it is an image itself.
    pub fn is_qcow2(self) -> bool {
        matches!(self, Self::Qcow2 | Self::Qcow2Shorter | Self::Qcow2Longer)
    }
}

/// What the image holds before the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prestate {
    /// Nothing.
    Fresh,
    /// Nothing, made by the engine itself.
    Created,
    /// Data in every second cluster.
    Half,
    /// Data everywhere.
    Full,
    /// Data in every second cluster, and a snapshot of it that shares the L2 tables.
    Snapshot,
    /// Zero clusters without storage everywhere.
    Zero,
    /// Zero clusters with storage everywhere.
    ZeroAllocated,
    /// Data that a snapshot uses too, everywhere.
    Shared,
    /// Compressed data everywhere.
    Compressed,
    /// A bit of everything: data, data shared with a snapshot, zero clusters of both kinds, compressed ones.
    Mixed,
}

pub(super) const BACKINGS: [(Backing, &str); 7] = [
    (Backing::None, "none"),
    (Backing::Raw, "raw"),
    (Backing::Shorter, "shorter"),
    (Backing::Longer, "longer"),
    (Backing::Qcow2, "qcow2"),
    (Backing::Qcow2Shorter, "qcow2-shorter"),
    (Backing::Qcow2Longer, "qcow2-longer"),
];
pub(super) const PRESTATES: [(Prestate, &str); 10] = [
    (Prestate::Fresh, "fresh"),
    (Prestate::Created, "created"),
    (Prestate::Half, "half"),
    (Prestate::Full, "full"),
    (Prestate::Snapshot, "snapshot"),
    (Prestate::Zero, "zero"),
    (Prestate::ZeroAllocated, "zero-allocated"),
    (Prestate::Shared, "shared"),
    (Prestate::Compressed, "compressed"),
    (Prestate::Mixed, "mixed"),
];

/// Where the guest's data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlace {
    /// In the image.
    Inside,
    /// In a file of its own.
    Outside,
    /// In a file of its own that reads like the disk.
    Raw,
}

pub(super) const DATA_PLACES: [(DataPlace, &str); 3] =
    [(DataPlace::Inside, "inside"), (DataPlace::Outside, "outside"), (DataPlace::Raw, "raw")];
/// How the guest's data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crypt {
    /// Not at all.
    None,
    /// The AES of old.
    Aes,
    /// LUKS, with key slots.
    Luks,
}

pub(super) const CRYPTS: [(Crypt, &str); 3] =
    [(Crypt::None, "none"), (Crypt::Aes, "aes"), (Crypt::Luks, "luks")];
pub(super) const PREALLOCATIONS: [(Preallocation, &str); 4] = [
    (Preallocation::Off, "off"),
    (Preallocation::Metadata, "metadata"),
    (Preallocation::Falloc, "falloc"),
    (Preallocation::Full, "full"),
];
