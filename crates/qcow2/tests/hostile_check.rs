//! A check costs what the file has, not what it claims: reads are counted, memory is measured, time is not asked.

mod support;

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowbell_block::mem::MemNode;
use cowbell_block::{
    Access, BoxFuture, Buf, CheckReport, Fix, ImageInfo, Node, Op, Operation, Request, Result,
};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};
use support::peak::{Peak, peak_of};
use support::{create, read, run};

#[global_allocator]
static ALLOCATOR: Peak = Peak;

/// Counts what is read of a file, and how often.
struct Counted {
    file: Arc<MemNode>,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl Node for Counted {
    fn submit(&self, request: Request) -> Op {
        if matches!(request.op, Operation::Read) {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(request.bufs.len() as u64, Ordering::Relaxed);
        }
        self.file.submit(request)
    }
    fn driver(&self) -> &'static str {
        "counted"
    }
    fn len(&self) -> u64 {
        self.file.len()
    }
    fn filename(&self) -> String {
        self.file.filename()
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

/// What a check of a file took.
struct Cost {
    report: CheckReport,
    reads: u64,
    bytes: u64,
    peak: usize,
}

fn cost_of(file: &Arc<MemNode>, fix: Fix) -> Cost {
    let counted =
        Arc::new(Counted { file: file.clone(), reads: AtomicU64::new(0), bytes: AtomicU64::new(0) });
    let access = if fix == Fix::None { Access::ReadOnly } else { Access::ReadWrite };
    let options = OpenOptions { access, skip_repair: true, ..Default::default() };
    let (report, peak) = peak_of(|| {
        let node = run(Qcow2::open(counted.clone(), None, options)).expect("opens for a check");
        run(node.check(fix)).expect("can be checked")
    });
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    Cost { report, reads: count(&counted.reads), bytes: count(&counted.bytes), peak }
}

fn word(file: &MemNode, offset: u64) -> u64 {
    u64::from_be_bytes(read(file, offset, 8).try_into().expect("eight bytes"))
}

fn set(file: &MemNode, offset: u64, bytes: &[u8]) {
    run(file.submit(Request::write(offset, Buf::copy_of(bytes))).finish()).into_bufs().expect("written");
}

const MIB: usize = 1 << 20;

/// One after the other: memory is measured for the whole process.
#[test]
fn a_check_costs_what_the_file_has() {
    many_entries_name_one_table();
    a_long_file_has_nothing();
    one_bit_refcounts_are_all_wrong();
}

/// 65,536 L1 entries name one table, whose 8,192 entries name one cluster: half a milliard references in 0.8 MB.
fn many_entries_name_one_table() {
    let file = create(&CreateOptions { size: 65_536 << 29, ..Default::default() });
    let table = file.len().next_multiple_of(1 << 16);
    set(&file, word(&file, 40), &table.to_be_bytes().repeat(65_536));
    set(&file, table, &(table + (1 << 16)).to_be_bytes().repeat(8_192));
    set(&file, table + (2 << 16) - 8, &[0; 8]);
    let len = file.len();
    assert!(len < 1 << 20, "{len}");
    let cost = cost_of(&file, Fix::None);
    assert!(cost.report.corruptions > 0);
    assert!(cost.reads < 64 && cost.bytes < 4 * len, "{} reads of {} bytes", cost.reads, cost.bytes);
    assert!(cost.peak < 8 * MIB, "{} bytes", cost.peak);
}

/// 512 GiB with clusters of 512 bytes, of which a few kilobytes are there.
fn a_long_file_has_nothing() {
    let file = create(&CreateOptions { size: 64 << 20, cluster_bits: 9, ..Default::default() });
    let len = file.len();
    set(&file, (512u64 << 30) - 1, &[0]);
    let cost = cost_of(&file, Fix::None);
    assert_eq!((cost.report.corruptions, cost.report.leaks), (0, 0));
    assert!(
        cost.reads < 64 && cost.bytes < 2 * MIB as u64 + 4 * len,
        "{} reads of {}",
        cost.reads,
        cost.bytes
    );
    assert!(cost.peak < 8 * MIB, "{} bytes", cost.peak);
}

/// Every second of 16 million refcounts is 1, and nobody refers to any of the clusters.
fn one_bit_refcounts_are_all_wrong() {
    let options = CreateOptions { size: 1 << 20, cluster_bits: 21, refcount_order: 0, ..Default::default() };
    let file = create(&options);
    let block = word(&file, word(&file, 48));
    set(&file, block + 8, &vec![0x55; (2 << 20) - 8]);
    let leaks = (2 << 20) * 8 / 2 - 32;
    for fix in [Fix::None, Fix::Leaks] {
        let cost = cost_of(&file, fix);
        let counted = if fix == Fix::None { cost.report.leaks } else { cost.report.leaks_fixed };
        assert_eq!((counted, cost.report.corruptions), (leaks, 0));
        let told = cost.report.findings.len() as u64 + cost.report.findings_omitted;
        assert_eq!(told, leaks * if fix == Fix::None { 1 } else { 2 });
        assert!(cost.peak < 64 * MIB, "{} bytes", cost.peak);
    }
    assert_eq!(cost_of(&file, Fix::None).report.leaks, 0);
}
