//! Reading a header: every rule of the specification is looked at before a value is made.
//!
//! qcow2 specification, *Header* and *Header extensions*.

use cowbell_block::{Result, names};

use super::{
    AUTOCLEAR_RAW_DATA, BACKING_NAME_MAX, BITMAPS_EXTENSION_BYTES, BitmapsExtension, CRYPTO_EXTENSION_BYTES,
    CompressionType, EXT_BACKING_FORMAT, EXT_BITMAPS, EXT_CRYPTO, EXT_END, EXT_FEATURE_NAMES, EXT_NOTHING,
    EXTENDED_L2_CLUSTER_BITS_MIN, Extension, Header, HeaderError, Incompatible, L1_BYTES_MAX, MAGIC,
    REFTABLE_BYTES_MAX, RawHeader, SNAPSHOTS_MAX, V2_LEN, V3_LEN,
};
use crate::bitmap::{BITMAPS_MAX, DIRECTORY_BYTES_MAX};
use crate::crypto::METHOD_LUKS;
use crate::geometry::{CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, HostOffset, SLICE_BYTES};

impl Header {
    /// Whether `bytes`, the beginning of a file, look like a header of this format.
    pub fn probe(bytes: &[u8]) -> bool {
        // Also what is too short, or of a version to come: taken for a raw disk it would show its header to a guest.
        bytes.len() >= 8 && be32(bytes) == MAGIC && be32(&bytes[4..]) >= 2
    }

    /// The cluster size that the first bytes state, to know how much [`Header::parse`] needs.
    ///
    /// # Errors
    /// When these are not the beginning of an image.
    pub fn peek_cluster_bits(bytes: &[u8]) -> Result<u32> {
        let raw = RawHeader::read_lenient(bytes)?;
        Ok(raw.cluster_bits.get())
    }

    /// Whether all that [`Header::parse`] looks at lies in `bytes`, the beginning of the first cluster or all of it.
    ///
    /// # Errors
    /// When these are not the beginning of an image.
    pub fn is_covered_by(bytes: &[u8]) -> Result<bool> {
        let raw = RawHeader::read_lenient(bytes)?;
        if bytes.len() >= 1 << raw.cluster_bits.get() {
            return Ok(true);
        }
        let (name, len) = (raw.backing_file_offset.get(), raw.backing_file_size.get());
        if name != 0 && name.saturating_add(u64::from(len)) > bytes.len() as u64 {
            return Ok(false);
        }
        let end = if name == 0 { bytes.len() } else { name as usize };
        let mut area = bytes.get(raw.length()..end);
        while let Some((head, rest)) = area.and_then(|area| area.split_at_checked(8)) {
            if be32(head) == EXT_END {
                return Ok(true);
            }
            area = rest.get((be32(&head[4..]) as usize).next_multiple_of(8)..);
        }
        Ok(false)
    }

    /// Parses the first cluster of an image, or as much of it as [covers](Header::is_covered_by) the header.
    ///
    /// # Errors
    /// The first rule of the format that is broken.
    pub fn parse(cluster: &[u8]) -> Result<Self> {
        let raw = RawHeader::read_lenient(cluster)?;
        let v3 = raw.version.get() == 3;
        let cluster_size = 1usize << raw.cluster_bits.get();
        if !Self::is_covered_by(cluster)? {
            return Err(HeaderError::Short.into());
        }
        let cluster = &cluster[..cluster.len().min(cluster_size)];
        let header_len = raw.length();
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
        let name_at = match raw.backing_file_offset.get() {
            0 => None,
            offset => {
                let offset = usize::try_from(offset).ok().filter(|offset| *offset <= cluster.len());
                Some(offset.ok_or(HeaderError::BackingOffset)?)
            }
        };
        header.parse_extensions(cluster, header_len, name_at.unwrap_or(cluster.len()))?;
        header.parse_features(&raw, header_len)?;
        header.check_tables()?;
        if let Some(offset) = name_at {
            header.parse_backing(offset, raw.backing_file_size.get(), cluster)?;
        }
        Ok(header)
    }

    fn parse_backing(&mut self, offset: usize, len: u32, cluster: &[u8]) -> Result<()> {
        let name = cluster.get(offset..).and_then(|rest| rest.get(..len as usize));
        let name = name.filter(|name| name.len() <= BACKING_NAME_MAX as usize);
        let name = until_nul(name.ok_or(HeaderError::BackingLength)?);
        self.backing_file = Some(names::from_bytes(name)).filter(|name| !name.is_empty());
        Ok(())
    }

    fn parse_extensions(&mut self, cluster: &[u8], start: usize, end: usize) -> Result<()> {
        let mut area = cluster.get(start..end).unwrap_or_default();
        while let Some((head, rest)) = area.split_at_checked(8) {
            let kind = be32(head);
            let len = be32(&head[4..]) as usize;
            let data = rest.get(..len).ok_or(HeaderError::ExtensionLength)?;
            match kind {
                EXT_END => break,
                EXT_BACKING_FORMAT => {
                    let text = std::str::from_utf8(until_nul(data)).ok().filter(|_| len < 16);
                    let text = text.ok_or(HeaderError::BackingFormat(len))?;
                    self.backing_format = Some(text.to_owned()).filter(|text| !text.is_empty());
                }
                EXT_CRYPTO if self.crypt_method != METHOD_LUKS => {
                    return Err(HeaderError::CryptoUnused.into());
                }
                EXT_CRYPTO if len != CRYPTO_EXTENSION_BYTES => {
                    return Err(HeaderError::CryptoLength(len).into());
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

    /// Whether a table of so many bytes can lie there.
    fn can_place(&self, offset: HostOffset, bytes: u64) -> bool {
        let end = offset.0.checked_add(bytes);
        offset.0.is_multiple_of(1 << self.cluster_bits) && end.is_some_and(|end| end <= i64::MAX as u64)
    }

    /// Whether the snapshot table can be read. A check looks at it by itself, since it can repair it.
    ///
    /// # Errors
    /// The limit that is exceeded.
    pub(crate) fn check_snapshots(&self) -> Result<()> {
        if self.snapshot_count > SNAPSHOTS_MAX {
            return Err(HeaderError::SnapshotCount.into());
        }
        match self.can_place_snapshots() {
            true => Ok(()),
            false => Err(HeaderError::SnapshotOffset.into()),
        }
    }

    /// Whether the snapshot table is where a table can be.
    pub(crate) fn can_place_snapshots(&self) -> bool {
        self.can_place(self.snapshots_offset, u64::from(self.snapshot_count) * 40)
    }

    fn check_tables(&self) -> Result<()> {
        let placed = |offset: HostOffset, bytes: u64| self.can_place(offset, bytes);
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
}

impl RawHeader {
    /// Bytes of the header's fields, as it says itself.
    fn length(&self) -> usize {
        if self.version.get() == 3 { self.header_length.get() as usize } else { V2_LEN }
    }

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
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

pub(super) fn be32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_be_bytes(*b))
}
