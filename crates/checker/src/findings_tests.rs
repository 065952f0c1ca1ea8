//! Every class of findings provoked in images built by hand.

use crate::testimage::{COMPRESSED, COPIED, TestImage};
use crate::{
    BitmapFault, CheckError, Checker, Class, EntryFault, Finding, HeaderError, HeaderFault, Limits, Owner,
    Report, Severity, SnapshotFault, Verdict, check,
};

fn report(image: &TestImage) -> Report {
    check(&image.bytes, Limits::default()).unwrap()
}

/// The classes found, each once, in the order of their declaration, and the verdict.
fn expect(image: &TestImage, classes: &[Class], verdict: Verdict) {
    let report = report(image);
    let found: Vec<Class> = Class::ALL.into_iter().filter(|class| report.count(*class) > 0).collect();
    assert_eq!(found, classes, "{report}");
    assert_eq!(report.verdict(), verdict, "{report}");
    for finding in report.findings() {
        assert!(!finding.to_string().is_empty());
    }
}

fn expect_header_error(image: &TestImage, expected: HeaderError) {
    match check(&image.bytes, Limits::default()) {
        Err(CheckError::Header(error)) => assert_eq!(error, expected),
        other => panic!("{other:?}"),
    }
}

#[test]
fn sound_images_are_clean() {
    for order in 0..=6 {
        for cluster_bits in [9, 12, 16, 21] {
            expect(&TestImage::with(3, cluster_bits, order, false), &[], Verdict::Clean);
        }
        expect(&TestImage::with(3, 14, order, true), &[], Verdict::Clean);
    }
    expect(&TestImage::with(2, 9, 4, false), &[], Verdict::Clean);
    let mut image = TestImage::new();
    image.add_snapshot();
    expect(&image, &[], Verdict::Clean);
}

#[test]
fn a_checker_forgets_the_image_before() {
    let mut checker = Checker::new(Limits::default());
    let mut bad = TestImage::new();
    bad.set_refcount(5, 0);
    for _ in 0..3 {
        assert_eq!(checker.check(&bad.bytes).unwrap().verdict(), Verdict::Corrupt);
        assert_eq!(checker.check(&TestImage::new().bytes).unwrap().verdict(), Verdict::Clean);
        assert!(checker.check(&vec![0u8; 10]).is_err());
        assert_eq!(checker.report().verdict(), Verdict::Clean);
    }
}

#[test]
fn the_summary_counts() {
    let mut image = TestImage::new();
    image.add_snapshot();
    let summary = report(&image).summary;
    assert_eq!((summary.l2_tables, summary.data_entries, summary.compressed_entries), (1, 2, 0));
    assert_eq!((summary.snapshots, summary.image_end_offset), (1, 9 * 512));
}

#[test]
fn leaks_inside_and_beyond_the_file() {
    let mut image = TestImage::new();
    image.grow(8);
    image.set_refcount(7, 2);
    expect(&image, &[Class::Leak], Verdict::LeaksOnly);
    assert_eq!(
        report(&image).findings(),
        [Finding::Leak { cluster: 7, offset: 7 * 512, refcount: 2, references: 0 }]
    );
    image.set_refcount(100, 1);
    expect(&image, &[Class::Leak, Class::LeakBeyondEof], Verdict::LeaksOnly);
    assert_eq!(report(&image).leaks(), 2);
}

#[test]
fn a_refcount_above_the_references_clears_copied() {
    let mut image = TestImage::new();
    image.set_l2(0, image.at(5), 0);
    image.set_refcount(5, 2);
    expect(&image, &[Class::Leak], Verdict::LeaksOnly);
}

#[test]
fn refcounts_too_low() {
    let mut image = TestImage::new();
    image.set_refcount(5, 0);
    expect(&image, &[Class::RefcountTooLow, Class::CopiedSet], Verdict::Corrupt);
    assert!(report(&image).findings().iter().any(|finding| matches!(
        finding,
        Finding::RefcountTooLow { cluster: 5, refcount: 0, references: 1, owners, .. }
            if owners.contains(Owner::Data)
    )));
    // Without any refcount block all seven are too low, also the block itself is not referenced.
    let mut image = TestImage::new();
    image.put64(image.at(1), 0);
    assert_eq!(report(&image).count(Class::RefcountTooLow), 6);
}

#[test]
fn copied_flags() {
    let mut image = TestImage::new();
    image.set_l2(0, image.at(5), 0);
    expect(&image, &[Class::CopiedClear], Verdict::Clean);
    image.put64(image.at(3), image.at(4));
    assert_eq!(report(&image).count(Class::CopiedClear), 2);
    let mut image = TestImage::new();
    image.add_snapshot();
    image.put64(image.at(3), image.at(4) | COPIED);
    image.set_l2(2, image.at(6) | COPIED, 0);
    expect(&image, &[Class::CopiedSet], Verdict::Corrupt);
    let text = report(&image).to_string();
    assert!(
        text.contains("active L1 table at 0x600, entry 0: COPIED set for 0x800, whose refcount is 2"),
        "{text}"
    );
    assert!(text.contains("L2 table (l1_index 0) at 0x800, entry 2: COPIED set for 0xc00"), "{text}");
    // In tables that only snapshots reach the flag means nothing.
    let mut image = TestImage::new();
    image.add_snapshot();
    image.put64(image.at(8), image.at(4) | COPIED);
    expect(&image, &[], Verdict::Clean);
}

#[test]
fn dirty_images_are_excused_from_refcounts() {
    let mut image = TestImage::new();
    image.put64(72, 1);
    image.set_refcount(5, 0);
    let report = report(&image);
    assert!(report.summary.dirty);
    assert_eq!(report.verdict(), Verdict::Corrupt);
    assert_eq!(report.verdict_with(Class::severity_when_dirty), Verdict::Clean);
}

#[test]
fn owners_that_may_not_share() {
    // Data in the L1 table, with an agreeing refcount.
    let mut image = TestImage::new();
    image.set_l2(0, image.at(3), 0);
    image.set_refcount(3, 2);
    image.set_refcount(5, 0);
    expect(&image, &[Class::Overlap], Verdict::Corrupt);
    // Two snapshots with one L1 table.
    let mut image = TestImage::new();
    image.add_snapshot();
    let entry = image.bytes[7 * 512..7 * 512 + 64].to_vec();
    image.put(image.at(7) + 64, &entry);
    image.put32(60, 2);
    for (cluster, refcount) in [(4, 3), (5, 3), (6, 3), (8, 2)] {
        image.set_refcount(cluster, refcount);
    }
    expect(&image, &[Class::Overlap], Verdict::Corrupt);
}

#[test]
fn sharing_in_the_active_tables_is_a_note() {
    let mut image = TestImage::new();
    image.set_l2(0, image.at(6), 0);
    image.set_l2(2, image.at(6), 0);
    image.set_refcount(5, 0);
    image.set_refcount(6, 2);
    expect(&image, &[Class::SharedInActive], Verdict::Clean);
    let mut image = TestImage::new();
    image.put64(image.at(3), image.at(4));
    image.put64(image.at(3) + 8, image.at(4));
    image.set_l2(0, image.at(5), 0);
    image.set_l2(2, image.at(6), 0);
    for cluster in 4..7 {
        image.set_refcount(cluster, 2);
    }
    expect(&image, &[Class::SharedInActive], Verdict::Clean);
    assert_eq!(report(&image).count(Class::SharedInActive), 3);
}

#[test]
fn unaligned_offsets_and_reserved_bits() {
    let unaligned = |image: &mut TestImage, at: u64, value: u64| {
        image.put64(at, value);
        assert_eq!(report(image).count(Class::Unaligned), 1);
        assert_eq!(report(image).verdict(), Verdict::Corrupt);
    };
    let reserved = |image: &mut TestImage, at: u64, value: u64| {
        image.put64(at, value);
        expect(image, &[Class::ReservedBits], Verdict::Corrupt);
    };
    let image = || TestImage::with(3, 12, 4, false);
    let (table, l1, l2) = (image().at(1), image().at(3), image().at(4));
    unaligned(&mut image(), l1, l2 + 512);
    unaligned(&mut image(), l2, image().at(5) + 512);
    unaligned(&mut image(), table, image().at(2) + 512);
    reserved(&mut image(), l1, l2 | COPIED | 2);
    reserved(&mut image(), l1, l2 | COPIED | 1 << 58);
    reserved(&mut image(), l2, image().at(5) | COPIED | 4);
    reserved(&mut image(), l2 + 8, 1 << 61);
    reserved(&mut image(), table, image().at(2) | 256);
    let mut image = TestImage::with(3, 14, 4, true);
    image.set_l2(0, image.at(5) | COPIED | 1, 1);
    expect(&image, &[Class::ZeroFlag], Verdict::Corrupt);
}

#[test]
fn zero_clusters() {
    let mut image = TestImage::new();
    image.set_l2(1, 1, 0);
    image.set_l2(0, image.at(5) | COPIED | 1, 0);
    expect(&image, &[], Verdict::Clean);
    let mut image = TestImage::with(2, 9, 4, false);
    image.set_l2(1, 1, 0);
    expect(&image, &[Class::ZeroFlag], Verdict::Corrupt);
    let mut image = TestImage::new();
    image.set_l2(1, COPIED, 0);
    expect(&image, &[Class::CopiedUnallocated], Verdict::Corrupt);
}

#[test]
fn subclusters() {
    let mut image = TestImage::with(3, 14, 4, true);
    image.set_l2(1, 0, 7 << 32);
    image.set_l2(0, image.at(5) | COPIED, 2 << 32 | 1);
    expect(&image, &[], Verdict::Clean);
    image.set_l2(0, image.at(5) | COPIED, 1 << 32 | 1);
    expect(&image, &[Class::InvalidSubcluster], Verdict::Corrupt);
    image.set_l2(0, image.at(5) | COPIED, 1);
    image.set_l2(1, 0, 1);
    expect(&image, &[Class::InvalidSubcluster], Verdict::Corrupt);
}

#[test]
fn compressed_clusters() {
    // 4 KiB clusters: 58 bits of offset. One descriptor crosses from cluster 7 to 8, one lies in 8.
    let mut image = TestImage::with(3, 12, 4, false);
    image.grow(9);
    image.set_l2(4, COMPRESSED | (1 << 58) | (image.at(8) - 100), 0);
    image.set_l2(5, COMPRESSED | (image.at(8) + 600), 0);
    image.set_refcount(7, 1);
    image.set_refcount(8, 2);
    expect(&image, &[], Verdict::Clean);
    assert_eq!(report(&image).summary.compressed_entries, 2);
    image.set_refcount(8, 1);
    expect(&image, &[Class::RefcountTooLow], Verdict::Corrupt);
    image.set_refcount(8, 2);
    image.set_l2(5, COPIED | COMPRESSED | (image.at(8) + 600), 0);
    expect(&image, &[Class::InvalidCompressed], Verdict::Corrupt);
    // A compressed cluster in a cluster of plain data.
    image.set_l2(5, COMPRESSED | (image.at(5) + 600), 0);
    image.set_l2(0, image.at(5), 0);
    image.set_refcount(5, 2);
    image.set_refcount(8, 1);
    expect(&image, &[Class::Overlap], Verdict::Corrupt);
    let mut image = TestImage::with(3, 14, 4, true);
    image.grow(8);
    image.set_refcount(7, 1);
    image.set_l2(1, COMPRESSED | image.at(7), 1);
    expect(&image, &[Class::InvalidCompressed], Verdict::Corrupt);
}

#[test]
fn the_end_of_the_file() {
    // The last cluster may end anywhere.
    let mut image = TestImage::new();
    image.bytes.truncate(6 * 512 + 1);
    expect(&image, &[], Verdict::Clean);
    image.bytes.truncate(6 * 512);
    expect(&image, &[Class::DataBeyondEof], Verdict::Corrupt);
    let mut image = TestImage::new();
    image.set_refcount(90, 1);
    image.put64(image.at(3) + 8, image.at(90) | COPIED);
    expect(&image, &[Class::TableBeyondEof], Verdict::Corrupt);
    let mut image = TestImage::new();
    image.put64(40, image.at(90));
    assert_eq!(report(&image).count(Class::TableBeyondEof), 1);
    let mut image = TestImage::new();
    image.put64(image.at(1) + 8, image.at(90));
    assert_eq!(report(&image).count(Class::TableBeyondEof), 1);
}

#[test]
fn refblocks_named_twice_are_not_expanded() {
    let mut image = TestImage::new();
    image.put64(image.at(1) + 8, image.at(2));
    image.set_refcount(2, 2);
    expect(&image, &[Class::Overlap, Class::RefblockTwice], Verdict::Corrupt);
    assert_eq!(report(&image).leaks(), 0);
}

#[test]
fn tables_too_short() {
    let mut image = TestImage::new();
    image.put32(36, 1);
    expect(&image, &[Class::L1TooShort], Verdict::Corrupt);
    let mut image = TestImage::new();
    image.add_snapshot();
    image.put64(image.at(7) + 48, 1 << 40);
    expect(&image, &[Class::L1TooShort], Verdict::Corrupt);
}

#[test]
fn external_data_files() {
    let mut image = TestImage::new();
    image.put64(72, 4);
    image.set_l2(0, COPIED, 0);
    image.set_l2(2, image.at(2) | COPIED, 0);
    image.set_refcount(5, 0);
    image.set_refcount(6, 0);
    expect(&image, &[], Verdict::Clean);
    image.set_l2(2, image.at(2), 0);
    expect(&image, &[Class::CopiedClear], Verdict::Clean);
    image.set_l2(2, image.at(3) | COPIED, 0);
    expect(&image, &[Class::DataFileOffset], Verdict::Corrupt);
    image.set_l2(2, COMPRESSED | image.at(3), 0);
    expect(&image, &[Class::InvalidCompressed], Verdict::Corrupt);
}

#[test]
fn snapshot_entries() {
    let fault = |change: &dyn Fn(&mut TestImage), expected: SnapshotFault| {
        let mut image = TestImage::new();
        image.add_snapshot();
        change(&mut image);
        let report = report(&image);
        let found = report.findings().iter().any(
            |finding| matches!(finding, Finding::Snapshot { index: 0, fault, .. } if *fault == expected),
        );
        assert!(found, "{report}");
        assert_eq!(report.verdict(), Verdict::Corrupt);
    };
    fault(&|image| image.put32(image.at(7) + 36, 8), SnapshotFault::ExtraTooShort);
    fault(
        &|image| {
            image.put32(image.at(7) + 36, 1025);
            image.grow(11)
        },
        SnapshotFault::ExtraTooLong,
    );
    fault(&|image| image.put32(image.at(7) + 36, 1 << 20), SnapshotFault::Truncated);
    fault(&|image| image.put64(image.at(7), 7), SnapshotFault::L1Table);
    fault(&|image| image.put32(image.at(7) + 8, u32::MAX), SnapshotFault::L1Table);
}

/// One bitmap: directory in cluster 7, table in 8, data in 9.
fn bitmap_image() -> TestImage {
    let mut image = TestImage::new();
    image.grow(10);
    image.put64(88, 1);
    let mut data = [0; 24];
    data[3] = 1;
    data[15] = 32;
    data[16..].copy_from_slice(&image.at(7).to_be_bytes());
    image.extension(104, 0x2385_2875, &data);
    image.put64(image.at(7), image.at(8));
    image.put32(image.at(7) + 8, 1);
    image.put(image.at(7) + 16, &[1, 9, 0, 1]);
    image.put(image.at(7) + 24, b"b");
    image.put64(image.at(8), image.at(9));
    for cluster in 7..10 {
        image.set_refcount(cluster, 1);
    }
    image
}

#[test]
fn bitmaps() {
    expect(&bitmap_image(), &[], Verdict::Clean);
    let fault = |change: &dyn Fn(&mut TestImage), expected: BitmapFault| {
        let mut image = bitmap_image();
        change(&mut image);
        let report = report(&image);
        let found = report
            .findings()
            .iter()
            .any(|finding| matches!(finding, Finding::Bitmap { fault, .. } if *fault == expected));
        assert!(found, "{report}");
    };
    fault(&|image| image.put(image.at(7) + 16, &[2]), BitmapFault::Malformed);
    fault(&|image| image.put32(image.at(7) + 12, 8), BitmapFault::Malformed);
    fault(&|image| image.put(image.at(7) + 18, &[0, 9]), BitmapFault::DirectorySize);
    fault(&|image| image.put32(112, 2), BitmapFault::DirectorySize);
    fault(&|image| image.put64(image.at(7), image.at(8) + 8), BitmapFault::Table);
    fault(&|image| image.put32(image.at(7) + 8, 0), BitmapFault::TableTooShort);
    let mut image = bitmap_image();
    image.put64(image.at(8), 3);
    assert_eq!(report(&image).count(Class::ReservedBits), 1);
    image.put64(image.at(8), 1);
    expect(&image, &[Class::Leak], Verdict::LeaksOnly);
    image.put64(image.at(8), image.at(5));
    expect(&image, &[Class::Leak, Class::RefcountTooLow, Class::Overlap], Verdict::Corrupt);
    // Without the autoclear bit nothing of it is owned.
    let mut image = bitmap_image();
    image.put64(88, 0);
    expect(&image, &[Class::Leak], Verdict::LeaksOnly);
    let mut image = TestImage::new();
    image.put64(88, 1);
    expect(&image, &[Class::Header], Verdict::Corrupt);
}

#[test]
fn luks_headers_are_owned() {
    let mut image = TestImage::new();
    image.grow(9);
    image.put32(32, 2);
    let mut data = [0; 16];
    data[..8].copy_from_slice(&image.at(7).to_be_bytes());
    data[8..].copy_from_slice(&513u64.to_be_bytes());
    image.extension(104, 0x0537_be77, &data);
    image.set_refcount(7, 1);
    image.set_refcount(8, 1);
    expect(&image, &[], Verdict::Clean);
    image.put32(32, 0);
    expect_header_error(&image, HeaderError::LuksExtension);
}

#[test]
fn contradictions_in_the_header() {
    let image = |change: &dyn Fn(&mut TestImage), fault: HeaderFault| {
        let mut image = TestImage::new();
        change(&mut image);
        assert!(report(&image).findings().contains(&Finding::Header { fault }));
    };
    image(&|image| image.put64(88, 2), HeaderFault::RawDataFileWithoutDataFile);
    image(
        &|image| {
            image.put64(72, 4);
            image.put64(88, 2);
            image.put64(8, 400);
        },
        HeaderFault::RawDataFileWithBacking,
    );
    image(
        &|image| {
            image.add_snapshot();
            image.put64(72, 4);
        },
        HeaderFault::SnapshotsWithDataFile,
    );
}

#[test]
fn unusable_headers() {
    let error = |at: u64, value: u32, expected: HeaderError| {
        let mut image = TestImage::new();
        image.put32(at, value);
        expect_header_error(&image, expected);
    };
    error(0, 1, HeaderError::Magic);
    error(4, 4, HeaderError::Version(4));
    error(20, 8, HeaderError::ClusterBits(8));
    error(20, 22, HeaderError::ClusterBits(22));
    error(76, 16, HeaderError::ClusterBits(9));
    error(76, 32, HeaderError::UnknownIncompatible(32));
    error(76, 8, HeaderError::CompressionType(0));
    error(96, 7, HeaderError::RefcountOrder(7));
    error(100, 96, HeaderError::HeaderLength(96));
    error(100, 108, HeaderError::HeaderLength(108));
    error(100, 1024, HeaderError::HeaderLength(1024));
    error(32, 3, HeaderError::CryptMethod(3));
    error(32, 2, HeaderError::LuksExtension);
    error(44, 1, HeaderError::L1Table { offset: 1, entries: 2 });
    error(36, 1 << 23, HeaderError::L1Table { offset: 3 * 512, entries: 1 << 23 });
    error(56, 0, HeaderError::RefcountTable { offset: 512, clusters: 0 });
    error(56, 16385, HeaderError::RefcountTable { offset: 512, clusters: 16385 });
    error(60, 65537, HeaderError::SnapshotTable { offset: 0, entries: 65537 });
    error(12, 513, HeaderError::BackingName { offset: 513, len: 0 });
    let mut image = TestImage::new();
    image.put32(104, 1);
    image.put32(108, 4000);
    expect_header_error(&image, HeaderError::ExtensionTooLong { offset: 104, kind: 1, len: 4000 });
}

#[test]
fn findings_are_counted_beyond_the_limit() {
    let mut image = TestImage::new();
    image.grow(60);
    for cluster in 10..60 {
        image.set_refcount(cluster, 1);
    }
    let report = check(&image.bytes, Limits { findings_max: 3, ..Limits::default() }).unwrap();
    assert_eq!((report.findings().len(), report.leaks(), report.dropped()), (3, 50, 47));
    assert!(report.to_string().ends_with("... and 47 more\n0 corruptions, 50 leaked clusters"));
}

#[test]
fn one_class_for_each_finding_text() {
    assert_eq!(Class::ALL.map(|class| class as usize).to_vec(), (0..Class::ALL.len()).collect::<Vec<_>>());
    assert_eq!(Class::CopiedClear.severity(), Severity::Note);
    assert_eq!(EntryFault::ReservedBits.to_string(), "reserved bits set");
}
