//! Encrypted images: guest data is encrypted on its way into its storage and decrypted on its way out.
//!
//! | method | header | cipher | sector number in IVs |
//! |---|---|---|---|
//! | 1 AES | none | AES-128 in CBC, keyed with the first 16 bytes of the passphrase | of the guest's disk |
//! | 2 LUKS | a LUKS1 header in clusters of its own (extension `0537be77`) | as that says | of the host's file |
//!
//! Metadata is not encrypted, compressed clusters do not exist. Where storage has never been written it holds no
//! zeroes but noise, so that whoever publishes storage writes all of it.

use std::sync::Arc;

use cowbell_block::outside::MaybeOutside;
use cowbell_block::range_lock::{LockMode, RangeLock};
use cowbell_block::spawn::Spawner;
use cowbell_block::{
    Buf, Bufs, Cause, Child, Completion, DebugEvent, Error, ErrorKind, Op, Request, Result, Secret,
    TraceEvent,
};
use cowbell_luks::header::Facts;
use cowbell_luks::{Area, CipherSpec, KeyMissing, MasterKey, Placement, SECTOR, SectorCipher};
use parking_lot::Mutex;
use serde_json::{Map, Value};

use crate::create::{EncryptionMethod, NewEncryption};
use crate::engine::Engine;
use crate::geometry::HostOffset;
use crate::header::{CryptoExtension, Header};
use crate::state::EpochPin;
use crate::told::{Task, cluster_type};
use crate::{read, write};

/// No encryption.
pub(crate) const METHOD_NONE: u32 = 0;
/// AES-CBC, of old.
pub(crate) const METHOD_AES: u32 = 1;
/// LUKS1.
pub(crate) const METHOD_LUKS: u32 = 2;

/// Bytes encrypted at once, beside the caller's own. Longer writes go piece by piece.
const PIECE_BYTES: u64 = 1 << 20;
/// Longest LUKS header that is taken: more than any key's material, of which there are eight.
const HEADER_BYTES_MAX: u64 = 64 << 20;

/// What an encrypted image is opened with.
#[derive(Clone, Default)]
pub struct Unlock {
    /// The method that the user expects: `aes` or `luks`.
    pub format: Option<String>,
    /// The passphrase; not needed for metadata alone.
    pub passphrase: Option<Secret>,
    /// The passphrase's name, which is part of the node's.
    pub key_secret: Option<String>,
    /// Random bytes and time, for new passphrases.
    pub outside: MaybeOutside,
}

/// An image that cannot be unlocked as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CryptoError {
    #[error("Header reported '{stored}' encryption format but options specify '{given}'")]
    OtherFormat { stored: &'static str, given: String },
    #[error("No encryption in image header, but options specified format '{0}'")]
    NotEncrypted(String),
    #[error("Missing CRYPTO header for crypt method {METHOD_LUKS}")]
    NoHeader,
    #[error("Encryption header offset '{offset}' is not a multiple of cluster size '{cluster}'")]
    HeaderUnaligned { offset: u64, cluster: u64 },
    #[error("Encryption header of {len} bytes at {offset} does not lie in the image file of {file} bytes")]
    HeaderOutside { offset: u64, len: u64, file: u64 },
    #[error("Can't amend encryption options - encryption not present")]
    NothingToAmend,
    #[error("Only LUKS encryption options can be amended")]
    OnlyLuks,
}

impl From<CryptoError> for Error {
    fn from(e: CryptoError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// How an image's data is encrypted.
pub(crate) struct Crypto {
    /// `None`: opened for its metadata only.
    cipher: Option<SectorCipher>,
    tweak: Tweak,
    luks: Option<LuksArea>,
    pub key_secret: Option<String>,
    outside: MaybeOutside,
}

/// What sectors are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tweak {
    Guest,
    Host,
}

struct LuksArea {
    extension: CryptoExtension,
    header: Mutex<cowbell_luks::Header>,
    key: Option<MasterKey>,
    /// One change of key slots at a time.
    amending: RangeLock,
}

impl Crypto {
    /// What the image with this header is encrypted with; `None` if it is not.
    ///
    /// # Errors
    /// The LUKS header is broken, the passphrase is missing or wrong, or the file's error.
    pub async fn open(
        file: &Child,
        header: &Header,
        unlock: Unlock,
        metadata_only: bool,
        spawner: Option<&Spawner>,
    ) -> Result<Option<Self>> {
        let stored = match header.crypt_method {
            METHOD_NONE => {
                return match unlock.format {
                    Some(format) => Err(CryptoError::NotEncrypted(format).into()),
                    None => Ok(None),
                };
            }
            METHOD_AES => "aes",
            _ => "luks",
        };
        if let Some(given) = unlock.format.filter(|given| given != stored) {
            return Err(CryptoError::OtherFormat { stored, given }.into());
        }
        if header.crypt_method == METHOD_LUKS && header.crypto().is_none() {
            return Err(CryptoError::NoHeader.into());
        }
        let passphrase = match (unlock.passphrase, metadata_only) {
            (_, true) => None,
            (Some(passphrase), false) => Some(passphrase),
            (None, false) => return Err(KeyMissing("encrypt.key-secret").into()),
        };
        let (key_secret, outside) = (unlock.key_secret, unlock.outside);
        if header.crypt_method == METHOD_AES {
            let cipher = passphrase.as_ref().map(legacy_cipher);
            return Ok(Some(Self { cipher, tweak: Tweak::Guest, luks: None, key_secret, outside }));
        }
        let extension = find_header(file, header)?;
        let area = Area { child: file.clone(), offset: extension.offset.0 };
        let luks = area.read_header(Placement::Embedded(extension.len)).await?;
        let key = match &passphrase {
            Some(passphrase) => Some(area.unlock(&luks, passphrase, spawner).await?),
            None => None,
        };
        let cipher = key.as_ref().map(|key| key.cipher(&luks)).transpose()?;
        let luks = LuksArea { extension, header: Mutex::new(luks), key, amending: RangeLock::new() };
        Ok(Some(Self { cipher, tweak: Tweak::Host, luks: Some(luks), key_secret, outside }))
    }

    /// What `info` tells.
    pub fn facts(&self) -> Map<String, Value> {
        match &self.luks {
            Some(luks) => luks.header.lock().facts(Facts::Embedded),
            None => Map::from_iter([("format".to_owned(), Value::from("aes"))]),
        }
    }

    fn cipher(&self) -> Result<&SectorCipher> {
        Ok(self.cipher.as_ref().ok_or(KeyMissing("encrypt.key-secret"))?)
    }

    fn sector(&self, guest: u64, host: HostOffset) -> u64 {
        let offset = match self.tweak {
            Tweak::Guest => guest,
            Tweak::Host => host.0,
        };
        offset / SECTOR as u64
    }

    fn decrypted(&self, guest: u64, host: HostOffset, mut completion: Completion) -> Completion {
        if completion.result.is_err() {
            return completion;
        }
        match self.cipher() {
            Ok(cipher) => {
                cipher.decrypt_bufs(self.sector(guest, host), &mut completion.bufs);
                completion
            }
            Err(e) => Completion::failed(completion.bufs, e),
        }
    }
}

/// The cipher of method 1: short passphrases are padded with zeroes, long ones cut.
fn legacy_cipher(passphrase: &Secret) -> SectorCipher {
    let spec = CipherSpec::LEGACY_AES;
    let mut key = [0; 16];
    let len = passphrase.bytes().len().min(key.len());
    key[..len].copy_from_slice(&passphrase.bytes()[..len]);
    let cipher = SectorCipher::new(&spec, &key).expect("a key of the cipher's length");
    zeroize::Zeroize::zeroize(&mut key);
    cipher
}

fn find_header(file: &Child, header: &Header) -> Result<CryptoExtension> {
    let extension = header.crypto().ok_or(CryptoError::NoHeader)?;
    let (CryptoExtension { offset, len }, cluster) = (extension, 1u64 << header.cluster_bits);
    if !offset.0.is_multiple_of(cluster) || offset.0 == 0 {
        return Err(CryptoError::HeaderUnaligned { offset: offset.0, cluster }.into());
    }
    let end = offset.0.checked_add(len).filter(|_| len <= HEADER_BYTES_MAX);
    if end.is_none_or(|end| end > file.len().next_multiple_of(cluster)) {
        return Err(CryptoError::HeaderOutside { offset: offset.0, len, file: file.len() }.into());
    }
    Ok(extension)
}

impl Engine {
    /// Whether guest data is encrypted: then storage that was never written does not read as zeroes.
    pub fn is_encrypted(&self) -> bool {
        self.around.crypto.is_some()
    }

    /// Reads guest data from its storage.
    pub fn read_stored(
        self: &Arc<Self>,
        guest: u64,
        host: HostOffset,
        pin: EpochPin,
        bufs: Bufs,
        cause: Cause,
    ) -> Op {
        let Some(crypto) = self.around.crypto.clone() else { unreachable!("the caller asked") };
        let request = Request::read(host.0, bufs).caused_by(cause);
        if let Some(suspension) = self.file.event(DebugEvent::ReadAio, cause) {
            let data = self.data().clone();
            return Op::wait(async move {
                suspension.await;
                let completion = data.submit(request).finish().await;
                drop(pin);
                crypto.decrypted(guest, host, completion)
            });
        }
        match self.data().submit(request) {
            Op::Done(completion) => Op::Done(crypto.decrypted(guest, host, completion)),
            Op::Wait(future) => Op::wait(async move {
                let completion = future.await;
                drop(pin);
                crypto.decrypted(guest, host, completion)
            }),
        }
    }

    /// Writes guest data, which begins at `guest`, to its storage. The completion brings the buffers back as they
    /// were.
    pub fn write_stored(&self, guest: u64, host: HostOffset, bufs: Bufs, cause: Cause) -> Op {
        if self.file.is_traced() {
            let (cluster_type, len) = (cluster_type::WRITTEN, bufs.len() as u64);
            self.tell_task(Task { what: "write", cluster_type, host: host.0, guest, len }, cause);
            self.trace(TraceEvent::Qcow2WritevData, [cause.request, host.0]);
        }
        let Some(crypto) = &self.around.crypto else {
            return self.data().submit(Request::write(host.0, bufs).caused_by(cause));
        };
        let (crypto, data) = (crypto.clone(), self.data().clone());
        Op::wait(async move {
            match crypto.write(&data, guest, host, &bufs, cause).await {
                Ok(()) => Completion::done(bufs),
                Err(e) => Completion::failed(bufs, e),
            }
        })
    }

    /// Makes a fresh image an encrypted one. It must be opened again for that to have an effect on data.
    ///
    /// # Errors
    /// There are no random bytes, or the file's error.
    pub async fn encrypt(self: &Arc<Self>, new: &NewEncryption) -> Result<()> {
        let EncryptionMethod::Luks(options) = &new.method else {
            return self.rewrite_header(|header| header.crypt_method = METHOD_AES).await;
        };
        let spawner = new.spawner.as_ref();
        let volume = cowbell_luks::create(options, &new.passphrase, &*new.outside, spawner).await?;
        let len = options.header_area_bytes();
        let clusters = self.take_contiguous(self.geometry.clusters_for(len)).await?;
        let offset = HostOffset(clusters.start << self.geometry.cluster_bits);
        let end = clusters.end << self.geometry.cluster_bits;
        let written = offset.0 + volume.area.len() as u64;
        self.file.write(offset.0, volume.area).await?;
        // The other slots and the rest of the last cluster: nothing of an earlier content of the file is left.
        self.file.submit(Request::write_zeroes(written, end - written)).finish().await.result?;
        self.settle_refcounts().await?;
        self.rewrite_header(|header| header.set_crypto(CryptoExtension { offset, len })).await
    }

    /// Changes key slots. Durable when it returns.
    ///
    /// # Errors
    /// The change is refused, or the file's error. That poisons the image: a flush that failed may have lost guest
    /// data as well, and a later one would not say so.
    pub async fn amend_keys(
        self: &Arc<Self>,
        options: &cowbell_luks::amend::AmendOptions,
        secrets: &cowbell_block::Secrets,
        force: cowbell_block::Force,
    ) -> Result<()> {
        self.check_writable()?;
        let crypto = self.around.crypto.as_ref().ok_or(CryptoError::NothingToAmend)?;
        let luks = crypto.luks.as_ref().ok_or(CryptoError::OnlyLuks)?;
        let change = options.resolve(secrets)?;
        let key = luks.key.as_ref().ok_or(KeyMissing("encrypt.key-secret"))?;
        let outside = cowbell_block::outside::required(&crypto.outside)?;
        let _turn = luks.amending.lock(0..1, LockMode::Exclusive).await;
        let mut header = luks.header.lock().clone();
        let area = Area { child: self.file.clone(), offset: luks.extension.offset.0 };
        let mut slots = cowbell_luks::amend::Slots {
            area: &area,
            header: &mut header,
            key,
            outside: &*outside,
            spawner: self.around.spawn.as_ref(),
            barrier: &|| {
                let engine = self.clone();
                Box::pin(async move { engine.barrier().await })
            },
        };
        let result = slots.amend(&change, force).await;
        *luks.header.lock() = header;
        result.map_err(|e| match e.kind() {
            ErrorKind::InvalidInput | ErrorKind::PermissionDenied => e,
            _ => self.poison(e),
        })
    }
}

impl Crypto {
    async fn write(
        &self,
        data: &Child,
        guest: u64,
        host: HostOffset,
        bufs: &Bufs,
        cause: Cause,
    ) -> Result<()> {
        let cipher = self.cipher()?;
        let (sector, len) = (self.sector(guest, host), bufs.len() as u64);
        let mut at = 0;
        while at < len {
            let n = PIECE_BYTES.min(len - at);
            let piece = cipher.encrypt_part(sector + at / SECTOR as u64, bufs, at as usize, n as usize);
            let request = Request::write(host.0 + at, piece).caused_by(cause);
            data.submit(request).finish().await.into_bufs()?.recycle();
            at += n;
        }
        Ok(())
    }
}

/// Reads any range of an image, also one that ends inside of sectors: nobody aligns requests to the VM state.
pub(crate) async fn read_any(engine: &Arc<Engine>, at: u64, mut bufs: Bufs, cause: Cause) -> Completion {
    let Some((start, len)) = engine.widened(at, bufs.len() as u64) else {
        return read::read(engine, at, bufs, cause).await;
    };
    match read::read(engine, start, Buf::scratch(len as usize).into(), cause).await.into_bufs() {
        Ok(whole) => {
            let whole = whole.to_contiguous_or_self();
            let from = (at - start) as usize;
            let wanted = bufs.len();
            bufs.write_at(0, &whole[from..from + wanted]);
            whole.recycle();
            Completion::done(bufs)
        }
        Err(e) => Completion::failed(bufs, e),
    }
}

/// Writes any range of an image whose clusters the caller holds exclusively, also one that ends inside of sectors.
pub(crate) async fn write_any(engine: &Arc<Engine>, at: u64, bufs: Bufs, cause: Cause) -> Completion {
    let Some((start, len)) = engine.widened(at, bufs.len() as u64) else {
        return write::write(engine, at, bufs, cause).await;
    };
    let written = async {
        let whole = read::read(engine, start, Buf::scratch(len as usize).into(), cause).await.into_bufs()?;
        let mut whole = whole.to_contiguous_or_self();
        let from = (at - start) as usize;
        bufs.read_at(0, &mut whole[from..from + bufs.len()]);
        write::write(engine, start, whole.into(), cause).await.into_bufs()
    };
    match written.await {
        Ok(whole) => {
            whole.recycle();
            Completion::done(bufs)
        }
        Err(e) => Completion::failed(bufs, e),
    }
}

impl Engine {
    /// The sectors around a range that ends inside of them, if that matters.
    fn widened(&self, at: u64, len: u64) -> Option<(u64, u64)> {
        let sector = SECTOR as u64;
        let start = at - at % sector;
        let end = (at + len).next_multiple_of(sector);
        (self.is_encrypted() && (start, end) != (at, at + len)).then_some((start, end - start))
    }
}
