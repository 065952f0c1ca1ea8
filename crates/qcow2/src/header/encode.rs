//! Writing a header: in one piece for a new image, in two where one is changed.

use cowbell_block::{Result, names};
use zerocopy::IntoBytes;

use super::parse::be32;
use super::{
    CompressionType, EXT_BACKING_FORMAT, EXT_BITMAPS, EXT_CRYPTO, EXT_DATA_FILE, EXT_END, EXT_FEATURE_NAMES,
    EXT_NOTHING, Extension, Header, HeaderError, MAGIC, RawHeader, V2_LEN, V3_LEN,
};

impl Header {
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
        let name = names::to_bytes(self.backing_file.as_ref()?);
        let place = ((base + out.len()) as u64, name.len() as u32);
        if base == 0 {
            set_backing_name(out, place.0, place.1);
        }
        out.extend_from_slice(&name);
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
