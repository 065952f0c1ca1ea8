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
    let child = Command::new(env!("CARGO_BIN_EXE_cowbell"))
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
    // The next run is not in its way.
    good(dir.path(), &["img", "convert", "-f", "raw", "in.raw", "out.raw"]);
    assert_eq!(names(dir.path()), ["in.raw", "out.raw"]);
    assert!(fs::read(dir.path().join("in.raw")).ok() == fs::read(dir.path().join("out.raw")).ok());
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
    let here = dir.path().to_str().expect("text");
    good(dir.path(), &["install-links", here]);
    good(dir.path(), &["install-links", here]);
    let output = Command::new(dir.path().join("qemu-img")).arg("--version").output().expect("it runs");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("qemu-img version 10.0.2 (cowbell "));
    fs::remove_file(dir.path().join("qemu-io")).expect("removed");
    fs::write(dir.path().join("qemu-io"), "theirs").expect("written");
    bad(dir.path(), &["install-links", here]);
    assert_eq!(fs::read(dir.path().join("qemu-io")).expect("there"), b"theirs");
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
