//! `snapshot-access`: shows what a filter below keeps of an earlier state of its disk.
//!
//! Only a node that keeps such a state (`copy-before-write`) can answer. Over any other the node opens, as with the
//! reference, and answers that reading is not supported. The disk is never changed through it.

use std::any::Any;
use std::sync::Arc;

use serde::Deserialize;

use crate::child::{Child, EdgeKind, NamedEdge};
use crate::context::OpenContext;
use crate::error::{ErrorKind, Result};
use crate::filter::{self, FILE};
use crate::node::{Access, ImageInfo, NoResize, Node};
use crate::options::{ChildRef, OptionTree, parse};
use crate::registry::{Driver, Role};
use crate::request::{BoxFuture, Op, Operation, Request};

const NAME: &str = "snapshot-access";

/// The driver of [`SnapshotAccessNode`].
pub struct SnapshotAccessDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SnapshotAccessOptions {
    #[serde(default)]
    file: ChildRef,
}

impl Driver for SnapshotAccessDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn role(&self) -> Role {
        Role::Filter
    }

    fn open(&self, tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let options: SnapshotAccessOptions = parse(NAME, Role::Filter, tree)?;
            let child = filter::open_child(&cx, options.file).await?;
            Ok(Arc::new(SnapshotAccessNode { child }) as Arc<dyn Node>)
        })
    }
}

/// A view of an earlier state of a disk.
pub struct SnapshotAccessNode {
    child: Child,
}

impl Node for SnapshotAccessNode {
    fn submit(&self, request: Request) -> Op {
        match request.op {
            Operation::Flush | Operation::VmStateRead | Operation::VmStateWrite => self.child.submit(request),
            Operation::Truncate(_) => Op::failed(request.bufs, NoResize),
            Operation::Read | Operation::Status | Operation::Discard => {
                self.child.node().submit_earlier(request)
            }
            _ => Op::failed(request.bufs, ErrorKind::Unsupported),
        }
    }

    fn driver(&self) -> &'static str {
        NAME
    }

    fn len(&self) -> u64 {
        self.child.len()
    }

    fn is_read_only(&self) -> bool {
        self.child.node().is_read_only()
    }

    fn edges(&self) -> Vec<NamedEdge> {
        vec![NamedEdge { role: FILE, kind: EdgeKind::Filtered, child: self.child.clone() }]
    }

    fn filename(&self) -> String {
        self.child.node().filename()
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info =
            ImageInfo { format: NAME, virtual_size: self.len(), is_bare: true, ..ImageInfo::default() };
        Box::pin(std::future::ready(Ok(info)))
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        self.child.node().reopen(access)
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        self.child.node().close()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
