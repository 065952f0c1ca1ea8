//! The anti-forensic splitter: a key is blown up into stripes, all of which are needed to get it back, so that
//! overwriting any part of them destroys it.
//!
//! Each stripe but the last is random; the last is what the hash chain over the others leaves of the key.

use zeroize::Zeroizing;

use crate::hash::Hash;

/// Splits `key` into as many stripes as `out` holds. `out` comes filled with random bytes.
pub(crate) fn split(hash: Hash, key: &[u8], out: &mut [u8]) {
    let (random, last) = out.split_at_mut(out.len() - key.len());
    let mut sum = Zeroizing::new(vec![0; key.len()]);
    fold(hash, random, &mut sum);
    for ((out, sum), key) in last.iter_mut().zip(sum.iter()).zip(key) {
        *out = sum ^ key;
    }
}

/// Gets a key of `len` bytes back from its stripes.
pub(crate) fn merge(hash: Hash, stripes: &[u8], len: usize) -> Zeroizing<Vec<u8>> {
    let (random, last) = stripes.split_at(stripes.len() - len);
    let mut sum = Zeroizing::new(vec![0; len]);
    fold(hash, random, &mut sum);
    for (sum, last) in sum.iter_mut().zip(last) {
        *sum ^= last;
    }
    sum
}

fn fold(hash: Hash, stripes: &[u8], sum: &mut Zeroizing<Vec<u8>>) {
    for stripe in stripes.chunks_exact(sum.len()) {
        for (sum, byte) in sum.iter_mut().zip(stripe) {
            *sum ^= byte;
        }
        diffuse(hash, sum);
    }
}

/// Replaces each piece as long as a digest by the hash of its number and itself.
fn diffuse(hash: Hash, block: &mut [u8]) {
    for (index, piece) in (0u32..).zip(block.chunks_mut(hash.digest_bytes())) {
        let digest = hash.digest(&[&index.to_be_bytes(), piece]);
        let len = piece.len();
        piece.copy_from_slice(&digest[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stripe_counts() {
        let key: Vec<u8> = (0..64).collect();
        for hash in [Hash::Sha1, Hash::Sha256, Hash::Sha512] {
            let mut stripes: Vec<u8> = (0..64 * 50).map(|i: u32| (i * 7 + i / 256) as u8).collect();
            split(hash, &key, &mut stripes);
            assert_eq!(merge(hash, &stripes, 64)[..], key);
            stripes[5] ^= 1;
            assert_ne!(merge(hash, &stripes, 64)[..32], key[..32]);
        }
    }
}
