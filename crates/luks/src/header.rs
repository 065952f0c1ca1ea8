//! The LUKS1 header, as bytes and as a checked value.
//!
//! All fields are big endian; names are padded with NULs. The header lies at the volume's first byte.
//!
//! | offset | bytes | field | rule |
//! |---|---|---|---|
//! | 0 | 6 | magic `LUKS` ba be | |
//! | 6 | 2 | version | 1 |
//! | 8 | 32 | cipher (`aes`) | ends with a NUL, as the two below |
//! | 40 | 32 | mode (`xts-plain64`, `cbc-essiv:sha256`) | |
//! | 72 | 32 | hash (`sha256`) of PBKDF2, the splitter and the digest | |
//! | 104 | 4 | payload, in sectors | behind the key material; 0 = the header is detached |
//! | 108 | 4 | length of the master key in bytes | fits the cipher |
//! | 112 | 20 | PBKDF2 of the master key | |
//! | 132 | 32 | its salt | |
//! | 164 | 4 | its iterations | at least 1 |
//! | 168 | 40 | UUID as text | not checked |
//! | 208 | 8 × 48 | key slots | below |
//!
//! | in a slot | bytes | field | rule |
//! |---|---|---|---|
//! | 0 | 4 | `00 ac 71 f3` in use, `00 00 de ad` not | |
//! | 4 | 4 | iterations of PBKDF2 | at least 1 where in use |
//! | 8 | 32 | salt | |
//! | 40 | 4 | key material, in sectors | overlaps neither header, payload nor other slots |
//! | 44 | 4 | stripes | 4000 |
//!
//! The key material of a slot is the master key, split into stripes (`split`) and encrypted as sectors
//! 0, 1, … with the volume's cipher and the key that PBKDF2 makes of a passphrase.

use cowbell_block::{Error, ErrorKind};
use serde_json::{Map, Value, json};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::algorithm::{CipherAlg, CipherMode, CipherSpec, Hash, IvAlg};
use crate::sector::{SECTOR, SpecError};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 592;
/// Key slots in every header.
pub const SLOTS: usize = 8;
/// Stripes of key material: the only number that the reference and `cryptsetup` write or take.
pub const STRIPES: u32 = 4000;
/// Length of the master key's digest.
pub(crate) const DIGEST_BYTES: usize = 20;
/// Length of salts.
pub(crate) const SALT_BYTES: usize = 32;
/// Most iterations that are taken from a header, about a minute's work for one slot: more would be an attack on
/// whoever opens the volume. The reference takes any number.
pub const ITERATIONS_MAX: u32 = 1 << 28;
/// Bytes from the start of the first slot's key material to the volume's, and the grain of the others.
const SLOT_ALIGN: u64 = 4096;

const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const SLOT_ACTIVE: u32 = 0x00ac_71f3;
const SLOT_INACTIVE: u32 = 0x0000_dead;

/// A rule of the format that a header breaks, in the reference's words where it has any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it all")]
pub enum HeaderError {
    #[error("Volume is not in LUKS format")]
    Magic,
    #[error("LUKS version {0} is not supported")]
    Version(u16),
    #[error("LUKS header of {HEADER_BYTES} bytes expected, the volume has {0}")]
    Short(u64),
    #[error("LUKS header {0} is not NUL terminated")]
    Unterminated(&'static str),
    #[error("LUKS header {0} is not text")]
    NotText(&'static str),
    #[error("Algorithm '{name}' with key size {bytes} bytes not supported")]
    Cipher { name: String, bytes: usize },
    #[error("Unexpected cipher mode string format '{0}'")]
    ModeFormat(String),
    #[error("Cipher mode '{0}' not supported")]
    Mode(String),
    #[error("IV generator '{0}' not supported")]
    IvGenerator(String),
    #[error("Hash algorithm '{0}' not supported")]
    Hash(String),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("LUKS payload is overlapping with the header")]
    PayloadInHeader,
    #[error("LUKS key iteration count is zero")]
    NoIterations,
    #[error("LUKS key iteration count {0} is more than {ITERATIONS_MAX}")]
    TooManyIterations(u32),
    #[error("Keyslot {0} state (active/disable) is corrupted")]
    SlotState(usize),
    #[error("Keyslot {0} iteration count is zero")]
    SlotNoIterations(usize),
    #[error("Keyslot {0} iteration count {1} is more than {ITERATIONS_MAX}")]
    SlotTooManyIterations(usize, u32),
    #[error("Keyslot {slot} is corrupted (stripes {stripes} != {STRIPES})")]
    SlotStripes { slot: usize, stripes: i32 },
    #[error("Keyslot {0} is overlapping with the LUKS header")]
    SlotInHeader(usize),
    #[error("Keyslots {0} and {1} are overlapping in the header")]
    SlotsOverlap(usize, usize),
    #[error("Keyslot {0} is overlapping with the encrypted payload")]
    SlotInPayload(usize),
    #[error("Keyslot {slot} ends at byte {end}, outside of the header area of {area} bytes")]
    SlotOutside { slot: usize, end: u64, area: u64 },
}

impl From<HeaderError> for Error {
    fn from(e: HeaderError) -> Self {
        let unsupported = matches!(
            e,
            HeaderError::Version(_)
                | HeaderError::Cipher { .. }
                | HeaderError::Mode(_)
                | HeaderError::IvGenerator(_)
                | HeaderError::Hash(_)
                | HeaderError::Spec(_)
        );
        Error::new(if unsupported { ErrorKind::Unsupported } else { ErrorKind::InvalidInput }, e)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSlot {
    state: U32,
    iterations: U32,
    salt: [u8; SALT_BYTES],
    key_sector: U32,
    stripes: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 6],
    version: U16,
    cipher_name: [u8; 32],
    cipher_mode: [u8; 32],
    hash: [u8; 32],
    payload_sector: U32,
    key_bytes: U32,
    digest: [u8; DIGEST_BYTES],
    digest_salt: [u8; SALT_BYTES],
    digest_iterations: U32,
    uuid: [u8; 40],
    slots: [RawSlot; SLOTS],
}

const _: () = assert!(size_of::<RawHeader>() == HEADER_BYTES);

/// Whose facts are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Facts {
    /// A volume's own.
    Volume,
    /// An image's that embeds the header: it names the format of its encryption.
    Embedded,
}

/// A place for one passphrase.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Whether a passphrase is there.
    pub active: bool,
    /// Iterations of PBKDF2.
    pub iterations: u32,
    /// Salt of PBKDF2.
    pub salt: [u8; SALT_BYTES],
    /// Where the key material starts, in sectors from the header's start.
    pub key_sector: u32,
}

/// A header that obeys the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// How sectors are encrypted.
    pub spec: CipherSpec,
    /// The hash of everything but ESSIV.
    pub hash: Hash,
    /// Where the payload starts, in sectors from the header's start; 0 if the header is detached.
    pub payload_sector: u32,
    /// PBKDF2 of the master key.
    pub digest: [u8; DIGEST_BYTES],
    /// Salt of the digest.
    pub digest_salt: [u8; SALT_BYTES],
    /// Iterations of the digest.
    pub digest_iterations: u32,
    /// The volume's id, as text with NULs behind.
    pub uuid: [u8; 40],
    /// The key slots.
    pub slots: [Slot; SLOTS],
}

/// Where the header lies, as far as it changes what it must obey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In front of the payload, in a file of this many bytes.
    Attached(u64),
    /// In a file of its own of this many bytes.
    Detached(u64),
    /// In an area of this many bytes inside an image, which keeps the payload elsewhere: the field that says where
    /// the payload starts bounds the key material, and means nothing else.
    Embedded(u64),
}

impl Placement {
    fn area(self) -> u64 {
        match self {
            Self::Attached(bytes) | Self::Detached(bytes) | Self::Embedded(bytes) => bytes,
        }
    }
}

impl Header {
    /// Whether content that starts with `head` is a LUKS1 volume.
    pub fn probe(head: &[u8]) -> bool {
        head.len() >= 8 && head[..6] == MAGIC && head[6..8] == [0, 1]
    }

    /// Reads a header.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn parse(bytes: &[u8], placement: Placement) -> Result<Self, HeaderError> {
        if bytes.get(..6).is_some_and(|magic| magic != MAGIC) {
            return Err(HeaderError::Magic);
        }
        let (raw, _) =
            RawHeader::read_from_prefix(bytes).map_err(|_| HeaderError::Short(bytes.len() as u64))?;
        if raw.version.get() != 1 {
            return Err(HeaderError::Version(raw.version.get()));
        }
        let cipher = text(&raw.cipher_name, "cipher name")?;
        let mode = text(&raw.cipher_mode, "cipher mode")?;
        let hash = hash_named(text(&raw.hash, "hash spec")?)?;
        let spec = parse_spec(cipher, mode, raw.key_bytes.get() as usize);
        let slots = raw.slots.map(|slot| Slot {
            active: slot.state.get() == SLOT_ACTIVE,
            iterations: slot.iterations.get(),
            salt: slot.salt,
            key_sector: slot.key_sector.get(),
        });
        check_layout(&raw, placement)?;
        Ok(Self {
            spec: spec?,
            hash,
            payload_sector: raw.payload_sector.get(),
            digest: raw.digest,
            digest_salt: raw.digest_salt,
            digest_iterations: raw.digest_iterations.get(),
            uuid: raw.uuid,
            slots,
        })
    }

    /// The header as bytes.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let raw = RawHeader {
            magic: MAGIC,
            version: 1.into(),
            cipher_name: padded(self.spec.alg.header_name()),
            cipher_mode: padded(&self.spec.mode_text()),
            hash: padded(self.hash.name()),
            payload_sector: self.payload_sector.into(),
            key_bytes: (self.spec.key_bytes() as u32).into(),
            digest: self.digest,
            digest_salt: self.digest_salt,
            digest_iterations: self.digest_iterations.into(),
            uuid: self.uuid,
            slots: std::array::from_fn(|index| self.slots[index].raw()),
        };
        zerocopy::transmute!(raw)
    }

    /// The place of a slot in the header: offset and bytes of its fields, which lie inside one or two sectors.
    pub(crate) fn slot_field(&self, index: usize) -> (u64, Vec<u8>) {
        let offset = HEADER_BYTES - (SLOTS - index) * size_of::<RawSlot>();
        (offset as u64, self.slots[index].raw().as_bytes().to_vec())
    }

    /// Bytes of one slot's key material.
    pub fn key_material_bytes(&self) -> usize {
        key_material_bytes(self.spec.key_bytes())
    }

    /// Where a slot's key material starts, in bytes from the header's start.
    pub fn key_offset(&self, slot: usize) -> u64 {
        u64::from(self.slots[slot].key_sector) * SECTOR as u64
    }

    /// Where the payload starts, in bytes.
    pub fn payload_offset(&self) -> u64 {
        u64::from(self.payload_sector) * SECTOR as u64
    }

    /// Slots with a passphrase.
    pub fn active_slots(&self) -> usize {
        self.slots.iter().filter(|slot| slot.active).count()
    }

    /// What `info` tells, in the reference's order.
    pub fn facts(&self, of: Facts) -> Map<String, Value> {
        let mut facts = Map::new();
        let mut put = |key: &str, value: Value| facts.insert(key.to_owned(), value);
        let end = self.uuid.iter().position(|b| *b == 0).unwrap_or(self.uuid.len());
        put("ivgen-alg", json!(self.spec.iv.name()));
        put("detached-header", json!(self.payload_sector == 0));
        put("hash-alg", json!(self.hash.name()));
        put("cipher-alg", json!(self.spec.alg.name()));
        put("uuid", json!(String::from_utf8_lossy(&self.uuid[..end])));
        if let (IvAlg::Essiv, Some(hash)) = (self.spec.iv, self.spec.iv_hash) {
            put("ivgen-hash-alg", json!(hash.name()));
        }
        if of == Facts::Embedded {
            put("format", json!("luks"));
        }
        put("cipher-mode", json!(self.spec.mode.name()));
        let slots = (0..SLOTS).map(|index| {
            let slot = &self.slots[index];
            let mut facts = Map::new();
            facts.insert("active".to_owned(), json!(slot.active));
            if slot.active {
                facts.insert("iters".to_owned(), json!(slot.iterations));
            }
            facts.insert("key-offset".to_owned(), json!(self.key_offset(index)));
            if slot.active {
                facts.insert("stripes".to_owned(), json!(STRIPES));
            }
            Value::Object(facts)
        });
        put("slots", slots.collect());
        put("payload-offset", json!(self.payload_offset()));
        put("master-key-iters", json!(self.digest_iterations));
        facts
    }
}

impl Slot {
    fn raw(&self) -> RawSlot {
        RawSlot {
            state: if self.active { SLOT_ACTIVE } else { SLOT_INACTIVE }.into(),
            iterations: self.iterations.into(),
            salt: self.salt,
            key_sector: self.key_sector.into(),
            stripes: STRIPES.into(),
        }
    }

    /// An empty slot whose key material lies at this sector.
    pub(crate) fn empty(key_sector: u32) -> Self {
        Self { active: false, iterations: 0, salt: [0; SALT_BYTES], key_sector }
    }
}

/// Bytes of key material for a key of `key_bytes`: all stripes, in whole sectors.
pub(crate) fn key_material_bytes(key_bytes: usize) -> usize {
    (key_bytes * STRIPES as usize).next_multiple_of(SECTOR)
}

/// Where the key material of each slot of a new volume starts, and behind them its payload, in sectors.
pub(crate) fn fresh_layout(key_bytes: usize) -> ([u32; SLOTS], u32) {
    let first = SLOT_ALIGN / SECTOR as u64;
    let step = (key_material_bytes(key_bytes) as u64).next_multiple_of(SLOT_ALIGN) / SECTOR as u64;
    let place = |index: u64| u32::try_from(first + index * step).expect("a few thousand sectors");
    (std::array::from_fn(|index| place(index as u64)), place(SLOTS as u64))
}

fn padded<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    out[..text.len()].copy_from_slice(text.as_bytes());
    out
}

fn text<'a>(field: &'a [u8], what: &'static str) -> Result<&'a str, HeaderError> {
    let end = field.iter().position(|b| *b == 0).ok_or(HeaderError::Unterminated(what))?;
    std::str::from_utf8(&field[..end]).map_err(|_| HeaderError::NotText(what))
}

fn hash_named(name: &str) -> Result<Hash, HeaderError> {
    Hash::from_name(name).ok_or_else(|| HeaderError::Hash(name.to_owned()))
}

/// Cipher, mode and IV generator, from `aes` and `cbc-essiv:sha256`.
fn parse_spec(cipher: &str, mode_text: &str, key_bytes: usize) -> Result<CipherSpec, HeaderError> {
    let (mode, iv) =
        mode_text.split_once('-').ok_or_else(|| HeaderError::ModeFormat(mode_text.to_owned()))?;
    let (iv, iv_hash) = match iv.split_once(':') {
        Some((iv, hash)) => (iv, Some(hash_named(hash)?)),
        None => (iv, None),
    };
    let mode = CipherMode::from_name(mode).ok_or_else(|| HeaderError::Mode(mode.to_owned()))?;
    let bytes = key_bytes / mode.keys();
    let alg = CipherAlg::from_header(cipher, bytes).filter(|_| key_bytes.is_multiple_of(mode.keys()));
    let alg = alg.ok_or_else(|| HeaderError::Cipher { name: cipher.to_owned(), bytes })?;
    let iv = IvAlg::from_name(iv).ok_or_else(|| HeaderError::IvGenerator(iv.to_owned()))?;
    let spec = CipherSpec { alg, mode, iv, iv_hash };
    spec.validate()?;
    Ok(spec)
}

/// What must hold about numbers and places, whatever the cipher.
fn check_layout(raw: &RawHeader, placement: Placement) -> Result<(), HeaderError> {
    let sector = SECTOR as u64;
    let header_sectors = (HEADER_BYTES as u64).div_ceil(sector);
    let payload = match (placement, u64::from(raw.payload_sector.get())) {
        (Placement::Detached(_), 0) => u64::MAX,
        (_, sectors) => sectors,
    };
    if payload < header_sectors {
        return Err(HeaderError::PayloadInHeader);
    }
    match raw.digest_iterations.get() {
        0 => return Err(HeaderError::NoIterations),
        1..=ITERATIONS_MAX => {}
        many => return Err(HeaderError::TooManyIterations(many)),
    }
    // The key's length may be anything yet.
    let split = u64::from(raw.key_bytes.get()) * u64::from(STRIPES);
    let span = split.div_ceil(sector);
    let range = |slot: &RawSlot| {
        let start = u64::from(slot.key_sector.get());
        start..start + span
    };
    for (index, slot) in raw.slots.iter().enumerate() {
        if slot.stripes.get() != STRIPES {
            return Err(HeaderError::SlotStripes { slot: index, stripes: slot.stripes.get() as i32 });
        }
        let own = range(slot);
        if own.start < header_sectors {
            return Err(HeaderError::SlotInHeader(index));
        }
        let active = match slot.state.get() {
            SLOT_ACTIVE => true,
            SLOT_INACTIVE => false,
            _ => return Err(HeaderError::SlotState(index)),
        };
        match slot.iterations.get() {
            0 if active => return Err(HeaderError::SlotNoIterations(index)),
            many if active && many > ITERATIONS_MAX => {
                return Err(HeaderError::SlotTooManyIterations(index, many));
            }
            _ => {}
        }
        if own.end > payload {
            return Err(HeaderError::SlotInPayload(index));
        }
        if active && own.end * sector > placement.area() {
            return Err(HeaderError::SlotOutside {
                slot: index,
                end: own.end * sector,
                area: placement.area(),
            });
        }
        for (other, later) in raw.slots.iter().enumerate().skip(index + 1) {
            let later = range(later);
            if own.start < later.end && later.start < own.end {
                return Err(HeaderError::SlotsOverlap(index, other));
            }
        }
    }
    Ok(())
}
