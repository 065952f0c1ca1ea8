//! What the disk must read as.

/// Bytes of a sector: the smallest piece a request touches here.
pub const SECTOR: u64 = 512;

/// A disk in memory. After a discard a sector may read as what it was, or as zeroes, until somebody looks.
#[derive(Clone, Debug)]
pub struct Model {
    bytes: Vec<u8>,
    /// Sectors that a discard touched and nobody wrote since.
    discarded: Vec<bool>,
}

impl Model {
    /// A disk of zeroes.
    pub fn new(size: u64) -> Self {
        Self { bytes: vec![0; size as usize], discarded: vec![false; size.div_ceil(SECTOR) as usize] }
    }

    /// What reading through to a backing file gives.
    pub fn over(backing: &[u8], size: u64) -> Self {
        let mut model = Self::new(size);
        let len = backing.len().min(model.bytes.len());
        model.bytes[..len].copy_from_slice(&backing[..len]);
        model
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Fills a range.
    pub fn fill(&mut self, offset: u64, len: u64, value: u8) {
        self.bytes[offset as usize..(offset + len) as usize].fill(value);
        self.sectors(offset, len).fill(false);
    }

    /// Discards a range.
    pub fn discard(&mut self, offset: u64, len: u64) {
        self.sectors(offset, len).fill(true);
    }

    /// Grows or shrinks; what is new reads as zeroes.
    pub fn resize(&mut self, size: u64) {
        self.bytes.resize(size as usize, 0);
        self.discarded.resize(size.div_ceil(SECTOR) as usize, false);
    }

    fn sectors(&mut self, offset: u64, len: u64) -> &mut [bool] {
        &mut self.discarded[(offset / SECTOR) as usize..(offset + len).div_ceil(SECTOR) as usize]
    }

    /// The byte that the whole range is filled with, if it is one, and certain.
    pub fn pattern(&self, offset: u64, len: u64) -> Option<u8> {
        let bytes = self.bytes.get(offset as usize..(offset + len) as usize)?;
        let discarded = &self.discarded[(offset / SECTOR) as usize..(offset + len).div_ceil(SECTOR) as usize];
        let first = *bytes.first()?;
        (bytes.iter().all(|b| *b == first) && !discarded.contains(&true)).then_some(first)
    }

    /// What the disk holds from a place on.
    pub fn rest_from(&self, at: usize) -> &[u8] {
        self.bytes.get(at..).unwrap_or_default()
    }

    /// Compares with what was read, and takes over what discarded sectors were decided to be.
    ///
    /// # Errors
    ///
    /// Says where and what the first wrong byte is.
    pub fn settle(&mut self, read: &[u8]) -> Result<(), String> {
        if read.len() != self.bytes.len() {
            return Err(format!("{} bytes instead of {}", read.len(), self.bytes.len()));
        }
        let sector = SECTOR as usize;
        let pieces = self.bytes.chunks_mut(sector).zip(read.chunks(sector));
        for (index, ((expect, got), discarded)) in pieces.zip(&mut self.discarded).enumerate() {
            let zeroed = *discarded && got.iter().all(|b| *b == 0);
            if zeroed {
                expect.fill(0);
            }
            *discarded = false;
            if let Some(at) = expect.iter().zip(got).position(|(a, b)| a != b) {
                return Err(format!(
                    "offset {} reads as {:#04x} instead of {:#04x}",
                    index * sector + at,
                    got[at],
                    expect[at]
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discarded_sector_is_old_or_zero_and_then_certain() {
        let mut model = Model::new(2048);
        model.fill(0, 2048, 7);
        model.discard(512, 1024);
        assert_eq!(model.pattern(0, 1024), None);
        let mut read = vec![7; 2048];
        read[512..1024].fill(0);
        assert!(model.clone().settle(&[9; 2048]).is_err());
        model.settle(&read).unwrap();
        assert_eq!(model.pattern(512, 512), Some(0));
        assert_eq!(model.pattern(1024, 1024), Some(7));
        assert!(model.settle(&[7; 2048]).is_err(), "decided once");
    }
}
