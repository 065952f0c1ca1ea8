//! The qcow2 format and its engine.
//!
//! ```text
//!   layout    geometry  header  table  snapshot  refcount
//!   memory    cache (bounded slices)  state (all of it, one short lock)  meta (where metadata lies)
//!   bitmap    dirty bitmaps: kept, stored, changed
//!   decide    entries  map (plans)  alloc (clusters and their way back)  rest (freed, still known to plans)
//!   codecs    compress  deflate  crypto
//!   act       load  window (long ranges)  read  write  copy  pack (compressed writes)  zero  vmstate  flush  grow  resize  preallocate
//!   change    create  amend  widen (refcounts)  rewrite (the header)  snapshot  check
//!   face      driver  runtime (options)  open  node  describe  measure  sharing (who holds what)
//! ```
//!
//! *Plan, execute, commit.* Decisions are made under a short lock; data moves without it; the mapping is
//! published last. What may wait for what: range lock of guest clusters → packers' turn → loading and making of tables →
//! flush → write-back of refcounts; nothing waits the other way round, so there are no deadlocks.
//!
//! An image is opened over any [`Node`](cowbell_block::Node) that stores its file, and is a node itself. The engine names
//! no runtime: its futures can be driven by any executor, and over nodes that answer at once by a loop. The example
//! `embed` does the same over one's own file.
//!
//! ```
//! use std::sync::Arc;
//! use cowbell_block::{Access, Buf, Child, MemNode, NewSnapshot, Node, Request, SnapshotChange, SnapshotName};
//! use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};
//!
//! # fn now<T>(future: impl Future<Output = T>) -> T {
//! #     let mut future = std::pin::pin!(future);
//! #     let mut context = std::task::Context::from_waker(std::task::Waker::noop());
//! #     loop {
//! #         if let std::task::Poll::Ready(value) = future.as_mut().poll(&mut context) {
//! #             return value;
//! #         }
//! #     }
//! # }
//! # now(async {
//! let file = Arc::new(MemNode::new(0));
//! let create = CreateOptions { size: 1 << 30, ..Default::default() };
//! cowbell_qcow2::create(&Child::new(file.clone()), None, &create).await?;
//!
//! let writable = OpenOptions { access: Access::ReadWrite, ..Default::default() };
//! let disk = Qcow2::open(file, None, writable).await?;
//! disk.submit(Request::write(512, Buf::copy_of(b"old"))).finish().await.into_bufs()?;
//! let snapshot = NewSnapshot { name: "first".into(), ..Default::default() };
//! disk.change_snapshots(SnapshotChange::Create(snapshot)).await?;
//! disk.submit(Request::write(512, Buf::copy_of(b"new"))).finish().await.into_bufs()?;
//!
//! let past = disk.at_snapshot(SnapshotName::Name("first".into())).await?;
//! let read = past.submit(Request::read(512, Buf::zeroed(3))).finish().await.into_bufs()?;
//! assert_eq!(&read.to_contiguous()[..], b"old");
//! past.close().await?;
//! // Durable and closed: dropping the node instead loses nothing that a flush had promised.
//! disk.close().await?;
//! # Ok::<(), cowbell_block::Error>(())
//! # }).expect("possible");
//! ```
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
mod describe;
mod driver;
mod engine;
mod entries;
mod flush;
mod geometry;
mod grow;
mod header;
mod hollow;
mod load;
mod map;
mod measure;
mod meta;
mod node;
mod open;
mod pack;
mod preallocate;
mod read;
mod refcount;
mod resize;
mod rest;
mod rewrite;
mod runtime;
mod sharing;
mod snapshot;
mod state;
pub mod stream;
mod table;
mod told;
mod vmstate;
mod widen;
mod window;
mod write;
mod zero;

pub use amend::Amendment;
pub use bitmap::{BITMAPS_MAX, BitmapError, BitmapInfo, BitmapReader, CannotStore, Recording};
pub use create::{
    CreateError, CreateOptions, DataFile, DataFileForm, EncryptionMethod, NewEncryption, create,
    create_encrypted,
};
pub use crypto::Unlock;
pub use driver::{Qcow2Driver, creation_options};
pub use engine::{Cleaning, Discards, Notice};
pub use geometry::{L2Format, SLICE_BYTES};
pub use header::{CompressionType, Header, HeaderError};
pub use meta::OverlapChecks;
pub use node::Qcow2;
pub use open::OpenOptions;
pub use sharing::{Evidence, Holder, Parent, Sharing};
pub use snapshot::blames_snapshot_table;

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
    ("blocks-split", "a block of 4096 bytes is not written partly in place and partly into new storage"),
    ("cow-side-by-side", "writes into one fresh cluster run one after the other"),
    ("punch-after-free", "a hole is punched before its cluster can be owned again"),
    ("bitmaps-not-marked", "bitmaps are marked in use before the disk changes"),
    ("bitmap-flags-beside-bits", "bits are durable before their bitmap is said to be consistent"),
    ("bitmap-entries-beside-refcounts", "a cluster of bits is counted before a table names it"),
    ("bitmap-directory-unsettled", "a bitmap directory is durable before the header names it"),
    ("data-file-unsettled", "an external data file is flushed with its image"),
    ("shadow-unsettled", "the tables of a snapshot operation are durable before the header names them"),
    ("snapshot-table-unsettled", "a repaired snapshot table is durable before the header names it"),
    ("known-not-counted-down", "what running plans know is counted down before an engine ends"),
    ("no-epochs", "a freed cluster waits for the plans that know it"),
    ("replaced-at-once", "clusters of replaced tables rest until the plans that know them have ended"),
    (
        "key-unsettled",
        "key material is durable before its slot is in use, and a slot out of use before it is overwritten",
    ),
    ("commit-unsettled", "what was committed is durable before the image gives it up"),
    ("pack-into-freed", "nothing is packed into a host cluster that loses references"),
    ("no-quarantine", "a freed cluster waits until its pointer is durably gone"),
    ("abandoned-overwrite", "an abandoned write in place holds its clusters until its I/O has ended"),
    ("stale-slice", "a slice read before its table was replaced is read again"),
    ("dirty-bit-unset", "the dirty bit is set before entries rely on refcounts that are not written"),
    ("dirty-bit-cleared-early", "refcounts durable before the dirty bit is cleared"),
    ("freed-not-found", "clusters that are free again are found again"),
];
