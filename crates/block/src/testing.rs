//! What the unit tests of this crate share: an executor of one line, files in memory, and a toy format.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use serde::Deserialize;

use crate::child::{Child, EdgeKind, NamedEdge};
use crate::context::{ChildKind, OpenContext, StoredBacking};
use crate::create::CreateArgs;
use crate::error::{Error, ErrorKind, Result};
use crate::mem::MemNode;
use crate::node::{Access, ImageInfo, Node};
use crate::options::{ChildRef, OptionTree, parse};
use crate::registry::{Driver, Registry, Role, Score};
use crate::request::{BoxFuture, Completion, Extent, ExtentFlags, Op, Operation, Request};

/// Runs a future that never has to wait for anybody else.
pub(crate) fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    for _ in 0..1000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return value;
        }
    }
    panic!("the future waits for something that does not come");
}

/// A protocol `file` whose files are in memory.
#[derive(Clone, Default)]
pub(crate) struct Files(Arc<Mutex<BTreeMap<String, MemNode>>>);

impl Files {
    pub(crate) fn put(&self, name: &str, content: &[u8]) -> MemNode {
        let node = MemNode::with_content(content);
        self.0.lock().insert(name.to_owned(), node.clone());
        node
    }

    pub(crate) fn get(&self, name: &str) -> Option<MemNode> {
        self.0.lock().get(name).cloned()
    }

    pub(crate) fn context(&self) -> OpenContext {
        let mut registry = Registry::new();
        registry.add_builtin().add(self.clone()).add(ToyDriver).add(crate::mem::MemDriver);
        OpenContext::new(Arc::new(registry))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOptions {
    filename: String,
}

#[derive(Debug, thiserror::Error)]
#[error("Could not open '{0}': No such file or directory")]
struct NoSuchFile(String);

impl Driver for Files {
    fn name(&self) -> &'static str {
        "file"
    }
    fn role(&self) -> Role {
        Role::Protocol
    }
    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        let files = self.clone();
        Box::pin(async move {
            let name = parse::<FileOptions>("file", Role::Protocol, options)?.filename;
            let Some(mem) = files.get(&name) else {
                return Err(Error::with_errno(2, NoSuchFile(name)));
            };
            Ok(Arc::new(FileNode { name, mem, access: cx.access }) as Arc<dyn Node>)
        })
    }
    fn create(&self, args: CreateArgs, _: OpenContext) -> BoxFuture<Result<()>> {
        self.put(&args.filename, &[]);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// A file in memory with a name.
pub(crate) struct FileNode {
    name: String,
    pub(crate) mem: MemNode,
    access: Access,
}

impl Node for FileNode {
    fn submit(&self, request: Request) -> Op {
        if self.is_read_only() && request.op.is_mutation() {
            return Op::failed(request.bufs, ErrorKind::ReadOnly);
        }
        self.mem.submit(request)
    }
    fn driver(&self) -> &'static str {
        "file"
    }
    fn len(&self) -> u64 {
        self.mem.len()
    }
    fn is_read_only(&self) -> bool {
        self.access == Access::ReadOnly
    }
    fn filename(&self) -> String {
        self.name.clone()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.mem.info()
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        self.mem.close()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A format whose header is `TOY:` and the name of the backing file up to a newline.
pub(crate) struct ToyDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToyOptions {
    #[serde(default)]
    file: ChildRef,
    #[serde(default)]
    backing: ChildRef,
}

impl Driver for ToyDriver {
    fn name(&self) -> &'static str {
        "toy"
    }
    fn role(&self) -> Role {
        Role::Format
    }
    fn probe(&self, head: &[u8]) -> Score {
        if head.starts_with(b"TOY:") { 100 } else { 0 }
    }
    fn supports_backing(&self) -> bool {
        true
    }
    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        Box::pin(async move {
            let options: ToyOptions = parse("toy", Role::Format, options)?;
            let file = cx.require_child("file", options.file, ChildKind::Storage).await?;
            let len = file.len() as usize;
            let header = Child::new(file.clone()).read(0, len).await?;
            let text = String::from_utf8_lossy(&header[4..]).into_owned();
            let stored = text.lines().next().map(|name| StoredBacking { name, format: None });
            let backing = cx.open_backing(&*file, stored, options.backing).await?;
            Ok(Arc::new(ToyNode::new(file, backing, Vec::new())) as Arc<dyn Node>)
        })
    }
}

/// A node that stores nothing and has the extents it is told.
pub(crate) struct ToyNode {
    file: Child,
    backing: Option<Child>,
    extents: Vec<(u64, ExtentFlags)>,
}

impl ToyNode {
    pub(crate) fn new(
        file: Arc<dyn Node>,
        backing: Option<Arc<dyn Node>>,
        extents: Vec<(u64, ExtentFlags)>,
    ) -> Self {
        Self { file: Child::new(file), backing: backing.map(Child::new), extents }
    }
}

impl Node for ToyNode {
    fn submit(&self, request: Request) -> Op {
        let Operation::Status = request.op else { return Op::failed(request.bufs, ErrorKind::Unsupported) };
        let mut start = 0;
        for (len, flags) in &self.extents {
            let end = start + len;
            if request.offset < end {
                let len = request.len.min(end - request.offset);
                return Op::Done(Completion::extent(Extent { len, flags: *flags, map: None }));
            }
            start = end;
        }
        Op::Done(Completion::extent(Extent { len: 0, flags: ExtentFlags::EOF, map: None }))
    }
    fn driver(&self) -> &'static str {
        "toy"
    }
    fn len(&self) -> u64 {
        self.extents.iter().map(|(len, _)| len).sum()
    }
    fn edges(&self) -> Vec<NamedEdge> {
        let mut edges = vec![NamedEdge { role: "file", kind: EdgeKind::Storage, child: self.file.clone() }];
        edges.extend(self.backing.clone().map(|child| NamedEdge {
            role: "backing",
            kind: EdgeKind::Backing,
            child,
        }));
        edges
    }
    fn backing(&self) -> Option<Arc<dyn Node>> {
        self.backing.as_ref().map(Child::node)
    }
    fn is_read_only(&self) -> bool {
        self.file.node().is_read_only()
    }
    fn filename(&self) -> String {
        self.file.node().filename()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        Box::pin(std::future::ready(Ok(ImageInfo { format: "toy", ..ImageInfo::default() })))
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Numbers that look random and come again with the same seed.
#[derive(Clone)]
pub(crate) struct Chance(Arc<Mutex<u64>>);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)))
    }

    /// A number below `n`.
    pub(crate) fn below(&self, n: u64) -> u64 {
        let mut state = self.0.lock();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) % n
    }
}

/// Polls the futures in an order that chance decides, until all are ready. Returns what they gave, in their order.
pub(crate) fn race<T>(chance: &Chance, futures: Vec<BoxFuture<T>>) -> Vec<T> {
    let mut results: Vec<Option<T>> = futures.iter().map(|_| None).collect();
    let mut running: Vec<(usize, BoxFuture<T>)> = futures.into_iter().enumerate().collect();
    let mut idle = 0;
    while !running.is_empty() {
        let pick = chance.below(running.len() as u64) as usize;
        match running[pick].1.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => {
                let (index, _) = running.swap_remove(pick);
                results[index] = Some(value);
                idle = 0;
            }
            Poll::Pending => idle += 1,
        }
        assert!(idle < 100_000, "nobody gets on");
    }
    results.into_iter().map(|value| value.expect("all are ready")).collect()
}

/// Pending a number of times that chance decides.
pub(crate) async fn dawdle(chance: &Chance, most: u64) {
    let mut left = chance.below(most + 1);
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Does what the node below does, some time later; requests may overtake one another.
pub(crate) struct SlowNode {
    pub(crate) below: Arc<dyn Node>,
    pub(crate) chance: Chance,
    /// Of a thousand mutations, how many fail without effect.
    pub(crate) failing: u64,
}

impl Node for SlowNode {
    fn submit(&self, request: Request) -> Op {
        let (below, chance, failing) = (self.below.clone(), self.chance.clone(), self.failing);
        Op::wait(async move {
            dawdle(&chance, 3).await;
            if request.op.is_mutation() && chance.below(1000) < failing {
                return Completion::failed(request.bufs, ErrorKind::Io);
            }
            let completion = below.submit(request).finish().await;
            dawdle(&chance, 3).await;
            completion
        })
    }
    fn driver(&self) -> &'static str {
        self.below.driver()
    }
    fn len(&self) -> u64 {
        self.below.len()
    }
    fn limits(&self) -> crate::node::Limits {
        self.below.limits()
    }
    fn compresses(&self) -> bool {
        self.below.compresses()
    }
    fn backing(&self) -> Option<Arc<dyn Node>> {
        self.below.backing()
    }
    fn filename(&self) -> String {
        self.below.filename()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.below.info()
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        self.below.close()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// An image in memory whose clusters come from a backing file until they are written.
pub(crate) struct OverlayNode {
    own: Mutex<BTreeMap<u64, Vec<u8>>>,
    backing: Arc<dyn Node>,
    grain: u64,
    len: u64,
}

impl OverlayNode {
    pub(crate) fn new(backing: Arc<dyn Node>, grain: u64, len: u64) -> Self {
        Self { own: Mutex::default(), backing, grain, len }
    }

    /// The clusters that it has itself.
    pub(crate) fn allocated(&self) -> Vec<u64> {
        self.own.lock().keys().copied().collect()
    }

    fn cluster(&self, index: u64) -> Vec<u8> {
        if let Some(bytes) = self.own.lock().get(&index) {
            return bytes.clone();
        }
        let start = index * self.grain;
        let len = self.grain.min(self.backing.len().saturating_sub(start));
        let mut bytes =
            now(Child::new(self.backing.clone()).read(start, len as usize)).expect("read").to_vec();
        bytes.resize(self.grain as usize, 0);
        bytes
    }

    fn change(&self, request: &Request) {
        for at in request.offset..request.end() {
            let mut cluster = self.cluster(at / self.grain);
            let mut byte = [0];
            if !request.bufs.is_empty() {
                request.bufs.read_at((at - request.offset) as usize, &mut byte);
            }
            cluster[(at % self.grain) as usize] = byte[0];
            self.own.lock().insert(at / self.grain, cluster);
        }
    }
}

impl Node for OverlayNode {
    fn submit(&self, mut request: Request) -> Op {
        if request.end() > self.len && !matches!(request.op, Operation::Flush | Operation::Status) {
            return Op::failed(request.bufs, ErrorKind::Io);
        }
        match request.op {
            Operation::Read => {
                for at in request.offset..request.end() {
                    let byte = self.cluster(at / self.grain)[(at % self.grain) as usize];
                    request.bufs.write_at((at - request.offset) as usize, &[byte]);
                }
            }
            Operation::Write | Operation::WriteZeroes => self.change(&request),
            Operation::Status => {
                let own = self.own.lock();
                let has = |at: u64| own.contains_key(&(at / self.grain));
                let end = request.end().min(self.len);
                let mut at = request.offset;
                while at < end && has(at) == has(request.offset) {
                    at += 1;
                }
                let here = if has(request.offset) {
                    ExtentFlags::ALLOCATED | ExtentFlags::DATA
                } else {
                    ExtentFlags::empty()
                };
                return Op::Done(Completion::extent(Extent {
                    len: at - request.offset,
                    flags: here,
                    map: None,
                }));
            }
            _ => {}
        }
        Op::done(request.bufs)
    }
    fn driver(&self) -> &'static str {
        "overlay"
    }
    fn len(&self) -> u64 {
        self.len
    }
    fn limits(&self) -> crate::node::Limits {
        crate::node::Limits { preferred_write: self.grain, ..crate::node::Limits::default() }
    }
    fn compresses(&self) -> bool {
        true
    }
    fn backing(&self) -> Option<Arc<dyn Node>> {
        Some(self.backing.clone())
    }
    fn filename(&self) -> String {
        "overlay".to_owned()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info = ImageInfo { format: "overlay", cluster_size: Some(self.grain), ..ImageInfo::default() };
        Box::pin(std::future::ready(Ok(info)))
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}
