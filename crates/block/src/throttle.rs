//! `throttle`: a filter that lets requests through no faster than a group of limits allows.
//!
//! | module | duty |
//! |---|---|
//! | [`limits`] | the limits of a group: names, values, rules |
//! | `bucket` | leaky buckets: how long something has to wait |
//! | [`group`] | who is next; several nodes may share one group |
//!
//! Reads are measured on their own, and so is all that changes the disk. Nothing here knows what time it is: a group
//! is made with the time that it obeys.

use std::sync::Arc;

use serde::Deserialize;

use crate::child::Child;
use crate::context::OpenContext;
use crate::error::{Error, ErrorKind, Result};
use crate::filter::{self, Filter, FilterNode};
use crate::node::Node;
use crate::options::{ChildRef, OptionTree, parse};
use crate::registry::{Driver, Role};
use crate::request::{BoxFuture, Op, Operation, Request};

mod bucket;
pub mod group;
pub mod limits;

pub use group::{ThrottleGroup, ThrottleGroups};
pub use limits::{LimitError, Limits, LimitsBuilder};

use group::{Direction, Member};

const NAME: &str = "throttle";

/// A node whose group is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThrottleError {
    /// The option is missing.
    #[error("Please specify a throttle group")]
    NoGroup,
    /// Nobody defined it.
    #[error("Throttle group '{0}' does not exist")]
    Unknown(String),
}

impl From<ThrottleError> for Error {
    fn from(e: ThrottleError) -> Self {
        Error::new(ErrorKind::InvalidInput, e)
    }
}

/// The driver of [`Throttle`].
pub struct ThrottleDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct ThrottleOptions {
    #[serde(default)]
    file: ChildRef,
    throttle_group: Option<String>,
}

impl Driver for ThrottleDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn role(&self) -> Role {
        Role::Filter
    }

    fn open(&self, tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let options: ThrottleOptions = parse(NAME, Role::Filter, tree)?;
            let child = filter::open_child(&cx, options.file).await?;
            let name = options.throttle_group.ok_or(ThrottleError::NoGroup)?;
            let group = cx.throttle_groups.get(&name).ok_or(ThrottleError::Unknown(name))?;
            Ok(Arc::new(FilterNode::new(Throttle::new(child, &group))) as Arc<dyn Node>)
        })
    }
}

/// Holds requests up as its group says.
pub struct Throttle {
    child: Child,
    member: Member,
}

impl Throttle {
    /// A member of `group` over `child`.
    pub fn new(child: Child, group: &ThrottleGroup) -> Self {
        Self { child, member: group.join() }
    }
}

impl Filter for Throttle {
    const NAME: &'static str = NAME;

    fn child(&self) -> &Child {
        &self.child
    }

    fn submit(self: &Arc<Self>, request: Request) -> Op {
        let direction = match request.op {
            Operation::Read => Direction::Read,
            Operation::Write | Operation::WriteZeroes | Operation::Discard => Direction::Write,
            _ => return filter::pass(&self.child, request),
        };
        let Some(turn) = self.member.admit(direction, request.len) else {
            return self.child.submit(request);
        };
        let filter = self.clone();
        Op::wait(async move {
            turn.await;
            filter.child.submit(request).finish().await
        })
    }

    fn own_options(&self) -> OptionTree {
        let mut own = OptionTree::new();
        own.insert("throttle-group".to_owned(), self.member.group().name().into());
        own
    }

    fn compresses(&self) -> bool {
        self.child.node().compresses()
    }
}

#[cfg(test)]
mod tests;
