//! Cipher modes over runs of sectors.
//!
//! Ciphers are quick when they get many blocks at once. XTS, ECB, CTR and the decryption of CBC allow that inside a
//! sector; the encryption of CBC is a chain inside a sector, so that it works on the same block of many sectors
//! side by side.

use cipher::consts::U16;
use cipher::{Array, Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser};

use crate::iv::IvGenerator;
use crate::sector::SECTOR;

/// What a volume's cipher does to whole sectors, in place.
pub(crate) trait SectorMode: Send + Sync {
    /// Encrypts `data`, whole sectors from number `first` on.
    fn encrypt(&self, first: u64, data: &mut [u8]);
    /// Decrypts `data`, whole sectors from number `first` on.
    fn decrypt(&self, first: u64, data: &mut [u8]);
}

/// A block cipher in both directions.
pub(crate) trait Cipher: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync {}
impl<C: BlockCipherEncrypt + BlockCipherDecrypt + Send + Sync> Cipher for C {}

/// Sectors handled at once where a mode needs room beside the data: 4 KiB of it.
const GROUP: usize = 8;
/// Sectors whose CBC chains run side by side: as many blocks as the widest implementation takes at once.
const LANES: usize = 64;

fn blocks_of<C: BlockSizeUser>(bytes: &mut [u8]) -> &mut [Block<C>] {
    let (blocks, rest) = Array::slice_as_chunks_mut(bytes);
    assert!(rest.is_empty(), "whole blocks only");
    blocks
}

fn xor(into: &mut [u8], from: &[u8]) {
    into.iter_mut().zip(from).for_each(|(a, b)| *a ^= b);
}

/// Calls `f` with the number of each group's first sector and its bytes.
fn for_groups(first: u64, data: &mut [u8], sectors: usize, mut f: impl FnMut(u64, &mut [u8])) {
    let mut sector = first;
    for group in data.chunks_mut(sectors * SECTOR) {
        let count = (group.len() / SECTOR) as u64;
        f(sector, group);
        sector = sector.wrapping_add(count);
    }
}

/// XEX with a tweak per sector (IEEE 1619); sectors are whole blocks, so that there is no stealing.
pub(crate) struct Xts<C> {
    pub data: C,
    pub tweak: C,
    pub iv: IvGenerator,
}

/// Blocks of 16 bytes in a sector.
const XTS_BLOCKS: usize = SECTOR / 16;

impl<C: Cipher + BlockSizeUser<BlockSize = U16>> Xts<C> {
    /// What each block of up to [`GROUP`] sectors is masked with.
    fn masks(&self, first: u64, sectors: usize, masks: &mut [u8; GROUP * SECTOR]) {
        let mut tweaks = [Block::<C>::default(); GROUP];
        for (tweak, sector) in tweaks[..sectors].iter_mut().zip(0..) {
            self.iv.fill(first.wrapping_add(sector), tweak);
        }
        self.tweak.encrypt_blocks(&mut tweaks[..sectors]);
        let mut chains = tweaks.map(|tweak| u128::from_le_bytes(tweak.into()));
        let (masks, _) = masks.as_chunks_mut::<16>();
        // Sector by sector inside: the chains are independent of each other, which keeps the processor busy.
        for block in 0..XTS_BLOCKS {
            for (sector, chain) in chains[..sectors].iter_mut().enumerate() {
                masks[sector * XTS_BLOCKS + block] = chain.to_le_bytes();
                *chain = (*chain << 1) ^ ((*chain >> 127) * 0x87);
            }
        }
    }
}

impl<C: Cipher + BlockSizeUser<BlockSize = U16>> SectorMode for Xts<C> {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        let mut masks = [0; GROUP * SECTOR];
        for_groups(first, data, GROUP, |first, group| {
            self.masks(first, group.len() / SECTOR, &mut masks);
            xor(group, &masks);
            self.data.encrypt_blocks(blocks_of::<C>(group));
            xor(group, &masks);
        });
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        let mut masks = [0; GROUP * SECTOR];
        for_groups(first, data, GROUP, |first, group| {
            self.masks(first, group.len() / SECTOR, &mut masks);
            xor(group, &masks);
            self.data.decrypt_blocks(blocks_of::<C>(group));
            xor(group, &masks);
        });
    }
}

/// Each block is mixed with the encrypted block before it.
pub(crate) struct Cbc<C> {
    pub cipher: C,
    pub iv: IvGenerator,
}

impl<C: Cipher> SectorMode for Cbc<C> {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        let block = C::block_size();
        for_groups(first, data, LANES, |first, group| {
            let sectors = group.len() / SECTOR;
            let mut chains: [Block<C>; LANES] = std::array::from_fn(|_| Block::<C>::default());
            for (chain, sector) in chains[..sectors].iter_mut().zip(0..) {
                self.iv.fill(first.wrapping_add(sector), chain);
            }
            for at in (0..SECTOR).step_by(block) {
                for (chain, sector) in chains.iter_mut().zip(group.chunks_exact(SECTOR)) {
                    xor(chain, &sector[at..at + block]);
                }
                self.cipher.encrypt_blocks(&mut chains[..sectors]);
                for (chain, sector) in chains.iter().zip(group.chunks_exact_mut(SECTOR)) {
                    sector[at..at + block].copy_from_slice(chain);
                }
            }
        });
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        let block = C::block_size();
        let mut before = [0; GROUP * SECTOR];
        for_groups(first, data, GROUP, |first, group| {
            let len = group.len();
            before[block..len].copy_from_slice(&group[..len - block]);
            for (start, sector) in before[..len].chunks_exact_mut(SECTOR).zip(0..) {
                self.iv.fill(first.wrapping_add(sector), &mut start[..block]);
            }
            self.cipher.decrypt_blocks(blocks_of::<C>(group));
            xor(group, &before);
        });
    }
}

/// Each block by itself. There is nothing to be said for it but that volumes exist.
pub(crate) struct Ecb<C> {
    pub cipher: C,
}

impl<C: Cipher> SectorMode for Ecb<C> {
    fn encrypt(&self, _: u64, data: &mut [u8]) {
        self.cipher.encrypt_blocks(blocks_of::<C>(data));
    }

    fn decrypt(&self, _: u64, data: &mut [u8]) {
        self.cipher.decrypt_blocks(blocks_of::<C>(data));
    }
}

/// Blocks are masked with encrypted numbers that count up from the IV, most significant byte first.
pub(crate) struct Ctr<C> {
    pub cipher: C,
    pub iv: IvGenerator,
}

impl<C: Cipher> Ctr<C> {
    fn apply(&self, first: u64, data: &mut [u8]) {
        let block = C::block_size();
        let mut stream = [0; GROUP * SECTOR];
        for_groups(first, data, GROUP, |first, group| {
            let stream = &mut stream[..group.len()];
            for (sector, number) in stream.chunks_exact_mut(SECTOR).zip(0..) {
                self.iv.fill(first.wrapping_add(number), &mut sector[..block]);
                for at in (block..SECTOR).step_by(block) {
                    sector.copy_within(at - block..at, at);
                    increment(&mut sector[at..at + block]);
                }
            }
            self.cipher.encrypt_blocks(blocks_of::<C>(stream));
            xor(group, stream);
        });
    }
}

fn increment(counter: &mut [u8]) {
    for byte in counter.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return;
        }
    }
}

impl<C: Cipher> SectorMode for Ctr<C> {
    fn encrypt(&self, first: u64, data: &mut [u8]) {
        self.apply(first, data);
    }

    fn decrypt(&self, first: u64, data: &mut [u8]) {
        self.apply(first, data);
    }
}
