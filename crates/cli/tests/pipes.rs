//! `-` for standard input and output under the name `cowbell`: what comes out is what files would have given; under the
//! drop-in names it is the name of a file.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

fn command(dir: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cowbell"));
    command.args(line.split_whitespace()).current_dir(dir).env("TMPDIR", dir).env_remove("COWBELL_POLICY");
    command
}

fn run(dir: &Path, line: &str) -> Output {
    command(dir, line).stdin(Stdio::null()).output().expect("the program runs")
}

fn good(dir: &Path, line: &str) -> Vec<u8> {
    let output = run(dir, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Runs with bytes that come through a pipe.
fn fed(dir: &Path, line: &str, bytes: &[u8]) -> Output {
    let mut command = command(dir, line);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    let mut stdin = child.stdin.take().expect("piped");
    let bytes = bytes.to_vec();
    // It may end before it has read all.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
    let output = child.wait_with_output().expect("it ends");
    feeder.join().expect("fed");
    output
}

fn fed_well(dir: &Path, line: &str, bytes: &[u8]) -> Vec<u8> {
    let output = fed(dir, line, bytes);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// A raw disk of odd length with data, zeroes, and holes.
fn disk() -> (TempDir, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a directory");
    let mut content = vec![0u8; (5 << 20) + 512 * 3];
    for (n, piece) in content.chunks_mut(4096).enumerate() {
        match n % 7 {
            0 | 3 => piece.fill(n as u8 | 1),
            5 => piece[100..200].fill(7),
            _ => {}
        }
    }
    content[2 << 20..4 << 20].fill(0);
    fs::write(dir.path().join("in.raw"), &content).expect("written");
    good(dir.path(), "img convert -f raw -O qcow2 in.raw in.q");
    (dir, content)
}

fn reads_as(dir: &Path, file: &str, content: &[u8]) {
    good(dir, &format!("img convert -O raw {file} back.raw"));
    assert!(fs::read(dir.join("back.raw")).expect("there") == content, "{file}");
    let status = run(dir, &format!("img check {file}")).status.code();
    assert!(matches!(status, Some(0 | 63)), "{file}: {status:?}");
}

/// Nothing is left but what was there and `more`.
fn left(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("readable").map(|e| e.expect("one").file_name());
    let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn images_go_to_standard_output() {
    let (dir, content) = disk();
    let at = dir.path();
    assert!(good(at, "img convert -O raw in.q -") == content);
    assert!(good(at, "img convert -f raw -O raw in.raw -") == content);
    for options in [
        "-O qcow2",
        "-O qcow2 -S 0",
        "-O qcow2 -o cluster_size=512",
        "-O qcow2 -o cluster_size=2M,refcount_bits=1",
        "-O qcow2 -o compat=0.10",
        // These are made in a file first.
        "-O qcow2 -c",
        "-O qcow2 -o preallocation=metadata",
        "-O qcow2 -o extended_l2=on",
        "-O qcow2 -W",
        "-O vpc -o force_size=on",
    ] {
        let bytes = good(at, &format!("img convert {options} in.q -"));
        fs::write(at.join("out"), bytes).expect("written");
        reads_as(at, "out", &content);
    }
    assert_eq!(left(at), ["back.raw", "in.q", "in.raw", "out"], "nothing is left in TMPDIR");
}

#[test]
fn images_come_from_standard_input() {
    let (dir, content) = disk();
    let at = dir.path();
    let qcow2 = fs::read(at.join("in.q")).expect("there");
    for (line, bytes) in [
        // In one pass.
        ("img convert -f raw -O qcow2 - out", &content),
        ("img convert -f raw -O raw - out", &content),
        ("img convert -f raw -O qcow2 -S 0 -o cluster_size=4k - out", &content),
        // Kept first.
        ("img convert -O qcow2 - out", &qcow2),
        ("img convert -f qcow2 -O raw - out", &qcow2),
        ("img convert -f raw -O qcow2 -c - out", &content),
        ("img dd -O qcow2 if=- of=out", &qcow2),
    ] {
        let output = fed(at, line, bytes);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{line}: {told}");
        let in_one_pass = line.contains("-f raw") && !line.contains("-c");
        assert_eq!(!in_one_pass, told.contains("it is kept in"), "{line}: {told}");
        reads_as(at, "out", &content);
        fs::remove_file(at.join("out")).expect("there");
    }
    // A file is read where it is.
    let mut convert = command(at, "img convert -O qcow2 - out");
    let input = File::open(at.join("in.q")).expect("there");
    let output = convert.stdin(input).output().expect("it runs");
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    reads_as(at, "out", &content);
    let nothing = fed_well(at, "img convert -f raw -O qcow2 - empty", &[]);
    assert!(nothing.is_empty());
    reads_as(at, "empty", &[]);
    // A length that is no whole number of sectors becomes one.
    fed_well(at, "img convert -f raw -O qcow2 - odd", &[5; 700]);
    let mut odd = vec![5; 700];
    odd.resize(1024, 0);
    reads_as(at, "odd", &odd);
}

#[test]
fn from_pipe_to_pipe() {
    let (dir, content) = disk();
    let at = dir.path();
    let qcow2 = fed_well(at, "img convert -f raw -O qcow2 - -", &content);
    fs::write(at.join("out"), &qcow2).expect("written");
    reads_as(at, "out", &content);
    assert!(fed_well(at, "img convert -O raw - -", &qcow2) == content);
    assert!(
        fed_well(at, "img dd -f qcow2 if=- of=- bs=1M skip=1 count=2", &qcow2) == content[1 << 20..3 << 20]
    );
    let part = good(at, "img dd -O qcow2 if=in.q of=- bs=1M count=1");
    fs::write(at.join("part"), part).expect("written");
    reads_as(at, "part", &content[..1 << 20]);
}

#[test]
fn what_cannot_be_is_said() {
    let (dir, _) = disk();
    let at = dir.path();
    for (line, expect) in [
        ("img convert -n -O raw in.q -", "'-' is made anew: leave out -n"),
        ("img convert --output json in.q -", "nothing else can be printed"),
        ("img convert -p in.q -", "nothing else can be printed"),
        ("img convert - - out", "standard input can be read once"),
        ("img convert -O qcow2 -o cluster_size=3 in.q -", "Cluster size must be a power of two"),
        ("img dd if=in.q of=- skip=99999999", "cannot skip to specified offset"),
    ] {
        let output = run(at, line);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{line}: {told}");
        assert!(told.contains(expect) && output.stdout.is_empty(), "{line}: {told}");
    }
    let truncated = fed(at, "img convert -f qcow2 -O raw - out", b"QFI\xfb");
    assert_eq!(truncated.status.code(), Some(1));
    assert_eq!(left(at), ["in.q", "in.raw"]);
}

#[test]
fn progress_for_programs_goes_beside_the_image() {
    let (dir, content) = disk();
    let output = run(dir.path(), "img convert --progress=json -O raw in.q -");
    assert!(output.status.success() && output.stdout == content);
    let told = String::from_utf8(output.stderr).expect("text");
    let lines: Vec<serde_json::Value> =
        told.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect();
    let (first, last) = (&lines[0], lines.last().expect("some"));
    assert_eq!((&first["done"], &first["eta"]), (&0.into(), &serde_json::Value::Null));
    assert_eq!((&last["done"], &last["total"]), (&content.len().into(), &content.len().into()));
    assert!(last["rate"].is_number() && last["eta"] == 0.0, "{last}");
}

#[test]
fn under_the_drop_in_names_it_is_a_file() {
    let (dir, content) = disk();
    let at = dir.path();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cowbell"), at.join("qemu-img")).expect("a link");
    let run = |args: &[&str]| {
        let status = Command::new(at.join("qemu-img")).args(args).current_dir(at).status();
        assert!(status.expect("it runs").success(), "{args:?}");
    };
    run(&["convert", "-O", "raw", "in.q", "-"]);
    assert!(fs::read(at.join("-")).expect("a file of that name") == content);
    run(&["convert", "-f", "raw", "-O", "qcow2", "-", "out"]);
    reads_as(at, "out", &content);
}
