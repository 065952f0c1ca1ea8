//! What commands leave behind when they fail, are interrupted or killed; policies; the name `cowbell`.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

fn cowbell(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cowbell"))
        .args(args)
        .current_dir(dir)
        .env_remove("COWBELL_POLICY")
        .stdin(Stdio::null())
        .output()
        .expect("the program runs")
}

fn good(dir: &Path, args: &[&str]) -> String {
    let output = cowbell(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn bad(dir: &Path, args: &[&str]) -> String {
    let output = cowbell(dir, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).expect("text")
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("text"))
        .collect();
    names.sort();
    names
}

/// A directory with `in.raw`, 8 MiB of data.
fn with_source() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("in.raw"), vec![7; 8 << 20]).expect("written");
    dir
}

/// Starts a conversion that takes eight seconds, and waits until it has begun.
fn slow_convert(dir: &Path, more: &[&str], begun: &str) -> Child {
    // What runs in the background of a shell is born deaf to SIGINT, and so would be the program.
    let child = Command::new("env")
        .args(["--default-signal=INT", env!("CARGO_BIN_EXE_cowbell")])
        .args(["img", "convert", "-q", "-f", "raw", "-r", "1M"])
        .args(more)
        .current_dir(dir)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs::metadata(dir.join(begun)).is_ok_and(|meta| meta.len() > 0) {
        assert!(Instant::now() < deadline, "the conversion does not begin");
        std::thread::sleep(Duration::from_millis(5));
    }
    // The signals are caught once the target is open; that takes a few milliseconds more.
    std::thread::sleep(Duration::from_millis(200));
    child
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args([&format!("-{name}"), pid.as_str()]).status();
    assert!(sent.expect("kill runs").success());
}

#[test]
fn an_interrupted_conversion_removes_its_output() {
    let dir = with_source();
    let child = slow_convert(dir.path(), &["-O", "qcow2", "in.raw", "out.q"], "out.q.incomplete");
    signal(&child, "INT");
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("interrupted") && text.contains("'out.q' is removed"), "{text}");
    assert_eq!(names(dir.path()), ["in.raw"]);
}

#[test]
fn an_interrupted_conversion_says_that_what_was_there_is_incomplete() {
    let dir = with_source();
    good(dir.path(), &["img", "create", "-q", "out.raw", "8M"]);
    fs::write(dir.path().join("begun"), "x").expect("written");
    let child = slow_convert(dir.path(), &["-n", "in.raw", "out.raw"], "begun");
    signal(&child, "TERM");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("the output 'out.raw' is incomplete"), "{text}");
    assert!(dir.path().join("out.raw").exists());
}

#[test]
fn a_killed_conversion_leaves_no_file_of_the_final_name() {
    let dir = with_source();
    let mut child = slow_convert(dir.path(), &["in.raw", "out.raw"], "out.raw.incomplete");
    child.kill().expect("killed");
    child.wait().expect("it ends");
    assert_eq!(names(dir.path()), ["in.raw", "out.raw.incomplete"]);
    // It is not in the way of the next run, which leaves it alone: it may be somebody's.
    good(dir.path(), &["img", "convert", "-f", "raw", "in.raw", "out.raw"]);
    assert_eq!(names(dir.path()), ["in.raw", "out.raw", "out.raw.incomplete"]);
    assert!(fs::read(dir.path().join("in.raw")).ok() == fs::read(dir.path().join("out.raw")).ok());
}

/// Bytes of a file's beginning.
fn beginning(dir: &Path, name: &str, len: usize) -> Vec<u8> {
    fs::read(dir.join(name)).expect("readable")[..len].to_vec()
}

#[test]
fn a_killed_conversion_leaves_nothing_plausible_in_a_file_that_was_there() {
    use std::os::unix::fs::MetadataExt;
    let dir = with_source();
    let inode = |name: &str| fs::metadata(dir.path().join(name)).expect("there").ino();
    for format in ["raw", "qcow2"] {
        fs::write(dir.path().join("out"), "precious").expect("written");
        let before = inode("out");
        let mut child = slow_convert(dir.path(), &["-O", format, "in.raw", "out"], "out");
        child.kill().expect("killed");
        child.wait().expect("gone");
        assert_eq!(beginning(dir.path(), "out", 34), b"cowbell: this image is incomplete.", "{format}");
        good(dir.path(), &["img", "convert", "-f", "raw", "-O", format, "in.raw", "out"]);
        good(dir.path(), &["img", "compare", "-f", "raw", "-F", format, "in.raw", "out"]);
        assert_eq!(inode("out"), before, "{format}");
    }
}

#[test]
fn a_killed_conversion_into_an_image_takes_its_magic_only() {
    let dir = with_source();
    good(dir.path(), &["img", "create", "-q", "-f", "qcow2", "out", "8M"]);
    let whole = beginning(dir.path(), "out", 104);
    let mut child = slow_convert(dir.path(), &["-n", "-O", "qcow2", "in.raw", "out"], "out");
    child.kill().expect("killed");
    child.wait().expect("gone");
    let left = beginning(dir.path(), "out", 104);
    assert_eq!((&left[..4], &left[4..]), (&b"cowb"[..], &whole[4..]));
    let text = bad(dir.path(), &["img", "info", "-f", "qcow2", "out"]);
    assert!(text.contains("not in qcow2 format"), "{text}");
    let mut bytes = fs::read(dir.path().join("out")).expect("readable");
    bytes[..4].copy_from_slice(&whole[..4]);
    fs::write(dir.path().join("out"), bytes).expect("written");
    good(dir.path(), &["img", "convert", "-n", "-f", "raw", "-O", "qcow2", "in.raw", "out"]);
    good(dir.path(), &["img", "compare", "-f", "raw", "-F", "qcow2", "in.raw", "out"]);
}

#[test]
fn a_conversion_that_cannot_begin_leaves_the_target_alone() {
    let dir = with_source();
    fs::write(dir.path().join("out"), "precious").expect("written");
    for (args, words) in [
        (&["-f", "raw", "missing", "out"][..], "No such file"),
        (&["-f", "raw", "-O", "qcow2", "-o", "cluster_size=3", "in.raw", "out"], "Cluster size"),
        (&["-f", "raw", "-O", "qcow2", "-o", "preallocation=x", "in.raw", "out"], "preallocation"),
        (&["-f", "raw", "-o", "preallocation=x", "in.raw", "out"], "invalid parameter value: x"),
        (&["-f", "raw", "-n", "in.raw", "out"], "smaller than input"),
    ] {
        let text = bad(dir.path(), &[&["img", "convert"], args].concat());
        assert!(text.contains(words), "{args:?}: {text}");
        assert_eq!(fs::read(dir.path().join("out")).expect("there"), b"precious", "{args:?}");
    }
}

#[test]
fn a_signal_asks_for_progress() {
    let dir = with_source();
    let child = slow_convert(dir.path(), &["in.raw", "out.raw"], "out.raw.incomplete");
    signal(&child, "USR1");
    std::thread::sleep(Duration::from_millis(2500));
    signal(&child, "INT");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("/100%)"), "{text}");
}

#[test]
fn a_failed_conversion_removes_what_it_made_and_nothing_else() {
    let dir = with_source();
    fs::write(dir.path().join("keep"), "old").expect("written");
    let text =
        bad(dir.path(), &["img", "convert", "-O", "qcow2", "-o", "cluster_size=3k", "in.raw", "new.q"]);
    assert!(text.contains("error while converting qcow2"), "{text}");
    assert!(!text.contains("incomplete"), "{text}");
    bad(dir.path(), &["img", "convert", "-O", "qcow2", "-o", "foo=1", "in.raw", "keep"]);
    assert_eq!(names(dir.path()), ["in.raw", "keep"]);
    assert_eq!(fs::read(dir.path().join("keep")).expect("there"), b"old");
}

#[test]
fn a_conversion_touches_no_file_that_it_did_not_make() {
    let dir = with_source();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("victim"), "precious").expect("written");
    std::os::unix::fs::symlink("victim", path("a.incomplete")).expect("a link");
    fs::write(path("b.incomplete"), "precious").expect("written");
    fs::create_dir(path("c.incomplete")).expect("made");
    for target in ["a", "b", "c"] {
        good(dir.path(), &["img", "convert", "-f", "raw", "in.raw", target]);
        assert_eq!(fs::metadata(path(target)).expect("there").len(), 8 << 20);
        assert!(fs::symlink_metadata(path(target)).expect("there").is_file());
        bad(dir.path(), &["img", "convert", "-f", "raw", "-O", "qcow2", "-o", "foo=1", "in.raw", "new"]);
    }
    assert_eq!(fs::read(path("victim")).expect("there"), b"precious");
    assert_eq!(fs::read(path("b.incomplete")).expect("there"), b"precious");
    let all = ["a", "a.incomplete", "b", "b.incomplete", "c", "c.incomplete", "in.raw", "victim"];
    assert_eq!(names(dir.path()), all);
}

#[test]
fn an_unfinished_output_can_be_a_source() {
    let dir = with_source();
    fs::rename(dir.path().join("in.raw"), dir.path().join("out.incomplete")).expect("renamed");
    good(dir.path(), &["img", "convert", "-f", "raw", "out.incomplete", "out"]);
    assert_eq!(names(dir.path()), ["out", "out.incomplete"]);
    let text = bad(dir.path(), &["img", "convert", "-f", "raw", "-O", "qcow2", "-o", "compat=9", "out", "x"]);
    assert!(text.contains("'version' does not accept value '9'"), "{text}");
    assert_eq!(names(dir.path()), ["out", "out.incomplete"]);
}

#[test]
fn every_name_that_a_file_can_have_can_be_a_target() {
    let dir = with_source();
    let long = "é".repeat(127) + "x";
    std::os::unix::fs::symlink("sub/there", dir.path().join("link")).expect("a link");
    fs::create_dir(dir.path().join("sub")).expect("made");
    for target in [long.as_str(), "link", "sub/../plain"] {
        good(dir.path(), &["img", "convert", "-f", "raw", "in.raw", target]);
    }
    assert_eq!(names(dir.path()), ["in.raw", "link", "plain", "sub", &long]);
    assert_eq!(names(&dir.path().join("sub")), ["there"]);
    assert!(fs::symlink_metadata(dir.path().join("link")).expect("there").is_symlink());
}

#[test]
fn a_file_size_limit_is_an_error_and_not_the_end() {
    let dir = with_source();
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 1024; exec \"$0\" img convert -f raw in.raw out.raw"])
        .arg(env!("CARGO_BIN_EXE_cowbell"))
        .current_dir(dir.path())
        .output()
        .expect("a shell");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("File too large"), "{text}");
    assert_eq!(names(dir.path()), ["in.raw"]);
}

#[test]
fn an_interrupted_conversion_through_a_link_says_what_stays() {
    let dir = with_source();
    fs::write(dir.path().join("there"), "x").expect("written");
    std::os::unix::fs::symlink("there", dir.path().join("link")).expect("a link");
    fs::write(dir.path().join("begun"), "x").expect("written");
    let child = slow_convert(dir.path(), &["in.raw", "link"], "begun");
    signal(&child, "INT");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("the output 'link' is incomplete"), "{text}");
}

#[test]
fn two_conversions_to_one_name_do_not_meet() {
    let dir = with_source();
    let first = slow_convert(dir.path(), &["in.raw", "out.raw"], "out.raw.incomplete");
    good(dir.path(), &["img", "convert", "-f", "raw", "in.raw", "out.raw"]);
    signal(&first, "INT");
    first.wait_with_output().expect("it ends");
    assert_eq!(names(dir.path()), ["in.raw", "out.raw"]);
}

#[test]
fn an_image_in_use_can_be_a_backing_file() {
    let dir = tempfile::tempdir().expect("a directory");
    good(dir.path(), &["img", "create", "-q", "-f", "qcow2", "a.q", "1M"]);
    let mut user = Command::new(env!("CARGO_BIN_EXE_cowbell"))
        .args(["io", "-c", "sleep 3000", "a.q"])
        .current_dir(dir.path())
        .spawn()
        .expect("the program runs");
    std::thread::sleep(Duration::from_millis(300));
    let text = bad(dir.path(), &["img", "map", "a.q"]);
    assert!(text.contains("Failed to get shared \"write\" lock"), "{text}");
    good(dir.path(), &["img", "create", "-q", "-f", "qcow2", "-b", "a.q", "-F", "qcow2", "b.q"]);
    user.kill().expect("killed");
    user.wait().expect("it ends");
}

/// Whether this process was started with SIGHUP ignored, which its children inherit and the program respects.
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.is_some_and(|mask| u64::from_str_radix(mask.trim(), 16).is_ok_and(|mask| mask & 1 != 0))
}

#[test]
fn a_lost_terminal_removes_the_output_too() {
    if hangups_are_ignored() {
        println!("left out: this run ignores SIGHUP (nohup), and so do the programs it starts");
        return;
    }
    let dir = with_source();
    let child = slow_convert(dir.path(), &["in.raw", "out.raw"], "out.raw.incomplete");
    signal(&child, "HUP");
    assert_eq!(child.wait_with_output().expect("it ends").status.code(), Some(1));
    assert_eq!(names(dir.path()), ["in.raw"]);
}

#[test]
fn policies_refuse_by_name_and_say_what_would_allow_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let sub = dir.path().join("sub");
    fs::create_dir(&sub).expect("made");
    good(dir.path(), &["img", "create", "-q", "-f", "qcow2", "base.q", "1M"]);
    good(&sub, &["img", "create", "-q", "-f", "qcow2", "-b", "../base.q", "-F", "qcow2", "out.q"]);
    let text = bad(&sub, &["img", "map", "out.q"]);
    assert!(text.contains("'../base.q'") && text.contains("trust"), "{text}");
    good(&sub, &["img", "map", "--policy", "trust", "out.q"]);
    // Metadata can be looked at all the same.
    good(&sub, &["img", "info", "out.q"]);
    good(dir.path(), &["img", "create", "-q", "-f", "qcow2", "-b", "base.q", "-F", "qcow2", "in.q"]);
    good(dir.path(), &["img", "map", "in.q"]);
    let text = bad(dir.path(), &["img", "map", "--policy=none", "in.q"]);
    assert!(text.contains("'base.q'") && text.contains("confine"), "{text}");
    let tightened = Command::new(env!("CARGO_BIN_EXE_cowbell"))
        .args(["img", "map", "out.q"])
        .current_dir(&sub)
        .env("COWBELL_POLICY", "trust")
        .output()
        .expect("the program runs");
    assert!(tightened.status.success());
}

#[test]
fn every_command_speaks_json_under_its_own_name() {
    let dir = with_source();
    let lines: [&[&str]; 7] = [
        &["img", "create", "--output", "json", "-f", "qcow2", "a.q", "1M"],
        &["img", "convert", "--output=json", "-f", "raw", "-O", "qcow2", "in.raw", "b.q"],
        &["img", "info", "--output=json", "a.q"],
        &["img", "info", "--output=json", "--backing-chain", "a.q"],
        &["img", "check", "--output=json", "b.q"],
        &["img", "map", "--output=json", "b.q"],
        &["img", "compare", "--output=json", "in.raw", "b.q"],
    ];
    for args in lines {
        let text = good(dir.path(), args);
        let value: Result<Value, _> = serde_json::from_str(&text);
        assert!(value.is_ok(), "{args:?}: {text}");
    }
}

#[test]
fn links_make_the_drop_in_names_and_respect_what_is_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let text = bad(dir.path(), &["install-links", "/dev/null/bin"]);
    assert!(text.contains("Not a directory"), "{text}");
    let dir = dir.path().join("new/bin");
    let here = dir.to_str().expect("text");
    good(Path::new("/"), &["install-links", here]);
    good(&dir, &["install-links", here]);
    let output = Command::new(dir.join("qemu-img")).arg("--version").output().expect("it runs");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("qemu-img version 10.0.2 (cowbell "));
    fs::remove_file(dir.join("qemu-io")).expect("removed");
    fs::write(dir.join("qemu-io"), "theirs").expect("written");
    bad(&dir, &["install-links", here]);
    assert_eq!(fs::read(dir.join("qemu-io")).expect("there"), b"theirs");
}

#[test]
fn the_demo_agrees_with_itself() {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, len) in [("one", 5000), ("two", 70_000), ("three", 0)] {
        fs::write(dir.path().join(name), vec![b'x'; len]).expect("written");
    }
    let text = good(dir.path(), &["demo", "--from", dir.path().to_str().expect("text")]);
    assert!(text.contains("3 files identical") && text.contains("Everything agreed."), "{text}");
}
