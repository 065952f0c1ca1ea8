//! An image and the decisions about what is done with it, as a short string of bytes: a file of 512 GiB with little in
//! it is a few of them. Every string of bytes is a scene, so that a fuzzer may do with it what it likes.
//!
//! ```text
//!   count u8 | decisions (count bytes) | length of the file, varint | pieces: gap varint, length varint, bytes
//! ```

use cowbell_block::{Buf, MemNode, Node, Request};

use crate::target::drive;

/// Longest file of a scene: beyond any that a limit is about.
const LEN_MAX: u64 = 1 << 50;
/// Zeroes that are worth a piece of their own.
const GAP_MIN: usize = 8;
/// Longest file that is handled as plain bytes.
pub const DENSE_MAX: u64 = 1 << 20;

/// A scene.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scene {
    /// What is done: see [`crate::choices::Choices::Bytes`].
    pub choices: Vec<u8>,
    /// Bytes of the file.
    pub len: u64,
    /// What is in it, in ascending order; zeroes elsewhere.
    pub pieces: Vec<(u64, Vec<u8>)>,
}

impl Scene {
    /// The scene that these bytes are.
    pub fn decode(bytes: &[u8]) -> Self {
        let Some((count, rest)) = bytes.split_first() else { return Self::default() };
        let (choices, mut rest) = rest.split_at(usize::from(*count).min(rest.len()));
        let len = take_number(&mut rest) % (LEN_MAX + 1);
        let mut pieces = Vec::new();
        let mut at = 0u64;
        while !rest.is_empty() {
            let gap = take_number(&mut rest);
            let wanted = take_number(&mut rest);
            let offset = at.saturating_add(gap);
            let (now, after) = rest.split_at(wanted.min(rest.len() as u64) as usize);
            rest = after;
            let inside = len.saturating_sub(offset).min(now.len() as u64) as usize;
            at = offset.saturating_add(now.len() as u64);
            if inside > 0 {
                pieces.push((offset, now[..inside].to_vec()));
            }
        }
        Self { choices: choices.to_vec(), len, pieces }
    }

    /// The bytes of the scene. At most 255 decisions are kept.
    pub fn encode(&self) -> Vec<u8> {
        let choices = &self.choices[..self.choices.len().min(255)];
        let mut out = vec![choices.len() as u8];
        out.extend(choices);
        put_number(&mut out, self.len);
        let mut at = 0;
        for (offset, bytes) in &self.pieces {
            put_number(&mut out, offset - at);
            put_number(&mut out, bytes.len() as u64);
            out.extend(bytes);
            at = offset + bytes.len() as u64;
        }
        out
    }

    /// A scene with this file.
    pub fn of_file(choices: &[u8], bytes: &[u8]) -> Self {
        let mut pieces: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut at = 0;
        while let Some(start) = bytes[at..].iter().position(|byte| *byte != 0).map(|n| at + n) {
            let mut end = start;
            // To the next stretch of zeroes that is long enough.
            while let Some(next) = bytes[end..].iter().take(GAP_MIN).rposition(|byte| *byte != 0) {
                end += next + 1;
            }
            pieces.push((start as u64, bytes[start..end].to_vec()));
            at = end;
        }
        Self { choices: choices.to_vec(), len: bytes.len() as u64, pieces }
    }

    /// The file as plain bytes, if it is short enough.
    pub fn dense(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.len).ok().filter(|_| self.len <= DENSE_MAX)?];
        for (offset, piece) in &self.pieces {
            bytes[*offset as usize..*offset as usize + piece.len()].copy_from_slice(piece);
        }
        Some(bytes)
    }

    /// The file.
    pub fn memory(&self) -> MemNode {
        let memory = MemNode::new(self.len);
        for (offset, bytes) in &self.pieces {
            drive(memory.submit(Request::write(*offset, Buf::copy_of(bytes))));
        }
        memory
    }
}

/// Seven bits a byte, the lowest first; what goes beyond 64 bits is lost.
fn take_number(bytes: &mut &[u8]) -> u64 {
    let mut value = 0u64;
    let mut shift = 0;
    while let Some((byte, rest)) = bytes.split_first() {
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use cowbell_difftest::rng::Rng;

    #[test]
    fn there_and_back() {
        let mut file = vec![0; 4096];
        file[0..3].copy_from_slice(b"abc");
        file[5] = 1;
        file[100..300].fill(9);
        file[4095] = 2;
        let scene = Scene::of_file(&[1, 2, 3], &file);
        assert_eq!(scene.pieces.len(), 3, "a short gap is not worth a piece");
        assert_eq!(scene.dense(), Some(file));
        assert_eq!(Scene::decode(&scene.encode()), scene);
        let huge = Scene { choices: Vec::new(), len: 512 << 30, pieces: vec![(300 << 30, vec![7; 20])] };
        assert_eq!(Scene::decode(&huge.encode()), huge);
        assert!(huge.encode().len() < 50 && huge.dense().is_none());
    }

    #[test]
    fn every_string_is_a_scene() {
        let mut rng = Rng::new(5);
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..rng.below(60)).map(|_| rng.below(256) as u8).collect();
            let scene = Scene::decode(&bytes);
            assert_eq!(Scene::decode(&scene.encode()), scene);
            assert!(scene.pieces.iter().all(|(at, piece)| at + piece.len() as u64 <= scene.len));
        }
    }
}
