//! From a file to an engine, and back: opening, becoming writable, becoming read-only, closing.
//!
//! What must not be written is refused here; what an unclean shutdown left is repaired before the first request.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowbell_block::modes::Modes;
use cowbell_block::range_lock::LockMode;
use cowbell_block::{Access, Child, Error, ErrorKind, Node, Preallocation, Request, Result, Spawner};

use crate::crypto::{Crypto, Unlock};
use crate::engine::{Cleaning, Discards, Engine, Notice, Surroundings, WORK_BYTES};
use crate::geometry::{Geometry, SLICE_BYTES};
use crate::header::{Header, HeaderError, Incompatible, LAZY_REFCOUNTS};
use crate::meta::OverlapChecks;
use crate::snapshot::SnapshotTable;
use crate::state::{Capacities, Settings, State};
use crate::{bitmap, check};

/// How an image is opened.
#[derive(Clone)]
pub struct OpenOptions {
    /// Whether mutations are accepted.
    pub access: Access,
    /// The file with the guest's data, for an image that keeps it outside.
    pub data_file: Option<Arc<dyn Node>>,
    /// Nothing but metadata will be asked for: an external data file need not be there.
    pub metadata_only: bool,
    /// The key of an encrypted image.
    pub unlock: Unlock,
    /// Most bytes of cached L2 slices. The reference's default maximum, taken only as slices come.
    pub l2_cache_bytes: u64,
    /// Most bytes of cached refcount slices.
    pub refcount_cache_bytes: u64,
    /// Bytes of one slice, a power of two; at most a cluster.
    pub slice_bytes: u32,
    /// Discards that are ignored, zeroes that are detected.
    pub modes: Modes,
    /// What happens to storage that is no longer needed.
    pub discards: Discards,
    /// Metadata that no write may hit.
    pub overlap_checks: OverlapChecks,
    /// Postpone refcounts; `None` follows the image.
    pub lazy_refcounts: Option<bool>,
    /// When slices that nobody used for a while are forgotten; `None` for never.
    pub cleaning: Option<Cleaning>,
    /// Leave an image that was not shut down cleanly, is marked corrupt or has no refcount table as it is, for a check
    /// that will tell.
    pub skip_repair: bool,
    /// The way to all cores, for work on much metadata or data at once.
    pub spawn: Option<Spawner>,
    /// Most bytes of counts that an operation on the whole image keeps; an image that needs more is gone through
    /// several times.
    pub work_bytes: u64,
    /// Called when the image turns out to be corrupt.
    pub notice: Option<Notice>,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            access: Access::ReadOnly,
            data_file: None,
            metadata_only: false,
            unlock: Unlock::default(),
            l2_cache_bytes: 32 << 20,
            refcount_cache_bytes: 4 << 20,
            slice_bytes: SLICE_BYTES,
            modes: Modes::default(),
            discards: Discards::default(),
            overlap_checks: OverlapChecks::default(),
            lazy_refcounts: None,
            cleaning: None,
            skip_repair: false,
            spawn: None,
            work_bytes: WORK_BYTES,
            notice: None,
        }
    }
}

/// An image that cannot be opened as asked.
#[derive(Debug, thiserror::Error)]
enum OpenError {
    #[error("qcow2: Image is corrupt; cannot be opened read/write")]
    Corrupt,
    #[error("'data-file' is required for this image")]
    DataFileMissing,
    #[error("'data-file' can only be set for images with an external data file")]
    DataFileUnwanted,
}

/// Bytes of the first read: more than the header of nearly every image.
const HEADER_PIECE: u64 = 4 << 10;
/// Most bytes of cached L1 and refcount table slices, each. They are needed only when a deeper slice is not cached.
const ROOT_CACHE_BYTES: u64 = 2 << 20;

/// Reads and checks only the header.
///
/// # Errors
/// The rule of the format that the header breaks, or the file's error.
pub(crate) async fn read_header(file: &Child) -> Result<Header> {
    let first = file.read(0, file.len().min(HEADER_PIECE) as usize).await?;
    let header = if Header::is_covered_by(&first)? {
        Header::parse(&first)
    } else {
        // A file shorter than its first cluster reads as zeroes beyond its end.
        let whole = file.read(0, 1 << Header::peek_cluster_bits(&first)?).await?;
        let header = Header::parse(&whole);
        whole.recycle();
        header
    };
    first.recycle();
    header
}

pub(crate) async fn open_engine(
    file: Child,
    backing: Option<Child>,
    options: OpenOptions,
) -> Result<Arc<Engine>> {
    let mut header = read_header(&file).await?;
    let data_file = match (options.data_file, header.incompatible.contains(Incompatible::DATA_FILE)) {
        (Some(node), true) => Some(Child::new(node)),
        (None, false) => None,
        (None, true) if options.metadata_only => None,
        (None, true) => return Err(Error::new(ErrorKind::InvalidInput, OpenError::DataFileMissing)),
        (Some(_), false) => return Err(Error::new(ErrorKind::InvalidInput, OpenError::DataFileUnwanted)),
    };
    if header.reftable_clusters == 0 && !options.skip_repair {
        return Err(HeaderError::NoReftable.into());
    }
    let spawner = options.spawn.as_ref();
    let crypto = Crypto::open(&file, &header, options.unlock, options.metadata_only, spawner).await?;
    let geometry = header.geometry(options.slice_bytes);
    // Disks have whole sectors; the reference leaves the odd bytes out as well.
    header.size -= header.size % 512;
    if !options.skip_repair {
        header.check_snapshots()?;
        // Looked through for its limits only: the entries are read by those who need them.
        SnapshotTable::scan(&file, &header, drop).await?;
    }
    let caches = capacities(&geometry, options.l2_cache_bytes, options.refcount_cache_bytes);
    let wants_lazy = options.lazy_refcounts.unwrap_or(header.compatible & LAZY_REFCOUNTS != 0);
    let lazy = header.version >= 3 && wants_lazy;
    let settings = Settings { lazy, discards: options.discards, overlap_checks: options.overlap_checks };
    let state = State::new(header, geometry, file.len(), settings, &caches);
    let OpenOptions { notice, cleaning, spawn, work_bytes, .. } = options;
    let crypto = crypto.map(Arc::new);
    let surroundings = Surroundings { notice, cleaning, spawn, work_bytes, crypto };
    let engine = Arc::new(Engine::new(file, backing, data_file, state, surroundings));
    bitmap::tell_stale(&engine);
    // Also for a check: what a broken directory does not name, it would take for leaks.
    bitmap::check_stored(&engine).await?;
    if options.access == Access::ReadWrite {
        engine.start_writing(SkipRepair(options.skip_repair)).await?;
    }
    Ok(engine)
}

/// Sizes of the caches for these bytes of L2 tables and refcount blocks.
pub(crate) fn capacities(geometry: &Geometry, l2_bytes: u64, refcount_bytes: u64) -> Capacities {
    let in_slices = |bytes: u64| (bytes / u64::from(geometry.slice_bytes)) as usize;
    Capacities {
        l1: in_slices(ROOT_CACHE_BYTES.min(l2_bytes)),
        l2: in_slices(l2_bytes),
        reftable: in_slices(ROOT_CACHE_BYTES.min(refcount_bytes)),
        refblocks: in_slices(refcount_bytes),
    }
}

/// Whether an image that needs repair is left as it is.
pub(crate) struct SkipRepair(pub bool);

impl Engine {
    /// Makes the image ready for mutations: refuses what must not be written, clears what this engine does not
    /// maintain, repairs what an unclean shutdown left.
    pub(crate) async fn start_writing(self: &Arc<Self>, skip_repair: SkipRepair) -> Result<()> {
        if self.is_view {
            return Err(ErrorKind::ReadOnly.into());
        }
        if self.writable.load(Ordering::SeqCst) {
            return Ok(());
        }
        let header = self.state.lock().header.clone();
        if header.incompatible.contains(Incompatible::CORRUPT) {
            if !skip_repair.0 {
                return Err(Error::new(ErrorKind::PermissionDenied, OpenError::Corrupt));
            }
            // Only a check may write to it.
            self.corrupt.store(true, Ordering::SeqCst);
        }
        let file = self.file.node();
        for node in [Some(file), self.data_file.as_ref().map(Child::node)].into_iter().flatten() {
            if node.is_read_only() {
                node.reopen(Access::ReadWrite).await?;
            }
        }
        self.writable.store(true, Ordering::SeqCst);
        let ready = self.prepare_writing(&header, skip_repair).await;
        if ready.is_err() {
            self.writable.store(false, Ordering::SeqCst);
        }
        ready
    }

    async fn prepare_writing(self: &Arc<Self>, header: &Header, skip_repair: SkipRepair) -> Result<()> {
        let mut known = header.clone();
        known.clear_unknown_autoclear();
        if known != *header {
            self.update_header(Header::clear_unknown_autoclear).await?;
            self.barrier().await?;
        }
        if skip_repair.0 {
            // A repair touches nothing that the guest sees, so bitmaps stay as true as they are.
            return Ok(());
        }
        if header.incompatible.contains(Incompatible::DIRTY) {
            check::repair_refcounts(self).await?;
        }
        if header.has_stale_bitmaps() {
            self.rewrite_header(|header| header.set_bitmaps(None)).await?;
        }
        self.track_bitmaps().await
    }

    /// Brings everything into the file; from here on mutations are refused.
    pub(crate) async fn stop_writing(self: &Arc<Self>) -> Result<()> {
        if !self.writable.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.store_bitmaps().await?;
        self.settle_refcounts().await?;
        complete_last_cluster(self).await;
        self.writable.store(false, Ordering::SeqCst);
        for file in [Some(&self.file), self.data_file.as_ref()].into_iter().flatten() {
            match file.node().reopen(Access::ReadOnly).await {
                // The file may stay open for writing: nobody here writes to it.
                Err(e) if e.kind() == ErrorKind::Unsupported => {}
                other => other?,
            }
        }
        Ok(())
    }
}

/// Brings everything into the file. Bitmaps that cannot be stored are lost, and marked as such; all else is not.
async fn settle_all(engine: &Arc<Engine>) -> Result<()> {
    let stored = engine.store_bitmaps().await;
    engine.settle_for_good().await?;
    complete_last_cluster(engine).await;
    stored
}

/// Gives a file that grew its last cluster whole: the tail of a fresh cluster that nobody wrote to may lie beyond its end.
/// It reads as zeroes to us, but not every reader of the format looks beyond an end. So a failure changes nothing.
async fn complete_last_cluster(engine: &Engine) {
    let len = engine.file.len();
    let whole = len.next_multiple_of(engine.geometry.cluster_size());
    if len > engine.opened_len && whole > len {
        let longer = Request::truncate(whole, Preallocation::Off);
        let _ = engine.file.submit(longer).finish().await.result;
    }
}

/// Settles the image and closes its files; the second time nothing is left to do.
pub(crate) async fn close(engine: &Arc<Engine>) -> Result<()> {
    engine.orphans.settle().await;
    let _whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
    if engine.closed.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    let mut result = Ok(());
    if engine.writable.load(Ordering::SeqCst) && !engine.retired.load(Ordering::SeqCst) {
        // A poisoned image has lost something that nobody may learn of later than now. A corrupt one takes no
        // more writes; what was flushed is there.
        result = match engine.corrupt.load(Ordering::SeqCst) {
            true => Ok(()),
            false => settle_all(engine).await,
        };
    }
    if engine.is_view {
        return result;
    }
    let mut closed = engine.file.node().close().await;
    if let Some(data_file) = &engine.data_file {
        closed = closed.and(data_file.node().close().await);
    }
    if let Some(backing) = &engine.backing {
        backing.node().close().await?;
    }
    result.and(closed)
}
