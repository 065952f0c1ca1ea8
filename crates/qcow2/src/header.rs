//! The header of an image and its extensions: parsed once into a value that cannot be wrong, and written back
//! so that unknown fields and extensions survive.
//!
//! qcow2 specification, *Header* and *Header extensions*.

use cowbell_block::{Error, ErrorKind, Result};
use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::bitmap::{BITMAPS_MAX, DIRECTORY_BYTES_MAX};
use crate::geometry::{
    CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, DataPlace, Geometry, HostOffset, L2Format, SLICE_BYTES,
};

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

/// A header that breaks a rule of the format.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// Not this format at all.
    #[error("Image is not in qcow2 format")]
    Magic,
    /// Neither 2 nor 3.
    #[error("Unsupported qcow2 version {0}")]
    Version(u32),
    /// Outside 9..=21.
    #[error("Unsupported cluster size: 2^{0}")]
    ClusterBits(u32),
    /// Shorter than its fields.
    #[error("qcow2 header too short")]
    Short,
    /// Longer than the first cluster.
    #[error("qcow2 header exceeds cluster size")]
    LongerThanCluster,
    /// Above 6.
    #[error("Reference count entry width too large; may not exceed 64 bits")]
    RefcountOrder(u32),
    /// A value that names no method.
    #[error("Unsupported encryption method {0}")]
    CryptMethod(u32),
    /// Incompatible features nobody here knows; the text lists their names.
    #[error("Unsupported qcow2 feature(s): {0}")]
    UnknownFeatures(String),
    /// Compression type and its feature bit contradict each other, or the type is unknown.
    #[error("qcow2: unknown compression type: {0}")]
    CompressionType(u8),
    /// The feature bit is there without a reason, or the reason without the bit.
    #[error("qcow2: Compression type incompatible feature bit must {}be set", if *.0 { "" } else { "not " })]
    CompressionBit(bool),
    /// The raw external data bit without an external data file.
    #[error("data-file-raw requires a data file")]
    RawDataWithoutFile,
    /// Subclusters smaller than a sector.
    #[error("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")]
    ExtendedL2Clusters,
    /// No refcount table.
    #[error("Image does not contain a reference count table")]
    NoReftable,
    /// More than 8 MiB.
    #[error("Reference count table too large")]
    ReftableSize,
    /// Not aligned, or outside the address space.
    #[error("Reference count table offset invalid")]
    ReftableOffset,
    /// More than 32 MiB.
    #[error("Active L1 table too large")]
    L1Size,
    /// Not aligned, or outside the address space.
    #[error("Active L1 table offset invalid")]
    L1Offset,
    /// Too few entries for the disk.
    #[error("L1 table is too small")]
    L1TooSmall,
    /// The disk is longer than any L1 table could map.
    #[error("Image is too big to fit into the L1 table")]
    SizeTooLarge,
    /// More than 65536.
    #[error("Snapshot table too large")]
    SnapshotCount,
    /// Not aligned, or outside the address space.
    #[error("Snapshot table offset invalid")]
    SnapshotOffset,
    /// Beyond the first cluster.
    #[error("Invalid backing file offset")]
    BackingOffset,
    /// Longer than 1023 bytes or beyond the first cluster.
    #[error("Backing file name too long")]
    BackingLength,
    /// Not text.
    #[error("Backing file name is not valid UTF-8")]
    BackingName,
    /// An extension is longer than the space for extensions.
    #[error("Header extension too large")]
    ExtensionLength,
    /// Not 24 bytes.
    #[error("bitmaps_ext: Invalid extension length")]
    BitmapsLength,
    /// The second word is not zero.
    #[error("bitmaps_ext: Reserved field is not zero")]
    BitmapsReserved,
    /// More than 65535.
    #[error("bitmaps_ext: Image has {0} bitmaps, exceeding the QEMU supported maximum of {BITMAPS_MAX}")]
    BitmapCount(u32),
    /// An extension for nothing.
    #[error("found bitmaps extension with zero bitmaps")]
    NoBitmaps,
    /// Not aligned, or outside the address space.
    #[error("bitmaps_ext: invalid bitmap directory offset")]
    BitmapDirectoryOffset,
    /// More than the limit.
    #[error(
        "bitmaps_ext: bitmap directory size ({0}) exceeds the maximum supported size ({DIRECTORY_BYTES_MAX})"
    )]
    BitmapDirectorySize(u64),
    /// More than 15 bytes, or not text.
    #[error("ERROR: ext_backing_format: len={0} too large (>=16)")]
    BackingFormat(usize),
    /// The header with its extensions and names does not fit the first cluster.
    #[error("the header needs {needed} bytes, the first cluster has {cluster}")]
    DoesNotFit {
        /// Bytes needed.
        needed: usize,
        /// Bytes of a cluster.
        cluster: usize,
    },
}

impl From<HeaderError> for Error {
    fn from(e: HeaderError) -> Self {
        let kind = match e {
            HeaderError::Version(_) | HeaderError::UnknownFeatures(_) => ErrorKind::Unsupported,
            HeaderError::L1Size | HeaderError::SizeTooLarge | HeaderError::ReftableSize => {
                ErrorKind::TooLarge
            }
            _ => ErrorKind::InvalidInput,
        };
        Error::new(kind, e)
    }
}

impl Header {
    /// Whether `bytes`, the beginning of a file, look like a header of this format.
    pub fn probe(bytes: &[u8]) -> bool {
        matches!(bytes, [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 2 | 3, ..]) && bytes.len() >= V2_LEN
    }

    /// The cluster size that the first bytes state, to know how much [`Header::parse`] needs.
    ///
    /// # Errors
    /// When these are not the beginning of an image.
    pub fn peek_cluster_bits(bytes: &[u8]) -> Result<u32> {
        let raw = RawHeader::read_lenient(bytes)?;
        Ok(raw.cluster_bits.get())
    }

    /// Parses the first cluster of an image.
    ///
    /// # Errors
    /// The first rule of the format that is broken.
    pub fn parse(cluster: &[u8]) -> Result<Self> {
        let raw = RawHeader::read_lenient(cluster)?;
        let v3 = raw.version.get() == 3;
        let cluster_size = 1usize << raw.cluster_bits.get();
        let cluster = cluster.get(..cluster_size).ok_or(HeaderError::Short)?;
        let header_len = if v3 { raw.header_length.get() as usize } else { V2_LEN };
        if v3 && header_len < 104 {
            return Err(HeaderError::Short.into());
        }
        if header_len > cluster_size {
            return Err(HeaderError::LongerThanCluster.into());
        }
        let unknown_fields = cluster.get(V3_LEN.min(header_len)..header_len).unwrap_or_default().to_vec();
        let mut header = Self {
            version: raw.version.get(),
            cluster_bits: raw.cluster_bits.get(),
            size: raw.size.get(),
            crypt_method: raw.crypt_method.get(),
            l1_entries: raw.l1_size.get(),
            l1_offset: HostOffset(raw.l1_table_offset.get()),
            reftable_offset: HostOffset(raw.refcount_table_offset.get()),
            reftable_clusters: raw.refcount_table_clusters.get(),
            snapshot_count: raw.nb_snapshots.get(),
            snapshots_offset: HostOffset(raw.snapshots_offset.get()),
            incompatible: Incompatible::empty(),
            compatible: if v3 { raw.compatible_features.get() } else { 0 },
            autoclear: if v3 { raw.autoclear_features.get() } else { 0 },
            refcount_order: if v3 { raw.refcount_order.get() } else { 4 },
            compression: CompressionType::Zlib,
            backing_file: None,
            backing_format: None,
            unknown_fields: if v3 { unknown_fields } else { Vec::new() },
            extensions: Vec::new(),
        };
        let backing = header.parse_backing(&raw, cluster)?;
        header.parse_extensions(cluster, header_len, backing)?;
        header.parse_features(&raw, header_len)?;
        header.check_tables()?;
        Ok(header)
    }

    fn parse_backing(&mut self, raw: &RawHeader, cluster: &[u8]) -> Result<usize> {
        let (offset, len) = (raw.backing_file_offset.get(), raw.backing_file_size.get());
        if offset == 0 {
            return Ok(cluster.len());
        }
        let offset = usize::try_from(offset).ok().filter(|o| *o <= cluster.len());
        let offset = offset.ok_or(HeaderError::BackingOffset)?;
        if len > BACKING_NAME_MAX.min((cluster.len() - offset) as u32) {
            return Err(HeaderError::BackingLength.into());
        }
        let name = cluster.get(offset..offset + len as usize).ok_or(HeaderError::BackingLength)?;
        let name = std::str::from_utf8(until_nul(name)).map_err(|_| HeaderError::BackingName)?;
        self.backing_file = Some(name.to_owned()).filter(|n| !n.is_empty());
        Ok(offset)
    }

    fn parse_extensions(&mut self, cluster: &[u8], start: usize, end: usize) -> Result<()> {
        let mut area = cluster.get(start..end).unwrap_or_default();
        while let Some((head, rest)) = area.split_at_checked(8) {
            let kind = be32(head);
            let len = be32(&head[4..]) as usize;
            let data = rest.get(..len).ok_or(HeaderError::ExtensionLength)?;
            match kind {
                EXT_END => break,
                EXT_BACKING_FORMAT if until_nul(data).is_empty() => {}
                EXT_BACKING_FORMAT => {
                    let text = std::str::from_utf8(until_nul(data)).ok().filter(|t| t.len() < 16);
                    let text = text.ok_or(HeaderError::BackingFormat(len))?;
                    self.backing_format = Some(text.to_owned());
                }
                EXT_NOTHING => {}
                // Version 2 images have no feature bits, but their extensions are kept all the same.
                _ => self.extensions.push(Extension { kind, data: data.to_vec() }),
            }
            area = rest.get(len.next_multiple_of(8)..).unwrap_or_default();
        }
        Ok(())
    }

    fn parse_features(&mut self, raw: &RawHeader, header_len: usize) -> Result<()> {
        if self.version == 2 {
            return Ok(());
        }
        let bits = raw.incompatible_features.get();
        self.incompatible = Incompatible::from_bits_truncate(bits);
        let unknown = bits & !Incompatible::all().bits();
        if unknown != 0 {
            return Err(HeaderError::UnknownFeatures(self.feature_names(unknown)).into());
        }
        let stored = if header_len > 104 { raw.compression_type } else { 0 };
        self.compression = match stored {
            0 => CompressionType::Zlib,
            1 => CompressionType::Zstd,
            other => return Err(HeaderError::CompressionType(other).into()),
        };
        let has_bit = self.incompatible.contains(Incompatible::COMPRESSION);
        if has_bit != (stored != 0) {
            return Err(HeaderError::CompressionBit(!has_bit).into());
        }
        let has_data_file = self.incompatible.contains(Incompatible::DATA_FILE);
        if self.autoclear & AUTOCLEAR_RAW_DATA != 0 && !has_data_file {
            return Err(HeaderError::RawDataWithoutFile.into());
        }
        if self.refcount_order > 6 {
            return Err(HeaderError::RefcountOrder(self.refcount_order).into());
        }
        self.check_bitmaps()
    }

    fn check_bitmaps(&self) -> Result<()> {
        let Some(extension) = self.extensions.iter().find(|e| e.kind == EXT_BITMAPS) else { return Ok(()) };
        if extension.data.len() != BITMAPS_EXTENSION_BYTES {
            return Err(HeaderError::BitmapsLength.into());
        }
        let Some(BitmapsExtension { count, directory_bytes, directory }) = self.bitmaps() else {
            return Ok(());
        };
        if be32(&extension.data[4..]) != 0 {
            return Err(HeaderError::BitmapsReserved.into());
        }
        if count > BITMAPS_MAX {
            return Err(HeaderError::BitmapCount(count).into());
        }
        if count == 0 {
            return Err(HeaderError::NoBitmaps.into());
        }
        if !directory.0.is_multiple_of(1 << self.cluster_bits) || directory.0 >= 1 << 56 {
            return Err(HeaderError::BitmapDirectoryOffset.into());
        }
        if directory_bytes > DIRECTORY_BYTES_MAX {
            return Err(HeaderError::BitmapDirectorySize(directory_bytes).into());
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<()> {
        let cluster_size = 1u64 << self.cluster_bits;
        let placed = |offset: HostOffset, bytes: u64| {
            let end = offset.0.checked_add(bytes);
            offset.0.is_multiple_of(cluster_size) && end.is_some_and(|end| end <= i64::MAX as u64)
        };
        if self.crypt_method > 2 {
            return Err(HeaderError::CryptMethod(self.crypt_method).into());
        }
        let reftable_bytes = u64::from(self.reftable_clusters) << self.cluster_bits;
        if reftable_bytes > REFTABLE_BYTES_MAX {
            return Err(HeaderError::ReftableSize.into());
        }
        if !placed(self.reftable_offset, reftable_bytes) {
            return Err(HeaderError::ReftableOffset.into());
        }
        if self.snapshot_count > SNAPSHOTS_MAX {
            return Err(HeaderError::SnapshotCount.into());
        }
        if !placed(self.snapshots_offset, u64::from(self.snapshot_count) * 40) {
            return Err(HeaderError::SnapshotOffset.into());
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > L1_BYTES_MAX {
            return Err(HeaderError::L1Size.into());
        }
        if !placed(self.l1_offset, l1_bytes) {
            return Err(HeaderError::L1Offset.into());
        }
        if self.incompatible.contains(Incompatible::EXTENDED_L2)
            && self.cluster_bits < EXTENDED_L2_CLUSTER_BITS_MIN
        {
            return Err(HeaderError::ExtendedL2Clusters.into());
        }
        let needed = self.geometry(SLICE_BYTES).l1_entries_for(self.size);
        if needed > L1_BYTES_MAX / 8 || self.size > i64::MAX as u64 {
            return Err(HeaderError::SizeTooLarge.into());
        }
        if u64::from(self.l1_entries) < needed {
            return Err(HeaderError::L1TooSmall.into());
        }
        Ok(())
    }

    /// Names of unknown incompatible features, from the image's own table where it has one.
    fn feature_names(&self, unknown: u64) -> String {
        let table = self.extensions.iter().find(|e| e.kind == EXT_FEATURE_NAMES);
        let records = table.map(|e| e.data.as_slice()).unwrap_or_default();
        let (mut names, mut left) = (Vec::new(), unknown);
        for record in records.chunks_exact(48).filter(|r| r[0] == 0 && r[1] < 64) {
            let bit = 1u64 << record[1];
            if left & bit != 0 {
                let name = record[2..].split(|b| *b == 0).next().unwrap_or_default();
                names.push(String::from_utf8_lossy(name).into_owned());
                left &= !bit;
            }
        }
        if left != 0 {
            names.push(format!("Unknown incompatible feature: {left:x}"));
        }
        names.join(", ")
    }

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
        Some(String::from_utf8_lossy(&extension.data).into_owned())
    }

    /// The image's sizes, with table slices of about `slice_bytes` bytes.
    pub fn geometry(&self, slice_bytes: u32) -> Geometry {
        let has = |feature| self.incompatible.contains(feature);
        let l2 = if has(Incompatible::EXTENDED_L2) { L2Format::Extended } else { L2Format::Standard };
        let data = if has(Incompatible::DATA_FILE) { DataPlace::External } else { DataPlace::Image };
        Geometry::new(self.cluster_bits, self.refcount_order, slice_bytes).with_l2(l2).with_data(data)
    }

    /// The header as stored: fixed fields, extensions, backing name.
    ///
    /// # Errors
    /// When it does not fit the first cluster.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = self.encode_fields();
        out.extend_from_slice(&self.encode_extensions());
        self.place_backing_name(&mut out, 0);
        let cluster = 1usize << self.cluster_bits;
        if out.len() > cluster {
            return Err(HeaderError::DoesNotFit { needed: out.len(), cluster }.into());
        }
        Ok(out)
    }

    /// The header in two parts: the fields, with an extension of nothing that reaches as far as byte `at`; and from
    /// there on all extensions and the backing name.
    pub(crate) fn encode_apart(&self, at: usize) -> (Vec<u8>, Vec<u8>) {
        let mut fields = self.encode_fields();
        let skipped = at - fields.len() - 8;
        fields.extend_from_slice(&EXT_NOTHING.to_be_bytes());
        fields.extend_from_slice(&(skipped as u32).to_be_bytes());
        let mut rest = self.encode_extensions();
        let name_at = self.place_backing_name(&mut rest, at);
        if let Some((offset, len)) = name_at {
            set_backing_name(&mut fields, offset, len);
        }
        (fields, rest)
    }

    /// Bytes of the first cluster that a header in it uses, as far as it can be read.
    pub(crate) fn used_bytes(cluster: &[u8]) -> usize {
        let word = |at: usize| cluster.get(at..at + 4).map_or(0, be32) as usize;
        let mut at = if word(4) == 3 { word(100) } else { V2_LEN };
        while at + 8 <= cluster.len() {
            let (kind, len) = (word(at) as u32, word(at + 4));
            at = at.saturating_add(8).saturating_add(len.next_multiple_of(8));
            if kind == EXT_END {
                break;
            }
        }
        at.max(word(12) + word(16)).min(cluster.len())
    }

    fn encode_fields(&self) -> Vec<u8> {
        let v3 = self.version == 3;
        let mut out = self.raw().as_bytes()[..if v3 { V3_LEN } else { V2_LEN }].to_vec();
        if v3 {
            out.extend_from_slice(&self.unknown_fields);
            let len = out.len() as u32;
            out[100..104].copy_from_slice(&len.to_be_bytes());
        }
        out
    }

    fn encode_extensions(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(format) = &self.backing_format {
            push_extension(&mut out, EXT_BACKING_FORMAT, format.as_bytes());
        }
        // The reference's order: data file, LUKS, feature names, bitmaps, whatever else was there.
        let rank = |kind: u32| match kind {
            EXT_DATA_FILE => 0,
            EXT_CRYPTO => 1,
            EXT_FEATURE_NAMES => 2,
            EXT_BITMAPS => 3,
            _ => 4,
        };
        let mut ordered: Vec<&Extension> = self.extensions.iter().collect();
        ordered.sort_by_key(|e| rank(e.kind));
        for extension in ordered {
            push_extension(&mut out, extension.kind, &extension.data);
        }
        push_extension(&mut out, EXT_END, &[]);
        out
    }

    /// Appends the backing file's name to `out`, which begins at byte `base` of the cluster; says where it is. In
    /// a whole header the fields are told as well.
    fn place_backing_name(&self, out: &mut Vec<u8>, base: usize) -> Option<(u64, u32)> {
        let name = self.backing_file.as_ref()?;
        let place = ((base + out.len()) as u64, name.len() as u32);
        if base == 0 {
            set_backing_name(out, place.0, place.1);
        }
        out.extend_from_slice(name.as_bytes());
        Some(place)
    }

    /// The fields that change while an image is in use, and their place: all inside the first sector.
    pub fn fixed_fields(&self) -> (u64, Vec<u8>) {
        let end = if self.version == 3 { 100 } else { V2_LEN };
        (24, self.raw().as_bytes()[24..end].to_vec())
    }

    fn raw(&self) -> RawHeader {
        RawHeader {
            magic: MAGIC.into(),
            version: self.version.into(),
            backing_file_offset: 0.into(),
            backing_file_size: 0.into(),
            cluster_bits: self.cluster_bits.into(),
            size: self.size.into(),
            crypt_method: self.crypt_method.into(),
            l1_size: self.l1_entries.into(),
            l1_table_offset: self.l1_offset.0.into(),
            refcount_table_offset: self.reftable_offset.0.into(),
            refcount_table_clusters: self.reftable_clusters.into(),
            nb_snapshots: self.snapshot_count.into(),
            snapshots_offset: self.snapshots_offset.0.into(),
            incompatible_features: self.incompatible.bits().into(),
            compatible_features: self.compatible.into(),
            autoclear_features: self.autoclear.into(),
            refcount_order: self.refcount_order.into(),
            header_length: (V3_LEN as u32).into(),
            compression_type: match self.compression {
                CompressionType::Zlib => 0,
                CompressionType::Zstd => 1,
            },
            padding: [0; 7],
        }
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
        Extension { kind: EXT_DATA_FILE, data: name.as_bytes().to_vec() }
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

impl RawHeader {
    /// Reads the fields; a version 2 header leaves the rest zero.
    fn read_lenient(bytes: &[u8]) -> Result<Self> {
        let mut full = [0u8; V3_LEN];
        let have = bytes.len().min(V3_LEN);
        full[..have].copy_from_slice(&bytes[..have]);
        if have < 8 || be32(&full) != MAGIC {
            return Err(HeaderError::Magic.into());
        }
        let raw: RawHeader = zerocopy::transmute!(full);
        if !matches!(raw.version.get(), 2 | 3) {
            return Err(HeaderError::Version(raw.version.get()).into());
        }
        if !(CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&raw.cluster_bits.get()) {
            return Err(HeaderError::ClusterBits(raw.cluster_bits.get()).into());
        }
        if have < V2_LEN || (raw.version.get() == 3 && have < 104) {
            return Err(HeaderError::Short.into());
        }
        Ok(raw)
    }
}

/// Names that other writers padded end at their first NUL.
fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_be_bytes(*b))
}

fn set_backing_name(fields: &mut [u8], offset: u64, len: u32) {
    fields[8..16].copy_from_slice(&offset.to_be_bytes());
    fields[16..20].copy_from_slice(&len.to_be_bytes());
}

fn push_extension(out: &mut Vec<u8>, kind: u32, data: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&(data.len() as u32).to_be_bytes());
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(8), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Header {
        Header {
            version: 3,
            cluster_bits: 16,
            size: 1 << 30,
            crypt_method: 0,
            l1_entries: 2,
            l1_offset: HostOffset(0x30000),
            reftable_offset: HostOffset(0x10000),
            reftable_clusters: 1,
            snapshot_count: 0,
            snapshots_offset: HostOffset(0),
            incompatible: Incompatible::empty(),
            compatible: LAZY_REFCOUNTS,
            autoclear: 0,
            refcount_order: 4,
            compression: CompressionType::Zlib,
            backing_file: Some("base.raw".into()),
            backing_format: Some("raw".into()),
            unknown_fields: vec![1, 2, 3, 4, 5, 6, 7, 8],
            extensions: vec![Header::feature_name_table(), Extension { kind: 0x1234, data: vec![9; 5] }],
        }
    }

    fn check(change: impl FnOnce(&mut Vec<u8>), expect: HeaderError) {
        let mut bytes = sample().encode().unwrap();
        bytes.resize(65536, 0);
        change(&mut bytes);
        let text = Header::parse(&bytes).unwrap_err().to_string();
        assert_eq!(text, expect.to_string());
    }

    #[test]
    fn everything_survives_a_round_trip() {
        let mut bytes = sample().encode().unwrap();
        bytes.resize(65536, 0);
        assert_eq!(Header::parse(&bytes).unwrap(), sample());
    }

    #[test]
    fn broken_rules_are_named() {
        let put32 =
            |at: usize, v: u32| move |b: &mut Vec<u8>| b[at..at + 4].copy_from_slice(&v.to_be_bytes());
        let put64 =
            |at: usize, v: u64| move |b: &mut Vec<u8>| b[at..at + 8].copy_from_slice(&v.to_be_bytes());
        check(put32(0, 7), HeaderError::Magic);
        check(put32(4, 4), HeaderError::Version(4));
        check(put32(20, 22), HeaderError::ClusterBits(22));
        check(put64(8, 1 << 40), HeaderError::BackingOffset);
        check(put32(16, 2000), HeaderError::BackingLength);
        check(put32(36, 1 << 30), HeaderError::L1Size);
        check(put64(40, 0x30001), HeaderError::L1Offset);
        check(put64(40, u64::MAX << 16), HeaderError::L1Offset);
        check(put32(36, 1), HeaderError::L1TooSmall);
        check(put64(48, 512), HeaderError::ReftableOffset);
        check(put32(56, 129), HeaderError::ReftableSize);
        check(put32(60, 65537), HeaderError::SnapshotCount);
        check(put64(24, u64::MAX), HeaderError::SizeTooLarge);
        check(put32(96, 7), HeaderError::RefcountOrder(7));
        check(put32(100, 103), HeaderError::Short);
        check(put32(100, 65537), HeaderError::LongerThanCluster);
        check(put32(32, 3), HeaderError::CryptMethod(3));
        check(put64(72, 1 << 3), HeaderError::CompressionBit(false));
        check(put64(88, 2), HeaderError::RawDataWithoutFile);
        check(put32(124, 1 << 20), HeaderError::ExtensionLength);
        check(|b| b[104] = 2, HeaderError::CompressionType(2));
        check(
            put64(72, 1 << 63),
            HeaderError::UnknownFeatures("Unknown incompatible feature: 8000000000000000".into()),
        );
    }

    #[test]
    fn padded_names_end_at_their_first_nul() {
        let padded = |name: &str| Some(format!("{name}\0\0\0"));
        let header = Header { backing_file: padded("base"), backing_format: padded("raw"), ..sample() };
        let mut bytes = header.encode().unwrap();
        bytes.resize(65536, 0);
        let read = Header::parse(&bytes).unwrap();
        assert_eq!(
            (read.backing_file.as_deref(), read.backing_format.as_deref()),
            (Some("base"), Some("raw"))
        );
    }

    #[test]
    fn a_header_in_two_parts_says_the_same() {
        let header = sample();
        let whole = header.encode().unwrap();
        assert_eq!(Header::used_bytes(&whole), whole.len());
        let (fields, rest) = header.encode_apart(2048);
        let mut apart = vec![0xee; 65536];
        apart[..fields.len()].copy_from_slice(&fields);
        apart[2048..2048 + rest.len()].copy_from_slice(&rest);
        assert_eq!(Header::parse(&apart).unwrap(), header);
        assert_eq!(Header::used_bytes(&apart), 2048 + rest.len());
    }

    #[test]
    fn truncated_input_never_panics() {
        let bytes = sample().encode().unwrap();
        for len in 0..bytes.len() {
            assert!(Header::parse(&bytes[..len]).is_err());
        }
    }
}
