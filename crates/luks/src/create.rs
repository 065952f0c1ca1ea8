//! New volumes.

use cowbell_block::outside::Outside;
use cowbell_block::spawn::Spawner;
use cowbell_block::{Buf, Error, ErrorKind, Result, Secret};

use crate::algorithm::{CipherAlg, CipherMode, CipherSpec, Hash, IvAlg, Unknown};
use crate::header::{DIGEST_BYTES, Header, HeaderError, SALT_BYTES, Slot, fresh_layout};
use crate::keys::{Derivation, MasterKey, iterations_in};

/// Time to spend on the derivation of a key when none is said, in milliseconds.
pub const ITER_TIME_MS: u64 = 2000;
/// The master key's digest gets this part of the time, as `cryptsetup` does it.
const DIGEST_SHARE: u64 = 8;

/// What a new volume is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// How sectors are encrypted.
    pub spec: CipherSpec,
    /// The hash of everything but ESSIV.
    pub hash: Hash,
    /// Time that the derivation of a key shall take on one core.
    pub iter_time_ms: u64,
    /// Where the header stands.
    pub place: HeaderPlace,
}

/// Where a new header stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HeaderPlace {
    /// In front of the payload, or inside an image.
    #[default]
    WithPayload,
    /// In a file of its own.
    Detached,
}

impl Default for CreateOptions {
    fn default() -> Self {
        let spec =
            CipherSpec { alg: CipherAlg::Aes256, mode: CipherMode::Xts, iv: IvAlg::Plain64, iv_hash: None };
        Self { spec, hash: Hash::Sha256, iter_time_ms: ITER_TIME_MS, place: HeaderPlace::WithPayload }
    }
}

/// The names of algorithms as options give them.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "named as the options are")]
pub struct Algorithms<'a> {
    pub cipher_alg: Option<&'a str>,
    pub cipher_mode: Option<&'a str>,
    pub ivgen_alg: Option<&'a str>,
    pub ivgen_hash_alg: Option<&'a str>,
    pub hash_alg: Option<&'a str>,
}

/// An option with a value that it does not take.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AlgorithmError {
    /// No such algorithm.
    #[error("Parameter '{option}' does not accept value '{value}'")]
    Value {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
    },
    /// Known, but not for disks.
    #[error("Algorithm '{0}' not supported")]
    NotForDisks(String),
}

impl From<AlgorithmError> for Error {
    fn from(e: AlgorithmError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

impl Algorithms<'_> {
    /// The options for a new volume.
    ///
    /// # Errors
    /// Names the option whose value stands for nothing, or says what does not fit together.
    pub fn resolve(&self, iter_time_ms: Option<u64>, place: HeaderPlace) -> Result<CreateOptions> {
        let default = CreateOptions::default();
        let spec = default.spec;
        let alg = match self.cipher_alg {
            None => Ok(spec.alg),
            Some(name) => CipherAlg::from_name(name).map_err(|unknown| match unknown {
                Unknown::Name => rejected("cipher-alg", name),
                Unknown::NotForDisks => AlgorithmError::NotForDisks(name.to_owned()),
            }),
        };
        let mode = named("cipher-mode", self.cipher_mode, spec.mode, CipherMode::from_name)?;
        let iv = named("ivgen-alg", self.ivgen_alg, spec.iv, IvAlg::from_name)?;
        let iv_hash = self
            .ivgen_hash_alg
            .map(|name| named("ivgen-hash-alg", Some(name), default.hash, Hash::from_name));
        let iv_hash = match iv_hash.transpose()? {
            // The reference's default.
            None if iv == IvAlg::Essiv => Some(Hash::Sha256),
            given => given,
        };
        let hash = named("hash-alg", self.hash_alg, default.hash, Hash::from_name)?;
        let spec = CipherSpec { alg: alg?, mode, iv, iv_hash };
        spec.validate().map_err(HeaderError::Spec)?;
        Ok(CreateOptions { spec, hash, iter_time_ms: iter_time_ms.unwrap_or(ITER_TIME_MS), place })
    }
}

fn rejected(option: &'static str, value: &str) -> AlgorithmError {
    AlgorithmError::Value { option, value: value.to_owned() }
}

fn named<T>(
    option: &'static str,
    given: Option<&str>,
    default: T,
    find: impl Fn(&str) -> Option<T>,
) -> std::result::Result<T, AlgorithmError> {
    match given {
        None => Ok(default),
        Some(name) => find(name).ok_or_else(|| rejected(option, name)),
    }
}

impl CreateOptions {
    /// Bytes of the header and all key material: where the payload of an attached volume starts.
    pub fn header_area_bytes(&self) -> u64 {
        u64::from(fresh_layout(self.spec.key_bytes()).1) * crate::sector::SECTOR as u64
    }
}

/// A new volume that nobody has written yet.
pub struct NewVolume {
    /// Its header.
    pub header: Header,
    /// Its key.
    pub key: MasterKey,
    /// Header and the first slot's key material. The rest of [`CreateOptions::header_area_bytes`] is zero.
    pub area: Buf,
}

/// Makes a volume with a new key, which `passphrase` opens.
///
/// # Errors
/// There are no random bytes.
pub async fn create(
    options: &CreateOptions,
    passphrase: &Secret,
    outside: &dyn Outside,
    spawner: Option<&Spawner>,
) -> Result<NewVolume> {
    let (places, payload) = fresh_layout(options.spec.key_bytes());
    let key_bytes = options.spec.key_bytes();
    let key = MasterKey::random(key_bytes, outside)?;
    let digest_iterations =
        iterations_in(options.iter_time_ms, options.hash, DIGEST_BYTES, DIGEST_SHARE, outside);
    let mut header = Header {
        spec: options.spec,
        hash: options.hash,
        payload_sector: if options.place == HeaderPlace::Detached { 0 } else { payload },
        digest: [0; DIGEST_BYTES],
        digest_salt: salt(outside)?,
        digest_iterations,
        uuid: uuid(outside)?,
        slots: places.map(Slot::empty),
    };
    header.digest = key.digest(header.hash, &header.digest_salt, digest_iterations);
    let material =
        fill_slot(&mut header, 0, &key, passphrase, options.iter_time_ms, outside, spawner).await?;
    header.slots[0].active = true;
    let at = header.key_offset(0) as usize;
    let mut area = Buf::zeroed(at + material.len());
    area[at..at + material.len()].copy_from_slice(&material);
    let bytes = header.encode();
    area[..bytes.len()].copy_from_slice(&bytes);
    Ok(NewVolume { header, key, area })
}

/// Gives a slot a salt and its iterations, and makes its key material. The slot is not active by that.
pub(crate) async fn fill_slot(
    header: &mut Header,
    slot: usize,
    key: &MasterKey,
    passphrase: &Secret,
    iter_time_ms: u64,
    outside: &dyn Outside,
    spawner: Option<&Spawner>,
) -> Result<Buf> {
    let bytes = header.spec.key_bytes();
    header.slots[slot].salt = salt(outside)?;
    header.slots[slot].iterations = iterations_in(iter_time_ms, header.hash, bytes, 1, outside);
    let slot_fields = &header.slots[slot];
    let derivation =
        Derivation::start(header.hash, passphrase, slot_fields.salt, slot_fields.iterations, bytes, spawner);
    key.seal(header, &derivation.finish().await, outside)
}

fn salt(outside: &dyn Outside) -> Result<[u8; SALT_BYTES]> {
    let mut salt = [0; SALT_BYTES];
    outside.fill_random(&mut salt)?;
    Ok(salt)
}

/// A random UUID (RFC 9562, version 4) as text.
fn uuid(outside: &dyn Outside) -> Result<[u8; 40]> {
    let mut bytes = [0; 16];
    outside.fill_random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let text = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-");
    let mut uuid = [0; 40];
    uuid[..text.len()].copy_from_slice(text.as_bytes());
    Ok(uuid)
}
