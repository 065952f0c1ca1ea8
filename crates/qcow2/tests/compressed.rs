//! Compressed writes against a disk in memory: packed, shared, replaced and refused; the independent checker has
//! the last word.

mod support;

use std::sync::Arc;

use cowbell_block::mem::MemNode;
use cowbell_block::spawn::Spawn;
use cowbell_block::{BoxFuture, Buf, ErrorKind, Fix, Flags, Node, Request, Result};
use cowbell_qcow2::{CompressionType, CreateOptions, Discards, L2Format, OpenOptions};
use support::{Rng, assert_clean, create, open, read, run, submit, write};

const SIZE: u64 = (1 << 20) + 3 * 512;

/// Content that compresses to nothing, to a part, or not at all.
fn content(rng: &mut Rng, len: u64) -> Vec<u8> {
    let (kind, byte) = (rng.below(4), rng.below(255) as u8 + 1);
    (0..len)
        .map(|_| match kind {
            0 => byte,
            1 => rng.below(4) as u8 + byte / 2,
            2 => rng.below(16) as u8,
            _ => rng.below(256) as u8,
        })
        .collect()
}

fn write_compressed(node: &dyn Node, offset: u64, data: &[u8]) -> Result<()> {
    let request = Request::write(offset, Buf::copy_of(data)).with_flags(Flags::COMPRESSED);
    run(node.submit(request).finish()).into_bufs().map(drop)
}

/// Does each task where it is asked for, as if there were four cores.
struct Four;

impl Spawn for Four {
    fn width(&self) -> usize {
        4
    }

    fn spawn(&self, task: BoxFuture<()>) {
        run(task);
    }
}

fn compare_with_model(create_options: CreateOptions, open_options: OpenOptions, seed: u64) {
    let mut rng = Rng(seed * 2 + 1);
    let cluster = 1u64 << create_options.cluster_bits;
    let mut model = vec![0u8; SIZE as usize];
    let file = create(&CreateOptions { size: SIZE, ..create_options });
    for _ in 0..2 {
        let node = open(&file, None, open_options.clone());
        for _ in 0..60 {
            let first = rng.below(SIZE.div_ceil(cluster)) * cluster;
            let whole = ((1 + rng.below(3)) * cluster).min(SIZE - first);
            match rng.below(8) {
                0..=3 => {
                    let data = content(&mut rng, whole);
                    match write_compressed(&*node, first, &data) {
                        Ok(()) => model[first as usize..(first + whole) as usize].copy_from_slice(&data),
                        Err(e) => {
                            assert_eq!(e.kind(), ErrorKind::Io);
                            // Those before the first cluster that has storage are written.
                            let now = read(&*node, first, whole as usize);
                            for (at, (now, new)) in
                                now.chunks(cluster as usize).zip(data.chunks(cluster as usize)).enumerate()
                            {
                                let from = first as usize + at * cluster as usize;
                                let old = &mut model[from..from + now.len()];
                                assert!(now == old || now == new, "old or new at {from}");
                                old.copy_from_slice(now);
                            }
                        }
                    }
                }
                4 => {
                    let offset = rng.below(SIZE / 512) * 512;
                    let len = (1 + rng.below(2 * cluster)).min(SIZE - offset);
                    let data = content(&mut rng, len);
                    model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
                    write(&*node, offset, &data);
                }
                5 => {
                    submit(&*node, Request::discard(first, whole));
                    let now = read(&*node, first, whole as usize);
                    model[first as usize..(first + whole) as usize].copy_from_slice(&now);
                }
                6 => submit(&*node, Request::flush()),
                _ => assert_eq!(
                    read(&*node, first, whole as usize),
                    model[first as usize..(first + whole) as usize]
                ),
            }
        }
        assert!(read(&*node, 0, SIZE as usize) == model, "contents differ before closing");
        assert!(node.is_quiet());
        run(node.close()).expect("closed");
        assert_clean(&file);
    }
    let node = open(&file, None, open_options);
    assert!(read(&*node, 0, SIZE as usize) == model, "contents differ after reopening");
    let report = run(node.check(Fix::None)).expect("checkable");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.findings);
}

#[test]
fn random_operations_over_cluster_sizes_and_refcount_widths() {
    for (i, cluster_bits) in [9, 12, 16, 21].into_iter().enumerate() {
        for refcount_order in [0, 1, 4, 6] {
            for (j, compression) in [CompressionType::Zlib, CompressionType::Zstd].into_iter().enumerate() {
                let options =
                    CreateOptions { cluster_bits, refcount_order, compression, ..Default::default() };
                let seed = (i as u64) << 16 | u64::from(refcount_order) << 8 | j as u64;
                compare_with_model(options, OpenOptions::default(), seed);
            }
        }
    }
}

#[test]
fn random_operations_with_tiny_caches_cores_lazy_refcounts_and_unmap() {
    for seed in 0..12 {
        let open = OpenOptions {
            l2_cache_bytes: 1024,
            refcount_cache_bytes: 1024,
            slice_bytes: 512,
            discards: Discards::all() - Discards::NO_UNREF,
            spawn: Some(Arc::new(Four)),
            ..Default::default()
        };
        let (cluster_bits, l2_format) = match seed % 4 {
            0 => (9, L2Format::Standard),
            1 => (12, L2Format::Standard),
            2 => (16, L2Format::Standard),
            _ => (14, L2Format::Extended),
        };
        let options =
            CreateOptions { cluster_bits, l2_format, lazy_refcounts: seed % 2 == 0, ..Default::default() };
        compare_with_model(options, open, 700 + seed);
    }
}

/// A new image, open.
fn fresh(cluster_bits: u32) -> (Arc<MemNode>, Arc<cowbell_qcow2::Qcow2>) {
    let file = create(&CreateOptions { size: SIZE, cluster_bits, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    (file, node)
}

#[test]
fn clusters_are_packed_and_the_file_ends_with_a_whole_cluster() {
    let (file, node) = fresh(16);
    let data: Vec<u8> = (0..16 * 65536u32).map(|i| (i / 1000) as u8).collect();
    write_compressed(&*node, 0, &data).expect("written");
    run(node.close()).expect("closed");
    let len = file.content().len();
    assert!(
        len.is_multiple_of(1 << 16) && len <= 6 << 16,
        "{len} bytes: header, tables, and one cluster for all"
    );
    assert_clean(&file);
}

#[test]
fn what_is_not_whole_clusters_is_refused() {
    let (_, node) = fresh(16);
    for (offset, len) in [(512, 65536), (0, 512), (65536, 65536 + 512)] {
        let error = write_compressed(&*node, offset, &vec![1; len]).expect_err("unaligned");
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let error = write_compressed(&*node, 15 << 16, &vec![1; 2 * 65536]).expect_err("beyond the end");
    assert_eq!(error.kind(), ErrorKind::Io);
    let short = create(&CreateOptions { size: 65536 + 1024, ..Default::default() });
    let node = open(&short, None, OpenOptions::default());
    write_compressed(&*node, 65536, &[7; 1024]).expect("the disk ends there");
    assert_eq!(read(&*node, 65536, 1024), [7; 1024]);
    run(node.close()).expect("closed");
    assert_clean(&short);
}

#[test]
fn compressed_data_replaces_nothing_but_becomes_plain() {
    let (file, node) = fresh(12);
    write_compressed(&*node, 0, &[1; 3 * 4096]).expect("fresh");
    assert_eq!(write_compressed(&*node, 4096, &[2; 4096]).expect_err("stored").kind(), ErrorKind::Io);
    write(&*node, 5000, &[3; 10]);
    assert_eq!(write_compressed(&*node, 4096, &[2; 4096]).expect_err("stored").kind(), ErrorKind::Io);
    submit(&*node, Request::discard(4096, 4096));
    submit(&*node, Request::flush());
    write_compressed(&*node, 4096, &[4; 4096]).expect("free again");
    let expect = [[1; 4096], [4; 4096], [1; 4096]].concat();
    assert_eq!(read(&*node, 0, 3 * 4096), expect);
    run(node.close()).expect("closed");
    assert_clean(&file);
}
