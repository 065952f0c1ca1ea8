//! Differences against a comparison byte by byte, and overlays that read as the second image.

use std::any::Any;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use cowbell_block::mem::MemNode;
use cowbell_block::{
    Access, BoxFuture, Buf, Child, Extent, Flags, ImageInfo, Limits, Mapping, Node, Op, Operation, Outcome,
    Request, Result, Root,
};
use cowbell_jobs::Silent;
use cowbell_jobs::diff::{Diff, Difference, Kind, Overlay, SECTOR, SameLayer};
use cowbell_qcow2::{CreateOptions, L2Format, OpenOptions, Qcow2};

fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..10_000_000 {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
    panic!("memory answers at once");
}

struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// A file by a name, which counts what is read of it.
struct Named {
    file: Arc<MemNode>,
    read: AtomicU64,
}

impl Named {
    fn new(file: Arc<MemNode>) -> Arc<Self> {
        Arc::new(Self { file, read: AtomicU64::new(0) })
    }
}

impl Node for Named {
    fn submit(&self, request: Request) -> Op {
        match request.op {
            Operation::Read => {
                self.read.fetch_add(request.len, Ordering::Relaxed);
                self.file.submit(request)
            }
            Operation::Status => {
                let (at, op) = (request.offset, self.file.submit(request));
                let Op::Done(mut completion) = op else { panic!("memory answers at once") };
                if let Ok(Outcome::Extent(Extent { map, .. })) = &mut completion.result {
                    *map = Some(Mapping { node: self.file.clone(), offset: at });
                }
                Op::Done(completion)
            }
            _ => self.file.submit(request),
        }
    }
    fn driver(&self) -> &'static str {
        "file"
    }
    fn len(&self) -> u64 {
        self.file.len()
    }
    fn limits(&self) -> Limits {
        self.file.limits()
    }
    fn filename(&self) -> String {
        "name".to_owned()
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

fn qcow2(options: &CreateOptions, backing: Option<Arc<dyn Node>>) -> (Arc<MemNode>, Arc<Qcow2>) {
    let file = Arc::new(MemNode::new(0));
    let options = CreateOptions { backing_file: backing.as_ref().map(|_| "base".into()), ..options.clone() };
    run(cowbell_qcow2::create(&Child::new(file.clone()), None, &options)).expect("valid");
    let node = open(&file, backing, Access::ReadWrite);
    (file, node)
}

fn open(file: &Arc<MemNode>, backing: Option<Arc<dyn Node>>, access: Access) -> Arc<Qcow2> {
    run(Qcow2::open(file.clone(), backing, OpenOptions { access, ..OpenOptions::default() })).expect("sound")
}

fn write(node: &dyn Node, offset: u64, data: &[u8], flags: Flags) {
    let request = Request::write(offset, Buf::copy_of(data)).with_flags(flags);
    run(node.submit(request).finish()).result.expect("written");
}

fn content(node: &dyn Node) -> Vec<u8> {
    let read = run(node.submit(Request::read(0, Buf::zeroed(node.len() as usize))).finish());
    read.into_bufs().expect("readable").to_contiguous().to_vec()
}

fn scribble(node: &dyn Node, rng: &mut Rng, times: u32, cluster: u64) {
    let size = node.len();
    for _ in 0..times {
        let offset = rng.below(size / SECTOR) * SECTOR + rng.below(2) * rng.below(SECTOR);
        let magnitude = 3 + rng.below(15);
        let len = (1 + rng.below(1 << magnitude)).min(size - offset);
        match rng.below(5) {
            0 => {
                let request = Request::write_zeroes(offset, len).with_flags(Flags::MAY_UNMAP);
                run(node.submit(request).finish()).result.expect("zeroed");
            }
            1 if cluster > 0 && size > cluster => {
                let at = rng.below(size / cluster) * cluster;
                let data = Buf::copy_of(&vec![rng.below(4) as u8; cluster as usize]);
                // Refused where the cluster has data of its own.
                let _ = run(node.submit(Request::write(at, data).with_flags(Flags::COMPRESSED)).finish());
            }
            // Few values, so that there is something in common by chance.
            _ => write(node, offset, &vec![rng.below(4) as u8; len as usize], Flags::empty()),
        }
    }
}

/// What differs, sector by sector.
fn model(a: &[u8], b: &[u8]) -> Vec<(u64, u64, Kind)> {
    let mut list: Vec<(u64, u64, Kind)> = Vec::new();
    let common = a.len().min(b.len());
    for start in (0..common).step_by(SECTOR as usize) {
        let range = start..(start + SECTOR as usize).min(common);
        let zero = |data: &[u8]| data[range.clone()].iter().all(|byte| *byte == 0);
        let kind = match (zero(a), zero(b)) {
            _ if a[range.clone()] == b[range.clone()] => continue,
            (true, _) => Kind::ZeroInA,
            (_, true) => Kind::ZeroInB,
            _ => Kind::Data,
        };
        list.push((range.start as u64, range.len() as u64, kind));
    }
    match (a.len(), b.len()) {
        (a, b) if a > b => list.push((b as u64, (a - b) as u64, Kind::OnlyInA)),
        (a, b) if a < b => list.push((a as u64, (b - a) as u64, Kind::OnlyInB)),
        _ => {}
    }
    joined(list)
}

fn joined(list: Vec<(u64, u64, Kind)>) -> Vec<(u64, u64, Kind)> {
    let mut out: Vec<(u64, u64, Kind)> = Vec::new();
    for next in list {
        match out.last_mut().filter(|last| last.0 + last.1 == next.0 && last.2 == next.2) {
            Some(last) => last.1 += next.1,
            None => out.push(next),
        }
    }
    out
}

fn differences(a: &Root, b: &Root, same: &[SameLayer]) -> Vec<Difference> {
    let mut diff = Diff::new(a, b, same.to_vec(), &Silent);
    let mut list = Vec::new();
    while let Some(next) = run(diff.next()).expect("readable") {
        list.push(next);
    }
    list
}

/// An overlay on `a` with the differences has the content of `b`, and the independent checker finds it sound.
fn check_overlay(a: Arc<dyn Node>, b: &Root, list: &[Difference], cluster_bits: u32) {
    let options = CreateOptions { size: b.node().len(), cluster_bits, ..CreateOptions::default() };
    let (file, node) = qcow2(&options, Some(a));
    let root = Root::new(node.clone());
    let mut overlay = Overlay::new(b, &root);
    for difference in list.iter().filter(|d| d.kind != Kind::OnlyInB || !d.reads_zero) {
        if difference.kind != Kind::OnlyInA {
            run(overlay.put(difference.start, difference.len)).expect("stored");
        }
    }
    run(overlay.finish()).expect("durable");
    assert!(content(&*node) == content(&*b.node()), "the overlay reads otherwise");
    run(node.close()).expect("closed");
    let report =
        cowbell_checker::check(&file.content(), cowbell_checker::Limits::default()).expect("checkable");
    assert_eq!(report.verdict(), cowbell_checker::Verdict::Clean, "{report}");
}

#[test]
fn differences_are_those_of_the_bytes() {
    let standard = CreateOptions { cluster_bits: 12, ..CreateOptions::default() };
    let variants = [
        standard.clone(),
        CreateOptions { cluster_bits: 9, ..standard.clone() },
        CreateOptions { cluster_bits: 16, ..standard.clone() },
        CreateOptions { cluster_bits: 14, l2_format: L2Format::Extended, ..standard },
    ];
    for seed in 1..100u64 {
        let mut rng = Rng(seed * 31 + 7);
        let base_len = 1 + rng.below(600_000);
        let base = Arc::new(MemNode::new(base_len));
        scribble(&*base, &mut rng, 12, 0);
        let side = |rng: &mut Rng| -> Arc<dyn Node> {
            let options = &variants[rng.below(4) as usize];
            let size = SECTOR * (1 + rng.below(1400));
            let options = CreateOptions { size, ..options.clone() };
            let backing: Option<Arc<dyn Node>> = if rng.below(4) == 0 { None } else { Some(base.clone()) };
            let (_, node) = qcow2(&options, backing);
            scribble(&*node, rng, 8, 1 << options.cluster_bits);
            node
        };
        let (a, b) = (side(&mut rng), side(&mut rng));
        let same: Vec<SameLayer> =
            if a.backing().is_some() && b.backing().is_some() { vec![(1, 1)] } else { vec![] };
        let (root_a, root_b) = (Root::new(a.clone()), Root::new(b.clone()));
        let list = differences(&root_a, &root_b, &same);
        let told = joined(list.iter().map(|d| (d.start, d.len, d.kind)).collect());
        assert_eq!(told, model(&content(&*a), &content(&*b)), "seed {seed}");
        check_overlay(a.clone(), &root_b, &list, 9 + rng.below(8) as u32);
        // What one raw image has, of any length, beside an image.
        let raw = Root::new(base.clone());
        let list = differences(&raw, &root_b, &[]);
        let told = joined(list.iter().map(|d| (d.start, d.len, d.kind)).collect());
        assert_eq!(told, model(&content(&*base), &content(&*b)), "raw, seed {seed}");
        check_overlay(base.clone(), &root_b, &list, 9 + rng.below(8) as u32);
    }
}

#[test]
fn what_both_store_in_the_same_place_is_not_read() {
    let options = CreateOptions { size: 8 << 20, cluster_bits: 16, ..CreateOptions::default() };
    let (file, node) = qcow2(&options, None);
    write(&*node, 0, &vec![7; 4 << 20], Flags::empty());
    write(&*node, 5 << 20, &vec![8; 65536], Flags::COMPRESSED);
    run(node.close()).expect("closed");
    // Two overlays on one file, each opened for itself.
    let overlay = || {
        let named = Named::new(file.clone());
        let below = run(Qcow2::open(named.clone(), None, OpenOptions::default())).expect("sound");
        (named, qcow2(&options, Some(below)).1)
    };
    let ((file_a, a), (file_b, b)) = (overlay(), overlay());
    write(&*b, 1 << 20, &[9; 65536], Flags::empty());
    let read = || file_a.read.load(Ordering::Relaxed) + file_b.read.load(Ordering::Relaxed);
    let before = read();
    let (root_a, root_b) = (Root::new(a), Root::new(b));
    let expected = [Difference { start: 1 << 20, len: 65536, kind: Kind::Data, reads_zero: false }];
    assert_eq!(differences(&root_a, &root_b, &[(1, 1)]), expected);
    let tables = 2 * 2 * 65536;
    assert!(read() - before <= 65536 + tables, "{} bytes read", read() - before);
    let before = read();
    assert_eq!(differences(&root_a, &root_b, &[]), expected);
    assert!(read() - before <= 2 * 65536 + 65536 + tables, "only what is compressed is read twice");
}
