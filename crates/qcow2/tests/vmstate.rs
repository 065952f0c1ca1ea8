//! The VM state area: beside the disk, kept by snapshots, never mixed up with a backing file.

mod support;

use std::sync::Arc;

use cowbell_block::mem::MemNode;
use cowbell_block::{
    Buf, NewSnapshot, Node, Operation, Preallocation, Request, SnapshotChange, SnapshotName,
};
use cowbell_qcow2::{CreateOptions, OpenOptions};
use support::{assert_clean, create, open, read, run, submit, write};

const SIZE: u64 = 1 << 20;

fn save(node: &dyn Node, offset: u64, data: &[u8]) {
    let mut request = Request::write(offset, Buf::copy_of(data));
    request.op = Operation::VmStateWrite;
    submit(node, request);
}

fn load(node: &dyn Node, offset: u64, len: usize) -> Vec<u8> {
    let mut request = Request::read(offset, Buf::zeroed(len));
    request.op = Operation::VmStateRead;
    run(node.submit(request).finish()).into_bufs().expect("readable").to_contiguous().to_vec()
}

fn change(node: &dyn Node, change: SnapshotChange) {
    run(node.change_snapshots(change)).expect("possible");
}

fn options(cluster_bits: u32) -> CreateOptions {
    CreateOptions { size: SIZE, cluster_bits, ..Default::default() }
}

#[test]
fn it_is_read_as_it_was_written_and_leaves_the_disk_alone() {
    for cluster_bits in [9, 12, 16] {
        let file = create(&options(cluster_bits));
        let node = open(&file, None, OpenOptions::default());
        write(&*node, SIZE - 512, &[1; 512]);
        save(&*node, 0, &[7; 200_000]);
        save(&*node, 512, &[8; 1024]);
        save(&*node, 100 << 20, &[9; 512]);
        let mut expected = vec![7; 200_000];
        expected[512..1536].fill(8);
        run(node.close()).expect("closed");
        assert_clean(&file);
        let node = open(&file, None, OpenOptions::default());
        assert!(load(&*node, 0, 200_000) == expected);
        assert_eq!((load(&*node, 100 << 20, 512), load(&*node, 50 << 20, 512)), (vec![9; 512], vec![0; 512]));
        assert_eq!((node.len(), read(&*node, SIZE - 512, 512)), (SIZE, vec![1; 512]));
    }
}

#[test]
fn a_longer_backing_file_does_not_show() {
    let backing = Arc::new(MemNode::with_content(&vec![5; 4 << 20]));
    let file = create(&CreateOptions { backing_file: Some("base".into()), ..options(9) });
    let node = open(&file, Some(backing), OpenOptions::default());
    assert_eq!(read(&*node, 0, 512), [5; 512]);
    assert_eq!(load(&*node, 0, 2 << 20), vec![0; 2 << 20]);
    save(&*node, 100, &[1; 10]);
    let mut expected = vec![0; 1024];
    expected[100..110].fill(1);
    assert_eq!(load(&*node, 0, 1024), expected);
}

#[test]
fn a_snapshot_with_vm_state_takes_it_from_the_disk_and_brings_it_back() {
    for vm_state_size in [0, 70_000] {
        let file = create(&options(16));
        let node = open(&file, None, OpenOptions::default());
        write(&*node, 0, &[1; 512]);
        save(&*node, 0, &[7; 70_000]);
        let new = NewSnapshot { name: "s".into(), vm_state_size, ..Default::default() };
        change(&*node, SnapshotChange::Create(new));
        let left = if vm_state_size == 0 { 7 } else { 0 };
        assert_eq!(load(&*node, 0, 70_000), vec![left; 70_000]);
        save(&*node, 512, &[9; 512]);
        write(&*node, 0, &[2; 512]);
        change(&*node, SnapshotChange::Apply(SnapshotName::Name("s".into())));
        assert_eq!((load(&*node, 0, 70_000), read(&*node, 0, 512)), (vec![7; 70_000], vec![1; 512]));
        assert_eq!(run(node.info()).expect("readable").snapshots[0].vm_state_size, vm_state_size);
        change(&*node, SnapshotChange::Delete(SnapshotName::Name("s".into())));
        assert_eq!(load(&*node, 0, 70_000), [7; 70_000]);
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
}

#[test]
fn a_change_of_length_takes_it_away() {
    for size in [SIZE / 2, 64 << 20] {
        let file = create(&options(12));
        let node = open(&file, None, OpenOptions::default());
        save(&*node, 0, &[7; 9000]);
        save(&*node, 300 << 20, &[7; 9000]);
        submit(&*node, Request::truncate(size, Preallocation::Off));
        assert!(read(&*node, 0, size as usize).iter().all(|b| *b == 0), "VM state on the disk");
        assert_eq!(load(&*node, 0, 9000), [0; 9000]);
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
}

#[test]
fn what_no_table_can_map_is_refused() {
    let file = create(&options(9));
    let node = open(&file, None, OpenOptions::default());
    for offset in [128 << 30, u64::MAX - 100] {
        let mut request = Request::write(offset, Buf::zeroed(512));
        request.op = Operation::VmStateWrite;
        let error = run(node.submit(request).finish()).result.expect_err("too far");
        assert_eq!(error.kind(), cowbell_block::ErrorKind::TooLarge);
    }
    run(node.close()).expect("closed");
    assert_clean(&file);
}
