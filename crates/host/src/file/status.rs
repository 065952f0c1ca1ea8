//! Where a file has data, asked of the host by `SEEK_DATA` and `SEEK_HOLE`.
//!
//! The two calls are not one: between them a writer may fill the hole that the first one saw. Whenever the
//! answers do not fit together the range is called data, which is never wrong. For the same reason the last
//! answer is kept only if it was *data*: a kept hole could hide a later write by somebody else.

use std::ops::Range;

use cowbell_block::{Completion, Extent, ExtentFlags, Mapping, Op, Request};
use parking_lot::Mutex;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::error::os;
use crate::file::{FileNode, Shared};

/// The extent of data that was found last.
#[derive(Default)]
pub(crate) struct DataCache(Mutex<Range<u64>>);

impl DataCache {
    /// Forgets everything: some of it may have become a hole.
    pub(crate) fn forget(&self) {
        *self.0.lock() = 0..0;
    }

    fn end_of_data_at(&self, offset: u64) -> Option<u64> {
        let range = self.0.lock();
        range.contains(&offset).then_some(range.end)
    }

    fn keep(&self, data: Range<u64>) {
        *self.0.lock() = data;
    }
}

/// What begins at an offset, and where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Data { end: u64 },
    Hole { end: u64 },
}

impl FileNode {
    pub(crate) fn status(&self, request: &Request) -> Op {
        match self.shared.extent(request.offset, request.len) {
            Ok((len, flags)) => {
                let node = self.me.upgrade();
                let map = node.map(|node| Mapping { node: node as _, offset: request.offset });
                Op::Done(Completion::extent(Extent { len, flags, map }))
            }
            Err(errno) => Op::failed(cowbell_block::Bufs::none(), os(errno)),
        }
    }
}

impl Shared {
    /// Length and kind of the extent at `offset`, at most `len` bytes of it.
    fn extent(&self, offset: u64, len: u64) -> Result<(u64, ExtentFlags), Errno> {
        let size = self.len();
        if offset >= size {
            return Ok((0, ExtentFlags::ZERO | ExtentFlags::ALLOCATED | ExtentFlags::EOF));
        }
        let limit = offset.saturating_add(len).min(size);
        let (end, kind) = match self.look(offset, size)? {
            Found::Data { end } => (self.up(end), ExtentFlags::DATA),
            Found::Hole { end } => match self.down(end.min(size), size) {
                end if end > offset => (end, ExtentFlags::ZERO),
                // Less than one grain of a hole: the grain has data.
                _ => (self.up(offset + 1), ExtentFlags::DATA),
            },
        };
        let end = end.min(limit);
        let eof = if end == size { ExtentFlags::EOF } else { ExtentFlags::empty() };
        Ok((end - offset, kind | ExtentFlags::ALLOCATED | eof))
    }

    fn look(&self, offset: u64, size: u64) -> Result<Found, Errno> {
        if self.is_device {
            return Ok(Found::Data { end: size });
        }
        if let Some(end) = self.data.end_of_data_at(offset) {
            return Ok(Found::Data { end });
        }
        let data = match rustix::fs::seek(&*self.handle, SeekFrom::Data(offset)) {
            // Nothing but a hole until the end of the file.
            Err(Errno::NXIO) => return Ok(Found::Hole { end: size }),
            // A file system that does not know.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Found::Data { end: size }),
            result => result?,
        };
        if data > offset {
            return Ok(Found::Hole { end: data });
        }
        let hole = match rustix::fs::seek(&*self.handle, SeekFrom::Hole(offset)) {
            Ok(hole) if hole > offset => hole,
            // Truncated or punched since: not what the first call saw. Call it data, and do not keep it.
            Ok(_) | Err(Errno::NXIO) => return Ok(Found::Data { end: size }),
            Err(errno) => return Err(errno),
        };
        self.data.keep(offset..hole);
        Ok(Found::Data { end: hole })
    }

    /// The next multiple of the grain of requests.
    fn up(&self, at: u64) -> u64 {
        at.checked_next_multiple_of(u64::from(self.mode.request_alignment())).unwrap_or(at)
    }

    /// The multiple of the grain of requests before `at`, unless `at` is the end of the file.
    fn down(&self, at: u64, size: u64) -> u64 {
        if at == size { at } else { at - at % u64::from(self.mode.request_alignment()) }
    }
}
