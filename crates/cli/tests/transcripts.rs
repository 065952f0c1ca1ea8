//! Transcripts: command lines with what they print, in `tests/golden/*.txt`.
//!
//! A line `$ COMMAND` is run by a shell in a fresh directory, where `qemu-img` and `qemu-io` are this program;
//! what follows is its standard output, its standard error (`! ` before each line) and its status unless 0.
//! `UPDATE_GOLDEN=1` writes what the program prints now; the change is reviewed as a diff.
//!
//! The same commands are run with the real tools, where they are on PATH in the right version. A command with
//! `# ours` at its end is left out there: its output is known to differ, and the comment above it says why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const REFERENCE: &str = "version 10.0.";

fn golden_files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<_> = fs::read_dir(dir)
        .expect("the directory is there")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "txt"))
        .collect();
    files.sort();
    files
}

/// A directory where the drop-in names are this program.
fn links() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["qemu-img", "qemu-io", "cowbell"] {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_cowbell"), dir.path().join(name)).expect("a link");
    }
    dir
}

/// Runs the commands of a transcript and returns what it would be now.
fn run(text: &str, path: &str, which: impl Fn(&str) -> bool) -> Vec<(String, Option<String>)> {
    let dir = tempfile::tempdir().expect("a directory");
    text.lines()
        .filter_map(|line| match line.strip_prefix("$ ") {
            Some(command) => {
                // Nothing here takes a second on a machine at rest; what waits for ever is to be a difference, not a hang.
                let output = Command::new("timeout")
                    .args(["60", "sh", "-c", command])
                    .current_dir(dir.path())
                    .env("PATH", path)
                    .env("TZ", "UTC")
                    .env("LC_ALL", "C")
                    .env_remove("COWBELL_POLICY")
                    .stdin(std::process::Stdio::null())
                    .output()
                    .expect("a shell");
                let mut shown = normal(&String::from_utf8_lossy(&output.stdout));
                for line in normal(&String::from_utf8_lossy(&output.stderr)).lines() {
                    shown.push_str(format!("! {line}").trim_end());
                    shown.push('\n');
                }
                if !output.status.success() {
                    shown.push_str(&format!("[status {}]\n", output.status.code().unwrap_or(-1)));
                }
                Some((line.to_owned(), which(command).then_some(shown)))
            }
            None => line.starts_with('#').then(|| (line.to_owned(), None)),
        })
        .collect()
}

/// What depends on the clock, the host's file system or the distribution is made equal.
fn normal(text: &str) -> String {
    let mut out = String::new();
    for line in text.replace('\r', "<CR>").lines() {
        out.push_str(normal_line(line).trim_end());
        out.push('\n');
    }
    out
}

fn normal_line(line: &str) -> String {
    if let Some(at) = line.find(" ops; ") {
        return format!("{} ops; TIME", &line[..at]);
    }
    for key in ["\"date-sec\": ", "\"date-nsec\": ", "\"actual-size\": "] {
        if let Some(at) = line.find(key) {
            return format!("{}N", &line[..at + key.len()]);
        }
    }
    if let Some(at) = line.find("disk size: ") {
        return format!("{}disk size: N", &line[..at]);
    }
    if line.starts_with("Try '") {
        return "Try --help".to_owned();
    }
    // The clock in the table of snapshots.
    match line.find(" 20").filter(|at| line[at + 1..].chars().nth(13) == Some(':')) {
        Some(at) => format!("{} DATE{}", &line[..at], &line[at + 20..]),
        None => line.to_owned(),
    }
}

#[test]
fn transcripts_are_as_recorded() {
    let links = links();
    let path = format!("{}:/usr/local/bin:/usr/bin:/bin", links.path().display());
    let update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let mut wrong = Vec::new();
    for file in golden_files() {
        let text = fs::read_to_string(&file).expect("readable");
        let now: String = run(&text, &path, |_| true)
            .into_iter()
            .map(|(line, output)| format!("{line}\n{}", output.unwrap_or_default()))
            .collect();
        if now != text {
            if update {
                fs::write(&file, &now).expect("writable");
            }
            let first = now.lines().zip(text.lines()).find(|(a, b)| a != b);
            wrong.push(format!("{}: first difference (now, recorded): {first:?}", file.display()));
        }
    }
    assert!(update || wrong.is_empty(), "{}\nUPDATE_GOLDEN=1 records what is printed now", wrong.join("\n"));
}

#[test]
fn the_reference_prints_the_same() {
    let path = std::env::var("PATH").unwrap_or_default();
    let version = Command::new("qemu-img").arg("--version").output();
    let version = version.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
    if !version.contains(REFERENCE) {
        println!("skipped: no qemu-img {REFERENCE}x on PATH");
        return;
    }
    println!("reference: {}", version.lines().next().unwrap_or_default());
    let mut wrong = Vec::new();
    for file in golden_files() {
        let text = fs::read_to_string(&file).expect("readable");
        let mut recorded = Vec::new();
        for line in text.lines() {
            match line.strip_prefix("$ ") {
                Some(_) => recorded.push((line, String::new())),
                None if line.starts_with('#') => {}
                None => {
                    if let Some((_, output)) = recorded.last_mut() {
                        output.push_str(line);
                        output.push('\n');
                    }
                }
            }
        }
        let theirs = run(&text, &path, |command| !command.ends_with("# ours"));
        let theirs = theirs.into_iter().filter(|(line, _)| line.starts_with("$ "));
        for ((line, recorded), (_, theirs)) in recorded.into_iter().zip(theirs) {
            if let Some(theirs) = theirs.filter(|theirs| *theirs != recorded) {
                wrong.push(format!("{line}\n--- reference\n{theirs}--- recorded\n{recorded}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} commands differ\n{}", wrong.len(), wrong.join("\n"));
}
