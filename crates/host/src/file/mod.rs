//! The protocol node over a regular file or a device (drivers `file` and `host_device`).
//!
//! A request first meets the page cache: reads are tried with `RWF_NOWAIT`, writes to the page cache are made
//! at once. Both complete in `submit`, on the thread that submitted, without a heap allocation. What would
//! wait becomes a job for the thread's ring or for the pool (`lane`).
//!
//! - The length is cached; it grows by writes. The part of a read beyond the end of the file is zeroes, since
//!   an image may end in the middle of its last cluster.
//! - Growth never goes through a call that could also shrink or overwrite: of two writers beyond the end none
//!   may cut off or zero what the other wrote.
//! - A failed flush is sticky. The kernel reports a failed write-back once and then forgets the data, so a
//!   second attempt that succeeds proves nothing: writes and flushes fail until the file is reopened.

mod life;
mod mode;
mod open;
mod options;
mod probe;
mod rw;
mod space;
mod status;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use cowbell_block::modes::Modes;
use cowbell_block::range_lock::RangeLock;
use cowbell_block::trace::{Trace, TraceEvent, Word};
use cowbell_block::{
    Access, AioMode, BoxFuture, CacheMode, Completion, Error, ErrorKind, Flags, ImageInfo, Limits, Node, Op,
    Operation, Request, Result,
};
use parking_lot::Mutex;

pub use options::{Create, FileKind, FileOptions, Locking, WriteRefused};

use crate::error::{FileError, os};
use crate::handle::Handle;
use crate::lane;
use crate::lane::{Call, Job, Lane};
use crate::lock::{self, Needs};
use crate::path::name_of;
use mode::Mode;
use open::Opened;
use status::DataCache;

/// Largest grain of direct I/O that is probed for, in bytes.
pub(crate) const BLOCK_MAX: u32 = 4096;

/// A file or block device as a node.
pub struct FileNode {
    shared: Arc<Shared>,
    /// The node itself, for extents that say where they lie.
    me: Weak<FileNode>,
}

/// What requests need; they keep it alive.
pub(crate) struct Shared {
    handle: Arc<Handle>,
    filename: String,
    is_device: bool,
    mode: Mode,
    /// Only when they change anything.
    modes: Option<Modes>,
    lane: Lane,
    len: AtomicU64,
    /// Tests ask for one lane only: nothing is tried on the submitting thread.
    one_lane: bool,
    inline_read: InlineRead,
    /// Something was written since the last flush began.
    dirty: AtomicBool,
    /// Held by the flush that runs.
    flushing: RangeLock,
    can: Abilities,
    data: DataCache,
    lock: Mutex<Option<Needs>>,
    trace: Option<Trace>,
}

/// How a read is tried on the submitting thread.
struct InlineRead {
    /// The file lives in memory: plain reads do not wait for a device.
    in_memory: bool,
    /// The file system refused `RWF_NOWAIT`.
    refused: AtomicBool,
}

/// What the file system turned out not to have.
#[derive(Default)]
struct Abilities {
    no_punch: AtomicBool,
    no_zero_range: AtomicBool,
}

impl FileNode {
    /// Opens `path`.
    ///
    /// # Errors
    /// The cause is an [`OpenError`](crate::error::OpenError) or a [`LockError`](crate::lock::LockError); the
    /// kind of a lock held by somebody else is [`ErrorKind::Busy`].
    pub fn open(path: impl AsRef<Path>, options: &FileOptions<'_>) -> Result<Arc<Self>> {
        let path = path.as_ref();
        let opened = open::open(path, options)?;
        let shared = Arc::new(Shared::new(name_of(path), opened, options));
        Ok(Arc::new_cyclic(|me| Self { shared, me: me.clone() }))
    }

    /// The open file.
    pub(crate) fn handle(&self) -> &Handle {
        &self.shared.handle
    }

    /// Whether the page cache is passed by.
    pub fn is_direct(&self) -> bool {
        self.shared.mode.is_direct()
    }
}

impl Shared {
    fn new(filename: String, opened: Opened, options: &FileOptions<'_>) -> Self {
        let lane = match (options.lane, options.aio) {
            (Lane::Auto, AioMode::Threads) => Lane::Pool,
            (lane, _) => lane,
        };
        let inline_read = InlineRead { in_memory: opened.in_memory, refused: AtomicBool::new(false) };
        Self {
            handle: Arc::new(opened.handle),
            filename,
            is_device: opened.is_device,
            mode: Mode::new(options.cache, opened.alignment),
            modes: (!options.modes.is_plain()).then_some(options.modes),
            lane,
            len: AtomicU64::new(opened.len),
            one_lane: options.lane != Lane::Auto,
            inline_read,
            dirty: AtomicBool::new(false),
            flushing: RangeLock::new(),
            can: Abilities::default(),
            data: DataCache::default(),
            lock: Mutex::new(opened.lock),
            trace: options.trace.cloned(),
        }
    }

    fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    /// Whether nothing is tried on the submitting thread: direct I/O always waits.
    fn never_inline(&self) -> bool {
        self.one_lane || self.mode.is_direct()
    }

    /// Notes that the file reaches at least to `end`.
    fn grown_to(&self, end: u64) {
        if !self.is_device && end > self.len.load(Ordering::Relaxed) {
            self.len.fetch_max(end, Ordering::AcqRel);
        }
    }

    /// Notes a completed change of content, so that the next flush has something to do.
    fn touched(&self) {
        // Looked at after the change was made: if a flush has just cleared it, that flush covers the change.
        if !self.dirty.load(Ordering::SeqCst) {
            self.dirty.store(true, Ordering::SeqCst);
        }
    }

    /// Why a request of this kind is refused now.
    #[cold]
    fn refusal(&self, op: &Operation) -> Option<Error> {
        let state = self.handle.state();
        if state & Handle::CLOSED != 0 {
            return Some(FileError::Closed.into());
        }
        if state & Handle::READ_ONLY != 0 && op.is_mutation() {
            return Some(ErrorKind::ReadOnly.into());
        }
        if op.is_mutation() || matches!(op, Operation::Flush) {
            return self.check_health().err();
        }
        None
    }

    /// Fails after a failed flush.
    fn check_health(&self) -> Result<()> {
        match self.handle.state() & Handle::POISONED {
            0 => Ok(()),
            _ => Err(FileError::FlushFailed { errno: self.handle.poison_errno() }.into()),
        }
    }

    /// Whether there is nothing that a flush would have to make durable.
    fn is_clean(&self) -> bool {
        // In this order: a flush that runs has taken the mark already and is not finished.
        let idle = self.flushing.in_use() == 0;
        (idle && !self.dirty.load(Ordering::SeqCst)) || self.mode.ignores_flush()
    }

    /// Makes completed writes durable, unless there are none since the last time.
    ///
    /// One flush runs at a time: the host reports a loss once per open file, to whichever call comes first, so
    /// of two calls side by side one would be told that all is well. Who waited finds its work mostly done.
    async fn flush(&self) -> Result<()> {
        if self.is_clean() {
            return Ok(());
        }
        let _alone = self.flushing.lock(0..1, cowbell_block::range_lock::LockMode::Exclusive).await;
        self.check_health()?;
        if !self.dirty.swap(false, Ordering::SeqCst) {
            return Ok(());
        }
        // If this future is dropped here nobody learns the result, so the mark must not be lost.
        let mark = Mark(Some(&self.dirty));
        let finished = lane::start(Job::plain(self.handle.clone(), Call::Sync, 0), self.lane).await;
        if let (Err(errno), Some(trace)) = (&finished.result, &self.trace) {
            let words = [Word::Result(errno.raw_os_error().into())];
            trace.tell(TraceEvent::FileFlushFdatasyncFailed, &words);
        }
        finished.result.map_err(os)?;
        mark.clear();
        self.check_health()
    }
}

/// Sets the dirty mark again unless told that all is well.
struct Mark<'a>(Option<&'a AtomicBool>);

impl Mark<'_> {
    fn clear(mut self) {
        self.0 = None;
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        if let Some(dirty) = self.0 {
            dirty.store(true, Ordering::SeqCst);
        }
    }
}

impl Node for FileNode {
    fn submit(&self, mut request: Request) -> Op {
        let shared = &self.shared;
        if let Some(modes) = &shared.modes {
            match modes.shape(request) {
                ControlFlow::Break(op) => return op,
                ControlFlow::Continue(shaped) => request = shaped,
            }
        }
        if shared.handle.state() != 0
            && let Some(error) = shared.refusal(&request.op)
        {
            return Op::failed(request.bufs, error);
        }
        match request.op {
            Operation::Read => rw::read(shared, request),
            Operation::Write => rw::write(shared, request),
            Operation::Status => self.status(&request),
            Operation::Flush => {
                if shared.is_clean() {
                    return Op::done(request.bufs);
                }
                let shared = shared.clone();
                finish(request, async move { shared.flush().await })
            }
            _ => {
                let shared = shared.clone();
                let plan = space::Plan::of(&request);
                let flags = request.flags;
                finish(request, async move {
                    shared.change_space(plan).await?;
                    if flags.contains(Flags::FUA) || shared.mode.writes_through() {
                        shared.flush().await?;
                    }
                    Ok(())
                })
            }
        }
    }

    fn driver(&self) -> &'static str {
        if self.shared.is_device { "host_device" } else { "file" }
    }

    fn len(&self) -> u64 {
        self.shared.len()
    }

    fn limits(&self) -> Limits {
        self.shared.mode.limits()
    }

    fn is_read_only(&self) -> bool {
        self.shared.handle.state() & Handle::READ_ONLY != 0
    }

    fn starts_as_zero(&self) -> bool {
        !self.shared.is_device
    }

    fn filename(&self) -> String {
        self.shared.filename.clone()
    }

    fn trace(&self) -> Option<Trace> {
        self.shared.trace.clone()
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let stat = rustix::fs::fstat(&*self.shared.handle).map_err(os);
        let info = stat.map(|stat| ImageInfo {
            format: self.driver(),
            virtual_size: self.shared.len(),
            // The unit of `st_blocks` is 512 bytes on every file system.
            actual_size: Some((stat.st_blocks.max(0) as u64).saturating_mul(512)),
            ..ImageInfo::default()
        });
        Box::pin(std::future::ready(info))
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let shared = self.shared.clone();
        Box::pin(async move { shared.reopen(access).await })
    }

    fn held_needs(&self) -> Option<Needs> {
        *self.shared.lock.lock()
    }

    fn set_needs(&self, needs: Needs) -> Result<()> {
        let mut lock = self.shared.lock.lock();
        let Some(held) = *lock else { return Ok(()) };
        lock::prepare(&*self.shared.handle, held, needs, &self.shared.filename)?;
        lock::commit(&*self.shared.handle, held, needs);
        *lock = Some(needs);
        Ok(())
    }

    fn set_cache(&self, cache: CacheMode) -> BoxFuture<Result<()>> {
        let shared = self.shared.clone();
        Box::pin(async move { shared.set_cache(CacheMode { write_through: false, ..cache }).await })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let shared = self.shared.clone();
        Box::pin(async move { shared.close().await })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn finish(mut request: Request, work: impl Future<Output = Result<()>> + Send + 'static) -> Op {
    let bufs = std::mem::take(&mut request.bufs);
    Op::wait(async move {
        match work.await {
            Ok(()) => Completion::done(bufs),
            Err(e) => Completion::failed(bufs, e),
        }
    })
}
