//! The file under inspection: reads that never fail and never are too large.

use std::cell::RefCell;

use cowbell_block::{Error, Result};

/// Most bytes read at once: the largest cluster of a qcow2 image, which its header must fit.
pub const PIECE_MAX: usize = 2 << 20;

/// What is inspected.
pub trait Source {
    /// Length in bytes.
    fn len(&self) -> u64;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads some bytes from `offset` on; 0 at the end.
    ///
    /// # Errors
    /// The host's, or that time is up.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize>;
}

impl Source for [u8] {
    fn len(&self) -> u64 {
        <[u8]>::len(self) as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> u64 {
        <Vec<u8>>::len(self) as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self[..].read_at(offset, buffer)
    }
}

/// A source, with the first failure kept.
pub(crate) struct File<'a> {
    source: &'a dyn Source,
    failure: RefCell<Option<Error>>,
}

impl<'a> File<'a> {
    pub fn new(source: &'a dyn Source) -> Self {
        Self { source, failure: RefCell::new(None) }
    }

    pub fn len(&self) -> u64 {
        self.source.len()
    }

    /// The bytes of a range, as far as they are there and can be read; at most [`PIECE_MAX`].
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let there = self.len().saturating_sub(offset).min(len.min(PIECE_MAX) as u64) as usize;
        let mut bytes = vec![0; there];
        let mut done = 0;
        while done < there {
            match self.source.read_at(offset + done as u64, &mut bytes[done..]) {
                Ok(0) => break,
                Ok(n) => done += n.min(there - done),
                Err(e) => {
                    self.failure.borrow_mut().get_or_insert(e);
                    break;
                }
            }
        }
        bytes.truncate(done);
        bytes
    }

    /// Whether the bytes at an offset are these.
    pub fn has(&self, offset: u64, magic: &[u8]) -> bool {
        self.bytes(offset, magic.len()) == magic
    }

    /// The first failure.
    pub fn failure(&self) -> Option<String> {
        self.failure.borrow().as_ref().map(ToString::to_string)
    }
}

/// Numbers at places of a piece; what is not there is zero.
pub(crate) trait Fields {
    fn be16(&self, at: usize) -> u16;
    fn be32(&self, at: usize) -> u32;
    fn be64(&self, at: usize) -> u64;
    fn le16(&self, at: usize) -> u16;
    fn le32(&self, at: usize) -> u32;
    fn le64(&self, at: usize) -> u64;
    /// The bytes of a range, as far as they are there.
    fn part(&self, at: usize, len: usize) -> &[u8];
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
}

impl Fields for [u8] {
    fn be16(&self, at: usize) -> u16 {
        u16::from_be_bytes(array(self, at))
    }
    fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(array(self, at))
    }
    fn be64(&self, at: usize) -> u64 {
        u64::from_be_bytes(array(self, at))
    }
    fn le16(&self, at: usize) -> u16 {
        u16::from_le_bytes(array(self, at))
    }
    fn le32(&self, at: usize) -> u32 {
        u32::from_le_bytes(array(self, at))
    }
    fn le64(&self, at: usize) -> u64 {
        u64::from_le_bytes(array(self, at))
    }
    fn part(&self, at: usize, len: usize) -> &[u8] {
        let rest = self.get(at..).unwrap_or_default();
        &rest[..len.min(rest.len())]
    }
}

/// The bytes before the first NUL.
pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}
