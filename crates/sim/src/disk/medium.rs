//! The content of a simulated disk, and what each kind of I/O does to it.

use cowbell_block::request::{Extent, ExtentFlags, Mapping};
use cowbell_block::{Bufs, Result};

use super::{Io, IoKind, SimDisk, State};
use crate::faults::FaultKind;
use crate::pool::{SECTOR, SharedPool, ZERO};

impl SimDisk {
    /// Does what an I/O does to the cached content.
    pub(super) fn effect(&self, state: &mut State, io: usize, bufs: &mut Bufs) -> Result<Option<Extent>> {
        let Io { kind, offset, len, fault, .. } = state.history.ios[io];
        let mut len = len;
        match fault {
            None => {}
            Some(FaultKind::Short) if len > SECTOR as u64 => {
                // The first half happens, then the host gives up.
                len = (len / 2).next_multiple_of(SECTOR as u64).min(len);
            }
            Some(kind) => return Err(kind.error()),
        }
        match kind {
            IoKind::Read => self.read(state, offset, len, bufs)?,
            IoKind::Write => self.store(state, io, offset, len, Some(bufs)),
            IoKind::WriteZeroes => self.store(state, io, offset, len, None),
            IoKind::Discard if state.host.discard_keeps_data => {}
            IoKind::Discard => {
                let end = offset.saturating_add(len).min(state.len);
                self.store(state, io, offset.min(end), end - offset.min(end), None);
            }
            IoKind::Flush => {}
            IoKind::Status => return Ok(Some(self.status(state, offset, len))),
            IoKind::Truncate => state.truncate(io, offset, &self.0.pool),
        }
        match fault {
            Some(kind) => Err(kind.error()),
            None => Ok(None),
        }
    }

    fn read(&self, state: &State, offset: u64, len: u64, bufs: &mut Bufs) -> Result<()> {
        let pool = self.0.pool.lock();
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let within = (at % SECTOR as u64) as usize;
            let n = (SECTOR - within).min((end - at) as usize);
            let sector = (at / SECTOR as u64) as usize;
            let content = state.cached.get(sector).copied().unwrap_or(ZERO);
            bufs.write_at((at - offset) as usize, &pool.bytes(content)[within..within + n]);
            at += n as u64;
        }
        Ok(())
    }

    /// Stores buffers, or zeroes.
    fn store(&self, state: &mut State, io: usize, offset: u64, len: u64, bufs: Option<&Bufs>) {
        let mut pool = self.0.pool.lock();
        let (mut at, end) = (offset, offset + len);
        if end > state.len && len > 0 {
            state.len = end;
            state.history.ios[io].new_len = Some(end);
            state.cached.resize(end.div_ceil(SECTOR as u64) as usize, ZERO);
        }
        while at < end {
            let within = (at % SECTOR as u64) as usize;
            let n = (SECTOR - within).min((end - at) as usize);
            let sector = (at / SECTOR as u64) as usize;
            let content = match bufs {
                None if n == SECTOR => ZERO,
                _ => {
                    let mut bytes = if n == SECTOR { [0; SECTOR] } else { *pool.bytes(state.cached[sector]) };
                    match bufs {
                        Some(bufs) => bufs.read_at((at - offset) as usize, &mut bytes[within..within + n]),
                        None => bytes[within..within + n].fill(0),
                    }
                    pool.intern(&bytes)
                }
            };
            state.cached[sector] = content;
            state.history.writes.push((sector as u32, content));
            at += n as u64;
        }
    }

    fn status(&self, state: &State, offset: u64, len: u64) -> Extent {
        let end = offset.saturating_add(len).min(state.len);
        if offset >= end {
            return Extent { len: 0, flags: ExtentFlags::EOF | ExtentFlags::ZERO, map: None };
        }
        let kind = |at: u64| state.cached.get((at / SECTOR as u64) as usize).copied().unwrap_or(ZERO) == ZERO;
        let zero = kind(offset);
        let mut to = offset;
        while to < end && kind(to) == zero {
            to = (to / SECTOR as u64 + 1) * SECTOR as u64;
        }
        let to = to.min(end);
        let mut flags = if zero { ExtentFlags::ZERO } else { ExtentFlags::DATA } | ExtentFlags::ALLOCATED;
        flags.set(ExtentFlags::EOF, to == state.len);
        let map = Some(Mapping { node: self.node(), offset });
        Extent { len: to - offset, flags, map }
    }
}

impl State {
    fn truncate(&mut self, io: usize, len: u64, pool: &SharedPool) {
        let sectors = len.div_ceil(SECTOR as u64) as usize;
        for sector in sectors..self.cached.len() {
            self.history.writes.push((sector as u32, ZERO));
        }
        self.cached.resize(sectors, ZERO);
        let tail = (len % SECTOR as u64) as usize;
        if len < self.len && tail != 0 {
            let mut pool = pool.lock();
            let mut bytes = *pool.bytes(self.cached[sectors - 1]);
            bytes[tail..].fill(0);
            let content = pool.intern(&bytes);
            self.cached[sectors - 1] = content;
            self.history.writes.push((sectors as u32 - 1, content));
        }
        self.len = len;
        self.history.ios[io].new_len = Some(len);
    }
}
