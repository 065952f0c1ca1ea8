//! Image locks: what one tool holds, the other refuses or grants, in every combination of ours and the reference's.
//!
//! Without `qemu-io` and `qemu-img` of 10.0 on PATH the test is skipped with a message.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Who holds the image: arguments of `qemu-io`, or nobody.
const HOLDERS: &[&[&str]] = &[
    &[],
    &["-f", "raw", "r.raw"],
    &["-r", "r.raw"],
    &["-f", "qcow2", "q.qcow2"],
    &["-r", "-f", "qcow2", "q.qcow2"],
    &["-f", "raw", "q.qcow2"],
    &["-U", "-r", "-f", "qcow2", "q.qcow2"],
    &["ov.qcow2"],
    &["--image-opts", "driver=raw,size=512,file.filename=r.raw"],
    &["--image-opts", "driver=file,filename=r.raw"],
];

/// What is tried meanwhile.
const TRIED: &[&[&str]] = &[
    &["qemu-img", "info", "-f", "raw", "r.raw"],
    &["qemu-img", "info", "r.raw"],
    &["qemu-img", "map", "r.raw"],
    &["qemu-img", "compare", "-f", "raw", "-F", "raw", "r.raw", "r.raw"],
    &["qemu-img", "convert", "-f", "raw", "-O", "raw", "r.raw", "new"],
    &["qemu-img", "convert", "-U", "-f", "raw", "-O", "raw", "r.raw", "new"],
    &["qemu-img", "convert", "-O", "raw", "ov.qcow2", "new"],
    &["qemu-img", "info", "--backing-chain", "ov.qcow2"],
    &["qemu-img", "info", "q.qcow2"],
    &["qemu-img", "info", "-U", "q.qcow2"],
    &["qemu-img", "check", "q.qcow2"],
    &["qemu-img", "map", "-U", "q.qcow2"],
    &["qemu-img", "convert", "-f", "raw", "-O", "raw", "q.qcow2", "new"],
    &["qemu-img", "create", "-q", "-f", "raw", "r.raw", "1M"],
    &["qemu-img", "create", "-q", "-f", "qcow2", "q.qcow2", "1M"],
    &["qemu-img", "create", "-q", "-f", "qcow2", "-b", "q.qcow2", "-F", "qcow2", "new"],
    &["qemu-io", "-f", "raw", "-c", "write 0 512", "r.raw"],
    &["qemu-io", "-f", "raw", "-c", "truncate 1M", "r.raw"],
    &["qemu-io", "-r", "-f", "raw", "-c", "reopen -w", "r.raw"],
    &["qemu-io", "-r", "-c", "read 0 512", "q.qcow2"],
    &["qemu-io", "-c", "read 0 512", "q.qcow2"],
    &["qemu-io", "-r", "-c", "read 0 512", "ov.qcow2"],
    &["qemu-io", "--image-opts", "-c", "write 0 512", "driver=raw,size=512,file.filename=r.raw"],
];

/// A tool, until it is told to go.
struct Holder(Option<Child>);

impl Holder {
    fn new(tools: &Path, args: &[&str], dir: &Path) -> Self {
        if args.is_empty() {
            return Self(None);
        }
        let mut child = Command::new(tools.join("qemu-io"))
            .args(args)
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("qemu-io runs");
        // Answered only after the image is open.
        writeln!(child.stdin.as_mut().expect("piped"), "length").expect("it listens");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it answers");
        assert!(!line.is_empty(), "{args:?} does not open");
        Self(Some(child))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.stdin.take());
            child.wait().expect("it ends");
        }
    }
}

/// Exit status and standard error, without the warning about probing.
fn run(tools: &Path, words: &[&str], dir: &Path) -> (Option<i32>, String) {
    let (tool, args) = words.split_first().expect("a tool");
    let output = Command::new(tools.join(tool))
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .expect("the tool runs");
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = text.lines().filter(|line| !line.starts_with("WARNING") && !line.starts_with("   "));
    (output.status.code(), lines.collect::<Vec<_>>().join("\n"))
}

/// Where the reference lies, if it is here.
fn reference() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).find(|dir| dir.join("qemu-io").is_file())?;
    let output = Command::new(found.join("qemu-img")).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (text.contains(" version 10.0.") && !text.contains("cowbell")).then_some(found)
}

fn make_images(theirs: &Path, dir: &Path) {
    for words in [
        &["qemu-img", "create", "-q", "-f", "raw", "r.raw", "1M"][..],
        &["qemu-img", "create", "-q", "-f", "qcow2", "q.qcow2", "1M"],
        &["qemu-img", "create", "-q", "-f", "qcow2", "-b", "r.raw", "-F", "raw", "ov.qcow2"],
    ] {
        assert_eq!(run(theirs, words, dir), (Some(0), String::new()), "{words:?}");
    }
}

/// The images as they were at first, and nothing else.
fn lay_out(from: &Path, dir: &Path) {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir(dir).expect("made");
    for name in ["r.raw", "q.qcow2", "ov.qcow2"] {
        std::fs::copy(from.join(name), dir.join(name)).expect("copied");
    }
}

#[test]
fn whoever_holds_an_image_all_are_told_the_same() {
    let Some(theirs) = reference() else {
        eprintln!("skipped: no qemu-img and qemu-io 10.0 on PATH");
        return;
    };
    let scratch = tempfile::tempdir().expect("a directory");
    let (ours, dir) = (scratch.path().join("bin"), scratch.path().join("images"));
    let fresh = scratch.path().join("fresh");
    std::fs::create_dir(&ours).expect("made");
    std::fs::create_dir(&fresh).expect("made");
    make_images(&theirs, &fresh);
    for tool in ["qemu-img", "qemu-io"] {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cowbell"), ours.join(tool)).expect("linked");
    }
    let mut wrong = Vec::new();
    for held in HOLDERS {
        for words in TRIED {
            let told = |holder: &Path, tool: &Path| {
                lay_out(&fresh, &dir);
                let _holder = Holder::new(holder, held, &dir);
                run(tool, words, &dir)
            };
            let expected = told(&theirs, &theirs);
            for (holder, tool) in [(&theirs, &ours), (&ours, &ours), (&ours, &theirs)] {
                let found = told(holder, tool);
                if found != expected {
                    let who = |dir: &Path| if dir == theirs { "theirs" } else { "ours" };
                    wrong.push(format!(
                        "{held:?} held by {}, {words:?} by {}: {found:?}, expected {expected:?}",
                        who(holder),
                        who(tool)
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
