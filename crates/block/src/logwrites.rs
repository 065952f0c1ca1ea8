//! `blklogwrites`: a filter that logs every change, in the format of the kernel's `log-writes` target.
//!
//! Whoever has the log can rebuild the device as it was at any flush, which is to cut the power there.
//!
//! Order in the log: a write takes its place when it *completes*, a flush when it *arrives*. So a flush entry
//! stands behind every write that it makes durable, and before every write that it does not. A flush that fails
//! leaves an entry without content in its place.
//!
//! The super block counts the entries before the first one that is still being written. It is brought up to date
//! at each flush, every so many entries, and at close. A log write that fails, or a change whose future is dropped
//! half way, leaves the log incomplete: from then on changes fail, since a log with a hole proves nothing.

use std::any::Any;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::Deserialize;

use crate::buf::Bufs;
use crate::child::{Child, EdgeKind, NamedEdge};
use crate::context::{ChildKind, OpenContext};
use crate::error::{Error, ErrorKind, Result};
use crate::node::{Access, ImageInfo, Limits, Node};
use crate::options::{BoolOpt, ChildRef, OptionTree, SizeOpt, parse};
use crate::range_lock::{LockMode, RangeLock};
use crate::registry::{Driver, Role};
use crate::request::{BoxFuture, Completion, Flags, Op, Operation, Request};

mod format;
mod reader;

pub use format::{Header, LogError, LogFlags, Super, check_sector_size};
pub use reader::{LogEntry, LogReader};

const NAME: &str = "blklogwrites";
/// Entries between two updates of the super block, the reference's default.
const UPDATE_INTERVAL_DEFAULT: u64 = 4096;
/// Bytes in a sector of a new log.
const SECTOR_SIZE_DEFAULT: u32 = 512;

/// The driver of [`LogWritesNode`].
pub struct LogWritesDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct LogWritesOptions {
    #[serde(default)]
    file: ChildRef,
    #[serde(default)]
    log: ChildRef,
    log_sector_size: Option<SizeOpt>,
    #[serde(default)]
    log_append: BoolOpt,
    log_super_update_interval: Option<u64>,
}

impl Driver for LogWritesDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn role(&self) -> Role {
        Role::Filter
    }

    fn edge_kind(&self, role: &str) -> EdgeKind {
        if role == "log" { EdgeKind::Storage } else { EdgeKind::Filtered }
    }

    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let options: LogWritesOptions = parse(NAME, Role::Filter, options)?;
            let file = cx.require_child("file", options.file, cx.kind()).await?;
            let log = cx.require_child("log", options.log, ChildKind::Storage).await?;
            let start = match (options.log_append.0, options.log_sector_size) {
                (true, Some(_)) => return Err(LogError::SizeOfExisting.into()),
                (true, None) => LogStart::Append,
                (false, Some(size)) => LogStart::New { sector_size: check_sector_size(size.0)? },
                (false, None) => LogStart::default(),
            };
            let interval = options.log_super_update_interval.unwrap_or(UPDATE_INTERVAL_DEFAULT);
            let node = LogWritesNode::open(file, log, start, interval, cx.access).await?;
            Ok(Arc::new(node) as Arc<dyn Node>)
        })
    }
}

/// Where a log begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStart {
    /// With nothing in it.
    New {
        /// Bytes in a sector; see [`check_sector_size`].
        sector_size: u32,
    },
    /// Behind what is in it.
    Append,
}

impl Default for LogStart {
    fn default() -> Self {
        Self::New { sector_size: SECTOR_SIZE_DEFAULT }
    }
}

/// A filter that logs every change of its child.
pub struct LogWritesNode(Arc<Shared>);

struct Shared {
    file: Child,
    log: Child,
    sector_size: u32,
    update_interval: u64,
    read_only: AtomicBool,
    places: Mutex<Places>,
    /// Taken whole by whoever writes the super block, so that counts only grow.
    super_lock: RangeLock,
}

struct Places {
    next_entry: u64,
    /// Byte in the log where the next entry goes.
    next_offset: u64,
    /// Entries that have their place and are not complete.
    open: BTreeSet<u64>,
    broken: bool,
}

/// Later changes fail because an earlier one is missing in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the write log has lost an entry")]
struct LogBroken;

/// An entry's place in the log.
struct Place {
    index: u64,
    offset: u64,
}

impl LogWritesNode {
    /// Logs the changes of `file` to `log`.
    ///
    /// # Errors
    /// The log cannot be appended to, or cannot be written.
    pub async fn open(
        file: Arc<dyn Node>,
        log: Arc<dyn Node>,
        start: LogStart,
        update_interval: u64,
        access: Access,
    ) -> Result<Self> {
        if update_interval == 0 {
            return Err(LogError::UpdateInterval(0).into());
        }
        let (sector_size, next_entry, next_offset) = match start {
            LogStart::New { sector_size } => {
                let sector_size = check_sector_size(sector_size.into())?;
                (sector_size, 0, sector_size.into())
            }
            LogStart::Append => {
                let mut reader = LogReader::open(log.clone()).await?;
                while reader.next().await?.is_some() {}
                (reader.sector_size(), reader.entries(), reader.position())
            }
        };
        let places = Places { next_entry, next_offset, open: BTreeSet::new(), broken: false };
        let shared = Shared {
            file: Child::new(file),
            log: Child::new(log),
            sector_size,
            update_interval,
            read_only: AtomicBool::new(access == Access::ReadOnly),
            places: Mutex::new(places),
            super_lock: RangeLock::new(),
        };
        if access == Access::ReadWrite {
            shared.update_super().await?;
        }
        Ok(Self(Arc::new(shared)))
    }
}

impl Shared {
    fn sectors(&self, bytes: u64) -> u64 {
        bytes / u64::from(self.sector_size)
    }

    /// Takes the next place, for a header and `data` bytes.
    fn take_place(&self, data: u64) -> Place {
        let mut places = self.places.lock();
        let place = Place { index: places.next_entry, offset: places.next_offset };
        places.next_entry += 1;
        places.next_offset += u64::from(self.sector_size) + data;
        places.open.insert(place.index);
        place
    }

    /// Writes an entry into its place, its data from `bufs`, which come back.
    async fn write_entry(&self, place: &Place, header: Header, bufs: Bufs) -> Result<Bufs> {
        let mut whole = Bufs::from(header.encode(self.sector_size));
        whole.append(bufs);
        let mut whole = self.log.submit(Request::write(place.offset, whole)).finish().await.into_bufs()?;
        whole.split_to(self.sector_size as usize).recycle();
        Ok(whole)
    }

    /// Writes the super block and makes the log durable.
    async fn update_super(&self) -> Result<()> {
        let _guard = self.super_lock.lock(0..1, LockMode::Exclusive).await;
        let entries = {
            let places = self.places.lock();
            places.open.first().copied().unwrap_or(places.next_entry)
        };
        self.log.write(0, Super { entries, sector_size: self.sector_size }.encode()).await?;
        self.log.flush().await
    }

    async fn finish_entry(&self, place: &Place, flush: bool) -> Result<()> {
        self.places.lock().open.remove(&place.index);
        if flush || (place.index + 1).is_multiple_of(self.update_interval) {
            self.update_super().await?;
        }
        Ok(())
    }

    fn is_broken(&self) -> bool {
        self.places.lock().broken
    }

    /// A write, a write of zeroes or a discard: first the device, then the log.
    async fn change(self: Arc<Self>, mut request: Request) -> Completion {
        let armed = BreakOnDrop(&self);
        let mut flags = LogFlags::empty();
        flags.set(LogFlags::FUA, request.flags.contains(Flags::FUA));
        flags.set(LogFlags::DISCARD, matches!(request.op, Operation::Discard));
        let header = Header {
            sector: self.sectors(request.offset),
            sectors: self.sectors(request.len),
            flags,
            data_len: 0,
        };
        let zeroes = matches!(request.op, Operation::WriteZeroes).then_some(request.len);
        // Buffers that a write of zeroes carries along are not its data.
        let aside = zeroes.map(|_| std::mem::take(&mut request.bufs));
        let completion = self.file.submit(request).finish().await;
        if completion.result.is_err() {
            armed.disarm();
            return Completion { bufs: aside.unwrap_or(completion.bufs), ..completion };
        }
        let place = self.take_place(header.data_sectors() * u64::from(self.sector_size));
        let logged = async {
            let bufs = self.write_entry(&place, header, completion.bufs).await?;
            if let Some(len) = zeroes {
                let data = place.offset + u64::from(self.sector_size);
                self.log.submit(Request::write_zeroes(data, len)).finish().await.into_bufs()?;
            }
            self.finish_entry(&place, false).await?;
            Ok::<_, Error>(bufs)
        };
        match logged.await {
            Ok(bufs) => {
                armed.disarm();
                Completion::done(aside.unwrap_or(bufs))
            }
            // The buffers went to the log and did not come back.
            Err(e) => Completion::failed(aside.unwrap_or_default(), e),
        }
    }

    /// The place is taken already: see the module's words on order.
    async fn flush(self: Arc<Self>, request: Request, place: Place) -> Completion {
        let armed = BreakOnDrop(&self);
        let completion = self.file.submit(request).finish().await;
        let flags = if completion.result.is_ok() { LogFlags::FLUSH } else { LogFlags::empty() };
        let logged = async {
            self.write_entry(&place, Header { flags, ..Header::default() }, Bufs::none()).await?;
            self.finish_entry(&place, completion.result.is_ok()).await
        };
        match logged.await {
            Ok(()) => {
                armed.disarm();
                completion
            }
            Err(e) => Completion::failed(completion.bufs, e),
        }
    }

    /// Discards may miss the grain: the parts that do are left alone.
    fn whole_sectors(&self, request: &mut Request) {
        let size = u64::from(self.sector_size);
        let start = request.offset.checked_next_multiple_of(size).unwrap_or(u64::MAX);
        let end = request.end() / size * size;
        (request.offset, request.len) = (start, end.saturating_sub(start));
    }
}

/// Marks the log as broken unless the change was logged to its end.
struct BreakOnDrop<'a>(&'a Shared);

impl BreakOnDrop<'_> {
    fn disarm(self) {
        std::mem::forget(self);
    }
}

impl Drop for BreakOnDrop<'_> {
    fn drop(&mut self) {
        self.0.places.lock().broken = true;
    }
}

impl Node for LogWritesNode {
    fn submit(&self, mut request: Request) -> Op {
        let shared = &self.0;
        let read_only = self.is_read_only();
        match request.op {
            Operation::Read | Operation::Status => return shared.file.submit(request),
            Operation::Flush if read_only => return shared.file.submit(request),
            // The log has no words for these.
            Operation::CopyFrom { .. } | Operation::VmStateRead | Operation::VmStateWrite => {
                return Op::failed(request.bufs, ErrorKind::Unsupported);
            }
            _ if read_only => return Op::failed(request.bufs, ErrorKind::ReadOnly),
            _ if shared.is_broken() => {
                return Op::failed(request.bufs, Error::new(ErrorKind::Poisoned, LogBroken));
            }
            Operation::Truncate(_) => return shared.file.submit(request),
            Operation::Flush => {
                let place = shared.take_place(0);
                return Op::wait(shared.clone().flush(request, place));
            }
            Operation::Discard => shared.whole_sectors(&mut request),
            Operation::Write | Operation::WriteZeroes => {}
        }
        if request.len == 0 {
            return Op::done(request.bufs);
        }
        if !(request.offset | request.len).is_multiple_of(u64::from(shared.sector_size)) {
            return Op::failed(request.bufs, ErrorKind::InvalidInput);
        }
        Op::wait(shared.clone().change(request))
    }

    fn driver(&self) -> &'static str {
        NAME
    }

    fn len(&self) -> u64 {
        self.0.file.len()
    }

    fn limits(&self) -> Limits {
        let below = self.0.file.limits();
        Limits {
            request_alignment: self.0.sector_size,
            discard_alignment: below.discard_alignment,
            preferred_write: below.preferred_write,
            ..Limits::default()
        }
    }

    fn is_read_only(&self) -> bool {
        self.0.read_only.load(Ordering::Relaxed)
    }

    fn compresses(&self) -> bool {
        self.0.file.node().compresses()
    }

    fn starts_as_zero(&self) -> bool {
        self.0.file.node().starts_as_zero()
    }

    fn edges(&self) -> Vec<NamedEdge> {
        vec![
            NamedEdge { role: "file", kind: EdgeKind::Filtered, child: self.0.file.clone() },
            NamedEdge { role: "log", kind: EdgeKind::Storage, child: self.0.log.clone() },
        ]
    }

    fn backing(&self) -> Option<Arc<dyn Node>> {
        self.0.file.node().backing()
    }

    fn filename(&self) -> String {
        let (file, log) = (self.0.file.node(), self.0.log.node());
        crate::naming::json_filename(NAME, OptionTree::new(), &[("file", &*file), ("log", &*log)])
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info = ImageInfo { format: NAME, virtual_size: self.len(), ..ImageInfo::default() };
        Box::pin(std::future::ready(Ok(info)))
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let shared = self.0.clone();
        Box::pin(async move {
            shared.file.node().reopen(access).await?;
            shared.log.node().reopen(access).await?;
            shared.read_only.store(access == Access::ReadOnly, Ordering::Relaxed);
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let shared = self.0.clone();
        Box::pin(async move {
            if !shared.read_only.load(Ordering::Relaxed) {
                shared.update_super().await?;
            }
            // Both are closed even if the first fails.
            let (file, log) = (shared.file.node().close().await, shared.log.node().close().await);
            file.and(log)
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
