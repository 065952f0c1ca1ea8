//! The forms in which secrets are given: as they are, in base64, encrypted with another secret.

use aes::Aes256;
use cipher::{Array, BlockCipherDecrypt, KeyInit};
use cowbell_block::{Error, ErrorKind};
use zeroize::Zeroizing;

/// A secret that is not of the form it should have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the texts say it all")]
pub enum SecretFormError {
    #[error("Base64 data contains invalid characters")]
    Base64,
    #[error("Key should be 32 bytes in length")]
    KeyBytes,
    #[error("IV is required to decrypt secret")]
    NoIv,
    #[error("IV should be 16 bytes in length not {0}")]
    IvBytes(usize),
    #[error("Length {0} must be a multiple of block size 16")]
    Length(usize),
    #[error("Incorrect number of padding bytes ({0}) found on decrypted data")]
    Padding(u8),
}

impl From<SecretFormError> for Error {
    fn from(e: SecretFormError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// Decodes base64 (RFC 4648). Line breaks are skipped and, as in the reference, an unfinished group at the end is left
/// out.
///
/// # Errors
/// Something else than the 64 characters, `=` and line breaks.
pub fn decode_base64(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretFormError> {
    let mut out = Zeroizing::new(Vec::with_capacity(text.len() / 4 * 3 + 3));
    let (mut group, mut digits, mut padding) = (0u32, 0, 0);
    for byte in text {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => 0,
            b'\n' => continue,
            _ => return Err(SecretFormError::Base64),
        };
        padding = if *byte == b'=' { padding + 1 } else { 0 };
        group = group << 6 | u32::from(digit);
        digits += 1;
        if digits == 4 {
            let bytes = group.to_be_bytes();
            out.extend_from_slice(&bytes[1..4 - padding.min(2)]);
            (group, digits, padding) = (0, 0, 0);
        }
    }
    Ok(out)
}

/// Decrypts a secret that was encrypted with AES-256-CBC and padded as PKCS #7 says.
///
/// # Errors
/// Key, IV, length or padding are wrong.
pub fn decrypt(key: &[u8], iv: &[u8], encrypted: &[u8]) -> Result<Zeroizing<Vec<u8>>, SecretFormError> {
    let cipher = Aes256::new_from_slice(key).map_err(|_| SecretFormError::KeyBytes)?;
    let mut before: [u8; 16] = iv.try_into().map_err(|_| SecretFormError::IvBytes(iv.len()))?;
    let mut plain = Zeroizing::new(encrypted.to_vec());
    let (blocks, rest) = Array::slice_as_chunks_mut(&mut plain);
    if !rest.is_empty() || blocks.is_empty() {
        return Err(SecretFormError::Length(encrypted.len()));
    }
    for block in blocks {
        let stored = (*block).into();
        cipher.decrypt_block(block);
        block.iter_mut().zip(before).for_each(|(byte, before)| *byte ^= before);
        before = stored;
    }
    let padding = plain.last().copied().unwrap_or(0);
    let end = plain.len().checked_sub(usize::from(padding)).filter(|_| (1..=16).contains(&padding));
    let end = end.ok_or(SecretFormError::Padding(padding))?;
    if plain[end..].iter().any(|byte| *byte != padding) {
        return Err(SecretFormError::Padding(padding));
    }
    plain.truncate(end);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_as_the_reference_does() {
        for (text, expect) in [
            ("", ""),
            ("YWJj", "abc"),
            ("YWI=", "ab"),
            ("YQ==", "a"),
            ("YWJj\nZGVm\n", "abcdef"),
            ("YWJjZA", "abc"),
        ] {
            assert_eq!(decode_base64(text.as_bytes()).expect(text)[..], *expect.as_bytes(), "{text}");
        }
        assert_eq!(decode_base64(b"a!c"), Err(SecretFormError::Base64));
    }

    #[test]
    fn what_openssl_encrypted_is_decrypted() {
        // printf 'my passphrase' | openssl enc -aes-256-cbc -K 000102..1f -iv 000102..0f
        let key: Vec<u8> = (0..32).collect();
        let iv: Vec<u8> = (0..16).collect();
        let encrypted = decode_base64(b"vgGE1F0TcGHwRZWSY7AP2w==").expect("base64");
        assert_eq!(decrypt(&key, &iv, &encrypted).expect("good")[..], *b"my passphrase");
        assert_eq!(decrypt(&key[1..], &iv, &encrypted), Err(SecretFormError::KeyBytes));
        assert_eq!(decrypt(&key, &iv[2..], &encrypted), Err(SecretFormError::IvBytes(14)));
        assert_eq!(decrypt(&key, &iv, &encrypted[1..]), Err(SecretFormError::Length(15)));
        assert!(matches!(decrypt(&iv.repeat(2), &iv, &encrypted), Err(SecretFormError::Padding(_))));
    }
}
