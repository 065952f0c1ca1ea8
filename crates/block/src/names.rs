//! Names of files, snapshots and bitmaps, which are bytes, as text.
//!
//! A name on Linux and in an image is any bytes, and nearly always UTF-8. Inside the program names are strings: they are
//! joined, compared, printed and put into JSON. A byte that is no UTF-8 becomes a character of a private range, U+F780 to
//! U+F7FF, and goes back to that byte where the name leaves the program. The bytes of genuine characters of that range
//! are written the same way, so the way there and back is exact for every sequence of bytes.

use std::borrow::Cow;

/// The character that stands for byte 0; bytes below 0x80 are always UTF-8.
const FIRST: u32 = 0xf700;

/// The byte that `c` stands for, if it stands for one.
pub fn byte_of(c: char) -> Option<u8> {
    let byte = u32::from(c).checked_sub(FIRST).and_then(|byte| u8::try_from(byte).ok())?;
    (byte >= 0x80).then_some(byte)
}

fn stand_in(byte: u8) -> char {
    char::from_u32(FIRST + u32::from(byte)).expect("the range has no surrogates")
}

/// A name that came from outside.
pub fn from_bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !has_stand_ins(text) => text.to_owned(),
        _ => encode(bytes),
    }
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() + 16);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match byte_of(c) {
                None => text.push(c),
                Some(_) => text.extend(c.encode_utf8(&mut [0; 4]).bytes().map(stand_in)),
            }
        }
        text.extend(chunk.invalid().iter().map(|byte| stand_in(*byte)));
    }
    text
}

/// The name as it leaves the program.
pub fn to_bytes(text: &str) -> Cow<'_, [u8]> {
    if !has_stand_ins(text) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match byte_of(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// All of them begin with the same byte in UTF-8.
fn has_stand_ins(text: &str) -> bool {
    text.as_bytes().contains(&0xef) && text.chars().any(|c| byte_of(c).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_comes_back() {
        let names: [&[u8]; 7] = [
            b"",
            b"plain.qcow2",
            "\u{e9}t\u{e9}.raw".as_bytes(),
            b"b\xe9\xff.qcow2",
            b"\xef\x9e\x80 genuine",
            b"\xef\x9e cut",
            b"\xed\xa0\x80 surrogate \xf4\x90\x80\x80",
        ];
        for name in names {
            assert_eq!(*to_bytes(&from_bytes(name)), *name);
        }
    }

    #[test]
    fn all_pairs_of_bytes_come_back_and_differ() {
        let mut seen = std::collections::HashSet::new();
        for pair in 0..=u16::MAX {
            let bytes = pair.to_be_bytes();
            let text = from_bytes(&bytes);
            assert_eq!(*to_bytes(&text), bytes);
            assert!(seen.insert(text));
        }
    }

    #[test]
    fn text_stays_as_it_is() {
        for text in ["disk.qcow2", "\u{dc}bung", "\u{f77f}\u{f800}"] {
            assert_eq!(from_bytes(text.as_bytes()), text);
            assert!(matches!(to_bytes(text), Cow::Borrowed(_)));
        }
    }
}
