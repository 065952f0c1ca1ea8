//! The content of a simulated disk, and what each kind of I/O does to it.

use cowbell_block::request::{Extent, ExtentFlags, Mapping};
use cowbell_block::{Bufs, Error, Result};

use super::{Discards, Io, IoKind, SimDisk, State};
use crate::faults::FaultKind;
use crate::pool::{SECTOR, SharedPool, ZERO};

const EINVAL: i32 = 22;

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
            IoKind::WriteZeroes => {
                state.swallow(io, offset + len);
                self.store(state, io, offset, len, None);
            }
            IoKind::Discard => return self.discard(state, io, offset, len).map(|()| None),
            IoKind::Flush => state.dirty.clear(),
            IoKind::Status => return Ok(Some(self.status(state, offset, len))),
            IoKind::Truncate => {
                state.swallow(io, offset);
                state.truncate(io, offset, &self.0.pool);
            }
        }
        match fault {
            Some(kind) => Err(kind.error()),
            None => Ok(None),
        }
    }

    fn discard(&self, state: &mut State, io: usize, offset: u64, len: u64) -> Result<()> {
        let end = offset.saturating_add(len).min(state.len);
        let offset = offset.min(end);
        match state.host.discards {
            Discards::Zero => self.store(state, io, offset, end - offset, None),
            Discards::Late => {
                // What is read stays; what is in the history, and so may be there after a cut, does not.
                let whole = offset.div_ceil(SECTOR as u64)..end / SECTOR as u64;
                state.history.writes.extend(whole.map(|sector| (sector as u32, ZERO)));
            }
            Discards::Keep => {}
            Discards::Invalid => return Err(Error::from_errno(EINVAL)),
            Discards::Unsupported => unreachable!("refused at once"),
        }
        Ok(())
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
                    // Tables are mostly written as they were.
                    pool.intern_like(&bytes, state.cached[sector])
                }
            };
            state.cached[sector] = content;
            state.dirty.insert(sector as u32);
            state.history.writes.push((sector as u32, content));
            at += n as u64;
        }
    }

    fn status(&self, state: &State, offset: u64, len: u64) -> Extent {
        let end = offset.saturating_add(len).min(state.len);
        if offset >= end {
            return Extent { len: 0, flags: ExtentFlags::EOF | ExtentFlags::ZERO, map: None };
        }
        let kind = |at: u64| {
            let sector = (at / SECTOR as u64) as usize;
            let hidden = state.host.dirty_holes && state.dirty.contains(sector as u32);
            hidden || state.cached.get(sector).copied().unwrap_or(ZERO) == ZERO
        };
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
    /// What others wrote beyond the old end of the file, while an I/O that moves the end to `end` was on its way, is
    /// lost on hosts with this habit.
    fn swallow(&mut self, io: usize, end: u64) {
        let (eof, first) = self.history.ios[io].eof;
        if !self.host.growth_swallows || end <= eof {
            return;
        }
        let beyond = eof.div_ceil(SECTOR as u64) as u32..end.div_ceil(SECTOR as u64) as u32;
        let mut lost: Vec<u32> =
            self.history.writes[first as usize..].iter().map(|(sector, _)| *sector).collect();
        lost.retain(|sector| beyond.contains(sector));
        for sector in lost {
            self.cached[sector as usize] = ZERO;
            self.history.writes.push((sector, ZERO));
        }
    }

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

#[cfg(test)]
mod tests {
    use cowbell_block::{Buf, Child, Preallocation, Request};

    use super::*;
    use crate::disk::{Clock, HostConfig, IoStep};
    use crate::exec::{Granularity, Strategy, World};
    use crate::pool::Pool;
    use crate::rng::Rng;

    fn disk(host: HostConfig) -> (SimDisk, World) {
        let pool = Pool::shared();
        let old = pool.lock().intern(&[7; SECTOR]);
        let disk = SimDisk::new("disk", &pool, &Clock::default(), &[old, old], 1024, host, Rng::new(0));
        let world = World::new(vec![disk.clone()], Strategy::Fifo, Granularity::IoPoints);
        (disk, world)
    }

    fn discard(discards: Discards) -> (bool, bool, usize) {
        let (disk, mut world) = disk(HostConfig { discards, ..HostConfig::default() });
        let node = disk.node();
        let done = world
            .block_on(async move { node.submit(Request::discard(0, 512)).finish().await.result.is_ok() });
        let survivors = disk.with_history(|history| history.writes.len());
        (done.expect("nothing blocks"), disk.content_at(0) == ZERO, survivors)
    }

    #[test]
    fn discards_have_many_habits() {
        assert_eq!(discard(Discards::Zero), (true, true, 1));
        assert_eq!(discard(Discards::Keep), (true, false, 0));
        assert_eq!(discard(Discards::Late), (true, false, 1), "zero only after a cut");
        assert_eq!(discard(Discards::Invalid), (false, false, 0));
        assert_eq!(discard(Discards::Unsupported), (false, false, 0));
    }

    #[test]
    fn dirty_pages_may_look_like_holes() {
        let (disk, mut world) = disk(HostConfig { dirty_holes: true, ..HostConfig::default() });
        let child = Child::new(disk.node());
        let seen = world.block_on(async move {
            child.write(0, Buf::copy_of(&[9; SECTOR])).await.expect("no fault");
            let dirty = child.status(0, 512).await.expect("no fault").flags;
            child.flush().await.expect("no fault");
            (dirty, child.status(0, 512).await.expect("no fault").flags)
        });
        let (dirty, clean) = seen.expect("nothing blocks");
        assert!(dirty.contains(ExtentFlags::ZERO) && clean.contains(ExtentFlags::DATA));
    }

    /// A growth that is on its way swallows what a write puts behind the old end meanwhile.
    #[test]
    fn growth_may_swallow_a_write() {
        for swallows in [false, true] {
            let (disk, _) = disk(HostConfig { growth_swallows: swallows, ..HostConfig::default() });
            let node = disk.node();
            let _growing = node.submit(Request::truncate(4096, Preallocation::Falloc));
            let _writing = node.submit(Request::write(2048, Buf::copy_of(&[9; SECTOR])));
            disk.step(IoStep::Finish(1));
            assert_ne!(disk.content_at(4), ZERO);
            disk.step(IoStep::Finish(0));
            assert_eq!(disk.content_at(4) == ZERO, swallows);
        }
    }
}
