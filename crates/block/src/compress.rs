//! `compress`: a filter that turns every write into a compressed one.
//!
//! Writes are widened to whole clusters before they come here: less cannot be compressed. What the format says about
//! compressed writes stays true: a cluster that has storage is not written again.

use std::sync::Arc;

use serde::Deserialize;

use crate::child::Child;
use crate::context::OpenContext;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{self, Filter, FilterNode};
use crate::node::{Limits, Node};
use crate::options::{ChildRef, OptionTree, parse};
use crate::registry::{Driver, Role};
use crate::request::{BoxFuture, Flags, Op, Operation, Request};

const NAME: &str = "compress";

/// The child cannot store anything compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Compression is not supported for underlying format: {format}")]
pub struct NotCompressible {
    /// The child's driver.
    pub format: &'static str,
}

impl From<NotCompressible> for Error {
    fn from(e: NotCompressible) -> Self {
        Error::new(ErrorKind::Unsupported, e)
    }
}

/// The driver of [`Compress`].
pub struct CompressDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct CompressOptions {
    #[serde(default)]
    file: ChildRef,
}

impl Driver for CompressDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn role(&self) -> Role {
        Role::Filter
    }

    fn open(&self, tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let options: CompressOptions = parse(NAME, Role::Filter, tree)?;
            let child = filter::open_child(&cx, options.file).await?;
            Ok(Arc::new(FilterNode::new(Compress::new(child)?)) as Arc<dyn Node>)
        })
    }
}

/// Compresses what is written.
pub struct Compress {
    child: Child,
}

impl Compress {
    /// Over a child that can store data compressed.
    ///
    /// # Errors
    /// [`NotCompressible`].
    pub fn new(child: Child) -> std::result::Result<Self, NotCompressible> {
        let node = child.node();
        match node.compresses() {
            true => Ok(Self { child }),
            false => Err(NotCompressible { format: node.driver() }),
        }
    }
}

impl Filter for Compress {
    const NAME: &'static str = NAME;

    fn child(&self) -> &Child {
        &self.child
    }

    fn submit(self: &Arc<Self>, request: Request) -> Op {
        match request.op {
            Operation::Write => self.child.submit(request.with_flags(Flags::COMPRESSED)),
            _ => filter::pass(&self.child, request),
        }
    }

    fn limits(&self, below: Limits) -> Limits {
        let cluster = u32::try_from(below.preferred_write).unwrap_or(0);
        Limits { request_alignment: below.request_alignment.max(cluster), ..below }
    }
}
