//! The driver as the registry knows it: options in, nodes and images out.

use std::sync::Arc;

use cowbell_block::context::{ChildKind, NewStorage, OpenContext, StoredBacking};
use cowbell_block::create::{CreateArgs, CreateOption, OptionKind};
use cowbell_block::modes::Modes;
use cowbell_block::options::{self, OptionTree, from_tree, parse};
use cowbell_block::registry::{Driver, MeasureSource, Measurement, Role, Score};
use cowbell_block::{BoxFuture, Child, Error, ErrorKind, Node, Preallocation, Result};
use cowbell_luks::create::HeaderPlace;
use cowbell_luks::{Algorithms, KeyMissing};
use serde::Deserialize;

use crate::create::{EncryptionMethod, NewEncryption, create_encrypted};
use crate::header::Incompatible;
use crate::runtime::{CacheSizes, RuntimeOptions};
use crate::{
    Amendment, Cleaning, CompressionType, CreateError, CreateOptions, DRIVER, DataFile, DataFileForm, Header,
    L2Format, Notice, OpenOptions, Qcow2, SLICE_BYTES,
};

/// Opens and makes qcow2 images for a registry.
#[derive(Clone, Default)]
pub struct Qcow2Driver {
    notice: Option<Notice>,
}

impl Qcow2Driver {
    /// A driver that tells nobody about corruption but its callers.
    pub fn new() -> Self {
        Self::default()
    }

    /// A driver that calls `notice` with a line for people when an image turns out to be corrupt.
    pub fn with_notice(notice: Notice) -> Self {
        Self { notice: Some(notice) }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct CreationOptions {
    size: Option<u64>,
    backing_file: Option<String>,
    backing_fmt: Option<String>,
    compat: Option<String>,
    cluster_size: Option<u64>,
    preallocation: Option<String>,
    lazy_refcounts: bool,
    refcount_bits: Option<u64>,
    compression_type: Option<String>,
    extended_l2: bool,
    data_file: Option<String>,
    data_file_raw: bool,
    encryption: bool,
    #[serde(rename = "encrypt.format")]
    encrypt_format: Option<String>,
    #[serde(rename = "encrypt.key-secret")]
    encrypt_key_secret: Option<String>,
    #[serde(rename = "encrypt.cipher-alg")]
    encrypt_cipher_alg: Option<String>,
    #[serde(rename = "encrypt.cipher-mode")]
    encrypt_cipher_mode: Option<String>,
    #[serde(rename = "encrypt.ivgen-alg")]
    encrypt_ivgen_alg: Option<String>,
    #[serde(rename = "encrypt.ivgen-hash-alg")]
    encrypt_ivgen_hash_alg: Option<String>,
    #[serde(rename = "encrypt.hash-alg")]
    encrypt_hash_alg: Option<String>,
    #[serde(rename = "encrypt.iter-time")]
    encrypt_iter_time: Option<u64>,
}

// What can be chosen at creation and changed later.
const ENCRYPT_ITER_TIME: CreateOption =
    CreateOption::new("encrypt.iter-time", OptionKind::Num, "Time to spend in PBKDF in milliseconds");
const SIZE: CreateOption = CreateOption::new("size", OptionKind::Size, "Virtual disk size");
const COMPAT: CreateOption =
    CreateOption::new("compat", OptionKind::Str, "Compatibility level (v2 [0.10] or v3 [1.1])");
const BACKING_FILE: CreateOption =
    CreateOption::new("backing_file", OptionKind::Str, "File name of a base image");
const BACKING_FMT: CreateOption =
    CreateOption::new("backing_fmt", OptionKind::Str, "Image format of the base image");
const DATA_FILE: CreateOption =
    CreateOption::new("data_file", OptionKind::Str, "File name of an external data file");
const DATA_FILE_RAW: CreateOption = CreateOption::new(
    "data_file_raw",
    OptionKind::Bool,
    "The external data file must stay valid as a raw image",
);
const LAZY_REFCOUNTS: CreateOption =
    CreateOption::new("lazy_refcounts", OptionKind::Bool, "Postpone refcount updates");
const REFCOUNT_BITS: CreateOption =
    CreateOption::new("refcount_bits", OptionKind::Num, "Width of a reference count entry in bits");

/// In the order in which `create` shows them; `help` sorts.
const CREATE_OPTIONS: &[CreateOption] = &[
    CreateOption::new(
        "encryption",
        OptionKind::Bool,
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    ),
    CreateOption::new("encrypt.format", OptionKind::Str, "Encrypt the image, format choices: 'aes', 'luks'"),
    CreateOption::new(
        "encrypt.key-secret",
        OptionKind::Str,
        "ID of secret providing qcow AES key or LUKS passphrase",
    ),
    CreateOption::new("encrypt.cipher-alg", OptionKind::Str, "Name of encryption cipher algorithm"),
    CreateOption::new("encrypt.cipher-mode", OptionKind::Str, "Name of encryption cipher mode"),
    CreateOption::new("encrypt.ivgen-alg", OptionKind::Str, "Name of IV generator algorithm"),
    CreateOption::new("encrypt.ivgen-hash-alg", OptionKind::Str, "Name of IV generator hash algorithm"),
    CreateOption::new("encrypt.hash-alg", OptionKind::Str, "Name of encryption hash algorithm"),
    ENCRYPT_ITER_TIME,
    CreateOption::new("cluster_size", OptionKind::Size, "qcow2 cluster size").or("65536"),
    CreateOption::new("extended_l2", OptionKind::Bool, "Extended L2 tables").or("off"),
    CreateOption::new(
        "preallocation",
        OptionKind::Str,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    CreateOption::new(
        "compression_type",
        OptionKind::Str,
        "Compression method used for image cluster compression",
    )
    .or("zlib"),
    SIZE,
    COMPAT,
    BACKING_FILE,
    BACKING_FMT,
    DATA_FILE,
    DATA_FILE_RAW,
    LAZY_REFCOUNTS.or("off"),
    REFCOUNT_BITS.or("16"),
];

const AMEND_OPTIONS: &[CreateOption] = &[
    CreateOption::new(
        "encrypt.state",
        OptionKind::Str,
        "Select new state of affected keyslots (active/inactive)",
    ),
    CreateOption::new("encrypt.keyslot", OptionKind::Num, "Select a single keyslot to modify explicitly"),
    CreateOption::new("encrypt.old-secret", OptionKind::Str, "Select all keyslots that match this password"),
    CreateOption::new(
        "encrypt.new-secret",
        OptionKind::Str,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    ENCRYPT_ITER_TIME,
    SIZE,
    COMPAT,
    BACKING_FILE,
    BACKING_FMT,
    DATA_FILE,
    DATA_FILE_RAW,
    LAZY_REFCOUNTS,
    REFCOUNT_BITS,
];

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct AmendOptions {
    size: Option<u64>,
    compat: Option<String>,
    backing_file: Option<String>,
    backing_fmt: Option<String>,
    data_file: Option<String>,
    data_file_raw: Option<bool>,
    lazy_refcounts: Option<bool>,
    refcount_bits: Option<u64>,
}

/// Takes out the options that change key slots, if there are any.
pub(crate) fn key_amendment(options: &mut OptionTree) -> Result<Option<cowbell_luks::amend::AmendOptions>> {
    let mut keys = OptionTree::new();
    for (name, value) in std::mem::take(options) {
        match name.strip_prefix("encrypt.") {
            Some(rest) => keys.insert(rest.to_owned(), value),
            None => options.insert(name, value),
        };
    }
    match keys.is_empty() {
        true => Ok(None),
        false => Ok(Some(from_tree(keys)?)),
    }
}

/// Reads the options of an amendment for the image with this header.
pub(crate) fn amendment(options: OptionTree, header: &Header) -> Result<Amendment> {
    let options: AmendOptions = from_tree(options)?;
    let refuse = |error| Error::new(ErrorKind::InvalidInput, error);
    let names_backing = options.backing_file.is_some() || options.backing_fmt.is_some();
    if names_backing
        && (options.backing_file != header.backing_file || options.backing_fmt != header.backing_format)
    {
        return Err(refuse(OptionError::AmendBacking));
    }
    let version = match options.compat.as_deref() {
        None => None,
        Some("1.1" | "v3") => Some(3),
        Some("0.10" | "v2") => Some(2),
        Some(other) => return Err(refuse(OptionError::Compat(other.to_owned()))),
    };
    let refcount_order = match options.refcount_bits {
        None => None,
        Some(bits) if bits.is_power_of_two() && bits <= 64 => Some(bits.trailing_zeros()),
        Some(_) => return Err(CreateError::RefcountWidth.into()),
    };
    Ok(Amendment {
        version,
        refcount_order,
        lazy_refcounts: options.lazy_refcounts,
        // To the reference nothing is no size.
        size: options.size.filter(|size| *size > 0),
        data_file: options.data_file,
        raw_data_file: options.data_file_raw,
    })
}

/// An option of creation with a value that it does not take.
#[derive(Debug, thiserror::Error)]
enum OptionError {
    #[error("Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.")]
    AmendBacking,
    #[error("Unknown compatibility level {0}")]
    Compat(String),
    #[error("Invalid compatibility level: '{0}'")]
    MeasuredCompat(String),
    #[error("'encrypt.format' and its alias 'encryption' can't be used at the same time")]
    EncryptionTwice,
    #[error("Parameter 'encrypt.format' is missing")]
    NoEncryptionFormat,
    #[error("Parameter '{0}' is unexpected")]
    Unexpected(&'static str),
    #[error("Parameter '{name}' does not accept value '{value}'")]
    Value {
        /// As the reference's interface for creation calls it.
        name: &'static str,
        value: String,
    },
}

impl Driver for Qcow2Driver {
    fn name(&self) -> &'static str {
        DRIVER
    }

    fn role(&self) -> Role {
        Role::Format
    }

    fn probe(&self, head: &[u8]) -> Score {
        if Header::probe(head) { 100 } else { 0 }
    }

    fn supports_backing(&self) -> bool {
        true
    }

    fn supports_compression(&self) -> bool {
        true
    }

    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        let notice = self.notice.clone();
        Box::pin(async move {
            let mut options: RuntimeOptions = parse(DRIVER, Role::Format, options)?;
            let file =
                cx.require_child("file", std::mem::take(&mut options.file), ChildKind::Storage).await?;
            let header = Qcow2::read_header(&Child::new(file.clone())).await?;
            let overlap_checks = options.overlap_checks()?;
            let discards = options.discards(cx.discard, header.version)?;
            // Without the feature bit the name is only a name.
            let has_data_file = header.incompatible.contains(Incompatible::DATA_FILE);
            let data_name = header.data_file().filter(|_| has_data_file);
            let data_file = match cx.no_io {
                true => None,
                false => {
                    cx.open_data_file(&*file, data_name.as_deref(), std::mem::take(&mut options.data_file))
                        .await?
                }
            };
            let stored = header.backing_file.as_deref();
            let stored = stored.map(|name| StoredBacking { name, format: header.backing_format.as_deref() });
            let backing = cx.open_backing(&*file, stored, std::mem::take(&mut options.backing)).await?;
            let defaults = OpenOptions::default();
            let share = |own: u64| cx.table_cache_bytes.map_or(own, |most| own.min(most));
            let caches = CacheSizes {
                l2: share(defaults.l2_cache_bytes),
                refcounts: share(defaults.refcount_cache_bytes),
                slice: defaults.slice_bytes,
            };
            let caches = options.cache_sizes(&header.geometry(SLICE_BYTES), header.size, caches)?;
            let clean_interval = options.clean_interval()?;
            let unlock = options.unlock(&header, &cx)?;
            let cleaning = cx.clock.clone().zip(clean_interval);
            let open = OpenOptions {
                access: cx.access,
                modes: Modes::of(&cx),
                discards,
                data_file,
                metadata_only: cx.no_io,
                unlock,
                lazy_refcounts: options.lazy_refcounts.map(|b| b.0),
                overlap_checks,
                l2_cache_bytes: caches.l2,
                refcount_cache_bytes: caches.refcounts,
                slice_bytes: caches.slice,
                cleaning: cleaning.map(|(clock, every_secs)| Cleaning { clock, every_secs }),
                skip_repair: cx.for_check,
                spawn: cx.spawn.clone(),
                work_bytes: defaults.work_bytes,
                notice,
            };
            Ok(Qcow2::open(file, backing, open).await? as Arc<dyn Node>)
        })
    }

    fn create_options(&self) -> &'static [CreateOption] {
        CREATE_OPTIONS
    }

    fn measure(
        &self,
        options: OptionTree,
        source: MeasureSource,
        cx: OpenContext,
    ) -> BoxFuture<Result<Measurement>> {
        Box::pin(async move {
            let mut args = CreateArgs { options, ..CreateArgs::default() };
            let given = args.take_typed::<CreationOptions>(CREATE_OPTIONS)?;
            // Of the other way to encrypt nothing is stored.
            let key_material = match given.encrypt_format.as_deref() {
                Some("luks") => given.encryption(&cx)?.map_or(0, |new| new.header_area_bytes()),
                _ => 0,
            };
            crate::measure::measure(&given.for_measuring()?.resolve()?, key_material, &source).await
        })
    }

    fn amend_options(&self) -> &'static [CreateOption] {
        AMEND_OPTIONS
    }

    fn create(&self, mut args: CreateArgs, cx: OpenContext) -> BoxFuture<Result<()>> {
        Box::pin(async move {
            let given = args.take_typed::<CreationOptions>(CREATE_OPTIONS)?;
            let encryption = given.encryption(&cx)?;
            let mut options = given.resolve()?;
            options.validate()?;
            if let Some(format) =
                options.backing_format.as_deref().filter(|name| cx.registry.driver(name).is_none())
            {
                let (key, value) = ("backing-fmt".to_owned(), format.to_owned());
                return Err(options::OptionError::NotAccepted { key, value }.into());
            }
            options.check_header()?;
            let filename = args.filename.clone();
            let storage = cx.create_storage(args).await?;
            let (data_storage, data_file) = match &mut options.data_file {
                Some(file) => {
                    let storage = cx.create_storage(CreateArgs::new(&file.name)).await?;
                    let node = cx.open_storage(&file.name).await?;
                    // Without a prefix, which says nothing that the name does not.
                    file.name = node.filename();
                    (Some(storage), Some(node))
                }
                None => (None, None),
            };
            let file = cx.open_storage(&filename).await?;
            let child = Child::new(file.clone());
            let result = create_encrypted(&child, data_file.clone(), &options, encryption.as_ref()).await;
            let closed = match data_file {
                Some(data_file) => data_file.close().await,
                None => Ok(()),
            };
            result.and(closed).and(file.close().await)?;
            storage.keep();
            data_storage.into_iter().for_each(NewStorage::keep);
            Ok(())
        })
    }
}

/// What the options of a creation come to, for who makes an image by other means than the driver.
///
/// # Errors
/// The first option that is unknown or has a bad value. Encryption is none of them.
pub fn creation_options(mut args: CreateArgs) -> Result<CreateOptions> {
    let options = args.take_typed::<CreationOptions>(CREATE_OPTIONS)?.resolve()?;
    options.validate()?;
    Ok(options)
}

impl CreationOptions {
    /// These options as far as the length of the image depends on them: what else they say need not fit together before
    /// there is an image.
    fn for_measuring(self) -> Result<Self> {
        if let Some(other) = self.compat.as_deref().filter(|c| !["0.10", "v2", "1.1", "v3"].contains(c)) {
            return Err(Error::new(ErrorKind::InvalidInput, OptionError::MeasuredCompat(other.to_owned())));
        }
        let mode = self.preallocation.as_deref().unwrap_or("off");
        if Preallocation::from_name(mode).is_none() {
            return Err(Error::new(ErrorKind::InvalidInput, options::UnknownWord::of(mode.to_owned())));
        }
        // A version that has everything, and only it has bitmaps.
        let has_more = self.extended_l2 || self.lazy_refcounts;
        Ok(Self {
            compat: self.compat.filter(|_| !has_more),
            lazy_refcounts: false,
            compression_type: None,
            data_file_raw: false,
            ..self
        })
    }

    fn resolve(self) -> Result<CreateOptions> {
        let power = |n: u64, error: CreateError| match n.is_power_of_two() {
            true => Ok(n.trailing_zeros()),
            false => Err(Error::from(error)),
        };
        let version = match self.compat.as_deref() {
            None | Some("1.1" | "v3") => 3,
            Some("0.10" | "v2") => 2,
            Some(other) => return Err(rejected("version", other)),
        };
        let compression = match self.compression_type.as_deref() {
            None | Some("zlib") => CompressionType::Zlib,
            Some("zstd") => CompressionType::Zstd,
            Some(other) => return Err(rejected("compression-type", other)),
        };
        let mode = self.preallocation.as_deref().unwrap_or("off");
        let preallocation = Preallocation::from_name(mode).ok_or_else(|| rejected("preallocation", mode))?;
        let form = if self.data_file_raw { DataFileForm::Raw } else { DataFileForm::Dependent };
        let data_file = self.data_file.map(|name| DataFile { name, form });
        if data_file.is_none() && self.data_file_raw {
            return Err(CreateError::RawWithoutDataFile.into());
        }
        Ok(CreateOptions {
            version,
            size: self.size.unwrap_or(0).checked_next_multiple_of(512).ok_or(CreateError::TooLarge)?,
            cluster_bits: power(self.cluster_size.unwrap_or(65536), CreateError::ClusterSize)?,
            refcount_order: power(self.refcount_bits.unwrap_or(16), CreateError::RefcountWidth)?,
            lazy_refcounts: self.lazy_refcounts,
            compression,
            l2_format: if self.extended_l2 { L2Format::Extended } else { L2Format::Standard },
            preallocation,
            data_file,
            backing_file: self.backing_file,
            backing_format: self.backing_fmt,
        })
    }

    /// How the new image is to be encrypted.
    fn encryption(&self, cx: &OpenContext) -> Result<Option<NewEncryption>> {
        let invalid = |error| Error::new(ErrorKind::InvalidInput, error);
        let names = [
            ("encrypt.cipher-alg", &self.encrypt_cipher_alg),
            ("encrypt.cipher-mode", &self.encrypt_cipher_mode),
            ("encrypt.ivgen-alg", &self.encrypt_ivgen_alg),
            ("encrypt.ivgen-hash-alg", &self.encrypt_ivgen_hash_alg),
            ("encrypt.hash-alg", &self.encrypt_hash_alg),
        ];
        let mut given = names.into_iter().filter(|(_, value)| value.is_some()).map(|(name, _)| name);
        let luks_only = given.next().or(self.encrypt_iter_time.is_some().then_some("encrypt.iter-time"));
        let format = match (self.encryption, self.encrypt_format.as_deref()) {
            (true, Some(_)) => return Err(invalid(OptionError::EncryptionTwice)),
            (true, None) => "aes",
            (false, Some(format)) => format,
            (false, None) if luks_only.is_none() && self.encrypt_key_secret.is_none() => return Ok(None),
            (false, None) => return Err(invalid(OptionError::NoEncryptionFormat)),
        };
        let method = match (format, luks_only) {
            ("luks", _) => {
                let algorithms = Algorithms {
                    cipher_alg: self.encrypt_cipher_alg.as_deref(),
                    cipher_mode: self.encrypt_cipher_mode.as_deref(),
                    ivgen_alg: self.encrypt_ivgen_alg.as_deref(),
                    ivgen_hash_alg: self.encrypt_ivgen_hash_alg.as_deref(),
                    hash_alg: self.encrypt_hash_alg.as_deref(),
                };
                EncryptionMethod::Luks(algorithms.resolve(self.encrypt_iter_time, HeaderPlace::WithPayload)?)
            }
            ("aes", None) => EncryptionMethod::Aes,
            ("aes", Some(name)) => return Err(invalid(OptionError::Unexpected(name))),
            (other, _) => return Err(rejected("format", other)),
        };
        let id = self.encrypt_key_secret.as_ref().ok_or(KeyMissing("encrypt.key-secret"))?;
        let passphrase = cx.secrets.passphrase(id)?;
        let outside = cowbell_block::outside::required(&cx.outside)?;
        Ok(Some(NewEncryption { method, passphrase, outside, spawner: cx.spawn.clone() }))
    }
}

fn rejected(name: &'static str, value: &str) -> Error {
    let e = OptionError::Value { name, value: value.to_owned() };
    Error::new(ErrorKind::InvalidInput, e)
}
