//! Memory stays bounded for any image: opening below 8 MiB, reading and writing below 64 MiB.

mod support;

use std::any::Any;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use cowbell_block::{
    Access, BoxFuture, Child, Completion, Error, ErrorKind, Extent, ExtentFlags, Fix, ImageInfo, NewSnapshot,
    Node, Op, Operation, Request, Result, SnapshotChange, SnapshotName,
};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};
use support::peak::{Peak, peak_of};
use support::{Rng, read, run, write};

#[global_allocator]
static ALLOCATOR: Peak = Peak;

/// A sparse file of the host: its content is not in our memory.
struct Sparse(File);

impl Node for Sparse {
    fn submit(&self, mut request: Request) -> Op {
        let result = match request.op {
            Operation::Read => self.fill(&mut request),
            Operation::Write => {
                let mut at = request.offset;
                request.bufs.pieces().iter().try_for_each(|piece| {
                    let here = at;
                    at += piece.len() as u64;
                    self.0.write_all_at(piece, here)
                })
            }
            Operation::WriteZeroes => return Op::failed(request.bufs, ErrorKind::Unsupported),
            Operation::Truncate(_) => self.0.set_len(request.offset),
            Operation::Status => {
                let extent = Extent { len: request.len, flags: ExtentFlags::DATA, map: None };
                return Op::Done(Completion::extent(extent));
            }
            _ => Ok(()),
        };
        match result {
            Ok(()) => Op::done(request.bufs),
            Err(e) => Op::failed(request.bufs, Error::from_errno(e.raw_os_error().unwrap_or(5))),
        }
    }
    fn driver(&self) -> &'static str {
        "sparse"
    }
    fn len(&self) -> u64 {
        self.0.metadata().map_or(0, |m| m.len())
    }
    fn filename(&self) -> String {
        "sparse".into()
    }
    fn info(&self) -> BoxFuture<Result<ImageInfo>> {
        Box::pin(std::future::ready(Ok(ImageInfo::default())))
    }
    fn close(&self) -> BoxFuture<Result<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
    fn as_any(&self) -> &dyn Any {
        self
    }
}

impl Sparse {
    fn fill(&self, request: &mut Request) -> std::io::Result<()> {
        let mut at = request.offset;
        for piece in request.bufs.pieces_mut() {
            piece.fill(0);
            let mut done = 0;
            while done < piece.len() {
                match self.0.read_at(&mut piece[done..], at + done as u64)? {
                    0 => break,
                    n => done += n,
                }
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn word(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, offset).expect("inside the file");
        u64::from_be_bytes(bytes)
    }
}

fn image(options: CreateOptions) -> Arc<Sparse> {
    let file = Arc::new(Sparse(tempfile::tempfile().expect("a temporary file")));
    run(cowbell_qcow2::create(&Child::new(file.clone()), None, &options)).expect("valid options");
    file
}

/// Gives every L1 entry a table: empty tables, side by side, counted in refcount blocks behind them.
fn fill_l1(file: &Sparse, size: u64) {
    const CLUSTER: u64 = 1 << 16;
    const FIRST: u64 = 256;
    let tables = size >> 29;
    let l1: Vec<u8> = (0..tables).flat_map(|i| (((FIRST + i) * CLUSTER) | (1 << 63)).to_be_bytes()).collect();
    file.0.write_all_at(&l1, file.word(40)).expect("written");
    let end = FIRST + tables;
    let blocks = (end + 8).div_ceil(32768);
    for block in 0..blocks {
        let place = if block == 0 { 2 } else { end + block };
        let counted = (block * 32768).max(FIRST)..((block + 1) * 32768).min(end + blocks);
        let counts: Vec<u8> = counted.clone().flat_map(|c| u16::from(c != end).to_be_bytes()).collect();
        file.0.write_all_at(&counts, place * CLUSTER + counted.start % 32768 * 2).expect("written");
        let entry = (place * CLUSTER).to_be_bytes();
        file.0.write_all_at(&entry, file.word(48) + block * 8).expect("written");
    }
    file.0.set_len((end + blocks + 1) * CLUSTER).expect("lengthened");
}

fn exercise(file: &Arc<Sparse>, size: u64) -> (usize, usize) {
    let options = OpenOptions { access: Access::ReadWrite, ..Default::default() };
    let (node, opening) = peak_of(|| run(Qcow2::open(file.clone(), None, options)).expect("a valid image"));
    let ((), using) = peak_of(|| {
        let mut rng = Rng(5);
        for i in 0..600u64 {
            let offset = rng.below(size / 4096) * 4096;
            if i % 30 == 0 {
                write(&*node, offset, &[7; 512]);
            }
            read(&*node, offset, 512);
        }
        run(node.close()).expect("closed");
    });
    (opening, using)
}

#[test]
fn huge_images_stay_within_their_memory() {
    // 64 TiB with every L2 table there.
    let file = image(CreateOptions { size: 64 << 40, ..Default::default() });
    fill_l1(&file, 64 << 40);
    let (opening, using) = exercise(&file, 64 << 40);
    assert!(opening < 8 << 20 && using < 64 << 20, "64 TiB: opening {opening}, using {using} bytes");

    // The longest L1 table that there is, of the smallest clusters.
    let size = 128 << 30;
    let file = image(CreateOptions { size, cluster_bits: 9, ..Default::default() });
    let (opening, using) = exercise(&file, size);
    assert!(
        opening < 8 << 20 && using < 64 << 20,
        "512-byte clusters: opening {opening}, using {using} bytes"
    );

    let size = 16 << 40;
    let file = image(CreateOptions { size, cluster_bits: 21, refcount_order: 0, ..Default::default() });
    let (opening, using) = exercise(&file, size);
    assert!(opening < 8 << 20 && using < 64 << 20, "2 MiB clusters: opening {opening}, using {using} bytes");
}

fn named(i: u32) -> SnapshotName {
    SnapshotName::Name(format!("s{i}"))
}

#[test]
fn a_thousand_snapshots_of_a_huge_disk_stay_within_their_memory() {
    let size = 64 << 40;
    let file = image(CreateOptions { size, ..Default::default() });
    let options = OpenOptions { access: Access::ReadWrite, ..Default::default() };
    let node = run(Qcow2::open(file.clone(), None, options)).expect("a valid image");
    let mut rng = Rng(9);
    let (places, using) = peak_of(|| {
        let mut places = Vec::new();
        for i in 0..1000u32 {
            if i % 10 == 0 {
                let offset = rng.below(size / 65536) * 65536;
                write(&*node, offset, &[(i / 10) as u8 + 1; 512]);
                places.push(offset);
            }
            let new = NewSnapshot { name: format!("s{i}"), ..Default::default() };
            run(node.change_snapshots(SnapshotChange::Create(new))).expect("made");
        }
        for i in (0..1000).filter(|i| i % 20 == 1) {
            run(node.change_snapshots(SnapshotChange::Delete(named(i)))).expect("deleted");
        }
        run(node.change_snapshots(SnapshotChange::Apply(named(504)))).expect("applied");
        places
    });
    assert!(using < 64 << 20, "using {using} bytes");
    for (number, offset) in places.iter().enumerate() {
        let expected = if number <= 50 { number as u8 + 1 } else { 0 };
        assert_eq!(read(&*node, *offset, 512), [expected; 512], "write {number}");
    }
    let report = run(node.check(Fix::None)).expect("checkable");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.findings);
    assert_eq!(run(node.info()).expect("readable").snapshots.len(), 950);
    run(node.close()).expect("closed");
}
