//! The driver of quorums: its options, and what can be wrong with them.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use super::{NAME, Outcome, Pattern, QuorumNode, Rule};
use crate::child::EdgeKind;
use crate::context::{ChildKind, OpenContext};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{Needs, Permissions};
use crate::node::{Access, Node};
use crate::options::{BoolOpt, ChildRef, OptionTree, parse};
use crate::registry::{Driver, Role};
use crate::request::BoxFuture;

/// The roles of the children, which also bound their number.
pub(super) const ROLES: [&str; 16] = [
    "children.0",
    "children.1",
    "children.2",
    "children.3",
    "children.4",
    "children.5",
    "children.6",
    "children.7",
    "children.8",
    "children.9",
    "children.10",
    "children.11",
    "children.12",
    "children.13",
    "children.14",
    "children.15",
];

/// Told a difference, in a line for people.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// Ends the program.
pub type Abort = Arc<dyn Fn() + Send + Sync>;

/// Options that make no quorum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuorumError {
    /// `children` is something else.
    #[error("Option children is not a valid array")]
    NotAList,
    /// Nobody to vote.
    #[error("Number of provided children must be 1 or more")]
    NoChildren,
    /// More than this program keeps.
    #[error("Number of provided children must be {} or less", ROLES.len())]
    TooManyChildren,
    /// No number.
    #[error("Parameter 'vote-threshold' expects a number")]
    ThresholdNoNumber,
    /// Nobody would have to agree.
    #[error("Parameter 'vote-threshold' expects a value >= 1")]
    ThresholdMissing,
    /// Nobody could ever win.
    #[error("threshold may not exceed children count")]
    ThresholdTooHigh,
    /// No pattern of this name.
    #[error("Please set read-pattern as fifo or quorum")]
    Pattern,
    /// Two are compared, or votes are counted.
    #[error("blkverify=on can only be set if there are exactly two files and vote-threshold is 2")]
    Blkverify,
    /// Evidence is kept, or repaired.
    #[error("rewrite-corrupted=on cannot be used with blkverify=on")]
    RewriteEvidence,
    /// A child that is to be written cannot be.
    #[error("Block node is read-only")]
    ReadOnly,
    /// One node, named several times: its copies would be one.
    #[error("A node can be only one of the children")]
    SharedChild,
    /// Children of different length, or without one.
    #[error("Could not refresh total sector count: Input/output error")]
    Lengths,
}

impl From<QuorumError> for Error {
    fn from(e: QuorumError) -> Self {
        let kind = match e {
            QuorumError::ReadOnly => ErrorKind::PermissionDenied,
            QuorumError::Lengths => ErrorKind::Io,
            _ => ErrorKind::InvalidInput,
        };
        Error::new(kind, e)
    }
}

/// Two children that were to be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quorum: offset={offset} bytes={bytes} contents mismatch at offset {at}")]
pub(super) struct Mismatch {
    /// First byte of the request.
    pub(super) offset: u64,
    /// Its length.
    pub(super) bytes: u64,
    /// The first byte that differs.
    pub(super) at: u64,
}

/// The driver of [`QuorumNode`].
pub struct QuorumDriver {
    notice: Notice,
    abort: Abort,
}

impl QuorumDriver {
    /// A driver whose nodes, with `blkverify=on`, call `notice` with the first difference of their children, and then
    /// `abort`. If that returns, the request fails.
    pub fn new(notice: Notice, abort: Abort) -> Self {
        Self { notice, abort }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct QuorumOptions {
    vote_threshold: Option<Value>,
    read_pattern: Option<String>,
    #[serde(default)]
    blkverify: BoolOpt,
    #[serde(default)]
    rewrite_corrupted: BoolOpt,
}

impl Driver for QuorumDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn role(&self) -> Role {
        Role::Filter
    }

    fn edge_kind(&self, _: &str) -> EdgeKind {
        EdgeKind::Data
    }

    fn open(&self, tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        let (notice, abort) = (self.notice.clone(), self.abort.clone());
        Box::pin(async move {
            let mut own = tree;
            let refs = children(own.shift_remove("children").unwrap_or_default())?;
            let options: QuorumOptions = parse(NAME, Role::Filter, own.clone())?;
            let rule = rule(&options, refs.len())?;
            let cx = cx.clone().with_needs(voting(cx.needs(), rule.pattern));
            let mut nodes = Vec::with_capacity(refs.len());
            for (role, child) in ROLES.iter().zip(refs) {
                let node = cx.require_child(role, child, ChildKind::Image).await?;
                if cx.access == Access::ReadWrite && node.is_read_only() {
                    return Err(QuorumError::ReadOnly.into());
                }
                nodes.push(node);
            }
            let outcome = Outcome { notice, abort };
            Ok(Arc::new(QuorumNode::new(nodes, rule, outcome, own)?) as Arc<dyn Node>)
        })
    }
}

fn children(value: Value) -> std::result::Result<Vec<ChildRef>, QuorumError> {
    let list = match value {
        Value::Null => return Err(QuorumError::NoChildren),
        Value::Array(list) if list.is_empty() => return Err(QuorumError::NoChildren),
        Value::Array(list) => list,
        _ => return Err(QuorumError::NotAList),
    };
    if list.len() > ROLES.len() {
        return Err(QuorumError::TooManyChildren);
    }
    let child = |value| match value {
        Value::String(name) => Ok(ChildRef::Node(name)),
        Value::Object(tree) => Ok(ChildRef::Inline(tree)),
        _ => Err(QuorumError::NotAList),
    };
    list.into_iter().map(child).collect()
}

fn rule(options: &QuorumOptions, children: usize) -> std::result::Result<Rule, QuorumError> {
    let threshold = match &options.vote_threshold {
        None => 0,
        Some(Value::Number(number)) => number.as_i64().unwrap_or(i64::MAX),
        Some(Value::String(text)) => text.parse::<i64>().map_err(|_| QuorumError::ThresholdNoNumber)?,
        Some(_) => return Err(QuorumError::ThresholdNoNumber),
    };
    let threshold = usize::try_from(threshold).ok().filter(|threshold| *threshold > 0);
    let threshold = threshold.ok_or(QuorumError::ThresholdMissing)?;
    if threshold > children {
        return Err(QuorumError::ThresholdTooHigh);
    }
    let pattern = match options.read_pattern.as_deref() {
        Some("fifo") => Pattern::Fifo,
        // As with the reference, the two below concern votes only.
        Some("quorum") | None => match (options.blkverify.0, options.rewrite_corrupted.0) {
            (false, false) => Pattern::Vote,
            (false, true) => Pattern::Repair,
            (true, _) if children != 2 || threshold != 2 => return Err(QuorumError::Blkverify),
            (true, true) => return Err(QuorumError::RewriteEvidence),
            (true, false) => Pattern::Verify,
        },
        Some(_) => return Err(QuorumError::Pattern),
    };
    Ok(Rule { threshold, pattern })
}

/// Others may neither write to the children nor resize them: they would differ.
pub(super) fn voting(needs: Needs, pattern: Pattern) -> Needs {
    let repairing = if pattern == Pattern::Repair { Permissions::WRITE } else { Permissions::empty() };
    let shared = needs.shared & (Permissions::CONSISTENT_READ | Permissions::WRITE_UNCHANGED);
    Needs { required: needs.required | repairing, shared }
}
