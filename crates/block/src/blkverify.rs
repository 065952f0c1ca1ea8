//! `blkverify`: a filter that does everything twice and compares.
//!
//! Every read and write goes to two images: `raw`, which is trusted, and `test`, which is tried. What the two
//! return must be the same. Data returned is that of `test`; flushes and lengths concern it alone. What happens
//! at the first difference is the user's choice: by default the program ends there, as with the reference, so
//! that nothing can happen to the evidence.

use std::any::Any;
use std::sync::Arc;
use std::task::Poll;

use serde::Deserialize;

use crate::buf::{Buf, Bufs};
use crate::child::{Child, EdgeKind, NamedEdge};
use crate::context::{ChildKind, OpenContext};
use crate::error::{Error, ErrorKind, Result};
use crate::naming::{ImageName, image_tree, json_filename, storage_tree};
use crate::node::{Access, ImageInfo, Limits, NoResize, Node};
use crate::options::{BoolOpt, ChildRef, OptionTree, parse};
use crate::registry::{Driver, Role};
use crate::request::{BoxFuture, Completion, Extent, ExtentFlags, Flags, Op, Operation, Request};

const NAME: &str = "blkverify";
/// Most bytes of zeroes written at once: they are written as data, so that both sides do the same.
const ZEROES_BYTES_MAX: u64 = 1 << 20;

/// Told a difference, in a line for people.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// Ends the program.
pub type Abort = Arc<dyn Fn() + Send + Sync>;

/// What a difference leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnMismatch {
    /// It is told, and the request goes on with what `test` returned.
    Report,
    /// The request fails with it.
    Error,
    /// The program ends.
    #[default]
    Abort,
}

/// What went differently.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// The data.
    #[error("blkverify: {op} offset={offset} bytes={bytes} contents mismatch at offset {at}")]
    Contents {
        /// `read`, or `write` when what was written is read back.
        op: &'static str,
        /// First byte of the request.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// The first byte that differs.
        at: u64,
    },
    /// The result: 0 or a negative code.
    #[error("blkverify: {op} offset={offset} bytes={bytes} return value mismatch {test} != {raw}")]
    Result {
        /// `read` or `write`.
        op: &'static str,
        /// First byte of the request.
        offset: u64,
        /// Its length.
        bytes: u64,
        /// That of `test`.
        test: i32,
        /// That of `raw`.
        raw: i32,
    },
}

/// The short form has two colons.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("blkverify requires raw copy and original image path")]
struct BadForm;

/// The driver of [`BlkverifyNode`].
pub struct BlkverifyDriver {
    notice: Notice,
    abort: Abort,
}

impl BlkverifyDriver {
    /// A driver whose nodes call `notice` with the first difference of the two images, and then `abort`. If that
    /// returns, the request fails.
    pub fn new(notice: Notice, abort: Abort) -> Self {
        Self { notice, abort }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct BlkverifyOptions {
    #[serde(default)]
    raw: ChildRef,
    #[serde(default)]
    test: ChildRef,
    /// The images as names, from the short form.
    x_raw: Option<String>,
    x_image: Option<String>,
    #[serde(default)]
    on_mismatch: OnMismatch,
    #[serde(default)]
    read_back: BoolOpt,
}

impl Driver for BlkverifyDriver {
    fn name(&self) -> &'static str {
        NAME
    }

    fn role(&self) -> Role {
        Role::Filter
    }

    fn edge_kind(&self, role: &str) -> EdgeKind {
        if role == "test" { EdgeKind::Data } else { EdgeKind::Filtered }
    }

    fn prefixes(&self) -> Vec<&'static str> {
        vec![NAME]
    }

    /// `blkverify:RAW:TEST`.
    fn parse_filename(&self, name: &str) -> Result<OptionTree> {
        let rest = name.strip_prefix(NAME).and_then(|rest| rest.strip_prefix(':')).unwrap_or(name);
        let (raw, test) = rest.split_once(':').ok_or_else(|| Error::new(ErrorKind::InvalidInput, BadForm))?;
        let mut tree = OptionTree::new();
        tree.insert("x-raw".to_owned(), raw.into());
        tree.insert("x-image".to_owned(), test.into());
        Ok(tree)
    }

    fn open(&self, tree: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        let (notice, abort) = (self.notice.clone(), self.abort.clone());
        Box::pin(async move {
            let mut options: BlkverifyOptions = parse(NAME, Role::Protocol, tree)?;
            if let (Some(name), ChildRef::Absent) = (&options.x_raw, &options.raw) {
                options.raw = ChildRef::Inline(match cx.kind() {
                    ChildKind::Storage => storage_tree(&cx.registry, name)?,
                    ChildKind::Image => image_tree(&cx.registry, &ImageName::Text(name.clone()), None)?,
                });
            }
            if let (Some(name), ChildRef::Absent) = (&options.x_image, &options.test) {
                let name = ImageName::Text(name.clone());
                options.test = ChildRef::Inline(image_tree(&cx.registry, &name, None)?);
            }
            let raw = cx.require_child("raw", options.raw, cx.kind()).await?;
            let test = cx.require_child("test", options.test, ChildKind::Image).await?;
            let (on_mismatch, read_back) = (options.on_mismatch, options.read_back.0);
            let policy = Policy { on_mismatch, read_back, notice, abort };
            Ok(Arc::new(BlkverifyNode::new(raw, test, policy)) as Arc<dyn Node>)
        })
    }
}

/// How strictly two images are compared, and what follows.
pub struct Policy {
    /// What a difference leads to.
    pub on_mismatch: OnMismatch,
    /// Whether each write is read back from both, and compared at once.
    pub read_back: bool,
    /// Told about a difference that does not fail its request.
    pub notice: Notice,
    /// Ends the program.
    pub abort: Abort,
}

/// A filter over two images that must be the same.
pub struct BlkverifyNode(Arc<Shared>);

struct Shared {
    raw: Child,
    test: Child,
    policy: Policy,
}

impl BlkverifyNode {
    /// Compares `test` with `raw`.
    pub fn new(raw: Arc<dyn Node>, test: Arc<dyn Node>, policy: Policy) -> Self {
        Self(Arc::new(Shared { raw: Child::new(raw), test: Child::new(test), policy }))
    }
}

impl Shared {
    /// Does what the user wants done about a difference.
    fn judge(&self, mismatch: Mismatch) -> Result<()> {
        match self.policy.on_mismatch {
            OnMismatch::Error => {}
            OnMismatch::Report => {
                (self.policy.notice)(&mismatch.to_string());
                return Ok(());
            }
            OnMismatch::Abort => {
                (self.policy.notice)(&mismatch.to_string());
                (self.policy.abort)();
            }
        }
        Err(Error::new(ErrorKind::Io, mismatch))
    }

    fn compare_results(&self, op: &'static str, range: (u64, u64), raw: i32, test: i32) -> Result<()> {
        if raw == test {
            return Ok(());
        }
        self.judge(Mismatch::Result { op, offset: range.0, bytes: range.1, test, raw })
    }

    async fn read(self: Arc<Self>, request: Request) -> Completion {
        let range = (request.offset, request.len);
        let copy = Request::read(request.offset, Buf::scratch(request.len as usize)).caused_by(request.cause);
        let (raw, test) = both(self.raw.submit(copy), self.test.submit(request)).await;
        if let Err(e) = self.compare_results("read", range, code(&raw), code(&test)) {
            return Completion::failed(test.bufs, e);
        }
        if raw.result.is_err() || test.result.is_err() {
            return test;
        }
        match self.compare("read", range, &raw.bufs, &test.bufs) {
            Ok(()) => test,
            Err(e) => Completion::failed(test.bufs, e),
        }
    }

    fn compare(&self, op: &'static str, range: (u64, u64), raw: &Bufs, test: &Bufs) -> Result<()> {
        match first_difference(raw, test) {
            None => Ok(()),
            Some(at) => {
                let (offset, bytes) = range;
                self.judge(Mismatch::Contents { op, offset, bytes, at: offset.saturating_add(at) })
            }
        }
    }

    async fn write(self: Arc<Self>, request: Request) -> Completion {
        let range = (request.offset, request.len);
        let copy = Request::write(request.offset, request.bufs.to_contiguous());
        let copy = copy.with_flags(request.flags).caused_by(request.cause);
        let written = self.policy.read_back.then(|| request.bufs.to_contiguous());
        let (raw, test) = both(self.raw.submit(copy), self.test.submit(request)).await;
        if let Err(e) = self.compare_results("write", range, code(&raw), code(&test)) {
            return Completion::failed(test.bufs, e);
        }
        match written {
            Some(written) if test.result.is_ok() => match self.read_back(range.0, written).await {
                Ok(()) => test,
                Err(e) => Completion::failed(test.bufs, e),
            },
            _ => test,
        }
    }

    /// Compares what both have now with what was written.
    async fn read_back(&self, offset: u64, written: Buf) -> Result<()> {
        let range = (offset, written.len() as u64);
        let written = Bufs::from(written);
        for side in [&self.raw, &self.test] {
            let read = Bufs::from(side.read(offset, written.len()).await?);
            self.compare("write", range, &written, &read)?;
        }
        Ok(())
    }

    /// As data, in pieces.
    async fn zeroes(self: Arc<Self>, request: Request) -> Completion {
        let mut at = request.offset;
        while at < request.end() {
            let len = ZEROES_BYTES_MAX.min(request.end() - at);
            let part = Request::write(at, Buf::zeroed(len as usize));
            let part = part.with_flags(request.flags & Flags::FUA).caused_by(request.cause);
            if let Err(e) = self.clone().write(part).await.result {
                return Completion::failed(request.bufs, e);
            }
            at += len;
        }
        Completion::done(request.bufs)
    }
}

/// 0, or the negative code of the failure.
fn code(completion: &Completion) -> i32 {
    completion.result.as_ref().map_or_else(|e| -e.errno(), |_| 0)
}

/// Where two buffers of one length differ first.
fn first_difference(a: &Bufs, b: &Bufs) -> Option<u64> {
    let (a, b) = (a.to_contiguous(), b.to_contiguous());
    a.iter().zip(b.iter()).position(|(x, y)| x != y).map(|at| at as u64)
}

/// Both requests, side by side.
async fn both(a: Op, b: Op) -> (Completion, Completion) {
    let (mut a, mut b) = (Half::of(a), Half::of(b));
    std::future::poll_fn(move |cx| {
        let ready = [a.poll(cx), b.poll(cx)];
        match ready == [true, true] {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
        .map(|()| (a.take(), b.take()))
    })
    .await
}

/// One of two requests.
enum Half {
    Waits(BoxFuture<Completion>),
    Done(Completion),
}

impl Half {
    fn of(op: Op) -> Self {
        match op {
            Op::Done(completion) => Self::Done(completion),
            Op::Wait(future) => Self::Waits(future),
        }
    }

    fn poll(&mut self, cx: &mut std::task::Context<'_>) -> bool {
        if let Self::Waits(future) = self {
            match future.as_mut().poll(cx) {
                Poll::Ready(completion) => *self = Self::Done(completion),
                Poll::Pending => return false,
            }
        }
        true
    }

    fn take(&mut self) -> Completion {
        let gone = Self::Done(Completion::done(Bufs::none()));
        match std::mem::replace(self, gone) {
            Self::Done(completion) => completion,
            Self::Waits(_) => unreachable!("taken only when it is done"),
        }
    }
}

impl Node for BlkverifyNode {
    fn submit(&self, request: Request) -> Op {
        let shared = self.0.clone();
        match request.op {
            Operation::Read => Op::wait(shared.read(request)),
            Operation::Write => Op::wait(shared.write(request)),
            Operation::WriteZeroes if request.flags.contains(Flags::NO_FALLBACK) => {
                Op::failed(request.bufs, ErrorKind::Unsupported)
            }
            Operation::WriteZeroes => Op::wait(shared.zeroes(request)),
            Operation::Flush => self.0.test.submit(request),
            Operation::Status => {
                // Whoever asks is to read everything: that is what this is for.
                let len = request.len.min(self.len().saturating_sub(request.offset));
                let mut flags = ExtentFlags::DATA | ExtentFlags::ALLOCATED;
                flags.set(ExtentFlags::EOF, request.offset.saturating_add(len) >= self.len());
                Op::Done(Completion::extent(Extent { len, flags, map: None }))
            }
            Operation::Truncate(_) => Op::failed(request.bufs, NoResize),
            // A discard may have any effect or none, so there would be nothing to compare afterwards.
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
        self.0.test.len()
    }

    fn limits(&self) -> Limits {
        let (raw, test) = (self.0.raw.limits(), self.0.test.limits());
        Limits {
            request_alignment: raw.request_alignment.max(test.request_alignment),
            memory_alignment: raw.memory_alignment.max(test.memory_alignment),
            ..Limits::default()
        }
    }

    fn is_read_only(&self) -> bool {
        self.0.test.node().is_read_only() || self.0.raw.node().is_read_only()
    }

    fn edges(&self) -> Vec<NamedEdge> {
        // In the order in which the reference shows them.
        vec![
            NamedEdge { role: "test", kind: EdgeKind::Data, child: self.0.test.clone() },
            NamedEdge { role: "raw", kind: EdgeKind::Filtered, child: self.0.raw.clone() },
        ]
    }

    fn primary(&self) -> Option<Arc<dyn Node>> {
        Some(self.0.raw.node())
    }

    fn filename(&self) -> String {
        let (raw, test) = (self.0.raw.node(), self.0.test.node());
        let names = [raw.filename(), test.filename()];
        match names.iter().any(|name| name.starts_with("json:")) {
            false => format!("{NAME}:{}:{}", names[0], names[1]),
            true => json_filename(NAME, OptionTree::new(), &[("raw", &*raw), ("test", &*test)]),
        }
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info = ImageInfo { format: NAME, virtual_size: self.len(), ..ImageInfo::default() };
        Box::pin(std::future::ready(Ok(info)))
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        let (raw, test) = (self.0.raw.node(), self.0.test.node());
        Box::pin(async move {
            raw.reopen(access).await?;
            test.reopen(access).await
        })
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        let (raw, test) = (self.0.raw.node(), self.0.test.node());
        Box::pin(async move {
            // Both are closed even if the first fails.
            let (raw, test) = (raw.close().await, test.close().await);
            raw.and(test)
        })
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::MemNode;
    use crate::testing::now;
    use parking_lot::Mutex;

    type Said = Arc<Mutex<Vec<String>>>;

    fn pair(raw: &[u8], test: &[u8], on_mismatch: OnMismatch, read_back: bool) -> (Child, Said) {
        let said = Said::default();
        let list = said.clone();
        let notice: Notice = Arc::new(move |line: &str| list.lock().push(line.to_owned()));
        let policy = Policy { on_mismatch, read_back, notice, abort: Arc::new(|| {}) };
        let raw = Arc::new(MemNode::with_content(raw));
        let test = Arc::new(MemNode::with_content(test));
        (Child::new(Arc::new(BlkverifyNode::new(raw, test, policy))), said)
    }

    #[test]
    fn the_same_is_returned_and_written_to_both() {
        let (child, said) = pair(&[1; 1024], &[1; 1024], OnMismatch::Abort, true);
        now(child.write(100, Buf::copy_of(&[7; 50]))).expect("written");
        assert_eq!(now(child.read(99, 3)).expect("read")[..], [1, 7, 7]);
        now(child.submit(Request::write_zeroes(0, 512)).finish()).result.expect("zeroes");
        assert_eq!(now(child.read(511, 2)).expect("read")[..], [0, 1]);
        assert!(said.lock().is_empty());
    }

    #[test]
    fn the_first_byte_that_differs_is_named() {
        let mut other = vec![1; 1024];
        other[513] = 2;
        let line = "blkverify: read offset=512 bytes=512 contents mismatch at offset 513";
        for (on_mismatch, fails, told) in
            [(OnMismatch::Abort, true, 1), (OnMismatch::Error, true, 0), (OnMismatch::Report, false, 1)]
        {
            let (child, said) = pair(&[1; 1024], &other, on_mismatch, false);
            assert!(now(child.read(0, 512)).is_ok(), "the same there");
            match now(child.read(512, 512)) {
                Ok(data) => assert_eq!((fails, data[1]), (false, 2), "the data of test"),
                Err(e) => assert_eq!((fails, e.to_string().as_str()), (true, line)),
            }
            assert_eq!(said.lock().len(), told);
        }
    }

    #[test]
    fn results_that_differ_are_named() {
        let (child, said) = pair(&[1; 1024], &[1; 512], OnMismatch::Report, false);
        // Memory does not read beyond its end.
        let _ = now(child.node().submit(Request::read(512, Buf::zeroed(512))).finish());
        let said = said.lock();
        assert!(said.iter().any(|line| line.contains("mismatch")), "{said:?}");
    }
}
