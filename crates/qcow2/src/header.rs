//! The header of an image and its extensions: parsed once into a value that cannot be wrong, and written back
//! so that unknown fields and extensions survive.
//!
//! qcow2 specification, *Header* and *Header extensions*.

mod encode;
mod error;
mod parse;

use parse::until_nul;

use cowbell_block::names;
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub use error::HeaderError;

use crate::geometry::{DataPlace, Geometry, HostOffset, L2Format};

/// Extended L2 entries need clusters of 16 KiB: 32 subclusters of a sector each.
pub const EXTENDED_L2_CLUSTER_BITS_MIN: u32 = 14;
/// `QFI\xfb`, the first four bytes.
pub const MAGIC: u32 = 0x5146_49fb;
/// Most bytes of the active L1 table that the reference opens: 32 MiB.
pub const L1_BYTES_MAX: u64 = 32 << 20;
/// Most bytes of the refcount table that the reference opens: 8 MiB.
pub const REFTABLE_BYTES_MAX: u64 = 8 << 20;
/// Most internal snapshots.
pub const SNAPSHOTS_MAX: u32 = 65536;
/// Length of a version 2 header.
pub const V2_LEN: usize = 72;
/// Length of the version 3 headers written here: all fields of the specification, padded to 8.
pub const V3_LEN: usize = 112;
/// Longest name of a backing file.
pub const BACKING_NAME_MAX: u32 = 1023;

/// The header as stored, all fields that the specification names.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct RawHeader {
    magic: U32,
    version: U32,
    backing_file_offset: U64,
    backing_file_size: U32,
    cluster_bits: U32,
    size: U64,
    crypt_method: U32,
    l1_size: U32,
    l1_table_offset: U64,
    refcount_table_offset: U64,
    refcount_table_clusters: U32,
    nb_snapshots: U32,
    snapshots_offset: U64,
    incompatible_features: U64,
    compatible_features: U64,
    autoclear_features: U64,
    refcount_order: U32,
    header_length: U32,
    compression_type: u8,
    padding: [u8; 7],
}

const _: () = assert!(size_of::<RawHeader>() == V3_LEN);

bitflags::bitflags! {
    /// Features that an implementation must know to touch the image at all.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompatible: u64 {
        /// Refcounts may be wrong; repair before writing.
        const DIRTY = 1;
        /// Metadata is broken; no writing.
        const CORRUPT = 1 << 1;
        /// Guest data lies in another file.
        const DATA_FILE = 1 << 2;
        /// Compressed clusters are not deflate.
        const COMPRESSION = 1 << 3;
        /// L2 entries have 16 bytes, clusters 32 subclusters.
        const EXTENDED_L2 = 1 << 4;
    }
}

/// Compatible feature: refcount updates may be postponed.
pub const LAZY_REFCOUNTS: u64 = 1;
/// Autoclear feature: the bitmaps extension is consistent with the image.
pub const AUTOCLEAR_BITMAPS: u64 = 1;
/// Autoclear feature: the external data file is a raw image on its own.
pub const AUTOCLEAR_RAW_DATA: u64 = 2;
const AUTOCLEAR_KNOWN: u64 = AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURE_NAMES: u32 = 0x6803_f857;
const EXT_BITMAPS: u32 = 0x2385_2875;
/// Bytes of the bitmaps extension.
const BITMAPS_EXTENSION_BYTES: usize = 24;
const EXT_CRYPTO: u32 = 0x0537_be77;
/// Bytes of the extension that places the LUKS header: an offset and a length.
const CRYPTO_EXTENSION_BYTES: usize = 16;
const EXT_DATA_FILE: u32 = 0x4441_5441;
/// Ours: its content means nothing. It is there only while a header is being rewritten, see `rewrite`.
const EXT_NOTHING: u32 = 0x636f_7762;

/// How compressed clusters are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CompressionType {
    /// Raw deflate streams.
    #[default]
    Zlib,
    /// Zstandard frames.
    Zstd,
}

impl CompressionType {
    /// The name in options and `info`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// An extension that this engine keeps as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Type number.
    pub kind: u32,
    /// Content without padding.
    pub data: Vec<u8>,
}

/// What the bitmaps extension says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BitmapsExtension {
    pub count: u32,
    pub directory_bytes: u64,
    pub directory: HostOffset,
}

impl BitmapsExtension {
    /// The extension's data.
    pub fn encode(&self) -> [u8; BITMAPS_EXTENSION_BYTES] {
        let mut data = [0; BITMAPS_EXTENSION_BYTES];
        data[..4].copy_from_slice(&self.count.to_be_bytes());
        data[8..16].copy_from_slice(&self.directory_bytes.to_be_bytes());
        data[16..].copy_from_slice(&self.directory.0.to_be_bytes());
        data
    }
}

/// Where an encrypted image's LUKS header lies, with its key material.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CryptoExtension {
    pub offset: HostOffset,
    pub len: u64,
}

/// A valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Log2 of the cluster size.
    pub cluster_bits: u32,
    /// Length of the guest's disk in bytes.
    pub size: u64,
    /// 0 none, 1 AES, 2 LUKS.
    pub crypt_method: u32,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Its place.
    pub l1_offset: HostOffset,
    /// The refcount table's place.
    pub reftable_offset: HostOffset,
    /// Its length in clusters.
    pub reftable_clusters: u32,
    /// Internal snapshots.
    pub snapshot_count: u32,
    /// The snapshot table's place.
    pub snapshots_offset: HostOffset,
    /// Incompatible features, all of them known.
    pub incompatible: Incompatible,
    /// Compatible features, also unknown ones.
    pub compatible: u64,
    /// Autoclear features, also unknown ones until [`Header::clear_unknown_autoclear`].
    pub autoclear: u64,
    /// Log2 of the refcount width in bits.
    pub refcount_order: u32,
    /// How compressed clusters are stored.
    pub compression: CompressionType,
    /// The backing file's name.
    pub backing_file: Option<String>,
    /// The backing file's format, from its extension.
    pub backing_format: Option<String>,
    /// Bytes between the fields known here and the header's stated length.
    pub unknown_fields: Vec<u8>,
    /// Extensions kept as they are, in order.
    pub extensions: Vec<Extension>,
}

impl Header {
    /// Clears autoclear bits that this engine does not maintain, as a writable open must.
    pub fn clear_unknown_autoclear(&mut self) {
        self.autoclear &= AUTOCLEAR_KNOWN;
    }

    /// Whether the image carries bitmaps that are consistent with it.
    pub fn has_bitmaps(&self) -> bool {
        self.autoclear & AUTOCLEAR_BITMAPS != 0 && self.extensions.iter().any(|e| e.kind == EXT_BITMAPS)
    }

    /// Where the bitmaps lie, if they are consistent with the image.
    pub(crate) fn bitmaps(&self) -> Option<BitmapsExtension> {
        let extension = self.extensions.iter().find(|e| e.kind == EXT_BITMAPS)?;
        let word = |at: usize| extension.data.get(at..at + 8)?.first_chunk().map(|b| u64::from_be_bytes(*b));
        let count = (word(0)? >> 32) as u32;
        let found = BitmapsExtension { count, directory_bytes: word(8)?, directory: HostOffset(word(16)?) };
        (self.autoclear & AUTOCLEAR_BITMAPS != 0).then_some(found)
    }

    /// Whether an extension for bitmaps is there that means nothing, since another program wrote the image.
    pub(crate) fn has_stale_bitmaps(&self) -> bool {
        self.autoclear & AUTOCLEAR_BITMAPS == 0 && self.extensions.iter().any(|e| e.kind == EXT_BITMAPS)
    }

    /// Says where the bitmaps lie, or that there are none.
    pub(crate) fn set_bitmaps(&mut self, bitmaps: Option<&BitmapsExtension>) {
        self.extensions.retain(|e| e.kind != EXT_BITMAPS);
        self.autoclear &= !AUTOCLEAR_BITMAPS;
        if let Some(bitmaps) = bitmaps {
            self.extensions.push(Extension { kind: EXT_BITMAPS, data: bitmaps.encode().to_vec() });
            self.autoclear |= AUTOCLEAR_BITMAPS;
        }
    }

    /// The data cluster that an entry of a bitmap's table names.
    pub(crate) fn bitmap_data(raw: u64) -> Option<HostOffset> {
        Some(HostOffset(raw & 0x00ff_ffff_ffff_fe00)).filter(|host| host.0 != 0)
    }

    /// The LUKS header's place, in an image that has one.
    pub(crate) fn crypto(&self) -> Option<CryptoExtension> {
        let extension = self.extensions.iter().find(|e| e.kind == EXT_CRYPTO)?;
        let (offset, len) = extension.data.split_first_chunk()?;
        let len = len.first_chunk().filter(|_| self.crypt_method == 2)?;
        Some(CryptoExtension {
            offset: HostOffset(u64::from_be_bytes(*offset)),
            len: u64::from_be_bytes(*len),
        })
    }

    /// Makes the image one that is encrypted with LUKS.
    pub(crate) fn set_crypto(&mut self, place: CryptoExtension) {
        self.crypt_method = 2;
        self.extensions.retain(|e| e.kind != EXT_CRYPTO);
        let data = [place.offset.0.to_be_bytes(), place.len.to_be_bytes()].concat();
        self.extensions.push(Extension { kind: EXT_CRYPTO, data });
    }

    /// Whether the external data file must read like the disk by itself.
    pub fn has_raw_data_file(&self) -> bool {
        self.autoclear & AUTOCLEAR_RAW_DATA != 0
    }

    /// The external data file's name.
    pub fn data_file(&self) -> Option<String> {
        let extension = self.extensions.iter().find(|e| e.kind == EXT_DATA_FILE)?;
        Some(names::from_bytes(until_nul(&extension.data)))
    }

    /// The image's sizes, with table slices of about `slice_bytes` bytes.
    pub fn geometry(&self, slice_bytes: u32) -> Geometry {
        let has = |feature| self.incompatible.contains(feature);
        let l2 = if has(Incompatible::EXTENDED_L2) { L2Format::Extended } else { L2Format::Standard };
        let data = if has(Incompatible::DATA_FILE) { DataPlace::External } else { DataPlace::Image };
        Geometry::new(self.cluster_bits, self.refcount_order, slice_bytes).with_l2(l2).with_data(data)
    }

    /// Stores another name of the external data file.
    pub(crate) fn set_data_file(&mut self, name: &str) {
        self.extensions.retain(|e| e.kind != EXT_DATA_FILE);
        self.extensions.push(Self::data_file_extension(name));
    }

    /// The external data file no longer reads like the disk by itself.
    pub(crate) fn clear_raw_data_file(&mut self) {
        self.autoclear &= !AUTOCLEAR_RAW_DATA;
    }

    /// Drops the table that only serves messages.
    pub(crate) fn drop_feature_names(&mut self) {
        self.extensions.retain(|e| e.kind != EXT_FEATURE_NAMES);
    }

    /// Drops what version 2 has no place for.
    pub(crate) fn leave_version_3(&mut self) {
        self.incompatible = Incompatible::empty();
        (self.compatible, self.autoclear) = (0, 0);
        self.unknown_fields.clear();
        self.extensions.retain(|e| !matches!(e.kind, EXT_FEATURE_NAMES | EXT_BITMAPS));
    }

    /// The extension that names an external data file.
    pub(crate) fn data_file_extension(name: &str) -> Extension {
        Extension { kind: EXT_DATA_FILE, data: names::to_bytes(name).into_owned() }
    }

    /// The feature name table that new images carry, in the reference's order.
    pub fn feature_name_table() -> Extension {
        const NAMES: [(u8, u8, &str); 8] = [
            (0, 0, "dirty bit"),
            (0, 1, "corrupt bit"),
            (0, 2, "external data file"),
            (0, 3, "compression type"),
            (0, 4, "extended L2 entries"),
            (1, 0, "lazy refcounts"),
            (2, 0, "bitmaps"),
            (2, 1, "raw external data"),
        ];
        let mut data = Vec::with_capacity(NAMES.len() * 48);
        for (kind, bit, name) in NAMES {
            data.extend_from_slice(&[kind, bit]);
            data.extend_from_slice(name.as_bytes());
            data.resize(data.len().next_multiple_of(48), 0);
        }
        Extension { kind: EXT_FEATURE_NAMES, data }
    }
}

#[cfg(test)]
mod tests;
