//! Why an image cannot be checked at all, and the bounds of a check.
//!
//! What is wrong inside an image that can be checked is a [`Finding`](crate::Finding), never an error.

use std::fmt;
use std::io;

/// Bounds of one check. An image that needs more ends it with an error, never with a wrong verdict.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Findings kept in the report. Those above are counted only.
    pub findings_max: usize,
    /// Bytes of the per-cluster counters and lists. They follow the referenced clusters (16 bytes each,
    /// in groups of 64), not the file length.
    pub memory_bytes_max: u64,
    /// Bytes of image read.
    pub work_bytes_max: u64,
}

impl Default for Limits {
    /// 1000 findings, 512 MiB (enough for 2 TiB of data in 64 KiB clusters), no bound on reading: without
    /// a bound the work is linear in the bytes of the file, holes that [`peek`](crate::ReadAt::peek) knows
    /// left out.
    fn default() -> Self {
        Limits { findings_max: 1000, memory_bytes_max: 512 << 20, work_bytes_max: u64::MAX }
    }
}

/// Why there is no report.
#[derive(Debug)]
pub enum CheckError {
    /// The header breaks a rule without which nothing else can be found.
    Header(HeaderError),
    /// The file could not be read.
    Io {
        /// Where reading failed.
        offset: u64,
        /// What the file said.
        source: io::Error,
    },
    /// More clusters are referenced than [`Limits::memory_bytes_max`] has room for.
    MemoryLimit,
    /// More would have to be read than [`Limits::work_bytes_max`].
    WorkLimit,
    /// There is no such snapshot, or its L1 table cannot be used.
    NoSuchSnapshot {
        /// The index asked for.
        index: u32,
    },
}

/// A rule of the header that is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// The magic is not `QFI\xfb`.
    Magic,
    /// Neither version 2 nor 3.
    Version(u32),
    /// Not in 9..=21 (14..=21 with extended L2 entries).
    ClusterBits(u32),
    /// Under 104, not a multiple of 8, or larger than a cluster.
    HeaderLength(u32),
    /// Incompatible feature bits this crate does not know.
    UnknownIncompatible(u64),
    /// The compression type and its incompatible bit contradict each other, or the type is unknown.
    CompressionType(u8),
    /// Larger than 6.
    RefcountOrder(u32),
    /// Not 0, 1 or 2.
    CryptMethod(u32),
    /// LUKS without its header extension, the extension without LUKS, or a bad pointer in it.
    LuksExtension,
    /// The L1 table is unaligned, too large (32 MiB) or ends beyond 2^63.
    L1Table {
        /// Where the header says it is.
        offset: u64,
        /// Its number of entries.
        entries: u32,
    },
    /// The refcount table is unaligned, empty, too large (8 MiB) or ends beyond 2^63.
    RefcountTable {
        /// Where the header says it is.
        offset: u64,
        /// Its number of clusters.
        clusters: u32,
    },
    /// The snapshot table is unaligned or has more than 65536 entries.
    SnapshotTable {
        /// Where the header says it is.
        offset: u64,
        /// Its number of entries.
        entries: u32,
    },
    /// The backing file name is longer than 1023 bytes or does not lie in the first cluster.
    BackingName {
        /// Where the header says it is.
        offset: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// A header extension reaches beyond the extension area.
    ExtensionTooLong {
        /// Where the extension starts.
        offset: u64,
        /// Its type.
        kind: u32,
        /// Length of its data in bytes.
        len: u32,
    },
    /// The bitmaps extension is not 24 bytes, has its reserved field set, or an unaligned, empty or
    /// oversized directory.
    BitmapsExtension,
}

impl From<HeaderError> for CheckError {
    fn from(error: HeaderError) -> Self {
        CheckError::Header(error)
    }
}

impl fmt::Display for CheckError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckError::Header(_) => f.write_str("the header cannot be used"),
            CheckError::Io { offset, .. } => write!(f, "reading the image failed at offset {offset:#x}"),
            CheckError::MemoryLimit => {
                f.write_str("the image references more clusters than the memory limit allows")
            }
            CheckError::WorkLimit => {
                f.write_str("checking the image needs more reading than the work limit allows")
            }
            CheckError::NoSuchSnapshot { index } => {
                write!(f, "snapshot {index} does not exist or has no usable table")
            }
        }
    }
}

impl std::error::Error for CheckError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CheckError::Header(error) => Some(error),
            CheckError::Io { source, .. } => Some(source),
            CheckError::MemoryLimit | CheckError::WorkLimit | CheckError::NoSuchSnapshot { .. } => None,
        }
    }
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            HeaderError::Magic => f.write_str("no qcow2 magic"),
            HeaderError::Version(version) => write!(f, "version {version} is neither 2 nor 3"),
            HeaderError::ClusterBits(bits) => write!(f, "cluster_bits {bits} out of range"),
            HeaderError::HeaderLength(len) => write!(f, "header_length {len} not allowed"),
            HeaderError::UnknownIncompatible(bits) => write!(f, "unknown incompatible features {bits:#x}"),
            HeaderError::CompressionType(kind) => {
                write!(f, "compression_type {kind} contradicts the feature bits")
            }
            HeaderError::RefcountOrder(order) => write!(f, "refcount_order {order} larger than 6"),
            HeaderError::CryptMethod(method) => write!(f, "unknown crypt_method {method}"),
            HeaderError::LuksExtension => {
                f.write_str("encryption header extension missing, unwanted or malformed")
            }
            HeaderError::L1Table { offset, entries } => {
                write!(f, "L1 table of {entries} entries at {offset:#x} not allowed")
            }
            HeaderError::RefcountTable { offset, clusters } => {
                write!(f, "refcount table of {clusters} clusters at {offset:#x} not allowed")
            }
            HeaderError::SnapshotTable { offset, entries } => {
                write!(f, "snapshot table of {entries} entries at {offset:#x} not allowed")
            }
            HeaderError::BackingName { offset, len } => {
                write!(f, "backing file name of {len} bytes at {offset:#x} not allowed")
            }
            HeaderError::ExtensionTooLong { offset, kind, len } => {
                write!(f, "header extension {kind:#010x} at {offset:#x} is too long ({len} bytes)")
            }
            HeaderError::BitmapsExtension => f.write_str("bitmaps extension malformed"),
        }
    }
}

impl std::error::Error for HeaderError {}
