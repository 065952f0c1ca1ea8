//! What snapshots hold, against what deleting them really frees.

mod support;

use std::sync::Arc;

use cowbell_block::mem::MemNode;
use cowbell_block::{Flags, NewSnapshot, Node, Request, SnapshotChange, SnapshotInfo, SnapshotName};
use cowbell_qcow2::{CreateOptions, Evidence, L2Format, OpenOptions, Qcow2, Sharing};
use support::peak::{Peak, peak_of};
use support::{Rng, create, open, read, run, submit, write, zero};

#[global_allocator]
static ALLOCATOR: Peak = Peak;

const SIZE: u64 = 3 << 20;

fn change(node: &Qcow2, change: SnapshotChange) {
    run(node.change_snapshots(change)).expect("possible");
}

fn make(node: &Qcow2, name: &str) {
    change(node, SnapshotChange::Create(NewSnapshot { name: name.into(), ..NewSnapshot::default() }));
}

fn id(snapshot: &SnapshotInfo) -> SnapshotName {
    SnapshotName::Id(snapshot.id.clone())
}

fn snapshots(node: &Qcow2) -> Vec<SnapshotInfo> {
    run(node.info()).expect("readable").snapshots
}

fn sharing(node: &Qcow2) -> Sharing {
    let sharing = run(node.sharing()).expect("sound");
    assert_eq!((sharing.unattributed, sharing.broken), (0, 0));
    sharing
}

fn copy_of(file: &MemNode) -> Arc<MemNode> {
    Arc::new(MemNode::with_content(&file.content()))
}

/// Clusters of a closed image with a refcount above 0, without those of the snapshot table.
fn used(file: &MemNode, cluster_bits: u32) -> u64 {
    let bytes = file.content();
    let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let (table, clusters) = (word(48) as usize, u32::from_be_bytes(bytes[56..60].try_into().expect("four")));
    let mut count = 0;
    for entry in 0..(u64::from(clusters) << cluster_bits) as usize / 8 {
        let block = word(table + entry * 8) as usize;
        if block > 0 {
            let refcounts = bytes[block..block + (1 << cluster_bits)].chunks_exact(2);
            count += refcounts.filter(|refcount| **refcount != [0, 0]).count() as u64;
        }
    }
    let node = open(&copy_of(file), None, OpenOptions::default());
    let row = |s: &SnapshotInfo| (40 + 24 + s.id.len() + s.name.len()).next_multiple_of(8) as u64;
    let table: u64 = snapshots(&node).iter().map(row).sum();
    count - table.div_ceil(1 << cluster_bits)
}

fn random_change(node: &Qcow2, rng: &mut Rng, cluster: u64, compresses: bool, round: u32) {
    let offset = rng.below(SIZE / 512) * 512;
    let len = (1 + rng.below(6 * cluster)).min(SIZE - offset);
    let byte = rng.below(255) as u8 + 1;
    let list = snapshots(node);
    match rng.below(12) {
        0..=4 => write(node, offset, &vec![byte; len as usize]),
        5 if compresses => {
            let at = offset / cluster * cluster;
            let data: Vec<u8> = (0..cluster.min(SIZE - at)).map(|i| (i % 251) as u8 ^ byte).collect();
            let request = Request::write(at, cowbell_block::Buf::copy_of(&data));
            // Refused where the cluster has data of its own.
            let _ = run(node.submit(request.with_flags(Flags::COMPRESSED)).finish());
        }
        6 => zero(node, offset, len, Flags::MAY_UNMAP),
        7 => submit(node, Request::discard(offset, len)),
        8 | 9 => make(node, &format!("s{round}")),
        10 if !list.is_empty() => {
            change(node, SnapshotChange::Apply(id(&list[rng.below(list.len() as u64) as usize])));
        }
        11 if list.len() > 4 => {
            change(node, SnapshotChange::Delete(id(&list[rng.below(list.len() as u64) as usize])));
        }
        _ => {}
    }
}

/// Each snapshot is deleted from a copy; each is made the only content of another.
fn compare_with_deleting(file: &MemNode, options: &CreateOptions) {
    let size = 1u64 << options.cluster_bits;
    let node = open(&copy_of(file), None, OpenOptions::default());
    let (told, list) = (sharing(&node), snapshots(&node));
    let before = used(file, options.cluster_bits);
    for (holder, snapshot) in told.snapshots.iter().zip(&list) {
        let less = copy_of(file);
        let node = open(&less, None, OpenOptions::default());
        change(&node, SnapshotChange::Delete(id(snapshot)));
        run(node.close()).expect("closed");
        let freed = (before - used(&less, options.cluster_bits)) * size;
        assert_eq!(holder.exclusive, freed, "snapshot {}: {options:?}", snapshot.name);

        let node = open(&copy_of(file), None, OpenOptions::default());
        change(&node, SnapshotChange::Apply(id(snapshot)));
        list.iter().for_each(|other| change(&node, SnapshotChange::Delete(id(other))));
        let alone = sharing(&node).disk;
        assert_eq!((alone.exclusive, alone.shared), (holder.exclusive + holder.shared, 0), "{options:?}");
    }
}

#[test]
fn exclusive_is_what_a_deletion_frees() {
    let standard = CreateOptions { size: SIZE, ..CreateOptions::default() };
    for (options, compresses) in [
        (standard.clone(), true),
        (CreateOptions { cluster_bits: 9, ..standard.clone() }, true),
        (CreateOptions { cluster_bits: 12, ..standard.clone() }, true),
        (CreateOptions { cluster_bits: 12, version: 2, ..standard.clone() }, false),
        (CreateOptions { cluster_bits: 14, l2_format: L2Format::Extended, ..standard }, true),
    ] {
        for seed in 1..4 {
            let mut rng = Rng(seed * 77 + 5);
            let file = create(&options);
            let node = open(&file, None, OpenOptions::default());
            for round in 0..60 {
                random_change(&node, &mut rng, 1 << options.cluster_bits, compresses, round);
            }
            run(node.close()).expect("closed");
            compare_with_deleting(&file, &options);
        }
    }
}

#[test]
fn an_open_image_is_told_as_it_is() {
    let options = CreateOptions { size: SIZE, cluster_bits: 12, ..CreateOptions::default() };
    let file = create(&options);
    let node = open(&file, None, OpenOptions::default());
    write(&*node, 0, &[1; 40960]);
    make(&node, "a");
    // Not in the file yet.
    write(&*node, 0, &[2; 4096]);
    let now = sharing(&node);
    run(node.close()).expect("closed");
    let later = open(&file, None, OpenOptions::default());
    assert_eq!(sharing(&later), now);
    // Its cluster, its tables; nine clusters are shared.
    assert_eq!((now.disk.exclusive, now.disk.shared), (3 * 4096, 9 * 4096));
    assert_eq!(now.disk, cowbell_qcow2::Holder { parent: now.disk.parent, ..now.snapshots[0] });
}

#[test]
fn branches_are_found() {
    let options = CreateOptions { size: SIZE, cluster_bits: 12, ..CreateOptions::default() };
    let node = open(&create(&options), None, OpenOptions::default());
    let apply = |name: &str| change(&node, SnapshotChange::Apply(SnapshotName::Name(name.into())));
    let scribble = |at: u64| write(&*node, at * 4096, &[at as u8; 3 * 4096]);
    (0..20).for_each(|i| scribble(i * 3));
    make(&node, "root");
    scribble(3);
    make(&node, "left");
    scribble(9);
    make(&node, "left-left");
    apply("root");
    scribble(30);
    make(&node, "right");
    apply("left");
    scribble(40);
    let told = sharing(&node);
    let parents = told.snapshots.iter().chain([&told.disk]).map(|holder| holder.parent);
    let parents: Vec<_> = parents.map(|p| p.map(|p| (p.snapshot, p.evidence))).collect();
    let of = |snapshot| Some((snapshot, Evidence::Clusters));
    assert_eq!(parents, [None, of(0), of(1), of(0), of(1)]);
}

#[test]
fn a_thousand_snapshots_of_a_huge_disk() {
    let size = 64 << 40;
    let options = CreateOptions { size, ..CreateOptions::default() };
    let node = open(&create(&options), None, OpenOptions::default());
    let mut rng = Rng(9);
    for i in 0..1000u32 {
        if i % 10 == 0 {
            write(&*node, rng.below(size / 65536) * 65536, &[(i / 10) as u8 + 1; 512]);
        }
        make(&node, &format!("s{i}"));
    }
    let (told, peak) = peak_of(|| sharing(&node));
    assert!(peak < 64 << 20, "{peak} bytes");
    let l1 = 16 * 65536;
    // The first has one cluster and its L2 table; each tenth one more of both.
    for (i, holder) in told.snapshots.iter().enumerate() {
        assert_eq!((holder.exclusive, holder.shared), (l1, (i as u64 / 10 + 1) * 2 * 65536), "{i}");
    }
    assert_eq!(told.disk.shared, 100 * 2 * 65536);
    let parents = told.snapshots.iter().map(|holder| holder.parent.map(|p| p.snapshot));
    assert!(parents.eq((0..1000u32).map(|i| i.checked_sub(1))));
    assert!(read(&*node, 0, 512) == [0; 512]);
}

#[test]
fn tables_upon_each_other_are_refused() {
    let options = CreateOptions { size: SIZE, cluster_bits: 12, ..CreateOptions::default() };
    let file = create(&options);
    let node = open(&file, None, OpenOptions::default());
    make(&node, "a");
    run(node.close()).expect("closed");
    let mut content = file.content();
    let l1: [u8; 8] = content[40..48].try_into().expect("eight");
    let table = u64::from_be_bytes(content[64..72].try_into().expect("eight")) as usize;
    content[table..table + 8].copy_from_slice(&l1);
    let node = open(&Arc::new(MemNode::with_content(&content)), None, OpenOptions::default());
    let error = run(node.sharing()).expect_err("upon each other");
    assert_eq!(error.kind(), cowbell_block::ErrorKind::Corrupt);
}
