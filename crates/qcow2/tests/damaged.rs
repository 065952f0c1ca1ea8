//! Damaged images: what is found, what is refused, what is repaired. Each case was once answered wrongly.

mod support;

use std::sync::Arc;

use cowbell_block::mem::MemNode;
use cowbell_block::{Access, Buf, Fix, Node, Request};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};
use support::{create, open, read, run, write};

const CLUSTER: u64 = 4096;

fn image(refcount_order: u32) -> Arc<MemNode> {
    let file =
        create(&CreateOptions { size: 1 << 20, cluster_bits: 12, refcount_order, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    write(&*node, 0, &[5; 5 * 4096]);
    run(node.close()).expect("closed");
    file
}

fn word(file: &MemNode, offset: u64) -> u64 {
    let bytes = read(file, offset, 8);
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

fn set(file: &MemNode, offset: u64, bytes: &[u8]) {
    run(file.submit(Request::write(offset, Buf::copy_of(bytes))).finish()).into_bufs().expect("written");
}

fn l1_offset(file: &MemNode) -> u64 {
    word(file, 40)
}

fn l2_offset(file: &MemNode) -> u64 {
    word(file, l1_offset(file)) & 0x00ff_ffff_ffff_fe00
}

/// Checks a copy that nobody else may write; `fix` as given.
fn check(file: &Arc<MemNode>, fix: Fix) -> cowbell_block::CheckReport {
    let options = OpenOptions { access: Access::ReadWrite, skip_repair: true, ..Default::default() };
    let node = run(Qcow2::open(file.clone(), None, options)).expect("opens for a check");
    run(node.check(fix)).expect("can be checked")
}

#[test]
fn a_refcount_too_large_for_its_width_is_reported_and_not_repaired() {
    let file = image(0);
    let l2 = l2_offset(&file);
    let first = word(&file, l2);
    set(&file, l2 + 32, &first.to_be_bytes());
    for fix in [Fix::None, Fix::Leaks, Fix::All] {
        let report = check(&file, fix);
        assert!(report.corruptions > 0, "{report:?}");
        assert!(report.findings.iter().any(|f| f.contains("overflow cluster")), "{:?}", report.findings);
    }
}

#[test]
fn reserved_bits_of_an_empty_l1_entry_are_found() {
    let file = create(&CreateOptions { size: 1 << 30, cluster_bits: 12, ..Default::default() });
    set(&file, l1_offset(&file) + 8, &0xffu64.to_be_bytes());
    let report = check(&file, Fix::None);
    assert!(report.corruptions >= 1);
    assert_eq!(
        report.findings.first().map(|finding| &**finding),
        Some("ERROR found L1 entry with reserved bits set: ff")
    );
}

#[test]
fn a_snapshot_table_beyond_the_end_does_not_hide_the_active_disk() {
    let file = image(4);
    set(&file, 60, &3u32.to_be_bytes());
    set(&file, 64, &(1u64 << 30).to_be_bytes());
    let node = run(Qcow2::open(file.clone(), None, OpenOptions::default())).expect("opens");
    assert_eq!(read(&*node, 0, 4096), vec![5; 4096]);
    assert!(check(&file, Fix::None).corruptions >= 3, "three incomplete entries");
}

#[test]
fn a_wrong_snapshot_is_reported_and_the_rest_is_used() {
    let file = image(4);
    let table = file.len().next_multiple_of(CLUSTER);
    let mut entry = vec![0u8; 40 + 16 + 2];
    entry[0..8].copy_from_slice(&0x1001u64.to_be_bytes());
    entry[8..12].copy_from_slice(&1u32.to_be_bytes());
    entry[12..14].copy_from_slice(&1u16.to_be_bytes());
    entry[14..16].copy_from_slice(&1u16.to_be_bytes());
    entry[36..40].copy_from_slice(&16u32.to_be_bytes());
    entry[56..].copy_from_slice(b"1s");
    set(&file, table, &entry);
    let refblock = word(&file, word(&file, 48));
    set(&file, refblock + table / CLUSTER * 2, &1u16.to_be_bytes());
    set(&file, 60, &1u32.to_be_bytes());
    set(&file, 64, &table.to_be_bytes());
    let report = check(&file, Fix::None);
    let expect = "ERROR snapshot 1 (s) l1_offset=0x1001: L1 table is not cluster aligned";
    assert!(report.findings.iter().any(|f| f.starts_with(expect)), "{:?}", report.findings);
    let node = open(&file, None, OpenOptions::default());
    write(&*node, 64 << 10, &[6; 512]);
    assert_eq!(read(&*node, 64 << 10, 512), vec![6; 512]);
}

#[test]
fn a_table_inside_another_is_refused_before_anything_is_written() {
    let file = image(4);
    let reftable = word(&file, 48);
    set(&file, l1_offset(&file), &(reftable | 1 << 63).to_be_bytes());
    let before = file.content();
    let node = open(&file, None, OpenOptions::default());
    let refused = run(node.submit(Request::write(0, Buf::zeroed(512))).finish()).result;
    assert!(refused.is_err());
    let after = file.content();
    assert!(before[80..] == after[80..], "only the corrupt bit may change");
    assert_eq!(after[79] & 2, 2, "the corrupt bit is set");
}

#[test]
fn leaks_and_low_refcounts_are_repaired_and_stay_repaired() {
    let file = image(4);
    let refblock = word(&file, word(&file, 48));
    set(&file, refblock + 2 * 4, &0u16.to_be_bytes());
    set(&file, refblock + 2 * 20, &7u16.to_be_bytes());
    let report = check(&file, Fix::All);
    assert_eq!((report.corruptions, report.leaks, report.leaks_fixed), (0, 0, 1), "{report:?}");
    assert!(report.corruptions_fixed >= 1);
    let again = check(&file, Fix::All);
    assert_eq!((again.corruptions_fixed, again.leaks_fixed), (0, 0));
    support::assert_clean(&file);
}
