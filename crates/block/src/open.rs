//! From an option tree to a node: finding the driver, probing, and handing the options over.

use std::sync::Arc;

use serde_json::Value;

use crate::buf::Buf;
use crate::child::Child;
use crate::context::{ChildKind, OpenContext};
use crate::error::Result;
use crate::naming::{self, ImageName, NamingError};
use crate::node::Node;
use crate::options::{ChildRef, CommonOptions, OptionTree};
use crate::registry::{Driver, PROBE_BYTES, RAW, Registry};
use crate::request::BoxFuture;

/// A node that was opened by a name or options.
#[derive(Clone)]
pub struct Opened {
    /// The node.
    pub node: Arc<dyn Node>,
    /// No format was given, and nothing but raw fits the content. Such a node refuses writes that would make its
    /// first sector look like another format; a tool that opened it for writing warns.
    pub probed_raw: bool,
}

/// Opens an image. Without `format` and without a driver in the options, the format is probed.
///
/// The node accepts writes if `cx` asks for them. Dropping the future abandons the opening; nodes opened until
/// then are dropped.
///
/// # Errors
/// The name or the options cannot be understood, or a node does not open.
pub async fn open_image(name: &ImageName, format: Option<&str>, cx: &OpenContext) -> Result<Opened> {
    let tree = naming::image_tree(&cx.registry, name, format)?;
    open_tree(tree, cx.clone()).await
}

/// Opens the node that `tree` describes.
pub(crate) fn open_tree(tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Opened>> {
    Box::pin(open(tree, cx))
}

async fn open(tree: OptionTree, mut cx: OpenContext) -> Result<Opened> {
    let mut tree = naming::nest(tree).map_err(NamingError::List)?;
    let common = CommonOptions::take(&mut tree)?;
    cx.apply(&common)?;
    let node_name = common.node_name;
    let graph = cx.graph.clone();
    let (driver, probed_raw) = match (common.driver, cx.kind()) {
        (Some(name), _) => (named(&cx.registry, &name)?, false),
        (None, ChildKind::Storage) if tree.contains_key("filename") => (named(&cx.registry, "file")?, false),
        (None, ChildKind::Image) if tree.contains_key("file") => {
            let file = match tree.shift_remove("file") {
                Some(Value::Object(options)) => ChildRef::Inline(options),
                Some(Value::String(name)) => ChildRef::Node(name),
                _ => return Err(NamingError::ChildMissing { role: "file".to_owned() }.into()),
            };
            let file = cx.require_child("file", file, ChildKind::Storage).await?;
            let driver = probe(&cx.registry, &file).await?;
            let raw = driver.is_none();
            cx = cx.with_preopened(file);
            let driver = match driver {
                Some(driver) => driver,
                None => named(&cx.registry, RAW)?,
            };
            (driver, raw)
        }
        _ => return Err(NamingError::NothingToOpen.into()),
    };
    let node = driver.open(tree, cx).await?;
    if let (Some(name), Some(graph)) = (node_name, graph) {
        graph.remember_name(name, &node)?;
    }
    Ok(Opened { node, probed_raw })
}

fn named(registry: &Registry, name: &str) -> Result<Arc<dyn Driver>> {
    let driver = registry.driver(name);
    Ok(driver.cloned().ok_or_else(|| NamingError::UnknownDriver(name.to_owned()))?)
}

/// The format that the content of `file` looks like; `None` is raw.
///
/// # Errors
/// The first bytes cannot be read.
pub async fn probe(registry: &Registry, file: &Arc<dyn Node>) -> Result<Option<Arc<dyn Driver>>> {
    let len = file.len().min(PROBE_BYTES as u64) as usize;
    let head = match len {
        0 => Buf::zeroed(0),
        len => Child::new(file.clone()).read(0, len).await?,
    };
    Ok(registry.driver_of_content(&head).cloned())
}
