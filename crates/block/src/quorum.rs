//! `quorum`: a node that keeps the same disk several times and lets the copies vote.
//!
//! | module | duty |
//! |---|---|
//! | `options` | the driver: its options, and what can be wrong with them |
//! | `vote` | which of several answers counts |
//!
//! Writes go to all children and succeed if enough of them do. A read asks all, and its answer is the content that most
//! gave, if that is enough; with `read-pattern=fifo` it is that of the first child that can be read. With
//! `rewrite-corrupted` the children that were outvoted are written anew.
//!
//! Invariants: overlapping writes reach all children in one order, and no read sees some children before and some after
//! a write, so that children differ only where one of them is at fault. A write that has begun reaches all children,
//! also when nobody waits for it any more.

use std::any::Any;
use std::sync::Arc;

use serde_json::Value;

use crate::buf::{Buf, Bufs};
use crate::child::{Child, EdgeKind, NamedEdge};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::completed;
use crate::graph::Needs;
use crate::naming::{options_of, write_json};
use crate::node::{Access, ImageInfo, Limits, NoResize, Node};
use crate::options::OptionTree;
use crate::orphans::{Abandoned, Orphans};
use crate::range_lock::{LockMode, RangeLock};
use crate::request::{BoxFuture, Cause, Completion, Extent, ExtentFlags, Flags, Op, Operation, Request};
use crate::trace::Trace;

mod options;
mod vote;

pub use options::{Abort, Notice, QuorumDriver, QuorumError};
use options::{Mismatch, ROLES, voting};
use vote::{Answer, all_of, elect, first_difference, main_error};

const NAME: &str = "quorum";

/// How answers are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// How many children must agree, from 1 to all.
    pub threshold: usize,
    /// How reads are answered.
    pub pattern: Pattern,
}

/// How reads are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// By the majority.
    Vote,
    /// By the majority, and the others are written anew.
    Repair,
    /// By either of two that must be the same.
    Verify,
    /// By the first child that can be read.
    Fifo,
}

/// What a difference leads to where none may be.
pub struct Outcome {
    /// Told the difference.
    pub notice: Notice,
    /// Ends the program.
    pub abort: Abort,
}

/// Several copies of one disk.
pub struct QuorumNode(Arc<Quorum>);

struct Quorum {
    children: Vec<Child>,
    rule: Rule,
    outcome: Outcome,
    /// The options as they were given, without the children.
    own: OptionTree,
    /// Reads share ranges, writes have them alone.
    ranges: RangeLock,
    orphans: Orphans,
}

impl QuorumNode {
    /// A vote of `children`, at least as many as the threshold. `own` are the options that the name shows.
    ///
    /// # Errors
    /// [`QuorumError`]: the children differ in length, or cannot be repaired.
    pub fn new(
        children: Vec<Arc<dyn Node>>,
        rule: Rule,
        outcome: Outcome,
        own: OptionTree,
    ) -> std::result::Result<Self, QuorumError> {
        if rule.pattern == Pattern::Repair && children.iter().any(|child| child.is_read_only()) {
            return Err(QuorumError::ReadOnly);
        }
        let repeated =
            |(at, child): (usize, &Arc<dyn Node>)| children[..at].iter().any(|c| Arc::ptr_eq(c, child));
        if children.iter().enumerate().any(repeated) {
            return Err(QuorumError::SharedChild);
        }
        let lens: Vec<u64> = children.iter().map(|child| child.len()).collect();
        match lens.first() {
            None => return Err(QuorumError::NoChildren),
            Some(len) if lens.iter().any(|other| other != len) => return Err(QuorumError::Lengths),
            Some(_) if children.len() > ROLES.len() => return Err(QuorumError::TooManyChildren),
            Some(_) if rule.threshold > children.len() => return Err(QuorumError::ThresholdTooHigh),
            Some(_) => {}
        }
        let children = children.into_iter().map(Child::new).collect();
        let (ranges, orphans) = (RangeLock::new(), Orphans::default());
        Ok(Self(Arc::new(Quorum { children, rule, outcome, own, ranges, orphans })))
    }
}

impl Quorum {
    /// What all children answer to the request that `each` makes.
    async fn ask(&self, each: impl Fn() -> Request) -> Vec<Answer> {
        all_of(self.children.iter().map(|child| child.submit(each())).collect()).await
    }

    /// Whether enough children did as they were told; otherwise the error that most gave.
    fn enough(&self, answers: &[Answer]) -> Result<()> {
        let good = answers.iter().filter(|answer| answer.is_ok()).count();
        if good >= self.rule.threshold {
            return Ok(());
        }
        Err(main_error(answers).unwrap_or_else(|| ErrorKind::Io.into()))
    }

    async fn read(self: Arc<Self>, mut request: Request) -> Completion {
        let guard = self.ranges.lock(request.offset..request.end(), LockMode::Shared).await;
        if self.rule.pattern == Pattern::Fifo {
            return self.read_first(request).await;
        }
        let judged = self.read_all(&request).await;
        drop(guard);
        let bufs = std::mem::take(&mut request.bufs);
        match judged {
            Err(e) => Completion::failed(bufs, e),
            Ok(Judged { data, outvoted }) if outvoted.is_empty() || self.rule.pattern != Pattern::Repair => {
                Completion::done(filled(bufs, data))
            }
            Ok(_) => match self.repair(&request).await {
                Ok(data) => Completion::done(filled(bufs, data)),
                Err(e) => Completion::failed(bufs, e),
            },
        }
    }

    async fn read_first(&self, mut request: Request) -> Completion {
        let mut last = Error::from(ErrorKind::Io);
        for child in &self.children {
            let read = Request::read(request.offset, std::mem::take(&mut request.bufs));
            let completion =
                child.submit(read.with_flags(request.flags).caused_by(request.cause)).finish().await;
            match completion.result {
                Ok(_) => return completion,
                Err(e) => {
                    request.bufs = completion.bufs;
                    last = e;
                }
            }
        }
        Completion::failed(request.bufs, last)
    }

    /// Reads all children and lets them vote. The range is held.
    async fn read_all(&self, request: &Request) -> Result<Judged> {
        let read = || {
            let read = Request::read(request.offset, Buf::scratch(request.len as usize));
            read.with_flags(request.flags).caused_by(request.cause)
        };
        let answers = self.ask(read).await;
        self.enough(&answers)?;
        if self.rule.pattern == Pattern::Verify
            && let [Ok(a), Ok(b)] = &answers[..]
            && let Some(at) = first_difference(a, b)
        {
            return Err(self.differ(request, at));
        }
        let (winner, votes, outvoted) = elect(&answers).ok_or(ErrorKind::Io)?;
        if !outvoted.is_empty() && votes < self.rule.threshold {
            return Err(ErrorKind::Io.into());
        }
        let data = answers.into_iter().nth(winner).and_then(Result::ok);
        Ok(Judged { data: data.expect("the winner has answered"), outvoted })
    }

    fn differ(&self, request: &Request, at: u64) -> Error {
        let (offset, bytes) = (request.offset, request.len);
        let mismatch = Mismatch { offset, bytes, at: offset.saturating_add(at) };
        (self.outcome.notice)(&mismatch.to_string());
        (self.outcome.abort)();
        Error::new(ErrorKind::Io, mismatch)
    }

    /// Writes anew what was outvoted. It is read again first, alone: a write may have come between.
    async fn repair(&self, request: &Request) -> Result<Bufs> {
        let _alone = self.ranges.lock(request.offset..request.end(), LockMode::Exclusive).await;
        let Judged { data, outvoted } = self.read_all(request).await?;
        let writes = outvoted.iter().map(|child| {
            let write = Request::write(request.offset, data.to_contiguous()).caused_by(request.cause);
            self.children[*child].submit(write)
        });
        // What cannot be repaired stays outvoted.
        all_of(writes.collect()).await;
        Ok(data)
    }

    /// A write or a write of zeroes, to all children.
    async fn write(self: Arc<Self>, request: Request) -> Completion {
        let _alone = self.ranges.lock(request.offset..request.end(), LockMode::Exclusive).await;
        let each = || {
            let copy = match request.op {
                Operation::Write => Request::write(request.offset, request.bufs.to_contiguous()),
                _ => Request::write_zeroes(request.offset, request.len),
            };
            copy.with_flags(request.flags - Flags::FUA).caused_by(request.cause)
        };
        let answers = self.ask(each).await;
        let mut result = self.enough(&answers);
        answers.into_iter().flatten().for_each(Bufs::recycle);
        // Durable on as many children as are to agree: a vote of its own, as with the reference.
        if result.is_ok() && request.flags.contains(Flags::FUA) {
            result = self.flush(request.cause).await;
        }
        completed(request.bufs, result)
    }

    async fn flush(&self, cause: Cause) -> Result<()> {
        self.enough(&self.ask(|| Request::flush().caused_by(cause)).await)
    }

    /// Zeroes as far as all children have zeroes; otherwise data as far as any has data.
    async fn status(self: Arc<Self>, request: Request) -> Completion {
        let end = self.len();
        let len = request.len.min(end.saturating_sub(request.offset));
        let (mut zeroes, mut data) = (len, 0);
        for child in &self.children {
            let chain = crate::chain::Chain::of(child.node()).with_flags(request.flags);
            match chain.status(request.offset, len).await {
                Ok(extent) if extent.is_zero() => zeroes = zeroes.min(extent.len),
                Ok(extent) => data = data.max(extent.len),
                Err(_) => data = len,
            }
        }
        let (len, kind) = if data > 0 { (data, ExtentFlags::DATA) } else { (zeroes, ExtentFlags::ZERO) };
        let mut flags = kind | ExtentFlags::ALLOCATED;
        flags.set(ExtentFlags::EOF, request.offset.saturating_add(len) >= end);
        Completion::extent(Extent { len, flags, map: None })
    }

    fn len(&self) -> u64 {
        self.children.first().map_or(0, Child::len)
    }
}

/// What a vote came to.
struct Judged {
    data: Bufs,
    /// The children that gave something else.
    outvoted: Vec<usize>,
}

/// The request's buffers with what was read.
fn filled(mut bufs: Bufs, data: Bufs) -> Bufs {
    let mut at = 0;
    for piece in data.pieces() {
        bufs.write_at(at, piece);
        at += piece.len();
    }
    data.recycle();
    bufs
}

impl Node for QuorumNode {
    fn submit(&self, request: Request) -> Op {
        let quorum = self.0.clone();
        let orphans = &self.0.orphans;
        match request.op {
            Operation::Read => orphans.attend(quorum.read(request), Abandoned::Kept),
            Operation::Write | Operation::WriteZeroes if request.flags.contains(Flags::COMPRESSED) => {
                Op::failed(request.bufs, ErrorKind::Unsupported)
            }
            Operation::Write | Operation::WriteZeroes => {
                orphans.attend(quorum.write(request), Abandoned::Kept)
            }
            Operation::Flush => {
                let flush = async move { completed(request.bufs, quorum.flush(request.cause).await) };
                orphans.attend(flush, Abandoned::Kept)
            }
            Operation::Status => orphans.attend(quorum.status(request), Abandoned::Kept),
            Operation::Truncate(_) => Op::failed(request.bufs, NoResize),
            // Children may do with a discard what they like: they would differ.
            Operation::Discard
            | Operation::CopyFrom { .. }
            | Operation::VmStateRead
            | Operation::VmStateWrite => Op::failed(request.bufs, ErrorKind::Unsupported),
        }
    }

    fn driver(&self) -> &'static str {
        NAME
    }

    fn len(&self) -> u64 {
        self.0.len()
    }

    fn limits(&self) -> Limits {
        let all = self.0.children.iter().map(Child::limits);
        all.fold(Limits::default(), |sum, limits| Limits {
            request_alignment: sum.request_alignment.max(limits.request_alignment),
            memory_alignment: sum.memory_alignment.max(limits.memory_alignment),
            ..sum
        })
    }

    fn is_read_only(&self) -> bool {
        self.0.children.iter().any(|child| child.node().is_read_only())
    }

    fn edges(&self) -> Vec<NamedEdge> {
        // Last first, as the reference shows them.
        let named = ROLES.iter().zip(&self.0.children);
        let edge = |(role, child): (&&'static str, &Child)| NamedEdge {
            role,
            kind: EdgeKind::Data,
            child: child.clone(),
        };
        named.rev().map(edge).collect()
    }

    fn primary(&self) -> Option<Arc<dyn Node>> {
        None
    }

    fn needs_of(&self, _: &str, needs: Needs) -> Needs {
        voting(needs, self.0.rule.pattern)
    }

    fn trace(&self) -> Option<Trace> {
        self.0.children.iter().find_map(Child::trace)
    }

    fn listens(&self) -> bool {
        self.0.children.iter().any(|child| child.node().listens())
    }

    fn filename(&self) -> String {
        // In the reference's order.
        let mut tree = OptionTree::new();
        let given = |tree: &mut OptionTree, key: &str| {
            if let Some(value) = self.0.own.get(key) {
                tree.insert(key.to_owned(), value.clone());
            }
        };
        given(&mut tree, "read-pattern");
        let children = self.0.children.iter().map(|child| options_of(&*child.node())).collect();
        tree.insert("children".to_owned(), Value::Array(children));
        tree.insert("driver".to_owned(), NAME.into());
        for key in ["blkverify", "rewrite-corrupted", "vote-threshold"] {
            given(&mut tree, key);
        }
        format!("json:{}", write_json(&Value::Object(tree)))
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info =
            ImageInfo { format: NAME, virtual_size: self.len(), is_bare: true, ..ImageInfo::default() };
        Box::pin(std::future::ready(Ok(info)))
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let quorum = self.0.clone();
        Box::pin(async move {
            if access == Access::ReadOnly && quorum.rule.pattern == Pattern::Repair {
                return Err(QuorumError::ReadOnly.into());
            }
            for child in &quorum.children {
                child.node().reopen(access).await?;
            }
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let quorum = self.0.clone();
        Box::pin(async move {
            quorum.orphans.settle().await;
            let mut closed = Ok(());
            // All are closed, whatever the first ones say.
            for child in &quorum.children {
                closed = closed.and(child.node().close().await);
            }
            closed
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
