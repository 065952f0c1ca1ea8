//! Makes new images.
//!
//! The layout is the reference's: header, refcount table, first refcount block, L1 table, from cluster 0 on.
//! The header is written last and made durable, so that an interrupted creation leaves no image.

use cowbell_block::{Buf, Child, Error, ErrorKind, Preallocation, Request, Result};

use crate::geometry::{CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, Geometry, HostOffset, SLICE_BYTES};
use crate::header::{CompressionType, Header, Incompatible, L1_BYTES_MAX, LAZY_REFCOUNTS};
use crate::refcount;

/// What a new image is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// 2 or 3.
    pub version: u32,
    /// Length of the guest's disk in bytes, a multiple of 512.
    pub size: u64,
    /// Log2 of the cluster size, 9 to 21.
    pub cluster_bits: u32,
    /// Log2 of the refcount width in bits, 0 to 6.
    pub refcount_order: u32,
    /// Postpone refcount updates.
    pub lazy_refcounts: bool,
    /// How compressed clusters are stored.
    pub compression: CompressionType,
    /// The backing file's name as it will be stored.
    pub backing_file: Option<String>,
    /// The backing file's format.
    pub backing_format: Option<String>,
}

impl Default for CreateOptions {
    fn default() -> Self {
        Self {
            version: 3,
            size: 0,
            cluster_bits: 16,
            refcount_order: 4,
            lazy_refcounts: false,
            compression: CompressionType::Zlib,
            backing_file: None,
            backing_format: None,
        }
    }
}

/// Options that the format does not allow, in the reference's words.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// Outside 512 bytes to 2 MiB.
    #[error("Cluster size must be a power of two between 512 and 2048k")]
    ClusterSize,
    /// Above 64 bits.
    #[error("Refcount width must be a power of two and may not exceed 64 bits")]
    RefcountWidth,
    /// Neither 2 nor 3.
    #[error("compatibility level must be 0.10 or 1.1")]
    Version,
    /// Version 2 has 16 bits always.
    #[error(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)"
    )]
    RefcountVersion,
    /// Version 2 has no lazy refcounts.
    #[error(
        "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)"
    )]
    LazyVersion,
    /// Version 2 has deflate only.
    #[error(
        "Non-zlib compression type is only supported with compatibility level 1.1 and above (use version=v3 or greater)"
    )]
    CompressionVersion,
    /// The length is no multiple of 512.
    #[error("Image size must be a multiple of 512 bytes")]
    Size,
    /// The disk would need more L1 entries than images may have.
    #[error("The image size is too large for file format 'qcow2' (try using a larger cluster size)")]
    TooLarge,
    /// A format without a file.
    #[error("Backing format cannot be used without backing file")]
    FormatWithoutFile,
    /// The name does not fit.
    #[error("Backing file name too long")]
    BackingName,
}

impl From<CreateError> for Error {
    fn from(e: CreateError) -> Self {
        let kind =
            if matches!(e, CreateError::TooLarge) { ErrorKind::TooLarge } else { ErrorKind::InvalidInput };
        Error::new(kind, e)
    }
}

impl CreateOptions {
    /// Checks what the format allows.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self) -> std::result::Result<(), CreateError> {
        if !(CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(&self.cluster_bits) {
            return Err(CreateError::ClusterSize);
        }
        if self.refcount_order > 6 {
            return Err(CreateError::RefcountWidth);
        }
        match self.version {
            3 => {}
            2 if self.lazy_refcounts => return Err(CreateError::LazyVersion),
            2 if self.refcount_order != 4 => return Err(CreateError::RefcountVersion),
            2 if self.compression != CompressionType::Zlib => return Err(CreateError::CompressionVersion),
            2 => {}
            _ => return Err(CreateError::Version),
        }
        if !self.size.is_multiple_of(512) {
            return Err(CreateError::Size);
        }
        let geometry = Geometry::new(self.cluster_bits, self.refcount_order, SLICE_BYTES);
        if self.size > i64::MAX as u64 || geometry.l1_entries_for(self.size) * 8 > L1_BYTES_MAX {
            return Err(CreateError::TooLarge);
        }
        if self.backing_file.is_none() && self.backing_format.is_some() {
            return Err(CreateError::FormatWithoutFile);
        }
        if self.backing_file.as_ref().is_some_and(|name| name.len() > 1023) {
            return Err(CreateError::BackingName);
        }
        Ok(())
    }

    /// Whether names and extensions fit the first cluster.
    ///
    /// # Errors
    /// How much is too much.
    pub fn check_header(&self) -> Result<()> {
        self.header(1).encode().map(drop)
    }

    fn header(&self, reftable_clusters: u32) -> Header {
        let cluster = 1u64 << self.cluster_bits;
        let v3 = self.version == 3;
        let zstd = self.compression == CompressionType::Zstd;
        Header {
            version: self.version,
            cluster_bits: self.cluster_bits,
            size: 0,
            crypt_method: 0,
            l1_entries: 0,
            l1_offset: HostOffset(0),
            reftable_offset: HostOffset(cluster),
            reftable_clusters,
            snapshot_count: 0,
            snapshots_offset: HostOffset(0),
            incompatible: if zstd { Incompatible::COMPRESSION } else { Incompatible::empty() },
            compatible: if self.lazy_refcounts { LAZY_REFCOUNTS } else { 0 },
            autoclear: 0,
            refcount_order: self.refcount_order,
            compression: self.compression,
            backing_file: self.backing_file.clone(),
            backing_format: self.backing_format.clone(),
            unknown_fields: Vec::new(),
            // The reference leaves the table out where it would fill the header's cluster.
            extensions: if v3 && cluster > 512 { vec![Header::feature_name_table()] } else { Vec::new() },
        }
    }
}

/// Makes an image in `file`, whose old content is lost.
///
/// # Errors
/// Options that the format does not allow, and the file's errors.
pub async fn create(file: &Child, options: &CreateOptions) -> Result<()> {
    options.validate()?;
    options.check_header()?;
    let cluster = 1usize << options.cluster_bits;
    file.submit(Request::truncate(0, Preallocation::Off)).finish().await.result?;
    let mut reftable = Buf::zeroed(cluster);
    reftable[..8].copy_from_slice(&(2 * cluster as u64).to_be_bytes());
    file.write(cluster as u64, reftable).await?;
    let mut refblock = Buf::zeroed(cluster);
    for index in 0..3 {
        let bytes = refcount::bytes_of(options.refcount_order, index);
        let place = bytes.start as usize..bytes.end as usize;
        refcount::set(&mut refblock[place], options.refcount_order, index, 1);
    }
    file.write(2 * cluster as u64, refblock).await?;
    let mut header = options.header(1).encode()?;
    header.resize(cluster, 0);
    file.flush().await?;
    file.write(0, Buf::copy_of(&header)).await?;
    let open = crate::OpenOptions { access: cowbell_block::Access::ReadWrite, ..Default::default() };
    let engine = crate::open_engine(file.clone(), None, open).await?;
    let entries = engine.geometry.l1_entries_for(options.size);
    if entries > 0 {
        engine.grow_l1(entries, Some(options.size)).await?;
    }
    engine.settle_refcounts().await
}
