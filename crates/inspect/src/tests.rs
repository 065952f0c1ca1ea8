use super::*;
use cowbell_block::mem::MemNode;
use cowbell_block::{Child, NewSnapshot, Node, SnapshotChange};
use cowbell_qcow2::{CreateOptions, OpenOptions, Qcow2};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

fn run<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}

/// An image with two snapshots and names of other files.
fn image() -> Vec<u8> {
    let file = Arc::new(MemNode::new(0));
    let options = CreateOptions {
        size: 1 << 30,
        backing_file: Some("../base.raw".into()),
        backing_format: Some("raw".into()),
        ..CreateOptions::default()
    };
    run(cowbell_qcow2::create(&Child::new(file.clone()), None, &options)).expect("valid");
    let options = OpenOptions { access: cowbell_block::Access::ReadWrite, ..OpenOptions::default() };
    let backing: Arc<dyn Node> = Arc::new(MemNode::new(1 << 30));
    let node = run(Qcow2::open(file.clone(), Some(backing), options)).expect("sound");
    for name in ["first", "sec\u{1b}ond"] {
        let new = NewSnapshot { name: name.into(), ..NewSnapshot::default() };
        run(node.change_snapshots(SnapshotChange::Create(new))).expect("made");
    }
    run(node.close()).expect("closed");
    file.content()
}

fn certain(report: &Report) -> Vec<&str> {
    report.candidates.iter().filter(|c| c.certainty >= CERTAIN).map(|c| c.format.as_str()).collect()
}

fn remarks(report: &Report) -> Vec<(Severity, &str)> {
    let all = report.candidates.iter().flat_map(|c| &c.remarks).chain(&report.remarks);
    all.map(|remark| (remark.severity, remark.text.as_str())).collect()
}

#[test]
fn a_sound_image_is_told_as_it_is() {
    let report = inspect(&image());
    assert_eq!((certain(&report), remarks(&report)), (vec!["qcow2"], vec![]));
    let found = &report.candidates[0];
    assert_eq!(
        (&found.facts["virtual-size"], &found.facts["cluster-size"]),
        (&(1u64 << 30).into(), &65536.into())
    );
    assert_eq!(found.facts["header-accepted"], true);
    assert_eq!(
        (found.references[0].name.as_str(), found.references[0].kind),
        ("../base.raw", reference::Kind::Outside)
    );
    let names: Vec<_> =
        found.facts["snapshots"].as_array().expect("a list").iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["first", "sec\\u{1b}ond"]);
}

#[test]
fn claims_beyond_the_limits_are_named() {
    let mut bytes = image();
    bytes[79] |= 0x80;
    bytes[36..40].copy_from_slice(&u32::MAX.to_be_bytes());
    bytes[60..64].copy_from_slice(&u32::MAX.to_be_bytes());
    bytes[56..60].copy_from_slice(&u32::MAX.to_be_bytes());
    let report = inspect(&bytes);
    let limits: Vec<_> =
        remarks(&report).into_iter().filter(|r| r.0 == Severity::Limit).map(|r| r.1).collect();
    for word in [
        "feature bits [7]",
        "L1 table has 4294967295",
        "4294967295 snapshots",
        "refcount table has",
        "not be opened",
    ] {
        assert!(limits.iter().any(|line| line.contains(word)), "{word}: {limits:?}");
    }
}

#[test]
fn a_guest_that_writes_a_header_is_noticed() {
    let mut disk = vec![0; 1 << 20];
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk[446..462].copy_from_slice(&[0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 4, 0, 0]);
    let report = inspect(&disk);
    assert_eq!((report.is_ambiguous(), certain(&report)), (false, vec![]));
    let head = image();
    disk[..440].copy_from_slice(&head[..440]);
    let report = inspect(&disk);
    assert!(report.is_ambiguous() && certain(&report) == ["qcow2"], "{report:?}");
    // And a footer at the end makes it a third thing.
    let len = disk.len();
    let mut footer = [0; 512];
    footer[..8].copy_from_slice(b"conectix");
    let sum: u32 = footer.iter().map(|b| u32::from(*b)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    disk[len - 512..].copy_from_slice(&footer);
    let report = inspect(&disk);
    assert!(remarks(&report).iter().any(|r| r.1.contains("qcow2 and vpc at once")), "{report:?}");
}

#[test]
fn a_backing_file_without_a_format_is_a_danger() {
    let mut bytes = image();
    // The extension becomes one that nobody knows.
    let at = bytes.windows(4).position(|w| w == [0xe2, 0x79, 0x2a, 0xca]).expect("there");
    bytes[at] = 0x12;
    let report = inspect(&bytes);
    let text = remarks(&report);
    assert!(text.iter().any(|r| r.0 == Severity::Danger && r.1.contains("guessed")), "{text:?}");
    assert!(text.iter().any(|r| r.1.contains("0x12792aca")), "{text:?}");
}

#[test]
fn others_are_known_by_their_marks() {
    let with = |at: usize, mark: &[u8]| {
        let mut bytes = vec![0; 0x9000];
        bytes[at..at + mark.len()].copy_from_slice(mark);
        inspect(&bytes).candidates[0].format.clone()
    };
    assert_eq!(with(0, b"KDMV"), "vmdk");
    assert_eq!(with(0x40, b"\x7f\x10\xda\xbe"), "vdi");
    assert_eq!(with(0, b"vhdxfile"), "vhdx");
    assert_eq!(with(0, b"LUKS\xba\xbe\0\x01"), "luks");
    assert_eq!(with(0x8001, b"CD001"), "iso9660");
    assert_eq!(with(0, b"\x1f\x8b\x08"), "gzip");
    assert_eq!(with(0x9000 - 512, b"koly"), "dmg");
    let descriptor = b"# Disk DescriptorFile\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/shadow\" 0\n";
    let report = inspect(&descriptor.to_vec());
    assert_eq!(report.candidates[0].references[0].kind, reference::Kind::Absolute);
}

#[test]
fn no_bytes_make_it_fail() {
    let sound = image();
    let mut state = 1u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    for _ in 0..2000 {
        let mut bytes = sound.clone();
        for _ in 0..1 + below(8) {
            let at = if below(2) == 0 { below(200) } else { below(bytes.len()) };
            bytes[at] = if below(3) == 0 { 0xff } else { below(256) as u8 };
        }
        bytes.truncate(if below(4) == 0 { below(sound.len()) } else { sound.len() });
        let report = inspect(&bytes);
        assert!(report.candidates.iter().any(|c| c.format == "raw"));
    }
}
