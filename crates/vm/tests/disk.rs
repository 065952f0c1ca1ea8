//! The order of requests on a disk, what its discards do, and what a guest's errors come from.

use std::any::Any;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use cowbell_block::request::{BoxFuture, Op, Request};
use cowbell_block::{ErrorKind, ImageInfo, MemNode, Node, Result, Root};
use cowbell_machine::port::{Disk, DiskOp, DiskRequest};
use cowbell_vm::{BlockDisk, Discards, Drive};

/// Lets requests go to memory one by one, as the test says.
#[derive(Clone)]
struct Gate(Arc<Inner>);

struct Inner {
    memory: MemNode,
    /// Numbers (in order of submission) that may go on.
    open: Mutex<Vec<usize>>,
    log: Mutex<Vec<String>>,
    fail: Mutex<VecDeque<ErrorKind>>,
}

impl Gate {
    fn new() -> Self {
        let inner = Inner {
            memory: MemNode::new(1 << 20),
            open: Mutex::default(),
            log: Mutex::default(),
            fail: Mutex::default(),
        };
        Self(Arc::new(inner))
    }

    fn log(&self) -> Vec<String> {
        self.0.log.lock().expect("not poisoned").clone()
    }
}

impl Node for Gate {
    fn submit(&self, request: Request) -> Op {
        let inner = self.0.clone();
        let mut log = inner.log.lock().expect("not poisoned");
        log.push(format!("{} {} {} {:?}", request.op.name(), request.offset, request.len, request.flags));
        let number = log.len() - 1;
        drop(log);
        if let Some(kind) = inner.fail.lock().expect("not poisoned").pop_front() {
            return Op::failed(request.bufs, kind);
        }
        Op::wait(async move {
            poll_fn(|_| match inner.open.lock().expect("not poisoned").contains(&number) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
            inner.memory.submit(request).finish().await
        })
    }

    fn driver(&self) -> &'static str {
        "gate"
    }

    fn len(&self) -> u64 {
        self.0.memory.len()
    }

    fn filename(&self) -> String {
        "gate".into()
    }

    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.0.memory.info()
    }

    fn close(&self) -> BoxFuture<Result<()>> {
        self.0.memory.close()
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

fn disk(gate: &Gate, discards: Discards) -> (BlockDisk, Arc<Mutex<Vec<String>>>) {
    let root = Root::new(Arc::new(gate.clone()));
    let drive = Drive { root, name: "vda".into(), write_through: false, discards };
    let told = Arc::new(Mutex::new(Vec::new()));
    let notice = told.clone();
    let notice = Arc::new(move |line: &str| notice.lock().expect("not poisoned").push(line.to_owned()));
    (BlockDisk::new(drive, notice), told)
}

fn request(op: DiskOp, offset: u64, len: u64) -> DiskRequest {
    let fill = |byte| vec![byte; len as usize];
    let data = match op {
        DiskOp::Write => fill((offset / 512 + len) as u8),
        DiskOp::Read => fill(0),
        _ => Vec::new(),
    };
    DiskRequest { op, offset, len, data, origin: 7 }
}

/// Lets these requests of the node go on, and everything that can, happen.
fn open(gate: &Gate, disk: &BlockDisk, numbers: &[usize]) {
    gate.0.open.lock().expect("not poisoned").extend(numbers);
    let _still_waiting = pin!(disk.quiet()).poll(&mut Context::from_waker(Waker::noop()));
}

#[test]
fn overlapping_requests_keep_their_order_and_others_do_not_wait() {
    let gate = Gate::new();
    let (mut disk, _) = disk(&gate, Discards::Ignore);
    disk.submit(0, request(DiskOp::Write, 0, 1024));
    disk.submit(1, request(DiskOp::Read, 512, 512));
    disk.submit(2, request(DiskOp::Write, 4096, 512));
    disk.submit(3, request(DiskOp::Write, 512, 1024));
    disk.submit(4, request(DiskOp::Read, 8192, 512));
    disk.submit(5, request(DiskOp::Flush, 0, 0));
    let starts = |gate: &Gate| -> Vec<String> {
        let words = gate.log().into_iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" "));
        words.collect()
    };
    // The read of the written sector waits, and the write behind that read waits for both.
    assert_eq!(starts(&gate), ["write 0", "write 4096", "read 8192", "flush 0"]);
    open(&gate, &disk, &[1, 2]);
    assert!(disk.poll(2).is_some() && disk.poll(4).is_some());
    assert_eq!(disk.poll(0), None);
    open(&gate, &disk, &[0]);
    assert_eq!(starts(&gate)[4..], ["read 512"]);
    open(&gate, &disk, &[3, 4]);
    let reply = disk.poll(1).expect("read");
    assert!(reply.ok && reply.data == vec![1024u16 as u8; 512]);
    assert_eq!(starts(&gate)[5..], ["write 512"]);
    open(&gate, &disk, &[5]);
    assert!(disk.poll(3).is_some_and(|reply| reply.ok));
    assert_eq!(disk.in_flight(), 0);
}

#[test]
fn reads_of_the_same_place_run_side_by_side() {
    let gate = Gate::new();
    let (mut disk, _) = disk(&gate, Discards::Ignore);
    disk.submit(0, request(DiskOp::Read, 0, 512));
    disk.submit(1, request(DiskOp::Read, 0, 4096));
    assert_eq!(gate.log().len(), 2);
    open(&gate, &disk, &[0, 1]);
}

#[test]
fn a_discard_does_nothing_or_makes_zeroes() {
    let check = |discards, expect: &[&str]| {
        let gate = Gate::new();
        let (mut disk, _) = disk(&gate, discards);
        disk.submit(0, request(DiskOp::Discard, 0, 4096));
        disk.submit(1, request(DiskOp::WriteZeroes, 8192, 512));
        open(&gate, &disk, &[0, 1]);
        assert!(disk.poll(0).is_some_and(|reply| reply.ok) && disk.poll(1).is_some());
        assert_eq!(gate.log(), expect);
    };
    check(Discards::Ignore, &["write-zeroes 8192 512 Flags(0x0)"]);
    check(
        Discards::Unmap,
        &["write-zeroes 0 4096 Flags(MAY_UNMAP)", "write-zeroes 8192 512 Flags(MAY_UNMAP)"],
    );
}

#[test]
fn failures_are_told_to_the_guest_and_to_the_user() {
    let gate = Gate::new();
    let (mut disk, told) = disk(&gate, Discards::Ignore);
    for token in 0..30 {
        gate.0.fail.lock().expect("not poisoned").push_back(ErrorKind::NoSpace);
        disk.submit(token, request(DiskOp::Write, 512, 512));
        assert!(disk.poll(token).is_some_and(|reply| !reply.ok));
    }
    let told = told.lock().expect("not poisoned");
    assert!(told[0].starts_with("vda: write of 512 bytes at offset 512: "), "{}", told[0]);
    assert_eq!((told.len(), told[20].as_str()), (21, "vda: further failures are not shown"));
}
