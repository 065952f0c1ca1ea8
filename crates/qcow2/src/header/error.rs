//! The rules of the header that an image can break, by name.

use cowbell_block::{Error, ErrorKind};

use super::CRYPTO_EXTENSION_BYTES;
use crate::bitmap::{BITMAPS_MAX, DIRECTORY_BYTES_MAX};

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
    #[error("Image is too big")]
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
    /// A LUKS header in an image that is not encrypted with it.
    #[error("CRYPTO header extension only expected with LUKS encryption method")]
    CryptoUnused,
    /// Not 16 bytes.
    #[error("CRYPTO header extension size {0}, but expected size {CRYPTO_EXTENSION_BYTES}")]
    CryptoLength(usize),
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
            HeaderError::DoesNotFit { .. } => ErrorKind::NoSpace,
            _ => ErrorKind::InvalidInput,
        };
        Error::new(kind, e)
    }
}
