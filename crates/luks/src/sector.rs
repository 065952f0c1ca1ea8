//! The cipher of a volume: encrypts and decrypts runs of sectors.

use cipher::KeyInit;
use cowbell_block::{Buf, Bufs};

use crate::algorithm::{CipherAlg, CipherMode, CipherSpec, EssivError};
use crate::iv::IvGenerator;
use crate::mode::{Cbc, Cipher, Ctr, Ecb, SectorMode, Xts};

/// Bytes that have an IV of their own. LUKS1 and qcow2 know no other length.
pub const SECTOR: usize = 512;

/// A combination that nothing can be encrypted with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The key is too short or too long.
    #[error("Algorithm '{alg}' with key size {bytes} bytes not supported")]
    KeySize {
        /// The cipher.
        alg: &'static str,
        /// Length of the key.
        bytes: usize,
    },
    /// XTS is defined for blocks of 16 bytes.
    #[error("Unsupported cipher mode xts")]
    XtsBlock,
    /// ESSIV without hash.
    #[error("Missing IV generator hash specification")]
    NoIvHash,
    /// The hash of ESSIV does not fit.
    #[error(transparent)]
    Essiv(#[from] EssivError),
}

/// Encrypts and decrypts sectors with one key. The key is wiped from memory when this is dropped.
pub struct SectorCipher(Box<dyn SectorMode>);

impl CipherSpec {
    /// Whether sectors can be encrypted like this.
    ///
    /// # Errors
    /// What does not fit.
    pub fn validate(&self) -> Result<(), SpecError> {
        if self.mode == CipherMode::Xts && self.alg.block_bytes() != 16 {
            return Err(SpecError::XtsBlock);
        }
        if self.iv == crate::algorithm::IvAlg::Essiv {
            self.alg.for_essiv(self.iv_hash.ok_or(SpecError::NoIvHash)?)?;
        }
        Ok(())
    }
}

impl SectorCipher {
    /// The cipher with a key.
    ///
    /// # Errors
    /// The key's length or the combination is wrong.
    pub fn new(spec: &CipherSpec, key: &[u8]) -> Result<Self, SpecError> {
        spec.validate()?;
        if key.len() != spec.key_bytes() {
            return Err(SpecError::KeySize { alg: spec.alg.name(), bytes: key.len() });
        }
        Ok(Self(match spec.alg {
            CipherAlg::Aes128 => wide::<aes::Aes128>(spec, key)?,
            CipherAlg::Aes192 => wide::<aes::Aes192>(spec, key)?,
            CipherAlg::Aes256 => wide::<aes::Aes256>(spec, key)?,
            CipherAlg::Serpent128 | CipherAlg::Serpent192 | CipherAlg::Serpent256 => {
                wide::<serpent::Serpent>(spec, key)?
            }
            CipherAlg::Twofish128 | CipherAlg::Twofish192 | CipherAlg::Twofish256 => {
                wide::<twofish::Twofish>(spec, key)?
            }
            CipherAlg::Cast5_128 => narrow::<cast5::Cast5>(spec, key)?,
        }))
    }

    /// Encrypts `data` in place, whole sectors from number `first` on.
    ///
    /// # Panics
    /// If the length is no multiple of [`SECTOR`].
    pub fn encrypt(&self, first: u64, data: &mut [u8]) {
        assert!(data.len().is_multiple_of(SECTOR), "whole sectors only");
        self.0.encrypt(first, data);
    }

    /// Decrypts `data` in place, whole sectors from number `first` on.
    ///
    /// # Panics
    /// If the length is no multiple of [`SECTOR`].
    pub fn decrypt(&self, first: u64, data: &mut [u8]) {
        assert!(data.len().is_multiple_of(SECTOR), "whole sectors only");
        self.0.decrypt(first, data);
    }

    /// Encrypts `len` bytes of `bufs`, from position `at` on, into a buffer of their own.
    ///
    /// # Panics
    /// If there are fewer bytes, or the length is no multiple of [`SECTOR`].
    pub fn encrypt_part(&self, first: u64, bufs: &Bufs, at: usize, len: usize) -> Buf {
        let mut out = Buf::scratch(len);
        bufs.read_at(at, &mut out);
        self.encrypt(first, &mut out);
        out
    }

    /// Decrypts buffers in place.
    ///
    /// # Panics
    /// If the length is no multiple of [`SECTOR`].
    pub fn decrypt_bufs(&self, first: u64, bufs: &mut Bufs) {
        if bufs.pieces().iter().any(|piece| !piece.len().is_multiple_of(SECTOR)) {
            let mut whole = bufs.to_contiguous();
            self.decrypt(first, &mut whole);
            bufs.write_at(0, &whole);
            whole.recycle();
            return;
        }
        let mut sector = first;
        for piece in bufs.pieces_mut() {
            self.decrypt(sector, piece);
            sector = sector.wrapping_add((piece.len() / SECTOR) as u64);
        }
    }
}

fn keyed<C: KeyInit>(spec: &CipherSpec, key: &[u8]) -> Result<C, SpecError> {
    C::new_from_slice(key).map_err(|_| SpecError::KeySize { alg: spec.alg.name(), bytes: key.len() })
}

/// A cipher with blocks of 16 bytes, which XTS needs.
fn wide<C>(spec: &CipherSpec, key: &[u8]) -> Result<Box<dyn SectorMode>, SpecError>
where
    C: Cipher + KeyInit + cipher::BlockSizeUser<BlockSize = cipher::consts::U16> + 'static,
{
    if spec.mode != CipherMode::Xts {
        return narrow::<C>(spec, key);
    }
    let (data, tweak) = key.split_at(key.len() / 2);
    let iv = IvGenerator::new(spec, key)?;
    Ok(Box::new(Xts::<C> { data: keyed(spec, data)?, tweak: keyed(spec, tweak)?, iv }))
}

fn narrow<C>(spec: &CipherSpec, key: &[u8]) -> Result<Box<dyn SectorMode>, SpecError>
where
    C: Cipher + KeyInit + 'static,
{
    let cipher: C = keyed(spec, key)?;
    Ok(match spec.mode {
        CipherMode::Ecb => Box::new(Ecb { cipher }),
        CipherMode::Cbc => Box::new(Cbc { cipher, iv: IvGenerator::new(spec, key)? }),
        CipherMode::Ctr => Box::new(Ctr { cipher, iv: IvGenerator::new(spec, key)? }),
        CipherMode::Xts => return Err(SpecError::XtsBlock),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Hash, IvAlg};

    fn specs() -> Vec<CipherSpec> {
        let mut specs = Vec::new();
        for alg in CipherAlg::ALL {
            for mode in CipherMode::ALL {
                for (iv, iv_hash) in [
                    (IvAlg::Plain, None),
                    (IvAlg::Plain64, Some(Hash::Sha1)),
                    (IvAlg::Essiv, Some(Hash::Md5)),
                    (IvAlg::Essiv, Some(Hash::Sha256)),
                ] {
                    specs.push(CipherSpec { alg, mode, iv, iv_hash });
                }
            }
        }
        specs
    }

    fn cipher(spec: &CipherSpec) -> Option<SectorCipher> {
        let key: Vec<u8> = (0..spec.key_bytes() as u8).collect();
        spec.validate().ok().map(|()| SectorCipher::new(spec, &key).expect("a valid combination"))
    }

    #[test]
    fn runs_and_single_sectors_agree_and_lead_back() {
        let plain: Vec<u8> = (0..SECTOR * 67).map(|i| (i / 7 * 31 + i) as u8).collect();
        let mut tried = 0;
        for spec in specs() {
            let Some(cipher) = cipher(&spec) else { continue };
            tried += 1;
            let first = u64::from(u32::MAX) - 60;
            let mut run = plain.clone();
            cipher.encrypt(first, &mut run);
            let mut alone = plain.clone();
            for (sector, data) in (first..).zip(alone.chunks_exact_mut(SECTOR)) {
                cipher.encrypt(sector, data);
            }
            assert!(run == alone, "{spec:?}");
            assert_ne!(run[..16], plain[..16], "{spec:?}");
            for (sector, data) in (first..).zip(alone.chunks_exact_mut(SECTOR)) {
                cipher.decrypt(sector, data);
            }
            assert!(alone == plain, "{spec:?}");
            cipher.decrypt(first, &mut run);
            assert!(run == plain, "{spec:?}");
        }
        assert!(tried > 120, "{tried} combinations");
    }

    #[test]
    fn scattered_buffers_are_decrypted_as_one() {
        let spec = CipherSpec::LEGACY_AES;
        let cipher = cipher(&spec).expect("valid");
        let plain: Vec<u8> = (0..SECTOR * 4).map(|i| i as u8).collect();
        for cuts in [[512, 512, 1024], [100, 700, 1248]] {
            let all = cipher.encrypt_part(7, &Bufs::from(Buf::copy_of(&plain)), 0, plain.len());
            let mut at = 0;
            let mut bufs: Bufs = cuts
                .into_iter()
                .map(|len| {
                    at += len;
                    Buf::copy_of(&all[at - len..at])
                })
                .collect();
            cipher.decrypt_bufs(7, &mut bufs);
            assert_eq!(bufs.to_contiguous()[..], plain);
        }
    }

    #[test]
    fn xts_agrees_with_ieee_1619() {
        // Vector 10 of the standard: AES-256, data unit 0xff, 512 bytes counting up twice.
        let hex = |text: &str| -> Vec<u8> {
            (0..text.len() / 2)
                .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"))
                .collect()
        };
        let key = hex(concat!(
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592"
        ));
        let spec =
            CipherSpec { alg: CipherAlg::Aes256, mode: CipherMode::Xts, iv: IvAlg::Plain64, iv_hash: None };
        let cipher = SectorCipher::new(&spec, &key).expect("valid");
        let mut data: Vec<u8> = (0..512).map(|i| i as u8).collect();
        cipher.encrypt(0xff, &mut data);
        assert_eq!(data[..16], hex("1c3b3a102f770386e4836c99e370cf9b"));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let spec =
            CipherSpec { alg: CipherAlg::Cast5_128, mode: CipherMode::Xts, iv: IvAlg::Plain, iv_hash: None };
        assert_eq!(SectorCipher::new(&spec, &[0; 32]).err(), Some(SpecError::XtsBlock));
        let spec = CipherSpec { mode: CipherMode::Cbc, iv: IvAlg::Essiv, ..spec };
        assert_eq!(SectorCipher::new(&spec, &[0; 16]).err(), Some(SpecError::NoIvHash));
        let error = SectorCipher::new(&CipherSpec::LEGACY_AES, &[0; 5]).err().expect("short").to_string();
        assert_eq!(error, "Algorithm 'aes-128' with key size 5 bytes not supported");
    }
}
