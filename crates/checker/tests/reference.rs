//! Comparison with the reference tools, used as black boxes; skipped with a message when they are absent.

#![allow(clippy::unwrap_used, reason = "a test ends where something is wrong")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cowbell_checker::{CheckError, Class, GuestView, Limits, Report, Source, Verdict, check, read_guest};

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// A directory with one image under test.
struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    /// None, with a message, when the tools are not installed.
    fn new() -> Option<Lab> {
        let found = ["qemu-img", "qemu-io"].iter().all(|tool| Command::new(tool).arg("-V").output().is_ok());
        if !found {
            eprintln!("skipped: qemu-img or qemu-io is not on PATH");
            return None;
        }
        Some(Lab { dir: tempfile::tempdir().unwrap() })
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn run(&self, tool: &str, args: &[&str]) -> Output {
        Command::new(tool).args(args).current_dir(self.dir.path()).output().unwrap()
    }

    fn ok(&self, tool: &str, args: &[&str]) -> String {
        let output = self.run(tool, args);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{tool} {args:?}: {text}{out}");
        out
    }

    fn create(&self, size: &str, options: &str, backing: bool) {
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
        if backing {
            self.ok("qemu-img", &["create", "-q", "-f", "raw", "base", size]);
            args.extend(["-b", "base", "-F", "raw"]);
        }
        args.extend(["image", size]);
        self.ok("qemu-img", &args);
    }

    fn io(&self, commands: &[&str]) {
        let mut args = vec!["-f", "qcow2"];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push("image");
        self.ok("qemu-io", &args);
    }

    /// Exit status and output of the reference's check.
    fn reference(&self) -> (i32, String) {
        let output = self.run("qemu-img", &["check", "-f", "qcow2", "image"]);
        let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stdout));
        (output.status.code().unwrap(), text)
    }
}

fn ours(path: &Path) -> Result<Report, CheckError> {
    let file = fs::File::open(path).unwrap();
    let from_file = check(&file, Limits::default());
    let from_memory = check(&fs::read(path).unwrap(), Limits::default());
    match (&from_file, &from_memory) {
        (Ok(file), Ok(memory)) => assert_eq!(file.findings(), memory.findings()),
        (Err(file), Err(memory)) => assert_eq!(file.to_string(), memory.to_string()),
        other => panic!("{other:?}"),
    }
    from_file
}

fn word(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..at as usize + 8].try_into().unwrap())
}

/// Verdict by the reference's exit status; none if it could not check.
fn verdict(code: i32) -> Option<Verdict> {
    match code {
        0 => Some(Verdict::Clean),
        2 => Some(Verdict::Corrupt),
        3 => Some(Verdict::LeaksOnly),
        1 => None,
        other => panic!("exit status {other}"),
    }
}

/// The active mapping by `qemu-img map` against the guest's view.
fn compare_maps(lab: &Lab) {
    let bytes = fs::read(lab.image()).unwrap();
    let view = GuestView::active(&bytes).unwrap();
    let mut extents = Vec::new();
    view.extents(&bytes, 0, u64::MAX, &mut extents).unwrap();
    let map = lab.ok("qemu-img", &["map", "-f", "qcow2", "--output=json", "image"]);
    let mut end = 0;
    for line in map.lines().filter(|line| line.contains("\"start\"")) {
        let (start, len) = (number(line, "start").unwrap(), number(line, "length").unwrap());
        end = start + len;
        let flag = |name: &str| line.contains(&format!("\"{name}\": true"));
        let here = number(line, "depth") == Some(0) && flag("present");
        for extent in
            extents.iter().filter(|extent| extent.offset < end && start < extent.offset + extent.len)
        {
            let skip = start.saturating_sub(extent.offset);
            let ahead = extent.offset.saturating_sub(start);
            match extent.source {
                Source::Data { host } => {
                    assert!(here && flag("data"), "{line} {extent:?}");
                    assert_eq!(number(line, "offset").unwrap() + ahead, host + skip, "{line} {extent:?}");
                }
                Source::Zero => assert!(here && flag("zero"), "{line} {extent:?}"),
                Source::Compressed { .. } => assert!(here && flag("compressed"), "{line} {extent:?}"),
                Source::Unallocated => assert!(!here, "{line} {extent:?}"),
                Source::DataFile { .. } | Source::Invalid(_) => panic!("{line} {extent:?}"),
            }
        }
    }
    assert_eq!(end, view.size());
    assert_eq!(extents.iter().map(|extent| extent.len).sum::<u64>(), view.size());
}

fn number(line: &str, field: &str) -> Option<u64> {
    let (_, rest) = line.split_once(&format!("\"{field}\": "))?;
    rest.split([',', '}']).next()?.trim().parse().ok()
}

/// Both must find nothing, and see the same mapping.
fn expect_clean(lab: &Lab, what: &str) {
    let report = ours(&lab.image()).unwrap();
    assert_eq!(report.findings(), [], "{what}: {report}");
    let (code, text) = lab.reference();
    assert_eq!(code, 0, "{what}: {text}");
    let end = text.lines().find_map(|line| line.strip_prefix("Image end offset: "));
    assert_eq!(end.map(str::to_owned), Some(report.summary.image_end_offset.to_string()), "{what}");
    compare_maps(lab);
}

#[test]
fn images_of_the_reference_are_clean() {
    let Some(lab) = Lab::new() else { return };
    for (cluster_size, size) in [("512", "1M"), ("4k", "16M"), ("64k", "64M"), ("2M", "256M")] {
        let mut kinds = vec![("compat=0.10".to_owned(), 16)];
        kinds.extend([1, 2, 4, 8, 16, 32, 64].map(|bits| (format!("compat=1.1,refcount_bits={bits}"), bits)));
        if matches!(cluster_size, "64k" | "2M") {
            kinds.push(("extended_l2=on".to_owned(), 16));
            kinds.push(("extended_l2=on,refcount_bits=2,compression_type=zstd".to_owned(), 2));
        }
        for (index, (kind, refcount_bits)) in kinds.into_iter().enumerate() {
            let options = format!("cluster_size={cluster_size},{kind}");
            lab.create(size, &options, index % 2 == 1);
            lab.io(&["write 0 300k", "write 700k 1k", "write -z 512k 64k", "discard 0 64k"]);
            // Compressed writes take whole clusters, and the reference refuses them over data.
            let compressed = if cluster_size == "2M" { "write -c 4M 4M" } else { "write -c 832k 64k" };
            // Refcounts of a few bits have no room for many in one cluster.
            if refcount_bits >= 8 {
                lab.io(&[compressed]);
            }
            expect_clean(&lab, &options);
            if refcount_bits > 1 {
                lab.ok("qemu-img", &["snapshot", "-c", "one", "image"]);
                lab.io(&["write 100k 64k", "write -z -u 400k 64k"]);
                lab.ok("qemu-img", &["snapshot", "-c", "two", "image"]);
                expect_clean(&lab, &options);
                lab.ok("qemu-img", &["snapshot", "-d", "one", "image"]);
                if !options.contains("compat=0.10") {
                    lab.ok("qemu-img", &["resize", "-q", "image", "+1M"]);
                }
                lab.io(&["write 300k 10k"]);
                expect_clean(&lab, &options);
            }
        }
    }
}

/// Applying a snapshot makes its mapping the active one: both views must agree.
#[test]
fn snapshot_views_match_what_applying_them_gives() {
    let Some(lab) = Lab::new() else { return };
    for options in ["compat=0.10,cluster_size=4k", "cluster_size=512", "extended_l2=on"] {
        lab.create("2M", options, true);
        lab.io(&["write 0 64k", "write -z 1M 64k"]);
        lab.ok("qemu-img", &["snapshot", "-c", "one", "image"]);
        lab.io(&["write 4k 8k", "write 1M 1k"]);
        lab.ok("qemu-img", &["snapshot", "-c", "two", "image"]);
        lab.io(&["write 8k 128k", "discard 64k 64k"]);
        let bytes = fs::read(lab.image()).unwrap();
        for (index, name) in ["one", "two"].into_iter().enumerate() {
            let view = GuestView::snapshot(&bytes, index as u32).unwrap();
            let mut before = Vec::new();
            view.extents(&bytes, 0, u64::MAX, &mut before).unwrap();
            lab.ok("qemu-img", &["snapshot", "-a", name, "image"]);
            expect_clean(&lab, options);
            let bytes = fs::read(lab.image()).unwrap();
            assert_eq!(before, read_guest(&bytes, 0, u64::MAX).unwrap(), "{options}, {name}");
        }
    }
}

#[test]
fn bitmaps_encryption_and_preallocation_are_clean() {
    let Some(lab) = Lab::new() else { return };
    lab.create("64M", "cluster_size=4k", false);
    for name in ["a", "b"] {
        lab.ok("qemu-img", &["bitmap", "--add", "image", name]);
    }
    lab.io(&["write 1M 1M"]);
    expect_clean(&lab, "bitmaps");
    lab.create("64M", "preallocation=metadata", false);
    expect_clean(&lab, "preallocation");
    lab.create("64M", "preallocation=metadata,extended_l2=on", false);
    expect_clean(&lab, "preallocated subclusters");
    let secret = ["--object", "secret,id=s,data=geheim"];
    let luks = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    args.extend(secret);
    args.extend(["-o", luks, "image", "16M"]);
    lab.ok("qemu-img", &args);
    let report = ours(&lab.image()).unwrap();
    assert_eq!(report.findings(), [], "{report}");
    // An external data file: metadata of the image only.
    lab.ok("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "data_file=raw", "image", "16M"]);
    lab.io(&["write 0 64k", "write 1M 64k"]);
    let report = ours(&lab.image()).unwrap();
    assert_eq!(report.findings(), [], "{report}");
    assert_eq!(lab.reference().0, 0);
}

/// Images whose tables are then damaged: mapping of all kinds, one snapshot, something shared.
fn create_rich(lab: &Lab, options: &str) -> Vec<u8> {
    lab.create("2M", options, false);
    lab.io(&["write 0 64k", "write 1M 16k", "write -z 128k 64k"]);
    lab.io(&["write -c 512k 64k"]);
    lab.ok("qemu-img", &["snapshot", "-c", "one", "image"]);
    lab.io(&["write 0 16k"]);
    expect_clean(lab, options);
    fs::read(lab.image()).unwrap()
}

const RICH: [&str; 4] = [
    "compat=1.1,cluster_size=512",
    "compat=0.10,cluster_size=4k",
    "extended_l2=on,cluster_size=16k",
    "cluster_size=4k,refcount_bits=8",
];

/// Offsets of the words in use in header-named tables and the first L2 tables.
fn words_in_use(bytes: &[u8]) -> Vec<u64> {
    let cluster = 1u64 << bytes[23];
    let (l1, reftable, snapshots) = (word(bytes, 40), word(bytes, 48), word(bytes, 64));
    let snapshot_l1 = word(bytes, snapshots);
    let tables = [
        l1,
        reftable,
        word(bytes, reftable),
        snapshots,
        snapshot_l1,
        word(bytes, l1) & OFFSET,
        word(bytes, snapshot_l1) & OFFSET,
    ];
    let words = tables.into_iter().flat_map(|table| (table..table + cluster).step_by(8));
    words.filter(|at| *at as usize + 8 <= bytes.len() && word(bytes, *at) != 0).collect()
}

/// One or two words overwritten by nothing, by each other or by a flipped bit: both verdicts agree unless
/// the reference could not check.
#[test]
fn verdicts_on_random_damage_agree() {
    let Some(lab) = Lab::new() else { return };
    let rounds: u64 = std::env::var("CHECKER_ROUNDS").map_or(50, |rounds| rounds.parse().unwrap());
    let mut seed = 0x2545_f491_4f6c_dd1d;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut classes = [0; 4];
    for options in RICH {
        let bytes = create_rich(&lab, options);
        let words = words_in_use(&bytes);
        for _ in 0..rounds {
            let mut damaged = bytes.clone();
            for _ in 0..=random(2) {
                let at = words[random(words.len() as u64) as usize];
                let old = word(&damaged, at);
                let new: u64 = match random(4) {
                    0 => 0,
                    1 => word(&damaged, words[random(words.len() as u64) as usize]),
                    _ => old ^ (1 << random(64)),
                };
                damaged[at as usize..at as usize + 8].copy_from_slice(&new.to_be_bytes());
            }
            fs::write(lab.image(), &damaged).unwrap();
            let (code, text) = lab.reference();
            classes[usize::try_from(code).unwrap()] += 1;
            let Some(theirs) = verdict(code) else { continue };
            let report = ours(&lab.image()).unwrap();
            let mine = report.verdict_with(Class::severity_in_reference);
            assert_eq!(mine, theirs, "{options}\n{report}\n{text}");
        }
    }
    println!(
        "reference: {} clean, {} refused, {} corrupt, {} leaks",
        classes[0], classes[1], classes[2], classes[3]
    );
}

/// Name of a damage, the words it writes, the class that must be found.
type Case = (&'static str, Vec<(u64, u64)>, Option<Class>);

/// One damage of each kind; the verdicts agree, apart from the classes known to differ.
#[test]
fn verdicts_on_chosen_damage_agree() {
    let Some(lab) = Lab::new() else { return };
    let l1 = |bytes: &[u8]| word(bytes, 40);
    let reftable = |bytes: &[u8]| word(bytes, 48);
    let flip = |bytes: &[u8], at: u64, bits: u64| vec![(at, word(bytes, at) ^ bits)];
    let data = |bytes: &[u8]| active_l2(bytes);
    let far = COPIED | 0x1000_0000;
    for options in RICH {
        let bytes = create_rich(&lab, options);
        let b = &bytes[..];
        let spare = data(b) + (1 << b[23]) - 16;
        let cases: Vec<Case> = vec![
            ("corrupt bit", flip(b, 72, 2), None),
            ("L1 COPIED", flip(b, l1(b), COPIED), None),
            ("L1 unaligned", flip(b, l1(b), 256 << b[23] >> 8 | 512), None),
            ("L1 reserved", flip(b, l1(b), 2), Some(Class::ReservedBits)),
            ("L1 lost", vec![(l1(b), 0)], None),
            ("L2 COPIED", flip(b, data(b), COPIED), None),
            ("L2 reserved", flip(b, data(b), 4), Some(Class::ReservedBits)),
            ("L2 zero flag", flip(b, data(b), 1), None),
            ("L2 beyond the end", vec![(spare, far)], Some(Class::DataBeyondEof)),
            ("L2 names the L1", vec![(spare, l1(b))], Some(Class::Overlap)),
            ("L2 COPIED only", vec![(spare, COPIED)], Some(Class::CopiedUnallocated)),
            ("refcount table reserved", flip(b, reftable(b), 2), Some(Class::ReservedBits)),
            ("refcount block missing", vec![(reftable(b), 0)], Some(Class::RefcountTooLow)),
            (
                "refcount block twice",
                vec![(reftable(b) + 8, word(b, reftable(b)))],
                Some(Class::RefblockTwice),
            ),
            ("refcount block far", vec![(reftable(b) + 16, 0x1000_0000)], Some(Class::TableBeyondEof)),
            ("refcounts changed", flip(b, word(b, reftable(b)) + 8, 0x0202_0202), None),
        ];
        for (name, edits, class) in cases {
            let mut damaged = bytes.clone();
            for (at, value) in edits {
                damaged[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
            }
            fs::write(lab.image(), &damaged).unwrap();
            let (code, text) = lab.reference();
            let report = ours(&lab.image()).unwrap();
            if let Some(class) = class {
                assert!(report.count(class) > 0, "{options}, {name}: {report}");
            }
            let mine = report.verdict_with(Class::severity_in_reference);
            assert!(verdict(code).is_none_or(|theirs| theirs == mine), "{options}, {name}\n{report}\n{text}");
        }
    }
}

/// Host offset of the L2 table that the first active L1 entry names.
fn active_l2(bytes: &[u8]) -> u64 {
    word(bytes, word(bytes, 40)) & OFFSET
}
