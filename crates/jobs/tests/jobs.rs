//! Jobs over nodes that make every request wait, complete requests out of order, and fail where told.

use std::any::Any;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use cowbell_block::mem::MemNode;
use cowbell_block::{
    BoxFuture, Buf, Completion, ErrorKind, ImageInfo, Limits, Node, Op, Operation, Request, Result, Root,
};
use cowbell_jobs::compare::{Mode, Verdict, compare};
use cowbell_jobs::convert::{Copied, OnReadError, Options, Part, TargetStart, WriteOrder, convert};
use cowbell_jobs::{Counters, Error, Progress, Silent, Unpaced};

/// Polls until the future is ready. Every wait here ends by itself, so that no wake-up is needed.
fn block_on<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
    panic!("the job hangs");
}

/// A node that makes requests wait for a number of polls that differs from one to the next.
struct Slow {
    inner: Arc<dyn Node>,
    requests: AtomicU64,
    in_flight: Arc<AtomicUsize>,
    most_in_flight: Arc<AtomicUsize>,
    writes: Arc<Mutex<Vec<u64>>>,
    /// Reads that cover this byte fail.
    bad_read: Option<u64>,
    /// Writes that cover this byte fail.
    bad_write: Option<u64>,
    /// Nobody is told what lies at this byte.
    bad_status: Option<u64>,
}

impl Slow {
    fn new(inner: Arc<dyn Node>) -> Self {
        Self {
            inner,
            requests: AtomicU64::new(0),
            in_flight: Arc::default(),
            most_in_flight: Arc::default(),
            writes: Arc::default(),
            bad_read: None,
            bad_write: None,
            bad_status: None,
        }
    }
}

impl Node for Slow {
    fn submit(&self, request: Request) -> Op {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut polls = (number * 7919) % 13 + 1;
        let bad = match request.op {
            Operation::Read => self.bad_read,
            Operation::Write => self.bad_write,
            Operation::Status => self.bad_status,
            _ => None,
        };
        let fails = bad.is_some_and(|byte| (request.offset..request.end()).contains(&byte));
        if matches!(request.op, Operation::Write) {
            self.writes.lock().expect("not poisoned").push(request.offset);
        }
        let (inner, now, most) = (self.inner.clone(), self.in_flight.clone(), self.most_in_flight.clone());
        Op::wait(async move {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            poll_fn(|_| match polls {
                0 => Poll::Ready(()),
                _ => {
                    polls -= 1;
                    Poll::Pending
                }
            })
            .await;
            let completion = match fails {
                true => Completion::failed(request.bufs, ErrorKind::Io),
                false => inner.submit(request).finish().await,
            };
            now.fetch_sub(1, Ordering::Relaxed);
            completion
        })
    }
    fn driver(&self) -> &'static str {
        "slow"
    }
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn limits(&self) -> Limits {
        self.inner.limits()
    }
    fn starts_as_zero(&self) -> bool {
        true
    }
    fn filename(&self) -> String {
        "slow".to_owned()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.inner.info()
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        self.inner.close()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

const MIB: u64 = 1 << 20;

/// Data of every shape: dense, single sectors, zeroes written as data.
fn source(len: u64) -> Arc<dyn Node> {
    let node: Arc<dyn Node> = Arc::new(MemNode::new(len));
    let put = |offset: u64, n: u64, byte: u8| {
        let mut buf = Buf::zeroed(n.min(len - offset) as usize);
        buf.fill(byte);
        block_on(node.submit(Request::write(offset, buf)).finish()).into_bufs().expect("written");
    };
    put(0, 5 * MIB, 1);
    put(6 * MIB + 512, 512, 2);
    put(9 * MIB, MIB, 0);
    put(12 * MIB - 4096, 3 * MIB, 3);
    put(len - 512, 512, 4);
    node
}

fn run(from: &[Root], to: &Root, options: &Options) -> cowbell_jobs::Result<Copied> {
    block_on(convert(from, to, options, &Silent, &Unpaced))
}

fn same(a: &Root, b: &Root) -> Verdict {
    block_on(compare(a, b, Mode::Content, &Silent, || ())).map_err(|f| f.error).expect("compared")
}

#[test]
fn every_setting_copies_the_same_content() {
    let len = 20 * MIB;
    let from = Root::new(Arc::new(Slow::new(source(len))));
    for parallel in [1, 3, 16] {
        for order in [WriteOrder::Ascending, WriteOrder::Any] {
            for sparse_bytes in [0, 512, 4096, 65536] {
                for start in [TargetStart::Zero, TargetStart::Unknown] {
                    let to = Root::new(Arc::new(Slow::new(Arc::new(MemNode::new(len)))));
                    let options = Options { parallel, order, sparse_bytes, start, ..Options::default() };
                    let copied = run(std::slice::from_ref(&from), &to, &options).expect("copied");
                    assert_eq!(same(&from, &to), Verdict::Identical, "{options:?}");
                    assert_eq!(copied.data + copied.zeroes + copied.skipped, len, "{options:?}");
                }
            }
        }
    }
}

#[test]
fn requests_are_in_flight_together_and_written_in_order() {
    let slow = Slow::new(source(40 * MIB));
    let most = slow.most_in_flight.clone();
    let target = Slow::new(Arc::new(MemNode::new(40 * MIB)));
    let writes = target.writes.clone();
    let options = Options { start: TargetStart::Zero, sparse_bytes: 0, ..Options::default() };
    run(&[Root::new(Arc::new(slow))], &Root::new(Arc::new(target)), &options).expect("copied");
    assert!(most.load(Ordering::Relaxed) > 1, "reads overlap");
    let writes = writes.lock().expect("not poisoned");
    assert!(writes.is_sorted(), "{writes:?}");
}

#[test]
fn several_sources_follow_each_other() {
    let (a, b) = (Root::new(source(13 * MIB)), Root::new(source(15 * MIB)));
    let to = Root::new(Arc::new(MemNode::new(28 * MIB)));
    run(&[a.clone(), b.clone()], &to, &Options::default()).expect("copied");
    let read = |root: &Root, at: u64, n: u64| {
        let done = block_on(root.submit(Request::read(at, Buf::zeroed(n as usize))).finish());
        done.into_bufs().expect("read").to_contiguous_or_self().to_vec()
    };
    assert!(read(&to, 0, 13 * MIB) == read(&a, 0, 13 * MIB));
    assert!(read(&to, 13 * MIB, 15 * MIB) == read(&b, 0, 15 * MIB));
}

#[test]
fn the_first_failure_ends_a_job_without_a_hang() {
    for order in [WriteOrder::Ascending, WriteOrder::Any] {
        let options = Options { order, ..Options::default() };
        let mut bad = Slow::new(source(20 * MIB));
        bad.bad_read = Some(3 * MIB);
        let to = Root::new(Arc::new(Slow::new(Arc::new(MemNode::new(20 * MIB)))));
        let result = run(&[Root::new(Arc::new(bad))], &to, &options);
        assert!(matches!(result, Err(Error::Read { offset, .. }) if offset == 2 * MIB), "{result:?}");

        let from = Root::new(Arc::new(Slow::new(source(20 * MIB))));
        let mut bad = Slow::new(Arc::new(MemNode::new(20 * MIB)));
        bad.bad_write = Some(13 * MIB);
        let result = run(&[from], &Root::new(Arc::new(bad)), &options);
        assert!(matches!(result, Err(Error::Write { .. })), "{result:?}");
    }
}

#[test]
fn salvage_replaces_only_the_bad_sector() {
    struct Seen(Mutex<Vec<(u64, u64)>>);
    impl Progress for Seen {
        fn advanced(&self, _: u64, _: u64) {}
        fn unreadable(&self, offset: u64, len: u64, _: &cowbell_block::Error) {
            self.0.lock().expect("not poisoned").push((offset, len));
        }
    }
    let mut bad = Slow::new(source(20 * MIB));
    bad.bad_read = Some(3 * MIB + 700);
    let to = Root::new(Arc::new(MemNode::new(20 * MIB)));
    let options = Options { on_read_error: OnReadError::Salvage, ..Options::default() };
    let seen = Seen(Mutex::default());
    let from = [Root::new(Arc::new(bad))];
    let copied = block_on(convert(&from, &to, &options, &seen, &Unpaced)).expect("salvaged");
    assert_eq!(copied.unreadable, 512);
    assert_eq!(*seen.0.lock().expect("not poisoned"), [(3 * MIB + 512, 512)]);
    let whole = Root::new(source(20 * MIB));
    assert_eq!(same(&whole, &to), Verdict::ContentDiffers { offset: 3 * MIB + 512 });
}

/// One sector of which nothing can be told: salvaging tries to read it, and loses nothing around it.
#[test]
fn salvage_goes_on_where_the_status_is_unknown() {
    struct Seen(Mutex<Vec<u64>>);
    impl Progress for Seen {
        fn advanced(&self, _: u64, _: u64) {}
        fn status_unknown(&self, offset: u64, _: &cowbell_block::Error) {
            self.0.lock().expect("not poisoned").push(offset);
        }
    }
    let bad = || {
        let mut bad = Slow::new(source(20 * MIB));
        bad.bad_status = Some(3 * MIB + 700);
        [Root::new(Arc::new(bad))]
    };
    let to = Root::new(Arc::new(MemNode::new(20 * MIB)));
    assert!(matches!(run(&bad(), &to, &Options::default()), Err(Error::Status { .. })));

    let options = Options { on_read_error: OnReadError::Salvage, ..Options::default() };
    let seen = Seen(Mutex::default());
    let copied = block_on(convert(&bad(), &to, &options, &seen, &Unpaced)).expect("salvaged");
    assert_eq!(copied.unreadable, 0, "it can be read after all");
    assert_eq!(*seen.0.lock().expect("not poisoned"), [3 * MIB + 512]);
    assert_eq!(same(&Root::new(source(20 * MIB)), &to), Verdict::Identical);
}

#[test]
fn a_cancelled_job_stops() {
    struct StopAfter(Counters, AtomicBool);
    impl Progress for StopAfter {
        fn advanced(&self, done: u64, total: u64) {
            self.0.advanced(done, total);
            if done >= 4 * MIB {
                self.1.store(true, Ordering::Relaxed);
            }
        }
        fn is_cancelled(&self) -> bool {
            self.1.load(Ordering::Relaxed)
        }
    }
    let from = Root::new(Arc::new(Slow::new(source(60 * MIB))));
    let to = Root::new(Arc::new(Slow::new(Arc::new(MemNode::new(60 * MIB)))));
    let stop = StopAfter(Counters::default(), AtomicBool::new(false));
    let options = Options { sparse_bytes: 0, ..Options::default() };
    let result = block_on(convert(&[from], &to, &options, &stop, &Unpaced));
    assert!(matches!(result, Err(Error::Cancelled)), "{result:?}");
    let (done, total) = stop.0.get();
    assert!(done < total, "{done} of {total}");
}

fn bytes(node: &Arc<dyn Node>) -> Vec<u8> {
    let request = Request::read(0, Buf::zeroed(node.len() as usize));
    block_on(node.submit(request).finish()).into_bufs().expect("readable").to_contiguous().to_vec()
}

#[test]
fn a_part_is_copied_to_the_beginning() {
    let sources = [Root::new(source(20 * MIB)), Root::new(source(12 * MIB))];
    let whole: Vec<u8> = sources.iter().flat_map(|root| bytes(&root.node())).collect();
    for (offset, len) in
        [(0, 100), (513, 30 * MIB), (20 * MIB - 7, 9), (20 * MIB + 3, MIB), (32 * MIB, 0), (31 * MIB, MIB)]
    {
        let target = Root::new(Arc::new(MemNode::new(32 * MIB)));
        let options =
            Options { part: Some(Part { offset, len }), start: TargetStart::Zero, ..Options::default() };
        block_on(convert(&sources, &target, &options, &Silent, &Unpaced)).expect("copied");
        let got = bytes(&target.node());
        let (from, n) = (offset as usize, len as usize);
        assert!(
            got[..n] == whole[from..from + n] && got[n..].iter().all(|byte| *byte == 0),
            "{offset} {len}"
        );
    }
}

#[test]
fn compare_finds_the_place() {
    let (a, b) = (Root::new(source(20 * MIB)), Root::new(source(20 * MIB)));
    assert_eq!(same(&a, &b), Verdict::Identical);
    let mut buf = Buf::zeroed(1);
    buf.fill(9);
    block_on(b.submit(Request::write(4 * MIB + 1000, buf)).finish()).into_bufs().expect("written");
    // Stored on both sides: located to the sector.
    assert_eq!(same(&a, &b), Verdict::ContentDiffers { offset: 4 * MIB + 512 });
    let longer = Root::new(source(21 * MIB));
    let strict = block_on(compare(&a, &longer, Mode::Strict, &Silent, || ()));
    assert!(matches!(strict, Ok(Verdict::SizeDiffers)));
}
