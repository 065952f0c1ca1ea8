//! Reading a log back, and playing it onto a device.

use std::sync::Arc;

use super::format::{ENTRY_BYTES, Header, LogError, LogFlags, Super};
use crate::child::Child;
use crate::error::Result;
use crate::node::Node;
use crate::request::Request;

/// Most bytes in flight while an entry is played.
const STEP: u64 = 1 << 20;

/// One entry of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its number, from 0.
    pub index: u64,
    /// First byte on the device.
    pub offset: u64,
    /// Length in bytes on the device.
    pub len: u64,
    /// What it is.
    pub flags: LogFlags,
    /// A mark's text.
    pub mark: Option<Vec<u8>>,
    /// Where in the log its data starts, in bytes.
    pub data_offset: u64,
}

impl LogEntry {
    /// Whether data follows the header.
    pub fn has_data(&self) -> bool {
        self.len > 0 && !self.flags.contains(LogFlags::DISCARD)
    }
}

/// Iterates over the entries of a log. Whatever the log holds, memory stays bounded.
pub struct LogReader {
    log: Child,
    sector_size: u32,
    entries: u64,
    next: u64,
    /// Byte in the log where the next entry starts.
    at: u64,
}

impl LogReader {
    /// A reader at the first entry.
    ///
    /// # Errors
    /// The node holds no log.
    pub async fn open(log: Arc<dyn Node>) -> Result<Self> {
        let log = Child::new(log);
        if log.len() < ENTRY_BYTES as u64 {
            return Err(LogError::Magic.into());
        }
        let bytes = log.read(0, ENTRY_BYTES).await?;
        let header = Super::decode(bytes[..].try_into().expect("as many as were read"))?;
        let Super { entries, sector_size } = header;
        Ok(Self { log, sector_size, entries, next: 0, at: sector_size.into() })
    }

    /// Entries that the log says it has.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Bytes in a sector.
    pub fn sector_size(&self) -> u32 {
        self.sector_size
    }

    /// Byte in the log behind the last entry that was read.
    pub fn position(&self) -> u64 {
        self.at
    }

    /// The next entry, or `None` after the last.
    ///
    /// # Errors
    /// The entry contradicts the format or is cut off.
    pub async fn next(&mut self) -> Result<Option<LogEntry>> {
        if self.next == self.entries {
            return Ok(None);
        }
        let (index, size) = (self.next, u64::from(self.sector_size));
        let cut_off = LogError::CutOff { index };
        if self.log.len().saturating_sub(self.at) < size {
            return Err(cut_off.into());
        }
        let sector = self.log.read(self.at, self.sector_size as usize).await?;
        let (head, text) = sector.split_at(ENTRY_BYTES);
        let header = Header::decode(head.try_into().expect("split there"), index)?;
        let mark = match header.flags.contains(LogFlags::MARK) {
            true => Some(text.get(..header.data_len as usize).ok_or(cut_off)?.to_vec()),
            false => None,
        };
        let data_offset = self.at + size;
        let bytes = |sectors: u64| sectors.checked_mul(size).ok_or(cut_off);
        let (offset, len) = (bytes(header.sector)?, bytes(header.sectors)?);
        let end = data_offset.checked_add(bytes(header.data_sectors())?).ok_or(cut_off)?;
        // The data of the last entry may be zeroes that the log's file does not reach.
        if end > self.log.len() && index + 1 < self.entries {
            return Err(cut_off.into());
        }
        self.at = end;
        self.next += 1;
        Ok(Some(LogEntry { index, offset, len, flags: header.flags, mark, data_offset }))
    }

    /// Does to `device` what an entry says: writes its data, discards, or flushes.
    ///
    /// # Errors
    /// The log cannot be read or the device refuses.
    pub async fn play(&self, entry: &LogEntry, device: &Child) -> Result<()> {
        if entry.flags.contains(LogFlags::DISCARD) {
            let discard = Request::discard(entry.offset, entry.len);
            return device.submit(discard).finish().await.result.map(|_| ());
        }
        let mut done = 0;
        while entry.has_data() && done < entry.len {
            let n = STEP.min(entry.len - done);
            let data = self.log.read(entry.data_offset + done, n as usize).await?;
            device.write(entry.offset + done, data).await?;
            done += n;
        }
        if entry.flags.intersects(LogFlags::FLUSH | LogFlags::FUA) {
            device.flush().await?;
        }
        Ok(())
    }

    /// Plays entries until `stop` says so, or to the end. Returns how many were played.
    ///
    /// # Errors
    /// As [`LogReader::next`] and [`LogReader::play`].
    pub async fn play_until(
        &mut self,
        device: &Child,
        mut stop: impl FnMut(&LogEntry) -> bool,
    ) -> Result<u64> {
        let mut played = 0;
        while let Some(entry) = self.next().await? {
            if stop(&entry) {
                break;
            }
            self.play(&entry, device).await?;
            played += 1;
        }
        Ok(played)
    }
}
