use super::*;

fn sample() -> Header {
    Header {
        version: 3,
        cluster_bits: 16,
        size: 1 << 30,
        crypt_method: 0,
        l1_entries: 2,
        l1_offset: HostOffset(0x30000),
        reftable_offset: HostOffset(0x10000),
        reftable_clusters: 1,
        snapshot_count: 0,
        snapshots_offset: HostOffset(0),
        incompatible: Incompatible::empty(),
        compatible: LAZY_REFCOUNTS,
        autoclear: 0,
        refcount_order: 4,
        compression: CompressionType::Zlib,
        backing_file: Some("base.raw".into()),
        backing_format: Some("raw".into()),
        unknown_fields: vec![1, 2, 3, 4, 5, 6, 7, 8],
        extensions: vec![Header::feature_name_table(), Extension { kind: 0x1234, data: vec![9; 5] }],
    }
}

fn check(change: impl FnOnce(&mut Vec<u8>), expect: HeaderError) {
    let mut bytes = sample().encode().unwrap();
    bytes.resize(65536, 0);
    change(&mut bytes);
    let checked = Header::parse(&bytes).and_then(|header| header.check_snapshots());
    let text = checked.unwrap_err().to_string();
    assert_eq!(text, expect.to_string());
}

#[test]
fn everything_survives_a_round_trip() {
    let mut bytes = sample().encode().unwrap();
    bytes.resize(65536, 0);
    assert_eq!(Header::parse(&bytes).unwrap(), sample());
}

#[test]
fn a_beginning_is_enough_when_all_of_the_header_lies_in_it() {
    let short = sample().encode().unwrap();
    assert!(short.len() < 4096);
    let long = Extension { kind: 0x5678, data: vec![7; 5000] };
    let long = Header { extensions: vec![long], ..sample() }.encode().unwrap();
    for (mut bytes, covers) in [(short, true), (long, false)] {
        bytes.resize(65536, 0);
        assert_eq!(Header::is_covered_by(&bytes[..4096]).unwrap(), covers);
        assert!(Header::is_covered_by(&bytes).unwrap());
        let whole = Header::parse(&bytes).unwrap();
        match Header::parse(&bytes[..4096]) {
            Ok(part) => assert!(covers && part == whole),
            Err(e) => assert!(!covers && e.to_string() == HeaderError::Short.to_string()),
        }
    }
    // The name of the backing file may lie behind the extensions.
    let mut bytes = sample().encode().unwrap();
    bytes.resize(65536, 0);
    bytes[8..16].copy_from_slice(&5000u64.to_be_bytes());
    assert!(!Header::is_covered_by(&bytes[..4096]).unwrap());
}

#[test]
fn broken_rules_are_named() {
    let put32 = |at: usize, v: u32| move |b: &mut Vec<u8>| b[at..at + 4].copy_from_slice(&v.to_be_bytes());
    let put64 = |at: usize, v: u64| move |b: &mut Vec<u8>| b[at..at + 8].copy_from_slice(&v.to_be_bytes());
    check(put32(0, 7), HeaderError::Magic);
    check(put32(4, 4), HeaderError::Version(4));
    check(put32(20, 22), HeaderError::ClusterBits(22));
    check(put64(8, 1 << 40), HeaderError::BackingOffset);
    check(put32(16, 2000), HeaderError::BackingLength);
    check(put32(36, 1 << 30), HeaderError::L1Size);
    check(put64(40, 0x30001), HeaderError::L1Offset);
    check(put64(40, u64::MAX << 16), HeaderError::L1Offset);
    check(put32(36, 1), HeaderError::L1TooSmall);
    check(put64(48, 512), HeaderError::ReftableOffset);
    check(put32(56, 129), HeaderError::ReftableSize);
    check(put32(60, 65537), HeaderError::SnapshotCount);
    check(put64(64, 512), HeaderError::SnapshotOffset);
    check(put64(24, u64::MAX), HeaderError::SizeTooLarge);
    check(put32(96, 7), HeaderError::RefcountOrder(7));
    check(put32(100, 103), HeaderError::Short);
    check(put32(100, 65537), HeaderError::LongerThanCluster);
    check(put32(32, 3), HeaderError::CryptMethod(3));
    check(put64(72, 1 << 3), HeaderError::CompressionBit(false));
    check(put64(88, 2), HeaderError::RawDataWithoutFile);
    check(put32(124, 1 << 20), HeaderError::ExtensionLength);
    check(|b| b[104] = 2, HeaderError::CompressionType(2));
    check(
        put64(72, 1 << 63),
        HeaderError::UnknownFeatures("Unknown incompatible feature: 8000000000000000".into()),
    );
}

#[test]
fn padded_names_end_at_their_first_nul() {
    let padded = |name: &str| Some(format!("{name}\0\0\0"));
    let header = Header { backing_file: padded("base"), backing_format: padded("raw"), ..sample() };
    let mut bytes = header.encode().unwrap();
    bytes.resize(65536, 0);
    let read = Header::parse(&bytes).unwrap();
    assert_eq!((read.backing_file.as_deref(), read.backing_format.as_deref()), (Some("base"), Some("raw")));
}

#[test]
fn a_header_in_two_parts_says_the_same() {
    let header = sample();
    let whole = header.encode().unwrap();
    assert_eq!(Header::used_bytes(&whole), whole.len());
    let (fields, rest) = header.encode_apart(2048);
    let mut apart = vec![0xee; 65536];
    apart[..fields.len()].copy_from_slice(&fields);
    apart[2048..2048 + rest.len()].copy_from_slice(&rest);
    assert_eq!(Header::parse(&apart).unwrap(), header);
    assert_eq!(Header::used_bytes(&apart), 2048 + rest.len());
}

#[test]
fn truncated_input_never_panics() {
    let bytes = sample().encode().unwrap();
    for len in 0..bytes.len() {
        assert!(Header::parse(&bytes[..len]).is_err());
    }
}
