//! An overlay that was emptied reads as its backing file, has no storage of its own, and goes on as before; and a cut
//! at any write on the way leaves each range as it was or empty, and no error.

mod support;

use std::any::Any;
use std::sync::Arc;

use cowbell_block::mem::MemNode;
use cowbell_block::{
    BoxFuture, Flags, ImageInfo, NewSnapshot, Node, Op, Operation, Request, Result, SnapshotChange,
    SnapshotName,
};
use cowbell_qcow2::{CreateOptions, L2Format, OpenOptions, Qcow2};
use parking_lot::Mutex;
use support::{Rng, assert_clean, create, open, read, run, write, zero};

const SIZE: u64 = 4 << 20;

fn base() -> (Arc<dyn Node>, Vec<u8>) {
    let content: Vec<u8> = (0..SIZE).map(|i| (i / 512) as u8 ^ 0x5a).collect();
    (Arc::new(MemNode::with_content(&content)), content)
}

/// Data in places that fill several tables, zeroes, and gaps.
fn fill(node: &Qcow2, cluster_bits: u32, seed: u64) {
    let mut rng = Rng(seed);
    for _ in 0..60 {
        let offset = rng.below(SIZE - (128 << 10)) & !511;
        let len = (1 + rng.below(4 << cluster_bits.min(15))) as usize;
        match rng.below(4) {
            0 => zero(node, offset, len as u64, Flags::MAY_UNMAP),
            _ => write(node, offset, &vec![rng.below(255) as u8 + 1; len]),
        }
    }
}

fn variants() -> Vec<CreateOptions> {
    let standard = CreateOptions { size: SIZE, ..CreateOptions::default() };
    vec![
        standard.clone(),
        CreateOptions { cluster_bits: 9, ..standard.clone() },
        CreateOptions { cluster_bits: 9, refcount_order: 6, ..standard.clone() },
        CreateOptions { cluster_bits: 21, ..standard.clone() },
        CreateOptions { version: 2, cluster_bits: 12, ..standard.clone() },
        CreateOptions { lazy_refcounts: true, cluster_bits: 12, ..standard.clone() },
        CreateOptions { cluster_bits: 14, l2_format: L2Format::Extended, ..standard },
    ]
}

#[test]
fn an_emptied_overlay_is_as_new() {
    for options in variants() {
        let (backing, content) = base();
        let file = create(&options);
        let fresh = file.content().len();
        let node = open(&file, Some(backing.clone()), OpenOptions::default());
        for round in 1..4 {
            fill(&node, options.cluster_bits, round);
            assert!(read(&*node, 0, SIZE as usize) != content);
            run(node.make_empty()).expect("emptied");
            assert!(read(&*node, 0, SIZE as usize) == content, "{options:?}");
            assert_clean(&file);
            let left = file.content().len();
            assert!(
                left <= fresh + (8 << options.cluster_bits),
                "{left} bytes, {fresh} when new: {options:?}"
            );
        }
        write(&*node, 12345, &[7; 54321]);
        run(node.close()).expect("closed");
        assert_clean(&file);
        let again = open(&file, Some(backing), OpenOptions::default());
        assert_eq!(read(&*again, 12345, 54321), [7; 54321]);
        assert_eq!(read(&*again, 0, 12345), content[..12345]);
    }
}

#[test]
fn snapshots_keep_what_they_hold() {
    for options in variants().into_iter().filter(|options| options.version == 3) {
        let (backing, content) = base();
        let file = create(&options);
        let node = open(&file, Some(backing), OpenOptions::default());
        fill(&node, options.cluster_bits, 1);
        let held = read(&*node, 0, SIZE as usize);
        let new = NewSnapshot { name: "s".into(), ..NewSnapshot::default() };
        run(node.change_snapshots(SnapshotChange::Create(new))).expect("made");
        fill(&node, options.cluster_bits, 2);
        run(node.make_empty()).expect("emptied");
        assert!(read(&*node, 0, SIZE as usize) == content, "{options:?}");
        let view = run(node.at_snapshot(SnapshotName::Name("s".into()))).expect("there");
        assert!(read(&*view, 0, SIZE as usize) == held, "{options:?}");
        run(view.close()).expect("closed");
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
}

/// A read that began before goes on with what it planned.
#[test]
fn a_plan_that_runs_keeps_its_clusters() {
    let (backing, content) = base();
    let file = create(&CreateOptions { size: SIZE, ..CreateOptions::default() });
    let node = open(&file, Some(backing), OpenOptions::default());
    fill(&node, 16, 3);
    let view = node.clone();
    run(async move {
        let reading = view.submit(Request::read(0, cowbell_block::Buf::zeroed(SIZE as usize)));
        view.make_empty().await.expect("emptied");
        reading.finish().await.into_bufs().expect("readable");
    });
    assert!(read(&*node, 0, SIZE as usize) == content);
    run(node.close()).expect("closed");
    assert_clean(&file);
}

/// A file that notes its writes.
struct Noting {
    mem: Arc<MemNode>,
    writes: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Node for Noting {
    fn submit(&self, request: Request) -> Op {
        if matches!(request.op, Operation::Write) {
            self.writes.lock().push((request.offset, request.bufs.to_contiguous()[..].to_vec()));
        }
        self.mem.submit(request)
    }
    fn driver(&self) -> &'static str {
        "noting"
    }
    fn len(&self) -> u64 {
        self.mem.len()
    }
    fn filename(&self) -> String {
        "noting".to_owned()
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

/// After each write, with the sectors of the last one there in part only.
#[test]
fn a_cut_loses_nothing_that_the_backing_file_has() {
    for options in variants() {
        let (backing, content) = base();
        let file = create(&options);
        let node = open(&file, Some(backing.clone()), OpenOptions::default());
        // What was committed: the overlay's content is the backing file's.
        for at in (0..SIZE).step_by(96 << 10) {
            let len = (70 << 10).min(SIZE - at) as usize;
            write(&*node, at, &content[at as usize..at as usize + len]);
        }
        run(node.close()).expect("closed");
        let before = file.content();
        let noting =
            Arc::new(Noting { mem: Arc::new(MemNode::with_content(&before)), writes: Mutex::default() });
        let access = OpenOptions { access: cowbell_block::Access::ReadWrite, ..OpenOptions::default() };
        let node = run(Qcow2::open(noting.clone(), Some(backing.clone()), access)).expect("opens");
        run(node.make_empty()).expect("emptied");
        let writes = std::mem::take(&mut *noting.writes.lock());
        assert!(writes.len() >= 2, "{options:?}");
        let mut state = before;
        for (offset, data) in writes {
            let cuts = [data.len() / 2 / 512 * 512, data.len()];
            for cut in cuts {
                let end = offset as usize + cut;
                if state.len() < end {
                    state.resize(end, 0);
                }
                state[offset as usize..end].copy_from_slice(&data[..cut]);
                let limits = cowbell_checker::Limits::default();
                let report = cowbell_checker::check(&state, limits).expect("checkable");
                assert_ne!(report.verdict(), cowbell_checker::Verdict::Corrupt, "{report} {options:?}");
                let cut = Arc::new(MemNode::with_content(&state));
                let node =
                    run(Qcow2::open(cut, Some(backing.clone()), OpenOptions::default())).expect("opens");
                assert!(read(&*node, 0, SIZE as usize) == content, "{options:?}");
            }
        }
    }
}
