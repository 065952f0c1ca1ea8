//! Damaged snapshot tables: refused when the image is to be used, told by a check, repaired without a moment at which
//! a cut would lose a snapshot.

mod support;

use std::sync::Arc;

use cowbell_block::mem::MemNode;
use cowbell_block::{
    Access, Buf, CheckReport, Fix, NewSnapshot, Node, Request, Result, SnapshotChange, SnapshotName,
};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};
use support::filmed::Filmed;
use support::{assert_clean, create, open, read, run, write};

const CLUSTER: u64 = 4096;
const SIZE: u64 = 1 << 20;

/// An entry as it lies in the table.
#[derive(Clone)]
struct Entry {
    l1: u64,
    l1_entries: u32,
    extra: Vec<u8>,
    id: Vec<u8>,
    name: Vec<u8>,
}

impl Entry {
    fn encode(&self) -> Vec<u8> {
        let mut out = self.l1.to_be_bytes().to_vec();
        out.extend(self.l1_entries.to_be_bytes());
        out.extend((self.id.len() as u16).to_be_bytes());
        out.extend((self.name.len() as u16).to_be_bytes());
        out.extend([0; 20]);
        out.extend((self.extra.len() as u32).to_be_bytes());
        out.extend([&self.extra[..], &self.id, &self.name].concat());
        out.resize(out.len().next_multiple_of(8), 0);
        out
    }
}

fn word(file: &MemNode, offset: u64) -> u64 {
    u64::from_be_bytes(read(file, offset, 8).try_into().expect("eight bytes"))
}

fn half(file: &MemNode, offset: u64) -> u32 {
    (word(file, offset) >> 32) as u32
}

fn set(file: &MemNode, offset: u64, bytes: &[u8]) {
    run(file.submit(Request::write(offset, Buf::copy_of(bytes))).finish()).into_bufs().expect("written");
}

/// Three snapshots, each with other data in its first clusters; the disk is newer than all of them.
fn image(version: u32) -> Arc<MemNode> {
    let file = create(&CreateOptions { size: SIZE, cluster_bits: 12, version, ..Default::default() });
    let node = open(&file, None, OpenOptions::default());
    for i in 0..3u8 {
        write(&*node, u64::from(i) * CLUSTER, &[i + 1; 3 * CLUSTER as usize]);
        let new = NewSnapshot { name: format!("s{i}"), ..NewSnapshot::default() };
        run(node.change_snapshots(SnapshotChange::Create(new))).expect("made");
    }
    write(&*node, 0, &[9; CLUSTER as usize]);
    run(node.close()).expect("closed");
    file
}

fn entries(file: &MemNode) -> Vec<Entry> {
    let mut at = word(file, 64);
    (0..half(file, 60))
        .map(|_| {
            let (id, name) = ((half(file, at + 12) >> 16) as usize, (half(file, at + 12) & 0xffff) as usize);
            let extra = half(file, at + 36) as usize;
            let rest = read(file, at + 40, extra + id + name);
            let entry = Entry {
                l1: word(file, at),
                l1_entries: half(file, at + 8),
                extra: rest[..extra].to_vec(),
                id: rest[extra..extra + id].to_vec(),
                name: rest[extra + id..].to_vec(),
            };
            at += (40 + rest.len() as u64).next_multiple_of(8);
            entry
        })
        .collect()
}

/// Puts a table with these entries behind everything, counted.
fn put_table(file: &MemNode, entries: &[Entry]) {
    let bytes: Vec<u8> = entries.iter().flat_map(Entry::encode).collect();
    let refblock = word(file, word(file, 48));
    let count = |cluster: u64, n: u16| set(file, refblock + cluster * 2, &n.to_be_bytes());
    count(word(file, 64) / CLUSTER, 0);
    let place = file.len().next_multiple_of(CLUSTER);
    set(file, place, &bytes);
    (place / CLUSTER..(place + bytes.len() as u64).div_ceil(CLUSTER)).for_each(|cluster| count(cluster, 1));
    set(file, 60, &(entries.len() as u32).to_be_bytes());
    set(file, 64, &place.to_be_bytes());
}

fn for_check(file: Arc<dyn Node>) -> Arc<Qcow2> {
    let options = OpenOptions { access: Access::ReadWrite, skip_repair: true, ..Default::default() };
    run(Qcow2::open(file, None, options)).expect("opens for a check")
}

fn check(file: &Arc<MemNode>, fix: Fix) -> Result<CheckReport> {
    run(for_check(file.clone()).check(fix))
}

fn refused(file: &Arc<MemNode>) -> String {
    let opened = run(Qcow2::open(file.clone(), None, OpenOptions::default()));
    opened.err().map(|e| e.to_string()).unwrap_or_default()
}

/// The disk and all snapshots show what they should.
fn assert_content(file: &Arc<MemNode>, snapshots: u8) {
    let node = open(file, None, OpenOptions::default());
    assert_eq!(read(&*node, 0, 1), [9]);
    for i in 0..snapshots {
        let view = run(node.at_snapshot(SnapshotName::Name(format!("s{i}")))).expect("there");
        let at = |cluster: u8| read(&*view, u64::from(cluster) * CLUSTER, 1)[0];
        assert_eq!((at(0), at(i), at(i + 2), at(i + 3)), (1, i + 1, i + 1, 0), "snapshot {i}");
        run(view.close()).expect("closed");
    }
}

/// Repairs while each write is filmed. Each state on the way shows the content and repairs to the same end; a second
/// repair changes nothing.
fn repair_filmed(file: &Arc<MemNode>, snapshots: u8) -> CheckReport {
    let filmed = Arc::new(Filmed::new(file));
    let report = run(for_check(filmed.clone()).check(Fix::All)).expect("repaired");
    assert_eq!((report.corruptions, report.leaks, report.check_errors), (0, 0, 0), "{:?}", report.findings);
    for frame in filmed.frames() {
        let cut = Arc::new(MemNode::with_content(&frame));
        check(&cut, Fix::All).expect("repaired after a cut");
        assert_clean(&cut);
        assert_content(&cut, snapshots);
    }
    assert_clean(file);
    assert_content(file, snapshots);
    let before = file.content();
    let again = check(file, Fix::All).expect("checked");
    assert_eq!((again.corruptions_fixed, again.leaks_fixed), (0, 0));
    assert!(file.content() == before, "a second repair changes the image");
    report
}

#[test]
fn short_entries_are_completed_in_version_3() {
    for len in [0, 8, 15] {
        let file = image(3);
        let mut table = entries(&file);
        table[1].extra.truncate(len);
        put_table(&file, &table);
        let found = check(&file, Fix::None).expect("checked");
        assert_eq!(found.corruptions, 1);
        assert_eq!(found.findings, ["ERROR snapshot table entry 1 is incomplete"]);
        let report = repair_filmed(&file, 3);
        assert_eq!(report.corruptions_fixed, 1);
        assert_eq!(report.findings, ["Repairing snapshot table entry 1 is incomplete"]);
        assert!(entries(&file).iter().all(|entry| entry.extra.len() == 24));
    }
}

#[test]
fn version_2_knows_no_extra_data() {
    let file = image(2);
    let mut table = entries(&file);
    table.iter_mut().for_each(|entry| entry.extra.clear());
    put_table(&file, &table);
    let before = file.content();
    let report = check(&file, Fix::All).expect("checked");
    assert_eq!((report.corruptions, report.corruptions_fixed), (0, 0), "{:?}", report.findings);
    assert!(file.content() == before);
}

#[test]
fn too_much_extra_data_is_refused_and_cut_off() {
    for version in [2, 3] {
        let file = image(version);
        let mut table = entries(&file);
        table[1].extra.resize(5000, b'U');
        put_table(&file, &table);
        let text = "Too much extra metadata in snapshot table entry 1\n\
                    You can force-remove this extra metadata with qemu-img check -r all";
        assert_eq!(refused(&file), text);
        for fix in [Fix::None, Fix::Leaks] {
            let error = check(&file, fix).expect_err("the table cannot be read");
            assert_eq!(error.to_string(), format!("failed to read the snapshot table: {text}"));
        }
        let report = repair_filmed(&file, 3);
        assert_eq!(report.corruptions_fixed, 1);
        let line = "Discarding too much extra metadata in snapshot table entry 1 (5000 > 1024)";
        assert_eq!(report.findings, [line]);
        let lens: Vec<usize> = entries(&file).iter().map(|entry| entry.extra.len()).collect();
        assert_eq!(lens, [24, 1024, 24]);
    }
}

#[test]
fn a_repair_goes_on_after_other_damage() {
    let file = image(3);
    let mut table = entries(&file);
    table[2].extra.clear();
    put_table(&file, &table);
    let refblock = word(&file, word(&file, 48));
    // A leak, and a lost reference of the disk's L2 table.
    set(&file, refblock + 200 * 2, &1u16.to_be_bytes());
    let l2 = word(&file, word(&file, 40)) & 0x00ff_ffff_ffff_fe00;
    set(&file, refblock + l2 / CLUSTER * 2, &0u16.to_be_bytes());
    let report = repair_filmed(&file, 3);
    assert_eq!(report.leaks_fixed, 1);
    assert!(report.corruptions_fixed >= 2, "{report:?}");
}

#[test]
fn a_repair_finds_room_where_no_block_counts() {
    // A block of 512-byte clusters and 64-bit refcounts counts 64 clusters.
    let options = CreateOptions { size: 64 << 10, cluster_bits: 9, refcount_order: 6, ..Default::default() };
    let file = create(&options);
    let node = open(&file, None, OpenOptions::default());
    let new = NewSnapshot { name: "s0".into(), ..NewSnapshot::default() };
    run(node.change_snapshots(SnapshotChange::Create(new))).expect("made");
    run(node.close()).expect("closed");
    let table = word(&file, 64);
    let mut entry = entries(&file).remove(0);
    entry.extra.clear();
    set(&file, table, &entry.encode());
    // All that is counted is in use.
    let blocks_are_full = |_: &u64| {
        let report = check(&file, Fix::None).expect("checked");
        assert_eq!((report.corruptions, report.leaks), (1, 0), "{:?}", report.findings);
        report.image_end_offset.is_multiple_of(64 << 9)
    };
    let full = (0..100).find(|cluster| {
        let node = open(&file, None, OpenOptions::default());
        write(&*node, cluster << 9, &[9; 512]);
        run(node.close()).expect("closed");
        blocks_are_full(cluster)
    });
    let last = full.expect("blocks become full");
    let report = check(&file, Fix::All).expect("repaired");
    assert_eq!((report.corruptions, report.leaks, report.corruptions_fixed), (0, 0, 1), "{report:?}");
    assert_clean(&file);
    assert_eq!(entries(&file)[0].extra.len(), 24);
    let node = open(&file, None, OpenOptions::default());
    assert!(read(&*node, 0, (last as usize + 1) << 9).iter().all(|byte| *byte == 9));
}

#[test]
fn more_snapshots_than_there_may_be_are_dropped_from_the_end() {
    let file = create(&CreateOptions { size: SIZE, cluster_bits: 16, ..Default::default() });
    let empty = Entry { l1: 0, l1_entries: 0, extra: vec![0; 16], id: b"7".to_vec(), name: b"x".to_vec() };
    let bytes = empty.encode().repeat(65_537);
    let place = 1 << 20;
    set(&file, place, &bytes);
    let refblock = word(&file, word(&file, 48));
    for cluster in place >> 16..(place + bytes.len() as u64).div_ceil(1 << 16) {
        set(&file, refblock + cluster * 2, &1u16.to_be_bytes());
    }
    set(&file, 60, &65_537u32.to_be_bytes());
    set(&file, 64, &place.to_be_bytes());
    assert_eq!(refused(&file), "Snapshot table too large");
    let error = check(&file, Fix::Leaks).expect_err("too many");
    assert_eq!(
        error.to_string(),
        "snapshot table too large\nYou can force-remove all 1 overhanging snapshots with qemu-img check -r all"
    );
    let report = check(&file, Fix::All).expect("repaired");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:?}", report.findings.first());
    // The last entry had a cluster of its own.
    assert_eq!((report.corruptions_fixed, report.leaks_fixed), (1, 1));
    assert_eq!(report.findings[0], "Discarding 1 overhanging snapshots");
    assert_eq!(half(&file, 60), 65_536);
    assert_clean(&file);
}

#[test]
fn a_table_that_is_too_long_loses_its_end() {
    let options = CreateOptions { size: SIZE, cluster_bits: 21, ..Default::default() };
    let file = create(&options);
    let place = 16u64 << 20;
    let name = vec![b'n'; 65_000];
    let entry = Entry { l1: 0, l1_entries: 0, extra: vec![0; 24], id: b"1".to_vec(), name };
    let bytes = entry.encode();
    let count = (64u64 << 20) / bytes.len() as u64 + 3;
    let whole: Vec<u8> = bytes.iter().copied().cycle().take(bytes.len() * count as usize).collect();
    set(&file, place, &whole);
    let refblock = word(&file, word(&file, 48));
    for cluster in place >> 21..(place + whole.len() as u64).div_ceil(1 << 21) {
        set(&file, refblock + cluster * 2, &1u16.to_be_bytes());
    }
    set(&file, 60, &(count as u32).to_be_bytes());
    set(&file, 64, &place.to_be_bytes());
    let text = "Snapshot table is too big\n\
                You can force-remove all 3 overhanging snapshots with qemu-img check -r all";
    assert_eq!(refused(&file), text);
    let report = check(&file, Fix::All).expect("repaired");
    assert_eq!((report.corruptions, report.leaks, report.corruptions_fixed), (0, 0, 3));
    assert_eq!(report.findings[0], "Discarding 3 overhanging snapshots (snapshot table is too big)");
    assert_eq!(u64::from(half(&file, 60)), count - 3);
    assert_eq!(refused(&file), "");
}

#[test]
fn a_table_that_cannot_be_where_it_is_ends_the_check() {
    for place in [0x50200u64, 1 << 63] {
        let file = image(3);
        set(&file, 64, &place.to_be_bytes());
        assert_eq!(refused(&file), "Snapshot table offset invalid");
        for fix in [Fix::None, Fix::All] {
            let error = check(&file, fix).expect_err("no table");
            assert_eq!(error.to_string(), "snapshot table offset invalid");
        }
    }
}

/// Found by the fuzzer: the table lay in the header, and what it said followed the repair of the refcounts.
#[test]
fn a_table_in_the_header_is_repaired_once() {
    let file = image(3);
    set(&file, 60, &2u32.to_be_bytes());
    set(&file, 64, &0u64.to_be_bytes());
    let l2 = word(&file, word(&file, 40)) & 0x00ff_ffff_ffff_fe00;
    set(&file, l2 + 64, &(1u64 << 63 | word(&file, word(&file, 48))).to_be_bytes());
    check(&file, Fix::All).expect("repaired as far as it can be");
    let before = file.content();
    let again = check(&file, Fix::All).expect("checked");
    assert_eq!((again.corruptions_fixed, again.leaks_fixed), (0, 0), "{:?}", again.findings);
    assert!(file.content() == before);
}
