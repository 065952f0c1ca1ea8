//! Long commands that do not come to their end: killed, told to end, or out of space. What is left is usable, or says
//! that it is not.
//!
//! Each command is cut at several moments. Which moment that is depends on the machine, what is asserted does not.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// Milliseconds after which a command is cut.
const MOMENTS_MS: [u64; 5] = [0, 5, 12, 25, 45];

fn command(dir: &Path, args: &[&str]) -> Command {
    // What runs in the background of a shell is born deaf to SIGINT, and so would be the program.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT,TERM", env!("CARGO_BIN_EXE_cowbell")]);
    command.args(args).current_dir(dir).env_remove("COWBELL_POLICY").stdin(Stdio::null());
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().expect("the program runs")
}

fn good(dir: &Path, line: &str) -> String {
    let args: Vec<_> = line.split_whitespace().collect();
    let output = run(dir, &args);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn io(dir: &Path, file: &str, commands: &[&str]) {
    let commands: Vec<_> = commands.iter().flat_map(|command| ["-c", command]).collect();
    let output = run(dir, &[&["io", "-t", "writeback"], &commands[..], &[file]].concat());
    assert!(output.status.success(), "{commands:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn content(dir: &Path, file: &str) -> Vec<u8> {
    good(dir, &format!("img convert -O raw {file} content.raw"));
    let content = fs::read(dir.join("content.raw")).expect("converted");
    fs::remove_file(dir.join("content.raw")).expect("there");
    content
}

/// How a command is brought to an early end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Killed,
    Told,
}

/// Runs a command, and cuts it after so many milliseconds.
fn cut(dir: &Path, line: &str, end: End, after_ms: u64) {
    let args: Vec<_> = line.split_whitespace().collect();
    let mut child =
        command(dir, &args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program runs");
    std::thread::sleep(Duration::from_millis(after_ms));
    match end {
        // It may have ended.
        End::Killed => drop(child.kill()),
        End::Told => {
            let pid = child.id().to_string();
            let _ = Command::new("kill").args(["-TERM", &pid]).stderr(Stdio::null()).status();
        }
    }
    child.wait().expect("it ends");
}

/// Waits until the kernel has let go of a killed process's locks, which may be a moment later.
fn settled(dir: &Path, file: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while dir.join(file).exists() {
        let output = run(dir, &["io", "-c", "length", file]);
        if !String::from_utf8_lossy(&output.stderr).contains("Failed to get") {
            return;
        }
        assert!(Instant::now() < deadline, "{file} stays locked");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A command that changes an image in place.
struct Case {
    name: &'static str,
    line: &'static str,
    /// What is prepared beside `img.q`.
    prepare: fn(&Path),
    /// Whether an image with this content is what the command may leave, given what it was and what it becomes.
    allows: fn(&[u8], &[u8], &[u8]) -> bool,
    /// The debug events where the host may be out of space, in the file of the image; empty: options cannot be given.
    full_at: &'static [&'static str],
}

fn either(now: &[u8], before: &[u8], after: &[u8]) -> bool {
    now == before || now == after
}

/// One of the two lengths, and what both have in common.
fn resized(now: &[u8], before: &[u8], after: &[u8]) -> bool {
    let common = before.len().min(after.len());
    let lengths = now.len() == before.len() || now.len() == after.len();
    lengths && now[..common] == before[..common]
}

const CASES: &[Case] = &[
    Case {
        name: "grow",
        line: "img resize --preallocation=metadata img.q 40M",
        prepare: |_| {},
        allows: resized,
        full_at: &["write_aio", "l2_update", "refblock_alloc", "cluster_alloc", "l1_grow_write_table"],
    },
    Case {
        name: "shrink",
        line: "img resize --shrink img.q 3M",
        prepare: |_| {},
        allows: resized,
        full_at: &["l2_update", "flush_to_disk"],
    },
    Case {
        name: "amend to version 2",
        line: "img amend -o compat=0.10 img.q",
        prepare: |_| {},
        allows: either,
        full_at: &["write_aio", "l2_update", "cluster_alloc"],
    },
    Case {
        name: "amend refcounts",
        line: "img amend -o refcount_bits=64 img.q",
        prepare: |_| {},
        allows: either,
        full_at: &["l2_update", "cluster_alloc", "refblock_alloc"],
    },
    Case {
        name: "snapshot create",
        line: "img snapshot -c new img.q",
        prepare: |_| {},
        allows: either,
        full_at: &["l2_update", "cluster_alloc", "refblock_alloc"],
    },
    Case {
        name: "snapshot apply",
        line: "img snapshot -a old img.q",
        prepare: |dir| {
            good(dir, "img snapshot -c old img.q");
            io(dir, "img.q", &["write -q -P 9 2M 6M"]);
        },
        allows: either,
        full_at: &["l2_update", "cluster_alloc", "refblock_alloc"],
    },
    Case {
        name: "snapshot delete",
        line: "img snapshot -d old img.q",
        prepare: |dir| {
            good(dir, "img snapshot -c old img.q");
            io(dir, "img.q", &["write -q -P 9 2M 6M"]);
        },
        allows: either,
        full_at: &["l2_update", "cluster_alloc"],
    },
    Case {
        name: "bitmap merge",
        line: "img bitmap --merge from img.q into",
        prepare: |dir| {
            good(dir, "img bitmap --add -g 4k img.q from");
            good(dir, "img bitmap --add -g 512 img.q into");
            io(dir, "img.q", &["write -q -P 9 2M 6M", "write -q -P 9 12M 1k"]);
        },
        allows: either,
        full_at: &["cluster_alloc", "refblock_alloc", "l2_update"],
    },
    Case {
        name: "check -r all",
        line: "img check -r all img.q",
        prepare: damage,
        allows: either,
        full_at: &["refblock_alloc", "refblock_update_part", "cluster_alloc", "l2_update"],
    },
    Case {
        name: "commit",
        line: "img commit img.q",
        prepare: |dir| {
            fs::rename(dir.join("img.q"), dir.join("base.q")).expect("renamed");
            good(dir, "img create -q -f qcow2 -o cluster_size=1k -b base.q -F qcow2 img.q 20M");
            io(dir, "img.q", &["write -q -P 5 1M 9M", "write -q -z 512k 100k"]);
        },
        allows: either,
        full_at: &["l2_update", "flush_to_disk"],
    },
    Case {
        name: "rebase",
        line: "img rebase -b other.q -F qcow2 img.q",
        prepare: |dir| {
            fs::rename(dir.join("img.q"), dir.join("base.q")).expect("renamed");
            good(dir, "img create -q -f qcow2 -o cluster_size=1k -b base.q -F qcow2 img.q 20M");
            good(dir, "img create -q -f qcow2 other.q 20M");
            io(dir, "other.q", &["write -q -P 5 1M 9M"]);
        },
        allows: either,
        // Relative names cannot be stored through options; `layers.rs` has a rebase to nothing.
        full_at: &[],
    },
];

/// Half of the refcounts of an image are wrong.
fn damage(dir: &Path) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().read(true).write(true).open(dir.join("img.q")).expect("there");
    let mut place = [0; 8];
    file.read_exact_at(&mut place, 48).expect("a header");
    let table = u64::from_be_bytes(place);
    file.read_exact_at(&mut place, table).expect("a refcount table");
    let block = u64::from_be_bytes(place);
    for entry in (30u64..400).step_by(3) {
        file.write_all_at(&((entry % 4) as u16).to_be_bytes(), block + entry * 2).expect("written");
    }
}

/// `img.q` with small clusters, data, zeroes and holes, and what the case needs.
fn prepared(case: &Case) -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    good(dir.path(), "img create -q -f qcow2 -o cluster_size=1k img.q 20M");
    io(
        dir.path(),
        "img.q",
        &["write -q -P 1 0 5M", "write -q -z 1M 600k", "write -q -P 2 7M 3M", "write -q -P 3 19M 1M"],
    );
    (case.prepare)(dir.path());
    dir
}

/// The files are sound, and have a content that is allowed.
fn assert_usable(case: &Case, dir: &Path, what: &str, before: &[u8], after: &[u8]) {
    settled(dir, "img.q");
    if case.name.starts_with("check") {
        // What a repair had not come to is still to be repaired.
        good(dir, case.line);
    }
    for file in ["img.q", "base.q", "other.q"].iter().filter(|file| dir.join(file).exists()) {
        let output = run(dir, &["img", "check", file]);
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(matches!(output.status.code(), Some(0 | 3)), "{what}: {file}: {told}");
    }
    let now = content(dir, "img.q");
    assert!((case.allows)(&now, before, after), "{what}: neither what it was nor what it becomes");
}

#[test]
fn what_a_cut_leaves_is_usable() {
    for case in CASES {
        let whole = prepared(case);
        let before = content(whole.path(), "img.q");
        good(whole.path(), case.line);
        let after = content(whole.path(), "img.q");
        for (index, after_ms) in MOMENTS_MS.into_iter().enumerate() {
            let end = if index % 3 == 2 { End::Told } else { End::Killed };
            let dir = prepared(case);
            cut(dir.path(), case.line, end, after_ms);
            let what = format!("{}: {end:?} after {after_ms} ms", case.name);
            assert_usable(case, dir.path(), &what, &before, &after);
        }
    }
}

#[test]
fn what_a_full_disk_leaves_is_usable() {
    for case in CASES {
        let whole = prepared(case);
        let before = content(whole.path(), "img.q");
        good(whole.path(), case.line);
        let after = content(whole.path(), "img.q");
        for event in case.full_at {
            let dir = prepared(case);
            let mut options = format!(
                "driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=img.q,\
                 file.inject-error.0.event={event},file.inject-error.0.errno=28"
            );
            if dir.path().join("base.q").exists() {
                options += ",backing.driver=qcow2,backing.file.driver=file,backing.file.filename=base.q";
            }
            let mut args: Vec<_> = case.line.split_whitespace().collect();
            let at = args.iter().position(|word| *word == "img.q").expect("the image");
            args[at] = &options;
            args.insert(2, "--image-opts");
            let output = run(dir.path(), &args);
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let what = format!("{}: no space at {event}: {error}", case.name);
            if !output.status.success() {
                assert!(
                    error.contains("No space left on device") || case.name.starts_with("check"),
                    "{what}"
                );
            }
            assert_usable(case, dir.path(), &what, &before, &after);
        }
    }
}

/// Commands that make an image: it is there as a whole, or nobody takes it for one.
#[test]
fn what_a_cut_leaves_of_a_new_image_is_whole_or_marked() {
    let lines = [
        "img convert -O qcow2 img.q new.q",
        "img convert -c -O qcow2 img.q new.q",
        "img dd -O qcow2 if=img.q of=new.q bs=1M",
        "img convert -n -O qcow2 img.q new.q",
    ];
    let case = &CASES[0];
    for line in lines {
        for (index, after_ms) in MOMENTS_MS.into_iter().enumerate() {
            let end = if index % 3 == 2 { End::Told } else { End::Killed };
            // A file that is there is filled in place.
            let there = line.contains("-n") || index % 2 == 1;
            let dir = prepared(case);
            let expect = content(dir.path(), "img.q");
            if there {
                good(dir.path(), "img create -q -f qcow2 new.q 20M");
            }
            cut(dir.path(), line, end, after_ms);
            let what = format!("{line}, there: {there}, {end:?} after {after_ms} ms");
            settled(dir.path(), "new.q");
            if !dir.path().join("new.q").exists() {
                continue;
            }
            let info = run(dir.path(), &["img", "info", "-f", "qcow2", "new.q"]);
            if info.status.success() {
                let now = content(dir.path(), "new.q");
                let untouched = there && now.iter().all(|byte| *byte == 0);
                assert!(now == expect || untouched, "{what}: an image that is not whole");
            } else {
                assert!(there, "{what}: {}", String::from_utf8_lossy(&info.stderr));
            }
            assert_eq!(content(dir.path(), "img.q"), expect, "{what}: the source");
        }
    }
}
