//! The driver `copy-before-write`: its options and children.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::{CopyBeforeWrite, CopyBeforeWriteOptions, NAME, OnError};
use crate::child::{Child, EdgeKind};
use crate::context::{ChildKind, OpenContext};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{self, FilterNode};
use crate::naming::options_of;
use crate::node::{Access, Node};
use crate::options::{ChildRef, OptionTree, SizeOpt, parse};
use crate::registry::{Driver, Role};
use crate::request::BoxFuture;

/// The role of the image that keeps the earlier state.
pub(super) const TARGET: &str = "target";

/// Why the filter cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyBeforeWriteError {
    /// It is there to be written to.
    #[error("Block node is read-only")]
    ReadOnly,
    /// What is to be kept does not fit.
    #[error("the target has {room} bytes, the disk {len}")]
    TargetTooSmall {
        /// Bytes of the target.
        room: u64,
        /// Bytes of the disk.
        len: u64,
    },
    /// A unit of copying that divides nothing.
    #[error("Cannot create block-copy-state: min-cluster-size needs to be a power of 2")]
    GrainNoPowerOfTwo,
    /// A unit of copying beyond all numbers.
    #[error("Cannot create block-copy-state: min-cluster-size too large: {0}")]
    GrainTooLarge(u64),
    /// No node has the name.
    #[error("Node '{0}' not found")]
    NoNode(String),
    /// Nobody tells the time.
    #[error("cbw-timeout: nobody tells the time here")]
    NoTime,
}

impl From<CopyBeforeWriteError> for Error {
    fn from(e: CopyBeforeWriteError) -> Self {
        let kind = match e {
            CopyBeforeWriteError::ReadOnly => ErrorKind::PermissionDenied,
            CopyBeforeWriteError::NoNode(_) => ErrorKind::NotFound,
            CopyBeforeWriteError::NoTime => ErrorKind::Unsupported,
            _ => ErrorKind::InvalidInput,
        };
        Error::new(kind, e)
    }
}

/// The driver of [`CopyBeforeWrite`].
pub struct CopyBeforeWriteDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Options {
    #[serde(default)]
    file: ChildRef,
    #[serde(default)]
    target: ChildRef,
    bitmap: Option<BitmapOptions>,
    #[serde(default)]
    on_cbw_error: OnErrorWord,
    /// Seconds; 0 for ever.
    cbw_timeout: Option<SizeOpt>,
    min_cluster_size: Option<SizeOpt>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BitmapOptions {
    node: String,
    name: String,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum OnErrorWord {
    #[default]
    BreakGuestWrite,
    BreakSnapshot,
}

impl Driver for CopyBeforeWriteDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn role(&self) -> Role {
        Role::Filter
    }

    fn open(&self, tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let options: Options = parse(NAME, Role::Filter, tree)?;
            if cx.access == Access::ReadOnly {
                return Err(CopyBeforeWriteError::ReadOnly.into());
            }
            let child = filter::open_child(&cx, options.file).await?;
            let target = cx.open_child_as(TARGET, EdgeKind::Data, options.target, ChildKind::Image).await?;
            let missing = || crate::naming::NamingError::ChildMissing { role: TARGET.to_owned() };
            let target = Child::new(target.ok_or_else(missing)?);
            let areas = match options.bitmap {
                None => None,
                Some(bitmap) => Some(dirty_areas(&cx, bitmap).await?),
            };
            let seconds = options.cbw_timeout.map_or(0, u64::from);
            let timeout = match (seconds, cx.time.clone()) {
                (0, _) => None,
                (_, None) => return Err(CopyBeforeWriteError::NoTime.into()),
                (seconds, Some(time)) => Some((Duration::from_secs(seconds), time)),
            };
            let on_error = match options.on_cbw_error {
                OnErrorWord::BreakGuestWrite => OnError::BreakGuestWrite,
                OnErrorWord::BreakSnapshot => OnError::BreakSnapshot,
            };
            let grain_min = options.min_cluster_size.map_or(0, u64::from);
            let options = CopyBeforeWriteOptions { on_error, timeout, grain_min, areas };
            Ok(Arc::new(FilterNode::new(CopyBeforeWrite::new(child, target, options)?)) as Arc<dyn Node>)
        })
    }
}

async fn dirty_areas(cx: &OpenContext, bitmap: BitmapOptions) -> Result<Vec<std::ops::Range<u64>>> {
    let node = cx.graph.as_ref().and_then(|graph| graph.node(&bitmap.node));
    let Some(node) = node else { return Err(CopyBeforeWriteError::NoNode(bitmap.node).into()) };
    node.dirty_areas(bitmap.name).await
}

/// The filter's options, as far as they belong to its name.
pub(super) fn own_options(options: &CopyBeforeWriteOptions, target: &Child) -> OptionTree {
    let mut own = OptionTree::new();
    own.insert(TARGET.to_owned(), options_of(&*target.node()));
    if options.on_error == OnError::BreakSnapshot {
        own.insert("on-cbw-error".to_owned(), "break-snapshot".into());
    }
    if let Some((limit, _)) = &options.timeout {
        own.insert("cbw-timeout".to_owned(), limit.as_secs().into());
    }
    if options.grain_min != 0 {
        own.insert("min-cluster-size".to_owned(), options.grain_min.into());
    }
    own
}
