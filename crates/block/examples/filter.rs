//! A node of one's own between a disk and its storage: a filter that counts what passes.
//!
//! `cargo run -p cowbell-block --example filter`

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowbell_block::{
    Access, BoxFuture, Buf, Child, EdgeKind, ImageInfo, MemNode, NamedEdge, Node, Op, Operation, RawNode,
    Request, Result, Root,
};

/// Passes every request on to its child, and counts the bytes of writes.
struct Counting {
    child: Child,
    written: AtomicU64,
}

impl Node for Counting {
    fn submit(&self, request: Request) -> Op {
        if matches!(request.op, Operation::Write) {
            self.written.fetch_add(request.len, Ordering::Relaxed);
        }
        self.child.submit(request)
    }

    fn driver(&self) -> &'static str {
        "counting"
    }

    fn len(&self) -> u64 {
        self.child.node().len()
    }

    fn edges(&self) -> Vec<NamedEdge> {
        vec![NamedEdge { role: "file", kind: EdgeKind::Filtered, child: self.child.clone() }]
    }

    fn filename(&self) -> String {
        self.child.node().filename()
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.child.node().info()
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        self.child.node().close()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn work() -> Result<u64> {
    let disk = RawNode::new(Arc::new(MemNode::new(1 << 20)), Access::ReadWrite)?;
    let counting = Arc::new(Counting { child: Child::new(Arc::new(disk)), written: AtomicU64::new(0) });
    let root = Root::new(counting.clone());
    for offset in [0, 4096] {
        // Memory meets no wait, so there is nothing to drive.
        let Op::Done(written) = root.submit(Request::write(offset, Buf::zeroed(512))) else {
            unreachable!("memory answers at once")
        };
        written.into_bufs()?;
    }
    Ok(counting.written.load(Ordering::Relaxed))
}

fn main() {
    match work() {
        Ok(bytes) => println!("{bytes} bytes were written"),
        Err(e) => eprintln!("{e}"),
    }
}

#[test]
fn it_runs() {
    assert_eq!(work().expect("possible"), 1024);
}
