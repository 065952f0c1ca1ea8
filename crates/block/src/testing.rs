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
