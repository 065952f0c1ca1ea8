//! `check --live` beside a writer: what is in order stays unsuspected, and what is damaged is found.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

fn cowbell(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cowbell")).args(args).current_dir(dir).output().expect("runs")
}

/// Somebody who allocates, frees and flushes until dropped.
struct Writer(Child);

impl Writer {
    fn new(dir: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_cowbell"))
            .args(["io", "-f", "qcow2", "-d", "unmap", "a.q"])
            .current_dir(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("runs");
        let mut input = child.stdin.take().expect("piped");
        std::thread::spawn(move || {
            for round in 0u64.. {
                let at = round * 37 % 500;
                let line =
                    format!("write -q {at}k 9k\ndiscard -q {}k 20k\nwrite -q -z 300k 4k\nflush\n", at / 2);
                if input.write_all(line.as_bytes()).is_err() {
                    break;
                }
            }
        });
        // So that it is at work when somebody looks.
        std::thread::sleep(Duration::from_millis(300));
        Self(child)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn only_what_is_damaged_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let made =
        cowbell(dir.path(), &["img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=512", "a.q", "1M"]);
    assert!(made.status.success());
    let text = |output: &Output| {
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    };
    let writer = Writer::new(dir.path());
    for _ in 0..20 {
        let checked = cowbell(dir.path(), &["img", "check", "--live", "a.q"]);
        assert_eq!(checked.status.code(), Some(0), "a false alarm: {}", text(&checked));
    }
    drop(writer);
    // An entry of the last L2 table, which the writer does not touch, leads behind everything.
    // The kernel gives the locks of a killed process back a little later, once its rings are gone.
    let write = || cowbell(dir.path(), &["io", "-f", "qcow2", "-c", "write -q 1000k 512", "a.q"]);
    let written = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        write().status.success()
    });
    assert!(written, "{}", text(&write()));
    let file = std::fs::File::options().read(true).write(true).open(dir.path().join("a.q")).expect("there");
    let word = |at: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, at).expect("inside");
        u64::from_be_bytes(bytes)
    };
    let table = word(word(40) + (1000 << 10 >> 15) * 8) & 0x00ff_ffff_ffff_fe00;
    file.write_all_at(&(1u64 << 40).to_be_bytes(), table + 60 * 8).expect("written");
    let _writer = Writer::new(dir.path());
    let checked = cowbell(dir.path(), &["img", "check", "--live", "--explain", "a.q"]);
    assert_eq!(checked.status.code(), Some(2), "{}", text(&checked));
    assert!(text(&checked).contains("outside-file (1)"), "{}", text(&checked));
}
