//! What all filters over one child have in common: they pass on what they do not change.
//!
//! A [`Filter`] says what becomes of requests; [`FilterNode`] makes a node of it, which has the name, the facts,
//! the snapshots and the backing file of what it filters.

use std::any::Any;
use std::sync::Arc;

use serde_json::Value;

use crate::buf::Bufs;
use crate::child::{Child, EdgeKind, NamedEdge};
use crate::context::{ChildKind, OpenContext};
use crate::error::{ErrorKind, Result};
use crate::graph::Needs;
use crate::naming::{options_of, write_json};
use crate::node::{Access, ImageInfo, Limits, Node};
use crate::options::{ChildRef, OptionTree};
use crate::request::{BoxFuture, Completion, Op, Operation, Request};
use crate::snapshots::SnapshotChange;

/// The role of a filter's child.
pub const FILE: &str = "file";

/// What a filter does with requests to its one child.
pub trait Filter: Send + Sync + Sized + 'static {
    /// The driver's name.
    const NAME: &'static str;

    /// What is filtered.
    fn child(&self) -> &Child;

    /// Starts a request. [`pass`] hands on what needs no treatment.
    fn submit(self: &Arc<Self>, request: Request) -> Op;

    /// Starts a request to an earlier state of the disk, if the filter keeps one.
    fn submit_earlier(self: &Arc<Self>, request: Request) -> Op {
        Op::failed(request.bufs, ErrorKind::Unsupported)
    }

    /// Edges beside the one to the child that is filtered.
    fn more_edges(&self) -> Vec<NamedEdge> {
        Vec::new()
    }

    /// The filter's own options, as far as they belong to its name.
    fn own_options(&self) -> OptionTree {
        OptionTree::new()
    }

    /// Current length in bytes.
    fn length(&self) -> u64 {
        self.child().len()
    }

    /// What the filter asks of requests, given what its child asks.
    fn limits(&self, below: Limits) -> Limits {
        below
    }

    /// Whether compressed writes are passed on.
    fn compresses(&self) -> bool {
        false
    }

    /// What the filter asks of its child, given what is asked of itself.
    fn needs(&self, needs: Needs) -> Needs {
        needs
    }

    /// Ends the filter's own work, before the child is closed.
    fn finish(self: Arc<Self>) -> BoxFuture<Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// The child is about to accept writes, or not any more.
    fn reopening(self: Arc<Self>, access: Access) -> BoxFuture<Result<()>> {
        let _ = access;
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Hands a request on to the child, unless filters do not take it: data that does not pass through our memory cannot
/// be looked at.
pub fn pass(child: &Child, request: Request) -> Op {
    match request.op {
        Operation::CopyFrom { .. } => Op::failed(request.bufs, ErrorKind::Unsupported),
        _ => child.submit(request),
    }
}

/// The child of a filter. Named without driver it is a protocol node, as with the reference.
///
/// # Errors
/// There is none, or it does not open.
pub async fn open_child(cx: &OpenContext, options: ChildRef) -> Result<Child> {
    Ok(Child::new(cx.require_child(FILE, options, ChildKind::Storage).await?))
}

/// A completion with the buffers of the request that it belongs to.
pub fn completed(bufs: Bufs, result: Result<()>) -> Completion {
    match result {
        Ok(()) => Completion::done(bufs),
        Err(e) => Completion::failed(bufs, e),
    }
}

/// What `info` tells about a filter: what it filters, but for the format's own facts.
pub fn info_of(driver: &'static str, below: ImageInfo) -> ImageInfo {
    ImageInfo {
        format: driver,
        virtual_size: below.virtual_size,
        cluster_size: below.cluster_size,
        dirty: below.dirty,
        snapshots: below.snapshots,
        vm_state_offset: below.vm_state_offset,
        ..ImageInfo::default()
    }
}

/// A filter as a node.
pub struct FilterNode<F>(Arc<F>);

impl<F: Filter> FilterNode<F> {
    /// The node of this filter.
    pub fn new(filter: F) -> Self {
        Self(Arc::new(filter))
    }

    /// The filter.
    pub fn filter(&self) -> &Arc<F> {
        &self.0
    }
}

impl<F: Filter> Node for FilterNode<F> {
    fn submit(&self, request: Request) -> Op {
        self.0.submit(request)
    }

    fn submit_earlier(&self, request: Request) -> Op {
        self.0.submit_earlier(request)
    }

    fn driver(&self) -> &'static str {
        F::NAME
    }

    fn len(&self) -> u64 {
        self.0.length()
    }

    fn limits(&self) -> Limits {
        self.0.limits(self.0.child().limits())
    }

    fn is_read_only(&self) -> bool {
        self.0.child().node().is_read_only()
    }

    fn starts_as_zero(&self) -> bool {
        self.0.child().node().starts_as_zero()
    }

    fn compresses(&self) -> bool {
        self.0.compresses()
    }

    fn edges(&self) -> Vec<NamedEdge> {
        let mut edges =
            vec![NamedEdge { role: FILE, kind: EdgeKind::Filtered, child: self.0.child().clone() }];
        edges.extend(self.0.more_edges());
        edges
    }

    fn needs_of(&self, role: &str, needs: Needs) -> Needs {
        if role == FILE { self.0.needs(needs) } else { needs }
    }

    fn backing(&self) -> Option<Arc<dyn Node>> {
        self.0.child().node().backing()
    }

    fn filename(&self) -> String {
        // The filter's own options come first, as with the reference.
        let mut tree = self.0.own_options();
        tree.insert("driver".to_owned(), F::NAME.into());
        tree.insert(FILE.to_owned(), options_of(&*self.0.child().node()));
        format!("json:{}", write_json(&Value::Object(tree)))
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let (below, len) = (self.0.child().node().info(), self.len());
        Box::pin(async move { Ok(ImageInfo { virtual_size: len, ..info_of(F::NAME, below.await?) }) })
    }

    fn change_snapshots(&self, change: SnapshotChange) -> BoxFuture<Result<()>> {
        self.0.child().node().change_snapshots(change)
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let filter = self.0.clone();
        Box::pin(async move {
            filter.clone().reopening(access).await?;
            filter.child().node().reopen(access).await
        })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let filter = self.0.clone();
        Box::pin(async move {
            let finished = filter.clone().finish().await;
            finished.and(filter.child().node().close().await)
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
