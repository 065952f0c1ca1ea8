//! The qcow2 format and its engine.
//!
//! ```text
//!   layout    geometry  header  table  snapshot  refcount
//!   memory    cache (bounded slices)  state (all of it, one short lock)  meta (where metadata lies)
//!   bitmap    dirty bitmaps: kept, stored, changed
//!   decide    map (plans)  alloc (clusters and their way back)
//!   codecs    compress  deflate
//!   act       load  read  write  pack (compressed writes)  zero  flush  grow  resize  create  check
//! ```
//!
//! *Plan, execute, commit.* Decisions are made under a short lock; data moves without it; the mapping is
//! published last. What may wait for what: range lock of guest clusters → packers' turn → loading and making of tables →
//! flush → write-back of refcounts; nothing waits the other way round, so there are no deadlocks.
#![forbid(unsafe_code)]

mod alloc;
mod amend;
mod bitmap;
mod cache;
mod check;
mod compress;
mod copy;
mod create;
mod crypto;
mod deflate;
mod driver;
mod engine;
mod flush;
mod geometry;
mod grow;
mod header;
mod load;
mod map;
mod measure;
mod meta;
mod pack;
mod preallocate;
mod read;
mod refcount;
mod resize;
mod rest;
mod rewrite;
mod runtime;
mod snapshot;
mod state;
mod table;
mod vmstate;
mod widen;
mod write;
mod zero;

use std::any::Any;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cowbell_block::child::{EdgeKind, NamedEdge};
use cowbell_block::modes::Modes;
use cowbell_block::naming::{options_of, write_json};
use cowbell_block::options::OptionTree;
use cowbell_block::range_lock::LockMode;
use cowbell_block::{
    Access, Amend, BoxFuture, Bufs, CheckReport, Child, Completion, Error, ErrorKind, Fix, ImageInfo, Limits,
    Node, Op, Operation, Request, Result, SnapshotChange, SnapshotName, Spawner,
};
use serde_json::{Map, Value, json};

pub use amend::Amendment;
pub use bitmap::{BITMAPS_MAX, BitmapError, BitmapInfo, BitmapReader, CannotStore, Recording};
pub use create::{CreateError, CreateOptions, DataFile, DataFileForm, create};
pub use crypto::Unlock;
pub use driver::Qcow2Driver;
pub use engine::{Cleaning, Discards, Notice};
pub use geometry::{L2Format, SLICE_BYTES};
pub use header::{CompressionType, Header, HeaderError};
pub use meta::OverlapChecks;

use cowbell_luks::SECTOR;
use crypto::Crypto;
use engine::{Engine, Surroundings, WORK_BYTES};
use geometry::Geometry;
use header::{Incompatible, LAZY_REFCOUNTS};
use snapshot::SnapshotTable;
use state::{Capacities, Settings, State};

/// The driver's name.
pub const DRIVER: &str = "qcow2";

/// Ordering steps that a build with the `mutants` feature can switch off, with what each is for.
pub const MUTANTS: &[(&str, &str)] = &[
    (
        "barrier-before-entries",
        "guest data, tables and refcounts durable before the entries that point to them",
    ),
    ("barrier-after-entries", "a completed flush is durable"),
    ("barrier-before-reftable", "a refcount block durable before the table names it"),
    ("reference-before-refcount", "entries written after refcounts"),
    ("l2-table-unwritten", "a new L2 table's cluster is written before it is linked"),
    ("cow-side-by-side", "writes into one fresh cluster run one after the other"),
    ("punch-after-free", "a hole is punched before its cluster can be owned again"),
    ("bitmaps-not-marked", "bitmaps are marked in use before the disk changes"),
    ("bitmap-flags-beside-bits", "bits are durable before their bitmap is said to be consistent"),
    ("bitmap-entries-beside-refcounts", "a cluster of bits is counted before a table names it"),
    ("bitmap-directory-unsettled", "a bitmap directory is durable before the header names it"),
    ("no-epochs", "a freed cluster waits for the plans that know it"),
    ("pack-into-freed", "nothing is packed into a host cluster that loses references"),
    ("no-quarantine", "a freed cluster waits until its pointer is durably gone"),
    ("abandoned-overwrite", "an abandoned write in place holds its clusters until its I/O has ended"),
    ("stale-slice", "a slice read before its table was replaced is read again"),
    ("dirty-bit-unset", "the dirty bit is set before entries rely on refcounts that are not written"),
    ("dirty-bit-cleared-early", "refcounts durable before the dirty bit is cleared"),
    ("freed-not-found", "clusters that are free again are found again"),
];

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

/// An open qcow2 image.
pub struct Qcow2 {
    engine: Arc<Engine>,
    modes: Modes,
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

impl Qcow2 {
    /// Opens the image in `file`, over `backing` if it has a backing file.
    ///
    /// A writable open of an image that was not shut down cleanly repairs its refcounts first.
    ///
    /// # Errors
    /// The rule of the format that the image breaks, a feature that is not there yet, or the file's error.
    pub async fn open(
        file: Arc<dyn Node>,
        backing: Option<Arc<dyn Node>>,
        options: OpenOptions,
    ) -> Result<Arc<Self>> {
        let modes = options.modes;
        let engine = open_engine(Child::new(file), backing.map(Child::new), options).await?;
        Ok(Arc::new(Self { engine, modes }))
    }

    /// Reads and checks only the header: what an image says about itself.
    ///
    /// # Errors
    /// The rule of the format that the header breaks, or the file's error.
    pub async fn read_header(file: &Child) -> Result<Header> {
        let len = file.len();
        let first = file.read(0, len.min(HEADER_PIECE) as usize).await?;
        let bits = Header::peek_cluster_bits(&first)?;
        let cluster = 1u64 << bits;
        if cluster <= first.len() as u64 {
            return Header::parse(&first);
        }
        // A file shorter than its first cluster reads as zeroes beyond its end.
        let whole = file.read(0, cluster as usize).await?;
        Header::parse(&whole)
    }

    /// Whether nothing is under way and nothing abandoned: for tests of quiescence.
    pub fn is_quiet(&self) -> bool {
        self.engine.is_quiet()
    }
}

/// Bytes of the first read: a whole cluster of the usual size.
const HEADER_PIECE: u64 = 64 << 10;
/// Most bytes of cached L1 and refcount table slices, each. They are needed only when a deeper slice is not cached.
const ROOT_CACHE_BYTES: u64 = 2 << 20;

pub(crate) async fn open_engine(
    file: Child,
    backing: Option<Child>,
    options: OpenOptions,
) -> Result<Arc<Engine>> {
    let mut header = Qcow2::read_header(&file).await?;
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
    // Looked through for its limits only: the entries are read by those who need them.
    SnapshotTable::scan(&file, &header, drop).await?;
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
    if !options.skip_repair {
        bitmap::check_stored(&engine).await?;
    }
    if options.access == Access::ReadWrite {
        engine.start_writing(SkipRepair(options.skip_repair)).await?;
    }
    Ok(engine)
}

/// Sizes of the caches for these bytes of L2 tables and refcount blocks.
fn capacities(geometry: &Geometry, l2_bytes: u64, refcount_bytes: u64) -> Capacities {
    let in_slices = |bytes: u64| (bytes / u64::from(geometry.slice_bytes)) as usize;
    Capacities {
        l1: in_slices(ROOT_CACHE_BYTES.min(l2_bytes)),
        l2: in_slices(l2_bytes),
        reftable: in_slices(ROOT_CACHE_BYTES.min(refcount_bytes)),
        refblocks: in_slices(refcount_bytes),
    }
}

/// Whether an image that needs repair is left as it is.
struct SkipRepair(bool);

impl Engine {
    /// Makes the image ready for mutations: refuses what must not be written, clears what this engine does not
    /// maintain, repairs what an unclean shutdown left.
    async fn start_writing(self: &Arc<Self>, skip_repair: SkipRepair) -> Result<()> {
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
    async fn stop_writing(self: &Arc<Self>) -> Result<()> {
        if !self.writable.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.store_bitmaps().await?;
        self.settle_refcounts().await?;
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

impl Node for Qcow2 {
    fn submit(&self, mut request: Request) -> Op {
        let engine = &self.engine;
        if request.op.is_mutation() && engine.bitmaps.is_crowded() {
            return self.submit_after_storing(request);
        }
        if !self.modes.is_plain() {
            request = match self.modes.shape(request) {
                ControlFlow::Continue(request) => request,
                ControlFlow::Break(op) => return op,
            };
        }
        match request.op {
            Operation::Read => read::submit(engine, request),
            Operation::Write => write::submit(engine, request),
            Operation::WriteZeroes => zero::submit_zeroes(engine, request),
            Operation::Discard => zero::submit_discard(engine, request),
            Operation::Status => read::submit_status(engine, &request),
            Operation::Flush => self.submit_flush(request),
            Operation::Truncate(preallocation) => resize::submit(engine, &request, preallocation),
            Operation::CopyFrom { .. } => copy::submit(engine, request),
            Operation::VmStateRead => vmstate::submit_read(engine, request),
            Operation::VmStateWrite => vmstate::submit_write(engine, request),
        }
    }

    fn driver(&self) -> &'static str {
        DRIVER
    }

    fn len(&self) -> u64 {
        self.engine.state.lock().header.size
    }

    fn limits(&self) -> Limits {
        let grain = self.engine.geometry.cluster_size();
        let request_alignment = if self.engine.is_encrypted() { SECTOR as u32 } else { 1 };
        Limits { request_alignment, discard_alignment: grain, preferred_write: grain, ..Limits::default() }
    }

    fn is_read_only(&self) -> bool {
        !self.engine.writable.load(Ordering::Relaxed)
    }

    fn compresses(&self) -> bool {
        !self.engine.is_encrypted()
    }

    fn starts_as_zero(&self) -> bool {
        self.engine.backing.is_none()
    }

    fn edges(&self) -> Vec<NamedEdge> {
        let edge = |role, kind, child: &Child| NamedEdge { role, kind, child: child.clone() };
        let mut edges = vec![edge("file", EdgeKind::Storage, &self.engine.file)];
        edges.extend(self.engine.data_file.as_ref().map(|child| edge("data-file", EdgeKind::Storage, child)));
        edges.extend(self.engine.backing.as_ref().map(|child| edge("backing", EdgeKind::Backing, child)));
        edges
    }

    fn primary(&self) -> Option<Arc<dyn Node>> {
        Some(self.engine.file.node())
    }

    fn backing(&self) -> Option<Arc<dyn Node>> {
        self.engine.backing.as_ref().map(Child::node)
    }

    fn filename(&self) -> String {
        let file = self.engine.file.node();
        let key_secret = self.engine.around.crypto.as_ref().and_then(|crypto| crypto.key_secret.as_ref());
        let name = file.filename();
        // What is no plain name of the file is no name of the image in it.
        if key_secret.is_none() && !name.starts_with("json:") {
            return name;
        }
        // In the reference's order and form.
        let mut tree = OptionTree::new();
        if let Some(id) = key_secret {
            tree.insert("encrypt.key-secret".to_owned(), json!(id));
        }
        tree.insert("driver".to_owned(), json!(DRIVER));
        tree.insert("file".to_owned(), options_of(&*file));
        format!("json:{}", write_json(&Value::Object(tree)))
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let engine = self.engine.clone();
        Box::pin(async move { describe(&engine).await })
    }

    fn check(&self, fix: Fix) -> BoxFuture<Result<CheckReport>> {
        let engine = self.engine.clone();
        Box::pin(async move { check::run(&engine, fix).await })
    }

    fn change_backing(&self, name: Option<String>, format: Option<String>) -> BoxFuture<Result<()>> {
        let engine = self.engine.clone();
        Box::pin(async move { amend::change_backing(&engine, name, format).await })
    }

    fn amend(&self, mut options: OptionTree, how: Amend) -> BoxFuture<Result<()>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            if let Some(keys) = driver::key_amendment(&mut options)? {
                engine.amend_keys(&keys, &how.secrets, how.force).await?;
            }
            if options.is_empty() {
                return Ok(());
            }
            let wanted = driver::amendment(options, &engine.state.lock().header)?;
            amend::amend(&engine, wanted).await
        })
    }

    fn change_snapshots(&self, change: SnapshotChange) -> BoxFuture<Result<()>> {
        let worker = self.engine.clone();
        // Kept: half of it must not stay undone when the caller loses interest.
        let op = self.engine.keep(async move {
            match snapshot::change(&worker, change).await {
                Ok(()) => Completion::done(Bufs::none()),
                Err(e) => Completion::failed(Bufs::none(), e),
            }
        });
        Box::pin(async move { op.finish().await.result.map(drop) })
    }

    fn at_snapshot(&self, which: SnapshotName) -> BoxFuture<Result<Arc<dyn Node>>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let engine = snapshot::open_view(&engine, &which).await?;
            Ok(Arc::new(Self { engine, modes: Modes::default() }) as Arc<dyn Node>)
        })
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let _whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive).await;
            match access {
                Access::ReadOnly => engine.stop_writing().await,
                Access::ReadWrite => engine.start_writing(SkipRepair(false)).await,
            }
        })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let engine = self.engine.clone();
        Box::pin(async move { close(&engine).await })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Brings everything into the file. Bitmaps that cannot be stored are lost, and marked as such; all else is not.
async fn settle_all(engine: &Arc<Engine>) -> Result<()> {
    let stored = engine.store_bitmaps().await;
    engine.settle_refcounts().await.and(stored)
}

async fn close(engine: &Arc<Engine>) -> Result<()> {
    engine.settle().await;
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

impl Qcow2 {
    /// Stores the bitmaps before a change of the disk: what is noted of them takes too much memory.
    fn submit_after_storing(&self, request: Request) -> Op {
        let (engine, modes) = (self.engine.clone(), self.modes);
        let whole = engine.ranges.lock(0..u64::MAX, LockMode::Exclusive);
        self.engine.keep(async move {
            let stored = {
                let _whole = whole.await;
                engine.store_bitmaps().await
            };
            match stored {
                Ok(()) => Self { engine, modes }.submit(request).finish().await,
                Err(e) => Completion::failed(request.bufs, e),
            }
        })
    }

    fn submit_flush(&self, request: Request) -> Op {
        let engine = &self.engine;
        if let Err(e) = engine.check_usable() {
            return Op::failed(request.bufs, e);
        }
        if !engine.writable.load(Ordering::Relaxed) {
            return Op::done(request.bufs);
        }
        let worker = engine.clone();
        engine.keep(async move {
            match worker.flush().await {
                Ok(()) => Completion::done(Bufs::none()),
                Err(e) => Completion::failed(Bufs::none(), e),
            }
        })
    }
}

async fn describe(engine: &Arc<Engine>) -> Result<ImageInfo> {
    let header = engine.state.lock().header.clone();
    // At its final length from the start: a header may claim 65536 entries.
    let mut snapshots = Vec::with_capacity(header.snapshot_count as usize);
    SnapshotTable::scan(&engine.file, &header, |entry| snapshots.push(entry.info)).await?;
    let bitmaps = bitmap::describe(engine, &header).await?;
    let geometry = engine.geometry;
    let vm_state_start = engine.state.lock().vm_state_start();
    Ok(ImageInfo {
        format: DRIVER,
        virtual_size: header.size,
        cluster_size: Some(geometry.cluster_size()),
        encrypted: header.crypt_method != 0,
        dirty: Some(header.incompatible.contains(Incompatible::DIRTY)),
        backing_filename: header.backing_file.clone(),
        backing_format: header.backing_format.clone(),
        snapshots,
        vm_state_offset: Some(vm_state_start),
        format_specific: Some((DRIVER, format_specific(engine, &header, bitmaps))),
        ..ImageInfo::default()
    })
}

/// The facts of the format in the reference's order.
fn format_specific(engine: &Engine, header: &Header, bitmaps: Option<Value>) -> Map<String, Value> {
    let mut facts = Map::new();
    let mut put = |key: &str, value: Value| facts.insert(key.to_owned(), value);
    let compression = header.compression.name();
    if header.version < 3 {
        put("compat", json!("0.10"));
        put("compression-type", json!(compression));
        put("refcount-bits", json!(1 << header.refcount_order));
        if let Some(crypto) = &engine.around.crypto {
            put("encrypt", Value::Object(crypto.facts()));
        }
        return facts;
    }
    put("compat", json!("1.1"));
    put("compression-type", json!(compression));
    put("lazy-refcounts", json!(header.compatible & LAZY_REFCOUNTS != 0));
    if let Some(list) = bitmaps {
        put("bitmaps", list);
    }
    put("refcount-bits", json!(1 << header.refcount_order));
    if let Some(name) = header.data_file() {
        put("data-file", json!(name));
    }
    if let Some(crypto) = &engine.around.crypto {
        put("encrypt", Value::Object(crypto.facts()));
    }
    if header.data_file().is_some() {
        put("data-file-raw", json!(header.has_raw_data_file()));
    }
    put("corrupt", json!(header.incompatible.contains(Incompatible::CORRUPT)));
    put("extended-l2", json!(header.incompatible.contains(Incompatible::EXTENDED_L2)));
    facts
}
