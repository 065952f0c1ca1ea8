//! The header of an image: fields, feature bits and header extensions, parsed once into checked values.

use crate::error::{CheckError, HeaderError};
use crate::image::{Reader, be32, be64};

/// Incompatible feature bit: refcounts may be inconsistent.
pub(crate) const INCOMPATIBLE_DIRTY: u64 = 1 << 0;
/// Incompatible feature bit: some structure is known to be corrupt.
pub(crate) const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = 0x1f;
const AUTOCLEAR_BITMAPS: u64 = 1 << 0;
const AUTOCLEAR_RAW_EXTERNAL: u64 = 1 << 1;

const EXTENSION_END: u32 = 0;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;
const EXTENSION_LUKS: u32 = 0x0537_be77;

/// Bytes; the reference's bound, so that images stay exchangeable.
pub(crate) const L1_BYTES_MAX: u64 = 32 << 20;
/// Bytes; the reference's bound.
const REFTABLE_BYTES_MAX: u64 = 8 << 20;
/// Entries; the reference's bound.
const SNAPSHOTS_MAX: u32 = 65536;
/// Entries; the reference's bound.
const BITMAPS_MAX: u32 = 65535;
/// Bytes of a bitmap directory; the reference's bound (1024 for each bitmap).
const BITMAP_DIRECTORY_BYTES_MAX: u64 = 65535 * 1024;
/// Offsets are signed 64-bit numbers in every file interface.
const OFFSET_MAX: u64 = i64::MAX as u64;

/// The header, all values within the bounds of the format.
#[derive(Debug, Clone)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Log2 of the cluster size in bytes, 9..=21.
    pub cluster_bits: u32,
    /// Size of the guest's disk in bytes.
    pub virtual_size: u64,
    /// 0 none, 1 AES, 2 LUKS.
    pub crypt_method: u32,
    /// Host offset of the active L1 table.
    pub l1_offset: u64,
    /// Entries of the active L1 table.
    pub l1_entries: u32,
    /// Host offset of the refcount table.
    pub reftable_offset: u64,
    /// Clusters of the refcount table.
    pub reftable_clusters: u32,
    /// Host offset of the snapshot table, zero when there is none.
    pub snapshots_offset: u64,
    /// Number of internal snapshots.
    pub snapshots: u32,
    /// Incompatible feature bits, zero in version 2.
    pub incompatible_features: u64,
    /// Compatible feature bits, zero in version 2.
    pub compatible_features: u64,
    /// Autoclear feature bits, zero in version 2.
    pub autoclear_features: u64,
    /// Log2 of the refcount width in bits, 0..=6.
    pub refcount_order: u32,
    /// 0 deflate, 1 zstd.
    pub compression_type: u8,
    /// True if a backing file is named.
    pub has_backing: bool,
    /// The bitmaps extension, if there is one; valid only with [`Header::bitmaps_consistent`].
    pub bitmaps: Option<BitmapsExtension>,
    /// The encryption header pointer, present if and only if `crypt_method` is 2.
    pub luks: Option<LuksExtension>,
}

/// Contents of the bitmaps extension.
#[derive(Debug, Clone, Copy)]
pub struct BitmapsExtension {
    /// Number of bitmaps.
    pub bitmaps: u32,
    /// Size of the directory in bytes.
    pub directory_bytes: u64,
    /// Host offset of the directory.
    pub directory_offset: u64,
}

/// Contents of the full disk encryption header pointer.
#[derive(Debug, Clone, Copy)]
pub struct LuksExtension {
    /// Host offset of the LUKS header.
    pub offset: u64,
    /// Its length in bytes; it takes up whole clusters.
    pub bytes: u64,
}

impl Header {
    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1u64.wrapping_shl(self.cluster_bits)
    }

    /// True if refcounts may be inconsistent (incompatible bit 0).
    pub fn is_dirty(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_DIRTY != 0
    }

    /// True if the image is marked as corrupt (incompatible bit 1).
    pub fn is_marked_corrupt(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_CORRUPT != 0
    }

    /// True if guest data lives in an external data file (incompatible bit 2).
    pub fn has_data_file(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_DATA_FILE != 0
    }

    /// True if L2 entries are 16 bytes with subclusters (incompatible bit 4).
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_EXTENDED_L2 != 0
    }

    /// True if the bitmaps extension may be relied on (autoclear bit 0).
    pub fn bitmaps_consistent(&self) -> bool {
        self.autoclear_features & AUTOCLEAR_BITMAPS != 0
    }

    /// True if the data file is a raw image by itself (autoclear bit 1).
    pub fn has_raw_data_file(&self) -> bool {
        self.autoclear_features & AUTOCLEAR_RAW_EXTERNAL != 0
    }

    /// Reads and checks the header.
    pub(crate) fn parse(reader: &Reader<'_>) -> Result<Header, CheckError> {
        let mut raw = [0; 112];
        reader.exact(0, &mut raw)?;
        if be32(&raw, 0) != 0x5146_49fb {
            return Err(HeaderError::Magic.into());
        }
        let version = be32(&raw, 4);
        let fields_end = match version {
            2 => 72,
            3 => be32(&raw, 100),
            _ => return Err(HeaderError::Version(version).into()),
        };
        let cluster_bits = be32(&raw, 20);
        if !(9..=21).contains(&cluster_bits) {
            return Err(HeaderError::ClusterBits(cluster_bits).into());
        }
        let cluster_size = 1u64.wrapping_shl(cluster_bits);
        let v3 = version == 3;
        if v3 && (fields_end < 104 || fields_end & 7 != 0 || u64::from(fields_end) > cluster_size) {
            return Err(HeaderError::HeaderLength(fields_end).into());
        }
        let from_v3 = |value: u64| if v3 { value } else { 0 };
        let mut header = Header {
            version,
            cluster_bits,
            virtual_size: be64(&raw, 24),
            crypt_method: be32(&raw, 32),
            l1_offset: be64(&raw, 40),
            l1_entries: be32(&raw, 36),
            reftable_offset: be64(&raw, 48),
            reftable_clusters: be32(&raw, 56),
            snapshots_offset: be64(&raw, 64),
            snapshots: be32(&raw, 60),
            incompatible_features: from_v3(be64(&raw, 72)),
            compatible_features: from_v3(be64(&raw, 80)),
            autoclear_features: from_v3(be64(&raw, 88)),
            refcount_order: if v3 { be32(&raw, 96) } else { 4 },
            compression_type: if fields_end > 104 { raw.get(104).copied().unwrap_or(0) } else { 0 },
            has_backing: be64(&raw, 8) != 0,
            bitmaps: None,
            luks: None,
        };
        header.check_features()?;
        header.check_tables()?;
        let backing = (be64(&raw, 8), be32(&raw, 16));
        let area_end = header.extension_area_end(backing)?;
        header.parse_extensions(reader, u64::from(fields_end), area_end)?;
        if header.luks.is_some() != (header.crypt_method == 2) {
            return Err(HeaderError::LuksExtension.into());
        }
        Ok(header)
    }

    fn check_features(&self) -> Result<(), HeaderError> {
        let unknown = self.incompatible_features & !INCOMPATIBLE_KNOWN;
        if unknown != 0 {
            return Err(HeaderError::UnknownIncompatible(unknown));
        }
        if self.has_extended_l2() && self.cluster_bits < 14 {
            return Err(HeaderError::ClusterBits(self.cluster_bits));
        }
        if self.refcount_order > 6 {
            return Err(HeaderError::RefcountOrder(self.refcount_order));
        }
        if self.crypt_method > 2 {
            return Err(HeaderError::CryptMethod(self.crypt_method));
        }
        let bit = self.incompatible_features & INCOMPATIBLE_COMPRESSION != 0;
        if self.compression_type > 1 || bit != (self.compression_type != 0) {
            return Err(HeaderError::CompressionType(self.compression_type));
        }
        Ok(())
    }

    fn check_tables(&self) -> Result<(), HeaderError> {
        let l1_bytes = u64::from(self.l1_entries).saturating_mul(8);
        if l1_bytes > L1_BYTES_MAX || !self.usable(self.l1_offset, l1_bytes) {
            return Err(HeaderError::L1Table { offset: self.l1_offset, entries: self.l1_entries });
        }
        let reftable_bytes = self.reftable_bytes();
        if reftable_bytes == 0
            || reftable_bytes > REFTABLE_BYTES_MAX
            || !self.usable(self.reftable_offset, reftable_bytes)
        {
            return Err(HeaderError::RefcountTable {
                offset: self.reftable_offset,
                clusters: self.reftable_clusters,
            });
        }
        if self.snapshots > SNAPSHOTS_MAX || !self.usable(self.snapshots_offset, 0) {
            return Err(HeaderError::SnapshotTable {
                offset: self.snapshots_offset,
                entries: self.snapshots,
            });
        }
        Ok(())
    }

    /// Bytes of the refcount table.
    pub(crate) fn reftable_bytes(&self) -> u64 {
        u64::from(self.reftable_clusters).saturating_mul(self.cluster_size())
    }

    /// True if `offset` is cluster aligned and the range ends at a possible offset.
    pub(crate) fn usable(&self, offset: u64, bytes: u64) -> bool {
        offset & self.cluster_size().wrapping_sub(1) == 0
            && offset.checked_add(bytes).is_some_and(|end| end <= OFFSET_MAX)
    }

    fn extension_area_end(&self, (offset, len): (u64, u32)) -> Result<u64, HeaderError> {
        if offset == 0 {
            return Ok(self.cluster_size());
        }
        let end = offset.checked_add(u64::from(len));
        if len > 1023 || end.is_none_or(|end| end > self.cluster_size()) {
            return Err(HeaderError::BackingName { offset, len });
        }
        Ok(offset)
    }

    fn parse_extensions(&mut self, reader: &Reader<'_>, start: u64, end: u64) -> Result<(), CheckError> {
        let mut at = start;
        while at < end {
            let mut head = [0; 8];
            reader.exact(at, &mut head)?;
            let (kind, len) = (be32(&head, 0), be32(&head, 4));
            if kind == EXTENSION_END {
                break;
            }
            let data = at.saturating_add(8);
            if data > end || u64::from(len) > end.saturating_sub(data) {
                return Err(HeaderError::ExtensionTooLong { offset: at, kind, len }.into());
            }
            let mut body = [0; 24];
            if matches!(kind, EXTENSION_BITMAPS | EXTENSION_LUKS) {
                reader.exact(data, &mut body)?;
            }
            match kind {
                EXTENSION_BITMAPS => self.bitmaps = self.bitmaps_extension(&body, len)?,
                EXTENSION_LUKS => self.luks = Some(self.luks_extension(&body, len)?),
                _ => {}
            }
            at = data.saturating_add(u64::from(len).next_multiple_of(8));
        }
        Ok(())
    }

    /// The extension counts only while its autoclear bit is set; otherwise whatever it says is stale.
    fn bitmaps_extension(&self, body: &[u8], len: u32) -> Result<Option<BitmapsExtension>, HeaderError> {
        if !self.bitmaps_consistent() {
            return Ok(None);
        }
        let found = BitmapsExtension {
            bitmaps: be32(body, 0),
            directory_bytes: be64(body, 8),
            directory_offset: be64(body, 16),
        };
        let sound = len == 24
            && be32(body, 4) == 0
            && (1..=BITMAPS_MAX).contains(&found.bitmaps)
            && (1..=BITMAP_DIRECTORY_BYTES_MAX).contains(&found.directory_bytes)
            && self.usable(found.directory_offset, found.directory_bytes);
        if sound { Ok(Some(found)) } else { Err(HeaderError::BitmapsExtension) }
    }

    fn luks_extension(&self, body: &[u8], len: u32) -> Result<LuksExtension, HeaderError> {
        let found = LuksExtension { offset: be64(body, 0), bytes: be64(body, 8) };
        if len == 16 && found.bytes > 0 && self.usable(found.offset, found.bytes) {
            Ok(found)
        } else {
            Err(HeaderError::LuksExtension)
        }
    }
}
