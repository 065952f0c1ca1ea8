//! Snapshots against a model: every snapshot and the disk read as they should, and the independent checker finds
//! nothing, over the formats' variants.

mod support;

use cowbell_block::mem::MemNode;
use cowbell_block::{Flags, NewSnapshot, Node, Preallocation, Request, SnapshotChange, SnapshotName};
use cowbell_qcow2::{CreateOptions, Discards, L2Format, OpenOptions, Qcow2};
use support::{Rng, assert_clean, create, open, read, run, submit, write, zero};

const SIZE: u64 = 3 << 20;

fn make(node: &Qcow2, name: &str) {
    let new = NewSnapshot { name: name.into(), ..NewSnapshot::default() };
    run(node.change_snapshots(SnapshotChange::Create(new))).expect("made");
}

fn named(name: &str) -> SnapshotName {
    SnapshotName::Name(name.into())
}

/// A disk and its snapshots as they should be.
#[derive(Clone)]
struct Model {
    disk: Vec<u8>,
    snapshots: Vec<(String, Vec<u8>)>,
    next: u32,
}

impl Model {
    fn new(size: u64) -> Self {
        Self { disk: vec![0; size as usize], snapshots: Vec::new(), next: 0 }
    }

    /// One random operation on snapshots.
    fn change(&mut self, node: &Qcow2, rng: &mut Rng) {
        let some = rng.below(self.snapshots.len().max(1) as u64) as usize;
        match rng.below(5) {
            0 | 1 => {
                let name = format!("s{}", self.next);
                self.next += 1;
                make(node, &name);
                self.snapshots.push((name, self.disk.clone()));
            }
            2 if !self.snapshots.is_empty() => {
                let (name, content) = self.snapshots.remove(some);
                run(node.change_snapshots(SnapshotChange::Delete(named(&name)))).expect("deleted");
                drop(content);
            }
            3 if !self.snapshots.is_empty() => {
                let (name, content) = &self.snapshots[some];
                run(node.change_snapshots(SnapshotChange::Apply(named(name)))).expect("applied");
                self.disk.clone_from(content);
            }
            4 if !self.snapshots.is_empty() => {
                let name = format!("r{}", self.next);
                self.next += 1;
                let which = named(&self.snapshots[some].0);
                run(node.change_snapshots(SnapshotChange::Rename(which, name.clone()))).expect("renamed");
                self.snapshots[some].0 = name;
            }
            _ => {}
        }
    }

    /// Everything reads as it should.
    fn compare(&self, node: &Qcow2) {
        assert_eq!(node.len(), self.disk.len() as u64);
        assert!(read(node, 0, self.disk.len()) == self.disk, "the disk differs");
        let listed = run(node.info()).expect("readable").snapshots;
        assert_eq!(listed.len(), self.snapshots.len());
        for (info, (name, content)) in listed.iter().zip(&self.snapshots) {
            assert_eq!((&info.name, info.disk_size), (name, content.len() as u64));
            let view = run(node.at_snapshot(SnapshotName::Id(info.id.clone()))).expect("there");
            assert!(view.is_read_only());
            assert!(read(&*view, 0, content.len()) == *content, "snapshot {name} differs");
            run(view.close()).expect("closed");
        }
    }
}

fn random_request(node: &Qcow2, disk: &mut [u8], rng: &mut Rng) {
    let size = disk.len() as u64;
    let offset = rng.below(size / 512) * 512 + rng.below(2) * rng.below(512);
    let magnitude = 4 + rng.below(15);
    let len = (1 + rng.below(1 << magnitude)).min(size - offset);
    let range = offset as usize..(offset + len) as usize;
    match rng.below(8) {
        0..=4 => {
            let byte = rng.below(255) as u8 + 1;
            disk[range].fill(byte);
            write(node, offset, &vec![byte; len as usize]);
        }
        5 => {
            disk[range].fill(0);
            let flags = if rng.below(2) == 0 { Flags::MAY_UNMAP } else { Flags::empty() };
            zero(node, offset, len, flags);
        }
        6 => {
            submit(node, Request::discard(offset, len));
            disk[range.clone()].copy_from_slice(&read(node, offset, len as usize));
        }
        _ => submit(node, Request::flush()),
    }
}

fn compare_with_model(create_options: CreateOptions, open_options: OpenOptions, seed: u64) {
    let mut rng = Rng(seed * 2 + 1);
    let mut model = Model::new(SIZE);
    let file = create(&CreateOptions { size: SIZE, ..create_options });
    for _ in 0..3 {
        let node = open(&file, None, open_options.clone());
        for _ in 0..40 {
            if rng.below(5) == 0 {
                model.change(&node, &mut rng);
                assert!(read(&*node, 0, model.disk.len()) == model.disk, "the disk differs");
            } else {
                random_request(&node, &mut model.disk, &mut rng);
            }
        }
        model.compare(&node);
        assert!(node.is_quiet());
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
    let node = open(&file, None, open_options);
    model.compare(&node);
    let report = run(node.check(cowbell_block::Fix::None)).expect("checkable");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.findings);
}

#[test]
fn random_operations_over_cluster_sizes_and_refcount_widths() {
    for (i, cluster_bits) in [9, 12, 16, 21].into_iter().enumerate() {
        for refcount_order in [3, 4, 5, 6] {
            let options = CreateOptions { cluster_bits, refcount_order, ..Default::default() };
            let seed = (i as u64) << 8 | u64::from(refcount_order);
            compare_with_model(options, OpenOptions::default(), seed);
        }
    }
}

#[test]
fn random_operations_in_windows_with_tiny_caches_and_unmap() {
    for seed in 0..6 {
        let tiny = OpenOptions {
            l2_cache_bytes: 1024,
            refcount_cache_bytes: 1024,
            slice_bytes: 512,
            work_bytes: 1,
            discards: Discards::all() - Discards::NO_UNREF,
            lazy_refcounts: Some(seed % 2 == 0),
            ..Default::default()
        };
        let options = CreateOptions { cluster_bits: 9, ..Default::default() };
        compare_with_model(options, tiny, 1000 + seed);
    }
}

#[test]
fn version_2_images_have_snapshots_as_well() {
    for seed in 0..3 {
        let options = CreateOptions { version: 2, cluster_bits: 12, ..Default::default() };
        compare_with_model(options, OpenOptions::default(), 2000 + seed);
    }
}

#[test]
fn extended_entries_are_shared_and_copied_like_standard_ones() {
    for seed in 0..4 {
        let options = CreateOptions { cluster_bits: 14, l2_format: L2Format::Extended, ..Default::default() };
        compare_with_model(options, OpenOptions::default(), 3000 + seed);
    }
}

fn content(file: &MemNode) -> Vec<u8> {
    file.content()
}

#[test]
fn refcounts_that_cannot_count_a_snapshot_refuse_it_and_nothing_changes() {
    for (refcount_order, cluster_bits, fit) in [(0, 21, 0), (0, 16, 0), (1, 16, 2), (2, 12, 14)] {
        let file = create(&CreateOptions { size: SIZE, cluster_bits, refcount_order, ..Default::default() });
        let node = open(&file, None, OpenOptions::default());
        write(&*node, 0, &[7; 70_000]);
        for i in 0..fit {
            make(&node, &format!("s{i}"));
        }
        submit(&*node, Request::flush());
        let new = NewSnapshot { name: "too many".into(), ..Default::default() };
        let error = run(node.change_snapshots(SnapshotChange::Create(new))).expect_err("too many");
        assert_eq!(error.kind(), cowbell_block::ErrorKind::InvalidInput, "{error}");
        assert_eq!(read(&*node, 0, 70_000), [7; 70_000]);
        write(&*node, 1 << 20, &[8; 512]);
        run(node.close()).expect("closed");
        assert_clean(&file);
        let node = open(&file, None, OpenOptions::default());
        assert_eq!(run(node.info()).expect("readable").snapshots.len(), fit);
        assert_eq!(read(&*node, 1 << 20, 512), [8; 512]);
    }
}

#[test]
fn an_empty_disk_has_snapshots_with_any_refcount_width() {
    let file = create(&CreateOptions { size: SIZE, refcount_order: 0, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    make(&node, "s");
    run(node.change_snapshots(SnapshotChange::Apply(named("s")))).expect("applied");
    run(node.change_snapshots(SnapshotChange::Delete(named("s")))).expect("deleted");
    run(node.close()).expect("closed");
    assert_clean(&file);
}

#[test]
fn applying_a_snapshot_brings_its_length_back() {
    for cluster_bits in [9, 16] {
        let file = create(&CreateOptions { size: SIZE, cluster_bits, ..Default::default() });
        let node = open(&file, None, OpenOptions::default());
        write(&*node, SIZE - 512, &[1; 512]);
        make(&node, "small");
        submit(&*node, Request::truncate(40 << 20, Preallocation::Off));
        write(&*node, (40 << 20) - 512, &[2; 512]);
        make(&node, "large");
        run(node.change_snapshots(SnapshotChange::Apply(named("small")))).expect("applied");
        assert_eq!((node.len(), read(&*node, SIZE - 512, 512)), (SIZE, vec![1; 512]));
        run(node.change_snapshots(SnapshotChange::Apply(named("large")))).expect("applied");
        assert_eq!((node.len(), read(&*node, (40 << 20) - 512, 512)), (40 << 20, vec![2; 512]));
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
}

#[test]
fn a_snapshot_that_is_read_cannot_be_deleted() {
    let file = create(&CreateOptions { size: SIZE, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    make(&node, "s");
    let view = run(node.at_snapshot(named("s"))).expect("there");
    let delete = || run(node.change_snapshots(SnapshotChange::Delete(named("s"))));
    assert_eq!(delete().expect_err("in use").kind(), cowbell_block::ErrorKind::Busy);
    run(view.close()).expect("closed");
    drop(view);
    delete().expect("deleted");
    let gone = run(node.at_snapshot(named("s"))).err().expect("gone");
    assert_eq!(gone.kind(), cowbell_block::ErrorKind::NotFound);
}

#[test]
fn what_a_snapshot_says_about_itself_is_kept() {
    let file = create(&CreateOptions { size: SIZE, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    let new = NewSnapshot {
        name: "n\u{e4}me".into(),
        date_sec: 5,
        date_nsec: 6,
        vm_clock_nsec: 7,
        icount: Some(8),
        vm_state_size: 0,
    };
    run(node.change_snapshots(SnapshotChange::Create(new.clone()))).expect("made");
    make(&node, "other");
    run(node.change_snapshots(SnapshotChange::Delete(named("other")))).expect("deleted");
    make(&node, "third");
    let listed = run(node.info()).expect("readable").snapshots;
    let ids: Vec<&str> = listed.iter().map(|s| s.id.as_str()).collect();
    assert_eq!(ids, ["1", "2"], "the next id follows the highest");
    let first = &listed[0];
    assert_eq!((&first.name, first.date_sec, first.date_nsec), (&new.name, 5, 6));
    assert_eq!((first.vm_clock_nsec, first.icount, listed[1].icount), (7, Some(8), None));
    assert!(content(&file).len() > 3 << 16);
}
