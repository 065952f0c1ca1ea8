//! The engine against a disk in memory, over the formats' variants; the independent checker has the last word.

mod support;

use std::sync::Arc;

use cowbell_block::mem::MemNode;
use cowbell_block::{Access, Buf, ExtentFlags, Flags, Node, Operation, Preallocation, Request};
use cowbell_qcow2::{CreateOptions, DataFile, DataFileForm, Discards, L2Format, OpenOptions, Qcow2};
use support::{Rng, assert_clean, create, open, read, run, submit, write, zero};

const SIZE: u64 = 3 << 20;

/// Random operations on an image and on a plain vector; equal after each reopen, and clean.
fn compare_with_model(
    create_options: CreateOptions,
    open_options: OpenOptions,
    backing_len: Option<u64>,
    seed: u64,
) {
    let mut rng = Rng(seed * 2 + 1);
    let backing = backing_len.map(|len| {
        let content: Vec<u8> = (0..len).map(|i| (i / 512 % 251) as u8 + 1).collect();
        Arc::new(MemNode::with_content(&content))
    });
    let mut model = vec![0u8; SIZE as usize];
    if let Some(backing) = &backing {
        let content = backing.content();
        let n = content.len().min(model.len());
        model[..n].copy_from_slice(&content[..n]);
    }
    let v2_overlay = create_options.version == 2 && backing.is_some();
    let backing_file = backing.is_some().then(|| "base".to_owned());
    let file = create(&CreateOptions { size: SIZE, backing_file, ..create_options });
    for _ in 0..4 {
        let node = open(&file, backing.clone().map(|b| b as Arc<dyn Node>), open_options.clone());
        for _ in 0..60 {
            let offset = rng.below(SIZE / 512) * 512 + rng.below(2) * rng.below(512);
            let magnitude = 4 + rng.below(15);
            let len = (1 + rng.below(1 << magnitude)).min(SIZE - offset);
            let range = offset as usize..(offset + len) as usize;
            match rng.below(10) {
                0..=4 => {
                    let byte = rng.below(255) as u8 + 1;
                    model[range].fill(byte);
                    write(&*node, offset, &vec![byte; len as usize]);
                }
                5 => {
                    model[range].fill(0);
                    zero(&*node, offset, len, Flags::empty());
                }
                6 => {
                    model[range].fill(0);
                    zero(&*node, offset, len, Flags::MAY_UNMAP);
                }
                7 if !v2_overlay => {
                    submit(&*node, Request::discard(offset, len));
                    // Old or zeroes, decided once: take what it is now.
                    let now = read(&*node, offset, len as usize);
                    let old = &model[range.clone()];
                    assert!(
                        now.iter().zip(old).all(|(n, o)| n == o || *n == 0),
                        "discard shows foreign data"
                    );
                    model[range].copy_from_slice(&now);
                }
                8 => submit(&*node, Request::flush()),
                _ => assert_eq!(read(&*node, offset, len as usize), model[range], "at {offset}+{len}"),
            }
        }
        assert!(read(&*node, 0, SIZE as usize) == model, "contents differ before closing");
        assert!(node.is_quiet());
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
    let node = open(&file, backing.map(|b| b as Arc<dyn Node>), open_options);
    assert!(read(&*node, 0, SIZE as usize) == model, "contents differ after reopening");
    let report = run(node.check(cowbell_block::Fix::None)).expect("checkable");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.findings);
}

#[test]
fn random_operations_over_cluster_sizes_and_refcount_widths() {
    for (i, cluster_bits) in [9, 12, 16, 21].into_iter().enumerate() {
        for refcount_order in [0, 2, 4, 6] {
            let options = CreateOptions { cluster_bits, refcount_order, ..Default::default() };
            compare_with_model(
                options,
                OpenOptions::default(),
                None,
                (i as u64) << 8 | u64::from(refcount_order),
            );
        }
    }
}

#[test]
fn random_operations_over_backing_files() {
    for (i, len) in [0, 512, 700_001, SIZE, SIZE + 4096].into_iter().enumerate() {
        for version in [2, 3] {
            let options = CreateOptions { version, cluster_bits: 14, ..Default::default() };
            compare_with_model(
                options,
                OpenOptions::default(),
                Some(len),
                77 + (i as u64) * 2 + u64::from(version),
            );
        }
    }
}

#[test]
fn random_operations_with_tiny_caches_lazy_refcounts_and_unmap() {
    let tiny = OpenOptions {
        l2_cache_bytes: 1024,
        refcount_cache_bytes: 1024,
        slice_bytes: 512,
        discards: Discards::all() - Discards::NO_UNREF,
        ..Default::default()
    };
    for seed in 0..12 {
        let options = CreateOptions {
            cluster_bits: [9, 10, 12][seed as usize % 3],
            lazy_refcounts: seed % 2 == 0,
            ..Default::default()
        };
        compare_with_model(options, tiny.clone(), (seed % 4 == 0).then_some(1 << 20), 900 + seed);
    }
}

#[test]
fn random_operations_on_subclusters() {
    for (i, cluster_bits) in [14, 16, 21].into_iter().enumerate() {
        for backing in [None, Some(700_001), Some(SIZE + 4096)] {
            let l2_format = L2Format::Extended;
            let options = CreateOptions { cluster_bits, l2_format, ..Default::default() };
            for seed in 0..4 {
                let discards = if seed % 2 == 0 { Discards::default() } else { Discards::all() };
                let open = OpenOptions { discards, ..Default::default() };
                compare_with_model(options.clone(), open, backing, 3000 + 10 * i as u64 + seed);
            }
        }
    }
}

#[test]
fn random_operations_on_preallocated_images() {
    use Preallocation::{Falloc, Full, Metadata};
    for (seed, preallocation) in [Metadata, Falloc, Full].into_iter().enumerate() {
        for l2_format in [L2Format::Standard, L2Format::Extended] {
            let options = CreateOptions { cluster_bits: 14, l2_format, preallocation, ..Default::default() };
            compare_with_model(options, OpenOptions::default(), None, 5000 + seed as u64);
        }
    }
    let overlay = CreateOptions {
        cluster_bits: 16,
        l2_format: L2Format::Extended,
        preallocation: Metadata,
        ..Default::default()
    };
    compare_with_model(overlay, OpenOptions::default(), Some(1 << 20), 5010);
}

#[test]
fn a_preallocated_image_has_all_its_clusters() {
    let options =
        CreateOptions { size: 5 << 20, preallocation: Preallocation::Metadata, ..Default::default() };
    let file = create(&options);
    assert_eq!(file.content().len(), (5 + 80) << 16);
    let node = open(&file, None, OpenOptions::default());
    let report = run(node.check(cowbell_block::Fix::None)).expect("checkable");
    assert_eq!((report.allocated_clusters, report.fragmented_clusters), (80, 0));
    submit(&*node, Request::truncate(7 << 20, Preallocation::Metadata));
    assert!(read(&*node, 0, 7 << 20).iter().all(|b| *b == 0));
    run(node.close()).expect("closed");
    assert_clean(&file);
}

#[test]
fn a_disk_that_shrank_and_grew_shows_zeroes() {
    for (l2_format, cluster_bits) in [(L2Format::Standard, 12), (L2Format::Extended, 16)] {
        let file = create(&CreateOptions { size: SIZE, cluster_bits, l2_format, ..Default::default() });
        let node = open(&file, None, OpenOptions::default());
        write(&*node, 0, &vec![9; SIZE as usize]);
        let full = file.content().len();
        submit(&*node, Request::truncate(1_000_448, Preallocation::Off));
        assert!(file.content().len() < full / 2, "the file shrinks with the disk");
        submit(&*node, Request::truncate(SIZE, Preallocation::Off));
        let content = read(&*node, 0, SIZE as usize);
        assert!(content[..1_000_448].iter().all(|b| *b == 9));
        assert!(content[1_000_448..].iter().all(|b| *b == 0));
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
}

#[test]
fn data_in_an_external_file_lies_where_the_guest_sees_it() {
    for form in [DataFileForm::Dependent, DataFileForm::Raw] {
        let name = "data".to_owned();
        let options =
            CreateOptions { size: SIZE, data_file: Some(DataFile { name, form }), ..Default::default() };
        let (file, data) = (Arc::new(MemNode::new(0)), Arc::new(MemNode::new(0)));
        let child = cowbell_block::Child::new(file.clone());
        run(cowbell_qcow2::create(&child, Some(data.clone()), &options)).expect("valid options");
        let open_it =
            || open(&file, None, OpenOptions { data_file: Some(data.clone()), ..Default::default() });
        let mut model = vec![0; SIZE as usize];
        let mut rng = Rng(4711);
        for _ in 0..3 {
            let node = open_it();
            for _ in 0..100 {
                let offset = rng.below(SIZE / 512) * 512;
                let len = (1 + rng.below(1 << 18)).min(SIZE - offset);
                let range = offset as usize..(offset + len) as usize;
                match rng.below(5) {
                    0..=2 => {
                        let byte = rng.below(255) as u8 + 1;
                        model[range].fill(byte);
                        write(&*node, offset, &vec![byte; len as usize]);
                    }
                    3 => {
                        model[range].fill(0);
                        zero(&*node, offset, len, Flags::MAY_UNMAP);
                    }
                    _ => {
                        submit(&*node, Request::discard(offset, len));
                        model[range.clone()].copy_from_slice(&read(&*node, offset, len as usize));
                    }
                }
            }
            assert!(read(&*node, 0, SIZE as usize) == model);
            let report = run(node.check(cowbell_block::Fix::None)).expect("checkable");
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.findings);
            run(node.close()).expect("closed");
            if form == DataFileForm::Raw {
                assert!(data.content() == model, "the file is the disk");
            }
        }
        assert!(read(&*open_it(), 0, SIZE as usize) == model);
        let without = OpenOptions { data_file: None, ..Default::default() };
        assert!(run(Qcow2::open(file.clone(), None, without)).is_err());
    }
}

#[test]
fn copies_land_where_writes_would() {
    let content: Vec<u8> = (0..SIZE).map(|i| (i / 512 % 251) as u8 + 1).collect();
    let source: Arc<dyn Node> = Arc::new(MemNode::with_content(&content));
    for l2_format in [L2Format::Standard, L2Format::Extended] {
        let file = create(&CreateOptions { size: SIZE, l2_format, ..Default::default() });
        let node = open(&file, None, OpenOptions::default());
        let mut model = vec![0; SIZE as usize];
        zero(&*node, 600_000, 400_000, Flags::empty());
        let mut rng = Rng(99);
        for _ in 0..80 {
            let offset = rng.below(SIZE / 512) * 512;
            let len = ((1 + rng.below(600)) * 512).min(SIZE - offset);
            let source_offset = rng.below((SIZE - len) / 512 + 1) * 512;
            let op = Operation::CopyFrom { source: source.clone(), source_offset };
            submit(&*node, Request { op, offset, len, ..Request::default() });
            let (to, from) = (offset as usize, source_offset as usize);
            model[to..to + len as usize].copy_from_slice(&content[from..from + len as usize]);
        }
        assert!(read(&*node, 0, SIZE as usize) == model);
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
}

#[test]
fn fresh_image_has_the_reference_layout() {
    let file = create(&CreateOptions { size: 64 << 20, ..Default::default() });
    assert_eq!(file.content().len(), 196_608 + 8);
    let node = open(&file, None, OpenOptions::default());
    write(&*node, 0, &[1; 4096]);
    run(node.close()).expect("closed");
    let content = file.content();
    let word = |at: usize| u64::from_be_bytes(content[at..at + 8].try_into().expect("eight bytes"));
    assert_eq!((word(0x30000), word(0x40000)), (1 << 63 | 0x40000, 1 << 63 | 0x50000));
    assert_clean(&file);
}

#[test]
fn an_aligned_write_into_fresh_clusters_is_one_host_write() {
    let file = create(&CreateOptions { size: 64 << 20, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    write(&*node, 0, &[1; 65536]);
    let before = file.content().len();
    write(&*node, 1 << 20, &[2; 4 * 65536]);
    assert_eq!(file.content().len(), before + 4 * 65536);
    assert_eq!(read(&*node, 1 << 20, 65536), vec![2; 65536]);
}

#[test]
fn zeroes_at_the_end_of_a_disk_that_ends_inside_a_subcluster() {
    for (l2_format, cluster_bits) in [(L2Format::Standard, 12), (L2Format::Extended, 16)] {
        let size = (64 << 10) + 2048 + 1024;
        let file = create(&CreateOptions { size, cluster_bits, l2_format, ..Default::default() });
        let node = open(&file, None, OpenOptions::default());
        for from in [size - 512, size - 1024, size - 3000, 512] {
            write(&*node, 0, &vec![9; size as usize]);
            submit(&*node, Request::write_zeroes(from, size - from));
            let content = read(&*node, 0, size as usize);
            assert!(content[..from as usize].iter().all(|b| *b == 9), "{from}");
            assert!(content[from as usize..].iter().all(|b| *b == 0), "{from}");
        }
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
}

/// A backing file with data in [28k, 44k) and [96k, 100k), and holes besides.
fn base_with_holes(size: u64) -> Arc<dyn Node> {
    let node = open(&create(&CreateOptions { size, ..Default::default() }), None, OpenOptions::default());
    write(&*node, 28 << 10, &[0x11; 16 << 10]);
    write(&*node, 96 << 10, &[0x11; 4 << 10]);
    node
}

#[test]
fn zeroes_beside_holes_below_store_nothing() {
    let size = 1 << 20;
    let file = create(&CreateOptions { size, backing_file: Some("base".into()), ..Default::default() });
    let node = open(&file, Some(base_with_holes(size)), OpenOptions::default());
    let kind = |at: u64| {
        let extent = run(node.submit(Request::status(at, 512)).finish()).into_extent().expect("answered");
        (extent.flags.contains(ExtentFlags::ALLOCATED), extent.flags.contains(ExtentFlags::DATA))
    };
    zero(&*node, 130 << 10, 127 << 10, Flags::empty());
    for at in [128, 130, 192, 256, 300] {
        assert_eq!(kind(at << 10), (true, false), "{at}k: a zero cluster, also around the ends");
    }
    assert_eq!(kind(320 << 10), (false, false));
    zero(&*node, 64 << 10, 1 << 10, Flags::empty());
    assert_eq!(kind(64 << 10), (true, true), "beside data that shines through, zeroes are stored");
    assert_eq!(read(&*node, 96 << 10, 4 << 10), vec![0x11; 4 << 10]);
    run(node.close()).expect("closed");
    assert_clean(&file);
}

#[test]
fn random_zeroes_over_holes_read_as_the_model() {
    let size = 256 << 10;
    for (seed, (l2_format, cluster_bits)) in [
        (L2Format::Standard, 12),
        (L2Format::Standard, 16),
        (L2Format::Extended, 14),
        (L2Format::Extended, 16),
    ]
    .into_iter()
    .cycle()
    .take(24)
    .enumerate()
    {
        let mut rng = Rng(seed as u64 + 77);
        // Shorter and longer than the disk above.
        let base = base_with_holes(if seed % 3 == 0 { 130 << 10 } else { 512 << 10 });
        let mut model = vec![0; size as usize];
        model[28 << 10..44 << 10].fill(0x11);
        model[96 << 10..100 << 10].fill(0x11);
        let backing_file = Some("base".into());
        let file =
            create(&CreateOptions { size, cluster_bits, l2_format, backing_file, ..Default::default() });
        let node = open(&file, Some(base), OpenOptions::default());
        for _ in 0..60 {
            let (offset, magnitude) = (rng.below(size), 1 + rng.below(17));
            let len = (1 + rng.below(1 << magnitude)).min(size - offset);
            let range = offset as usize..(offset + len) as usize;
            if rng.below(3) == 0 {
                model[range].fill(7);
                write(&*node, offset, &vec![7; len as usize]);
            } else {
                model[range].fill(0);
                zero(&*node, offset, len, if rng.below(2) == 0 { Flags::MAY_UNMAP } else { Flags::empty() });
            }
            assert!(read(&*node, 0, size as usize) == model, "seed {seed}");
        }
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
}

#[test]
fn growing_hides_what_a_longer_backing_file_holds() {
    for version in [2, 3] {
        let backing = Arc::new(MemNode::with_content(&vec![7; 1 << 20]));
        let backing_file = Some("base".to_owned());
        let options = CreateOptions { version, size: 300_032, backing_file, ..Default::default() };
        let file = create(&options);
        let node = open(&file, Some(backing), OpenOptions::default());
        submit(&*node, Request::truncate(2 << 20, Preallocation::Off));
        assert_eq!(read(&*node, 0, 300_032), vec![7; 300_032]);
        assert!(read(&*node, 300_032, (2 << 20) - 300_032).iter().all(|b| *b == 0), "version {version}");
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
}

#[test]
fn growing_moves_tables_that_are_full() {
    // 512-byte clusters: an L2 table covers 32 KiB, a refcount block 128 KiB, the first refcount table 8 MiB.
    let file = create(&CreateOptions { size: 64 << 10, cluster_bits: 9, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    submit(&*node, Request::truncate(24 << 20, Preallocation::Off));
    let data: Vec<u8> = (0..24u32 << 20).map(|i| (i >> 9) as u8 | 1).collect();
    for (i, piece) in data.chunks(1 << 18).enumerate() {
        write(&*node, (i as u64) << 18, piece);
    }
    assert!(read(&*node, 0, 24 << 20) == data);
    run(node.close()).expect("closed");
    assert_clean(&file);
    let node = open(&file, None, OpenOptions::default());
    assert!(read(&*node, 0, 24 << 20) == data);
}

#[test]
fn an_l1_table_may_be_longer_than_a_refcount_block_counts() {
    for refcount_order in [4, 6] {
        let options = CreateOptions { size: 1 << 30, cluster_bits: 9, refcount_order, ..Default::default() };
        let file = create(&options);
        assert_clean(&file);
        let node = open(&file, None, OpenOptions::default());
        write(&*node, (1 << 30) - 512, &[3; 512]);
        submit(&*node, Request::truncate(3 << 30, Preallocation::Off));
        assert_eq!(read(&*node, (1 << 30) - 512, 1024)[..512], [3; 512]);
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
}

#[test]
fn reopening_changes_what_is_accepted() {
    let file = create(&CreateOptions { size: 1 << 20, ..Default::default() });
    let node = run(Qcow2::open(file.clone(), None, OpenOptions::default())).expect("a valid image");
    let refused = |node: &Qcow2| {
        let write = Request::write(0, Buf::copy_of(&[1; 512]));
        run(node.submit(write).finish()).result.is_err()
    };
    assert!(refused(&node));
    run(node.reopen(Access::ReadWrite)).expect("nobody objects");
    write(&*node, 4096, &[2; 512]);
    run(node.reopen(Access::ReadOnly)).expect("nobody objects");
    assert!(refused(&node));
    assert_clean(&file);
    assert_eq!(read(&*node, 4096, 512), vec![2; 512]);
}

#[test]
fn a_name_that_does_not_fit_is_refused_before_anything_is_made() {
    let options =
        CreateOptions { cluster_bits: 9, backing_file: Some("b".repeat(500)), ..Default::default() };
    assert!(options.validate().is_ok() && options.check_header().is_err());
    let file = Arc::new(MemNode::with_content(b"precious"));
    let refused = run(cowbell_qcow2::create(&cowbell_block::Child::new(file.clone()), None, &options));
    assert!(refused.is_err());
    assert_eq!(file.content(), b"precious");
}

#[test]
fn a_huge_image_opens_in_little_memory() {
    let file = create(&CreateOptions { size: 64 << 40, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    write(&*node, (64 << 40) - 4096, &[5; 4096]);
    assert_eq!(read(&*node, (64 << 40) - 8192, 8192)[4095..4097], [0, 5]);
    run(node.close()).expect("closed");
}
