//! What the engine says when the file below fails.

mod support;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cowbell_block::mem::MemNode;
use cowbell_block::{Access, BoxFuture, ErrorKind, ImageInfo, Node, Op, Operation, Request, Result};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};
use support::{create, run, write};

/// A file in memory whose flushes fail once told so.
struct Failing {
    file: Arc<MemNode>,
    fails: AtomicBool,
}

impl Node for Failing {
    fn submit(&self, request: Request) -> Op {
        if matches!(request.op, Operation::Flush) && self.fails.load(Ordering::SeqCst) {
            return Op::failed(request.bufs, ErrorKind::Io);
        }
        self.file.submit(request)
    }
    fn driver(&self) -> &'static str {
        "failing"
    }
    fn len(&self) -> u64 {
        self.file.len()
    }
    fn filename(&self) -> String {
        "failing".into()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.file.info()
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        self.file.close()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn failing_image() -> (Arc<Failing>, Arc<Qcow2>) {
    let file = create(&CreateOptions { size: 1 << 20, ..Default::default() });
    let file = Arc::new(Failing { file, fails: AtomicBool::new(false) });
    let options = OpenOptions { access: Access::ReadWrite, ..Default::default() };
    let node = run(Qcow2::open(file.clone(), None, options)).expect("a valid image");
    (file, node)
}

#[test]
fn a_failed_flush_is_sticky_and_close_says_so() {
    let (file, node) = failing_image();
    write(&*node, 0, &[1; 4096]);
    file.fails.store(true, Ordering::SeqCst);
    assert!(run(node.submit(Request::flush()).finish()).result.is_err());
    file.fails.store(false, Ordering::SeqCst);
    let again = run(node.submit(Request::flush()).finish()).result.expect_err("still failed");
    assert_eq!(again.kind(), ErrorKind::Poisoned);
    let write = run(node.submit(Request::write(0, cowbell_block::Buf::zeroed(512))).finish());
    assert_eq!(write.result.expect_err("refused").kind(), ErrorKind::Poisoned);
    assert_eq!(run(node.close()).expect_err("data was lost").kind(), ErrorKind::Poisoned);
}
