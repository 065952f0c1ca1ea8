//! What a block node is.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::child::NamedEdge;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{DebugEvent, Suspension};
use crate::finding::Finding;
use crate::graph::Needs;
use crate::options::{CacheMode, OptionTree};
use crate::request::{BoxFuture, Cause, Op, Request};
use crate::secrets::Secrets;
use crate::snapshots::{SnapshotChange, SnapshotName};
use crate::trace::Trace;

/// A raw image, a file, an image format, a filter: anything that stores or changes blocks.
///
/// A driver is a thin handle over an `Arc` of its state. [`Node::submit`] borrows the node only for the call:
/// a request that has to wait returns a future which owns all it needs, so that an edge can be replaced, and
/// work that must not stop half way can be kept by the node when its submitter loses interest.
pub trait Node: Send + Sync + 'static {
    /// Starts a request.
    ///
    /// Offsets and lengths need not be aligned unless [`Node::limits`] says so; a parent goes through a
    /// [`Child`](crate::child::Child), which honours the limits. Requests beyond the end fail, except that
    /// protocol nodes grow by writes and read as zeroes beyond their end: an image's file may end inside its last
    /// cluster.
    fn submit(&self, request: Request) -> Op;

    /// Starts a request to an earlier state of the disk, if the node keeps one: a read, a status question, or a discard
    /// of what is not needed any more.
    fn submit_earlier(&self, request: Request) -> Op {
        Op::failed(request.bufs, ErrorKind::Unsupported)
    }

    /// The areas that a bitmap of the node calls dirty, in bytes, in order.
    fn dirty_areas(&self, bitmap: String) -> BoxFuture<Result<Vec<Range<u64>>>> {
        Box::pin(std::future::ready(Err(NoSuchBitmap(bitmap).into())))
    }

    /// The driver's name, as in options (`qcow2`, `raw`, `file`).
    fn driver(&self) -> &'static str;

    /// Current length in bytes.
    fn len(&self) -> u64;

    /// Whether the node has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the node asks of requests.
    fn limits(&self) -> Limits {
        Limits::default()
    }

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        false
    }

    /// Whether every byte that was never written reads as zero after a fresh creation.
    fn starts_as_zero(&self) -> bool {
        false
    }

    /// Whether writes may ask to be stored compressed.
    fn compresses(&self) -> bool {
        false
    }

    /// The edges to the children, for the graph: through them it changes what is below.
    fn edges(&self) -> Vec<NamedEdge> {
        Vec::new()
    }

    /// The children, by role name (`file`, `backing`, …): those at the ends of [`Node::edges`].
    ///
    /// A node that overrides this and not `edges` is seen by the graph, but its children cannot be replaced.
    fn children(&self) -> Vec<(&'static str, Arc<dyn Node>)> {
        self.edges().into_iter().map(|edge| (edge.role, edge.child.node())).collect()
    }

    /// The child that stores this node's own data, if there is one.
    fn primary(&self) -> Option<Arc<dyn Node>> {
        self.children().into_iter().next().map(|(_, node)| node)
    }

    /// The node that supplies what this one has not allocated.
    fn backing(&self) -> Option<Arc<dyn Node>> {
        None
    }

    /// How a user would name this node.
    fn filename(&self) -> String;

    /// Announces what a parent is about to do; `Some` means that a breakpoint was hit.
    fn debug_event(&self, event: DebugEvent, cause: Cause) -> Option<Suspension> {
        self.primary().and_then(|child| child.debug_event(event, cause))
    }

    /// Whether anything here or below listens to [`Node::debug_event`]. Cached by the edges above.
    fn listens(&self) -> bool {
        self.primary().is_some_and(|child| child.listens())
    }

    /// Where events of this node and of what stands on it are told, if anywhere. Kept by the edges above.
    fn trace(&self) -> Option<Trace> {
        self.primary().and_then(|child| child.trace())
    }

    /// A number that no other node has as long as this one lives, for logs.
    fn identity(&self) -> u64 {
        std::ptr::from_ref(self).cast::<()>().addr() as u64
    }

    /// What `info` tells.
    fn info(&self) -> BoxFuture<Result<ImageInfo>>;

    /// Looks for inconsistencies, and repairs those named by `fix`.
    fn check(&self, fix: Fix) -> BoxFuture<Result<CheckReport>> {
        let _ = fix;
        Box::pin(std::future::ready(Err(ErrorKind::Unsupported.into())))
    }

    /// Stores another backing file's name and format in the image; `None` for none. What the open node shows does not
    /// change.
    fn change_backing(&self, name: Option<String>, format: Option<String>) -> BoxFuture<Result<()>> {
        let _ = (name, format);
        let error = NotOffered { driver: self.driver(), what: "changing the backing file" };
        Box::pin(std::future::ready(Err(error.into())))
    }

    /// Gives up everything that this image has of its own, so that its disk reads as its backing file does. Its
    /// length, snapshots and bitmaps stay.
    ///
    /// A cut on the way leaves some ranges as they were and others empty: the caller has seen to it that both read
    /// the same, and durably so.
    fn make_empty(&self) -> BoxFuture<Result<()>> {
        let error = NotOffered { driver: self.driver(), what: "emptying" };
        Box::pin(std::future::ready(Err(error.into())))
    }

    /// Changes what the image is, by the options that its driver offers for that
    /// ([`Driver::amend_options`](crate::registry::Driver::amend_options)).
    fn amend(&self, options: OptionTree, how: Amend) -> BoxFuture<Result<()>> {
        let _ = (options, how);
        let error = NotOffered { driver: self.driver(), what: "amendment of options" };
        Box::pin(std::future::ready(Err(error.into())))
    }

    /// Makes, applies, deletes or renames an internal snapshot.
    fn change_snapshots(&self, change: SnapshotChange) -> BoxFuture<Result<()>> {
        let _ = change;
        Box::pin(std::future::ready(Err(ErrorKind::Unsupported.into())))
    }

    /// A read-only node with what an internal snapshot holds, beside the running disk. It shares this node's
    /// children and must be closed before it.
    fn at_snapshot(&self, which: SnapshotName) -> BoxFuture<Result<Arc<dyn Node>>> {
        let _ = which;
        Box::pin(std::future::ready(Err(ErrorKind::Unsupported.into())))
    }

    /// Changes what a running node was opened with: whether writes are refused.
    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let _ = access;
        Box::pin(std::future::ready(Err(ErrorKind::Unsupported.into())))
    }

    /// Changes options of the driver while the node is open; those that are not named stay as they are.
    ///
    /// # Errors
    /// The first option that cannot be changed, or has a bad value. Nothing has changed then.
    fn reconfigure(&self, options: OptionTree) -> BoxFuture<Result<()>> {
        let first = options.into_iter().next();
        Box::pin(std::future::ready(first.map_or(Ok(()), |(key, _)| Err(CannotChange(key).into()))))
    }

    /// Changes how writes and flushes reach the host's storage, here and below. Nothing is in flight meanwhile.
    ///
    /// # Errors
    /// The host does not offer the mode. Some of what is below may have changed then.
    fn set_cache(&self, cache: CacheMode) -> BoxFuture<Result<()>> {
        let edges = self.edges();
        Box::pin(async move {
            for edge in edges {
                edge.child.node().set_cache(cache).await?;
                // Its limits may be others now.
                edge.child.replace(edge.child.node());
            }
            Ok(())
        })
    }

    /// What this node asks of the child in this role, where the rules of its kind of edge say `needs`.
    fn needs_of(&self, role: &str, needs: Needs) -> Needs {
        let _ = role;
        needs
    }

    /// What the image locks stand for that this node holds on the host's storage. `None`: it takes no part.
    fn held_needs(&self) -> Option<Needs> {
        None
    }

    /// Makes the image locks those of `needs`, in one step: on failure nothing has changed. Without effect on a
    /// node that holds none. See [`claim`](crate::claim::claim), which does this for all that is below a node.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when another process stands in the way.
    fn set_needs(&self, needs: Needs) -> Result<()> {
        let _ = needs;
        Ok(())
    }

    /// Moves caches into the file, makes them durable and releases the file. Later requests fail.
    ///
    /// Dropping a node without closing it loses nothing that a flush had promised.
    fn close(&self) -> BoxFuture<Result<()>>;

    /// For drivers that recognise their own kind.
    fn as_any(&self) -> &dyn Any;
}

/// What an amendment needs besides its options.
#[derive(Clone, Debug, Default)]
pub struct Amend {
    /// Whether changes that may make the data unreachable are carried out.
    pub force: Force,
    /// The secrets that options name.
    pub secrets: Secrets,
}

/// Whether changes that may make the data unreachable are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Force {
    /// They are refused.
    #[default]
    No,
    /// They are carried out.
    Yes,
}

/// Whether a node accepts mutations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Access {
    /// Reads only.
    #[default]
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// What a node asks of the requests it gets, in bytes. Zero lengths mean "no limit".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths are multiples of this power of two.
    pub request_alignment: u32,
    /// Buffers start at multiples of this power of two.
    pub memory_alignment: u32,
    /// Most bytes in one read or write.
    pub max_transfer: u64,
    /// Most pieces in one read or write.
    pub max_pieces: usize,
    /// Discards and zeroes below this grain do not release storage.
    pub discard_alignment: u64,
    /// Preferred grain of writes (a cluster, or 0).
    pub preferred_write: u64,
    /// Writes of zeroes and discards that the node wants in certain portions. `None`: as they come.
    pub portions: Option<Portions>,
}

/// How writes of zeroes and discards are portioned for a node that takes it strictly, in bytes.
///
/// A request is cut at multiples of the grain, and what does not fill it comes on its own; the node may answer
/// that it does not support such a part. Zeroes are then written as data, and a discard has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Portions {
    /// Grain of writes of zeroes, at least the request alignment.
    pub zeroes_grain: u64,
    /// Most in one write of zeroes, or 0.
    pub zeroes_max: u64,
    /// Grain of discards, at least the request alignment.
    pub discard_grain: u64,
    /// Most in one discard, or 0.
    pub discard_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_alignment: 1,
            memory_alignment: 1,
            max_transfer: 0,
            max_pieces: 0,
            discard_alignment: 1,
            preferred_write: 0,
            portions: None,
        }
    }
}

/// Most bytes in one request anywhere: `INT_MAX` rounded down to 512, the reference's limit.
pub const REQUEST_BYTES_MAX: u64 = 2_147_483_136;

/// The facts that `info` prints about one node.
#[derive(Clone, Debug, Default)]
pub struct ImageInfo {
    /// The driver's name.
    pub format: &'static str,
    /// Length of the disk in bytes.
    pub virtual_size: u64,
    /// The driver has nothing more to say of itself, not even defaults.
    pub is_bare: bool,
    /// Bytes of storage that the host really gives, if known. Only protocol nodes fill this in.
    pub actual_size: Option<u64>,
    /// Grain of allocation in bytes.
    pub cluster_size: Option<u64>,
    /// Whether content is encrypted.
    pub encrypted: bool,
    /// Whether content is stored compressed.
    pub compressed: bool,
    /// Whether the image was not shut down cleanly, for formats that know.
    pub dirty: Option<bool>,
    /// The backing file's name as stored.
    pub backing_filename: Option<String>,
    /// The backing file's format as stored.
    pub backing_format: Option<String>,
    /// The backing file's name resolved against the image's directory.
    pub full_backing_filename: Option<String>,
    /// Internal snapshots in table order.
    pub snapshots: Vec<SnapshotInfo>,
    /// Where the VM state area starts, for formats that have one.
    pub vm_state_offset: Option<u64>,
    /// Facts of the format in the order they are printed: `(type, data)`.
    pub format_specific: Option<(&'static str, Map<String, Value>)>,
}

/// An internal snapshot as lists show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Unique id, a decimal number by custom.
    pub id: String,
    /// The user's name for it.
    pub name: String,
    /// Length of the saved VM state in bytes.
    pub vm_state_size: u64,
    /// Seconds since 1970.
    pub date_sec: u32,
    /// Nanoseconds of the date.
    pub date_nsec: u32,
    /// The guest's clock in nanoseconds.
    pub vm_clock_nsec: u64,
    /// The machine's instruction count, if one was stored.
    pub icount: Option<u64>,
    /// Length of the disk when the snapshot was taken, in bytes.
    pub disk_size: u64,
}

/// What a check may repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fix {
    /// Nothing: look only.
    #[default]
    None,
    /// Refcounts that are too high.
    Leaks,
    /// Everything.
    All,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Findings in the order they were made.
    pub findings: Vec<Finding>,
    /// Findings beyond the ones listed, when there were too many to keep.
    pub findings_omitted: u64,
    /// Refcounts below their references, broken tables, wrong flags.
    pub corruptions: u64,
    /// Refcounts above their references.
    pub leaks: u64,
    /// Things that could not be checked.
    pub check_errors: u64,
    /// Corruptions repaired.
    pub corruptions_fixed: u64,
    /// Leaks repaired.
    pub leaks_fixed: u64,
    /// First byte after the last cluster in use.
    pub image_end_offset: u64,
    /// Guest clusters in all.
    pub total_clusters: u64,
    /// Guest clusters with storage.
    pub allocated_clusters: u64,
    /// Allocated guest clusters that do not follow their predecessor.
    pub fragmented_clusters: u64,
    /// Guest clusters stored compressed.
    pub compressed_clusters: u64,
}

/// Fails with [`ErrorKind::Unsupported`], naming what the driver lacks.
#[derive(Debug, thiserror::Error)]
#[error("{driver} does not support {what}")]
pub struct NotOffered {
    /// The driver.
    pub driver: &'static str,
    /// The operation or feature.
    pub what: &'static str,
}

impl From<NotOffered> for Error {
    fn from(e: NotOffered) -> Self {
        Error::new(ErrorKind::Unsupported, e)
    }
}

/// An option that stays as it is while the node is open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Cannot change the option '{0}'")]
pub struct CannotChange(pub String);

impl From<CannotChange> for Error {
    fn from(e: CannotChange) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// The node has no bitmap of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Dirty bitmap '{0}' not found")]
pub struct NoSuchBitmap(pub String);

impl From<NoSuchBitmap> for Error {
    fn from(e: NoSuchBitmap) -> Self {
        Error::new(ErrorKind::NotFound, e)
    }
}

/// Fails with [`ErrorKind::Unsupported`]: the node's length is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Image format driver does not support resize")]
pub struct NoResize;

impl From<NoResize> for Error {
    fn from(e: NoResize) -> Self {
        Error::new(ErrorKind::Unsupported, e)
    }
}
