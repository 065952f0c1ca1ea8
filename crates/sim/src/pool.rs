//! Sectors by content: every distinct 512-byte content has a number, and images are lists of numbers.
//!
//! A crash state is then made and unmade by swapping a few integers, and the data oracle compares integers.
//! Number 0 is the sector of zeroes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::keys::Opener;
use crate::rng::mix;
use crate::stamp::Stamp;

/// Bytes in a sector, the unit of the contract.
pub const SECTOR: usize = 512;

/// The number of a content.
pub type Content = u32;

/// The sector of zeroes.
pub const ZERO: Content = 0;

/// The number of nothing that was ever written: what a wrong key makes of a sector.
pub const NOISE: Content = Content::MAX;

/// Hands the key through: it is a hash already.
#[derive(Default)]
pub struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are used")
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// A map from hashes. Looked up only, never iterated: its order is not part of any decision.
pub type HashIndex<V> = HashMap<u64, V, BuildHasherDefault<Identity>>;

/// All contents seen.
pub struct Pool {
    sectors: Vec<[u8; SECTOR]>,
    hashes: Vec<u64>,
    index: HashIndex<Content>,
    /// What stamps are the first bytes of, by a hash of the stamp.
    stamps: HashIndex<Content>,
    /// What encrypted sectors hold, by their content and the way to open them.
    opened: RefCell<HashIndex<Content>>,
}

/// A pool that disks, models and oracles share.
pub type SharedPool = Arc<Mutex<Pool>>;

impl Default for Pool {
    fn default() -> Self {
        let mut pool = Self {
            sectors: Vec::new(),
            hashes: Vec::new(),
            index: HashIndex::default(),
            stamps: HashIndex::default(),
            opened: RefCell::default(),
        };
        pool.intern(&[0; SECTOR]);
        pool
    }
}

impl Pool {
    /// An empty pool behind a lock.
    pub fn shared() -> SharedPool {
        Arc::new(Mutex::new(Self::default()))
    }

    /// The number of `bytes`, or the key that they would get one under.
    fn find(&self, bytes: &[u8; SECTOR]) -> Result<Content, u64> {
        let mut hash = hash_sector(bytes);
        while let Some(&id) = self.index.get(&hash) {
            if self.sectors[id as usize] == *bytes {
                return Ok(id);
            }
            hash = mix(hash);
        }
        Err(hash)
    }

    /// What the encrypted content of a sector of the guest's disk, at a sector of the file, holds. [`NOISE`] if that
    /// is nothing that anybody ever wrote.
    pub fn opened(&self, stored: Content, opener: &Opener, guest: u64, host: u64) -> Content {
        let key = mix(self.hash(stored) ^ opener.place(guest, host));
        if let Some(known) = self.opened.borrow().get(&key) {
            return *known;
        }
        // Whoever wrote it had a number for it first; so what has none now may get one later, and is not kept.
        let found = self.find(&opener.open(self.bytes(stored), guest, host));
        let Ok(content) = found else { return NOISE };
        self.opened.borrow_mut().insert(key, content);
        content
    }

    /// The number of `bytes`.
    pub fn intern(&mut self, bytes: &[u8; SECTOR]) -> Content {
        let hash = match self.find(bytes) {
            Ok(id) => return id,
            Err(hash) => hash,
        };
        let id = self.sectors.len() as Content;
        self.sectors.push(*bytes);
        self.hashes.push(hash);
        self.index.insert(hash, id);
        id
    }

    /// The number of `bytes`, which are mostly those of `guess`: then nothing is hashed and nothing looked up.
    pub fn intern_like(&mut self, bytes: &[u8; SECTOR], guess: Content) -> Content {
        if self.sectors[guess as usize] == *bytes { guess } else { self.intern(bytes) }
    }

    /// The number of what a stamp makes of a sector, which is stamped again in run after run.
    pub fn intern_stamp(&mut self, stamp: &Stamp) -> Content {
        let (head, key) = (stamp.head(), stamp.hash());
        match self.stamps.get(&key) {
            Some(&known) if self.sectors[known as usize].starts_with(&head) => known,
            _ => {
                let content = self.intern(&stamp.bytes());
                self.stamps.insert(key, content);
                content
            }
        }
    }

    /// The bytes of a content.
    pub fn bytes(&self, id: Content) -> &[u8; SECTOR] {
        &self.sectors[id as usize]
    }

    /// A hash of the content, the same in every run.
    pub fn hash(&self, id: Content) -> u64 {
        self.hashes[id as usize]
    }

    /// Number of contents, the sector of zeroes among them.
    pub fn count(&self) -> usize {
        self.sectors.len()
    }

    /// Forgets every content numbered `mark` and up.
    pub fn truncate(&mut self, mark: usize) {
        self.opened.get_mut().clear();
        self.stamps.clear();
        for hash in self.hashes.drain(mark..) {
            self.index.remove(&hash);
        }
        self.sectors.truncate(mark);
    }

    /// The contents of a byte string, zero-padded to whole sectors.
    pub fn intern_all(&mut self, bytes: &[u8]) -> Vec<Content> {
        let mut out = Vec::with_capacity(bytes.len().div_ceil(SECTOR));
        for chunk in bytes.chunks(SECTOR) {
            let mut sector = [0; SECTOR];
            sector[..chunk.len()].copy_from_slice(chunk);
            out.push(self.intern(&sector));
        }
        out
    }
}

/// Four independent lanes, so that the multiplications overlap.
fn hash_sector(bytes: &[u8; SECTOR]) -> u64 {
    const K: u64 = 0x9fb2_1c65_1e98_df25;
    let mut lanes = [0x243f_6a88_85a3_08d3u64, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, K];
    for block in bytes.as_chunks::<32>().0 {
        for (lane, word) in lanes.iter_mut().zip(block.as_chunks::<8>().0) {
            *lane = (*lane ^ u64::from_le_bytes(*word)).wrapping_mul(K).rotate_left(29);
        }
    }
    lanes.iter().fold(0, |acc, lane| mix(acc ^ lane))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_bytes_have_one_number() {
        let mut pool = Pool::default();
        assert_eq!(pool.intern(&[0; SECTOR]), ZERO);
        let a = pool.intern(&[1; SECTOR]);
        assert_eq!(pool.intern(&[1; SECTOR]), a);
        assert_eq!(pool.bytes(a), &[1; SECTOR]);
        pool.truncate(1);
        assert_eq!((pool.count(), pool.intern(&[2; SECTOR])), (1, 1));
    }
}
