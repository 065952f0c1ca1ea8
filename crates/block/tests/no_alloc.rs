//! Requests that meet no wait allocate nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use cowbell_block::null::NullContent;
use cowbell_block::{Access, Buf, Bufs, MemNode, Node, NullNode, Op, RawNode, Request, Root};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as the caller promised.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promised.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn done(root: &Root, request: Request) -> Bufs {
    match root.submit(request) {
        Op::Done(completion) => completion.into_bufs().expect("succeeds"),
        Op::Wait(_) => panic!("nothing here waits"),
    }
}

fn check(name: &str, node: Arc<dyn Node>) {
    let root = Root::new(node);
    let mut bufs = Bufs::from(Buf::zeroed(4096));
    // The first write takes memory for what it stores.
    bufs = done(&root, Request::write(8192, bufs));
    let before = ALLOCATIONS.get();
    for _ in 0..10 {
        bufs = done(&root, Request::write(8192, bufs));
        bufs = done(&root, Request::read(8192, bufs));
        bufs = done(&root, Request::read(1 << 19, bufs));
        done(&root, Request::flush());
    }
    assert_eq!(ALLOCATIONS.get() - before, 0, "{name}");
}

#[test]
fn fast_paths_allocate_nothing() {
    let mem = Arc::new(MemNode::new(1 << 20));
    check("mem", mem.clone());
    check("null-co", Arc::new(NullNode::new(1 << 20, NullContent::Zeroes)));
    check("raw", Arc::new(RawNode::new(mem, Access::ReadWrite).expect("raw")));
}
