//! Block nodes: requests and their buffers, limits, errors and causes; the graph of nodes and its changes; the
//! registry of drivers; the raw format, memory and null devices, and the filters.
//!
//! The crate knows no image format but raw, no runtime, no clock and no file system: files come from the
//! `host` crate or from the simulator, both of which implement [`node::Node`].
//!
//! A [`Root`] is where requests are born. Whoever submits one gets an [`Op`]: finished at once, or to be waited for.
//! Nodes that never wait, like these, need no executor at all:
//!
//! ```
//! use std::sync::Arc;
//! use cowbell_block::{Access, Buf, MemNode, Op, RawNode, Request, Root};
//!
//! # fn main() -> cowbell_block::Result<()> {
//! let disk = RawNode::new(Arc::new(MemNode::new(1 << 20)), Access::ReadWrite)?;
//! let root = Root::new(Arc::new(disk));
//!
//! let Op::Done(written) = root.submit(Request::write(512, Buf::copy_of(b"hello"))) else {
//!     unreachable!("memory meets no wait")
//! };
//! written.into_bufs()?.recycle();
//!
//! let Op::Done(read) = root.submit(Request::read(511, Buf::zeroed(7))) else {
//!     unreachable!("memory meets no wait")
//! };
//! assert_eq!(&read.into_bufs()?.pieces()[0][..], b"\0hello\0");
//! # Ok(())
//! # }
//! ```
#![deny(unsafe_code)]

pub mod blkdebug;
pub mod blkverify;
pub mod buf;
pub mod chain;
pub mod child;
pub mod claim;
pub mod compress;
pub mod context;
pub mod copy_before_write;
pub mod copy_on_read;
pub mod create;
pub mod error;
pub mod event;
pub mod filter;
pub mod finding;
pub mod graph;
pub mod logwrites;
pub mod mem;
pub mod modes;
pub mod mutant;
pub mod names;
pub mod naming;
pub mod node;
pub mod null;
pub mod open;
pub mod options;
pub mod orphans;
pub mod outside;
pub mod policy;
pub mod preallocate;
pub mod quorum;
pub mod range_lock;
pub mod raw;
pub mod registry;
pub mod request;
pub mod root;
pub mod secrets;
pub mod snapshot_access;
pub mod snapshots;
pub mod spawn;
#[cfg(test)]
mod testing;
pub mod throttle;
pub mod trace;
pub mod unfinished;

pub use buf::{Buf, Bufs};
pub use chain::{Chain, ChainExtent};
pub use child::{Child, EdgeKind, NamedEdge};
pub use context::{ChildKind, OpenContext, StoredBacking};
pub use create::{CreateArgs, CreateOption, OptionKind};
pub use error::{Error, ErrorKind, Result};
pub use event::DebugEvent;
pub use finding::{Finding, Topic, Whereabouts};
pub use graph::{Graph, Needs, Permissions};
pub use logwrites::{LogReader, LogWritesNode};
pub use mem::MemNode;
pub use modes::Modes;
pub use naming::ImageName;
pub use node::{Access, Amend, CheckReport, Fix, Force, ImageInfo, Limits, Node, SnapshotInfo};
pub use null::NullNode;
pub use open::{Opened, open_image, open_image_with};
pub use options::{
    AioMode, BoolOpt, CacheMode, ChildRef, DetectZeroes, DiscardMode, OptionTree, SizeOpt, parse_size,
};
pub use outside::{Outside, Time};
pub use policy::Policy;
pub use raw::RawNode;
pub use registry::{Driver, Registry, Role};
pub use request::{
    BoxFuture, Cause, Completion, Extent, ExtentFlags, Flags, Mapping, Op, Operation, Outcome, Preallocation,
    Request,
};
pub use root::Root;
pub use secrets::{Secret, Secrets};
pub use snapshots::{NewSnapshot, SnapshotChange, SnapshotName};
pub use spawn::{Spawn, Spawner};
pub use throttle::{ThrottleGroup, ThrottleGroups};
pub use trace::{Trace, TraceEvent};
