//! Reads and overwrites whose mapping is cached allocate nothing (performance budget of the fast paths).

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use cowbell_block::{Buf, Bufs, Node, Op, Request};
use cowbell_qcow2::{CreateOptions, OpenOptions};
use support::{create, open, write};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: forwards to the system's allocator; counting touches a thread-local `Cell` only.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: the caller's obligations are passed on unchanged.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }
    // SAFETY: the caller's obligations are passed on unchanged.
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn at_once(op: Op) -> Bufs {
    match op {
        Op::Done(completion) => completion.into_bufs().expect("possible"),
        Op::Wait(_) => panic!("a cached request must not wait"),
    }
}

#[test]
fn cached_reads_and_overwrites_allocate_nothing() {
    let file = create(&CreateOptions { size: 64 << 20, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    write(&*node, 0, &vec![1; 4 << 20]);
    let mut bufs = Bufs::from(Buf::zeroed(4096));
    bufs = at_once(node.submit(Request::read(8192, bufs)));
    bufs = at_once(node.submit(Request::write(8192, bufs)));
    let before = COUNT.get();
    for i in 0..1000u64 {
        bufs = at_once(node.submit(Request::read(i % 1024 * 4096, bufs)));
        bufs = at_once(node.submit(Request::write(i % 1024 * 4096, bufs)));
        bufs = at_once(node.submit(Request::read((16 << 20) + i * 4096, bufs)));
    }
    assert_eq!(COUNT.get() - before, 0, "allocations in 3000 requests");
    assert_eq!(bufs.len(), 4096);
}
