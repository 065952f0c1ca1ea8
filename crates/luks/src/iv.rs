//! IVs from sector numbers.

use cipher::{Array, BlockCipherEncrypt};
use zeroize::Zeroizing;

use crate::algorithm::{CipherAlg, CipherSpec, IvAlg};

/// Makes the IVs of one volume.
pub(crate) enum IvGenerator {
    Plain,
    Plain64,
    /// The cipher is keyed with a hash of the volume's key.
    Essiv(Essiv),
}

pub(crate) enum Essiv {
    Aes128(Box<aes::Aes128>),
    Aes192(Box<aes::Aes192>),
    Aes256(Box<aes::Aes256>),
    Cast5(Box<cast5::Cast5>),
    Serpent(Box<serpent::Serpent>),
    Twofish(Box<twofish::Twofish>),
}

impl IvGenerator {
    /// The generator of a volume with this key.
    ///
    /// # Errors
    /// The hash of ESSIV is missing, or does not fit the cipher.
    pub fn new(spec: &CipherSpec, key: &[u8]) -> Result<Self, crate::sector::SpecError> {
        match spec.iv {
            IvAlg::Plain => Ok(Self::Plain),
            IvAlg::Plain64 => Ok(Self::Plain64),
            IvAlg::Essiv => {
                let hash = spec.iv_hash.ok_or(crate::sector::SpecError::NoIvHash)?;
                let alg = spec.alg.for_essiv(hash)?;
                Ok(Self::Essiv(Essiv::new(alg, &hash.digest(&[key]))))
            }
        }
    }

    /// Writes the IV of `sector`: as many bytes as the cipher's block has.
    pub fn fill(&self, sector: u64, iv: &mut [u8]) {
        iv.fill(0);
        let number = match self {
            Self::Plain => u64::from(sector as u32),
            Self::Plain64 | Self::Essiv(_) => sector,
        };
        let bytes = number.to_le_bytes();
        let len = bytes.len().min(iv.len());
        iv[..len].copy_from_slice(&bytes[..len]);
        if let Self::Essiv(essiv) = self {
            essiv.encrypt(iv);
        }
    }
}

impl Essiv {
    fn new(alg: CipherAlg, key: &Zeroizing<Vec<u8>>) -> Self {
        use cipher::KeyInit;
        const FITS: &str = "the cipher was chosen by the length of the key";
        match alg {
            CipherAlg::Aes128 => Self::Aes128(Box::new(KeyInit::new_from_slice(key).expect(FITS))),
            CipherAlg::Aes192 => Self::Aes192(Box::new(KeyInit::new_from_slice(key).expect(FITS))),
            CipherAlg::Aes256 => Self::Aes256(Box::new(KeyInit::new_from_slice(key).expect(FITS))),
            CipherAlg::Cast5_128 => Self::Cast5(Box::new(KeyInit::new_from_slice(key).expect(FITS))),
            CipherAlg::Serpent128 | CipherAlg::Serpent192 | CipherAlg::Serpent256 => {
                Self::Serpent(Box::new(KeyInit::new_from_slice(key).expect(FITS)))
            }
            CipherAlg::Twofish128 | CipherAlg::Twofish192 | CipherAlg::Twofish256 => {
                Self::Twofish(Box::new(KeyInit::new_from_slice(key).expect(FITS)))
            }
        }
    }

    fn encrypt(&self, block: &mut [u8]) {
        fn one<C: BlockCipherEncrypt>(cipher: &C, block: &mut [u8]) {
            cipher.encrypt_block(Array::slice_as_mut_array(block).expect("an IV is one block"));
        }
        match self {
            Self::Aes128(cipher) => one(&**cipher, block),
            Self::Aes192(cipher) => one(&**cipher, block),
            Self::Aes256(cipher) => one(&**cipher, block),
            Self::Cast5(cipher) => one(&**cipher, block),
            Self::Serpent(cipher) => one(&**cipher, block),
            Self::Twofish(cipher) => one(&**cipher, block),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_wraps_and_plain64_does_not() {
        let mut iv = [9; 16];
        IvGenerator::Plain.fill(0x1_0000_0002, &mut iv);
        assert_eq!(iv, [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        IvGenerator::Plain64.fill(0x1_0000_0002, &mut iv);
        assert_eq!(iv[..8], [2, 0, 0, 0, 1, 0, 0, 0]);
        let mut short = [9; 8];
        IvGenerator::Plain64.fill(0x0102, &mut short);
        assert_eq!(short, [2, 1, 0, 0, 0, 0, 0, 0]);
    }
}
