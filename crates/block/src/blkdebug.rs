//! `blkdebug`: a filter that injects errors, pretends limits, and suspends requests at named events.
//!
//! | module | duty |
//! |---|---|
//! | [`rules`] | the rules and the state machine that they drive |
//! | [`config`] | rule files |
//! | `options` | options, and limits that are pretended |
//! | `suspend` | requests that wait for somebody to resume them |
//!
//! The layers above announce what they are about to do ([`Node::debug_event`]); rules fire at these events, and
//! what they make active decides about the requests that pass. Nothing is taken from a request that no rule
//! concerns.

use std::any::Any;
use std::sync::Arc;
use std::task::Poll;

use parking_lot::Mutex;
use serde_json::Value;

use crate::child::{Child, EdgeKind, NamedEdge};
use crate::context::{ChildKind, OpenContext};
use crate::error::{Error, ErrorKind, Result};
use crate::event::{DebugEvent, Suspension};
use crate::filter;
use crate::graph::{Needs, Permissions};
use crate::naming::{ImageName, image_tree, json_filename, storage_tree};
use crate::node::{Access, ImageInfo, Limits, Node};
use crate::options::{ChildRef, OptionTree, parse};
use crate::registry::{Driver, Role};
use crate::request::{BoxFuture, Cause, Completion, Op, Operation, Request};

pub mod config;
mod options;
pub mod rules;
mod suspend;
mod words;

pub use options::BlkdebugError;
use options::{BlkdebugOptions, as_list, extended, permissions, pretended, read_config, section_rules};
use rules::{Engine, Injected, IoType, Section};
use suspend::Suspended;

const NAME: &str = "blkdebug";

/// Told what happens to suspended requests, in a line for people.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// The driver of [`BlkdebugNode`].
pub struct BlkdebugDriver {
    notice: Notice,
}

impl BlkdebugDriver {
    /// A driver whose nodes call `notice` when a request is suspended or resumed.
    pub fn with_notice(notice: Notice) -> Self {
        Self { notice }
    }
}

impl Driver for BlkdebugDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn role(&self) -> Role {
        Role::Filter
    }

    fn prefixes(&self) -> Vec<&'static str> {
        vec![NAME]
    }

    /// `blkdebug:CONFIG:IMAGE`, where CONFIG may be empty.
    fn parse_filename(&self, name: &str) -> Result<OptionTree> {
        let rest = name.strip_prefix(NAME).and_then(|rest| rest.strip_prefix(':')).unwrap_or(name);
        let (config, image) = rest.split_once(':').ok_or(BlkdebugError::Form)?;
        let mut tree = OptionTree::new();
        if !config.is_empty() {
            tree.insert("config".to_owned(), config.into());
        }
        tree.insert("x-image".to_owned(), image.into());
        Ok(tree)
    }

    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        let notice = self.notice.clone();
        Box::pin(async move { Ok(Arc::new(open(options, cx, notice).await?) as Arc<dyn Node>) })
    }
}

async fn open(mut tree: OptionTree, cx: OpenContext, notice: Notice) -> Result<BlkdebugNode> {
    let mut own = tree.clone();
    own.retain(|key, _| key != "image" && key != "x-image");
    // A single rule may go without its number.
    for key in [Section::Inject.name(), Section::SetState.name()] {
        if let Some(value) = tree.get_mut(key) {
            *value = as_list(std::mem::take(value));
        }
    }
    let options: BlkdebugOptions = parse(NAME, Role::Protocol, tree)?;
    let mut rules = match &options.config {
        Some(config) => config::parse(&read_config(config, &cx).await?).map_err(BlkdebugError::from)?,
        None => Vec::new(),
    };
    rules.extend(section_rules(Section::Inject, options.inject_error.as_ref())?);
    rules.extend(section_rules(Section::SetState, options.set_state.as_ref())?);
    let take = permissions(&options.take_child_perms)?;
    let unshare = permissions(&options.unshare_child_perms)?;
    // As with the reference: an image by name is as the filter was asked for; one by options is a protocol node, unless
    // they name a format.
    let (child, kind) = match (&options.x_image, &options.image) {
        (Some(name), ChildRef::Absent) => {
            let tree = match cx.kind() {
                ChildKind::Storage => storage_tree(&cx.registry, name)?,
                ChildKind::Image => image_tree(&cx.registry, &ImageName::Text(name.clone()), None)?,
            };
            (ChildRef::Inline(tree), cx.kind())
        }
        _ => (options.image.clone(), ChildKind::Storage),
    };
    let needs = extended(cx.needs(), take, unshare);
    let image = cx.clone().with_needs(needs).require_child("image", child, kind).await?;
    let image = Child::new(image);
    let limits = pretended(&options, image.limits())?;
    let only_config = own.keys().all(|key| key == "config");
    let shown = match only_config {
        true => Shown::Short(options.config.clone().unwrap_or_default()),
        false => Shown::Json(own),
    };
    let node = BlkdebugNode(Arc::new(Shared {
        image,
        limits,
        take,
        unshare,
        shown,
        engine: Mutex::new(Engine::new(rules)),
        suspended: Suspended::new(notice),
    }));
    node.debug_event(DebugEvent::None, Cause::default());
    Ok(node)
}

/// How a node is named.
enum Shown {
    /// `blkdebug:CONFIG:IMAGE`.
    Short(String),
    /// By all its options.
    Json(OptionTree),
}

/// A filter that does as its rules say.
pub struct BlkdebugNode(Arc<Shared>);

struct Shared {
    image: Child,
    limits: Limits,
    take: Permissions,
    unshare: Permissions,
    shown: Shown,
    engine: Mutex<Engine>,
    suspended: Suspended,
}

impl BlkdebugNode {
    /// Suspends the next request that announces `event`, under the name `tag`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: there is no such event.
    pub fn break_at(&self, event: &str, tag: &str) -> Result<()> {
        Ok(self.0.engine.lock().break_at(event, tag)?)
    }

    /// Lets the request go on that was last suspended under this name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: none is.
    pub fn resume(&self, tag: &str) -> Result<()> {
        match self.0.suspended.resume(tag) {
            true => Ok(()),
            false => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Forgets the breakpoints of this name, and lets all requests go on that are suspended under it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: there are neither.
    pub fn remove_break(&self, tag: &str) -> Result<()> {
        let mut known = self.0.engine.lock().forget(tag);
        while self.0.suspended.resume(tag) {
            known = true;
        }
        if known { Ok(()) } else { Err(ErrorKind::NotFound.into()) }
    }

    /// Waits until a request is suspended under this name.
    pub fn suspension(&self, tag: &str) -> BoxFuture<()> {
        let (shared, tag) = (self.0.clone(), tag.to_owned());
        Box::pin(std::future::poll_fn(move |cx| match shared.suspended.is_suspended(&tag, cx.waker()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }))
    }

    /// The engine's state, its rules with their hits, and the requests that are suspended.
    pub fn state(&self) -> Value {
        let mut state = self.0.engine.lock().to_json();
        state["suspended"] = self.0.suspended.tags().into();
        state
    }
}

/// The node that breakpoints set on `node` belong to: the first of its kind on the way down.
pub fn find(node: &Arc<dyn Node>) -> Option<Arc<dyn Node>> {
    let mut at = node.clone();
    while !at.as_any().is::<BlkdebugNode>() {
        at = at.primary()?;
    }
    Some(at)
}

impl Shared {
    /// What the reference answers before it looks at any rule: such requests are to be done in another way.
    fn is_below_grain(&self, request: &Request) -> bool {
        let align = u64::from(self.limits.request_alignment);
        match (&request.op, self.limits.portions) {
            (Operation::WriteZeroes, Some(portions)) => request.len < portions.zeroes_grain.max(align),
            (Operation::Discard, _) => request.len < align,
            _ => false,
        }
    }

    fn injected(&self, request: &Request) -> Option<Injected> {
        let iotype = IoType::of(&request.op)?;
        self.engine.lock().check(iotype, request.offset, request.len)
    }
}

impl Node for BlkdebugNode {
    fn submit(&self, request: Request) -> Op {
        let shared = &self.0;
        if matches!(request.op, Operation::CopyFrom { .. }) || shared.is_below_grain(&request) {
            return Op::failed(request.bufs, ErrorKind::Unsupported);
        }
        let Some(injected) = shared.injected(&request) else { return shared.image.submit(request) };
        let error = Error::from_errno(injected.errno);
        if injected.immediately {
            return Op::failed(request.bufs, error);
        }
        Op::wait(async move {
            take_turn().await;
            Completion::failed(request.bufs, error)
        })
    }

    fn driver(&self) -> &'static str {
        NAME
    }

    fn len(&self) -> u64 {
        self.0.image.len()
    }

    fn limits(&self) -> Limits {
        self.0.limits
    }

    fn is_read_only(&self) -> bool {
        self.0.image.node().is_read_only()
    }

    fn starts_as_zero(&self) -> bool {
        self.0.image.node().starts_as_zero()
    }

    fn edges(&self) -> Vec<NamedEdge> {
        vec![NamedEdge { role: "image", kind: EdgeKind::Filtered, child: self.0.image.clone() }]
    }

    fn needs_of(&self, _: &str, needs: Needs) -> Needs {
        extended(needs, self.0.take, self.0.unshare)
    }

    fn backing(&self) -> Option<Arc<dyn Node>> {
        self.0.image.node().backing()
    }

    fn filename(&self) -> String {
        let image = self.0.image.node();
        match &self.0.shown {
            Shown::Short(config) if !image.filename().starts_with("json:") => {
                format!("{NAME}:{config}:{}", image.filename())
            }
            Shown::Short(config) => {
                let mut own = OptionTree::new();
                if !config.is_empty() {
                    own.insert("config".to_owned(), config.as_str().into());
                }
                json_filename(NAME, own, &[("image", &*image)])
            }
            Shown::Json(own) => json_filename(NAME, own.clone(), &[("image", &*image)]),
        }
    }

    fn debug_event(&self, event: DebugEvent, _: Cause) -> Option<Suspension> {
        let fired = self.0.engine.lock().event(event);
        (!fired.suspended.is_empty()).then(|| self.0.suspended.suspend(fired.suspended))
    }

    fn listens(&self) -> bool {
        // A breakpoint can come at any time.
        true
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let below = self.0.image.node().info();
        Box::pin(async move { Ok(filter::info_of(NAME, below.await?)) })
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        self.0.image.node().reopen(access)
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        self.0.image.node().close()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Lets everybody else who is ready have a turn.
async fn take_turn() {
    let mut waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests;
