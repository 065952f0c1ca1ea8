//! How the checker gets at the bytes of an image file.
//!
//! [`ReadAt`] is what a caller implements; [`Reader`] is what the rest of this crate uses. The reader
//! gives every table as a sequence of pieces whose length is a multiple of 16 bytes, so that no table
//! entry is ever cut, skips known holes, and charges each byte to the work limit.

use std::cell::Cell;
use std::io;

use crate::error::CheckError;

/// An image file: bytes at offsets, nothing else.
pub trait ReadAt {
    /// Length of the file in bytes.
    fn len(&self) -> u64;

    /// Fills `buf` from `offset`; bytes at or beyond [`len`](Self::len) are zeroes.
    ///
    /// # Errors
    /// Whatever the file underneath reports. The check ends with [`CheckError::Io`] then.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// True if the file has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Lends bytes without copying, or says that they are zero: a hint which makes checks of images in
    /// memory quick. `len` is never zero and `offset + len` never lies beyond [`len`](Self::len).
    ///
    /// The answer may be shorter or longer than asked for. The default knows nothing.
    fn peek(&self, offset: u64, len: u64) -> Peek<'_> {
        let _ = (offset, len);
        Peek::Unknown
    }
}

/// The answer of [`ReadAt::peek`].
#[derive(Debug, Clone, Copy)]
pub enum Peek<'a> {
    /// The bytes from the offset asked for.
    Bytes(&'a [u8]),
    /// That many bytes from the offset asked for are zero.
    Zeroes(u64),
    /// Use [`ReadAt::read_at`].
    Unknown,
}

impl ReadAt for [u8] {
    fn len(&self) -> u64 {
        u64::try_from(<[u8]>::len(self)).unwrap_or(u64::MAX)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let tail = usize::try_from(offset).ok().and_then(|at| self.get(at..)).unwrap_or(&[]);
        copy_padded(tail, buf);
        Ok(())
    }

    fn peek(&self, offset: u64, _len: u64) -> Peek<'_> {
        match usize::try_from(offset).ok().and_then(|at| self.get(at..)) {
            Some(bytes) => Peek::Bytes(bytes),
            None => Peek::Unknown,
        }
    }
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        ReadAt::len(self.as_slice())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.as_slice().read_at(offset, buf)
    }

    fn peek(&self, offset: u64, len: u64) -> Peek<'_> {
        self.as_slice().peek(offset, len)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn len(&self) -> u64 {
        (**self).len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (**self).read_at(offset, buf)
    }

    fn peek(&self, offset: u64, len: u64) -> Peek<'_> {
        (**self).peek(offset, len)
    }
}

/// A regular file. Its length is asked for at the start of each check; the file must not change while
/// the check runs.
#[cfg(unix)]
impl ReadAt for std::fs::File {
    fn len(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            match std::os::unix::fs::FileExt::read_at(self, rest, at) {
                Ok(0) => {
                    rest.fill(0);
                    return Ok(());
                }
                Ok(count) => {
                    at = at.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                    rest = rest.get_mut(count..).unwrap_or(&mut []);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Bytes copied in one step when the image cannot lend them: large enough that system calls do not
/// count, small enough to stay in the second-level cache.
const COPY_BYTES_MAX: u64 = 128 * 1024;

/// Bytes copied to get over the seam between two lent pieces of odd length.
const SEAM_BYTES: u64 = 512;

/// Takes in a piece of a table and its distance from the start of the scan.
type EachPiece<'a> = dyn FnMut(u64, &[u8]) -> Result<(), CheckError> + 'a;

/// Reads an image for one check or one view, within a work limit.
pub(crate) struct Reader<'a> {
    image: &'a dyn ReadAt,
    len: u64,
    work_left: Cell<u64>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(image: &'a dyn ReadAt, work_bytes_max: u64) -> Self {
        Reader { image, len: image.len(), work_left: Cell::new(work_bytes_max) }
    }

    /// Length of the file in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `buf`; zeroes beyond the end of the file.
    pub(crate) fn exact(&self, offset: u64, buf: &mut [u8]) -> Result<(), CheckError> {
        let count = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        self.charge(count)?;
        if offset >= self.len {
            buf.fill(0);
            return Ok(());
        }
        let there = count.min(self.len.saturating_sub(offset));
        if let Peek::Bytes(bytes) = self.image.peek(offset, there)
            && let Some(bytes) = bytes.get(..buf.len())
        {
            buf.copy_from_slice(bytes);
            return Ok(());
        }
        self.image.read_at(offset, buf).map_err(|source| CheckError::Io { offset, source })
    }

    /// One big-endian word.
    pub(crate) fn word(&self, offset: u64) -> Result<u64, CheckError> {
        let mut bytes = [0; 8];
        self.exact(offset, &mut bytes)?;
        Ok(u64::from_be_bytes(bytes))
    }

    /// Hands `start..start + len` to `each` piece by piece, with the distance from `start`. Holes and
    /// what lies beyond the end of the file are left out; they count as zeroes. The last piece may be
    /// padded with zeroes to a multiple of 16.
    pub(crate) fn scan(
        &self,
        start: u64,
        len: u64,
        buf: &mut Vec<u8>,
        each: &mut EachPiece<'_>,
    ) -> Result<(), CheckError> {
        let end = start.saturating_add(len).min(self.len);
        let mut at = start;
        while at < end {
            let want = end.saturating_sub(at);
            let copy_max = match self.image.peek(at, want) {
                Peek::Zeroes(count) => {
                    // A hole is skipped and costs nothing, so it is not charged beyond one unit.
                    let count = if count >= want { want } else { count & !15 };
                    self.charge(16)?;
                    at = at.saturating_add(count);
                    if count > 0 {
                        continue;
                    }
                    SEAM_BYTES
                }
                Peek::Bytes(bytes) => {
                    let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX).min(want) & !15;
                    let piece = usize::try_from(count).ok().and_then(|count| bytes.get(..count));
                    if let (Some(piece), 1..) = (piece, count) {
                        self.charge(count)?;
                        each(at.saturating_sub(start), piece)?;
                        at = at.saturating_add(count);
                        continue;
                    }
                    SEAM_BYTES
                }
                Peek::Unknown => COPY_BYTES_MAX,
            };
            let count = want.min(copy_max);
            self.charge(count)?;
            let fill = usize::try_from(count).unwrap_or(0);
            buf.clear();
            buf.resize(fill.next_multiple_of(16), 0);
            if let Some(target) = buf.get_mut(..fill) {
                self.image.read_at(at, target).map_err(|source| CheckError::Io { offset: at, source })?;
            }
            each(at.saturating_sub(start), buf)?;
            at = at.saturating_add(count);
        }
        Ok(())
    }

    fn charge(&self, bytes: u64) -> Result<(), CheckError> {
        let left = self.work_left.get().checked_sub(bytes).ok_or(CheckError::WorkLimit)?;
        self.work_left.set(left);
        Ok(())
    }
}

/// Calls `each` with index and bytes of every entry of `N` bytes that is not all zero. Blocks of zeroes,
/// by far the most of any table, cost one comparison per 64 bytes.
pub(crate) fn nonzero_entries<const N: usize>(
    piece: &[u8],
    mut each: impl FnMut(u64, &[u8; N]) -> Result<(), CheckError>,
) -> Result<(), CheckError> {
    let mut index: u64 = 0;
    for block in piece.chunks(64) {
        let zero = match <&[u8; 64]>::try_from(block) {
            Ok(block) => block.iter().fold(0, |all, byte| all | byte) == 0,
            Err(_) => false,
        };
        let (entries, _) = block.as_chunks::<N>();
        let count = u64::try_from(entries.len()).unwrap_or(0);
        if !zero {
            let mut entry_index = index;
            for entry in entries {
                if entry.iter().any(|byte| *byte != 0) {
                    each(entry_index, entry)?;
                }
                entry_index = entry_index.saturating_add(1);
            }
        }
        index = index.saturating_add(count);
    }
    Ok(())
}

/// The big-endian `u64` at `at`, zero when it does not fit.
pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    part::<8>(bytes, at).map_or(0, u64::from_be_bytes)
}

/// The big-endian `u32` at `at`, zero when it does not fit.
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    part::<4>(bytes, at).map_or(0, u32::from_be_bytes)
}

/// The big-endian `u16` at `at`, zero when it does not fit.
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    part::<2>(bytes, at).map_or(0, u16::from_be_bytes)
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn copy_padded(from: &[u8], to: &mut [u8]) {
    let count = from.len().min(to.len());
    if let (Some(from), Some(to)) = (from.get(..count), to.get_mut(..count)) {
        to.copy_from_slice(from);
    }
    if let Some(rest) = to.get_mut(count..) {
        rest.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lends at most three bytes at a time: every piece is odd.
    struct Odd(Vec<u8>);

    impl ReadAt for Odd {
        fn len(&self) -> u64 {
            ReadAt::len(&self.0)
        }

        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            self.0.read_at(offset, buf)
        }

        fn peek(&self, offset: u64, _len: u64) -> Peek<'_> {
            let at = offset as usize;
            let bytes = &self.0[at..self.0.len().min(at + 3)];
            if bytes.iter().all(|byte| *byte == 0) {
                Peek::Zeroes(bytes.len() as u64)
            } else {
                Peek::Bytes(bytes)
            }
        }
    }

    fn words(image: &dyn ReadAt, start: u64, len: u64) -> Vec<(u64, u64)> {
        let mut found = Vec::new();
        let mut buf = Vec::new();
        Reader::new(image, u64::MAX)
            .scan(start, len, &mut buf, &mut |at, piece| {
                nonzero_entries::<8>(piece, |index, entry| {
                    found.push((at / 8 + index, u64::from_be_bytes(*entry)));
                    Ok(())
                })
            })
            .unwrap();
        found
    }

    #[test]
    fn scan_finds_the_same_words_however_the_image_lends() {
        let mut bytes = vec![0u8; 2000];
        for at in [0usize, 8, 504, 512, 1024, 1992] {
            bytes[at + 7] = at as u8 | 1;
        }
        let plain = words(&bytes, 0, 4096);
        assert_eq!(plain.iter().map(|word| word.0 * 8).collect::<Vec<_>>(), [0, 8, 504, 512, 1024, 1992]);
        assert_eq!(plain, words(&Odd(bytes.clone()), 0, 4096));
        assert_eq!(words(&bytes, 512, 520).len(), 2);
        // The range ends before the word at 1024 even though the copy is padded.
        assert_eq!(words(&bytes, 512, 512).len(), 1);
    }

    #[test]
    fn reads_beyond_the_end_are_zeroes() {
        let bytes = vec![7u8; 4];
        let reader = Reader::new(&bytes, u64::MAX);
        let mut buf = [1u8; 4];
        reader.exact(2, &mut buf).unwrap();
        assert_eq!(buf, [7, 7, 0, 0]);
        reader.exact(u64::MAX, &mut buf).unwrap();
        assert_eq!(buf, [0; 4]);
    }

    #[test]
    fn the_work_limit_ends_a_scan() {
        let bytes = vec![1u8; 4096];
        let reader = Reader::new(&bytes, 100);
        let result = reader.scan(0, 4096, &mut Vec::new(), &mut |_, _| Ok(()));
        assert!(matches!(result, Err(CheckError::WorkLimit)));
    }
}
