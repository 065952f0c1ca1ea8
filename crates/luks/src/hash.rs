//! Hashes, and PBKDF2 over them.
//!
//! PBKDF2 makes each block of a key by itself, so that long keys are derived on several cores. One block is a
//! chain of HMACs that nothing can shorten; that is its purpose.

use std::time::Duration;

use hmac::digest::Digest;
use hmac::{Hmac, KeyInit, Mac};
use zeroize::{Zeroize, Zeroizing};

/// A hash function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it all")]
pub enum Hash {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
    Ripemd160,
    Sm3,
}

/// Runs `$body` with `$d` as the type of the hash.
macro_rules! with_hash {
    ($hash:expr, $d:ident => $body:expr) => {
        match $hash {
            Hash::Md5 => {
                type $d = md5::Md5;
                $body
            }
            Hash::Sha1 => {
                type $d = sha1::Sha1;
                $body
            }
            Hash::Sha224 => {
                type $d = sha2::Sha224;
                $body
            }
            Hash::Sha256 => {
                type $d = sha2::Sha256;
                $body
            }
            Hash::Sha384 => {
                type $d = sha2::Sha384;
                $body
            }
            Hash::Sha512 => {
                type $d = sha2::Sha512;
                $body
            }
            Hash::Ripemd160 => {
                type $d = ripemd::Ripemd160;
                $body
            }
            Hash::Sm3 => {
                type $d = sm3::Sm3;
                $body
            }
        }
    };
}

impl Hash {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Md5,
        Self::Sha1,
        Self::Sha224,
        Self::Sha256,
        Self::Sha384,
        Self::Sha512,
        Self::Ripemd160,
        Self::Sm3,
    ];

    /// The name, in options and headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Ripemd160 => "ripemd160",
            Self::Sm3 => "sm3",
        }
    }

    /// The hash of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|hash| hash.name() == name)
    }

    /// Length of a digest.
    pub fn digest_bytes(self) -> usize {
        with_hash!(self, D => <D as Digest>::output_size())
    }

    /// The digest of `parts`, one after the other.
    pub fn digest(self, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        with_hash!(self, D => {
            let mut hasher = D::new();
            parts.iter().for_each(|part| hasher.update(part));
            let mut digest = hasher.finalize();
            let copy = Zeroizing::new(digest.to_vec());
            digest.as_mut_slice().zeroize();
            copy
        })
    }

    /// How many blocks of PBKDF2 make a key of `bytes`.
    pub fn blocks_for(self, bytes: usize) -> usize {
        bytes.div_ceil(self.digest_bytes())
    }

    /// Block number `index`, from 0, of the key that PBKDF2 derives (RFC 8018, section 5.2).
    pub fn pbkdf2_block(
        self,
        password: &[u8],
        salt: &[u8],
        iterations: u32,
        index: usize,
    ) -> Zeroizing<Vec<u8>> {
        let index = u32::try_from(index + 1).expect("keys are short");
        with_hash!(self, D => chain::<Hmac<D>>(password, salt, iterations, index))
    }

    /// The key that PBKDF2 derives, all on this thread.
    pub fn pbkdf2(self, password: &[u8], salt: &[u8], iterations: u32, bytes: usize) -> Zeroizing<Vec<u8>> {
        let mut key = Zeroizing::new(Vec::with_capacity(bytes + self.digest_bytes()));
        for index in 0..self.blocks_for(bytes) {
            key.extend_from_slice(&self.pbkdf2_block(password, salt, iterations, index));
        }
        key.truncate(bytes);
        key
    }

    /// How many iterations of PBKDF2 for a key of `bytes` fit into a second, as far as `clock` tells.
    pub fn iterations_per_second(self, bytes: usize, clock: impl Fn() -> Duration) -> u64 {
        let mut iterations = CALIBRATION_FIRST;
        loop {
            let start = clock();
            let _ = self.pbkdf2_block(b"calibration", &[0; 32], iterations, 0);
            let took = clock().saturating_sub(start);
            if took >= CALIBRATION || iterations >= CALIBRATION_MAX {
                let nanos = took.as_nanos().max(1) * self.blocks_for(bytes).max(1) as u128;
                let rate = u128::from(iterations) * 1_000_000_000 / nanos;
                return u64::try_from(rate).unwrap_or(u64::MAX);
            }
            iterations *= 4;
        }
    }
}

/// Long enough for the clock's grain and the processor's habits; the reference takes a second.
const CALIBRATION: Duration = Duration::from_millis(20);
/// Iterations of the first try.
const CALIBRATION_FIRST: u32 = 1 << 12;
/// A clock that stands still must not keep us.
const CALIBRATION_MAX: u32 = 1 << 24;

fn chain<M: KeyInit + Mac + Clone>(
    password: &[u8],
    salt: &[u8],
    iterations: u32,
    index: u32,
) -> Zeroizing<Vec<u8>> {
    let keyed = <M as KeyInit>::new_from_slice(password).expect("HMAC takes keys of any length");
    let mut mac = keyed.clone();
    mac.update(salt);
    mac.update(&index.to_be_bytes());
    let mut last = mac.finalize().into_bytes();
    let mut sum = last.clone();
    for _ in 1..iterations {
        let mut mac = keyed.clone();
        mac.update(&last);
        last = mac.finalize().into_bytes();
        for (sum, byte) in sum.iter_mut().zip(&last) {
            *sum ^= byte;
        }
    }
    let block = Zeroizing::new(sum.to_vec());
    sum.as_mut_slice().zeroize();
    last.as_mut_slice().zeroize();
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|b| format!("{b:02x}")).collect()
    }

    #[test]
    fn pbkdf2_agrees_with_rfc_6070() {
        for (password, salt, iterations, bytes, expect) in [
            ("password", "salt", 1, 20, "0c60c80f961f0e71f3a9b524af6012062fe037a6"),
            ("password", "salt", 4096, 20, "4b007901b765489abead49d926f721d065a429c1"),
            (
                "passwordPASSWORDpassword",
                "saltSALTsaltSALTsaltSALTsaltSALTsalt",
                4096,
                25,
                "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038",
            ),
        ] {
            let key = Hash::Sha1.pbkdf2(password.as_bytes(), salt.as_bytes(), iterations, bytes);
            assert_eq!(hex(&key), expect);
        }
    }

    #[test]
    fn digests_of_abc() {
        for (hash, expect) in [
            (Hash::Md5, "900150983cd24fb0"),
            (Hash::Sha1, "a9993e364706816a"),
            (Hash::Sha224, "23097d223405d822"),
            (Hash::Sha256, "ba7816bf8f01cfea"),
            (Hash::Sha384, "cb00753f45a35e8b"),
            (Hash::Sha512, "ddaf35a193617aba"),
            (Hash::Ripemd160, "8eb208f7e05d987a"),
            (Hash::Sm3, "66c7f0f462eeedd9"),
        ] {
            let digest = hash.digest(&[b"a", b"bc"]);
            assert_eq!((hex(&digest[..8]).as_str(), digest.len()), (expect, hash.digest_bytes()));
        }
    }

    #[test]
    fn a_clock_that_stands_still_ends_the_calibration() {
        assert!(Hash::Sha256.iterations_per_second(64, || Duration::ZERO) > 0);
    }
}
