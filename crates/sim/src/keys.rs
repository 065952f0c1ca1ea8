//! An independent look at encrypted images: which passphrases open one, and what its sectors hold.
//!
//! Written from the specifications of qcow2 and LUKS1 for what the simulation's images use (AES-128 in CBC with sector
//! numbers as IVs, SHA-256) and sharing no code with the engine. Anything else opens with no passphrase.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aes::Aes128;
use cipher::{Array, BlockCipherDecrypt, KeyInit};
use cowbell_block::outside::Outside;
use cowbell_block::{Result, Secret};
use sha2::{Digest, Sha256};

use crate::pool::{HashIndex, SECTOR};
use crate::rng::{Rng, mix};
use crate::scenario::KeyOp;
use crate::subject::ImageBytes;

/// The passphrases that key slots are given. The first one is there at the beginning.
pub const PASSPHRASES: [&str; 3] = ["the first one", "the second one", "the third one"];

/// A set of passphrases: bit n is the n-th.
pub type Keys = u8;

/// The passphrase of this number.
pub fn passphrase(number: usize) -> Secret {
    Secret::new(PASSPHRASES[number].as_bytes().to_vec())
}

/// Chance and time that repeat.
pub struct Repeating {
    rng: Mutex<Rng>,
    calls: AtomicU64,
}

impl Repeating {
    /// The same for the same seed.
    pub fn new(seed: u64) -> Self {
        Self { rng: Mutex::new(Rng::new(seed)), calls: AtomicU64::new(0) }
    }
}

impl Outside for Repeating {
    fn fill_random(&self, bytes: &mut [u8]) -> Result<()> {
        let mut rng = self.rng.lock().expect("nobody panics with it");
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&rng.next_u64().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }

    /// Everything takes a quarter of an hour, so that keys are derived in as few iterations as there may be.
    fn thread_time(&self) -> Duration {
        Duration::from_secs(900 * self.calls.fetch_add(1, Ordering::Relaxed))
    }
}

/// What IVs are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Guest,
    Host,
}

/// The way to what an encrypted image's sectors hold.
#[derive(Clone)]
pub struct Opener {
    cipher: Aes128,
    counted: Counted,
    /// Different for different keys.
    id: u64,
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Opener({:?})", self.counted)
    }
}

impl Opener {
    fn new(key: &[u8; 16], counted: Counted) -> Self {
        let id = key.as_chunks::<8>().0.iter().fold(1, |id, word| mix(id ^ u64::from_le_bytes(*word)));
        Self { cipher: Aes128::new(key.into()), counted, id }
    }

    /// The cipher of an image of old: the passphrase is the key.
    pub fn of_old() -> Self {
        let mut key = [0; 16];
        let passphrase = PASSPHRASES[0].as_bytes();
        let len = passphrase.len().min(key.len());
        key[..len].copy_from_slice(&passphrase[..len]);
        Self::new(&key, Counted::Guest)
    }

    /// A hash of the key and of what a sector's IV is made of.
    pub fn place(&self, guest: u64, host: u64) -> u64 {
        mix(self.id ^ self.number(guest, host))
    }

    fn number(&self, guest: u64, host: u64) -> u64 {
        if self.counted == Counted::Guest { guest } else { host }
    }

    /// What a sector holds.
    pub fn open(&self, bytes: &[u8; SECTOR], guest: u64, host: u64) -> [u8; SECTOR] {
        let mut out = *bytes;
        decrypt(&self.cipher, self.number(guest, host), &mut out);
        out
    }
}

/// One sector in CBC, whose IV is its number.
fn decrypt(cipher: &Aes128, number: u64, sector: &mut [u8]) {
    let mut before = [0; 16];
    before[..8].copy_from_slice(&number.to_le_bytes());
    for block in sector.as_chunks_mut::<16>().0 {
        let stored = *block;
        let mut plain = Array::from(stored);
        cipher.decrypt_block(&mut plain);
        for ((byte, plain), before) in block.iter_mut().zip(plain).zip(before) {
            *byte = plain ^ before;
        }
        before = stored;
    }
}

/// What was found in LUKS headers, by their content.
#[derive(Default)]
pub struct Opened {
    known: HashIndex<Locks>,
}

/// What opens an image.
#[derive(Clone, Default)]
pub struct Locks {
    /// The passphrases that do.
    pub keys: Keys,
    /// What they lead to.
    pub opener: Option<Opener>,
    /// Slots that are in use and that none of them opens: whoever counts slots takes them for a way in.
    pub dead: usize,
}

const KNOWN_MAX: usize = 4096;
const SLOTS: usize = 8;
const ACTIVE: u32 = 0x00ac_71f3;
const KEY_BYTES: usize = 16;

/// One active key slot.
struct Slot {
    iterations: u32,
    salt: [u8; 32],
    stripes: usize,
    material: Vec<u8>,
}

impl Opened {
    /// What opens an image with a LUKS header.
    pub fn look(&mut self, image: &ImageBytes<'_>) -> Locks {
        let Some(offset) = luks_header(image) else { return Locks::default() };
        let mut header = [0; 592];
        image.read(offset, &mut header);
        let slots: Vec<Slot> = (0..SLOTS).filter_map(|index| slot(image, offset, &header, index)).collect();
        let words = |bytes: &[u8], hash: u64| {
            let words = bytes.as_chunks::<8>().0.iter();
            words.fold(hash, |hash, word| mix(hash ^ u64::from_le_bytes(*word)))
        };
        let key = slots.iter().fold(words(&header, 0), |hash, slot| words(&slot.material, hash));
        if self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
        self.known.entry(key).or_insert_with(|| open_all(&header, &slots)).clone()
    }
}

/// Where the LUKS header is, by the extension that says so (*Full disk encryption header pointer*).
fn luks_header(image: &ImageBytes<'_>) -> Option<u64> {
    let word = |at: u64| {
        let mut raw = [0; 4];
        image.read(at, &mut raw);
        u32::from_be_bytes(raw)
    };
    let mut at = if word(4) < 3 { 72 } else { u64::from(word(100)) };
    while at < 1 << 16 {
        match (word(at), u64::from(word(at + 4))) {
            (0, _) => return None,
            (0x0537_be77, _) => return Some(u64::from(word(at + 8)) << 32 | u64::from(word(at + 12))),
            (_, len) => at += 8 + len.next_multiple_of(8),
        }
    }
    None
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// A key slot that is in use. The material of others is not looked at.
fn slot(image: &ImageBytes<'_>, offset: u64, header: &[u8; 592], index: usize) -> Option<Slot> {
    let at = 208 + 48 * index;
    let stripes = be32(header, at + 44).min(4000) as usize;
    if be32(header, at) != ACTIVE {
        return None;
    }
    let mut material = vec![0; stripes * KEY_BYTES];
    image.read(offset + u64::from(be32(header, at + 40)) * SECTOR as u64, &mut material);
    let salt = header[at + 8..at + 40].try_into().expect("32 bytes");
    Some(Slot { iterations: be32(header, at + 4), salt, stripes, material })
}

fn open_all(header: &[u8; 592], slots: &[Slot]) -> Locks {
    let text = |at: usize, expected: &str| header[at..].starts_with(expected.as_bytes());
    let usual = header.starts_with(b"LUKS\xba\xbe\0\x01") && text(8, "aes\0") && text(40, "cbc-plain64\0");
    let mut locks = Locks::default();
    if !usual || !text(72, "sha256\0") || be32(header, 108) as usize != KEY_BYTES {
        return locks;
    }
    for slot in slots {
        let opens = |passphrase: &str| open(header, slot, passphrase.as_bytes());
        match PASSPHRASES.iter().enumerate().find_map(|(number, p)| Some((number, opens(p)?))) {
            Some((number, key)) => {
                locks.keys |= 1 << number;
                locks.opener = Some(Opener::new(&key, Counted::Host));
            }
            None => locks.dead += 1,
        }
    }
    locks
}

/// The volume's key, if this passphrase is the slot's.
fn open(header: &[u8; 592], slot: &Slot, passphrase: &[u8]) -> Option<[u8; KEY_BYTES]> {
    let mut key = [0; KEY_BYTES];
    derive(passphrase, &slot.salt, slot.iterations, &mut key);
    let cipher = Aes128::new(&key.into());
    let mut material = slot.material.clone();
    for (sector, number) in material.chunks_mut(SECTOR).zip(0..) {
        decrypt(&cipher, number, sector);
    }
    let (stripes, _) = material.as_chunks::<KEY_BYTES>();
    let (last, stripes) = stripes.get(..slot.stripes)?.split_last()?;
    let mut merged = [0; KEY_BYTES];
    for stripe in stripes {
        xor(&mut merged, stripe);
        let diffused = Sha256::new().chain_update(0u32.to_be_bytes()).chain_update(merged).finalize();
        merged.copy_from_slice(&diffused[..KEY_BYTES]);
    }
    xor(&mut merged, last);
    let mut digest = [0; 20];
    derive(&merged, &header[132..164], be32(header, 164), &mut digest);
    (digest == header[112..132]).then_some(merged)
}

fn xor(into: &mut [u8], with: &[u8]) {
    into.iter_mut().zip(with).for_each(|(a, b)| *a ^= b);
}

/// PBKDF2 with HMAC-SHA-256, of one block at most.
fn derive(password: &[u8], salt: &[u8], iterations: u32, out: &mut [u8]) {
    let keyed = |pad: u8| {
        // No password here is longer than a block.
        let mut block = [pad; 64];
        xor(&mut block, password);
        Sha256::new().chain_update(block)
    };
    let (inner, outer) = (keyed(0x36), keyed(0x5c));
    let mac = |parts: &[&[u8]]| {
        let inside = parts.iter().fold(inner.clone(), |hash, part| hash.chain_update(part));
        <[u8; 32]>::from(outer.clone().chain_update(inside.finalize()).finalize())
    };
    let mut last = mac(&[salt, &1u32.to_be_bytes()]);
    let mut sum = last;
    for _ in 1..iterations {
        last = mac(&[&last]);
        xor(&mut sum, &last);
    }
    let len = out.len();
    out.copy_from_slice(&sum[..len]);
}

/// The key slots of a session: since when each passphrase opens the image, and until when.
#[derive(Default)]
pub struct KeyRing {
    lives: Vec<KeyLife>,
}

/// One stay of a passphrase in the slots: begin and end of its coming, and of its going.
struct KeyLife {
    number: u32,
    added: (u64, u64),
    removed: (u64, u64),
}

/// A time that never comes.
const NEVER: u64 = u64::MAX;

impl KeyRing {
    /// With the passphrases that a session begins with.
    pub fn new(keys: Keys) -> Self {
        let there = (0..PASSPHRASES.len() as u32).filter(|number| keys >> number & 1 == 1);
        let life = |number| KeyLife { number, added: (0, 0), removed: (NEVER, NEVER) };
        Self { lives: there.map(life).collect() }
    }

    /// The passphrases that must open the image after a cut at `time`, and those that may. A change is durable when it
    /// has succeeded.
    pub fn after_cut(&self, time: u64) -> (Keys, Keys) {
        self.lives.iter().fold((0, 0), |(must, may), life| {
            let bit = |holds: bool| Keys::from(holds) << life.number;
            let must_be = life.added.1 <= time && life.removed.0 > time;
            (must | bit(must_be), may | bit(life.added.0 <= time && life.removed.1 > time))
        })
    }

    /// Begins a change; `false` if it makes no sense now: the passphrase is there already, or may be the last one.
    pub fn begin(&mut self, op: KeyOp, now: u64) -> bool {
        let (must, may) = self.after_cut(now);
        match op {
            KeyOp::Add(number) if may >> number & 1 == 0 => {
                let (added, removed) = ((now, NEVER), (NEVER, NEVER));
                self.lives.push(KeyLife { number, added, removed });
                true
            }
            KeyOp::Remove(number) if must >> number & 1 == 1 && must.count_ones() > 1 => {
                let alive = |life: &&mut KeyLife| life.number == number && life.removed.0 == NEVER;
                self.lives.iter_mut().rfind(alive).into_iter().for_each(|life| life.removed.0 = now);
                true
            }
            _ => false,
        }
    }

    /// The change succeeded. What failed stays open.
    pub fn end(&mut self, op: KeyOp, now: u64) {
        let (KeyOp::Add(number) | KeyOp::Remove(number)) = op;
        let Some(life) = self.lives.iter_mut().rfind(|life| life.number == number) else { return };
        match op {
            KeyOp::Add(_) => life.added.1 = now,
            KeyOp::Remove(_) => life.removed.1 = now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passphrases_come_and_go() {
        let mut ring = KeyRing::new(1);
        assert!(!ring.begin(KeyOp::Remove(0), 1), "the last one stays");
        assert!(ring.begin(KeyOp::Add(1), 2));
        assert_eq!(ring.after_cut(3), (1, 3));
        ring.end(KeyOp::Add(1), 4);
        assert!(ring.begin(KeyOp::Remove(0), 5));
        assert_eq!((ring.after_cut(4), ring.after_cut(6)), ((3, 3), (2, 3)));
        ring.end(KeyOp::Remove(0), 7);
        assert_eq!(ring.after_cut(8), (2, 2));
    }

    /// The published example of RFC 7914, section 11.
    #[test]
    fn keys_are_derived_as_published() {
        let mut key = [0; 32];
        derive(b"passwd", b"salt", 1, &mut key);
        assert_eq!(key[..8], [0x55, 0xac, 0x04, 0x6e, 0x56, 0xe3, 0x08, 0x9f]);
    }
}
