//! Images that become something else: the content stays, the checker agrees, and a cut leaves the old image or
//! the new one.

mod support;

use std::sync::Arc;

use cowbell_block::mem::MemNode;
use cowbell_block::{
    Access, Amend, Child, Fix, Flags, NewSnapshot, Node, OptionTree, Request, SnapshotChange, SnapshotName,
};
use cowbell_qcow2::{CreateOptions, L2Format, OpenOptions, Qcow2};
use serde_json::{Value, json};
use support::filmed::Filmed;
use support::{assert_clean, create, open, read, run, submit, write, zero};

const SIZE: u64 = 1 << 20;

fn options(value: Value) -> OptionTree {
    match value {
        Value::Object(tree) => tree,
        _ => panic!("options are objects"),
    }
}

/// An image with data, zeroes with and without storage, and nothing.
fn sample(create_options: CreateOptions) -> (Arc<MemNode>, Vec<u8>) {
    let file = create(&CreateOptions { size: SIZE, ..create_options });
    let node = open(&file, None, OpenOptions::default());
    for i in 0..9 {
        write(&*node, i * 100_000, &vec![i as u8 + 1; 30_000]);
    }
    zero(&*node, 100_000, 70_000, cowbell_block::Flags::empty());
    zero(&*node, 400_000, 70_000, cowbell_block::Flags::MAY_UNMAP);
    let content = read(&*node, 0, SIZE as usize);
    run(node.close()).expect("closed");
    (file, content)
}

fn open_filmed(file: &Arc<MemNode>) -> (Arc<Filmed>, Arc<Qcow2>) {
    let filmed = Arc::new(Filmed::new(file));
    let options = OpenOptions { access: Access::ReadWrite, ..Default::default() };
    let node = run(Qcow2::open(filmed.clone(), None, options)).expect("a valid image");
    (filmed, node)
}

fn header_of(image: &[u8]) -> cowbell_qcow2::Header {
    let child = Child::new(Arc::new(MemNode::with_content(image)));
    run(Qcow2::read_header(&child)).expect("a valid header")
}

/// Changes an image; each state of the file on the way is the old image or the new one.
fn change(file: &Arc<MemNode>, content: &[u8], how: impl FnOnce(&Qcow2)) {
    let before = header_of(&file.content());
    let (filmed, node) = open_filmed(file);
    how(&node);
    run(node.close()).expect("closed");
    let after = header_of(&file.content());
    let frames = filmed.frames();
    for frame in frames.iter() {
        let header = header_of(frame);
        let same = |a: &cowbell_qcow2::Header, b: &cowbell_qcow2::Header| {
            (a.version, a.refcount_order, a.compatible, &a.backing_file, &a.backing_format, &a.extensions)
                == (
                    b.version,
                    b.refcount_order,
                    b.compatible,
                    &b.backing_file,
                    &b.backing_format,
                    &b.extensions,
                )
        };
        assert!(same(&header, &before) || same(&header, &after), "a mixed header");
        let copy = Arc::new(MemNode::with_content(frame));
        let node = open(&copy, None, OpenOptions::default());
        assert!(read(&*node, 0, content.len()) == content, "content is lost on the way");
        let report = run(node.check(Fix::None)).expect("checkable");
        assert_eq!(report.corruptions, 0, "{:?}", report.findings);
    }
    assert_clean(file);
    assert!(!frames.is_empty(), "the change was filmed");
}

#[test]
fn every_refcount_width_becomes_every_other() {
    for cluster_bits in [9, 12, 16] {
        let (file, content) = sample(CreateOptions { cluster_bits, ..Default::default() });
        for bits in [1, 64, 8, 2, 32, 4, 16] {
            change(&file, &content, |node| {
                run(node.amend(options(json!({ "refcount_bits": bits })), Amend::default()))
                    .expect("possible");
                let refused = run(node.submit(Request::read(0, cowbell_block::Buf::zeroed(512))).finish());
                assert!(refused.result.is_err(), "the width in memory is out of date");
            });
            assert_eq!(1 << header_of(&file.content()).refcount_order, bits);
        }
    }
}

#[test]
fn a_refcount_that_does_not_fit_is_told_and_nothing_changes() {
    let (file, _) = sample(CreateOptions { cluster_bits: 12, refcount_order: 4, ..Default::default() });
    // The first data cluster's refcount in the first block, at cluster 2.
    let mut image = file.content();
    image[2 * 4096 + 2 * 6] = 1;
    let damaged = Arc::new(MemNode::with_content(&image));
    let node = open(&damaged, None, OpenOptions::default());
    let error =
        run(node.amend(options(json!({"refcount_bits": 8})), Amend::default())).expect_err("too narrow");
    let text =
        "Cannot decrease refcount entry width to 8 bits: Cluster at offset 0x6000 has a refcount of 257";
    assert_eq!(error.to_string(), text);
    assert!(read(&*node, 0, 512).iter().all(|b| *b == 1), "the image is still in use");
}

#[test]
fn versions_change_both_ways() {
    let (file, content) = sample(CreateOptions { cluster_bits: 14, ..Default::default() });
    change(&file, &content, |node| {
        run(node.amend(options(json!({"compat": "0.10"})), Amend::default())).expect("possible");
    });
    assert_eq!(header_of(&file.content()).version, 2);
    change(&file, &content, |node| {
        let wanted = options(json!({"compat": "1.1", "refcount_bits": 8, "lazy_refcounts": true}));
        run(node.amend(wanted, Amend::default())).expect("possible");
    });
    let header = header_of(&file.content());
    assert_eq!((header.version, header.refcount_order, header.compatible), (3, 3, 1));
}

#[test]
fn what_an_image_does_not_allow_is_refused_in_the_reference_s_words() {
    let refusals = [
        (
            2,
            json!({"refcount_bits": 8}),
            "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
        ),
        (
            2,
            json!({"lazy_refcounts": true}),
            "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)",
        ),
        (
            3,
            json!({"compat": "0.10", "refcount_bits": 8}),
            "Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)",
        ),
        (3, json!({"compat": "7"}), "Unknown compatibility level 7"),
        (3, json!({"refcount_bits": 3}), "Refcount width must be a power of two and may not exceed 64 bits"),
        (3, json!({"data_file": "x"}), "data-file can only be set for images that use an external data file"),
        (3, json!({"data_file_raw": true}), "data-file-raw cannot be set on existing images"),
        (
            3,
            json!({"backing_fmt": "raw"}),
            "Cannot amend the backing file\nYou can use 'qemu-img rebase' instead.",
        ),
    ];
    for (version, wanted, text) in refusals {
        let (file, _) = sample(CreateOptions { version, ..Default::default() });
        let before = file.content();
        let node = open(&file, None, OpenOptions::default());
        let error = run(node.amend(options(wanted), Amend::default())).expect_err(text);
        assert_eq!(error.to_string(), text);
        run(node.close()).expect("closed");
        assert!(file.content() == before, "{text}");
    }
    let extended = CreateOptions { l2_format: L2Format::Extended, ..Default::default() };
    let narrow = CreateOptions { refcount_order: 3, ..Default::default() };
    for (options_of, text) in [
        (extended, "Cannot downgrade an image with incompatible features 0x10 set"),
        (narrow, "compat=0.10 requires refcount_bits=16"),
    ] {
        let (file, _) = sample(options_of);
        let node = open(&file, None, OpenOptions::default());
        let error = run(node.amend(options(json!({"compat": "0.10"})), Amend::default())).expect_err(text);
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn the_backing_file_s_name_changes_in_one_step() {
    for cluster_bits in [9, 10, 12, 16] {
        let (file, content) = sample(CreateOptions { cluster_bits, ..Default::default() });
        let long = "a/".repeat(if cluster_bits > 11 { 500 } else { 20 });
        for (name, format) in
            [(Some("base"), Some("raw")), (Some(&*long), Some("qcow2")), (Some("b"), None), (None, None)]
        {
            let (name, format) = (name.map(str::to_owned), format.map(str::to_owned));
            change(&file, &content, |node| {
                run(node.change_backing(name.clone(), format.clone())).expect("possible");
                submit(node, Request::flush());
            });
            let header = header_of(&file.content());
            assert_eq!((header.backing_file, header.backing_format), (name, format));
        }
    }
}

#[test]
fn a_name_that_does_not_fit_leaves_the_old_one() {
    let file = create(&CreateOptions { cluster_bits: 9, size: SIZE, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    let before = file.content();
    assert!(run(node.change_backing(Some("n".repeat(500)), None)).is_err());
    assert!(run(node.change_backing(Some("n".repeat(1024)), None)).is_err());
    assert!(file.content() == before);
    write(&*node, 0, &[1; 512]);
    run(node.close()).expect("closed");
    assert_clean(&file);
}

/// Snapshots with data, with zeroes of both kinds, and with less than the disk has; over a backing file if there is one.
fn with_snapshots(create_options: CreateOptions, backing: Option<Arc<dyn Node>>) -> Arc<MemNode> {
    let file = create(&CreateOptions { size: SIZE, ..create_options });
    let node = open(&file, backing, OpenOptions::default());
    let (keep, unmap) = (Flags::empty(), Flags::MAY_UNMAP);
    write(&*node, 0, &[1; 300_000]);
    zero(&*node, 50_000, 100_000, keep);
    zero(&*node, 200_000, 50_000, unmap);
    snapshot(&node, "a");
    zero(&*node, 500_000, 200_000, keep);
    write(&*node, 90_000, &[2; 20_000]);
    snapshot(&node, "b");
    snapshot(&node, "c");
    zero(&*node, 0, 70_000, unmap);
    write(&*node, 900_000, &[3; 100_000]);
    run(node.close()).expect("closed");
    file
}

fn snapshot(node: &Qcow2, name: &str) {
    let new = NewSnapshot { name: name.into(), ..NewSnapshot::default() };
    run(node.change_snapshots(SnapshotChange::Create(new))).expect("made");
}

/// What the disk and its snapshots show; nothing in the image is wrong.
fn everything(file: &Arc<MemNode>, backing: Option<Arc<dyn Node>>) -> Vec<Vec<u8>> {
    let node = open(file, backing, OpenOptions::default());
    let mut all = vec![read(&*node, 0, SIZE as usize)];
    for name in ["a", "b", "c"] {
        let view = run(node.at_snapshot(SnapshotName::Name(name.into()))).expect("there");
        all.push(read(&*view, 0, SIZE as usize));
        run(view.close()).expect("closed");
    }
    let report = run(node.check(Fix::None)).expect("checkable");
    assert_eq!(report.corruptions, 0, "{:?}", report.findings);
    all
}

#[test]
fn snapshots_follow_to_other_versions() {
    let below: Arc<dyn Node> = Arc::new(MemNode::with_content(&[7; SIZE as usize]));
    for backing in [None, Some(below)] {
        for cluster_bits in [12, 14] {
            let options = CreateOptions {
                cluster_bits,
                backing_file: backing.as_ref().map(|_| "below".into()),
                backing_format: backing.as_ref().map(|_| "raw".into()),
                ..Default::default()
            };
            let file = with_snapshots(options, backing.clone());
            let shown = everything(&file, backing.clone());
            for compat in ["0.10", "1.1"] {
                let filmed = Arc::new(Filmed::new(&file));
                let options = OpenOptions { access: Access::ReadWrite, ..Default::default() };
                let node = run(Qcow2::open(filmed.clone(), backing.clone(), options)).expect("a valid image");
                run(node.amend(self::options(json!({ "compat": compat })), Amend::default()))
                    .expect("possible");
                run(node.close()).expect("closed");
                assert_clean(&file);
                assert!(everything(&file, backing.clone()) == shown, "{compat}: something else is shown");
                for frame in filmed.frames() {
                    let cut = Arc::new(MemNode::with_content(&frame));
                    assert!(everything(&cut, backing.clone()) == shown, "{compat}: lost in a cut");
                }
            }
        }
    }
}

#[test]
fn snapshots_that_version_2_cannot_describe_prevent_it() {
    let file = with_snapshots(CreateOptions { cluster_bits: 12, ..Default::default() }, None);
    let node = open(&file, None, OpenOptions::default());
    for wanted in [json!({"compat": "0.10", "size": SIZE * 2}), json!({"compat": "0.10", "size": SIZE / 2})] {
        let error = run(node.amend(options(wanted), Amend::default())).expect_err("sizes differ");
        assert_eq!(error.to_string(), "Internal snapshots prevent downgrade of image");
    }
    assert_eq!(node.len(), SIZE);
}

#[test]
fn incomplete_entries_are_completed_by_an_upgrade() {
    let file = with_snapshots(CreateOptions { cluster_bits: 12, version: 2, ..Default::default() }, None);
    let shown = everything(&file, None);
    // The entries of version 2 have 24 bytes of extra data each: make the first one's a part of its name.
    let mut image = file.content();
    let table = u64::from_be_bytes(image[64..72].try_into().expect("eight bytes")) as usize;
    image[table + 14..table + 16].copy_from_slice(&25u16.to_be_bytes());
    image[table + 36..table + 40].copy_from_slice(&0u32.to_be_bytes());
    image.copy_within(table + 64..table + 66, table + 40);
    image[table + 42..table + 66].fill(b'n');
    image[table + 41] = b'a';
    let file = Arc::new(MemNode::with_content(&image));
    let node = open(&file, None, OpenOptions::default());
    run(node.amend(options(json!({"compat": "1.1"})), Amend::default())).expect("possible");
    run(node.close()).expect("closed");
    assert_clean(&file);
    let node = open(&file, None, OpenOptions::default());
    let report = run(node.check(Fix::None)).expect("checkable");
    assert_eq!(report.corruptions, 0, "{:?}", report.findings);
    let view = run(node.at_snapshot(SnapshotName::Id("1".into()))).expect("there");
    assert!(read(&*view, 0, SIZE as usize) == shown[1]);
}
