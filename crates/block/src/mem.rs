//! `mem`: a sparse node in memory that grows like a file, for tests and embedding.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use serde::Deserialize;

use crate::buf::{Buf, Bufs};
use crate::context::OpenContext;
use crate::error::{ErrorKind, Result};
use crate::node::{Access, ImageInfo, Node};
use crate::options::{OptionTree, SizeOpt, parse};
use crate::registry::{Driver, Role};
use crate::request::{BoxFuture, Completion, Extent, ExtentFlags, Mapping, Op, Operation, Request};

/// Bytes in one piece of storage: a cluster of the usual size.
const CHUNK: u64 = 64 << 10;
/// Longest node, the reference's limit on all nodes: `INT64_MAX` rounded down to 1 GiB.
const LEN_MAX: u64 = (i64::MAX as u64) & !((1 << 30) - 1);

/// The driver of [`MemNode`]. Its option is `size`.
pub struct MemDriver;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct MemOptions {
    #[serde(default)]
    size: SizeOpt,
}

impl Driver for MemDriver {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn role(&self) -> Role {
        Role::Protocol
    }

    fn prefixes(&self) -> Vec<&'static str> {
        Vec::new()
    }

    fn open(&self, options: OptionTree, cx: OpenContext) -> BoxFuture<Result<Arc<dyn Node>>> {
        let options = parse::<MemOptions>("mem", Role::Protocol, options);
        Box::pin(async move {
            let size = options?.size.0;
            if size > LEN_MAX {
                return Err(ErrorKind::TooLarge.into());
            }
            let node = MemNode::new(size);
            node.0.read_only.store(cx.access == Access::ReadOnly, Ordering::Relaxed);
            Ok(Arc::new(node) as Arc<dyn Node>)
        })
    }
}

/// A node in memory. Cloning gives another handle on the same bytes.
#[derive(Clone)]
pub struct MemNode(Arc<Mem>);

struct Mem {
    store: RwLock<Store>,
    read_only: AtomicBool,
}

#[derive(Default)]
struct Store {
    len: u64,
    chunks: BTreeMap<u64, Box<[u8]>>,
}

impl MemNode {
    /// A writable node of `len` zeroes, none of which takes memory.
    pub fn new(len: u64) -> Self {
        let store = RwLock::new(Store { len, chunks: BTreeMap::new() });
        Self(Arc::new(Mem { store, read_only: AtomicBool::new(false) }))
    }

    /// A writable node with this content.
    pub fn with_content(content: &[u8]) -> Self {
        let node = Self::new(0);
        node.0.store.write().write(0, &Bufs::from(Buf::copy_of(content)));
        node
    }

    /// A copy of the whole content.
    pub fn content(&self) -> Vec<u8> {
        let store = self.0.store.read();
        let mut bufs = Bufs::from(Buf::zeroed(store.len as usize));
        store.read(0, &mut bufs);
        bufs.pieces()[0].to_vec()
    }

    /// Bytes of memory in use.
    pub fn allocated(&self) -> u64 {
        self.0.store.read().chunks.len() as u64 * CHUNK
    }
}

/// The parts of `len` bytes at `offset` by chunk: index of the chunk, first byte there, length, and how many
/// bytes came before.
fn parts(offset: u64, len: u64) -> impl Iterator<Item = (u64, usize, usize, usize)> {
    let mut at = offset;
    std::iter::from_fn(move || {
        let left = offset + len - at;
        let from = at % CHUNK;
        let n = left.min(CHUNK - from);
        let part = (at / CHUNK, from as usize, n as usize, (at - offset) as usize);
        at += n;
        (n > 0).then_some(part)
    })
}

impl Store {
    fn read(&self, offset: u64, bufs: &mut Bufs) {
        for (chunk, from, n, done) in parts(offset, bufs.len() as u64) {
            match self.chunks.get(&chunk) {
                Some(bytes) => bufs.write_at(done, &bytes[from..from + n]),
                None => bufs.fill(done, n, 0),
            }
        }
    }

    fn write(&mut self, offset: u64, bufs: &Bufs) {
        let len = bufs.len() as u64;
        if len == 0 {
            return;
        }
        for (chunk, from, n, done) in parts(offset, len) {
            let bytes = self.chunks.entry(chunk).or_insert_with(|| vec![0; CHUNK as usize].into());
            bufs.read_at(done, &mut bytes[from..from + n]);
        }
        self.len = self.len.max(offset + len);
    }

    /// Zeroes a range; chunks that lie in it wholly are released.
    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let (first, last) = (offset.div_ceil(CHUNK), end / CHUNK);
        if first < last {
            let mut tail = self.chunks.split_off(&first);
            self.chunks.append(&mut tail.split_off(&last));
        }
        let edges = [(offset, end.min(first * CHUNK)), (offset.max(last * CHUNK), end)];
        for (from, to) in edges {
            let inside = (from % CHUNK) as usize;
            if from < to
                && let Some(bytes) = self.chunks.get_mut(&(from / CHUNK))
            {
                bytes[inside..inside + (to - from) as usize].fill(0);
            }
        }
    }

    fn truncate(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len.next_multiple_of(CHUNK) - len);
        }
        self.len = len;
    }

    /// Length and flags of the extent at `offset`, which lies inside; at most `max` bytes.
    fn extent(&self, offset: u64, max: u64) -> (u64, ExtentFlags) {
        let end = self.len.min(offset.saturating_add(max));
        let chunk = offset / CHUNK;
        let (stop, kind) = if self.chunks.contains_key(&chunk) {
            let run = self.chunks.range(chunk..).zip(chunk..).take_while(|((key, _), at)| *key == at).count();
            ((chunk + run as u64) * CHUNK, ExtentFlags::DATA)
        } else {
            let next = self.chunks.range(chunk..).next();
            (next.map_or(u64::MAX, |(key, _)| key * CHUNK), ExtentFlags::ZERO)
        };
        let stop = stop.min(end);
        let mut flags = kind | ExtentFlags::ALLOCATED;
        flags.set(ExtentFlags::EOF, stop == self.len);
        (stop - offset, flags)
    }
}

impl MemNode {
    fn status(&self, request: &Request) -> Completion {
        let store = self.0.store.read();
        if request.offset >= store.len {
            let flags = ExtentFlags::EOF | ExtentFlags::ALLOCATED;
            return Completion::extent(Extent { len: 0, flags, map: None });
        }
        let (len, flags) = store.extent(request.offset, request.len);
        let map = Some(Mapping { node: Arc::new(self.clone()), offset: request.offset });
        Completion::extent(Extent { len, flags, map })
    }

    fn copy_from(&self, source: Arc<dyn Node>, source_offset: u64, request: Request) -> Op {
        let node = self.clone();
        let buf = Buf::scratch(request.len as usize);
        let read = Request::read(source_offset, buf).caused_by(request.cause);
        Op::wait(async move {
            match source.submit(read).finish().await.into_bufs() {
                Ok(bufs) => {
                    node.0.store.write().write(request.offset, &bufs);
                    bufs.recycle();
                    Completion::done(request.bufs)
                }
                Err(e) => Completion::failed(request.bufs, e),
            }
        })
    }
}

impl Node for MemNode {
    fn submit(&self, mut request: Request) -> Op {
        if request.op.is_mutation() && self.is_read_only() {
            return Op::failed(request.bufs, ErrorKind::ReadOnly);
        }
        if request.end() > LEN_MAX && !matches!(request.op, Operation::Flush | Operation::Status) {
            return Op::failed(request.bufs, ErrorKind::TooLarge);
        }
        let store = &self.0.store;
        match request.op {
            Operation::Read => {
                // Zeroes beyond the end, as every protocol node gives.
                store.read().read(request.offset, &mut request.bufs);
            }
            Operation::Write => store.write().write(request.offset, &request.bufs),
            Operation::WriteZeroes => {
                let mut store = store.write();
                store.zero(request.offset, request.len);
                if request.len > 0 {
                    store.len = store.len.max(request.end());
                }
            }
            Operation::Discard => {
                let mut store = store.write();
                let len = request.len.min(store.len.saturating_sub(request.offset));
                store.zero(request.offset, len);
            }
            Operation::Flush => {}
            Operation::Status => return Op::Done(self.status(&request)),
            Operation::CopyFrom { ref source, source_offset } => {
                let source = source.clone();
                return self.copy_from(source, source_offset, request);
            }
            Operation::Truncate(_) => store.write().truncate(request.offset),
            Operation::VmStateRead | Operation::VmStateWrite => {
                return Op::failed(request.bufs, ErrorKind::Unsupported);
            }
        }
        Op::done(request.bufs)
    }

    fn driver(&self) -> &'static str {
        "mem"
    }

    fn len(&self) -> u64 {
        self.0.store.read().len
    }

    fn is_read_only(&self) -> bool {
        self.0.read_only.load(Ordering::Relaxed)
    }

    fn starts_as_zero(&self) -> bool {
        true
    }

    fn filename(&self) -> String {
        let mut own = OptionTree::new();
        own.insert("size".to_owned(), self.len().into());
        crate::naming::json_filename("mem", own, &[])
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        let info = ImageInfo {
            format: "mem",
            virtual_size: self.len(),
            actual_size: Some(self.allocated()),
            ..ImageInfo::default()
        };
        Box::pin(std::future::ready(Ok(info)))
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        self.0.read_only.store(access == Access::ReadOnly, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(())))
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::now;

    fn run(node: &MemNode, request: Request) -> Result<()> {
        now(node.submit(request).finish()).result.map(|_| ())
    }

    fn extents(node: &MemNode) -> Vec<(u64, bool)> {
        let (mut at, mut list) = (0, Vec::new());
        while at < node.len() {
            let extent =
                now(node.submit(Request::status(at, u64::MAX)).finish()).into_extent().expect("status");
            list.push((extent.len, extent.flags.contains(ExtentFlags::DATA)));
            at += extent.len;
            assert_eq!(extent.flags.contains(ExtentFlags::EOF), at == node.len());
        }
        list
    }

    #[test]
    fn behaves_like_a_vector_of_bytes() {
        let node = MemNode::new(0);
        let mut model: Vec<u8> = Vec::new();
        let mut seed = 1u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        for step in 0..400u64 {
            let (offset, len) = (next(5 * CHUNK), next(3 * CHUNK));
            let end = (offset + len) as usize;
            let grown = model.len().max(if len > 0 { end } else { 0 });
            let byte = step as u8 | 1;
            match next(5) {
                0 | 1 => {
                    model.resize(grown, 0);
                    model[offset as usize..end.min(grown)].fill(byte);
                    let mut buf = Buf::zeroed(len as usize);
                    buf.fill(byte);
                    run(&node, Request::write(offset, buf)).expect("write");
                }
                2 => {
                    model.resize(grown, 0);
                    model[(offset as usize).min(grown)..end.min(grown)].fill(0);
                    run(&node, Request::write_zeroes(offset, len)).expect("zeroes");
                }
                3 => {
                    let (from, to) = ((offset as usize).min(model.len()), end.min(model.len()));
                    model[from..to].fill(0);
                    run(&node, Request::discard(offset, len)).expect("discard");
                }
                _ => {
                    model.resize(offset as usize, 0);
                    run(&node, Request::truncate(offset, Default::default())).expect("truncate");
                }
            }
            assert!(node.content() == model, "step {step}");
            let total: u64 = extents(&node).iter().map(|(len, _)| len).sum();
            assert_eq!(total, model.len() as u64);
        }
    }

    #[test]
    fn storage_is_sparse_and_is_released() {
        let node = MemNode::new(10 * CHUNK);
        run(&node, Request::write(CHUNK + 5, Buf::copy_of(&[1; CHUNK as usize]))).expect("write");
        assert_eq!(node.allocated(), 2 * CHUNK);
        assert_eq!(extents(&node), [(CHUNK, false), (2 * CHUNK, true), (7 * CHUNK, false)]);
        run(&node, Request::write_zeroes(0, 2 * CHUNK)).expect("zeroes");
        assert_eq!(extents(&node), [(2 * CHUNK, false), (CHUNK, true), (7 * CHUNK, false)]);
        run(&node, Request::read(10 * CHUNK - 1, Buf::zeroed(2))).expect("zeroes beyond the end");
        assert!(run(&node, Request::read(u64::MAX - 1, Buf::zeroed(1))).is_err());
        assert!(run(&node, Request::write(u64::MAX - 1, Buf::zeroed(1))).is_err());
    }

    #[test]
    fn copies_from_other_nodes() {
        let source = Arc::new(MemNode::with_content(b"abcdef"));
        let node = MemNode::new(4);
        let op = Operation::CopyFrom { source, source_offset: 2 };
        run(&node, Request { op, offset: 1, len: 3, ..Request::default() }).expect("copy");
        assert_eq!(node.content(), b"\0cde");
    }
}
