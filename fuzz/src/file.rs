//! The file below an image, in memory. It counts I/Os, and gives up on an engine that does not end.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cowbell_block::{Access, BoxFuture, ErrorKind, ImageInfo, Limits, MemNode, Node, Op, Request, Result};

/// I/Os after which every request fails: an engine that runs in circles would never come back otherwise.
const GIVE_UP: u64 = 10_000_000;

/// The file.
#[derive(Clone)]
pub struct CountingFile(Arc<Inner>);

struct Inner {
    memory: MemNode,
    ios: AtomicU64,
    mutated: AtomicBool,
    /// Changes that are still taken; the ones after them fail and have no effect.
    changes_left: AtomicU64,
}

impl CountingFile {
    /// A file over this memory.
    pub fn new(memory: MemNode) -> Self {
        Self(Arc::new(Inner {
            memory,
            ios: AtomicU64::new(0),
            mutated: AtomicBool::new(false),
            changes_left: AtomicU64::new(u64::MAX),
        }))
    }

    /// Takes so many more changes, as if the power failed then.
    pub fn cut_after(&self, changes: u64) {
        self.0.changes_left.store(changes, Ordering::Relaxed);
    }

    /// Requests so far.
    pub fn ios(&self) -> u64 {
        self.0.ios.load(Ordering::Relaxed)
    }

    /// Whether a request changed the file.
    pub fn is_mutated(&self) -> bool {
        self.0.mutated.load(Ordering::Relaxed)
    }

    /// Bytes of memory that hold its content.
    pub fn allocated(&self) -> u64 {
        self.0.memory.allocated()
    }

    /// The memory below, whose requests are not counted.
    pub fn memory(&self) -> &MemNode {
        &self.0.memory
    }

    /// Itself as a node.
    pub fn node(&self) -> Arc<dyn Node> {
        Arc::new(self.clone())
    }
}

impl Node for CountingFile {
    fn submit(&self, request: Request) -> Op {
        if request.op.is_mutation() {
            self.0.mutated.store(true, Ordering::Relaxed);
            let left = self.0.changes_left.load(Ordering::Relaxed);
            if left == 0 {
                return Op::failed(request.bufs, ErrorKind::Io);
            }
            if left != u64::MAX {
                self.0.changes_left.store(left - 1, Ordering::Relaxed);
            }
        }
        if self.0.ios.fetch_add(1, Ordering::Relaxed) > GIVE_UP {
            return Op::failed(request.bufs, ErrorKind::NoSpace);
        }
        self.0.memory.submit(request)
    }

    fn driver(&self) -> &'static str {
        self.0.memory.driver()
    }

    fn len(&self) -> u64 {
        self.0.memory.len()
    }

    fn limits(&self) -> Limits {
        self.0.memory.limits()
    }

    fn filename(&self) -> String {
        self.0.memory.filename()
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.0.memory.info()
    }

    fn reopen(&self, access: Access) -> BoxFuture<Result<()>> {
        self.0.memory.reopen(access)
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        self.0.memory.close()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}
