//! The VM state area: what the guest's machine stores behind its disk, held against a reference of its own.

use cowbell_block::Buf;
use cowbell_block::node::Node;
use cowbell_block::request::{Cause, Operation, Request};

use super::Guest;
use crate::judge::Failure;
use crate::pool::SECTOR;
use crate::stamp::{STATE, Stamp};

/// Sectors of the area that the simulation looks at.
pub const STATE_SECTORS: usize = 24;

impl Guest {
    pub(super) async fn save_state(
        &self,
        node: &dyn Node,
        at: std::ops::Range<u64>,
        operation: u32,
        cause: Cause,
    ) {
        let mut buf = Buf::scratch((at.end - at.start) as usize * SECTOR);
        let mut values = Vec::new();
        for (sector, chunk) in at.clone().zip(buf.as_chunks_mut::<SECTOR>().0) {
            let (seed, generation, sector) = (self.seed, self.generation, STATE + sector);
            *chunk = Stamp { seed, operation, sector, generation }.bytes();
            values.push(self.pool.lock().intern(chunk));
        }
        let ticket = self.state.borrow_mut().begin_write(self.instant(), at.start, values.into_iter());
        let mut request = Request::write(at.start * SECTOR as u64, buf).caused_by(cause);
        request.op = Operation::VmStateWrite;
        let completion = node.submit(request).finish().await;
        let now = self.instant();
        match completion.result {
            Ok(_) => self.state.borrow_mut().end(now, ticket, false),
            Err(error) => {
                self.state.borrow_mut().fail(now, ticket);
                self.excuse("a write of VM state", &error);
            }
        }
    }

    pub(super) async fn load_state(&self, node: &dyn Node, at: std::ops::Range<u64>, cause: Cause) {
        let start = self.instant();
        let mut buf = Buf::scratch((at.end - at.start) as usize * SECTOR);
        buf.fill(0xdb);
        let mut request = Request::read(at.start * SECTOR as u64, buf).caused_by(cause);
        request.op = Operation::VmStateRead;
        let completion = node.submit(request).finish().await;
        let now = self.instant();
        let bufs = match completion.into_bufs() {
            Ok(bufs) => bufs,
            Err(error) => return self.excuse("a read of VM state", &error),
        };
        let mut bytes = [0; SECTOR];
        for (index, sector) in (0..bufs.len() / SECTOR).zip(at.start..) {
            bufs.read_at(index * SECTOR, &mut bytes);
            let mut pool = self.pool.lock();
            let found = pool.intern(&bytes);
            if now < self.state_until.get()
                && let Err(mismatch) = self.state.borrow_mut().read(start, now, sector, found)
            {
                let failure = Failure::wrong_sector("O1", &mismatch, &pool);
                return self.fail(Failure::new("O1", format!("VM state: {}", failure.what)));
            }
        }
    }

    /// What no flush covered before `start` may be lost; everything else is durable.
    pub(super) fn flushed(&self, now: u64, start: u64) {
        self.model.borrow_mut().flushed(now, start);
        self.state.borrow_mut().flushed(now, start);
        self.durable_times.borrow_mut().push(now);
        self.flushes.borrow_mut().push((start, now));
    }
}
