//! Images made to hurt: the work stays linear, the memory bounded, nothing panics.

#![allow(clippy::unwrap_used, reason = "a test ends where something is wrong")]

use std::io;
use std::time::{Duration, Instant};

use cowbell_checker::{CheckError, Checker, Class, GuestView, Limits, Peek, ReadAt, Verdict, check};

const COPIED: u64 = 1 << 63;

/// A sparse file: extents in ascending order, zeroes between them.
struct Sparse {
    len: u64,
    extents: Vec<(u64, Vec<u8>)>,
}

impl Sparse {
    /// The extent that covers `offset`, or else the start of the next one.
    fn find(&self, offset: u64) -> Result<&[u8], u64> {
        let next = self.extents.partition_point(|(start, _)| *start <= offset);
        if let Some((start, bytes)) = next.checked_sub(1).and_then(|index| self.extents.get(index)) {
            let within = (offset - start) as usize;
            if within < bytes.len() {
                return Ok(&bytes[within..]);
            }
        }
        Err(self.extents.get(next).map_or(self.len, |(start, _)| *start))
    }
}

impl ReadAt for Sparse {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        for (at, byte) in (offset..).zip(buf) {
            *byte = self.find(at).map_or(0, |bytes| bytes[0]);
        }
        Ok(())
    }

    fn peek(&self, offset: u64, _len: u64) -> Peek<'_> {
        match self.find(offset) {
            Ok(bytes) => Peek::Bytes(bytes),
            Err(next) => Peek::Zeroes(next - offset),
        }
    }
}

fn words(words: impl IntoIterator<Item = u64>) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_be_bytes).collect()
}

/// A version 3 header for 16-bit refcounts.
fn header(
    cluster_bits: u64,
    size: u64,
    l1: (u64, u64),
    reftable: (u64, u64),
    snapshots: (u64, u64),
) -> Vec<u8> {
    let pair = |high: u64, low: u64| high << 32 | low;
    words([
        pair(0x5146_49fb, 3),
        0,
        pair(0, cluster_bits),
        size,
        pair(0, l1.1),
        l1.0,
        reftable.0,
        pair(reftable.1, snapshots.1),
        snapshots.0,
        0,
        0,
        0,
        pair(4, 104),
    ])
}

/// Generous, for a build without optimisation on a busy machine; the targets are 0.1 and 0.5 s.
const PATIENCE: Duration = Duration::from_secs(3);

#[test]
fn one_l2_table_named_65536_times() {
    // 64 KiB clusters: header, refcount table, refcount block, L1 (8 clusters), L2.
    let cluster = 65536;
    let at = |index: u64| index * cluster;
    let mut image = vec![0u8; 12 << 16];
    let mut put = |offset: u64, bytes: &[u8]| {
        image[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    };
    put(0, &header(16, 1 << 45, (at(3), 65536), (at(1), 1), (0, 0)));
    put(at(1), &words([at(2)]));
    put(at(2), &words([0x0001_0001_0001_0001; 3]));
    put(at(3), &words(std::iter::repeat_n(at(11) | COPIED, 65536)));
    put(at(11), &words((0..8192).map(|index| at(12 + index) | COPIED)));
    let started = Instant::now();
    let report = check(&image, Limits::default()).unwrap();
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    println!("one L2 table 65536 times: {:?}", started.elapsed());
    assert_eq!(report.summary.l2_tables, 1);
    assert_eq!(report.count(Class::RefcountTooLow), 8193);
    assert_eq!(report.count(Class::DataBeyondEof), 8192);
    assert_eq!(report.verdict(), Verdict::Corrupt);
}

#[test]
fn snapshots_that_share_one_large_l1_table() {
    // 65536 snapshots, all with the same 1 MiB L1 table, entries of 56 bytes.
    let cluster = 65536u64;
    let table = 4 * cluster;
    let l1 = 128 * cluster;
    let entry = words([l1, 131_072 << 32, 0, 0, 16, 0, 0]);
    let image = Sparse {
        len: 400 * cluster,
        extents: vec![
            (0, header(16, 1 << 30, (3 * cluster, 2), (cluster, 1), (table, 65536))),
            (table, entry.repeat(65536)),
            (l1, words((0..131_072).map(|index| (200 + index % 100) * cluster))),
        ],
    };
    let started = Instant::now();
    let report = check(&image, Limits::default()).unwrap();
    println!("65536 snapshots of one L1 table: {:?}", started.elapsed());
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    assert_eq!(report.summary.l2_tables, 100);
    assert_eq!(report.count(Class::Overlap), 16);
}

#[test]
fn sparse_giant_with_small_clusters() {
    // 512 GiB, 512-byte clusters: the largest refcount table, few blocks, references all over the file.
    let len = 512u64 << 30;
    let l1_entries = 1u64 << 22;
    let l1 = 1 << 30;
    let l2 = |index: u64| (2 << 30) + (index << 22);
    let mut extents = vec![
        (0, header(9, l1_entries << 15, (l1, l1_entries), (512, 16384), (0, 0))),
        (512, words([256 << 20])),
        (256 << 20, words([0x0001_0001_0001_0001])),
        (l1, words((0..8192).map(|index| l2(index) | COPIED))),
    ];
    for index in 0..8192 {
        extents.push((l2(index), words((1..=64).map(|entry| (l2(index) + entry * 512) | COPIED))));
    }
    let image = Sparse { len, extents };
    let started = Instant::now();
    let limits = Limits { memory_bytes_max: 64 << 20, ..Limits::default() };
    let report = check(&image, limits).unwrap();
    println!("512 GiB of 512-byte clusters: {:?}", started.elapsed());
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    assert_eq!(report.summary.data_entries, 8192 * 64);
}

#[test]
fn the_memory_limit_holds() {
    let cluster = 65536u64;
    let scattered = (0..8192u64).map(|index| (index << 40) | COPIED);
    let image = Sparse {
        len: 1 << 55,
        extents: vec![
            (0, header(16, 1 << 29, (3 * cluster, 1), (cluster, 1), (0, 0))),
            (3 * cluster, words([(4 * cluster) | COPIED])),
            (4 * cluster, words(scattered)),
        ],
    };
    let limits = Limits { memory_bytes_max: 1 << 20, ..Limits::default() };
    assert!(matches!(check(&image, limits), Err(CheckError::MemoryLimit)));
    let limits = Limits { work_bytes_max: 1000, ..Limits::default() };
    assert!(matches!(check(&image, limits), Err(CheckError::WorkLimit)));
}

/// Arbitrary bytes over a small image: whatever comes out, it comes out.
#[test]
fn arbitrary_bytes_do_not_panic() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let limits = Limits { findings_max: 50, memory_bytes_max: 4 << 20, work_bytes_max: 64 << 20 };
    let mut checker = Checker::new(limits);
    let (mut reports, mut errors) = (0, 0);
    for _ in 0..3000 {
        let bits = 9 + random() % 3;
        let at = |index: u64| index << bits;
        let mut image = vec![0u8; 16 << bits];
        let mut put = |offset: u64, bytes: &[u8]| {
            image[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
        };
        put(0, &header(bits, 1 << 17, (at(3), 8), (at(1), 1), (at(8), random() % 4)));
        put(96, &words([(random() % 7) << 32 | 104]));
        put(at(1), &words([at(2)]));
        for table in [2, 3, 4, 5, 8, 9] {
            let small = |value: u64| match value % 5 {
                0 => value,
                1 => value >> 32,
                _ => at(value >> 8 & 15) | (value & COPIED),
            };
            put(at(table), &words((0..16).map(|_| small(random()))));
        }
        for _ in 0..random() % 4 {
            let position = (random() % 112) as usize;
            image[position] = random() as u8;
        }
        image.truncate((random() % (16 << bits)) as usize);
        match checker.check(&image) {
            Ok(report) => {
                reports += 1;
                assert!(!report.to_string().is_empty());
            }
            Err(error) => {
                errors += 1;
                assert!(!error.to_string().is_empty());
            }
        }
        for view in [GuestView::active(&image), GuestView::snapshot(&image, 0)].into_iter().flatten() {
            let mut extents = Vec::new();
            view.extents(&image, random() % (1 << 18), 1 << 17, &mut extents).unwrap();
        }
    }
    println!("{reports} reports, {errors} errors");
    assert!(reports > 1000 && errors > 100);
}
