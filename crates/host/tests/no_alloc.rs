//! Requests that meet the page cache allocate nothing.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use cowbell_block::{Buf, Bufs, Child, Node, Op, Request, Root};
use cowbell_host::{FileNode, FileOptions, block_on};

/// Counts this thread's allocations.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator unchanged; the counter is a plain thread-local
// without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations during `count` runs of `submit`, which has to complete at once.
fn allocations(count: u32, mut submit: impl FnMut(Bufs) -> Op) -> u64 {
    let mut bufs: Bufs = Buf::zeroed(4096).into();
    let before = ALLOCATIONS.get();
    for _ in 0..count {
        let Op::Done(done) = submit(bufs) else { panic!("the page cache has it") };
        bufs = done.into_bufs().expect("it works");
    }
    ALLOCATIONS.get() - before
}

#[test]
fn cached_reads_and_overwrites_allocate_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    std::fs::write(&path, vec![1; 1 << 20]).expect("written");
    let node = FileNode::open(&path, &FileOptions::read_write()).expect("opened");
    let child = Child::new(node.clone());
    let root = Root::new(node.clone());
    let mut at = 0;
    let mut next = || {
        at = (at + 12288) % (1 << 20);
        at
    };
    assert_eq!(allocations(1000, |bufs| node.submit(Request::read(next(), bufs))), 0, "read");
    assert_eq!(allocations(1000, |bufs| node.submit(Request::write(next(), bufs))), 0, "write");
    assert_eq!(
        allocations(1000, |bufs| child.submit(Request::read(next(), bufs))),
        0,
        "read through an edge"
    );
    assert_eq!(
        allocations(1000, |bufs| child.submit(Request::write(next(), bufs))),
        0,
        "write through an edge"
    );
    assert_eq!(allocations(1000, |bufs| root.submit(Request::read(next(), bufs))), 0, "read from a root");
    let inside = block_on(async {
        let before = ALLOCATIONS.get();
        for _ in 0..1000 {
            let bufs = node.submit(Request::read(next(), Buf::scratch(4096))).finish().await.into_bufs();
            bufs.expect("it works").recycle();
        }
        ALLOCATIONS.get() - before
    });
    // The first buffer, the pool's list and nothing after.
    assert!(inside <= 4, "{inside} allocations under block_on");
}
