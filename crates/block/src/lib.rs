//! Block nodes: requests and their buffers, limits, errors and causes; the graph of nodes and its changes; the
//! registry of drivers; the raw format, memory and null devices, and the filters.
//!
//! The crate knows no image format but raw, no runtime, no clock and no file system: files come from the
//! `host` crate or from the simulator, both of which implement [`node::Node`].
#![deny(unsafe_code)]

pub mod buf;
pub mod child;
pub mod error;
pub mod event;
pub mod mutant;
pub mod node;
pub mod range_lock;
pub mod request;
pub mod root;

pub use buf::{Buf, Bufs};
pub use child::Child;
pub use error::{Error, ErrorKind, Result};
pub use event::DebugEvent;
pub use node::{Access, CheckReport, Fix, ImageInfo, Limits, Node, SnapshotInfo};
pub use request::{
    BoxFuture, Cause, Completion, Extent, ExtentFlags, Flags, Mapping, Op, Operation, Outcome, Preallocation,
    Request,
};
pub use root::Root;
