//! The guest's view of images built by hand.

use crate::testimage::{COMPRESSED, COPIED, TestImage};
use crate::{CheckError, EntryFault, Extent, GuestView, Source, read_guest};

fn expect(image: &TestImage, offset: u64, len: u64, extents: &[(u64, u64, Source)]) {
    let found = read_guest(&image.bytes, offset, len).unwrap();
    let expected: Vec<Extent> =
        extents.iter().map(|&(offset, len, source)| Extent { offset, len, source }).collect();
    assert_eq!(found, expected);
}

#[test]
fn data_zero_and_unallocated_are_merged() {
    let mut image = TestImage::new();
    image.set_l2(1, image.at(6) | COPIED, 0);
    image.set_l2(2, 1, 0);
    image.set_l2(3, image.at(5) | 1, 0);
    expect(
        &image,
        256,
        u64::MAX,
        &[
            (256, 768, Source::Data { host: 5 * 512 + 256 }),
            (1024, 1024, Source::Zero),
            // 128 guest clusters in all, the second half below an empty L1 entry.
            (2048, 128 * 512 - 2048, Source::Unallocated),
        ],
    );
    expect(&image, 128 * 512, 10, &[]);
    expect(&image, 0, 0, &[]);
}

#[test]
fn compressed_extents_stay_apart() {
    let mut image = TestImage::with(3, 12, 4, false);
    let entry = COMPRESSED | (1 << 58) | 0x7100;
    image.set_l2(0, entry, 0);
    image.set_l2(1, entry, 0);
    let source = |within| Source::Compressed { host: 0x7100, bytes: 1024 - 0x100, within };
    expect(&image, 512, 4096, &[(512, 3584, source(512)), (4096, 512, source(0))]);
}

#[test]
fn subclusters_have_their_own_source() {
    let mut image = TestImage::with(3, 14, 4, true);
    let host = image.at(5);
    image.set_l2(0, host | COPIED, (1 << 34) | (1 << 36) | 0b1_0011);
    expect(
        &image,
        512,
        2560,
        &[
            (512, 512, Source::Data { host: host + 512 }),
            (1024, 512, Source::Zero),
            (1536, 512, Source::Unallocated),
            (2048, 512, Source::Invalid(EntryFault::SubclusterBoth)),
            (2560, 512, Source::Unallocated),
        ],
    );
    image.set_l2(0, 0, (1 << 32) | 2);
    expect(&image, 0, 512, &[(0, 512, Source::Invalid(EntryFault::SubclusterWithoutHost))]);
}

#[test]
fn undefined_entries_are_invalid() {
    let mut image = TestImage::with(2, 12, 4, false);
    image.set_l2(0, 1, 0);
    image.set_l2(1, 0x5200, 0);
    expect(
        &image,
        0,
        8192,
        &[
            (0, 4096, Source::Invalid(EntryFault::ZeroInV2)),
            (4096, 4096, Source::Invalid(EntryFault::Unaligned)),
        ],
    );
    image.put64(image.at(3), 0x4200);
    expect(&image, 0, 8192, &[(0, 8192, Source::Invalid(EntryFault::Unaligned))]);
}

#[test]
fn the_data_file_is_named() {
    let mut image = TestImage::new();
    image.put64(72, 4);
    image.set_l2(0, COPIED, 0);
    image.set_l2(1, 512 | COPIED, 0);
    expect(&image, 0, 1024, &[(0, 1024, Source::DataFile { offset: 0 })]);
}

#[test]
fn snapshots_keep_their_view() {
    let mut image = TestImage::new();
    image.add_snapshot();
    // The active disk loses its first table and shrinks.
    image.put64(image.at(3), 0);
    image.put64(24, 4096);
    let active = GuestView::active(&image.bytes).unwrap();
    let snapshot = GuestView::snapshot(&image.bytes, 0).unwrap();
    assert_eq!((active.size(), snapshot.size()), (4096, 128 * 512));
    let mut extents = Vec::new();
    active.extents(&image.bytes, 0, 512, &mut extents).unwrap();
    snapshot.extents(&image.bytes, 0, 512, &mut extents).unwrap();
    let sources: Vec<Source> = extents.iter().map(|extent| extent.source).collect();
    assert_eq!(sources, [Source::Unallocated, Source::Data { host: 5 * 512 }]);
    let missing = GuestView::snapshot(&image.bytes, 1);
    assert!(matches!(missing, Err(CheckError::NoSuchSnapshot { index: 1 })));
}

#[test]
fn tables_that_are_too_short_end_in_unallocated() {
    let mut image = TestImage::new();
    image.put64(24, u64::MAX);
    let extents = read_guest(&image.bytes, u64::MAX - 1024, 1024).unwrap();
    assert_eq!(extents, [Extent { offset: u64::MAX - 1024, len: 1024, source: Source::Unallocated }]);
}
