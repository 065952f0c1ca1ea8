//! What the guest reads and asks, held against the reference disk.

use cowbell_block::node::Node;
use cowbell_block::request::{Cause, ExtentFlags, Outcome, Request};
use cowbell_block::{Buf, Bufs};

use super::Guest;
use crate::config::Crypt;
use crate::judge::Failure;
use crate::pool::{SECTOR, ZERO};

impl Guest {
    pub(super) async fn read(&self, node: &dyn Node, at: std::ops::Range<u64>, cause: Cause) {
        let start = self.instant();
        let mut buf = Buf::scratch((at.end - at.start) as usize * SECTOR);
        // Whatever the engine forgets to fill shows.
        buf.fill(0xdb);
        let request = Request::read(at.start * SECTOR as u64, buf).caused_by(cause);
        let completion = node.submit(request).finish().await;
        let now = self.instant();
        match completion.into_bufs() {
            Ok(bufs) => {
                self.compare(&bufs, at.start, start, now);
                bufs.recycle();
            }
            Err(_) if self.fell_off(start, at.end) => {}
            Err(error) => self.excuse("read", &error),
        }
    }

    pub(super) fn compare(&self, bufs: &Bufs, first: u64, start: u64, now: u64) {
        let mut pool = self.pool.lock();
        let mut model = self.model.borrow_mut();
        let mut bytes = [0; SECTOR];
        for (index, sector) in (0..bufs.len() / SECTOR).zip(first..) {
            bufs.read_at(index * SECTOR, &mut bytes);
            let found = pool.intern_like(&bytes, model.newest(sector));
            if let Err(mismatch) = model.read(start, now, sector, found) {
                return self.fail(Failure::wrong_sector("O1", &mismatch, &pool));
            }
        }
    }

    /// A status says what reads would return: zeroes, or the bytes at a place in the file.
    pub(super) async fn status(&self, node: &dyn Node, at: std::ops::Range<u64>, cause: Cause) {
        let start = self.instant();
        let len = (at.end - at.start) * SECTOR as u64;
        let completion =
            node.submit(Request::status(at.start * SECTOR as u64, len).caused_by(cause)).finish().await;
        let now = self.instant();
        let extent = match completion.result {
            Ok(Outcome::Extent(extent)) => extent,
            Ok(Outcome::Done) => return self.fail(Failure::new("O1", "a status without an extent")),
            Err(error) => return self.excuse("status", &error),
        };
        if extent.len == 0 && self.fell_off(start, at.end) {
            return;
        }
        if extent.len == 0 || extent.len > len {
            let what = format!("a status of {len} bytes at {} says {extent:?}", at.start * SECTOR as u64);
            return self.fail(Failure::new("O1", what));
        }
        // What is there now is what was there at the answer only if nobody else is at work.
        let alone = self.queue.borrow().running == 1 && self.abandoned.borrow().is_empty();
        // A place without data is where storage is that is not used.
        let alone = alone && extent.flags.contains(ExtentFlags::DATA);
        // What is there must be deciphered first, so nobody may be sent there to read it.
        if self.config.crypt != Crypt::None && alone && extent.map.is_some() {
            return self.fail(Failure::new("O1", "a status names the place of encrypted data"));
        }
        let place = self.data.as_ref().unwrap_or(&self.disk);
        let mapped = extent.map.filter(|m| alone && m.node.filename() == place.filename());
        let content = |index: u64| match &mapped {
            _ if extent.flags.contains(ExtentFlags::ZERO) => Some(ZERO),
            Some(mapping) => Some(place.content_at(mapping.offset / SECTOR as u64 + index)),
            None => None,
        };
        for (index, sector) in (0..extent.len / SECTOR as u64).zip(at.start..) {
            let Some(found) = content(index) else { return };
            let pool = self.pool.lock();
            if let Err(mismatch) = self.model.borrow_mut().read(start, now, sector, found) {
                return self.fail(Failure::wrong_sector("O1", &mismatch, &pool));
            }
        }
    }

    /// Reads the whole disk.
    pub async fn read_all(&self, node: &dyn Node) {
        let now = self.instant();
        let sectors = node.len() / SECTOR as u64;
        if let Err(mismatch) = self.model.borrow_mut().read_size(now, now, sectors) {
            let what = format!("the disk has {sectors} sectors; allowed: {:?}", mismatch.allowed);
            return self.fail(Failure::new("O1", what));
        }
        let cause = Cause { request: u64::from(u32::MAX), origin: 0 };
        for first in (0..sectors).step_by(128) {
            self.read(node, first..(first + 128).min(sectors), cause).await;
        }
    }
}
