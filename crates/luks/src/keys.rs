//! Keys: derived from passphrases on all cores, found in key slots, put into them.

use cowbell_block::outside::Outside;
use cowbell_block::spawn::{self, Running, Spawner};
use cowbell_block::{Buf, Child, Error, ErrorKind, Result, Secret};
use zeroize::{Zeroize, Zeroizing};

use crate::hash::Hash;
use crate::header::{
    DIGEST_BYTES, HEADER_BYTES, Header, HeaderError, ITERATIONS_MAX, Placement, SALT_BYTES, SLOTS,
};
use crate::sector::SectorCipher;
use crate::split;

/// Least iterations that are written, whatever the time allows.
pub(crate) const ITERATIONS_MIN: u64 = 1000;

/// The key that a volume's sectors are encrypted with. Wiped when dropped.
pub struct MasterKey(Zeroizing<Vec<u8>>);

/// A passphrase that opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Invalid password, cannot unlock any keyslot")]
pub struct WrongPassphrase;

impl From<WrongPassphrase> for Error {
    fn from(e: WrongPassphrase) -> Self {
        Error::new(ErrorKind::PermissionDenied, e)
    }
}

impl MasterKey {
    /// A new key for a volume.
    pub(crate) fn random(bytes: usize, outside: &dyn Outside) -> Result<Self> {
        let mut key = Zeroizing::new(vec![0; bytes]);
        outside.fill_random(&mut key)?;
        Ok(Self(key))
    }

    /// The volume's cipher.
    ///
    /// # Errors
    /// The key does not fit, which a parsed header rules out.
    pub fn cipher(&self, header: &Header) -> Result<SectorCipher> {
        SectorCipher::new(&header.spec, &self.0).map_err(|e| HeaderError::Spec(e).into())
    }

    /// What the header remembers the key by.
    pub(crate) fn digest(&self, hash: Hash, salt: &[u8], iterations: u32) -> [u8; DIGEST_BYTES] {
        let digest = hash.pbkdf2(&self.0, salt, iterations, DIGEST_BYTES);
        digest[..].try_into().expect("as long as asked for")
    }

    /// The key, split and encrypted for a slot whose passphrase gives `slot_key`.
    pub(crate) fn seal(&self, header: &Header, slot_key: &[u8], outside: &dyn Outside) -> Result<Buf> {
        let mut material = Buf::zeroed(header.key_material_bytes());
        let split = self.0.len() * crate::header::STRIPES as usize;
        outside.fill_random(&mut material[..split])?;
        split::split(header.hash, &self.0, &mut material[..split]);
        let cipher = SectorCipher::new(&header.spec, slot_key).map_err(HeaderError::Spec)?;
        cipher.encrypt(0, &mut material);
        Ok(material)
    }

    /// The key from a slot's material, if the passphrase that gave `slot_key` is the slot's.
    fn unseal(header: &Header, slot_key: &[u8], material: &mut [u8]) -> Result<Option<Self>> {
        let cipher = SectorCipher::new(&header.spec, slot_key).map_err(HeaderError::Spec)?;
        cipher.decrypt(0, material);
        let len = header.spec.key_bytes();
        let split = len * crate::header::STRIPES as usize;
        let key = Self(split::merge(header.hash, &material[..split], len));
        material.zeroize();
        let digest = key.digest(header.hash, &header.digest_salt, header.digest_iterations);
        Ok((digest == header.digest).then_some(key))
    }
}

/// Where a header and its key material lie.
#[derive(Clone)]
pub struct Area {
    /// The node.
    pub child: Child,
    /// The header's first byte.
    pub offset: u64,
}

impl Area {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// The rule that is broken, or the node's error.
    pub async fn read_header(&self, placement: Placement) -> Result<Header> {
        let len = self.child.len().saturating_sub(self.offset).min(HEADER_BYTES as u64);
        let bytes = match len {
            0 => Buf::zeroed(0),
            len => self.child.read(self.offset, len as usize).await?,
        };
        Ok(Header::parse(&bytes, placement)?)
    }

    /// The first active slot, of those that `filter` lets through, which the passphrase opens.
    ///
    /// Keys are derived in rounds of as many slots as there are cores to keep busy.
    ///
    /// # Errors
    /// The node's.
    pub async fn find_key(
        &self,
        header: &Header,
        passphrase: &Secret,
        spawner: Option<&Spawner>,
        filter: impl Fn(usize) -> bool,
    ) -> Result<Option<(usize, MasterKey)>> {
        let wanted: Vec<usize> = (0..SLOTS).filter(|i| header.slots[*i].active && filter(*i)).collect();
        let blocks = header.hash.blocks_for(header.spec.key_bytes());
        let width = spawner.map_or(1, |spawner| spawner.width());
        for round in wanted.chunks(width.div_ceil(blocks).max(1)) {
            let started: Vec<(usize, Derivation)> = round
                .iter()
                .map(|index| (*index, Derivation::of_slot(header, *index, passphrase, spawner)))
                .collect();
            for (index, derivation) in started {
                let slot_key = derivation.finish().await;
                let offset = self.offset + header.key_offset(index);
                let mut material = self.child.read(offset, header.key_material_bytes()).await?;
                if let Some(key) = MasterKey::unseal(header, &slot_key, &mut material)? {
                    return Ok(Some((index, key)));
                }
            }
        }
        Ok(None)
    }

    /// The volume's key.
    ///
    /// # Errors
    /// [`WrongPassphrase`], or the node's.
    pub async fn unlock(
        &self,
        header: &Header,
        passphrase: &Secret,
        spawner: Option<&Spawner>,
    ) -> Result<MasterKey> {
        let found = self.find_key(header, passphrase, spawner, |_| true).await?;
        Ok(found.map(|(_, key)| key).ok_or(WrongPassphrase)?)
    }
}

/// A key on its way from a passphrase, block by block.
pub(crate) struct Derivation {
    blocks: Vec<Block>,
    bytes: usize,
}

enum Block {
    Done(Zeroizing<Vec<u8>>),
    Running(Running<Zeroizing<Vec<u8>>>),
}

impl Derivation {
    fn of_slot(header: &Header, index: usize, passphrase: &Secret, spawner: Option<&Spawner>) -> Self {
        let slot = &header.slots[index];
        Self::start(header.hash, passphrase, slot.salt, slot.iterations, header.spec.key_bytes(), spawner)
    }

    /// Starts deriving a key of `bytes`.
    pub fn start(
        hash: Hash,
        passphrase: &Secret,
        salt: [u8; SALT_BYTES],
        iterations: u32,
        bytes: usize,
        spawner: Option<&Spawner>,
    ) -> Self {
        let blocks = (0..hash.blocks_for(bytes)).map(|index| match spawner {
            Some(spawner) if spawner.width() > 1 => {
                let passphrase = passphrase.clone();
                let work = async move { hash.pbkdf2_block(passphrase.bytes(), &salt, iterations, index) };
                Block::Running(spawn::run(&**spawner, work))
            }
            _ => Block::Done(hash.pbkdf2_block(passphrase.bytes(), &salt, iterations, index)),
        });
        Self { blocks: blocks.collect(), bytes }
    }

    /// The key.
    pub async fn finish(self) -> Zeroizing<Vec<u8>> {
        // One allocation of the final length: pieces of keys are not left behind by growing.
        let mut key = Zeroizing::new(vec![0; self.bytes]);
        let mut rest = &mut key[..];
        for block in self.blocks {
            let block = match block {
                Block::Done(block) => block,
                Block::Running(running) => running.await,
            };
            let len = block.len().min(rest.len());
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&block[..len]);
            rest = later;
        }
        key
    }
}

/// How many iterations of PBKDF2 take `time_ms` milliseconds of one core for a key of `bytes`, divided by `share`.
pub(crate) fn iterations_in(
    time_ms: u64,
    hash: Hash,
    bytes: usize,
    share: u64,
    outside: &dyn Outside,
) -> u32 {
    let rate = hash.iterations_per_second(bytes, || outside.thread_time());
    let iterations = rate.saturating_mul(time_ms) / 1000 / share;
    iterations.clamp(ITERATIONS_MIN, u64::from(ITERATIONS_MAX)) as u32
}
