//! What one L2 table says, made ready for counting: a pure function over its bytes, so that tables can be looked at
//! on all cores.

use cowbell_block::Topic;

use super::topics;
use crate::geometry::{DataPlace, Geometry, HostOffset};
use crate::header::Header;
use crate::table::{Compressed, L2Entry};

/// Bytes of a table that are looked at together to skip what is empty.
const STRIDE: usize = 256;

/// How entries are read, and against what they are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Format {
    pub geometry: Geometry,
    pub version: u32,
    /// Length of the image file in bytes.
    pub file_len: u64,
}

/// Where the clusters of a run lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// In clusters of the image file.
    Inside,
    /// Across a cluster boundary: one cluster of data in two.
    Straddling,
    /// Beyond the end of the image file.
    Outside,
    /// In the external data file.
    Elsewhere,
}

/// Entries that refer to clusters in a row with the same flags.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The first entry.
    pub raw: u64,
    /// Its index.
    pub index: u32,
    /// Entries.
    pub len: u32,
    pub lie: Lie,
}

impl Run {
    /// The raw entries of the run with their indices.
    pub fn entries(self, geometry: &Geometry) -> impl Iterator<Item = (u32, u64)> {
        let size = geometry.cluster_size();
        (0..self.len).map(move |i| (self.index + i, self.raw + u64::from(i) * size))
    }

    /// The host cluster of the first entry.
    pub fn first_cluster(self, geometry: &Geometry) -> u64 {
        match L2Entry::decode(self.raw, geometry) {
            L2Entry::Normal(host, _) | L2Entry::ZeroAllocated(host, _) => geometry.host_cluster(host).0,
            _ => 0,
        }
    }
}

/// An entry that breaks a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    Reserved { raw: u64 },
    ZeroInVersion2,
    CompressedCopied { offset: u64 },
    CompressedWithDataFile { raw: u64 },
    CompressedWithBitmap { raw: u64 },
    Outside { offset: u64, bytes: u64 },
    DataUnaligned { offset: u64 },
    PreallocatedUnaligned { offset: u64 },
    Bitmap { offset: u64 },
    UnallocatedWithBitmap,
}

impl Problem {
    /// Whether a repair makes the entry read as zeroes without storage, which loses nothing.
    pub fn is_mended_by_zero(self) -> bool {
        matches!(self, Self::PreallocatedUnaligned { .. } | Self::Bitmap { .. })
    }

    /// What kind of finding it is.
    pub fn topic(self) -> &'static Topic {
        match self {
            Self::Reserved { .. } => topics::RESERVED_BITS,
            Self::ZeroInVersion2 => topics::ZERO_IN_VERSION_2,
            Self::CompressedCopied { .. }
            | Self::CompressedWithDataFile { .. }
            | Self::CompressedWithBitmap { .. } => topics::COMPRESSED,
            Self::Outside { .. } => topics::OUTSIDE,
            Self::DataUnaligned { .. } => topics::DATA_UNALIGNED,
            Self::PreallocatedUnaligned { .. } => topics::RESERVE_UNALIGNED,
            Self::Bitmap { .. } | Self::UnallocatedWithBitmap => topics::SUBCLUSTERS,
        }
    }

    /// The line about it; `verb` is `ERROR` or `Repairing`.
    pub fn line(self, verb: &str, index: u32) -> String {
        match self {
            Self::Reserved { raw } => format!("ERROR found l2 entry with reserved bits set: {raw:x}"),
            Self::ZeroInVersion2 => format!("ERROR: zero cluster entry {index} in a version 2 image"),
            Self::CompressedCopied { offset } => {
                format!("ERROR: coffset=0x{offset:x}: copied flag must never be set for compressed clusters")
            }
            Self::CompressedWithDataFile { raw } => {
                format!("ERROR compressed cluster {index} with data file, entry=0x{raw:x}")
            }
            Self::CompressedWithBitmap { raw } => format!(
                "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry=0x{raw:x}"
            ),
            Self::Outside { offset, bytes } => outside(offset, bytes),
            Self::DataUnaligned { offset } => {
                format!("ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted.")
            }
            Self::PreallocatedUnaligned { offset } => format!(
                "{verb} offset={offset:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
            ),
            Self::Bitmap { offset } => {
                format!(
                    "ERROR offset={offset:x}: Allocated cluster with corrupted subcluster allocation bitmap"
                )
            }
            Self::UnallocatedWithBitmap => {
                "ERROR: Unallocated cluster has non-zero subcluster allocation map".to_owned()
            }
        }
    }
}

/// The line about a region that lies beyond the end of the file.
pub(super) fn outside(offset: u64, bytes: u64) -> String {
    format!(
        "ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset \
         0x{offset:x} size 0x{bytes:x}"
    )
}

/// What a table refers to.
#[derive(Default)]
pub(crate) struct Digest {
    pub runs: Vec<Run>,
    /// Host bytes of compressed clusters.
    pub compressed: Vec<(u32, Compressed)>,
    /// Broken entries by index.
    pub problems: Vec<(u32, Problem)>,
    pub allocated: u64,
    pub fragmented: u64,
    pub compressed_count: u64,
    /// Where the next data cluster would lie in a row. The reference starts anew with each table.
    expected: Option<u64>,
}

impl Format {
    pub fn new(geometry: Geometry, header: &Header, file_len: u64) -> Self {
        Self { geometry, version: header.version, file_len }
    }

    /// Bytes of an entry.
    fn entry_bytes(&self) -> usize {
        self.geometry.l2_entry_bytes() as usize
    }

    /// Guest data lies in another file, where nothing is counted.
    fn is_external(&self) -> bool {
        self.geometry.data_place == DataPlace::External
    }

    /// Whether a region ends a cluster or more beyond the end of the file. Less is what a file whose last cluster
    /// was not written to its end looks like.
    pub fn is_outside(&self, offset: u64, bytes: u64) -> bool {
        let end = offset.saturating_add(bytes);
        // The reference knows files by whole sectors.
        let file_end = self.file_len.div_ceil(512).saturating_mul(512);
        end >= file_end.saturating_add(self.geometry.cluster_size())
    }

    /// An entry and its bitmap of subclusters.
    fn entry(&self, bytes: &[u8], index: usize) -> (u64, u64) {
        let word =
            |at: usize| bytes.get(at..at + 8).and_then(|b| b.first_chunk()).map(|b| u64::from_be_bytes(*b));
        let at = index * self.entry_bytes();
        let bitmap = if self.entry_bytes() == 16 { word(at + 8) } else { None };
        (word(at).unwrap_or(0), bitmap.unwrap_or(0))
    }

    /// Looks at all entries of a table.
    pub fn digest(&self, bytes: &[u8]) -> Digest {
        let mut digest = Digest::default();
        let entries = bytes.len() / self.entry_bytes();
        let mut index = 0;
        while index < entries {
            let at = index * self.entry_bytes();
            if at.is_multiple_of(STRIDE) && bytes.get(at..at + STRIDE).is_some_and(is_zero) {
                index += STRIDE / self.entry_bytes();
                continue;
            }
            index += match self.entry(bytes, index) {
                (0, 0) => 1,
                (raw, bitmap) => self.take(&mut digest, bytes, index, raw, bitmap),
            };
        }
        digest
    }

    /// Takes the entry at an index, and those that continue it; returns how many.
    fn take(&self, digest: &mut Digest, bytes: &[u8], index: usize, raw: u64, bitmap: u64) -> usize {
        let entry = L2Entry::decode(raw, &self.geometry);
        let at = index as u32;
        if L2Entry::has_reserved_bits(raw, &self.geometry) {
            digest.problems.push((at, Problem::Reserved { raw }));
        }
        if self.version < 3 && entry.is_zero() {
            digest.problems.push((at, Problem::ZeroInVersion2));
        }
        match entry {
            L2Entry::Normal(host, _) | L2Entry::ZeroAllocated(host, _) => {
                if bitmap as u32 & (bitmap >> 32) as u32 != 0 {
                    digest.problems.push((at, Problem::Bitmap { offset: host.0 }));
                    return 1;
                }
                return self.take_data(digest, bytes, index, raw, host);
            }
            L2Entry::Compressed(compressed) => self.take_compressed(digest, at, raw, bitmap, compressed),
            L2Entry::Unallocated if bitmap as u32 != 0 => {
                digest.problems.push((at, Problem::UnallocatedWithBitmap));
            }
            L2Entry::Unallocated | L2Entry::ZeroPlain => {}
        }
        1
    }

    fn take_data(
        &self,
        digest: &mut Digest,
        bytes: &[u8],
        index: usize,
        raw: u64,
        host: HostOffset,
    ) -> usize {
        let size = self.geometry.cluster_size();
        let (mut len, mut lie) = (1, Lie::Inside);
        if !self.geometry.is_aligned(host) {
            lie = Lie::Straddling;
            digest.problems.push((index as u32, self.unaligned(bytes, index, raw, host)));
        }
        if self.is_external() {
            lie = Lie::Elsewhere;
        } else if self.is_outside(host.0, size) {
            lie = Lie::Outside;
            digest.problems.push((index as u32, Problem::Outside { offset: host.0, bytes: size }));
        } else if lie == Lie::Inside {
            len = self.run(bytes, index, raw, host);
        }
        digest.runs.push(Run { raw, index: index as u32, len: len as u32, lie });
        digest.allocated += len as u64;
        digest.fragmented += u64::from(digest.expected.is_some_and(|e| e != host.0));
        digest.expected = Some(host.0.saturating_add(len as u64 * size));
        len
    }

    fn unaligned(&self, bytes: &[u8], index: usize, raw: u64, host: HostOffset) -> Problem {
        let (_, bitmap) = self.entry(bytes, index);
        let zero = matches!(L2Entry::decode(raw, &self.geometry), L2Entry::ZeroAllocated(..));
        let has_data = if self.entry_bytes() == 16 { bitmap as u32 != 0 } else { !zero };
        match has_data {
            true => Problem::DataUnaligned { offset: host.0 },
            false => Problem::PreallocatedUnaligned { offset: host.0 },
        }
    }

    /// How many entries from this one on refer to clusters in a row, with the same flags, inside the file.
    fn run(&self, bytes: &[u8], index: usize, raw: u64, host: HostOffset) -> usize {
        let size = self.geometry.cluster_size();
        let zero_is_wrong = self.version < 3 && L2Entry::decode(raw, &self.geometry).is_zero();
        if L2Entry::has_reserved_bits(raw, &self.geometry) || zero_is_wrong {
            return 1;
        }
        let inside = self.file_len.saturating_sub(host.0).div_ceil(size).max(1) as usize;
        let rest = bytes.get((index + 1) * self.entry_bytes()..).unwrap_or_default();
        let mut expected = raw;
        let more = rest.chunks_exact(self.entry_bytes()).take(inside - 1).take_while(|entry| {
            expected = expected.wrapping_add(size);
            let (next, bitmap) = self.entry(entry, 0);
            next == expected && bitmap as u32 & (bitmap >> 32) as u32 == 0
        });
        1 + more.count()
    }

    fn take_compressed(&self, digest: &mut Digest, at: u32, raw: u64, bitmap: u64, compressed: Compressed) {
        if L2Entry::copied_flag(raw) {
            digest.problems.push((at, Problem::CompressedCopied { offset: compressed.offset.0 }));
        }
        if self.is_external() {
            digest.problems.push((at, Problem::CompressedWithDataFile { raw }));
            return;
        }
        if bitmap != 0 {
            digest.problems.push((at, Problem::CompressedWithBitmap { raw }));
            return;
        }
        if self.is_outside(compressed.offset.0, compressed.len) {
            let problem = Problem::Outside { offset: compressed.offset.0, bytes: compressed.len };
            digest.problems.push((at, problem));
        } else {
            digest.compressed.push((at, compressed));
        }
        digest.compressed_count += 1;
        digest.allocated += 1;
        // A compressed image is fragmented by nature: the reference counts each one.
        digest.fragmented += 1;
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks_exact(8).fold(0, |all, b| all | b.first_chunk().map_or(0, |b| u64::from_ne_bytes(*b))) == 0
}
