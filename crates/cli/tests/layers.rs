//! What `commit` and `rebase` leave behind when they fail, are interrupted or killed: never less than there was.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

fn command(dir: &Path, args: &[&str]) -> Command {
    // What runs in the background of a shell is born deaf to SIGINT, and so would be the program.
    let mut command = Command::new("env");
    command.args(["--default-signal=INT", env!("CARGO_BIN_EXE_cowbell")]);
    command.args(args).current_dir(dir).env_remove("COWBELL_POLICY").stdin(Stdio::null());
    command
}

fn run(dir: &Path, args: &[&str]) -> Output {
    command(dir, args).output().expect("the program runs")
}

fn good(dir: &Path, args: &[&str]) -> String {
    let output = run(dir, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Ends a child at once, and waits until the kernel has let go of its files: what a ring still has in flight holds
/// them for a moment longer than the process lives.
fn kill(dir: &Path, mut child: Child) {
    // It may have ended.
    let _ = child.kill();
    child.wait().expect("it ends");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !run(dir, &["img", "info", "top.q"]).status.success() {
        assert!(Instant::now() < deadline, "the image stays locked");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn bad(dir: &Path, args: &[&str]) -> String {
    let output = run(dir, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    String::from_utf8(output.stderr).expect("text")
}

fn create(dir: &Path, args: &[&str]) {
    good(dir, &[&["img", "create", "-q", "-f", "qcow2"], args].concat());
}

fn write(dir: &Path, file: &str, commands: &[&str]) {
    let commands: Vec<_> = commands.iter().flat_map(|command| ["-c", command]).collect();
    good(dir, &[&["io"], &commands[..], &[file]].concat());
}

fn content(dir: &Path, file: &str) -> Vec<u8> {
    good(dir, &["img", "convert", "-O", "raw", file, "content.raw"]);
    let content = fs::read(dir.join("content.raw")).expect("converted");
    fs::remove_file(dir.join("content.raw")).expect("there");
    content
}

/// No corruption; leaks are what a cut may leave.
fn check(dir: &Path, file: &str) {
    let status = run(dir, &["img", "check", file]).status.code();
    assert!(matches!(status, Some(0 | 3)), "{file}: {status:?}");
}

/// `base.q` of 4 MiB and `top.q` of 8 MiB over it, each with data that the other has not.
fn chain() -> TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    create(at, &["base.q", "4M"]);
    create(at, &["-b", "base.q", "-F", "qcow2", "top.q", "8M"]);
    write(at, "base.q", &["write -q -P 1 0 3M"]);
    write(at, "top.q", &["write -q -P 2 1M 5M", "write -q -z 512k 100k", "write -q -P 3 7M 1000k"]);
    dir
}

/// Starts a commit of `top.q` that takes four seconds.
fn slow_commit(dir: &Path) -> Child {
    let mut child = command(dir, &["img", "commit", "-r", "1536k", "top.q"]);
    child.stderr(Stdio::piped()).spawn().expect("the program runs")
}

#[test]
fn a_killed_commit_loses_nothing() {
    for after_ms in [100, 700, 1500, 2600] {
        let dir = chain();
        let before = content(dir.path(), "top.q");
        let child = slow_commit(dir.path());
        std::thread::sleep(Duration::from_millis(after_ms));
        kill(dir.path(), child);
        assert!(content(dir.path(), "top.q") == before, "killed after {after_ms} ms");
        check(dir.path(), "base.q");
        check(dir.path(), "top.q");
        good(dir.path(), &["img", "commit", "-q", "top.q"]);
        assert!(content(dir.path(), "top.q") == before && content(dir.path(), "base.q") == before);
        check(dir.path(), "base.q");
        check(dir.path(), "top.q");
    }
}

#[test]
fn an_interrupted_commit_says_what_to_do() {
    let dir = chain();
    let before = content(dir.path(), "top.q");
    let child = slow_commit(dir.path());
    std::thread::sleep(Duration::from_millis(400));
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", pid.as_str()]).status().expect("kill runs").success());
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("interrupted") && text.contains("'top.q' still holds all its changes"), "{text}");
    assert!(content(dir.path(), "top.q") == before);
    assert_eq!(good(dir.path(), &["img", "commit", "top.q"]), "Image committed.\n");
    assert!(content(dir.path(), "base.q") == before);
}

/// The overlay over a base whose file fails as the rule says.
fn over_failing_base(rule: &str) -> String {
    format!(
        "driver=qcow2,file.filename=top.q,backing.driver=qcow2,backing.file.driver=blkdebug,\
         backing.file.image.driver=file,backing.file.image.filename=base.q,{rule}"
    )
}

#[test]
fn a_full_disk_loses_nothing() {
    for event in ["write_aio", "l2_update", "refblock_alloc", "cluster_alloc", "flush_to_disk", "flush_to_os"]
    {
        let dir = chain();
        let before = content(dir.path(), "top.q");
        // As the directory of the base is not known, nothing else than the options names it.
        let rule = format!("backing.file.inject-error.0.event={event},backing.file.inject-error.0.errno=28");
        let text = over_failing_base(&rule);
        let output = run(dir.path(), &["img", "commit", "--image-opts", &text]);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            assert!(error.contains("No space left on device"), "{event}: {error}");
        }
        assert!(content(dir.path(), "top.q") == before, "{event}: {error}");
        check(dir.path(), "base.q");
        check(dir.path(), "top.q");
        good(dir.path(), &["img", "commit", "-q", "top.q"]);
        assert!(content(dir.path(), "base.q") == before, "{event}");
    }
}

#[test]
fn a_base_in_use_is_left_alone() {
    let dir = chain();
    let (top, base) = (fs::read(dir.path().join("top.q")), fs::read(dir.path().join("base.q")));
    let mut holder = command(dir.path(), &["io", "-r", "base.q"]);
    let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it runs");
    writeln!(holder.stdin.as_mut().expect("piped"), "length").expect("it listens");
    let mut line = String::new();
    BufReader::new(holder.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it answers");
    let text = bad(dir.path(), &["img", "commit", "top.q"]);
    assert!(text.contains("Failed to get \"write\" lock") && text.contains("[base.q]"), "{text}");
    drop(holder.stdin.take());
    holder.wait().expect("it ends");
    assert_eq!(fs::read(dir.path().join("top.q")).ok(), top.ok());
    assert_eq!(fs::read(dir.path().join("base.q")).ok(), base.ok());
}

#[test]
fn what_was_committed_is_told() {
    let dir = chain();
    let text = good(dir.path(), &["img", "commit", "--output=json", "top.q"]);
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["grown-bytes"], 4 << 20);
    assert_eq!((&value["base"], &value["emptied"]), (&"base.q".into(), &true.into()));
    assert_eq!(value["zero-bytes"], 64 << 10);
}

/// Rebases `top.q` from `base.q` to `other.q`, with a cut at each of a number of times.
#[test]
fn a_killed_rebase_loses_nothing() {
    for after_ms in [0, 5, 10, 15, 20, 30, 50] {
        let dir = chain();
        create(dir.path(), &["other.q", "9M"]);
        write(dir.path(), "other.q", &["write -q -P 7 256k 8M"]);
        let before = content(dir.path(), "top.q");
        let mut rebase = command(dir.path(), &["img", "rebase", "-b", "other.q", "-F", "qcow2", "top.q"]);
        let child = rebase.spawn().expect("the program runs");
        std::thread::sleep(Duration::from_millis(after_ms));
        kill(dir.path(), child);
        assert!(content(dir.path(), "top.q") == before, "killed after {after_ms} ms");
        check(dir.path(), "top.q");
        good(dir.path(), &["img", "rebase", "-b", "other.q", "-F", "qcow2", "top.q"]);
        let info = good(dir.path(), &["img", "info", "top.q"]);
        assert!(info.contains("backing file: other.q"), "{info}");
        assert!(content(dir.path(), "top.q") == before);
        check(dir.path(), "top.q");
    }
}

#[test]
fn a_rebase_that_runs_out_of_space_changes_no_name() {
    for event in ["write_aio", "l2_update", "refblock_alloc", "cluster_alloc", "flush_to_os"] {
        let dir = chain();
        let before = content(dir.path(), "top.q");
        let text = format!(
            "driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=top.q,\
             file.inject-error.0.event={event},file.inject-error.0.errno=28,\
             backing.driver=qcow2,backing.file.driver=file,backing.file.filename=base.q"
        );
        let output = run(dir.path(), &["img", "rebase", "-b", "", "--image-opts", &text]);
        let info = good(dir.path(), &["img", "info", "top.q"]);
        assert_eq!(output.status.success(), !info.contains("backing file:"), "{event}: {info}");
        assert!(content(dir.path(), "top.q") == before, "{event}");
        check(dir.path(), "top.q");
    }
}

#[test]
fn what_was_rebased_is_told() {
    let dir = chain();
    let text = good(dir.path(), &["img", "rebase", "-b", "", "--output=json", "top.q"]);
    let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    // Up to 512 KiB, and from the end of the zeroes, but for the rest of their clusters, to 1 MiB.
    assert_eq!(value["data-bytes"], (512 << 10) + (384 << 10));
    assert_eq!(value["backing-filename"], serde_json::Value::Null);
}
