//! The log on disk, as the kernel's `log-writes` target writes it. All numbers are little endian.
//!
//! ```text
//!   sector 0        magic u64, version u64, number of entries u64, sector size u32
//!   then, per entry:
//!     one sector    sector u64, number of sectors u64, flags u64, data length u64, text of a mark
//!     data          number of sectors; none for a discard
//! ```
//!
//! Sectors everywhere are of the size that the super block says.

use bitflags::bitflags;

use crate::buf::Buf;
use crate::error::{Error, ErrorKind};

/// First number of every log.
pub const MAGIC: u64 = 0x006a_7366_7773_6872;
/// The only version.
pub const VERSION: u64 = 1;
/// Bytes of an entry before a mark's text; the super block is shorter.
pub const ENTRY_BYTES: usize = 32;
/// Sector sizes are below this, the reference's limit.
const SECTOR_SIZE_END: u64 = 1 << 24;

bitflags! {
    /// What an entry is.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct LogFlags: u64 {
        /// Everything before is durable.
        const FLUSH = 1;
        /// Durable at completion.
        const FUA = 2;
        /// The range was discarded; no data follows.
        const DISCARD = 4;
        /// A note of the user.
        const MARK = 8;
    }
}

/// The super block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Super {
    /// Entries that are complete.
    pub entries: u64,
    /// Bytes in a sector.
    pub sector_size: u32,
}

/// An entry's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Header {
    /// First sector on the device.
    pub sector: u64,
    /// Number of sectors.
    pub sectors: u64,
    /// What it is.
    pub flags: LogFlags,
    /// Bytes of a mark's text; 0 for everything else.
    pub data_len: u64,
}

/// A log that contradicts its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// Something else.
    #[error("Invalid log superblock magic")]
    Magic,
    /// From the future.
    #[error("Unsupported log version {0}")]
    Version(u64),
    /// No power of two between a header and 16 MiB.
    #[error("Invalid log sector size {0}")]
    SectorSize(u64),
    /// Zero.
    #[error("Invalid log superblock update interval {0}")]
    UpdateInterval(u64),
    /// Unknown bits.
    #[error("Invalid flags {flags:#x} in log entry {index}")]
    Flags {
        /// The entry.
        index: u64,
        /// Its flags.
        flags: u64,
    },
    /// It reaches beyond the end of the log, or a mark beyond its sector.
    #[error("log entry {index} is cut off")]
    CutOff {
        /// The entry.
        index: u64,
    },
    /// The size of an existing log's sectors is what it is.
    #[error("log-append and log-sector-size are mutually exclusive")]
    SizeOfExisting,
}

impl From<LogError> for Error {
    fn from(e: LogError) -> Self {
        let kind = match e {
            LogError::SectorSize(_) | LogError::UpdateInterval(_) | LogError::SizeOfExisting => {
                ErrorKind::InvalidInput
            }
            _ => ErrorKind::Corrupt,
        };
        Error::new(kind, e)
    }
}

/// A valid sector size.
///
/// # Errors
/// It is none.
pub fn check_sector_size(size: u64) -> Result<u32, LogError> {
    let valid = size.is_power_of_two() && size >= ENTRY_BYTES as u64 && size < SECTOR_SIZE_END;
    if valid { Ok(size as u32) } else { Err(LogError::SectorSize(size)) }
}

fn get(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

impl Super {
    /// Reads the super block from the first bytes of a log.
    ///
    /// # Errors
    /// It is none, or of another version.
    pub fn decode(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, LogError> {
        if get(bytes, 0) != MAGIC {
            return Err(LogError::Magic);
        }
        let version = get(bytes, 8);
        if version != VERSION {
            return Err(LogError::Version(version));
        }
        let sector_size = check_sector_size(get(bytes, 24) & u64::from(u32::MAX))?;
        Ok(Self { entries: get(bytes, 16), sector_size })
    }

    /// The sector with the super block.
    pub fn encode(&self) -> Buf {
        let mut sector = Buf::zeroed(self.sector_size as usize);
        sector[0..8].copy_from_slice(&MAGIC.to_le_bytes());
        sector[8..16].copy_from_slice(&VERSION.to_le_bytes());
        sector[16..24].copy_from_slice(&self.entries.to_le_bytes());
        sector[24..28].copy_from_slice(&self.sector_size.to_le_bytes());
        sector
    }
}

impl Header {
    /// Reads the header of entry `index`.
    ///
    /// # Errors
    /// It has flags that nobody knows.
    pub fn decode(bytes: &[u8; ENTRY_BYTES], index: u64) -> Result<Self, LogError> {
        let bits = get(bytes, 16);
        let flags = LogFlags::from_bits(bits).ok_or(LogError::Flags { index, flags: bits })?;
        Ok(Self { sector: get(bytes, 0), sectors: get(bytes, 8), flags, data_len: get(bytes, 24) })
    }

    /// The sector with the header.
    pub fn encode(&self, sector_size: u32) -> Buf {
        let mut sector = Buf::zeroed(sector_size as usize);
        let fields = [self.sector, self.sectors, self.flags.bits(), self.data_len];
        for (slot, field) in sector.chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        sector
    }

    /// Sectors of the log that follow the header.
    pub fn data_sectors(&self) -> u64 {
        if self.flags.contains(LogFlags::DISCARD) { 0 } else { self.sectors }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_kernel() {
        let sector = Super { entries: 3, sector_size: 512 }.encode();
        assert_eq!(&sector[..8], b"rhswfsj\0");
        assert_eq!(
            (sector.len(), &sector[8..29]),
            (512, &b"\x01\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0\0\x02\0\0\0"[..])
        );
        let header = Header { sector: 5, sectors: 2, flags: LogFlags::FUA, data_len: 0 };
        let sector = header.encode(4096);
        assert_eq!((sector[0], sector[8], sector[16], sector.len()), (5, 2, 2, 4096));
        let bytes = sector[..ENTRY_BYTES].try_into().expect("a header");
        assert_eq!(Header::decode(bytes, 0), Ok(header));
    }

    #[test]
    fn other_things_are_refused() {
        let mut bytes = [0; ENTRY_BYTES];
        assert_eq!(Super::decode(&bytes), Err(LogError::Magic));
        bytes[16] = 16;
        assert_eq!(Header::decode(&bytes, 7), Err(LogError::Flags { index: 7, flags: 16 }));
        for size in [0, 16, 48, 1 << 24] {
            assert_eq!(check_sector_size(size), Err(LogError::SectorSize(size)));
        }
    }
}
