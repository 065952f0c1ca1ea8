//! What the engine's tests share: a file in memory, a loop that drives futures, a disk to compare with.
#![allow(dead_code, reason = "each test binary uses a part")]

pub mod filmed;
pub mod peak;

use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use cowbell_block::mem::MemNode;
use cowbell_block::{Access, Buf, Child, Flags, Node, Request};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};

/// Drives a future that never has to wait for anybody else: memory answers at once.
pub fn run<T>(future: impl Future<Output = T>) -> T {
    let mut future = Box::pin(future);
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
    panic!("the future waits for something that never happens");
}

pub fn create(options: &CreateOptions) -> Arc<MemNode> {
    let file = Arc::new(MemNode::new(0));
    run(cowbell_qcow2::create(&Child::new(file.clone()), None, options)).expect("valid options");
    file
}

pub fn open(file: &Arc<MemNode>, backing: Option<Arc<dyn Node>>, options: OpenOptions) -> Arc<Qcow2> {
    let options = OpenOptions { access: Access::ReadWrite, ..options };
    run(Qcow2::open(file.clone(), backing, options)).expect("a valid image")
}

pub fn read(node: &dyn Node, offset: u64, len: usize) -> Vec<u8> {
    let completion = run(node.submit(Request::read(offset, Buf::zeroed(len))).finish());
    completion.into_bufs().expect("readable").to_contiguous().to_vec()
}

pub fn write(node: &dyn Node, offset: u64, data: &[u8]) {
    run(node.submit(Request::write(offset, Buf::copy_of(data))).finish()).into_bufs().expect("writable");
}

pub fn submit(node: &dyn Node, request: Request) {
    run(node.submit(request).finish()).result.expect("possible");
}

pub fn zero(node: &dyn Node, offset: u64, len: u64, flags: Flags) {
    submit(node, Request::write_zeroes(offset, len).with_flags(flags));
}

/// The independent checker's verdict must be "clean" (or only leaks, where a cut allows them).
pub fn assert_clean(file: &MemNode) {
    let content = file.content();
    let report = cowbell_checker::check(&content, cowbell_checker::Limits::default()).expect("checkable");
    assert_eq!(report.verdict(), cowbell_checker::Verdict::Clean, "{report}");
}

/// A small generator: the tests are the same every time.
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}
