//! The power fails while an overlay is committed or rebased: at every write, with any of the writes lost that no flush
//! had covered, on each of the files. What the overlay reads is the same, and no image has an error.

use std::any::Any;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use cowbell_block::mem::MemNode;
use cowbell_block::{
    Access, BoxFuture, Buf, Child, Flags, ImageInfo, Node, Op, Operation, Request, Result, Root,
};
use cowbell_jobs::commit::commit;
use cowbell_jobs::rebase::{NewBacking, Store, rebase};
use cowbell_jobs::{Silent, Unpaced};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};
use parking_lot::Mutex;

fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..1_000_000 {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
    panic!("it waits for something that never happens");
}

/// A change of one file.
#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Zero(u64, u64),
    Len(u64),
    Flush,
}

/// Changes of all files, in the order in which they came.
type Film = Arc<Mutex<Vec<(usize, Change)>>>;

/// A file in memory that is filmed.
struct Filmed {
    mem: MemNode,
    number: usize,
    film: Film,
}

impl Node for Filmed {
    fn submit(&self, request: Request) -> Op {
        let change = match request.op {
            Operation::Write => Some(Change::Write(request.offset, request.bufs.to_contiguous().to_vec())),
            Operation::WriteZeroes | Operation::Discard => Some(Change::Zero(request.offset, request.len)),
            Operation::Truncate(_) => Some(Change::Len(request.offset)),
            Operation::Flush => Some(Change::Flush),
            _ => None,
        };
        self.film.lock().extend(change.map(|change| (self.number, change)));
        self.mem.submit(request)
    }
    fn driver(&self) -> &'static str {
        "filmed"
    }
    fn len(&self) -> u64 {
        self.mem.len()
    }
    fn filename(&self) -> String {
        format!("file {}", self.number)
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        self.mem.info()
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        self.mem.close()
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// What a file holds when the power fails after `film`: everything up to its last flush, and what `keeps` keeps of
/// the rest.
fn after(before: &[u8], film: &[(usize, Change)], number: usize, mut keeps: impl FnMut() -> bool) -> Vec<u8> {
    let own: Vec<_> = film.iter().filter(|(file, _)| *file == number).map(|(_, change)| change).collect();
    let durable = own.iter().rposition(|change| matches!(change, Change::Flush)).map_or(0, |at| at + 1);
    let mut content = before.to_vec();
    for (at, change) in own.into_iter().enumerate() {
        if at >= durable && !keeps() {
            continue;
        }
        match change {
            Change::Write(offset, data) => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                content.resize(content.len().max(end), 0);
                content[start..end].copy_from_slice(data);
            }
            Change::Zero(offset, len) => {
                let end = ((offset + len) as usize).min(content.len());
                content[(*offset as usize).min(end)..end].fill(0);
            }
            Change::Len(len) => content.resize(*len as usize, 0),
            Change::Flush => {}
        }
    }
    content
}

fn open(file: Arc<dyn Node>, backing: Option<Arc<dyn Node>>, access: Access) -> Arc<Qcow2> {
    run(Qcow2::open(file, backing, OpenOptions { access, ..OpenOptions::default() })).expect("opens")
}

fn image(options: CreateOptions) -> Vec<u8> {
    let file = Arc::new(MemNode::new(0));
    run(cowbell_qcow2::create(&Child::new(file.clone()), None, &options)).expect("made");
    file.content()
}

fn put(node: &dyn Node, offset: u64, len: usize, byte: u8) {
    let mut buf = Buf::zeroed(len);
    buf.fill(byte);
    run(node.submit(Request::write(offset, buf)).finish()).result.expect("written");
}

fn read(node: &dyn Node) -> Vec<u8> {
    let request = Request::read(0, Buf::zeroed(node.len() as usize));
    run(node.submit(request).finish()).into_bufs().expect("readable").to_contiguous().to_vec()
}

fn check(content: &[u8]) {
    let report = cowbell_checker::check(&content, cowbell_checker::Limits::default()).expect("checkable");
    assert_ne!(report.verdict(), cowbell_checker::Verdict::Corrupt, "{report}");
}

/// Images, each with changes of its own: two that may lie below, and one that lies above the first.
fn images(cluster_bits: u32) -> [Vec<u8>; 3] {
    let size = 1 << 20;
    let of = |size, backing: Option<&str>| {
        let backing_file = backing.map(str::to_owned);
        let backing_format = backing.map(|_| "qcow2".to_owned());
        image(CreateOptions { size, cluster_bits, backing_file, backing_format, ..CreateOptions::default() })
    };
    let fill = |content: Vec<u8>, below: Option<Arc<dyn Node>>, puts: &[(u64, usize, u8)]| {
        let file = Arc::new(MemNode::with_content(&content));
        let node = open(file.clone(), below, Access::ReadWrite);
        puts.iter().for_each(|(offset, len, byte)| put(&*node, *offset, *len, *byte));
        let zeroes = Request::write_zeroes(300 << 10, 64 << 10).with_flags(Flags::MAY_UNMAP);
        run(node.submit(zeroes).finish()).result.expect("zeroed");
        run(node.close()).expect("closed");
        file.content()
    };
    let base = fill(of(size, None), None, &[(0, 200_000, 1), (700_000, 100_000, 2)]);
    let other = fill(of(size + 4096, None), None, &[(0, 90_000, 1), (150_000, 300_000, 9)]);
    let below = open(Arc::new(MemNode::with_content(&base)), None, Access::ReadOnly);
    let top = of(size + (64 << 10), Some("base"));
    let top = fill(top, Some(below), &[(100_000, 150_000, 4), (500_000, 30_000, 5), (1_040_000, 20_000, 6)]);
    [base, other, top]
}

/// Cuts the film everywhere, several times with other losses, and hands the files over.
fn cut_everywhere(before: &[&[u8]], film: &[(usize, Change)], judge: impl Fn(Vec<Vec<u8>>)) {
    let mut random = 88_172_645_463_325_252_u64;
    for end in 0..=film.len() {
        for round in 0..4 {
            let mut keeps = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                match round {
                    0 => true,
                    1 => false,
                    _ => random.is_multiple_of(2),
                }
            };
            let files = before.iter().enumerate();
            judge(files.map(|(number, before)| after(before, &film[..end], number, &mut keeps)).collect());
        }
    }
}

#[test]
fn a_commit_may_be_cut_anywhere() {
    for cluster_bits in [9, 12, 16] {
        let [base, _, top] = images(cluster_bits);
        let film = Film::default();
        let filmed = |content: &[u8], number| {
            Arc::new(Filmed { mem: MemNode::with_content(content), number, film: film.clone() })
        };
        let below = open(filmed(&base, 0), None, Access::ReadWrite);
        let above = open(filmed(&top, 1), Some(below.clone()), Access::ReadWrite);
        let expect = read(&*above);
        let (from, to) = (Root::new(above.clone()), Root::new(below));
        run(commit(&from, &to, &Silent, &Unpaced)).expect("committed");
        run(above.make_empty()).expect("emptied");
        assert!(read(&*above) == expect);
        run(above.close()).expect("closed");
        let film = std::mem::take(&mut *film.lock());
        cut_everywhere(&[&base, &top], &film, |files| {
            files.iter().for_each(|content| check(content));
            let below = open(Arc::new(MemNode::with_content(&files[0])), None, Access::ReadOnly);
            let above = open(Arc::new(MemNode::with_content(&files[1])), Some(below), Access::ReadOnly);
            assert!(read(&*above) == expect, "clusters of 2^{cluster_bits}");
        });
    }
}

#[test]
fn a_rebase_may_be_cut_anywhere() {
    for cluster_bits in [9, 12, 16] {
        let [base, other, top] = images(cluster_bits);
        let film = Film::default();
        let reading = |content: &[u8]| open(Arc::new(MemNode::with_content(content)), None, Access::ReadOnly);
        let file = Arc::new(Filmed { mem: MemNode::with_content(&top), number: 0, film: film.clone() });
        let node = open(file, Some(reading(&base)), Access::ReadWrite);
        let expect = read(&*node);
        let new = Root::new(reading(&other));
        let backing = NewBacking { root: Some(&new), below: None };
        let rebased = run(rebase(&Root::new(node.clone()), backing, Store::Plain, &Silent)).expect("rebased");
        assert!(rebased.data > 0 && rebased.zeroes > 0);
        run(node.change_backing(Some("other".to_owned()), Some("qcow2".to_owned()))).expect("renamed");
        run(node.close()).expect("closed");
        let film = std::mem::take(&mut *film.lock());
        cut_everywhere(&[&top], &film, |files| {
            check(&files[0]);
            let alone = open(Arc::new(MemNode::with_content(&files[0])), None, Access::ReadOnly);
            let named = run(alone.info()).expect("told").backing_filename;
            let below = match named.as_deref() {
                Some("base") => reading(&base),
                Some("other") => reading(&other),
                name => panic!("{name:?}"),
            };
            let node = open(Arc::new(MemNode::with_content(&files[0])), Some(below), Access::ReadOnly);
            assert!(read(&*node) == expect, "clusters of 2^{cluster_bits}, on {named:?}");
        });
    }
}
