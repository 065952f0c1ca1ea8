//! Makes new images.
//!
//! The layout is the reference's: header, refcount table, first refcount block, L1 table, from cluster 0 on.
//! The header is written last and made durable, so that an interrupted creation leaves no image.

use std::sync::Arc;

use cowbell_block::outside::Outside;
use cowbell_block::spawn::Spawner;
use cowbell_block::{
    Access, Buf, Child, Error, ErrorKind, Node, Preallocation, Request, Result, Secret, names,
};

use crate::OpenOptions;
use crate::crypto::Unlock;
use crate::geometry::{CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, Geometry, HostOffset, L2Format, SLICE_BYTES};
use crate::header::{
    AUTOCLEAR_RAW_DATA, BACKING_NAME_MAX, CompressionType, EXTENDED_L2_CLUSTER_BITS_MIN, Header,
    Incompatible, L1_BYTES_MAX, LAZY_REFCOUNTS,
};
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
    /// Form of the L2 entries.
    pub l2_format: L2Format,
    /// Storage that the disk gets at once.
    pub preallocation: Preallocation,
    /// The file that holds the guest's data, if it is not the image.
    pub data_file: Option<DataFile>,
    /// The backing file's name as it will be stored.
    pub backing_file: Option<String>,
    /// The backing file's format.
    pub backing_format: Option<String>,
}

/// An external data file of a new image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// The name as it will be stored.
    pub name: String,
    /// What others may make of it.
    pub form: DataFileForm,
}

/// Whether an external data file means something without its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFileForm {
    /// Only the image says which parts count.
    Dependent,
    /// It reads like the disk by itself (autoclear feature *raw external data*).
    Raw,
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
            l2_format: L2Format::Standard,
            preallocation: Preallocation::Off,
            data_file: None,
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
    /// Version 2 has no extended entries.
    #[error(
        "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)"
    )]
    ExtendedVersion,
    /// Subclusters would be smaller than a sector.
    #[error("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")]
    ExtendedClusters,
    /// Version 2 has no external data files.
    #[error(
        "External data files are only supported with compatibility level 1.1 and above (use version=v3 or greater)"
    )]
    DataFileVersion,
    /// A form without a file.
    #[error("data-file-raw requires data-file")]
    RawWithoutDataFile,
    /// A file that reads like the disk cannot show a backing file's content.
    #[error("Backing file and data-file-raw cannot be used at the same time")]
    RawWithBacking,
    /// Storage would hide the backing file, unless subclusters say that it is not used.
    #[error("Backing file and preallocation can only be used at the same time if extended_l2 is on")]
    PreallocatedOverlay,
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
            2 if self.l2_format == L2Format::Extended => return Err(CreateError::ExtendedVersion),
            2 if self.data_file.is_some() => return Err(CreateError::DataFileVersion),
            2 => {}
            _ => return Err(CreateError::Version),
        }
        let extended = self.l2_format == L2Format::Extended;
        if extended && self.cluster_bits < EXTENDED_L2_CLUSTER_BITS_MIN {
            return Err(CreateError::ExtendedClusters);
        }
        let raw = self.data_file.as_ref().is_some_and(|file| file.form == DataFileForm::Raw);
        if self.backing_file.is_some() && raw {
            return Err(CreateError::RawWithBacking);
        }
        if self.backing_file.is_some() && self.preallocation != Preallocation::Off && !extended {
            return Err(CreateError::PreallocatedOverlay);
        }
        if !self.size.is_multiple_of(512) {
            return Err(CreateError::Size);
        }
        let geometry =
            Geometry::new(self.cluster_bits, self.refcount_order, SLICE_BYTES).with_l2(self.l2_format);
        if self.size > i64::MAX as u64 || geometry.l1_entries_for(self.size) * 8 > L1_BYTES_MAX {
            return Err(CreateError::TooLarge);
        }
        if self.backing_file.is_none() && self.backing_format.is_some() {
            return Err(CreateError::FormatWithoutFile);
        }
        if self
            .backing_file
            .as_ref()
            .is_some_and(|name| names::to_bytes(name).len() > BACKING_NAME_MAX as usize)
        {
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

    pub(crate) fn header(&self, reftable_clusters: u32) -> Header {
        let cluster = 1u64 << self.cluster_bits;
        let v3 = self.version == 3;
        let mut incompatible = Incompatible::empty();
        incompatible.set(Incompatible::COMPRESSION, self.compression == CompressionType::Zstd);
        incompatible.set(Incompatible::EXTENDED_L2, self.l2_format == L2Format::Extended);
        incompatible.set(Incompatible::DATA_FILE, self.data_file.is_some());
        let raw = self.data_file.as_ref().is_some_and(|file| file.form == DataFileForm::Raw);
        // The reference leaves the table out where it would fill much of the header's cluster.
        let mut extensions =
            if v3 && cluster > 4096 { vec![Header::feature_name_table()] } else { Vec::new() };
        extensions.extend(self.data_file.as_ref().map(|file| Header::data_file_extension(&file.name)));
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
            incompatible,
            compatible: if self.lazy_refcounts { LAZY_REFCOUNTS } else { 0 },
            autoclear: if raw { AUTOCLEAR_RAW_DATA } else { 0 },
            refcount_order: self.refcount_order,
            compression: self.compression,
            backing_file: self.backing_file.clone(),
            backing_format: self.backing_format.clone(),
            unknown_fields: Vec::new(),
            extensions,
        }
    }
}

/// Makes an image in `file`, whose old content is lost; `data_file` is what `options` name, and empty.
///
/// # Errors
/// Options that the format does not allow, and the file's errors.
///
/// # Panics
/// If `data_file` is there and not named, or the other way round.
pub async fn create(file: &Child, data_file: Option<Arc<dyn Node>>, options: &CreateOptions) -> Result<()> {
    create_encrypted(file, data_file, options, None).await
}

/// How a new image is to be encrypted.
pub struct NewEncryption {
    /// The method.
    pub method: EncryptionMethod,
    /// What opens it.
    pub passphrase: Secret,
    /// Random bytes and time.
    pub outside: Arc<dyn Outside>,
    /// The way to all cores.
    pub spawner: Option<Spawner>,
}

impl NewEncryption {
    /// Bytes in the image that hold what opens it.
    pub(crate) fn header_area_bytes(&self) -> u64 {
        match &self.method {
            EncryptionMethod::Aes => 0,
            EncryptionMethod::Luks(options) => options.header_area_bytes(),
        }
    }
}

/// A method of encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncryptionMethod {
    /// AES-CBC of old: weak, and here for the images there are.
    Aes,
    /// LUKS1.
    Luks(cowbell_luks::CreateOptions),
}

/// [`create`], of an image that is encrypted if `encryption` is there.
///
/// # Errors
/// As there; and when there are no random bytes.
///
/// # Panics
/// As there.
pub async fn create_encrypted(
    file: &Child,
    data_file: Option<Arc<dyn Node>>,
    options: &CreateOptions,
    encryption: Option<&NewEncryption>,
) -> Result<()> {
    assert_eq!(data_file.is_some(), options.data_file.is_some(), "the name and the node belong together");
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
    let open = OpenOptions { access: Access::ReadWrite, data_file, ..Default::default() };
    let mut engine = crate::open::open_engine(file.clone(), None, open.clone()).await?;
    let entries = engine.geometry.l1_entries_for(options.size);
    if entries > 0 {
        engine.grow_l1(entries, Some(options.size)).await?;
    }
    if let Some(encryption) = encryption {
        engine.encrypt(encryption).await?;
        engine.settle_refcounts().await?;
        let unlock = Unlock { passphrase: Some(encryption.passphrase.clone()), ..Unlock::default() };
        engine = crate::open::open_engine(file.clone(), None, OpenOptions { unlock, ..open }).await?;
    }
    let raw = options.data_file.as_ref().is_some_and(|file| file.form == DataFileForm::Raw);
    if let Some(file) = &engine.data_file {
        let mode = match options.preallocation {
            Preallocation::Metadata => Preallocation::Off,
            mode => mode,
        };
        file.submit(Request::truncate(options.size, mode)).finish().await.result?;
    }
    // Where the external file is the disk, every cluster of it counts from the beginning.
    if options.preallocation != Preallocation::Off || raw {
        engine.preallocate(0..options.size, options.preallocation).await?;
    }
    engine.settle_refcounts().await
}
